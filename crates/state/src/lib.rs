//! The deterministic control plane.
//!
//! [`State`] is typed tables with indexes, and [`State::apply`] is the one function that changes
//! them. It does no I/O, reads no clock, draws no random number and iterates in a fixed order:
//! time and fresh identifiers come in as arguments. A command changes everything it must or
//! nothing. What it changed is collected until [`State::take_changes`], which renders each changed
//! row once, however often a batch of commands changed it.

mod access;
mod audit;
mod away;
mod cells;
mod command;
mod converge;
mod counts;
mod deliveries;
mod drains;
mod indexes;
mod instances;
mod jobs;
mod news;
mod placing;
#[cfg(feature = "planted")]
pub mod planted;
mod queue;
mod rebalance;
mod records;
mod routes;
mod sweep;
mod tables;
mod tasks;
mod view;
mod volumes;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::{CellId, Time};

pub use access::{
    MAX_APPS, MAX_APPS_PER_PROJECT, MAX_CONFIG_BYTES, MAX_LABEL, MAX_PROJECTS, MAX_WORKSPACES,
};
pub use audit::{AUDIT_HISTORY, Audit, AuditEvent, MAX_AUDIT_WORDS};
pub use away::{MAX_AWAY, MAX_MEMBERS};
pub use cells::{CELL_LEASE, MAX_HELD, MAX_REASON};
pub use command::{
    Attempt, CellCommand, Command, Held, JobCommand, NewJob, NewKey, NewToken, Refusal, Reply,
    WorkCommand,
};
pub use converge::instance_id;
pub use counts::{ByState, Counts};
pub use deliveries::{
    DELIVERY_BASE, DELIVERY_CAP, DELIVERY_LIFE, MAX_DELIVERY_REASON, SECRET_OVERLAP, delivery_id,
};
pub use drains::{DRAIN_TIMEOUT, DrainProgress, MAX_DRAIN_TIMEOUT, Stays};
pub use instances::REJECT_PAUSE;
pub use jobs::{
    ACK_TIMEOUT, JOB_LEASE, MAX_DEPENDENCIES, MAX_FINISHED_JOBS, MAX_QUEUED_JOBS,
    MAX_QUEUED_PER_PROJECT, MAX_TEXT,
};
pub use news::{News, Scope};
pub use rebalance::{MAX_MOVES, REBALANCE_PERIOD, REBALANCE_TOLERANCE};
pub use records::{
    App, Build, Callback, Cell, Crash, Delivery, Deployment, Drain, Instance, InstanceCopy, Job,
    JobSpec, Key, Predecessor, PredecessorKind, Process, ProcessTemplate, Project, Retiring,
    Routed, Runner, Secret, Signing, Task, Token,
};
pub use routes::{KEPT_CHANGES, PRODUCTION, RouteChange};
pub use sweep::{CLAIM_LIMIT, SUSPECT_LIMIT, SWEEP, SWEEP_SLICE};
pub use tables::{AnyRow, Row, RowKey, Tables};
pub use tasks::{
    CANCEL_FORCE, KeptTasks, MAX_ENDED_SPEC, MAX_KEPT_TASKS, MAX_KEPT_TASKS_PER_PROJECT,
    MAX_OPEN_TASKS, MAX_OPEN_TASKS_PER_PROJECT, MAX_TASK_BYTES, MAX_TASK_BYTES_PER_PROJECT,
    MAX_TASK_KEY, TASK_KEPT,
};
pub use view::{CellInstance, CellLoad, CellUnit, CellWork, Order, WorkKey};
pub use volumes::{MAX_VOLUMES, MAX_VOLUMES_PER_PROJECT, VOLUME_GRACE, Volume, VolumeState};
pub use work::{DEPLOY_SLACK, DRAIN, KEPT_BUILDS, KEPT_DEPLOYMENTS, MAX_PROCESSES};

use tables::Core;

/// The history that every ended job goes to.
pub const JOB_HISTORY: &str = "job";

/// The key under which a row is found in its history.
pub fn history_key(id: u128) -> String {
    format!("{id:032x}")
}

/// The control plane. See the crate's documentation.
#[derive(Debug)]
pub struct State {
    core: Core,
}

/// A line of a history: a job that ended and leaves the rows of the store for good, or what somebody
/// did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archived {
    /// The name of the history, as in [`JOB_HISTORY`].
    pub kind: &'static str,
    /// The identifier without its type.
    pub id: u128,
    /// JSON.
    pub body: Vec<u8>,
}

/// One changed row as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which row.
    pub key: RowKey,
    /// JSON; the row is gone when absent.
    pub body: Option<Vec<u8>>,
}

/// What a batch of commands changed.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Rows, each once.
    pub rows: Vec<Change>,
    /// Lines of histories: jobs that ended, whose rows are gone, and the audit log.
    pub archived: Vec<Archived>,
    /// Cells that have something else to do, and about what.
    pub cells: BTreeMap<CellId, BTreeSet<WorkKey>>,
    /// Every change of a row, in the order in which they were made.
    pub news: Vec<News>,
}

impl State {
    /// An empty state whose apps live under `domain`.
    pub fn new(domain: &str) -> Self {
        let mut core = Core::default();
        core.routes.domain = domain.into();
        Self { core }
    }

    /// Changes from now on have numbers after this one.
    pub fn number_from(&mut self, revision: u64) {
        self.core.journalist.revision = revision;
    }

    /// The number of the last change.
    pub fn revision(&self) -> u64 {
        self.core.journalist.revision
    }

    /// Where a row belongs, as far as its owners are still there.
    pub fn scope_of(&self, row: &AnyRow) -> Scope {
        self.core.scope_of(row)
    }

    /// Puts a row from the store back. An unknown kind or an unreadable body is refused.
    ///
    /// Jobs that ended come from the history. One that is still among the rows was put there by an
    /// earlier version; it moves with the next changes.
    pub fn load(&mut self, kind: &str, body: &[u8]) -> Result<(), String> {
        match self.core.load(kind, body) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("the store holds a row of the unknown kind `{kind}`")),
            Err(error) => Err(format!("the store holds an unreadable {kind} row: {error}")),
        }
    }

    /// Puts a job from the history back. The newest [`MAX_FINISHED_JOBS`] are wanted, oldest first.
    pub fn load_ended(&mut self, body: &[u8]) -> Result<(), String> {
        let job: Job = serde_json::from_slice(body)
            .map_err(|error| format!("the history holds an unreadable job: {error}"))?;
        self.core.replace::<Job>(job.id, Some(Arc::new(job)));
        Ok(())
    }

    /// Derives the routes once all rows are loaded, so that they are there for whoever reads before
    /// the first command. Their generation is later than `served`, the last one that this process
    /// told of; 0 when it has told of none.
    pub fn loaded(&mut self, now: Time, served: u64) {
        self.core.routes.go_on_after(served);
        self.core.refresh_routes(now);
    }

    /// Carries out one command, or refuses it and changes nothing.
    pub fn apply(&mut self, now: Time, command: Command) -> Result<Reply, Refusal> {
        self.core.prepare_placing();
        let audited = self.core.audited.len();
        let done = self.dispatch(now, command).and_then(|reply| {
            self.core.settle(now)?;
            Ok(reply)
        });
        if done.is_ok() {
            self.core.keep();
        } else {
            self.core.roll_back();
            self.core.audited.truncate(audited);
            self.core.refresh_routes(now);
        }
        done
    }

    fn dispatch(&mut self, now: Time, command: Command) -> Result<Reply, Refusal> {
        let core = &mut self.core;
        match command {
            Command::Job(command) => core.job_command(now, command),
            Command::Work(command) => core.work(now, command),
            Command::Cell(command) => core.cell_command(now, command),
            Command::CreateProject { id, name } => core.create_project(now, id, name),
            Command::EnsureApp { id, project, name } => core.ensure_app(now, id, project, name),
            Command::DeleteApp(id) => core.delete_app(id),
            Command::DeleteProject(id) => core.delete_project(now, id),
            Command::SetConfig { app, workspace, vars } => core.set_config(app, workspace, vars),
            Command::Scale { app, workspace, process, instances } => {
                core.scale(app, workspace, process, instances)
            }
            Command::RestartInstance { app, workspace, process, index } => {
                core.restart_instance(now, (app, &workspace), (&process, index))
            }
            Command::RemoveVolume { id, force } => core.remove_volume(now, id, force),
            Command::CreateToken(new) => core.create_token(now, new),
            Command::RevokeToken(id) => core.revoke_token(now, id),
            Command::AddKey(new) => core.add_key(now, new),
            Command::RemoveKey(id) => core.remove_key(id),
            Command::Audit(line) => Ok(core.audit(now, *line)),
            Command::Boot => core.boot(now).map(|()| Reply::Done),
            Command::Resume => core.resume(now).map(|()| Reply::Done),
            Command::RoutesServed { generation } => {
                core.routes.catch_up(now, generation);
                Ok(Reply::Done)
            }
            Command::Tick => core.tick(now).map(|()| Reply::Done),
            Command::Sweep => core.sweep(now).map(|()| Reply::Done),
            Command::Rebalance { moves } => core.rebalance(now, moves),
        }
    }

    /// Drops what was changed since the last call, for a state without a store.
    pub fn forget_changes(&mut self) {
        self.core.take_changed();
        self.core.forget_old_jobs();
        self.core.indexes.dirty_cells.clear();
        self.core.indexes.dirty_work.clear();
        self.core.journalist.news.clear();
        self.core.audited.clear();
    }

    /// What was changed since the last call, rendered for the store.
    pub fn take_changes(&mut self) -> Result<Changes, String> {
        let mut rows = Vec::new();
        let mut archived = self.core.take_audited()?;
        for key in self.core.take_changed() {
            let body = self
                .core
                .body(key)
                .map_err(|error| format!("cannot render a {} row: {error}", key.kind()))?;
            let (body, ended) = if self.core.has_ended(key) { (None, body) } else { (body, None) };
            archived.extend(ended.map(|body| Archived { kind: key.kind(), id: key.raw(), body }));
            rows.push(Change { key, body });
        }
        self.core.forget_old_jobs();
        let cells = self.core.take_orders();
        let news = std::mem::take(&mut self.core.journalist.news);
        Ok(Changes { rows, archived, cells, news })
    }
}
