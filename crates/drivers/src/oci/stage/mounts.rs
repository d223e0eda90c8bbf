//! Mounts of the helper: trees with the container's users, places in a root that is not trusted.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::fchown;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::spec::Mount;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What a container may do with a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// A copy of the mount at `source`, not attached anywhere. With `users`, what user 0 of the machine
/// owns there belongs to the container's user 0. A file system that cannot do that shows its files
/// as somebody else's.
pub(super) fn tree(source: &Path, users: Option<&OwnedFd>, access: Access) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, source, flags)?;
    let mut set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if access == Access::Read {
        set |= libc::MOUNT_ATTR_RDONLY;
    }
    match users {
        None => attributes(&tree, set, None)?,
        Some(users) => match attributes(&tree, set | libc::MOUNT_ATTR_IDMAP, Some(users)) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                attributes(&tree, set, None)?;
            }
            other => other?,
        },
    }
    Ok(tree)
}

#[expect(unsafe_code, reason = "there is no safe wrapper for this system call")]
fn attributes(tree: &OwnedFd, set: u64, users: Option<&OwnedFd>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.map_or(0, |users| u64::from(users.as_raw_fd().cast_unsigned())),
    };
    // SAFETY: the path is an empty string and the attributes are as long as said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Attaches a tree at a place of the helper's own.
pub(super) fn attach(tree: &OwnedFd, at: &Path) -> io::Result<()> {
    Ok(move_mount(tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Shows a file or directory of the machine, as it is, at a place of the helper's own.
pub(super) fn bind(source: &Path, at: &Path) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    attach(&open_tree(CWD, source, flags)?, at)
}

/// Mounts a file that holds a file system. Its loop device goes away with the mount.
pub(super) fn image(image: &Path, at: &Path) -> io::Result<()> {
    let mut mount = Command::new("mount");
    mount.args(["-t", "ext4", "-o", "loop,discard,nosuid,nodev"]).arg(image).arg(at);
    let done = mount.stdin(Stdio::null()).output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&done.stderr).trim().to_owned()))
}

/// The root of a container and places in it. Nothing in it is trusted: a link of an image
/// leads to a place in the root, never out of it.
#[derive(Debug)]
pub(in crate::oci) struct Root {
    dir: OwnedFd,
    /// The user and the group of the machine that own what is made in it.
    owner: (u32, u32),
}

impl Root {
    pub(in crate::oci) fn open(at: &Path, owner: (u32, u32)) -> io::Result<Self> {
        let dir = openat(CWD, at, DIRECTORY, Mode::empty())?;
        Ok(Self { dir, owner })
    }

    pub(in crate::oci) fn find(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        openat2(&self.dir, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
    }

    /// Opens a directory, made when missing.
    pub(in crate::oci) fn make_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut dir = self.find(Path::new("."), DIRECTORY)?;
        let mut so_far = PathBuf::new();
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            so_far.push(name);
            dir = match self.find(&so_far, DIRECTORY) {
                Err(Errno::NOENT) => {
                    mkdirat(&dir, name, Mode::from_raw_mode(0o755))?;
                    let made = self.find(&so_far, DIRECTORY)?;
                    fchown(&made, Some(self.owner.0), Some(self.owner.1))?;
                    made
                }
                other => other?,
            };
        }
        Ok(dir)
    }

    fn make_file(&self, dir: &OwnedFd, name: &OsStr) -> Result<File, Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = File::from(openat(dir, name, flags, Mode::from_raw_mode(0o644))?);
        fchown(&file, Some(self.owner.0), Some(self.owner.1))
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok(file)
    }

    /// Brings a file or directory of the machine into the container. A symbolic link is made again.
    pub(super) fn put(&self, mount: &Mount, users: Option<&OwnedFd>) -> io::Result<()> {
        let kind = fs::symlink_metadata(&mount.source)?.file_type();
        let target = Path::new(mount.target.trim_start_matches('/'));
        let parent = || self.make_dir(target.parent().unwrap_or_else(|| Path::new("")));
        let name = target.file_name().ok_or(Errno::INVAL)?;
        if kind.is_symlink() {
            let link = fs::read_link(&mount.source)?;
            return match symlinkat(&link, parent()?, name) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
        let access = if mount.read_only { Access::Read } else { Access::Write };
        let tree = tree(&mount.source, users, access)?;
        let place = if kind.is_dir() {
            self.make_dir(target)?
        } else {
            match self.make_file(&parent()?, name) {
                Ok(_) | Err(Errno::EXIST) => self.find(target, OFlags::PATH)?,
                Err(error) => return Err(error.into()),
            }
        };
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(&tree, "", &place, "", flags)?)
    }

    /// Writes a file below `/etc`.
    pub(super) fn write(&self, name: &str, text: &str, existing: Existing) -> io::Result<()> {
        let etc = self.make_dir(Path::new("etc"))?;
        if existing == Existing::Replace {
            match unlinkat(&etc, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match self.make_file(&etc, OsStr::new(name)) {
            Err(Errno::EXIST) if existing == Existing::Keep => Ok(()),
            Err(error) => Err(error.into()),
            Ok(mut file) => file.write_all(text.as_bytes()),
        }
    }
}

/// What to do about a file that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    Replace,
    Keep,
}
