//! Serving HTTP/1.1 and HTTP/2 on one port: the API and the component streams together.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use api::http_types::ErrorBody;
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use runtime::{Tasks, mono_now};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

/// Connections served at once; one more waits to be accepted.
pub const MAX_CONNECTIONS: usize = 4_096;
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

/// Accepts connections until a stop is asked for.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    tls: Option<Arc<rustls::ServerConfig>>,
    tasks: Tasks,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let tls = tls.map(TlsAcceptor::from);
    let stop = tasks.stop().clone();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Some(accepted) = stop.or_stop(listener.accept()).await else { return };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                runtime::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection is gone already");
            continue;
        }
        let (app, tls, stop) = (app.clone(), tls.clone(), stop.clone());
        tasks.spawn_ok("http-connection", async move {
            match tls {
                None => connection(stream, app, &stop).await,
                Some(_) if speaks_plainly(&stream).await => not_without_tls(stream).await,
                Some(tls) => match runtime::timeout(TLS_TIMEOUT, tls.accept(stream)).await {
                    Some(Ok(stream)) => connection(stream, app, &stop).await,
                    Some(Err(error)) => refused(peer, &error),
                    None => tracing::debug!(%peer, "a TLS handshake took too long"),
                },
            }
            drop(slot);
        });
    }
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

async fn connection<S>(stream: S, app: Router, stop: &runtime::Stop)
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
            async move {
                let response = app.oneshot(request).await?;
                let body = |body| Body::new(Watched { body, _under_way: under_way });
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
    _under_way: UnderWay,
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
    use super::*;

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
