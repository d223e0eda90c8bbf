//! A state with short names for what tests do to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use model::{
    Action, AppId, BuildId, CellId, CellSpec, DeploymentId, DeploymentState, Digest, InstanceId,
    InstanceReport, InstanceState, JobId, Name, Operation, Outcome, ProcessSpec, ProjectId,
    RunnerId, Target, TaskId, TaskReport, TaskSpec, TaskState, Time,
};
use state::{
    Attempt, Cell, CellCommand, Command, Deployment, Held, Instance, Job, JobCommand, JobSpec,
    NewJob, ProcessTemplate, Refusal, Reply, State, Task, WorkCommand,
};

pub(crate) const PROJECT: ProjectId = ProjectId(1);
pub(crate) const APP: AppId = AppId(10);
pub(crate) const SOURCE: Digest = Digest([1; 32]);
pub(crate) const REASON: &str = "because";

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn noop() -> JobSpec {
    JobSpec {
        project: PROJECT,
        app: None,
        workspace: name("production"),
        operation: Operation::Noop,
        target: Target::Any,
        depends_on: Vec::new(),
        allow_failure: Vec::new(),
        singleton: None,
        idempotency_key: None,
        origin: String::new(),
    }
}

/// A job that changes an app.
pub(crate) fn up() -> JobSpec {
    JobSpec { app: Some(APP), operation: Operation::Up { source: SOURCE }, ..noop() }
}

pub(crate) fn new_job(id: u128, spec: JobSpec) -> NewJob {
    NewJob { id: JobId(id), spec: Arc::new(spec), expires_in: None }
}

pub(crate) fn failed(reason: &str) -> Outcome {
    Outcome::Failed { reason: reason.to_owned() }
}

pub(crate) fn process(memory_mb: u64) -> ProcessSpec {
    let mut spec = ProcessSpec::new(["app"]);
    spec.container.limits.memory_mb = Some(memory_mb);
    spec.stop_grace_ms = 1_000;
    spec
}

pub(crate) fn task_spec() -> TaskSpec {
    TaskSpec::new(Action::run(["build"]), 1_000)
}

pub(crate) fn address(number: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], number))
}

pub(crate) fn cell_spec(memory_mb: u64) -> CellSpec {
    CellSpec {
        name: name("cell"),
        zone: String::new(),
        required_tags: BTreeSet::new(),
        tags: BTreeSet::new(),
        drivers: BTreeSet::new(),
        unavailable: BTreeMap::new(),
        memory_mb,
        disk_mb: 100_000,
        containers: 100,
        cpu_shares: None,
        pids: None,
        gate: None,
        labels: BTreeMap::new(),
    }
}

/// A state, a clock and fresh identifiers.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) state: State,
    pub(crate) now: u64,
    next: u128,
    ports: u16,
}

impl Bench {
    /// One project with one app.
    pub(crate) fn new() -> Self {
        let mut bench =
            Self { state: State::new("localhost"), now: 1_000_000, next: 1_000, ports: 1 };
        bench.ok(Command::CreateProject { id: PROJECT, name: name("shop") });
        bench.ok(Command::EnsureApp { id: APP, project: PROJECT, name: name("web") });
        bench
    }

    /// With a runner and a cell.
    pub(crate) fn ready() -> Self {
        let mut bench = Self::new();
        bench.runner(1, &[]);
        bench.cell(1, 4_000, &[]);
        bench
    }

    pub(crate) fn try_apply(&mut self, command: Command) -> Result<Reply, Refusal> {
        self.state.apply(Time(self.now), command)
    }

    pub(crate) fn ok(&mut self, command: Command) -> Reply {
        let shown = format!("{command:?}");
        self.try_apply(command).unwrap_or_else(|refusal| panic!("{shown}: {refusal}"))
    }

    pub(crate) fn job(&mut self, command: JobCommand) -> Result<Reply, Refusal> {
        self.try_apply(Command::Job(command))
    }

    pub(crate) fn work(&mut self, command: WorkCommand) -> Result<Reply, Refusal> {
        self.try_apply(Command::Work(command))
    }

    pub(crate) fn fresh(&mut self) -> u128 {
        self.next += 1 << 64;
        self.next
    }

    /// Lets time pass, with every deadline at its time.
    pub(crate) fn pass(&mut self, span: Duration) {
        let end = Time(self.now).after(span).0;
        while let Some(due) = self.state.next_deadline().filter(|due| due.0 <= end) {
            self.now = self.now.max(due.0);
            self.ok(Command::Tick);
        }
        self.now = end;
    }

    pub(crate) fn secs(&mut self, secs: u64) {
        self.pass(Duration::from_secs(secs));
    }

    // --- jobs ---

    pub(crate) fn runner_with(
        &mut self,
        id: u128,
        pairs: &[(&str, &str)],
        only_own: bool,
        holds: &[Attempt],
    ) {
        self.ok(Command::Job(JobCommand::RunnerOnline {
            id: RunnerId(id),
            name: name("runner"),
            labels: labels(pairs),
            only_own,
            holds: holds.to_vec(),
            token: None,
        }));
    }

    pub(crate) fn runner(&mut self, id: u128, pairs: &[(&str, &str)]) {
        self.runner_with(id, pairs, false, &[]);
    }

    pub(crate) fn queue(&mut self, spec: JobSpec) -> JobId {
        let id = self.fresh();
        self.now += 1;
        match self.ok(Command::Job(JobCommand::Queue(new_job(id, spec)))) {
            Reply::Job(job) => job.id,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn assign(&mut self, runner: u128) -> Option<Attempt> {
        match self.ok(Command::Job(JobCommand::Assign(RunnerId(runner)))) {
            Reply::Assigned(job) => job.map(|job| Attempt { job: job.id, epoch: job.epoch }),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn ack(&mut self, at: Attempt) {
        self.ok(Command::Job(JobCommand::Ack(at)));
    }

    /// Assigns the next job and acknowledges it.
    pub(crate) fn take(&mut self, runner: u128) -> Attempt {
        let at = self.assign(runner).expect("a job waits");
        self.ack(at);
        at
    }

    pub(crate) fn complete(&mut self, at: Attempt, outcome: Outcome) {
        self.ok(Command::Job(JobCommand::Complete(at, outcome)));
    }

    pub(crate) fn cancel(&mut self, job: JobId, force: bool) {
        self.ok(Command::Job(JobCommand::Cancel { job, force, reason: REASON.to_owned() }));
    }

    pub(crate) fn row(&self, job: JobId) -> Arc<Job> {
        self.state.get::<Job>(job).expect("the job is there").clone()
    }

    pub(crate) fn is(&self, job: JobId) -> &'static str {
        self.row(job).state.name()
    }

    // --- cells ---

    pub(crate) fn cell(&mut self, id: u128, memory_mb: u64, holds: &[Held]) -> u32 {
        let spec = cell_spec(memory_mb);
        let online =
            CellCommand::Online { id: CellId(id), spec, holds: holds.to_vec(), token: None };
        match self.ok(Command::Cell(online)) {
            Reply::Epoch(epoch) => epoch,
            other => panic!("{other:?}"),
        }
    }

    /// A report on one copy, whichever that is.
    pub(crate) fn say(
        &mut self,
        (cell, instance, epoch): (u128, InstanceId, u32),
        report: InstanceReport,
    ) -> Result<(), Refusal> {
        let cell = CellId(cell);
        let said = CellCommand::Instance { cell, instance, epoch, report };
        self.try_apply(Command::Cell(said)).map(|_| ())
    }

    fn beat_others(&mut self, silent: u128) {
        let others = self.state.all::<Cell>().filter(|row| row.lease_until.is_some());
        let others = others.filter(|row| row.id != CellId(silent));
        let others: Vec<_> = others.map(|row| (row.id, row.epoch)).collect();
        for (id, epoch) in others {
            self.ok(Command::Cell(CellCommand::Heartbeat { id, epoch }));
        }
    }

    /// Lets time pass while every cell but one is heard of.
    pub(crate) fn pass_without(&mut self, silent: u128, span: Duration) {
        let end = Time(self.now).after(span).0;
        while self.now < end {
            self.beat_others(silent);
            self.pass(Duration::from_millis(5_000.min(end - self.now)));
        }
        self.beat_others(silent);
    }

    /// A cell is not heard of until it counts as gone.
    pub(crate) fn lose(&mut self, cell: u128) {
        let until = self.state.get::<Cell>(CellId(cell)).expect("it is there").lease_until;
        let left = until.expect("it is connected").since(Time(self.now));
        self.pass_without(cell, left);
    }

    /// What a cell has: index, epoch, and whether it is to end.
    pub(crate) fn on(&self, cell: u128) -> Vec<(u32, u32, bool)> {
        let work = self.state.cell_work(CellId(cell)).instances;
        let mut all: Vec<_> =
            work.iter().map(|it| (it.row.index, it.copy.epoch, it.copy.stop)).collect();
        all.sort_unstable();
        all
    }

    pub(crate) fn report(&mut self, row: &Instance, report: InstanceReport) {
        let Some(cell) = row.state.cell() else { panic!("{row:?} is on no cell") };
        let (instance, epoch) = (row.id, row.epoch);
        self.ok(Command::Cell(CellCommand::Instance { cell, instance, epoch, report }));
    }

    pub(crate) fn task_report(&mut self, row: &Task, report: TaskReport) -> Result<Reply, Refusal> {
        let Some(cell) = row.state.cell() else { panic!("{row:?} is on no cell") };
        let (task, epoch) = (row.id, row.epoch);
        self.try_apply(Command::Cell(CellCommand::Task { cell, task, epoch, report }))
    }

    pub(crate) fn task(&mut self, at: Option<Attempt>) -> TaskId {
        let id = TaskId(self.fresh());
        let create = WorkCommand::CreateTask { id, attempt: at, spec: Arc::new(task_spec()) };
        self.ok(Command::Work(create));
        id
    }

    pub(crate) fn task_row(&self, id: TaskId) -> Arc<Task> {
        self.state.get::<Task>(id).expect("the task is there").clone()
    }

    pub(crate) fn task_state(&self, id: TaskId) -> TaskState {
        self.task_row(id).state.clone()
    }

    // --- deployments ---

    /// A running job that changes the app.
    pub(crate) fn work_job(&mut self) -> Attempt {
        self.queue(up());
        self.take(1)
    }

    /// A build of so many instances of `web`, started.
    pub(crate) fn deploy(&mut self, at: Attempt, instances: u32) -> DeploymentId {
        self.deploy_spec(at, instances, process(100))
    }

    /// The same, of a process that is not the usual one.
    pub(crate) fn deploy_spec(
        &mut self,
        at: Attempt,
        instances: u32,
        spec: ProcessSpec,
    ) -> DeploymentId {
        let template = ProcessTemplate { name: name("web"), spec, instances };
        let (build, id) = (BuildId(self.fresh()), DeploymentId(self.fresh()));
        self.ok(Command::Work(WorkCommand::RecordBuild {
            id: build,
            attempt: at,
            source: SOURCE,
            image: Digest([2; 32]),
            processes: vec![template],
        }));
        self.ok(Command::Work(WorkCommand::Deploy { id, attempt: at, build: None }));
        id
    }

    pub(crate) fn instances(&self, deployment: DeploymentId) -> Vec<Arc<Instance>> {
        let of = |row: &&Arc<Instance>| row.deployment == deployment;
        let mut rows: Vec<_> = self.state.all::<Instance>().filter(of).cloned().collect();
        rows.sort_by_key(|row| row.index);
        rows
    }

    pub(crate) fn instance(&self, id: InstanceId) -> Arc<Instance> {
        self.state.get::<Instance>(id).expect("the instance is there").clone()
    }

    /// Starts every claimed instance.
    pub(crate) fn start_all(&mut self, deployment: DeploymentId) {
        for row in self.instances(deployment) {
            if matches!(row.state, InstanceState::Claimed { .. }) {
                self.ports += 1;
                let address = address(self.ports);
                self.report(&row, InstanceReport::Started { address });
            }
        }
    }

    /// Starts every claimed instance, and all that run pass their checks.
    pub(crate) fn healthy(&mut self, deployment: DeploymentId) {
        self.start_all(deployment);
        for row in self.instances(deployment) {
            if matches!(row.state, InstanceState::Running { ready: false, .. }) {
                self.report(&row, InstanceReport::Ready { ready: true });
            }
        }
    }

    /// Every stopping instance is gone.
    pub(crate) fn gone(&mut self, deployment: DeploymentId) {
        for row in self.instances(deployment) {
            if matches!(row.state, InstanceState::Stopping { .. }) {
                self.report(&row, InstanceReport::Gone);
            }
        }
    }

    pub(crate) fn release(&mut self, at: Attempt, deployment: DeploymentId) {
        self.ok(Command::Work(WorkCommand::Release { attempt: at, deployment }));
    }

    /// A deployment that is released, its job ended.
    pub(crate) fn released(&mut self, instances: u32) -> DeploymentId {
        let at = self.work_job();
        let deployment = self.deploy(at, instances);
        self.healthy(deployment);
        self.release(at, deployment);
        self.complete(at, Outcome::Succeeded);
        deployment
    }

    pub(crate) fn deployment(&self, id: DeploymentId) -> Arc<Deployment> {
        self.state.get::<Deployment>(id).expect("the deployment is there").clone()
    }

    pub(crate) fn deployment_state(&self, id: DeploymentId) -> DeploymentState {
        self.deployment(id).state.clone()
    }

    /// How many targets the only route has; nothing without a route.
    pub(crate) fn targets(&self) -> Option<(DeploymentId, usize)> {
        let routes = self.state.routes().routes;
        assert!(routes.len() <= 1, "{routes:?}");
        routes.first().map(|route| (route.deployment, route.targets.len()))
    }

    /// Names of the states of a deployment's instances, by index.
    pub(crate) fn states(&self, deployment: DeploymentId) -> Vec<&'static str> {
        self.instances(deployment).iter().map(|row| row.state.name()).collect()
    }
}
