//! `shore exec`, and what it shares with `shore cp`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};
use std::pin::Pin;
use std::process::ExitCode;

use api::sessions::{
    FromClient, FromServer, LEAST_COST, MAX_SESSION_DATA, OpenSession, SESSION_WINDOW,
    SessionCommand, SessionWhat, cost,
};
use api::{SessionReceiver, SessionSender};
use bytes::Bytes;
use model::ExitStatus;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};

use super::Shell;
use super::apps::{Which, exit_code};
use crate::args::{AppArgs, AppName, ExecArgs, InstanceArgs};
use crate::env;
use crate::error::{CliError, ErrorKind, Result};
use crate::terminal::{self, Escapes, Raw, Typed};

/// What is run on a terminal when nothing is said.
const SHELL: &str = "/bin/sh";
/// The variables of whoever types that a command with a terminal is given.
const TERM: &str = "TERM";
/// Frames that wait to be sent.
const MAX_ORDERS: usize = 16;
/// Pieces of output that wait to be written: as many as there is credit for.
const MAX_PIECES: usize = (SESSION_WINDOW / LEAST_COST) as usize + 1;
/// How an error begins that is about where output goes.
pub(super) const UNWRITTEN: &str = "cannot write what came";
/// Bytes that are read at once.
const PIECE: usize = MAX_SESSION_DATA;

type Reader<'a> = Pin<Box<dyn AsyncRead + Send + 'a>>;
type Writer<'a> = Pin<Box<dyn AsyncWrite + Send + 'a>>;

/// What a session's bytes come from and go to.
pub(super) struct Ends<'a> {
    /// Where input comes from; there is none when absent.
    pub(super) input: Option<Reader<'a>>,
    /// Whether the input was read to its end, which is asked there; it is not sent otherwise.
    pub(super) whole: Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>,
    pub(super) output: Writer<'a>,
    pub(super) error: Writer<'a>,
    /// Somebody types the input on a terminal.
    pub(super) typed: bool,
}

/// The path that opens a session with what is meant.
pub(super) fn path(app: &AppArgs, name: Option<&AppName>, which: &InstanceArgs) -> Result<String> {
    let app = app.named(name);
    let mut rest = "exec?".to_owned();
    if let Some(instance) = &which.instance {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        if !instance.chars().all(plain) {
            let message = format!("`{instance}` is no instance, as `web.0` is one");
            return Err(CliError::invalid(message).hint("see what runs with `shore status`"));
        }
        rest = format!("{rest}instance={instance}&");
    }
    if let Some(process) = &which.process {
        rest = format!("{rest}process={process}&");
    }
    if let Some(deployment) = which.deployment {
        rest = format!("{rest}deployment={deployment}&");
    }
    Ok(Which::find(&app, None)?.path(&rest, &app.workspace))
}

pub(super) async fn exec(shell: &Shell, args: ExecArgs) -> Result<ExitCode> {
    let has_terminal = args.terminal.tty || (terminal::is_here() && !args.terminal.no_tty);
    let mut words = args.argv;
    if words.is_empty() {
        if !has_terminal {
            let message = "no command was given, and there is no terminal for a shell";
            return Err(CliError::invalid(message).hint("shore exec APP -- COMMAND"));
        }
        words.push(SHELL.to_owned());
    }
    let mut vars: BTreeMap<String, String> = args.env.into_iter().collect();
    if let Some(term) = env::var(TERM).filter(|_| has_terminal) {
        vars.entry(TERM.to_owned()).or_insert(term);
    }
    let size = has_terminal.then(terminal::size);
    let command = SessionCommand { argv: words, env: vars, dir: None, terminal: size };
    let path = path(&args.app, args.name.as_ref(), &args.which)?;
    let types = io::stdin().is_terminal();
    let passes = has_terminal || args.interactive || !types;
    let ends = Ends {
        input: passes.then(|| Box::pin(tokio::io::stdin()) as Reader<'_>),
        whole: Box::pin(std::future::ready(Ok(()))),
        output: Box::pin(tokio::io::stdout()),
        error: Box::pin(tokio::io::stderr()),
        typed: has_terminal && types,
    };
    match work(shell, &path, SessionWhat::Exec(command), ends).await? {
        None => Err(CliError::internal("the server does not say how the command ended")),
        Some(ExitStatus::Lost) => {
            let message = "nobody knows how the command ended: its container is gone, or what kept \
                           the session was killed";
            Err(CliError::new(ErrorKind::Failed, message))
        }
        Some(exit) => Ok(exit_code(exit).map_or(ExitCode::SUCCESS, ExitCode::from)),
    }
}

/// Opens a session and stays until it has ended; says how its command did.
pub(super) async fn work(
    shell: &Shell,
    path: &str,
    what: SessionWhat,
    ends: Ends<'_>,
) -> Result<Option<ExitStatus>> {
    let mut leave = Leave::watch().map_err(CliError::internal)?;
    let socket = shell.client()?.session(path).await?;
    let (mut sender, mut receiver) = (socket.sender, socket.receiver);
    let open = OpenSession { credit: SESSION_WINDOW, what };
    sender.send(&FromClient::Open(open)).await?;
    let resized = if ends.typed {
        Some(signal(SignalKind::window_change()).map_err(CliError::internal)?)
    } else {
        None
    };
    let raw = if ends.typed {
        let taken = Raw::take()
            .map_err(|error| CliError::internal(format!("the terminal cannot be used: {error}")))?;
        Some(taken)
    } else {
        None
    };
    let ended = tokio::select! {
        ended = run(&mut sender, &mut receiver, ends, resized) => ended,
        name = leave.asked() => Err(CliError::new(
            ErrorKind::Interrupted,
            format!("{name} came before the session ended: what it ran is killed"),
        )),
    };
    // Whatever is said from here on is said on a terminal as it was.
    drop(raw);
    if ended.is_err() {
        sender.close().await;
    }
    ended
}

/// The signals that end this program.
struct Leave([(&'static str, Signal); 4]);

impl Leave {
    fn watch() -> io::Result<Self> {
        Ok(Self([
            ("Ctrl-C", signal(SignalKind::interrupt())?),
            ("TERM", signal(SignalKind::terminate())?),
            ("HUP", signal(SignalKind::hangup())?),
            ("QUIT", signal(SignalKind::quit())?),
        ]))
    }

    async fn asked(&mut self) -> &'static str {
        let [int, term, hup, quit] = &mut self.0;
        tokio::select! {
            _ = int.1.recv() => int.0,
            _ = term.1.recv() => term.0,
            _ = hup.1.recv() => hup.0,
            _ = quit.1.recv() => quit.0,
        }
    }
}

/// Where a piece of output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Output,
    Error,
}

async fn run(
    sender: &mut SessionSender,
    receiver: &mut SessionReceiver,
    ends: Ends<'_>,
    resized: Option<Signal>,
) -> Result<Option<ExitStatus>> {
    let Ends { input, whole, output, error, typed } = ends;
    let (orders, mut waiting) = mpsc::channel::<FromClient>(MAX_ORDERS);
    let (pieces, queue) = mpsc::channel::<(To, Bytes)>(MAX_PIECES);
    let credit = Semaphore::new(0);
    let says = async {
        while let Some(order) = waiting.recv().await {
            sender.send(&order).await?;
        }
        Ok::<_, CliError>(())
    };
    let reads = async {
        feed(input, &credit, &orders, typed).await?;
        whole.await?;
        // The session may have ended.
        drop(orders.send(FromClient::InputEnd).await);
        Ok::<_, CliError>(())
    };
    let writes = write(queue, (output, error), &orders);
    let sizes = sizes(resized, &orders);
    let hears = hear(receiver, &credit, pieces);
    tokio::pin!(says, reads, writes, sizes, hears);
    let (mut read, mut written) = (false, false);
    let ended = loop {
        tokio::select! {
            ended = &mut hears => break ended?,
            said = &mut says => said?,
            done = &mut reads, if !read => { done?; read = true; }
            done = &mut writes, if !written => { done?; written = true; }
            never = &mut sizes => match never {},
        }
    };
    // The end was heard, so nothing more comes; what came is written.
    while !written {
        tokio::select! {
            done = &mut writes => { done?; written = true; }
            said = &mut says => said.unwrap_or_default(),
        }
    }
    Ok(ended)
}

/// Hears what the server says up to the end.
async fn hear(
    receiver: &mut SessionReceiver,
    credit: &Semaphore,
    pieces: mpsc::Sender<(To, Bytes)>,
) -> Result<Option<ExitStatus>> {
    loop {
        let piece = match receiver.next().await? {
            Some(FromServer::Started(bytes) | FromServer::Credit(bytes)) => {
                credit.add_permits(usize::try_from(bytes).unwrap_or_default());
                continue;
            }
            Some(FromServer::Output(bytes)) => (To::Output, bytes),
            Some(FromServer::Error(bytes)) => (To::Error, bytes),
            Some(FromServer::Ended(ended)) => return Ok(ended.exit),
            Some(FromServer::Failed(reason)) => {
                return Err(CliError::new(ErrorKind::Failed, reason));
            }
            None => {
                let message = "the server ended the session without a word";
                return Err(CliError::new(ErrorKind::Unavailable, message)
                    .hint("what ran was killed; see that the server runs"));
            }
        };
        // There is room for all there is credit for.
        if pieces.try_send(piece).is_err() {
            return Err(CliError::internal("the server sent more than it may"));
        }
    }
}

/// Writes output where it goes, and grants credit for what was taken.
async fn write(
    mut queue: mpsc::Receiver<(To, Bytes)>,
    (mut output, mut error): (Writer<'_>, Writer<'_>),
    orders: &mpsc::Sender<FromClient>,
) -> Result<()> {
    while let Some((to, bytes)) = queue.recv().await {
        let to = if to == To::Output { &mut output } else { &mut error };
        let written = async {
            to.write_all(&bytes).await?;
            to.flush().await
        };
        written
            .await
            .map_err(|error| CliError::new(ErrorKind::Failed, format!("{UNWRITTEN}: {error}")))?;
        // Nobody grants anything once it has ended.
        drop(orders.send(FromClient::Credit(cost(bytes.len()))).await);
    }
    let closed = async {
        output.shutdown().await?;
        error.shutdown().await
    };
    drop(closed.await);
    Ok(())
}

/// Tells of new sizes of the terminal. Never ends.
async fn sizes(
    resized: Option<Signal>,
    orders: &mpsc::Sender<FromClient>,
) -> std::convert::Infallible {
    let Some(mut resized) = resized else { return std::future::pending().await };
    loop {
        resized.recv().await;
        drop(orders.send(FromClient::Resize(terminal::size())).await);
    }
}

/// Passes input on as far as there is credit for it.
async fn feed(
    input: Option<Reader<'_>>,
    credit: &Semaphore,
    orders: &mpsc::Sender<FromClient>,
    typed: bool,
) -> Result<()> {
    let Some(mut input) = input else { return Ok(()) };
    let mut piece = vec![0; PIECE];
    let mut escapes = typed.then(Escapes::new);
    loop {
        let least = credit.acquire_many(LEAST_COST).await.map_err(CliError::internal)?;
        // One more byte than was read may be sent: a `~` that was held back.
        let room = (LEAST_COST as usize + credit.available_permits()).min(piece.len()) - 1;
        let read = input.read(piece.get_mut(..room).unwrap_or_default()).await;
        let read = read.map_err(|error| {
            CliError::new(ErrorKind::Failed, format!("cannot read the input: {error}"))
        })?;
        if read == 0 {
            return Ok(());
        }
        let bytes = piece.get(..read).unwrap_or_default();
        let (bytes, ends) = match escapes.as_mut().map(|escapes| escapes.take(bytes)) {
            None => (bytes.to_vec(), false),
            Some(Typed::Bytes(bytes)) => (bytes, false),
            Some(Typed::End(bytes)) => (bytes, true),
        };
        if !bytes.is_empty() {
            let more = credit.acquire_many(cost(bytes.len()) - LEAST_COST).await;
            more.map_err(CliError::internal)?.forget();
            least.forget();
            drop(orders.send(FromClient::Input(bytes.into())).await);
        }
        if ends {
            let message = "the session was left with `~.`: what it ran is killed";
            return Err(CliError::new(ErrorKind::Interrupted, message));
        }
    }
}
