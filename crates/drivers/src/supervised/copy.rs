//! Tar streams out of a container.

use std::io::{self, Write};

use bytes::Bytes;
use futures_util::stream;
use runtime::Tasks;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use crate::archive;
use crate::driver::Input;

/// How many pieces of an archive wait for a slow reader.
const PIECES: usize = 8;
/// How large one piece is.
const PIECE_BYTES: usize = 64 << 10;

/// Packs `source` on the blocking pool while the result is read.
pub(crate) fn stream_out(tasks: &Tasks, source: archive::Source) -> Input {
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
    Box::pin(StreamReader::new(Box::pin(pieces)))
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
