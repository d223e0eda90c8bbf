//! Killing and removing containers, and what agents that died left of them.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal as Raw;

use super::{Inner, slots, stage};
use crate::driver::{Signal, Target};
use crate::error::{Context as _, DriverError, Result};
use crate::proc::{Id, Table};
use crate::shim::{KILLED_FILE, session};
use crate::spec::{Handle, Openings, ProcessId};
use crate::supervised::{ended, tree};

/// How long killed processes may take to go away.
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(10);

impl Inner {
    pub(super) fn signal(
        &self,
        handle: &Handle,
        process: &ProcessId,
        signal: Signal,
    ) -> Result<()> {
        if signal == Signal::Kill {
            self.mark_killed(handle, process);
        }
        self.kept.signal(handle, process, signal)
    }

    /// Has the supervisor of a process know that it was not the kernel who killed it.
    fn mark_killed(&self, handle: &Handle, process: &ProcessId) {
        let dir = self.kept.dirs.process(handle, process);
        if dir.is_dir() && ended(&dir).is_none() {
            // Without the mark the exit may say that memory ran out, if it did.
            drop(fs::write(dir.join(KILLED_FILE), b""));
        }
    }

    /// Kills everything of a target and waits until it is gone. The container itself stays.
    pub(super) async fn kill(self: &Arc<Self>, handle: &Handle, target: Target) -> Result<()> {
        let (ids, one) = match target {
            Target::All => (self.kept.dirs.process_ids(handle), None),
            Target::One(id) => (vec![id.clone()], Some(id)),
        };
        for id in &ids {
            self.mark_killed(handle, id);
        }
        let group = self.group(handle);
        let only = one.as_ref().map(group_name);
        let deadline = runtime::mono_now() + KILL_LIMIT;
        let kill = move || group.kill(only.as_deref(), deadline);
        self.kept.tasks.blocking(kill).await.context(|| format!("kill processes of {handle}"))?;
        for id in ids {
            let dir = self.kept.dirs.process(handle, &id);
            if let Some(processes) = self.kept.dirs.started(&dir) {
                let ended = self.kept.end_supervisor(&dir, &processes).await;
                ended.context(|| format!("end a supervisor of {handle}"))?;
            }
        }
        Ok(())
    }

    pub(super) async fn remove(self: &Arc<Self>, handle: &Handle) -> Result<()> {
        let lock = self.kept.lock_of(handle);
        let _alone = lock.write().await;
        let at = self.kept.dirs.container(handle);
        if !at.exists() {
            return Ok(());
        }
        self.kill(handle, Target::All).await?;
        self.kept.disk.forget(handle);
        let openings = self.kept.dirs.meta(handle).map(|spec| spec.openings()).unwrap_or_default();
        let (inner, name) = (Arc::clone(self), handle.clone());
        let remove = move || {
            inner.dismantle(&name, &at, &openings)?;
            let last = tree::move_into(&at, &inner.kept.dirs.trash())?;
            tree::remove(&last)?;
            inner.leave_nothing()
        };
        self.kept.tasks.blocking(remove).await.context(|| format!("remove container {handle}"))
    }

    /// Removes what a container has outside of its directory. May be repeated.
    pub(super) fn dismantle(
        &self,
        handle: &Handle,
        dir: &Path,
        openings: &Openings,
    ) -> io::Result<()> {
        // An agent that died may have left the runtime at work.
        if let Some(maker) = stage::maker(dir) {
            let below = Table::read()?.descendants(&[maker]);
            for id in std::iter::once(&maker).chain(&below) {
                id.send(Raw::KILL)?;
            }
        }
        let deadline = runtime::mono_now() + KILL_LIMIT;
        self.group(handle).remove(deadline)?;
        tree::remove(&self.runtime_root().join(handle.as_str()))?;
        if let Some(place) = self.place(dir) {
            if let Some(init) = place.init {
                wait_for_end(init, deadline)?;
            }
            self.net.disconnect(place.slot, openings)?;
            self.slots.give_back(place.slot)?;
        }
        Ok(())
    }

    /// Removes what all containers share outside of the base directory, after the last of them.
    pub(super) fn leave_nothing(&self) -> io::Result<()> {
        let _alone = self.network_lock()?;
        if self.kept.dirs.any()? {
            return Ok(());
        }
        *crate::supervised::locked(&self.accepted) = None;
        self.group(&Handle::new("none").map_err(super::create::plain)?).remove_parent();
        self.net.remove()
    }

    /// Removes what agents that died left half-made, and what runs without a supervisor.
    pub(super) fn sweep_later(self: &Arc<Self>) {
        let inner = Arc::clone(self);
        let name = "sweep containers";
        self.kept.tasks.spawn(runtime::Kind::Ordinary, name, async move {
            let sweeper = Arc::clone(&inner);
            inner.kept.tasks.blocking(move || sweeper.sweep()).await?;
            for container in inner.kept.list().await? {
                for process in container.processes {
                    let dir = inner.kept.dirs.process(&container.handle, &process.id);
                    if inner.kept.dirs.lost_its_supervisor(&dir) {
                        inner.kill(&container.handle, Target::One(process.id)).await?;
                    }
                }
            }
            Ok::<(), DriverError>(())
        });
    }

    fn sweep(&self) -> Result<()> {
        for draft in self.kept.dirs.abandoned()? {
            let context = || format!("remove what is left of {}", draft.handle);
            self.dismantle(&draft.handle, &draft.dir, &draft.openings()).context(context)?;
            draft.remove().context(context)?;
        }
        self.slots.sweep().context(|| "give back old addresses".to_owned())?;
        session::sweep(slots::RUN.as_ref()).context(|| "remove old sessions".to_owned())?;
        self.sweep_sessions().context(|| "end old sessions".to_owned())?;
        tree::remove_contents(&self.kept.dirs.trash()).context(|| "empty the trash".to_owned())?;
        self.layers.sweep().context(|| "remove old layers".to_owned())
    }
}

/// The control group of a process.
pub(super) fn group_name(id: &ProcessId) -> String {
    format!("p-{id}")
}

fn wait_for_end(id: Id, deadline: std::time::Instant) -> io::Result<()> {
    while id.runs() {
        if runtime::mono_now() >= deadline {
            return Err(io::Error::other("its first process does not end"));
        }
        runtime::pause_thread(Duration::from_millis(1));
    }
    Ok(())
}
