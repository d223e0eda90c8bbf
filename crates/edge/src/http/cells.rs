//! Cells: what there is, and emptying them.

use std::sync::Arc;
use std::time::Duration;

use api::http_types::{CellView, DrainCell, ErrorBody};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use model::CellId;
use server::{Action, Server, views};
use state::{Cell, CellCommand, Command, DRAIN_TIMEOUT};

use super::caller::{Body, Caller, Path};
use super::{ApiError, ApiResult, ReadResult};
use crate::near::near;

/// Every cell.
#[utoipa::path(get, path = "/v1/cells", responses((status = 200, body = Vec<CellView>)))]
pub(crate) async fn list_cells(server: State<Server>, caller: Caller) -> ReadResult<Vec<CellView>> {
    caller.require(Action::Read)?;
    let list = server.read_at(|state| {
        state.all::<Cell>().map(|row| views::cell(state, row)).collect::<Vec<_>>()
    });
    Ok(list.await?.into())
}

/// A cell, by name or id.
#[utoipa::path(get, path = "/v1/cells/{cell}", responses((status = 200, body = CellView),
    (status = 409, description = "several cells have this name", body = ErrorBody)))]
pub(crate) async fn get_cell(
    server: State<Server>,
    caller: Caller,
    Path(cell): Path<String>,
) -> ApiResult<CellView> {
    caller.require(Action::Read)?;
    let row = find(&server, &cell).await?;
    Ok(Json(server.read(move |state| views::cell(state, &row)).await?))
}

/// Empties a cell: it takes nothing new, and what serves there serves until another copy does.
#[utoipa::path(post, path = "/v1/cells/{cell}/drain", request_body = DrainCell,
    responses((status = 200, body = CellView)))]
pub(crate) async fn drain_cell(
    server: State<Server>,
    caller: Caller,
    Path(cell): Path<String>,
    Body(drain): Body<DrainCell>,
) -> ApiResult<CellView> {
    caller.require(Action::Administer)?;
    let id = find(&server, &cell).await?.id;
    let timeout = drain.timeout_ms.map_or(DRAIN_TIMEOUT, Duration::from_millis);
    server.apply(Command::Cell(CellCommand::Drain { id, timeout })).await?;
    let view = server.read(move |state| state.get(id).map(|row| views::cell(state, row))).await?;
    view.map(Json).ok_or_else(|| ApiError::not_found("cell", id))
}

/// Lets a cell take work again. What has not moved yet goes on where it is.
#[utoipa::path(delete, path = "/v1/cells/{cell}/drain", responses((status = 200),
    (status = 409, description = "it is shutting down", body = ErrorBody)))]
pub(crate) async fn undrain_cell(
    server: State<Server>,
    caller: Caller,
    Path(cell): Path<String>,
) -> ApiResult<()> {
    caller.require(Action::Administer)?;
    let id = find(&server, &cell).await?.id;
    server.apply(Command::Cell(CellCommand::Undrain(id))).await?;
    Ok(Json(()))
}

/// The cell of this id or name. Of several with one name the connected one is meant.
async fn find(server: &Server, text: &str) -> Result<Arc<Cell>, ApiError> {
    let wanted = text.to_owned();
    let look = move |state: &state::State| {
        if let Some(row) = wanted.parse::<CellId>().ok().and_then(|id| state.get::<Cell>(id)) {
            return Ok(row.clone());
        }
        let named = || state.all::<Cell>().filter(|row| row.spec.name.as_str() == wanted);
        let online: Vec<_> = named().filter(|row| row.lease_until.is_some()).collect();
        let found = if online.is_empty() { named().collect() } else { online };
        match found.as_slice() {
            [one] => Ok(Arc::clone(one)),
            [] => {
                let known = state.all::<Cell>().map(|row| row.spec.name.as_str());
                Err(ApiError::not_found("cell", &wanted).meant(near(&wanted, known)))
            }
            several => {
                let ids: Vec<String> = several.iter().map(|row| row.id.to_string()).collect();
                let message = format!("{} cells are called {wanted}", several.len());
                let hint = format!("name one by its id: {}", ids.join(", "));
                Err(ApiError::new(StatusCode::CONFLICT, "conflict", message, &hint))
            }
        }
    };
    server.read(look).await?
}
