//! Tar stream out.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, fstatfs, openat, readlinkat, statat,
};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::{DIRECTORY, Leading, MAX_DEPTH, MAX_ENTRIES, descend, names};
use crate::error::{DriverError, Result};

/// Packs `path` below `root`: the contents of a directory, or one file under its own name.
/// Symbolic links are packed as links; sockets, pipes, devices and what other file systems that are
/// mounted there hold are left out.
pub fn pack(out: impl Write, root: BorrowedFd<'_>, path: &str) -> Result<()> {
    let packed = Source::open(root, path, Rights::All)?.pack_into(out);
    packed.map_err(|error| DriverError::io(format!("pack {path}"), error))
}

/// Packs one file below `root` under another name.
pub fn pack_as(out: impl Write, root: BorrowedFd<'_>, path: &str, name: &str) -> Result<()> {
    let source = Source::open(root, path, Rights::All)?;
    let packed = match source.place {
        Place::Directory(_) => Err(io::Error::other("it is a directory")),
        Place::Entry { parent, name: own } => {
            let mut packer = Packer::new(out, source.rights);
            packer
                .entry(parent.as_fd(), &own, Path::new(name), 0)
                .and_then(|()| packer.builder.into_inner()?.flush())
        }
    };
    packed.map_err(|error| DriverError::io(format!("pack {path}"), error))
}

/// Whose rights decide what is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rights {
    /// The agent's: everything.
    All,
    /// Those of the root of a container whose users and groups are these of the machine: everything
    /// that is theirs, and of what is somebody else's what everybody may read.
    Of(Range<u32>),
}

impl Rights {
    /// An error where what was opened may not be read. It cannot become something else meanwhile.
    fn check(&self, opened: BorrowedFd<'_>) -> rustix::io::Result<Stat> {
        let stat = fstat(opened)?;
        let allowed = match self {
            Self::All => true,
            Self::Of(own) if own.contains(&stat.st_uid) && own.contains(&stat.st_gid) => true,
            Self::Of(_) => {
                let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                let needed = if is_directory { 0o005 } else { 0o004 };
                stat.st_mode & needed == needed
            }
        };
        if allowed { Ok(stat) } else { Err(Errno::ACCESS) }
    }
}

/// Why something is not packed that is there.
const NOT_ITS_OWN: &str = "it is not the container's, and not everybody may read it";

/// What is packed, opened before the first byte so that a missing path is an error at once.
#[derive(Debug)]
pub(crate) struct Source {
    place: Place,
    rights: Rights,
}

#[derive(Debug)]
enum Place {
    Directory(OwnedFd),
    Entry { parent: OwnedFd, name: OsString },
}

impl Source {
    pub(crate) fn open(root: BorrowedFd<'_>, path: &str, rights: Rights) -> Result<Self> {
        let mut parts = names(path.as_bytes(), Leading::Allowed)
            .map_err(|e| DriverError::invalid("path", e))?;
        let name = parts.pop();
        let descended = match &rights {
            Rights::All => descend(root, &parts, false),
            Rights::Of(_) => descend_as(root, &parts, &rights),
        };
        let opened = descended.and_then(|parent| {
            let Some(name) = name else { return Ok(Place::Directory(parent)) };
            is_readable(parent.as_fd())?;
            match openat(&parent, &name, DIRECTORY, Mode::empty()) {
                Ok(dir) => {
                    is_readable(dir.as_fd())?;
                    rights.check(dir.as_fd())?;
                    Ok(Place::Directory(dir))
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    check_file(parent.as_fd(), &name, &rights)?;
                    Ok(Place::Entry { parent, name })
                }
                Err(error) => Err(error),
            }
        });
        let place = opened.map_err(|error| match error {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {
                DriverError::NotFound { what: "path", name: path.to_owned() }
            }
            Errno::PERM => DriverError::invalid("path", "it shows the kernel, not files"),
            Errno::ACCESS => DriverError::invalid("path", NOT_ITS_OWN),
            error => DriverError::io(format!("open {path}"), error),
        })?;
        Ok(Self { place, rights })
    }

    pub(crate) fn pack_into(self, out: impl Write) -> io::Result<()> {
        let mut packer = Packer::new(out, self.rights);
        match self.place {
            Place::Directory(dir) => packer.directory(&dir, Path::new(""), 0)?,
            Place::Entry { parent, name } => {
                packer.entry(parent.as_fd(), &name, Path::new(&name), 0)?;
            }
        }
        packer.builder.into_inner()?.flush()
    }
}

/// Like [`descend`], through nothing but what may be gone through.
fn descend_as(
    root: BorrowedFd<'_>,
    names: &[OsString],
    rights: &Rights,
) -> rustix::io::Result<OwnedFd> {
    let mut at = openat(root, ".", DIRECTORY, Mode::empty())?;
    rights.check(at.as_fd())?;
    for name in names {
        at = openat(&at, name, DIRECTORY, Mode::empty())?;
        rights.check(at.as_fd())?;
    }
    Ok(at)
}

/// An error where a file may not be read. Whoever packs it looks again at what is there then.
fn check_file(parent: BorrowedFd<'_>, name: &OsStr, rights: &Rights) -> rustix::io::Result<()> {
    match openat(parent, name, FILE, Mode::empty()) {
        Ok(file) => rights.check(file.as_fd()).map(drop),
        // A link, a socket: nothing is read of it.
        Err(Errno::LOOP | Errno::NXIO | Errno::NODEV) => Ok(()),
        Err(error) => Err(error),
    }
}

const FILE: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// File systems that show the kernel and its processes, to whoever reads: the agent would read there
/// as the machine's root, and more than the container may.
const OF_THE_KERNEL: [u32; 9] = [
    0x0000_9fa0, // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0x0000_1cd1, // devpts
];

fn is_readable(dir: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let kind = u32::try_from(fstatfs(dir)?.f_type & 0xffff_ffff).unwrap_or(0);
    if OF_THE_KERNEL.contains(&kind) { Err(Errno::PERM) } else { Ok(()) }
}

/// Writes an archive.
struct Packer<W: Write> {
    builder: Builder<W>,
    rights: Rights,
    listed: Listed,
}

/// What was found in directories.
#[derive(Debug, Default)]
struct Listed {
    /// Entries of all of them, as unpacking counts them.
    entries: u64,
    /// Bytes that the names take of those on the way to what is packed now.
    held: usize,
}

impl Listed {
    /// The names in a directory.
    fn names(&mut self, dir: &OwnedFd) -> io::Result<Vec<Box<OsStr>>> {
        let mut names = Vec::new();
        for child in Dir::read_from(dir)? {
            let child = child?;
            let name = child.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            self.entries += 1;
            self.held += held(name.len());
            if self.entries > MAX_ENTRIES {
                return Err(io::Error::other(format!("more than {MAX_ENTRIES} entries")));
            }
            if self.held > MAX_HELD_BYTES {
                let most = MAX_HELD_BYTES >> 20;
                let reason = format!("names in directories take more than {most} MiB");
                return Err(io::Error::other(reason));
            }
            names.push(OsStr::from_bytes(name).into());
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// What a name of this length takes.
const fn held(length: usize) -> usize {
    length + size_of::<Box<OsStr>>()
}

/// The most bytes of names that are held at once: those of a directory are sorted before they are
/// packed.
const MAX_HELD_BYTES: usize = 32 << 20;

impl<W: Write> Packer<W> {
    fn new(out: W, rights: Rights) -> Self {
        Self { builder: Builder::new(out), rights, listed: Listed::default() }
    }

    fn directory(&mut self, dir: &OwnedFd, path: &Path, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other("directories are nested too deep"));
        }
        for name in self.listed.names(dir)? {
            let below: PathBuf = path.join(&*name);
            self.entry(dir.as_fd(), &name, &below, depth)?;
            self.listed.held -= held(name.len());
        }
        Ok(())
    }

    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        depth: usize,
    ) -> io::Result<()> {
        let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            // It went away between being listed and being packed.
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let dir = openat(parent, name, DIRECTORY, Mode::empty())?;
                let stat = self.allowed(dir.as_fd(), path)?;
                let mut header = header(&stat, EntryType::Directory, 0);
                self.builder.append_data(&mut header, path, io::empty())?;
                if stat.st_dev != fstat(parent)?.st_dev {
                    return Ok(());
                }
                self.directory(&dir, path, depth + 1)
            }
            FileType::RegularFile => {
                let file = File::from(openat(parent, name, FILE, Mode::empty())?);
                let stat = self.allowed(file.as_fd(), path)?;
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                // A file that shrinks while it is read is filled up: its size is announced already.
                let data = file.take(size).chain(io::repeat(0)).take(size);
                self.builder.append_data(&mut header(&stat, EntryType::Regular, size), path, data)
            }
            FileType::Symlink => {
                let target = readlinkat(parent, name, Vec::new())?;
                let target = OsStr::from_bytes(target.as_bytes());
                let mut header = header(&stat, EntryType::Symlink, 0);
                self.builder.append_link(&mut header, path, target)
            }
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => Ok(()),
        }
    }

    fn allowed(&self, opened: BorrowedFd<'_>, path: &Path) -> io::Result<Stat> {
        self.rights.check(opened).map_err(|error| match error {
            Errno::ACCESS => io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("{}: {NOT_ITS_OWN}", path.display()),
            ),
            other => other.into(),
        })
    }
}

fn header(stat: &Stat, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(stat.st_mode & 0o777);
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

    use super::*;
    use crate::archive::open_root;

    #[test]
    fn as_much_is_packed_as_can_be_unpacked() {
        let place = tempfile::tempdir().expect("makes a directory");
        for name in ["b/c", "a", "b/d"] {
            fs::create_dir_all(place.path().join(name)).expect("makes a directory");
        }
        let pack_after = |listed: Listed| {
            let root = open_root(place.path()).expect("opens");
            let mut packer = Packer { listed, ..Packer::new(Vec::new(), Rights::All) };
            let done = packer.directory(&root, Path::new(""), 0);
            done.map(|()| packer.listed).map_err(|error| error.to_string())
        };
        let before = Listed { entries: MAX_ENTRIES - 4, held: MAX_HELD_BYTES - 4 * held(1) };
        let after = pack_after(before).expect("just fits");
        assert_eq!(after.entries, MAX_ENTRIES);
        assert_eq!(after.held, MAX_HELD_BYTES - 4 * held(1), "no name is held any more");
        let many = pack_after(Listed { entries: MAX_ENTRIES - 3, held: 0 });
        assert_eq!(many.expect_err("one too many"), "more than 1000000 entries");
        let long = pack_after(Listed { entries: 0, held: MAX_HELD_BYTES - 2 * held(1) });
        let reason = long.expect_err("too many at once");
        assert_eq!(reason, "names in directories take more than 32 MiB");
    }

    #[test]
    fn what_is_somebody_elses_is_packed_only_when_everybody_may_read_it() {
        let place = tempfile::tempdir().expect("makes a directory");
        let dir = place.path().join("dir");
        fs::create_dir(&dir).expect("makes a directory");
        for (name, mode) in [("open", 0o644), ("closed", 0o640)] {
            fs::write(dir.join(name), name).expect("writes");
            fs::set_permissions(dir.join(name), Permissions::from_mode(mode)).expect("is set");
        }
        fs::set_permissions(place.path(), Permissions::from_mode(0o755)).expect("is set");
        let root = open_root(place.path()).expect("opens");
        let pack = |path, rights| {
            let source = Source::open(root.as_fd(), path, rights).map_err(|e| e.to_string())?;
            let mut tar = Vec::new();
            source.pack_into(&mut tar).map_err(|e| e.to_string()).map(|()| tar)
        };
        let own = fs::metadata(&dir).expect("is there").uid();
        let others = Rights::Of(own + 1..own + 65_537);
        assert!(pack("dir/open", others.clone()).is_ok());
        for path in ["dir/closed", "dir", "/"] {
            let told = pack(path, others.clone()).expect_err("refused");
            assert!(told.contains(NOT_ITS_OWN), "{path}: {told}");
            assert!(pack(path, Rights::All).is_ok(), "{path}");
        }
        // The way to a file counts, too.
        fs::set_permissions(&dir, Permissions::from_mode(0o750)).expect("is set");
        assert!(pack("dir/open", others.clone()).is_err());
        if own == 0 {
            for path in ["dir", "dir/closed", "dir/open"] {
                chown(place.path().join(path), Some(7), Some(8)).expect("is root");
            }
            assert!(pack("dir/closed", others).is_ok(), "its user and group are the container's");
            assert!(pack("dir/closed", Rights::Of(7..8)).is_err(), "its group is not");
        }
    }
}
