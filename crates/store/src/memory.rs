//! A store that lives as long as the process: for tests and for the simulator.

use std::collections::BTreeMap;
use std::fmt::{Debug, Formatter};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::contract::{
    Batch, Epoch, HistoryQuery, HistoryRow, Kind, Loaded, Order, RowVisitor, Store,
};
use crate::error::StoreError;
use crate::sqlite::FORMAT;

/// What an injected fault does to one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is kept and the caller is told so.
    Refuse(StoreError),
    /// Everything is kept, yet the caller is told that it failed: the answer was lost.
    KeepButFail(StoreError),
}

/// Decides, for each commit, whether it fails.
pub type FaultHook = Box<dyn FnMut(&[Batch]) -> Option<Fault> + Send>;

/// Rows in memory with the semantics of a durable store. Clones share the rows, so dropping the
/// server's clone and handing out another one is a restart.
#[derive(Clone, Default)]
pub struct MemoryStore {
    shared: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    records: BTreeMap<Kind, BTreeMap<u128, Vec<u8>>>,
    histories: BTreeMap<Kind, History>,
    lease: Lease,
    commits: u64,
    hook: Option<FaultHook>,
}

#[derive(Debug, Default)]
struct History {
    head: u64,
    rows: BTreeMap<u64, HistoryRow>,
}

#[derive(Debug, Default)]
struct Lease {
    epoch: u64,
    holder: String,
    until_ms: u64,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks `hook` before every commit from now on.
    pub fn inject(&self, hook: FaultHook) {
        self.inner().hook = Some(hook);
    }

    /// Lets every commit through again.
    pub fn heal(&self) {
        self.inner().hook = None;
    }

    /// How many transactions were kept.
    pub fn commits(&self) -> u64 {
        self.inner().commits
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debug for MemoryStore {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let inner = self.inner();
        f.debug_struct("MemoryStore")
            .field("lease", &inner.lease)
            .field("commits", &inner.commits)
            .finish_non_exhaustive()
    }
}

impl Inner {
    const fn fence(&self, epoch: Epoch) -> Result<(), StoreError> {
        if self.lease.epoch == epoch.0 {
            return Ok(());
        }
        Err(StoreError::Deposed { epoch: epoch.0, current: self.lease.epoch })
    }

    fn apply(&mut self, batch: Batch) {
        for record in batch.records {
            let rows = self.records.entry(record.kind).or_default();
            match record.body {
                Some(body) => rows.insert(record.id, body),
                None => rows.remove(&record.id),
            };
        }
        for entry in batch.histories {
            let history = self.histories.entry(entry.kind).or_default();
            history.head += 1;
            let (seq, at_ms) = (history.head, entry.at_ms);
            let row = HistoryRow { seq, key: entry.key, at_ms, body: entry.body };
            history.rows.insert(seq, row);
        }
    }
}

impl Store for MemoryStore {
    fn load(&self, each: &mut RowVisitor<'_>) -> Result<Loaded, StoreError> {
        let inner = self.inner();
        let epoch = Epoch(inner.lease.epoch);
        let mut loaded = Loaded { records: 0, bytes: 0, epoch, format: FORMAT };
        for (kind, rows) in &inner.records {
            for (&id, body) in rows {
                each(kind.as_str(), id, body).map_err(|detail| StoreError::BadRecord {
                    kind: kind.to_string(),
                    id,
                    detail,
                })?;
                loaded.records += 1;
                loaded.bytes += body.len() as u64;
            }
        }
        Ok(loaded)
    }

    fn commit(&self, epoch: Epoch, batches: Vec<Batch>) -> Result<(), StoreError> {
        let mut inner = self.inner();
        inner.fence(epoch)?;
        for record in batches.iter().flat_map(|batch| &batch.records) {
            check_text(record.kind, record.id, record.body.as_deref().unwrap_or_default())?;
        }
        for entry in batches.iter().flat_map(|batch| &batch.histories) {
            check_text(entry.kind, 0, &entry.body)?;
        }
        let fault = inner.hook.as_mut().and_then(|hook| hook(&batches));
        if let Some(Fault::Refuse(error)) = fault {
            return Err(error);
        }
        for batch in batches {
            inner.apply(batch);
        }
        inner.commits += 1;
        match fault {
            Some(Fault::KeepButFail(error) | Fault::Refuse(error)) => Err(error),
            None => Ok(()),
        }
    }

    fn acquire(&self, holder: &str, now_ms: u64, ttl_ms: u64) -> Result<Epoch, StoreError> {
        let lease = &mut self.inner().lease;
        if lease.holder != holder && lease.until_ms > now_ms {
            return Err(StoreError::Held {
                holder: lease.holder.clone(),
                until_ms: lease.until_ms,
            });
        }
        let epoch = lease.epoch + 1;
        *lease = Lease { epoch, holder: holder.to_owned(), until_ms: now_ms + ttl_ms };
        Ok(Epoch(epoch))
    }

    fn renew(&self, epoch: Epoch, now_ms: u64, ttl_ms: u64) -> Result<(), StoreError> {
        let mut inner = self.inner();
        inner.fence(epoch)?;
        inner.lease.until_ms = now_ms + ttl_ms;
        Ok(())
    }

    fn release(&self, epoch: Epoch) -> Result<(), StoreError> {
        let mut inner = self.inner();
        inner.fence(epoch)?;
        inner.lease = Lease { epoch: epoch.0 + 1, holder: String::new(), until_ms: 0 };
        Ok(())
    }

    fn query_history(&self, query: &HistoryQuery) -> Result<Vec<HistoryRow>, StoreError> {
        let inner = self.inner();
        let Some(history) = inner.histories.get(&query.kind) else { return Ok(Vec::new()) };
        let low = query.after.map_or(0, |after| after.saturating_add(1));
        let high = query.before.unwrap_or(u64::MAX).max(low);
        let wanted = history
            .rows
            .range(low..high)
            .map(|(_, row)| row)
            .filter(|row| query.key.as_ref().is_none_or(|key| *key == row.key))
            .filter(|row| query.since_ms.is_none_or(|since| row.at_ms >= since));
        let page = query.page() as usize;
        Ok(match query.order {
            Order::OldestFirst => wanted.take(page).cloned().collect(),
            Order::NewestFirst => wanted.rev().take(page).cloned().collect(),
        })
    }

    fn prune_history(
        &self,
        epoch: Epoch,
        kind: Kind,
        before: u64,
        limit: u32,
    ) -> Result<u64, StoreError> {
        let mut inner = self.inner();
        inner.fence(epoch)?;
        let Some(history) = inner.histories.get_mut(&kind) else { return Ok(0) };
        let doomed: Vec<u64> =
            history.rows.range(..before).take(limit as usize).map(|(&seq, _)| seq).collect();
        for seq in &doomed {
            history.rows.remove(seq);
        }
        Ok(doomed.len() as u64)
    }
}

/// Bodies are JSON text, and text is UTF-8. For a history line `id` is 0.
pub(crate) fn check_text(kind: Kind, id: u128, body: &[u8]) -> Result<&str, StoreError> {
    std::str::from_utf8(body).map_err(|error| StoreError::BadRecord {
        kind: kind.to_string(),
        id,
        detail: format!("the body is not UTF-8: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Record;

    const JOB: Kind = Kind::new("job");

    fn count(store: &MemoryStore) -> u64 {
        store.load(&mut |_, _, _| Ok(())).unwrap().records
    }

    fn one(id: u128) -> Vec<Batch> {
        vec![Batch::of(vec![Record::put(JOB, id, b"{}".to_vec())])]
    }

    #[test]
    fn a_refused_commit_keeps_nothing_and_a_lost_answer_keeps_everything() {
        let store = MemoryStore::new();
        let epoch = store.acquire("a", 0, 10).unwrap();
        let error = StoreError::Injected("disk".to_owned());
        let (refuse, keep) = (Fault::Refuse(error.clone()), Fault::KeepButFail(error.clone()));
        let mut faults = vec![keep, refuse];
        store.inject(Box::new(move |_| faults.pop()));
        assert_eq!(store.commit(epoch, one(1)), Err(error.clone()));
        assert_eq!((count(&store), store.commits()), (0, 0));
        assert_eq!(store.commit(epoch, one(2)), Err(error));
        assert_eq!((count(&store), store.commits()), (1, 1));
        store.heal();
        store.commit(epoch, one(3)).unwrap();
        assert_eq!(count(&store.clone()), 2);
    }
}
