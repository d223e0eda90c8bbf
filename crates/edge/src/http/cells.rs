//! Cells: what there is, and emptying them.

use std::sync::Arc;
use std::time::Duration;

use api::http_types::{CellView, DrainCell, ErrorBody};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use model::CellId;
use server::{Action, Server, views};
use state::{Cell, CellCommand, Command, DRAIN_TIMEOUT, State as Control};

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

/// The cell of this id or name.
async fn find(server: &Server, text: &str) -> Result<Arc<Cell>, ApiError> {
    let wanted = text.to_owned();
    server.read(move |state| called(state, &wanted)).await?
}

/// Several with one name are an error, also when one of them is away: what is drained must be what
/// was meant.
fn called(state: &Control, wanted: &str) -> Result<Arc<Cell>, ApiError> {
    if let Some(row) = wanted.parse::<CellId>().ok().and_then(|id| state.get::<Cell>(id)) {
        return Ok(row.clone());
    }
    let named = state.all::<Cell>().filter(|row| row.spec.name.as_str() == wanted);
    match named.collect::<Vec<_>>().as_slice() {
        [one] => Ok(Arc::clone(one)),
        [] => {
            let known = state.all::<Cell>().map(|row| row.spec.name.as_str());
            Err(ApiError::not_found("cell", wanted).meant(near(wanted, known)))
        }
        several => {
            let told = |row: &&Arc<Cell>| match row.lease_until {
                Some(_) => row.id.to_string(),
                None => format!("{} (away)", row.id),
            };
            let ids: Vec<String> = several.iter().map(told).collect();
            let message = format!("{} cells are called {wanted}", several.len());
            let hint = format!("name one by its id: {}", ids.join(", "));
            Err(ApiError::new(StatusCode::CONFLICT, "conflict", message, &hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use model::{CellSpec, Time};
    use state::CELL_LEASE;

    use super::*;

    #[test]
    fn a_name_of_several_cells_is_nobodys() {
        let mut state = Control::new("localhost");
        let spec = |name: &str| -> CellSpec {
            let spec = serde_json::json!({
                "name": name, "zone": "a", "drivers": [], "memory_mb": 1, "disk_mb": 1,
                "containers": 1
            });
            serde_json::from_value(spec).expect("a spec")
        };
        let mut online = |id, name, now| {
            let (id, spec) = (CellId(id), spec(name));
            let command = CellCommand::Online { id, spec, holds: Vec::new(), token: None };
            state.apply(now, Command::Cell(command)).expect("it joins");
        };
        let later = Time(0).after(CELL_LEASE * 2);
        online(1, "one", Time(0));
        online(2, "two", later);
        online(3, "one", later);
        state.apply(later, Command::Tick).expect("time passes");
        assert!(state.get::<Cell>(CellId(1)).is_some_and(|row| row.lease_until.is_none()));
        let id =
            |wanted: &str| called(&state, wanted).map(|row| row.id).map_err(|error| told(&error));
        let told = format!("2 cells are called one: {} (away), {}", CellId(1), CellId(3));
        assert_eq!(id("one"), Err(told));
        assert_eq!(id("two"), Ok(CellId(2)));
        assert_eq!(id(&CellId(1).to_string()), Ok(CellId(1)));
        assert!(id("three").is_err());
    }

    /// The message, and the ids of the hint.
    fn told(error: &ApiError) -> String {
        let (message, hint) = error.words();
        format!("{message}: {}", hint.replace("name one by its id: ", ""))
    }
}
