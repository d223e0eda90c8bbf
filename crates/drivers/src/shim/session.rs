//! The keeper of a session: starts a command that somebody works with, and kills it when they go.
//!
//! It is started like a supervisor. Descriptor 3 is its line to the agent: a request comes in, reports
//! go out, orders come in; when the line breaks, because the session was dropped or the agent died,
//! everything the session started is killed. Without a terminal its standard streams are the
//! command's own; with one it passes the bytes on.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use runtime::{Clock as _, SystemClock};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, WaitOptions, waitpid};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::{Deserialize, Serialize};

use super::{Direct, Through, close_inherited, command, decode, detach, encode, through};
use crate::driver::{Exit, Terminal};
use crate::error::StartFault;
use crate::oci::kill_group;
use crate::proc::{Id, Table};
use crate::supervised::session::is_abandoned;
use crate::supervised::tree;

/// The argument that makes an executable a keeper.
pub(crate) const ARGUMENT: &str = "__longshore_session";
/// The line to the agent.
pub(crate) const LINE: i32 = 3;
/// How long output is waited for that was written before the end. Time in which nobody takes it does
/// not count.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
/// How long killing may take.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// The end of input, as a terminal understands it.
const END_OF_INPUT: u8 = 4;
const BUFFER_BYTES: usize = 16 << 10;

/// The first and the longest pause between two looks for what is still to be killed.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// What to start.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) start: Start,
    pub(crate) terminal: Option<Terminal>,
}

/// How to start it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Start {
    /// As a child, on this machine.
    Direct(Direct),
    /// In a container, by a program that starts it there and then ends.
    Through {
        through: Through,
        /// A directory for the keeper, made and removed by it; its path is short.
        dir: PathBuf,
        /// The control group of all it starts.
        group: PathBuf,
    },
}

/// What the agent wants.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    Resize(Terminal),
}

/// What the keeper tells.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Started(Id),
    Failed(StartFault),
    Ended(Exit),
}

/// Keeps one session from its start to its end.
#[expect(unsafe_code, reason = "the line is inherited as a number")]
pub(super) fn run() -> io::Result<()> {
    close_inherited(LINE)?;
    // SAFETY: whoever starts a keeper gives it this descriptor, and nothing else uses it.
    let line = unsafe { UnixStream::from_raw_fd(LINE) };
    rustix::io::fcntl_setfd(&line, rustix::io::FdFlags::CLOEXEC)?;
    let mut orders = BufReader::new(line.try_clone()?);
    let mut text = String::new();
    orders.read_line(&mut text)?;
    let request: Request = serde_json::from_str(&text)?;
    detach()?;
    let started = match &request.start {
        Start::Direct(direct) => start_here(direct, request.terminal),
        Start::Through { through, dir, .. } => {
            DirBuilder::new().mode(0o700).create(dir)?;
            let started = start(through, dir, request.terminal);
            // Nothing of importance is in it any more.
            drop(fs::remove_dir_all(dir));
            started
        }
    };
    match started {
        Ok((id, console)) => keep(request.start, (id, console), &line, orders),
        Err(fault) => report(&line, &Report::Failed(fault)),
    }
}

fn report(mut line: &UnixStream, report: &Report) -> io::Result<()> {
    let mut text = serde_json::to_vec(report)?;
    text.push(b'\n');
    line.write_all(&text)
}

fn supervisor(error: impl Into<io::Error>) -> StartFault {
    StartFault::Supervisor(error.into().to_string())
}

/// Starts a command of this machine.
fn start_here(direct: &Direct, size: Option<Terminal>) -> Result<(Id, Option<File>), StartFault> {
    let found = |child: &std::process::Child| {
        let id = Id::of(child.id().cast_signed());
        id.ok_or_else(|| supervisor(io::Error::other("it cannot be found")))
    };
    let Some(size) = size else {
        return Ok((found(&command::spawn_here(direct)?)?, None));
    };
    let open = || {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        tcsetwinsize(&ours, window(size))?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let theirs = ioctl_tiocgptpeer(&ours, flags)?;
        Ok::<_, rustix::io::Errno>((ours, theirs))
    };
    let (ours, theirs) = open().map_err(supervisor)?;
    let child = command::spawn_at(direct, &theirs)?;
    Ok((found(&child)?, Some(File::from(ours))))
}

/// Starts a command in a container, and lets go of its streams.
fn start(
    through: &Through,
    dir: &Path,
    size: Option<Terminal>,
) -> Result<(Id, Option<File>), StartFault> {
    let failed = |error: io::Error| StartFault::Supervisor(error.to_string());
    let log = dir.join("log");
    let socket = dir.join("console");
    let mut through = through.clone();
    through.before.splice(1..1, ["--log".to_owned(), log.display().to_string()]);
    let mut listener = None;
    if size.is_some() {
        through.before.extend(["--console-socket".to_owned(), socket.display().to_string()]);
        listener = Some(UnixListener::bind(&socket).map_err(failed)?);
    }
    let mut runtime = through::runtime(dir, &through)?;
    if listener.is_some() {
        runtime.stdin(Stdio::null()).stdout(Stdio::null());
    }
    let complaint = File::create(dir.join("complaint")).map_err(failed)?;
    if listener.is_some() {
        runtime.stderr(complaint);
    }
    let status = runtime.status().map_err(failed)?;
    if !status.success() {
        return Err(through::fault(&fs::read_to_string(log).unwrap_or_default()));
    }
    let pid = through::take_pid(dir).map_err(failed)?;
    let id = Id::of(pid).ok_or_else(|| failed(io::Error::other("it cannot be found")))?;
    let console = listener.map(|listener| console(&listener)).transpose().map_err(failed)?;
    if let Some((console, size)) = console.as_ref().zip(size) {
        tcsetwinsize(console, window(size)).map_err(|error| failed(error.into()))?;
    }
    Ok((id, console))
}

const fn window(size: Terminal) -> Winsize {
    Winsize { ws_col: size.columns, ws_row: size.rows, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Takes the terminal from the runtime.
fn console(listener: &UnixListener) -> io::Result<File> {
    let (runtime, _) = listener.accept()?;
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut room);
    let mut name = [0; 256];
    let mut parts = [io::IoSliceMut::new(&mut name)];
    recvmsg(&runtime, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut found: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            found.extend(descriptors);
        }
    }
    let terminal = found.pop().ok_or_else(|| io::Error::other("the runtime sent no terminal"))?;
    Ok(terminal.into())
}

impl Start {
    /// Kills everything it started.
    fn kill(&self) -> io::Result<()> {
        match self {
            Self::Direct(_) => kill_descendants(),
            Self::Through { group, .. } => kill_group(group, KILL_LIMIT),
        }
    }
}

/// Kills everything below this process. What was left behind is its child, too.
fn kill_descendants() -> io::Result<()> {
    let own = Id::of(std::process::id().cast_signed());
    let roots: Vec<Id> = own.into_iter().collect();
    let deadline = runtime::mono_now() + KILL_LIMIT;
    let mut pause = PAUSES.0;
    loop {
        let table = Table::read()?;
        let mut all = table.descendants(&roots);
        all.retain(|id| table.get(*id).is_some_and(|entry| !entry.ended));
        if all.is_empty() {
            return Ok(());
        }
        if runtime::mono_now() >= deadline {
            return Err(io::Error::other("they do not end"));
        }
        // A stopped process makes no new ones.
        for signal in [Signal::STOP, Signal::KILL] {
            all.iter().try_for_each(|id| id.send(signal))?;
        }
        runtime::pause_thread(pause);
        pause = PAUSES.1.min(pause * 2);
    }
}

/// Stays until the command has ended or the line breaks.
fn keep(
    start: Start,
    (id, console): (Id, Option<File>),
    line: &UnixStream,
    orders: BufReader<UnixStream>,
) -> io::Result<()> {
    let drain = console.as_ref().map(pass_on).transpose()?;
    if drain.is_none() {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
    }
    report(line, &Report::Started(id))?;
    let start = Arc::new(start);
    let broken = Arc::new(AtomicBool::new(false));
    let (killer, alone) = (Arc::clone(&start), Arc::clone(&broken));
    runtime::spawn_thread("orders", move || {
        obey(orders, console.as_ref());
        drop(console);
        alone.store(true, Ordering::Relaxed);
        // The agent is gone, so nobody can be told whether that worked.
        drop(killer.kill());
    })?;
    let outcome = loop {
        match waitpid(Pid::from_raw(id.pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => break decode(encode(status)),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    // What it left behind may hold its output open.
    start.kill()?;
    if let Some(drain) = drain {
        let all = drain.all(&broken);
        tracing::debug!(all, "passed on what was written");
    }
    let exit = Exit { outcome, oom: false, at_ms: Some(SystemClock.now_ms()) };
    if let Start::Through { group, .. } = &*start {
        // It goes away with the container otherwise.
        drop(fs::remove_dir(group));
    }
    report(line, &Report::Ended(exit))
}

/// How far the output of a terminal is passed on.
struct Drain {
    done: Receiver<()>,
    /// Somebody is to take what was read.
    writing: Arc<AtomicBool>,
}

impl Drain {
    /// Waits until all output was passed on; false when there may be more.
    fn all(&self, broken: &AtomicBool) -> bool {
        loop {
            match self.done.recv_timeout(DRAIN_LIMIT) {
                Ok(()) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => {
                    let waits = self.writing.load(Ordering::Relaxed);
                    if !waits || broken.load(Ordering::Relaxed) {
                        return false;
                    }
                }
            }
        }
    }
}

/// Does what the agent wants until the line breaks.
fn obey(orders: BufReader<UnixStream>, console: Option<&File>) {
    for order in orders.lines().map_while(Result::ok) {
        match serde_json::from_str(&order) {
            Ok(Order::Resize(size)) => {
                if let Some(console) = console
                    && let Err(error) = tcsetwinsize(console, window(size))
                {
                    tracing::debug!(%error, "the terminal keeps its size");
                }
            }
            Err(error) => tracing::debug!(%error, "an order is not understood"),
        }
    }
}

/// Passes bytes between a terminal and the standard streams.
fn pass_on(console: &File) -> io::Result<Drain> {
    let mut to = console.try_clone()?;
    runtime::spawn_thread("input", move || {
        let ended =
            io::copy(&mut io::stdin().lock(), &mut to).and_then(|_| to.write_all(&[END_OF_INPUT]));
        drop(ended);
    })?;
    let mut from = console.try_clone()?;
    let (sender, done) = sync_channel(1);
    let writing = Arc::new(AtomicBool::new(false));
    let busy = Arc::clone(&writing);
    runtime::spawn_thread("output", move || {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut out = io::stdout().lock();
        // A terminal that nobody has open any more gives an error.
        while let Ok(bytes) = from.read(&mut buffer) {
            busy.store(true, Ordering::Relaxed);
            let written =
                buffer.get(..bytes).map(|bytes| out.write_all(bytes).and_then(|()| out.flush()));
            busy.store(false, Ordering::Relaxed);
            if bytes == 0 || !matches!(written, Some(Ok(()))) {
                break;
            }
        }
        let waited = sender.send(()).is_ok();
        tracing::debug!(waited, "passed on all output");
    })?;
    Ok(Drain { done, writing })
}

/// How names of the directories of keepers begin.
const PREFIX: &str = "session-";

/// Where the keeper of a session may have its directory.
pub(crate) fn dir(run: &Path, session: &str) -> PathBuf {
    run.join(format!("{PREFIX}{session}"))
}

/// Removes directories of keepers whose agent is gone.
pub(crate) fn sweep(run: &Path) -> io::Result<()> {
    for entry in fs::read_dir(run)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.strip_prefix(PREFIX).is_some_and(is_abandoned) {
            tree::remove(&entry.path())?;
        }
    }
    Ok(())
}
