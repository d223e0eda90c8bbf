//! Blobs: source archives, image layers, caches. Streams both ways.

use api::http_types::BlobStored;
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use http::{HeaderValue, header};
use model::Digest;
use server::{Action, Server};
use store::blobs::{BlobError, Stored, Upload};
use tokio_util::io::ReaderStream;

use super::caller::Caller;
use super::{ApiError, ApiResult};

/// Bytes read from a blob at once.
const CHUNK: usize = 64 * 1024;

async fn receive(mut upload: Upload, body: Body) -> Result<Upload, ApiError> {
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| BlobError::Source { detail: error.to_string() })?;
        upload.write(&chunk).await?;
    }
    Ok(upload)
}

fn digest(text: &str) -> Result<Digest, ApiError> {
    text.parse().map_err(ApiError::invalid)
}

fn stored(blob: Stored) -> BlobStored {
    BlobStored { digest: Digest(blob.digest), bytes: blob.len }
}

/// Stores bytes; the answer names them.
#[utoipa::path(post, path = "/v1/blobs", request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = BlobStored), (status = 413, body = api::http_types::ErrorBody)))]
pub(crate) async fn create_blob(
    server: State<Server>,
    caller: Caller,
    body: Body,
) -> ApiResult<BlobStored> {
    caller.require(Action::Bytes)?;
    let upload = receive(server.blobs().begin().await?, body).await?;
    Ok(Json(stored(upload.finish().await?)))
}

/// Stores bytes under their digest; other bytes are refused.
#[utoipa::path(put, path = "/v1/blobs/{digest}", request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = BlobStored)))]
pub(crate) async fn put_blob(
    server: State<Server>,
    caller: Caller,
    Path(name): Path<String>,
    body: Body,
) -> ApiResult<BlobStored> {
    caller.require(Action::Bytes)?;
    let expected = digest(&name)?;
    let upload = receive(server.blobs().begin().await?, body).await?;
    Ok(Json(stored(upload.finish_as(expected.0).await?)))
}

/// Reads a blob. The connection breaks when its bytes turn out to be damaged.
#[utoipa::path(get, path = "/v1/blobs/{digest}",
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream")))]
pub(crate) async fn get_blob(
    server: State<Server>,
    caller: Caller,
    method: http::Method,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    caller.require(Action::Bytes)?;
    let digest = digest(&name)?;
    let len = server.blobs().len(digest.0).await?;
    let len = len.ok_or_else(|| ApiError::not_found("blob", digest))?;
    let body = if method == http::Method::HEAD {
        Body::empty()
    } else {
        let reader = server.blobs().get(digest.0).await?;
        Body::from_stream(ReaderStream::with_capacity(reader, CHUNK))
    };
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Ok(response)
}
