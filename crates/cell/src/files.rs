//! Single files and directories of a container, whether or not its driver shows them on this
//! machine.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use drivers::{Ability, Input, archive};
use rustix::fs::{Mode, OFlags, openat};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio_util::io::SyncIoBridge;

use crate::actor::Actor;
use crate::blob;
use crate::error::Failure;

const READ: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
const CREATE: OFlags = OFlags::WRONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::CREATE)
    .union(OFlags::TRUNC)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// Tar is written in blocks of this size.
const BLOCK: u64 = 512;
/// The most entries of an archive with one file, with those that say more about it.
const FILE_ENTRIES: u64 = 8;

/// A directory outside that holds something of a container as long as this lives.
#[derive(Debug)]
pub(crate) struct Outside {
    pub(crate) dir: OwnedFd,
    _copy: Option<TempDir>,
}

fn split(path: &str) -> Result<(&str, &str), Failure> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    if name.is_empty() {
        return Err(Failure::new(format!("{path} names no file")));
    }
    Ok((dir, name))
}

/// The container's root, where that is simply a directory of this machine.
fn root(actor: &Actor) -> Result<Option<OwnedFd>, Failure> {
    if actor.driver.capabilities().can(Ability::LayOut) {
        // The driver knows whose files they are to be.
        return Ok(None);
    }
    let path = actor.driver.host_path(&actor.handle, "/");
    Ok(path.map(|path| archive::open_root(&path)).transpose()?)
}

/// Makes a file of what `input` gives.
pub(crate) async fn put(actor: &Actor, path: &str, input: Input) -> Result<(), Failure> {
    let (dir, name) = split(path)?;
    let mut input = actor.shared.space.guard(input);
    if let Some(root) = root(actor)? {
        let dir = archive::open_below(root.as_fd(), dir, true)?;
        let mut file = tokio::fs::File::from_std(open(&dir, name, CREATE)?);
        tokio::io::copy(&mut input, &mut file).await.map_err(blob::broken)?;
        return Ok(file.flush().await?);
    }
    // A tar header says how large its file is, so the bytes are counted first.
    let spool = tempfile::tempfile_in(actor.shared.spool()?)?;
    let mut spool = tokio::fs::File::from_std(spool);
    let size = tokio::io::copy(&mut input, &mut spool).await.map_err(blob::broken)?;
    spool.flush().await?;
    spool.rewind().await?;
    let mut header = tar::Header::new_gnu();
    header.set_path(name).map_err(|_| Failure::new(format!("the name {name} is too long")))?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    let padding = BLOCK.wrapping_sub(size % BLOCK) % BLOCK + 2 * BLOCK;
    let head = io::Cursor::new(header.as_bytes().to_vec());
    let tar = head.chain(spool).chain(tokio::io::repeat(0).take(padding));
    let limits = archive::Limits::default();
    let dir = if dir.is_empty() { "/" } else { dir };
    actor.driver.copy_in(&actor.handle, dir, Box::pin(tar), limits).await?;
    Ok(())
}

/// Opens a file for reading.
pub(crate) async fn file(actor: &Actor, path: &str, most: u64) -> Result<(File, Outside), Failure> {
    let (dir, name) = split(path)?;
    let outside = match root(actor)? {
        Some(root) => {
            let dir = archive::open_below(root.as_fd(), dir, false)?;
            Outside { dir, _copy: None }
        }
        None => copy(actor, path, (most, FILE_ENTRIES)).await?,
    };
    let file = open(&outside.dir, name, READ)?;
    if file.metadata()?.len() > most {
        return Err(Failure::new(format!("it has more than {most} bytes")));
    }
    Ok((file, outside))
}

/// Opens a directory.
pub(crate) async fn directory(actor: &Actor, path: &str, most: u64) -> Result<Outside, Failure> {
    match root(actor)? {
        Some(root) => {
            let dir = archive::open_below(root.as_fd(), path, false)?;
            Ok(Outside { dir, _copy: None })
        }
        None => copy(actor, path, (most, archive::MAX_ENTRIES)).await,
    }
}

async fn copy(actor: &Actor, path: &str, (bytes, entries): (u64, u64)) -> Result<Outside, Failure> {
    let copy = tempfile::tempdir_in(actor.shared.spool()?)?;
    let dir = archive::open_root(copy.path())?;
    let tar = actor.shared.space.guard(actor.driver.copy_out(&actor.handle, path).await?);
    let below = dir.try_clone()?;
    let limits = archive::Limits { bytes, entries };
    let unpack = move || archive::unpack(SyncIoBridge::new(tar), below.as_fd(), limits);
    actor.shared.tasks.blocking(unpack).await?;
    Ok(Outside { dir, _copy: Some(copy) })
}

/// Opens a file without following symbolic links.
pub(crate) fn open_file(dir: &OwnedFd, name: &str) -> Result<File, Failure> {
    open(dir, name, READ)
}

fn open(dir: &OwnedFd, name: &str, flags: OFlags) -> Result<File, Failure> {
    let file = openat(dir, name, flags, Mode::from_raw_mode(0o644)).map_err(io::Error::from)?;
    let file = File::from(file);
    if file.metadata()?.is_file() { Ok(file) } else { Err(Failure::new("this is not a file")) }
}
