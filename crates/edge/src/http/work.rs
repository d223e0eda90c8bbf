//! What a runner asks for while it works on a job. Each call names the attempt; a call for an
//! attempt that has moved on is refused.

use std::sync::Arc;
use std::time::Duration;

use api::http_types::{
    AttemptRef, BuildView, CreateTask, DeploymentRef, DeploymentView, RecordBuild, Released,
    StartDeployment, TaskView,
};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use model::{BuildId, DeploymentId, HostName, JobId, Role, TaskId};
use serde::Deserialize;
use server::{Action, ApplyError, MAX_WAITING_CALLS, Server, views};
use state::{
    App, Attempt, Command, Deployment, Job, ProcessTemplate, Reply, RowKey, Task, WorkCommand,
};

use super::caller::{Body, Caller, Path, Query, id};
use super::{ApiError, ApiResult};

/// The longest a call waits for a change.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Whether to wait.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(crate) struct Wait {
    /// Wait up to this many milliseconds (30,000 at most) for it to leave its state.
    wait_ms: Option<u64>,
}

impl Wait {
    fn limit(&self) -> Duration {
        Duration::from_millis(self.wait_ms.unwrap_or(0)).min(MAX_WAIT)
    }

    /// Waits for a change, where that is asked for, or until the time is up.
    async fn until(
        &self,
        server: &Server,
        caller: Caller,
        change: impl Future<Output = Result<(), ApplyError>>,
    ) -> Result<(), ApiError> {
        if self.limit().is_zero() {
            return Ok(());
        }
        let _waiting = server.waiting(caller.token()).ok_or_else(|| {
            let message =
                format!("this token has {MAX_WAITING_CALLS} calls that wait, which is the limit");
            let hint = "wait for some of them, or use another token: `shore token create`";
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "unavailable", message, hint)
        })?;
        Ok(runtime::timeout(self.limit(), change).await.unwrap_or(Ok(()))?)
    }
}

const fn attempt(it: AttemptRef) -> Attempt {
    Attempt { job: it.job, epoch: it.epoch }
}

/// Refuses a runner that does the work of another one, which joined with another token.
async fn own_work(server: &Server, caller: Caller, job: JobId) -> Result<(), ApiError> {
    caller.require(Action::Work)?;
    let token = server.read(move |state| state.token_at_work(job)).await?;
    let is_others = caller.role() == Role::Runner && token.is_some_and(|it| it != caller.token());
    if !is_others {
        return Ok(());
    }
    Err(ApiError::forbidden(format!("job {job} is the work of a runner with another token")))
}

async fn do_work(
    server: &Server,
    caller: Caller,
    (job, command): (JobId, WorkCommand),
) -> Result<Reply, ApiError> {
    own_work(server, caller, job).await?;
    Ok(server.apply(Command::Work(command)).await?)
}

fn unexpected() -> ApiError {
    ApiError::internal("a command was answered with something else")
}

/// Makes a task for the job.
#[utoipa::path(post, path = "/v1/tasks", request_body = CreateTask,
    responses((status = 200, body = TaskView)))]
pub(crate) async fn create_task(
    server: State<Server>,
    caller: Caller,
    Body(create): Body<CreateTask>,
) -> ApiResult<TaskView> {
    let CreateTask { id, attempt: at, spec } = create;
    let id = id.unwrap_or_else(|| TaskId(server.fresh_id()));
    let job = at.job;
    let command = WorkCommand::CreateTask { id, attempt: Some(attempt(at)), spec: Arc::new(spec) };
    let Reply::Task(task) = do_work(&server, caller, (job, command)).await? else {
        return Err(unexpected());
    };
    Ok(Json(server.read(move |state| views::task(state, &task)).await?))
}

/// A task, if the caller may do `action` on its project.
pub(crate) async fn task(
    server: &Server,
    caller: Caller,
    action: Action,
    text: &str,
) -> Result<Arc<Task>, ApiError> {
    let id: TaskId = id(text)?;
    let missing = || ApiError::not_found("task", id);
    let row = server.read(move |state| state.get::<Task>(id).cloned()).await?;
    let row = row.ok_or_else(missing)?;
    match row.project {
        Some(project) => caller.require_on(action, project, missing)?,
        None => caller.require(action)?,
    }
    Ok(row)
}

/// A task.
#[utoipa::path(get, path = "/v1/tasks/{task}", params(Wait),
    responses((status = 200, body = TaskView)))]
pub(crate) async fn get_task(
    server: State<Server>,
    caller: Caller,
    Path(text): Path<String>,
    Query(wait): Query<Wait>,
) -> ApiResult<TaskView> {
    let id = task(&server, caller, Action::Read, &text).await?.id;
    let ended = server.wait_for_row(RowKey::Task(id), move |state| {
        let row = state.get::<Task>(id);
        row.is_none_or(|row| row.state.is_terminal()).then_some(())
    });
    wait.until(&server, caller, ended).await?;
    let view =
        server.read(move |state| state.get::<Task>(id).map(|row| views::task(state, row))).await?;
    view.map(Json).ok_or_else(|| ApiError::not_found("task", id))
}

/// Asks a task to end.
#[utoipa::path(post, path = "/v1/tasks/{task}/cancel", responses((status = 200)))]
pub(crate) async fn cancel_task(
    server: State<Server>,
    caller: Caller,
    Path(text): Path<String>,
) -> ApiResult<()> {
    let row = task(&server, caller, Action::Read, &text).await?;
    // A job's task is its runner's to end; people end the job.
    let action = if row.job.is_some() { Action::Work } else { Action::Change };
    let row = task(&server, caller, action, &text).await?;
    if let Some(job) = row.job {
        own_work(&server, caller, job).await?;
    }
    server.apply(Command::Work(WorkCommand::CancelTask(row.id))).await?;
    Ok(Json(()))
}

/// Keeps the result of a build.
#[utoipa::path(post, path = "/v1/builds", request_body = RecordBuild,
    responses((status = 200, body = BuildView)))]
pub(crate) async fn record_build(
    server: State<Server>,
    caller: Caller,
    Body(record): Body<RecordBuild>,
) -> ApiResult<BuildView> {
    // Before anything is looked up: what is there is nobody else's to know.
    caller.require(Action::Work)?;
    let RecordBuild { id, attempt: at, source, image, processes } = record;
    if !server.blobs().exists(image.0).await? {
        return Err(ApiError::not_found("image", image));
    }
    let processes = processes
        .into_iter()
        .map(|it| ProcessTemplate { name: it.name, spec: it.spec, instances: it.instances })
        .collect();
    let id = id.unwrap_or_else(|| BuildId(server.fresh_id()));
    let command = WorkCommand::RecordBuild { id, attempt: attempt(at), source, image, processes };
    let Reply::Build(build) = do_work(&server, caller, (at.job, command)).await? else {
        return Err(unexpected());
    };
    Ok(Json(views::build(&build)))
}

async fn deployment_view(server: &Server, id: DeploymentId) -> ApiResult<DeploymentView> {
    let view = server
        .read(move |state| state.get::<Deployment>(id).map(|row| views::deployment(state, row)));
    view.await?.map(Json).ok_or_else(|| ApiError::not_found("deployment", id))
}

/// Starts a build's image beside what runs already.
#[utoipa::path(post, path = "/v1/deployments", request_body = StartDeployment,
    responses((status = 200, body = DeploymentView)))]
pub(crate) async fn start_deployment(
    server: State<Server>,
    caller: Caller,
    Body(start): Body<StartDeployment>,
) -> ApiResult<DeploymentView> {
    let id = start.id.unwrap_or_else(|| DeploymentId(server.fresh_id()));
    let command = WorkCommand::Deploy { id, attempt: attempt(start.attempt), build: start.build };
    do_work(&server, caller, (start.attempt.job, command)).await?;
    deployment_view(&server, id).await
}

/// Starts a retired deployment again.
#[utoipa::path(post, path = "/v1/deployments/restart", request_body = DeploymentRef,
    responses((status = 200, body = DeploymentView)))]
pub(crate) async fn restart_deployment(
    server: State<Server>,
    caller: Caller,
    Body(it): Body<DeploymentRef>,
) -> ApiResult<DeploymentView> {
    let DeploymentRef { attempt: at, deployment } = it;
    let command = WorkCommand::Restart { attempt: attempt(at), deployment };
    do_work(&server, caller, (at.job, command)).await?;
    deployment_view(&server, deployment).await
}

/// A deployment; with `wait_ms` once it is no longer starting.
#[utoipa::path(get, path = "/v1/deployments/{deployment}", params(Wait),
    responses((status = 200, body = DeploymentView)))]
pub(crate) async fn get_deployment(
    server: State<Server>,
    caller: Caller,
    Path(text): Path<String>,
    Query(wait): Query<Wait>,
) -> ApiResult<DeploymentView> {
    let id: DeploymentId = id(&text)?;
    let missing = || ApiError::not_found("deployment", id);
    let project = server.read(move |state| {
        state.get::<Deployment>(id).and_then(|row| state.get::<App>(row.app)).map(|app| app.project)
    });
    caller.require_on(Action::Read, project.await?.ok_or_else(missing)?, missing)?;
    let settled = server.wait_for_row(RowKey::Deployment(id), move |state| {
        let row = state.get::<Deployment>(id);
        row.is_none_or(|row| row.state.name() != "starting").then_some(())
    });
    wait.until(&server, caller, settled).await?;
    deployment_view(&server, id).await
}

async fn host_of(server: &Server, job: JobId) -> Result<Option<HostName>, ApiError> {
    let host = server.read(move |state| {
        let job = state.get::<Job>(job)?;
        state.host_of(state.get::<App>(job.spec.app?)?, &job.spec.workspace)
    });
    Ok(host.await?)
}

async fn released(server: &Server, job: JobId, reply: Reply) -> ApiResult<Released> {
    let Reply::Released(generation) = reply else { return Err(unexpected()) };
    let applied = server.routers_serve(generation).await;
    let host = host_of(server, job).await?;
    let url = host.and_then(|host| server.url_of(host.as_str()));
    Ok(Json(Released { generation, applied, url }))
}

/// Points the routes at a ready deployment and retires the one before it. Answers once every
/// connected router serves the change, or after two seconds.
#[utoipa::path(post, path = "/v1/releases", request_body = DeploymentRef,
    responses((status = 200, body = Released)))]
pub(crate) async fn release(
    server: State<Server>,
    caller: Caller,
    Body(it): Body<DeploymentRef>,
) -> ApiResult<Released> {
    let DeploymentRef { attempt: at, deployment } = it;
    let command = WorkCommand::Release { attempt: attempt(at), deployment };
    let reply = do_work(&server, caller, (at.job, command)).await?;
    released(&server, at.job, reply).await
}

/// Withdraws the routes of the job's app and workspace and stops everything it runs there.
#[utoipa::path(post, path = "/v1/destroy", request_body = AttemptRef,
    responses((status = 200, body = Released)))]
pub(crate) async fn destroy(
    server: State<Server>,
    caller: Caller,
    Body(at): Body<AttemptRef>,
) -> ApiResult<Released> {
    let reply = do_work(&server, caller, (at.job, WorkCommand::Destroy(attempt(at)))).await?;
    released(&server, at.job, reply).await
}
