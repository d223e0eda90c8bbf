//! Where people come in: the HTTP API under `/v1`.
//!
//! An edge holds no rule: it authenticates, asks the authorizer, calls one operation of the server
//! and renders the answer.

pub mod http;
mod serve;

pub use http::{openapi, router};
pub use serve::{MAX_CONNECTIONS, serve};
