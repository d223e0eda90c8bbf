//! Tar stream out.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, fstatfs, openat, readlinkat, statat,
};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::{DIRECTORY, Leading, MAX_DEPTH, descend, names};
use crate::error::{DriverError, Result};

/// Packs `path` below `root`: the contents of a directory, or one file under its own name.
/// Symbolic links are packed as links; sockets, pipes, devices and what other file systems that are
/// mounted there hold are left out.
pub fn pack(out: impl Write, root: BorrowedFd<'_>, path: &str) -> Result<()> {
    let packed = Source::open(root, path)?.pack_into(out);
    packed.map_err(|error| DriverError::io(format!("pack {path}"), error))
}

/// Packs one file below `root` under another name.
pub fn pack_as(out: impl Write, root: BorrowedFd<'_>, path: &str, name: &str) -> Result<()> {
    let packed = match Source::open(root, path)? {
        Source::Directory(_) => Err(io::Error::other("it is a directory")),
        Source::Entry { parent, name: own } => {
            let mut builder = Builder::new(out);
            entry(&mut builder, parent.as_fd(), &own, Path::new(name), 0)
                .and_then(|()| builder.into_inner()?.flush())
        }
    };
    packed.map_err(|error| DriverError::io(format!("pack {path}"), error))
}

/// What is packed, opened before the first byte so that a missing path is an error at once.
pub(crate) enum Source {
    Directory(OwnedFd),
    Entry { parent: OwnedFd, name: OsString },
}

impl Source {
    pub(crate) fn open(root: BorrowedFd<'_>, path: &str) -> Result<Self> {
        let mut parts = names(path.as_bytes(), Leading::Allowed)
            .map_err(|e| DriverError::invalid("path", e))?;
        let name = parts.pop();
        let opened = descend(root, &parts, false).and_then(|parent| {
            let Some(name) = name else { return Ok(Self::Directory(parent)) };
            is_readable(parent.as_fd())?;
            match openat(&parent, &name, DIRECTORY, Mode::empty()) {
                Ok(dir) => is_readable(dir.as_fd()).map(|()| Self::Directory(dir)),
                Err(Errno::NOTDIR | Errno::LOOP) => Ok(Self::Entry { parent, name }),
                Err(error) => Err(error),
            }
        });
        opened.map_err(|error| match error {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {
                DriverError::NotFound { what: "path", name: path.to_owned() }
            }
            Errno::PERM => DriverError::invalid("path", "it shows the kernel, not files"),
            error => DriverError::io(format!("open {path}"), error),
        })
    }

    pub(crate) fn pack_into(self, out: impl Write) -> io::Result<()> {
        let mut builder = Builder::new(out);
        match self {
            Self::Directory(dir) => directory(&mut builder, &dir, Path::new(""), 0)?,
            Self::Entry { parent, name } => {
                entry(&mut builder, parent.as_fd(), &name, Path::new(&name), 0)?;
            }
        }
        builder.into_inner()?.flush()
    }
}

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

fn directory<W: Write>(
    builder: &mut Builder<W>,
    dir: &OwnedFd,
    path: &Path,
    depth: usize,
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("directories are nested too deep"));
    }
    let mut children = Vec::new();
    for child in Dir::read_from(dir)? {
        let name = CString::from(child?.file_name()).into_bytes();
        if name != b"." && name != b".." {
            children.push(OsString::from_vec(name));
        }
    }
    children.sort_unstable();
    for name in children {
        let below: PathBuf = path.join(&name);
        entry(builder, dir.as_fd(), &name, &below, depth)?;
    }
    Ok(())
}

fn entry<W: Write>(
    builder: &mut Builder<W>,
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
            let mut header = header(&stat, EntryType::Directory, 0);
            builder.append_data(&mut header, path, io::empty())?;
            if fstat(&dir)?.st_dev != fstat(parent)?.st_dev {
                return Ok(());
            }
            directory(builder, &dir, path, depth + 1)
        }
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = File::from(openat(parent, name, flags, Mode::empty())?);
            let stat = fstat(&file)?;
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            // A file that shrinks while it is read is filled up: its size is announced already.
            let data = file.take(size).chain(io::repeat(0)).take(size);
            builder.append_data(&mut header(&stat, EntryType::Regular, size), path, data)
        }
        FileType::Symlink => {
            let target = readlinkat(parent, name, Vec::new())?;
            let target = OsStr::from_bytes(target.as_bytes());
            builder.append_link(&mut header(&stat, EntryType::Symlink, 0), path, target)
        }
        FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => Ok(()),
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
