//! The environment, read here and nowhere else.
#![expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]

use std::path::PathBuf;

use crate::error::{CliError, ErrorKind, Result};

/// A variable that is set and not empty.
pub(crate) fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn home(name: &str, below_home: &str) -> Result<PathBuf> {
    let dir = var(name).map(PathBuf::from);
    let dir = dir.or_else(|| var("HOME").map(|home| PathBuf::from(home).join(below_home)));
    dir.map(|dir| dir.join("longshore")).ok_or_else(|| {
        CliError::new(ErrorKind::Invalid, format!("neither {name} nor HOME is set"))
            .hint(format!("set {name} to a directory of yours"))
    })
}

/// Where data is kept: `$XDG_DATA_HOME/longshore`.
pub(crate) fn data_dir() -> Result<PathBuf> {
    home("XDG_DATA_HOME", ".local/share")
}

/// Where contexts are kept: `$XDG_CONFIG_HOME/longshore`.
pub(crate) fn config_dir() -> Result<PathBuf> {
    home("XDG_CONFIG_HOME", ".config")
}

/// Where programs are looked for.
pub(crate) fn path() -> String {
    var("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".to_owned())
}

/// Everything, for a process that is told by its environment what to do.
pub(crate) fn all() -> std::collections::BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}
