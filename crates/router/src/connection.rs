//! One client connection, from its first byte to its last.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::client::{Client, ClientIo, Upgraded};
use crate::options::MAX_STREAMS;
use crate::proxy;
use crate::stats::Count;
use crate::worker::{Worker, spawn_here};

/// How an HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How many bytes of it no HTTP/1.1 request begins with.
const PREFACE_TELLS: usize = 3;
/// How long to wait for the rest of a beginning that may be either.
const PREFACE_PAUSE: Duration = Duration::from_millis(5);
/// How often a silent HTTP/2 client is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long it has to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves a connection to its end.
pub(crate) async fn serve(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let begins = worker.stop.or_stop(is_h2(&stream));
    let is_h2 = match runtime::timeout(worker.limits.header_timeout, begins).await {
        Some(Some(Ok(is_h2))) => is_h2,
        // A connection without a byte when the router stops is not missed.
        Some(Some(Err(_)) | None) => return,
        None => {
            worker.counters.add(Count::TimedOut);
            return;
        }
    };
    let client = Client::new(Rc::clone(&worker), peer, is_h2);
    let registered = worker.register(&client);
    if is_h2 {
        serve_h2(&client, stream).await;
    } else {
        serve_h1(&client, stream).await;
    }
    drop(registered);
}

/// Looks at how the connection begins, and leaves it there.
async fn is_h2(stream: &TcpStream) -> std::io::Result<bool> {
    let mut start = [0; PREFACE_TELLS];
    loop {
        let seen = stream.peek(&mut start).await?;
        if seen == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if !PREFACE.starts_with(&start[..seen]) {
            return Ok(false);
        }
        if seen == PREFACE_TELLS {
            return Ok(true);
        }
        runtime::sleep(PREFACE_PAUSE).await;
    }
}

async fn serve_h1(client: &Rc<Client>, stream: TcpStream) {
    let io = TokioIo::new(ClientIo { stream, client: Rc::clone(client) });
    let owned = Rc::clone(client);
    let service = service_fn(move |request| proxy::serve(Rc::clone(&owned), request));
    let mut connection = client.worker.http1.serve_connection(io, service);
    let mut is_draining = false;
    let ended = poll_fn(|cx| {
        client.watch(cx);
        if client.is_closed() {
            client.worker.counters.add(Count::TimedOut);
            return Poll::Ready(None);
        }
        if client.worker.is_draining() && !is_draining {
            is_draining = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        Pin::new(&mut connection).poll(cx).map(Some)
    });
    if let Some(Err(error)) = ended.await {
        tracing::debug!(peer = %client.peer, %error, "a connection broke");
    }
    let upgraded = client.upgraded.borrow_mut().take();
    if let Some(upgraded) = upgraded {
        let parts = connection.into_parts();
        tunnel(client, parts.io.into_inner(), &parts.read_buf, upgraded).await;
    }
}

/// Carries bytes both ways until both sides have ended, or one breaks.
async fn tunnel(client: &Client, mut io: ClientIo, read: &[u8], upgraded: Upgraded) {
    client.tunnels();
    client.worker.counters.add(Count::Tunnels);
    let Upgraded { io: mut upstream, sent, lease } = upgraded;
    let carried = async {
        io.write_all(&sent).await?;
        upstream.write_all(read).await?;
        tokio::io::copy_bidirectional(&mut io, &mut upstream).await
    };
    if let Err(error) = carried.await {
        tracing::debug!(peer = %client.peer, %error, "an upgraded connection broke");
    }
    drop(lease);
    client.worker.counters.add(Count::TunnelsEnded);
}

/// Spawns the streams of an HTTP/2 connection onto its own thread.
#[derive(Debug, Clone, Copy)]
struct Here;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, future: F) {
        spawn_here(future);
    }
}

async fn serve_h2(client: &Rc<Client>, stream: TcpStream) {
    let io = TokioIo::new(ClientIo { stream, client: Rc::clone(client) });
    let owned = Rc::clone(client);
    let service = service_fn(move |request| proxy::serve(Rc::clone(&owned), request));
    let list = u32::try_from(client.worker.limits.header_bytes).unwrap_or(u32::MAX);
    let mut builder = hyper::server::conn::http2::Builder::new(Here);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(list)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    let mut connection = builder.serve_connection(io, service);
    let mut is_ending = false;
    let ended = poll_fn(|cx| {
        client.watch(cx);
        if client.is_closed() && is_ending {
            client.worker.counters.add(Count::TimedOut);
            return Poll::Ready(None);
        }
        if (client.worker.is_draining() || client.is_closed()) && !is_ending {
            // The client is told which of its requests were taken, so that it can repeat others.
            is_ending = true;
            client.forgive();
            Pin::new(&mut connection).graceful_shutdown();
        }
        Pin::new(&mut connection).poll(cx).map(Some)
    });
    if let Some(Err(error)) = ended.await {
        tracing::debug!(peer = %client.peer, %error, "an HTTP/2 connection broke");
    }
}
