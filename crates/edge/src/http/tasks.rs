//! Tasks that people and scripts make directly, and the secret that signs what they are told.

use std::sync::Arc;

use api::http_types::{CallbackSecret, NewTask, TaskView};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use model::{TaskId, TaskState};
use serde::Deserialize;
use server::{Action, Server, views};
use state::{Command, Project, Reply, Signing, State as Control, Task, WorkCommand};

use super::caller::{Body, Caller, Path, Query, name};
use super::jobs::MAX_LISTED;
use super::{ApiError, ApiResult, ReadResult, blobs, work};

const DEFAULT_LISTED: usize = 50;

/// Which tasks.
#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
pub(crate) struct TaskFilter {
    /// Only this project's.
    project: Option<String>,
    /// Only those in this state.
    state: Option<String>,
    /// How many at most, newest first; 50 when absent, 1000 at most.
    limit: Option<usize>,
}

impl TaskFilter {
    fn takes(&self, state: &Control, task: &Task) -> bool {
        let project = || Some(state.get::<Project>(task.project?)?.name.as_str());
        self.state.as_deref().is_none_or(|wanted| task.state.name() == wanted)
            && self.project.as_deref().is_none_or(|wanted| project() == Some(wanted))
    }
}

/// Makes a task of a project. The same `idempotency_key` or `id` with the same spec again is the same
/// task; with another spec it is refused. Follow its output with the task's events.
#[utoipa::path(post, path = "/v1/projects/{project}/tasks", request_body = NewTask,
    responses((status = 200, body = TaskView), (status = 409, body = api::http_types::ErrorBody),
    (status = 422, body = api::http_types::ErrorBody)))]
pub(crate) async fn new_task(
    server: State<Server>,
    caller: Caller,
    Path(project): Path<String>,
    Body(new): Body<NewTask>,
) -> ApiResult<TaskView> {
    let project = caller.project(&server, Action::Change, &name("project", &project)?).await?;
    let NewTask { id, idempotency_key: key, spec } = new;
    if !spec.container.egress.is_empty() && !caller.can(Action::Administer, None) {
        let message = "container.egress is not allowed: only administrators open networks";
        return Err(ApiError::invalid(message));
    }
    if let Some(url) = spec.callback.as_deref().filter(|url| server.forbids_callback(url)) {
        let message = format!("callback: {url} is not a public address, so it would never be told");
        let hint = "name a public address, or let an administrator allow the network: `shore server \
                    --callback-allow NETWORK`";
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message, hint));
    }
    if let Some(image) = spec.container.image
        && !server.blobs().exists(image.0).await?
    {
        return Err(ApiError::invalid(format!("container.image: there is no image {image}")));
    }
    let id = id.unwrap_or_else(|| TaskId(server.fresh_id()));
    let new = WorkCommand::NewTask { id, project: project.id, key, spec: Arc::new(spec) };
    let Reply::Task(task) = server.apply(Command::Work(new)).await? else {
        return Err(ApiError::internal("a task was not answered with the task"));
    };
    Ok(Json(server.read(move |state| views::task(state, &task)).await?))
}

/// Tasks, newest first. Those that ended are kept for ten minutes.
#[utoipa::path(get, path = "/v1/tasks", params(TaskFilter),
    responses((status = 200, body = Vec<TaskView>)))]
pub(crate) async fn list_tasks(
    server: State<Server>,
    caller: Caller,
    Query(filter): Query<TaskFilter>,
) -> ReadResult<Vec<TaskView>> {
    let limit = filter.limit.unwrap_or(DEFAULT_LISTED).min(MAX_LISTED);
    let list = server.read_at(move |state| {
        let mine =
            |task: &&Arc<Task>| caller.can(Action::Read, task.project) && filter.takes(state, task);
        // Results are large: they are shown with the one task that is asked for.
        let shown = state.all::<Task>().rev().filter(mine).take(limit);
        shown.map(|row| TaskView { result: None, ..views::task(state, row) }).collect()
    });
    Ok(list.await?.into())
}

/// What a task left in its result file, as it is. A task that another attempt followed left nothing.
#[utoipa::path(get, path = "/v1/tasks/{task}/result",
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
    (status = 404, body = api::http_types::ErrorBody),
    (status = 409, body = api::http_types::ErrorBody)))]
pub(crate) async fn task_result(
    server: State<Server>,
    caller: Caller,
    method: http::Method,
    Path(text): Path<String>,
) -> Result<Response, ApiError> {
    let row = work::task(&server, caller, Action::Read, &text).await?;
    let (id, state) = (row.id, row.state.name());
    match &row.state {
        TaskState::Succeeded { artifact: Some(digest), .. } => {
            blobs::bytes(&server, *digest, &method).await
        }
        TaskState::Succeeded { result: Some(text), .. } => Ok(text.clone().into_response()),
        TaskState::Succeeded { .. } => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "not_found",
            format!("task {id} left no result"),
            "a result is what is in the file that `--result-file` names",
        )),
        TaskState::Failed { .. } | TaskState::Cancelled { .. } => {
            let message = format!("task {id} {state}: it left no result");
            Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message, ""))
        }
        TaskState::Pending { .. } | TaskState::Offered { .. } | TaskState::Running { .. } => {
            let message = format!("task {id} has not ended: it is {state}");
            let hint =
                "wait for its end with `shore task show` or `GET /v1/tasks/{task}?wait_ms=30000`";
            Err(ApiError::new(StatusCode::CONFLICT, "conflict", message, hint))
        }
    }
}

/// Asks a task, or the attempt that followed it, to end.
#[utoipa::path(delete, path = "/v1/tasks/{task}", responses((status = 200)))]
pub(crate) async fn delete_task(
    server: State<Server>,
    caller: Caller,
    path: Path<String>,
) -> ApiResult<()> {
    work::cancel_task(server, caller, path).await
}

async fn secret(
    server: &Server,
    caller: Caller,
    project: &str,
    rotate: bool,
) -> ApiResult<CallbackSecret> {
    let project = caller.project(server, Action::Administer, &name("project", project)?).await?;
    let row: Arc<Signing> = server.signing(project.id, rotate).await?;
    Ok(Json(CallbackSecret {
        secret: row.secret.0.clone(),
        before: row.before.as_ref().map(|it| it.secret.0.clone()),
        since: row.since,
    }))
}

/// What signs the messages of a project.
#[utoipa::path(get, path = "/v1/projects/{project}/callback-secret",
    responses((status = 200, body = CallbackSecret)))]
pub(crate) async fn callback_secret(
    server: State<Server>,
    caller: Caller,
    Path(project): Path<String>,
) -> ApiResult<CallbackSecret> {
    secret(&server, caller, &project, false).await
}

/// Makes a new secret; the one before it signs too for a day.
#[utoipa::path(post, path = "/v1/projects/{project}/callback-secret",
    responses((status = 200, body = CallbackSecret)))]
pub(crate) async fn rotate_callback_secret(
    server: State<Server>,
    caller: Caller,
    Path(project): Path<String>,
) -> ApiResult<CallbackSecret> {
    secret(&server, caller, &project, true).await
}
