//! Tar streams into and out of a container.

use std::io::{self, Write};
use std::os::fd::{AsFd as _, OwnedFd};

use bytes::Bytes;
use futures_util::stream;
use runtime::Tasks;
use rustix::thread::{CapabilitySet, CapabilitySets};
use tokio::sync::{mpsc, oneshot};
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::archive::{self, Limits, Rights, Summary};
use crate::driver::Input;
use crate::error::{Context as _, DriverError, Result};
use crate::spec::User;

/// How many pieces of an archive wait for a slow reader.
const PIECES: usize = 8;
/// How large one piece is.
const PIECE_BYTES: usize = 64 << 10;

/// Packs what is at `path` below `root` on the blocking pool while the result is read.
pub(crate) async fn stream_out(
    tasks: &Tasks,
    root: OwnedFd,
    path: &str,
    rights: Rights,
) -> Result<Input> {
    let path = path.to_owned();
    let open = move || archive::Source::open(root.as_fd(), &path, rights);
    let source = tasks.blocking(open).await?;
    let (sender, receiver) = mpsc::channel(PIECES);
    let worker = tasks.clone();
    tasks.spawn_ok("copy out", async move {
        worker
            .blocking(move || {
                let pieces = Pieces { sender: sender.clone(), pending: Vec::new() };
                if let Err(error) = source.pack_into(pieces) {
                    // Nobody minds when the reader went away first.
                    drop(sender.blocking_send(Err(error)));
                }
            })
            .await;
    });
    let pieces = stream::unfold(receiver, |mut receiver: mpsc::Receiver<_>| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    Ok(Box::pin(StreamReader::new(Box::pin(pieces))))
}

/// Sends what is written to the reader of the archive.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    pending: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.pending));
        self.sender
            .blocking_send(Ok(piece))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the reader went away"))
    }
}

/// Unpacks a tar stream below `path` of a container's root. What it makes belongs to `owner`, a user
/// of the machine; what is there keeps its owner.
pub(crate) async fn unpack_as(
    owner: User,
    root: OwnedFd,
    path: &str,
    (tar, limits): (Input, Limits),
) -> Result<Summary> {
    let tar = SyncIoBridge::new(tar);
    let path = path.to_owned();
    let (sender, receiver) = oneshot::channel();
    // A thread of its own, for it acts as somebody else and nothing else may.
    let work = move || {
        let unpacked = act_as(owner)
            .context(|| format!("act as user {} of the machine", owner.uid))
            .and_then(|()| archive::open_below(root.as_fd(), &path, true))
            .and_then(|dir| archive::unpack(tar, dir.as_fd(), limits));
        // Nobody minds when who asked went away.
        drop(sender.send(unpacked));
    };
    let thread = runtime::spawn_thread("copy in", work);
    thread.context(|| "start a thread".to_owned())?;
    receiver.await.unwrap_or_else(|_| {
        Err(DriverError::io("copy in", io::Error::other("the thread ended early")))
    })
}

/// Makes this thread, and only it, a user of the machine that may write to all files: what it makes
/// belongs to that user from the beginning.
#[expect(unsafe_code, reason = "the library's way changes all threads of the process")]
fn act_as(owner: User) -> io::Result<()> {
    if owner == User::ROOT {
        return Ok(());
    }
    let capabilities = rustix::thread::capabilities(None)?;
    // SAFETY: system calls that change this thread's credentials and touch no memory.
    let now = unsafe {
        libc::syscall(libc::SYS_setfsgid, owner.gid);
        libc::syscall(libc::SYS_setfsuid, owner.uid);
        // It never fails but says who it was before; this asks without changing anything.
        (libc::syscall(libc::SYS_setfsgid, -1), libc::syscall(libc::SYS_setfsuid, -1))
    };
    if now != (owner.gid.into(), owner.uid.into()) {
        return Err(io::Error::other("the kernel refuses"));
    }
    // The kernel took these away with user 0. Only what reads and writes the container's files.
    let files = CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER | CapabilitySet::CHOWN;
    let effective = capabilities.effective.intersection(files);
    let sets = CapabilitySets { effective, ..capabilities };
    rustix::thread::set_capabilities(None, sets)?;
    Ok(())
}
