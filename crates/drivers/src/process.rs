//! The driver for any machine: plain processes, no isolation, no rights needed.
//!
//! A container is a private directory; a process is a child of a supervisor (see
//! [`shim`](crate::shim)) in a session and process group of its own, with a cleared environment,
//! limits, and no descriptor or terminal of the agent. There is no mount namespace: a container's
//! `/workspace` is `<root>/workspace` on the machine. Processes learn the root from `SHORE_ROOT`;
//! their home and temporary directories lie in it; the program and the working directory of a
//! command are translated when they are below it. The network is the machine's.

mod copy;
mod kill;
mod session;
mod start;
mod usage;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use runtime::Tasks;

use crate::archive;
use crate::driver::{
    Ability, Capabilities, ContainerInfo, Driver, Exit, Input, Isolation, LimitKind, Network,
    Session, Signal, Started, Stats, Target, Terminal,
};
use crate::error::{Context as _, Result};
use crate::output::{OutputOffset, OutputStream};
use crate::spec::{ContainerSpec, Handle, ProcessId, ProcessSpec};
use crate::supervised::{OWN_EXECUTABLE, Supervised, make_private, tree};

/// Directories every root starts with.
const ROOT_DIRS: [&str; 2] = ["home", "tmp"];

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
    kept: Arc<Supervised>,
    sessions: session::Keepers,
}

impl ProcessDriver {
    /// Opens the base directory, with all containers an earlier agent left there. Must be called
    /// within a runtime.
    pub fn open(config: &Config, tasks: Tasks) -> Result<Self> {
        let kept = Supervised::open(&config.base, &config.supervisor, tasks)?;
        for draft in kept.dirs.abandoned()? {
            draft.remove().context(|| format!("remove {}", draft.dir.display()))?;
        }
        kept.empty_trash();
        let inner = Inner { kept: Arc::new(kept), sessions: session::Keepers::default() };
        let inner = Arc::new(inner);
        let sweeper = Arc::clone(&inner);
        let name = "sweep sessions";
        inner
            .kept
            .tasks
            .spawn(runtime::Kind::Ordinary, name, async move { sweeper.sweep_sessions().await });
        Ok(Self(inner))
    }
}

/// Makes the directories every root starts with.
fn make_root(container: &Path) -> io::Result<()> {
    make_private(&container.join("root"), false)?;
    ROOT_DIRS.iter().try_for_each(|dir| make_private(&container.join("root").join(dir), false))
}

impl Inner {
    async fn create(&self, spec: ContainerSpec) -> Result<()> {
        spec.check()?;
        let lock = self.kept.lock_of(&spec.handle);
        let _alone = lock.write().await;
        let dirs = self.kept.dirs.clone();
        let make = move || {
            let draft = dirs.draft(&spec)?;
            make_root(&draft.dir).context(|| format!("create container {}", spec.handle))?;
            dirs.keep(&draft)
        };
        self.kept.tasks.blocking(make).await
    }

    async fn stop(
        self: &Arc<Self>,
        handle: &Handle,
        target: Target,
        grace: Duration,
    ) -> Result<()> {
        self.kept.ask_to_end(handle, &target, grace).await?;
        self.kill(handle, target).await
    }

    async fn remove(self: &Arc<Self>, handle: &Handle) -> Result<()> {
        let lock = self.kept.lock_of(handle);
        let _alone = lock.write().await;
        let at = self.kept.dirs.container(handle);
        if !at.exists() {
            return Ok(());
        }
        self.kill(handle, Target::All).await?;
        self.kept.disk.forget(handle);
        let trash = self.kept.dirs.trash();
        let context = format!("remove container {handle}");
        let remove = move || {
            let last = tree::move_into(&at, &trash)?;
            tree::remove(&last)
        };
        self.kept.tasks.blocking(remove).await.context(|| context)
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
            abilities: vec![Ability::Sessions],
            unavailable: self.0.kept.unavailable(),
        }
    }

    fn create(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.0.create(spec))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ContainerInfo>>> {
        Box::pin(self.0.kept.list())
    }

    fn inspect<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<ContainerInfo>> {
        Box::pin(async { self.0.kept.inspect(handle) })
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
        Box::pin(async move { self.0.kept.attach(handle, process, from) })
    }

    fn wait<'a>(
        &'a self,
        handle: &'a Handle,
        process: &'a ProcessId,
    ) -> BoxFuture<'a, Result<Exit>> {
        Box::pin(self.0.kept.wait(handle, process))
    }

    fn signal<'a>(
        &'a self,
        handle: &'a Handle,
        process: &'a ProcessId,
        signal: Signal,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.0.kept.signal(handle, process, signal) })
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
        Box::pin(self.0.copy_out(handle, path))
    }

    fn host_path(&self, handle: &Handle, path: &str) -> Option<PathBuf> {
        Some(self.0.kept.dirs.host_path(handle, path))
    }

    fn session<'a>(
        &'a self,
        handle: &'a Handle,
        spec: ProcessSpec,
        terminal: Option<Terminal>,
    ) -> BoxFuture<'a, Result<Session>> {
        Box::pin(self.0.session(handle, spec, terminal))
    }

    fn network(&self, _handle: &Handle) -> Network {
        Network::Host
    }
}
