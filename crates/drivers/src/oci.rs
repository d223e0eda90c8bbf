//! The driver for Linux machines where the agent is root: containers by an OCI runtime.
//!
//! A container is a first process that only waits, in namespaces and a control group of its own; its
//! processes are started by a supervisor each, which enters the container for that (see
//! [`shim`](crate::shim)); sessions by the runtime's `exec`. Its root is an overlay of the image's layers; everything is mounted in
//! the container's own mount namespace and goes away with its first process. Its users are a range
//! of the machine's that nobody else has. It has an address of its own and reaches public addresses
//! only, unless a rule says otherwise.

pub(crate) mod bundle;
mod cgroup;
mod create;
mod disk;
mod files;
pub(crate) mod layers;
mod net;
mod program;
mod remove;
pub(crate) mod seccomp;
mod session;
mod slots;
pub(crate) mod stage;
mod start;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use runtime::Tasks;
use serde::{Deserialize, Serialize};

use crate::archive;
use crate::driver::{
    Ability, Capabilities, ContainerInfo, Driver, Exit, Input, Isolation, LimitKind, Network,
    Session, Signal, Started, Stats, Target, Terminal,
};
use crate::error::{Context as _, DriverError, Result};
use crate::output::{OutputOffset, OutputStream};
use crate::proc::Id;
use crate::spec::{ContainerSpec, Handle, Mount, PATH, ProcessId, ProcessSpec};
use crate::supervised::{OWN_EXECUTABLE, Supervised, locked};

pub(crate) use cgroup::kill_group;
use cgroup::{Group, Layout};
use disk::Disks;
use layers::Layers;
use net::Net;
use slots::{Slot, Slots};

/// The network containers have addresses of, if no other is given.
const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 208, 0, 0);
/// The first kernel that shows layers with other owners and lays an overlay over them.
const SHIFTING_KERNEL: (u32, u32) = (5, 19);
/// What of the machine an image without an operating system sees, where it is there.
const MACHINE: [&str; 20] = [
    "/bin",
    "/etc/alternatives",
    "/etc/ca-certificates.conf",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/sbin",
    "/usr",
];

/// Where containers live, what runs them and what they see.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory that holds all containers.
    pub base: PathBuf,
    /// An executable whose `main` calls [`shim::maybe_run`](crate::shim::maybe_run) first.
    pub supervisor: PathBuf,
    /// The OCI runtime: a name or a path.
    pub runtime: PathBuf,
    /// The network containers have addresses of; 16 bits of it count.
    pub network: Ipv4Addr,
    /// What a container sees of the machine when its layers bring no operating system.
    pub base_mounts: Vec<Mount>,
    /// Whether containers have users of their own where the kernel can do that.
    pub user_namespaces: bool,
    /// Bytes of memory that all containers together may use; not limited when absent.
    pub memory_bytes: Option<u64>,
}

impl Config {
    /// Containers in `base`, run by `runc`, supervised by this very executable. Images without an
    /// operating system get nothing of the machine's.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self {
            base: base.into(),
            supervisor: OWN_EXECUTABLE.into(),
            runtime: "runc".into(),
            network: NETWORK,
            base_mounts: Vec::new(),
            user_namespaces: true,
            memory_bytes: None,
        }
    }

    /// The machine's own programs and libraries, read-only: what images without an operating system
    /// run on. Nothing below `/home`, `/root`, `/run` or `/var` is among them, no key and no
    /// password.
    pub fn machine_base() -> Vec<Mount> {
        let there = MACHINE.into_iter().filter(|path| Path::new(path).symlink_metadata().is_ok());
        let mount =
            |path: &str| Mount { source: path.into(), target: path.to_owned(), read_only: true };
        there.map(mount).collect()
    }
}

/// Runs containers by an OCI runtime. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OciDriver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kept: Arc<Supervised>,
    runtime: PathBuf,
    base: PathBuf,
    base_mounts: Vec<Mount>,
    layout: Layout,
    net: Net,
    slots: Slots,
    layers: Layers,
    disks: Disks,
    /// Whether containers have users of their own.
    own_users: bool,
    limits_disk: bool,
    /// Bytes of memory of all containers together.
    memory_bytes: Option<u64>,
    /// What is found out anew now and then.
    fitness: Mutex<Fitness>,
    /// When other filters of the machine were last told about ours.
    accepted: Mutex<Option<Instant>>,
}

/// Whether containers can be run.
#[derive(Debug, Default)]
struct Fitness {
    /// Whether what every container needs was made.
    is_prepared: bool,
    /// Why not, if so.
    unavailable: Option<String>,
    /// Whether that does not change as long as the machine runs.
    is_final: bool,
}

/// What belongs to a container outside of its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// The run of the machine it belongs to.
    boot: String,
    slot: Slot,
    /// The user of the machine that its user 0 is.
    first_user: u32,
    /// Its first process.
    init: Option<Id>,
    /// Whether it has a disk of its own.
    own_disk: bool,
}

impl OciDriver {
    /// Opens the base directory, with all containers an earlier agent left there; what it left
    /// half-made is removed in the background. Must be called within a runtime.
    pub fn open(config: &Config, tasks: Tasks) -> Result<Self> {
        let kept = Supervised::open(&config.base, &config.supervisor, tasks)?;
        let base = config.base.canonicalize().context(|| "open the base directory".to_owned())?;
        let prefix = prefix(&base);
        let run = Path::new(slots::RUN);
        let found = Layout::find();
        let runtime = program(&config.runtime.display().to_string());
        let mut unavailable = found.as_ref().err().cloned();
        let kept = match stage::read_only(&config.supervisor) {
            Ok(executable) => kept.start_from(executable),
            // Who is not root is told that.
            Err(_) if !rustix::process::geteuid().is_root() => kept,
            Err(error) => {
                let name = config.supervisor.display();
                let reason = || format!("cannot mount {name} read-only: {error}");
                unavailable.get_or_insert_with(reason);
                kept
            }
        };
        let is_final = unavailable.is_some();
        let inner = Inner {
            runtime: runtime.unwrap_or_else(|| config.runtime.clone()),
            base_mounts: config.base_mounts.clone(),
            layout: found.unwrap_or(Layout::One(PathBuf::new())),
            net: Net { prefix, network: config.network },
            slots: Slots::new(run),
            layers: Layers::open(base.join(".layers")).context(|| "make .layers".to_owned())?,
            disks: Disks::open(base.join(".disks")).context(|| "make .disks".to_owned())?,
            own_users: config.user_namespaces && can_shift_users(),
            limits_disk: disk::available(),
            memory_bytes: config.memory_bytes,
            base,
            kept: Arc::new(kept),
            accepted: Mutex::default(),
            fitness: Mutex::new(Fitness { is_prepared: false, unavailable, is_final }),
        };
        let driver = Self(Arc::new(inner));
        driver.0.find_out().context(|| format!("prepare {}", config.base.display()))?;
        Ok(driver)
    }

    /// How the names begin of what a driver makes on the machine, outside of its base directory:
    /// links, control groups, the table of filter rules.
    pub fn name_on_the_machine(base: &Path) -> String {
        prefix(base)
    }
}

/// What this machine lacks.
fn missing(wanted: &Path, runtime: Option<&Path>, layout: Option<&Layout>) -> Option<String> {
    let name = wanted.file_name().unwrap_or_default().to_string_lossy();
    if !rustix::process::geteuid().is_root() {
        return Some("the agent is not root".to_owned());
    }
    if runtime.is_none() {
        return Some(format!("{} is not installed", wanted.display()));
    }
    if let Some(tool) = ["ip", "nft"].into_iter().find(|tool| program(tool).is_none()) {
        let package = if tool == "ip" { "iproute2" } else { "nftables" };
        return Some(format!("{tool} is not installed (package {package})"));
    }
    if name.contains("runsc") {
        return Some(
            "processes of runsc are none of the machine's, so none can be supervised".into(),
        );
    }
    if name.contains("crun") && layout.is_some_and(Layout::is_hybrid) {
        return Some("crun refuses machines with both versions of control groups".to_owned());
    }
    let systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !systems.split_whitespace().any(|system| system == "overlay") {
        return Some("the kernel has no overlay file system".to_owned());
    }
    None
}

/// A program of the system.
fn program(name: &str) -> Option<PathBuf> {
    let runs = |path: &PathBuf| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(runs);
    }
    PATH.split(':').map(|dir| Path::new(dir).join(name)).find(runs)
}

/// How names begin of what a driver makes outside of its base directory, so that two drivers never
/// touch what is the other's.
fn prefix(base: &Path) -> String {
    // FNV-1a: the same in every version, for the next agent must find what this one made.
    let hash =
        base.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3_u64)
        });
    format!("sh{:05x}", hash & 0xf_ffff)
}

fn can_shift_users() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split('.').map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    version >= SHIFTING_KERNEL && most.trim().parse::<u64>().is_ok_and(|most| most > 0)
}

impl Inner {
    /// An error where this machine cannot run containers.
    fn available(&self) -> Result<()> {
        match self.unavailable() {
            None => Ok(()),
            Some(reason) => Err(DriverError::Unsupported(reason)),
        }
    }

    /// Why this machine cannot run containers, as it was when that was last found out.
    fn unavailable(&self) -> Option<String> {
        locked(&self.fitness).unavailable.clone()
    }

    /// Finds out whether containers can be run; prepares for them the first time they can.
    fn find_out(self: &Arc<Self>) -> std::io::Result<()> {
        let mut fitness = locked(&self.fitness);
        if fitness.is_final {
            return Ok(());
        }
        let runtime = program(&self.runtime.display().to_string());
        let missing = || missing(&self.runtime, runtime.as_deref(), Some(&self.layout));
        fitness.unavailable = self.kept.unavailable().or_else(missing);
        if fitness.unavailable.is_none() && !fitness.is_prepared {
            if let Err(error) = self.prepare() {
                fitness.unavailable =
                    Some(format!("cannot prepare {}: {error}", self.base.display()));
                return Err(error);
            }
            fitness.is_prepared = true;
            self.limit_all();
            self.sweep_later();
        }
        Ok(())
    }

    fn group(&self, handle: &Handle) -> Group {
        Group::new(&self.layout, format!("{}/{handle}", self.net.prefix))
    }

    /// Limits all containers together, where there is one already: the runtime makes their group.
    fn limit_all(&self) {
        let parent = Group::new(&self.layout, self.net.prefix.clone());
        if let Err(error) = parent.limit_memory(self.memory_bytes) {
            // Version 1 refuses less than what is used now.
            tracing::warn!(%error, "cannot limit the memory of all containers together");
        }
    }

    /// Where the runtime keeps what it knows.
    fn runtime_root(&self) -> PathBuf {
        self.base.join(".runtime")
    }

    /// What belongs to a container in this run of the machine.
    fn place(&self, container: &Path) -> Option<Place> {
        let text = fs::read(container.join(create::PLACE_FILE)).ok()?;
        let place: Place = serde_json::from_slice(&text).ok()?;
        (place.boot == self.kept.dirs.boot()).then_some(place)
    }

    /// What belongs to a container that runs.
    fn running(&self, handle: &Handle) -> Result<(Place, Id)> {
        self.kept.dirs.meta(handle)?;
        let place = self.place(&self.kept.dirs.container(handle));
        let running =
            place.and_then(|place| Some((place.clone(), place.init.filter(|id| id.runs())?)));
        running.ok_or_else(|| {
            let gone = std::io::Error::other("its first process has ended");
            DriverError::io(format!("use container {handle}"), gone)
        })
    }

    /// Does something to its end, even when nobody waits for it any more.
    async fn to_the_end<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.kept.tasks.spawn_ok(name, async move {
            // Nobody minds when who asked went away.
            drop(sender.send(work.await));
        });
        receiver.await.unwrap_or_else(|_| {
            Err(DriverError::io(name, std::io::Error::other("the agent is ending")))
        })
    }
}

impl Driver for OciDriver {
    fn capabilities(&self) -> Capabilities {
        let mut enforced = vec![
            LimitKind::Memory,
            LimitKind::AddressSpace,
            LimitKind::Cpu,
            LimitKind::CpuSeconds,
            LimitKind::Processes,
            LimitKind::OpenFiles,
            LimitKind::FileSize,
        ];
        enforced.extend(self.0.limits_disk.then_some(LimitKind::Disk));
        Capabilities {
            name: "oci",
            isolation: Isolation::Namespaces,
            enforced,
            abilities: vec![
                Ability::ReportOom,
                Ability::LayOut,
                Ability::RestrictEgress,
                Ability::Users,
                Ability::Sessions,
                Ability::Publish,
            ],
            unavailable: self.0.unavailable(),
        }
    }

    fn look_again(&self) -> Option<String> {
        if let Err(error) = self.0.find_out() {
            tracing::warn!(%error, "cannot prepare for containers");
        }
        self.0.unavailable()
    }

    fn create(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<()>> {
        let inner = Arc::clone(&self.0);
        Box::pin(self.0.to_the_end("create container", async move { inner.create(spec).await }))
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
        Box::pin(async move {
            self.0.kept.ask_to_end(handle, &target, grace).await?;
            self.0.kill(handle, target).await
        })
    }

    fn remove<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<()>> {
        let (inner, handle) = (Arc::clone(&self.0), handle.clone());
        Box::pin(self.0.to_the_end("remove container", async move { inner.remove(&handle).await }))
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
        let (_, init) = self.0.running(handle).ok()?;
        Some(crate::supervised::join_below(files::root_of(init), path))
    }

    fn session<'a>(
        &'a self,
        handle: &'a Handle,
        spec: ProcessSpec,
        terminal: Option<Terminal>,
    ) -> BoxFuture<'a, Result<Session>> {
        Box::pin(self.0.session(handle, spec, terminal))
    }

    fn network(&self, handle: &Handle) -> Network {
        let place = self.0.place(&self.0.kept.dirs.container(handle));
        let address = place.map(|place| self.0.net.address(place.slot));
        Network::Own(IpAddr::V4(address.unwrap_or(Ipv4Addr::UNSPECIFIED)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_shows_no_secrets() {
        let base = Config::machine_base();
        assert!(base.iter().all(|mount| mount.read_only));
        let secret =
            ["/etc/shadow", "/etc/ssl/private", "/etc/ssh", "/root", "/home", "/var", "/run"];
        for mount in base {
            let shows = |secret: &&str| Path::new(secret).starts_with(&mount.source);
            assert!(!secret.iter().any(shows), "{mount:?}");
        }
    }

    #[test]
    fn names_of_drivers_differ() {
        let first = prefix(Path::new("/var/lib/shore/a"));
        assert_eq!(first.len(), 7, "with four digits it must fit a link's 15 characters");
        assert_ne!(first, prefix(Path::new("/var/lib/shore/b")));
    }
}
