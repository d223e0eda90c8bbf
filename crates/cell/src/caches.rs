//! Directories that outlive containers, such as what a build keeps for the next one.
//!
//! Beside the caches a file `.used/<key>` says how large one is; the time of that file says when it
//! was last used.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use drivers::{disk_bytes, remove_tree};
use runtime::Tasks;

const USED: &str = ".used";
/// How names of caches begin that are being removed. No key begins with a dot.
const REMOVED: &str = ".old-";

/// The caches there are. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Caches(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    limit: u64,
    tasks: Tasks,
    held: Mutex<Held>,
}

/// How many containers use a cache now, and how many caches were removed.
#[derive(Debug, Default)]
struct Held {
    users: BTreeMap<String, usize>,
    removed: u64,
}

/// A cache in use. It stays on disk as long as somebody holds this.
#[derive(Debug)]
pub(crate) struct Cache {
    caches: Caches,
    key: String,
}

impl Cache {
    /// Where it is on this machine.
    pub(crate) fn path(&self) -> PathBuf {
        self.caches.0.dir.join(&self.key)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let mut held = self.caches.0.held();
        if let Some(users) = held.users.get_mut(&self.key) {
            *users -= 1;
            if *users == 0 {
                held.users.remove(&self.key);
            }
        }
    }
}

impl Caches {
    /// Opens the directory, with what an earlier agent left there.
    pub(crate) fn open(dir: &Path, limit: u64, tasks: Tasks) -> io::Result<Self> {
        fs::create_dir_all(dir.join(USED))?;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(REMOVED)
                && let Err(error) = remove_tree(&entry.path())
            {
                tracing::warn!(cache = ?name, %error, "an old cache cannot be removed");
            }
        }
        let held = Mutex::default();
        Ok(Self(Arc::new(Inner { dir: dir.to_owned(), limit, tasks, held })))
    }

    /// Keeps a cache from being removed. `key` is one that a container's spec may have.
    pub(crate) fn hold(&self, key: &str) -> Cache {
        *self.0.held().users.entry(key.to_owned()).or_default() += 1;
        Cache { caches: self.clone(), key: key.to_owned() }
    }

    /// Lets go of caches, writes down how large they are now, and removes those that were not used
    /// for longest while all together are too large. What cannot be measured is too large. What is
    /// wrong with one cache does not keep others from being removed.
    pub(crate) async fn release(&self, caches: Vec<Cache>) {
        if caches.is_empty() {
            return;
        }
        let inner = Arc::clone(&self.0);
        let work = move || {
            for cache in &caches {
                if let Err(error) = inner.measure(&cache.key) {
                    tracing::warn!(key = cache.key, %error, "a cache cannot be measured");
                }
            }
            drop(caches);
            if let Err(error) = inner.evict() {
                tracing::warn!(%error, "old caches cannot be listed");
            }
        };
        self.0.tasks.blocking(work).await;
    }
}

impl Inner {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn used_file(&self, key: &str) -> PathBuf {
        self.dir.join(USED).join(key)
    }

    fn measure(&self, key: &str) -> io::Result<u64> {
        let file = self.used_file(key);
        let bytes = disk_bytes(&self.dir.join(key)).inspect_err(|_| {
            // What it says is no longer true. It may never have been there.
            drop(fs::remove_file(&file));
        })?;
        // Somebody may have removed all of it to have room.
        fs::create_dir_all(self.dir.join(USED))?;
        fs::write(file, bytes.to_string())?;
        Ok(bytes)
    }

    /// A cache's last use and size.
    fn known(&self, key: &str) -> io::Result<(SystemTime, u64)> {
        let file = self.used_file(key);
        let told = fs::read_to_string(&file).ok().and_then(|text| text.parse().ok());
        let bytes = match told {
            Some(bytes) => bytes,
            // The agent died before it wrote that down.
            None => self.measure(key)?,
        };
        Ok((file.metadata()?.modified()?, bytes))
    }

    fn evict(&self) -> io::Result<()> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                // Without a size and a time a cache sorts first.
                all.push((self.known(&name).ok(), name));
            }
        }
        all.sort_unstable();
        let size = |known: &Option<(SystemTime, u64)>| known.map_or(0, |(_, bytes)| bytes);
        let mut total: u64 = all.iter().map(|(known, _)| size(known)).sum();
        for (known, key) in all {
            if total <= self.limit && known.is_some() {
                break;
            }
            match self.take_away(&key) {
                Ok(true) => total -= size(&known),
                Ok(false) => {}
                Err(error) => tracing::warn!(key, %error, "an old cache cannot be removed"),
            }
        }
        Ok(())
    }

    /// Removes a cache; false when somebody uses it.
    fn take_away(&self, key: &str) -> io::Result<bool> {
        let Some(removed) = self.move_away(key)? else { return Ok(false) };
        tracing::info!(key, "removing the cache that was not used for longest");
        remove_tree(&removed)?;
        Ok(true)
    }

    /// Moves a cache out of the way unless somebody uses it, so that a new one can begin at once.
    fn move_away(&self, key: &str) -> io::Result<Option<PathBuf>> {
        let mut held = self.held();
        if held.users.contains_key(key) {
            return Ok(None);
        }
        held.removed += 1;
        let to = self.dir.join(format!("{REMOVED}{key}-{}", held.removed));
        fs::rename(self.dir.join(key), &to)?;
        match fs::remove_file(self.used_file(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Some(to))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use runtime::Stop;

    fn fill(cache: &Cache) {
        fs::create_dir_all(cache.path()).expect("makes");
        fs::write(cache.path().join("file"), vec![b'x'; 8_192]).expect("writes");
    }

    fn names(dir: &Path) -> Vec<String> {
        let all = fs::read_dir(dir).expect("lists").flatten();
        let mut names: Vec<String> =
            all.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        names.retain(|name| name != USED);
        names
    }

    #[tokio::test]
    async fn directories_that_vanish_are_made_again() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let at = dir.path().join("caches");
        let caches = Caches::open(&at, 16_384, Tasks::new(Stop::new())).expect("opens");
        for key in ["a", "b", "c"] {
            fs::remove_dir_all(&at).expect("is there");
            let cache = caches.hold(key);
            fill(&cache);
            caches.release(vec![cache]).await;
            assert_eq!(names(&at), [key]);
            assert!(at.join(USED).join(key).exists(), "its size is known");
        }
    }

    #[tokio::test]
    async fn what_one_cache_holds_does_not_keep_others() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let caches = Caches::open(dir.path(), 16_384, Tasks::new(Stop::new())).expect("opens");
        let deep = caches.hold("deep");
        fill(&deep);
        fs::write(deep.path().join("large"), vec![b'x'; 16_384]).expect("writes");
        let mut at = drivers::archive::open_root(&deep.path()).expect("opens");
        for _ in 0..30 {
            at = drivers::archive::open_below(at.as_fd(), &"x".repeat(200), true).expect("makes");
        }
        drop(at);
        caches.release(vec![deep]).await;
        assert_eq!(names(dir.path()), [""; 0], "it is too large");
        // No directory at all can never be measured.
        fs::write(dir.path().join("file"), "").expect("writes");
        for key in ["a", "b", "c"] {
            let cache = caches.hold(key);
            fill(&cache);
            caches.release(vec![cache]).await;
        }
        assert_eq!(names(dir.path()), ["b", "c"], "what is no directory, and the oldest, went");
    }

    #[tokio::test]
    async fn the_oldest_unused_goes_first_and_one_in_use_never() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let open = || Caches::open(dir.path(), 16_384, Tasks::new(Stop::new())).expect("opens");
        let caches = open();
        for key in ["a", "b"] {
            let cache = caches.hold(key);
            fill(&cache);
            caches.release(vec![cache]).await;
        }
        assert_eq!(names(dir.path()), ["a", "b"], "both fit");
        fs::create_dir(dir.path().join(".old-a-1")).expect("makes");
        // Another agent goes on; `a` is the oldest, and in use.
        let caches = open();
        assert_eq!(names(dir.path()), ["a", "b"], "what was being removed is gone");
        let (held, third) = (caches.hold("a"), caches.hold("c"));
        fill(&third);
        caches.release(vec![third]).await;
        assert_eq!(names(dir.path()), ["a", "c"]);
        let fourth = caches.hold("d");
        fill(&fourth);
        drop(held);
        caches.release(vec![fourth]).await;
        assert_eq!(names(dir.path()), ["c", "d"], "a was not used since");
    }
}
