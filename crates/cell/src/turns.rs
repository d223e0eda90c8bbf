//! Turns at what only a few may do at once, of which no project has all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Failure;
use crate::limits::PROJECT_TURNS;

/// Hands out turns.
#[derive(Debug)]
pub(crate) struct Turns {
    all: Arc<Semaphore>,
    /// Those of each project that has or waits for one.
    of: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// A turn, until this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _own: OwnedSemaphorePermit,
    _one: OwnedSemaphorePermit,
}

impl Turns {
    /// As many at once as `all` has permits, which others may use as well.
    pub(crate) fn new(all: Arc<Semaphore>) -> Self {
        Self { all, of: Mutex::default() }
    }

    /// Waits for a turn. Who waits for others of the same project keeps nobody else waiting.
    pub(crate) async fn take(&self, project: &str) -> Result<Turn, Failure> {
        let own = self.own(project).acquire_owned().await.map_err(Failure::new)?;
        let one = Arc::clone(&self.all).acquire_owned().await.map_err(Failure::new)?;
        Ok(Turn { _own: own, _one: one })
    }

    fn own(&self, project: &str) -> Arc<Semaphore> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever has or waits for a permit has a clone.
        of.retain(|_, own| Arc::strong_count(own) > 1);
        let own = of.entry(project.to_owned());
        Arc::clone(own.or_insert_with(|| Arc::new(Semaphore::new(PROJECT_TURNS))))
    }
}

/// Who shares turns: a project with all that are below it, as who has one may make those.
pub(crate) fn owner(project: Option<&String>) -> String {
    let project = project.map_or("", String::as_str);
    project.split('/').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn no_project_has_all_turns() {
        let turns = Turns::new(Arc::new(Semaphore::new(PROJECT_TURNS + 1)));
        let take = |project| turns.take(project).now_or_never();
        let mut taken: Vec<_> = (0..PROJECT_TURNS).map(|_| take("a").expect("is free")).collect();
        assert!(take("a").is_none(), "it has its share");
        let other = take("b").expect("one is left to others");
        assert!(take("c").is_none(), "now none is left");
        drop(other);
        drop(taken.pop());
        assert!(take("a").is_some_and(|turn| turn.is_ok()));
        drop(taken);
        drop(turns.own("c"));
        assert_eq!(turns.of.lock().expect("is fine").len(), 1, "nothing is kept of the others");
    }

    #[test]
    fn projects_share_with_those_below_them() {
        let of = |project: &str| owner(Some(&project.to_owned()));
        assert_eq!((of("acme"), of("acme/shop")), ("acme".to_owned(), "acme".to_owned()));
        assert_eq!(owner(None), "");
    }
}
