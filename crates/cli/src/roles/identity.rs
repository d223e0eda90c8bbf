//! What a component keeps of itself: its id, and what it is called.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use model::{Name, RunnerId};
use runtime::{Ids, Random, Stop, SystemClock};

use crate::context::write_private;
use crate::env;
use crate::error::{CliError, ErrorKind, Result};

/// This program, as containers and git hooks find it.
pub(crate) fn platform_exe() -> Result<PathBuf> {
    std::env::current_exe()
        .map_err(|error| CliError::internal(format!("cannot find this program's file: {error}")))
}

/// A component's name: what was given, else the machine's, else what it is.
pub(crate) fn name(given: Option<Name>, fallback: &str) -> Result<Name> {
    if let Some(name) = given {
        return Ok(name);
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = Name::suggest(host.trim()).or_else(|| Name::suggest(fallback));
    name.ok_or_else(|| {
        CliError::new(ErrorKind::Invalid, "this machine's name cannot be used")
            .hint("give one with `--name`")
    })
}

/// The id kept in `dir`, or a fresh one.
fn id(dir: &Path) -> Result<u128> {
    let path = dir.join("id");
    if let Ok(text) = std::fs::read_to_string(&path) {
        return model::parse_ulid(text.trim()).map_err(|error| {
            CliError::invalid(format!("{} is unreadable: {error}", path.display()))
                .hint("remove the file to join as a new component")
        });
    }
    let fresh = Ids::new(Random::system()).fresh(&SystemClock);
    let text = RunnerId(fresh).to_string();
    write_private(&path, text.trim_start_matches("run_"))?;
    Ok(fresh)
}

/// A runner that keeps its id in `dir`.
pub(crate) fn runner(
    dir: &Path,
    name: Name,
    labels: BTreeMap<String, String>,
    capacity: u32,
) -> Result<runner::Options> {
    let (id, joined) = (RunnerId(id(dir)?), Stop::new());
    Ok(runner::Options { id, name, labels, only_own: false, capacity, joined })
}

/// A cell that keeps everything in `dir`.
pub(crate) fn cell(dir: &Path, name: Name) -> Result<cell::Options> {
    let mut options = cell::Options::new(name, dir, platform_exe()?);
    options.path = env::path();
    options.tools = env::tool_homes();
    Ok(options)
}

/// A router that keeps its last route table in `dir`.
pub(crate) fn router(
    dir: &Path,
    listen: Vec<SocketAddr>,
    threads: Option<usize>,
) -> Result<router::Options> {
    Ok(router::Options {
        listen,
        threads: threads.unwrap_or(0),
        id: id(dir)?,
        name: name(None, "router")?.to_string(),
        keep: Some(dir.join("routes.json")),
        ..router::Options::default()
    })
}
