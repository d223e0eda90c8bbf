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

use std::path::Path;

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

/// Kills what was started with files below a directory: instances outlive the cell that started
/// them, and a test must not leave them to the machine.
fn end_all_below(dir: &Path) {
    let wanted = dir.as_os_str().as_encoded_bytes();
    let Ok(processes) = std::fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let pid = process.file_name().to_str().and_then(|pid| pid.parse().ok());
        let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) else { continue };
        let has = |file: &str| {
            let text = std::fs::read(process.path().join(file)).unwrap_or_default();
            text.windows(wanted.len()).any(|part| part == wanted)
        };
        if has("environ") || has("cmdline") {
            // It may end by itself first.
            let killed = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            killed.unwrap_or_default();
        }
    }
}
