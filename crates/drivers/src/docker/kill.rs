//! Finds and kills everything in a container but its first process.
//!
//! The kernel knows which processes belong to a container: they are in its control group. What
//! belongs to one process of it are the descendants of its launcher, which adopts orphans; when
//! that is gone, the marks in their environment are left.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal as Raw;

use super::cgroup::Cgroups;
use super::{Inner, start};
use crate::driver::Target;
use crate::error::{Context as _, DriverError, Result};
use crate::proc::{self, Id, Table};
use crate::shim::{KILLED_FILE, Processes};
use crate::spec::Handle;
use crate::supervised::{ended, locked, session};

/// How long killed processes may take to go away.
const KILL_LIMIT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// How often to look for processes that were made while others were being stopped.
const FREEZE_ROUNDS: usize = 64;

/// What is to be killed in a container.
#[derive(Debug)]
struct Scope {
    groups: Cgroups,
    /// The first process, and the launchers, which end by themselves.
    spared: BTreeSet<Id>,
    /// One process, by its launcher and the marks of its descendants; everything when absent.
    one: Option<(Option<Id>, Vec<String>)>,
}

impl Scope {
    fn members(&self) -> io::Result<BTreeSet<Id>> {
        let table = Table::read()?;
        let inside = self.groups.processes()?;
        let inside: BTreeSet<Id> = inside.into_iter().filter_map(|pid| table.named(pid)).collect();
        let mut found = match &self.one {
            None => inside,
            Some((launcher, marks)) => {
                let marked = |id: &Id| proc::environment_has(id.pid, marks);
                let mut found: BTreeSet<Id> = inside.iter().copied().filter(marked).collect();
                let roots: Vec<Id> = found.iter().chain(launcher).copied().collect();
                found.extend(table.descendants(&roots));
                // Nothing that is not in the container is touched, whatever it claims.
                found.retain(|id| inside.contains(id));
                found
            }
        };
        let ended = |id: &Id| table.get(*id).is_none_or(|entry| entry.ended);
        found.retain(|id| !ended(id) && !self.spared.contains(id));
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

    /// Kills until nothing is left.
    fn kill_all(&self) -> io::Result<bool> {
        let deadline = runtime::mono_now() + KILL_LIMIT;
        let mut pause = FIRST_PAUSE;
        while self.kill()? {
            if runtime::mono_now() >= deadline {
                return Ok(false);
            }
            runtime::pause_thread(pause);
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        Ok(true)
    }
}

impl Inner {
    /// The processes that were started in a container, by their directories.
    pub(super) fn started(&self, handle: &Handle, target: &Target) -> Vec<(PathBuf, Processes)> {
        let ids = match target {
            Target::All => self.kept.dirs.process_ids(handle),
            Target::One(id) => vec![id.clone()],
        };
        let dirs = ids.iter().map(|id| self.kept.dirs.process(handle, id));
        let known = |dir: PathBuf| Some((dir.clone(), self.kept.dirs.started(&dir)?));
        dirs.filter_map(known).collect()
    }

    /// Processes of ours in a container: the first and the launchers.
    pub(super) fn spared(&self, handle: &Handle, first: Id) -> BTreeSet<Id> {
        self.launchers(handle).chain([first]).collect()
    }

    /// The launchers in a container that were written down, and those of sessions.
    pub(super) fn launchers(&self, handle: &Handle) -> impl Iterator<Item = Id> {
        let started = self.started(handle, &Target::All);
        let mut sessions = locked(&self.sessions);
        sessions.retain(|(_, launcher)| launcher.runs());
        let here = sessions.iter().filter(|(at, _)| at == handle);
        let here: Vec<Id> = here.map(|(_, launcher)| *launcher).collect();
        started.into_iter().filter_map(|(_, processes)| processes.launcher).chain(here)
    }

    /// Kills everything of a target and waits until it is gone.
    pub(super) async fn kill(self: &Arc<Self>, handle: &Handle, target: &Target) -> Result<()> {
        let started = self.started(handle, target);
        for (dir, _) in started.iter().filter(|(dir, _)| ended(dir).is_none()) {
            // It does not matter who made it, only that it is there.
            drop(File::create(dir.join(KILLED_FILE)));
        }
        if let Some(place) = self.running(handle) {
            let context = || format!("kill the processes of {handle}");
            let one = match target {
                Target::All => None,
                Target::One(id) => {
                    let launcher = started.first().and_then(|(_, processes)| processes.launcher);
                    let marks = start::marks(handle, Some(id)).into_iter();
                    Some((launcher, marks.map(|(key, value)| format!("{key}={value}")).collect()))
                }
            };
            let groups = Cgroups::of(place.first.pid).context(context)?;
            let scope = Scope { groups, spared: self.spared(handle, place.first), one };
            if !self.work(move |_| scope.kill_all()).await.context(context)? {
                let limit_ms = u64::try_from(KILL_LIMIT.as_millis()).unwrap_or(u64::MAX);
                return Err(DriverError::Timeout { what: "killing processes", limit_ms });
            }
        }
        if *target == Target::All {
            for (_, launcher) in locked(&self.sessions).iter().filter(|(at, _)| at == handle) {
                launcher.send(Raw::KILL).context(|| format!("end a session in {handle}"))?;
            }
        }
        for (dir, processes) in started {
            let context = || format!("end a supervisor of {handle}");
            self.kept.end_supervisor(&dir, &processes).await.context(context)?;
            if let Some(launcher) = processes.launcher {
                launcher.send(Raw::KILL).context(context)?;
            }
        }
        Ok(())
    }

    /// Kills what runs of a session; its launcher is gone.
    pub(super) fn end_session(&self, handle: &Handle, name: &str) -> Result<()> {
        let Some(place) = self.running(handle) else { return Ok(()) };
        let context = || format!("end a session in {handle}");
        let groups = Cgroups::of(place.first.pid).context(context)?;
        let mut marks = start::marks(handle, None);
        marks.insert(session::MARK.to_owned(), name.to_owned());
        let marks = marks.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
        let spared = self.spared(handle, place.first);
        if (Scope { groups, spared, one: Some((None, marks)) }).kill_all().context(context)? {
            return Ok(());
        }
        let limit_ms = u64::try_from(KILL_LIMIT.as_millis()).unwrap_or(u64::MAX);
        Err(DriverError::Timeout { what: "killing a session", limit_ms })
    }

    /// Ends what agents that are gone left of sessions when their launchers were killed.
    pub(super) fn sweep_sessions(&self) -> Result<()> {
        for handle in self.kept.dirs.handles()? {
            let Some(place) = self.running(&handle) else { continue };
            let inside = Cgroups::of(place.first.pid).and_then(|groups| groups.processes());
            let inside = inside.context(|| format!("list the processes of {handle}"))?;
            let value = |pid| proc::environment_value(pid, session::MARK);
            let names: BTreeSet<String> = inside.into_iter().filter_map(value).collect();
            for name in names.iter().filter(|name| session::is_abandoned(name)) {
                tracing::info!(%handle, name, "ending a session nobody works in");
                self.end_session(&handle, name)?;
            }
        }
        Ok(())
    }
}
