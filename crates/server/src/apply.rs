//! The apply loop: take a batch of waiting commands, apply each, commit all their rows in one
//! transaction, then answer callers and publish events.
//!
//! This thread and the store's writer form a pipeline: batch N+1 is applied while batch N is being
//! committed, and the writer answers once a commit is durable. A small batch with nothing before it
//! is committed right here. Nobody is answered and nothing is published before the commit. When a
//! commit fails, everything applied after it is thrown away with it: the state is loaded from the
//! store again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::{CellId, Time};
use runtime::Clock;
use state::{
    CellCommand, Changes, Command, JobCommand, MAX_FINISHED_JOBS, News, Refusal, Reply, RowKey,
    State, WorkKey,
};
use store::{
    Batch, Epoch, HistoryEntry, HistoryQuery, Kind, Record, Store, StoreError, Writer, WriterLimits,
};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::feed::{Feed, first_revision};
use crate::metrics::Meters;
use crate::server::StartError;
use crate::waits::Waits;
use crate::wakes::Wakes;

/// Commands that may wait; one more waits at its caller.
pub const MAX_WAITING: usize = 4_096;
/// Commands applied between two commits.
pub const MAX_BATCH: usize = 512;
/// Batches applied but not yet being committed.
pub const MAX_IN_FLIGHT: usize = 8;
/// Up to this many commands, a batch is not worth the two thread switches to the writer and back.
const COMMITTED_HERE: usize = 4;
/// Events a subscriber may be behind; then it is told to look at everything again.
pub const MAX_EVENTS: usize = 4_096;
/// Pause between two attempts to load the state again after a failed commit.
const REBUILD_PAUSE: Duration = Duration::from_secs(1);
/// How long after a refused commit nothing else is tried: what the store refuses now it refuses again,
/// and each attempt would cost a load of the whole state.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// The embedded store has one writer, guarded by a file lock; its lease needs no renewing.
const EMBEDDED_LEASE_MS: u64 = 1 << 45;

/// The history of jobs that ended.
const JOBS: Kind = Kind::new(state::JOB_HISTORY);

/// What a commit changed.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// The rows, each once.
    pub rows: Vec<RowKey>,
    /// Cells that have something else to do, and about what.
    pub cells: BTreeMap<CellId, BTreeSet<WorkKey>>,
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
/// Who asked, and what is answered once everything before it is durable.
type Answered = (Answer, Result<Reply, ApplyError>);
/// Delivers what a read found, once everything before it is durable.
type Delivery = Box<dyn FnOnce() + Send>;
type Read = Box<dyn FnOnce(&State) -> Delivery + Send>;

enum Request {
    Apply(Box<Command>, Answer),
    Read(Read),
    /// A commit failed: look at [`Publisher::void`].
    Wake,
}

/// Where commands go in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Loop {
    requests: mpsc::Sender<Request>,
    events: broadcast::Sender<Arc<Published>>,
    deadline: watch::Receiver<Option<Time>>,
    feed: Feed,
    wakes: Wakes,
    waits: Waits,
    meters: Arc<Meters>,
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
        let (deadline_out, deadline) = watch::channel(None);
        let (feed, wakes, waits) = (Feed::new(0), Wakes::default(), Waits::default());
        let meters = Arc::new(Meters::default());
        let mut applier = Applier {
            store,
            clock,
            domain: domain.to_owned(),
            live: None,
            epoch: None,
            generation: 0,
            resumes: false,
            closed_until: None,
            base: 0,
            revision: 0,
            routes: 0,
            publisher: Arc::new(Publisher {
                events: events.clone(),
                requests: requests.downgrade(),
                void: AtomicU64::new(0),
                refusal: Mutex::default(),
                feed: feed.clone(),
                wakes: wakes.clone(),
                waits: waits.clone(),
                meters: Arc::clone(&meters),
            }),
            meters: Arc::clone(&meters),
            deadline: deadline_out,
        };
        applier.live = Some(applier.load()?);
        feed.reset(applier.base);
        runtime::spawn_thread("apply", move || applier.run(waiting))?;
        Ok(Self { requests, events, deadline, feed, wakes, waits, meters })
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

    /// The last changes.
    pub(crate) const fn feed(&self) -> &Feed {
        &self.feed
    }

    /// The streams of cells.
    pub(crate) const fn wakes(&self) -> &Wakes {
        &self.wakes
    }

    pub(crate) const fn waits(&self) -> &Waits {
        &self.waits
    }

    pub(crate) fn meters(&self) -> &Meters {
        &self.meters
    }

    /// When the next deadline is, whenever that changes.
    pub fn deadline(&self) -> watch::Receiver<Option<Time>> {
        self.deadline.clone()
    }
}

/// One applied batch that waits for its commit.
struct Applied {
    answers: Vec<Answered>,
    deliveries: Vec<Delivery>,
    event: Published,
    news: Vec<News>,
    /// The revision that the state began with.
    base: u64,
    generation: u64,
    /// When it was applied.
    now: Time,
    at: Instant,
    /// Whether there is anything to commit.
    commits: bool,
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
    /// The lease that was taken at the start.
    epoch: Option<Epoch>,
    /// How often the state was loaded.
    generation: u64,
    /// The revision that the state began with, and the last one it gave.
    base: u64,
    revision: u64,
    /// It was loaded again, and nothing was applied since.
    resumes: bool,
    /// Until when changes are refused because the store refused one.
    closed_until: Option<Instant>,
    /// The last generation of the routes that was told of.
    routes: u64,
    publisher: Arc<Publisher>,
    deadline: watch::Sender<Option<Time>>,
    meters: Arc<Meters>,
}

impl Applier {
    fn load(&mut self) -> Result<Live, StoreError> {
        self.generation += 1;
        // The writer before has ended and finished what it took. So the lease need not be taken
        // again, which a full disk would refuse: the state can still be read then.
        let epoch = match self.epoch {
            Some(epoch) => epoch,
            None => self.store.acquire("embedded", self.clock.now_ms(), EMBEDDED_LEASE_MS)?,
        };
        let mut state = State::new(&self.domain);
        let loaded = self.store.load(&mut |kind, _, body| state.load(kind, body))?;
        // Should somebody else have taken it, the next attempt takes it back.
        self.epoch = (loaded.epoch == epoch).then_some(epoch);
        if loaded.epoch != epoch {
            return Err(StoreError::Deposed { epoch: epoch.0, current: loaded.epoch.0 });
        }
        load_ended(&*self.store, &mut state)?;
        state.loaded(Time(self.clock.now_ms()), self.routes);
        // Later than what was applied in vain.
        self.base = first_revision(epoch).max(self.revision + 1);
        state.number_from(self.base);
        let limits = WriterLimits { queue: MAX_IN_FLIGHT, ..WriterLimits::default() };
        let writer = Writer::start(Arc::clone(&self.store), epoch, limits)?;
        Ok(Live { state, writer })
    }

    fn run(mut self, mut waiting: mpsc::Receiver<Request>) {
        while let Some(first) = waiting.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < MAX_BATCH {
                let Ok(next) = waiting.try_recv() else { break };
                batch.push(next);
            }
            if self.publisher.void.load(Ordering::Acquire) == self.generation {
                self.live = None;
                self.closed_until = Some(runtime::mono_now() + REFUSED_PAUSE);
            }
            if self.live.is_none() {
                self.rebuild();
            }
            self.batch(batch);
        }
    }

    fn rebuild(&mut self) {
        match self.load() {
            Ok(live) => {
                tracing::info!("the state was loaded from the store again");
                self.live = Some(live);
                self.resumes = true;
            }
            Err(error) => {
                tracing::error!(%error, hint = error.hint(), "cannot load the state");
                runtime::pause_thread(REBUILD_PAUSE);
            }
        }
    }

    /// Begins leases afresh before the first change after the state was loaded again. Reading alone
    /// must work while nothing can be written.
    fn resume(&mut self, now: Time, batch: &[Request]) {
        let changes = || batch.iter().any(|request| matches!(request, Request::Apply(..)));
        let Some(live) = self.live.as_mut().filter(|_| self.resumes && changes()) else { return };
        self.resumes = false;
        if let Err(refusal) = live.state.apply(now, Command::Resume) {
            tracing::error!(%refusal, "leases could not be given afresh");
        }
    }

    /// Applies the commands of a batch, and has its readers read.
    fn carry_out(&mut self, now: Time, batch: Vec<Request>) -> (Vec<Answered>, Vec<Delivery>) {
        let mut answers = Vec::with_capacity(batch.len());
        let mut deliveries = Vec::new();
        let closed = self.closed_until.is_some_and(|until| runtime::mono_now() < until);
        if !closed {
            self.resume(now, &batch);
        }
        for request in batch {
            match (request, &mut self.live) {
                (Request::Apply(command, answer), Some(_)) if closed && !is_beat(&command) => {
                    let reason = self.publisher.refusal().clone();
                    answers.push((answer, Err(ApplyError::Unavailable(reason))));
                }
                (Request::Apply(command, answer), Some(live)) => {
                    let done = measured(&self.meters, &mut live.state, now, *command);
                    answers.push((answer, done));
                }
                (Request::Read(read), Some(live)) => deliveries.push(read(&live.state)),
                (Request::Apply(_, answer), None) => {
                    let reason = "the state could not be loaded".to_owned();
                    answers.push((answer, Err(ApplyError::Unavailable(reason))));
                }
                (Request::Read(_), None) | (Request::Wake, _) => {}
            }
        }
        (answers, deliveries)
    }

    /// Applies a batch and has it committed.
    fn batch(&mut self, batch: Vec<Request>) {
        let now = Time(self.clock.now_ms());
        let here = batch.len() <= COMMITTED_HERE;
        let (answers, deliveries) = self.carry_out(now, batch);
        let event = Published::default();
        let (news, base, generation) = (Vec::new(), self.base, self.generation);
        let (at, commits) = (runtime::mono_now(), false);
        let applied =
            Applied { answers, deliveries, event, news, base, generation, now, at, commits };
        let Some(live) = &mut self.live else { return applied.refuse("the state is not loaded") };
        let mut changes = match live.state.take_changes() {
            Ok(changes) => changes,
            Err(reason) => {
                tracing::error!(reason, "what was applied cannot be committed");
                self.live = None;
                return applied.refuse(&reason);
            }
        };
        let deadline = live.state.next_deadline();
        self.deadline.send_if_modified(|known| std::mem::replace(known, deadline) != deadline);
        let event = Published {
            rows: changes.rows.iter().map(|change| change.key).collect(),
            cells: std::mem::take(&mut changes.cells),
            routes: live.state.route_generation(),
        };
        self.revision = live.state.revision();
        self.routes = event.routes;
        let news = std::mem::take(&mut changes.news);
        let commits = !changes.rows.is_empty();
        let applied = Applied { event, news, commits, ..applied };
        let publisher = Arc::clone(&self.publisher);
        let then = Box::new(move |result| publisher.publish(applied, result));
        let batch = batch_of(now, changes);
        let submitted = if here {
            live.writer.commit_here(batch, then)
        } else {
            live.writer.submit_then(batch, then)
        };
        if let Err(error) = submitted {
            // Whoever asked hears of it by the end of their channels.
            tracing::error!(%error, hint = error.hint(), "the store's writer has ended");
            self.live = None;
        }
    }
}

/// Whether a command changes leases only, which are not written.
fn is_beat(command: &Command) -> bool {
    match command {
        Command::Cell(command) => matches!(command, CellCommand::Heartbeat { .. }),
        Command::Job(command) => matches!(command.said(), JobCommand::Heartbeat(_)),
        _ => false,
    }
}

/// Applies a command, and notes how long it took when that says something of its own.
fn measured(
    meters: &Meters,
    state: &mut State,
    now: Time,
    command: Command,
) -> Result<Reply, ApplyError> {
    let (is_tick, before) = (matches!(command, Command::Tick), state.auctions());
    let began = runtime::mono_now();
    let done = state.apply(now, command).map_err(ApplyError::from);
    if is_tick {
        meters.convergence.observe(began.elapsed());
    }
    if state.auctions() != before {
        meters.auctions.observe(began.elapsed());
    }
    done
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
        key: state::history_key(row.id),
        at_ms: now.0,
        body: row.body,
    });
    Batch { records: records.collect(), histories: histories.collect() }
}

impl Applied {
    /// Tells everybody that nothing of it was done.
    fn refuse(self, reason: &str) {
        for (answer, _) in self.answers {
            // The caller may have gone.
            drop(answer.send(Err(ApplyError::Unavailable(reason.to_owned()))));
        }
    }
}

struct Publisher {
    events: broadcast::Sender<Arc<Published>>,
    requests: mpsc::WeakSender<Request>,
    /// The generation of the state that is void since a commit of it failed; 0 for none.
    void: AtomicU64,
    /// Why the store refused the last commit that it refused.
    refusal: Mutex<String>,
    feed: Feed,
    wakes: Wakes,
    waits: Waits,
    meters: Arc<Meters>,
}

impl Publisher {
    fn refusal(&self) -> MutexGuard<'_, String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a batch whose commit ended; called in the order in which the batches were applied.
    fn publish(&self, applied: Applied, result: Result<(), StoreError>) {
        if let Err(error) = result {
            self.void.store(applied.generation, Ordering::Release);
            self.meters.refused.fetch_add(1, Ordering::Relaxed);
            let reason = format!("{error} ({})", error.hint());
            self.refusal().clone_from(&reason);
            applied.refuse(&reason);
            // Must not wait here. When there is no room, whoever takes the next request looks.
            if let Some(requests) = self.requests.upgrade() {
                drop(requests.try_send(Request::Wake));
            }
            return;
        }
        if self.void.swap(0, Ordering::AcqRel) != 0 {
            // The state was loaded again. A commit that failed may have been kept all the same, so
            // everybody looks at everything.
            drop(self.events.send(Arc::new(Published::default())));
            self.feed.reset(applied.base);
            self.wakes.wake_all();
            self.waits.wake_all();
        }
        if applied.commits {
            self.meters.commits.observe(applied.at.elapsed());
        }
        self.feed.push(applied.now, applied.news);
        self.wakes.wake(&applied.event.cells);
        self.waits.wake(&applied.event.rows);
        if !applied.event.rows.is_empty() {
            // Nobody may be listening.
            drop(self.events.send(Arc::new(applied.event)));
        }
        for (answer, done) in applied.answers {
            // The caller may have gone; what it asked for is done all the same.
            drop(answer.send(done));
        }
        applied.deliveries.into_iter().for_each(|deliver| deliver());
    }
}
