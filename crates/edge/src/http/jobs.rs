//! Jobs: queue, look, cancel.

use std::sync::Arc;
use std::time::Duration;

use api::http_types::{CancelJob, JobView, QueueJob};
use axum::Json;
use axum::extract::{Path, Query, State};
use model::{AppId, JobId, Operation, ProjectId, Target};
use serde::Deserialize;
use server::{Action, Server, views};
use state::{App, Command, Job, JobCommand, JobSpec, NewJob, Project, Reply, State as Control};

use super::caller::{Body, Caller, id, name};
use super::{ApiError, ApiResult};

/// Most jobs in one answer.
pub(crate) const MAX_LISTED: usize = 1_000;
const DEFAULT_LISTED: usize = 50;

/// Which jobs.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(crate) struct JobFilter {
    /// Only this project's.
    project: Option<String>,
    /// Only this app's.
    app: Option<String>,
    /// Only those in this state.
    state: Option<String>,
    /// How many at most, newest first; 50 when absent, 1000 at most.
    limit: Option<usize>,
}

/// Puts a job in line.
#[utoipa::path(post, path = "/v1/jobs", request_body = QueueJob,
    responses((status = 200, body = JobView)))]
pub(crate) async fn queue_job(
    server: State<Server>,
    caller: Caller,
    Body(queue): Body<QueueJob>,
) -> ApiResult<JobView> {
    let project = caller.project(&server, Action::Change, &queue.project).await?;
    let app = app_of(&server, project.id, &queue).await?;
    if let Operation::Build { source } | Operation::Up { source } = &queue.operation
        && !server.blobs().exists(source.0).await?
    {
        return Err(ApiError::not_found("source archive", source));
    }
    let workspace =
        queue.workspace.clone().map_or_else(|| name("workspace", state::PRODUCTION), Ok)?;
    let singleton = app
        .filter(|_| queue.supersede)
        .map(|app| JobSpec::superseding(&queue.operation, app, &workspace));
    // A key is the caller's own: the same word in two projects is two keys.
    let idempotency_key = queue.idempotency_key.as_ref().map(|key| format!("{}/{key}", project.id));
    let spec = Arc::new(JobSpec {
        project: project.id,
        app,
        workspace,
        operation: queue.operation,
        target: queue.target.unwrap_or(Target::Any),
        depends_on: queue.depends_on,
        allow_failure: queue.allow_failure,
        singleton,
        idempotency_key,
        origin: queue.origin.unwrap_or_else(|| "api".to_owned()).chars().take(200).collect(),
    });
    let expires_in = queue.expires_ms.map(Duration::from_millis);
    let new = NewJob { id: JobId(server.fresh_id()), spec, expires_in };
    let Reply::Job(job) = server.apply(Command::Job(JobCommand::Queue(new))).await? else {
        return Err(ApiError::internal("a queued job was not answered with the job"));
    };
    Ok(Json(server.read(move |state| views::job(state, &job)).await?))
}

async fn app_of(
    server: &Server,
    project: ProjectId,
    queue: &QueueJob,
) -> Result<Option<AppId>, ApiError> {
    let Some(name) = queue.app.clone() else {
        if queue.operation.changes_app() {
            let operation = queue.operation.name();
            return Err(ApiError::invalid(format!("the operation {operation} needs an app")));
        }
        return Ok(None);
    };
    let id = AppId(server.fresh_id());
    match server.apply(Command::EnsureApp { id, project, name }).await? {
        Reply::App(id, _) => Ok(Some(id)),
        _ => Err(ApiError::internal("an app was not answered with its id")),
    }
}

/// Jobs, newest first.
#[utoipa::path(get, path = "/v1/jobs", params(JobFilter),
    responses((status = 200, body = Vec<JobView>)))]
pub(crate) async fn list_jobs(
    server: State<Server>,
    caller: Caller,
    Query(filter): Query<JobFilter>,
) -> ApiResult<Vec<JobView>> {
    let limit = filter.limit.unwrap_or(DEFAULT_LISTED).min(MAX_LISTED);
    let list = server.read(move |state| {
        let wanted = |job: &&Arc<Job>| {
            caller.can(Action::Read, Some(job.spec.project)) && filter.takes(state, job)
        };
        // Only what is shown is rendered: this runs where commands are applied.
        state
            .all::<Job>()
            .rev()
            .filter(wanted)
            .take(limit)
            .map(|job| views::job(state, job))
            .collect()
    });
    Ok(Json(list.await?))
}

impl JobFilter {
    fn takes(&self, state: &Control, job: &Job) -> bool {
        let project = || state.get::<Project>(job.spec.project).map(|it| it.name.as_str());
        let app = || job.spec.app.and_then(|id| state.get::<App>(id)).map(|it| it.name.as_str());
        self.state.as_deref().is_none_or(|wanted| job.state.name() == wanted)
            && self.project.as_deref().is_none_or(|wanted| project() == Some(wanted))
            && self.app.as_deref().is_none_or(|wanted| app() == Some(wanted))
    }
}

/// The job, if the caller may do `action` on its project.
pub(crate) async fn job(
    server: &Server,
    caller: Caller,
    action: Action,
    text: &str,
) -> Result<Arc<Job>, ApiError> {
    let id: JobId = id(text)?;
    let row = server.read(move |state| state.get::<Job>(id).cloned()).await?;
    let row = row.ok_or_else(|| ApiError::not_found("job", id))?;
    caller.require_on(action, row.spec.project, || ApiError::not_found("job", id))?;
    Ok(row)
}

/// A job.
#[utoipa::path(get, path = "/v1/jobs/{job}", responses((status = 200, body = JobView)))]
pub(crate) async fn get_job(
    server: State<Server>,
    caller: Caller,
    Path(text): Path<String>,
) -> ApiResult<JobView> {
    let row = job(&server, caller, Action::Read, &text).await?;
    Ok(Json(server.read(move |state| views::job(state, &row)).await?))
}

/// Asks a job to end.
#[utoipa::path(post, path = "/v1/jobs/{job}/cancel", request_body = CancelJob,
    responses((status = 200)))]
pub(crate) async fn cancel_job(
    server: State<Server>,
    caller: Caller,
    Path(text): Path<String>,
    Body(cancel): Body<CancelJob>,
) -> ApiResult<()> {
    let row = job(&server, caller, Action::Change, &text).await?;
    let reason = cancel.reason.unwrap_or_else(|| "somebody cancelled it".to_owned());
    let reason = reason.chars().take(1_000).collect();
    let command = JobCommand::Cancel { job: row.id, force: cancel.force, reason };
    server.apply(Command::Job(command)).await?;
    Ok(Json(()))
}
