//! Which ways to run containers a cell has.

use std::path::Path;
use std::sync::Arc;

use drivers::Driver;
use drivers::docker::{self, DockerDriver};
use drivers::oci::{self, OciDriver};
use drivers::process::{self, ProcessDriver};
use runtime::Tasks;

use crate::args::DriverKind;
use crate::error::{CliError, ErrorKind, Result};

/// Where drivers keep containers, and what all of those together may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) dir: &'a Path,
    /// MiB of memory; not limited when absent.
    pub(crate) memory_mb: Option<u64>,
}

/// The drivers of a cell, the best first, and a sentence about the choice.
pub(crate) fn drivers(
    wanted: &[DriverKind],
    at: Place<'_>,
    tasks: &Tasks,
) -> Result<(Vec<Arc<dyn Driver>>, String)> {
    if wanted.is_empty() {
        return usual(at, tasks);
    }
    let mut opened: Vec<Arc<dyn Driver>> = Vec::new();
    for kind in wanted {
        let driver = open(*kind, at, tasks)?;
        let able = driver.capabilities();
        if let Some(reason) = able.unavailable {
            let fault = format!("the {} driver does not work here: {reason}", able.name);
            return Err(CliError::new(ErrorKind::Unavailable, fault)
                .hint("leave out `--driver` to use what works"));
        }
        if opened.iter().all(|other| other.capabilities().name != able.name) {
            opened.push(driver);
        }
    }
    let names: Vec<&str> = opened.iter().map(|driver| driver.capabilities().name).collect();
    Ok((opened, format!("runs containers with {}, as told", names.join(", "))))
}

/// What a cell runs containers with that was told nothing: an isolating driver where it works, and
/// only that one, because a process may ask for any driver its cell has.
fn usual(at: Place<'_>, tasks: &Tasks) -> Result<(Vec<Arc<dyn Driver>>, String)> {
    let reason = if rustix::process::geteuid().is_root() {
        let oci = open(DriverKind::Oci, at, tasks)?;
        match oci.capabilities().unavailable {
            None => {
                return Ok((vec![oci], "runs containers with oci, which works here".to_owned()));
            }
            Some(reason) => format!("oci does not work here: {reason}"),
        }
    } else {
        "only root can isolate them".to_owned()
    };
    let process = open(DriverKind::Process, at, tasks)?;
    Ok((vec![process], format!("runs containers as plain processes: {reason}")))
}

fn open(kind: DriverKind, at: Place<'_>, tasks: &Tasks) -> Result<Arc<dyn Driver>> {
    let tasks = tasks.clone();
    let opened: drivers::Result<Arc<dyn Driver>> = match kind {
        DriverKind::Process => {
            let config = process::Config::new(at.dir.join("containers"));
            ProcessDriver::open(&config, tasks).map(|driver| Arc::new(driver) as _)
        }
        DriverKind::Oci => {
            let mut config = oci::Config::new(at.dir.join("oci"));
            // What our buildpacks make has no operating system of its own.
            config.base_mounts = oci::Config::machine_base();
            config.memory_bytes = at.memory_mb.map(|mb| mb << 20);
            OciDriver::open(&config, tasks).map(|driver| Arc::new(driver) as _)
        }
        DriverKind::Docker => {
            let mut config = docker::Config::new(at.dir.join("docker"));
            config.base_mounts = oci::Config::machine_base();
            DockerDriver::open(&config, tasks).map(|driver| Arc::new(driver) as _)
        }
    };
    opened.map_err(|error| {
        CliError::new(ErrorKind::Unavailable, format!("cannot run containers: {error}"))
    })
}
