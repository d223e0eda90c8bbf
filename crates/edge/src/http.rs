//! The HTTP API: routes and their OpenAPI description come from one place.

mod access;
mod apps;
mod blobs;
mod caller;
mod cells;
mod error;
mod events;
mod jobs;
mod metrics;
mod protocol;
mod sessions;
mod tasks;
mod volumes;
mod watch;
mod work;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use server::Server;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use caller::Caller;
pub(crate) use caller::bearer;
pub use error::ApiError;

/// What a handler gives back.
pub type ApiResult<T> = Result<axum::Json<T>, ApiError>;

/// What was read, with the revision at which it was.
#[derive(Debug)]
pub struct At<T>(u64, T);

impl<T: serde::Serialize> axum::response::IntoResponse for At<T> {
    fn into_response(self) -> axum::response::Response {
        let header = [(api::REVISION_HEADER, self.0.to_string())];
        (header, axum::Json(self.1)).into_response()
    }
}

impl<T> From<(u64, T)> for At<T> {
    fn from((revision, read): (u64, T)) -> Self {
        Self(revision, read)
    }
}

/// What a handler that reads gives back.
pub type ReadResult<T> = Result<At<T>, ApiError>;

#[derive(OpenApi)]
#[openapi(info(
    title = "Longshore",
    description = "Everything the command line does, a script can do with these calls. Send \
                   `Authorization: Bearer <token>` with each. Times are Unix milliseconds."
))]
struct Document;

fn described() -> OpenApiRouter<Server> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(access::info))
        .routes(routes!(access::list_projects, access::create_project))
        .routes(routes!(access::get_project, access::delete_project))
        .routes(routes!(access::list_tokens, access::create_token))
        .routes(routes!(access::revoke_token))
        .routes(routes!(access::list_keys, access::add_key))
        .routes(routes!(access::remove_key))
        .routes(routes!(cells::list_cells))
        .routes(routes!(cells::get_cell))
        .routes(routes!(cells::drain_cell, cells::undrain_cell))
        .routes(routes!(access::list_runners))
        .routes(routes!(apps::list_apps, apps::create_app))
        .routes(routes!(apps::get_app, apps::delete_app))
        .routes(routes!(apps::get_config, apps::set_config))
        .routes(routes!(apps::scale))
        .routes(routes!(apps::restart_instance))
        .routes(routes!(apps::run))
        .routes(routes!(sessions::exec))
        .routes(routes!(sessions::audit))
        .routes(routes!(apps::status))
        .routes(routes!(apps::list_builds))
        .routes(routes!(volumes::list_volumes))
        .routes(routes!(volumes::get_volume, volumes::remove_volume))
        .routes(routes!(events::app_logs))
        .routes(routes!(jobs::queue_job, jobs::list_jobs))
        .routes(routes!(jobs::get_job))
        .routes(routes!(jobs::cancel_job))
        .routes(routes!(events::job_events))
        .routes(routes!(events::deployment_logs))
        .routes(routes!(blobs::create_blob))
        .routes(routes!(blobs::get_blob, blobs::put_blob))
        .routes(routes!(work::create_task, tasks::list_tasks))
        .routes(routes!(tasks::new_task))
        .routes(routes!(work::get_task, tasks::delete_task))
        .routes(routes!(tasks::callback_secret, tasks::rotate_callback_secret))
        .routes(routes!(work::cancel_task))
        .routes(routes!(tasks::task_result))
        .routes(routes!(events::task_events))
        .routes(routes!(watch::watch))
        .routes(routes!(metrics::metrics))
        .routes(routes!(work::record_build))
        .routes(routes!(work::start_deployment))
        .routes(routes!(work::restart_deployment))
        .routes(routes!(work::get_deployment))
        .routes(routes!(work::release))
        .routes(routes!(work::destroy))
}

/// The API and the component streams as an axum router.
pub fn router(server: Server) -> Router {
    let (router, _) = described().split_for_parts();
    router
        .route_service(api::proto::COMPONENTS_PATH, server.components())
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(DefaultBodyLimit::max(api::MAX_JSON_BODY))
        .layer(axum::middleware::from_fn(protocol::agree))
        .layer(axum::middleware::from_fn_with_state(server.clone(), metrics::measure))
        .with_state(server)
}

/// The OpenAPI 3.1 document, as it is checked in.
pub fn openapi() -> String {
    let (_, document) = described().split_for_parts();
    // A document made by derive macros always renders.
    document.to_pretty_json().unwrap_or_default() + "\n"
}
