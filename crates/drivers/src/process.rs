//! The driver for any machine: plain processes, no isolation, no rights needed.
//!
//! A container is a private directory; a process is a child of a supervisor (see
//! [`shim`](crate::shim)) in a session and process group of its own, with a cleared environment,
//! limits, and no descriptor or terminal of the agent. There is no mount namespace: a container's
//! `/workspace` is `<root>/workspace` on the machine. Processes learn the root from `SHORE_ROOT`;
//! their home and temporary directories lie in it; the program and the working directory of a
//! command are translated when they are below it. The network is the machine's.

mod copy;
mod dirs;
mod kill;
mod life;
mod start;
mod tail;
mod tree;
mod usage;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use runtime::Tasks;
use tokio::sync::RwLock;

use crate::archive;
use crate::driver::{
    Capabilities, ContainerInfo, Driver, Exit, Input, Isolation, LimitKind, Network, ProcessInfo,
    ProcessState, Signal, Started, Stats, Target,
};
use crate::error::{Context as _, DriverError, Result};
use crate::output::{OutputOffset, OutputStream};
use crate::spec::{ContainerSpec, Handle, ProcessId, ProcessSpec};

use dirs::Dirs;
use life::Life;
use usage::DiskCache;
use watch::Watcher;

/// This executable, even when its file was replaced since it was started.
const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// Where containers live and what supervises their processes.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory that holds all containers.
    pub base: PathBuf,
    /// An executable whose `main` calls [`shim::maybe_run`](crate::shim::maybe_run) first.
    pub supervisor: PathBuf,
}

impl Config {
    /// Containers in `base`, supervised by this very executable.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self { base: base.into(), supervisor: OWN_EXECUTABLE.into() }
    }
}

/// Runs containers as plain processes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ProcessDriver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dirs: Dirs,
    supervisor: PathBuf,
    tasks: Tasks,
    watcher: Watcher,
    /// Operations on one container that must not overlap.
    locks: Mutex<BTreeMap<Handle, Weak<RwLock<()>>>>,
    /// Processes whose start is under way: not there yet, rather than lost.
    starting: Mutex<BTreeSet<(Handle, ProcessId)>>,
    disk: DiskCache,
}

impl ProcessDriver {
    /// Opens the base directory, with all containers an earlier agent left there. Must be called
    /// within a runtime.
    pub fn open(config: &Config, tasks: Tasks) -> Result<Self> {
        let dirs = Dirs::open(&config.base)?;
        let trash = dirs.trash();
        let inner = Inner {
            dirs,
            supervisor: config.supervisor.clone(),
            watcher: Watcher::new(&tasks),
            locks: Mutex::default(),
            starting: Mutex::default(),
            disk: DiskCache::default(),
            tasks: tasks.clone(),
        };
        tasks.clone().spawn(runtime::Kind::Ordinary, "empty driver trash", async move {
            tasks.blocking(move || tree::remove_contents(&trash)).await
        });
        Ok(Self(Arc::new(inner)))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn lock_of(&self, handle: &Handle) -> Arc<RwLock<()>> {
        let mut locks = locked(&self.locks);
        if let Some(lock) = locks.get(handle).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(RwLock::new(()));
        locks.insert(handle.clone(), Arc::downgrade(&lock));
        lock
    }

    async fn create(&self, spec: ContainerSpec) -> Result<()> {
        spec.check()?;
        let lock = self.lock_of(&spec.handle);
        let _alone = lock.write().await;
        self.dirs.create(&spec)
    }

    fn inspect(&self, handle: &Handle) -> Result<ContainerInfo> {
        if !self.dirs.container(handle).is_dir() {
            return Err(DriverError::NotFound { what: "container", name: handle.to_string() });
        }
        let starting = locked(&self.starting).clone();
        let mut info = self.dirs.container_info(handle);
        info.processes.retain(|process| !starting.contains(&(handle.clone(), process.id.clone())));
        Ok(info)
    }

    async fn list(self: &Arc<Self>) -> Result<Vec<ContainerInfo>> {
        let inner = Arc::clone(self);
        let look = move || {
            let found = inner.dirs.handles()?.into_iter().map(|handle| inner.inspect(&handle));
            // One that is removed while it is listed is not there.
            Ok(found.filter_map(Result::ok).collect())
        };
        self.tasks.blocking(look).await
    }

    fn life(&self, handle: &Handle, process: &ProcessId) -> Result<(PathBuf, Life)> {
        let dir = self.dirs.existing(handle, process)?;
        let started = self.dirs.started(&dir);
        let life = Life::watch(&self.watcher, &dir, started.as_ref())
            .context(|| format!("watch process {process}"))?;
        Ok((dir, life))
    }

    async fn wait(&self, handle: &Handle, process: &ProcessId) -> Result<Exit> {
        let (_, life) = self.life(handle, process)?;
        Ok(life.exit().await)
    }

    fn signal(&self, handle: &Handle, process: &ProcessId, signal: Signal) -> Result<()> {
        let dir = self.dirs.existing(handle, process)?;
        let started = self.dirs.started(&dir);
        let running = started.filter(|_| dirs::ended(&dir).is_none());
        match running.map(|started| kill::signal_group(started.command, signal)) {
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

    async fn stop(
        self: &Arc<Self>,
        handle: &Handle,
        target: Target,
        grace: Duration,
    ) -> Result<()> {
        let mut running = Vec::new();
        for process in self.targets(handle, &target)? {
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
        self.kill(handle, target).await
    }

    async fn remove(self: &Arc<Self>, handle: &Handle) -> Result<()> {
        let lock = self.lock_of(handle);
        let _alone = lock.write().await;
        let at = self.dirs.container(handle);
        if !at.exists() {
            return Ok(());
        }
        self.kill(handle, Target::All).await?;
        self.disk.forget(handle);
        let trash = self.dirs.trash();
        let context = format!("remove container {handle}");
        let remove = move || {
            let last = tree::move_into(&at, &trash)?;
            tree::remove(&last)
        };
        self.tasks.blocking(remove).await.context(|| context)
    }
}

impl Driver for ProcessDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "process",
            isolation: Isolation::None,
            enforced: vec![
                LimitKind::AddressSpace,
                LimitKind::CpuSeconds,
                LimitKind::Processes,
                LimitKind::OpenFiles,
                LimitKind::FileSize,
            ],
            abilities: Vec::new(),
            unavailable: start::unavailable(&self.0.supervisor),
        }
    }

    fn create(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.0.create(spec))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ContainerInfo>>> {
        Box::pin(self.0.list())
    }

    fn inspect<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<ContainerInfo>> {
        Box::pin(async { self.0.inspect(handle) })
    }

    fn start<'a>(
        &'a self,
        handle: &'a Handle,
        spec: ProcessSpec,
    ) -> BoxFuture<'a, Result<Started>> {
        Box::pin(self.0.start(handle, spec))
    }

    fn attach<'a>(
        &'a self,
        handle: &'a Handle,
        process: &'a ProcessId,
        from: OutputOffset,
    ) -> BoxFuture<'a, Result<OutputStream>> {
        Box::pin(async move {
            let (dir, life) = self.0.life(handle, process)?;
            Ok(tail::stream(dir, life, from))
        })
    }

    fn wait<'a>(
        &'a self,
        handle: &'a Handle,
        process: &'a ProcessId,
    ) -> BoxFuture<'a, Result<Exit>> {
        Box::pin(self.0.wait(handle, process))
    }

    fn signal<'a>(
        &'a self,
        handle: &'a Handle,
        process: &'a ProcessId,
        signal: Signal,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.0.signal(handle, process, signal) })
    }

    fn stop<'a>(
        &'a self,
        handle: &'a Handle,
        target: Target,
        grace: Duration,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.0.stop(handle, target, grace))
    }

    fn remove<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.0.remove(handle))
    }

    fn stats<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Stats>> {
        Box::pin(self.0.stats(handle))
    }

    fn copy_in<'a>(
        &'a self,
        handle: &'a Handle,
        path: &'a str,
        tar: Input,
        limits: archive::Limits,
    ) -> BoxFuture<'a, Result<archive::Summary>> {
        Box::pin(self.0.copy_in(handle, path, tar, limits))
    }

    fn copy_out<'a>(&'a self, handle: &'a Handle, path: &'a str) -> BoxFuture<'a, Result<Input>> {
        Box::pin(async move { self.0.copy_out(handle, path) })
    }

    fn host_path(&self, handle: &Handle, path: &str) -> Option<PathBuf> {
        Some(self.0.dirs.host_path(handle, path))
    }

    fn network(&self, _handle: &Handle) -> Network {
        Network::Host
    }
}
