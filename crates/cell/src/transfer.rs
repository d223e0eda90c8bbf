//! Brings blobs into containers and takes files out of them into the blob store.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use drivers::{DriverError, archive};
use futures_util::{StreamExt as _, TryStreamExt as _};
use model::{Digest, UploadMode};
use rustix::fs::{Dir, FileType, Mode, OFlags, openat};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use crate::actor::Actor;
use crate::blob;
use crate::error::Failure;
use crate::limits::MAX_UPLOADS;

/// Bytes sent at once.
const PIECE_BYTES: usize = 64 << 10;
const READ: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
const CREATE: OFlags = OFlags::WRONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::CREATE)
    .union(OFlags::TRUNC)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Puts a blob into the container: as a file, or unpacked below a directory.
pub(crate) async fn download(
    actor: &Actor,
    digest: Digest,
    (to, unpack): (&str, bool),
) -> Result<(), Failure> {
    let _permit = actor.shared.downloads.acquire().await.map_err(Failure::new)?;
    blob::retry(|| async {
        let input = blob::read(&actor.shared.client, digest).await?;
        if unpack {
            let plain = blob::plain_stream(input, &actor.shared.tasks);
            let limits = archive::Limits::default();
            let unpacked = actor.driver.copy_in(&actor.handle, to, plain, limits).await;
            return unpacked.map(|_| ()).map_err(interrupted);
        }
        let mut input = input;
        let mut file = tokio::fs::File::from_std(open(actor, to, CREATE)?);
        tokio::io::copy(&mut input, &mut file).await.map_err(blob::broken)?;
        Ok(file.flush().await?)
    })
    .await
}

/// Reading may work the next time; an archive that breaks a rule always will.
fn interrupted(error: DriverError) -> Failure {
    let transient = matches!(error, DriverError::Io { .. });
    Failure { transient, ..Failure::from(error) }
}

/// Takes files out of the container.
pub(crate) async fn upload(actor: &Actor, from: &str, mode: UploadMode) -> Result<(), Failure> {
    match mode {
        UploadMode::Archive => Err(Failure::new("this cell uploads no archives")),
        UploadMode::File => {
            let file = open(actor, from, READ)?;
            send(actor, None, file).await
        }
        UploadMode::DigestNamed => {
            let dir = archive::open_below(root(actor)?.as_fd(), from, false)?;
            let names = digests(&dir)?;
            futures_util::stream::iter(names)
                .map(|name| send_named(actor, &dir, name))
                .buffer_unordered(MAX_UPLOADS)
                .try_collect::<()>()
                .await
        }
    }
}

async fn send_named(actor: &Actor, dir: &OwnedFd, digest: Digest) -> Result<(), Failure> {
    if blob::retry(|| async { Ok(actor.shared.client.has_blob(digest).await?) }).await? {
        return Ok(());
    }
    let file = openat(dir, digest.hex(), READ, Mode::empty()).map_err(io::Error::from)?;
    send(actor, Some(digest), regular(File::from(file))?).await
}

/// Sends a file; the server refuses it when it is not what `digest` names.
async fn send(actor: &Actor, digest: Option<Digest>, file: File) -> Result<(), Failure> {
    blob::retry(|| async {
        let mut file = file.try_clone()?;
        io::Seek::rewind(&mut file)?;
        let file = tokio::fs::File::from_std(file);
        let content = ReaderStream::with_capacity(file, PIECE_BYTES);
        actor.shared.client.put_blob(digest, content).await?;
        Ok(())
    })
    .await
}

fn root(actor: &Actor) -> Result<OwnedFd, Failure> {
    let path = actor.driver.host_path(&actor.handle, "/");
    let path = path.ok_or_else(|| Failure::new("this driver does not let files out"))?;
    Ok(archive::open_root(&path)?)
}

/// Opens a file of the container without following its symbolic links.
fn open(actor: &Actor, path: &str, flags: OFlags) -> Result<File, Failure> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    if name.is_empty() {
        return Err(Failure::new(format!("{path} names no file")));
    }
    let make = flags.contains(OFlags::CREATE);
    let dir = archive::open_below(root(actor)?.as_fd(), dir, make)?;
    let file = openat(&dir, name, flags, Mode::from_raw_mode(0o644)).map_err(io::Error::from)?;
    regular(File::from(file))
}

fn regular(file: File) -> Result<File, Failure> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(Failure::new("this is not a file")) }
}

/// A small text file of the container, for a task's result.
pub(crate) fn read_text(actor: &Actor, path: &str, limit: usize) -> Result<String, Failure> {
    use io::Read as _;
    let mut bytes = Vec::new();
    open(actor, path, READ)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(Failure::new(format!("it is larger than {limit} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| Failure::new("it is not text"))
}

/// The files of a directory, all of which must be named by a digest.
fn digests(dir: &OwnedFd) -> Result<Vec<Digest>, Failure> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(io::Error::from)? {
        let entry = entry.map_err(io::Error::from)?;
        let name = entry.file_name().to_string_lossy();
        if name == "." || name == ".." || entry.file_type() == FileType::Directory {
            continue;
        }
        let digest = format!("sha256:{name}").parse();
        names.push(digest.map_err(|_| Failure::new(format!("{name} is not named by a digest")))?);
    }
    Ok(names)
}
