//! The control plane's shell: the apply loop around the deterministic state, the streams that
//! components dial, log buffers, blobs and tokens.
//!
//! It never runs a job, never parses a project file, and dials nobody.

mod apply;
mod auth;
mod components;
mod followers;
mod logs;
mod server;
mod tls;
pub mod views;

pub use apply::{ApplyError, Loop, MAX_BATCH, MAX_EVENTS, MAX_IN_FLIGHT, MAX_WAITING, Published};
pub use auth::{Action, Principal, TokenFault, allows};
pub use components::Service;
pub use followers::{Following, MAX_FOLLOWED};
pub use server::{Parts, Ports, ROUTER_WAIT, Server, ServerError, StartError, not_found};
pub use store::blobs::{BlobError, Stored, Upload};
pub use tls::{Authority, TlsError};
