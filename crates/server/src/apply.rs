//! The apply loop: take a batch of waiting commands, apply each, commit all their rows in one
//! transaction, then answer callers and publish events.
//!
//! Two threads and the store's writer form a pipeline. The first applies batch N+1 while batch N is
//! being committed; the second waits for commits in order and only then answers. Nobody is answered
//! and nothing is published before the commit. When a commit fails, everything applied after it is
//! thrown away with it: the state is loaded from the store again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use model::{CellId, Time};
use runtime::Clock;
use state::{Changes, Command, MAX_FINISHED_JOBS, Refusal, Reply, RowKey, State};
use store::{
    Batch, Completion, HistoryEntry, HistoryQuery, Kind, Record, Store, StoreError, Writer,
    WriterLimits,
};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::server::StartError;

/// Commands that may wait; one more waits at its caller.
pub const MAX_WAITING: usize = 4_096;
/// Commands applied between two commits.
pub const MAX_BATCH: usize = 512;
/// Batches applied but not yet answered.
pub const MAX_IN_FLIGHT: usize = 8;
/// Events a subscriber may be behind; then it is told to look at everything again.
pub const MAX_EVENTS: usize = 4_096;
/// Pause between two attempts to load the state again after a failed commit.
const REBUILD_PAUSE: Duration = Duration::from_secs(1);
/// The embedded store has one writer, guarded by a file lock; its lease needs no renewing.
const EMBEDDED_LEASE_MS: u64 = 1 << 45;

/// The history of jobs that ended.
const JOBS: Kind = Kind::new("job");

/// What a commit changed.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// The rows, each once.
    pub rows: Vec<RowKey>,
    /// Cells whose work changed.
    pub cells: BTreeSet<CellId>,
    /// The generation of the route table after it.
    pub routes: u64,
}

/// Why a command got no answer from the state.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApplyError {
    /// The state said no; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store refused the commit, so nothing is acknowledged.
    #[error("the server cannot write now: {0}")]
    Unavailable(String),
}

type Answer = oneshot::Sender<Result<Reply, ApplyError>>;
/// Delivers what a read found, once everything before it is durable.
type Delivery = Box<dyn FnOnce() + Send>;
type Read = Box<dyn FnOnce(&State) -> Delivery + Send>;

enum Request {
    Apply(Box<Command>, Answer),
    Read(Read),
    /// Everything applied since this generation of the state was loaded is void.
    Rebuild(u64),
}

/// Where commands go in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Loop {
    requests: mpsc::Sender<Request>,
    events: broadcast::Sender<Arc<Published>>,
    deadline: watch::Receiver<Option<Time>>,
}

impl Loop {
    /// Loads the state from `store` and starts the threads.
    pub fn start(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        domain: &str,
    ) -> Result<Self, StartError> {
        let (requests, waiting) = mpsc::channel(MAX_WAITING);
        let (events, _) = broadcast::channel(MAX_EVENTS);
        let (commits, committed) = mpsc::channel(MAX_IN_FLIGHT);
        let (deadline_out, deadline) = watch::channel(None);
        let mut applier = Applier {
            store,
            clock,
            domain: domain.to_owned(),
            live: None,
            generation: 0,
            commits,
            deadline: deadline_out,
        };
        applier.live = Some(applier.load()?);
        let publisher = Publisher { events: events.clone(), requests: requests.downgrade() };
        runtime::spawn_thread("apply", move || applier.run(waiting))?;
        runtime::spawn_thread("publish", move || publisher.run(committed))?;
        Ok(Self { requests, events, deadline })
    }

    /// Carries out a command; the answer comes once it is durable.
    pub async fn apply(&self, command: Command) -> Result<Reply, ApplyError> {
        let (answer, answered) = oneshot::channel();
        let gone = || ApplyError::Unavailable("it is shutting down".to_owned());
        self.requests.send(Request::Apply(Box::new(command), answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Reads the state; the answer comes once everything it saw is durable.
    pub async fn read<T, F>(&self, read: F) -> Result<T, ApplyError>
    where
        T: Send + 'static,
        F: FnOnce(&State) -> T + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let read: Read = Box::new(move |state| {
            let found = read(state);
            // The reader may have gone.
            Box::new(move || drop(answer.send(found)))
        });
        let gone = || ApplyError::Unavailable("the state is being loaded".to_owned());
        self.requests.send(Request::Read(read)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }

    /// Everything published from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Published>> {
        self.events.subscribe()
    }

    /// When the next deadline is, whenever that changes.
    pub fn deadline(&self) -> watch::Receiver<Option<Time>> {
        self.deadline.clone()
    }
}

/// One applied batch on its way to the publisher.
struct Applied {
    completion: Option<Completion>,
    answers: Vec<(Answer, Result<Reply, ApplyError>)>,
    deliveries: Vec<Delivery>,
    event: Published,
    generation: u64,
}

/// The state as loaded from the store, and who commits for it.
struct Live {
    state: State,
    writer: Writer,
}

struct Applier {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    domain: String,
    live: Option<Live>,
    /// How often the state was loaded.
    generation: u64,
    commits: mpsc::Sender<Applied>,
    deadline: watch::Sender<Option<Time>>,
}

impl Applier {
    fn load(&mut self) -> Result<Live, StoreError> {
        self.generation += 1;
        let epoch = self.store.acquire("embedded", self.clock.now_ms(), EMBEDDED_LEASE_MS)?;
        let mut state = State::new(&self.domain);
        self.store.load(&mut |kind, _, body| state.load(kind, body))?;
        load_ended(&*self.store, &mut state)?;
        let writer = Writer::start(Arc::clone(&self.store), epoch, WriterLimits::default())?;
        Ok(Live { state, writer })
    }

    fn run(mut self, mut waiting: mpsc::Receiver<Request>) {
        while let Some(first) = waiting.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < MAX_BATCH {
                let Ok(next) = waiting.try_recv() else { break };
                batch.push(next);
            }
            let void = batch.iter().any(|request| match request {
                Request::Rebuild(generation) => *generation == self.generation,
                Request::Apply(..) | Request::Read(_) => false,
            });
            if void {
                self.live = None;
            }
            if self.live.is_none() {
                self.rebuild();
            }
            if !self.batch(batch) {
                return;
            }
        }
    }

    fn rebuild(&mut self) {
        match self.load() {
            Ok(live) => {
                tracing::info!("the state was loaded from the store again");
                self.live = Some(live);
            }
            Err(error) => {
                tracing::error!(%error, hint = error.hint(), "cannot load the state");
                runtime::pause_thread(REBUILD_PAUSE);
            }
        }
    }

    /// Applies a batch and passes it on; false when nobody is left to pass it to.
    fn batch(&mut self, batch: Vec<Request>) -> bool {
        let now = Time(self.clock.now_ms());
        let mut answers = Vec::with_capacity(batch.len());
        let mut deliveries = Vec::new();
        for request in batch {
            match (request, &mut self.live) {
                (Request::Apply(command, answer), Some(live)) => {
                    let done = live.state.apply(now, *command).map_err(ApplyError::from);
                    answers.push((answer, done));
                }
                (Request::Read(read), Some(live)) => deliveries.push(read(&live.state)),
                (Request::Apply(_, answer), None) => {
                    let reason = "the state could not be loaded".to_owned();
                    answers.push((answer, Err(ApplyError::Unavailable(reason))));
                }
                (Request::Read(_), None) | (Request::Rebuild(_), _) => {}
            }
        }
        let generation = self.generation;
        let applied = match self.commit(now) {
            Ok((completion, event)) => {
                Applied { completion, answers, deliveries, event, generation }
            }
            Err(reason) => {
                tracing::error!(reason, "what was applied cannot be committed");
                self.live = None;
                let failed = |(answer, _)| (answer, Err(ApplyError::Unavailable(reason.clone())));
                Applied {
                    completion: None,
                    answers: answers.into_iter().map(failed).collect(),
                    deliveries: Vec::new(),
                    event: Published::default(),
                    generation,
                }
            }
        };
        self.commits.blocking_send(applied).is_ok()
    }

    fn commit(&mut self, now: Time) -> Result<(Option<Completion>, Published), String> {
        let Some(live) = &mut self.live else { return Ok((None, Published::default())) };
        let changes = live.state.take_changes()?;
        let event = Published {
            rows: changes.rows.iter().map(|change| change.key).collect(),
            cells: changes.cells.clone(),
            routes: live.state.route_generation(),
        };
        let deadline = live.state.next_deadline();
        self.deadline.send_if_modified(|known| std::mem::replace(known, deadline) != deadline);
        if changes.rows.is_empty() && changes.archived.is_empty() {
            return Ok((None, event));
        }
        let batch = batch_of(now, changes);
        let completion = live.writer.submit_blocking(batch).map_err(|error| error.to_string())?;
        Ok((Some(completion), event))
    }
}

/// The jobs that ended last, as the history has them.
fn load_ended(store: &dyn Store, state: &mut State) -> Result<(), StoreError> {
    let limit = u32::try_from(MAX_FINISHED_JOBS).unwrap_or(u32::MAX);
    for row in store.query_history(&HistoryQuery::newest(JOBS, limit))?.into_iter().rev() {
        state.load_ended(&row.body).map_err(|detail| StoreError::BadRecord {
            kind: JOBS.as_str().to_owned(),
            id: u128::from_str_radix(&row.key, 16).unwrap_or_default(),
            detail,
        })?;
    }
    Ok(())
}

fn batch_of(now: Time, changes: Changes) -> Batch {
    let records = changes.rows.into_iter().map(|change| Record {
        kind: Kind::new(change.key.kind()),
        id: change.key.raw(),
        body: change.body,
    });
    let histories = changes.archived.into_iter().map(|row| HistoryEntry {
        kind: Kind::new(row.kind),
        key: format!("{:032x}", row.id),
        at_ms: now.0,
        body: row.body,
    });
    Batch { records: records.collect(), histories: histories.collect() }
}

struct Publisher {
    events: broadcast::Sender<Arc<Published>>,
    requests: mpsc::WeakSender<Request>,
}

impl Publisher {
    fn run(self, mut committed: mpsc::Receiver<Applied>) {
        let mut void = None;
        while let Some(applied) = committed.blocking_recv() {
            let result = applied.completion.map_or(Ok(()), Completion::wait);
            let reason = match result {
                Ok(()) if void == Some(applied.generation) => "an earlier commit failed".to_owned(),
                Err(error) => format!("{error} ({})", error.hint()),
                Ok(()) => {
                    if void.take().is_some() {
                        // The state was loaded again. A commit that failed may have been kept all
                        // the same, so everybody looks at everything.
                        drop(self.events.send(Arc::new(Published::default())));
                    }
                    for (answer, done) in applied.answers {
                        // The caller may have gone; what it asked for is done all the same.
                        drop(answer.send(done));
                    }
                    applied.deliveries.into_iter().for_each(|deliver| deliver());
                    if !applied.event.rows.is_empty() || !applied.event.cells.is_empty() {
                        // Nobody may be listening.
                        drop(self.events.send(Arc::new(applied.event)));
                    }
                    continue;
                }
            };
            for (answer, _) in applied.answers {
                drop(answer.send(Err(ApplyError::Unavailable(reason.clone()))));
            }
            if void != Some(applied.generation) {
                void = Some(applied.generation);
                self.ask_for_rebuild(applied.generation);
            }
        }
    }

    fn ask_for_rebuild(&self, generation: u64) {
        if let Some(requests) = self.requests.upgrade()
            && requests.blocking_send(Request::Rebuild(generation)).is_err()
        {
            tracing::debug!("the apply loop has ended already");
        }
    }
}
