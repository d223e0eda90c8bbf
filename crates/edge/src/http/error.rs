//! Errors as people and scripts see them: a status, a kind, a sentence and what to do.

use api::http_types::ErrorBody;
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, Uri};
use server::ApplyError;
use state::Refusal;
use store::blobs::BlobError;

/// An error on its way to the caller.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    /// An error from its parts.
    pub fn new(status: StatusCode, kind: &str, message: String, hint: &str) -> Self {
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        Self { status, body: ErrorBody { kind: kind.to_owned(), message, hint } }
    }

    /// There is no such thing, or the caller may not know of it.
    pub fn not_found(what: &str, name: impl std::fmt::Display) -> Self {
        let message = format!("there is no {what} {name}");
        let hint = match what {
            "project" => {
                "list projects with `shore project list`, make one with `shore project create`"
            }
            "app" => "list apps with `shore app list`",
            "job" => "list jobs with `shore job list`",
            _ => "check the name",
        };
        Self::new(StatusCode::NOT_FOUND, "not_found", message, hint)
    }

    /// The request makes no sense.
    pub fn invalid(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message.to_string(), "")
    }

    /// The caller is known, but may not do this.
    pub fn forbidden(message: String) -> Self {
        let hint = "use a token with another role or scope: `shore token create`";
        Self::new(StatusCode::FORBIDDEN, "forbidden", message, hint)
    }

    /// The caller is not known.
    pub fn unauthorized() -> Self {
        let message = "a valid token is needed: it is missing, unknown, expired or revoked";
        let hint = "log in with `shore context set NAME --server URL --token TOKEN`";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message.to_owned(), hint)
    }

    /// Something of ours broke.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        let hint = "look at the server's log";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message.to_string(), hint)
    }
}

impl From<ApplyError> for ApiError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Unavailable(reason) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                format!("the server cannot write now: {reason}"),
                "nothing was changed for certain: look at the state, then try again",
            ),
            ApplyError::Refused(refusal) => Self::from(refusal),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::NotFound { what, name } => Self::not_found(what, name),
            Refusal::Conflict(_) | Refusal::Transition(_) => {
                Self::new(StatusCode::CONFLICT, "conflict", message, "")
            }
            Refusal::Stale { .. } => Self::new(StatusCode::CONFLICT, "stale", message, ""),
            Refusal::Invalid(_) => Self::invalid(message),
        }
    }
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> Self {
        let (status, kind) = match &error {
            BlobError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            BlobError::LowSpace { .. } | BlobError::Full { .. } => {
                (StatusCode::INSUFFICIENT_STORAGE, "unavailable")
            }
            BlobError::Mismatch { .. } | BlobError::Source { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, "invalid")
            }
            BlobError::Missing { .. } => (StatusCode::NOT_FOUND, "not_found"),
            BlobError::Damaged { .. } | BlobError::Io { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal")
            }
        };
        Self::new(status, kind, error.to_string(), error.hint())
    }
}

impl From<logbuf::LogError> for ApiError {
    fn from(error: logbuf::LogError) -> Self {
        Self::internal(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::warn!(status = %self.status, message = self.body.message, "a call failed");
        }
        (self.status, Json(self.body)).into_response()
    }
}

/// Any path the API does not have.
pub(crate) async fn no_such_path(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    let hint = "see the OpenAPI document for what there is";
    ApiError::new(StatusCode::NOT_FOUND, "not_found", format!("there is no path {path}"), hint)
}
