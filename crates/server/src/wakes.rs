//! Which cell's stream has to look at what: a change wakes the stream it concerns, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::CellId;
use state::WorkKey;
use tokio::sync::Notify;

/// What a stream is to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Look {
    /// All that its cell has to do.
    Everything,
    /// These, and how the cell itself is.
    At(BTreeSet<WorkKey>),
}

/// What a stream has not looked at yet. It names each thing once, so it is no larger than what the
/// cell has to do and had to do.
#[derive(Debug, Default)]
struct Pending {
    what: Mutex<Option<Look>>,
    notify: Notify,
}

type Streams = BTreeMap<(CellId, u64), Arc<Pending>>;

/// All streams of cells. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wakes {
    streams: Arc<Mutex<Streams>>,
    next: Arc<AtomicU64>,
}

/// One stream's place among them.
#[derive(Debug)]
pub(crate) struct Waking {
    wakes: Wakes,
    key: (CellId, u64),
    pending: Arc<Pending>,
}

impl Pending {
    fn add(&self, keys: &BTreeSet<WorkKey>) {
        let mut what = self.what.lock().unwrap_or_else(PoisonError::into_inner);
        match what.get_or_insert_with(|| Look::At(BTreeSet::new())) {
            Look::Everything => {}
            Look::At(known) => known.extend(keys),
        }
        drop(what);
        self.notify.notify_one();
    }

    fn everything(&self) {
        *self.what.lock().unwrap_or_else(PoisonError::into_inner) = Some(Look::Everything);
        self.notify.notify_one();
    }
}

impl Wakes {
    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a stream of this cell is told.
    pub(crate) fn subscribe(&self, cell: CellId) -> Waking {
        let key = (cell, self.next.fetch_add(1, Ordering::Relaxed));
        let pending = Arc::<Pending>::default();
        self.streams().insert(key, Arc::clone(&pending));
        Waking { wakes: self.clone(), key, pending }
    }

    /// Tells the streams of these cells what changed.
    pub(crate) fn wake(&self, cells: &BTreeMap<CellId, BTreeSet<WorkKey>>) {
        let streams = self.streams();
        for (cell, keys) in cells {
            for (_, pending) in streams.range((*cell, 0)..=(*cell, u64::MAX)) {
                pending.add(keys);
            }
        }
    }

    /// Tells every stream that anything may have changed.
    pub(crate) fn wake_all(&self) {
        self.streams().values().for_each(|pending| pending.everything());
    }
}

impl Waking {
    /// Waits until there is something to look at.
    pub(crate) async fn next(&self) -> Look {
        loop {
            let what = self.pending.what.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(what) = what {
                return what;
            }
            self.pending.notify.notified().await;
        }
    }
}

impl Drop for Waking {
    fn drop(&mut self) {
        self.wakes.streams().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use model::{InstanceId, TaskId};

    use super::*;

    const ONE: CellId = CellId(1);
    const TWO: CellId = CellId(2);

    fn change(cell: CellId, key: WorkKey) -> BTreeMap<CellId, BTreeSet<WorkKey>> {
        BTreeMap::from([(cell, BTreeSet::from([key]))])
    }

    fn now(waking: &Waking) -> Option<Look> {
        waking.pending.what.lock().expect("nobody panics").clone()
    }

    #[tokio::test]
    async fn whom_it_concerns_is_told_everything_once() {
        let wakes = Wakes::default();
        let (one, two, again) = (wakes.subscribe(ONE), wakes.subscribe(TWO), wakes.subscribe(ONE));
        let (task, instance) = (WorkKey::Task(TaskId(7)), WorkKey::Instance(InstanceId(8)));
        wakes.wake(&change(ONE, task));
        wakes.wake(&change(ONE, instance));
        wakes.wake(&change(ONE, task));
        assert_eq!(one.next().await, Look::At(BTreeSet::from([task, instance])));
        assert_eq!(again.next().await, Look::At(BTreeSet::from([task, instance])));
        assert_eq!((now(&one), now(&two)), (None, None));
        wakes.wake_all();
        wakes.wake(&change(TWO, task));
        assert_eq!(two.next().await, Look::Everything);
        drop((one, two, again));
        assert!(wakes.streams().is_empty());
    }

    #[tokio::test]
    async fn a_stream_that_waits_is_woken() {
        let wakes = Wakes::default();
        let one = wakes.subscribe(ONE);
        let woken = async {
            wakes.wake(&BTreeMap::from([(ONE, BTreeSet::new())]));
        };
        let (look, ()) = tokio::join!(one.next(), woken);
        assert_eq!(look, Look::At(BTreeSet::new()));
    }
}
