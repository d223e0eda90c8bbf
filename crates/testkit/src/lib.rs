//! Uses the product as a person would: starts `shore dev`, runs commands, pushes with the real git
//! and ssh, asks for pages. For end-to-end tests and measurements; never shipped.

mod alone;
mod authority;
mod cluster;
mod dev;
mod disk;
mod git;
mod http;
mod lan;
mod load;
mod steady;

pub use alone::Alone;
pub use authority::{Authority, GOOD_UNTIL_MS, ROUTER, Validity, gate_options};
pub use cluster::{Cluster, Role};
pub use dev::{Dev, Ports, Ran, shore_binary};
pub use disk::Disk;
pub use gate;
pub use git::Repo;
pub use http::{Page, answer, exchange, get};
pub use lan::{Host, Lan};
pub use load::{Load, Loaded};
pub use steady::{AGAIN_PAUSE, Failed, Mark, Met, Steady, Wanted, get_from};

/// Why a step of a person's did not work, for the one who reads the test's output.
pub type Failure = String;

/// Waits until `done` gives something, looking again after short pauses.
pub fn wait_for<T>(
    what: &str,
    limit: std::time::Duration,
    mut done: impl FnMut() -> Option<T>,
) -> Result<T, Failure> {
    let started = runtime::mono_now();
    loop {
        if let Some(found) = done() {
            return Ok(found);
        }
        if started.elapsed() > limit {
            return Err(format!("waited {limit:?} for {what}"));
        }
        runtime::pause_thread(std::time::Duration::from_millis(2));
    }
}
