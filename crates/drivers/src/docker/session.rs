//! Processes somebody works with.
//!
//! The agent itself holds the connection to the launcher of such a process, so it is killed when
//! the session is dropped and when the agent ends.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Waker, Poll, ready};

use futures_util::future::BoxFuture;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, kill_process_group};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use super::inside::{Launched, launch};
use super::{Inner, start};
use crate::driver::{Exit, Outcome, Session, SessionControl, Signal, Terminal};
use crate::error::{Context as _, DriverError, Result, StartFault};
use crate::proc::Id;
use crate::spec::{Handle, ProcessSpec};
use crate::supervised::{locked, raw, session, until, until_readable};

impl Inner {
    pub(super) async fn session(
        self: &Arc<Self>,
        handle: &Handle,
        mut spec: ProcessSpec,
        terminal: Option<Terminal>,
    ) -> Result<Session> {
        spec.check()?;
        let place = self.up(handle).await?;
        let container = self.kept.dirs.meta(handle)?;
        let name = session::name();
        spec.env.insert(session::MARK.to_owned(), name.clone());
        let order = start::order(&container, &spec, terminal);
        let _room = self.make_room(&container, &place)?;
        let ask = move || -> std::result::Result<_, StartFault> {
            let broken = |error: io::Error| StartFault::Other(error.to_string());
            let pipes = match terminal {
                Some(_) => None,
                None => Some(Pipes::new().map_err(broken)?),
            };
            let theirs: Vec<_> = pipes.iter().flat_map(|pipes| &pipes.theirs).collect();
            let theirs: Vec<_> = theirs.into_iter().map(|fd| fd.as_fd()).collect();
            let launched = launch(place.first, &order, &theirs)?;
            launched.noted().map_err(broken)?;
            Ok((launched, pipes.map(|pipes| pipes.ours)))
        };
        let begun = self.kept.tasks.blocking(ask).await;
        let (launched, ours) = begun.map_err(|fault| DriverError::Start {
            command: spec.argv.first().cloned().unwrap_or_default(),
            fault,
        })?;
        locked(&self.sessions).insert((handle.clone(), launched.launcher));
        let (inner, at, parent) = (Arc::clone(self), handle.clone(), launched.launcher);
        self.kept.tasks.spawn(runtime::Kind::Ordinary, "session launcher", async move {
            inner.end_with(parent, &at, &name).await
        });
        connect(launched, ours).context(|| format!("start a session in {handle}"))
    }
}

impl Inner {
    /// Waits until the launcher of a session is gone. One that was killed left what it started.
    async fn end_with(self: &Arc<Self>, launcher: Id, handle: &Handle, name: &str) -> Result<()> {
        let context = || format!("wait for the end of a session in {handle}");
        if let Some(launcher) = launcher.open().context(context)? {
            let launcher = until_readable(launcher).context(context)?;
            // With an error nothing can be waited for.
            drop(self.kept.tasks.stop().or_stop(launcher.readable()).await);
            if self.kept.tasks.stop().is_stopped() {
                // The launcher ends what it started when its line to this agent breaks.
                return Ok(());
            }
        }
        let (at, session) = (handle.clone(), name.to_owned());
        self.work(move |inner| inner.end_session(&at, &session)).await
    }
}

/// The pipes of a session without a terminal.
struct Pipes {
    /// What the process gets: input, output, error.
    theirs: [OwnedFd; 3],
    ours: [OwnedFd; 3],
}

impl Pipes {
    fn new() -> io::Result<Self> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let ((input, to_input), (from_output, output), (from_error, error)) =
            (pipe()?, pipe()?, pipe()?);
        Ok(Self { theirs: [input, output, error], ours: [to_input, from_output, from_error] })
    }
}

fn connect(launched: Launched, ours: Option<[OwnedFd; 3]>) -> io::Result<Session> {
    let Launched { command, connection, terminal, .. } = launched;
    connection.set_nonblocking(true)?;
    let resized = terminal.as_ref().map(OwnedFd::try_clone).transpose()?;
    let control =
        Control { command, connection: UnixStream::from_std(connection)?, resized, exit: None };
    let (input, output, error): (Pin<Box<dyn AsyncWrite + Send>>, crate::Input, crate::Input) =
        match (terminal, ours) {
            (Some(terminal), _) => {
                let reading = Screen::new(terminal.try_clone()?)?;
                (Box::pin(Screen::new(terminal)?), Box::pin(reading), Box::pin(tokio::io::empty()))
            }
            (None, Some([input, output, error])) => (
                Box::pin(pipe::Sender::from_owned_fd(input)?),
                Box::pin(pipe::Receiver::from_owned_fd(output)?),
                Box::pin(pipe::Receiver::from_owned_fd(error)?),
            ),
            (None, None) => return Err(io::Error::other("there is no terminal")),
        };
    Ok(Session { input, output, error, control: Box::new(control) })
}

/// What is done to the process of a session. Dropping it kills that.
struct Control {
    command: Id,
    connection: UnixStream,
    resized: Option<OwnedFd>,
    exit: Option<Exit>,
}

impl SessionControl for Control {
    fn resize(&self, terminal: Terminal) -> Result<()> {
        let Some(screen) = &self.resized else { return Ok(()) };
        let size =
            Winsize { ws_row: terminal.rows, ws_col: terminal.columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(screen, size).context(|| "resize a terminal".to_owned())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let group = Pid::from_raw(self.command.pid).filter(|_| self.command.runs());
        match group.map(|group| kill_process_group(group, raw(signal))) {
            None | Some(Ok(()) | Err(Errno::SRCH)) => Ok(()),
            Some(Err(error)) => Err(DriverError::io("signal a session", error)),
        }
    }

    fn wait(&mut self) -> BoxFuture<'_, Result<Exit>> {
        Box::pin(async {
            if let Some(exit) = self.exit {
                return Ok(exit);
            }
            let mut status = [0; 4];
            let read = self.connection.read_exact(&mut status).await;
            let outcome = match (read, i32::from_le_bytes(status)) {
                (Err(_), _) | (Ok(_), i32::MIN) => Outcome::Lost,
                (Ok(_), code @ 0..) => Outcome::Code(code),
                (Ok(_), signal) => Outcome::Signal(-signal),
            };
            let exit = Exit { outcome, oom: false, at_ms: None };
            Ok(*self.exit.insert(exit))
        })
    }
}

/// The outer end of a terminal.
struct Screen(AsyncFd<OwnedFd>);

impl Screen {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self(until(fd, Interest::READABLE | Interest::WRITABLE)?))
    }
}

impl AsyncRead for Screen {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Waker<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let read = rustix::io::read(self.0.get_ref(), buffer.initialize_unfilled());
            match read {
                Ok(bytes) => {
                    buffer.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                // Nobody has the other end any more.
                Err(Errno::IO) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for Screen {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Waker<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            match rustix::io::write(self.0.get_ref(), bytes) {
                Ok(bytes) => return Poll::Ready(Ok(bytes)),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Waker<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Waker<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
