//! Sessions over a WebSocket: a command in a running instance, or files into and out of it.

mod pace;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use api::http_types::AuditView;
use api::sessions::{
    FromClient, FromServer, LEAST_COST, MAX_SESSION_DATA, OpenSession, SUBPROTOCOL,
};
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use runtime::mono_now;
use serde::Deserialize;
use server::{Action, STOPPING, Server, Session, SessionPlace, SessionRefusal, SessionTarget};

use super::apps::app;
use super::caller::{Caller, Path, Query, name, workspace};
use super::{ApiError, ApiResult};
use pace::Pace;

/// How long a client may take to say what it wants.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// How often a client is asked whether it is there.
const PING: Duration = Duration::from_secs(20);
/// How long it may say nothing, not even an answer to that, and how long it may take nothing.
const SILENCE: Duration = Duration::from_mins(1);
/// How long a session may go on without a byte in either direction.
const IDLE: Duration = Duration::from_hours(2);
/// How long a client may take to agree that it is over.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// The largest frame that is read: one byte more than is allowed can be told apart.
const MAX_READ: usize = MAX_SESSION_DATA + 2;
/// The longest name of a signal, with room.
const LONGEST_SIGNAL: usize = 16;
/// Bytes that wait to be written to a client.
const MAX_WRITTEN: usize = 4 * MAX_SESSION_DATA;
/// The most lines of the audit log at once.
const MAX_LINES: u32 = 1_000;

/// Close codes, as RFC 6455 has them.
mod code {
    pub(super) const NORMAL: u16 = 1000;
    pub(super) const GOING_AWAY: u16 = 1001;
    pub(super) const PROTOCOL: u16 = 1002;
    pub(super) const TEXT: u16 = 1003;
    pub(super) const POLICY: u16 = 1008;
    pub(super) const TOO_LARGE: u16 = 1009;
    pub(super) const FAILED: u16 = 1011;
}

/// Where to work.
#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
pub(crate) struct Where {
    /// The workspace; `production` when absent.
    workspace: Option<String>,
    /// The deployment's number; what is released when absent.
    deployment: Option<u64>,
    /// The process; the first that runs when absent.
    process: Option<String>,
    /// The instance, as in `web.2`; the first that runs when absent.
    instance: Option<String>,
}

impl Where {
    /// The process and the index that are meant.
    fn instance(&self) -> Result<(Option<model::Name>, Option<u32>), ApiError> {
        let process = self.process.as_deref().map(|text| name("process", text)).transpose()?;
        let Some(instance) = &self.instance else { return Ok((process, None)) };
        let parts = instance.rsplit_once('.');
        let parts = parts.and_then(|(process, index)| Some((process, index.parse().ok()?)));
        let Some((own, index)) = parts else {
            return Err(ApiError::invalid(format!(
                "`{instance}` is no instance, as `web.0` is one"
            )));
        };
        let own = name("process", own)?;
        if process.is_some_and(|process| process != own) {
            return Err(ApiError::invalid(format!("instance {instance} is of another process")));
        }
        Ok((Some(own), Some(index)))
    }
}

impl From<SessionRefusal> for ApiError {
    fn from(refusal: SessionRefusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            SessionRefusal::NotFound { what, name } => Self::not_found(what, name),
            SessionRefusal::NotRunning(_) => {
                let hint = "see what runs with `shore status`";
                Self::new(StatusCode::CONFLICT, "conflict", message, hint)
            }
            SessionRefusal::Full => {
                let hint = "end some of them, or try again in a moment";
                Self::new(StatusCode::TOO_MANY_REQUESTS, "unavailable", message, hint)
            }
            SessionRefusal::CellAway => {
                let hint = "see `shore cell list`, and try again in a moment";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message, hint)
            }
            SessionRefusal::Invalid(_) => Self::invalid(message),
            SessionRefusal::Apply(error) => Self::from(error),
        }
    }
}

/// Refuses what a page of somebody else's makes a browser send.
fn same_origin(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    if origin.is_some_and(|(_, host)| Some(host) == text(header::HOST)) {
        return Ok(());
    }
    Err(ApiError::forbidden("a session is not opened from a page of another origin".to_owned()))
}

fn offers_protocol(headers: &HeaderMap) -> bool {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let mut offered = offered.filter_map(|value| value.to_str().ok()).flat_map(|it| it.split(','));
    offered.any(|one| one.trim() == SUBPROTOCOL)
}

/// A request for a WebSocket of ours.
#[derive(Debug)]
pub(crate) struct Upgrade(WebSocketUpgrade);

impl FromRequestParts<Server> for Upgrade {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, server: &Server) -> Result<Self, ApiError> {
        same_origin(&parts.headers)?;
        let upgrade = WebSocketUpgrade::from_request_parts(parts, server).await;
        let upgrade = upgrade.map_err(|error| {
            let message = format!("this is a WebSocket: {}", error.body_text());
            ApiError::new(StatusCode::UPGRADE_REQUIRED, "invalid", message, "see docs/sessions.md")
        })?;
        if !offers_protocol(&parts.headers) {
            let message = format!("the WebSocket subprotocol {SUBPROTOCOL} must be offered");
            let hint = "client and server may be of different versions";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "version", message, hint));
        }
        let upgrade = upgrade
            .protocols([SUBPROTOCOL])
            .max_message_size(MAX_READ)
            .max_frame_size(MAX_READ)
            .max_write_buffer_size(MAX_WRITTEN);
        Ok(Self(upgrade))
    }
}

/// Opens a session with a running instance: runs a command in it, or copies files. It is a WebSocket
/// with the subprotocol `shore.session.v1`; docs/sessions.md says what its frames are.
#[utoipa::path(get, path = "/v1/projects/{project}/apps/{app}/exec", params(Where),
    responses((status = 101, description = "A WebSocket; the first frame is an `OpenSession`",
        body = OpenSession), (status = 403, body = api::http_types::ErrorBody),
        (status = 404, body = api::http_types::ErrorBody),
        (status = 409, body = api::http_types::ErrorBody)))]
pub(crate) async fn exec(
    server: State<Server>,
    caller: Caller,
    path: Path<(String, String)>,
    Query(query): Query<Where>,
    Upgrade(upgrade): Upgrade,
) -> Result<Response, ApiError> {
    let app = app!(server, caller, Action::Change, path);
    let (process, index) = query.instance()?;
    let workspace = workspace(query.workspace.as_deref())?;
    let deployment = query.deployment;
    let target = SessionTarget { app, workspace, deployment, process, index };
    let place = server.session_place(*caller.principal(), target).await?;
    let server = server.0.clone();
    let upgraded = upgrade.on_upgrade(async move |socket| {
        let tasks = server.tasks().clone();
        tasks.spawn_ok("session", serve(server, caller, socket, place));
    });
    Ok(upgraded.into_response())
}

/// The last frame, if there is one, and why the WebSocket is closed.
#[derive(Debug)]
struct Farewell {
    last: Option<FromServer>,
    code: u16,
    reason: String,
}

impl Farewell {
    fn new(code: u16, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { last: Some(FromServer::Failed(reason.clone())), code, reason }
    }

    /// Nobody is there to be told.
    fn gone(reason: &str) -> Self {
        Self { last: None, code: code::GOING_AWAY, reason: reason.to_owned() }
    }
}

async fn serve(server: Server, caller: Caller, mut socket: WebSocket, place: SessionPlace) {
    let stop = server.tasks().stop().clone();
    let mut session = None;
    let farewell = {
        let relay = relay(&mut socket, place, &mut session);
        tokio::select! {
            biased;
            () = stop.stopped() => Farewell::new(code::GOING_AWAY, STOPPING),
            farewell = relay => farewell,
            fault = server.token_ends(caller.token()) => match fault {
                Ok(fault) => Farewell::new(code::POLICY, fault.to_string()),
                Err(error) => Farewell::new(code::FAILED, error.to_string()),
            },
        }
    };
    if let Some(mut session) = session {
        session.gives_up(&farewell.reason);
    }
    // A client that does not agree by then is left.
    runtime::timeout(CLOSE_LIMIT, farewell.say(&mut socket)).await.unwrap_or(());
}

impl Farewell {
    async fn say(self, socket: &mut WebSocket) {
        if let Some(last) = self.last
            && socket.send(Message::Binary(last.frame())).await.is_err()
        {
            return;
        }
        // What a reason holds has 123 bytes at most.
        let short = self.reason.floor_char_boundary(123);
        let reason = self.reason.get(..short).unwrap_or_default().into();
        let close = Message::Close(Some(CloseFrame { code: self.code, reason }));
        if socket.send(close).await.is_ok() {
            while let Some(Ok(_)) = socket.recv().await {}
        }
    }
}

/// What a client sent.
async fn read(socket: &mut WebSocket) -> Result<Option<FromClient>, Farewell> {
    let frame: Bytes = match socket.recv().await {
        None | Some(Ok(Message::Close(_))) => return Err(Farewell::gone("whoever opened it left")),
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => return Ok(None),
        Some(Ok(Message::Text(_))) => {
            return Err(Farewell::new(code::TEXT, "frames of a session are binary"));
        }
        Some(Ok(Message::Binary(frame))) => frame,
        Some(Err(error)) => {
            let error = error.to_string();
            // How the library says that a message is longer than it reads.
            if error.contains("too long") || error.contains("too large") {
                return Err(too_large());
            }
            return Err(Farewell { last: None, code: code::PROTOCOL, reason: error });
        }
    };
    if frame.len() > MAX_SESSION_DATA + 1 {
        return Err(too_large());
    }
    let read = FromClient::read(frame);
    read.map(Some).map_err(|error| Farewell::new(code::PROTOCOL, error.to_string()))
}

fn too_large() -> Farewell {
    let reason = format!("a frame holds at most {MAX_SESSION_DATA} bytes behind its first");
    Farewell::new(code::TOO_LARGE, reason)
}

async fn opening(socket: &mut WebSocket) -> Result<OpenSession, Farewell> {
    loop {
        match read(socket).await? {
            None => {}
            Some(FromClient::Open(open)) => return Ok(open),
            Some(_) => {
                let reason = "the first frame says what to open";
                return Err(Farewell::new(code::PROTOCOL, reason));
            }
        }
    }
}

/// When something was last heard.
struct Heard {
    anything: Instant,
    bytes: Instant,
}

/// Stands between a client and its session until either ends it.
async fn relay(
    socket: &mut WebSocket,
    place: SessionPlace,
    kept: &mut Option<Session>,
) -> Farewell {
    let open = match runtime::timeout(OPEN_LIMIT, opening(socket)).await {
        Some(Ok(open)) => open,
        Some(Err(farewell)) => return farewell,
        None => return Farewell::new(code::POLICY, "nobody said what to open"),
    };
    let session = match place.open(open).await {
        Ok(session) => kept.insert(session),
        Err(refusal) => return Farewell::new(code::FAILED, refusal.to_string()),
    };
    let mut heard = Heard { anything: mono_now(), bytes: mono_now() };
    let mut ping = mono_now() + PING;
    let mut orders = Pace::new(mono_now());
    // Until when the client is not read, because it sends too much that carries no bytes.
    let mut held: Option<Instant> = None;
    loop {
        let turn = tokio::select! {
            () = runtime::sleep_until(held.unwrap_or(ping)), if held.is_some() => {
                held = None;
                ControlFlow::Continue(())
            }
            said = read(socket), if held.is_none() => {
                heard.anything = mono_now();
                if said.as_ref().is_ok_and(|said| is_order(said.as_ref())) {
                    held = orders.take(heard.anything);
                }
                match said {
                    Ok(Some(said)) => from_client(said, session, &mut heard).await,
                    Ok(None) => ControlFlow::Continue(()),
                    Err(farewell) => ControlFlow::Break(farewell),
                }
            }
            news = session.next() => {
                heard.bytes = mono_now();
                from_cell(news, socket).await
            }
            () = runtime::sleep_until(ping) => {
                ping = mono_now() + PING;
                silent(&heard, socket).await
            }
        };
        if let ControlFlow::Break(farewell) = turn {
            return farewell;
        }
    }
}

/// Whether a frame costs no credit and asks for work.
const fn is_order(said: Option<&FromClient>) -> bool {
    match said {
        // A credit that answers output is never smaller than what output costs.
        Some(FromClient::Credit(bytes)) => *bytes < LEAST_COST,
        Some(FromClient::Input(_) | FromClient::Open(_)) => false,
        None | Some(FromClient::Resize(_) | FromClient::Signal(_) | FromClient::InputEnd) => true,
    }
}

async fn from_client(
    said: FromClient,
    session: &mut Session,
    heard: &mut Heard,
) -> ControlFlow<Farewell> {
    let done = match said {
        FromClient::Open(_) => {
            let reason = "a session is opened once";
            return ControlFlow::Break(Farewell::new(code::PROTOCOL, reason));
        }
        FromClient::Input(bytes) => {
            heard.bytes = mono_now();
            session.input(bytes).await
        }
        FromClient::Credit(0) => {
            return ControlFlow::Break(Farewell::new(code::POLICY, "a credit of nothing"));
        }
        FromClient::Credit(bytes) => session.grant(bytes).await,
        FromClient::InputEnd => {
            session.input_end().await;
            Ok(())
        }
        FromClient::Resize(size) => {
            session.resize(size).await;
            Ok(())
        }
        FromClient::Signal(name) if name.len() > LONGEST_SIGNAL => {
            return ControlFlow::Break(Farewell::new(code::POLICY, "there is no such signal"));
        }
        FromClient::Signal(name) => {
            session.signal(name).await;
            Ok(())
        }
    };
    match done {
        Ok(()) => ControlFlow::Continue(()),
        Err(fault) => ControlFlow::Break(Farewell::new(code::POLICY, fault.to_string())),
    }
}

async fn from_cell(news: FromServer, socket: &mut WebSocket) -> ControlFlow<Farewell> {
    match news {
        FromServer::Ended(_) => {
            let reason = "it ended".to_owned();
            return ControlFlow::Break(Farewell { last: Some(news), code: code::NORMAL, reason });
        }
        FromServer::Failed(reason) => {
            return ControlFlow::Break(Farewell::new(code::FAILED, reason));
        }
        FromServer::Started(_)
        | FromServer::Output(_)
        | FromServer::Error(_)
        | FromServer::Credit(_) => {}
    }
    send(socket, Message::Binary(news.frame())).await
}

/// Clients take what they granted credit for at once; one that does not is gone.
async fn send(socket: &mut WebSocket, message: Message) -> ControlFlow<Farewell> {
    match runtime::timeout(SILENCE, socket.send(message)).await {
        Some(Ok(())) => ControlFlow::Continue(()),
        Some(Err(_)) => ControlFlow::Break(Farewell::gone("whoever opened it left")),
        None => ControlFlow::Break(Farewell::gone("whoever opened it takes nothing")),
    }
}

async fn silent(heard: &Heard, socket: &mut WebSocket) -> ControlFlow<Farewell> {
    if heard.anything.elapsed() > SILENCE {
        return ControlFlow::Break(Farewell::gone("nothing was heard of whoever opened it"));
    }
    if heard.bytes.elapsed() > IDLE {
        let hours = IDLE.as_secs() / 3_600;
        let reason = format!("nothing was said for {hours} hours");
        return ControlFlow::Break(Farewell::new(code::POLICY, reason));
    }
    send(socket, Message::Ping(Bytes::new())).await
}

/// Which lines of the audit log.
#[derive(Debug, Clone, Deserialize, utoipa::IntoParams)]
pub(crate) struct Lines {
    /// Only those before this one; the newest when absent.
    before: Option<u64>,
    /// How many at most; 100 when absent, never more than 1000.
    limit: Option<u32>,
}

/// Who opened which session, with what, and how it ended: the newest lines first.
#[utoipa::path(get, path = "/v1/audit", params(Lines),
    responses((status = 200, body = Vec<AuditView>)))]
pub(crate) async fn audit(
    server: State<Server>,
    caller: Caller,
    Query(lines): Query<Lines>,
) -> ApiResult<Vec<AuditView>> {
    caller.require(Action::Administer)?;
    let limit = lines.limit.unwrap_or(100).min(MAX_LINES);
    let log = server.audit_log(lines.before, limit).await?;
    let views = log.into_iter().map(|(line, audit)| server::views::audit(line, audit));
    Ok(axum::Json(views.collect()))
}
