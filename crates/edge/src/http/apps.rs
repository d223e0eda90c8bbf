//! Apps: configuration, scale, status, builds.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::http_types::{
    AppStatus, AppView, BuildView, Create, RunCommand, Scale, SetConfig, TaskView,
};
use axum::Json;
use axum::extract::State;
use model::{Action as Do, AppId, Name, TaskId, TaskSpec, launched};
use serde::Deserialize;
use server::{Action, Server, views};
use state::{App, Command, Deployment, Process, Reply, State as Control, WorkCommand};

use super::caller::{Body, Caller, Path, Query, name, workspace};
use super::{ApiError, ApiResult, ReadResult};

/// Which workspace.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(crate) struct InWorkspace {
    /// The workspace; `production` when absent.
    workspace: Option<String>,
}

type AppPath = Path<(String, String)>;

macro_rules! app {
    ($server:expr, $caller:expr, $action:expr, $path:expr) => {{
        let (project, app) = (name("project", &$path.0.0)?, name("app", &$path.0.1)?);
        $caller.app(&$server, $action, (&project, &app)).await?
    }};
}
pub(crate) use app;

/// The apps of a project.
#[utoipa::path(get, path = "/v1/projects/{project}/apps", responses((status = 200, body = Vec<AppView>)))]
pub(crate) async fn list_apps(
    server: State<Server>,
    caller: Caller,
    Path(project): Path<String>,
) -> ReadResult<Vec<AppView>> {
    let project = caller.project(&server, Action::Read, &name("project", &project)?).await?;
    let list = server.read_at(move |state| {
        let mine = state.all::<App>().filter(|row| row.project == project.id);
        mine.map(|row| views::app(state, row)).collect()
    });
    Ok(list.await?.into())
}

/// Makes an app, or finds the one of that name.
#[utoipa::path(post, path = "/v1/projects/{project}/apps", request_body = Create,
    responses((status = 200, body = AppView)))]
pub(crate) async fn create_app(
    server: State<Server>,
    caller: Caller,
    Path(project): Path<String>,
    Body(create): Body<Create>,
) -> ApiResult<AppView> {
    let name = name("project", &project)?;
    let project = caller.project(&server, Action::Change, &name).await?;
    let id = AppId(server.fresh_id());
    let command = Command::EnsureApp { id, project: project.id, name: create.name.clone() };
    server.apply(command).await?;
    let row = caller.app(&server, Action::Read, (&name, &create.name)).await?;
    Ok(Json(server.read(move |state| views::app(state, &row)).await?))
}

/// An app.
#[utoipa::path(get, path = "/v1/projects/{project}/apps/{app}", responses((status = 200, body = AppView)))]
pub(crate) async fn get_app(
    server: State<Server>,
    caller: Caller,
    path: AppPath,
) -> ApiResult<AppView> {
    let row = app!(server, caller, Action::Read, path);
    Ok(Json(server.read(move |state| views::app(state, &row)).await?))
}

/// Removes an app that runs nothing, and its history.
#[utoipa::path(delete, path = "/v1/projects/{project}/apps/{app}", responses((status = 200)))]
pub(crate) async fn delete_app(
    server: State<Server>,
    caller: Caller,
    path: AppPath,
) -> ApiResult<()> {
    let row = app!(server, caller, Action::Change, path);
    server.apply(Command::DeleteApp(row.id)).await?;
    Ok(Json(()))
}

/// The environment an app is given.
#[utoipa::path(get, path = "/v1/projects/{project}/apps/{app}/config", params(InWorkspace),
    responses((status = 200, body = BTreeMap<String, String>)))]
pub(crate) async fn get_config(
    server: State<Server>,
    caller: Caller,
    path: AppPath,
    Query(query): Query<InWorkspace>,
) -> ApiResult<BTreeMap<String, String>> {
    let row = app!(server, caller, Action::Change, path);
    let workspace = workspace(query.workspace.as_deref())?;
    Ok(Json(row.config.get(&workspace).cloned().unwrap_or_default()))
}

/// Sets or removes environment variables; the next deployment has them.
#[utoipa::path(patch, path = "/v1/projects/{project}/apps/{app}/config", params(InWorkspace),
    request_body = SetConfig, responses((status = 200)))]
pub(crate) async fn set_config(
    server: State<Server>,
    caller: Caller,
    path: AppPath,
    Query(query): Query<InWorkspace>,
    Body(set): Body<SetConfig>,
) -> ApiResult<()> {
    let row = app!(server, caller, Action::Change, path);
    let workspace = workspace(query.workspace.as_deref())?;
    server.apply(Command::SetConfig { app: row.id, workspace, vars: set.vars }).await?;
    Ok(Json(()))
}

/// Sets how many instances of a process are wanted; takes effect at once.
#[utoipa::path(post, path = "/v1/projects/{project}/apps/{app}/scale", params(InWorkspace),
    request_body = Scale, responses((status = 200)))]
pub(crate) async fn scale(
    server: State<Server>,
    caller: Caller,
    path: AppPath,
    Query(query): Query<InWorkspace>,
    Body(scale): Body<Scale>,
) -> ApiResult<()> {
    let row = app!(server, caller, Action::Change, path);
    let workspace = workspace(query.workspace.as_deref())?;
    let Scale { process, instances } = scale;
    server.apply(Command::Scale { app: row.id, workspace, process, instances }).await?;
    Ok(Json(()))
}

/// Ends one instance gracefully; another takes its place. The others do not notice.
#[utoipa::path(post, path = "/v1/projects/{project}/apps/{app}/instances/{instance}/restart",
    params(InWorkspace), responses((status = 200), (status = 404, body = api::http_types::ErrorBody)))]
pub(crate) async fn restart_instance(
    server: State<Server>,
    caller: Caller,
    path: Path<(String, String, String)>,
    Query(query): Query<InWorkspace>,
) -> ApiResult<()> {
    let (project, app, instance) = path.0;
    let app_path = Path((project, app));
    let row = app!(server, caller, Action::Change, app_path);
    let workspace = workspace(query.workspace.as_deref())?;
    let parts = instance.rsplit_once('.');
    let parts = parts.and_then(|(process, index)| Some((process, index.parse::<u32>().ok()?)));
    let Some((process, index)) = parts else {
        return Err(ApiError::invalid(format!("`{instance}` is no instance, as `web.0` is one")));
    };
    let process = name("process", process)?;
    server.apply(Command::RestartInstance { app: row.id, workspace, process, index }).await?;
    Ok(Json(()))
}

/// Everything about an app in one workspace.
#[utoipa::path(get, path = "/v1/projects/{project}/apps/{app}/status", params(InWorkspace),
    responses((status = 200, body = AppStatus)))]
pub(crate) async fn status(
    server: State<Server>,
    caller: Caller,
    path: AppPath,
    Query(query): Query<InWorkspace>,
) -> ReadResult<AppStatus> {
    let row = app!(server, caller, Action::Read, path);
    let workspace = workspace(query.workspace.as_deref())?;
    let (app, place) = (row.clone(), workspace.clone());
    let host = server.read(move |state| state.host_of(&app, &place)).await?;
    let url = host.and_then(|host| server.url_of(host.as_str()));
    let read = move |state: &Control| views::status(state, &row, &workspace, url);
    Ok(server.read_at(read).await?.into())
}

/// The builds of an app, newest first.
#[utoipa::path(get, path = "/v1/projects/{project}/apps/{app}/builds",
    responses((status = 200, body = Vec<BuildView>)))]
pub(crate) async fn list_builds(
    server: State<Server>,
    caller: Caller,
    path: AppPath,
) -> ReadResult<Vec<BuildView>> {
    let row = app!(server, caller, Action::Read, path);
    let list = server
        .read_at(move |state| state.builds_of(row.id).rev().map(|b| views::build(b)).collect());
    Ok(list.await?.into())
}

/// How long a one-off command may take.
const RUN_TIMEOUT_MS: u64 = 3_600_000;

/// Runs one command once, in the released image with the app's environment, without volumes. Follow its output with
/// the task's events.
#[utoipa::path(post, path = "/v1/projects/{project}/apps/{app}/run", params(InWorkspace),
    request_body = RunCommand, responses((status = 200, body = TaskView)))]
pub(crate) async fn run(
    server: State<Server>,
    caller: Caller,
    path: AppPath,
    Query(query): Query<InWorkspace>,
    Body(run): Body<RunCommand>,
) -> ApiResult<TaskView> {
    let row = app!(server, caller, Action::Change, path);
    let place = workspace(query.workspace.as_deref())?;
    let (name, app) = (row.name.clone(), row.id);
    let spec = server.read(move |state| one_off(state, &row, &place, run.argv)).await?;
    let spec = spec.ok_or_else(|| ApiError::not_found("release of app", name))?;
    let id = TaskId(server.fresh_id());
    let command = WorkCommand::RunOnce { id, app, spec: Arc::new(spec) };
    let Reply::Task(task) = server.apply(Command::Work(command)).await? else {
        return Err(ApiError::internal("a task was not answered with the task"));
    };
    Ok(Json(server.read(move |state| views::task(state, &task)).await?))
}

fn one_off(state: &Control, app: &App, place: &Name, argv: Vec<String>) -> Option<TaskSpec> {
    let deployment = state.get::<Deployment>(*app.released.get(place)?)?;
    let process = state.get::<Process>(*deployment.processes.first()?)?;
    let mut spec = TaskSpec::new(Do::run(launched(argv)), RUN_TIMEOUT_MS);
    spec.container = process.spec.container.clone();
    // They have one writer, which is the instance they belong to.
    spec.container.volumes.clear();
    Some(spec)
}
