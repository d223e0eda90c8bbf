//! The way in: requests go by host to the instances that answer for it.
//!
//! Each thread has its own listeners, connections and kept connections to instances, and shares with
//! the others only the route table, which is replaced as a whole. The table comes from the server's
//! stream; without the server, the last one goes on serving.

mod body;
mod client;
mod connection;
mod feed;
mod head;
mod headers;
mod host;
mod identity;
mod listen;
mod metrics;
mod options;
mod proxy;
mod stats;
mod table;
mod upstream;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use api::Endpoint;
use model::RouteTable;
use runtime::{Kind, Tasks};
use tokio::sync::{oneshot, watch};

pub use options::*;
pub use stats::{Answers, Stats};
pub use table::{Applied, TableChanges};

use identity::Identity;
use stats::Counters;
use worker::Shared;

/// Why a router does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// There is nothing to listen on.
    #[error("a router needs an address to listen on")]
    NoListener,
    /// A thread or a socket cannot be had.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
    /// The server cannot be addressed.
    #[error(transparent)]
    Connect(#[from] api::ConnectError),
}

/// A running router. It serves until its tasks are asked to stop; dropping this changes nothing.
#[derive(Debug, Clone)]
pub struct Router {
    shared: Arc<Shared>,
    threads: Arc<[Arc<Counters>]>,
    addresses: Arc<[SocketAddr]>,
    /// Why the server does not want this router, once it said so and there is nothing to serve.
    refused: watch::Sender<Option<String>>,
}

impl Router {
    /// Starts the threads and, with an endpoint, the stream that brings the table. `tasks` owns
    /// both: its stop drains the router, its shutdown waits for that.
    pub fn start(
        options: Options,
        endpoint: Option<Endpoint>,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        let threads = listen::threads(options.threads);
        let mut options = options;
        options.limits.idle = options.limits.idle.min(listen::sockets_to_keep());
        let (addresses, listeners) = listen::sockets(&options, threads)?;
        let shared = Arc::new(Shared {
            routes: table::Routes::default(),
            limits: options.limits.clone(),
            connections: AtomicUsize::new(0),
            started: runtime::mono_now(),
            stop: tasks.stop().clone(),
            identity: Identity::new(options.keep.as_deref()),
        });
        if let Some(path) = &options.keep {
            feed::load(&shared.routes, path);
        }
        let mut counters = Vec::with_capacity(threads);
        for (index, listeners) in listeners.into_iter().enumerate() {
            counters.push(spawn(index, &shared, listeners, tasks)?);
        }
        let router = Self {
            shared,
            threads: counters.into(),
            addresses: addresses.into(),
            refused: watch::Sender::new(None),
        };
        if let Some(endpoint) = endpoint {
            feed::start(&router, endpoint, options, tasks)?;
        }
        Ok(router)
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Why it ended by itself: the server does not want it, and it has nothing to serve.
    pub fn refusal(&self) -> Option<String> {
        self.refused.borrow().clone()
    }

    /// What it did so far and does now.
    pub fn stats(&self) -> Stats {
        Stats::sum(self.threads.iter().map(AsRef::as_ref))
    }

    /// How requests were answered.
    pub fn answers(&self) -> Answers {
        Answers::sum(self.threads.iter().map(AsRef::as_ref))
    }

    /// The generation of the table it serves.
    pub fn generation(&self) -> u64 {
        self.shared.routes.generation()
    }

    /// Shows gates who this router is. A server does that by itself.
    pub fn prove(&self, dialer: gate::Dialer) {
        self.shared.identity.prove(dialer);
    }

    /// Serves `table` unless it is older than the one served. When this returns, every thread
    /// routes new requests by it.
    pub fn apply(&self, table: &RouteTable) -> Applied {
        self.shared.routes.replace(table)
    }

    /// Makes numbered changes to the table.
    pub fn change(&self, changes: &TableChanges) -> Applied {
        self.shared.routes.change(changes)
    }
}

/// Starts one thread. A task stands for it, so that a shutdown waits for it.
fn spawn(
    index: usize,
    shared: &Arc<Shared>,
    listeners: Vec<std::net::TcpListener>,
    tasks: &Tasks,
) -> Result<Arc<Counters>, StartError> {
    let counters = Arc::new(Counters::default());
    let (ended, end) = oneshot::channel();
    let (shared, mine) = (Arc::clone(shared), Arc::clone(&counters));
    runtime::spawn_thread(&format!("router-{index}"), move || {
        let result = worker::run(shared, mine, listeners);
        // The task is gone when nobody waits for a shutdown.
        drop(ended.send(result));
    })?;
    tasks.spawn(Kind::Critical, "router thread", async move {
        end.await.unwrap_or_else(|_| Err(std::io::Error::other("the thread broke")))
    });
    Ok(counters)
}
