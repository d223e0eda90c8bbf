//! Tar streams into and out of a directory tree that is not trusted.
//!
//! Nothing here ever follows a symbolic link: every directory is opened by name below the one
//! before it. Refused on the way in: absolute names, `..`, ways through symbolic links, hard links
//! to anything but a file of the same tree, device nodes, pipes, sparse files, and more bytes or
//! entries than allowed. Set-id and sticky bits, owners and extended attributes are dropped, and
//! directories stay open to their owner. Symbolic links themselves are made as they are.

mod pack;
mod unpack;

use std::ffi::{OsStr, OsString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;

use crate::error::{Context as _, DriverError, Result};

pub(crate) use pack::{Rights, Source};
pub use pack::{pack, pack_as};
pub use unpack::unpack;
pub(crate) use unpack::unpack_around;

/// The most entries of an archive by default.
pub const MAX_ENTRIES: u64 = 1_000_000;
/// The most bytes of files in an archive by default.
pub const MAX_BYTES: u64 = 8 << 30;
/// The deepest path.
pub const MAX_DEPTH: usize = 256;

/// What one archive may bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Entries of every kind.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: MAX_BYTES, entries: MAX_ENTRIES }
    }
}

/// What one archive brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Entries of every kind.
    pub entries: u64,
}

/// Opens a trusted directory to unpack into or pack from.
pub fn open_root(path: &Path) -> Result<OwnedFd> {
    openat(CWD, path, DIRECTORY - OFlags::NOFOLLOW, Mode::empty())
        .context(|| format!("open {}", path.display()))
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The plain names a path consists of. A leading `/` is fine only for paths a caller gives.
fn names(path: &[u8], leading: Leading) -> std::result::Result<Vec<OsString>, &'static str> {
    let mut names = Vec::new();
    for part in Path::new(OsStr::from_bytes(path)).components() {
        match part {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::CurDir => {}
            Component::RootDir if leading == Leading::Allowed => {}
            Component::RootDir | Component::Prefix(_) => return Err("the name is absolute"),
            Component::ParentDir => return Err("the name contains '..'"),
        }
    }
    if names.len() > MAX_DEPTH {
        return Err("the name is too deep");
    }
    if path.contains(&0) {
        return Err("the name contains a NUL byte");
    }
    Ok(names)
}

/// Whether a path may start with `/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leading {
    Allowed,
    Refused,
}

/// Opens the directory `path` below `root`; makes it when `make` says so.
pub fn open_below(root: BorrowedFd<'_>, path: &str, make: bool) -> Result<OwnedFd> {
    let names =
        names(path.as_bytes(), Leading::Allowed).map_err(|e| DriverError::invalid("path", e))?;
    descend(root, &names, make).map_err(|error| match error {
        Errno::NOENT => DriverError::NotFound { what: "path", name: path.to_owned() },
        Errno::NOTDIR | Errno::LOOP => DriverError::invalid("path", NOT_A_DIRECTORY),
        error => DriverError::io(format!("open {path}"), error),
    })
}

/// Why a file is not put where a directory is.
pub const IS_DIRECTORY: &str = "a directory has this name";
const NOT_A_DIRECTORY: &str =
    "leads through something that is not a directory (symbolic links are not followed)";

fn descend(
    root: BorrowedFd<'_>,
    names: &[OsString],
    make: bool,
) -> std::result::Result<OwnedFd, Errno> {
    let mut at = openat(root, ".", DIRECTORY, Mode::empty())?;
    for name in names {
        at = match openat(&at, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) if make => {
                match mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                openat(&at, name, DIRECTORY, Mode::empty())?
            }
            other => other?,
        };
    }
    Ok(at)
}
