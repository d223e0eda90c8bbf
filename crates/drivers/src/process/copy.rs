//! Tar streams into and out of a container's root.

use std::io::{self, Write};
use std::os::fd::{AsFd as _, OwnedFd};

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::Inner;
use crate::archive::{self, Limits, Summary};
use crate::driver::Input;
use crate::error::{DriverError, Result};
use crate::spec::Handle;

/// How many pieces of an archive wait for a slow reader.
const PIECES: usize = 8;
/// How large one piece is.
const PIECE_BYTES: usize = 64 << 10;

impl Inner {
    pub(super) async fn copy_in(
        &self,
        handle: &Handle,
        path: &str,
        tar: Input,
        limits: Limits,
    ) -> Result<Summary> {
        let root = self.open_root(handle)?;
        let dir = archive::open_below(root.as_fd(), path, true)?;
        let tar = SyncIoBridge::new(tar);
        self.tasks.blocking(move || archive::unpack(tar, dir.as_fd(), limits)).await
    }

    pub(super) fn copy_out(&self, handle: &Handle, path: &str) -> Result<Input> {
        let root = self.open_root(handle)?;
        let source = archive::Source::open(root.as_fd(), path)?;
        let (sender, receiver) = mpsc::channel(PIECES);
        let tasks = self.tasks.clone();
        self.tasks.spawn_ok("copy out", async move {
            tasks
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

    fn open_root(&self, handle: &Handle) -> Result<OwnedFd> {
        let root = archive::open_root(&self.dirs.root(handle));
        root.map_err(|error| match error {
            DriverError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                DriverError::NotFound { what: "container", name: handle.to_string() }
            }
            other => other,
        })
    }
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
