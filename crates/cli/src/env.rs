//! The environment, read here and nowhere else.
#![expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]

use std::path::PathBuf;

use crate::error::{CliError, ErrorKind, Result};

/// A variable that is set and not empty.
pub(crate) fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether colours are wanted: <https://no-color.org>.
pub(crate) fn colours() -> bool {
    var("NO_COLOR").is_none()
}

/// The server and the token that client commands are to use, as far as the environment says.
pub(crate) fn server_and_token() -> (Option<String>, Option<String>) {
    (var("SHORE_SERVER"), var("SHORE_TOKEN"))
}

/// Whether `SHORE_JSON` asks for JSON, as the command line has it.
pub(crate) fn wants_json() -> bool {
    let off = ["n", "no", "f", "false", "off", "0"];
    var("SHORE_JSON").is_some_and(|value| !off.contains(&value.to_lowercase().as_str()))
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

/// Variables by which language tools that were installed into a home directory find their parts.
/// Containers have another home.
const TOOL_HOMES: [(&str, &str); 2] = [("RUSTUP_HOME", ".rustup"), ("PYENV_ROOT", ".pyenv")];

/// Where language tools of this user keep their parts.
pub(crate) fn tool_homes() -> std::collections::BTreeMap<String, String> {
    let found = TOOL_HOMES.iter().filter_map(|(name, below_home)| {
        let usual = || {
            let dir = PathBuf::from(var("HOME")?).join(below_home);
            dir.is_dir().then(|| dir.display().to_string())
        };
        Some(((*name).to_owned(), var(name).or_else(usual)?))
    });
    found.collect()
}

/// Everything, for a process that is told by its environment what to do.
pub(crate) fn all() -> std::collections::BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}
