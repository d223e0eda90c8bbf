//! Errors as people and scripts see them: a status, a kind, a sentence and what to do.

use api::http_types::ErrorBody;
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode, Uri};
use server::BlobError;
use server::{ApplyError, ServerError, TokenFault};
use state::Refusal;

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

    /// Its sentence and its hint.
    #[cfg(test)]
    pub(crate) fn words(&self) -> (&str, &str) {
        (&self.body.message, self.body.hint.as_deref().unwrap_or_default())
    }

    /// There is no such thing, or the caller may not know of it.
    pub fn not_found(what: &str, name: impl std::fmt::Display) -> Self {
        let message = format!("there is no {what} {name}");
        let hint = match what {
            "project" => {
                "list projects with `shore project list`, make one with `shore project create`"
            }
            "app" => "list apps with `shore app list`; `shore up` or a push makes one",
            "job" => "list jobs with `shore job list`",
            "token" => "list tokens with `shore token list`",
            "key" => "list keys with `shore key list`",
            "deployment" => "list deployments with `shore status --all`",
            "process" => "list processes with `shore status`",
            "source archive" => "upload it first: PUT /v1/blobs/DIGEST",
            _ => "check the name",
        };
        Self::new(StatusCode::NOT_FOUND, "not_found", message, hint)
    }

    /// The same with a name that was probably meant.
    #[must_use]
    pub fn meant(mut self, near: Option<String>) -> Self {
        if let Some(near) = near {
            let rest = self.body.hint.take().unwrap_or_default();
            self.body.hint = Some(format!("did you mean `{near}`? Otherwise {rest}"));
        }
        self
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

    /// The caller's token lets nobody in.
    pub fn unauthorized(fault: TokenFault) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", fault.to_string(), fault.hint())
    }

    /// Part of a request that cannot be read.
    pub(crate) fn unreadable(what: &str, status: StatusCode, reason: &str) -> Self {
        let message = format!("the {what} cannot be read: {reason}");
        Self::new(status, "invalid", message, "see the OpenAPI document for what is wanted")
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

impl From<ServerError> for ApiError {
    fn from(error: ServerError) -> Self {
        match error {
            ServerError::Apply(error) => Self::from(error),
            ServerError::Store(_) | ServerError::Unreadable { .. } => Self::internal(error),
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
        match error {
            logbuf::LogError::TooManyFollowed { .. } => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                error.to_string(),
                "stop following others, or try again in a moment",
            ),
            other => Self::internal(other),
        }
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

/// A path the API has, with a method it has not.
pub(crate) async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    let message = format!("{method} cannot be done on {path}");
    let hint = "see the OpenAPI document for what there is";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid", message, hint)
}

/// Any path the API does not have.
pub(crate) async fn no_such_path(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    let hint = "see the OpenAPI document for what there is";
    ApiError::new(StatusCode::NOT_FOUND, "not_found", format!("there is no path {path}"), hint)
}
