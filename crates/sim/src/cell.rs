//! Fake cells: they claim, start, watch, report and stop, without containers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use model::{CellId, CellSpec, InstanceReport, ProcessSpec, TaskReport};
use state::Held;

use crate::message::{Down, Event, Key, Node, Up, Wanted};
use crate::rng::Rng;
use crate::runner::name;
use crate::world::World;

/// How long a cell may be out of reach and still begin a task.
const UNREACHABLE: u64 = 7_000;

/// How many ports a cell has for instances: more than containers, few enough to be used again.
const PORTS: u16 = 60;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Run,
    Stop,
    Forget,
}

/// How far a piece of work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A task that waits for its claim to be durable.
    Claiming,
    Preparing,
    /// A process runs, and its health is not known yet.
    Starting,
    Running,
    Ending,
    Over,
}

#[derive(Debug)]
enum Report {
    Task(TaskReport),
    Instance(InstanceReport),
}

/// What a server that may not have heard it must be told again.
#[derive(Debug, Default)]
struct Standing {
    address: Option<SocketAddr>,
    ready: Option<bool>,
    end: Option<InstanceReport>,
    task_end: Option<TaskReport>,
}

/// One piece of work that is under way, or whose end the server may not know yet.
#[derive(Debug)]
struct Entry {
    serial: u64,
    want: Want,
    phase: Phase,
    spec: Option<Arc<ProcessSpec>>,
    /// What it says once its process has ended.
    last: Option<Report>,
    standing: Standing,
}

/// A container with a process in it.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) address: SocketAddr,
    pub(crate) healthy: bool,
    spec: Arc<ProcessSpec>,
}

/// One cell.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) id: CellId,
    pub(crate) spec: CellSpec,
    pub(crate) alive: bool,
    pub(crate) life: u64,
    pub(crate) conn: Option<u64>,
    lost_at: u64,
    entries: BTreeMap<Key, Entry>,
    /// Instances that run, whether an agent watches them or not.
    pub(crate) containers: BTreeMap<Key, Container>,
    ports: u16,
    number: u8,
}

impl Cell {
    pub(crate) fn some(rng: &Rng, now: u64) -> Vec<Self> {
        let count = u8::try_from(rng.between(1, 5)).unwrap_or(1);
        // The first one takes what asks for nothing.
        let words = |number: u8, all: &[(&str, u64)]| {
            let has = |chance| rng.chance(chance) && number > 0;
            let some = all.iter().filter(|(_, chance)| has(*chance));
            some.map(|(word, _)| name(word)).collect::<BTreeSet<_>>()
        };
        (0..count)
            .map(|number| Self {
                id: CellId(rng.id(now)),
                spec: CellSpec {
                    name: name(&format!("cell-{number}")),
                    zone: format!("z{}", number % 3),
                    required_tags: words(number, &[("gpu", 150)]),
                    tags: words(number, &[("ssd", 500)]),
                    drivers: words(number, &[("docker", 500), ("oci", 300)]),
                    unavailable: BTreeMap::new(),
                    memory_mb: rng.between(1_500, 8_000),
                    disk_mb: rng.between(10_000, 60_000),
                    containers: u32::try_from(rng.between(6, 40)).unwrap_or(6),
                    cpu_shares: rng.chance(300).then(|| rng.between(500, 3_000)),
                    pids: rng.chance(300).then(|| rng.between(100, 400)),
                    gate: None,
                    labels: BTreeMap::new(),
                },
                alive: false,
                life: 0,
                conn: None,
                lost_at: 0,
                entries: BTreeMap::new(),
                containers: BTreeMap::new(),
                ports: 0,
                number,
            })
            .collect()
    }

    /// The next address that nothing here has.
    fn free_address(&mut self) -> SocketAddr {
        loop {
            self.ports = (self.ports + 1) % PORTS;
            let address = SocketAddr::from(([10, 0, 0, self.number], 1_000 + self.ports));
            if self.containers.values().all(|it| it.address != address) {
                return address;
            }
        }
    }

    fn holds(&self) -> Vec<Held> {
        let held = |(_, entry): &(&Key, &Entry)| {
            entry.phase != Phase::Claiming && entry.want != Want::Forget
        };
        let name = |(key, _): (&Key, &Entry)| {
            if key.is_task {
                Held::Task { id: model::TaskId(key.id), epoch: key.epoch }
            } else {
                Held::Instance { id: model::InstanceId(key.id), epoch: key.epoch }
            }
        };
        self.entries.iter().filter(held).map(name).collect()
    }
}

impl World {
    pub(crate) fn cell_starts(&mut self, index: usize) {
        let now = self.now;
        let cell = &mut self.cells[index];
        if cell.alive {
            return;
        }
        cell.alive = true;
        cell.life += 1;
        cell.lost_at = now;
        let life = cell.life;
        // The agent before this one may have been killed: what still runs is taken over.
        let found: Vec<Key> = cell.containers.keys().copied().collect();
        for key in found {
            self.adopt(index, key);
        }
        self.later(1, Event::Connect { node: Node::Cell(index), life });
    }

    fn adopt(&mut self, index: usize, key: Key) {
        let serial = self.fresh();
        let cell = &mut self.cells[index];
        let Some(container) = cell.containers.get(&key) else { return };
        let standing = Standing { address: Some(container.address), ..Standing::default() };
        let entry = Entry {
            serial,
            want: Want::Run,
            phase: Phase::Starting,
            spec: Some(container.spec.clone()),
            last: None,
            standing,
        };
        cell.entries.insert(key, entry);
        self.step_later(index, key, 200);
    }

    /// The agent is killed; its containers may go with the machine.
    pub(crate) fn cell_dies(&mut self, index: usize, with_containers: bool) {
        let cell = &mut self.cells[index];
        cell.alive = false;
        cell.entries.clear();
        if with_containers {
            cell.containers.clear();
        }
        if let Some(conn) = cell.conn.take() {
            self.dead_end(conn);
        }
    }

    pub(crate) fn cell_connects(&mut self, index: usize, life: u64) {
        let cell = &self.cells[index];
        if !cell.alive || cell.life != life || cell.conn.is_some() {
            return;
        }
        let hello = Up::Cell(cell.holds());
        let conn = self.open(Node::Cell(index), hello);
        self.cells[index].conn = Some(conn);
        self.later(5_000, Event::Beat { node: Node::Cell(index), conn });
    }

    pub(crate) fn cell_cut(&mut self, index: usize, conn: u64) -> Option<u64> {
        let now = self.now;
        let cell = &mut self.cells[index];
        if cell.conn != Some(conn) {
            return None;
        }
        cell.conn = None;
        cell.lost_at = now;
        cell.entries.retain(|_, entry| entry.phase != Phase::Claiming);
        Some(cell.life)
    }

    pub(crate) fn cell_beats(&mut self, index: usize, conn: u64) -> bool {
        let connected = self.cells[index].conn == Some(conn);
        if connected {
            self.send_up(conn, Up::CellBeat);
        }
        connected
    }

    fn say(&mut self, index: usize, key: Key, report: Report) {
        let Some(conn) = self.cells[index].conn else { return };
        let message = match report {
            Report::Task(report) => Up::Task(key, report),
            Report::Instance(report) => Up::Instance(key, report),
        };
        // It may say it twice; but a task is claimed once.
        let may_repeat = !matches!(message, Up::Task(_, TaskReport::Claim));
        if may_repeat && self.chaos && !self.mood.calm && self.rng.chance(30) {
            self.send_up(conn, message.clone());
        }
        self.send_up(conn, message);
    }

    pub(crate) fn cell_hears(&mut self, index: usize, conn: u64, message: Down) {
        if self.cells[index].conn != Some(conn) {
            return;
        }
        match message {
            Down::Desired { full, work, gone } => self.desired(index, full, (work, gone)),
            Down::Claimed(key) => {
                let entry = self.cells[index].entries.get_mut(&key);
                if let Some(entry) = entry.filter(|entry| entry.phase == Phase::Claiming) {
                    entry.phase = Phase::Preparing;
                    // Its image may have to be fetched first.
                    let longest = if self.rng.chance(150) { 25_000 } else { 1_000 };
                    let pause = self.rng.between(10, longest);
                    self.step_later(index, key, pause);
                }
            }
            Down::Refused(key) => {
                let Some(entry) = self.cells[index].entries.get(&key) else { return };
                let ended = entry.standing.end.is_some() || entry.standing.task_end.is_some();
                if key.is_task || ended {
                    self.forget(index, key);
                } else {
                    self.stop_entry(index, key);
                }
            }
            Down::Welcome
            | Down::Assignment(_)
            | Down::Started(_)
            | Down::Ended(_)
            | Down::Revoked(_)
            | Down::Cancel(_)
            | Down::Kept(..)
            | Down::Table(_)
            | Down::Changes { .. } => {}
        }
    }

    fn desired(&mut self, index: usize, full: bool, (work, gone): (Vec<Wanted>, Vec<Key>)) {
        let listed: BTreeSet<Key> = work.iter().map(|wanted| wanted.key).collect();
        for wanted in work {
            self.wanted(index, wanted, full);
        }
        let mut gone: Vec<Key> = gone.into_iter().filter(|key| !listed.contains(key)).collect();
        if full {
            let entries = self.cells[index].entries.keys();
            gone.extend(entries.filter(|key| !listed.contains(key)));
        }
        for key in gone {
            self.forget(index, key);
        }
    }

    fn wanted(&mut self, index: usize, wanted: Wanted, full: bool) {
        let key = wanted.key;
        let (first, last) = (Key { epoch: 0, ..key }, Key { epoch: u32::MAX, ..key });
        let range = self.cells[index].entries.range(first..=last);
        let others: Vec<Key> = range.map(|(key, _)| *key).filter(|other| *other != key).collect();
        for old in others {
            self.forget(index, old);
        }
        if let Some(entry) = self.cells[index].entries.get(&key) {
            let ended = entry.standing.end.is_some() || entry.standing.task_end.is_some();
            if wanted.stop {
                if !full {
                    self.check_withdrawn(index, key);
                }
                self.stop_entry(index, key);
            }
            if full && (!wanted.stop || ended) {
                self.repeat(index, key);
            }
        } else if wanted.stop {
            let report = if key.is_task {
                Report::Task(TaskReport::Cancelled)
            } else {
                Report::Instance(InstanceReport::Gone)
            };
            self.say(index, key, report);
        } else if !wanted.known {
            self.begin_work(index, key, wanted.spec);
        }
    }

    fn repeat(&mut self, index: usize, key: Key) {
        let Some(entry) = self.cells[index].entries.get(&key) else { return };
        let standing = &entry.standing;
        let started = standing.address.map(|address| InstanceReport::Started { address });
        let ready = standing.ready.map(|ready| InstanceReport::Ready { ready });
        let instance = started.into_iter().chain(ready).chain(standing.end.clone());
        let mut all: Vec<Report> = instance.map(Report::Instance).collect();
        all.extend(standing.task_end.clone().map(Report::Task));
        for report in all {
            self.say(index, key, report);
        }
    }

    fn begin_work(&mut self, index: usize, key: Key, spec: Option<Arc<ProcessSpec>>) {
        let serial = self.fresh();
        let phase = if key.is_task { Phase::Claiming } else { Phase::Preparing };
        let standing = Standing::default();
        let entry = Entry { serial, want: Want::Run, phase, spec, last: None, standing };
        self.cells[index].entries.insert(key, entry);
        if self.chaos && !self.mood.calm && self.rng.chance(20) {
            self.reject(index, key);
        } else if key.is_task {
            self.say(index, key, Report::Task(TaskReport::Claim));
        } else {
            let pause = self.rng.between(10, 1_500);
            self.step_later(index, key, pause);
        }
    }

    fn reject(&mut self, index: usize, key: Key) {
        let reason = "the cell has as many containers as it may".to_owned();
        let report = if key.is_task {
            Report::Task(TaskReport::Reject { reason })
        } else {
            Report::Instance(InstanceReport::Reject { reason })
        };
        if let Some(entry) = self.cells[index].entries.get_mut(&key) {
            entry.phase = Phase::Ending;
            entry.last = Some(report);
        }
        self.step_later(index, key, 1_000);
    }

    fn step_later(&mut self, index: usize, key: Key, delay: u64) {
        let cell = &self.cells[index];
        let Some(serial) = cell.entries.get(&key).map(|entry| entry.serial) else { return };
        let life = cell.life;
        self.later(delay, Event::Container { cell: index, life, key, serial });
    }

    /// Asks for a graceful end that is reported.
    fn stop_entry(&mut self, index: usize, key: Key) {
        self.check_evacuated(index, key);
        let Some(entry) = self.cells[index].entries.get_mut(&key) else { return };
        if entry.want != Want::Run {
            return;
        }
        entry.want = Want::Stop;
        if !matches!(entry.phase, Phase::Ending | Phase::Over) {
            entry.phase = Phase::Ending;
            entry.last = Some(if key.is_task {
                Report::Task(TaskReport::Cancelled)
            } else {
                Report::Instance(InstanceReport::Gone)
            });
            let pause = self.rng.between(5, 600);
            self.step_later(index, key, pause);
        }
    }

    /// The server wants an instance to end that drained: no router that is up to date leads to it.
    fn check_withdrawn(&mut self, index: usize, key: Key) {
        let container = self.cells[index].containers.get(&key).filter(|it| it.healthy);
        if let Some(address) = container.map(|it| it.address) {
            self.check_no_route(key, address);
        }
    }

    /// The server wants a piece of work to end: that must not be what serves on a drained cell.
    fn check_evacuated(&mut self, index: usize, key: Key) {
        let cell = &self.cells[index];
        let runs = |entry: &Entry| entry.phase == Phase::Running && entry.want == Want::Run;
        if !key.is_task && cell.entries.get(&key).is_some_and(runs) {
            self.check_told_to_end(cell.id, key);
        }
    }

    fn forget(&mut self, index: usize, key: Key) {
        self.check_evacuated(index, key);
        let cell = &mut self.cells[index];
        let Some(entry) = cell.entries.get_mut(&key) else { return };
        entry.want = Want::Forget;
        match entry.phase {
            Phase::Over => {
                cell.entries.remove(&key);
            }
            Phase::Ending => {}
            Phase::Claiming | Phase::Preparing | Phase::Starting | Phase::Running => {
                entry.phase = Phase::Ending;
                entry.last = None;
                let pause = self.rng.between(5, 600);
                self.step_later(index, key, pause);
            }
        }
    }

    /// Time for the next step of a piece of work.
    pub(crate) fn container_step(&mut self, index: usize, life: u64, (key, serial): (Key, u64)) {
        let cell = &self.cells[index];
        let entry = cell.entries.get(&key).filter(|entry| entry.serial == serial);
        let Some(entry) = entry.filter(|_| cell.alive && cell.life == life) else { return };
        match entry.phase {
            Phase::Claiming | Phase::Over => {}
            Phase::Preparing if key.is_task => self.task_begins(index, key),
            Phase::Preparing => self.instance_begins(index, key),
            Phase::Starting => self.instance_turns_healthy(index, key),
            Phase::Running if key.is_task => {
                let report = if self.rng.chance(80) {
                    TaskReport::Failed { reason: "exit 1".to_owned(), detail: None }
                } else {
                    TaskReport::Succeeded { result: None, artifact: None }
                };
                self.work_over(index, key, Some(Report::Task(report)));
            }
            Phase::Running => self.instance_lives(index, key),
            Phase::Ending => self.work_ended(index, key),
        }
    }

    fn task_begins(&mut self, index: usize, key: Key) {
        let cell = &self.cells[index];
        if cell.conn.is_none() && self.now >= cell.lost_at + UNREACHABLE {
            let reason = "the server was out of reach".to_owned();
            let report = Report::Task(TaskReport::Failed { reason, detail: None });
            return self.work_over(index, key, Some(report));
        }
        self.note(format_args!("cell {index} runs the user's work of {key:?}"));
        self.check_task(index, key);
        if let Some(entry) = self.cells[index].entries.get_mut(&key) {
            entry.phase = Phase::Running;
        }
        let pause = self.rng.between(50, 5_000);
        self.step_later(index, key, pause);
    }

    fn instance_begins(&mut self, index: usize, key: Key) {
        let cell = &mut self.cells[index];
        let address = cell.free_address();
        let Some(entry) = cell.entries.get_mut(&key) else { return };
        let Some(spec) = entry.spec.clone() else { return };
        entry.phase = Phase::Starting;
        entry.standing.address = Some(address);
        let limit = spec.check.as_ref().map(|check| check.start_timeout_ms);
        let never = spec.argv.iter().any(|word| word == "never-healthy");
        cell.containers.insert(key, Container { address, healthy: false, spec });
        self.say(index, key, Report::Instance(InstanceReport::Started { address }));
        let pause = match limit {
            Some(limit) if never => limit,
            Some(_) | None => self.rng.between(1, 2_500),
        };
        self.step_later(index, key, pause);
    }

    fn instance_turns_healthy(&mut self, index: usize, key: Key) {
        let cell = &mut self.cells[index];
        let Some(entry) = cell.entries.get_mut(&key) else { return };
        let is = |word: &str| entry.spec.iter().any(|spec| spec.argv.iter().any(|it| it == word));
        let checked = entry.spec.as_ref().is_some_and(|spec| spec.check.is_some());
        if checked && is("never-healthy") {
            let reason = "was not healthy in time".to_owned();
            let crashed = InstanceReport::Crashed { reason, never_healthy: true, detail: None };
            return self.work_over(index, key, Some(Report::Instance(crashed)));
        }
        if is("crashes") {
            return self.crash_instance(index, key);
        }
        entry.phase = Phase::Running;
        entry.standing.ready = Some(true);
        if let Some(container) = cell.containers.get_mut(&key) {
            container.healthy = true;
        }
        self.say(index, key, Report::Instance(InstanceReport::Ready { ready: true }));
        let pause = self.rng.between(3_000, 30_000);
        self.step_later(index, key, pause);
    }

    fn crash_instance(&mut self, index: usize, key: Key) {
        let reason = "exited with 1".to_owned();
        let crashed = InstanceReport::Crashed { reason, never_healthy: false, detail: None };
        self.work_over(index, key, Some(Report::Instance(crashed)));
    }

    fn instance_lives(&mut self, index: usize, key: Key) {
        if !self.chaos || self.mood.calm {
            return;
        }
        if self.rng.chance(150) {
            if self.rng.chance(300) {
                self.say(index, key, Report::Instance(InstanceReport::Ready { ready: false }));
            }
            return self.crash_instance(index, key);
        }
        let pause = self.rng.between(3_000, 30_000);
        self.step_later(index, key, pause);
    }

    /// The process is gone by itself; the report follows.
    fn work_over(&mut self, index: usize, key: Key, report: Option<Report>) {
        if let Some(entry) = self.cells[index].entries.get_mut(&key) {
            entry.phase = Phase::Ending;
            entry.last = report;
        }
        let pause = self.rng.between(1, 50);
        self.step_later(index, key, pause);
    }

    fn work_ended(&mut self, index: usize, key: Key) {
        let cell = &mut self.cells[index];
        cell.containers.remove(&key);
        let Some(entry) = cell.entries.get_mut(&key) else { return };
        entry.phase = Phase::Over;
        let last = entry.last.take();
        entry.standing = Standing::default();
        match &last {
            Some(Report::Task(report)) => entry.standing.task_end = Some(report.clone()),
            Some(Report::Instance(report)) => entry.standing.end = Some(report.clone()),
            None => {}
        }
        if entry.want == Want::Forget {
            cell.entries.remove(&key);
        }
        if let Some(report) = last {
            self.say(index, key, report);
        }
    }
}
