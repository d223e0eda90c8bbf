//! What a component keeps of itself: its id, its token, and what it is called.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use model::{Name, Role, RunnerId};
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

/// The token a component joins with, and where it is kept between starts.
#[derive(Clone)]
pub(crate) struct OwnToken {
    pub(crate) text: String,
    /// The one that is kept, if there is one.
    kept: Option<String>,
    path: PathBuf,
}

impl OwnToken {
    /// The token that was given, else the one that is kept in `dir`.
    pub(crate) fn find(given: Option<&str>, dir: &Path, role: Role) -> Result<Self> {
        let path = dir.join("token");
        let kept = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text.trim().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(CliError::file("read", &path, &error)),
        };
        let given = given.filter(|text| !text.is_empty()).map(str::to_owned);
        let text = given.or_else(|| kept.clone()).ok_or_else(|| {
            let (role, dir) = (role.name(), dir.display());
            let message = format!("cannot start the {role}: no token is given or kept in {dir}");
            CliError::new(ErrorKind::Usage, message).hint(format!(
                "make one with `shore token create --role {role}` and give it to the first start, \
                 in SHORE_TOKEN or with `--token`"
            ))
        })?;
        Ok(Self { text, kept, path })
    }

    /// Keeps the token for the next start, once the server took it. A component that cannot goes on.
    pub(crate) fn keep(&self) {
        if self.kept.as_ref() == Some(&self.text) {
            return;
        }
        if let Err(error) = write_private(&self.path, &self.text) {
            tracing::warn!("the next start needs the token again: {}", error.message);
        }
    }

    /// What to do where this token was refused.
    pub(crate) fn hint(&self) -> Option<String> {
        let path = self.path.display();
        let kept = self.kept.as_ref()?;
        (*kept != self.text).then(|| {
            format!("start it without SHORE_TOKEN and `--token`: it keeps its own token in {path}")
        })
    }
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
