//! Instances: started, watched, reported, stopped.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use drivers::{Exit, ProcessId, ProcessSpec as Command};
use model::{Check, FailureDetail, InstanceReport, ProcessSpec};

use crate::actor::{Actor, Reading, Voice, describe, status};
use crate::error::{Context as _, Failure};
use crate::health::{Health, Verdict};
use crate::limits::REJECT_PAUSE;
use crate::lines::Position;
use crate::prepare;
use crate::shared::Place;
use crate::work::Want;

/// The name of a process whose type is not told.
const DEFAULT_PROCESS: &str = "app";
const PROCESS: &str = "process";
const PORT: &str = "port";
const CHECK: &str = "check";
const GRACE: &str = "stop_grace_ms";
/// Labels, and the variables an app finds them in.
const LABELS: [(&str, &str); 5] = [
    ("project", "SHORE_PROJECT"),
    ("app", "SHORE_APP"),
    ("workspace", "SHORE_WORKSPACE"),
    ("index", "SHORE_INSTANCE_INDEX"),
    ("deployment", "SHORE_DEPLOYMENT"),
];

/// What is noted with a container, so that a later agent can take over. Holds no environment:
/// that may be secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notes {
    pub(crate) process: ProcessId,
    pub(crate) port: u16,
    pub(crate) check: Option<Check>,
    pub(crate) grace: Duration,
}

impl Notes {
    fn new(spec: &ProcessSpec, process: ProcessId, port: u16) -> Self {
        let grace = Duration::from_millis(spec.stop_grace_ms);
        Self { process, port, check: spec.check.clone(), grace }
    }

    fn properties(&self) -> BTreeMap<String, String> {
        let mut properties = BTreeMap::from([
            (PROCESS.to_owned(), self.process.to_string()),
            (PORT.to_owned(), self.port.to_string()),
            (GRACE.to_owned(), self.grace.as_millis().to_string()),
        ]);
        if let Some(check) = &self.check {
            let check = serde_json::to_string(check).expect("a check is a plain structure");
            properties.insert(CHECK.to_owned(), check);
        }
        properties
    }

    pub(crate) fn from_properties(properties: &BTreeMap<String, String>) -> Option<Self> {
        let check = properties.get(CHECK).map(|text| serde_json::from_str(text)).transpose();
        Some(Self {
            process: ProcessId::new(properties.get(PROCESS)?).ok()?,
            port: properties.get(PORT)?.parse().ok()?,
            check: check.ok()?,
            grace: Duration::from_millis(properties.get(GRACE)?.parse().ok()?),
        })
    }
}

/// An instance whose process was started.
struct Running<'a> {
    actor: &'a Actor,
    notes: Notes,
    place: Place,
    reading: Reading,
}

/// Why an instance ends.
enum End {
    Unwanted(Want),
    Exited(Exit),
    NeverHealthy(String),
    Unhealthy(String),
}

/// Starts an instance and takes care of it to its end.
pub(crate) async fn run(actor: &Actor, spec: &ProcessSpec, labels: &HashMap<String, String>) {
    let Some(place) = actor.shared.place(actor.driver.as_ref(), &actor.handle) else {
        return reject(actor, "the cell has no free port").await;
    };
    let started = match start(actor, (spec, labels), &place).await {
        Ok(started) => started,
        Err(failure) => {
            actor.remove().await;
            let reason = format!("could not start: {failure}");
            let crashed = InstanceReport::Crashed { reason, never_healthy: false, detail: None };
            return actor.reporter.end(&crashed).await;
        }
    };
    let Some(notes) = started else {
        actor.remove().await;
        if *actor.want.borrow() == Want::Stop {
            actor.reporter.end(&InstanceReport::Gone).await;
        }
        return;
    };
    let reading = actor.read(&notes.process, Some(Position::default()), Voice::Plain).await;
    Running { actor, notes, place, reading }.watch().await;
}

/// Takes care of an instance that an earlier agent started.
pub(crate) async fn adopt(actor: &Actor, notes: Notes, resume: Position) {
    let place = actor.shared.place_again(actor.driver.as_ref(), &actor.handle, notes.port);
    let reading = actor.read(&notes.process, Some(resume), Voice::Plain).await;
    Running { actor, notes, place, reading }.watch().await;
}

/// Gives an instance back that has no room here.
pub(crate) async fn reject(actor: &Actor, reason: &str) {
    runtime::sleep(REJECT_PAUSE).await;
    actor.reporter.end(&InstanceReport::Reject { reason: reason.to_owned() }).await;
}

/// Makes the container and starts the process; `None` when it is not wanted any more.
async fn start(
    actor: &Actor,
    (spec, labels): (&ProcessSpec, &HashMap<String, String>),
    place: &Place,
) -> Result<Option<Notes>, Failure> {
    let name = labels.get("process").map_or(DEFAULT_PROCESS, String::as_str);
    let notes = Notes::new(spec, ProcessId::new(name)?, place.address.port());
    let prepare = prepare::container(
        &actor.shared,
        &actor.driver,
        actor.key,
        (&spec.container, notes.properties()),
    );
    let prepared = tokio::select! {
        biased;
        _ = actor.unwanted() => return Ok(None),
        prepared = prepare => prepared?,
    };
    let mut command = Command::new(notes.process.clone(), spec.argv.iter().map(String::as_str));
    command.dir = spec.dir.clone().or(prepared.dir);
    command.env = prepared.env;
    actor.hold(prepared.caches);
    command.env.insert("PORT".to_owned(), notes.port.to_string());
    // Where routers reach it; an app that listens on all addresses may ignore it.
    let host = || actor.shared.options.address.to_string();
    command.env.entry("HOST".to_owned()).or_insert_with(host);
    command.env.insert("SHORE_INSTANCE_ID".to_owned(), actor.key.id_text());
    command.env.insert("SHORE_PROCESS".to_owned(), name.to_owned());
    for (label, variable) in LABELS {
        command.env.extend(labels.get(label).map(|value| (variable.to_owned(), value.clone())));
    }
    actor.driver.start(&actor.handle, command).await?;
    Ok(Some(notes))
}

/// What is checked of an instance.
enum Checks {
    /// Nothing: it counts as healthy at once.
    None,
    /// Nothing, and that was said.
    Said,
    Some(Box<Health>),
}

impl Checks {
    fn new(running: &Running<'_>) -> Self {
        let check = running.notes.check.clone();
        check.map_or(Self::None, |check| {
            Self::Some(Box::new(Health::new(check, running.place.address)))
        })
    }

    async fn next(&mut self) -> Verdict {
        match self {
            Self::None => {
                *self = Self::Said;
                Verdict::Healthy
            }
            Self::Said => std::future::pending().await,
            Self::Some(health) => health.next().await,
        }
    }
}

impl Running<'_> {
    async fn watch(self) {
        self.actor.reporter.started(self.place.address).await;
        let end = match self.end().await {
            Ok(end) => end,
            Err(failure) => End::Unhealthy(format!("cannot be watched: {failure}")),
        };
        self.finish(end).await;
    }

    /// Waits for whatever ends the instance.
    async fn end(&self) -> Result<End, Failure> {
        let actor = self.actor;
        let mut checks = Checks::new(self);
        let exit = actor.driver.wait(&actor.handle, &self.notes.process);
        tokio::pin!(exit);
        loop {
            tokio::select! {
                biased;
                want = actor.unwanted() => return Ok(End::Unwanted(want)),
                exit = &mut exit => {
                    return exit.map(End::Exited).context(|| "its end is unknown".to_owned());
                }
                verdict = checks.next() => match verdict {
                    Verdict::Healthy => actor.reporter.ready(true).await,
                    Verdict::NeverHealthy { reason } => return Ok(End::NeverHealthy(reason)),
                    Verdict::Unhealthy { reason } => {
                        actor.reporter.ready(false).await;
                        return Ok(End::Unhealthy(reason));
                    }
                },
            }
        }
    }

    /// Ends what is left, ships the last lines, reports and removes.
    async fn finish(self, end: End) {
        let Self { actor, notes, place, reading } = self;
        let grace = if matches!(end, End::Exited(_)) { Duration::ZERO } else { notes.grace };
        actor.stop(grace).await;
        let tail = actor.finish(reading).await;
        actor.flush().await;
        let exit = match &end {
            End::Exited(exit) => Some(status(exit)),
            End::Unwanted(_) | End::NeverHealthy(_) | End::Unhealthy(_) => None,
        };
        let crashed = |reason, never_healthy| {
            let detail = FailureDetail { action: None, exit, tail };
            InstanceReport::Crashed { reason, never_healthy, detail: Some(Box::new(detail)) }
        };
        let report = match end {
            End::Exited(exit) => {
                // The process is gone already: a restart need not wait for its files.
                actor.reporter.end(&crashed(describe(&exit), false)).await;
                None
            }
            End::NeverHealthy(reason) => Some(crashed(reason, true)),
            End::Unhealthy(reason) => Some(crashed(reason, false)),
            End::Unwanted(Want::Forget) => None,
            End::Unwanted(Want::Run | Want::Stop) => Some(InstanceReport::Gone),
        };
        actor.remove().await;
        drop(place);
        if let Some(report) = report {
            actor.reporter.end(&report).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_can_set_what_tells_of_an_instance() {
        for (_, variable) in LABELS {
            assert!(model::PLATFORM_ENV.contains(&variable), "{variable}");
        }
    }

    #[test]
    fn notes_come_back() {
        let process = ProcessId::new("web").expect("a good id");
        let grace = Duration::from_millis(1_500);
        for check in [None, Some(Check::default())] {
            let notes = Notes { process: process.clone(), port: 20_001, check, grace };
            assert_eq!(Notes::from_properties(&notes.properties()), Some(notes));
        }
    }
}
