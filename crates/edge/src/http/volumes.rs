//! Volumes of a project: what there is, and giving them up.

use std::sync::Arc;

use api::http_types::{ErrorBody, VolumeView};
use axum::Json;
use axum::extract::State;
use model::{Name, VolumeId};
use serde::Deserialize;
use server::{Action, Server, views};
use state::{Command, Volume};

use super::caller::{Caller, Path, Query, id, name};
use super::{ApiError, ApiResult, ReadResult};

/// How to give a volume up.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(crate) struct Removal {
    /// Although an instance uses it or waits for it, which begins anew with an empty one; or, when it
    /// is to be deleted already, although its cell is not connected to do it.
    force: Option<bool>,
}

/// The volumes of a project, also those that nothing uses any more.
#[utoipa::path(get, path = "/v1/projects/{project}/volumes",
    responses((status = 200, body = Vec<VolumeView>)))]
pub(crate) async fn list_volumes(
    server: State<Server>,
    caller: Caller,
    Path(project): Path<String>,
) -> ReadResult<Vec<VolumeView>> {
    let project = caller.project(&server, Action::Read, &name("project", &project)?).await?;
    let list = server.read_at(move |state| {
        let own = state.all::<Volume>().filter(|row| row.project == project.id);
        own.map(|row| views::volume(state, row)).collect()
    });
    Ok(list.await?.into())
}

/// The volume of this id, if the caller may do `action` on its project.
async fn volume(
    server: &Server,
    caller: Caller,
    action: Action,
    (project, text): (&Name, &str),
) -> Result<Arc<Volume>, ApiError> {
    let wanted: VolumeId = id(text)?;
    let project = caller.project(server, action, project).await?;
    let row = server.read(move |state| state.get::<Volume>(wanted).cloned()).await?;
    let row = row.filter(|row| row.project == project.id);
    row.ok_or_else(|| ApiError::not_found("volume", wanted))
}

/// A volume.
#[utoipa::path(get, path = "/v1/projects/{project}/volumes/{volume}",
    responses((status = 200, body = VolumeView)))]
pub(crate) async fn get_volume(
    server: State<Server>,
    caller: Caller,
    Path((project, text)): Path<(String, String)>,
) -> ApiResult<VolumeView> {
    let project = name("project", &project)?;
    let row = volume(&server, caller, Action::Read, (&project, &text)).await?;
    Ok(Json(server.read(move |state| views::volume(state, &row)).await?))
}

/// Gives a volume up: its cell deletes it, with everything in it. Refused while an instance uses it
/// or waits for it, unless forced.
#[utoipa::path(delete, path = "/v1/projects/{project}/volumes/{volume}", params(Removal),
    responses((status = 200), (status = 409, description = "it is in use", body = ErrorBody)))]
pub(crate) async fn remove_volume(
    server: State<Server>,
    caller: Caller,
    Path((project, text)): Path<(String, String)>,
    Query(removal): Query<Removal>,
) -> ApiResult<()> {
    let project = name("project", &project)?;
    let id = volume(&server, caller, Action::Change, (&project, &text)).await?.id;
    let force = removal.force.unwrap_or(false);
    server.apply(Command::RemoveVolume { id, force }).await?;
    Ok(Json(()))
}
