//! Blobs of the server as byte streams.

use std::io;

use api::Client;
use bytes::Bytes;
use drivers::Input;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use model::{Checksum, ChecksumAlgorithm, Digest};
use runtime::{Backoff, Random};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::StreamReader;

use crate::checksum::verified;
use crate::error::Failure;
use crate::limits::{FETCH_ATTEMPTS, RECONNECT};

/// Bytes as they come.
pub(crate) type Pieces = BoxStream<'static, io::Result<Bytes>>;

/// Reads a blob; bytes that are not what the digest names are an error at the end.
pub(crate) async fn pieces(client: &Client, digest: Digest) -> Result<Pieces, Failure> {
    let stream = client.get_blob(digest).await?;
    let checksum = Checksum { algorithm: ChecksumAlgorithm::Sha256, value: digest.hex() };
    let damaged = move || io::Error::other(format!("blob {digest} is damaged"));
    Ok(verified(stream.boxed(), checksum, damaged))
}

/// The same for whoever reads.
pub(crate) async fn read(client: &Client, digest: Digest) -> Result<Input, Failure> {
    Ok(Box::pin(StreamReader::new(pieces(client, digest).await?)))
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
    let transient = error.kind() != io::ErrorKind::InvalidData;
    Failure { transient, ..Failure::from(error) }
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
