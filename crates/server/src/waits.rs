//! Who waits for a change of which row: a change wakes those it concerns, and no other.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use state::RowKey;
use tokio::sync::Notify;

type Waiters = BTreeMap<(RowKey, u64), Arc<Notify>>;

/// All who wait for a row. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Waits {
    waiters: Arc<Mutex<Waiters>>,
    next: Arc<AtomicU64>,
}

/// One who waits.
#[derive(Debug)]
pub(crate) struct Waiter {
    waits: Waits,
    key: (RowKey, u64),
    notify: Arc<Notify>,
}

impl Waits {
    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a change of this row is told.
    pub(crate) fn wait(&self, row: RowKey) -> Waiter {
        let key = (row, self.next.fetch_add(1, Ordering::Relaxed));
        let notify = Arc::<Notify>::default();
        self.waiters().insert(key, Arc::clone(&notify));
        Waiter { waits: self.clone(), key, notify }
    }

    /// Tells who waits for one of these rows.
    pub(crate) fn wake(&self, rows: &[RowKey]) {
        let waiters = self.waiters();
        if waiters.is_empty() {
            return;
        }
        for row in rows {
            for (_, notify) in waiters.range((*row, 0)..=(*row, u64::MAX)) {
                notify.notify_one();
            }
        }
    }

    /// Tells everybody: anything may have changed.
    pub(crate) fn wake_all(&self) {
        self.waiters().values().for_each(|notify| notify.notify_one());
    }
}

impl Waiter {
    /// Waits until there is something to look at. What came since the last time is not missed.
    pub(crate) async fn changed(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.waits.waiters().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use model::TaskId;

    use super::*;

    #[tokio::test]
    async fn only_whom_it_concerns_is_woken() {
        let waits = Waits::default();
        let row = |id| RowKey::Task(TaskId(id));
        let (one, again, two) = (waits.wait(row(1)), waits.wait(row(1)), waits.wait(row(2)));
        waits.wake(&[row(1), row(3)]);
        waits.wake(&[row(1)]);
        one.changed().await;
        again.changed().await;
        assert_eq!(one.changed().now_or_never(), None, "it was told once for both");
        assert_eq!(two.changed().now_or_never(), None);
        waits.wake_all();
        two.changed().await;
        drop((one, again, two));
        assert!(waits.waiters().is_empty());
    }
}
