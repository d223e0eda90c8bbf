//! Clock, identifiers, task registry, back-off and metrics.
//!
//! This is the only crate that reads a clock, draws randomness or spawns a task; a tidy test and
//! lints hold every other crate to that. Everything here is passed as a value, so a test can give
//! its own clock and its own identifiers.
#![expect(
    clippy::disallowed_methods,
    reason = "this crate is the one place where clock, randomness and spawning are wrapped"
)]

mod backoff;
mod clock;
mod ids;
pub mod metrics;
mod shares;
mod tasks;

pub use backoff::Backoff;
pub use clock::{
    Clock, ManualClock, SteadyClock, SystemClock, mono_now, sleep, sleep_until, timeout,
};
pub use ids::{Ids, Random};
pub use shares::{Share, Shares};
pub use tasks::{Kind, Stop, Tasks, blocking, pause_thread, spawn_thread};
