//! Directory trees of containers: measuring and deleting them.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, chmodat, fchmod, fstat, openat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::path::Arg;

/// The size of a block in `stat`.
const BLOCK_BYTES: u64 = 512;
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How many directories that are not empty are noted before one of them is dealt with.
const MAX_FULL: usize = 64;
/// How many containers of one name may wait in the trash.
const MAX_NAMESAKES: u32 = 1_000;

/// Moves a directory into `trash` under a name that is free there.
pub(crate) fn move_into(dir: &Path, trash: &Path) -> io::Result<PathBuf> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    for number in 0..MAX_NAMESAKES {
        let to = trash.join(format!("{name}.{number}"));
        match fs::rename(dir, &to) {
            Ok(()) => return Ok(to),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("the trash cannot be emptied"))
}

/// Deletes a tree, including directories that are closed to their owner, or a file.
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => remove_contents(path).and_then(|()| fs::remove_dir(path)),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Deletes everything in a directory.
///
/// What a container wrote may be deeper than a stack, a path and the number of open files allow. So
/// one directory is open at a time, and the way back up is by `..`. Nothing of the container may run
/// any more, and nobody else may move what is deleted. Two may delete the same.
pub(crate) fn remove_contents(dir: &Path) -> io::Result<()> {
    let mut at = open(CWD, dir)?;
    let mut way = vec![Level::of(&at)?];
    while let Some(level) = way.last_mut() {
        if let Some(name) = level.full.last() {
            match open(at.as_fd(), name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => drop(level.full.pop()),
                opened => {
                    at = opened?;
                    way.push(Level::of(&at)?);
                }
            }
            continue;
        }
        let found = clear(&at, &mut level.full)?;
        if found {
            continue;
        }
        way.pop();
        if let Some(above) = way.last_mut() {
            at = open(at.as_fd(), c"..")?;
            if Level::of(&at)?.id != above.id {
                return Err(io::Error::other("a directory was moved while it was being deleted"));
            }
            match above.full.pop().map(|name| unlinkat(&at, name, AtFlags::REMOVEDIR)) {
                None | Some(Err(Errno::NOENT)) => {}
                Some(other) => other?,
            }
        }
    }
    Ok(())
}

/// A directory on the way down.
struct Level {
    /// Its device and number.
    id: (u64, u64),
    /// Directories in it that are not empty. The last one is next, or on the way.
    full: Vec<CString>,
}

impl Level {
    fn of(dir: &OwnedFd) -> io::Result<Self> {
        let found = fstat(dir)?;
        Ok(Self { id: (found.st_dev, found.st_ino), full: Vec::new() })
    }
}

/// Opens a directory, and has its owner let in.
fn open(at: BorrowedFd<'_>, name: impl Arg + Copy) -> io::Result<OwnedFd> {
    let dir = match openat(at, name, DIRECTORY, Mode::empty()) {
        Err(Errno::ACCESS) => {
            chmodat(at, name, Mode::RWXU, AtFlags::empty())?;
            openat(at, name, DIRECTORY, Mode::empty())?
        }
        other => other?,
    };
    if !Mode::from_raw_mode(fstat(&dir)?.st_mode).contains(Mode::RWXU) {
        fchmod(&dir, Mode::RWXU)?;
    }
    Ok(dir)
}

/// Deletes what is in a directory, but for a few directories in it that are not empty; false when
/// there was nothing.
fn clear(dir: &OwnedFd, full: &mut Vec<CString>) -> io::Result<bool> {
    let mut found = false;
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        found = true;
        let kind = match entry.file_type() {
            FileType::Unknown => {
                FileType::from_raw_mode(statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
            }
            kind => kind,
        };
        let flags = if kind.is_dir() { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match unlinkat(dir, name, flags) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => full.push(name.to_owned()),
            Err(Errno::NOENT) => {}
            other => other?,
        }
        if full.len() == MAX_FULL {
            break;
        }
    }
    Ok(found)
}

/// Bytes a tree takes on disk. What goes away or cannot be read meanwhile does not count.
pub(crate) fn disk_bytes(dir: &Path) -> u64 {
    let mut bytes = 0;
    let mut next = vec![dir.to_owned()];
    while let Some(dir) = next.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.filter_map(Result::ok) {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * BLOCK_BYTES;
            if metadata.is_dir() {
                next.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn a_tree_deeper_than_any_stack_is_deleted() {
        const DEPTH: usize = 20_000;
        // In memory: a disk would write all of it.
        let dir = tempfile::tempdir_in("/dev/shm").expect("makes a directory");
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).expect("makes");
        let mut at = open(CWD, &tree).expect("opens");
        for _ in 0..DEPTH {
            for name in ["deep", "0", "1"] {
                mkdirat(&at, name, Mode::RWXU).expect("makes");
            }
            openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).expect("makes");
            at = open(at.as_fd(), "deep").expect("opens");
        }
        drop(at);
        remove(&tree).expect("removes");
        assert!(!tree.exists());
    }

    #[test]
    fn two_delete_the_same_tree() {
        for _ in 0..20 {
            let dir = tempfile::tempdir_in("/dev/shm").expect("makes a directory");
            let tree = dir.path().join("tree");
            for number in 0..2_000 {
                let at = tree.join(format!("{}/{}/{number}", number % 7, number % 13));
                fs::create_dir_all(at).expect("makes");
            }
            let both = [tree.clone(), tree.clone()].map(|tree| {
                runtime::spawn_thread("remover", move || remove(&tree)).expect("starts")
            });
            for one in both {
                one.join().expect("ends").expect("removes");
            }
            assert!(!tree.exists());
        }
    }

    #[test]
    fn closed_directories_links_and_files_are_deleted() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let (tree, kept) = (dir.path().join("tree"), dir.path().join("kept"));
        fs::create_dir_all(tree.join("a/b/c")).expect("makes");
        fs::write(tree.join("a/b/file"), "x").expect("writes");
        fs::write(tree.join("0"), "x").expect("writes");
        fs::create_dir(&kept).expect("makes");
        fs::write(kept.join("file"), "x").expect("writes");
        std::os::unix::fs::symlink(&kept, tree.join("a/link")).expect("links");
        for name in ["a/b/c", "a/b", "a"] {
            let closed = fs::Permissions::from_mode(0o000);
            fs::set_permissions(tree.join(name), closed).expect("closes");
        }
        remove(&tree).expect("removes a tree");
        remove(&tree).expect("removes nothing");
        remove(&kept.join("file")).expect("removes a file");
        assert!(!tree.exists() && kept.exists());
    }
}
