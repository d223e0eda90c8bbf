//! The driver for machines that run Docker (20.10 or later).
//!
//! A container is one of Docker's, with Docker's isolation. Its first process idles and starts the
//! processes the agent asks for (see `inside/init.rs`), instead of `docker exec`: exit codes and
//! signals are told apart, starting takes milliseconds, output does not pass through the daemon,
//! and what runs goes on when the daemon is restarted with `live-restore`. Supervisors keep output
//! and exit status as they do for every driver (see [`shim`](crate::shim)).
//!
//! Images are made from unpacked layers and sent to the daemon; no registry is asked. Containers
//! have a network of their own in which they do not reach each other, and rules about what they
//! reach elsewhere. Only what this driver made is ever touched, and only by agents with the same
//! base directory.

mod cgroup;
mod client;
mod container;
mod copy;
mod image;
pub(crate) mod inside;
mod kill;
mod network;
mod session;
mod start;
mod usage;
#[path = "../inside/wire.rs"]
#[expect(dead_code, reason = "the other half is the first process's")]
pub(crate) mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use runtime::{Random, Tasks};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::archive;
use crate::driver::{
    Ability, Capabilities, ContainerInfo, Driver, Exit, Input, Isolation, LimitKind, Network,
    Session, Signal, Started, Stats, Target, Terminal,
};
use crate::error::{Context as _, Result};
use crate::output::{OutputOffset, OutputStream};
use crate::proc::Id;
use crate::spec::{ContainerSpec, Handle, Mount, ProcessId, ProcessSpec};
use crate::supervised::{OWN_EXECUTABLE, Supervised, locked, make_private};

use client::Client;
use image::Images;
use network::Subnet;

/// The first process of every container.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));
/// Where Docker listens when nobody chose another place.
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// The subnet of containers when nobody chose another.
const DEFAULT_SUBNET: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 213, 0, 0), 16);
/// How many images are kept that no container uses.
const DEFAULT_UNUSED_IMAGES: usize = 8;
/// How long what was found out about the daemon is good for: longer than it takes until an agent
/// looks again, so that nobody else has to wait for an answer.
const FACTS_PERIOD: Duration = Duration::from_secs(15);
/// How often to look after what other programs may change.
const ORDER_PERIOD: Duration = Duration::from_secs(20);
const OWNER_BYTES: usize = 16;

/// Where Docker is, and what containers get.
#[derive(Debug, Clone)]
pub struct Config {
    /// The socket the daemon listens on.
    pub socket: PathBuf,
    /// The directory that holds what must be known of containers. It also tells whose they are:
    /// agents with other directories may use the same daemon.
    pub base: PathBuf,
    /// An executable whose `main` calls [`shim::maybe_run`](crate::shim::maybe_run) first.
    pub supervisor: PathBuf,
    /// First address and prefix of the containers' network. Docker must not use it for another.
    pub subnet: (Ipv4Addr, u8),
    /// What a container sees of the machine when its layers bring no operating system; see
    /// [`machine_base`](crate::oci::Config::machine_base).
    pub base_mounts: Vec<Mount>,
    /// How many images to keep that no container uses.
    pub unused_images: usize,
}

impl Config {
    /// Containers noted in `base`, supervised by this very executable.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self {
            socket: DEFAULT_SOCKET.into(),
            base: base.into(),
            supervisor: OWN_EXECUTABLE.into(),
            subnet: DEFAULT_SUBNET,
            base_mounts: Vec::new(),
            unused_images: DEFAULT_UNUSED_IMAGES,
        }
    }
}

/// Runs containers with Docker. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DockerDriver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kept: Arc<Supervised>,
    client: Client,
    images: Images,
    subnet: Subnet,
    base_mounts: Vec<Mount>,
    /// Tells containers of this base directory from all others.
    owner: String,
    /// The first process, as a file containers see.
    program: PathBuf,
    facts: Mutex<Option<(Instant, Facts)>>,
    /// How many processes are about to be started in which container.
    launching: Mutex<BTreeMap<Handle, u64>>,
    /// The launchers of sessions.
    sessions: Mutex<BTreeSet<(Handle, Id)>>,
}

/// What is known of the daemon.
#[derive(Debug, Clone, Default)]
struct Facts {
    /// Whether it limits what a container may write.
    has_quota: bool,
    unavailable: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    #[serde(rename = "OSType", default)]
    os: String,
    #[serde(default)]
    driver: String,
    #[serde(default)]
    docker_root_dir: PathBuf,
    #[serde(default)]
    security_options: Vec<String>,
}

impl DockerDriver {
    /// Opens the base directory, with all containers an earlier agent left there. The daemon need
    /// not run yet. Must be called within a runtime.
    pub fn open(config: &Config, tasks: Tasks) -> Result<Self> {
        let kept = Arc::new(Supervised::open(&config.base, &config.supervisor, tasks)?);
        let base = config.base.canonicalize();
        let base = base.context(|| format!("open {}", config.base.display()))?;
        let prepare = || {
            let owner = owner(&base)?;
            let images = Images::open(&base, &owner, config.unused_images)?;
            Ok::<_, io::Error>((owner, images, install(&base)?))
        };
        let (owner, images, program) =
            prepare().context(|| format!("prepare {}", base.display()))?;
        let inner = Arc::new(Inner {
            kept,
            client: Client::new(&config.socket),
            images,
            subnet: Subnet::new(config.subnet),
            base_mounts: config.base_mounts.clone(),
            owner,
            program,
            facts: Mutex::default(),
            launching: Mutex::default(),
            sessions: Mutex::default(),
        });
        inner.kept.empty_trash();
        let (keeper, tasks) = (Arc::downgrade(&inner), inner.kept.tasks.clone());
        tasks.clone().spawn_ok("keep docker in order", async move {
            tasks.stop().or_stop(keep_order(keeper)).await;
        });
        Ok(Self(inner))
    }

    /// Removes what all containers shared: images, the network and its rules. Fails while a
    /// container of any agent is in that network.
    pub async fn uninstall(&self) -> Result<()> {
        self.0
            .work(|inner| {
                inner.images.clear(&inner.client)?;
                inner.subnet.remove(&inner.client)
            })
            .await
    }
}

/// Removes what nobody knows, and looks after rules that other programs may remove.
async fn keep_order(keeper: Weak<Inner>) {
    let mut swept = false;
    while let Some(inner) = keeper.upgrade() {
        if !swept {
            if let Err(error) = inner.work(Inner::sweep_sessions).await {
                tracing::warn!(%error, "old sessions may go on");
            }
            match inner.work(Inner::sweep).await {
                Ok(()) => swept = true,
                Err(error) => tracing::info!(%error, "cannot look for abandoned containers yet"),
            }
        }
        if let Err(error) = inner.work(Inner::mend).await {
            tracing::warn!(%error, "containers may reach what they should not");
        }
        drop(inner);
        runtime::sleep(ORDER_PERIOD).await;
    }
}

/// Who the containers of a base directory belong to.
fn owner(base: &Path) -> io::Result<String> {
    let file = base.join(".owner");
    if !file.exists() {
        let mut bytes = [0; OWNER_BYTES];
        Random::system().fill(&mut bytes);
        let draft = base.join(format!(".owner.{}", std::process::id()));
        fs::write(&draft, hex::encode(bytes))?;
        // Whoever is first decides.
        let linked = fs::hard_link(&draft, &file);
        fs::remove_file(&draft)?;
        if let Err(error) = linked
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
    }
    let owner = fs::read_to_string(file)?;
    let whole = owner.len() == 2 * OWNER_BYTES && owner.bytes().all(|b| b.is_ascii_hexdigit());
    if whole { Ok(owner) } else { Err(io::Error::other(".owner is damaged")) }
}

/// Puts the first process of containers where Docker finds it.
fn install(base: &Path) -> io::Result<PathBuf> {
    let dir = base.join(".inside");
    make_private(&dir, true)?;
    let mut digest = hex::encode(Sha256::digest(PROGRAM));
    digest.truncate(16);
    let program = dir.join(format!("init-{digest}"));
    if !program.exists() {
        let draft = dir.join(format!("draft.{}", std::process::id()));
        fs::write(&draft, PROGRAM)?;
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o555))?;
        fs::rename(draft, &program)?;
    }
    Ok(program)
}

impl Inner {
    /// Does something that waits for the daemon, to its end even when nobody waits any more.
    async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> T {
        let inner = Arc::clone(self);
        self.kept.tasks.blocking(move || work(&inner)).await
    }

    /// Does something with one container that nothing else may do something with meanwhile.
    async fn alone(
        self: &Arc<Self>,
        handle: &Handle,
        work: impl FnOnce(&Self) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let alone = self.kept.lock_of(handle).write_owned().await;
        self.work(move |inner| {
            let done = work(inner);
            drop(alone);
            done
        })
        .await
    }

    async fn remove_whole(self: &Arc<Self>, handle: &Handle) -> Result<()> {
        let name = handle.clone();
        self.alone(handle, move |inner| inner.remove(&name)).await
    }

    async fn stop(
        self: &Arc<Self>,
        handle: &Handle,
        target: Target,
        grace: Duration,
    ) -> Result<()> {
        self.kept.ask_to_end(handle, &target, grace).await?;
        self.kill(handle, &target).await
    }

    fn facts(&self) -> Facts {
        let now = runtime::mono_now();
        let facts = locked(&self.facts);
        if let Some((at, known)) = &*facts
            && now.saturating_duration_since(*at) < FACTS_PERIOD
        {
            return known.clone();
        }
        drop(facts);
        self.look_now()
    }

    fn look_now(&self) -> Facts {
        let found = self.look();
        *locked(&self.facts) = Some((runtime::mono_now(), found.clone()));
        found
    }

    fn look(&self) -> Facts {
        let unusable = |reason: String| Facts { has_quota: false, unavailable: Some(reason) };
        if !rustix::process::geteuid().is_root() {
            return unusable(
                "the docker driver needs root: it sets rules for the network".to_owned(),
            );
        }
        if let Some(reason) = self.kept.unavailable().or_else(network::unavailable) {
            return unusable(reason);
        }
        let info: Info = match self.client.get("/info") {
            Ok(info) => info,
            Err(refusal) => return unusable(format!("{refusal} (Debian: apt install docker.io)")),
        };
        let remapped = |option: &&String| {
            ["name=userns", "name=rootless"].iter().any(|name| option.starts_with(name))
        };
        let mut facts = Facts { has_quota: has_quota(&info), unavailable: None };
        if info.os != "linux" {
            facts.unavailable = Some(format!("Docker runs {} containers", info.os));
        } else if let Some(option) = info.security_options.iter().find(remapped) {
            facts.unavailable = Some(format!("Docker runs with {option}, where users differ"));
        }
        facts
    }
}

/// Whether Docker can limit what a container writes: only on XFS with project quotas.
fn has_quota(info: &Info) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = mounts.lines().filter_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let (place, kind, options) = (words.get(1)?, words.get(2)?, words.get(3)?);
        info.docker_root_dir.starts_with(place).then_some((place.len(), *kind, *options))
    });
    let quota = |option: &str| matches!(option, "prjquota" | "pquota");
    info.driver == "overlay2"
        && below
            .max_by_key(|(length, ..)| *length)
            .is_some_and(|(_, kind, options)| kind == "xfs" && options.split(',').any(quota))
}

impl Driver for DockerDriver {
    fn capabilities(&self) -> Capabilities {
        let facts = self.0.facts();
        let mut enforced = vec![
            LimitKind::Memory,
            LimitKind::AddressSpace,
            LimitKind::Cpu,
            LimitKind::CpuSeconds,
            LimitKind::Processes,
            LimitKind::OpenFiles,
            LimitKind::FileSize,
        ];
        enforced.extend(facts.has_quota.then_some(LimitKind::Disk));
        Capabilities {
            name: "docker",
            isolation: Isolation::Namespaces,
            enforced,
            abilities: vec![
                Ability::ReportOom,
                Ability::LayOut,
                Ability::RestrictEgress,
                Ability::Users,
                Ability::Sessions,
            ],
            unavailable: facts.unavailable,
        }
    }

    fn look_again(&self) -> Option<String> {
        self.0.look_now().unavailable
    }

    fn create(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let handle = spec.handle.clone();
            self.0.alone(&handle, move |inner| inner.create(&spec)).await
        })
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
        Box::pin(self.0.remove_whole(handle))
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
        let place = self.0.running(handle)?;
        let root = self.0.kept.dirs.root(handle);
        let below = self.0.kept.dirs.host_path(handle, path);
        let below = below.strip_prefix(root).ok()?;
        Some(Path::new(&format!("/proc/{}/root", place.first.pid)).join(below))
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
        // One that does not run has no address; nothing answers at this one.
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Network::Own(self.0.running(handle).map_or(nowhere, |place| place.address))
    }
}
