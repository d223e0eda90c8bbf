//! The gate's half of the control protocol.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use runtime::Tasks;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::limits::{LOOK_EVERY, MAX_CONTROLS, MAX_LINE};
use crate::protocol::{Answer, Ask, Hello, SOCKET, short};
use crate::serve::Shared;

/// What a gate is asked about.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) shared: Arc<Shared>,
    /// Gone once this gate takes no more connections: as long as it is open, somebody connects.
    pub(crate) listener: Mutex<Option<TcpListener>>,
    pub(crate) listen: SocketAddr,
    pub(crate) version: String,
}

/// The control socket of this gate.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    inode: u64,
}

impl Socket {
    /// Takes the place of an earlier gate's.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let fresh = format!("{SOCKET}.new");
        let (path, _open) = short(dir, &fresh)?;
        drop(std::fs::remove_file(&path));
        let listener = UnixListener::bind(&path)?;
        let inode = std::fs::symlink_metadata(&path)?.ino();
        std::fs::rename(&path, dir.join(SOCKET))?;
        Ok(Self { listener, inode })
    }

    /// Whether agents that look into the directory find this gate.
    fn is_found(&self, dir: &Path) -> bool {
        std::fs::symlink_metadata(dir.join(SOCKET)).is_ok_and(|found| found.ino() == self.inode)
    }
}

/// Answers until this gate is replaced, or its directory is gone.
pub(crate) async fn serve(control: Control, socket: Socket, dir: &Path, tasks: &Tasks) {
    let control = Arc::new(control);
    let drain = control.shared.drain.clone();
    let permits = Arc::new(Semaphore::new(MAX_CONTROLS));
    while !drain.is_stopped() {
        let accepted = runtime::timeout(LOOK_EVERY, socket.listener.accept());
        match drain.or_stop(accepted).await {
            Some(Some(Ok((stream, _)))) => {
                let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
                let control = Arc::clone(&control);
                tasks.spawn_ok("control", async move {
                    drop(talk(&control, stream).await);
                    drop(permit);
                });
            }
            Some(Some(Err(_)) | None) if !socket.is_found(dir) => drain.stop(),
            Some(Some(Err(_)) | None) | None => {}
        }
    }
    drop(control.listener.lock().unwrap_or_else(PoisonError::into_inner).take());
}

async fn talk(control: &Control, stream: UnixStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let most = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        let read = (&mut stream).take(most).read_until(b'\n', &mut line).await?;
        if read == 0 {
            return Ok(());
        }
        let ask: Ask = serde_json::from_slice(&line)?;
        if matches!(ask, Ask::Watch) {
            control.shared.cut.stopped().await;
            return Ok(());
        }
        if matches!(ask, Ask::Listener) {
            let listener = control.listener();
            let listener = listener.ok_or(io::ErrorKind::NotConnected)?;
            hand_over(stream.get_ref(), &listener).await?;
            continue;
        }
        let mut answer = serde_json::to_vec(&control.answer(ask))?;
        answer.push(b'\n');
        stream.get_mut().write_all(&answer).await?;
    }
}

impl Control {
    /// Another handle of the socket.
    fn listener(&self) -> Option<TcpListener> {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        listener.as_ref().and_then(|listener| listener.try_clone().ok())
    }

    fn answer(&self, ask: Ask) -> Answer {
        let table = &self.shared.table;
        let done = match ask {
            Ask::Hello => {
                return Answer::Hello(Hello {
                    version: self.version.clone(),
                    listen: self.listen,
                    pid: std::process::id(),
                    held: table.held(),
                    connections: self.shared.connections.load(Ordering::Relaxed),
                });
            }
            Ask::Trust { trust } => table.trust(trust),
            Ask::Put { entry } => table.put(*entry),
            Ask::Remove { name } => table.remove(&name),
            Ask::Drain => {
                self.shared.drain.stop();
                Ok(())
            }
            Ask::Listener | Ask::Watch => Ok(()),
        };
        match done {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Refused { reason: error.to_string() },
        }
    }
}

/// Sends one byte, and with it the socket.
async fn hand_over(stream: &UnixStream, listener: &TcpListener) -> io::Result<()> {
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let sockets = [listener.as_fd()];
            if !control.push(SendAncillaryMessage::ScmRights(&sockets)) {
                return Err(io::Error::other("no room for a socket"));
            }
            let byte = [io::IoSlice::new(b"\n")];
            sendmsg(stream, &byte, &mut control, SendFlags::NOSIGNAL)?;
            Ok(())
        })
        .await
}
