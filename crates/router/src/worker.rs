//! One thread: its listeners, its connections, its pools. Nothing here is shared with other threads
//! but the route table and the counters.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::TcpListener as StdListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use http::HeaderValue;
use runtime::Stop;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::LocalOptions;

use crate::client::Client;
use crate::connection;
use crate::identity::Identity;
use crate::options::Limits;
use crate::stats::{Count, Counters};
use crate::table::Routes;
use crate::upstream::Pools;

/// What all threads of a router share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) routes: Routes,
    pub(crate) limits: Limits,
    /// Client connections of all threads.
    pub(crate) connections: AtomicUsize,
    pub(crate) started: Instant,
    pub(crate) stop: Stop,
    /// Who we are for gates.
    pub(crate) identity: Identity,
}

/// What one thread has.
#[derive(Debug)]
pub(crate) struct Worker {
    shared: Arc<Shared>,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
    pub(crate) pools: Pools,
    pub(crate) http1: hyper::server::conn::http1::Builder,
    /// Milliseconds since the router's start, at the last tick.
    now: Cell<u64>,
    random: Cell<u64>,
    request_ids: Cell<u64>,
    draining: Cell<bool>,
    clients: RefCell<HashMap<u64, Rc<Client>, RandomState>>,
    numbered: Cell<u64>,
    emptied: tokio::sync::Notify,
}

impl std::ops::Deref for Worker {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// How long to wait when the system has no connection to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl Worker {
    fn new(shared: Arc<Shared>, counters: Arc<Counters>) -> Rc<Self> {
        let limits = shared.limits.clone();
        let mut http1 = hyper::server::conn::http1::Builder::new();
        http1.max_buf_size(limits.header_bytes).max_header_size(limits.header_bytes);
        let random = runtime::Random::system();
        Rc::new(Self {
            now: Cell::new(since(shared.started)),
            shared,
            limits,
            counters,
            pools: Pools::default(),
            http1,
            random: Cell::new(random.next_u64()),
            request_ids: Cell::new(random.next_u64()),
            draining: Cell::new(false),
            clients: RefCell::default(),
            numbered: Cell::new(0),
            emptied: tokio::sync::Notify::new(),
        })
    }

    /// Milliseconds since the router's start, as of the last tick.
    pub(crate) fn now(&self) -> u64 {
        self.now.get()
    }

    /// Milliseconds since the router's start.
    pub(crate) fn exact_now(&self) -> u64 {
        since(self.started)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    fn next_random(&self) -> u64 {
        // splitmix64: good enough to choose by, not to keep secrets with.
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A random number less than `bound`.
    pub(crate) fn below(&self, bound: usize) -> usize {
        usize::try_from(self.next_random() >> 32).unwrap_or(0) % bound.max(1)
    }

    /// A request id: 16 digits of this thread's own, then 16 at random.
    pub(crate) fn request_id(&self) -> HeaderValue {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let count = self.request_ids.get().wrapping_add(1);
        self.request_ids.set(count);
        let mut text = [0; 32];
        let whole = (u128::from(count) << 64) | u128::from(self.next_random());
        for (pair, byte) in text.chunks_exact_mut(2).zip(whole.to_be_bytes()) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("none"))
    }

    /// Remembers a connection until its guard is dropped.
    pub(crate) fn register(self: &Rc<Self>, client: &Rc<Client>) -> Registered {
        let number = self.numbered.get();
        self.numbered.set(number + 1);
        self.clients.borrow_mut().insert(number, Rc::clone(client));
        Registered { worker: Rc::clone(self), number }
    }

    /// Looks, at each tick, for what has taken too long.
    async fn sweep(self: Rc<Self>) {
        let tick = self.limits.tick();
        loop {
            runtime::sleep(tick).await;
            self.now.set(since(self.started));
            self.pools.sweep(self.now(), &self.limits);
            self.routes.sweep_sockets(self.now(), &self.limits);
            for client in self.clients.borrow().values() {
                client.sweep();
            }
        }
    }

    /// Waits until all connections have ended, at most for the grace period.
    async fn drain(&self) {
        self.draining.set(true);
        for client in self.clients.borrow().values() {
            client.wake();
        }
        let all_ended = async {
            while self.counters.open_connections() > 0 {
                self.emptied.notified().await;
            }
        };
        if runtime::timeout(self.limits.drain_grace, all_ended).await.is_none() {
            let left = self.counters.open_connections();
            tracing::warn!(left, "connections did not end in time and are cut");
        }
    }
}

fn since(started: Instant) -> u64 {
    let elapsed = runtime::mono_now().saturating_duration_since(started);
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// A connection the sweeper looks at.
#[derive(Debug)]
pub(crate) struct Registered {
    worker: Rc<Worker>,
    number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.worker.clients.borrow_mut().remove(&self.number);
    }
}

/// A client connection that counts against the limit.
#[derive(Debug)]
struct Counted(Rc<Worker>);

impl Counted {
    fn new(worker: &Rc<Worker>) -> Option<Self> {
        let before = worker.connections.fetch_add(1, Ordering::Relaxed);
        worker.counters.add(Count::Connections);
        let counted = Self(Rc::clone(worker));
        (before < worker.limits.connections).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.counters.add(Count::ConnectionsEnded);
        self.0.emptied.notify_one();
    }
}

/// Spawns onto this thread's own runtime.
#[expect(
    clippy::disallowed_methods,
    reason = "one runtime for each thread owns its connections, and its end is their end"
)]
pub(crate) fn spawn_here(future: impl Future<Output = ()> + 'static) {
    drop(tokio::task::spawn_local(future));
}

/// Serves on this thread until a stop was asked for and connections have ended.
pub(crate) fn run(
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    listeners: Vec<StdListener>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())?;
    runtime.block_on(async move {
        let worker = Worker::new(shared, counters);
        let listeners = listeners.into_iter().map(TcpListener::from_std);
        let listeners = listeners.collect::<std::io::Result<Vec<_>>>()?;
        spawn_here(Rc::clone(&worker).sweep());
        let accepting = listeners.into_iter().map(|listener| accept(&worker, listener));
        futures_util::future::join_all(accepting).await;
        worker.drain().await;
        Ok(())
    })
}

async fn accept(worker: &Rc<Worker>, listener: TcpListener) {
    while let Some(accepted) = worker.stop.or_stop(listener.accept()).await {
        take(worker, accepted).await;
    }
    // Who is in the queue already would see a reset.
    while let Some(accepted) = futures_util::FutureExt::now_or_never(listener.accept()) {
        if accepted.is_err() {
            return;
        }
        take(worker, accepted).await;
    }
}

async fn take(worker: &Rc<Worker>, accepted: std::io::Result<(TcpStream, std::net::SocketAddr)>) {
    match accepted {
        Ok((stream, peer)) => match Counted::new(worker) {
            Some(counted) => {
                let worker = Rc::clone(worker);
                spawn_here(async move {
                    connection::serve(worker, stream, peer).await;
                    drop(counted);
                });
            }
            None => worker.counters.add(Count::TooMany),
        },
        Err(error) => {
            let is_theirs =
                matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset);
            if !is_theirs {
                tracing::warn!(%error, "no connection could be accepted");
                runtime::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
