//! Which ways to run containers a cell has.

use std::path::Path;
use std::sync::Arc;

use drivers::Driver;
use drivers::process::{Config, ProcessDriver};
use runtime::Tasks;

use crate::args::DriverKind;
use crate::error::{CliError, ErrorKind, Result};

/// The drivers of a cell, the best first, and a sentence about the choice.
pub(crate) fn drivers(
    wanted: &[DriverKind],
    dir: &Path,
    tasks: &Tasks,
) -> Result<(Vec<Arc<dyn Driver>>, String)> {
    if wanted.is_empty() {
        return Ok((vec![open(DriverKind::Process, dir, tasks)?], PROCESS_CHOSEN.to_owned()));
    }
    let mut opened: Vec<Arc<dyn Driver>> = Vec::new();
    for kind in wanted {
        let driver = open(*kind, dir, tasks)?;
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

const PROCESS_CHOSEN: &str = "runs containers as plain processes";

fn open(kind: DriverKind, dir: &Path, tasks: &Tasks) -> Result<Arc<dyn Driver>> {
    let failed = |error: drivers::DriverError| {
        CliError::new(ErrorKind::Unavailable, format!("cannot run containers: {error}"))
    };
    match kind {
        DriverKind::Process => {
            let config = Config::new(dir.join("containers"));
            Ok(Arc::new(ProcessDriver::open(&config, tasks.clone()).map_err(failed)?))
        }
        DriverKind::Oci | DriverKind::Docker => {
            Err(CliError::new(ErrorKind::Unavailable, "this program has no such driver yet")
                .hint("use `--driver process`"))
        }
    }
}
