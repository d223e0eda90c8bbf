//! Rows as the HTTP API shows them.

use api::http_types::{
    AppStatus, AppView, AuditView, BuildView, CellView, CrashView, DeploymentView, DrainView,
    InstanceView, JobView, KeyView, PredecessorView, ProcessView, ProjectView, RunnerView,
    StaysView, TaskView, TokenView, VolumeView,
};
use model::{CellId, DeploymentState, InstanceState, JobState, Name, ProjectId, TaskState};
use state::{
    App, Audit, AuditEvent, Build, Callback, Cell, Crash, Deployment, DrainProgress, Instance, Job,
    Key, PredecessorKind, Process, Project, Routed, Runner, State, Task, Token, Volume,
};

fn project_name(state: &State, id: ProjectId) -> Name {
    // A project outlives its apps and jobs; the fallback is for jobs of a deleted one.
    state.get::<Project>(id).map_or_else(deleted, |project| project.name.clone())
}

fn deleted() -> Name {
    Name::suggest("deleted").expect("`deleted` is a name")
}

/// A project.
pub fn project(state: &State, row: &Project) -> ProjectView {
    let apps = state.all::<App>().filter(|app| app.project == row.id);
    ProjectView {
        id: row.id,
        name: row.name.clone(),
        created_at: row.created_at,
        apps: apps.map(|app| app.name.clone()).collect(),
    }
}

/// An app.
pub fn app(state: &State, row: &App) -> AppView {
    let number = |id| state.get::<Deployment>(id).map(|row| row.number);
    let released = row.released.iter();
    AppView {
        id: row.id,
        project: project_name(state, row.project),
        name: row.name.clone(),
        created_at: row.created_at,
        released: released.filter_map(|(w, id)| Some((w.clone(), number(*id)?))).collect(),
    }
}

/// An app with everything in one workspace.
pub fn status(state: &State, row: &App, workspace: &Name, url: Option<String>) -> AppStatus {
    let mut deployments: Vec<DeploymentView> = state
        .deployments_of(row.id)
        .filter(|deployment| deployment.workspace == *workspace)
        .map(|deployment| self::deployment(state, deployment))
        .collect();
    deployments.reverse();
    let jobs = state.all::<Job>().filter(|job| {
        job.spec.app == Some(row.id) && job.spec.workspace == *workspace && !job.state.is_terminal()
    });
    AppStatus {
        app: app(state, row),
        workspace: workspace.clone(),
        host: state.host_of(row, workspace),
        url: url.filter(|_| row.released.contains_key(workspace)),
        deployments,
        jobs: jobs.map(|row| job(state, row)).collect(),
    }
}

/// A deployment.
pub fn deployment(state: &State, row: &Deployment) -> DeploymentView {
    let app = state.get::<App>(row.app);
    let reason = match &row.state {
        DeploymentState::Failed { reason } => Some(reason.clone()),
        DeploymentState::Starting { .. } | DeploymentState::Ready | DeploymentState::Retired => {
            None
        }
    };
    let processes = row.processes.iter().filter_map(|id| state.get::<Process>(*id));
    DeploymentView {
        id: row.id,
        number: row.number,
        workspace: row.workspace.clone(),
        build: state.get::<Build>(row.build).map(|build| build.number),
        image: row.image,
        state: row.state.name().to_owned(),
        reason,
        released: app.is_some_and(|app| app.released.get(&row.workspace) == Some(&row.id)),
        created_at: row.created_at,
        processes: processes.map(|process| self::process(state, process)).collect(),
    }
}

fn process(state: &State, row: &Process) -> ProcessView {
    ProcessView {
        name: row.name.clone(),
        wanted: row.instances,
        instances: state.instances_of(row).map(|row| instance(state, row)).collect(),
        volumes: row.spec.container.volumes.keys().cloned().collect(),
    }
}

/// An instance.
pub(crate) fn instance(state: &State, row: &Instance) -> InstanceView {
    let cell = row.state.cell();
    let cell_name = cell.and_then(|id| cell_name(state, id));
    let predecessor = predecessor(state, row);
    let mut restarts = None;
    let (reason, address) = match &row.state {
        InstanceState::Unclaimed { reason } => (reason.clone(), None),
        InstanceState::Crashed { reason, restart_at, .. } => {
            restarts = *restart_at;
            (Some(reason.clone()), None)
        }
        InstanceState::Running { address, .. } => (None, Some(address.to_string())),
        InstanceState::Claimed { .. } | InstanceState::Stopping { .. } | InstanceState::Stopped => {
            (None, None)
        }
    };
    InstanceView {
        id: row.id,
        index: row.index,
        state: row.state.name().to_owned(),
        ready: row.state.ready_address().is_some(),
        reason: meanwhile(reason, row, predecessor.as_ref()),
        cell,
        cell_name,
        address,
        predecessor,
        crashes: row.crashes,
        restart_at: restarts,
        last_crash: row.last_crash.as_deref().map(crash),
        since: row.since,
    }
}

fn cell_name(state: &State, id: CellId) -> Option<Name> {
    Some(state.get::<Cell>(id)?.spec.name.clone())
}

/// The copy before an instance, if requests go to that one.
fn predecessor(state: &State, row: &Instance) -> Option<PredecessorView> {
    let Routed { cell, address, epoch } = row.routed()?;
    row.before.filter(|before| (before.cell, before.epoch) == (cell, epoch))?;
    let (cell_name, address) = (cell_name(state, cell), address.to_string());
    Some(PredecessorView { cell, cell_name, address })
}

/// Why an instance waits, with what serves until it does not.
fn meanwhile(
    reason: Option<String>,
    row: &Instance,
    predecessor: Option<&PredecessorView>,
) -> Option<String> {
    let Some(PredecessorView { cell, cell_name, .. }) = predecessor else { return reason };
    let place = cell_name.as_ref().map_or_else(|| cell.to_string(), Name::to_string);
    let is_away = row.before.is_some_and(|it| it.kind == PredecessorKind::Suspect);
    let does = if is_away { "may still serve" } else { "still serves" };
    let serves = format!("the copy on cell {place} {does}");
    Some([reason, Some(serves)].into_iter().flatten().collect::<Vec<_>>().join("; "))
}

fn crash(crash: &Crash) -> CrashView {
    let detail = crash.detail.as_deref().cloned();
    CrashView { at: crash.at, reason: crash.reason.clone(), detail }
}

/// A job.
pub fn job(state: &State, row: &Job) -> JobView {
    let reason = match &row.state {
        JobState::Failed { reason } | JobState::Cancelled { reason } => Some(reason.clone()),
        JobState::Queued
        | JobState::Waiting { .. }
        | JobState::Running { .. }
        | JobState::Succeeded => None,
    };
    let app = row.spec.app.and_then(|id| state.get::<App>(id));
    JobView {
        id: row.id,
        project: project_name(state, row.spec.project),
        app: app.map(|app| app.name.clone()),
        workspace: row.spec.workspace.clone(),
        operation: row.spec.operation.clone(),
        state: row.state.name().to_owned(),
        ended: row.state.is_terminal(),
        reason,
        why_queued: state.why_queued(row),
        cancelling: row.cancel.is_some() && !row.state.is_terminal(),
        runner: row.state.runner(),
        epoch: row.epoch,
        queued_at: row.queued_at,
        started_at: row.started_at,
        ended_at: row.ended_at,
        origin: row.spec.origin.clone(),
    }
}

/// A build.
pub fn build(row: &Build) -> BuildView {
    BuildView {
        id: row.id,
        number: row.number,
        source: row.source,
        image: row.image,
        processes: row.processes.iter().map(|process| process.name.clone()).collect(),
        created_at: row.created_at,
    }
}

/// A task.
pub fn task(state: &State, row: &Task) -> TaskView {
    let mut view = TaskView {
        id: row.id,
        job: row.job,
        project: row.project.map(|id| project_name(state, id)),
        state: row.state.name().to_owned(),
        ended: row.state.is_terminal(),
        reason: None,
        result: None,
        artifact: None,
        action: None,
        exit: None,
        tail: Vec::new(),
        cell: row.state.cell(),
        cancelling: row.cancelling && !row.state.is_terminal(),
        attempt: row.attempt,
        attempts: row.spec.retry.map_or(1, |retry| retry.attempts),
        retry_of: row.retry_of,
        followed_by: row.followed_by,
        not_before: row.paused_until,
        callback: callback(row.callback.as_ref()),
        annotation: row.spec.annotation.clone(),
        created_at: row.created_at,
        ended_at: row.ended_at,
    };
    match &row.state {
        TaskState::Pending { reason } => {
            let pauses = || {
                let (attempt, attempts) = (view.attempt, view.attempts);
                format!("attempt {attempt} of {attempts} begins after a pause")
            };
            view.reason = reason.clone().or_else(|| row.paused_until.map(|_| pauses()));
        }
        TaskState::Failed { reason, detail } => {
            view.reason = Some(reason.clone());
            if let Some(detail) = detail {
                view.action.clone_from(&detail.action);
                view.exit = detail.exit;
                view.tail.clone_from(&detail.tail);
            }
        }
        TaskState::Succeeded { result, artifact } => {
            view.result.clone_from(result);
            view.artifact = *artifact;
        }
        TaskState::Cancelled { reason } => view.reason.clone_from(reason),
        TaskState::Offered { .. } | TaskState::Running { .. } => {}
    }
    view
}

/// How far the message about the end of a task is, in a sentence.
fn callback(row: Option<&Callback>) -> Option<String> {
    Some(match row? {
        Callback::Waiting => "waiting".to_owned(),
        Callback::Delivered { .. } => "delivered".to_owned(),
        Callback::GivenUp { reason, .. } => format!("given up: {reason}"),
    })
}

/// A volume.
pub fn volume(state: &State, row: &Volume) -> VolumeView {
    let cell = state.get::<Cell>(row.cell);
    VolumeView {
        id: row.id,
        name: row.to_string(),
        app: row.app.clone(),
        workspace: row.workspace.clone(),
        cell: row.cell,
        cell_name: cell.map(|cell| cell.spec.name.clone()),
        cell_online: cell.is_some_and(|cell| cell.lease_until.is_some()),
        state: row.state.name().to_owned(),
        created_at: row.created_at,
        delete_at: row.delete_at(),
    }
}

/// A token.
pub fn token(state: &State, row: &Token) -> TokenView {
    TokenView {
        id: row.id,
        role: row.role,
        project: row.project.map(|id| project_name(state, id)),
        label: row.label.clone(),
        created_at: row.created_at,
        expires_at: row.expires_at,
        revoked_at: row.revoked_at,
    }
}

/// A key.
pub fn key(state: &State, row: &Key) -> KeyView {
    KeyView {
        id: row.id,
        project: row.project.map(|id| project_name(state, id)),
        label: row.label.clone(),
        fingerprint: row.fingerprint.clone(),
        created_at: row.created_at,
    }
}

/// A cell.
pub fn cell(state: &State, row: &Cell) -> CellView {
    let work = state.cell_work(row.id);
    let load = state.cell_load(row.id);
    CellView {
        id: row.id,
        spec: row.spec.clone(),
        online: row.lease_until.is_some(),
        instances: work.instances.len(),
        tasks: work.tasks.len(),
        memory_used_mb: load.memory_mb,
        disk_used_mb: load.disk_mb,
        drain: drain(state, row),
    }
}

fn drain(state: &State, row: &Cell) -> Option<DrainView> {
    let progress = state.drain_progress(row.id)?;
    let finished = progress.is_finished();
    let state::Drain { since, deadline, leaving, .. } = row.draining?;
    let DrainProgress { moved, moving, stays, tasks } = progress;
    let stay = |it: state::Stays| StaysView { what: it.what, reason: it.reason };
    let stays = stays.into_iter().map(stay).collect();
    Some(DrainView { since, deadline, leaving, moved, moving, stays, tasks, finished })
}

/// A runner.
pub fn runner(row: &Runner) -> RunnerView {
    RunnerView {
        id: row.id,
        name: row.name.clone(),
        labels: row.labels.clone(),
        online: row.online,
    }
}

/// A line of the audit log.
pub fn audit(line: u64, row: Audit) -> AuditView {
    let mut view = AuditView {
        line,
        at: row.at,
        event: String::new(),
        session: row.session,
        token: row.token,
        role: row.role,
        label: row.label,
        project: row.project_name,
        app: row.app_name,
        workspace: row.workspace,
        deployment: row.deployment,
        instance: row.instance,
        action: None,
        words: Vec::new(),
        env: Vec::new(),
        terminal: None,
        exit: None,
        reason: None,
    };
    match row.event {
        AuditEvent::SessionOpened { action, words, env, terminal } => {
            "session_opened".clone_into(&mut view.event);
            (view.action, view.terminal) = (Some(action), Some(terminal));
            (view.words, view.env) = (words, env);
        }
        AuditEvent::SessionEnded { exit, reason } => {
            "session_ended".clone_into(&mut view.event);
            (view.exit, view.reason) = (exit, reason);
        }
    }
    view
}

#[cfg(test)]
mod tests;
