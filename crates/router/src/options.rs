//! What a router is told at its start, and the limits it keeps.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use runtime::Stop;

/// How long a client may take to send the head of a request.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a message's head, either way.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Most header fields of a message, either way. It is also hyper's own limit.
pub const MAX_HEADERS: usize = 100;
/// How long a connection to a client may wait for the next request.
pub const CLIENT_IDLE: Duration = Duration::from_secs(75);
/// How long a client may neither take the response nor send the body it owes.
pub const CLIENT_STALL: Duration = Duration::from_mins(1);
/// How long an instance may take to accept a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an instance may take to start its response.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_mins(15);
/// How long a connection to an instance is kept for the next request. Node closes its own after
/// 5 s, and a request sent into a closing connection is a request lost.
pub const UPSTREAM_IDLE: Duration = Duration::from_secs(4);
/// Most kept connections to one instance, for each thread.
pub const MAX_IDLE_PER_TARGET: usize = 128;
/// Most connections to instances kept with their buffers, for each thread. Each holds about 20 KiB.
pub const MAX_WARM: usize = 256;
/// Most connections to instances kept as bare sockets, for all threads, unless half of the files
/// the process may have open are fewer.
pub const MAX_IDLE: usize = 16_384;
/// How many bare sockets a kept connection through a gate counts for: its keys and buffers take
/// some 6 KiB.
pub const SEALED_WEIGHT: usize = 2;
/// Most connections from clients.
pub const MAX_CONNECTIONS: usize = 20_000;
/// Most requests at a time on one HTTP/2 connection.
pub const MAX_STREAMS: u32 = 128;
/// How long requests in flight have after a stop.
pub const DRAIN_GRACE: Duration = Duration::from_secs(30);
/// Most threads, whatever is asked for.
pub const MAX_THREADS: usize = 64;

/// What a router is told at its start.
#[derive(Debug, Default)]
pub struct Options {
    /// Addresses to listen on. Port 0 takes a free one: see [`Router::addresses`].
    ///
    /// [`Router::addresses`]: crate::Router::addresses
    pub listen: Vec<SocketAddr>,
    /// Whether other routers on this machine may listen on the same addresses: the system spreads
    /// connections over all of them, and one can be replaced while the others go on.
    pub shares: bool,
    /// Sockets that listen already, as a service manager hands them over.
    pub listeners: Vec<TcpListener>,
    /// How many threads serve; 0 for one on each core.
    pub threads: usize,
    /// Who this router is; chosen once and kept.
    pub id: u128,
    /// What people call it.
    pub name: String,
    /// Where the last table is kept, so that a restart serves before the server is reached.
    pub keep: Option<PathBuf>,
    /// Fires once the server has let it in.
    pub joined: Stop,
    /// The limits.
    pub limits: Limits,
}

/// The limits a router keeps.
#[derive(Debug, Clone)]
pub struct Limits {
    /// See [`HEADER_TIMEOUT`].
    pub header_timeout: Duration,
    /// See [`MAX_HEADER_BYTES`]. At least 8 KiB.
    pub header_bytes: usize,
    /// See [`CLIENT_IDLE`].
    pub client_idle: Duration,
    /// See [`CLIENT_STALL`].
    pub client_stall: Duration,
    /// See [`CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// See [`RESPONSE_TIMEOUT`].
    pub response_timeout: Duration,
    /// See [`UPSTREAM_IDLE`].
    pub upstream_idle: Duration,
    /// See [`MAX_IDLE_PER_TARGET`].
    pub idle_per_target: usize,
    /// See [`MAX_WARM`].
    pub warm: usize,
    /// See [`MAX_IDLE`].
    pub idle: usize,
    /// See [`MAX_CONNECTIONS`].
    pub connections: usize,
    /// See [`DRAIN_GRACE`].
    pub drain_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_timeout: HEADER_TIMEOUT,
            header_bytes: MAX_HEADER_BYTES,
            client_idle: CLIENT_IDLE,
            client_stall: CLIENT_STALL,
            connect_timeout: CONNECT_TIMEOUT,
            response_timeout: RESPONSE_TIMEOUT,
            upstream_idle: UPSTREAM_IDLE,
            idle_per_target: MAX_IDLE_PER_TARGET,
            warm: MAX_WARM,
            idle: MAX_IDLE,
            connections: MAX_CONNECTIONS,
            drain_grace: DRAIN_GRACE,
        }
    }
}

impl Limits {
    /// How often a thread looks for what has taken too long.
    pub(crate) fn tick(&self) -> Duration {
        const SLOWEST: Duration = Duration::from_millis(250);
        const FASTEST: Duration = Duration::from_millis(5);
        let shortest = self
            .header_timeout
            .min(self.client_idle)
            .min(self.client_stall)
            .min(self.response_timeout)
            .min(self.upstream_idle);
        (shortest / 4).clamp(FASTEST, SLOWEST)
    }
}
