//! Reading: what the API, the component streams and people ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use model::{
    AppId, CellId, DeliveryId, HostName, InstanceId, JobId, JobState, Name, ProjectId, RouteTable,
    RunnerId, Target, TaskId, Time, TokenId, WEB,
};

use crate::command::Refusal;
use crate::counts::Counts;
use crate::queue::accepts;
use crate::records::{
    App, Build, Delivery, Deployment, Instance, InstanceCopy, Job, Key, Process, Project, Runner,
    Task,
};
use crate::routes::RouteChange;
use crate::tables::{Core, Row};
use crate::tasks::KeptTasks;
use crate::work::DRAIN;
use crate::{CELL_LEASE, Cell, State, routes};

/// What a cell should be doing.
#[derive(Debug, Clone, Default)]
pub struct CellWork {
    /// Tasks offered to it or running on it.
    pub tasks: Vec<Arc<Task>>,
    /// Copies of instances.
    pub instances: Vec<CellInstance>,
}

/// Names something that a cell has to do with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkKey {
    /// A task.
    Task(TaskId),
    /// A copy of an instance.
    Instance(InstanceId),
}

/// What a cell is to do about something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// The epoch of the attempt or copy.
    pub epoch: u32,
    /// Whether it is to end.
    pub stop: bool,
}

/// Something that a cell has to do with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CellUnit {
    /// A task.
    Task(Arc<Task>),
    /// A copy of an instance.
    Instance(CellInstance),
}

impl CellUnit {
    /// What the cell is to do about it.
    pub fn order(&self) -> Order {
        match self {
            Self::Task(task) => Order { epoch: task.epoch, stop: task.cancelling },
            Self::Instance(it) => Order { epoch: it.copy.epoch, stop: it.copy.stop },
        }
    }
}

impl Task {
    /// What a cell is to do about it.
    pub(crate) fn order_on(&self, cell: CellId) -> Option<Order> {
        let is_here = self.state.cell() == Some(cell);
        is_here.then_some(Order { epoch: self.epoch, stop: self.cancelling })
    }
}

impl Core {
    /// Cells that have something else to do than at the last call. One that is being emptied is
    /// told of everything that concerns it, because what is left decides when it may go.
    pub(crate) fn take_orders(&mut self) -> BTreeMap<CellId, BTreeSet<WorkKey>> {
        let changed = std::mem::take(&mut self.indexes.dirty_cells);
        let mut cells: BTreeMap<CellId, BTreeSet<WorkKey>> =
            changed.into_iter().map(|cell| (cell, BTreeSet::new())).collect();
        for ((cell, key), before) in std::mem::take(&mut self.indexes.dirty_work) {
            let empties = self.get::<Cell>(cell).is_some_and(|cell| cell.draining.is_some());
            let order = match key {
                WorkKey::Task(id) => self.get::<Task>(id).and_then(|row| row.order_on(cell)),
                WorkKey::Instance(id) => {
                    self.get::<Instance>(id).and_then(|row| row.order_on(cell))
                }
            };
            if empties || order != before {
                cells.entry(cell).or_default().insert(key);
            }
        }
        cells
    }
}

/// A copy of an instance on a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellInstance {
    /// The instance.
    pub row: Arc<Instance>,
    /// Its process.
    pub process: Arc<Process>,
    /// The copy that is there.
    pub copy: InstanceCopy,
}

/// How much of a cell is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CellLoad {
    /// Memory in MiB.
    pub memory_mb: u64,
    /// Disk in MiB.
    pub disk_mb: u64,
}

impl State {
    /// Whether a runner may join with a token; why not is the refusal.
    pub fn runner_may_join(&self, now: Time, id: RunnerId, token: TokenId) -> Result<(), Refusal> {
        self.core.may_join(now, id, Some(token))
    }

    /// The token of the runner that has a job now, if it is known.
    pub fn token_at_work(&self, job: JobId) -> Option<TokenId> {
        self.get::<Runner>(self.get::<Job>(job)?.state.runner()?)?.token
    }

    /// A row by id.
    pub fn get<R: Row>(&self, id: R::Id) -> Option<&Arc<R>> {
        self.core.get::<R>(id)
    }

    /// Every row of a kind, by id.
    pub fn all<R: Row>(&self) -> impl DoubleEndedIterator<Item = &Arc<R>> + use<'_, R> {
        R::table(&self.core.tables).values()
    }

    /// What is kept of the tasks of a project, and of all.
    pub fn kept_tasks(&self, project: ProjectId) -> (KeptTasks, KeptTasks) {
        self.core.indexes.kept_tasks(project)
    }

    /// Whether a text of so many bytes that a task leaves fits beside what is kept of tasks; where it
    /// does not, the task would fail.
    pub fn has_room_for_result(&self, task: &Task, bytes: usize) -> bool {
        self.core.has_room_for_result(task, bytes)
    }

    /// When a cell may begin to end an instance that is not wanted any more. One that answered
    /// requests drains first when its deployment goes on without it; the instances of one that is
    /// retired have drained before.
    pub fn stop_due(&self, it: &CellInstance) -> Time {
        let answers = it.process.name.as_str() == WEB;
        let deployment = self.get::<Deployment>(it.row.deployment);
        let goes_on = deployment.is_some_and(|it| it.state.wants_instances());
        if answers && goes_on { it.copy.since.after(DRAIN) } else { it.copy.since }
    }

    /// A project by name.
    pub fn project_named(&self, name: &Name) -> Option<&Arc<Project>> {
        self.get(*self.core.indexes.project_names.get(name)?)
    }

    /// An app by project and name.
    pub fn app_named(&self, project: ProjectId, name: &Name) -> Option<&Arc<App>> {
        self.get(*self.core.indexes.app_names.get(&(project, name.clone()))?)
    }

    /// A key by algorithm and base-64 text.
    pub fn key_of(&self, public: &str) -> Option<&Arc<Key>> {
        self.get(*self.core.indexes.public_keys.get(public)?)
    }

    /// The deployments of an app, oldest first.
    pub fn deployments_of(&self, app: AppId) -> impl Iterator<Item = &Arc<Deployment>> {
        self.core.deployments_of(app)
    }

    /// The builds of an app, oldest first.
    pub fn builds_of(&self, app: AppId) -> impl DoubleEndedIterator<Item = &Arc<Build>> {
        self.core.builds_of(app)
    }

    /// The instances of a process, by index.
    pub fn instances_of(&self, process: &Process) -> impl Iterator<Item = &Arc<Instance>> {
        self.core.instances_of(process.id)
    }

    /// What a cell should be doing.
    pub fn cell_work(&self, cell: CellId) -> CellWork {
        let tasks = self.core.tasks_on(cell).into_iter().filter_map(|id| self.get::<Task>(id));
        let instances = self.core.instances_on(cell).into_iter();
        let instances = instances.filter_map(|id| self.cell_instance(cell, id));
        CellWork { tasks: tasks.cloned().collect(), instances: instances.collect() }
    }

    /// Names what a cell has to do with.
    pub fn cell_keys(&self, cell: CellId) -> impl Iterator<Item = WorkKey> {
        let tasks = self.core.tasks_on(cell).into_iter().map(WorkKey::Task);
        tasks.chain(self.core.instances_on(cell).into_iter().map(WorkKey::Instance))
    }

    /// Something a cell has to do with, if it does.
    pub fn cell_unit(&self, cell: CellId, key: WorkKey) -> Option<CellUnit> {
        match key {
            WorkKey::Task(id) => {
                let task = self.get::<Task>(id).filter(|task| task.state.cell() == Some(cell));
                task.cloned().map(CellUnit::Task)
            }
            WorkKey::Instance(id) => self.cell_instance(cell, id).map(CellUnit::Instance),
        }
    }

    fn cell_instance(&self, cell: CellId, id: InstanceId) -> Option<CellInstance> {
        let row = Arc::clone(self.get::<Instance>(id)?);
        let process = Arc::clone(self.get::<Process>(row.process)?);
        let copy = row.copy_on(cell)?;
        Some(CellInstance { row, process, copy })
    }

    /// What a cell has given away.
    pub fn cell_load(&self, cell: CellId) -> CellLoad {
        self.core.cell_load(cell)
    }

    /// The ids of the tasks of a job that have not ended.
    pub fn tasks_of_job(&self, job: JobId) -> Vec<TaskId> {
        let range = (job, TaskId(0))..=(job, TaskId(u128::MAX));
        self.core.indexes.tasks_by_job.range(range).map(|(_, id)| *id).collect()
    }

    /// The ids of all attempts at the same work, from the first up to this one.
    pub fn attempts_up_to(&self, task: &Task) -> Vec<TaskId> {
        self.core.attempts_up_to(task)
    }

    /// Messages that are to be tried by now: of each project those that wait longest, without those
    /// that are `busy`, and with them at most `most`.
    pub fn deliveries_due(
        &self,
        now: Time,
        most: usize,
        busy: &BTreeSet<DeliveryId>,
    ) -> Vec<Arc<Delivery>> {
        let mut found = Vec::new();
        for own in self.core.indexes.deliveries.values() {
            let is_busy = |id: &DeliveryId| busy.contains(id);
            let due = own.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id);
            // A message that is being tried is due, too: it comes first, or nearly.
            let due: Vec<_> = due.take(2 * most).collect();
            let free = most.saturating_sub(due.iter().filter(|id| is_busy(id)).count());
            let next = due.into_iter().filter(|id| !is_busy(id)).take(free);
            found.extend(next.filter_map(|id| self.get::<Delivery>(id).cloned()));
        }
        found
    }

    /// When the first message after `now` is to be tried.
    pub fn next_delivery(&self, now: Time) -> Option<Time> {
        let later = (now.after(Duration::from_millis(1)), DeliveryId(0));
        let own = self.core.indexes.deliveries.values();
        own.filter_map(|own| own.range(later..).next()).map(|(at, _)| *at).min()
    }

    /// How many rows there are, by state.
    pub fn counts(&self) -> Counts {
        self.core.indexes.counts.clone()
    }

    /// How many auctions were held.
    pub fn auctions(&self) -> u64 {
        self.core.indexes.counts.auctions
    }

    /// How many hosts have a route.
    pub fn route_count(&self) -> usize {
        self.core.routes.len()
    }

    /// The whole route table.
    pub fn routes(&self) -> RouteTable {
        self.core.routes.table()
    }

    /// The generation of the route table.
    pub fn route_generation(&self) -> u64 {
        self.core.routes.generation()
    }

    /// The route changes after `generation`; `None` when they are not kept any more.
    pub fn routes_since(&self, generation: u64) -> Option<Vec<RouteChange>> {
        self.core.routes.since(generation)
    }

    /// The host of an app in a workspace.
    pub fn host_of(&self, app: &App, workspace: &Name) -> Option<HostName> {
        let project = self.get::<Project>(app.project)?;
        routes::host(&self.core.routes.domain, &project.name, &app.name, workspace)
    }

    /// When a cell was last heard of: a moment that has been.
    pub fn last_heard(&self) -> Option<Time> {
        let latest = self.all::<Cell>().filter_map(|cell| cell.lease_until).max()?;
        let lease = u64::try_from(CELL_LEASE.as_millis()).unwrap_or(u64::MAX);
        Some(Time(latest.0.saturating_sub(lease)))
    }

    /// When the next deadline is.
    pub fn next_deadline(&self) -> Option<Time> {
        self.core.indexes.deadlines.first().map(|(at, _)| *at)
    }

    /// How many queued jobs a runner could take now.
    pub fn ready_jobs(&self) -> usize {
        self.core.indexes.queue.ready_len()
    }

    /// Why a job that is in line has not started, for people. `job` may have been read before: one
    /// that a runner was given since would wait for itself.
    pub fn why_queued(&self, job: &Job) -> Option<String> {
        let is_past = self.get::<Job>(job.id).is_none_or(|row| row.state != JobState::Queued);
        if job.state != JobState::Queued || is_past {
            return None;
        }
        if let Some(first) = job.waits_for.first() {
            return Some(format!("waits for job {first} to end"));
        }
        if let Some(holder) = self.core.indexes.queue.holder(&job.spec) {
            return Some(format!("waits for job {holder}, which changes the same app"));
        }
        let online: Vec<_> = self.all::<Runner>().filter(|runner| runner.online).collect();
        if online.is_empty() {
            return Some("no runner is connected: start one with `shore runner`".to_owned());
        }
        if online.iter().any(|runner| accepts(runner, &job.spec.target)) {
            return Some("every runner that may take it is busy".to_owned());
        }
        Some(match &job.spec.target {
            Target::Any => "every connected runner is reserved for its own jobs".to_owned(),
            Target::Runner(id) => format!("runner {id} is not connected"),
            Target::Labels(labels) => {
                let wanted: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                format!("no connected runner has the labels {}", wanted.join(", "))
            }
        })
    }
}
