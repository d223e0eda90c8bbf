//! The gate as a process of its own.
//!
//! The agent starts its own executable again with a hidden argument; [`maybe_run`] notices that
//! before anything else happens. Standard input is the socket to listen on. Once it serves it says
//! so with one line, closes what it shares with the agent, and needs nobody: the agent may die.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use runtime::{Stop, Tasks};

use crate::control::{self, Control, Socket};
use crate::limits::{DRAIN_LIMIT, MAX_THREADS};
use crate::serve::{self, Shared};
use crate::table::{self, Table};

/// The argument that makes an executable a gate; its directory and its version follow.
pub(crate) const ARGUMENT: &str = "__longshore_gate";
/// What it says once it serves.
pub(crate) const SERVES: &str = "serves";
/// How often a gate that was replaced looks whether its connections have ended.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

/// Becomes a gate if this executable was started as one; the caller then returns the code at once.
/// Call it first in `main`, before threads, arguments, logging or a runtime exist.
pub fn maybe_run() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let dir = PathBuf::from(arguments.next()?);
    let version = arguments.next()?.into_string().ok()?;
    Some(match run(&dir, version) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever started us reads it, or nobody does.
            let told = writeln!(io::stdout(), "{error}");
            drop(told);
            ExitCode::FAILURE
        }
    })
}

fn run(dir: &Path, version: String) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::thread::set_name(c"shore-gate")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    std::env::set_current_dir("/")?;
    let listener = TcpListener::from(rustix::io::dup(io::stdin())?);
    listener.set_nonblocking(true)?;
    let listen = listener.local_addr()?;
    table::private_dir(dir)?;
    let shared = Arc::new(Shared::new(Table::open(dir)?)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = Socket::open(dir)?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut running = Vec::new();
        for index in 0..threads.min(MAX_THREADS) {
            let (shared, listener) = (Arc::clone(&shared), listener.try_clone()?);
            running.push(runtime::spawn_thread(&format!("gate-{index}"), move || {
                // A thread that cannot serve leaves the connections to the others.
                drop(serve::run(shared, listener));
            })?);
        }
        let tasks = Tasks::new(Stop::new());
        reply()?;
        let listener = Mutex::new(Some(listener));
        let control = Control { shared: Arc::clone(&shared), listener, listen, version };
        control::serve(control, socket, dir, &tasks).await;
        drain(&shared).await;
        for thread in running {
            drop(thread.join());
        }
        Ok(())
    })
}

/// Tells the agent, then lets go of it.
fn reply() -> io::Result<()> {
    writeln!(io::stdout(), "{SERVES}")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Lets connections end, at most for as long as is allowed.
async fn drain(shared: &Shared) {
    let all_ended = async {
        while shared.connections.load(Ordering::Relaxed) > 0 {
            runtime::sleep(DRAIN_LOOK).await;
        }
    };
    if runtime::timeout(DRAIN_LIMIT, all_ended).await.is_none() {
        tracing::warn!("connections of a replaced gate are cut");
    }
    shared.cut.stop();
}
