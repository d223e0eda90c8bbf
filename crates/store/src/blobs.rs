//! Bytes under the SHA-256 of their content, in one directory.
//!
//! ```text
//! sha256/ab/abcdef…   whole blobs, each named by its digest
//! tmp/                blobs being received; emptied at every start
//! quarantine/         blobs whose bytes no longer fit their name
//! lock                held by the process that owns the directory
//! ```
//!
//! A blob is received into `tmp`, synced, and renamed, so a name in `sha256` always stands for all
//! of its bytes. Reading hashes again: damaged content never reaches the end of a read.

use std::fmt::{Debug, Formatter};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use tokio::fs;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::error::{StoreError, if_there, is_full};
use crate::lock::Lock;

mod reader;
mod upload;

pub use reader::BlobReader;
pub use upload::Upload;

/// The SHA-256 of a blob.
pub type Digest = [u8; 32];

/// The largest blob taken unless told otherwise.
pub const MAX_BLOB_BYTES: u64 = 2 << 30;
/// The free space left to everybody else unless told otherwise.
pub const MIN_FREE_BYTES: u64 = 256 << 20;
/// How much is read from a source or written to the disk at once.
const CHUNK_BYTES: usize = 256 << 10;

/// What a blob directory takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobLimits {
    /// Larger blobs are refused.
    pub max_blob_bytes: u64,
    /// Nothing is taken while less than this is free on the disk.
    pub min_free_bytes: u64,
}

impl Default for BlobLimits {
    fn default() -> Self {
        Self { max_blob_bytes: MAX_BLOB_BYTES, min_free_bytes: MIN_FREE_BYTES }
    }
}

/// A blob that was taken and is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub len: u64,
}

/// A blob as a listing shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub len: u64,
    /// When it was last put, in milliseconds since the Unix epoch.
    pub stored_ms: u64,
}

/// Why a blob was not taken or handed out. Nothing of a refused put is kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// It has more bytes than a blob may have.
    #[error("the blob is larger than {limit} bytes")]
    TooLarge {
        /// How many it may have.
        limit: u64,
    },
    /// The disk has less free space than must be left.
    #[error("the disk has only {free} bytes free, of which {floor} must stay free")]
    LowSpace {
        /// Free bytes.
        free: u64,
        /// How many must stay free.
        floor: u64,
    },
    /// The disk is full.
    #[error("cannot {attempt} {}: the disk is full ({detail})", path.display())]
    Full {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// The content is not what was announced.
    #[error(
        "the content has the digest {}, announced was {}",
        hex::encode(found),
        hex::encode(expected)
    )]
    Mismatch {
        /// What was announced.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// There is no such blob.
    #[error("there is no blob {}", hex::encode(digest))]
    Missing {
        /// Which one.
        digest: Digest,
    },
    /// The bytes on the disk no longer fit their name; they were moved out of the way.
    #[error("blob {} is damaged; its bytes were moved to {}", hex::encode(digest), moved_to.display())]
    Damaged {
        /// Which one.
        digest: Digest,
        /// Where they are now.
        moved_to: PathBuf,
    },
    /// The source of a put failed before its end.
    #[error("the content ended early: {detail}")]
    Source {
        /// What it said.
        detail: String,
    },
    /// The operating system refused.
    #[error("cannot {attempt} {}: {detail}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// What it said.
        detail: String,
    },
}

impl BlobError {
    /// What a person can do about it.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => {
                "make it smaller (.shoreignore leaves files of a source out), or raise the limit: \
                 `shore server --max-blob-mb`"
            }
            Self::LowSpace { .. } | Self::Full { .. } => {
                "free space on the server's disk or enlarge it, then try again"
            }
            Self::Mismatch { .. } | Self::Source { .. } => "send it again",
            Self::Missing { .. } => "it was never stored, or it was collected: store it again",
            Self::Damaged { .. } => "check the disk, then store it again from its origin",
            Self::Io { .. } => "check the disk, its mount and the permissions of the directory",
        }
    }

    fn io(attempt: &'static str, path: &Path, error: &std::io::Error) -> Self {
        let (path, detail) = (path.to_owned(), error.to_string());
        if is_full(error) {
            return Self::Full { attempt, path, detail };
        }
        Self::Io { attempt, path, detail }
    }
}

/// A directory of blobs. Cheap to clone; all clones are the same directory.
#[derive(Clone)]
pub struct Blobs {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    limits: BlobLimits,
    uploads: AtomicU64,
    _lock: Lock,
}

impl Debug for Blobs {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blobs").field("dir", &self.inner.dir).finish_non_exhaustive()
    }
}

impl Blobs {
    /// Opens the directory, making it as needed, and removes what was half received. Blocks.
    pub fn open(dir: &Path, limits: BlobLimits) -> Result<Self, StoreError> {
        let fail = |error: &std::io::Error| StoreError::io("open", dir, error);
        std::fs::create_dir_all(dir).map_err(|error| fail(&error))?;
        let lock = Lock::take(dir, &dir.join("lock"))?;
        make_layout(dir).map_err(|error| fail(&error))?;
        let dir = dir.to_owned();
        let inner = Inner { dir, limits, uploads: AtomicU64::new(0), _lock: lock };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Takes everything `source` gives.
    pub async fn put(&self, source: impl AsyncRead + Send + Unpin) -> Result<Stored, BlobError> {
        self.receive(source).await?.finish().await
    }

    /// Takes everything `source` gives, if that is what `expected` names.
    pub async fn put_expected(
        &self,
        source: impl AsyncRead + Send + Unpin,
        expected: Digest,
    ) -> Result<Stored, BlobError> {
        self.receive(source).await?.finish_as(expected).await
    }

    /// Starts a blob whose bytes are pushed piece by piece.
    pub async fn begin(&self) -> Result<Upload, BlobError> {
        self.begin_announced(0).await
    }

    /// Starts a blob that is said to have `len` bytes. One that cannot be taken is refused at once.
    pub async fn begin_announced(&self, len: u64) -> Result<Upload, BlobError> {
        let limit = self.inner.limits.max_blob_bytes;
        if len > limit {
            return Err(BlobError::TooLarge { limit });
        }
        self.check_space(len)?;
        Upload::begin(self.clone()).await
    }

    async fn receive(
        &self,
        mut source: impl AsyncRead + Send + Unpin,
    ) -> Result<Upload, BlobError> {
        let mut upload = self.begin().await?;
        let mut chunk = vec![0_u8; CHUNK_BYTES];
        loop {
            let count = source
                .read(&mut chunk)
                .await
                .map_err(|error| BlobError::Source { detail: error.to_string() })?;
            if count == 0 {
                return Ok(upload);
            }
            upload.write(&chunk[..count]).await?;
        }
    }

    /// The length of a blob and its bytes, verified while they are read.
    pub async fn get(&self, digest: Digest) -> Result<BlobReader, BlobError> {
        let path = self.path(digest);
        let no_links = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let opened = fs::OpenOptions::new().read(true).custom_flags(no_links).open(&path).await;
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(self.absent(digest).await);
            }
            Err(error) => return Err(BlobError::io("read", &path, &error)),
        };
        let meta = file.metadata().await.map_err(|error| BlobError::io("read", &path, &error))?;
        Ok(BlobReader::new(self.clone(), digest, file, meta.len()))
    }

    /// All bytes of a blob of at most `limit` bytes, verified.
    pub async fn read(&self, digest: Digest, limit: u64) -> Result<Vec<u8>, BlobError> {
        let mut reader = self.get(digest).await?;
        if reader.len() > limit {
            return Err(BlobError::TooLarge { limit });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(reader.len()).unwrap_or(0));
        reader
            .read_to_end(&mut bytes)
            .await
            .map_err(|error| reader::told(error, &self.path(digest)))?;
        Ok(bytes)
    }

    /// The length of a blob, or `None` when there is no such blob.
    pub async fn len(&self, digest: Digest) -> Result<Option<u64>, BlobError> {
        let path = self.path(digest);
        match fs::symlink_metadata(&path).await {
            Ok(meta) => Ok(meta.is_file().then_some(meta.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(BlobError::io("look at", &path, &error)),
        }
    }

    /// Whether there is such a blob.
    pub async fn exists(&self, digest: Digest) -> Result<bool, BlobError> {
        Ok(self.len(digest).await?.is_some())
    }

    /// Removes a blob and whatever of it is in quarantine; false when there was nothing.
    ///
    /// Reads that are under way go on to their end.
    pub async fn delete(&self, digest: Digest) -> Result<bool, BlobError> {
        let mut removed = false;
        for path in [self.path(digest), self.quarantined(digest)] {
            match fs::remove_file(&path).await {
                Ok(()) => removed = true,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(BlobError::io("remove", &path, &error)),
            }
        }
        Ok(removed)
    }

    /// At most `limit` blobs with digests above `after`, in order of their digests.
    pub async fn list(
        &self,
        after: Option<Digest>,
        limit: usize,
    ) -> Result<Vec<Listed>, BlobError> {
        let mut found = Vec::new();
        let first = after.map_or(0, |digest| digest[0]);
        for shard in first..=u8::MAX {
            let mut names = self.shard(shard).await?;
            names.retain(|digest| after.is_none_or(|after| *digest > after));
            names.sort_unstable();
            for digest in names {
                if found.len() >= limit {
                    return Ok(found);
                }
                found.extend(self.listed(digest).await?);
            }
        }
        Ok(found)
    }

    async fn shard(&self, shard: u8) -> Result<Vec<Digest>, BlobError> {
        let dir = self.inner.dir.join("sha256").join(hex::encode([shard]));
        let fail = |error: std::io::Error| BlobError::io("list", &dir, &error);
        let mut entries = fs::read_dir(&dir).await.map_err(fail)?;
        let mut names = Vec::new();
        while let Some(entry) = entries.next_entry().await.map_err(fail)? {
            let mut digest = Digest::default();
            let known = entry
                .file_name()
                .to_str()
                .is_some_and(|name| hex::decode_to_slice(name, &mut digest).is_ok());
            // Names in other letter case or in the wrong place are not ours.
            if known && entry.path() == self.path(digest) {
                names.push(digest);
            }
        }
        Ok(names)
    }

    /// `None` when it was removed meanwhile.
    async fn listed(&self, digest: Digest) -> Result<Option<Listed>, BlobError> {
        let path = self.path(digest);
        let meta = match fs::symlink_metadata(&path).await {
            Ok(meta) => meta,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(BlobError::io("look at", &path, &error)),
        };
        let stored = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let stored_ms =
            stored.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        Ok(Some(Listed { digest, len: meta.len(), stored_ms }))
    }

    async fn absent(&self, digest: Digest) -> BlobError {
        let moved_to = self.quarantined(digest);
        if fs::symlink_metadata(&moved_to).await.is_ok() {
            return BlobError::Damaged { digest, moved_to };
        }
        BlobError::Missing { digest }
    }

    /// Moves a blob that does not fit its name out of the way.
    fn quarantine(&self, digest: Digest) -> BlobError {
        let (path, moved_to) = (self.path(digest), self.quarantined(digest));
        if let Err(error) = std::fs::rename(&path, &moved_to)
            && error.kind() != ErrorKind::NotFound
        {
            return BlobError::io("quarantine", &path, &error);
        }
        tracing::error!(blob = hex::encode(digest), moved_to = %moved_to.display(), "damaged");
        BlobError::Damaged { digest, moved_to }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        let name = hex::encode(digest);
        self.inner.dir.join("sha256").join(hex::encode([digest[0]])).join(name)
    }

    fn quarantined(&self, digest: Digest) -> PathBuf {
        self.inner.dir.join("quarantine").join(hex::encode(digest))
    }

    fn fresh_temp(&self) -> PathBuf {
        let number = self.inner.uploads.fetch_add(1, Ordering::Relaxed);
        self.inner.dir.join("tmp").join(number.to_string())
    }

    /// Refuses when less than the floor would be left after `more` bytes.
    fn check_space(&self, more: u64) -> Result<(), BlobError> {
        let dir = &self.inner.dir;
        let disk = rustix::fs::statvfs(dir)
            .map_err(|error| BlobError::io("look at", dir, &error.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let floor = self.inner.limits.min_free_bytes;
        if free.saturating_sub(more) < floor {
            Err(BlobError::LowSpace { free, floor })
        } else {
            Ok(())
        }
    }
}

fn make_layout(dir: &Path) -> std::io::Result<()> {
    let temp = dir.join("tmp");
    if_there(std::fs::remove_dir_all(&temp))?;
    std::fs::create_dir(&temp)?;
    std::fs::create_dir_all(dir.join("quarantine"))?;
    let shards = dir.join("sha256");
    for shard in 0..=u8::MAX {
        std::fs::create_dir_all(shards.join(hex::encode([shard])))?;
    }
    std::fs::File::open(&shards)?.sync_all()?;
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart() {
        let full = std::io::Error::from_raw_os_error(28);
        let error = BlobError::io("write", Path::new("/blobs/tmp/0"), &full);
        assert!(matches!(error, BlobError::Full { .. }), "{error}");
        let other = std::io::Error::from_raw_os_error(5);
        let error = BlobError::io("write", Path::new("/blobs/tmp/0"), &other);
        assert!(matches!(error, BlobError::Io { .. }), "{error}");
    }
}
