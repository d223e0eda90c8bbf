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
use tokio::sync::watch;

use crate::growth::Outgrown;
use crate::space::{DiskUse, Space, sum_of_files};

const USED: &str = ".used";
/// How names of caches begin that are being removed. No key begins with a dot.
const REMOVED: &str = ".old-";

/// The caches there are. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Caches(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    dir: PathBuf,
    pub(crate) limits: DiskUse,
    pub(crate) space: Space,
    pub(crate) tasks: Tasks,
    held: Mutex<Held>,
    /// How many caches are in use.
    in_use: watch::Sender<usize>,
}

/// Which caches are in use now, and how many caches were removed.
#[derive(Debug, Default)]
struct Held {
    used: BTreeMap<String, Use>,
    removed: u64,
}

/// What is known of a cache in use.
#[derive(Debug, Clone, Default)]
pub(crate) struct Use {
    /// How large it was when it was given out.
    pub(crate) began: u64,
    /// Those who use it.
    users: Vec<Arc<Outgrown>>,
}

impl Use {
    /// Ends those who use it.
    pub(crate) fn end(&self, reason: &str) {
        self.users.iter().for_each(|user| user.end(reason));
    }
}

/// A cache in use. It stays on disk as long as somebody holds this.
#[derive(Debug)]
pub(crate) struct Cache {
    caches: Caches,
    key: String,
    user: Arc<Outgrown>,
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
        if let Some(used) = held.used.get_mut(&self.key) {
            let same = |user: &Arc<Outgrown>| Arc::ptr_eq(user, &self.user);
            if let Some(at) = used.users.iter().position(same) {
                used.users.swap_remove(at);
            }
            if used.users.is_empty() {
                held.used.remove(&self.key);
            }
        }
        self.caches.0.in_use.send_replace(held.used.len());
    }
}

impl Caches {
    /// Opens the directory, with what an earlier agent left there.
    pub(crate) fn open(
        dir: &Path,
        (limits, space): (DiskUse, Space),
        tasks: Tasks,
    ) -> io::Result<Self> {
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
        let (dir, held, in_use) = (dir.to_owned(), Mutex::default(), watch::Sender::new(0));
        Ok(Self(Arc::new(Inner { dir, limits, space, tasks, held, in_use })))
    }

    /// Keeps a cache from being removed. `key` is one that a container's spec may have; `user` is
    /// told when it becomes too large.
    pub(crate) fn hold(&self, key: &str, user: &Arc<Outgrown>) -> Cache {
        let mut held = self.0.held();
        let began = || Use { began: self.0.noted(key).unwrap_or(0), users: Vec::new() };
        let entry = held.used.entry(key.to_owned()).or_insert_with(began);
        entry.users.push(Arc::clone(user));
        self.0.in_use.send_replace(held.used.len());
        Cache { caches: self.clone(), key: key.to_owned(), user: Arc::clone(user) }
    }

    /// Removes caches that nobody uses as long as the disk is full; an error when it still is.
    pub(crate) async fn make_room(&self) -> io::Result<()> {
        let inner = Arc::clone(&self.0);
        let work = move || {
            inner.evict_while_full()?;
            inner.space.check()
        };
        self.0.tasks.blocking(work).await
    }

    /// Waits until a cache is in use.
    pub(crate) async fn used(&self) {
        let mut in_use = self.0.in_use.subscribe();
        // The sender is in `self`.
        drop(in_use.wait_for(|count| *count > 0).await);
    }

    /// What all caches have in common.
    pub(crate) const fn inner(&self) -> &Arc<Inner> {
        &self.0
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

    fn noted(&self, key: &str) -> Option<u64> {
        fs::read_to_string(self.used_file(key)).ok()?.parse().ok()
    }

    /// Which caches are in use, how large each is now if that can be counted.
    pub(crate) fn in_use(&self) -> Vec<(Use, io::Result<u64>)> {
        let used = self.held().used.clone();
        used.into_iter().map(|(key, used)| (used, disk_bytes(&self.dir.join(key)))).collect()
    }

    /// A cache's last use and size.
    fn known(&self, key: &str) -> io::Result<(SystemTime, u64)> {
        let file = self.used_file(key);
        let bytes = match self.noted(key) {
            Some(bytes) => bytes,
            // The agent died before it wrote that down.
            None => self.measure(key)?,
        };
        Ok((file.metadata()?.modified()?, bytes))
    }

    fn evict(&self) -> io::Result<()> {
        self.evict_while(|total| total > self.limits.caches)
    }

    /// The same while too little of the disk is free.
    pub(crate) fn evict_while_full(&self) -> io::Result<()> {
        if self.space.check().is_ok() {
            return Ok(());
        }
        self.evict_while(|_| self.space.check().is_err())
    }

    fn evict_while(&self, too_much: impl Fn(u64) -> bool) -> io::Result<()> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                let known = self.known(&name).ok();
                // Without a good size and a time a cache sorts first.
                all.push((known.filter(|(_, bytes)| *bytes <= self.limits.cache), name));
            }
        }
        all.sort_unstable();
        let size = |known: &Option<(SystemTime, u64)>| known.map_or(0, |(_, bytes)| bytes);
        let mut total: u64 = all.iter().map(|(known, _)| size(known)).sum();
        for (known, key) in all {
            if known.is_some() && !too_much(total) {
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
        if held.used.contains_key(key) {
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

/// The bytes of the caches in a directory, as far as they were written down.
pub(crate) fn noted_bytes(dir: &Path) -> u64 {
    sum_of_files(&dir.join(USED), None)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use runtime::Stop;

    pub(crate) fn open(dir: &Path, (caches, cache, reserve): (u64, u64, u64)) -> Caches {
        let limits = DiskUse { caches, cache, reserve, ..DiskUse::of(0) };
        let space = Space::new(dir, reserve);
        Caches::open(dir, (limits, space), Tasks::new(Stop::new())).expect("opens")
    }

    fn caches_in(dir: &Path) -> Caches {
        open(dir, (16_384, u64::MAX, 0))
    }

    pub(crate) fn fill(cache: &Cache) {
        fs::create_dir_all(cache.path()).expect("makes");
        fs::write(cache.path().join("file"), vec![b'x'; 8_192]).expect("writes");
    }

    pub(crate) fn names(dir: &Path) -> Vec<String> {
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
        let caches = caches_in(&at);
        for key in ["a", "b", "c"] {
            fs::remove_dir_all(&at).expect("is there");
            let cache = caches.hold(key, &Arc::default());
            fill(&cache);
            caches.release(vec![cache]).await;
            assert_eq!(names(&at), [key]);
            assert!(at.join(USED).join(key).exists(), "its size is known");
        }
    }

    #[tokio::test]
    async fn what_one_cache_holds_does_not_keep_others() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let caches = caches_in(dir.path());
        let deep = caches.hold("deep", &Arc::default());
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
            let cache = caches.hold(key, &Arc::default());
            fill(&cache);
            caches.release(vec![cache]).await;
        }
        assert_eq!(names(dir.path()), ["b", "c"], "what is no directory, and the oldest, went");
    }

    #[tokio::test]
    async fn the_oldest_unused_goes_first_and_one_in_use_never() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let open = || caches_in(dir.path());
        let caches = open();
        for key in ["a", "b"] {
            let cache = caches.hold(key, &Arc::default());
            fill(&cache);
            caches.release(vec![cache]).await;
        }
        assert_eq!(names(dir.path()), ["a", "b"], "both fit");
        fs::create_dir(dir.path().join(".old-a-1")).expect("makes");
        // Another agent goes on; `a` is the oldest, and in use.
        let caches = open();
        assert_eq!(names(dir.path()), ["a", "b"], "what was being removed is gone");
        let (held, third) = (caches.hold("a", &Arc::default()), caches.hold("c", &Arc::default()));
        fill(&third);
        caches.release(vec![third]).await;
        assert_eq!(names(dir.path()), ["a", "c"]);
        let fourth = caches.hold("d", &Arc::default());
        fill(&fourth);
        drop(held);
        caches.release(vec![fourth]).await;
        assert_eq!(names(dir.path()), ["c", "d"], "a was not used since");
    }
}
