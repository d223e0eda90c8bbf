//! Asking the first process of a container to start another one.
//!
//! The container's root could put something else where the first process listens. So nothing is
//! said before the system has told that the listener is that very process; it does the same the
//! other way round.

use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::sockopt::{set_socket_passcred, socket_peercred};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::wire::{ANSWER_BYTES, Answer, Fault, NOTED, Order, SOCKET};
use crate::error::StartFault;
use crate::proc::Id;

/// How long the first process may take to start another.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How often to ask again one that is about to listen.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(2);
/// The most descriptors a request carries.
const MAX_FILES: usize = 3;

/// A process that was started in a container.
#[derive(Debug)]
pub(crate) struct Launched {
    /// The process.
    pub(crate) command: Id,
    /// Its parent in the container, which tells its end.
    pub(crate) launcher: Id,
    /// Where its end is told. Closing it kills the process.
    pub(crate) connection: UnixStream,
    /// Its terminal, if it was to have one.
    pub(crate) terminal: Option<OwnedFd>,
}

impl Launched {
    /// Says that the process was written down: nothing of it goes away before.
    pub(crate) fn noted(&self) -> io::Result<()> {
        (&self.connection).write_all(&[NOTED])
    }
}

/// Where the first process of a container listens, seen from the machine.
pub(super) fn socket(first: Id) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{SOCKET}", first.pid))
}

/// Has a process started, with these descriptors as its streams.
pub(crate) fn launch(
    first: Id,
    order: &Order,
    files: &[BorrowedFd<'_>],
) -> Result<Launched, StartFault> {
    let broken = |error: io::Error| {
        StartFault::Supervisor(format!("the first process of the container: {error}"))
    };
    let connection = connect(first).map_err(broken)?;
    send(&connection, order, files).map_err(broken)?;
    let mut command = None;
    loop {
        let (answer, sender, terminal) = receive(&connection).map_err(broken)?;
        let sender = sender.and_then(Id::of);
        match (answer, command, sender) {
            (Answer::Here, ..) => command = sender,
            (Answer::Runs, Some(command), Some(launcher)) => {
                return Ok(Launched { command, launcher, connection, terminal });
            }
            (Answer::Runs, ..) => {
                return Err(broken(io::Error::other("the system does not tell who answers")));
            }
            (Answer::Failed(fault, number), ..) => return Err(meaning(fault, number, order)),
        }
    }
}

fn connect(first: Id) -> io::Result<UnixStream> {
    let path = socket(first);
    let mut attempts = 0;
    let connection = loop {
        match UnixStream::connect(&path) {
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused && attempts < ATTEMPTS =>
            {
                attempts += 1;
                runtime::pause_thread(PAUSE);
            }
            other => break other?,
        }
    };
    let listener = socket_peercred(&connection)?.pid.as_raw_nonzero().get();
    if listener != first.pid || !first.runs() {
        return Err(io::Error::other("another process listens in its place"));
    }
    set_socket_passcred(&connection, true)?;
    connection.set_read_timeout(Some(ANSWER_LIMIT))?;
    connection.set_write_timeout(Some(ANSWER_LIMIT))?;
    Ok(connection)
}

fn send(connection: &UnixStream, order: &Order, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = order.to_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let sent = sendmsg(connection, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    let mut rest = connection;
    rest.write_all(bytes.get(sent..).unwrap_or_default())
}

/// One answer, the number of its sender and a descriptor that came with it.
fn receive(connection: &UnixStream) -> io::Result<(Answer, Option<i32>, Option<OwnedFd>)> {
    let mut bytes = [0; ANSWER_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        connection,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let (mut sender, mut file) = (None, None);
    for message in ancillary.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(mut files) => file = files.next(),
            RecvAncillaryMessage::ScmCredentials(who) => {
                sender = Some(who.pid.as_raw_nonzero().get());
            }
            _ => {}
        }
    }
    let answer = Answer::from_bytes(bytes).filter(|_| got.bytes == ANSWER_BYTES);
    let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((answer, sender, file))
}

fn meaning(fault: Fault, number: i32, order: &Order) -> StartFault {
    let told = || io::Error::from_raw_os_error(number).to_string();
    match fault {
        Fault::Missing => StartFault::Missing,
        Fault::Denied => StartFault::Denied,
        Fault::Format => StartFault::Format,
        Fault::Directory => StartFault::Directory(order.dir.clone()),
        Fault::Limits => StartFault::Limits(told()),
        Fault::Request => StartFault::Supervisor("the request was not understood".to_owned()),
        Fault::Other => StartFault::Other(told()),
    }
}
