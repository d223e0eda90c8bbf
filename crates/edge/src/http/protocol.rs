//! Whether client and server speak a common protocol, before anything else is looked at.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, StatusCode};
use model::{PROTOCOL, ProtocolRange, negotiate};

use super::ApiError;

/// Refuses a client that says it speaks other protocols, and says in every answer what is spoken
/// here.
pub(super) async fn agree(request: Request, next: Next) -> Response {
    let mut response = match check(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    if let Ok(ours) = HeaderValue::try_from(PROTOCOL.to_string()) {
        response.headers_mut().insert(api::PROTOCOL_HEADER, ours);
    }
    response
}

fn check(request: &Request) -> Result<(), ApiError> {
    let Some(header) = request.headers().get(api::PROTOCOL_HEADER) else { return Ok(()) };
    let client = header.to_str().unwrap_or_default().parse::<ProtocolRange>();
    let client = client.map_err(|reason| {
        ApiError::unreadable(api::PROTOCOL_HEADER, StatusCode::BAD_REQUEST, &reason)
    })?;
    negotiate(client, PROTOCOL).map(|_| ()).map_err(|mismatch| {
        let hint = format!("the server has version {}: use that of the client too", api::VERSION);
        let message = mismatch.to_string();
        ApiError::new(StatusCode::UPGRADE_REQUIRED, "version", message, &hint)
    })
}
