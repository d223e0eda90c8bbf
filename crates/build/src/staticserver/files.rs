//! The files of a site: found without ever leaving its directory, small ones kept in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use model::Digest;
use runtime::{Stop, Tasks};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2};
use rustix::io::Errno;

use crate::image::Hashing;

/// Most bytes of a file that is kept in memory.
const MAX_KEPT_FILE: u64 = 128 * 1024;
/// Most bytes of all files in memory.
const MAX_KEPT: u64 = 8 << 20;
/// Most files that are remembered.
const MAX_REMEMBERED: usize = 4_096;

/// A directory to serve.
#[derive(Debug)]
pub struct Site {
    dir: OwnedFd,
    pub(super) spa: bool,
    known: Mutex<Known>,
    tasks: Tasks,
}

#[derive(Debug, Default)]
struct Known {
    files: HashMap<String, Remembered>,
    bytes: u64,
}

#[derive(Debug, Clone)]
struct Remembered {
    identity: Identity,
    tag: String,
    bytes: Option<Bytes>,
}

/// What changes when a file changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity([i128; 5]);

impl Identity {
    fn of(stat: &Stat) -> Self {
        let time = |seconds: i64, nanoseconds: i128| i128::from(seconds) << 32 | nanoseconds;
        Self([
            i128::from(stat.st_dev),
            i128::from(stat.st_ino),
            i128::from(stat.st_size),
            time(stat.st_mtime, stat.st_mtime_nsec.into()),
            time(stat.st_ctime, stat.st_ctime_nsec.into()),
        ])
    }
}

/// A file that was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) size: u64,
    /// The entity tag, with its quotes.
    pub(super) tag: String,
    pub(super) content: Content,
}

/// Where the bytes of a file are.
#[derive(Debug)]
pub(super) enum Content {
    Memory(Bytes),
    Disk(File),
}

/// What a path leads to.
#[derive(Debug)]
pub(super) enum Target {
    File(Found),
    Directory,
    Nothing,
}

impl Site {
    /// The site in `dir`. With `spa`, unknown paths show its `index.html`.
    pub fn open(dir: &Path, spa: bool) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let wrong = |error: Errno| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("{}: {error}", dir.display()))
        };
        let dir = rustix::fs::open(dir, flags, Mode::empty()).map_err(wrong)?;
        let tasks = Tasks::new(Stop::new());
        Ok(Self { dir, spa, known: Mutex::default(), tasks })
    }

    /// What `path`, relative and without `..`, leads to.
    pub(super) async fn find(&self, path: &str) -> io::Result<Target> {
        let file = match beneath(&self.dir, path) {
            Ok(file) => file,
            Err(
                Errno::NOENT
                | Errno::NOTDIR
                | Errno::XDEV
                | Errno::LOOP
                | Errno::ACCESS
                | Errno::NAMETOOLONG
                | Errno::INVAL
                | Errno::NXIO,
            ) => return Ok(Target::Nothing),
            Err(error) => return Err(error.into()),
        };
        let stat = fstat(&file)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Ok(Target::Directory),
            FileType::RegularFile => {}
            FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => return Ok(Target::Nothing),
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let identity = Identity::of(&stat);
        let remembered = match self.remembered(path, identity) {
            Some(remembered) => remembered,
            None => self.remember(path, identity, File::from(file.try_clone()?), size).await?,
        };
        let content = match remembered.bytes {
            Some(bytes) => Content::Memory(bytes),
            None => Content::Disk(File::from(file)),
        };
        Ok(Target::File(Found { size, tag: remembered.tag, content }))
    }

    fn remembered(&self, path: &str, identity: Identity) -> Option<Remembered> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.files.get(path).filter(|file| file.identity == identity).cloned()
    }

    async fn remember(
        &self,
        path: &str,
        identity: Identity,
        mut file: File,
        size: u64,
    ) -> io::Result<Remembered> {
        let (digest, bytes) = if size <= MAX_KEPT_FILE {
            let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
            (&mut file).take(size).read_to_end(&mut bytes)?;
            (Digest::of(&bytes), Some(Bytes::from(bytes)))
        } else {
            (self.tasks.blocking(move || digest(file)).await?, None)
        };
        let short: String = digest.hex().chars().take(32).collect();
        let remembered = Remembered { identity, tag: format!("\"{short}\""), bytes };
        let kept = remembered.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.files.len() >= MAX_REMEMBERED || known.bytes + kept > MAX_KEPT {
            *known = Known::default();
        }
        known.bytes += kept;
        known.files.insert(path.to_owned(), remembered.clone());
        Ok(remembered)
    }
}

fn digest(file: File) -> io::Result<Digest> {
    let mut hashing = Hashing::new(file);
    io::copy(&mut hashing, &mut io::sink())?;
    Ok(hashing.finish().1)
}

/// Opens what is at `path` below `dir`. Symbolic links are followed only inside.
fn beneath(dir: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let path = if path.is_empty() { "." } else { path };
    match openat2(dir, path, flags, Mode::empty(), ResolveFlags::BENEATH) {
        // Old kernels and some sandboxes lack it: then no link is followed at all.
        Err(Errno::NOSYS | Errno::PERM) => {}
        found => return found,
    }
    let mut at = openat(dir, ".", flags, Mode::empty())?;
    for name in path.split('/') {
        at = openat(&at, name, flags | OFlags::NOFOLLOW, Mode::empty())?;
    }
    Ok(at)
}
