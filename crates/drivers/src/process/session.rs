//! Processes that somebody works with.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use super::{Inner, start};
use crate::driver::{Session, Terminal};
use crate::error::{Context as _, DriverError, Result};
use crate::proc::{self, Id, Table};
use crate::shim::session::{Request, Start};
use crate::spec::{Handle, ProcessSpec};
use crate::supervised::{locked, session};

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
        let mut marks = start::markers(self, handle, None);
        let name = session::name();
        marks.insert(session::MARK.to_owned(), name.clone());
        let direct = self.direct(&container, &spec, marks).await?;
        let request = Request { start: Start::Direct(direct), terminal };
        let command = spec.argv.first().cloned().unwrap_or_default();
        let started = self.kept.keep_session(&request).await;
        let (session, mut keeper) =
            started.map_err(|fault| DriverError::Start { command, fault })?;
        let pid = keeper.id().and_then(|pid| Id::of(pid.cast_signed()));
        if let Some(id) = pid {
            let (inner, handle) = (Arc::clone(self), handle.clone());
            inner.sessions.add(&handle, id);
            self.kept.tasks.spawn(runtime::Kind::Ordinary, "session keeper", async move {
                let ended = keeper.wait().await;
                inner.sessions.remove(&handle, id);
                if !matches!(&ended, Ok(status) if status.success()) {
                    inner.end_session(&handle, (&name, Some(id))).await?;
                }
                let context = || format!("reap the keeper of a session in {handle}");
                ended.map(drop).context(context)
            });
        }
        Ok(session)
    }

    /// Ends what agents that are gone left of sessions when their keepers were killed.
    pub(super) async fn sweep_sessions(self: &Arc<Self>) -> Result<()> {
        let inner = Arc::clone(self);
        let found = self.kept.tasks.blocking(move || inner.abandoned_sessions()).await;
        for (handle, name) in found.context(|| "look for old sessions".to_owned())? {
            tracing::info!(%handle, name, "ending a session nobody works in");
            self.end_session(&handle, (&name, None)).await?;
        }
        Ok(())
    }

    /// Sessions of agents that are gone of which something runs, with their containers.
    fn abandoned_sessions(&self) -> io::Result<BTreeSet<(Handle, String)>> {
        let table = Table::read()?;
        let of = |entry: &proc::Entry| {
            let value = |name| proc::environment_value(entry.id.pid, name);
            let name = value(session::MARK).filter(|name| session::is_abandoned(name))?;
            let handle = Handle::new(value("SHORE_CONTAINER")?).ok()?;
            // It may be a container of another agent.
            let root = self.kept.dirs.root(&handle);
            (value("SHORE_ROOT")? == root.display().to_string()).then_some((handle, name))
        };
        Ok(table.running().filter_map(of).collect())
    }
}
