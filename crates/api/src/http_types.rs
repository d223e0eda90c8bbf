//! What the HTTP API takes and gives, under `/v1`. Times are Unix milliseconds. Names, not ids,
//! address projects and apps, so a person can type every path.

use std::collections::BTreeMap;

use model::{
    AppId, BuildId, CellId, CellSpec, DeploymentId, Digest, ExitStatus, FailureDetail, HostName,
    InstanceId, JobId, KeyId, LogSource, Name, Operation, ProcessSpec, ProjectId, Role, RunnerId,
    SessionId, Target, TaskId, TaskSpec, Time, TokenId, VolumeId,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What went wrong. The HTTP status says which kind it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// `not_found`, `conflict`, `invalid`, `stale`, `unauthorized`, `forbidden`, `too_large`,
    /// `unavailable`, `internal`.
    pub kind: String,
    /// What was attempted, on what, and why it failed.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Who the server is and who it thinks you are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerInfo {
    /// The server's version.
    pub version: String,
    /// The oldest component protocol it speaks.
    pub protocol_min: u32,
    /// The newest component protocol it speaks.
    pub protocol_current: u32,
    /// The parent of every app's host.
    pub domain: String,
    /// Your role.
    #[schema(value_type = String)]
    pub role: Role,
    /// The one project you are limited to.
    #[schema(value_type = Option<String>)]
    pub project: Option<Name>,
    /// Where a browser reaches apps, as in `:8080`, once a router is connected.
    pub router_port: Option<u16>,
    /// Where git pushes go, once SSH listens.
    pub ssh_port: Option<u16>,
}

/// A project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProjectView {
    /// Identifier.
    #[schema(value_type = String)]
    pub id: ProjectId,
    /// Name.
    #[schema(value_type = String)]
    pub name: Name,
    /// When it was made.
    #[schema(value_type = u64)]
    pub created_at: Time,
    /// The names of its apps.
    #[schema(value_type = Vec<String>)]
    pub apps: Vec<Name>,
}

/// Makes a project or an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
}

/// An app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppView {
    /// Identifier.
    #[schema(value_type = String)]
    pub id: AppId,
    /// Its project's name.
    #[schema(value_type = String)]
    pub project: Name,
    /// Name.
    #[schema(value_type = String)]
    pub name: Name,
    /// When it was made.
    #[schema(value_type = u64)]
    pub created_at: Time,
    /// The released deployment's number by workspace.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub released: BTreeMap<Name, u64>,
}

/// Everything about an app in one workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppStatus {
    /// The app.
    pub app: AppView,
    /// The workspace.
    #[schema(value_type = String)]
    pub workspace: Name,
    /// Its host.
    #[schema(value_type = Option<String>)]
    pub host: Option<HostName>,
    /// Its URL, once something is released and a router is connected.
    pub url: Option<String>,
    /// Its deployments, newest first.
    pub deployments: Vec<DeploymentView>,
    /// Its jobs that have not ended, oldest first.
    pub jobs: Vec<JobView>,
}

/// A deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeploymentView {
    /// Identifier.
    #[schema(value_type = String)]
    pub id: DeploymentId,
    /// Counts up per app.
    pub number: u64,
    /// The workspace.
    #[schema(value_type = String)]
    pub workspace: Name,
    /// The number of its build, while that is kept.
    pub build: Option<u64>,
    /// The OCI image manifest.
    #[schema(value_type = String)]
    pub image: Digest,
    /// `starting`, `ready`, `failed`, `retired`.
    pub state: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether routes point at it.
    pub released: bool,
    /// When it was made.
    #[schema(value_type = u64)]
    pub created_at: Time,
    /// What it runs.
    pub processes: Vec<ProcessView>,
}

impl DeploymentView {
    /// Why instances have no cell yet, for people; of the first process that has such.
    pub fn unplaced(&self) -> Option<String> {
        self.processes.iter().find_map(ProcessView::unplaced)
    }
}

impl ProcessView {
    /// Why instances have no cell yet, for people.
    pub fn unplaced(&self) -> Option<String> {
        let waits = |it: &&InstanceView| it.state == "unclaimed" && it.reason.is_some();
        let mut waiting = self.instances.iter().filter(waits);
        let reason = waiting.next()?.reason.as_deref()?;
        let count = 1 + waiting.count();
        Some(format!("{count} of {} of {} wait for a cell: {reason}", self.wanted, self.name))
    }
}

/// A process of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessView {
    /// `web`, `worker`, …
    #[schema(value_type = String)]
    pub name: Name,
    /// How many are wanted.
    pub wanted: u32,
    /// What there is.
    pub instances: Vec<InstanceView>,
    /// The volumes that each instance has one of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub volumes: Vec<Name>,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceView {
    /// Identifier.
    #[schema(value_type = String)]
    pub id: InstanceId,
    /// From 0.
    pub index: u32,
    /// `unclaimed`, `claimed`, `running`, `crashed`, `stopping`.
    pub state: String,
    /// Whether its health check passes.
    pub ready: bool,
    /// Why it waits or what made it crash, and where another copy of it serves meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The cell it is on.
    #[schema(value_type = Option<String>)]
    pub cell: Option<CellId>,
    /// What that is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub cell_name: Option<Name>,
    /// Where it listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The copy before it, while that serves in its place: its cell is drained or not heard of, or it
    /// moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<PredecessorView>,
    /// Crashes in a row.
    pub crashes: u32,
    /// How the last crash went; kept while it starts again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_crash: Option<CrashView>,
    /// When one that crashed starts again; it does not when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub restart_at: Option<Time>,
    /// When the state last changed.
    #[schema(value_type = u64)]
    pub since: Time,
}

/// A copy of an instance that serves until the one after it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PredecessorView {
    /// The cell it is on.
    #[schema(value_type = String)]
    pub cell: CellId,
    /// What that is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub cell_name: Option<Name>,
    /// Where it listens.
    pub address: String,
}

/// How a crash went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CrashView {
    /// When.
    #[schema(value_type = u64)]
    pub at: Time,
    /// What happened.
    pub reason: String,
    /// How its process ended, and the last lines of its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub detail: Option<FailureDetail>,
}

/// Environment variables to set, or with `null` to remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetConfig {
    /// Names and values.
    pub vars: BTreeMap<String, Option<String>>,
}

/// How many instances of a process are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// The process.
    #[schema(value_type = String)]
    pub process: Name,
    /// How many.
    pub instances: u32,
}

/// One command to run once in the app's image, with the app's environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunCommand {
    /// The program and its arguments. No shell is involved.
    pub argv: Vec<String>,
}

/// A job to queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueJob {
    /// The project's name.
    #[schema(value_type = String)]
    pub project: Name,
    /// The app's name; it is made when it does not exist.
    #[schema(value_type = Option<String>)]
    pub app: Option<Name>,
    /// The workspace; `production` when absent.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub workspace: Option<Name>,
    /// What to do, as in `{"op":"up","source":"sha256:…"}`.
    #[schema(value_type = Object)]
    pub operation: Operation,
    /// Where it may run: `"any"`, `{"runner":"run_…"}` or `{"labels":{…}}`; any when absent.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub target: Option<Target>,
    /// Jobs that must end first.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub depends_on: Vec<JobId>,
    /// Those of them that may fail.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub allow_failure: Vec<JobId>,
    /// Takes the place of a queued job of the same app and workspace, and stops a running one; their
    /// `reason` names this job.
    #[serde(default)]
    pub supersede: bool,
    /// The same key twice gives the same job.
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// How long it may wait for a runner, in milliseconds.
    #[serde(default)]
    pub expires_ms: Option<u64>,
    /// Who asks, for people.
    #[serde(default)]
    pub origin: Option<String>,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// Identifier.
    #[schema(value_type = String)]
    pub id: JobId,
    /// The project's name.
    #[schema(value_type = String)]
    pub project: Name,
    /// The app's name.
    #[schema(value_type = Option<String>)]
    pub app: Option<Name>,
    /// The workspace.
    #[schema(value_type = String)]
    pub workspace: Name,
    /// What it does.
    #[schema(value_type = Object)]
    pub operation: Operation,
    /// `queued`, `waiting`, `running`, `succeeded`, `failed`, `cancelled`.
    pub state: String,
    /// Whether it can never change again.
    pub ended: bool,
    /// Why it failed or was cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it has not started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_queued: Option<String>,
    /// Whether somebody asked for an end.
    pub cancelling: bool,
    /// The runner that holds it.
    #[schema(value_type = Option<String>)]
    pub runner: Option<RunnerId>,
    /// Which attempt it is at.
    pub epoch: u32,
    /// Its place in line.
    #[schema(value_type = u64)]
    pub queued_at: Time,
    /// When a runner acknowledged it.
    #[schema(value_type = Option<u64>)]
    pub started_at: Option<Time>,
    /// When it ended.
    #[schema(value_type = Option<u64>)]
    pub ended_at: Option<Time>,
    /// Who asked.
    pub origin: String,
}

/// Asks a job to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelJob {
    /// Without waiting for the runner.
    #[serde(default)]
    pub force: bool,
    /// Why, for people.
    #[serde(default)]
    pub reason: Option<String>,
}

/// One line of a log, as an SSE event of type `log` carries it. The event's id is the place to
/// resume from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// Its position in the log.
    pub offset: u64,
    /// Which log, when several are merged: `web.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// When it was read.
    #[schema(value_type = u64)]
    pub at: Time,
    /// `stdout`, `stderr`, `system`, or `event` for a structured one.
    #[schema(value_type = String)]
    pub source: LogSource,
    /// The text; JSON of a terminal event when the source is `event`.
    pub text: String,
}

/// Lines that are not kept any more, as an SSE event of type `skipped` carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Skipped {
    /// The position of the first.
    pub from: u64,
    /// How many.
    pub count: u64,
}

/// A build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildView {
    /// Identifier.
    #[schema(value_type = String)]
    pub id: BuildId,
    /// Counts up per app.
    pub number: u64,
    /// The source archive.
    #[schema(value_type = String)]
    pub source: Digest,
    /// The OCI image manifest.
    #[schema(value_type = String)]
    pub image: Digest,
    /// What it can run.
    #[schema(value_type = Vec<String>)]
    pub processes: Vec<Name>,
    /// When it was made.
    #[schema(value_type = u64)]
    pub created_at: Time,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskView {
    /// Identifier.
    #[schema(value_type = String)]
    pub id: TaskId,
    /// The job it belongs to.
    #[schema(value_type = Option<String>)]
    pub job: Option<JobId>,
    /// `pending`, `offered`, `running`, `succeeded`, `failed`, `cancelled`.
    pub state: String,
    /// Whether it can never change again.
    pub ended: bool,
    /// Why it waits or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What it left in its result file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// The blob that holds the result, where that is too large to be shown or is no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub artifact: Option<Digest>,
    /// Which action of the tree failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// How its process ended: `{"code":1}`, `{"signal":9}`, `"out_of_memory"` or `"lost"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub exit: Option<ExitStatus>,
    /// The last lines it said before it failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tail: Vec<String>,
    /// The cell that has it.
    #[schema(value_type = Option<String>)]
    pub cell: Option<CellId>,
    /// Whether somebody asked for an end that its cell has not confirmed.
    #[serde(default)]
    pub cancelling: bool,
    /// The project's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub project: Option<Name>,
    /// Which attempt at the same work it is, from 1.
    #[serde(default)]
    pub attempt: u32,
    /// How many attempts there are at most.
    #[serde(default)]
    pub attempts: u32,
    /// The attempt before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub retry_of: Option<TaskId>,
    /// The attempt after it: whoever waits for the work goes on with that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub followed_by: Option<TaskId>,
    /// Until when it pauses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub not_before: Option<Time>,
    /// Whether whoever wanted to be told of its end has been: `waiting`, `delivered`, `given up: …`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<String>,
    /// Words of whoever made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotation: Option<String>,
    /// When it was made.
    #[serde(default)]
    #[schema(value_type = u64)]
    pub created_at: Time,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub ended_at: Option<Time>,
}

/// A task to make directly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTask {
    /// Its id, where the caller chooses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub id: Option<TaskId>,
    /// The same words again name the same task, for as long as it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// What runs where, as in `{"container":{},"action":{"action":"run","argv":["true"]},
    /// "result_file":null,"timeout_ms":60000}`.
    #[schema(value_type = Object)]
    pub spec: TaskSpec,
}

/// Where a watcher is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Revision {
    /// The revision: go on after it.
    pub revision: u64,
}

/// One change of one row, as an SSE event of type `change` carries it. The event's id is the revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// The number of the change; it only grows, also over restarts of the server.
    pub revision: u64,
    /// When it was made.
    #[serde(default)]
    #[schema(value_type = u64)]
    pub at: Time,
    /// The kind of row: `job`, `task`, `instance`, …
    pub kind: String,
    /// Its identifier.
    pub id: String,
    /// `put` when it was made or changed, `delete` when it is gone.
    pub op: String,
    /// The project it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub project: Option<Name>,
    /// The app it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub app: Option<Name>,
    /// The row as its list shows it, after the change; without results and what is a row of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub body: Option<serde_json::Value>,
}

/// An instance in a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceChange {
    /// The instance.
    #[serde(flatten)]
    pub instance: InstanceView,
    /// Its deployment.
    #[schema(value_type = String)]
    pub deployment: DeploymentId,
    /// Its process.
    #[schema(value_type = Option<String>)]
    pub process: Option<Name>,
}

/// What a task's callback is told, in the body of a `POST`. The header `shore-delivery` names the
/// message, the same however often it is sent; `shore-signature` proves who sent it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskEnded {
    /// The task; of several attempts the last.
    #[schema(value_type = String)]
    pub task: TaskId,
    /// The ids of all attempts, the first first: that is the task that was asked for.
    #[schema(value_type = Vec<String>)]
    pub attempts: Vec<TaskId>,
    /// The project's name.
    #[schema(value_type = String)]
    pub project: Name,
    /// `succeeded`, `failed` or `cancelled`.
    pub state: String,
    /// Whether it did not succeed.
    pub failed: bool,
    /// Why.
    pub reason: Option<String>,
    /// What it left in its result file.
    pub result: Option<String>,
    /// The blob that holds it instead.
    #[schema(value_type = Option<String>)]
    pub artifact: Option<Digest>,
    /// Words of whoever made it.
    pub annotation: Option<String>,
    /// When it was made.
    #[schema(value_type = u64)]
    pub created_at: Time,
    /// When it ended.
    #[schema(value_type = Option<u64>)]
    pub ended_at: Option<Time>,
}

/// What signs the messages of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CallbackSecret {
    /// The key of the HMAC, as text.
    pub secret: String,
    /// The one before it, which signs too for a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// When it was made.
    #[schema(value_type = u64)]
    pub since: Time,
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    /// Identifier.
    #[schema(value_type = String)]
    pub id: TokenId,
    /// What it lets its bearer be.
    #[schema(value_type = String)]
    pub role: Role,
    /// The one project it is limited to.
    #[schema(value_type = Option<String>)]
    pub project: Option<Name>,
    /// What it is for.
    pub label: String,
    /// When it was made.
    #[schema(value_type = u64)]
    pub created_at: Time,
    /// When it stops working.
    #[schema(value_type = Option<u64>)]
    pub expires_at: Option<Time>,
    /// When it was taken back.
    #[schema(value_type = Option<u64>)]
    pub revoked_at: Option<Time>,
}

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditView {
    /// Its place in the log, from 1.
    pub line: u64,
    /// When it happened.
    #[schema(value_type = u64)]
    pub at: Time,
    /// `session_opened` or `session_ended`.
    pub event: String,
    /// The session.
    #[schema(value_type = String)]
    pub session: SessionId,
    /// Whose token it was.
    #[schema(value_type = String)]
    pub token: TokenId,
    /// What that let its bearer be.
    #[schema(value_type = String)]
    pub role: Role,
    /// What it was for.
    pub label: String,
    /// The project's name at that time.
    #[schema(value_type = String)]
    pub project: Name,
    /// The app's name at that time.
    #[schema(value_type = String)]
    pub app: Name,
    /// The workspace.
    #[schema(value_type = String)]
    pub workspace: Name,
    /// The deployment's number.
    pub deployment: u64,
    /// Which instance, as in `web.2`.
    pub instance: String,
    /// `exec`, `copy_in` or `copy_out`, of a session that was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The command, or the path that was copied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<String>,
    /// Names of variables the command was given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Whether the command had a terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<bool>,
    /// How the command ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub exit: Option<ExitStatus>,
    /// Why the session ended before its command did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Makes a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// `admin`, `developer`, `viewer`, `runner`, `cell` or `router`.
    #[schema(value_type = String)]
    pub role: Role,
    /// The one project it is limited to.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub project: Option<Name>,
    /// What it is for.
    #[serde(default)]
    pub label: String,
    /// How long it works, in milliseconds; for ever when absent.
    #[serde(default)]
    pub ttl_ms: Option<u64>,
}

/// A new token. The secret is shown this once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenCreated {
    /// The whole token.
    pub token: String,
    /// What is kept of it.
    pub view: TokenView,
}

/// An SSH public key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyView {
    /// Identifier.
    #[schema(value_type = String)]
    pub id: KeyId,
    /// The one project it is limited to.
    #[schema(value_type = Option<String>)]
    pub project: Option<Name>,
    /// What it is for.
    pub label: String,
    /// `SHA256:…`.
    pub fingerprint: String,
    /// When it was added.
    #[schema(value_type = u64)]
    pub created_at: Time,
}

/// Adds an SSH public key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddKey {
    /// A line of an OpenSSH `.pub` file.
    pub public: String,
    /// The one project it is limited to.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub project: Option<Name>,
}

/// A cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CellView {
    /// Identifier.
    #[schema(value_type = String)]
    pub id: CellId,
    /// What it offers.
    #[schema(value_type = Object)]
    pub spec: CellSpec,
    /// Whether it is connected.
    pub online: bool,
    /// How many instances it holds.
    pub instances: usize,
    /// How many tasks it holds.
    pub tasks: usize,
    /// Memory that is taken, in MiB.
    #[serde(default)]
    pub memory_used_mb: u64,
    /// Disk that is taken, in MiB.
    #[serde(default)]
    pub disk_used_mb: u64,
    /// How far it is emptied, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainView>,
}

/// How far a cell is emptied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainView {
    /// Since when.
    #[schema(value_type = u64)]
    pub since: Time,
    /// Until when its tasks may run; absent once that is over.
    #[schema(value_type = Option<u64>)]
    pub deadline: Option<Time>,
    /// Whether the cell shuts down by itself.
    pub leaving: bool,
    /// Instances that are not there any more.
    pub moved: usize,
    /// Instances that are on their way.
    pub moving: usize,
    /// What stays, and why.
    pub stays: Vec<StaysView>,
    /// Tasks that still run.
    pub tasks: usize,
    /// Whether nothing is left that can move.
    pub finished: bool,
}

/// A directory on a cell that outlives containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeView {
    /// Identifier.
    #[schema(value_type = String)]
    pub id: VolumeId,
    /// As in `web.0.data`: the volume `data` of the instance `web.0`.
    pub name: String,
    /// The app.
    #[schema(value_type = String)]
    pub app: Name,
    /// The workspace.
    #[schema(value_type = String)]
    pub workspace: Name,
    /// Where it lies.
    #[schema(value_type = String)]
    pub cell: CellId,
    /// The name of that cell, if it is known.
    #[schema(value_type = Option<String>)]
    pub cell_name: Option<Name>,
    /// Whether that cell is connected.
    pub cell_online: bool,
    /// `attached`, `detached` (nothing wants it any more) or `deleting`.
    pub state: String,
    /// When it was made.
    #[schema(value_type = u64)]
    pub created_at: Time,
    /// When it is deleted, if it is detached, unless something wants it again before.
    #[schema(value_type = Option<u64>)]
    pub delete_at: Option<Time>,
}

/// Something that a drain cannot move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StaysView {
    /// What, as in `web.0 of shop/web`.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// A request to empty a cell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainCell {
    /// How long its tasks may run on, in milliseconds; ten minutes when absent.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// A runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunnerView {
    /// Identifier.
    #[schema(value_type = String)]
    pub id: RunnerId,
    /// Name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is connected.
    pub online: bool,
}

/// Names one attempt at a job; work for an earlier one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttemptRef {
    /// The job.
    #[schema(value_type = String)]
    pub job: JobId,
    /// The epoch in which it was assigned.
    pub epoch: u32,
}

/// A runner makes a task for its job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTask {
    /// Its id, so that a repeated call makes no second one; a fresh one when absent.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub id: Option<TaskId>,
    /// The attempt it works on.
    pub attempt: AttemptRef,
    /// What runs where.
    #[schema(value_type = Object)]
    pub spec: TaskSpec,
}

/// A process as a build found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProcessTemplate {
    /// `web`, `worker`, …
    #[schema(value_type = String)]
    pub name: Name,
    /// What runs.
    #[schema(value_type = Object)]
    pub spec: ProcessSpec,
    /// How many, unless a person scaled it.
    pub instances: u32,
}

/// A runner keeps the result of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecordBuild {
    /// Its id, so that a repeated call makes no second one; a fresh one when absent.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub id: Option<BuildId>,
    /// The attempt it works on.
    pub attempt: AttemptRef,
    /// The source archive.
    #[schema(value_type = String)]
    pub source: Digest,
    /// The OCI image manifest.
    #[schema(value_type = String)]
    pub image: Digest,
    /// What the image can run.
    pub processes: Vec<ProcessTemplate>,
}

/// A runner starts a build's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartDeployment {
    /// Its id, so that a repeated call makes no second one; a fresh one when absent.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub id: Option<DeploymentId>,
    /// The attempt it works on.
    pub attempt: AttemptRef,
    /// The build's number; the newest when absent.
    pub build: Option<u64>,
}

/// A runner points routes at a deployment, or starts it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeploymentRef {
    /// The attempt it works on.
    pub attempt: AttemptRef,
    /// The deployment.
    #[schema(value_type = String)]
    pub deployment: DeploymentId,
}

/// The routes were changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Released {
    /// The generation of the route table that has the change.
    pub generation: u64,
    /// Whether every connected router serves it already.
    pub applied: bool,
    /// Where the app answers now.
    pub url: Option<String>,
}

/// A blob was stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlobStored {
    /// Its digest.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Its size in bytes.
    pub bytes: u64,
}
