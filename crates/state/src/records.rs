//! The rows of the control plane. Each serialises to the JSON body the store keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use model::{
    AppId, BuildId, CellId, CellSpec, DeliveryId, DeploymentId, DeploymentState, Digest,
    FailureDetail, InstanceId, InstanceState, JobId, JobState, KeyId, Name, Operation, ProcessId,
    ProcessSpec, ProjectId, Role, RunnerId, Target, TaskId, TaskSpec, TaskState, Time, TokenId,
};
use serde::{Deserialize, Serialize};

use crate::view::Order;

/// Owns apps; usually one git repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Identifier.
    pub id: ProjectId,
    /// Unique name.
    pub name: Name,
    /// When it was made.
    pub created_at: Time,
}

/// What is deployed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Identifier.
    pub id: AppId,
    /// Its project.
    pub project: ProjectId,
    /// Unique within the project.
    pub name: Name,
    /// When it was made.
    pub created_at: Time,
    /// Environment given to every process, by workspace.
    #[serde(default)]
    pub config: BTreeMap<Name, BTreeMap<String, String>>,
    /// Wanted instances by workspace and process name, where a person set them.
    #[serde(default)]
    pub scale: BTreeMap<Name, BTreeMap<Name, u32>>,
    /// The deployment that routes point at, by workspace.
    #[serde(default)]
    pub released: BTreeMap<Name, DeploymentId>,
    /// The last build number given out.
    #[serde(default)]
    pub builds: u64,
    /// The last deployment number given out.
    #[serde(default)]
    pub deployments: u64,
    /// The last release number given out.
    #[serde(default)]
    pub releases: u64,
    /// How often any of its deployments was started.
    #[serde(default)]
    pub starts: u64,
}

/// A bearer token; only a hash of its secret is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Identifier.
    pub id: TokenId,
    /// What it lets its bearer be.
    pub role: Role,
    /// The one project it is limited to.
    pub project: Option<ProjectId>,
    /// SHA-256 of the secret.
    pub hash: Digest,
    /// What it is for, in its owner's words.
    pub label: String,
    /// When it was made.
    pub created_at: Time,
    /// When it stops working.
    pub expires_at: Option<Time>,
    /// When it was taken back.
    pub revoked_at: Option<Time>,
}

impl Token {
    /// Whether it lets its bearer in.
    pub fn works(&self, now: Time) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| at > now)
    }
}

/// An SSH public key that may push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Identifier.
    pub id: KeyId,
    /// The one project it is limited to.
    pub project: Option<ProjectId>,
    /// What it is for, usually the comment of the key file.
    pub label: String,
    /// Algorithm and base-64 key, as in an `authorized_keys` line.
    pub public: String,
    /// `SHA256:…`, as `ssh-keygen -l` shows it.
    pub fingerprint: String,
    /// When it was added.
    pub created_at: Time,
}

/// What a job is to do; never changes after it was queued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The project.
    pub project: ProjectId,
    /// The app, unless the operation has none.
    pub app: Option<AppId>,
    /// The workspace.
    pub workspace: Name,
    /// The operation.
    pub operation: Operation,
    /// Where it may run.
    pub target: Target,
    /// Jobs that must end first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<JobId>,
    /// Those of them that may fail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_failure: Vec<JobId>,
    /// A queued job of the same singleton is replaced; a running one is told to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub singleton: Option<String>,
    /// A second job with the same key is the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// Who asked, for people.
    #[serde(default)]
    pub origin: String,
}

impl JobSpec {
    /// The singleton of jobs that replace each other: one operation on one app and workspace.
    pub fn superseding(operation: &Operation, app: AppId, workspace: &Name) -> String {
        format!("{}/{app}/{workspace}", operation.name())
    }
}

/// An operation queued for a runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Identifier.
    pub id: JobId,
    /// What it is to do.
    pub spec: Arc<JobSpec>,
    /// Where it stands.
    #[serde(flatten)]
    pub state: JobState,
    /// Grows with every assignment and requeue; reports of an older epoch are refused.
    pub epoch: u32,
    /// Its place in line.
    pub queued_at: Time,
    /// When a runner acknowledged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// When it is dropped unless a runner took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Somebody asked for an end; why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<String>,
    /// Dependencies that have not ended.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub waits_for: BTreeSet<JobId>,
}

/// Work run at most once on a cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Identifier.
    pub id: TaskId,
    /// The job it belongs to; when that ends, so does the task.
    pub job: Option<JobId>,
    /// The project it belongs to.
    #[serde(default)]
    pub project: Option<ProjectId>,
    /// What runs where; of a task that ended only what is still looked at, if it is large.
    pub spec: Arc<TaskSpec>,
    /// How many bytes `spec` takes as JSON.
    #[serde(default)]
    pub spec_bytes: usize,
    /// Of what it ran, when `spec` has only a part of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran: Option<Digest>,
    /// Where it stands.
    #[serde(flatten)]
    pub state: TaskState,
    /// Grows with every offer; reports of an older epoch are refused.
    pub epoch: u32,
    /// When it was made.
    pub created_at: Time,
    /// When it ended.
    pub ended_at: Option<Time>,
    /// Somebody asked for an end while a cell had it.
    #[serde(default)]
    pub cancelling: bool,
    /// When it counts as cancelled although its cell has not said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_by: Option<Time>,
    /// When it fails unless a cell claimed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_by: Option<Time>,
    /// How many cells in a row gave it back.
    #[serde(default, skip_serializing_if = "is_none_in_a_row")]
    pub rejects: u32,
    /// Until when it waits before a cell is looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_until: Option<Time>,
    /// The same words of the same project again name this task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Which attempt at the same work it is, from 1.
    #[serde(default = "first_attempt")]
    pub attempt: u32,
    /// The attempt before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<TaskId>,
    /// The attempt after it, which its policy made when it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub followed_by: Option<TaskId>,
    /// Whether whoever wants to be told of its end has been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<Callback>,
}

const fn first_attempt() -> u32 {
    1
}

/// How far the message about the end of something is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "callback", rename_all = "snake_case")]
pub enum Callback {
    /// It is on its way.
    Waiting,
    /// It was taken.
    Delivered {
        /// When.
        at: Time,
    },
    /// It was not taken, and nobody tries again.
    GivenUp {
        /// When.
        at: Time,
        /// Why, for people.
        reason: String,
    },
}

/// A message about the end of a task that has not been taken yet. Made in the same command that ends
/// the task, so it is durable when the end is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Identifier; the same however often it is tried.
    pub id: DeliveryId,
    /// What it is about.
    pub task: TaskId,
    /// Whose secret signs it.
    pub project: ProjectId,
    /// Where it goes.
    pub url: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried next.
    pub due: Time,
    /// When it was made.
    pub created_at: Time,
    /// Why the last try failed, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
}

/// What signs the messages of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signing {
    /// The project.
    pub id: ProjectId,
    /// The secret.
    pub secret: Secret,
    /// The one before it, which signs too until receivers know the new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Retiring>,
    /// When it was made.
    pub since: Time,
}

/// A secret that is about to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retiring {
    /// The secret.
    pub secret: Secret,
    /// Until when it is used.
    pub until: Time,
}

/// A text that only its owners may see. `Debug` never shows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// An image made from source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Identifier.
    pub id: BuildId,
    /// The app.
    pub app: AppId,
    /// The workspace it was built for.
    pub workspace: Name,
    /// Counts up per app.
    pub number: u64,
    /// The source archive.
    pub source: Digest,
    /// The OCI image manifest.
    pub image: Digest,
    /// What the image can run, from its launch metadata.
    pub processes: Vec<ProcessTemplate>,
    /// When it was made.
    pub created_at: Time,
}

/// A process as a deployment asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessTemplate {
    /// `web`, `worker`, …
    pub name: Name,
    /// What runs.
    pub spec: ProcessSpec,
    /// How many, unless a person scaled it.
    pub instances: u32,
}

/// An immutable image with its configuration and process types.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Identifier.
    pub id: DeploymentId,
    /// The app.
    pub app: AppId,
    /// The workspace.
    pub workspace: Name,
    /// Counts up per app.
    pub number: u64,
    /// The build whose image it runs.
    pub build: BuildId,
    /// The OCI image manifest.
    pub image: Digest,
    /// Its processes.
    pub processes: Vec<ProcessId>,
    /// Where it stands.
    #[serde(flatten)]
    pub state: DeploymentState,
    /// Whether all its instances were healthy once, so that it can be started again later.
    #[serde(default)]
    pub was_ready: bool,
    /// The job that made it; when that fails before the release, so does the deployment.
    pub job: Option<JobId>,
    /// When it was made.
    pub created_at: Time,
    /// When it is retired, once another one was released.
    #[serde(default)]
    pub retire_at: Option<Time>,
    /// Which start of its app's deployments was its last. Kept rather than derived from the time,
    /// because a clock may be set back.
    #[serde(default)]
    pub start: u64,
}

/// Something wanted N times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Identifier.
    pub id: ProcessId,
    /// The deployment it belongs to.
    pub deployment: DeploymentId,
    /// `web`, `worker`, …
    pub name: Name,
    /// What runs.
    pub spec: Arc<ProcessSpec>,
    /// How many are wanted.
    pub instances: u32,
    /// The highest epoch of any of its instances whose row is gone. An instance that is made again
    /// has the same identifier, so it goes on from here: a report on the one before it is refused,
    /// and a cell that still holds it is told to end it. Kept here rather than derived from the
    /// time, because a clock may be set back.
    #[serde(default)]
    pub last_epoch: u32,
}

/// One running copy of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Identifier.
    pub id: InstanceId,
    /// The process.
    pub process: ProcessId,
    /// The deployment, for look-ups.
    pub deployment: DeploymentId,
    /// From 0 to one less than wanted.
    pub index: u32,
    /// Where it stands.
    #[serde(flatten)]
    pub state: InstanceState,
    /// The epoch of the copy the state tells of; reports of another are refused, but for those
    /// of the copy before it.
    pub epoch: u32,
    /// The highest epoch of any of its copies; the next claim is one higher.
    #[serde(default)]
    pub last_epoch: u32,
    /// The copy before this one, while it still serves or is still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Predecessor>,
    /// Crashes in a row.
    pub crashes: u32,
    /// How the last crash went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_crash: Option<Arc<Crash>>,
    /// How many cells in a row gave it back.
    #[serde(default, skip_serializing_if = "is_none_in_a_row")]
    pub rejects: u32,
    /// The only cell that will do, because its volumes lie there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<CellId>,
    /// While it waits: not offered to a cell at all, because another one has its volumes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// While it waits: not offered to a cell before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
    /// When the state last changed.
    pub since: Time,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
const fn is_none_in_a_row(count: &u32) -> bool {
    *count == 0
}

/// How a crash went. It is kept while the instance starts again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crash {
    /// When.
    pub at: Time,
    /// What happened, for people.
    pub reason: String,
    /// What exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Box<FailureDetail>>,
}

/// The copy of an instance that another one takes the place of. It never counts for what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predecessor {
    /// Where it is.
    pub cell: CellId,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its epoch, under which it still reports.
    pub epoch: u32,
    /// Why another one takes its place.
    pub kind: PredecessorKind,
    /// Whether its health check passed when it was last heard of.
    pub ready: bool,
    /// When it began to run; when it began to stop, if it does.
    pub since: Time,
}

/// Why another copy takes the place of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredecessorKind {
    /// Its cell is not heard of. It may still serve, so routes lead to it until the next is ready.
    Suspect,
    /// Its cell is being emptied. It serves until the next is ready.
    Evacuating,
    /// The next one is ready, or none is wanted: it ends.
    Stopping,
}

/// The copy of an instance that requests go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routed {
    /// Where it is.
    pub cell: CellId,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its epoch.
    pub epoch: u32,
}

/// One copy of an instance, as its cell knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceCopy {
    /// Its epoch.
    pub epoch: u32,
    /// Whether it is to end.
    pub stop: bool,
    /// Since when.
    pub since: Time,
}

impl Instance {
    /// Where requests for it go: to the copy that is wanted, or to the one before it while that
    /// is not ready.
    pub fn routed(&self) -> Option<Routed> {
        if matches!(self.state, InstanceState::Stopping { .. }) {
            return None;
        }
        let wanted = self.state.cell().zip(self.state.ready_address());
        let wanted = wanted.map(|(cell, address)| Routed { cell, address, epoch: self.epoch });
        let serves = |it: &&Predecessor| it.ready && it.kind != PredecessorKind::Stopping;
        let before = self.before.as_ref().filter(serves);
        let before =
            before.map(|it| Routed { cell: it.cell, address: it.address, epoch: it.epoch });
        wanted.or(before)
    }

    /// What a cell has of it.
    pub fn copy_on(&self, cell: CellId) -> Option<InstanceCopy> {
        if self.state.cell() == Some(cell) {
            let stop = matches!(self.state, InstanceState::Stopping { .. });
            return Some(InstanceCopy { epoch: self.epoch, stop, since: self.since });
        }
        let before = self.before.filter(|it| it.cell == cell)?;
        let stop = before.kind == PredecessorKind::Stopping;
        Some(InstanceCopy { epoch: before.epoch, stop, since: before.since })
    }

    /// Where copies of it are.
    pub(crate) fn cells(&self) -> impl Iterator<Item = CellId> {
        self.state.cell().into_iter().chain(self.before.map(|before| before.cell))
    }

    /// What a cell is to do about it.
    pub(crate) fn order_on(&self, cell: CellId) -> Option<Order> {
        self.copy_on(cell).map(|copy| Order { epoch: copy.epoch, stop: copy.stop })
    }

    /// The highest epoch of any of its copies. Rows of an earlier version know one only.
    pub fn highest_epoch(&self) -> u32 {
        self.last_epoch.max(self.epoch)
    }
}

/// A machine that runs containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// Identifier.
    pub id: CellId,
    /// What it offers.
    pub spec: CellSpec,
    /// When it counts as gone unless it reports before; absent once gone.
    pub lease_until: Option<Time>,
    /// Grows with every connection; reports of an older one are refused.
    pub epoch: u32,
    /// When it first joined.
    pub joined_at: Time,
    /// Set while it is being emptied: it takes no new work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<Drain>,
    /// The token it joined with: another one cannot take its place while that one works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenId>,
}

/// That a cell is being emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Since when.
    pub since: Time,
    /// Until when its tasks may run; absent once that is over.
    pub deadline: Option<Time>,
    /// Whether the cell asked for it because it shuts down.
    pub leaving: bool,
    /// Whether an operator asked for it while the cell was about to leave, or before.
    #[serde(default)]
    pub asked: bool,
    /// How many copies of instances it held at the beginning.
    pub instances: usize,
}

impl Cell {
    /// Whether new work may go there.
    pub fn accepts(&self) -> bool {
        self.lease_until.is_some() && self.draining.is_none() && self.spec.has_driver()
    }
}

/// A worker that takes jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runner {
    /// Identifier.
    pub id: RunnerId,
    /// Its name.
    pub name: Name,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it takes only jobs targeted at its identifier.
    pub only_own: bool,
    /// Whether its stream is open.
    pub online: bool,
    /// How many streams are open: after a reconnect the server may notice the end of the stream
    /// before it only later, and that end must not count for the new one.
    #[serde(default)]
    pub streams: u32,
    /// When the stream last opened or closed.
    pub since: Time,
    /// The token it joined with: another one cannot take its place while that one works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenId>,
}
