//! Unpacked image layers, kept on disk for the next container.
//!
//! ```text
//! <dir>/<64 hex digits>/tree/    a layer's files, whiteouts and all
//! <dir>/<64 hex digits>/bytes    how large it is; its time says when it was last used
//! <dir>/.new-...                 what is being unpacked
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use api::Client;
use drivers::{Input, archive};
use model::Digest;
use runtime::{Random, Tasks};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
use tokio::sync::{OnceCell, Semaphore};

use crate::blob;
use crate::error::Failure;
use crate::tree;

const TREE: &str = "tree";
const BYTES: &str = "bytes";

/// The layers there are. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Layers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    limit: u64,
    tasks: Tasks,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    layers: BTreeMap<Digest, Entry>,
    /// Counts uses; the highest is the latest.
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    slot: Arc<Slot>,
    used: u64,
}

/// A layer, or the work of getting it. It stays on disk as long as somebody holds this.
#[derive(Debug, Default)]
pub(crate) struct Slot(OnceCell<Unpacked>);

#[derive(Debug)]
struct Unpacked {
    tree: PathBuf,
    bytes: u64,
}

impl Slot {
    /// The layer's files.
    pub(crate) fn tree(&self) -> Option<&Path> {
        self.0.get().map(|unpacked| unpacked.tree.as_path())
    }
}

impl Layers {
    /// Opens the directory, with what an earlier agent left there.
    pub(crate) fn open(dir: &Path, limit: u64, tasks: Tasks) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            match known(&path) {
                Some(layer) => found.push(layer),
                None => tree::remove(&path)?,
            }
        }
        found.sort_unstable_by_key(|(used, digest, _)| (*used, *digest));
        let mut table = Table::default();
        for (_, digest, unpacked) in found {
            table.uses += 1;
            let slot = Arc::new(Slot(OnceCell::new_with(Some(unpacked))));
            table.layers.insert(digest, Entry { slot, used: table.uses });
        }
        Ok(Self(Arc::new(Inner { dir: dir.to_owned(), limit, tasks, table: Mutex::new(table) })))
    }

    /// A layer, fetched when it is not here yet. Whoever asks for the same one shares the work.
    pub(crate) async fn get(
        &self,
        client: &Client,
        digest: Digest,
        downloads: &Semaphore,
    ) -> Result<Arc<Slot>, Failure> {
        let slot = self.0.slot(digest);
        let fetch = || async {
            let _permit = downloads.acquire().await.map_err(Failure::new)?;
            blob::retry(|| self.0.fetch(client, digest)).await
        };
        if let Err(failure) = slot.0.get_or_try_init(fetch).await {
            drop(slot);
            self.0.forget_failed();
            return Err(failure.within(format!("layer {digest}")));
        }
        self.0.touch(digest);
        self.0.evict().await;
        Ok(slot)
    }
}

fn known(path: &Path) -> Option<(SystemTime, Digest, Unpacked)> {
    let digest = format!("sha256:{}", path.file_name()?.to_str()?).parse().ok()?;
    let file = path.join(BYTES);
    let used = file.metadata().ok()?.modified().ok()?;
    let bytes = fs::read_to_string(file).ok()?.parse().ok()?;
    Some((used, digest, Unpacked { tree: path.join(TREE), bytes }))
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, digest: Digest) -> Arc<Slot> {
        let mut table = self.table();
        table.uses += 1;
        let used = table.uses;
        let entry =
            table.layers.entry(digest).or_insert_with(|| Entry { slot: Arc::default(), used });
        entry.used = used;
        Arc::clone(&entry.slot)
    }

    /// Remembers beyond a restart that a layer was used.
    fn touch(&self, digest: Digest) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let file = self.dir.join(digest.hex()).join(BYTES);
        if let Err(error) = utimensat(CWD, &file, &times, AtFlags::empty()) {
            tracing::debug!(file = %file.display(), %error, "the use of a layer is not recorded");
        }
    }

    async fn fetch(&self, client: &Client, digest: Digest) -> Result<Unpacked, Failure> {
        let input = blob::read(client, digest).await?;
        let at = self.dir.join(digest.hex());
        let draft = self.dir.join(format!(".new-{:016x}", Random::system().next_u64()));
        // This goes on to its end even if nobody waits for it any more.
        self.tasks
            .blocking(move || {
                let unpacked = unpack(input, &draft, &at);
                if unpacked.is_err() {
                    tree::remove(&draft)?;
                }
                unpacked
            })
            .await
    }

    fn forget_failed(&self) {
        let wanted =
            |entry: &Entry| entry.slot.0.initialized() || Arc::strong_count(&entry.slot) > 1;
        self.table().layers.retain(|_, entry| wanted(entry));
    }

    /// Removes the layers that were not used for longest while there is too much.
    async fn evict(&self) {
        for path in self.take_oldest() {
            if let Err(error) = self.tasks.blocking(move || tree::remove(&path)).await {
                tracing::warn!(%error, "an old image layer cannot be removed");
            }
        }
    }

    /// Moves old layers out of the way, so that they can be fetched again at once.
    fn take_oldest(&self) -> Vec<PathBuf> {
        let mut table = self.table();
        let bytes = |entry: &Entry| entry.slot.0.get().map_or(0, |unpacked| unpacked.bytes);
        let mut total: u64 = table.layers.values().map(bytes).sum();
        let mut removed = Vec::new();
        while total > self.limit {
            let idle = table.layers.iter().filter(|(_, entry)| {
                entry.slot.0.initialized() && Arc::strong_count(&entry.slot) == 1
            });
            let oldest = idle.min_by_key(|(_, entry)| entry.used).map(|(digest, _)| *digest);
            let Some(oldest) = oldest else { break };
            total -= table.layers.remove(&oldest).as_ref().map_or(0, bytes);
            let trash = self.dir.join(format!(".old-{:016x}", Random::system().next_u64()));
            match fs::rename(self.dir.join(oldest.hex()), &trash) {
                Ok(()) => removed.push(trash),
                Err(error) => tracing::warn!(%error, "an old image layer cannot be removed"),
            }
        }
        removed
    }
}

fn unpack(input: Input, draft: &Path, at: &Path) -> Result<Unpacked, Failure> {
    let tree = draft.join(TREE);
    fs::create_dir_all(&tree)?;
    let root = archive::open_root(&tree)?;
    let mut plain = blob::plain(input).map_err(blob::broken)?;
    let summary = archive::unpack(&mut plain, root.as_fd(), archive::Limits::default())
        .map_err(interrupted)?;
    // The digest is checked at the end of the stream.
    io::copy(&mut plain, &mut io::sink()).map_err(blob::broken)?;
    fs::write(draft.join(BYTES), summary.bytes.to_string())?;
    tree::remove(at)?;
    fs::rename(draft, at)?;
    Ok(Unpacked { tree: at.join(TREE), bytes: summary.bytes })
}

/// Reading may work the next time; an archive that breaks a rule always will.
fn interrupted(error: drivers::DriverError) -> Failure {
    let transient = matches!(error, drivers::DriverError::Io { .. });
    Failure { transient, ..Failure::from(error) }
}
