//! Where people come in: the HTTP API under `/v1`, git over SSH.
//!
//! An edge holds no rule: it authenticates, asks the authorizer, calls one operation of the server
//! and renders the answer.

mod files;
pub mod http;
mod near;
mod serve;
pub mod ssh;

pub use http::{openapi, router};
pub use serve::{
    MAX_COMPONENT_CONNECTIONS, MAX_CONNECTIONS, MAX_PEER_CONNECTIONS, MAX_TOKEN_REQUESTS, serve,
};
