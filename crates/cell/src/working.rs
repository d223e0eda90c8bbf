//! Which drivers of the cell work: looked at when it starts and now and then after that, because a
//! daemon may be stopped and a program removed at any time. What runs is left alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use drivers::Driver;
use drivers::process::{Config, ProcessDriver};
use model::{CellDrivers, MAX_DRIVER_REASON, Name};
use runtime::Tasks;
use tokio::sync::watch;

use crate::error::CellError;
use crate::options::Options;

/// All drivers of the cell, the best first.
#[derive(Debug)]
pub(crate) struct Working {
    all: Vec<(&'static str, Arc<dyn Driver>)>,
    /// Those that do not work, and why.
    failing: watch::Sender<Failing>,
}

pub(crate) type Failing = BTreeMap<&'static str, String>;

impl Working {
    /// The drivers that were asked for, or the usual. At least one of them must work.
    pub(crate) fn open(options: &Options, tasks: &Tasks) -> Result<Self, CellError> {
        let mut drivers = options.drivers.clone();
        if drivers.is_empty() {
            let config = Config::new(options.dir.join("containers"));
            drivers.push(Arc::new(ProcessDriver::open(&config, tasks.clone())?));
        }
        let (mut all, mut failing) = (Vec::new(), Failing::new());
        for driver in drivers {
            let able = driver.capabilities();
            failing.extend(able.unavailable.map(|reason| (able.name, reason)));
            all.push((able.name, driver));
        }
        if all.iter().all(|(name, _)| failing.contains_key(name)) {
            let reasons = failing.iter().map(|(name, reason)| format!("{name}: {reason}"));
            return Err(CellError::NoDriver(reasons.collect::<Vec<_>>().join("; ")));
        }
        for (name, reason) in &failing {
            tracing::warn!(driver = name, reason, "a driver does not work");
        }
        Ok(Self { all, failing: watch::Sender::new(failing) })
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<dyn Driver>> {
        self.all.iter().map(|(_, driver)| driver)
    }

    /// Looks at all of them now and then, for ever.
    pub(crate) async fn watch(&self, (every, tasks): (Duration, &Tasks)) {
        loop {
            runtime::sleep(every).await;
            let all = self.all.clone();
            let look = move || {
                let look = |(name, driver): &(&'static str, Arc<dyn Driver>)| {
                    driver.look_again().map(|reason| (*name, reason))
                };
                all.iter().filter_map(look).collect()
            };
            self.found(tasks.blocking(look).await);
        }
    }

    fn found(&self, now: Failing) {
        let before = self.failing.borrow().clone();
        for (name, reason) in now.iter().filter(|(name, _)| !before.contains_key(*name)) {
            tracing::warn!(driver = name, reason, "a driver does not work any more");
        }
        for name in before.keys().filter(|name| !now.contains_key(*name)) {
            tracing::info!(driver = name, "a driver works again");
        }
        self.failing.send_if_modified(|failing| {
            let is_news = *failing != now;
            *failing = now;
            is_news
        });
    }

    /// Tells of changes from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<Failing> {
        self.failing.subscribe()
    }

    /// What the server is told.
    pub(crate) fn report(&self) -> CellDrivers {
        let failing = self.failing.borrow();
        let mut report = CellDrivers::default();
        for (name, _) in &self.all {
            let Ok(known) = name.parse::<Name>() else { continue };
            if let Some(reason) = failing.get(name) {
                let reason = reason.chars().take(MAX_DRIVER_REASON).collect();
                report.unavailable.insert(known, reason);
            } else {
                report.drivers.insert(known);
            }
        }
        report
    }

    /// The best of all, whether or not it works.
    pub(crate) fn any(&self) -> &Arc<dyn Driver> {
        let (_, driver) = self.all.first().expect("a cell has a driver");
        driver
    }

    /// The driver of a new container: the one it asks for, or the best that works.
    pub(crate) fn choose(&self, wanted: Option<&Name>) -> Result<&Arc<dyn Driver>, String> {
        let failing = self.failing.borrow();
        let fits = |(name, _): &&(&str, _)| wanted.is_none_or(|wanted| wanted.as_str() == *name);
        let mut fitting = self.all.iter().filter(fits).peekable();
        let first = fitting.peek().map(|(name, _)| *name);
        if let Some((_, driver)) = fitting.find(|(name, _)| !failing.contains_key(name)) {
            return Ok(driver);
        }
        Err(match (first.and_then(|name| failing.get_key_value(name)), wanted) {
            (Some((name, reason)), _) => {
                format!("driver {name} does not work at the moment: {reason}")
            }
            (None, wanted) => {
                format!("the cell has no driver {}", wanted.map_or("", Name::as_str))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use runtime::Stop;

    use super::*;

    fn failing(of: &[(&'static str, &str)]) -> Failing {
        of.iter().map(|(name, reason)| (*name, (*reason).to_owned())).collect()
    }

    #[tokio::test]
    async fn the_best_driver_that_works_is_chosen() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let driver: Arc<dyn Driver> = Arc::new(
            ProcessDriver::open(&Config::new(dir.path()), Tasks::new(Stop::new())).expect("opens"),
        );
        let all = ["oci", "docker", "process"].map(|name| (name, Arc::clone(&driver))).to_vec();
        let working = Working { all, failing: watch::Sender::default() };
        let mut changes = working.changes();
        let choose = |wanted: &str| {
            let wanted = wanted.parse().ok();
            working.choose(wanted.as_ref()).map(drop)
        };
        let names = |names: &[&str]| -> Vec<Name> {
            names.iter().map(|name| name.parse().expect("a name")).collect()
        };
        assert_eq!(choose(""), Ok(()));
        assert_eq!(choose("vm"), Err("the cell has no driver vm".to_owned()));
        working.found(failing(&[("docker", "no daemon")]));
        assert!(changes.has_changed().expect("it is there"));
        changes.mark_unchanged();
        let told = "driver docker does not work at the moment: no daemon";
        assert_eq!((choose(""), choose("oci"), choose("process")), (Ok(()), Ok(()), Ok(())));
        assert_eq!(choose("docker"), Err(told.to_owned()));
        let report = working.report();
        assert_eq!(report.drivers.into_iter().collect::<Vec<_>>(), names(&["oci", "process"]));
        assert_eq!(report.unavailable.into_keys().collect::<Vec<_>>(), names(&["docker"]));
        // The same again is no news.
        working.found(failing(&[("docker", "no daemon")]));
        assert!(!changes.has_changed().expect("it is there"));
        let long = "x".repeat(2 * MAX_DRIVER_REASON);
        working.found(failing(&[("docker", &long), ("oci", "no runc"), ("process", "no disk")]));
        let told = "driver oci does not work at the moment: no runc";
        assert_eq!(choose(""), Err(told.to_owned()));
        let longest = working.report().unavailable.into_values().map(|reason| reason.len()).max();
        assert_eq!(longest, Some(MAX_DRIVER_REASON));
        working.found(Failing::new());
        assert!(changes.has_changed().expect("it is there"));
        assert_eq!(choose("docker"), Ok(()));
    }
}
