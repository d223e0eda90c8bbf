//! What the server counts, for Prometheus.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::CONTENT_TYPE;
use server::Server;

use super::ApiError;
use super::caller::Scraper;

/// How Prometheus wants it.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

type Page = ([(http::HeaderName, &'static str); 1], String);

/// Numbers of this server as Prometheus text. Wants a token that may look at the installation, unless
/// the server was started with `--metrics-open`.
#[utoipa::path(get, path = "/metrics",
    responses((status = 200, content_type = "text/plain", body = String)))]
pub(crate) async fn metrics(server: State<Server>, _: Scraper) -> Result<Page, ApiError> {
    let metrics = server.metrics().await?;
    Ok(([(CONTENT_TYPE, TEXT)], metrics.text()))
}

/// Counts every request, and how long it took until its answer began.
pub(super) async fn measure(server: State<Server>, request: Request, next: Next) -> Response {
    let began = runtime::mono_now();
    let answer = next.run(request).await;
    server.count_request(answer.status().as_u16(), began.elapsed());
    answer
}
