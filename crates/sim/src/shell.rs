//! The shell around the state, as the server has it: batches, commits, then answers and events.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use model::Time;
use state::{
    Cell, CellCommand, Change, Changes, Command, Deployment, Instance, Job, JobCommand, RowKey,
    State, Task,
};
use store::memory::{Fault, MemoryStore};
use store::{
    Batch, Epoch, HistoryEntry, HistoryQuery, Kind, MAX_HISTORY_PAGE, Record, Store as _,
    StoreError,
};

use crate::clock::Clock;
use crate::leases::Heard;
use crate::message::{
    Answer, Ask, CellWork, Event, Found, Node, Origin, Outcomes, Published, Read, Should,
};
use crate::planted;
use crate::session::Session;
use crate::world::World;

/// Most requests in one batch.
const MAX_BATCH: usize = 32;
/// The parent of every host.
pub(crate) const DOMAIN: &str = "localhost";
/// How often the ticker looks.
const TICK: u64 = 500;

#[derive(Debug)]
enum What {
    Apply(Box<Command>),
    Read(Read),
}

/// A batch on its way into the store.
#[derive(Debug)]
struct Applied {
    generation: u64,
    at: Time,
    batch: Batch,
    answers: Vec<(Origin, Outcomes)>,
    /// Attempts whose acknowledgement is in it.
    acks: Vec<state::Attempt>,
    event: Published,
}

/// Somebody who waits for the end of a job.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact about one waiting call")]
#[derive(Debug)]
pub(crate) struct Follow {
    pub(crate) call: u64,
    pub(crate) job: model::JobId,
    /// Whether events reach it.
    subscribed: bool,
    /// Whether a read is under way.
    pub(crate) reading: bool,
    /// Whether an event came meanwhile.
    again: bool,
}

/// The server's process and its store.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact about one process")]
#[derive(Debug)]
pub(crate) struct Shell {
    pub(crate) store: MemoryStore,
    epoch: Epoch,
    pub(crate) live: Option<State>,
    /// Follows the live state; differs only when something is not deterministic or a refusal
    /// leaves traces.
    shadow: Option<State>,
    with_shadow: bool,
    up: bool,
    booted: bool,
    pub(crate) life: u64,
    generation: u64,
    void: Option<u64>,
    inbox: VecDeque<(What, Origin)>,
    batch_due: bool,
    flight: VecDeque<Applied>,
    last_commit: u64,
    pub(crate) sessions: BTreeMap<u64, Session>,
    /// The connection that each component opened last, while it is open.
    pub(crate) newest: BTreeMap<Node, u64>,
    pub(crate) follows: BTreeMap<u64, Follow>,
    calls: Vec<u64>,
    pub(crate) clock: Clock,
    /// For how long the process stood still, in all.
    pub(crate) stood_still: u64,
    pub(crate) heard: Heard,
    /// How many lines of each job's log have arrived.
    pub(crate) logs: BTreeMap<model::JobId, u64>,
    /// A commit that was answered and is not on the disk yet: only with a planted bug.
    unsynced: Option<Batch>,
    /// Whether leases are to begin afresh before the first change.
    resumes: bool,
    /// The number of the last change.
    revision: u64,
    ticking: bool,
    routes_seen: u64,
    /// Whether the next event says to look at everything.
    look_again: bool,
}

impl Shell {
    pub(crate) fn new(with_shadow: bool) -> Self {
        Self {
            store: MemoryStore::new(),
            epoch: Epoch(0),
            live: None,
            shadow: None,
            with_shadow,
            up: false,
            booted: false,
            life: 0,
            generation: 0,
            void: None,
            inbox: VecDeque::new(),
            batch_due: false,
            flight: VecDeque::new(),
            last_commit: 0,
            sessions: BTreeMap::new(),
            newest: BTreeMap::new(),
            follows: BTreeMap::new(),
            calls: Vec::new(),
            clock: Clock::default(),
            stood_still: 0,
            heard: Heard::default(),
            logs: BTreeMap::new(),
            unsynced: None,
            resumes: false,
            revision: 0,
            ticking: false,
            routes_seen: 0,
            look_again: false,
        }
    }

    /// Whether connections and calls are taken.
    pub(crate) const fn is_serving(&self) -> bool {
        self.up && self.booted
    }

    /// The state, when nothing is between it and the store.
    pub(crate) fn settled(&self) -> Option<&State> {
        let idle = self.is_serving() && self.flight.is_empty() && self.inbox.is_empty();
        self.live.as_ref().filter(|_| idle)
    }

    pub(crate) fn subscribed(&mut self, follow: u64) {
        if let Some(follow) = self.follows.get_mut(&follow) {
            follow.subscribed = true;
        }
    }

    /// A state made of what the store holds.
    pub(crate) fn loaded(&self) -> Result<State, String> {
        let mut state = State::new(DOMAIN);
        let forgets = planted::is("M19");
        self.store
            .load(&mut |kind, _, body| {
                let waiting = || body.windows(17).any(|text| text == b"\"state\":\"waiting\"");
                if forgets && kind == "job" && waiting() { Ok(()) } else { state.load(kind, body) }
            })
            .map_err(|error| error.to_string())?;
        let ended = HistoryQuery::newest(Kind::new(state::JOB_HISTORY), MAX_HISTORY_PAGE);
        let ended = self.store.query_history(&ended).map_err(|error| error.to_string())?;
        ended.iter().rev().try_for_each(|row| state.load_ended(&row.body))?;
        Ok(state)
    }
}

fn batch_of(at: Time, changes: Changes) -> Batch {
    let records = changes.rows.into_iter().map(|change| Record {
        kind: Kind::new(change.key.kind()),
        id: change.key.raw(),
        body: change.body,
    });
    let histories = changes.archived.into_iter().map(|row| HistoryEntry {
        kind: Kind::new(row.kind),
        key: state::history_key(row.id),
        at_ms: at.0,
        body: row.body,
    });
    Batch { records: records.collect(), histories: histories.collect() }
}

impl World {
    pub(crate) fn wall(&self) -> Time {
        Time(self.shell.clock.read(self.now))
    }

    pub(crate) fn server_start(&mut self) {
        if self.shell.up {
            return;
        }
        self.shell.clock.start(self.now);
        self.note(format_args!("the server starts, its clock shows {}", self.wall()));
        self.shell.up = true;
        self.shell.booted = false;
        self.shell.batch_due = false;
        self.shell.life += 1;
        let life = self.shell.life;
        self.rebuild();
        if let Some(heard) = self.shell.live.as_ref().and_then(State::last_heard) {
            self.shell.clock.has_been(self.now, heard.0);
        }
        self.request(What::Apply(Box::new(Command::Boot)), Origin::Boot);
        self.later(TICK, Event::Tick { life });
        self.later(TICK, Event::Courier { life });
    }

    /// The server is killed. What was being committed may or may not have been kept.
    pub(crate) fn server_crash(&mut self) {
        if !self.shell.up || self.stuck.is_some() {
            return;
        }
        let kept = self.rng.index(self.shell.flight.len() + 1);
        self.note(format_args!("the server is killed, {kept} commits under way are kept"));
        for _ in 0..kept {
            let Some(applied) = self.shell.flight.pop_front() else { break };
            if self.shell.void == Some(applied.generation) || self.write(&applied, None).is_err() {
                break;
            }
        }
        self.shell.unsynced = None;
        self.stop_serving();
        self.shell.up = false;
        let away = if self.rng.chance(200) { 20_000 } else { 1_500 };
        let away = self.rng.between(100, away);
        self.later(away, Event::ServerStart);
    }

    fn stop_serving(&mut self) {
        self.shell.booted = false;
        self.shell.life += 1;
        self.shell.routes_seen = 0;
        self.sync();
        self.shell.live = None;
        self.shell.shadow = None;
        self.shell.inbox.clear();
        self.shell.flight.clear();
        self.shell.sessions.clear();
        self.shell.newest.clear();
        self.shell.follows.clear();
        self.shell.batch_due = false;
        self.shell.ticking = false;
        for id in std::mem::take(&mut self.shell.calls) {
            let delay = self.rng.between(1, 500);
            self.later(delay, Event::Answer { id, answer: Answer::Broken });
        }
        let conns: Vec<u64> = self.conns.keys().copied().collect();
        for conn in conns {
            let delay = self.rng.between(1, 3_000);
            self.cut(conn, delay, 1);
        }
    }

    fn rebuild(&mut self) {
        self.shell.generation += 1;
        let now = self.wall().0;
        match self.shell.store.acquire("embedded", now, 1 << 45) {
            Ok(epoch) => self.shell.epoch = epoch,
            Err(error) => self.fail("lease", error.to_string()),
        }
        let loaded = self.shell.loaded();
        match (loaded, self.shell.loaded()) {
            (Ok(mut live), Ok(mut shadow)) => {
                let (wall, served) = (self.wall(), self.shell.routes_seen);
                live.loaded(wall, served);
                shadow.loaded(wall, served);
                self.shell.live = Some(live);
                self.shell.shadow = self.shell.with_shadow.then_some(shadow);
            }
            (Err(error), _) | (_, Err(error)) => self.fail("load", error),
        }
        self.shell.revision = 0;
        self.check_loaded();
    }

    /// What was answered reaches the disk at last.
    fn sync(&mut self) {
        if let Some(batch) = self.shell.unsynced.take()
            && let Err(error) = self.shell.store.commit(self.shell.epoch, vec![batch])
        {
            self.note(format_args!("the store refuses: {error}"));
        }
    }

    fn request(&mut self, what: What, origin: Origin) {
        self.shell.inbox.push_back((what, origin));
        self.wake_loop();
    }

    fn wake_loop(&mut self) {
        if !self.shell.batch_due {
            self.shell.batch_due = true;
            let (delay, life) = (self.rng.below(3), self.shell.life);
            self.later(delay, Event::Batch { life });
        }
    }

    pub(crate) fn ask_apply(&mut self, command: Command, origin: Origin) {
        self.request(What::Apply(Box::new(command)), origin);
    }

    pub(crate) fn ask_read(&mut self, read: Read, origin: Origin) {
        self.request(What::Read(read), origin);
    }

    pub(crate) fn serve_call(&mut self, id: u64, ask: Ask) {
        self.shell.calls.push(id);
        match ask {
            Ask::Apply(command) => self.request(What::Apply(command), Origin::Call(id)),
            Ask::Task(task) => self.ask_read(Read::Task(task), Origin::Call(id)),
            Ask::Deployment(it) => self.ask_read(Read::Deployment(it), Origin::Call(id)),
            Ask::Follow(job) => {
                let subscribed = !planted::is("M17");
                let follow = Follow { call: id, job, subscribed, reading: true, again: false };
                self.shell.follows.insert(id, follow);
                self.ask_read(Read::IsOver(job), Origin::Follow(id));
            }
        }
    }

    /// Takes what waits, applies it, and passes the changed rows on to be committed.
    pub(crate) fn batch(&mut self, life: u64) {
        if life != self.shell.life || !self.shell.up {
            return;
        }
        self.shell.batch_due = false;
        if self.shell.void == Some(self.shell.generation) {
            self.note(format_args!("the state is loaded again"));
            self.sync();
            self.rebuild();
            self.shell.look_again = true;
            self.shell.resumes = true;
        }
        let at = self.wall();
        let mut applied = Applied {
            generation: self.shell.generation,
            at,
            batch: Batch::default(),
            answers: Vec::new(),
            acks: Vec::new(),
            event: Published::default(),
        };
        let changes = self.shell.inbox.iter().any(|(what, _)| matches!(what, What::Apply(_)));
        if changes && std::mem::take(&mut self.shell.resumes) {
            let resume = What::Apply(Box::new(Command::Resume));
            self.shell.inbox.push_front((resume, Origin::Operator));
        }
        for _ in 0..MAX_BATCH {
            let Some((what, origin)) = self.shell.inbox.pop_front() else { break };
            self.carry_out(at, what, origin, &mut applied);
        }
        self.collect(at, &mut applied);
        self.check_routes();
        self.shell.flight.push_back(applied);
        let slow = !self.mood.calm && self.chaos && self.rng.chance(60);
        let delay = if slow { self.rng.between(50, 300) } else { self.rng.between(1, 5) };
        let commit = self.shell.last_commit.max(self.now + delay);
        self.shell.last_commit = commit;
        self.later(commit - self.now, Event::Committed { life });
        if !self.shell.inbox.is_empty() {
            self.wake_loop();
        }
    }

    fn carry_out(&mut self, at: Time, what: What, origin: Origin, applied: &mut Applied) {
        let command = match what {
            What::Apply(command) => command,
            What::Read(read) => {
                let Some(live) = &self.shell.live else { return };
                applied.answers.push((origin, Outcomes::Found(find(live, read))));
                return;
            }
        };
        let leases = self.leases(&command);
        let Some(live) = &mut self.shell.live else { return };
        let stale = stale(live, &command);
        let shown = command.clone();
        let done = live.apply(at, *command);
        if done.is_ok() {
            if let Some(detail) = stale {
                self.fail("I1", detail);
            }
            if let Some(shadow) = &mut self.shell.shadow
                && let Err(refusal) = shadow.apply(at, (*shown).clone())
            {
                self.fail("determinism", format!("refused only the second time: {refusal}"));
            }
            self.heard(&shown);
            self.stopped_by_hand(&shown);
        }
        if let Some(before) = leases {
            self.check_leases(&before);
        }
        self.note_applied(&shown, &done);
        if let Command::Job(command) = &*shown
            && let JobCommand::Ack(attempt) = command.said()
        {
            if done.is_ok() {
                applied.acks.push(*attempt);
            }
            if planted::is("M4") {
                self.deliver(origin, Outcomes::Applied(done));
                return;
            }
        }
        applied.answers.push((origin, Outcomes::Applied(done)));
    }

    fn note_applied(&mut self, command: &Command, done: &Result<state::Reply, state::Refusal>) {
        match (command, done) {
            (Command::Cell(CellCommand::Heartbeat { .. }), Ok(_)) => {}
            (_, Ok(_)) => self.note(format_args!("applied {command:?}")),
            (_, Err(refusal)) => self.note(format_args!("refused {command:?}: {refusal}")),
        }
    }

    fn collect(&mut self, at: Time, applied: &mut Applied) {
        let Some(live) = &mut self.shell.live else { return };
        let changes = match live.take_changes() {
            Ok(changes) => changes,
            Err(error) => return self.fail("render", error),
        };
        for news in changes.news.iter().filter(|news| news.row.is_none()) {
            if let RowKey::Instance(id) = news.key {
                self.check.ends(id);
            }
        }
        // Every change has a number of its own, and numbers only grow.
        let mut last = self.shell.revision;
        let numbered = changes
            .news
            .iter()
            .all(|news| news.revision > std::mem::replace(&mut last, news.revision));
        if !numbered {
            return self.fail(
                "revision",
                format!("changes after {} are not in order", self.shell.revision),
            );
        }
        self.shell.revision = last;
        applied.event = Published {
            rows: changes.rows.iter().map(|change| change.key).collect(),
            routes: live.route_generation(),
        };
        if let Some(shadow) = &mut self.shell.shadow {
            let other = shadow.take_changes().map(|changes| changes.rows);
            if other.as_ref() != Ok(&changes.rows) {
                let detail = difference(&changes.rows, other.as_deref().unwrap_or_default());
                return self.fail("determinism", detail);
            }
        }
        applied.batch = batch_of(at, changes);
    }

    /// Writes a batch; with a fault it may be refused, or kept although the store says no.
    fn write(&mut self, applied: &Applied, fault: Option<Fault>) -> Result<(), StoreError> {
        let keeps = !matches!(fault, Some(Fault::Refuse(_)));
        let mut fault = fault;
        self.shell.store.inject(Box::new(move |_| fault.take()));
        let batch = applied.batch.clone();
        if planted::is("M20") {
            self.sync();
            self.committed_rows(&batch);
            self.shell.unsynced = Some(batch);
            return Ok(());
        }
        let done = self.shell.store.commit(self.shell.epoch, vec![batch]);
        self.shell.store.heal();
        if keeps {
            self.committed_rows(&applied.batch);
        }
        done
    }

    pub(crate) fn committed(&mut self, life: u64) {
        if life != self.shell.life || !self.shell.up {
            return;
        }
        let Some(mut applied) = self.shell.flight.pop_front() else { return };
        let mut done = Ok(());
        if self.shell.void == Some(applied.generation) {
            done = Err(StoreError::Closed);
        } else if !applied.batch.records.is_empty() || !applied.batch.histories.is_empty() {
            let fault = self.commit_fault();
            done = self.write(&applied, fault);
        }
        if let Err(error) = done {
            self.note(format_args!("commit of {:?} failed: {error}", applied.at));
            self.shell.void = Some(applied.generation);
            for (origin, _) in applied.answers {
                self.deliver(origin, Outcomes::Unavailable);
            }
            self.wake_loop();
            return;
        }
        for ack in std::mem::take(&mut applied.acks) {
            self.check.confirmed.insert((ack.job, ack.epoch));
        }
        for (origin, outcome) in applied.answers {
            self.deliver(origin, outcome);
        }
        if std::mem::take(&mut self.shell.look_again) {
            // Nobody heard of what a failed commit may have kept.
            self.publish(&Published::default());
        }
        if !applied.event.rows.is_empty() {
            self.publish(&applied.event);
        }
    }

    fn commit_fault(&self) -> Option<Fault> {
        if self.mood.calm || !self.chaos || !self.rng.chance(4) {
            return None;
        }
        let error = StoreError::Injected("no space".to_owned());
        let lost = self.rng.chance(400);
        Some(if lost { Fault::KeepButFail(error) } else { Fault::Refuse(error) })
    }

    fn publish(&mut self, event: &Published) {
        let sessions: Vec<u64> = self.shell.sessions.keys().copied().collect();
        for conn in sessions {
            self.session_event(conn, event);
        }
        let about = |follow: &Follow| {
            let mine = event.rows.is_empty() || event.rows.contains(&RowKey::Job(follow.job));
            mine && follow.subscribed
        };
        let woken: Vec<u64> =
            self.shell.follows.iter().filter(|(_, it)| about(it)).map(|(id, _)| *id).collect();
        for id in woken {
            self.wake_follow(id);
        }
    }

    fn wake_follow(&mut self, id: u64) {
        let Some(follow) = self.shell.follows.get_mut(&id) else { return };
        if follow.reading {
            follow.again = true;
            return;
        }
        follow.reading = true;
        let job = follow.job;
        self.ask_read(Read::IsOver(job), Origin::Follow(id));
    }

    fn deliver(&mut self, origin: Origin, outcome: Outcomes) {
        match origin {
            Origin::Session(conn) => self.session_answered(conn, outcome),
            Origin::Call(id) => {
                self.shell.calls.retain(|call| *call != id);
                self.answer_call(id, call_answer(outcome));
            }
            Origin::Follow(id) => self.follow_answered(id, &outcome),
            Origin::Ticker => {
                self.shell.ticking = false;
                if let Outcomes::Applied(Err(refusal)) = outcome {
                    self.fail("tick", format!("a tick was refused: {refusal}"));
                }
            }
            Origin::Operator => {}
            Origin::Courier => self.courier_hears(outcome),
            Origin::Boot => match outcome {
                Outcomes::Applied(Ok(_)) => self.booted(),
                Outcomes::Applied(Err(refusal)) => {
                    self.fail("boot", format!("the boot was refused: {refusal}"));
                }
                Outcomes::Found(_) | Outcomes::Unavailable => {
                    self.note(format_args!("the server cannot start"));
                    self.stop_serving();
                    self.shell.up = false;
                    self.later(1_000, Event::ServerStart);
                }
            },
        }
    }

    fn booted(&mut self) {
        self.shell.booted = true;
        self.note(format_args!("the server serves"));
        self.clients_prepare();
    }

    fn follow_answered(&mut self, id: u64, outcome: &Outcomes) {
        let Some(follow) = self.shell.follows.get_mut(&id) else { return };
        let call = follow.call;
        let answer = match outcome {
            Outcomes::Found(Found::IsOver(true)) => Some(Answer::Over),
            Outcomes::Found(_) => None,
            Outcomes::Applied(_) | Outcomes::Unavailable => Some(Answer::Unavailable),
        };
        if let Some(answer) = answer {
            self.shell.follows.remove(&id);
            self.shell.calls.retain(|other| *other != call);
            return self.answer_call(call, answer);
        }
        follow.reading = false;
        if !follow.subscribed {
            let delay = self.rng.between(1, 3);
            self.later(delay, Event::Subscribed { follow: id });
        }
        if let Some(follow) = self.shell.follows.get_mut(&id)
            && std::mem::take(&mut follow.again)
        {
            self.wake_follow(id);
        }
    }

    pub(crate) fn tick(&mut self, life: u64) {
        if life != self.shell.life || !self.shell.up {
            return;
        }
        let late = if self.chaos && self.rng.chance(20) { self.rng.between(500, 8_000) } else { 0 };
        self.later(TICK + late, Event::Tick { life });
        self.check_follows();
        self.check_silent();
        if self.shell.booted && self.rng.chance(2) {
            self.ask_apply(Command::Sweep, Origin::Operator);
        }
        // Drawn only where it counts, so that other worlds stay as they were.
        if let Some(moves) = self.mood.moves
            && self.shell.booted
            && self.rng.chance(50)
        {
            self.ask_apply(Command::Rebalance { moves }, Origin::Operator);
        }
        let due = self.shell.live.as_ref().and_then(State::next_deadline);
        if self.shell.booted && !self.shell.ticking && due.is_some_and(|at| at <= self.wall()) {
            self.shell.ticking = true;
            self.ask_apply(Command::Tick, Origin::Ticker);
        }
    }

    /// Every target belongs to a ready instance of the deployment that was released.
    fn check_routes(&mut self) {
        let Some(state) = &self.shell.live else { return };
        if state.route_generation() == self.shell.routes_seen {
            return;
        }
        if state.route_generation() < self.shell.routes_seen {
            return self.fail("I9", "the generation of the routes went back".to_owned());
        }
        self.shell.routes_seen = state.route_generation();
        if let Some(detail) = crate::check::wrong_route(state) {
            self.fail("I9", detail);
        }
    }

    /// A cell, a runner or a router as the server knows it.
    pub(crate) fn node_of(&self, conn: u64) -> Option<Node> {
        self.conns.get(&conn).map(|it| it.node)
    }
}

/// Whether a command reports on something that is not, or not any more, whose it says.
fn stale(state: &State, command: &Command) -> Option<String> {
    match command {
        Command::Job(said) => {
            let (JobCommand::Ack(at)
            | JobCommand::Nack(at)
            | JobCommand::Heartbeat(at)
            | JobCommand::Complete(at, _)) = said.said()
            else {
                return None;
            };
            let row = state.get::<Job>(at.job)?;
            let by = match said {
                JobCommand::Over { runner, .. } => Some(*runner),
                _ => None,
            };
            let others = by.is_some() && row.state.runner().is_some_and(|it| Some(it) != by);
            (row.epoch != at.epoch || others)
                .then(|| format!("{command:?} was accepted while {} is {row:?}", at.job))
        }
        Command::Cell(CellCommand::Over { id, epoch, report }) => {
            let row = state.get::<Cell>(*id);
            if row.is_none_or(|row| row.epoch != *epoch || row.lease_until.is_none()) {
                return Some(format!("{command:?} was accepted of {row:?}"));
            }
            let (row, owned) = match &**report {
                CellCommand::Task { cell, task, epoch, .. } => {
                    let row = state.get::<Task>(*task);
                    let is = |row: &Task| row.epoch == *epoch && row.state.cell() == Some(*cell);
                    (format!("{row:?}"), row.is_some_and(|row| is(row)))
                }
                CellCommand::Instance { cell, instance, epoch, .. } => {
                    let row = state.get::<Instance>(*instance);
                    let copy = row.and_then(|row| row.copy_on(*cell));
                    (format!("{row:?}"), copy.is_some_and(|copy| copy.epoch == *epoch))
                }
                _ => return None,
            };
            (!owned).then(|| format!("{report:?} was accepted of {row}"))
        }
        _ => None,
    }
}

fn call_answer(outcome: Outcomes) -> Answer {
    match outcome {
        Outcomes::Applied(Ok(reply)) => Answer::Done(reply),
        Outcomes::Applied(Err(refusal)) => Answer::Refused(refusal),
        Outcomes::Found(Found::Task(state)) => Answer::Task(state),
        Outcomes::Found(Found::Deployment(state)) => Answer::Deployment(state),
        Outcomes::Found(_) | Outcomes::Unavailable => Answer::Unavailable,
    }
}

fn find(state: &State, read: Read) -> Found {
    match read {
        Read::ReadyJobs => Found::ReadyJobs(state.ready_jobs()),
        Read::Held(ids) => {
            let row = |(id, epoch)| (id, epoch, state.get::<Job>(id).cloned());
            Found::Held(ids.into_iter().map(row).collect())
        }
        Read::Work(cell) => {
            let work = state.cell_work(cell);
            let tasks = work.tasks.into_iter().map(|task| {
                let (epoch, stop) = (task.epoch, task.cancelling);
                ((true, task.id.0), Should { epoch, stop, due: Time(0), spec: None })
            });
            let instances = work.instances.into_iter().map(|it| {
                let (epoch, stop, due) = (it.copy.epoch, it.copy.stop, state.stop_due(&it));
                let spec = Some(it.process.spec.clone());
                ((false, it.row.id.0), Should { epoch, stop, due, spec })
            });
            let all = tasks.chain(instances).collect();
            Found::Work(CellWork { all, routes: state.route_generation() })
        }
        Read::Table => Found::Table(state.routes()),
        Read::Since(from) => Found::Since(state.routes_since(from), state.route_generation()),
        Read::Task(id) => {
            // What asks follows the attempts.
            let mut row = state.get::<Task>(id);
            while let Some(next) = row.and_then(|row| row.followed_by) {
                row = state.get::<Task>(next);
            }
            Found::Task(row.map(|row| row.state.clone()))
        }
        Read::Due(now) => {
            let due = state.deliveries_due(now, 4, &BTreeSet::new());
            Found::Due(due.iter().map(|row| (row.id, row.attempts)).collect())
        }
        Read::Deployment(id) => {
            Found::Deployment(state.get::<Deployment>(id).map(|row| row.state.clone()))
        }
        Read::IsOver(id) => {
            Found::IsOver(state.get::<Job>(id).is_none_or(|job| job.state.is_terminal()))
        }
    }
}

fn difference(one: &[Change], two: &[Change]) -> String {
    let text = |change: Option<&Change>| {
        change.map_or_else(String::new, |change| {
            let body = change.body.as_deref().map(String::from_utf8_lossy);
            format!("{:?} {}", change.key, body.unwrap_or_default())
        })
    };
    let at = (0..one.len().max(two.len())).find(|at| one.get(*at) != two.get(*at)).unwrap_or(0);
    format!("rows differ: `{}` and `{}`", text(one.get(at)), text(two.get(at)))
}
