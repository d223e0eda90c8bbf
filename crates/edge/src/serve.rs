//! Serving HTTP/1.1 and HTTP/2 on one port: the API and the component streams together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::http_types::ErrorBody;
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use runtime::Tasks;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// Connections served at once; one more waits to be accepted.
pub const MAX_CONNECTIONS: usize = 4_096;
/// How long a client may take to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
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
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1_024);
    let service = TowerToHyperService::new(app);
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = stop.stopped() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection ended badly");
    }
}
