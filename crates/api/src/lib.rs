//! The contract between the server and everybody else: the component streams, the HTTP types and
//! the client that speaks both. It has no behaviour beyond getting messages there and back.

pub mod client;
mod connect;
pub mod http_types;
mod joining;
pub mod proto;
pub mod sessions;
mod socket;

pub use client::{Client, ClientError, Event};
pub use connect::{ConnectError, Connector, Endpoint, IoStream, OTHER_AUTHORITY, is_loopback_url};
pub use joining::{Joining, unreachable};
pub use socket::{SessionReceiver, SessionSender, SessionSocket};

/// The version of this program, for people and for the first message of every stream.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The header in which client and server of the HTTP API say which protocols they speak, as in
/// `1-3`. Without it nothing is checked: other clients than ours need not know it.
pub const PROTOCOL_HEADER: &str = "shore-protocol";
/// The header in which a list says at which revision it was read: whoever watches from there misses
/// nothing.
pub const REVISION_HEADER: &str = "shore-revision";
/// Where the server listens unless told otherwise.
pub const SERVER_PORT: u16 = 7420;
/// Where the server listens for SSH unless told otherwise.
pub const SSH_PORT: u16 = 7422;
/// Most bytes of a JSON request body.
pub const MAX_JSON_BODY: usize = 4 * 1024 * 1024;
/// Most bytes of one component message.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// Most bytes of what a cell is to run in one message, but for a single spec that is larger; more is
/// sent in parts. The last part names everything: the 100,000 containers a cell may have take some
/// 4 MiB without their specs, which leaves room in [`MAX_MESSAGE`] for a spec.
pub const MAX_DESIRED_PART: usize = 4 * 1024 * 1024;
/// Most bytes of a route table in one message; a larger one is sent in parts.
pub const MAX_TABLE_PART: usize = 4 * 1024 * 1024;
/// Most bytes of a route table as it is sent, some four million routes; a router refuses more.
pub const MAX_TABLE: usize = 512 * 1024 * 1024;
