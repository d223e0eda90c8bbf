//! Every change as it happens: one stream that can be gone on with where it was cut.

use std::collections::BTreeSet;
use std::time::Duration;

use api::http_types::Revision;
use axum::extract::State;
use http::HeaderMap;
use model::{AppId, ProjectId};
use serde::Deserialize;
use server::{Action, After, Server, Told};

use super::ApiError;
use super::caller::{Caller, Query, name};
use super::events::{Events, Gone, Sink, counted, events, resume};

/// Changes looked at at once.
const BATCH: usize = 256;
/// However little of it concerns a watcher, it hears this often where it is.
const BOOKMARK: Duration = Duration::from_secs(15);

/// Which changes.
#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
pub(crate) struct WatchQuery {
    /// Those after this revision, as a list's header `shore-revision` says it. `Last-Event-ID` wins
    /// over it. From now on when both are absent.
    after: Option<u64>,
    /// From the first one that is kept, when no revision is given.
    recent: Option<bool>,
    /// Whether to go on with changes that come later; true when absent.
    follow: Option<bool>,
    /// Only rows of these kinds, as in `task,instance`.
    kind: Option<String>,
    /// Only this project's.
    project: Option<String>,
    /// Only this app's; wants the project.
    app: Option<String>,
}

/// What a watcher is shown.
struct Filter {
    caller: Caller,
    kinds: BTreeSet<String>,
    project: Option<ProjectId>,
    app: Option<AppId>,
}

impl Filter {
    async fn new(server: &Server, caller: Caller, query: &WatchQuery) -> Result<Self, ApiError> {
        let kinds = query.kind.iter().flat_map(|kinds| kinds.split(','));
        let kinds: BTreeSet<String> = kinds.map(str::to_owned).collect();
        if let Some(unknown) = kinds.iter().find(|kind| !server::EVENT_KINDS.contains(&&***kind)) {
            let known = server::EVENT_KINDS.join(", ");
            return Err(ApiError::invalid(format!(
                "kind: there is no {unknown}; there are {known}"
            )));
        }
        let mut filter = Self { caller, kinds, project: None, app: None };
        let Some(project) = &query.project else {
            if query.app.is_some() {
                return Err(ApiError::invalid("app: name its project, too"));
            }
            return Ok(filter);
        };
        let project = name("project", project)?;
        filter.project = Some(caller.project(server, Action::Read, &project).await?.id);
        if let Some(app) = &query.app {
            let app = name("app", app)?;
            filter.app = Some(caller.app(server, Action::Read, (&project, &app)).await?.id);
        }
        Ok(filter)
    }

    fn takes(&self, told: &Told) -> bool {
        self.caller.can(told.action, told.scope.project)
            && (self.kinds.is_empty() || self.kinds.contains(told.kind))
            && self.project.is_none_or(|wanted| told.scope.project == Some(wanted))
            && self.app.is_none_or(|wanted| told.scope.app == Some(wanted))
    }
}

/// Every change of what you may look at, as events of type `change`; the event's id is the revision to
/// go on from. First comes `ready`. `bookmark` says where you are when nothing concerned you for a
/// while. `resync` says that changes are not kept any more: list again, then go on.
#[utoipa::path(get, path = "/v1/events", params(WatchQuery),
    responses((status = 200, content_type = "text/event-stream", body = api::http_types::Change)))]
pub(crate) async fn watch(
    server: State<Server>,
    caller: Caller,
    Query(query): Query<WatchQuery>,
    headers: HeaderMap,
) -> Result<Events, ApiError> {
    let filter = Filter::new(&server, caller, &query).await?;
    let feed = server.feed();
    let cursor = match resume(&headers)?.or(query.after) {
        Some(revision) => revision,
        None if query.recent == Some(true) => feed.oldest(),
        None => feed.newest(),
    };
    let bearer = counted(&server, caller)?;
    let watcher = Watcher { server: server.0.clone(), filter, cursor, said: cursor };
    let follow = query.follow.unwrap_or(true);
    Ok(events(&server, bearer, move |sink| watcher.run(sink, follow)))
}

struct Watcher {
    server: Server,
    filter: Filter,
    /// Changes up to here were looked at.
    cursor: u64,
    /// The watcher knows that it is here.
    said: u64,
}

impl Watcher {
    async fn run(mut self, sink: Sink, follow: bool) -> Result<(), Gone> {
        sink.send("ready", None, &Revision { revision: self.cursor }).await?;
        let feed = self.server.feed().clone();
        loop {
            match feed.after(self.cursor, BATCH) {
                After::Resync(revision) => {
                    (self.cursor, self.said) = (revision, revision);
                    self.say(&sink, "resync").await?;
                }
                After::Events(kept) if kept.is_empty() => {
                    if !follow {
                        return self.say(&sink, "end").await;
                    }
                    let waited = runtime::timeout(BOOKMARK, feed.news(self.cursor)).await;
                    if waited.is_none() && self.said < self.cursor {
                        self.say(&sink, "bookmark").await?;
                    }
                }
                After::Events(kept) => self.show(&sink, kept).await?,
            }
        }
    }

    async fn say(&mut self, sink: &Sink, what: &str) -> Result<(), Gone> {
        self.said = self.cursor;
        let revision = self.cursor;
        sink.send(what, Some(revision.to_string()), &Revision { revision }).await
    }

    async fn show(
        &mut self,
        sink: &Sink,
        kept: Vec<std::sync::Arc<server::Kept>>,
    ) -> Result<(), Gone> {
        // A server that cannot be asked is about to end, and with it this stream.
        let told = self.server.tell(kept).await.map_err(|_| Gone)?;
        for kept in told {
            self.cursor = kept.news.revision;
            if let Some(told) = kept.told().filter(|told| self.filter.takes(told)) {
                self.said = self.cursor;
                sink.send_text("change", self.cursor.to_string(), &told.json).await?;
            }
        }
        Ok(())
    }
}
