//! Volumes: directories that outlive every container.
//!
//! A volume's directory is called after what it belongs to and its id, as in
//! `acme.shop.production.web.0.data.vol_01h…`, so that a person finds it; the id alone says which it
//! is. Of those that write to a volume one is let in at a time, whatever the server says: the next
//! waits until the container of the one before is gone. Nothing removes a volume but the server's word
//! that it is to be deleted, and that waits until no container has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::proto::cell_up::Message;
use api::proto::{VolumeGone, id_bytes};
use drivers::{User, remove_tree};
use model::{Name, VolumeId};
use runtime::{Backoff, Random, Tasks};
use tokio::sync::Notify;

use crate::limits::REMOVE_PAUSES;
use crate::shared::Shared;

/// What a volume belongs to, as labels of its instance.
const OWNERS: [&str; 5] = ["project", "app", "workspace", "process", "index"];
/// How the directory of a volume that is being removed is called. No project has such a name.
const REMOVED: &str = ".removed";

/// The volumes of one cell. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Volumes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    users: Mutex<Users>,
    /// Somebody let go of a volume.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Users {
    /// How many containers write to a volume, and how many only read it.
    held: BTreeMap<VolumeId, (usize, usize)>,
    /// Volumes whose removal was asked for.
    removing: BTreeSet<VolumeId>,
}

/// A volume in use. Its directory stays, and nobody else writes to it, as long as somebody holds this.
#[derive(Debug)]
pub(crate) struct Hold {
    volumes: Volumes,
    id: VolumeId,
    writes: bool,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let inner = &self.volumes.0;
        let mut users = inner.users();
        if let Some((writers, readers)) = users.held.get_mut(&self.id) {
            *(if self.writes { &mut *writers } else { &mut *readers }) -= 1;
            if (*writers, *readers) == (0, 0) {
                users.held.remove(&self.id);
            }
        }
        drop(users);
        inner.freed.notify_waiters();
    }
}

impl Hold {
    /// The directory, made when it is not there yet; then it belongs to `user`, if that is another
    /// one than the container's root.
    pub(crate) fn open(
        &self,
        (labels, name): (&HashMap<String, String>, &Name),
        user: Option<User>,
    ) -> io::Result<PathBuf> {
        let inner = &self.volumes.0;
        if let Some(dir) = inner.find(self.id)? {
            return fs::canonicalize(dir);
        }
        let owner = |label: &str| labels.get(label).map_or("_", String::as_str);
        let owners = OWNERS.map(owner).join(".");
        if owners.contains('/') {
            return Err(io::Error::other("the name of its app is no name"));
        }
        let dir = inner.dir.join(format!("{owners}.{name}.{}", self.id));
        fs::create_dir_all(&dir)?;
        if let Some(User { uid, gid }) = user
            && let Err(error) = chown(&dir, Some(uid), Some(gid))
        {
            tracing::warn!(volume = %self.id, uid, %error, "a volume stays the cell's own");
        }
        fs::canonicalize(&dir)
    }
}

impl Volumes {
    pub(crate) fn new(dir: PathBuf) -> Self {
        let (users, freed) = (Mutex::default(), Notify::new());
        Self(Arc::new(Inner { dir, users, freed }))
    }

    /// Takes a volume whoever else has it, for a container that is there already.
    pub(crate) fn hold_on(&self, id: VolumeId, writes: bool) -> Hold {
        self.0.users().take(id, writes);
        Hold { volumes: self.clone(), id, writes }
    }

    /// Takes a volume once it may be taken. For a writer that is when no other one is left; nobody
    /// gets one that is being removed.
    pub(crate) async fn hold(&self, id: VolumeId, writes: bool) -> Hold {
        self.0.when(|users| users.is_free_for(id, writes).then(|| users.take(id, writes))).await;
        Hold { volumes: self.clone(), id, writes }
    }

    /// Notes that a volume is to be removed; false when that is under way already.
    pub(crate) fn begin_removal(&self, id: VolumeId) -> bool {
        self.0.users().removing.insert(id)
    }

    /// Removes a volume and everything in it once no container has it. It may be interrupted at any
    /// point and be begun anew.
    pub(crate) async fn remove(&self, id: VolumeId, tasks: &Tasks) -> io::Result<()> {
        self.0.when(|users| (!users.held.contains_key(&id)).then_some(())).await;
        let inner = Arc::clone(&self.0);
        tasks.blocking(move || inner.remove(id)).await
    }

    /// The removal has ended, or was given up.
    pub(crate) fn end_removal(&self, id: VolumeId) {
        self.0.users().removing.remove(&id);
        self.0.freed.notify_waiters();
    }
}

/// Removes a volume, however often it must be tried, and tells the server. A server that does not hear
/// it asks again.
pub(crate) async fn removed(shared: &Shared, id: VolumeId) {
    let random = Random::system();
    let mut backoff = Backoff::new(REMOVE_PAUSES.0, REMOVE_PAUSES.1);
    while let Err(error) = shared.volumes.remove(id, &shared.tasks).await {
        tracing::warn!(volume = %id, %error, "cannot remove a volume");
        runtime::sleep(backoff.next_delay(&random)).await;
    }
    shared.volumes.end_removal(id);
    shared.link.send(Message::VolumeGone(VolumeGone { id: id_bytes(id.0) })).await;
}

impl Users {
    fn is_free_for(&self, id: VolumeId, to_write: bool) -> bool {
        let (writers, _) = self.held.get(&id).copied().unwrap_or_default();
        let is_taken = to_write && writers > 0;
        !is_taken && !self.removing.contains(&id)
    }

    fn take(&mut self, id: VolumeId, to_write: bool) {
        let (writers, readers) = self.held.entry(id).or_default();
        *(if to_write { writers } else { readers }) += 1;
    }
}

impl Inner {
    fn users(&self) -> MutexGuard<'_, Users> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a look at who uses what gives something.
    async fn when<T>(&self, look: impl Fn(&mut Users) -> Option<T>) -> T {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on no notification is missed.
            freed.as_mut().enable();
            if let Some(found) = look(&mut self.users()) {
                return found;
            }
            freed.await;
        }
    }

    /// The directory of a volume, if there is one.
    fn find(&self, id: VolumeId) -> io::Result<Option<PathBuf>> {
        let end = format!(".{id}");
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(&end) && !name.starts_with(REMOVED) {
                return Ok(Some(self.dir.join(&*name)));
            }
        }
        Ok(None)
    }

    fn remove(&self, id: VolumeId) -> io::Result<()> {
        let removed = self.dir.join(format!("{REMOVED}.{id}"));
        // What an earlier attempt left.
        remove_tree(&removed)?;
        let Some(dir) = self.find(id)? else { return Ok(()) };
        tracing::info!(dir = %dir.display(), "removing a volume");
        fs::rename(dir, &removed)?;
        sync(&self.dir)?;
        remove_tree(&removed)
    }
}

/// Makes a rename durable: half of a volume must never come back under its name.
fn sync(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use runtime::Stop;

    use super::*;

    const ID: VolumeId = VolumeId(7);

    fn labels() -> HashMap<String, String> {
        let labels = [("project", "acme"), ("app", "shop"), ("workspace", "production")];
        let more = [("process", "web"), ("index", "0")];
        let all = labels.into_iter().chain(more);
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn name() -> Name {
        "data".parse().expect("a name")
    }

    /// Whether something is still under way after everything that could happen has.
    async fn waits(work: impl Future<Output = Hold>) -> bool {
        runtime::timeout(Duration::from_millis(20), work).await.is_none()
    }

    #[tokio::test]
    async fn the_id_says_which_it_is() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let volumes = Volumes::new(dir.path().join("volumes"));
        let hold = volumes.hold(ID, true).await;
        let first = hold.open((&labels(), &name()), None).expect("opens");
        let called = format!("acme.shop.production.web.0.data.{ID}");
        assert!(first.ends_with(&called), "{}", first.display());
        let again = hold.open((&HashMap::new(), &name()), None).expect("opens again");
        assert_eq!(again, first, "whatever it belongs to now");
        let other = volumes.hold(VolumeId(8), true).await;
        assert_ne!(other.open((&labels(), &name()), None).expect("opens"), first);
        let mut bad = labels();
        bad.insert("app".to_owned(), "../x".to_owned());
        let third = volumes.hold(VolumeId(9), true).await;
        assert!(third.open((&bad, &name()), None).is_err());
    }

    #[tokio::test]
    async fn one_writes_at_a_time_and_several_read() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let volumes = Volumes::new(dir.path().to_owned());
        let writer = volumes.hold(ID, true).await;
        let reader = volumes.hold(ID, false).await;
        assert!(waits(volumes.hold(ID, true)).await);
        let next = volumes.clone();
        let (second, ()) = tokio::join!(next.hold(ID, true), async {
            drop(writer);
        });
        assert!(waits(volumes.hold(ID, true)).await);
        drop((second, reader));
        drop(volumes.hold(ID, true).await);
        assert!(volumes.0.users().held.is_empty());
    }

    #[tokio::test]
    async fn removal_waits_for_everybody_and_goes_on_where_it_was_interrupted() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let tasks = Tasks::new(Stop::new());
        let volumes = Volumes::new(dir.path().to_owned());
        let reader = volumes.hold_on(ID, false);
        let at = reader.open((&labels(), &name()), None).expect("opens");
        fs::write(at.join("file"), "x").expect("writes");
        assert!(volumes.begin_removal(ID));
        assert!(!volumes.begin_removal(ID), "once is enough");
        let early = runtime::timeout(Duration::from_millis(20), volumes.remove(ID, &tasks)).await;
        assert!(early.is_none() && at.join("file").exists(), "somebody reads it");
        assert!(waits(volumes.hold(ID, true)).await, "nobody begins with it any more");
        let left = dir.path().join(format!("{REMOVED}.{ID}"));
        fs::create_dir_all(left.join("half")).expect("makes");
        drop(reader);
        volumes.remove(ID, &tasks).await.expect("removes");
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 0);
        volumes.remove(ID, &tasks).await.expect("there is nothing left to do");
        volumes.end_removal(ID);
        drop(volumes.hold(ID, true).await);
    }
}
