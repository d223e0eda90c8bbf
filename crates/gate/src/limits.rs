//! Every number that bounds something.

use std::time::Duration;

/// The port a gate listens on unless told otherwise.
pub const PORT: u16 = 7423;
/// How long a peer may take from the first byte to the end of the handshake.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// Handshakes under way, for each thread. One more ends the oldest: those that are meant end soon.
pub const MAX_HANDSHAKES: usize = 512;
/// Connections, for all threads, unless half of the files the process may have open are fewer.
pub const MAX_CONNECTIONS: usize = 20_000;
/// Connections to one instance. The rest is there for its neighbours.
pub const MAX_PER_INSTANCE: usize = 4_096;
/// How long an instance may take to accept a connection.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How long no byte may come either way. Routers end what they do not use after seconds, so this
/// is for upgraded connections and long responses.
pub const IDLE_LIMIT: Duration = Duration::from_hours(1);
/// How long connections go on in a gate that another one replaced.
pub const DRAIN_LIMIT: Duration = Duration::from_hours(1);
/// Threads that serve.
pub const MAX_THREADS: usize = 4;

/// Bytes that wait to be encrypted and sent, for each connection.
pub(crate) const TLS_BUFFER: usize = 32 << 10;
/// Bytes read at once.
pub(crate) const READ: usize = 16 << 10;
/// Sessions a router remembers, so that the next connection to the same instance costs less.
pub(crate) const MAX_SESSIONS: usize = 8_192;
/// Agents that talk to a gate at once: one, and what it asks meanwhile.
pub(crate) const MAX_CONTROLS: usize = 8;
/// The longest line of the control protocol.
pub(crate) const MAX_LINE: usize = 256 << 10;
/// How long a gate may take to answer, and to start.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How often a gate looks whether it is still the one of its directory.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Pauses between attempts to start a gate again.
pub(crate) const RESTART: (Duration, Duration) =
    (Duration::from_millis(20), Duration::from_secs(2));
