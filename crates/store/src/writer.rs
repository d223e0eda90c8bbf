//! The thread that commits: group commit with a pipeline in front.

use std::fmt::{Debug, Formatter};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use crate::{Batch, Epoch, Store, StoreError};

/// How much may wait, and how much may share a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriterLimits {
    /// Batches that may wait; submitting one more waits for room.
    pub queue: usize,
    /// Rows after which no further batch joins a transaction.
    pub rows_per_commit: usize,
}

impl Default for WriterLimits {
    fn default() -> Self {
        Self { queue: 64, rows_per_commit: 4_096 }
    }
}

/// What a writer has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriterStats {
    /// Transactions made durable.
    pub commits: u64,
    /// Batches in them.
    pub batches: u64,
    /// Rows in them.
    pub rows: u64,
}

/// Is called once the batch is durable or refused, on the thread that committed it. It must not
/// wait for that thread.
pub type Then = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Commits batches in the order they were submitted, under one epoch.
///
/// After the first refused transaction nothing more is written: later batches were prepared on top
/// of what was refused. They are answered [`StoreError::Halted`]; the owner reloads its state and
/// starts a new writer. Dropping a writer waits until everything submitted is answered.
pub struct Writer {
    queue: Option<mpsc::Sender<Waiting>>,
    thread: Option<JoinHandle<()>>,
    committer: Arc<Committer>,
}

struct Waiting {
    batch: Batch,
    then: Then,
}

impl Writer {
    /// Starts the thread. `epoch` must come from `store.acquire`.
    pub fn start(
        store: Arc<dyn Store>,
        epoch: Epoch,
        limits: WriterLimits,
    ) -> Result<Self, StoreError> {
        let (queue, waiting) = mpsc::channel(limits.queue.max(1));
        let committer = Arc::new(Committer {
            store,
            epoch,
            rows_per_commit: limits.rows_per_commit,
            under_way: AtomicUsize::new(0),
            commits: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            halted: OnceLock::new(),
        });
        let runs = Arc::clone(&committer);
        let thread = runtime::spawn_thread("store-writer", move || runs.run(waiting))
            .map_err(|error| StoreError::io("start a thread for", "the store".as_ref(), &error))?;
        Ok(Self { queue: Some(queue), thread: Some(thread), committer })
    }

    /// Hands a batch over; blocks only while the queue is full. Panics inside an asynchronous task.
    pub fn submit(&self, batch: Batch) -> Result<Completion, StoreError> {
        let (answer, answered) = oneshot::channel();
        // The one who asked may have gone; the batch is written all the same.
        self.submit_then(batch, Box::new(move |result| drop(answer.send(result))))?;
        Ok(Completion(answered))
    }

    /// The same with a call at the end instead of something to wait for.
    pub fn submit_then(&self, batch: Batch, then: Then) -> Result<(), StoreError> {
        let queue = self.queue.as_ref().ok_or(StoreError::Closed)?;
        self.committer.under_way.fetch_add(1, Ordering::Relaxed);
        queue.blocking_send(Waiting { batch, then }).map_err(|_| self.gone())
    }

    /// Commits on the calling thread when nothing is under way, which saves a lone caller two
    /// switches between threads; otherwise the same as [`Self::submit_then`].
    pub fn commit_here(&self, batch: Batch, then: Then) -> Result<(), StoreError> {
        if self.committer.under_way.load(Ordering::Acquire) > 0 {
            return self.submit_then(batch, then);
        }
        self.committer.under_way.fetch_add(1, Ordering::Relaxed);
        let rows = batch.rows();
        self.committer.write(vec![Waiting { batch, then }], rows);
        Ok(())
    }

    /// What has been written so far.
    pub fn stats(&self) -> WriterStats {
        let committer = &self.committer;
        WriterStats {
            commits: committer.commits.load(Ordering::Relaxed),
            batches: committer.batches.load(Ordering::Relaxed),
            rows: committer.rows.load(Ordering::Relaxed),
        }
    }

    /// Why nothing more is written, once a transaction was refused.
    pub fn halted(&self) -> Option<&StoreError> {
        self.committer.halted.get()
    }

    fn gone(&self) -> StoreError {
        self.halted().cloned().unwrap_or(StoreError::Closed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store writer ended with a panic");
        }
    }
}

impl Debug for Writer {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

struct Committer {
    store: Arc<dyn Store>,
    epoch: Epoch,
    rows_per_commit: usize,
    /// Batches submitted and not yet answered.
    under_way: AtomicUsize,
    commits: AtomicU64,
    batches: AtomicU64,
    rows: AtomicU64,
    halted: OnceLock<StoreError>,
}

impl Committer {
    fn run(&self, mut queue: mpsc::Receiver<Waiting>) {
        while let Some(first) = queue.blocking_recv() {
            let mut rows = first.batch.rows();
            let mut group = vec![first];
            while rows < self.rows_per_commit {
                let Ok(next) = queue.try_recv() else { break };
                rows += next.batch.rows();
                group.push(next);
            }
            self.write(group, rows);
        }
    }

    fn write(&self, group: Vec<Waiting>, rows: usize) {
        let (batches, answers): (Vec<_>, Vec<_>) =
            group.into_iter().map(|waiting| (waiting.batch, waiting.then)).unzip();
        let count = answers.len();
        let result = match self.halted.get() {
            Some(cause) => Err(StoreError::Halted { cause: Box::new(cause.clone()) }),
            None if rows == 0 => Ok(()),
            None => self.commit(batches, count, rows),
        };
        for then in answers {
            then(result.clone());
        }
        self.under_way.fetch_sub(count, Ordering::Release);
    }

    fn commit(&self, batches: Vec<Batch>, count: usize, rows: usize) -> Result<(), StoreError> {
        let result = self.store.commit(self.epoch, batches);
        match &result {
            Ok(()) => {
                self.commits.fetch_add(1, Ordering::Relaxed);
                self.batches.fetch_add(count as u64, Ordering::Relaxed);
                self.rows.fetch_add(rows as u64, Ordering::Relaxed);
            }
            Err(cause) => {
                tracing::error!(error = %cause, hint = cause.hint(), "a commit was refused");
                self.halted.get_or_init(|| cause.clone());
            }
        }
        result
    }
}

/// Tells once the batch is durable or refused.
#[derive(Debug)]
#[must_use = "a batch is durable only once its completion says so"]
pub struct Completion(oneshot::Receiver<Result<(), StoreError>>);

impl Completion {
    /// Blocks until the batch is durable or refused. Panics inside an asynchronous task.
    pub fn wait(self) -> Result<(), StoreError> {
        self.0.blocking_recv().unwrap_or(Err(StoreError::Closed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Fault, MemoryStore};
    use crate::{Kind, Record};
    use std::sync::Mutex;
    use std::thread;

    fn batch(id: u128) -> Batch {
        Batch::of(vec![Record::put(Kind::new("n"), id, b"{}".to_vec())])
    }

    fn ids(store: &MemoryStore) -> Vec<u128> {
        let mut ids = Vec::new();
        store
            .load(&mut |_, id, _| {
                ids.push(id);
                Ok(())
            })
            .unwrap();
        ids
    }

    /// A writer whose first commit waits for the returned gate to open.
    fn gated(limits: WriterLimits) -> (MemoryStore, Writer, Arc<Mutex<()>>) {
        let store = MemoryStore::new();
        let gate = Arc::new(Mutex::new(()));
        let inside = Arc::clone(&gate);
        store.inject(Box::new(move |_| {
            drop(inside.lock());
            None
        }));
        let epoch = store.acquire("a", 0, 10).unwrap();
        let writer = Writer::start(Arc::new(store.clone()), epoch, limits).unwrap();
        (store, writer, gate)
    }

    #[test]
    fn waiting_batches_share_a_transaction_and_keep_their_order() {
        let (store, writer, gate) = gated(WriterLimits::default());
        let shut = gate.lock().unwrap();
        let completions: Vec<_> = (0..32).map(|id| writer.submit(batch(id)).unwrap()).collect();
        drop(shut);
        for completion in completions {
            completion.wait().unwrap();
        }
        assert_eq!(ids(&store), (0..32).collect::<Vec<u128>>());
        let stats = writer.stats();
        assert_eq!((stats.batches, stats.rows), (32, 32));
        assert!(stats.commits <= 3, "{stats:?}");
    }

    #[test]
    fn a_transaction_stops_growing_at_its_limit() {
        let (store, writer, gate) = gated(WriterLimits { queue: 64, rows_per_commit: 4 });
        let shut = gate.lock().unwrap();
        let completions: Vec<_> = (0..32).map(|id| writer.submit(batch(id)).unwrap()).collect();
        drop(shut);
        for completion in completions {
            completion.wait().unwrap();
        }
        assert!(writer.stats().commits >= 8, "{:?}", writer.stats());
        assert_eq!(store.commits(), writer.stats().commits);
    }

    #[test]
    fn nothing_is_written_after_a_refused_batch() {
        let store = MemoryStore::new();
        let epoch = store.acquire("a", 0, 10).unwrap();
        let writer =
            Writer::start(Arc::new(store.clone()), epoch, WriterLimits::default()).unwrap();
        writer.submit(batch(1)).unwrap().wait().unwrap();
        let refusal = StoreError::Injected("no".to_owned());
        let mut once = Some(Fault::Refuse(refusal.clone()));
        store.inject(Box::new(move |_| once.take()));
        assert_eq!(writer.submit(batch(2)).unwrap().wait(), Err(refusal.clone()));
        let halted = writer.submit(batch(3)).unwrap().wait();
        assert_eq!(halted, Err(StoreError::Halted { cause: Box::new(refusal.clone()) }));
        assert_eq!(writer.halted(), Some(&refusal));
        assert_eq!(ids(&store), [1]);
    }

    #[test]
    fn a_deposed_writer_is_told() {
        let store = MemoryStore::new();
        let epoch = store.acquire("a", 0, 10).unwrap();
        let writer =
            Writer::start(Arc::new(store.clone()), epoch, WriterLimits::default()).unwrap();
        writer.submit(batch(1)).unwrap().wait().unwrap();
        store.acquire("b", 11, 10).unwrap();
        let refused = writer.submit(batch(2)).unwrap().wait();
        assert_eq!(refused, Err(StoreError::Deposed { epoch: 1, current: 2 }));
    }

    #[test]
    fn a_lone_batch_is_committed_here_and_others_keep_their_order() {
        let (store, writer, gate) = gated(WriterLimits::default());
        let (tell, told) = std::sync::mpsc::sync_channel(4);
        let then = |number: u8| -> Then {
            let tell = tell.clone();
            Box::new(move |result| tell.send((number, result, thread::current().id())).unwrap())
        };
        writer.commit_here(batch(1), then(1)).unwrap();
        assert_eq!(told.try_recv().unwrap(), (1, Ok(()), thread::current().id()));
        let shut = gate.lock().unwrap();
        writer.submit_then(batch(2), then(2)).unwrap();
        writer.commit_here(batch(3), then(3)).unwrap();
        writer.commit_here(Batch::default(), then(4)).unwrap();
        assert!(told.try_recv().is_err(), "one is under way, so the others wait for it");
        drop(shut);
        let order: Vec<u8> = told.iter().take(3).map(|(number, _, _)| number).collect();
        assert_eq!((order, ids(&store)), (vec![2, 3, 4], vec![1, 2, 3]));
    }

    #[test]
    fn dropping_a_writer_finishes_what_was_submitted() {
        let (store, writer, gate) = gated(WriterLimits::default());
        let shut = gate.lock().unwrap();
        let last: Vec<_> = (0..8).map(|id| writer.submit(batch(id)).unwrap()).collect();
        drop(shut);
        drop(writer);
        for completion in last {
            completion.wait().unwrap();
        }
        assert_eq!(ids(&store).len(), 8);
    }
}
