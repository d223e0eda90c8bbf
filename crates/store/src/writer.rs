//! The thread that commits: group commit with a pipeline in front.

use std::fmt::{Debug, Formatter};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
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

/// Commits batches in the order they were submitted, under one epoch.
///
/// After the first refused transaction nothing more is written: later batches were prepared on top
/// of what was refused. They are answered [`StoreError::Halted`]; the owner reloads its state and
/// starts a new writer. Dropping a writer waits until everything submitted is answered.
pub struct Writer {
    queue: Option<mpsc::Sender<Waiting>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    commits: AtomicU64,
    batches: AtomicU64,
    rows: AtomicU64,
    halted: OnceLock<StoreError>,
}

struct Waiting {
    batch: Batch,
    answer: oneshot::Sender<Result<(), StoreError>>,
}

impl Writer {
    /// Starts the thread. `epoch` must come from `store.acquire`.
    pub fn start(
        store: Arc<dyn Store>,
        epoch: Epoch,
        limits: WriterLimits,
    ) -> Result<Self, StoreError> {
        let (queue, waiting) = mpsc::channel(limits.queue.max(1));
        let shared = Arc::new(Shared::default());
        let committer = Committer {
            store,
            epoch,
            shared: Arc::clone(&shared),
            rows_per_commit: limits.rows_per_commit,
        };
        let thread = runtime::spawn_thread("store-writer", move || committer.run(waiting))
            .map_err(|error| StoreError::io("start a thread for", "the store".as_ref(), &error))?;
        Ok(Self { queue: Some(queue), thread: Some(thread), shared })
    }

    /// Hands a batch over; waits only while the queue is full.
    pub async fn submit(&self, batch: Batch) -> Result<Completion, StoreError> {
        let (waiting, completion) = Waiting::new(batch);
        self.queue()?.send(waiting).await.map_err(|_| self.gone())?;
        Ok(completion)
    }

    /// The same from a thread that may block. Panics inside an asynchronous task.
    pub fn submit_blocking(&self, batch: Batch) -> Result<Completion, StoreError> {
        let (waiting, completion) = Waiting::new(batch);
        self.queue()?.blocking_send(waiting).map_err(|_| self.gone())?;
        Ok(completion)
    }

    /// What has been written so far.
    pub fn stats(&self) -> WriterStats {
        WriterStats {
            commits: self.shared.commits.load(Ordering::Relaxed),
            batches: self.shared.batches.load(Ordering::Relaxed),
            rows: self.shared.rows.load(Ordering::Relaxed),
        }
    }

    /// Why nothing more is written, once a transaction was refused.
    pub fn halted(&self) -> Option<&StoreError> {
        self.shared.halted.get()
    }

    fn queue(&self) -> Result<&mpsc::Sender<Waiting>, StoreError> {
        self.queue.as_ref().ok_or(StoreError::Closed)
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

impl Waiting {
    fn new(batch: Batch) -> (Self, Completion) {
        let (answer, answered) = oneshot::channel();
        (Self { batch, answer }, Completion(answered))
    }
}

struct Committer {
    store: Arc<dyn Store>,
    epoch: Epoch,
    shared: Arc<Shared>,
    rows_per_commit: usize,
}

impl Committer {
    fn run(self, mut queue: mpsc::Receiver<Waiting>) {
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
            group.into_iter().map(|waiting| (waiting.batch, waiting.answer)).unzip();
        let result = match self.shared.halted.get() {
            Some(cause) => Err(StoreError::Halted { cause: Box::new(cause.clone()) }),
            None => self.commit(batches, answers.len(), rows),
        };
        for answer in answers {
            // The one who asked may have gone; the batch is written all the same.
            drop(answer.send(result.clone()));
        }
    }

    fn commit(&self, batches: Vec<Batch>, count: usize, rows: usize) -> Result<(), StoreError> {
        let result = self.store.commit(self.epoch, batches);
        match &result {
            Ok(()) => {
                self.shared.commits.fetch_add(1, Ordering::Relaxed);
                self.shared.batches.fetch_add(count as u64, Ordering::Relaxed);
                self.shared.rows.fetch_add(rows as u64, Ordering::Relaxed);
            }
            Err(cause) => {
                tracing::error!(error = %cause, hint = cause.hint(), "a commit was refused");
                self.shared.halted.get_or_init(|| cause.clone());
            }
        }
        result
    }
}

/// Resolves once the batch is durable or refused.
#[derive(Debug)]
#[must_use = "a batch is durable only once its completion says so"]
pub struct Completion(oneshot::Receiver<Result<(), StoreError>>);

impl Completion {
    /// Blocks until the batch is durable or refused. Panics inside an asynchronous task.
    pub fn wait(self) -> Result<(), StoreError> {
        self.0.blocking_recv().unwrap_or(Err(StoreError::Closed))
    }
}

impl Future for Completion {
    type Output = Result<(), StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|answer| answer.unwrap_or(Err(StoreError::Closed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Fault, MemoryStore};
    use crate::{Kind, Record};
    use std::sync::Mutex;

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
        let completions: Vec<_> =
            (0..32).map(|id| writer.submit_blocking(batch(id)).unwrap()).collect();
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
        let completions: Vec<_> =
            (0..32).map(|id| writer.submit_blocking(batch(id)).unwrap()).collect();
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
        writer.submit_blocking(batch(1)).unwrap().wait().unwrap();
        let refusal = StoreError::Injected("no".to_owned());
        let mut once = Some(Fault::Refuse(refusal.clone()));
        store.inject(Box::new(move |_| once.take()));
        assert_eq!(writer.submit_blocking(batch(2)).unwrap().wait(), Err(refusal.clone()));
        let halted = writer.submit_blocking(batch(3)).unwrap().wait();
        assert_eq!(halted, Err(StoreError::Halted { cause: Box::new(refusal.clone()) }));
        assert_eq!(writer.halted(), Some(&refusal));
        assert_eq!(ids(&store), [1]);
    }

    #[tokio::test]
    async fn a_deposed_writer_is_told() {
        let store = MemoryStore::new();
        let epoch = store.acquire("a", 0, 10).unwrap();
        let writer =
            Writer::start(Arc::new(store.clone()), epoch, WriterLimits::default()).unwrap();
        writer.submit(batch(1)).await.unwrap().await.unwrap();
        store.acquire("b", 11, 10).unwrap();
        let refused = writer.submit(batch(2)).await.unwrap().await;
        assert_eq!(refused, Err(StoreError::Deposed { epoch: 1, current: 2 }));
    }

    #[test]
    fn dropping_a_writer_finishes_what_was_submitted() {
        let (store, writer, gate) = gated(WriterLimits::default());
        let shut = gate.lock().unwrap();
        let last: Vec<_> = (0..8).map(|id| writer.submit_blocking(batch(id)).unwrap()).collect();
        drop(shut);
        drop(writer);
        for completion in last {
            completion.wait().unwrap();
        }
        assert_eq!(ids(&store).len(), 8);
    }
}
