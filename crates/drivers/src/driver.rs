//! The contract every kind of container fulfils.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::archive;
use crate::error::{DriverError, Result};
use crate::output::{OutputOffset, OutputStream};
use crate::spec::{ContainerSpec, Handle, ProcessId, ProcessSpec};

/// A byte stream that goes into or comes out of a container.
pub type Input = Pin<Box<dyn AsyncRead + Send>>;

/// Runs containers of one kind. Every operation may be repeated after a restart of the agent.
pub trait Driver: Send + Sync + Debug {
    /// What this driver can do, and whether it can do it on this machine.
    fn capabilities(&self) -> Capabilities;

    /// Looks anew whether it can be used on this machine; why not, if so. What `capabilities` says
    /// of that may be a little older. May block.
    fn look_again(&self) -> Option<String> {
        self.capabilities().unavailable
    }

    /// Makes an empty container. Fails with `Exists` when the handle is taken.
    fn create(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<()>>;

    /// All containers with their processes, by handle: what an agent adopts when it starts.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ContainerInfo>>>;

    /// One container.
    fn inspect<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<ContainerInfo>>;

    /// Starts a process. Once this returns, the process runs (or has ended) and will be found by
    /// any later agent; an error means that no part of it runs.
    fn start<'a>(&'a self, handle: &'a Handle, spec: ProcessSpec)
    -> BoxFuture<'a, Result<Started>>;

    /// Reads the output of a process from `from` on, and ends when it has ended and all is read.
    fn attach<'a>(
        &'a self,
        handle: &'a Handle,
        process: &'a ProcessId,
        from: OutputOffset,
    ) -> BoxFuture<'a, Result<OutputStream>>;

    /// Waits until a process has ended. Any number of callers get the same answer, at any time.
    fn wait<'a>(
        &'a self,
        handle: &'a Handle,
        process: &'a ProcessId,
    ) -> BoxFuture<'a, Result<Exit>>;

    /// Sends a signal to the whole process group of a process.
    fn signal<'a>(
        &'a self,
        handle: &'a Handle,
        process: &'a ProcessId,
        signal: Signal,
    ) -> BoxFuture<'a, Result<()>>;

    /// Asks processes to end (`TERM`), waits up to `grace`, then kills them and everything they
    /// left behind. Returns when nothing of them runs; fine when nothing did.
    fn stop<'a>(
        &'a self,
        handle: &'a Handle,
        target: Target,
        grace: Duration,
    ) -> BoxFuture<'a, Result<()>>;

    /// Kills everything in a container and removes all traces. Fine when it is already gone.
    fn remove<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<()>>;

    /// What a container uses now.
    fn stats<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Stats>>;

    /// Unpacks a tar stream below `path` (made when missing). What it makes belongs to the
    /// container's [user](ContainerSpec::user), where the driver has users. See [`archive`] for what
    /// is refused.
    fn copy_in<'a>(
        &'a self,
        handle: &'a Handle,
        path: &'a str,
        tar: Input,
        limits: archive::Limits,
    ) -> BoxFuture<'a, Result<archive::Summary>>;

    /// Packs `path` as a tar stream: a directory's contents, or a single file under its name. Read
    /// is what the container's root may read. Errors while packing come out of the stream.
    fn copy_out<'a>(&'a self, handle: &'a Handle, path: &'a str) -> BoxFuture<'a, Result<Input>>;

    /// Where a container's path is on this machine, where that means anything. The result may be,
    /// or lie behind, a symbolic link made by the container: do not trust it with more rights than
    /// the container has.
    fn host_path(&self, handle: &Handle, path: &str) -> Option<PathBuf>;

    /// Starts a process that somebody works with: it has an input, and a terminal when asked. It is
    /// not listed, its output is not kept, and it is killed when the session is dropped or the
    /// agent ends.
    fn session<'a>(
        &'a self,
        _handle: &'a Handle,
        _spec: ProcessSpec,
        _terminal: Option<Terminal>,
    ) -> BoxFuture<'a, Result<Session>> {
        let name = self.capabilities().name;
        let reason = format!("the {name} driver has no interactive sessions");
        Box::pin(async { Err(DriverError::Unsupported(reason)) })
    }

    /// How a container's ports are reached.
    fn network(&self, handle: &Handle) -> Network;
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// How wide.
    pub columns: u16,
    /// How high.
    pub rows: u16,
}

/// A process that somebody works with.
pub struct Session {
    /// Its standard input; dropping it ends that.
    pub input: Pin<Box<dyn AsyncWrite + Send>>,
    /// Its standard output, or what its terminal shows.
    pub output: Input,
    /// Its standard error; empty with a terminal.
    pub error: Input,
    /// Everything else.
    pub control: Box<dyn SessionControl>,
}

impl Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// What can be done to the process of a [`Session`].
pub trait SessionControl: Send + Sync {
    /// Changes the size of its terminal; nothing happens without one.
    fn resize(&self, terminal: Terminal) -> Result<()>;

    /// Sends it a signal; fine when it has ended.
    fn signal(&self, signal: Signal) -> Result<()>;

    /// Waits for its end.
    fn wait(&mut self) -> BoxFuture<'_, Result<Exit>>;
}

/// What a driver can do on this machine.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// The kind: `process`, `oci`, ...
    pub name: &'static str,
    /// What stands between a container and the machine.
    pub isolation: Isolation,
    /// The limits that are really enforced; others are ignored.
    pub enforced: Vec<LimitKind>,
    /// What else it can do.
    pub abilities: Vec<Ability>,
    /// Why this driver cannot be used on this machine, if so.
    pub unavailable: Option<String>,
}

impl Capabilities {
    /// Whether the driver can do something.
    pub fn can(&self, ability: Ability) -> bool {
        self.abilities.contains(&ability)
    }
}

/// Something not every driver can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ability {
    /// The exit of a process says that it ran out of memory.
    ReportOom,
    /// It lays out [`Root`](crate::Root) and mounts. Without this the caller fills the container
    /// through [`Driver::host_path`].
    LayOut,
    /// [`EgressRule`](crate::EgressRule)s hold, and private addresses are out of reach without one.
    RestrictEgress,
    /// Processes may run as another [`User`](crate::User).
    Users,
    /// [`Driver::session`] works.
    Sessions,
    /// Ports of the machine lead to containers as [`Publish`](crate::Publish) says.
    Publish,
}

/// What stands between a container and the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Nothing: processes can do whatever the agent's user can do.
    None,
    /// The kernel's namespaces and control groups.
    Namespaces,
    /// A virtual machine.
    VirtualMachine,
}

/// A field of [`Limits`](crate::Limits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    /// Resident memory.
    Memory,
    /// Virtual address space.
    AddressSpace,
    /// Bytes on disk.
    Disk,
    /// Share of the processor.
    Cpu,
    /// Processor seconds.
    CpuSeconds,
    /// Processes.
    Processes,
    /// Open files.
    OpenFiles,
    /// Size of one file.
    FileSize,
}

/// How a container's ports are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// It shares the machine's network: the caller picks free ports and tells the processes.
    Host,
    /// It has its own network with this address: every port is free in it.
    Own(std::net::IpAddr),
}

/// A container as `list` gives it.
#[derive(Debug, Clone)]
pub struct ContainerInfo {
    /// Its name.
    pub handle: Handle,
    /// The caller's notes. Empty for one that was damaged, by a power failure for example.
    pub properties: BTreeMap<String, String>,
    /// Its processes, by identifier.
    pub processes: Vec<ProcessInfo>,
}

/// A process as `list` gives it.
#[derive(Debug, Clone)]
pub struct ProcessInfo {
    /// Its name in the container.
    pub id: ProcessId,
    /// Whether it runs.
    pub state: ProcessState,
    /// Its process number on this machine, while that means something.
    pub pid: Option<u32>,
    /// The process number of what keeps its output and exit status, if it has one.
    pub supervisor: Option<u32>,
}

/// Whether a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessState {
    /// It runs.
    Running,
    /// It has ended.
    Exited(Exit),
}

/// A process that was just started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Its process number on this machine, where it has one.
    pub pid: Option<u32>,
}

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// How it ended.
    pub outcome: Outcome,
    /// Whether it was killed because memory ran out, where the driver can tell.
    pub oom: bool,
    /// Wall time in milliseconds since the Unix epoch, when known.
    pub at_ms: Option<u64>,
}

impl Exit {
    /// The end of a process of which nobody knows how it ended.
    pub const LOST: Self = Self { outcome: Outcome::Lost, oom: false, at_ms: None };

    /// Whether it ended with code 0.
    pub const fn success(&self) -> bool {
        matches!(self.outcome, Outcome::Code(0))
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// Nobody can know: its supervisor was killed, or the machine restarted. Never a success.
    Lost,
}

/// A signal that can be sent to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the system's")]
pub enum Signal {
    Term,
    Kill,
    Int,
    Hup,
    Quit,
    Usr1,
    Usr2,
    Stop,
    Cont,
}

/// Which processes of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Every one.
    All,
    /// This one.
    One(ProcessId),
}

/// What a container uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Resident memory of all its processes.
    pub rss_bytes: u64,
    /// Processor time used since it was made, by what is known of it.
    pub cpu: Duration,
    /// Running processes.
    pub processes: u32,
    /// Bytes on disk below its root; may be some seconds old.
    pub disk_bytes: u64,
    /// How long it waited because its processor time was used up, where that is known.
    pub throttled: Duration,
    /// How many of its processes were killed because memory ran out, where that is known.
    pub oom_kills: u64,
}
