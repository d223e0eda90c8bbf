//! Logs and progress as server-sent events. A follower that was cut off resumes with
//! `Last-Event-ID`; what is no longer kept is said in an event of type `skipped`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use api::http_types::{LogLine, Skipped};
use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::Stream;
use http::{HeaderMap, StatusCode};
use logbuf::{Batch, EntryRef, LogBuffer, Read, Start};
use model::{DeploymentId, JobId, LogSource, Name, Time};
use serde::{Deserialize, Serialize};
use server::{Action, Following, MAX_FOLLOWED, Server, views};
use state::{App, Deployment, RowKey, Task};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::apps::app;
use super::caller::{Caller, Path, Query, id, name, workspace};
use super::{ApiError, jobs, work};

mod follower;

use follower::{AppFollower, Chosen, positions};

/// Lines read at once.
const BATCH: usize = 256;
/// Events that may wait for a follower that reads slowly; then reading the log waits.
const MAX_EVENTS: usize = 256;
/// A comment is sent this often, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(super) type Events = Sse<axum::response::sse::KeepAliveStream<BoxedEvents>>;
type BoxedEvents = std::pin::Pin<Box<dyn Stream<Item = Result<Event, Infallible>> + Send>>;
type Out = mpsc::Sender<Result<Event, Infallible>>;

/// Which lines.
#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
pub(crate) struct LogQuery {
    /// Whether to go on with lines that come later; true when absent.
    follow: Option<bool>,
    /// Only the last so many lines of what is there, of all instances together; all when absent.
    tail: Option<u64>,
    /// Only lines since this time, in milliseconds since 1970.
    since: Option<u64>,
    /// The workspace; `production` when absent.
    workspace: Option<String>,
}

/// Which instances; 404 with the names there are when an app that was deployed has none of them.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
pub(crate) struct Only {
    /// Only those of this process.
    process: Option<String>,
    /// Only the one with this index of each process.
    index: Option<u32>,
}

impl Only {
    fn takes_process(&self, process: &Name) -> bool {
        self.process.as_deref().is_none_or(|wanted| wanted == process.as_str())
    }
}

impl fmt::Display for Only {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.process, self.index) {
            (Some(process), Some(index)) => write!(f, "instance {process}.{index}"),
            (Some(process), None) => write!(f, "process {process}"),
            (None, Some(index)) => write!(f, "instance {index} of any process"),
            (None, None) => f.write_str("instance"),
        }
    }
}

impl LogQuery {
    fn takes(&self, entry: EntryRef<'_>) -> bool {
        self.since.is_none_or(|since| entry.time_ms >= since)
    }

    fn follow(&self) -> bool {
        self.follow.unwrap_or(true)
    }

    fn start(&self, resume: Option<u64>) -> Start {
        match (resume, self.tail) {
            (Some(at), _) => Start::At(at),
            (None, Some(tail)) => Start::Last(tail),
            (None, None) => Start::Oldest,
        }
    }
}

/// The follower went away.
#[derive(Debug)]
pub(super) struct Gone;

pub(super) struct Sink(Out);

impl Sink {
    /// One event whose data is JSON already.
    pub(super) async fn send_text(&self, name: &str, id: String, data: &str) -> Result<(), Gone> {
        let event = Event::default().event(name).id(id).data(data);
        self.0.send(Ok(event)).await.map_err(|_| Gone)
    }

    pub(super) async fn send(
        &self,
        name: &str,
        id: Option<String>,
        data: &impl Serialize,
    ) -> Result<(), Gone> {
        let Ok(data) = serde_json::to_string(data) else { return Ok(()) };
        let mut event = Event::default().event(name).data(data);
        if let Some(id) = id {
            event = event.id(id);
        }
        self.0.send(Ok(event)).await.map_err(|_| Gone)
    }

    async fn batch(&self, batch: &Batch, query: &LogQuery) -> Result<(), Gone> {
        for entry in batch.iter().filter(|entry| query.takes(*entry)) {
            self.send("log", Some((entry.seq + 1).to_string()), &line(entry, None)).await?;
        }
        Ok(())
    }

    async fn skipped(&self, from: u64, count: u64) -> Result<(), Gone> {
        self.send("skipped", Some((from + count).to_string()), &Skipped { from, count }).await
    }
}

fn line(entry: EntryRef<'_>, stream: Option<String>) -> LogLine {
    LogLine {
        offset: entry.seq,
        stream,
        at: Time(entry.time_ms),
        source: LogSource::from_code(entry.source),
        text: String::from_utf8_lossy(entry.data).into_owned(),
    }
}

/// Runs `follow` beside the response, for as long as the caller's token works: a follower that comes
/// back after that is told why it may not.
pub(super) fn events<F>(
    server: &Server,
    (caller, following): (Caller, Following),
    follow: impl FnOnce(Sink) -> F,
) -> Events
where
    F: Future<Output = Result<(), Gone>> + Send + 'static,
{
    let (out, receiver) = mpsc::channel(MAX_EVENTS);
    let closed = out.clone();
    let running = follow(Sink(out));
    let stop = server.tasks().stop().clone();
    let bearer = server.clone();
    server.tasks().spawn_ok("events", async move {
        tokio::select! {
            // Also when that can no longer be known.
            _ = bearer.token_ends(caller.token()) => {}
            () = stop.stopped() => {}
            () = closed.closed() => {}
            // A follower that went away needs no answer.
            _ = running => {}
        }
        drop(following);
    });
    let stream: BoxedEvents = Box::pin(ReceiverStream::new(receiver));
    Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

/// Counts one more stream of the caller's, before anything is opened for it.
pub(super) fn counted(server: &Server, caller: Caller) -> Result<(Caller, Following), ApiError> {
    let following = server.following(caller.token()).ok_or_else(|| {
        let message = format!("this token follows {MAX_FOLLOWED} streams, which is the limit");
        let hint = "end some of them, or use another token: `shore token create`";
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "unavailable", message, hint)
    })?;
    Ok((caller, following))
}

pub(super) fn resume(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(id) = last_event_id(headers) else { return Ok(None) };
    let wrong = || ApiError::invalid(format!("Last-Event-ID {id:?} is none of ours"));
    id.parse().map(Some).map_err(|_| wrong())
}

fn last_event_id(headers: &HeaderMap) -> Option<&str> {
    headers.get("last-event-id").and_then(|value| value.to_str().ok())
}

/// Follows one log to its end.
async fn follow_log(
    log: LogBuffer,
    query: LogQuery,
    from: Option<u64>,
    sink: &Sink,
) -> Result<(), Gone> {
    let mut reader = log.reader(query.start(from));
    loop {
        let read = if query.follow() {
            reader.next_batch(BATCH).await.map(Some)
        } else {
            reader.batch_now(BATCH).await
        };
        match read {
            Ok(Some(Read::Batch(batch))) => sink.batch(&batch, &query).await?,
            Ok(Some(Read::Skipped { from, count })) => sink.skipped(from, count).await?,
            Ok(Some(Read::Ended) | None) => return Ok(()),
            Err(error) => {
                tracing::warn!(%error, "a log could not be read");
                return Ok(());
            }
        }
    }
}

/// A job's progress and log: `job` events with the job whenever it changes, `log` events with
/// lines, and a last `end` event with the job as it ended.
#[utoipa::path(get, path = "/v1/jobs/{job}/events", params(LogQuery),
    responses((status = 200, content_type = "text/event-stream", body = LogLine)))]
pub(crate) async fn job_events(
    server: State<Server>,
    caller: Caller,
    Path(text): Path<String>,
    Query(query): Query<LogQuery>,
    headers: HeaderMap,
) -> Result<Events, ApiError> {
    let row = jobs::job(&server, caller, Action::Read, &text).await?;
    let from = resume(&headers)?;
    let bearer = counted(&server, caller)?;
    let log = server.log(&row.id.to_string())?;
    if row.state.is_terminal() {
        // A job that ended without a runner has a log nobody ends.
        log.end()?;
    }
    let (server_, job) = (server.0.clone(), row.id);
    Ok(events(&server, bearer, move |sink| async move {
        let changes = async {
            let followed = follow_job(&server_, job, query.follow(), &sink).await;
            // Whoever sees the end first ends the log: its followers must not wait for an event
            // that was missed.
            if let Ok(true) = followed {
                log.end().unwrap_or_default();
            }
            followed.map(|_| ())
        };
        let lines = follow_log(log.clone(), query.clone(), from, &sink);
        let (changes, lines) = tokio::join!(changes, lines);
        changes.and(lines)?;
        match job_view(&server_, job).await {
            Some(view) => sink.send("end", None, &view).await,
            None => Ok(()),
        }
    }))
}

async fn job_view(server: &Server, id: JobId) -> Option<api::http_types::JobView> {
    let row = server.job(id).await.ok().flatten()?;
    server.read(move |state| views::job(state, &row)).await.ok()
}

/// Shows a job whenever it changes; whether it ended.
async fn follow_job(server: &Server, id: JobId, follow: bool, sink: &Sink) -> Result<bool, Gone> {
    let mut changes = server.subscribe();
    let mut shown = None;
    loop {
        let Some(view) = job_view(server, id).await else { return Ok(true) };
        let ended = view.ended;
        // Heartbeats change nothing that is shown.
        if shown.as_ref() != Some(&view) {
            sink.send("job", None, &view).await?;
            shown = Some(view);
        }
        if ended || !follow {
            return Ok(ended);
        }
        if let Err(tokio::sync::broadcast::error::RecvError::Closed) = changes.recv().await {
            return Ok(false);
        }
    }
}

/// A task's log.
#[utoipa::path(get, path = "/v1/tasks/{task}/events", params(LogQuery),
    responses((status = 200, content_type = "text/event-stream", body = LogLine)))]
pub(crate) async fn task_events(
    server: State<Server>,
    caller: Caller,
    Path(text): Path<String>,
    Query(query): Query<LogQuery>,
    headers: HeaderMap,
) -> Result<Events, ApiError> {
    let id = work::task(&server, caller, Action::Read, &text).await?.id;
    let from = resume(&headers)?;
    let bearer = counted(&server, caller)?;
    let log = server.log(&id.to_string())?;
    let server_ = server.0.clone();
    Ok(events(&server, bearer, move |sink| async move {
        let lines = follow_log(log.clone(), query, from, &sink);
        let ended = async {
            let over = server_.wait_for_row(RowKey::Task(id), move |state| {
                let task = state.get::<Task>(id);
                task.is_none_or(|task| task.state.is_terminal()).then_some(())
            });
            if over.await.is_ok() {
                log.end().unwrap_or_default();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            followed = lines => followed?,
            () = ended => {}
        }
        sink.send("end", None, &()).await
    }))
}

/// What the instances of one deployment said so far, merged by time; also of those that are gone.
#[utoipa::path(get, path = "/v1/deployments/{deployment}/logs", params(LogQuery),
    responses((status = 200, content_type = "text/event-stream", body = LogLine)))]
pub(crate) async fn deployment_logs(
    server: State<Server>,
    caller: Caller,
    Path(text): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Events, ApiError> {
    let id: DeploymentId = id(&text)?;
    let missing = || ApiError::not_found("deployment", id);
    let found = server.read(move |state| {
        let row = state.get::<Deployment>(id)?;
        let app = state.get::<App>(row.app)?;
        Some((app.id, app.project, row.workspace.clone()))
    });
    let (app, project, workspace) = found.await?.ok_or_else(missing)?;
    caller.require_on(Action::Read, project, missing)?;
    let bearer = counted(&server, caller)?;
    let query = LogQuery { follow: Some(false), ..query };
    let chosen = Chosen { app, workspace, deployment: Some(id), only: Only::default() };
    let follower = AppFollower::new(&server, chosen, query, BTreeMap::new());
    Ok(events(&server, bearer, move |sink| follower.run(sink)))
}

/// What the instances of an app said in a workspace, merged by time.
///
/// Those of deployments that run nothing any more count, too: of the newest 10 that have lines that
/// are kept, and of 64 of their instances at most. Who follows goes on with new deployments.
#[utoipa::path(get, path = "/v1/projects/{project}/apps/{app}/logs", params(LogQuery, Only),
    responses((status = 200, content_type = "text/event-stream", body = LogLine)))]
pub(crate) async fn app_logs(
    server: State<Server>,
    caller: Caller,
    path: Path<(String, String)>,
    (Query(query), Query(only)): (Query<LogQuery>, Query<Only>),
    headers: HeaderMap,
) -> Result<Events, ApiError> {
    let row = app!(server, caller, Action::Read, path);
    let place = workspace(query.workspace.as_deref())?;
    let chosen = Chosen { app: row.id, workspace: place, deployment: None, only };
    chosen.check(&server).await?;
    let bearer = counted(&server, caller)?;
    let from = last_event_id(&headers).map(positions).unwrap_or_default();
    let follower = AppFollower::new(&server, chosen, query, from);
    Ok(events(&server, bearer, move |sink| follower.run(sink)))
}
