//! Ways to run a container: the [`Driver`] trait, its conformance suite and the process driver.
//!
//! A driver knows containers and commands; it knows nothing of tasks, processes with instances, or
//! pipelines. Containers belong to the machine, not to the agent that made them: an agent may be
//! killed and restarted at any time, and the next one finds every container with its processes,
//! their output and their exit status.

pub mod archive;
pub mod conformance;
pub mod docker;
mod driver;
mod error;
pub mod oci;
mod open_files;
mod output;
mod proc;
pub mod process;
pub mod shim;
mod spec;
mod supervised;

pub use driver::{
    Ability, Capabilities, ContainerInfo, Driver, Exit, Input, Isolation, LimitKind, Network,
    Outcome, ProcessInfo, ProcessState, Session, SessionControl, Signal, Started, Stats, Target,
    Terminal,
};
pub use error::{DriverError, Result, StartFault};
pub use open_files::raise_open_files;
pub use output::{Chunk, Output, OutputOffset, OutputStream, Source};
pub use spec::{
    ContainerSpec, EgressRule, Handle, Limits, Mount, ProcessId, ProcessSpec, Protocol, Publish,
    Root, User,
};
pub use supervised::tree::{disk_bytes, remove as remove_tree};
