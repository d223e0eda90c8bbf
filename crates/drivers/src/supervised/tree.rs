//! Directory trees of containers: measuring and deleting them.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RawDir, SeekFrom, chmodat, fchmod, fstat, openat,
    seek, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::path::Arg;

/// The size of a block in `stat`.
const BLOCK_BYTES: u64 = 512;
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How many directories that are not empty are noted before one of them is dealt with.
const MAX_FULL: usize = 64;
/// Bytes of a directory's listing that are read at once.
const LISTING_BYTES: usize = 16 << 10;
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

/// Bytes that what is in a directory takes on disk; an error when some of it cannot be counted.
pub fn disk_bytes(dir: &Path) -> io::Result<u64> {
    let mut counted = Counted::default();
    counted.add(dir)?;
    counted.unread.map_or(Ok(counted.bytes), Err)
}

/// The same of a tree that is in use. What goes away or cannot be read meanwhile does not count.
pub(crate) fn disk_bytes_in_use(dir: &Path) -> u64 {
    let mut counted = Counted::default();
    if let Err(error) = counted.add(dir) {
        tracing::debug!(dir = %dir.display(), %error, "a tree is not counted whole");
    }
    counted.bytes
}

/// What was counted of a tree.
#[derive(Debug, Default)]
struct Counted {
    bytes: u64,
    /// Why the first of the directories that are not counted cannot be read.
    unread: Option<io::Error>,
}

/// A directory on the way down that is being counted.
struct Step {
    level: Level,
    /// Where its listing goes on; none at its end.
    next: Option<u64>,
}

impl Counted {
    /// Counts what is in a directory. As in [`remove_contents`], one directory is open at a time.
    fn add(&mut self, dir: &Path) -> io::Result<()> {
        let mut at = openat(CWD, dir, DIRECTORY, Mode::empty())?;
        let step = |at: &OwnedFd| Ok::<_, io::Error>(Step { level: Level::of(at)?, next: Some(0) });
        let mut way = vec![step(&at)?];
        let mut buffer = Vec::with_capacity(LISTING_BYTES);
        while let Some(last) = way.last_mut() {
            if let Some(name) = last.level.full.pop() {
                match openat(&at, &name, DIRECTORY, Mode::empty()) {
                    Ok(below) => {
                        at = below;
                        way.push(step(&at)?);
                    }
                    // It went away, or is something else now.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(error) => drop(self.unread.get_or_insert_with(|| error.into())),
                }
            } else if let Some(next) = last.next {
                last.next = self.list(&at, next, (&mut buffer, &mut last.level.full))?;
            } else {
                way.pop();
                if let Some(above) = way.last() {
                    at = openat(&at, c"..", DIRECTORY, Mode::empty())?;
                    if Level::of(&at)?.id != above.level.id {
                        return Err(io::Error::other("a directory was moved while it was counted"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts what a directory lists from a place on, and notes a few of the directories in it.
    /// Gives the place where the listing goes on.
    fn list(
        &mut self,
        dir: &OwnedFd,
        from: u64,
        (buffer, full): (&mut Vec<u8>, &mut Vec<CString>),
    ) -> io::Result<Option<u64>> {
        seek(dir, SeekFrom::Start(from))?;
        let mut listing = RawDir::new(dir, buffer.spare_capacity_mut());
        while let Some(entry) = listing.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let found = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            let blocks = u64::try_from(found.st_blocks).unwrap_or(0);
            self.bytes = self.bytes.saturating_add(blocks.saturating_mul(BLOCK_BYTES));
            if FileType::from_raw_mode(found.st_mode).is_dir() {
                full.push(name.to_owned());
                if full.len() == MAX_FULL {
                    return Ok(Some(entry.next_entry_cookie()));
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
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
    fn every_file_of_a_deep_and_wide_tree_counts() {
        // Beyond the longest path, and more directories than are noted at once.
        const DEPTH: usize = 30;
        const WIDTH: usize = 3 * MAX_FULL + 1;
        let dir = tempfile::tempdir().expect("makes a directory");
        let write = |at: &OwnedFd| {
            let file = openat(at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR);
            fs::File::from(file.expect("makes")).write_all(&vec![b'x'; 65_536]).expect("writes");
        };
        let mut at = open(CWD, dir.path()).expect("opens");
        for _ in 0..DEPTH {
            let name = "x".repeat(200);
            mkdirat(&at, &name, Mode::RWXU).expect("makes");
            at = open(at.as_fd(), &*name).expect("opens");
            write(&at);
        }
        for number in 0..WIDTH {
            let name = number.to_string();
            mkdirat(&at, &name, Mode::RWXU).expect("makes");
            write(&open(at.as_fd(), &*name).expect("opens"));
        }
        let files = 65_536 * (DEPTH + WIDTH) as u64;
        let counted = disk_bytes(dir.path()).expect("counts");
        // Directories take a bit, too.
        assert!((files..files + files / 4).contains(&counted), "{counted} of {files}");
        assert_eq!(disk_bytes_in_use(dir.path()), counted);
        assert!(disk_bytes(&dir.path().join("missing")).is_err());
        drop(at);
        remove(dir.path()).expect("removes");
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
