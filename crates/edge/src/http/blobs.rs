//! Blobs: source archives, image layers, caches. Streams both ways.

use std::time::Duration;

use api::http_types::BlobStored;
use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, header};
use model::Digest;
use server::{Action, Server};
use server::{BlobError, Stored, Upload};
use tokio_util::io::ReaderStream;

use super::caller::{Caller, Path};
use super::{ApiError, ApiResult};

/// Bytes read from a blob at once.
const CHUNK: usize = 64 * 1024;

/// How long what a client still sends after a refusal is read. A connection that is closed while the
/// client sends would lose the answer.
const LINGER: Duration = Duration::from_secs(2);

/// How long a client that sends a blob may send nothing.
const BLOB_IDLE_LIMIT: Duration = Duration::from_mins(1);

/// Takes a body. One that is too large is refused by its announced length, else as soon as too many
/// bytes came; nothing of it stays.
async fn receive(server: &Server, headers: &HeaderMap, body: Body) -> Result<Upload, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|len| len.to_str().ok()?.parse().ok()).unwrap_or(0);
    let mut chunks = body.into_data_stream();
    let upload = match server.blobs().begin_announced(announced).await {
        Ok(upload) => fill(upload, &mut chunks).await,
        // The client waits for leave to send: there is nothing to read.
        Err(error) if headers.contains_key(header::EXPECT) => return Err(error.into()),
        Err(error) => Err(error),
    };
    upload.map_err(|error| {
        server.tasks().spawn_ok("refused-upload", async move {
            let rest = async { while let Some(Ok(_)) = chunks.next().await {} };
            runtime::timeout(LINGER, rest).await.unwrap_or(());
        });
        ApiError::from(error)
    })
}

async fn fill(mut upload: Upload, chunks: &mut BodyDataStream) -> Result<Upload, BlobError> {
    while let Some(chunk) = next(chunks, BLOB_IDLE_LIMIT).await? {
        upload.write(&chunk).await?;
    }
    Ok(upload)
}

/// The next bytes of a body; none at its end.
async fn next(chunks: &mut BodyDataStream, idle: Duration) -> Result<Option<Bytes>, BlobError> {
    let Some(chunk) = runtime::timeout(idle, chunks.next()).await else {
        let detail = format!("nothing came for {} s", idle.as_secs());
        return Err(BlobError::Source { detail });
    };
    chunk.transpose().map_err(|error| BlobError::Source { detail: error.to_string() })
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
    headers: HeaderMap,
    body: Body,
) -> ApiResult<BlobStored> {
    caller.require(Action::Bytes)?;
    let upload = receive(&server, &headers, body).await?;
    Ok(Json(stored(upload.finish().await?)))
}

/// Stores bytes under their digest; other bytes are refused.
#[utoipa::path(put, path = "/v1/blobs/{digest}", request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = BlobStored)))]
pub(crate) async fn put_blob(
    server: State<Server>,
    caller: Caller,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<BlobStored> {
    caller.require(Action::Bytes)?;
    let expected = digest(&name)?;
    let upload = receive(&server, &headers, body).await?;
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
    bytes(&server, digest, &method).await
}

/// A blob as an answer.
pub(super) async fn bytes(
    server: &Server,
    digest: Digest,
    method: &http::Method,
) -> Result<Response, ApiError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_blob_of_which_nothing_comes_is_not_waited_for() {
        let begun = futures_util::stream::iter([Ok::<_, std::io::Error>("begun")]);
        let body = Body::from_stream(begun.chain(futures_util::stream::pending()));
        let (mut chunks, idle) = (body.into_data_stream(), Duration::from_millis(20));
        let first = next(&mut chunks, idle).await.expect("it came").expect("bytes");
        assert_eq!(first, "begun");
        let then = next(&mut chunks, idle).await;
        assert!(matches!(then, Err(BlobError::Source { .. })), "{then:?}");
    }
}
