//! What can be asked of the state, and what it answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::{
    AppId, BuildId, CellDrivers, CellId, CellSpec, DeliveryId, DeploymentId, Digest, InstanceId,
    InstanceReport, JobId, KeyId, Name, Outcome, ProjectId, Role, RunnerId, TaskId, TaskReport,
    TaskSpec, Time, TokenId, VolumeId,
};
use serde::{Deserialize, Serialize};

use crate::audit::Audit;
use crate::records::{Build, Deployment, Job, JobSpec, ProcessTemplate, Secret, Signing, Task};

/// One change. Identifiers come from outside, so that applying is deterministic.
#[derive(Debug, Clone)]
pub enum Command {
    /// Makes a project; the reply is its id. An existing one of that name is a conflict.
    CreateProject {
        /// Its id.
        id: ProjectId,
        /// Its name.
        name: Name,
    },
    /// Makes an app, or finds the one of that name; the reply is its id.
    EnsureApp {
        /// Its id when it is new.
        id: AppId,
        /// Its project.
        project: ProjectId,
        /// Its name.
        name: Name,
    },
    /// Removes an app and its history. Refused while it has deployments that run.
    DeleteApp(AppId),
    /// Removes a project without apps.
    DeleteProject(ProjectId),
    /// Sets or, with `None`, removes environment variables of an app in a workspace.
    SetConfig {
        /// The app.
        app: AppId,
        /// The workspace.
        workspace: Name,
        /// Names and values.
        vars: BTreeMap<String, Option<String>>,
    },
    /// Sets how many instances of a process are wanted.
    Scale {
        /// The app.
        app: AppId,
        /// The workspace.
        workspace: Name,
        /// The process.
        process: Name,
        /// How many.
        instances: u32,
    },
    /// Ends one instance of what is released gracefully; another takes its place.
    RestartInstance {
        /// The app.
        app: AppId,
        /// The workspace.
        workspace: Name,
        /// The process.
        process: Name,
        /// Which of its instances, from 0.
        index: u32,
    },
    /// Gives up a volume and what is in it.
    RemoveVolume {
        /// Which.
        id: VolumeId,
        /// Although an instance uses it, which then begins anew; or, when it is to be deleted
        /// already, although its cell is not there to do it.
        force: bool,
    },
    /// Adds a token.
    CreateToken(NewToken),
    /// Takes a token back.
    RevokeToken(TokenId),
    /// Adds an SSH public key.
    AddKey(NewKey),
    /// Removes an SSH public key.
    RemoveKey(KeyId),
    /// Work for runners.
    Job(JobCommand),
    /// Tasks, deployments and releases.
    Work(WorkCommand),
    /// What cells report.
    Cell(CellCommand),
    /// Writes down what somebody does.
    Audit(Box<Audit>),
    /// The server started: whatever waits for somebody gets a fresh deadline.
    Boot,
    /// The state was loaded again after the store refused something: for a while nobody's report
    /// could be kept, so whatever waits for somebody gets a fresh deadline.
    Resume,
    /// A router serves a table of this generation. One that is later than ours was made before the
    /// clock was set back.
    RoutesServed {
        /// The generation.
        generation: u64,
    },
    /// Time passed: whatever is due happens.
    Tick,
    /// Looks at some of everything again, in case an event was missed.
    Sweep,
    /// Moves instances from the fullest cells to the emptiest, if nothing waits and nothing moves.
    Rebalance {
        /// How many may move at once; [`crate::MAX_MOVES`] at most.
        moves: u32,
    },
}

/// A token to add.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Its id.
    pub id: TokenId,
    /// What it lets its bearer be.
    pub role: Role,
    /// The one project it is limited to.
    pub project: Option<ProjectId>,
    /// SHA-256 of the secret.
    pub hash: Digest,
    /// What it is for.
    pub label: String,
    /// How long it works.
    pub ttl: Option<Duration>,
}

/// An SSH public key to add.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Its id.
    pub id: KeyId,
    /// The one project it is limited to.
    pub project: Option<ProjectId>,
    /// What it is for.
    pub label: String,
    /// Algorithm and base-64 key.
    pub public: String,
    /// `SHA256:…`.
    pub fingerprint: String,
}

/// Names one attempt at a job; a report with an old epoch is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The job.
    pub job: JobId,
    /// The epoch in which it was assigned.
    pub epoch: u32,
}

/// What happens to jobs and runners.
#[derive(Debug, Clone)]
pub enum JobCommand {
    /// Puts a job in line; the reply is the job.
    Queue(NewJob),
    /// Puts several in line, all or none; they may depend on each other in any order.
    QueueAll(Vec<NewJob>),
    /// Offers the next job to a runner; the reply is the job, or nothing.
    Assign(RunnerId),
    /// The runner took it.
    Ack(Attempt),
    /// The runner gave it back.
    Nack(Attempt),
    /// The runner is at work.
    Heartbeat(Attempt),
    /// The runner finished.
    Complete(Attempt, Outcome),
    /// Somebody asks for an end.
    Cancel {
        /// The job.
        job: JobId,
        /// Without waiting for the runner.
        force: bool,
        /// Who or what asks.
        reason: String,
    },
    /// A runner's stream opened. Jobs it holds according to us, but not to itself, are lost.
    RunnerOnline {
        /// The runner.
        id: RunnerId,
        /// Its name.
        name: Name,
        /// Its labels.
        labels: BTreeMap<String, String>,
        /// Whether it takes only jobs targeted at its id.
        only_own: bool,
        /// What it is working on.
        holds: Vec<Attempt>,
        /// The token it joins with.
        token: Option<TokenId>,
    },
    /// A report that counts only for a job that this runner has.
    Over {
        /// The runner.
        runner: RunnerId,
        /// The report.
        report: Box<Self>,
    },
    /// A runner's stream closed. Jobs it has not acknowledged go back in line.
    RunnerOffline(RunnerId),
}

impl JobCommand {
    /// What is said, whoever says it.
    pub fn said(&self) -> &Self {
        match self {
            Self::Over { report, .. } => report.said(),
            other => other,
        }
    }

    /// The attempt that a runner reports on.
    pub(crate) fn reported(&self) -> Option<Attempt> {
        match self.said() {
            Self::Ack(at) | Self::Nack(at) | Self::Heartbeat(at) | Self::Complete(at, _) => {
                Some(*at)
            }
            Self::Over { .. }
            | Self::Queue(_)
            | Self::QueueAll(_)
            | Self::Assign(_)
            | Self::Cancel { .. }
            | Self::RunnerOnline { .. }
            | Self::RunnerOffline(_) => None,
        }
    }
}

/// A job to queue.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Its id.
    pub id: JobId,
    /// What it is to do.
    pub spec: Arc<JobSpec>,
    /// How long it may wait for a runner.
    pub expires_in: Option<Duration>,
}

/// Tasks, deployments and releases, as asked for by the runner that works on a job.
#[derive(Debug, Clone)]
pub enum WorkCommand {
    /// Makes a task; the reply is the task.
    CreateTask {
        /// Its id.
        id: TaskId,
        /// The job it belongs to.
        attempt: Option<Attempt>,
        /// What runs where.
        spec: Arc<TaskSpec>,
    },
    /// Makes a task that belongs to no job but to an app's project; the reply is the task.
    RunOnce {
        /// Its id.
        id: TaskId,
        /// The app.
        app: AppId,
        /// What runs where.
        spec: Arc<TaskSpec>,
    },
    /// Makes a task that belongs to a project only; the reply is the task.
    NewTask {
        /// Its id.
        id: TaskId,
        /// The project.
        project: ProjectId,
        /// The same words again name the same task, for as long as it is kept.
        key: Option<String>,
        /// What runs where.
        spec: Arc<TaskSpec>,
    },
    /// Asks a task, or the attempt that followed it, to end.
    CancelTask(TaskId),
    /// A message was taken.
    Delivered {
        /// Which.
        id: DeliveryId,
        /// How often it had been tried before.
        attempts: u32,
    },
    /// A message was not taken.
    NotDelivered {
        /// Which.
        id: DeliveryId,
        /// How often it had been tried before.
        attempts: u32,
        /// Why, for people.
        reason: String,
        /// Whether whoever it is for wants no more of it.
        give_up: bool,
    },
    /// Gives a project the secret that signs its messages unless it has one; the reply is what it
    /// has then.
    Sign {
        /// The project.
        project: ProjectId,
        /// The secret when it is new.
        secret: Secret,
        /// Whether it replaces the one it has.
        rotate: bool,
    },
    /// Keeps the result of a build; the reply is the build with its number.
    RecordBuild {
        /// Its id.
        id: BuildId,
        /// The job that made it.
        attempt: Attempt,
        /// The source archive.
        source: Digest,
        /// The OCI image manifest.
        image: Digest,
        /// What the image can run.
        processes: Vec<ProcessTemplate>,
    },
    /// Starts a build's image; the reply is the deployment.
    Deploy {
        /// Its id.
        id: DeploymentId,
        /// The job that makes it.
        attempt: Attempt,
        /// The build; the newest of the app when absent.
        build: Option<u64>,
    },
    /// Starts a retired deployment again; the reply is the deployment.
    Restart {
        /// The job that does it.
        attempt: Attempt,
        /// Which.
        deployment: DeploymentId,
    },
    /// Points the routes at a ready deployment and retires the one before it.
    Release {
        /// The job that does it.
        attempt: Attempt,
        /// Which.
        deployment: DeploymentId,
    },
    /// Withdraws the routes of the job's app and workspace and stops everything it runs.
    Destroy(Attempt),
}

/// What cells report and operators do to them. `epoch` is the one the server gave the connection.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "each is applied at once, none is kept")]
pub enum CellCommand {
    /// A cell's stream opened, with everything that runs on it; the reply is the new epoch.
    Online {
        /// The cell.
        id: CellId,
        /// What it offers.
        spec: CellSpec,
        /// What runs on it.
        holds: Vec<Held>,
        /// The token it joins with.
        token: Option<TokenId>,
    },
    /// The cell is alive.
    Heartbeat {
        /// The cell.
        id: CellId,
        /// The connection.
        epoch: u32,
    },
    /// A driver of the cell has failed, or works again.
    Drivers {
        /// The cell.
        id: CellId,
        /// The connection.
        epoch: u32,
        /// All of them.
        drivers: CellDrivers,
    },
    /// A report that counts only while this connection is the cell's current one: what an earlier
    /// connection still had under way must not be applied after a newer one said what it holds.
    Over {
        /// The cell.
        id: CellId,
        /// The connection.
        epoch: u32,
        /// The report.
        report: Box<Self>,
    },
    /// The cell is about to leave on purpose: it is emptied.
    Leave {
        /// The cell.
        id: CellId,
        /// The connection.
        epoch: u32,
    },
    /// A cell that was about to leave has left.
    Left {
        /// The cell.
        id: CellId,
        /// The connection.
        epoch: u32,
    },
    /// An operator wants a cell emptied.
    Drain {
        /// The cell.
        id: CellId,
        /// How long its tasks may run on.
        timeout: Duration,
    },
    /// An operator wants a cell to take work again.
    Undrain(CellId),
    /// News of a task.
    Task {
        /// The cell.
        cell: CellId,
        /// Which.
        task: TaskId,
        /// The task's epoch.
        epoch: u32,
        /// What happened.
        report: TaskReport,
    },
    /// News of an instance.
    Instance {
        /// The cell.
        cell: CellId,
        /// Which.
        instance: InstanceId,
        /// The instance's epoch.
        epoch: u32,
        /// What happened.
        report: InstanceReport,
    },
    /// A volume that was to be deleted is.
    VolumeGone {
        /// The cell.
        cell: CellId,
        /// Which.
        volume: VolumeId,
    },
}

/// Something that runs on a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// A task that was started.
    Task {
        /// Which.
        id: TaskId,
        /// Its epoch.
        epoch: u32,
    },
    /// An instance.
    Instance {
        /// Which.
        id: InstanceId,
        /// Its epoch.
        epoch: u32,
    },
}

/// What a command answers.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Done; there is nothing to say.
    Done,
    /// The id of a project.
    Project(ProjectId),
    /// The id of an app, and whether it is new.
    App(AppId, bool),
    /// A job.
    Job(Arc<Job>),
    /// Several jobs.
    Jobs(Vec<Arc<Job>>),
    /// The next job for a runner, if there is one.
    Assigned(Option<Arc<Job>>),
    /// A task.
    Task(Arc<Task>),
    /// A build.
    Build(Arc<Build>),
    /// A deployment.
    Deployment(Arc<Deployment>),
    /// The routes were changed up to this generation.
    Released(u64),
    /// The epoch of a cell's connection.
    Epoch(u32),
    /// What signs the messages of a project.
    Signing(Arc<Signing>),
}

/// Why a command was not carried out. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such thing.
    #[error("there is no {what} {name}")]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// Its name or id.
        name: String,
    },
    /// It contradicts what is there.
    #[error("{0}")]
    Conflict(String),
    /// The report is of an earlier attempt, connection or container.
    #[error("{what} {name} has moved on: the report is out of date")]
    Stale {
        /// What was reported on.
        what: &'static str,
        /// Its id.
        name: String,
    },
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The state does not allow it.
    #[error(transparent)]
    Transition(#[from] model::Refused),
}

impl Refusal {
    pub(crate) fn not_found(what: &'static str, name: impl std::fmt::Display) -> Self {
        Self::NotFound { what, name: name.to_string() }
    }

    pub(crate) fn stale(what: &'static str, name: impl std::fmt::Display) -> Self {
        Self::Stale { what, name: name.to_string() }
    }
}

/// When something has to happen, if ever.
pub(crate) fn earliest(times: impl IntoIterator<Item = Option<Time>>) -> Option<Time> {
    times.into_iter().flatten().min()
}
