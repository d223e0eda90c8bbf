//! The gate of a cell machine: proves to routers which instance answers, before a byte is sent.
//!
//! An address says nothing of who has it: ports and container addresses are used again. So a router
//! connects through the gate of the machine, one process for all of its containers. The gate shows
//! the certificate of the instance that the router asks for, lets only routers in, and carries
//! bytes between the TLS connection and the instance's own address. An instance that is gone has no
//! certificate there, so a router that has not heard of its end sends nothing to whoever has the
//! address now.
//!
//! Three parties use this crate: the process itself ([`maybe_run`]), the agent that keeps it
//! ([`Gate`]), and the router that connects through it ([`Dialer`]). It knows names, addresses and
//! certificates; not apps, deployments or where a certificate comes from.

mod control;
mod dial;
mod identity;
mod keeper;
mod limits;
mod process;
mod protocol;
mod serve;
mod splice;
mod stream;
mod table;

pub use dial::{Dialer, PeerName};
pub use identity::{Identity, IdentityError, Key, Trust};
pub use keeper::{Gate, GateError, Options};
pub use limits::{
    CONNECT_LIMIT, DRAIN_LIMIT, HANDSHAKE_LIMIT, IDLE_LIMIT, MAX_CONNECTIONS, MAX_HANDSHAKES,
    MAX_PER_INSTANCE, MAX_THREADS, PORT,
};
pub use process::maybe_run;
pub use stream::{Parked, TlsStream};
pub use table::Entry;
