//! Blobs of the server as byte streams.

use std::io::{self, Read};
use std::pin::Pin;

use api::Client;
use bytes::Bytes;
use drivers::Input;
use flate2::read::MultiGzDecoder;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _};
use model::Digest;
use runtime::{Backoff, Random, Tasks};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::error::Failure;
use crate::limits::{FETCH_ATTEMPTS, RECONNECT};

/// Pieces of an archive that wait to be unpacked.
const PIECES: usize = 8;
/// How large one piece is.
const PIECE_BYTES: usize = 64 << 10;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

type Pieces = BoxStream<'static, io::Result<Bytes>>;

/// Reads a blob; bytes that are not what the digest names are an error at the end.
pub(crate) async fn read(client: &Client, digest: Digest) -> Result<Input, Failure> {
    let stream = client.get_blob(digest).await?;
    Ok(Box::pin(StreamReader::new(verified(stream, digest))))
}

struct Verify<S> {
    stream: Pin<Box<S>>,
    hash: Sha256,
}

fn verified<S>(stream: S, digest: Digest) -> Pieces
where
    S: Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    let state = Verify { stream: Box::pin(stream), hash: Sha256::new() };
    let next = move |state: Option<Verify<S>>| async move {
        let mut state = state?;
        match state.stream.next().await {
            Some(Ok(piece)) => {
                state.hash.update(&piece);
                Some((Ok(piece), Some(state)))
            }
            Some(Err(error)) => Some((Err(error), None)),
            None if state.hash.finalize().as_slice() == digest.0 => None,
            None => Some((Err(io::Error::other(format!("blob {digest} is damaged"))), None)),
        }
    };
    futures_util::stream::unfold(Some(state), next).boxed()
}

/// Reads a small blob whole.
pub(crate) async fn read_whole(
    client: &Client,
    digest: Digest,
    limit: usize,
) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let blob = read(client, digest).await?;
    let read = blob.take(limit as u64 + 1).read_to_end(&mut bytes).await;
    read.map_err(broken)?;
    if bytes.len() > limit {
        return Err(Failure::new(format!("{digest} is larger than {limit} bytes")));
    }
    Ok(bytes)
}

/// A stream that broke may be whole the next time.
pub(crate) fn broken(error: io::Error) -> Failure {
    Failure { transient: true, ..Failure::from(error) }
}

/// Tries again what may work later.
pub(crate) async fn retry<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let random = Random::system();
    let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
    let mut left = FETCH_ATTEMPTS;
    loop {
        left -= 1;
        match attempt().await {
            Err(failure) if failure.transient && left > 0 => {
                runtime::sleep(backoff.next_delay(&random)).await;
            }
            other => return other,
        }
    }
}

/// Decompresses what begins as gzip does; everything else stays as it is. For blocking code.
fn plain(input: Input) -> io::Result<Box<dyn Read + Send>> {
    let mut input = SyncIoBridge::new(input);
    let mut head = [0; 2];
    let mut have = 0;
    while have < head.len() {
        let read = input.read(head.get_mut(have..).unwrap_or_default())?;
        if read == 0 {
            break;
        }
        have += read;
    }
    let start = Read::take(io::Cursor::new(head), have as u64);
    let whole = io::BufReader::with_capacity(PIECE_BYTES, start.chain(input));
    Ok(if head == GZIP_MAGIC { Box::new(MultiGzDecoder::new(whole)) } else { Box::new(whole) })
}

/// The same for a driver, which reads asynchronously.
pub(crate) fn plain_stream(input: Input, tasks: &Tasks) -> Input {
    let (sender, receiver) = mpsc::channel(PIECES);
    let owner = tasks.clone();
    tasks.spawn_ok("decompress", async move {
        owner.blocking(move || decompress(input, &sender)).await;
    });
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let piece: io::Result<Bytes> = receiver.recv().await?;
        Some((piece, receiver))
    });
    Box::pin(StreamReader::new(pieces.boxed()))
}

fn decompress(input: Input, sender: &mpsc::Sender<io::Result<Bytes>>) {
    let copy = || {
        let mut plain = plain(input)?;
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let read = plain.read(&mut piece)?;
            piece.truncate(read);
            if read == 0 || sender.blocking_send(Ok(piece.into())).is_err() {
                return Ok(());
            }
        }
    };
    if let Err(error) = copy() {
        // Nobody minds when the reader went away first.
        drop(sender.blocking_send(Err(error)));
    }
}
