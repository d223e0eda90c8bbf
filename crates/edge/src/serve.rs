//! Serving HTTP/1.1 and HTTP/2 on one port: the API and the component streams together.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use api::http_types::ErrorBody;
use api::proto::COMPONENTS_PATH;
use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, StatusCode, Version};
use http_body::{Frame, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use model::{Digest, JoinToken};
use runtime::{Share, Shares, Tasks, mono_now};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::http::{ApiError, bearer};

/// Connections served at once; beyond them only components get one.
pub const MAX_CONNECTIONS: usize = 4_096;
/// Further connections, for the streams of components: cells lose their lease when they cannot connect,
/// whatever else goes on. One more waits to be accepted.
pub const MAX_COMPONENT_CONNECTIONS: usize = 1_024;
/// Most connections from one address: a quarter of all. Programs of this machine, such as a proxy,
/// may speak for many and have no such limit.
pub const MAX_PEER_CONNECTIONS: usize = 1_024;
/// Most requests of one token that are not answered to the end, however slowly it sends or reads:
/// as many as connections of one address. Streams of components do not count.
pub const MAX_TOKEN_REQUESTS: usize = 1_024;
/// How long a client may take to send its request's head; one that sends none at all is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an HTTP/2 connection may be without a request.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);
/// How often a silent HTTP/2 client is asked whether it is there, and how long it has to answer.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(20));
/// How long a client may take to agree that an idle connection ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a client may take for the TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// How a TLS handshake begins.
const TLS_HANDSHAKE: u8 = 22;
/// How long what a client without TLS still sends is read, so that it gets the answer.
const PLAIN_LINGER: Duration = Duration::from_secs(1);
/// Pause after an accept that failed, as when no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How much room there is.
#[derive(Debug, Clone, Copy)]
struct Limits {
    connections: usize,
    component_connections: usize,
    peer_connections: usize,
    token_requests: usize,
}

const LIMITS: Limits = Limits {
    connections: MAX_CONNECTIONS,
    component_connections: MAX_COMPONENT_CONNECTIONS,
    peer_connections: MAX_PEER_CONNECTIONS,
    token_requests: MAX_TOKEN_REQUESTS,
};

/// The room for connections.
#[derive(Debug)]
struct Room {
    all: Arc<Semaphore>,
    components: Arc<Semaphore>,
    peers: Shares<IpAddr>,
}

impl Room {
    fn of(limits: Limits) -> Self {
        Self {
            all: Arc::new(Semaphore::new(limits.connections)),
            components: Arc::new(Semaphore::new(limits.component_connections)),
            peers: Shares::of(limits.peer_connections),
        }
    }

    /// A place for a connection, and whether it is only for components.
    async fn place(&self) -> Option<(OwnedSemaphorePermit, bool)> {
        tokio::select! {
            biased;
            slot = Arc::clone(&self.all).acquire_owned() => Some((slot.ok()?, false)),
            slot = Arc::clone(&self.components).acquire_owned() => Some((slot.ok()?, true)),
        }
    }

    /// The share of whoever connects; `Err` when that is taken.
    fn share(&self, peer: IpAddr) -> Result<Option<Share<IpAddr>>, ()> {
        if peer.to_canonical().is_loopback() {
            return Ok(None);
        }
        self.peers.take(network(peer)).map(Some).ok_or(())
    }
}

/// Whom an address stands for: whoever has one of IPv6 has 2^64 of them.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let bits = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Accepts connections until a stop is asked for.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    tls: Option<Arc<rustls::ServerConfig>>,
    tasks: Tasks,
) {
    serve_within(listener, app, (tls, LIMITS), tasks).await;
}

async fn serve_within(
    listener: TcpListener,
    app: Router,
    (tls, limits): (Option<Arc<rustls::ServerConfig>>, Limits),
    tasks: Tasks,
) {
    let room = Room::of(limits);
    let callers = Shares::of(limits.token_requests);
    let tls = tls.map(TlsAcceptor::from);
    let stop = tasks.stop().clone();
    loop {
        let Some((slot, for_components)) = room.place().await else { return };
        let Some(accepted) = stop.or_stop(listener.accept()).await else { return };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                runtime::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // There may be room for anybody by now.
        let freed =
            for_components.then(|| Arc::clone(&room.all).try_acquire_owned().ok()).flatten();
        let (slot, for_components) = freed.map_or((slot, for_components), |slot| (slot, false));
        let Ok(share) = room.share(peer.ip()) else {
            tracing::debug!(%peer, "an address has as many connections as it may");
            continue;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection is gone already");
            continue;
        }
        let (app, tls, stop) = (app.clone(), tls.clone(), stop.clone());
        let door = Door { for_components, callers: callers.clone() };
        tasks.spawn_ok("http-connection", async move {
            match tls {
                None => connection(stream, (app, door), &stop).await,
                Some(_) if speaks_plainly(&stream).await => not_without_tls(stream).await,
                Some(tls) => match runtime::timeout(TLS_TIMEOUT, tls.accept(stream)).await {
                    Some(Ok(stream)) => connection(stream, (app, door), &stop).await,
                    Some(Err(error)) => refused(peer, &error),
                    None => tracing::debug!(%peer, "a TLS handshake took too long"),
                },
            }
            drop((slot, share));
        });
    }
}

/// Decides which requests of a connection are looked at.
#[derive(Debug, Clone)]
struct Door {
    /// Whether the connection is there for the streams of components only.
    for_components: bool,
    /// What tokens take, by what is sent of them.
    callers: Shares<Digest>,
}

impl Door {
    /// The share of the caller's token that a request takes, or the answer to one that is not looked
    /// at. Who the caller is has not been asked by then: whoever sends the whole token is its bearer
    /// or takes a share of nobody's.
    fn admit<B>(&self, request: &Request<B>) -> Result<Option<Share<Digest>>, Box<Response>> {
        let components = COMPONENTS_PATH.trim_end_matches("{method}");
        if request.uri().path().starts_with(components) {
            return Ok(None);
        }
        if self.for_components {
            let message = format!("{MAX_CONNECTIONS} connections are open, which is the limit");
            let hint = "try again in a moment";
            return Err(Box::new(full(StatusCode::SERVICE_UNAVAILABLE, message, hint, request)));
        }
        let Some(bearer) = bearer(request.headers()) else { return Ok(None) };
        let share = self.callers.take(named(bearer));
        share.map(Some).ok_or_else(|| {
            let most = self.callers.most();
            let message = format!("this token has {most} requests under way, which is the limit");
            let hint = "wait for some of them, or use another token: `shore token create`";
            Box::new(full(StatusCode::TOO_MANY_REQUESTS, message, hint, request))
        })
    }
}

/// One name for each token, however it is written: it may say which authority the server has.
fn named(bearer: &str) -> Digest {
    let token = bearer.parse().map(|token| JoinToken { ca: None, ..token }.to_string());
    Digest::of(token.as_deref().unwrap_or(bearer).as_bytes())
}

fn full<B>(status: StatusCode, message: String, hint: &str, of: &Request<B>) -> Response {
    let mut response = ApiError::new(status, "unavailable", message, hint).into_response();
    // Its body is not read, and its place is needed.
    if of.version() < Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether a client begins with something else than a TLS handshake.
async fn speaks_plainly(stream: &TcpStream) -> bool {
    let mut first = [0];
    let peeked = runtime::timeout(TLS_TIMEOUT, stream.peek(&mut first)).await;
    matches!(peeked, Some(Ok(1))) && first != [TLS_HANDSHAKE]
}

/// Tells a client that came without TLS to come with it.
async fn not_without_tls(mut stream: TcpStream) {
    let body = ErrorBody {
        kind: "invalid".to_owned(),
        message: "this server speaks TLS".to_owned(),
        hint: Some("use https:// in place of http://, with a token of this server".to_owned()),
    };
    let body = serde_json::to_string(&body).unwrap_or_default();
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    // A client that went away needs no answer.
    if stream.write_all(answer.as_bytes()).await.is_ok() {
        stream.shutdown().await.unwrap_or_default();
        let mut nowhere = tokio::io::sink();
        let rest = tokio::io::copy(&mut stream, &mut nowhere);
        drop(runtime::timeout(PLAIN_LINGER, rest).await);
    }
}

fn refused(peer: SocketAddr, error: &std::io::Error) {
    tracing::debug!(%peer, %error, "a TLS handshake failed");
}

async fn connection<S>(stream: S, (app, door): (Router, Door), stop: &runtime::Stop)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let (interval, timeout) = PING;
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1_024);
    builder.http2().keep_alive_interval(interval).keep_alive_timeout(timeout);
    let requests = Requests::new();
    let service = {
        let requests = requests.clone();
        hyper::service::service_fn(move |request| {
            let (app, under_way) = (app.clone(), requests.begin());
            let admitted = door.admit(&request);
            async move {
                let (response, share) = match admitted {
                    Ok(share) => (app.oneshot(request).await?, share),
                    Err(response) => (*response, None),
                };
                let body = |body| Body::new(Watched { body, _under_way: (under_way, share) });
                Ok::<_, Infallible>(response.map(body))
            }
        })
    };
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = stop.stopped() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
        () = requests.idle() => {
            serving.as_mut().graceful_shutdown();
            runtime::timeout(CLOSE_TIMEOUT, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection ended badly");
    }
}

/// The requests of one connection.
#[derive(Debug, Clone)]
struct Requests(Arc<Mutex<Count>>);

#[derive(Debug)]
struct Count {
    under_way: usize,
    /// When the last one ended, or the connection began.
    since: Instant,
    /// How long the connection may go on without one.
    limit: Duration,
}

impl Requests {
    fn new() -> Self {
        let count = Count { under_way: 0, since: mono_now(), limit: HEADER_TIMEOUT };
        Self(Arc::new(Mutex::new(count)))
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> UnderWay {
        let mut count = self.count();
        count.under_way += 1;
        count.limit = IDLE_TIMEOUT;
        UnderWay(self.clone())
    }

    /// Until there was no request for too long.
    async fn idle(&self) {
        loop {
            let due = {
                let count = self.count();
                let since = if count.under_way > 0 { mono_now() } else { count.since };
                since + count.limit
            };
            if due <= mono_now() {
                return;
            }
            runtime::sleep_until(due).await;
        }
    }
}

/// A request that has not been answered to the end.
#[derive(Debug)]
struct UnderWay(Requests);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut count = self.0.count();
        count.under_way = count.under_way.saturating_sub(1);
        count.since = mono_now();
    }
}

/// The body of a response, with the request it answers.
#[derive(Debug)]
struct Watched {
    body: Body,
    _under_way: (UnderWay, Option<Share<Digest>>),
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::{get, post};
    use model::TokenId;
    use runtime::Stop;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    const ROOM: Limits = Limits {
        connections: 64,
        component_connections: 1,
        peer_connections: 2,
        token_requests: 2,
    };
    const SLOW: &str = "POST /slow HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer one\r\n\
                        Content-Length: 100\r\n\r\nx";

    /// A server that ends with the test.
    struct Served(SocketAddr, Tasks);

    impl Drop for Served {
        fn drop(&mut self) {
            self.1.stop().stop();
        }
    }

    impl Served {
        async fn start(limits: Limits) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let address = listener.local_addr().expect("has an address");
            let app = Router::new()
                .route("/fast", get(async || "fast"))
                .route(COMPONENTS_PATH, get(async || "stream"))
                .route("/slow", post(async |_: Bytes| "slow"));
            let tasks = Tasks::new(Stop::new());
            tasks.spawn_ok("server", serve_within(listener, app, (None, limits), tasks.clone()));
            Self(address, tasks)
        }

        /// A connection on which this was sent.
        async fn send(&self, text: &str) -> TcpStream {
            let mut stream = TcpStream::connect(self.0).await.expect("connects");
            stream.write_all(text.as_bytes()).await.expect("writes");
            stream
        }

        /// The status and the head of the answer to a request that asks for a close.
        async fn get(&self, path: &str, token: &str) -> String {
            let head = format!(
                "GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\
                 Connection: close\r\n\r\n"
            );
            let (mut stream, mut answer) = (self.send(&head).await, String::new());
            stream.read_to_string(&mut answer).await.expect("an answer");
            answer
        }

        async fn until(&self, path: &str, token: &str, status: &str) -> String {
            let begin = format!("HTTP/1.1 {status} ");
            let wait = async {
                loop {
                    let answer = self.get(path, token).await;
                    if answer.starts_with(&begin) {
                        return answer;
                    }
                }
            };
            runtime::timeout(Duration::from_secs(20), wait).await.expect("in time")
        }
    }

    #[tokio::test]
    async fn slow_bodies_of_one_token_leave_room_for_others() {
        let server = Served::start(ROOM).await;
        let slow = [server.send(SLOW).await, server.send(SLOW).await];
        let refusal = server.until("/fast", "one", "429").await;
        assert!(refusal.contains("this token has 2 requests under way"), "{refusal}");
        assert!(refusal.contains("connection: close"), "its body is not read: {refusal}");
        assert!(server.get("/fast", "other").await.starts_with("HTTP/1.1 200 "));
        drop(slow);
        server.until("/fast", "one", "200").await;
    }

    #[test]
    fn a_token_has_one_name_however_it_is_written() {
        let token = JoinToken { id: TokenId(7), secret: [0xab; 32], ca: None };
        let with_ca = |ca: u8| JoinToken { ca: Some([ca; 32]), ..token.clone() }.to_string();
        let (plain, name) = (token.to_string(), named(&token.to_string()));
        let same = [with_ca(1), with_ca(0xcd), format!(" {plain} ")];
        for text in same {
            assert!(text.parse::<JoinToken>().is_ok(), "{text}");
            assert_eq!(named(&text), name, "{text}");
        }
        assert_ne!(named("one"), named("two"), "what is no token is its own");
    }

    #[tokio::test]
    async fn components_connect_when_all_places_are_taken() {
        let server = Served::start(Limits { connections: 1, ..ROOM }).await;
        let slow = server.send(SLOW).await;
        server.until("/fast", "other", "503").await;
        let stream = COMPONENTS_PATH.replace("{method}", "Cell");
        server.until(&stream, "other", "200").await;
        server.until("/fast", "other", "503").await;
        drop(slow);
        server.until("/fast", "other", "200").await;
    }

    #[test]
    fn an_address_has_its_share_of_connections() {
        let room = Room::of(ROOM);
        let share = |text: &str| room.share(text.parse().expect("an address"));
        let one = [share("192.0.2.1").expect("room"), share("192.0.2.1").expect("room")];
        assert!(share("192.0.2.1").is_err());
        assert!(share("::ffff:192.0.2.1").is_err(), "the same address in other words");
        assert!(share("192.0.2.2").is_ok());
        let many = [share("2001:db8::1").expect("room"), share("2001:db8::2").expect("room")];
        assert!(share("2001:db8::3").is_err(), "one network");
        assert!(share("2001:db8:0:1::3").is_ok());
        let local: Vec<_> = (0..9).map(|_| share("127.0.0.1").expect("any number")).collect();
        assert!(local.iter().all(Option::is_none));
        drop((one, many));
        assert!(share("192.0.2.1").is_ok());
    }

    #[tokio::test]
    async fn a_connection_without_requests_ends_and_one_with_a_request_goes_on() {
        let requests = Requests::new();
        requests.count().limit = Duration::from_millis(20);
        requests.idle().await;
        let request = requests.begin();
        requests.count().limit = Duration::from_millis(20);
        let quiet = runtime::timeout(Duration::from_millis(100), requests.idle()).await;
        assert!(quiet.is_none(), "a request is under way");
        drop(request);
        requests.idle().await;
        assert!(requests.count().since.elapsed() >= Duration::from_millis(20));
    }
}
