//! The invariants, checked on what is durable, on what components do, and once all is quiet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use auction::{DEFAULT_DISK_MB, DEFAULT_MEMORY_MB};
use model::{
    AppId, BuildId, CellId, CellSpec, ContainerSpec, DeliveryId, DeploymentId, DeploymentState,
    InstanceId, InstanceState, JobId, JobState, Limits, Name, Outcome, ProcessId, TaskId,
};
use state::{
    App, Attempt, Build, Cell, CellInstance, Command, Delivery, Deployment, Instance, Job,
    PredecessorKind, Process, Row, Runner, State, Task, delivery_id,
};
use store::{Batch, Record, Store as _};

use crate::cell::Container;
use crate::message::{Key, Node};
use crate::world::World;

/// What the store holds, and what components have done.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    pub(crate) jobs: BTreeMap<JobId, Job>,
    archived: BTreeSet<JobId>,
    keys: BTreeMap<String, JobId>,
    pub(crate) tasks: BTreeMap<TaskId, Task>,
    /// Which task the words of a client gave.
    task_keys: BTreeMap<String, TaskId>,
    /// Messages that wait to be taken.
    pub(crate) outbox: BTreeSet<DeliveryId>,
    /// Messages that arrived.
    pub(crate) received: BTreeSet<DeliveryId>,
    pub(crate) deployments: BTreeMap<DeploymentId, Deployment>,
    processes: BTreeMap<ProcessId, Process>,
    pub(crate) instances: BTreeMap<InstanceId, Instance>,
    pub(crate) cells: BTreeMap<CellId, Cell>,
    builds: BTreeMap<BuildId, Build>,
    /// Which instance each index of a process has.
    indexes: BTreeMap<(ProcessId, u32), InstanceId>,
    /// The attempt that follows each.
    retries: BTreeMap<TaskId, TaskId>,
    /// The epoch in which each instance was last ready.
    served: BTreeMap<InstanceId, u32>,
    /// How many instances may move at once to even out how full cells are.
    most_moves: u32,
    /// Attempts whose acknowledgement is durable.
    pub(crate) confirmed: BTreeSet<(JobId, u32)>,
    /// Jobs that runners began to work on.
    started: BTreeMap<JobId, u32>,
    pub(crate) working: BTreeSet<JobId>,
    /// Tasks whose work began.
    tasks_started: BTreeSet<u128>,
    /// When the end of a job became durable.
    over_since: BTreeMap<JobId, u64>,
    /// When a job last ended.
    pub(crate) last_end: u64,
}

/// How long after a cell stood still it may still do what it was told before.
const AWHILE: u64 = 15_000;

type Violation = (&'static str, String);

/// How much of a cell is taken.
#[derive(Debug, Default, Clone, Copy)]
struct Taken {
    memory_mb: u64,
    disk_mb: u64,
    containers: u64,
    cpu_shares: u64,
    pids: u64,
}

impl Taken {
    fn add(&mut self, limits: &Limits) {
        self.memory_mb += limits.memory_mb.unwrap_or(DEFAULT_MEMORY_MB);
        self.disk_mb += limits.disk_mb.unwrap_or(DEFAULT_DISK_MB);
        self.containers += 1;
        self.cpu_shares += limits.cpu_shares.unwrap_or(0);
        self.pids += limits.pids.unwrap_or(0);
    }

    fn fits(&self, spec: &CellSpec) -> bool {
        self.memory_mb <= spec.memory_mb
            && self.disk_mb <= spec.disk_mb
            && self.containers <= u64::from(spec.containers)
            && spec.cpu_shares.is_none_or(|most| self.cpu_shares <= most)
            && spec.pids.is_none_or(|most| self.pids <= most)
    }
}

/// Whether a cell has the driver and the tags that a container asks for, and no others are needed.
fn suits(spec: &CellSpec, container: &ContainerSpec) -> bool {
    let has = |tag| spec.required_tags.contains(tag) || spec.tags.contains(tag);
    container.driver.as_ref().is_none_or(|driver| spec.drivers.contains(driver))
        && container.tags.iter().all(has)
        && spec.required_tags.is_subset(&container.tags)
}

fn read<T: Row>(record: &Record) -> Result<Option<T>, Violation> {
    let Some(body) = &record.body else { return Ok(None) };
    let row = serde_json::from_slice(body).map_err(|error| ("load", error.to_string()))?;
    Ok(Some(row))
}

fn keep<T: Row>(map: &mut BTreeMap<T::Id, T>, id: T::Id, record: &Record) -> Result<(), Violation> {
    match read::<T>(record)? {
        Some(row) => map.insert(id, row),
        None => map.remove(&id),
    };
    Ok(())
}

impl Checker {
    /// Of a world in which so many instances may move at once.
    pub(crate) fn new(moves: Option<u32>) -> Self {
        Self { most_moves: moves.unwrap_or(0), ..Self::default() }
    }

    fn commit(&mut self, now: u64, batch: &Batch) -> Result<(), Violation> {
        for entry in &batch.histories {
            let id = u128::from_str_radix(&entry.key, 16)
                .map_err(|error| ("load", error.to_string()))?;
            if !self.archived.insert(JobId(id)) {
                return Err(("I3", format!("{} ended twice", JobId(id))));
            }
            self.job(now, &Record::put(entry.kind, id, entry.body.clone()))?;
        }
        let (mut jobs, mut places, mut builds) = (false, false, false);
        let mut ended = Vec::new();
        for record in &batch.records {
            let id = record.id;
            match record.kind.as_str() {
                "job" => {
                    self.job(now, record)?;
                    jobs = true;
                }
                "task" => {
                    ended.extend(self.task(now, record)?);
                    places = true;
                }
                "delivery" => self.delivery(record)?,
                "instance" => {
                    self.instance(record)?;
                    places = true;
                }
                "deployment" => {
                    self.deployment(record)?;
                    builds = true;
                }
                "build" => {
                    keep(&mut self.builds, BuildId(id), record)?;
                    builds = true;
                }
                "process" => keep(&mut self.processes, ProcessId(id), record)?,
                "cell" => keep(&mut self.cells, CellId(id), record)?,
                _ => {}
            }
        }
        if let Some(task) = ended.iter().find(|id| !self.outbox.contains(&delivery_id(**id))) {
            return Err(("I12", format!("{task} ended and its message is not in the outbox")));
        }
        if jobs {
            self.scopes()?;
        }
        if builds {
            self.references()?;
        }
        if places {
            self.moves()?;
            self.capacity().and_then(|()| self.addresses())?;
        }
        Ok(())
    }

    /// Evening out never has more instances moving at once than its budget, none without one. Those
    /// whose cell is being emptied do not count: that is what a drain is for.
    fn moves(&self) -> Result<(), Violation> {
        let evened = self.instances.values().filter(|row| {
            let before = row.before.filter(|it| it.kind == PredecessorKind::Evacuating);
            let cell = before.and_then(|it| self.cells.get(&it.cell));
            cell.is_some_and(|cell| cell.draining.is_none())
        });
        let (moving, most) = (evened.count(), self.most_moves);
        if moving > most as usize {
            return Err(("moves", format!("{moving} instances move at once, {most} may")));
        }
        Ok(())
    }

    /// I19: what a deployment was made from is there for as long as the deployment is.
    fn references(&self) -> Result<(), Violation> {
        let lacks = |row: &&Deployment| !self.builds.contains_key(&row.build);
        match self.deployments.values().find(lacks) {
            Some(row) => Err(("I19", format!("{} is gone, {} needs it", row.build, row.id))),
            None => Ok(()),
        }
    }

    /// I10: no address is in two instances' claims.
    fn addresses(&self) -> Result<(), Violation> {
        let mut known = BTreeMap::new();
        for row in self.instances.values() {
            let own = match &row.state {
                InstanceState::Running { address, .. } => Some(*address),
                _ => None,
            };
            for address in own.into_iter().chain(row.before.map(|it| it.address)) {
                if let Some(other) = known.insert(address, row.id) {
                    let detail = format!("{other} and {} are at {address}", row.id);
                    return Err(("I10", detail));
                }
            }
        }
        Ok(())
    }

    fn job(&mut self, now: u64, record: &Record) -> Result<(), Violation> {
        let id = JobId(record.id);
        let Some(new) = read::<Job>(record)? else {
            if self.archived.contains(&id) {
                return Ok(());
            }
            return Err(("I4", format!("{id} was deleted and not archived")));
        };
        if let Some(old) = self.jobs.get(&id) {
            if new.epoch < old.epoch {
                return Err(("I2", format!("the epoch of {id} went back")));
            }
            if old.state.is_terminal() && old.state != new.state {
                return Err(("I3", format!("{id} was {:?} and is {:?}", old.state, new.state)));
            }
            let requeued = new.state == JobState::Queued && old.state != JobState::Queued;
            if requeued && new.epoch <= old.epoch {
                let detail = format!("{id} went back in line in the same epoch {}", new.epoch);
                return Err(("I2", detail));
            }
            if old.cancel.is_some() && new.cancel.is_none() {
                return Err(("cancel", format!("{id} is not asked to end any more")));
            }
        }
        if let Some(key) = &new.spec.idempotency_key {
            let first = *self.keys.entry(key.clone()).or_insert(id);
            if first != id {
                return Err(("idempotency", format!("{first} and {id} have the key {key}")));
            }
        }
        if new.state.is_terminal() && !self.over_since.contains_key(&id) {
            self.over_since.insert(id, now);
            self.last_end = now;
        }
        self.jobs.insert(id, new);
        Ok(())
    }

    /// Keeps a task; its id when it ended and somebody is to be told.
    fn task(&mut self, now: u64, record: &Record) -> Result<Option<TaskId>, Violation> {
        let id = TaskId(record.id);
        let Some(new) = read::<Task>(record)? else {
            self.tasks.remove(&id);
            return Ok(None);
        };
        let old = self.tasks.get(&id);
        if let Some(old) = old {
            if new.epoch < old.epoch {
                return Err(("I2", format!("the epoch of {id} went back")));
            }
            if old.state.is_terminal() && old.state != new.state {
                return Err(("I3", format!("{id} was {:?} and is {:?}", old.state, new.state)));
            }
        }
        // I13: what is scheduled again is scheduled once.
        if let Some(first) = new.retry_of {
            let next = *self.retries.entry(first).or_insert(id);
            if next != id {
                return Err(("I13", format!("{first} is followed by {next} and by {id}")));
            }
        }
        let most = new.spec.retry.map_or(1, |retry| retry.attempts);
        if new.attempt > most {
            return Err(("I5", format!("{id} is attempt {} of {most}", new.attempt)));
        }
        if let Some(key) = &new.key {
            let first = *self.task_keys.entry(key.clone()).or_insert(id);
            if first != id {
                return Err(("idempotency", format!("{first} and {id} have the key {key}")));
            }
        }
        let told = new.spec.callback.is_some() && new.followed_by.is_none();
        let over = new.state.is_terminal() && old.is_none_or(|old| !old.state.is_terminal());
        if over {
            self.last_end = now;
        }
        self.tasks.insert(id, new);
        Ok((told && over).then_some(id))
    }

    fn delivery(&mut self, record: &Record) -> Result<(), Violation> {
        let id = DeliveryId(record.id);
        if read::<Delivery>(record)?.is_some() {
            self.outbox.insert(id);
        } else if self.outbox.remove(&id) && !self.received.contains(&id) {
            return Err(("I12", format!("{id} left the outbox and never arrived")));
        }
        Ok(())
    }

    fn instance(&mut self, record: &Record) -> Result<(), Violation> {
        let id = InstanceId(record.id);
        if let (Some(new), Some(old)) = (read::<Instance>(record)?, self.instances.get(&id))
            && new.last_epoch < old.last_epoch
        {
            return Err(("I2", format!("the epoch of {id} went back")));
        }
        // 10.4: at most one row for each index of a process.
        if let Some(row) = read::<Instance>(record)? {
            let first = *self.indexes.entry((row.process, row.index)).or_insert(id);
            if first != id {
                let place = (row.process, row.index);
                return Err(("10.4", format!("{first} and {id} are both {place:?}")));
            }
            if row.state.ready_address().is_some() {
                self.served.insert(id, row.epoch);
            }
            // Somebody stopped it, or it failed by itself: it is not to serve any more.
            let over =
                matches!(row.state, InstanceState::Stopping { .. } | InstanceState::Crashed { .. });
            let stopped = row.before.filter(|it| it.kind == PredecessorKind::Stopping);
            let ends =
                |epoch| over && row.epoch == epoch || stopped.is_some_and(|it| it.epoch == epoch);
            if self.served.get(&id).is_some_and(|epoch| ends(*epoch)) {
                self.served.remove(&id);
            }
        } else if let Some(old) = self.instances.get(&id) {
            self.indexes.remove(&(old.process, old.index));
        }
        keep(&mut self.instances, id, record)
    }

    fn deployment(&mut self, record: &Record) -> Result<(), Violation> {
        let id = DeploymentId(record.id);
        if let (Some(new), Some(old)) = (read::<Deployment>(record)?, self.deployments.get(&id))
            && matches!(old.state, DeploymentState::Failed { .. })
            && old.state != new.state
        {
            return Err(("I9", format!("{id} failed and is {:?}", new.state)));
        }
        keep(&mut self.deployments, id, record)
    }

    /// Two jobs that change the same app in the same workspace never run at the same time.
    fn scopes(&self) -> Result<(), Violation> {
        let mut held: BTreeMap<(AppId, &Name), JobId> = BTreeMap::new();
        for job in self.jobs.values() {
            let (Some(_), Some(app)) = (job.state.runner(), job.spec.app) else { continue };
            if !job.spec.operation.changes_app() {
                continue;
            }
            if let Some(other) = held.insert((app, &job.spec.workspace), job.id) {
                let detail = format!("{other} and {} change {app} at the same time", job.id);
                return Err(("mutex", detail));
            }
        }
        Ok(())
    }

    /// Every copy of work that takes room on a cell.
    fn claims(&self) -> impl Iterator<Item = (CellId, &ContainerSpec)> {
        let tasks = self.tasks.values();
        let tasks = tasks.filter_map(|task| Some((task.state.cell()?, &task.spec.container)));
        let instances = self.instances.values().flat_map(|row| {
            let process = self.processes.get(&row.process);
            // The cell of a suspect is not there, so nothing else is placed on it either.
            let there = |it: &&state::Predecessor| it.kind != PredecessorKind::Suspect;
            let before = row.before.as_ref().filter(there).map(|it| it.cell);
            let cells = row.state.cell().into_iter().chain(before);
            cells.filter_map(move |cell| Some((cell, &process?.spec.container)))
        });
        tasks.chain(instances)
    }

    /// I7: what is claimed on a cell fits there, and the cell has what each asks for.
    fn capacity(&self) -> Result<(), Violation> {
        let mut used: BTreeMap<CellId, Taken> = BTreeMap::new();
        for (id, container) in self.claims() {
            let Some(cell) = self.cells.get(&id) else {
                return Err(("I7", format!("work is claimed on {id}, which is not there")));
            };
            if !suits(&cell.spec, container) {
                return Err(("I7", format!("{container:?} is on {:?}", cell.spec)));
            }
            used.entry(id).or_default().add(&container.limits);
        }
        for (id, taken) in used {
            let spec = self.cells.get(&id).map(|cell| &cell.spec);
            if let Some(spec) = spec.filter(|spec| !taken.fits(spec)) {
                return Err(("I7", format!("{id} holds {taken:?} of {spec:?}")));
            }
        }
        Ok(())
    }

    /// Nobody may count on a copy of an instance any more.
    pub(crate) fn ends(&mut self, id: InstanceId) {
        self.served.remove(&id);
    }

    /// Whether an instance is wanted.
    fn wants(&self, row: &Instance) -> bool {
        let deployment = self.deployments.get(&row.deployment);
        let process = self.processes.get(&row.process);
        deployment.is_some_and(|it| it.state.wants_instances())
            && process.is_some_and(|process| row.index < process.instances)
    }

    /// P1: how what the store gives back differs from what it has kept.
    fn lost(&self, state: &State) -> Option<String> {
        let open = |job: &&Job| !job.state.is_terminal();
        let jobs = self.jobs.values().filter(open);
        if !state.all::<Job>().map(|row| &**row).filter(open).eq(jobs) {
            return Some("a job".to_owned());
        }
        if !state.all::<Task>().map(|row| &**row).eq(self.tasks.values()) {
            return Some("a task".to_owned());
        }
        if !state.all::<Instance>().map(|row| &**row).eq(self.instances.values()) {
            return Some("an instance".to_owned());
        }
        if !state.all::<Cell>().map(|row| &**row).eq(self.cells.values()) {
            return Some("a cell".to_owned());
        }
        let known = state.all::<Delivery>().map(|row| row.id);
        (!known.eq(self.outbox.iter().copied())).then(|| "a message".to_owned())
    }

    /// Whether the end of the job is durable, or a request for it.
    fn asked_to_end(&self, id: JobId) -> bool {
        let Some(job) = self.jobs.get(&id) else { return self.archived.contains(&id) };
        job.state.is_terminal() || job.cancel.is_some()
    }
}

/// A route whose target is not a ready instance of the deployment that was released.
pub(crate) fn wrong_route(state: &State) -> Option<String> {
    let released: BTreeSet<DeploymentId> =
        state.all::<App>().flat_map(|app| app.released.values().copied()).collect();
    for id in &released {
        let row = state.get::<Deployment>(*id);
        if row.is_none_or(|row| row.state != DeploymentState::Ready) {
            return Some(format!("{id} is released and {:?}", row.map(|row| &row.state)));
        }
    }
    for route in state.routes().routes {
        if !released.contains(&route.deployment) {
            return Some(format!("{} points at {}, not released", route.host, route.deployment));
        }
        for target in &route.targets {
            let row = state.get::<Instance>(target.instance);
            let good = row.is_some_and(|row| {
                row.deployment == route.deployment
                    && (row.state.ready_address() == Some(target.address)
                        || row.before.is_some_and(|it| it.ready && it.address == target.address))
            });
            if !good {
                return Some(format!("{} points at {target:?}, not ready", route.host));
            }
        }
    }
    None
}

impl World {
    /// Rows that the store has kept.
    pub(crate) fn committed_rows(&mut self, batch: &Batch) {
        if let Err((invariant, detail)) = self.check.commit(self.now, batch) {
            self.fail(invariant, detail);
        }
    }

    /// The server has loaded its state.
    pub(crate) fn check_loaded(&mut self) {
        let lost = self.shell.live.as_ref().and_then(|state| self.check.lost(state));
        if let Some(what) = lost {
            self.fail("P1", format!("{what} was kept, and is not as it was after a restart"));
        }
    }

    /// A client was told that its job is in line.
    pub(crate) fn check_queued(&mut self, id: JobId) {
        if !self.check.jobs.contains_key(&id) && !self.check.archived.contains(&id) {
            self.fail("I4", format!("{id} was acknowledged and is not in the store"));
        }
    }

    /// A client was told that its task is made.
    pub(crate) fn check_made(&mut self, id: TaskId) {
        if !self.check.tasks.contains_key(&id) {
            self.fail("I4", format!("{id} was acknowledged and is not in the store"));
        }
    }

    /// A client was told that its cancellation is accepted.
    pub(crate) fn check_cancelled(&mut self, id: JobId, force: bool) {
        let over = self.check.jobs.get(&id).is_none_or(|job| job.state.is_terminal());
        if !self.check.asked_to_end(id) || (force && !over) {
            self.fail("cancel", format!("the cancellation of {id} was acknowledged and is lost"));
        }
    }

    /// A runner begins to work on a job.
    pub(crate) fn check_started(&mut self, at: Attempt) {
        self.note(format_args!("work on {} begins in epoch {}", at.job, at.epoch));
        if !self.check.confirmed.contains(&(at.job, at.epoch)) {
            let detail = format!(
                "{} is worked on in epoch {}, whose acknowledgement is not durable",
                at.job, at.epoch
            );
            return self.fail("I6", detail);
        }
        let row = self.check.jobs.get(&at.job).map(|row| row.epoch);
        if row.is_some_and(|epoch| epoch != at.epoch) {
            let detail = format!("{} is worked on in epoch {}, it is at {row:?}", at.job, at.epoch);
            return self.fail("I6", detail);
        }
        if let Some(before) = self.check.started.insert(at.job, at.epoch) {
            let detail = format!("{} began in epoch {before} and again in {}", at.job, at.epoch);
            return self.fail("I6", detail);
        }
        self.check.working.insert(at.job);
    }

    /// A person may end an instance that serves.
    pub(crate) fn stopped_by_hand(&mut self, command: &Command) {
        let Command::RestartInstance { app, workspace, process, index } = command else { return };
        let Some(state) = &self.shell.live else { return };
        let released = state.get::<App>(*app).and_then(|app| app.released.get(workspace));
        let deployment = released.and_then(|id| state.get::<Deployment>(*id));
        let processes = deployment.map(|row| row.processes.clone()).unwrap_or_default();
        let mut rows = processes.iter().filter_map(|id| state.get::<Process>(*id));
        let row = rows.find(|row| row.name == *process).map(|row| row.id);
        if let Some(id) = row {
            self.check.ends(state::instance_id(id, *index));
        }
    }

    /// A cell is told to end an instance that runs. 10.4: that one serves, unless another copy
    /// does, or none is wanted.
    pub(crate) fn check_told_to_end(&mut self, cell: CellId, key: Key) {
        let id = InstanceId(key.id);
        let Some(row) = self.check.instances.get(&id) else { return };
        let served_last = self.check.served.get(&id) == Some(&key.epoch);
        let is_wanted = !matches!(row.state, InstanceState::Stopping { .. });
        if served_last && is_wanted && row.routed().is_none() && self.check.wants(row) {
            let detail = format!(
                "{id} is ended on {cell} in epoch {} and nothing serves: {row:?}",
                key.epoch
            );
            self.fail("10.4", detail);
        }
    }

    /// I9: an instance is told to end by and by; no router that is up to date leads to it.
    pub(crate) fn check_no_route(&mut self, key: Key, address: SocketAddr) {
        let leads = self.routers.iter().enumerate().find(|(index, router)| {
            let knows = router.conn.is_some_and(|conn| self.is_up_to_date(conn));
            knows && !self.is_frozen(Node::Router(*index)) && router.sends_to(address)
        });
        if let Some((index, _)) = leads {
            let detail = format!("router {index} leads to {address} of {key:?}, which ends");
            self.fail("I9", detail);
        }
    }

    /// A cell begins the user's work of a task. I6: it never began before. And it does not begin once
    /// the server has given the cell up, unless the cell cannot know how late it is.
    pub(crate) fn check_task(&mut self, index: usize, key: Key) {
        let thawed = self.thawed.get(&Node::Cell(index)).is_some_and(|at| at + AWHILE > self.now);
        let row = self.check.cells.get(&self.cells[index].id);
        if row.is_none_or(|row| row.lease_until.is_none()) && !thawed {
            let task = TaskId(key.id);
            let detail = format!("the work of {task} begins on cell {index}, which counts as gone");
            return self.fail("fence", detail);
        }
        if !self.check.tasks_started.insert(key.id) {
            self.fail("I6", format!("the work of {} began twice", TaskId(key.id)));
        }
    }

    /// The server confirmed a runner's report.
    pub(crate) fn check_ended(&mut self, at: Attempt, outcome: &Outcome) {
        let Some(job) = self.check.jobs.get(&at.job) else { return };
        let mut wanted = JobState::from(outcome.clone());
        // Whoever asked for the end said why; the runner does not know.
        if let (JobState::Cancelled { reason }, Some(asked)) = (&mut wanted, &job.cancel) {
            reason.clone_from(asked);
        }
        if job.state != wanted {
            let detail = format!("{} was reported {outcome:?} and is {:?}", at.job, job.state);
            self.fail("outcome", detail);
        }
    }

    /// Whoever waits for the end of a job hears of it within a second.
    pub(crate) fn check_follows(&mut self) {
        let late = self.shell.follows.values().find_map(|follow| {
            let since = self.check.over_since.get(&follow.job)?;
            (!follow.reading && self.now > since + 1_000).then_some((follow.call, follow.job))
        });
        if let Some((call, job)) = late {
            self.fail("I17", format!("call {call} still waits for {job}, which has ended"));
        }
    }

    /// What keeps the world from being quiet.
    pub(crate) fn unrest(&self) -> Option<Violation> {
        let Some(state) = self.shell.settled() else {
            return Some(("I8", "the server is busy or away".to_owned()));
        };
        self.jobs_unrest()
            .or_else(|| self.work_unrest(state))
            .or_else(|| self.cells_unrest(state))
            .or_else(|| self.runners_unrest(state))
            .or_else(|| self.routers_unrest(state))
    }

    /// Whether something is under way that ends by itself, or at a deadline of its own.
    pub(crate) fn is_busy(&self) -> bool {
        let starting = |row: &Deployment| matches!(row.state, DeploymentState::Starting { .. });
        self.jobs_unrest().is_some()
            || self.check.tasks.values().any(|task| !task.state.is_terminal())
            || self.check.deployments.values().any(starting)
            || self.undelivered().is_some()
    }

    fn jobs_unrest(&self) -> Option<Violation> {
        let open = self.check.jobs.values().find(|job| !job.state.is_terminal());
        if let Some(job) = open {
            let asked = if job.cancel.is_some() { "cancel" } else { "I8" };
            return Some((asked, format!("{} has not ended: {:?}", job.id, job.state)));
        }
        self.clients.errand().map(|what| ("I8", format!("a client still waits: {what}")))
    }

    fn work_unrest(&self, state: &State) -> Option<Violation> {
        if let Some(id) = self.undelivered() {
            return Some(("I12", format!("{id} has not been taken")));
        }
        if let Some(task) = state.all::<Task>().find(|task| !task.state.is_terminal()) {
            return Some(("I8", format!("{} has not ended: {:?}", task.id, task.state)));
        }
        let moving = |row: &&Arc<Deployment>| {
            matches!(row.state, DeploymentState::Starting { .. }) || row.retire_at.is_some()
        };
        if let Some(row) = state.all::<Deployment>().find(moving) {
            return Some(("I8", format!("{} is {:?}, {:?}", row.id, row.state, row.retire_at)));
        }
        state.all::<Process>().find_map(|process| {
            let wants = state.get::<Deployment>(process.deployment)?.state.wants_instances();
            let wanted = if wants { process.instances } else { 0 };
            let rows: Vec<_> = state.instances_of(process).collect();
            if rows.len() != usize::try_from(wanted).ok()? {
                let detail = format!("{} has {rows:?}, wanted are {wanted}", process.id);
                return Some(("I8", detail));
            }
            // What never becomes healthy is started again and again, and that is as it should be.
            let hopeless = |word: &String| word == "never-healthy" || word == "crashes";
            if process.spec.argv.iter().any(hopeless) {
                return None;
            }
            let stuck = rows.iter().find(|row| match &row.state {
                InstanceState::Running { ready, .. } => !ready,
                InstanceState::Unclaimed { reason: Some(_) } => self.has_room(state, process),
                _ => true,
            })?;
            Some(("I8", format!("{} is {:?}", stuck.id, stuck.state)))
        })
    }

    /// Whether some cell could take one more of a process.
    fn has_room(&self, state: &State, process: &Process) -> bool {
        let container = &process.spec.container;
        self.cells.iter().filter(|cell| suits(&cell.spec, container)).any(|cell| {
            let mut taken = Taken::default();
            for it in state.cell_work(cell.id).instances {
                taken.add(&it.process.spec.container.limits);
            }
            taken.add(&container.limits);
            taken.fits(&cell.spec)
        })
    }

    fn cells_unrest(&self, state: &State) -> Option<Violation> {
        self.cells.iter().enumerate().find_map(|(index, cell)| {
            let key =
                |it: &CellInstance| Key { is_task: false, id: it.row.id.0, epoch: it.copy.epoch };
            let work = state.cell_work(cell.id);
            let wanted: BTreeSet<Key> = work.instances.iter().map(key).collect();
            let there: BTreeSet<Key> = cell.containers.keys().copied().collect();
            if wanted != there {
                return Some(("I8", format!("cell {index} runs {there:?}, wanted is {wanted:?}")));
            }
            let online = state.get::<Cell>(cell.id).is_some_and(|row| row.accepts());
            (!online).then(|| ("I8", format!("cell {index} is there and takes no work")))
        })
    }

    fn runners_unrest(&self, state: &State) -> Option<Violation> {
        self.runners.iter().enumerate().find_map(|(index, runner)| {
            if !runner.is_idle() {
                return Some(("I8", format!("runner {index} still holds a job that ended")));
            }
            let online = state.get::<Runner>(runner.id).is_some_and(|row| row.online);
            let connected = runner.conn.is_some_and(|conn| self.conns.contains_key(&conn));
            (!online || !connected)
                .then(|| ("I8", format!("runner {index}: connected {connected}, online {online}")))
        })
    }

    fn routers_unrest(&self, state: &State) -> Option<Violation> {
        let wanted: BTreeMap<_, _> =
            state.routes().routes.into_iter().map(|route| (route.host.clone(), route)).collect();
        for (index, router) in self.routers.iter().enumerate() {
            if router.table != wanted {
                let served: Vec<_> = router.table.values().collect();
                return Some((
                    "I9",
                    format!(
                        "router {index} serves {served:?} at {}, the server has {:?} at {}",
                        router.generation,
                        wanted.values().collect::<Vec<_>>(),
                        state.route_generation()
                    ),
                ));
            }
        }
        let container = |address| {
            let all = self.cells.iter().flat_map(|cell| cell.containers.iter());
            let mut same = all.filter(move |(_, it): &(&Key, &Container)| it.address == address);
            same.next()
        };
        for target in wanted.values().flat_map(|route| &route.targets) {
            let there = container(target.address);
            if there.is_none_or(|(key, it)| key.id != target.instance.0 || !it.healthy) {
                return Some(("I9", format!("{target:?} is routed to, there is {there:?}")));
            }
        }
        None
    }

    /// What must hold once all is quiet.
    pub(crate) fn check_rest(&mut self) {
        let loaded = self.shell.loaded();
        let Some(live) = self.shell.settled() else { return };
        let wrong = match loaded {
            Ok(fresh) => unlike(live, fresh, self.wall(), &self.shell.store),
            Err(error) => Some(error),
        };
        if let Some(detail) = wrong {
            self.fail("reload", detail);
        }
    }
}

/// I15: how the counters differ from a recount.
fn miscounted(state: &State) -> Option<String> {
    let recount = |names: &mut dyn Iterator<Item = &'static str>| {
        let mut counts = state::ByState::new();
        names.for_each(|name| *counts.entry(name).or_default() += 1);
        counts
    };
    let mut counts = state.counts();
    let kept = [&mut counts.jobs, &mut counts.tasks, &mut counts.instances];
    for counts in kept {
        counts.retain(|_, count| *count > 0);
    }
    let jobs = recount(&mut state.all::<Job>().map(|row| row.state.name()));
    let tasks = recount(&mut state.all::<Task>().map(|row| row.state.name()));
    let instances = recount(&mut state.all::<Instance>().map(|row| row.state.name()));
    let is = (&counts.jobs, &counts.tasks, &counts.instances) == (&jobs, &tasks, &instances);
    (!is).then(|| format!("counted are {counts:?}, there are {jobs:?}, {tasks:?}, {instances:?}"))
}

/// Gives rows the leases they have in the live state, because those are not kept; whether they agree
/// in all else.
fn renew<R: Row>(live: &State, fresh: &mut State) -> bool {
    let rows: Vec<_> = live.all::<R>().cloned().collect();
    rows.iter().all(|row| {
        let key = R::key(row.id());
        let same = fresh.get::<R>(row.id()).is_some_and(|kept| !kept.differs(row));
        let body = serde_json::to_vec(&**row);
        same && body.is_ok_and(|body| fresh.load(key.kind(), &body).is_ok())
    })
}

/// How a state made of the store's rows differs from the one that wrote them.
fn unlike(
    live: &State,
    mut fresh: State,
    now: model::Time,
    store: &store::memory::MemoryStore,
) -> Option<String> {
    if !renew::<Cell>(live, &mut fresh) || !renew::<Job>(live, &mut fresh) {
        return Some("a cell or a job differs in more than its lease".to_owned());
    }
    if live.ready_jobs() != fresh.ready_jobs() {
        return Some("ready jobs differ".to_owned());
    }
    if let Some(detail) = miscounted(live) {
        return Some(detail);
    }
    if live.next_deadline() != fresh.next_deadline() {
        return Some("the next deadline differs".to_owned());
    }
    let mut rows = 0;
    let counted = store.load(&mut |_, _, _| {
        rows += 1;
        Ok(())
    });
    if !live.all::<Job>().eq(fresh.all::<Job>()) {
        return Some("the jobs differ".to_owned());
    }
    let known = live.all::<Job>().filter(|job| !job.state.is_terminal()).count()
        + live.all::<Task>().count()
        + live.all::<Delivery>().count()
        + live.all::<Instance>().count()
        + live.all::<Process>().count()
        + live.all::<Deployment>().count()
        + live.all::<Build>().count()
        + live.all::<App>().count()
        + live.all::<state::Project>().count()
        + live.all::<Cell>().count()
        + live.all::<Runner>().count();
    if counted.is_err() || rows != known {
        return Some(format!("the store holds {rows} rows, the state {known}"));
    }
    for cell in live.all::<Cell>() {
        let (one, two) = (live.cell_work(cell.id), fresh.cell_work(cell.id));
        if one.tasks != two.tasks || one.instances != two.instances {
            return Some(format!("the work of {} differs", cell.id));
        }
    }
    // The first command derives the routes.
    let before = live.routes().routes;
    if let Err(refusal) = fresh.apply(now, Command::Boot) {
        return Some(format!("the boot was refused: {refusal}"));
    }
    (before != fresh.routes().routes).then(|| "the routes differ".to_owned())
}
