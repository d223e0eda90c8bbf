//! Counters. Each thread has its own; a reader adds them up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use runtime::metrics::{Buckets, Histogram};

/// What a thread counts. Only that thread writes.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    counts: [AtomicU64; KINDS],
    /// Answers by the first digit of their status; what has none is in the first place.
    classes: [AtomicU64; CLASSES],
    /// How long it took until they began.
    took: Histogram,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    Requests,
    BadRequest,
    UnknownHost,
    NoTarget,
    Upstream,
    UpstreamTimeout,
    Retries,
    UpstreamConnections,
    TooMany,
    TimedOut,
    Connections,
    ConnectionsEnded,
    Active,
    ActiveEnded,
    Tunnels,
    TunnelsEnded,
    GateHandshakes,
    GateResumed,
}

const CLASSES: usize = 6;
const KINDS: usize = Count::GateResumed as usize + 1;

impl Counters {
    /// Adds one.
    pub(crate) fn add(&self, count: Count) {
        let counter = &self.counts[count as usize];
        // One writer, so a plain load and store loses nothing.
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// A request was answered.
    pub(crate) fn answered(&self, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).min(CLASSES - 1);
        self.classes[class].fetch_add(1, Ordering::Relaxed);
        self.took.observe(took);
    }

    /// Client connections that are open now.
    pub(crate) fn open_connections(&self) -> u64 {
        self.get(Count::Connections).saturating_sub(self.get(Count::ConnectionsEnded))
    }

    fn get(&self, count: Count) -> u64 {
        self.counts[count as usize].load(Ordering::Relaxed)
    }
}

/// What a router did so far and does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Requests that came in.
    pub requests: u64,
    /// Requests refused as malformed or ambiguous (400).
    pub bad_requests: u64,
    /// Requests for a host without a route (404).
    pub unknown_hosts: u64,
    /// Requests for a host whose instances are all away (503).
    pub no_targets: u64,
    /// Requests no instance answered properly (502), and responses that broke off.
    pub upstream_errors: u64,
    /// Requests an instance took too long for (504).
    pub upstream_timeouts: u64,
    /// Requests tried again.
    pub retries: u64,
    /// Connections opened to instances.
    pub upstream_connections: u64,
    /// Client connections refused because there were too many.
    pub too_many_connections: u64,
    /// Client connections closed because the client took too long.
    pub timed_out_connections: u64,
    /// Client connections open now.
    pub connections: u64,
    /// Requests being served now.
    pub active: u64,
    /// Upgraded connections (WebSocket) open now.
    pub tunnels: u64,
    /// Connections on which an instance proved who it is.
    pub gate_handshakes: u64,
    /// Those that an earlier one made cheaper.
    pub gate_resumed: u64,
}

/// How a router answered requests.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answers {
    /// By the first digit of their status; what has none is in the first place.
    pub classes: [u64; CLASSES],
    /// From the head of the request to the head of the response.
    pub took: Buckets,
}

impl Answers {
    pub(crate) fn sum<'a>(threads: impl Iterator<Item = &'a Counters>) -> Self {
        threads.fold(Self::default(), |mut sum, thread| {
            for (own, other) in sum.classes.iter_mut().zip(&thread.classes) {
                *own += other.load(Ordering::Relaxed);
            }
            sum.took.add(&thread.took.read());
            sum
        })
    }
}

impl Stats {
    pub(crate) fn sum<'a>(threads: impl Iterator<Item = &'a Counters>) -> Self {
        threads.fold(Self::default(), |sum, thread| {
            let now = |begun, ended| thread.get(begun).saturating_sub(thread.get(ended));
            Self {
                requests: sum.requests + thread.get(Count::Requests),
                bad_requests: sum.bad_requests + thread.get(Count::BadRequest),
                unknown_hosts: sum.unknown_hosts + thread.get(Count::UnknownHost),
                no_targets: sum.no_targets + thread.get(Count::NoTarget),
                upstream_errors: sum.upstream_errors + thread.get(Count::Upstream),
                upstream_timeouts: sum.upstream_timeouts + thread.get(Count::UpstreamTimeout),
                retries: sum.retries + thread.get(Count::Retries),
                upstream_connections: sum.upstream_connections
                    + thread.get(Count::UpstreamConnections),
                too_many_connections: sum.too_many_connections + thread.get(Count::TooMany),
                timed_out_connections: sum.timed_out_connections + thread.get(Count::TimedOut),
                connections: sum.connections + now(Count::Connections, Count::ConnectionsEnded),
                active: sum.active + now(Count::Active, Count::ActiveEnded),
                tunnels: sum.tunnels + now(Count::Tunnels, Count::TunnelsEnded),
                gate_handshakes: sum.gate_handshakes + thread.get(Count::GateHandshakes),
                gate_resumed: sum.gate_resumed + thread.get(Count::GateResumed),
            }
        })
    }
}
