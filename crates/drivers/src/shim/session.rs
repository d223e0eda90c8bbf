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
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use runtime::{Clock as _, SystemClock};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::termios::{Winsize, tcsetwinsize};
use serde::{Deserialize, Serialize};

use super::{Through, close_inherited, decode, detach, encode, through};
use crate::driver::{Exit, Terminal};
use crate::error::StartFault;
use crate::oci::kill_group;
use crate::proc::Id;
use crate::supervised::tree;

/// The argument that makes an executable a keeper.
pub(crate) const ARGUMENT: &str = "__longshore_session";
/// The line to the agent.
pub(crate) const LINE: i32 = 3;
/// How long output is waited for that was written before the end.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
/// How long killing may take.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// The end of input, as a terminal understands it.
const END_OF_INPUT: u8 = 4;
const BUFFER_BYTES: usize = 16 << 10;

/// What to start.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) through: Through,
    pub(crate) terminal: Option<Terminal>,
    /// A directory for the keeper, made and removed by it; its path is short.
    pub(crate) dir: PathBuf,
    /// The control group of all it starts.
    pub(crate) group: PathBuf,
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
    DirBuilder::new().mode(0o700).create(&request.dir)?;
    let started = start(&request);
    // Nothing of importance is in it any more.
    drop(fs::remove_dir_all(&request.dir));
    match started {
        Ok((id, console)) => keep(&request, (id, console), &line, orders),
        Err(fault) => report(&line, &Report::Failed(fault)),
    }
}

fn report(mut line: &UnixStream, report: &Report) -> io::Result<()> {
    let mut text = serde_json::to_vec(report)?;
    text.push(b'\n');
    line.write_all(&text)
}

/// Starts the command, and lets go of its streams.
fn start(request: &Request) -> Result<(Id, Option<File>), StartFault> {
    let failed = |error: io::Error| StartFault::Supervisor(error.to_string());
    let log = request.dir.join("log");
    let socket = request.dir.join("console");
    let mut through = request.through.clone();
    through.before.splice(1..1, ["--log".to_owned(), log.display().to_string()]);
    let mut listener = None;
    if request.terminal.is_some() {
        through.before.extend(["--console-socket".to_owned(), socket.display().to_string()]);
        listener = Some(UnixListener::bind(&socket).map_err(failed)?);
    }
    let mut runtime = through::runtime(&request.dir, &through)?;
    if listener.is_some() {
        runtime.stdin(Stdio::null()).stdout(Stdio::null());
    }
    let complaint = File::create(request.dir.join("complaint")).map_err(failed)?;
    if listener.is_some() {
        runtime.stderr(complaint);
    }
    let status = runtime.status().map_err(failed)?;
    if !status.success() {
        return Err(through::fault(&fs::read_to_string(log).unwrap_or_default()));
    }
    let pid = through::take_pid(&request.dir).map_err(failed)?;
    let id = Id::of(pid).ok_or_else(|| failed(io::Error::other("it cannot be found")))?;
    let console = listener.map(|listener| console(&listener)).transpose().map_err(failed)?;
    if let Some((console, size)) = console.as_ref().zip(request.terminal) {
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

/// Stays until the command has ended or the line breaks.
fn keep(
    request: &Request,
    (id, console): (Id, Option<File>),
    line: &UnixStream,
    orders: BufReader<UnixStream>,
) -> io::Result<()> {
    let drained = console.as_ref().map(pass_on).transpose()?;
    if drained.is_none() {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
    }
    report(line, &Report::Started(id))?;
    let group = request.group.clone();
    let killer = group.clone();
    runtime::spawn_thread("orders", move || {
        obey(orders, console.as_ref());
        // The agent is gone, so nobody can be told whether that worked.
        drop(kill_group(&killer, KILL_LIMIT));
    })?;
    let outcome = loop {
        match waitpid(Pid::from_raw(id.pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => break decode(encode(status)),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if let Some(drained) = drained {
        // What the command left behind may hold the terminal open.
        let all = drained.recv_timeout(DRAIN_LIMIT).is_ok();
        tracing::debug!(all, "passed on what was written");
    }
    let exit = Exit { outcome, oom: false, at_ms: Some(SystemClock.now_ms()) };
    kill_group(&group, KILL_LIMIT)?;
    // It goes away with the container otherwise.
    drop(fs::remove_dir(&group));
    report(line, &Report::Ended(exit))
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

/// Passes bytes between a terminal and the standard streams; says when all output was passed on.
fn pass_on(console: &File) -> io::Result<Receiver<()>> {
    let mut to = console.try_clone()?;
    runtime::spawn_thread("input", move || {
        let ended =
            io::copy(&mut io::stdin().lock(), &mut to).and_then(|_| to.write_all(&[END_OF_INPUT]));
        drop(ended);
    })?;
    let mut from = console.try_clone()?;
    let (sender, receiver) = sync_channel(1);
    runtime::spawn_thread("output", move || {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut out = io::stdout().lock();
        // A terminal that nobody has open any more gives an error.
        while let Ok(bytes) = from.read(&mut buffer) {
            let written =
                buffer.get(..bytes).map(|bytes| out.write_all(bytes).and_then(|()| out.flush()));
            if bytes == 0 || !matches!(written, Some(Ok(()))) {
                break;
            }
        }
        let waited = sender.send(()).is_ok();
        tracing::debug!(waited, "passed on all output");
    })?;
    Ok(receiver)
}

/// How names of the directories of keepers begin.
const PREFIX: &str = "session-";

/// Where a keeper may have its directory.
pub(crate) fn dir(run: &Path, number: u64) -> PathBuf {
    run.join(format!("{PREFIX}{}-{number}", std::process::id()))
}

/// Removes directories of keepers whose agent is gone.
pub(crate) fn sweep(run: &Path) -> io::Result<()> {
    for entry in fs::read_dir(run)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let agent = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if agent.is_some_and(|agent| !Path::new("/proc").join(agent).exists()) {
            tree::remove(&entry.path())?;
        }
    }
    Ok(())
}
