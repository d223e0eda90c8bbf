//! A blob being received.

use std::fmt::{Debug, Formatter};
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};
use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt as _;

use super::{BlobError, Blobs, CHUNK_BYTES, Digest, Stored};

/// How often the free space is looked at while a blob comes in.
const SPACE_CHECK_BYTES: u64 = 16 << 20;

/// Takes the bytes of one blob. Dropped before it is finished, it leaves nothing behind.
pub struct Upload {
    blobs: Blobs,
    temp: Temp,
    file: File,
    hasher: Sha256,
    waiting: Vec<u8>,
    len: u64,
    check_at: u64,
}

/// Removes its file when it is dropped; after a rename there is nothing to remove.
struct Temp(PathBuf);

impl Drop for Temp {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "a half received blob stays");
        }
    }
}

impl Debug for Upload {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload")
            .field("temp", &self.temp.0)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Upload {
    pub(super) async fn begin(blobs: Blobs) -> Result<Self, BlobError> {
        let path = blobs.fresh_temp();
        let file = File::create_new(&path)
            .await
            .map_err(|error| BlobError::io("create", &path, &error))?;
        Ok(Self {
            blobs,
            temp: Temp(path),
            file,
            hasher: Sha256::new(),
            waiting: Vec::with_capacity(CHUNK_BYTES),
            len: 0,
            check_at: SPACE_CHECK_BYTES,
        })
    }

    /// How many bytes came so far.
    pub const fn received(&self) -> u64 {
        self.len
    }

    /// Takes the next bytes.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let limit = self.blobs.inner.limits.max_blob_bytes;
        self.len = self.len.saturating_add(bytes.len() as u64);
        if self.len > limit {
            return Err(BlobError::TooLarge { limit });
        }
        if self.len >= self.check_at {
            self.check_at = self.len.saturating_add(SPACE_CHECK_BYTES);
            self.blobs.check_space(0)?;
        }
        for piece in bytes.chunks(CHUNK_BYTES) {
            self.hasher.update(piece);
            self.waiting.extend_from_slice(piece);
            if self.waiting.len() >= CHUNK_BYTES {
                self.drain().await?;
            }
        }
        Ok(())
    }

    async fn drain(&mut self) -> Result<(), BlobError> {
        let written = self.file.write_all(&self.waiting).await;
        self.waiting.clear();
        written.map_err(|error| BlobError::io("write", &self.temp.0, &error))
    }

    /// Keeps the blob under its digest; durable when it returns.
    pub async fn finish(self) -> Result<Stored, BlobError> {
        let digest = self.hasher.clone().finalize().into();
        self.keep(digest).await
    }

    /// Keeps the blob if its content is what `expected` names; durable when it returns.
    pub async fn finish_as(self, expected: Digest) -> Result<Stored, BlobError> {
        let found = self.hasher.clone().finalize().into();
        if found != expected {
            return Err(BlobError::Mismatch { expected, found });
        }
        self.keep(found).await
    }

    /// The rename also replaces a damaged blob of the same name, and refreshes its age.
    async fn keep(mut self, digest: Digest) -> Result<Stored, BlobError> {
        self.drain().await?;
        let path = self.blobs.path(digest);
        let fail = |error: &std::io::Error| BlobError::io("store", &path, error);
        self.file.flush().await.map_err(|error| fail(&error))?;
        self.file.sync_data().await.map_err(|error| fail(&error))?;
        fs::rename(&self.temp.0, &path).await.map_err(|error| fail(&error))?;
        if let Some(shard) = path.parent() {
            let shard = File::open(shard).await.map_err(|error| fail(&error))?;
            shard.sync_all().await.map_err(|error| fail(&error))?;
        }
        drop(fs::remove_file(self.blobs.quarantined(digest)).await);
        Ok(Stored { digest, len: self.len })
    }
}
