//! Takes jobs and does them. A runner keeps nothing: whatever it has to remember is the server's.
//! It runs no code of users: that happens in tasks and instances on cells.

mod context;
mod operations;
mod source;
mod stream;

pub use stream::{HEARTBEAT, Options, RunnerError, run};
