//! The control plane's shell: the apply loop around the deterministic state, the streams that
//! components dial, log buffers, blobs and tokens.
//!
//! It never runs a job, never parses a project file, and dials nobody but the callbacks that users
//! name, through a guard that keeps private networks out.

mod apply;
mod auth;
mod callbacks;
mod changes;
mod components;
mod feed;
mod followers;
mod identity;
mod logs;
mod metrics;
mod otlp;
mod server;
mod sessions;
mod tls;
pub mod views;
mod waits;
mod wakes;

pub use apply::{ApplyError, Loop, MAX_BATCH, MAX_EVENTS, MAX_IN_FLIGHT, MAX_WAITING, Published};
pub use auth::{Action, Principal, TokenFault, allows};
pub use callbacks::{MAX_SENDING, SEND_LIMIT, signature};
pub use changes::{EVENT_KINDS, Told};
pub use components::Service;
pub use egress::{Network, Url};
pub use feed::{After, Feed, Kept, MAX_KEPT_BYTES, MAX_KEPT_EVENTS};
pub use followers::{Following, MAX_FOLLOWED, MAX_WAITING_CALLS, Waiting};
pub use identity::{CERTIFICATE_LIFE, IdentityAuthority};
pub use otlp::OTLP_EVERY;
pub use server::{
    Parts, Ports, ROUTER_WAIT, Rebalance, Server, ServerError, Settings, StartError, not_found,
};
pub use sessions::{
    MAX_SESSIONS, MAX_SESSIONS_PER_PROJECT, STOPPING, Session, SessionFault, SessionPlace,
    SessionRefusal, SessionTarget,
};
pub use state::{MAX_MOVES, REBALANCE_PERIOD};
pub use store::blobs::{BlobError, Stored, Upload};
pub use tls::{Authority, TlsError};
