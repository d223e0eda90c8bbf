//! The agent's half: finds the gate of its directory, or starts one, and keeps it running.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use runtime::{Backoff, Random, Tasks};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};

use crate::identity::Trust;
use crate::limits::{ANSWER_LIMIT, RESTART};
use crate::process::{ARGUMENT, SERVES};
use crate::protocol::{Answer, Ask, Hello, SOCKET, short};
use crate::table::{Entry, private_dir};

/// How a gate is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it keeps its socket and its table.
    pub dir: PathBuf,
    /// Where it listens. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// An executable whose `main` calls [`maybe_run`](crate::maybe_run) first.
    pub program: PathBuf,
    /// A gate of another version is replaced.
    pub version: String,
}

/// Why a gate does not do as it is told.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The port is taken, or cannot be had.
    #[error("the gate cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// The process does not start.
    #[error("the gate does not start: {0}")]
    Start(String),
    /// It was closed for good.
    #[error("the gate was closed")]
    Closed,
    /// It does not answer.
    #[error("the gate does not answer: {0}")]
    Silent(#[from] io::Error),
    /// It refuses.
    #[error("the gate refuses: {0}")]
    Refused(String),
}

/// The gate of this machine. It goes on when this is dropped.
#[derive(Debug, Clone)]
pub struct Gate {
    inner: Arc<Inner>,
    listen: SocketAddr,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    line: Mutex<Line>,
}

#[derive(Debug)]
struct Line {
    /// How it is talked to; gone once it broke.
    stream: Option<BufReader<UnixStream>>,
    /// The socket it listens on: while it is away, who connects waits. Gone once it was closed.
    listener: Option<TcpListener>,
}

async fn connect(dir: &Path) -> io::Result<BufReader<UnixStream>> {
    let (path, _open) = short(dir, SOCKET)?;
    Ok(BufReader::new(UnixStream::connect(path).await?))
}

async fn ask(stream: &mut BufReader<UnixStream>, ask: &Ask) -> io::Result<Answer> {
    let mut text = serde_json::to_vec(ask)?;
    text.push(b'\n');
    let talk = async {
        stream.get_mut().write_all(&text).await?;
        let mut line = Vec::new();
        stream.read_until(b'\n', &mut line).await?;
        serde_json::from_slice(&line).map_err(io::Error::from)
    };
    runtime::timeout(ANSWER_LIMIT, talk).await.unwrap_or_else(|| Err(timed_out()))
}

fn timed_out() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

async fn hello(stream: &mut BufReader<UnixStream>) -> io::Result<Hello> {
    match ask(stream, &Ask::Hello).await? {
        Answer::Hello(hello) => Ok(hello),
        Answer::Done | Answer::Refused { .. } => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Gets the socket that a running gate listens on.
fn listener_of(dir: &Path) -> io::Result<TcpListener> {
    let (path, _open) = short(dir, SOCKET)?;
    let mut stream = StdUnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let mut text = serde_json::to_vec(&Ask::Listener)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut into = [IoSliceMut::new(&mut byte)];
    recvmsg(&stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let sockets = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
        _ => None,
    });
    let socket: Option<OwnedFd> = sockets.flatten().next();
    socket.map(TcpListener::from).ok_or_else(|| io::Error::other("no socket came"))
}

impl Gate {
    /// Finds the gate of this directory, replaces it if it is another version or listens elsewhere,
    /// or starts one. `tasks` own what starts it again when it ends.
    pub async fn open(options: Options, tasks: &Tasks) -> Result<Self, GateError> {
        private_dir(&options.dir)?;
        let (stream, listener) = find_or_start(&options).await?;
        let listen = listener.local_addr()?;
        let line = Line { stream: Some(stream), listener: Some(listener) };
        let inner = Arc::new(Inner { options, line: Mutex::new(line) });
        let gate = Self { inner, listen };
        let (watching, stop) = (gate.clone(), tasks.stop().clone());
        tasks.spawn_ok("gate", async move {
            stop.or_stop(watching.watch()).await;
        });
        Ok(gate)
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.listen
    }

    /// Believes these from now on.
    pub async fn trust(&self, trust: Trust) -> Result<(), GateError> {
        self.order(Ask::Trust { trust }).await
    }

    /// Serves an instance, or gives it another certificate.
    pub async fn put(&self, entry: Entry) -> Result<(), GateError> {
        self.order(Ask::Put { entry: Box::new(entry) }).await
    }

    /// Serves an instance no more. Its address may be used for another one after this.
    pub async fn remove(&self, name: &str) -> Result<(), GateError> {
        self.order(Ask::Remove { name: name.to_owned() }).await
    }

    /// What it serves: names, and the milliseconds since 1970 until which each may be believed.
    pub async fn held(&self) -> Result<BTreeMap<String, u64>, GateError> {
        Ok(self.hello().await?.held)
    }

    /// The process.
    pub async fn pid(&self) -> Result<u32, GateError> {
        Ok(self.hello().await?.pid)
    }

    /// How many connections it has.
    pub async fn connections(&self) -> Result<usize, GateError> {
        Ok(self.hello().await?.connections)
    }

    /// Ends it for good: its connections end by themselves, and nobody new gets in.
    pub async fn close(&self) -> Result<(), GateError> {
        let mut line = self.inner.line.lock().await;
        line.listener = None;
        if line.stream.is_none() {
            line.stream = connect(&self.inner.options.dir).await.ok();
        }
        if let Some(mut stream) = line.stream.take() {
            ask(&mut stream, &Ask::Drain).await?;
        }
        Ok(())
    }

    async fn hello(&self) -> Result<Hello, GateError> {
        match self.talk(&Ask::Hello).await? {
            Answer::Hello(hello) => Ok(hello),
            Answer::Done => Err(GateError::Refused("it does not say who it is".to_owned())),
            Answer::Refused { reason } => Err(GateError::Refused(reason)),
        }
    }

    async fn order(&self, order: Ask) -> Result<(), GateError> {
        match self.talk(&order).await? {
            Answer::Done | Answer::Hello(_) => Ok(()),
            Answer::Refused { reason } => Err(GateError::Refused(reason)),
        }
    }

    /// Asks, and once more if the gate ended meanwhile: whatever is asked can be asked twice.
    async fn talk(&self, question: &Ask) -> Result<Answer, GateError> {
        let mut line = self.inner.line.lock().await;
        for _ in 0..2 {
            let stream = self.stream(&mut line).await?;
            match ask(stream, question).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    tracing::debug!(%error, "the gate did not answer");
                    line.stream = None;
                }
            }
        }
        Err(GateError::Silent(io::ErrorKind::BrokenPipe.into()))
    }

    /// The way to the gate; it is started if it does not run.
    async fn stream<'a>(
        &self,
        line: &'a mut MutexGuard<'_, Line>,
    ) -> Result<&'a mut BufReader<UnixStream>, GateError> {
        let options = &self.inner.options;
        let Some(listener) = &line.listener else { return Err(GateError::Closed) };
        if line.stream.is_none() {
            let mut found = connect(&options.dir).await.ok();
            if let Some(stream) = &mut found
                && hello(stream).await.is_err()
            {
                found = None;
            }
            line.stream = Some(match found {
                Some(stream) => stream,
                None => start(options, listener).await?,
            });
        }
        line.stream.as_mut().ok_or_else(|| GateError::Silent(timed_out()))
    }

    /// Starts it again whenever it ends.
    async fn watch(&self) {
        let random = Random::system();
        let mut backoff = Backoff::new(RESTART.0, RESTART.1);
        loop {
            if let Ok(mut stream) = connect(&self.inner.options.dir).await
                && stream.get_mut().write_all(b"{\"ask\":\"watch\"}\n").await.is_ok()
            {
                backoff.reset();
                // It says nothing: this ends with it.
                drop(stream.read(&mut [0]).await);
            }
            runtime::sleep(backoff.next_delay(&random)).await;
            let mut line = self.inner.line.lock().await;
            if line.listener.is_none() {
                return;
            }
            line.stream = None;
            match self.stream(&mut line).await {
                Ok(_) => tracing::warn!("the gate had ended and was started again"),
                Err(error) => tracing::warn!(%error, "the gate cannot be started again"),
            }
        }
    }
}

async fn find_or_start(
    options: &Options,
) -> Result<(BufReader<UnixStream>, TcpListener), GateError> {
    let Ok((mut old, known)) = find(&options.dir).await else {
        let listener = bind(options.listen)?;
        let stream = start(options, &listener).await?;
        return Ok((stream, listener));
    };
    let is_there = known.listen == options.listen
        || options.listen.port() == 0 && known.listen.ip() == options.listen.ip();
    let listener = if is_there {
        let dir = options.dir.clone();
        runtime::blocking(move || listener_of(&dir)).await?
    } else {
        bind(options.listen)?
    };
    if is_there && known.version == options.version {
        return Ok((old, listener));
    }
    // Both take connections from the one socket for a moment, with the same table.
    let stream = start(options, &listener).await?;
    drop(ask(&mut old, &Ask::Drain).await);
    tracing::info!(from = known.version, to = options.version, "the gate was replaced");
    Ok((stream, listener))
}

async fn find(dir: &Path) -> io::Result<(BufReader<UnixStream>, Hello)> {
    let mut stream = connect(dir).await?;
    let hello = hello(&mut stream).await?;
    Ok((stream, hello))
}

fn bind(address: SocketAddr) -> Result<TcpListener, GateError> {
    TcpListener::bind(address).map_err(|error| GateError::Listen { address, error })
}

/// Starts a gate on a socket that listens, and waits until it serves.
async fn start(
    options: &Options,
    listener: &TcpListener,
) -> Result<BufReader<UnixStream>, GateError> {
    let failed = |error: io::Error| GateError::Start(error.to_string());
    let mut child = Command::new(&options.program)
        .arg(ARGUMENT)
        .arg(&options.dir)
        .arg(&options.version)
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(listener.try_clone()?)))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let output = child.stdout.take().ok_or_else(|| GateError::Start("it is mute".to_owned()))?;
    let mut said = String::new();
    let mut output = BufReader::new(output);
    let reading = runtime::timeout(ANSWER_LIMIT, output.read_line(&mut said)).await;
    reading.ok_or_else(|| GateError::Start("it says nothing".to_owned()))?.map_err(failed)?;
    if said.trim() != SERVES {
        return Err(GateError::Start(said.trim().to_owned()));
    }
    Ok(connect(&options.dir).await?)
}
