//! The HTTP client of the API, used by the command line, runners and cells.

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use model::{Digest, PROTOCOL, ProtocolMismatch, ProtocolRange, negotiate};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::connect::{ConnectError, Connector, Endpoint, OTHER_AUTHORITY};
use crate::http_types::{BlobStored, ErrorBody};
use crate::joining::{is_other_authority, root_cause};
use crate::socket::{SessionSocket, is_taken, upgrade_headers};

/// Most bytes of one server-sent event.
pub const MAX_EVENT: usize = 1024 * 1024;
/// Most bytes of an answer that is read as a whole.
pub const MAX_ANSWER: usize = 32 * 1024 * 1024;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server was not reached, or the connection broke.
    #[error("cannot reach the server at {url}: {reason}")]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The server is not the one that made the token.
    #[error("cannot use the server at {url}: {OTHER_AUTHORITY}")]
    Authority {
        /// Where it is.
        url: String,
    },
    /// The server said no.
    #[error("{}", body.message)]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// What it said.
        body: ErrorBody,
    },
    /// The server's answer makes no sense.
    #[error("the server's answer to {call} makes no sense: {reason}")]
    Answer {
        /// Method and path.
        call: String,
        /// What is wrong.
        reason: String,
    },
    /// The endpoint makes no sense.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Client and server share no protocol.
    #[error("{0}")]
    Version(ProtocolMismatch),
}

impl ClientError {
    /// Whether the same call may work later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
            Self::Authority { .. } | Self::Answer { .. } | Self::Connect(_) | Self::Version(_) => {
                false
            }
        }
    }

    /// The status of a refusal.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::Unreachable { .. }
            | Self::Authority { .. }
            | Self::Answer { .. }
            | Self::Connect(_)
            | Self::Version(_) => None,
        }
    }
}

/// A server-sent event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    /// Its type; `message` when the server named none.
    pub name: String,
    /// Where to resume after it.
    pub id: Option<String>,
    /// Its data.
    pub data: String,
}

/// Calls the API. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    http: HyperClient<Connector, Body>,
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

impl Client {
    /// A client of `endpoint`.
    pub fn new(endpoint: Endpoint) -> Result<Self, ClientError> {
        let connector = endpoint.connector()?;
        let http = HyperClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self { endpoint, http })
    }

    /// Where the server is.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let base = self.endpoint.url.to_string();
        Request::builder()
            .method(method)
            .uri(format!("{}{path}", base.trim_end_matches('/')))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.endpoint.token))
            .header(header::USER_AGENT, concat!("shore/", env!("CARGO_PKG_VERSION")))
            .header(crate::PROTOCOL_HEADER, PROTOCOL.to_string())
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        let call = format!("{} {}", request.method(), request.uri().path());
        let response = self.http.request(request).await.map_err(|error| self.lost(&error))?;
        let theirs = response.headers().get(crate::PROTOCOL_HEADER);
        let theirs = theirs.and_then(|range| range.to_str().ok()?.parse::<ProtocolRange>().ok());
        if let Some(theirs) = theirs {
            negotiate(PROTOCOL, theirs).map_err(ClientError::Version)?;
        }
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(response, &call).await?)
    }

    /// What the server says when it says no.
    async fn refusal(
        &self,
        response: Response<Incoming>,
        call: &str,
    ) -> Result<ClientError, ClientError> {
        let status = response.status();
        let bytes = self.collect(response, call).await?;
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| ErrorBody {
            kind: "unknown".to_owned(),
            message: format!("{call} was answered with {status}"),
            hint: None,
        });
        Ok(ClientError::Refused { status, body })
    }

    /// Opens a session: `GET path` on a connection of its own, which becomes a WebSocket.
    pub async fn session(&self, path: &str) -> Result<SessionSocket, ClientError> {
        let call = format!("GET {path}");
        let wrong = |reason: String| ClientError::Answer { call: call.clone(), reason };
        let (headers, accept) = upgrade_headers();
        let request = self.request(Method::GET, path).body(full(Bytes::new()));
        let mut request = request.map_err(|error| wrong(error.to_string()))?;
        request.headers_mut().extend(headers);
        let connector = self.endpoint.connector()?.for_upgrades();
        let http = HyperClient::builder(TokioExecutor::new()).build(connector);
        let response = http.request(request).await.map_err(|error| self.lost(&error))?;
        if is_taken(response.status(), response.headers(), &accept) {
            let upgraded = hyper::upgrade::on(response).await;
            let upgraded = upgraded.map_err(|error| self.lost(&error))?;
            return Ok(SessionSocket::new(self.clone(), upgraded).await);
        }
        if response.status().is_success() || response.status().is_informational() {
            return Err(wrong("it does not open a session".to_owned()));
        }
        Err(self.refusal(response, &call).await?)
    }

    fn lost(&self, error: &(dyn std::error::Error + 'static)) -> ClientError {
        let url = self.endpoint.shown();
        if is_other_authority(error) {
            return ClientError::Authority { url };
        }
        ClientError::Unreachable { url, reason: root_cause(error) }
    }

    async fn collect(
        &self,
        response: Response<Incoming>,
        call: &str,
    ) -> Result<Bytes, ClientError> {
        let limited = http_body_util::Limited::new(response.into_body(), MAX_ANSWER);
        let collected = limited.collect().await.map_err(|error| ClientError::Answer {
            call: call.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(collected.to_bytes())
    }

    async fn json<T: DeserializeOwned>(
        &self,
        request: Result<Request<Body>, http::Error>,
    ) -> Result<T, ClientError> {
        let request = request.map_err(|error| ClientError::Answer {
            call: "the request".to_owned(),
            reason: error.to_string(),
        })?;
        let call = format!("{} {}", request.method(), request.uri().path());
        let response = self.send(request).await?;
        let bytes = self.collect(response, &call).await?;
        let bytes = if bytes.is_empty() { Bytes::from_static(b"null") } else { bytes };
        serde_json::from_slice(&bytes)
            .map_err(|error| ClientError::Answer { call, reason: error.to_string() })
    }

    /// `GET path`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(self.request(Method::GET, path).body(full(Bytes::new()))).await
    }

    /// `DELETE path`.
    pub async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.json(self.request(Method::DELETE, path).body(full(Bytes::new()))).await
    }

    /// `POST path` with a JSON body.
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.with_body(Method::POST, path, body).await
    }

    /// `PATCH path` with a JSON body.
    pub async fn patch<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.with_body(Method::PATCH, path, body).await
    }

    async fn with_body<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        let bytes = serde_json::to_vec(body).map_err(|error| ClientError::Answer {
            call: format!("{method} {path}"),
            reason: format!("the request cannot be rendered: {error}"),
        })?;
        let request = self
            .request(method, path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(full(bytes.into()));
        self.json(request).await
    }

    /// Whether the server has a blob.
    pub async fn has_blob(&self, digest: Digest) -> Result<bool, ClientError> {
        let path = format!("/v1/blobs/{digest}");
        let request = self.request(Method::HEAD, &path).body(full(Bytes::new()));
        let request = request.map_err(|error| ClientError::Answer {
            call: format!("HEAD {path}"),
            reason: error.to_string(),
        })?;
        match self.send(request).await {
            Ok(_) => Ok(true),
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends a blob; with a digest the server refuses other content.
    pub async fn put_blob<S>(
        &self,
        digest: Option<Digest>,
        content: S,
    ) -> Result<BlobStored, ClientError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let body = StreamBody::new(content.map_ok(Frame::data)).boxed_unsync();
        let (method, path) = digest.map_or_else(
            || (Method::POST, "/v1/blobs".to_owned()),
            |digest| (Method::PUT, format!("/v1/blobs/{digest}")),
        );
        self.json(self.request(method, &path).body(body)).await
    }

    /// Reads a blob.
    pub async fn get_blob(
        &self,
        digest: Digest,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + use<>, ClientError> {
        self.get_bytes(&format!("/v1/blobs/{digest}")).await
    }

    /// Reads what is no JSON.
    pub async fn get_bytes(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + use<>, ClientError> {
        let request = self.request(Method::GET, path).body(full(Bytes::new()));
        let request = request.map_err(|error| ClientError::Answer {
            call: format!("GET {path}"),
            reason: error.to_string(),
        })?;
        let response = self.send(request).await?;
        Ok(response.into_body().into_data_stream().map_err(std::io::Error::other))
    }

    /// Follows server-sent events, after the event with the id `resume` when given. The stream
    /// ends when the server ends it; a broken connection is its last item.
    pub async fn events(
        &self,
        path: &str,
        resume: Option<&str>,
    ) -> Result<impl Stream<Item = Result<Event, ClientError>> + Send + use<>, ClientError> {
        let mut request =
            self.request(Method::GET, path).header(header::ACCEPT, "text/event-stream");
        if let Some(id) = resume {
            request = request.header("last-event-id", id);
        }
        let request = request.body(full(Bytes::new())).map_err(|error| ClientError::Answer {
            call: format!("GET {path}"),
            reason: error.to_string(),
        })?;
        let response = self.send(request).await?;
        let parser = Parser { bytes: BytesMut::new(), client: self.clone(), failed: false };
        let body = response.into_body().into_data_stream();
        Ok(futures_util::stream::unfold((parser, body), |(mut parser, mut body)| async move {
            let item = parser.next(&mut body).await?;
            Some((item, (parser, body)))
        }))
    }
}

struct Parser {
    bytes: BytesMut,
    client: Client,
    failed: bool,
}

impl Parser {
    async fn next<S>(&mut self, body: &mut S) -> Option<Result<Event, ClientError>>
    where
        S: Stream<Item = Result<Bytes, hyper::Error>> + Unpin,
    {
        loop {
            if self.failed {
                return None;
            }
            if let Some(end) = self.bytes.windows(2).position(|pair| pair == b"\n\n") {
                let text = self.bytes.split_to(end + 2);
                if let Some(event) = parse_event(&String::from_utf8_lossy(&text)) {
                    return Some(Ok(event));
                }
                continue;
            }
            if self.bytes.len() > MAX_EVENT {
                self.failed = true;
                let reason = format!("an event is longer than {MAX_EVENT} bytes");
                return Some(Err(ClientError::Answer { call: "events".to_owned(), reason }));
            }
            match body.next().await? {
                Ok(chunk) => self.bytes.extend_from_slice(&chunk),
                Err(error) => {
                    self.failed = true;
                    return Some(Err(self.client.lost(&error)));
                }
            }
        }
    }
}

/// One event from its lines; `None` for a comment.
fn parse_event(text: &str) -> Option<Event> {
    let mut event = Event { name: "message".to_owned(), ..Event::default() };
    let mut has_data = false;
    for line in text.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut event.name),
            "id" => event.id = Some(value.to_owned()),
            "data" => {
                if has_data {
                    event.data.push('\n');
                }
                has_data = true;
                event.data.push_str(value);
            }
            _ => {}
        }
    }
    has_data.then_some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_parse_as_the_standard_says() {
        assert_eq!(parse_event(": keep-alive\n\n"), None);
        let event = parse_event("event: log\nid: 7\ndata: a\ndata:b\n\n").expect("an event");
        assert_eq!(event, Event { name: "log".into(), id: Some("7".into()), data: "a\nb".into() });
        assert_eq!(parse_event("data:\n\n").expect("an event").name, "message");
    }
}
