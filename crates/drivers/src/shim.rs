//! The supervisor of one process: what lets containers outlive the agent.
//!
//! The agent starts its own executable again with a hidden argument; [`maybe_run`] notices that
//! before anything else happens. The supervisor leads a session of its own, adopts whatever its
//! descendants leave behind, starts the command, keeps its output in bounded files, writes down
//! how it ended, and ends when nothing is left below it. It needs nobody: the agent may die.
//!
//! Standard input carries a `Request`, standard output the `Reply`; after that both are closed
//! and files in the process's directory say everything.

mod command;
mod enter;
mod inside;
mod keep;
mod record;
pub(crate) mod session;
mod through;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, PipeReader, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use runtime::{Clock as _, SystemClock, mono_now};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{WaitOptions, WaitStatus};
use serde::{Deserialize, Serialize};

use crate::docker::inside::Launched;
use crate::docker::wire::Order;
use crate::driver::{Exit, Outcome};
use crate::error::StartFault;
use crate::oci::stage;
use crate::output::Source;
use crate::proc::{self, Id};
use crate::spec::Limits;

pub(crate) use command::usual_signals;
pub(crate) use enter::Enter;
use keep::Keeper;
pub(crate) use record::{FILE_HEADER_BYTES, Record, file_start};
pub use record::{KEPT_BYTES_PER_FILE, KEPT_FILES};
pub(crate) use through::usual_mortality;

/// The argument that makes an executable a supervisor.
pub(crate) const ARGUMENT: &str = "__longshore_supervisor";
/// The file that says that the driver killed the process.
pub(crate) const KILLED_FILE: &str = "killed";
/// The file that says which processes were started.
pub(crate) const STARTED_FILE: &str = "started.json";
/// The file that says how the process ended.
pub(crate) const EXIT_FILE: &str = "exit.json";
const TEMPORARY_EXIT_FILE: &str = "exit.json.new";
/// Room taken for `EXIT_FILE` before the start, so that a full disk cannot lose an exit status.
const EXIT_FILE_BYTES: usize = 256;
/// How long output of descendants that outlive the process is still waited for.
const DRAIN_LIMIT: Duration = Duration::from_millis(100);

/// What to start.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// Where output and exit status go.
    pub(crate) state_dir: PathBuf,
    pub(crate) launch: Launch,
}

/// How to start it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Launch {
    /// As a child, on this machine.
    Direct(Direct),
    /// In a container, by going there.
    Enter(Enter),
    /// In a container, by its first process.
    Inside(Inside),
}

/// A command of this machine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Direct {
    pub(crate) argv: Vec<String>,
    pub(crate) dir: PathBuf,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) limits: Limits,
    /// The soft limit of open files where `limits` has none; the agent may have raised its own.
    pub(crate) usual_open_files: Option<u64>,
}

/// A command that a container runtime starts: `before... --process FILE --pid-file FILE after...`.
/// What it starts must become a child of the keeper when the runtime ends.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Through {
    pub(crate) before: Vec<String>,
    pub(crate) after: Vec<String>,
    /// What to start, in the runtime's own form. It may hold secrets and never touches a disk.
    pub(crate) process: String,
    /// Whose process the runtime is besides root's, where root may not set limits of others: those
    /// of this user it may.
    pub(crate) real_user: Option<u32>,
}

/// A command that the first process of a container starts.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Inside {
    /// That process.
    pub(crate) first: Id,
    pub(crate) order: Order,
    /// A file with the line `oom_kill N`: how many processes of the container were killed because
    /// memory ran out.
    pub(crate) oom_file: Option<PathBuf>,
}

/// What became of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Started(Processes),
    Failed(StartFault),
}

/// The processes behind one started command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Processes {
    /// The run of the machine they belong to.
    pub(crate) boot: String,
    pub(crate) supervisor: Id,
    pub(crate) command: Id,
    /// The parent of the command in its container, when it is not the supervisor.
    #[serde(default)]
    pub(crate) launcher: Option<Id>,
}

/// What the supervisor writes at the end.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) exit: Exit,
    /// Ticks used by everything that ended below the supervisor.
    pub(crate) ticks: u64,
}

/// Becomes a supervisor, or another helper of a driver, if this executable was started as one; the
/// caller then returns the code at once. Call it first in `main`, before threads, arguments, logging or a runtime exist.
pub fn maybe_run() -> Option<ExitCode> {
    let argument = std::env::args_os().nth(1)?;
    let ended = if argument == ARGUMENT {
        run()
    } else if argument == session::ARGUMENT {
        session::run()
    } else if argument == stage::ARGUMENT {
        Err(stage::run())
    } else {
        return None;
    };
    Some(match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn run() -> io::Result<()> {
    close_inherited(2)?;
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text)?;
    // An agent that dies here leaves half a request, which starts nothing.
    let request: Request = serde_json::from_slice(&text)?;
    drop(text);
    detach()?;
    match Supervisor::start(&request) {
        Ok((supervisor, processes)) => {
            reply(&Reply::Started(processes))?;
            drop(request);
            supervisor.run()
        }
        Err(fault) => reply(&Reply::Failed(fault)),
    }
}

/// Closes every descriptor behind `last` an ancestor left open by mistake, so that no process keeps a socket or
/// a lock of the agent alive.
#[expect(unsafe_code, reason = "there is no safe way to close a descriptor one does not own")]
fn close_inherited(last: i32) -> io::Result<()> {
    let mut inherited = Vec::new();
    for file in fs::read_dir("/proc/self/fd")? {
        let number = file?.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        inherited.extend(number.filter(|number| *number > last));
    }
    for number in inherited {
        // The listing had a descriptor of its own, which is closed by now.
        if fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok() {
            // SAFETY: this is the only thread, and it owns none of these yet.
            unsafe { rustix::io::close(number) };
        }
    }
    Ok(())
}

/// Leaves the agent's session and becomes the parent of orphaned descendants.
fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rustix::thread::set_name(c"shore-shim")?;
    std::env::set_current_dir("/")
}

/// Tells the agent, then lets go of it.
fn reply(reply: &Reply) -> io::Result<()> {
    let mut text = serde_json::to_vec(reply)?;
    text.push(b'\n');
    // The agent may be gone; what was started is kept all the same.
    let told = io::stdout().lock().write_all(&text).and_then(|()| io::stdout().lock().flush());
    drop(told);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}

/// The command that was started.
struct Command {
    pid: i32,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// What the first process of its container said, when that started it.
    launched: Option<Launched>,
}

impl Command {
    fn of(child: std::process::Child) -> Self {
        let pid = child.id().cast_signed();
        let (stdout, stderr) = (child.stdout.map(OwnedFd::from), child.stderr.map(OwnedFd::from));
        Self { pid, stdout, stderr, launched: None }
    }

    fn kill(&self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid) {
            let gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_err();
            tracing::debug!(gone, "killed what was started");
        }
    }
}

struct Supervisor {
    state_dir: PathBuf,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// Gives the wait status of the command, then ends when no child is left.
    reaped: Option<PipeReader>,
    keeper: Keeper,
    oom: Option<through::OomCount>,
    /// The command runs in a container.
    elsewhere: bool,
}

impl Supervisor {
    fn start(request: &Request) -> Result<(Self, Processes), StartFault> {
        let failed = |what: &str, error: &io::Error| {
            StartFault::Supervisor(format!("{what} in its directory: {error}"))
        };
        let dir = &request.state_dir;
        fs::write(dir.join(TEMPORARY_EXIT_FILE), [b' '; EXIT_FILE_BYTES])
            .map_err(|error| failed("cannot write", &error))?;
        let boot = proc::boot_id().map_err(|error| failed("cannot read boot id", &error))?;
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let (mut command, oom) = match &request.launch {
            Launch::Direct(direct) => (Command::of(command::spawn(direct)?), None),
            Launch::Enter(enter) => {
                let oom = through::OomCount::new(enter.oom_file.clone());
                (enter::spawn(enter)?, Some(oom))
            }
            Launch::Inside(inside) => {
                let oom = inside.oom_file.clone().map(through::OomCount::new);
                (inside::spawn(inside)?, oom)
            }
        };
        let launcher = command.launched.as_ref().map(|answer| answer.launcher);
        let ids = Id::of(own).zip(Id::of(command.pid));
        let started =
            ids.map(|(supervisor, command)| Processes { boot, supervisor, command, launcher });
        let kept = started
            .ok_or_else(|| io::Error::other("/proc cannot be read"))
            .and_then(|started| write_whole(dir, STARTED_FILE, &started).map(|()| started));
        let reaped = kept.and_then(|started| {
            let reaped = match command.launched.take() {
                Some(answer) => inside::reaped(answer)?,
                None => start_reaper(command.pid)?,
            };
            Ok((reaped, started))
        });
        let (reaped, started) = reaped.map_err(|error| {
            // Nobody would find it again, so it must not run.
            command.kill();
            failed("cannot write", &error)
        })?;
        let supervisor = Self {
            state_dir: dir.clone(),
            stdout: command.stdout.take(),
            stderr: command.stderr.take(),
            reaped: Some(reaped),
            keeper: Keeper::new(dir.clone()),
            oom,
            elsewhere: matches!(request.launch, Launch::Enter(_)),
        };
        Ok((supervisor, started))
    }

    fn run(mut self) -> io::Result<()> {
        let mut buffer = vec![0; record::MAX_RECORD_BYTES];
        let outcome = self.until_the_command_ends(&mut buffer)?;
        self.drain(&mut buffer)?;
        let oom = self.oom.as_ref().is_some_and(|oom| oom.explains(outcome, &self.state_dir));
        let exit = Exit { outcome, oom, at_ms: Some(SystemClock.now_ms()) };
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let ticks = proc::Entry::read(own).map_or(0, |entry| entry.child_ticks);
        self.write_exit(&Ended { exit, ticks })?;
        self.until_nothing_is_left(&mut buffer)
    }

    fn until_the_command_ends(&mut self, buffer: &mut [u8]) -> io::Result<Outcome> {
        loop {
            let turn = self.turn(buffer, None, Keep::Yes)?;
            if let Some(reaped) = self.reaped.as_mut().filter(|_| turn.reaper) {
                let mut status = [0; 4];
                reaped.read_exact(&mut status)?;
                return Ok(decode(i32::from_ne_bytes(status)));
            }
        }
    }

    /// Keeps what was written before the end, and for a moment what descendants write after it.
    fn drain(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let deadline = mono_now() + DRAIN_LIMIT;
        while self.stdout.is_some() || self.stderr.is_some() {
            let left = deadline.saturating_duration_since(mono_now());
            let turn = self.turn(buffer, Some(left), Keep::Yes)?;
            if !turn.output || reached(deadline) {
                break;
            }
        }
        Ok(())
    }

    /// Stays the parent of what the command left behind, and lets it write without blocking. What
    /// is left in a container has another parent, so there the open pipes tell.
    fn until_nothing_is_left(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            let turn = self.turn(buffer, None, Keep::No)?;
            if let Some(reaped) = self.reaped.as_mut().filter(|_| turn.reaper)
                && reaped.read(&mut [0; 4])? == 0
            {
                self.reaped = None;
            }
            let open = self.elsewhere && (self.stdout.is_some() || self.stderr.is_some());
            if self.reaped.is_none() && !open {
                return Ok(());
            }
        }
    }

    /// Waits for output or for the reaper, and handles the output.
    fn turn(&mut self, buffer: &mut [u8], limit: Option<Duration>, keep: Keep) -> io::Result<Turn> {
        let limit = limit.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        let ready = {
            let mut fds = Vec::with_capacity(3);
            fds.extend(self.reaped.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
            fds.extend(self.stdout.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
            fds.extend(self.stderr.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
            match poll(&mut fds, limit.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
            let reaper = self.reaped.is_some() && ready.next().unwrap_or(false);
            let stdout = self.stdout.is_some() && ready.next().unwrap_or(false);
            let stderr = self.stderr.is_some() && ready.next().unwrap_or(false);
            (reaper, stdout, stderr)
        };
        if ready.1 && !pass(self.stdout.as_ref(), Source::Stdout, buffer, (&mut self.keeper, keep))
        {
            self.stdout = None;
        }
        if ready.2 && !pass(self.stderr.as_ref(), Source::Stderr, buffer, (&mut self.keeper, keep))
        {
            self.stderr = None;
        }
        Ok(Turn { reaper: ready.0, output: ready.1 || ready.2 })
    }

    /// Writes into the room taken before the start, then gives the file its name.
    fn write_exit(&self, ended: &Ended) -> io::Result<()> {
        let from = self.state_dir.join(TEMPORARY_EXIT_FILE);
        let mut file = File::options().write(true).open(&from)?;
        file.write_all(&serde_json::to_vec(ended)?)?;
        fs::rename(from, self.state_dir.join(EXIT_FILE))
    }
}

/// What happened in one turn of the loop.
#[derive(Debug, Clone, Copy)]
struct Turn {
    reaper: bool,
    output: bool,
}

/// Whether output goes to the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Yes,
    No,
}

fn reached(deadline: Instant) -> bool {
    mono_now() >= deadline
}

/// Moves what can be read at once into the files; false at the end of the stream.
fn pass<F: AsFd>(
    from: Option<&F>,
    source: Source,
    buffer: &mut [u8],
    (keeper, keep): (&mut Keeper, Keep),
) -> bool {
    let Some(from) = from else { return false };
    let Some(room) = buffer.get_mut(record::HEADER_BYTES..) else { return false };
    match rustix::io::read(from, room) {
        Ok(0) => false,
        Ok(bytes) => {
            if keep == Keep::Yes {
                keeper.append(source, buffer, bytes);
            }
            true
        }
        Err(error) => error == rustix::io::Errno::INTR,
    }
}

/// Reaps every child. The only second thread: waiting for children and for output at once would
/// otherwise need a signal handler, which is global and unsafe.
fn start_reaper(command: i32) -> io::Result<PipeReader> {
    let (reader, mut writer) = io::pipe()?;
    runtime::spawn_thread("reaper", move || {
        loop {
            match rustix::process::wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) => {
                    if pid.as_raw_nonzero().get() == command
                        && writer.write_all(&encode(status).to_ne_bytes()).is_err()
                    {
                        return;
                    }
                }
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                // No child is left: the writer closes and the supervisor ends.
                Err(_) => return,
            }
        }
    })?;
    Ok(reader)
}

/// An exit code as it is, a signal as a negative number.
fn encode(status: WaitStatus) -> i32 {
    let signal = || status.terminating_signal().map_or(i32::MIN, i32::wrapping_neg);
    status.exit_status().unwrap_or_else(signal)
}

const fn decode(status: i32) -> Outcome {
    match status {
        0.. => Outcome::Code(status),
        i32::MIN => Outcome::Lost,
        signal => Outcome::Signal(-signal),
    }
}

/// Writes a file that is either whole or not there.
pub(crate) fn write_whole<T: Serialize>(dir: &Path, name: &str, value: &T) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    fs::write(&temporary, serde_json::to_vec(value)?)?;
    fs::rename(temporary, dir.join(name))
}
