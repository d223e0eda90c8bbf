//! What an agent is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use drivers::{Driver, Isolation};
use model::Name;
use runtime::Stop;

use egress::Network;

use crate::limits::{DRIVER_LOOK, LEAVE_LIMIT, TASK_LEASE};
use crate::machine;
use crate::metrics::Metrics;
use crate::space::DiskUse;

/// The ports instances get on a shared network unless told otherwise.
const PORTS: RangeInclusive<u16> = 20_000..=29_999;

/// How one agent is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// The cell's name.
    pub name: Name,
    /// Where it keeps its identity, containers, caches and image layers.
    pub dir: PathBuf,
    /// The `shore` executable, which containers find as `/cnb/lifecycle/...`.
    pub platform_exe: PathBuf,
    /// Its failure domain.
    pub zone: String,
    /// Free words an app may ask for.
    pub tags: BTreeSet<Name>,
    /// Words an app must ask for to be placed here.
    pub required_tags: BTreeSet<Name>,
    /// Labels for people.
    pub labels: BTreeMap<String, String>,
    /// What it offers; all of the machine when absent.
    pub capacity: Option<Capacity>,
    /// What it uses its disk for besides containers; the usual when absent.
    pub disk_use: Option<DiskUse>,
    /// Limits of containers that name none.
    pub default_limits: DefaultLimits,
    /// Ways to run containers, best first; the process driver when empty.
    pub drivers: Vec<Arc<dyn Driver>>,
    /// Where routers reach instances that share the machine's network.
    pub address: IpAddr,
    /// Where a gate listens for routers, so that instances prove who they are; without one, routers
    /// reach instances by their addresses.
    pub gate: Option<SocketAddr>,
    /// The ports of instances that share the machine's network.
    pub ports: RangeInclusive<u16>,
    /// Directories of programs that containers without isolation find, as in `PATH`.
    pub path: String,
    /// Variables by which programs of the machine find what is theirs, such as `RUSTUP_HOME`; given
    /// to containers without isolation.
    pub tools: BTreeMap<String, String>,
    /// Networks that downloads and uploads of users may reach besides public addresses, and
    /// containers whose manifest asks for it.
    pub allowed_networks: Vec<Network>,
    /// How long the server may be out of reach before running tasks are ended.
    pub task_lease: Duration,
    /// How long containers have to end when the cell leaves for good.
    pub leave_limit: Duration,
    /// How often to look whether the drivers work.
    pub driver_look: Duration,
    /// Bytes of log lines a second that a container may write at most, whatever its spec says.
    pub max_log_rate: u64,
    /// What the agent counts.
    pub metrics: Arc<Metrics>,
    /// Fires when the cell is to leave for good: its work goes elsewhere and its containers end.
    pub leave: Stop,
    /// Fires once the server has let it in.
    pub joined: Stop,
}

/// What a cell offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Memory for containers in MiB.
    pub memory_mb: u64,
    /// Disk for containers in MiB.
    pub disk_mb: u64,
    /// How many containers at most.
    pub containers: u32,
    /// Shares of processor time, 1,024 to a core; not limited when absent.
    pub cpu_shares: Option<u64>,
    /// Processes and threads of all containers; not limited when absent.
    pub pids: Option<u64>,
}

/// What a container may use whose spec does not say it, where its driver enforces that; as much as
/// the machine has when absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DefaultLimits {
    /// Memory in MiB.
    pub memory_mb: Option<u64>,
    /// Disk in MiB.
    pub disk_mb: Option<u64>,
}

impl Capacity {
    /// All of this machine's memory, and the free disk that `dir` is on without what the cell will
    /// need itself for image layers, caches and the like (but half of it at most).
    pub fn of_machine(dir: &Path) -> Self {
        machine::capacity(dir)
    }
}

impl Options {
    /// Whether every container is kept away from the machine. The process driver, which runs them
    /// when no other is given, does not.
    pub fn isolates(&self) -> bool {
        let isolates = |it: &Arc<dyn Driver>| it.capabilities().isolation != Isolation::None;
        !self.drivers.is_empty() && self.drivers.iter().all(isolates)
    }

    /// The usual: all of this machine, the process driver, reached by loopback.
    pub fn new(name: Name, dir: impl Into<PathBuf>, platform_exe: impl Into<PathBuf>) -> Self {
        Self {
            name,
            dir: dir.into(),
            platform_exe: platform_exe.into(),
            zone: "default".to_owned(),
            tags: BTreeSet::new(),
            required_tags: BTreeSet::new(),
            labels: BTreeMap::new(),
            capacity: None,
            disk_use: None,
            default_limits: DefaultLimits::default(),
            drivers: Vec::new(),
            address: Ipv4Addr::LOCALHOST.into(),
            gate: None,
            ports: PORTS,
            path: String::new(),
            tools: BTreeMap::new(),
            allowed_networks: Vec::new(),
            task_lease: TASK_LEASE,
            leave_limit: LEAVE_LIMIT,
            driver_look: DRIVER_LOOK,
            max_log_rate: model::MAX_LOG_RATE,
            metrics: Arc::default(),
            leave: Stop::new(),
            joined: Stop::new(),
        }
    }
}
