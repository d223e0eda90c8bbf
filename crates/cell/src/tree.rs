//! Lays an unpacked image layer over a container's root.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink,
};
use std::path::{Path, PathBuf};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Copies `layer` over `root`, honouring its whiteouts. No symbolic link in `root` is followed;
/// nobody else may write to `root` meanwhile.
pub(crate) fn lay(layer: &Path, root: &Path) -> io::Result<()> {
    let mut waiting = vec![PathBuf::new()];
    while let Some(below) = waiting.pop() {
        let to = root.join(&below);
        if layer.join(&below).join(OsStr::from_bytes(OPAQUE)).symlink_metadata().is_ok() {
            empty(&to)?;
        }
        for entry in fs::read_dir(layer.join(&below))? {
            let entry = entry?;
            let name = entry.file_name();
            if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
                if name.as_bytes() != OPAQUE && is_plain(hidden) {
                    remove(&to.join(OsStr::from_bytes(hidden)))?;
                }
                continue;
            }
            if copy(&entry, &to.join(&name))? {
                waiting.push(below.join(&name));
            }
        }
    }
    Ok(())
}

/// Whether a name cannot lead elsewhere.
fn is_plain(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".."
}

/// Copies one entry; true for a directory, whose content is still to be copied.
fn copy(entry: &fs::DirEntry, to: &Path) -> io::Result<bool> {
    let kind = entry.file_type()?;
    if kind.is_dir() {
        let mode = entry.metadata()?.mode() & 0o777;
        directory(to, mode)?;
        return Ok(true);
    }
    if kind.is_symlink() {
        let target = fs::read_link(entry.path())?;
        replacing(to, || symlink(&target, to))?;
    } else if kind.is_file() {
        file(&entry.path(), to)?;
    }
    Ok(false)
}

fn directory(to: &Path, mode: u32) -> io::Result<()> {
    let make = || DirBuilder::new().mode(0o700).create(to);
    match make() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if !to.symlink_metadata()?.is_dir() {
                fs::remove_file(to)?;
                make()?;
            }
        }
        other => other?,
    }
    fs::set_permissions(to, Permissions::from_mode(mode | 0o700))
}

fn file(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let facts = source.metadata()?;
    let new = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let mut target = replacing(to, new)?;
    // The system copies or shares the bytes by itself where it can.
    io::copy(&mut source, &mut target)?;
    target.set_permissions(Permissions::from_mode(facts.mode() & 0o777))?;
    target.set_modified(facts.modified()?)
}

fn replacing<T>(to: &Path, make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match make() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            remove(to)?;
            make()
        }
        other => other,
    }
}

/// Removes whatever is there, if anything is.
pub(crate) fn remove(at: &Path) -> io::Result<()> {
    let removed = match at.symlink_metadata() {
        Ok(facts) if facts.is_dir() => fs::remove_dir_all(at),
        Ok(_) => fs::remove_file(at),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn empty(dir: &Path) -> io::Result<()> {
    let names: Vec<OsString> =
        fs::read_dir(dir)?.map(|entry| entry.map(|e| e.file_name())).collect::<Result<_, _>>()?;
    names.iter().try_for_each(|name| remove(&dir.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, name: &str, text: &str) {
        let file = root.join(name);
        let parent = file.parent().expect("has a parent");
        fs::create_dir_all(parent).expect("makes");
        fs::write(file, text).expect("writes");
    }

    #[test]
    fn later_layers_replace_hide_and_never_lead_out() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let at = |name: &str| dir.path().join(name);
        put(&at("one"), "keep", "1");
        put(&at("one"), "gone", "1");
        put(&at("one"), "sub/old", "1");
        put(&at("one"), "dir-to-file/x", "1");
        put(&at("outside"), "secret", "s");
        symlink(at("outside"), at("one").join("link")).expect("links");
        fs::set_permissions(at("one/keep"), Permissions::from_mode(0o755)).expect("sets");
        put(&at("two"), ".wh.gone", "");
        put(&at("two"), "sub/.wh..wh..opq", "");
        put(&at("two"), "sub/new", "2");
        put(&at("two"), "dir-to-file", "2");
        put(&at("two"), "link/secret", "replaced");
        put(&at("two"), ".wh...", "");
        fs::create_dir(at("root")).expect("makes");
        lay(&at("one"), &at("root")).expect("lays");
        lay(&at("two"), &at("root")).expect("lays");
        let read = |name: &str| fs::read_to_string(at("root").join(name)).ok();
        assert_eq!(read("keep").as_deref(), Some("1"));
        assert_eq!(at("root/keep").metadata().expect("is there").mode() & 0o777, 0o755);
        assert_eq!(read("gone"), None);
        assert_eq!((read("sub/old"), read("sub/new").as_deref()), (None, Some("2")));
        assert_eq!(read("dir-to-file").as_deref(), Some("2"));
        assert_eq!(read("link/secret").as_deref(), Some("replaced"));
        assert_eq!(fs::read_to_string(at("outside/secret")).expect("reads"), "s");
    }
}
