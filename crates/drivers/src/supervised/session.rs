//! The agent's end of sessions that have a keeper (see [`crate::shim`]), and the names of sessions.

use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream as Line;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::{Supervised, signal_group};
use crate::driver::{Exit, Session, SessionControl, Signal, Terminal};
use crate::error::{Context as _, Result, StartFault};
use crate::proc::Id;
use crate::shim::session::{ARGUMENT, LINE, Order, Report, Request};

/// The name keepers have in process lists.
const KEEPER_NAME: &str = "longshore-session";
/// The variable that marks the processes of a session with its [name](name), where no control group
/// does.
pub(crate) const MARK: &str = "SHORE_SESSION";

/// A name no other session of this machine has. It tells whose the session is.
pub(crate) fn name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let pid = std::process::id();
    let start = Id::of(pid.cast_signed()).map_or(0, |own| own.start);
    format!("{pid}-{start}-{number}")
}

/// Whether the agent is gone that gave a session this name: then nobody works in it any more. False
/// for what is no name of a session.
pub(crate) fn is_abandoned(name: &str) -> bool {
    let parts: Vec<Option<u64>> = name.split('-').map(|part| part.parse().ok()).collect();
    let running = |pid: u64| i32::try_from(pid).ok().and_then(Id::of);
    match *parts {
        [Some(pid), Some(start), Some(_)] => running(pid).is_none_or(|id| id.start != start),
        // As agents of earlier versions wrote them.
        [Some(pid), Some(_)] => running(pid).is_none(),
        _ => false,
    }
}

impl Supervised {
    /// Starts the keeper of a session and waits for its first report.
    pub(crate) async fn keep_session(
        &self,
        request: &Request,
    ) -> std::result::Result<(Session, Child), StartFault> {
        let failed = |error: io::Error| StartFault::Supervisor(error.to_string());
        let (ours, theirs) = Line::pair().map_err(failed)?;
        let mut command = Command::new(self.supervisor());
        command.arg0(KEEPER_NAME).arg(ARGUMENT).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        give_line(&mut command, theirs);
        let mut keeper = command.spawn().map_err(failed)?;
        // It holds the keeper's end of the line.
        drop(command);
        let orders = ours.try_clone().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let mut line = BufReader::new(UnixStream::from_std(ours).map_err(failed)?);
        let mut text = serde_json::to_vec(request).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        line.write_all(&text).await.map_err(failed)?;
        match report(&mut line).await.map_err(failed)? {
            Report::Failed(fault) => Err(fault),
            Report::Ended(exit) => Err(StartFault::Other(format!("{exit:?}"))),
            Report::Started(id) => {
                let streams = keeper.stdin.take().zip(keeper.stdout.take());
                let streams = streams.zip(keeper.stderr.take());
                let ((input, output), error) =
                    streams.ok_or_else(|| failed(io::Error::other("no pipes")))?;
                let control = Control { id, orders, line, ended: None };
                let session = Session {
                    input: Box::pin(input),
                    output: Box::pin(output),
                    error: Box::pin(error),
                    control: Box::new(control),
                };
                Ok((session, keeper))
            }
        }
    }
}

#[expect(unsafe_code, reason = "a descriptor must be passed on between fork and exec")]
fn give_line(command: &mut Command, theirs: Line) {
    // SAFETY: the closure makes one system call.
    unsafe {
        command.pre_exec(move || {
            if theirs.as_raw_fd() == LINE {
                return Ok(rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?);
            }
            if libc::dup2(theirs.as_raw_fd(), LINE) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

async fn report(line: &mut BufReader<UnixStream>) -> io::Result<Report> {
    let mut text = String::new();
    line.read_line(&mut text).await?;
    Ok(serde_json::from_str(&text)?)
}

/// The agent's end of a session. Dropping it breaks the line, and the keeper kills what runs.
struct Control {
    id: Id,
    orders: Line,
    line: BufReader<UnixStream>,
    ended: Option<Exit>,
}

impl SessionControl for Control {
    fn resize(&self, terminal: Terminal) -> Result<()> {
        let order = serde_json::to_string(&Order::Resize(terminal)).map_err(io::Error::from);
        let sent =
            order.and_then(|order| (&self.orders).write_all(format!("{order}\n").as_bytes()));
        match sent {
            // It has ended.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.context(|| "resize a terminal".to_owned()),
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let sent = signal_group(self.id, signal);
        sent.map(drop).context(|| "signal a session".to_owned())
    }

    fn wait(&mut self) -> BoxFuture<'_, Result<Exit>> {
        Box::pin(async {
            if self.ended.is_none() {
                self.ended = match report(&mut self.line).await {
                    Ok(Report::Ended(exit)) => Some(exit),
                    // The keeper was killed.
                    Ok(Report::Started(_) | Report::Failed(_)) | Err(_) => Some(Exit::LOST),
                };
            }
            Ok(self.ended.unwrap_or(Exit::LOST))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_abandoned_when_its_agent_is_gone() {
        let (first, second) = (name(), name());
        assert_ne!(first, second);
        assert!(!is_abandoned(&first));
        let own = Id::of(std::process::id().cast_signed()).expect("runs");
        assert!(is_abandoned(&format!("{}-{}-0", own.pid, own.start + 1)), "its number is reused");
        assert!(is_abandoned(&format!("{}-1-0", i32::MAX)));
        assert!(is_abandoned(&format!("{}-0", i32::MAX)));
        assert!(!is_abandoned(&format!("{}-0", own.pid)));
        for other in ["", "1", "web", "p-web", "1-2-x", "1-2-3-4"] {
            assert!(!is_abandoned(other), "{other}");
        }
    }
}
