//! A blob being read, and verified on the way.

use std::fmt::{Debug, Formatter};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncRead, BufReader, ReadBuf};

use super::{BlobError, Blobs, CHUNK_BYTES, Digest};

/// The bytes of one blob.
///
/// The last bytes are handed out only when all of them fit the digest; otherwise the read fails
/// with [`BlobError::Damaged`] inside the [`io::Error`] and the blob is moved into quarantine. So
/// whoever got `len` bytes got the right ones.
pub struct BlobReader {
    blobs: Blobs,
    digest: Digest,
    file: BufReader<File>,
    hasher: Sha256,
    len: u64,
    seen: u64,
    verified: bool,
}

impl Debug for BlobReader {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobReader")
            .field("digest", &hex::encode(self.digest))
            .field("len", &self.len)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

impl BlobReader {
    pub(super) fn new(blobs: Blobs, digest: Digest, file: File, len: u64) -> Self {
        let (hasher, file) = (Sha256::new(), BufReader::with_capacity(CHUNK_BYTES, file));
        Self { blobs, digest, file, hasher, len, seen: 0, verified: false }
    }

    /// How many bytes it has.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The digest all bytes must have.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Called once every byte was seen, or when there are fewer than there should be.
    fn verify(&mut self) -> io::Result<()> {
        let found: Digest = std::mem::take(&mut self.hasher).finalize().into();
        self.verified = self.seen == self.len && found == self.digest;
        if self.verified {
            return Ok(());
        }
        let error = self.blobs.quarantine(self.digest);
        Err(io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

impl AsyncRead for BlobReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.verified || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        if this.seen < this.len {
            ready!(Pin::new(&mut this.file).poll_read(cx, buf))?;
        }
        let fresh = &buf.filled()[before..];
        this.seen += fresh.len() as u64;
        this.hasher.update(fresh);
        if fresh.is_empty() || this.seen >= this.len {
            let verified = this.verify();
            if verified.is_err() {
                buf.set_filled(before);
            }
            return Poll::Ready(verified);
        }
        Poll::Ready(Ok(()))
    }
}

/// The reason inside a failed read.
pub(super) fn told(error: io::Error, path: &Path) -> BlobError {
    let plain = BlobError::io("read", path, &error);
    error.downcast::<BlobError>().unwrap_or(plain)
}
