//! Processes that somebody works with.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::{Inner, start};
use crate::driver::{Session, Terminal};
use crate::error::{DriverError, Result};
use crate::proc::Id;
use crate::shim::session::{Request, Start};
use crate::spec::{Handle, ProcessSpec};
use crate::supervised::locked;

/// The keepers of sessions that run, with the container of each.
#[derive(Debug, Clone, Default)]
pub(super) struct Keepers(Arc<Mutex<BTreeSet<(Handle, Id)>>>);

impl Keepers {
    /// Those of one container.
    pub(super) fn of(&self, handle: &Handle) -> Vec<Id> {
        let all = locked(&self.0);
        all.iter().filter(|(of, _)| of == handle).map(|(_, id)| *id).collect()
    }

    fn add(&self, handle: &Handle, keeper: Id) {
        locked(&self.0).insert((handle.clone(), keeper));
    }

    fn remove(&self, handle: &Handle, keeper: Id) {
        locked(&self.0).remove(&(handle.clone(), keeper));
    }
}

impl Inner {
    pub(super) async fn session(
        self: &Arc<Self>,
        handle: &Handle,
        spec: ProcessSpec,
        terminal: Option<Terminal>,
    ) -> Result<Session> {
        spec.check()?;
        start::check_user(spec.user)?;
        let lock = self.kept.lock_of(handle);
        let _together = lock.read().await;
        let container = self.kept.dirs.meta(handle)?;
        // It ends with its keeper: the container says which process it is for.
        let marks = start::markers(self, handle, None);
        let direct = self.direct(&container, &spec, marks)?;
        let request = Request { start: Start::Direct(direct), terminal };
        let command = spec.argv.first().cloned().unwrap_or_default();
        let started = self.kept.keep_session(&request).await;
        let (session, mut keeper) =
            started.map_err(|fault| DriverError::Start { command, fault })?;
        let pid = keeper.id().and_then(|pid| Id::of(pid.cast_signed()));
        if let Some(id) = pid {
            let (keepers, handle) = (self.sessions.clone(), handle.clone());
            keepers.add(&handle, id);
            self.kept.tasks.spawn(runtime::Kind::Ordinary, "session keeper", async move {
                let ended = keeper.wait().await;
                keepers.remove(&handle, id);
                ended.map(drop)
            });
        }
        Ok(session)
    }
}
