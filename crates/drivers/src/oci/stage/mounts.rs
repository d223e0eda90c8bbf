//! Mounts of the helper: trees with the container's users, places in a root that is not trusted.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::fchown;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use runtime::mono_now;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

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

/// Shows what is open at a place of the helper's own.
pub(super) fn bind_open(source: &OwnedFd, at: &Path) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    attach(&open_tree(source, "", flags)?, at)
}

/// Mounts a file that holds a file system. Its loop device goes away with the mount.
pub(super) fn image(image: &Path, at: &Path) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(image)?;
    let (device, name) = loop_device(&file)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let mounted = rustix::mount::mount(&name, at, "ext4", flags, Some(c"discard"));
    drop(device);
    Ok(mounted?)
}

/// `LOOP_CTL_GET_FREE`, `LOOP_CONFIGURE` and `LO_FLAGS_AUTOCLEAR` of `linux/loop.h`.
const GET_FREE: libc::Ioctl = 0x4c82;
const CONFIGURE: libc::Ioctl = 0x4c0a;
const CLEAR_AT_LAST_CLOSE: u32 = 4;
/// How often to ask for another device when somebody else took the free one.
const LOOP_ATTEMPTS: usize = 64;

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    file: u32,
    block_size: u32,
    /// Device, inode, device, offset, limit of the size.
    numbers: [u64; 5],
    /// Number, kind of encryption, size of its key.
    small: [u32; 3],
    flags: u32,
    names: [u8; 64 + 64 + 32],
    initial: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

/// A free loop device that shows a file, and its name. It is free again once nobody has it open.
#[expect(unsafe_code, reason = "there is no safe wrapper for these calls")]
fn loop_device(file: &File) -> io::Result<(File, String)> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    let config = LoopConfig {
        file: file.as_raw_fd().cast_unsigned(),
        block_size: 0,
        numbers: [0; 5],
        small: [0; 3],
        flags: CLEAR_AT_LAST_CLOSE,
        names: [0; 160],
        initial: [0; 2],
        reserved: [0; 8],
    };
    for _ in 0..LOOP_ATTEMPTS {
        // SAFETY: the call takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let name = format!("/dev/loop{number}");
        let device = File::options().read(true).write(true).open(&name)?;
        // SAFETY: the structure is initialised and outlives the call.
        if unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, &raw const config) } == 0 {
            return Ok((device, name));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(error);
        }
    }
    Err(io::Error::other("every loop device that was free is taken by others"))
}

/// The root of a container and places in it. Nothing in it is trusted: a link of an image
/// leads to a place in the root, never out of it.
#[derive(Debug)]
pub(in crate::oci) struct Root {
    dir: OwnedFd,
    /// The user and the group of the machine that own what is made in it.
    owner: (u32, u32),
    /// When nothing is looked for any more.
    until: Option<Instant>,
}

impl Root {
    pub(in crate::oci) fn open(at: &Path, owner: (u32, u32)) -> io::Result<Self> {
        let dir = openat(CWD, at, DIRECTORY, Mode::empty())?;
        Ok(Self { dir, owner, until: None })
    }

    /// From now on it may be used for so long: what is in a container decides how long a path is
    /// looked for.
    pub(in crate::oci) fn within(self, limit: Duration) -> Self {
        Self { until: Some(mono_now() + limit), ..self }
    }

    /// Opens what a path leads to; `TIMEDOUT` when it is too late. Links of `/proc` that are no
    /// paths lead nowhere.
    pub(in crate::oci) fn find(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        if self.until.is_some_and(|until| mono_now() >= until) {
            return Err(Errno::TIMEDOUT);
        }
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
