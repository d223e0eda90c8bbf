//! What drivers share whose processes are started by a supervisor (see [`shim`](crate::shim)):
//! directories of containers and processes, waiting, output, and asking processes to end.
//!
//! Such a driver adds how a container is made, how a command is started in it, and how everything
//! in it is killed.

mod copy;
mod dirs;
mod disk;
mod life;
pub(crate) mod session;
mod start;
mod tail;
pub(crate) mod tree;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use runtime::Tasks;
use rustix::io::Errno;
use rustix::process::{Pid, Signal as Raw, kill_process_group};
use tokio::sync::RwLock;

use crate::driver::{ContainerInfo, Exit, ProcessInfo, ProcessState, Signal, Target};
use crate::error::{Context as _, DriverError, Result};
use crate::output::{OutputOffset, OutputStream};
use crate::proc::Id;
use crate::shim::Processes;
use crate::spec::{Handle, ProcessId};

pub(crate) use copy::{stream_out, unpack_as};
pub(crate) use dirs::{Dirs, Draft, ended, join_below, make_private};
pub(crate) use disk::DiskCache;
pub(crate) use life::Life;
pub(crate) use start::Starting;
pub(crate) use watch::{Watcher, until, until_readable};

/// This executable, even when its file was replaced since it was started.
pub(crate) const OWN_EXECUTABLE: &str = "/proc/self/exe";
/// How long a supervisor with nothing to do may stay.
const SUPERVISOR_LIMIT: Duration = Duration::from_secs(2);

/// Containers in a base directory, whose processes have supervisors.
#[derive(Debug)]
pub(crate) struct Supervised {
    pub(crate) dirs: Dirs,
    pub(crate) tasks: Tasks,
    pub(crate) disk: DiskCache,
    supervisor: PathBuf,
    /// What `supervisor` is a name of, when it is open for as long as it is needed.
    _executable: Option<OwnedFd>,
    watcher: Watcher,
    /// Operations on one container that must not overlap.
    locks: Mutex<BTreeMap<Handle, Weak<RwLock<()>>>>,
    /// Processes whose start is under way: not there yet, rather than lost.
    starting: Mutex<BTreeSet<(Handle, ProcessId)>>,
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Supervised {
    /// Opens a base directory, with all containers an earlier agent left there. `supervisor` is an
    /// executable whose `main` calls [`shim::maybe_run`](crate::shim::maybe_run) first. Must be
    /// called within a runtime.
    pub(crate) fn open(base: &Path, supervisor: &Path, tasks: Tasks) -> Result<Self> {
        Ok(Self {
            dirs: Dirs::open(base)?,
            disk: DiskCache::default(),
            supervisor: supervisor.to_owned(),
            _executable: None,
            watcher: Watcher::new(&tasks),
            locks: Mutex::default(),
            starting: Mutex::default(),
            tasks,
        })
    }

    /// Has supervisors started from an open executable instead.
    pub(crate) fn start_from(self, executable: OwnedFd) -> Self {
        let supervisor = format!("/proc/self/fd/{}", executable.as_raw_fd()).into();
        Self { supervisor, _executable: Some(executable), ..self }
    }

    /// Deletes what earlier agents did not come to delete.
    pub(crate) fn empty_trash(&self) {
        let (trash, tasks) = (self.dirs.trash(), self.tasks.clone());
        self.tasks.spawn(runtime::Kind::Ordinary, "empty driver trash", async move {
            tasks.blocking(move || tree::remove_contents(&trash)).await
        });
    }

    /// The executable that supervises processes.
    pub(crate) fn supervisor(&self) -> &Path {
        &self.supervisor
    }

    /// Held for reading by what may happen at once in a container, for writing by what may not.
    pub(crate) fn lock_of(&self, handle: &Handle) -> Arc<RwLock<()>> {
        let mut locks = locked(&self.locks);
        if let Some(lock) = locks.get(handle).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(RwLock::new(()));
        locks.insert(handle.clone(), Arc::downgrade(&lock));
        lock
    }

    pub(crate) fn inspect(&self, handle: &Handle) -> Result<ContainerInfo> {
        if !self.dirs.container(handle).is_dir() {
            return Err(DriverError::NotFound { what: "container", name: handle.to_string() });
        }
        let starting = locked(&self.starting).clone();
        let mut info = self.dirs.container_info(handle);
        info.processes.retain(|process| !starting.contains(&(handle.clone(), process.id.clone())));
        Ok(info)
    }

    pub(crate) async fn list(self: &Arc<Self>) -> Result<Vec<ContainerInfo>> {
        let kept = Arc::clone(self);
        let look = move || {
            let found = kept.dirs.handles()?.into_iter().map(|handle| kept.inspect(&handle));
            // One that is removed while it is listed is not there.
            Ok(found.filter_map(Result::ok).collect())
        };
        self.tasks.blocking(look).await
    }

    pub(crate) fn life(&self, handle: &Handle, process: &ProcessId) -> Result<(PathBuf, Life)> {
        let dir = self.dirs.existing(handle, process)?;
        let started = self.dirs.started(&dir);
        let life = Life::watch(&self.watcher, &dir, started.as_ref())
            .context(|| format!("watch process {process}"))?;
        Ok((dir, life))
    }

    pub(crate) async fn wait(&self, handle: &Handle, process: &ProcessId) -> Result<Exit> {
        let (_, life) = self.life(handle, process)?;
        Ok(life.exit().await)
    }

    pub(crate) fn attach(
        &self,
        handle: &Handle,
        process: &ProcessId,
        from: OutputOffset,
    ) -> Result<OutputStream> {
        let (dir, life) = self.life(handle, process)?;
        Ok(tail::stream(dir, life, from))
    }

    pub(crate) fn signal(
        &self,
        handle: &Handle,
        process: &ProcessId,
        signal: Signal,
    ) -> Result<()> {
        let dir = self.dirs.existing(handle, process)?;
        let started = self.dirs.started(&dir);
        let running = started.filter(|_| ended(&dir).is_none());
        match running.map(|started| signal_group(started.command, signal)) {
            Some(Ok(true)) => Ok(()),
            Some(Err(error)) => Err(DriverError::io(format!("signal process {process}"), error)),
            Some(Ok(false)) | None => Err(DriverError::NotRunning { process: process.to_string() }),
        }
    }

    /// The processes of a target, with their state.
    fn targets(&self, handle: &Handle, target: &Target) -> Result<Vec<ProcessInfo>> {
        let mut info = self.inspect(handle)?;
        if let Target::One(id) = target {
            self.dirs.existing(handle, id)?;
            info.processes.retain(|process| process.id == *id);
        }
        Ok(info.processes)
    }

    /// Sends `TERM` to what runs of a target and waits up to `grace` for its end.
    pub(crate) async fn ask_to_end(
        &self,
        handle: &Handle,
        target: &Target,
        grace: Duration,
    ) -> Result<()> {
        let mut running = Vec::new();
        for process in self.targets(handle, target)? {
            if process.state != ProcessState::Running || grace.is_zero() {
                continue;
            }
            match self.signal(handle, &process.id, Signal::Term) {
                Ok(()) => running.push(self.life(handle, &process.id)?.1.exit()),
                Err(DriverError::NotRunning { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if !running.is_empty() {
            let all = futures_util::future::join_all(running);
            if runtime::timeout(grace, all).await.is_none() {
                tracing::info!(%handle, ?grace, "exceeded the grace period: killing");
            }
        }
        Ok(())
    }

    /// Waits for a supervisor that has nothing left; one that hangs is killed.
    pub(crate) async fn end_supervisor(&self, dir: &Path, processes: &Processes) -> io::Result<()> {
        let life = Life::watch(&self.watcher, dir, Some(processes))?;
        if runtime::timeout(SUPERVISOR_LIMIT, life.supervisor_gone()).await.is_none() {
            tracing::warn!(dir = %dir.display(), "a supervisor hangs: killing it");
            processes.supervisor.send(Raw::KILL)?;
        }
        Ok(())
    }
}

/// Sends a signal to the group that `leader` leads; false when it has ended.
pub(crate) fn signal_group(leader: Id, signal: Signal) -> io::Result<bool> {
    let Some(group) = Pid::from_raw(leader.pid).filter(|_| leader.runs()) else {
        return Ok(false);
    };
    match kill_process_group(group, raw(signal)) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

pub(crate) const fn raw(signal: Signal) -> Raw {
    match signal {
        Signal::Term => Raw::TERM,
        Signal::Kill => Raw::KILL,
        Signal::Int => Raw::INT,
        Signal::Hup => Raw::HUP,
        Signal::Quit => Raw::QUIT,
        Signal::Usr1 => Raw::USR1,
        Signal::Usr2 => Raw::USR2,
        Signal::Stop => Raw::STOP,
        Signal::Cont => Raw::CONT,
    }
}
