//! Finds and kills everything that belongs to a container.
//!
//! Three ways lead to its processes. A living supervisor is the ancestor of all of them, whatever
//! they did to leave. When a supervisor was killed, the marks in their environment are left; and
//! for a process that dropped those too, its session together with its working directory.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal as Raw;

use super::{Inner, start};
use crate::driver::Target;
use crate::error::{Context as _, DriverError, Result};
use crate::proc::{self, Id, Table};
use crate::shim::Processes;
use crate::spec::Handle;
use crate::supervised::session;

/// How long killed processes may take to go away.
const KILL_LIMIT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// How often to look for processes that were made while others were being stopped.
const FREEZE_ROUNDS: usize = 64;

/// What tells the processes of a container, or of one of its processes, from all others.
#[derive(Debug, Clone)]
struct Scope {
    supervisors: Vec<Id>,
    markers: Vec<String>,
    root: PathBuf,
}

impl Scope {
    /// Every process in scope that runs, except supervisors that are known.
    fn members(&self) -> io::Result<BTreeSet<Id>> {
        let table = Table::read()?;
        let mut found = table.descendants(&self.supervisors);
        for entry in table.running() {
            let id = entry.id;
            if found.contains(&id) || self.supervisors.contains(&id) {
                continue;
            }
            let in_session = self.supervisors.iter().any(|supervisor| {
                entry.session == supervisor.pid
                    && id.start >= supervisor.start
                    && proc::works_below(id.pid, &self.root)
            });
            if in_session || proc::environment_has(id.pid, &self.markers) {
                found.insert(id);
            }
        }
        let roots: Vec<Id> = found.iter().copied().collect();
        found.extend(table.descendants(&roots));
        let ended = |id: &Id| table.get(*id).is_none_or(|entry| entry.ended);
        found.retain(|id| !ended(id) && !self.supervisors.contains(id));
        Ok(found)
    }

    /// Kills everything in scope; false when there was nothing.
    fn kill(&self) -> io::Result<bool> {
        // A stopped process makes no new ones, so this ends even against a fork bomb.
        let mut stopped = BTreeSet::new();
        for _ in 0..FREEZE_ROUNDS {
            let members = self.members()?;
            let new: Vec<Id> = members.difference(&stopped).copied().collect();
            if new.is_empty() {
                break;
            }
            for id in new {
                id.send(Raw::STOP)?;
                stopped.insert(id);
            }
        }
        for id in &stopped {
            id.send(Raw::KILL)?;
        }
        Ok(!stopped.is_empty())
    }
}

impl Inner {
    fn scope(&self, handle: &Handle, target: &Target) -> (Scope, Vec<(PathBuf, Processes)>) {
        let (ids, one) = match target {
            Target::All => (self.kept.dirs.process_ids(handle), None),
            Target::One(id) => (vec![id.clone()], Some(id)),
        };
        let dirs = ids.iter().map(|id| self.kept.dirs.process(handle, id));
        let started: Vec<_> = dirs
            .filter_map(|dir| self.kept.dirs.started(&dir).map(|started| (dir, started)))
            .collect();
        let markers = start::markers(self, handle, one);
        let mut supervisors: Vec<Id> =
            started.iter().map(|(_, started)| started.supervisor).collect();
        if one.is_none() {
            // Their keepers end by themselves.
            supervisors.extend(self.sessions.of(handle));
        }
        let scope = Scope {
            supervisors,
            markers: markers.into_iter().map(|(key, value)| format!("{key}={value}")).collect(),
            root: self.kept.dirs.root(handle),
        };
        (scope, started)
    }

    /// Kills everything of a target and waits until it is gone.
    pub(super) async fn kill(self: &Arc<Self>, handle: &Handle, target: Target) -> Result<()> {
        let (scope, started) = self.scope(handle, &target);
        self.kill_all(handle, &scope).await?;
        for (dir, processes) in started {
            self.kept
                .end_supervisor(&dir, &processes)
                .await
                .context(|| format!("end a supervisor of {handle}"))?;
        }
        Ok(())
    }

    /// Kills what a session left whose keeper was killed, if that is known still.
    pub(super) async fn end_session(
        self: &Arc<Self>,
        handle: &Handle,
        (name, keeper): (&str, Option<Id>),
    ) -> Result<()> {
        let mut markers = start::markers(self, handle, None);
        markers.insert(session::MARK.to_owned(), name.to_owned());
        let scope = Scope {
            supervisors: keeper.into_iter().collect(),
            markers: markers.into_iter().map(|(key, value)| format!("{key}={value}")).collect(),
            root: self.kept.dirs.root(handle),
        };
        self.kill_all(handle, &scope).await
    }

    async fn kill_all(&self, handle: &Handle, scope: &Scope) -> Result<()> {
        let deadline = runtime::mono_now() + KILL_LIMIT;
        let mut pause = FIRST_PAUSE;
        loop {
            let round = scope.clone();
            let killed = self.kept.tasks.blocking(move || round.kill()).await;
            if !killed.context(|| format!("kill the processes of {handle}"))? {
                return Ok(());
            }
            if runtime::mono_now() >= deadline {
                let limit_ms = u64::try_from(KILL_LIMIT.as_millis()).unwrap_or(u64::MAX);
                return Err(DriverError::Timeout { what: "killing processes", limit_ms });
            }
            runtime::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }
}
