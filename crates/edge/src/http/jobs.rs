//! Jobs: queue, look, cancel.

use std::sync::Arc;
use std::time::Duration;

use api::http_types::{CancelJob, JobView, QueueJob};
use axum::Json;
use axum::extract::State;
use model::{AppId, JobId, Operation, Target};
use serde::Deserialize;
use server::{Action, Server, views};
use state::{
    App, Command, Job, JobCommand, JobSpec, MAX_FINISHED_JOBS, NewJob, Project, Reply,
    State as Control,
};

use super::caller::{Body, Caller, Path, Query, id, name};
use super::{ApiError, ApiResult, ReadResult};

/// Most jobs in one answer.
pub(crate) const MAX_LISTED: usize = 1_000;
const DEFAULT_LISTED: usize = 50;
/// Jobs of the history read at once.
const HISTORY_PAGE: u32 = 1_000;
/// Pages of the history one list looks through.
const MAX_HISTORY_PAGES: usize = 100;

/// Which jobs.
#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
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
    let app = app_of(&server, caller, &project, &queue).await?;
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

/// The app a job is about. Only what brings source makes one that does not exist yet.
async fn app_of(
    server: &Server,
    caller: Caller,
    project: &Project,
    queue: &QueueJob,
) -> Result<Option<AppId>, ApiError> {
    let Some(name) = queue.app.clone() else {
        if queue.operation.changes_app() {
            let operation = queue.operation.name();
            return Err(ApiError::invalid(format!("the operation {operation} needs an app")));
        }
        return Ok(None);
    };
    if !matches!(queue.operation, Operation::Build { .. } | Operation::Up { .. }) {
        let row = caller.app(server, Action::Change, (&project.name, &name)).await?;
        return Ok(Some(row.id));
    }
    let id = AppId(server.fresh_id());
    let ensure = Command::EnsureApp { id, project: project.id, name };
    let Reply::App(id, _) = server.apply(ensure).await? else {
        return Err(ApiError::internal("an app was not answered with its id"));
    };
    Ok(Some(id))
}

/// Jobs, newest first.
#[utoipa::path(get, path = "/v1/jobs", params(JobFilter),
    responses((status = 200, body = Vec<JobView>)))]
pub(crate) async fn list_jobs(
    server: State<Server>,
    caller: Caller,
    Query(filter): Query<JobFilter>,
) -> ReadResult<Vec<JobView>> {
    let limit = filter.limit.unwrap_or(DEFAULT_LISTED).min(MAX_LISTED);
    let older = filter.clone();
    let list = server.read_at(move |state| {
        let wanted = |job: &&Arc<Job>| {
            caller.can(Action::Read, Some(job.spec.project)) && filter.takes(state, job)
        };
        // Only what is shown is rendered: this runs where commands are applied.
        let shown = state.all::<Job>().rev().filter(wanted).take(limit);
        let shown: Vec<_> = shown.map(|job| views::job(state, job)).collect();
        let ended = || state.all::<Job>().filter(|job| job.state.is_terminal()).count();
        let complete = shown.len() >= limit || ended() < MAX_FINISHED_JOBS;
        (shown, complete)
    });
    let (revision, (mut list, complete)) = list.await?;
    if complete {
        return Ok((revision, list).into());
    }
    let wanted = move |state: &Control, job: &Job| {
        caller.can(Action::Read, Some(job.spec.project)) && older.takes(state, job)
    };
    add_older(&server, &mut list, limit, Arc::new(wanted)).await?;
    Ok((revision, list).into())
}

type Wanted = Arc<dyn Fn(&Control, &Job) -> bool + Send + Sync>;

/// Adds jobs that only the history has until the list has `limit`. They are older than all others.
async fn add_older(
    server: &Server,
    list: &mut Vec<JobView>,
    limit: usize,
    wanted: Wanted,
) -> Result<(), ApiError> {
    // The newest of the history are at hand; the first page that is read still holds some of them.
    let newest = server.ended_jobs(None, 1).await?;
    let at_hand = (MAX_FINISHED_JOBS as u64).saturating_sub(u64::from(HISTORY_PAGE));
    let mut before = newest.first().map(|(place, _)| place.saturating_sub(at_hand));
    for _ in 0..MAX_HISTORY_PAGES {
        if list.len() >= limit {
            return Ok(());
        }
        let page = server.ended_jobs(before, HISTORY_PAGE).await?;
        let Some((oldest, _)) = page.last() else { return Ok(()) };
        before = Some(*oldest);
        let (left, wanted) = (limit - list.len(), Arc::clone(&wanted));
        let more = server.read(move |state| {
            let older =
                page.iter().map(|(_, job)| job).filter(|job| state.get::<Job>(job.id).is_none());
            older
                .filter(|job| wanted(state, job))
                .take(left)
                .map(|job| views::job(state, job))
                .collect::<Vec<_>>()
        });
        list.extend(more.await?);
    }
    Ok(())
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
    let row = server.job(id).await?.ok_or_else(|| ApiError::not_found("job", id))?;
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
