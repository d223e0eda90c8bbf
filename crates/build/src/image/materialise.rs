//! A root directory from unpacked layers.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use drivers::archive::open_root;
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, copy_file_range,
    fchmod, fstat, futimens, ioctl_ficlone, linkat, mkdirat, openat, readlinkat, statat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;

use super::{ImageError, io_error};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const MAX_DEPTH: usize = 256;

/// Whether files of the root share their bytes with the layers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Sharing {
    /// Every file is a copy (a copy-on-write one where the file system can): an app may write to
    /// its files and nobody else sees it.
    #[default]
    Copy,
    /// Files below these paths (without leading `/`) are hard links, all others are copies. For
    /// what no app writes in place, such as installed packages.
    LinkBelow(Vec<PathBuf>),
}

/// Puts the unpacked `layers`, bottom first, into the directory `root` and applies whiteouts.
///
/// No symbolic link is ever followed, neither of a layer nor of the root.
pub fn materialise(layers: &[PathBuf], root: &Path, sharing: &Sharing) -> Result<(), ImageError> {
    let to = open_root(root)?;
    let mut merge = Merge { sharing, clone_works: true };
    for layer in layers {
        let from = open_root(layer)?;
        merge
            .directory(&from, &to, Path::new(""), 0)
            .map_err(|(path, error)| io_error("make", &root.join(path), error))?;
    }
    Ok(())
}

type Merged = Result<(), (PathBuf, io::Error)>;

struct Merge<'a> {
    sharing: &'a Sharing,
    clone_works: bool,
}

impl Merge<'_> {
    fn directory(&mut self, from: &OwnedFd, to: &OwnedFd, path: &Path, depth: usize) -> Merged {
        let at = |error: Errno| (path.to_owned(), error.into());
        if depth > MAX_DEPTH {
            return Err((path.to_owned(), io::Error::other("it is nested too deep")));
        }
        let mut names = children(from).map_err(at)?;
        names.sort_unstable();
        let (whiteouts, names): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| name.as_bytes().starts_with(WHITEOUT));
        for name in whiteouts {
            whiteout(to.as_fd(), name.as_bytes()).map_err(at)?;
        }
        for name in names {
            let path = path.join(&name);
            let at = |error: io::Error| (path.clone(), error);
            let stat = statat(from, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| at(e.into()))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let from = openat(from, &name, DIRECTORY, Mode::empty());
                    let to = directory(to.as_fd(), &name, stat.st_mode);
                    let from = from.map_err(|e| at(e.into()))?;
                    let to = to.map_err(|e| at(e.into()))?;
                    self.directory(&from, &to, &path, depth + 1)?;
                }
                FileType::RegularFile => {
                    self.file(from.as_fd(), to.as_fd(), &name, &path).map_err(at)?;
                }
                FileType::Symlink => {
                    link(from.as_fd(), to.as_fd(), &name).map_err(|e| at(e.into()))?;
                }
                FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice
                | FileType::Unknown => {}
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
    ) -> io::Result<()> {
        if let Sharing::LinkBelow(prefixes) = self.sharing
            && prefixes.iter().any(|prefix| path.starts_with(prefix))
        {
            let linked = replacing(to, name, || linkat(from, name, to, name, AtFlags::empty()));
            match linked {
                Err(Errno::XDEV | Errno::MLINK | Errno::PERM) => {}
                linked => return Ok(linked?),
            }
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source = File::from(openat(from, name, flags, Mode::empty())?);
        let stat = fstat(&source)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
        let target = replacing(to, name, || openat(to, name, flags, Mode::from_raw_mode(0o600)))?;
        let target = File::from(target);
        self.content(&source, &target, u64::try_from(stat.st_size).unwrap_or(0))?;
        fchmod(&target, mode)?;
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: 0 },
        };
        Ok(futimens(&target, &times)?)
    }

    fn content(&mut self, mut from: &File, mut to: &File, size: u64) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        if self.clone_works {
            if ioctl_ficlone(to, from).is_ok() {
                return Ok(());
            }
            self.clone_works = false;
        }
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left.min(1 << 30)).unwrap_or(1 << 30);
            match copy_file_range(from, None, to, None, most) {
                Ok(0) => return Ok(()),
                Ok(copied) => left = left.saturating_sub(copied as u64),
                Err(Errno::INTR) => {}
                // Across file systems, or not supported: by hand from where it stopped.
                Err(_) => return io::copy(&mut from, &mut to).map(|_| ()),
            }
        }
        Ok(())
    }
}

fn children(dir: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for child in Dir::read_from(dir)? {
        let name = CString::from(child?.file_name()).into_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}

fn whiteout(to: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    if name == OPAQUE {
        let dir = openat(to, ".", DIRECTORY, Mode::empty())?;
        return children(&dir)?.iter().try_for_each(|child| remove(to, child, 0));
    }
    match name.strip_prefix(WHITEOUT) {
        // A hard-linked plain file of another storage driver, or nonsense.
        Some(b"" | b"." | b"..") | None => Ok(()),
        Some(name) if name.starts_with(WHITEOUT) => Ok(()),
        Some(name) => remove(to, OsStr::from_bytes(name), 0),
    }
}

/// Removes what has this name, with everything below it, following no link.
fn remove(parent: BorrowedFd<'_>, name: &OsStr, depth: usize) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) if depth <= MAX_DEPTH => {}
        Err(error) => return Err(error),
    }
    let dir = openat(parent, name, DIRECTORY, Mode::empty())?;
    for child in children(&dir)? {
        remove(dir.as_fd(), &child, depth + 1)?;
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// The directory `name`, made if something else or nothing is there.
fn directory(parent: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<OwnedFd, Errno> {
    let dir = match openat(parent, name, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
            replacing(parent, name, || mkdirat(parent, name, Mode::from_raw_mode(0o700)))?;
            openat(parent, name, DIRECTORY, Mode::empty())?
        }
        opened => opened?,
    };
    fchmod(&dir, Mode::from_raw_mode(mode & 0o777))?;
    Ok(dir)
}

fn link(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    let target = readlinkat(from, name, Vec::new())?;
    replacing(to, name, || symlinkat(&target, to, name))
}

/// Makes something that must be new; what a lower layer has there goes away first.
fn replacing<T>(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    make: impl Fn() -> Result<T, Errno>,
) -> Result<T, Errno> {
    match make() {
        Err(Errno::EXIST) => {
            remove(parent, name, 0)?;
            make()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    fn layer(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        dir
    }

    fn merged(layers: &[&tempfile::TempDir], sharing: &Sharing) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a root");
        let layers: Vec<_> = layers.iter().map(|layer| layer.path().to_owned()).collect();
        materialise(&layers, root.path(), sharing).expect("materialised");
        root
    }

    #[test]
    fn upper_layers_replace_and_remove() {
        let lower = layer(&[("a", "1"), ("b", "1"), ("d/x", "1"), ("e/x", "1"), ("f/x", "1")]);
        let upper = layer(&[
            ("a", "2"),
            (".wh.b", ""),
            ("d/.wh..wh..opq", ""),
            ("d/y", "2"),
            (".wh.e", ""),
            ("e/z", "2"),
            ("f", "2"),
            (".wh...", ""),
        ]);
        fs::remove_file(upper.path().join("f")).expect("removed");
        symlink("d", upper.path().join("f")).expect("linked");
        let root = merged(&[&lower, &upper], &Sharing::Copy);
        let at = |name: &str| root.path().join(name);
        assert_eq!(fs::read_to_string(at("a")).expect("read"), "2");
        assert!(!at("b").exists() && !at(".wh.b").exists());
        assert!(!at("d/x").exists() && at("d/y").exists());
        assert!(!at("e/x").exists() && at("e/z").exists());
        assert_eq!(fs::read_link(at("f")).expect("a link"), Path::new("d"));
    }

    #[test]
    fn links_of_a_lower_layer_are_not_followed() {
        let outside = layer(&[("kept", "1")]);
        let lower = layer(&[]);
        symlink(outside.path(), lower.path().join("workspace")).expect("linked");
        let upper = layer(&[("workspace/kept", "2"), ("workspace/.wh.kept2", "")]);
        let root = merged(&[&lower, &upper], &Sharing::Copy);
        assert_eq!(fs::read_to_string(outside.path().join("kept")).expect("read"), "1");
        assert!(root.path().join("workspace").symlink_metadata().expect("there").is_dir());
    }

    #[test]
    fn only_chosen_paths_share_their_bytes() {
        let one = layer(&[("layers/p/x", "1"), ("workspace/x", "1")]);
        let root = merged(&[&one], &Sharing::LinkBelow(vec!["layers".into()]));
        let inode = |path: PathBuf| fs::metadata(path).expect("there").ino();
        let same = |name: &str| inode(one.path().join(name)) == inode(root.path().join(name));
        assert!(same("layers/p/x"));
        assert!(!same("workspace/x"));
    }
}
