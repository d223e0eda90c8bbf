//! A small HTTP/1.1 server for sites that are only files.
//!
//! `GET` and `HEAD`; `index.html` of directories; `/about` finds `about.html`; `404.html`; entity
//! tags from content, conditional and range requests. There is no `Last-Modified`, because files
//! of an image all have the same time. Nothing outside the directory is served, nor anything whose
//! name starts with a dot, except `.well-known`.

mod answer;
mod files;
mod kinds;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use runtime::{Stop, Tasks};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use crate::Env;

pub use files::Site;

/// How long requests may still take after a stop.
pub const GRACE: Duration = Duration::from_secs(2);
/// Most connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 1_024;
/// How long a connection may be idle, or take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// How long to wait when no connection can be accepted, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const MAX_HEAD: usize = 32 * 1024;
const DEFAULT_PORT: u16 = 8080;

/// Serves as a process does: `args` are a directory (relative to `dir`) and perhaps `--spa`,
/// which answers unknown paths with `index.html`. Listens on `HOST` (127.0.0.1) and `PORT` (8080)
/// until TERM or INT.
pub fn main(args: &[String], env: &Env, dir: &Path) -> io::Result<()> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    let spa = args.iter().any(|argument| argument == "--spa");
    let mut dirs = args.iter().filter(|argument| *argument != "--spa");
    let dir = dirs.next().map_or_else(|| dir.to_owned(), |given| dir.join(given));
    if let Some(extra) = dirs.next() {
        return Err(invalid(format!("{extra:?} is one argument too many: <dir> [--spa]")));
    }
    let set = |name: &str| env.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let host = set("HOST").unwrap_or("127.0.0.1");
    let host: IpAddr =
        host.parse().map_err(|_| invalid(format!("HOST is {host:?}, which is no IP address")))?;
    let port = match set("PORT") {
        None => DEFAULT_PORT,
        Some(port) => {
            port.parse().map_err(|_| invalid(format!("PORT is {port:?}, which is no port")))?
        }
    };
    let listener = std::net::TcpListener::bind(SocketAddr::new(host, port))?;
    let site = Site::open(&dir, spa)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let stop = Stop::new();
        let tasks = Tasks::new(stop.clone());
        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let signalled = stop.clone();
        tasks.spawn_ok("signals", async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
                () = signalled.stopped() => {}
            }
            signalled.stop();
        });
        serve(listener, site, &stop).await
    });
    // A read of a disk that hangs must not keep the process.
    runtime.shutdown_background();
    result
}

/// Serves `site` on `listener` until `stop`; then finishes what is under way, for [`GRACE`].
pub async fn serve(listener: std::net::TcpListener, site: Site, stop: &Stop) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let site = Arc::new(site);
    let tasks = Tasks::new(stop.child());
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let slot = stop.or_stop(Arc::clone(&slots).acquire_owned()).await;
        let Some(Ok(slot)) = slot else { break };
        let stream = match stop.or_stop(listener.accept()).await {
            None => break,
            Some(Ok((stream, _))) => stream,
            Some(Err(error)) => {
                tracing::debug!(%error, "no connection accepted");
                if stop.or_stop(runtime::sleep(ACCEPT_PAUSE)).await.is_none() {
                    break;
                }
                continue;
            }
        };
        let (site, stop) = (Arc::clone(&site), tasks.stop().clone());
        tasks.spawn_ok("connection", async move {
            connection(stream, site, stop).await;
            drop(slot);
        });
    }
    drop(listener);
    if !tasks.shutdown(GRACE).await {
        tracing::warn!("requests were cut off");
    }
    Ok(())
}

async fn connection(stream: TcpStream, site: Arc<Site>, stop: Stop) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let service = service_fn(move |request| {
        let site = Arc::clone(&site);
        async move { Ok::<_, std::convert::Infallible>(answer::answer(&site, &request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.stopped() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests;
