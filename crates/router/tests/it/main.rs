//! The router over real sockets.

mod drain;
mod feed;
mod gate;
mod headers;
mod http2;
mod limits;
mod routing;
mod smuggling;
mod streaming;
mod support;
mod swap;
mod upgrade;
mod upstream;
