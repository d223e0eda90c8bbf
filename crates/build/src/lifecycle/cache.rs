//! Layer blobs of earlier builds of the same app.
//!
//! `index.json` says which blob a layer's key gave. It is only a memory: whatever is missing or
//! damaged is made again, and every blob is checked before it is used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use model::Digest;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::buildpack::Cached;
use crate::error::if_there;
use crate::image::{Blob, Hashing};

/// The cache in one directory.
#[derive(Debug)]
pub(crate) struct LayerCache {
    dir: PathBuf,
    index: Index,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Index {
    /// Blobs by the digest of what is in them.
    blobs: BTreeMap<Digest, Entry>,
    /// What keyed layers gave last.
    layers: BTreeMap<String, Keyed>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    digest: Digest,
    size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Keyed {
    key: String,
    diff_id: Digest,
}

impl LayerCache {
    /// The cache in `dir`; empty when there is none or it cannot be read.
    pub(crate) fn open(dir: &Path) -> Self {
        let index = std::fs::read(dir.join("index.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self { dir: dir.to_owned(), index }
    }

    /// Waits until no other build uses the cache in `dir`, and keeps others waiting for as long
    /// as the file that comes back is open. `waiting` is called when there is another.
    pub(crate) fn lock(dir: &Path, waiting: impl FnOnce() -> io::Result<()>) -> io::Result<File> {
        std::fs::create_dir_all(dir)?;
        let file = File::create(dir.join("lock"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                waiting()?;
                flock(&file, FlockOperation::LockExclusive)?;
            }
            locked => locked?,
        }
        Ok(file)
    }

    /// What the layer gave when it was made with this key, if its blob is there and sound.
    pub(crate) fn find(&self, layer: &str, key: &str) -> Option<Cached> {
        let keyed = self.index.layers.get(layer).filter(|keyed| keyed.key == key)?;
        let entry = self.index.blobs.get(&keyed.diff_id)?;
        self.sound(entry).then_some(Cached { diff_id: keyed.diff_id })
    }

    /// Whether a blob with this content might be there.
    pub(crate) fn has(&self, diff_id: &Digest) -> bool {
        self.index.blobs.contains_key(diff_id)
    }

    /// Whether there is anything at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.index.blobs.is_empty()
    }

    /// Puts the blob with this content into `blobs`; false when it is gone or damaged.
    pub(crate) fn take(&self, diff_id: &Digest, blobs: &Path) -> io::Result<Option<Blob>> {
        let Some(entry) = self.index.blobs.get(diff_id).filter(|entry| self.sound(entry)) else {
            return Ok(None);
        };
        place(&self.blob(&entry.digest), &blobs.join(entry.digest.hex()))?;
        Ok(Some(Blob { digest: entry.digest, size: entry.size, diff_id: *diff_id }))
    }

    /// The bytes of the blob with this content.
    pub(crate) fn read(&self, diff_id: &Digest) -> io::Result<File> {
        let entry = self.index.blobs.get(diff_id);
        File::open(self.blob(&entry.ok_or(io::ErrorKind::NotFound)?.digest))
    }

    /// Keeps a blob of `blobs`.
    pub(crate) fn keep(&mut self, blob: &Blob, blobs: &Path) -> io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let kept = self.blob(&blob.digest);
        // What is there already may be damaged: it was not used.
        if_there(std::fs::remove_file(&kept))?;
        place(&blobs.join(blob.digest.hex()), &kept)?;
        self.index.blobs.insert(blob.diff_id, Entry { digest: blob.digest, size: blob.size });
        Ok(())
    }

    /// Remembers what a keyed layer gave.
    pub(crate) fn remember(&mut self, layer: String, key: String, diff_id: Digest) {
        self.index.layers.insert(layer, Keyed { key, diff_id });
    }

    /// Forgets every blob that is not one of `used`, and writes the index if that or anything
    /// since `before` changed it.
    pub(crate) fn save(&mut self, used: &BTreeSet<Digest>) -> io::Result<()> {
        let before = Self::open(&self.dir).index;
        self.index.blobs.retain(|diff_id, _| used.contains(diff_id));
        self.index.layers.retain(|_, keyed| used.contains(&keyed.diff_id));
        if before == self.index {
            return Ok(());
        }
        std::fs::create_dir_all(&self.dir)?;
        let temporary = self.dir.join(".index.json");
        std::fs::write(&temporary, serde_json::to_vec(&self.index)?)?;
        std::fs::rename(temporary, self.dir.join("index.json"))?;
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let kept =
                self.index.blobs.values().any(|blob| name.to_str() == Some(&blob.digest.hex()));
            if !kept && name != "index.json" {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    fn sound(&self, entry: &Entry) -> bool {
        let hash = || -> io::Result<Digest> {
            let mut file = Hashing::new(File::open(self.blob(&entry.digest))?);
            io::copy(&mut file, &mut io::sink())?;
            Ok(file.finish().1)
        };
        hash().is_ok_and(|found| found == entry.digest)
    }
}

/// A second name for the file, or a copy of it on another file system.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(_) => std::fs::copy(from, to).map(|_| ()),
        Ok(()) => Ok(()),
    }
}
