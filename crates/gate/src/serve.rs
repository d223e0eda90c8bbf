//! Takes connections: who is it for, is it a router, does the instance take it; then carries bytes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use runtime::Stop;
use rustls::server::{Accepted, AcceptedAlert, Acceptor};
use rustls::{Connection, ServerConfig};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::LocalOptions;
use tokio::sync::Notify;

use crate::dial::READY;
use crate::limits::{CONNECT_LIMIT, HANDSHAKE_LIMIT, IDLE_LIMIT, MAX_CONNECTIONS, MAX_HANDSHAKES};
use crate::splice::{Scratch, splice};
use crate::stream::TlsStream;
use crate::table::{Instance, Place, Table};

/// How long to wait when the system has no connection to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all threads of a gate share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) table: Table,
    /// Fires when another gate takes the connections.
    pub(crate) drain: Stop,
    /// Fires when what is left is cut.
    pub(crate) cut: Stop,
    pub(crate) connections: AtomicUsize,
    most: usize,
    refusing: Arc<ServerConfig>,
}

impl Shared {
    pub(crate) fn new(table: Table) -> io::Result<Self> {
        let refusing = crate::identity::refusing().map_err(io::Error::other)?;
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        // A connection has two sides.
        let most = files.and_then(|files| usize::try_from(files / 4).ok());
        Ok(Self {
            table,
            drain: Stop::new(),
            cut: Stop::new(),
            connections: AtomicUsize::new(0),
            most: most.unwrap_or(MAX_CONNECTIONS).min(MAX_CONNECTIONS),
            refusing,
        })
    }
}

/// A connection that counts against the limit.
struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: &Arc<Shared>) -> Option<Self> {
        let before = shared.connections.fetch_add(1, Ordering::Relaxed);
        let counted = Self(Arc::clone(shared));
        (before < shared.most).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Handshakes under way on one thread, the oldest first.
#[derive(Debug, Default)]
struct Handshakes {
    waiting: RefCell<VecDeque<(u64, Rc<Notify>)>>,
    numbered: Cell<u64>,
}

impl Handshakes {
    /// One more; when there are too many, the oldest is told to end.
    fn enter(&self) -> (u64, Rc<Notify>) {
        let number = self.numbered.get();
        self.numbered.set(number + 1);
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= MAX_HANDSHAKES
            && let Some((_, oldest)) = waiting.pop_front()
        {
            oldest.notify_one();
        }
        let mine = Rc::new(Notify::new());
        waiting.push_back((number, Rc::clone(&mine)));
        (number, mine)
    }

    fn leave(&self, number: u64) {
        let mut waiting = self.waiting.borrow_mut();
        if let Ok(at) = waiting.binary_search_by_key(&number, |(number, _)| *number) {
            waiting.remove(at);
        }
    }
}

/// One thread.
#[derive(Debug)]
struct Worker {
    shared: Arc<Shared>,
    handshakes: Handshakes,
    scratch: Scratch,
}

/// Spawns onto this thread's own runtime.
#[expect(
    clippy::disallowed_methods,
    reason = "one runtime for each thread owns its connections, and its end is their end"
)]
fn spawn_here(future: impl Future<Output = ()> + 'static) {
    drop(tokio::task::spawn_local(future));
}

/// Serves on this thread until another gate takes over and what is under way has ended.
pub(crate) fn run(shared: Arc<Shared>, listener: std::net::TcpListener) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())?;
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener)?;
        let (scratch, handshakes) = (Scratch::default(), Handshakes::default());
        let worker = Rc::new(Worker { shared, handshakes, scratch });
        // Whoever takes over accepts from the same socket: what waits there is not lost.
        while let Some(accepted) = worker.shared.drain.or_stop(listener.accept()).await {
            match accepted {
                Ok((tcp, _)) => take(&worker, tcp),
                Err(error) => {
                    let is_theirs = matches!(
                        error.kind(),
                        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
                    );
                    if !is_theirs {
                        runtime::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
        drop(listener);
        worker.shared.cut.stopped().await;
        Ok(())
    })
}

fn take(worker: &Rc<Worker>, tcp: TcpStream) {
    let Some(counted) = Counted::new(&worker.shared) else { return };
    let worker = Rc::clone(worker);
    spawn_here(async move {
        if let Err(error) = serve(&worker, tcp).await {
            tracing::debug!(%error, "a connection ended");
        }
        drop(counted);
    });
}

async fn serve(worker: &Worker, tcp: TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let (number, told) = worker.handshakes.enter();
    let shaken = tokio::select! {
        biased;
        // Boxed, because it is large and its room is not needed afterwards.
        shaken = runtime::timeout(HANDSHAKE_LIMIT, Box::pin(shake(worker, tcp))) => shaken,
        () = told.notified() => None,
    };
    worker.handshakes.leave(number);
    let (mut router, instance, place) = shaken.ok_or(ErrorKind::TimedOut)??;
    let connect = runtime::timeout(CONNECT_LIMIT, TcpStream::connect(instance.address));
    let app = connect.await.ok_or(ErrorKind::TimedOut)??;
    app.set_nodelay(true)?;
    // An address has no other instance before the one it had is gone from the table. So either this
    // is the right one, or it shows here.
    if instance.is_gone() {
        return Err(io::Error::other("the instance is gone"));
    }
    drop(instance);
    router.write_all(&[READY]).await?;
    router.flush().await?;
    let carried = splice(router, app, &worker.scratch, IDLE_LIMIT).await;
    drop(place);
    carried
}

type Shaken = (TlsStream, Arc<Instance>, Place);

/// The handshake, with the certificate of the instance that is asked for.
async fn shake(worker: &Worker, mut tcp: TcpStream) -> io::Result<Shaken> {
    let accepted = hello(worker, &mut tcp).await?;
    let wanted = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
    let instance = wanted.and_then(|name| worker.shared.table.find(&name));
    let config = instance.as_ref().map_or(&worker.shared.refusing, |instance| &instance.config);
    let tls = match accepted.into_connection(Arc::clone(config)) {
        Ok(tls) => tls,
        Err((error, alert)) => return refuse(&mut tcp, error, alert).await,
    };
    let mut stream = TlsStream::new(tcp, Connection::Server(tls));
    stream.handshake().await?;
    let instance = instance.ok_or(ErrorKind::NotFound)?;
    let place = instance.place().ok_or(ErrorKind::QuotaExceeded)?;
    Ok((stream, instance, place))
}

/// The client's greeting.
async fn hello(worker: &Worker, tcp: &mut TcpStream) -> io::Result<Accepted> {
    let mut acceptor = Acceptor::default();
    loop {
        tcp.readable().await?;
        let read = worker.scratch.with(|scratch| {
            let read = tcp.try_read(scratch)?;
            let mut bytes = &scratch[..read];
            while !bytes.is_empty() {
                acceptor.read_tls(&mut bytes)?;
            }
            Ok::<_, io::Error>(read)
        });
        match read {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(accepted),
            Ok(None) => {}
            Err((error, alert)) => return refuse(tcp, error, alert).await,
        }
    }
}

/// Says why a greeting is none.
async fn refuse<T>(
    tcp: &mut TcpStream,
    error: rustls::Error,
    mut alert: AcceptedAlert,
) -> io::Result<T> {
    let mut bytes = Vec::new();
    alert.write_all(&mut bytes)?;
    tcp.write_all(&bytes).await?;
    Err(io::Error::new(ErrorKind::InvalidData, error))
}
