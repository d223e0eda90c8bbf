//! Who is calling, and the JSON they send.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{self, FromRequest, FromRequestParts, Request};
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use model::{Name, ProjectId, Role, TokenId};
use serde::de::DeserializeOwned;
use server::{Action, Principal, Server, TokenFault, allows};
use state::{App, Project, State};

use super::ApiError;
use crate::near::near;

/// A caller whose token was verified. No handler runs without one.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    principal: Principal,
}

impl FromRequestParts<Server> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, server: &Server) -> Result<Self, ApiError> {
        let bearer =
            bearer(&parts.headers).ok_or_else(|| ApiError::unauthorized(TokenFault::Missing))?;
        let principal = server.authenticate(bearer).await?;
        let caller = Self { principal: principal.map_err(ApiError::unauthorized)? };
        // The body is read for some callers only.
        parts.extensions.insert(caller);
        Ok(caller)
    }
}

/// The token that a request bears, as it is written.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

impl Caller {
    /// The caller's role.
    pub const fn role(&self) -> Role {
        self.principal.role
    }

    /// Who the caller is.
    pub(super) const fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The token the caller bears.
    pub const fn token(&self) -> TokenId {
        self.principal.token
    }

    /// The one project the caller is limited to.
    pub const fn limited_to(&self) -> Option<ProjectId> {
        self.principal.project
    }

    /// Whether the caller may do `action` on `project`.
    pub fn can(&self, action: Action, project: Option<ProjectId>) -> bool {
        allows(&self.principal, action, project)
    }

    /// Refuses unless the caller may do `action` on the installation as a whole.
    pub fn require(&self, action: Action) -> Result<(), ApiError> {
        if self.can(action, None) { Ok(()) } else { Err(self.forbidden(action)) }
    }

    fn forbidden(&self, action: Action) -> ApiError {
        let role = self.role().name();
        let scope = if self.limited_to().is_some() { " limited to one project" } else { "" };
        let doing = match action {
            Action::Read => "look at this",
            Action::Change => "change apps",
            Action::Administer => "administer the server",
            Action::Work => "do the work of a job",
            Action::Bytes => "read or write blobs",
            Action::Runner | Action::Cell | Action::Router => "open this stream",
        };
        ApiError::forbidden(format!("a {role} token{scope} may not {doing}"))
    }

    /// Refuses unless the caller may do `action` on the project. To somebody who may not even look
    /// at it, it does not exist.
    pub fn require_on(
        &self,
        action: Action,
        project: ProjectId,
        not_found: impl FnOnce() -> ApiError,
    ) -> Result<(), ApiError> {
        if self.can(action, Some(project)) {
            Ok(())
        } else if self.can(Action::Read, Some(project)) {
            Err(self.forbidden(action))
        } else {
            Err(not_found())
        }
    }

    /// The project of this name, if the caller may do `action` on it.
    pub async fn project(
        &self,
        server: &Server,
        action: Action,
        name: &Name,
    ) -> Result<Arc<Project>, ApiError> {
        let (wanted, caller) = (name.clone(), *self);
        let look = move |state: &State| {
            let row = state.project_named(&wanted).cloned();
            let row = row.filter(|row| caller.can(Action::Read, Some(row.id)));
            // Only what the caller may look at is offered.
            row.ok_or_else(|| {
                let all = state.all::<Project>();
                let own = all.filter(|row| caller.can(Action::Read, Some(row.id)));
                near(wanted.as_str(), own.map(|row| row.name.as_str()))
            })
        };
        let missing = |near| ApiError::not_found("project", name).meant(near);
        let row = server.read(look).await?.map_err(missing)?;
        self.require_on(action, row.id, || missing(None))?;
        Ok(row)
    }

    /// The app of this name, if the caller may do `action` on its project.
    pub async fn app(
        &self,
        server: &Server,
        action: Action,
        (project, app): (&Name, &Name),
    ) -> Result<Arc<App>, ApiError> {
        let row = self.project(server, action, project).await?;
        let wanted = app.clone();
        let look = move |state: &State| {
            state.app_named(row.id, &wanted).cloned().ok_or_else(|| {
                let own = state.all::<App>().filter(|app| app.project == row.id);
                near(wanted.as_str(), own.map(|app| app.name.as_str()))
            })
        };
        let name = || format!("{app} in project {project}");
        server.read(look).await?.map_err(|near| ApiError::not_found("app", name()).meant(near))
    }
}

/// Somebody who may see the server's metrics: with a token, unless the operator shows them to all.
#[derive(Debug)]
pub(super) struct Scraper;

impl FromRequestParts<Server> for Scraper {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, server: &Server) -> Result<Self, ApiError> {
        if !server.metrics_open() {
            Caller::from_request_parts(parts, server).await?.require(Action::Read)?;
        }
        Ok(Self)
    }
}

/// What is wrong, without what axum says in front of it.
fn reason_of(text: &str) -> &str {
    let told = text.strip_prefix("Failed to ").and_then(|text| text.split_once(": "));
    told.map_or(text, |(_, reason)| reason)
}

/// How long a caller may take to send a JSON body: [`api::MAX_JSON_BODY`] at 150 KB a second.
const JSON_BODY_LIMIT: Duration = Duration::from_secs(30);

/// A JSON body; what is wrong with it is said in our words. It is read only for callers who may do
/// something that has one.
#[derive(Debug)]
pub(super) struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Server> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, server: &Server) -> Result<Self, ApiError> {
        let caller = match request.extensions().get::<Caller>() {
            Some(caller) => *caller,
            None => return Err(ApiError::unauthorized(TokenFault::Missing)),
        };
        let sends = [Action::Change, Action::Administer, Action::Work];
        if !sends.into_iter().any(|action| caller.can(action, caller.limited_to())) {
            return Err(caller.forbidden(Action::Change));
        }
        read_json(request, server, JSON_BODY_LIMIT).await.map(Self)
    }
}

async fn read_json<T: DeserializeOwned, S: Send + Sync>(
    request: Request,
    state: &S,
    limit: Duration,
) -> Result<T, ApiError> {
    let Some(read) = runtime::timeout(limit, Json::<T>::from_request(request, state)).await else {
        let message = format!("the JSON body did not come within {} s", limit.as_secs());
        let hint = "nothing was changed: send it faster";
        return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "invalid", message, hint));
    };
    let Json(body) = read.map_err(|error| {
        let text = error.body_text();
        let reason = reason_of(&text);
        if reason.contains("recursion limit") {
            // It reads as JSON, so this is no matter of syntax.
            return ApiError::invalid("the JSON body nests deeper than anything it may hold");
        }
        ApiError::unreadable("JSON body", error.status(), reason)
    })?;
    Ok(body)
}

/// What a query says; what is wrong with it is said in our words.
#[derive(Debug)]
pub(super) struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Server> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, server: &Server) -> Result<Self, ApiError> {
        let query = extract::Query::<T>::from_request_parts(parts, server).await;
        let extract::Query(found) = query.map_err(|error| {
            let text = error.body_text();
            let reason = reason_of(&text);
            ApiError::unreadable("query", error.status(), reason)
        })?;
        Ok(Self(found))
    }
}

/// What a path says; what is wrong with it is said in our words.
#[derive(Debug)]
pub(super) struct Path<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Server> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, server: &Server) -> Result<Self, ApiError> {
        let path = extract::Path::<T>::from_request_parts(parts, server).await;
        let extract::Path(found) =
            path.map_err(|error| ApiError::unreadable("path", error.status(), &error.body_text()))?;
        Ok(Self(found))
    }
}

/// A name in a path.
pub(super) fn name(what: &'static str, text: &str) -> Result<Name, ApiError> {
    Name::parse(what, text).map_err(ApiError::invalid)
}

/// A workspace from a query; production when absent.
pub(super) fn workspace(text: Option<&str>) -> Result<Name, ApiError> {
    name("workspace", text.unwrap_or(state::PRODUCTION))
}

/// An identifier in a path.
pub(super) fn id<T: std::str::FromStr<Err = model::IdError>>(text: &str) -> Result<T, ApiError> {
    text.parse().map_err(ApiError::invalid)
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;

    use super::*;

    #[tokio::test]
    async fn a_json_body_that_does_not_come_is_not_waited_for() {
        let never = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
        let request = http::Request::post("/").header("content-type", "application/json");
        let request = request.body(axum::body::Body::from_stream(never)).expect("a request");
        let read = read_json::<String, ()>(request, &(), Duration::from_millis(20)).await;
        let status = read.expect_err("nothing came").into_response().status();
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
    }
}
