//! Unpacked image layers, kept on disk for the next container.
//!
//! Beside each layer's directory a file `<64 hex digits>.bytes` says how large it is; the time of
//! that file says when the layer was last used.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use api::Client;
use build::image::{ImageError, LayerStore, Limits};
use drivers::{disk_bytes, remove_tree};
use model::Digest;
use runtime::Tasks;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::io::SyncIoBridge;

use crate::blob;
use crate::error::Failure;
use crate::space::{Space, sum_of_files};

/// The layers there are. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Layers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    store: LayerStore,
    limit: u64,
    space: Space,
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
    path: PathBuf,
    bytes: u64,
}

impl Slot {
    /// The layer's files.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.0.get().map(|unpacked| unpacked.path.as_path())
    }
}

impl Layers {
    /// Opens the directory, with what an earlier agent left there.
    pub(crate) fn open(dir: &Path, (limit, space): (u64, Space), tasks: Tasks) -> io::Result<Self> {
        let store = LayerStore::open(dir).map_err(io::Error::other)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if let Some((digest, path)) = named(&name, &store) {
                match known(dir, digest, path) {
                    Ok(layer) => found.push(layer),
                    Err(error) => discard(&entry.path(), &error),
                }
            } else if name.starts_with(DRAFT)
                && let Err(error) = remove_tree(&entry.path())
            {
                tracing::warn!(layer = %name, %error, "half an image layer cannot be removed");
            }
        }
        found.sort_unstable_by_key(|(used, digest, _)| (*used, *digest));
        let mut table = Table::default();
        for (_, digest, unpacked) in found {
            table.uses += 1;
            let slot = Arc::new(Slot(OnceCell::new_with(Some(unpacked))));
            table.layers.insert(digest, Entry { slot, used: table.uses });
        }
        let table = Mutex::new(table);
        Ok(Self(Arc::new(Inner { dir: dir.to_owned(), store, limit, space, tasks, table })))
    }

    /// A layer that is here.
    pub(crate) fn find(&self, digest: Digest) -> Option<Arc<Slot>> {
        self.0.table().layers.get(&digest).map(|entry| Arc::clone(&entry.slot))
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

/// How names of layers begin that are being unpacked.
const DRAFT: &str = ".new-";

fn named(name: &str, store: &LayerStore) -> Option<(Digest, PathBuf)> {
    let digest = format!("sha256:{name}").parse().ok()?;
    Some((digest, store.find(&digest)?))
}

fn size_file(dir: &Path, digest: Digest) -> PathBuf {
    dir.join(format!("{}.bytes", digest.hex()))
}

fn known(dir: &Path, digest: Digest, path: PathBuf) -> io::Result<(SystemTime, Digest, Unpacked)> {
    let file = size_file(dir, digest);
    let told = fs::read_to_string(&file).ok().and_then(|text| text.parse().ok());
    let bytes = match told {
        Some(bytes) => bytes,
        // The agent died before it wrote that down.
        None => measure(&path, &file)?,
    };
    let used = file.metadata()?.modified()?;
    Ok((used, digest, Unpacked { path, bytes }))
}

/// The bytes of the layers in a directory, as far as they were written down.
pub(crate) fn noted_bytes(dir: &Path) -> u64 {
    sum_of_files(dir, Some("bytes"))
}

/// Removes a layer of which nobody knows how large it is; it can be fetched again.
fn discard(layer: &Path, error: &io::Error) {
    tracing::warn!(layer = %layer.display(), %error, "an image layer cannot be measured");
    if let Err(error) = remove_tree(layer) {
        tracing::warn!(layer = %layer.display(), %error, "an image layer cannot be removed");
    }
}

/// Counts the bytes below `path` and writes them down.
fn measure(path: &Path, file: &Path) -> io::Result<u64> {
    let bytes = disk_bytes(path)?;
    fs::write(file, bytes.to_string())?;
    Ok(bytes)
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
        let file = size_file(&self.dir, digest);
        if let Err(error) = utimensat(CWD, &file, &times, AtFlags::empty()) {
            tracing::debug!(file = %file.display(), %error, "the use of a layer is not recorded");
        }
    }

    async fn fetch(&self, client: &Client, digest: Digest) -> Result<Unpacked, Failure> {
        let input = self.space.guard(blob::read(client, digest).await?);
        let (store, file) = (self.store.clone(), size_file(&self.dir, digest));
        // This goes on to its end even if nobody waits for it any more.
        self.tasks
            .blocking(move || {
                let input = SyncIoBridge::new(input);
                let path = store.add(&digest, input, Limits::default()).map_err(failed)?;
                let bytes = measure(&path, &file)?;
                Ok(Unpacked { path, bytes })
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
            if let Err(error) = self.tasks.blocking(move || remove_tree(&path)).await {
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
            let trash = self.dir.join(format!("{DRAFT}old-{}-{}", oldest.hex(), table.uses));
            match fs::rename(self.dir.join(oldest.hex()), &trash) {
                Ok(()) => removed.push(trash),
                Err(error) => tracing::warn!(%error, "an old image layer cannot be removed"),
            }
            drop(fs::remove_file(size_file(&self.dir, oldest)));
        }
        removed
    }
}

/// Reading may work the next time; a layer that breaks a rule always will.
fn failed(error: ImageError) -> Failure {
    let transient = matches!(
        &error,
        ImageError::Io { .. } | ImageError::Refused(drivers::DriverError::Io { .. })
    );
    Failure { transient, ..Failure::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::Stop;

    fn add(layers: &Layers, name: &str, size: usize) -> Digest {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(size as u64);
        header.set_mode(0o644);
        let content = vec![b'x'; size];
        tar.append_data(&mut header, name, content.as_slice()).expect("packs");
        let bytes = tar.into_inner().expect("packs");
        let digest = Digest::of(&bytes);
        let path = layers.0.store.add(&digest, bytes.as_slice(), Limits::default());
        let path = path.expect("unpacks");
        let bytes = measure(&path, &size_file(&layers.0.dir, digest)).expect("measures");
        let slot = layers.0.slot(digest);
        slot.0.set(Unpacked { path, bytes }).expect("is new");
        digest
    }

    #[tokio::test]
    async fn the_oldest_idle_layers_go_first_and_use_is_remembered() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let space = Space::new(dir.path(), 0);
        let open =
            |limit| Layers::open(dir.path(), (limit, space.clone()), Tasks::new(Stop::new()));
        let layers = open(u64::MAX).expect("opens");
        let [a, b, c] = ["a", "b", "c"].map(|name| add(&layers, name, 8192));
        runtime::sleep(std::time::Duration::from_millis(20)).await;
        layers.0.touch(a);
        drop(layers);
        fs::create_dir(dir.path().join(".new-half")).expect("makes");
        let layers = open(16384).expect("opens");
        assert!(!dir.path().join(".new-half").exists());
        let held = layers.0.slot(b);
        layers.0.evict().await;
        let left: Vec<Digest> = layers.0.table().layers.keys().copied().collect();
        let mut wanted = vec![a, b];
        wanted.sort_unstable();
        assert_eq!(left, wanted, "{c} is gone");
        assert!(held.path().is_some_and(Path::is_dir));
        let names = fs::read_dir(dir.path()).expect("lists").flatten();
        assert_eq!(names.filter(|entry| entry.path().is_dir()).count(), 2);
    }
}
