//! One component's connection as the server sees it.

use std::collections::{BTreeMap, VecDeque};

use model::{JobId, JobState, RunnerId, TaskReport};
use state::{Attempt, CellCommand, Command, JobCommand, Reply, RowKey};

use crate::message::{
    CellWork, Down, Event, Found, Key, Node, Origin, Outcomes, Published, Read, Up, Wanted,
};
use crate::planted;
use crate::world::World;

/// How long an instance that is to stop goes on for routers that may still send requests to it, in
/// milliseconds.
const ROUTER_WAIT: u64 = 2_000;

/// A report that counts only while its connection is the current one.
fn over(id: model::CellId, epoch: u32, report: CellCommand) -> CellCommand {
    CellCommand::Over { id, epoch, report: Box::new(report) }
}

/// What arrived and waits its turn.
#[derive(Debug)]
enum Input {
    Message(Up),
    Event(Published),
    Closed,
}

/// What a session does next.
#[derive(Debug)]
enum Step {
    Apply(Box<Command>, Then),
    CheckHeld,
    Offer,
    Send(Down),
    Work { full: bool },
    Table,
    Changes,
    End,
}

/// A report that counts only for a job of this runner.
fn own_report(runner: RunnerId, report: JobCommand, then: Then) -> Step {
    let report = JobCommand::Over { runner, report: Box::new(report) };
    Step::Apply(Box::new(Command::Job(report)), then)
}

/// What an answer is for.
#[derive(Debug, Clone, Copy)]
enum Then {
    /// Tell the runner that its report is durable, or that the attempt is not its own.
    Started(Attempt),
    Revoked(Attempt),
    Ended(Attempt),
    /// Say something only if it was refused.
    Beat(Attempt),
    Assigned,
    /// Whatever is refused ends the session.
    Plain,
    RunnerOnline,
    CellOnline,
    Report(Key, bool),
    Offline,
    Held,
    ReadyJobs,
    Work(bool),
    Table,
    Changes,
}

#[derive(Debug, Clone, Copy)]
struct Holding {
    epoch: u32,
    /// How many lines of its log have arrived.
    lines: u64,
    told: bool,
}

/// A session's own knowledge.
#[expect(clippy::struct_excessive_bools, reason = "each is one fact about a session")]
#[derive(Debug)]
pub(crate) struct Session {
    node: Node,
    input: VecDeque<Input>,
    plan: VecDeque<Step>,
    waits: Option<Then>,
    closing: bool,
    /// Whether the cell said that it leaves.
    leaving: bool,
    /// Whether the component closed the stream.
    orderly: bool,
    /// Whether the runner counts as online because of this session.
    online: bool,
    capacity: u32,
    held: BTreeMap<JobId, Holding>,
    epoch: u32,
    told: BTreeMap<(bool, u128), (u32, bool)>,
    /// What a router was sent, and what it says it serves.
    sent: u64,
    serves: Option<u64>,
    /// Instances to stop, and a generation of routes that has none to them.
    withdrawn: BTreeMap<(bool, u128), u64>,
    /// The generation that is waited for, and how long at most.
    waiting: Option<(u64, u64)>,
    /// The generation that every router serves, as far as was waited for.
    served: u64,
}

impl Session {
    const fn new(node: Node) -> Self {
        Self {
            node,
            input: VecDeque::new(),
            plan: VecDeque::new(),
            waits: None,
            closing: false,
            leaving: false,
            orderly: false,
            online: false,
            capacity: 0,
            held: BTreeMap::new(),
            epoch: 0,
            told: BTreeMap::new(),
            sent: 0,
            serves: None,
            withdrawn: BTreeMap::new(),
            waiting: None,
            served: 0,
        }
    }

    /// Whether it is a router's that has said which routes it serves.
    pub(crate) fn is_served(&self) -> bool {
        self.serves.is_some_and(|generation| generation > 0)
    }

    fn plan(&mut self, steps: impl IntoIterator<Item = Step>) {
        self.plan.extend(steps);
    }
}

impl World {
    pub(crate) fn session_message(&mut self, conn: u64, message: Up) {
        let Some(node) = self.node_of(conn) else { return };
        if !self.shell.is_serving() {
            return self.cut(conn, 1, 1);
        }
        self.note(format_args!("the server hears {message:?} from {node:?}"));
        let newest = &mut self.shell.newest;
        let session = self.shell.sessions.entry(conn).or_insert_with(|| {
            newest.insert(node, conn);
            Session::new(node)
        });
        session.input.push_back(Input::Message(message));
        self.pump(conn);
    }

    pub(crate) fn session_cut(&mut self, conn: u64) {
        let orderly = self.closed.remove(&conn);
        if let Some(session) = self.shell.sessions.get_mut(&conn) {
            // A stream of a cell that leaves may break while something can still move: it may be
            // opened again.
            session.orderly |= orderly;
            session.input.push_back(Input::Closed);
            self.pump(conn);
        }
    }

    pub(crate) fn session_event(&mut self, conn: u64, event: &Published) {
        let cell = self.shell.sessions.get(&conn).map(|session| session.node);
        let concerns = match cell {
            Some(Node::Runner(_)) => event.rows.iter().any(|key| matches!(key, RowKey::Job(_))),
            Some(Node::Cell(_)) => event
                .rows
                .iter()
                .any(|key| matches!(key, RowKey::Task(_) | RowKey::Instance(_) | RowKey::Cell(_))),
            Some(Node::Router(_)) => true,
            None => false,
        };
        let concerns = concerns || event.rows.is_empty();
        if let Some(session) = self.shell.sessions.get_mut(&conn).filter(|_| concerns) {
            session.input.push_back(Input::Event(event.clone()));
            self.pump(conn);
        }
    }

    /// Goes on until the session waits for an answer or for something to arrive.
    fn pump(&mut self, conn: u64) {
        loop {
            let Some(session) = self.shell.sessions.get_mut(&conn) else { return };
            if session.waits.is_some() {
                return;
            }
            if let Some(step) = session.plan.pop_front() {
                self.step(conn, step);
            } else if let Some(input) = session.input.pop_front() {
                self.take_input(conn, input);
            } else {
                return;
            }
        }
    }

    fn wait(&mut self, conn: u64, then: Then) {
        if let Some(session) = self.shell.sessions.get_mut(&conn) {
            session.waits = Some(then);
        }
    }

    fn step(&mut self, conn: u64, step: Step) {
        let origin = Origin::Session(conn);
        let Some(session) = self.shell.sessions.get_mut(&conn) else { return };
        match step {
            Step::Apply(command, then) => {
                session.waits = Some(then);
                self.ask_apply(*command, origin);
            }
            Step::CheckHeld => {
                let ids = session.held.iter().map(|(id, held)| (*id, held.epoch)).collect();
                session.waits = Some(Then::Held);
                self.ask_read(Read::Held(ids), origin);
            }
            Step::Offer if session.capacity > 0 => {
                session.waits = Some(Then::ReadyJobs);
                self.ask_read(Read::ReadyJobs, origin);
            }
            Step::Offer => {}
            Step::Send(message) => self.send_down(conn, message),
            Step::Work { full } => {
                let Node::Cell(index) = session.node else { return };
                self.wait(conn, Then::Work(full));
                self.ask_read(Read::Work(self.cells[index].id), origin);
            }
            Step::Table => {
                session.waits = Some(Then::Table);
                self.ask_read(Read::Table, origin);
            }
            Step::Changes => {
                let from = session.sent;
                session.waits = Some(Then::Changes);
                self.ask_read(Read::Since(from), origin);
            }
            Step::End => {
                let node = session.node;
                self.shell.sessions.remove(&conn);
                if self.shell.newest.get(&node) == Some(&conn) {
                    self.shell.newest.remove(&node);
                }
                let delay = self.rng.between(1, 100);
                self.cut(conn, delay, 1);
            }
        }
    }

    /// The session cannot go on.
    fn close_session(&mut self, conn: u64) {
        let Some(session) = self.shell.sessions.get_mut(&conn) else { return };
        session.input.clear();
        session.plan.clear();
        session.waits = None;
        let node = session.node;
        if let (Node::Runner(index), true) = (node, session.online && !session.closing) {
            session.closing = true;
            let offline = Command::Job(JobCommand::RunnerOffline(self.runners[index].id));
            session.plan([Step::Apply(Box::new(offline), Then::Offline), Step::End]);
        } else if let (Node::Cell(index), true) =
            (node, session.leaving && session.orderly && !session.closing)
        {
            session.closing = true;
            let (id, epoch) = (self.cells[index].id, session.epoch);
            let left = Command::Cell(CellCommand::Left { id, epoch });
            session.plan([Step::Apply(Box::new(left), Then::Offline), Step::End]);
        } else {
            session.plan([Step::End]);
        }
    }

    fn take_input(&mut self, conn: u64, input: Input) {
        match input {
            Input::Closed => self.close_session(conn),
            Input::Event(event) => self.take_event(conn, &event),
            Input::Message(message) => self.take_message(conn, message),
        }
    }

    fn take_event(&mut self, conn: u64, event: &Published) {
        let Some(session) = self.shell.sessions.get_mut(&conn) else { return };
        if session.closing {
            return;
        }
        match session.node {
            Node::Runner(_) => {
                let mine =
                    |key: &RowKey| matches!(key, RowKey::Job(id) if session.held.contains_key(id));
                if event.rows.is_empty() || event.rows.iter().any(mine) {
                    session.plan([Step::CheckHeld]);
                }
                session.plan([Step::Offer]);
            }
            Node::Cell(_) => session.plan([Step::Work { full: false }]),
            Node::Router(_) if event.routes == session.sent => {}
            Node::Router(_) => session.plan([Step::Changes]),
        }
    }

    fn runner_at(&self, node: Node) -> RunnerId {
        match node {
            Node::Runner(index) => self.runners[index].id,
            Node::Cell(_) | Node::Router(_) => RunnerId(0),
        }
    }

    fn take_message(&mut self, conn: u64, message: Up) {
        let (plan, node) = match self.shell.sessions.get(&conn) {
            Some(session) => (session.epoch, session.node),
            None => return,
        };
        let runner = self.runner_at(node);
        let job = |report, then| own_report(runner, report, then);
        let cell = |command, then| Step::Apply(Box::new(Command::Cell(command)), then);
        let steps = match message {
            Up::Runner(holds) => self.runner_hello(conn, node, holds),
            Up::Capacity(capacity) => {
                if let Some(session) = self.shell.sessions.get_mut(&conn) {
                    session.capacity = capacity;
                }
                vec![Step::Offer]
            }
            Up::Ack(it) => vec![job(JobCommand::Ack(it), Then::Started(it)), Step::CheckHeld],
            Up::Nack(it) => {
                self.drop_held(conn, it);
                vec![job(JobCommand::Nack(it), Then::Revoked(it))]
            }
            Up::Heartbeat(it) => vec![job(JobCommand::Heartbeat(it), Then::Beat(it))],
            Up::Complete(it, outcome) => {
                vec![job(JobCommand::Complete(it, outcome), Then::Ended(it))]
            }
            Up::Log { at, first, count } => return self.session_log(conn, (at, first), count),
            Up::Cell(holds) => {
                let Node::Cell(index) = node else { return };
                let (id, spec) = (self.cells[index].id, self.cells[index].spec.clone());
                let online = CellCommand::Online { id, spec, holds, token: None };
                let send = Step::Send(Down::Welcome);
                vec![cell(online, Then::CellOnline), send, Step::Work { full: true }]
            }
            Up::CellBeat => {
                let Node::Cell(index) = node else { return };
                let beat = CellCommand::Heartbeat { id: self.cells[index].id, epoch: plan };
                vec![cell(beat, Then::Plain)]
            }
            Up::CellLeave => {
                let Node::Cell(index) = node else { return };
                if let Some(session) = self.shell.sessions.get_mut(&conn) {
                    session.leaving = true;
                }
                let leave = CellCommand::Leave { id: self.cells[index].id, epoch: plan };
                vec![cell(leave, Then::Plain)]
            }
            Up::Task(key, report) => {
                let Node::Cell(index) = node else { return };
                let claim = report == TaskReport::Claim;
                let (task, cell_id) = (model::TaskId(key.id), self.cells[index].id);
                let it = CellCommand::Task { cell: cell_id, task, epoch: key.epoch, report };
                vec![cell(over(cell_id, plan, it), Then::Report(key, claim))]
            }
            Up::Instance(key, report) => {
                let Node::Cell(index) = node else { return };
                let (instance, id) = (model::InstanceId(key.id), self.cells[index].id);
                let it = CellCommand::Instance { cell: id, instance, epoch: key.epoch, report };
                vec![cell(over(id, plan, it), Then::Report(key, false))]
            }
            Up::Router(generation) => {
                self.router_serves(conn, 0);
                let kept = Box::new(Command::RoutesServed { generation });
                vec![Step::Send(Down::Welcome), Step::Apply(kept, Then::Plain), Step::Table]
            }
            Up::Serves(generation) => return self.router_serves(conn, generation),
        };
        if let Some(session) = self.shell.sessions.get_mut(&conn) {
            session.plan(steps);
        }
    }

    fn runner_hello(&mut self, conn: u64, node: Node, holds: Vec<Attempt>) -> Vec<Step> {
        let Node::Runner(index) = node else { return Vec::new() };
        if let Some(session) = self.shell.sessions.get_mut(&conn) {
            let logs = &self.shell.logs;
            let lines = |job: &JobId| logs.get(job).copied().unwrap_or(0);
            let holding =
                |it: &Attempt| Holding { epoch: it.epoch, lines: lines(&it.job), told: false };
            session.held = holds.iter().map(|it| (it.job, holding(it))).collect();
        }
        let runner = &self.runners[index];
        let online = JobCommand::RunnerOnline {
            id: runner.id,
            name: runner.name.clone(),
            labels: runner.labels.clone(),
            only_own: runner.only_own,
            holds,
            token: None,
        };
        let online = Step::Apply(Box::new(Command::Job(online)), Then::RunnerOnline);
        vec![online, Step::CheckHeld, Step::Send(Down::Welcome)]
    }

    fn drop_held(&mut self, conn: u64, it: Attempt) {
        if let Some(session) = self.shell.sessions.get_mut(&conn) {
            session.held.remove(&it.job);
        }
    }

    pub(crate) fn session_answered(&mut self, conn: u64, outcome: Outcomes) {
        let then = self.shell.sessions.get_mut(&conn).and_then(|session| session.waits.take());
        let Some(then) = then else { return };
        match outcome {
            Outcomes::Unavailable => self.unavailable(conn, then),
            Outcomes::Applied(Ok(reply)) => self.session_done(conn, then, &reply),
            Outcomes::Applied(Err(_)) => self.session_refused(conn, then),
            Outcomes::Found(found) => self.session_found(conn, then, found),
        }
        self.pump(conn);
    }

    fn unavailable(&mut self, conn: u64, then: Then) {
        if matches!(then, Then::Offline) {
            return;
        }
        self.close_session(conn);
    }

    fn session_done(&mut self, conn: u64, then: Then, reply: &Reply) {
        match then {
            Then::Started(it) => self.send_down(conn, Down::Started(it)),
            Then::Revoked(it) => self.send_down(conn, Down::Revoked(it)),
            Then::Ended(it) => {
                self.drop_held(conn, it);
                self.send_down(conn, Down::Ended(it));
            }
            Then::Assigned => {
                let Reply::Assigned(Some(job)) = reply else { return };
                if let Some(session) = self.shell.sessions.get_mut(&conn) {
                    session.capacity -= 1;
                    let holding = Holding { epoch: job.epoch, lines: 0, told: false };
                    session.held.insert(job.id, holding);
                    session.plan.push_front(Step::Offer);
                }
                self.send_down(conn, Down::Assignment(job.clone()));
            }
            Then::RunnerOnline => {
                if let Some(session) = self.shell.sessions.get_mut(&conn) {
                    session.online = true;
                }
            }
            Then::CellOnline => {
                let Reply::Epoch(epoch) = reply else { return };
                if let Some(session) = self.shell.sessions.get_mut(&conn) {
                    session.epoch = *epoch;
                }
            }
            Then::Report(key, true) => self.send_down(conn, Down::Claimed(key)),
            _ => {}
        }
    }

    fn session_refused(&mut self, conn: u64, then: Then) {
        match then {
            Then::Started(it) | Then::Revoked(it) | Then::Ended(it) | Then::Beat(it) => {
                self.drop_held(conn, it);
                self.send_down(conn, Down::Revoked(it));
            }
            Then::Report(key, _) => self.send_down(conn, Down::Refused(key)),
            Then::Offline => {}
            _ => self.close_session(conn),
        }
    }

    fn session_found(&mut self, conn: u64, then: Then, found: Found) {
        match (then, found) {
            (Then::ReadyJobs, Found::ReadyJobs(ready)) if ready > 0 => {
                let Some(session) = self.shell.sessions.get_mut(&conn) else { return };
                let Node::Runner(index) = session.node else { return };
                let assign = Command::Job(JobCommand::Assign(self.runners[index].id));
                session.plan.push_front(Step::Apply(Box::new(assign), Then::Assigned));
            }
            (Then::Held, Found::Held(rows)) => self.tell_held(conn, rows),
            (Then::Work(full), Found::Work(wanted)) => self.tell_work(conn, full, wanted),
            (Then::Table, Found::Table(table)) => {
                if let Some(session) = self.shell.sessions.get_mut(&conn) {
                    session.sent = table.generation;
                }
                self.send_down(conn, Down::Table(table));
            }
            (Then::Changes, Found::Since(changes, to)) => {
                let Some(session) = self.shell.sessions.get_mut(&conn) else { return };
                let from = session.sent;
                match changes {
                    None => session.plan.push_front(Step::Table),
                    Some(changes) if changes.is_empty() => {}
                    Some(changes) => {
                        session.sent = to;
                        self.send_down(conn, Down::Changes { from, to, changes });
                    }
                }
            }
            _ => {}
        }
    }

    fn tell_held(
        &mut self,
        conn: u64,
        rows: Vec<(JobId, u32, Option<std::sync::Arc<state::Job>>)>,
    ) {
        for (id, epoch, row) in rows {
            let row = row.filter(|job| {
                let live = matches!(job.state, JobState::Waiting { .. } | JobState::Running { .. });
                job.epoch == epoch && live
            });
            let attempt = Attempt { job: id, epoch };
            let Some(session) = self.shell.sessions.get_mut(&conn) else { return };
            let Some(job) = row else {
                session.held.remove(&id);
                self.send_down(conn, Down::Revoked(attempt));
                continue;
            };
            let (Some(_), Some(held)) = (&job.cancel, session.held.get_mut(&id)) else { continue };
            if !std::mem::replace(&mut held.told, true) {
                self.send_down(conn, Down::Cancel(attempt));
            }
        }
    }

    fn tell_work(&mut self, conn: u64, full: bool, wanted: CellWork) {
        let (now, wall) = (self.now, self.wall());
        let Some(session) = self.shell.sessions.get_mut(&conn) else { return };
        let told = if full { BTreeMap::new() } else { session.told.clone() };
        let before = std::mem::take(&mut session.withdrawn);
        let mut is: BTreeMap<(bool, u128), (u32, bool)> = BTreeMap::new();
        let mut work = Vec::new();
        let mut drained: Option<u64> = None;
        for (at, it) in wanted.all {
            let running = Some(&(it.epoch, false));
            if it.stop && !at.0 && told.get(&at) == running && !planted::is("M13") {
                // Routes may have led to it until now: routers first, and what it serves ends.
                let since = before.get(&at).copied().unwrap_or(wanted.routes);
                let drains = it.due.0.saturating_sub(wall.0);
                if drains > 0 {
                    drained = Some(drained.map_or(drains, |other| other.min(drains)));
                }
                if drains > 0 || since > session.served {
                    session.withdrawn.insert(at, since);
                    is.insert(at, (it.epoch, false));
                    continue;
                }
            }
            is.insert(at, (it.epoch, it.stop));
            if told.get(&at) != Some(&(it.epoch, it.stop)) {
                let known = told.get(&at).is_some_and(|before| before.0 == it.epoch);
                let spec = if known { None } else { it.spec };
                let key = Key { is_task: at.0, id: at.1, epoch: it.epoch };
                work.push(Wanted { key, spec, stop: it.stop, known });
            }
        }
        let old = std::mem::replace(&mut session.told, is);
        let gone = old.into_iter().filter(|(at, _)| !session.told.contains_key(at));
        let gone: Vec<Key> =
            gone.map(|((is_task, id), (epoch, _))| Key { is_task, id, epoch }).collect();
        let newest = session.withdrawn.values().max().filter(|newest| **newest > session.served);
        if let (Some(generation), None) = (newest.copied(), session.waiting) {
            session.waiting = Some((generation, now + ROUTER_WAIT));
            self.later(ROUTER_WAIT, Event::Again { conn });
            self.later(0, Event::Again { conn });
        }
        if let Some(drained) = drained {
            self.later(drained, Event::Again { conn });
        }
        if full || !work.is_empty() || !gone.is_empty() {
            self.send_down(conn, Down::Desired { full, work, gone });
        }
    }

    /// A router serves another generation: cells that wait for that may end something.
    fn router_serves(&mut self, conn: u64, generation: u64) {
        if let Some(session) = self.shell.sessions.get_mut(&conn) {
            session.serves = Some(generation);
        }
        let waits = self.shell.sessions.iter().filter(|(_, session)| session.waiting.is_some());
        let waits: Vec<u64> = waits.map(|(conn, _)| *conn).collect();
        for conn in waits {
            self.later(0, Event::Again { conn });
        }
    }

    /// Whether every router that is connected serves this generation.
    fn routers_serve(&self, generation: u64) -> bool {
        let mut serve = self.shell.sessions.values().filter_map(|session| session.serves);
        serve.all(|it| it >= generation)
    }

    /// Looks again at what a cell was not told yet.
    pub(crate) fn session_again(&mut self, conn: u64) {
        let waiting = self.shell.sessions.get(&conn).map(|session| session.waiting);
        let Some(waiting) = waiting else { return };
        let done = waiting
            .filter(|(generation, until)| self.now >= *until || self.routers_serve(*generation));
        let Some(session) = self.shell.sessions.get_mut(&conn) else { return };
        if let Some((generation, _)) = done {
            session.served = session.served.max(generation);
            session.waiting = None;
        }
        let due = done.is_some() || !session.withdrawn.is_empty() && waiting.is_none();
        if due && !session.closing {
            session.plan([Step::Work { full: false }]);
            self.pump(conn);
        }
    }

    /// Lines of a job's log arrive. After a reconnect the runner repeats what it does not know to
    /// have arrived.
    fn session_log(&mut self, conn: u64, (at, first): (Attempt, u64), count: u64) {
        let Some(session) = self.shell.sessions.get_mut(&conn) else { return };
        // What a connection still had under way when the runner opened the next one does not count:
        // the runner says it again there.
        if self.shell.newest.get(&session.node) != Some(&conn) {
            return;
        }
        let is_held = session.held.get(&at.job).is_some_and(|held| held.epoch == at.epoch);
        if !is_held && !planted::is("M3") {
            return;
        }
        let Node::Runner(index) = session.node else { return };
        let fresh = Holding { epoch: at.epoch, lines: first, told: true };
        let held = session.held.entry(at.job).or_insert(fresh);
        let new = (held.lines.max(first), first + count);
        held.lines = held.lines.max(new.1);
        let lines = held.lines;
        self.append_log(index, at, new);
        self.send_down(conn, Down::Kept(at, lines));
    }

    /// Connections that are open and who is at their far end.
    pub(crate) fn open_conns(&self) -> Vec<(u64, Node)> {
        self.conns.iter().map(|(conn, it)| (*conn, it.node)).collect()
    }

    /// Cuts a connection some time from now on both sides, as a fault.
    pub(crate) fn break_conn(&mut self, conn: u64) {
        let (node, server) = (self.rng.between(1, 9_000), self.rng.between(1, 9_000));
        self.cut(conn, node, server);
    }

    /// Removes what will never happen: a component that was killed notices nothing.
    pub(crate) fn dead_end(&mut self, conn: u64) {
        if self.conns.remove(&conn).is_some() {
            let delay = self.rng.between(1, 4_000);
            self.later(delay, Event::ServerCut { conn });
        }
    }
}
