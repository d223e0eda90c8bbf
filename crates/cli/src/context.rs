//! Which server commands talk to, and with which token. Kept in a file only its owner can read.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use api::{Client, Endpoint};
use model::JoinToken;
use serde::{Deserialize, Serialize};

use crate::env;
use crate::error::{CliError, ErrorKind, Result};

/// The context that an all-in-one server makes for itself.
pub(crate) const LOCAL: &str = "local";

/// One server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Context {
    /// `http://host:port` or `https://host:port`.
    pub(crate) url: String,
    /// A token.
    pub(crate) token: String,
}

/// Every server that is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contexts {
    /// The one that is used.
    #[serde(default)]
    pub(crate) current: Option<String>,
    /// By name.
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, Context>,
}

impl Contexts {
    fn path() -> Result<PathBuf> {
        Ok(env::config_dir()?.join("contexts.json"))
    }

    /// Reads the file; nothing is known when there is none.
    pub(crate) fn load() -> Result<Self> {
        let path = Self::path()?;
        match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| {
                CliError::invalid(format!("cannot read {}: {error}", path.display()))
                    .hint("mend the file, or remove it and set your contexts again")
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(CliError::file("read", &path, &error)),
        }
    }

    /// Writes the file.
    pub(crate) fn save(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(CliError::internal)?;
        write_private(&Self::path()?, &text)
    }

    /// The context of this name, or the current one.
    pub(crate) fn find(&self, name: Option<&str>) -> Result<Option<(&str, &Context)>> {
        let Some(name) = name.or(self.current.as_deref()) else { return Ok(None) };
        match self.contexts.get_key_value(name) {
            Some((name, context)) => Ok(Some((name, context))),
            None => {
                Err(CliError::new(ErrorKind::NotFound, format!("there is no context `{name}`"))
                    .hint("list them with `shore context list`, make one with `shore context set`"))
            }
        }
    }
}

impl Context {
    /// Where its server is.
    pub(crate) fn endpoint(&self) -> Result<Endpoint> {
        let token: JoinToken = self.token.parse().map_err(|reason| {
            CliError::invalid(reason).hint("copy the whole token, on one line, to `--token`")
        })?;
        Endpoint::new(&self.url, token).map_err(CliError::address)
    }

    /// A client of its server.
    pub(crate) fn client(&self) -> Result<Client> {
        Ok(Client::new(self.endpoint()?)?)
    }
}

/// What only its owner may read, write and enter.
const PRIVATE_DIR: u32 = 0o700;

/// Makes a directory that only its owner can enter, or makes one private that is there.
pub(crate) fn private_dir(dir: &Path) -> Result<()> {
    let failed = |what: &str, error: &std::io::Error| CliError::file(what, dir, error);
    let made = std::fs::DirBuilder::new().mode(PRIVATE_DIR).recursive(true).create(dir);
    made.map_err(|error| failed("make", &error))?;
    let found = std::fs::metadata(dir).map_err(|error| failed("open", &error))?.permissions();
    if found.mode() & 0o777 == PRIVATE_DIR {
        return Ok(());
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(PRIVATE_DIR)).map_err(|error| {
        failed("make private", &error)
            .hint("give the directory to the user who runs this, or choose another with `--data`")
    })
}

/// Writes a file that only its owner can read, whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<()> {
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(dir).map_err(|error| CliError::file("make", dir, &error))?;
    let temp = path.with_extension("new");
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temp, path)
    };
    write().map_err(|error| CliError::file("write", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_private_whether_it_is_new_or_not() {
        let home = tempfile::tempdir().expect("made");
        let mode = |dir: &Path| std::fs::metadata(dir).expect("there").permissions().mode() & 0o777;
        let open = home.path().join("open");
        std::fs::create_dir(&open).expect("made");
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).expect("opened");
        for dir in [open, home.path().join("new/below")] {
            private_dir(&dir).expect("private");
            assert_eq!(mode(&dir), PRIVATE_DIR);
        }
    }
}
