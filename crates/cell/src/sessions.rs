//! Sessions: somebody works in a container, through the server.
//!
//! What is on its way is bounded by credit in both directions, so a session that is not read from
//! or written to costs nothing but its process, and holds up nobody else.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use api::proto::cell_up::Message as Up;
use api::proto::session_data::Channel;
use api::proto::session_down::Message as Down;
use api::proto::session_open::What;
use api::proto::session_up::Message;
use api::proto::{
    SessionCredit, SessionData, SessionDown, SessionEnd, SessionExec, SessionOpen, SessionStarted,
    SessionUp,
};
use bytes::Bytes;
use drivers::{
    Ability, Driver, Handle, Input, ProcessId, ProcessSpec, Session, Signal, Terminal, archive,
};
use runtime::{Random, Stop, Tasks};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;

use crate::actor::status;
use crate::error::Failure;
use crate::limits::{MAX_SESSIONS, SESSION_LAST_WORDS, SESSION_WINDOW};
use crate::link::Connection;
use crate::prepare::user;

/// The most bytes of one message.
const PIECE: usize = 64 << 10;
/// What the smallest message costs.
const LEAST_COST: u32 = 256;
/// Messages to a session that wait: as many as its credit allows, and some orders.
const QUEUE: usize = (SESSION_WINDOW / LEAST_COST) as usize + 64;

/// The sessions of one connection; dropping them ends them.
#[derive(Debug, Default)]
pub(crate) struct Sessions(BTreeMap<Bytes, Open>);

#[derive(Debug)]
struct Open {
    downs: mpsc::Sender<Down>,
    /// What the cell may still send.
    credit: Arc<Semaphore>,
}

/// The container somebody works in.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) handle: Handle,
}

impl Sessions {
    /// Takes a message. `place` is where a session that is to be opened goes.
    pub(crate) fn take(
        &mut self,
        message: SessionDown,
        place: Option<Place>,
        (connection, tasks): (&Connection, &Tasks),
    ) {
        let SessionDown { id, message } = message;
        let Some(message) = message else { return };
        if let Down::Open(open) = message {
            self.0.retain(|_, session| !session.downs.is_closed());
            let credit = Arc::new(Semaphore::new(usize::try_from(open.credit).unwrap_or(0)));
            let line = Line { id: id.clone(), connection: connection.clone(), credit };
            let refusal = match &place {
                None => Some("it does not run on this cell"),
                Some(_) if self.0.len() >= MAX_SESSIONS => Some("the cell has too many sessions"),
                Some(_) if self.0.contains_key(&id) => Some("there is such a session already"),
                Some(_) => None,
            };
            let (downs, queue) = mpsc::channel(QUEUE);
            if refusal.is_none() {
                self.0.insert(id, Open { downs, credit: Arc::clone(&line.credit) });
            }
            let (stop, refused) = (tasks.stop().clone(), refusal.map(str::to_owned));
            tasks.spawn_ok("session", async move {
                let end = match (place, refused) {
                    (Some(place), None) => {
                        stop.or_stop(Box::pin(line.serve(&place, open, queue))).await
                    }
                    (_, reason) => Some(failed(reason.unwrap_or_default())),
                };
                if let Some(end) = end {
                    line.send(Message::End(end)).await;
                }
            });
            return;
        }
        let Some(session) = self.0.get(&id) else { return };
        let kept = match message {
            Down::Credit(SessionCredit { bytes }) => session.grant(bytes),
            other => session.downs.try_send(other).is_ok(),
        };
        if !kept {
            // It ended, or it was sent more than it granted.
            self.0.remove(&id);
        }
    }
}

impl Open {
    fn grant(&self, bytes: u32) -> bool {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let fits = bytes.saturating_add(self.credit.available_permits()) <= MOST_CREDIT;
        if fits {
            self.credit.add_permits(bytes);
        }
        fits
    }
}

/// More than anybody needs.
const MOST_CREDIT: usize = 16 << 20;

fn failed(reason: String) -> SessionEnd {
    SessionEnd { exit_json: None, error: Some(reason) }
}

fn cost(bytes: &Bytes) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).max(LEAST_COST)
}

/// What a session says to the server.
struct Line {
    id: Bytes,
    connection: Connection,
    credit: Arc<Semaphore>,
}

impl Line {
    async fn send(&self, message: Message) {
        let up = SessionUp { id: self.id.clone(), message: Some(message) };
        self.connection.send(Up::Session(up)).await;
    }

    /// Lets the other side send as much again.
    async fn grant(&self, bytes: u32) {
        self.send(Message::Credit(SessionCredit { bytes })).await;
    }

    async fn serve(
        &self,
        place: &Place,
        open: SessionOpen,
        downs: mpsc::Receiver<Down>,
    ) -> SessionEnd {
        let done = match open.what {
            Some(What::Exec(exec)) => self.exec(place, exec, downs).await,
            Some(What::CopyIn(path)) => self.copy_in(place, &path, downs).await,
            Some(What::CopyOut(path)) => self.copy_out(place, &path, downs).await,
            None => Err(Failure::new("this cell does not know what is wanted")),
        };
        done.unwrap_or_else(|failure| failed(failure.reason))
    }

    async fn started(&self) {
        self.send(Message::Started(SessionStarted { credit: SESSION_WINDOW })).await;
    }

    /// Sends everything that can be read. What was read waits for credit here and no more is read
    /// meanwhile, so what runs waits for whoever watches. When what writes it is `over`, something
    /// that was left behind may hold it open: then it ends after a pause.
    async fn pump(&self, channel: Channel, mut input: Input, over: &Stop) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        loop {
            let silence = async {
                over.stopped().await;
                runtime::sleep(SESSION_LAST_WORDS).await;
            };
            let read = tokio::select! {
                read = input.read(&mut piece) => read?,
                () = silence => 0,
            };
            let mut rest = piece.get(..read).unwrap_or_default();
            if rest.is_empty() {
                return Ok(());
            }
            while !rest.is_empty() {
                let most = self.spend(rest.len()).await?;
                let (now, later) = rest.split_at(most.min(rest.len()));
                let bytes = Bytes::copy_from_slice(now);
                self.send(Message::Data(SessionData { channel: channel.into(), bytes })).await;
                rest = later;
            }
        }
    }

    /// Takes as much credit as there is for this many bytes, once there is enough for a message;
    /// for how many bytes it is. The other output may take credit at any moment, so nothing is
    /// counted on that was not taken.
    async fn spend(&self, wanted: usize) -> io::Result<usize> {
        let least = self.credit.acquire_many(LEAST_COST).await.map_err(io::Error::other)?;
        least.forget();
        let least = LEAST_COST as usize;
        let more = wanted.saturating_sub(least).min(self.credit.available_permits());
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        match self.credit.try_acquire_many(more) {
            Ok(taken) => {
                taken.forget();
                Ok(least + more as usize)
            }
            Err(_) => Ok(least),
        }
    }

    async fn exec(
        &self,
        place: &Place,
        exec: SessionExec,
        mut downs: mpsc::Receiver<Down>,
    ) -> Result<SessionEnd, Failure> {
        let terminal = exec.terminal.map(size);
        let spec = command(place, exec)?;
        let session = place.driver.session(&place.handle, spec, terminal).await?;
        self.started().await;
        let Session { input, output, error, mut control } = session;
        let (inputs, queue) = mpsc::channel(QUEUE);
        let mut inputs = Some(inputs);
        let over = Stop::new();
        let out = async {
            let (output, error) = tokio::join!(
                self.pump(Channel::Output, output, &over),
                self.pump(Channel::Error, error, &over)
            );
            output.and(error)
        };
        let feed = self.feed(input, queue);
        tokio::pin!(out, feed);
        let (mut read, mut closed) = (false, false);
        let exit = loop {
            tokio::select! {
                exit = control.wait() => break exit?,
                _ = &mut out, if !read => read = true,
                () = &mut feed, if !closed => closed = true,
                down = downs.recv() => match down {
                    Some(Down::Data(data)) => {
                        if inputs.as_ref().is_some_and(|it| it.try_send(data.bytes).is_err()) {
                            // It closed its input.
                            inputs = None;
                        }
                    }
                    Some(Down::InputEnd(_)) => inputs = None,
                    Some(Down::Resize(it)) => control.resize(size(it))?,
                    Some(Down::Signal(name)) => control.signal(signal(&name)?)?,
                    Some(Down::Open(_) | Down::Credit(_)) => {}
                    Some(Down::Close(_)) | None => return Err(Failure::new("it was closed")),
                },
            }
        };
        over.stop();
        // Whoever reads slowly gets all of it, as long as they are there.
        while !read {
            tokio::select! {
                _ = &mut out => read = true,
                down = downs.recv() => if matches!(down, None | Some(Down::Close(_))) {
                    return Err(Failure::new("it was closed"));
                },
            }
        }
        let exit_json = serde_json::to_vec(&status(&exit)).map_err(Failure::new)?;
        Ok(SessionEnd { exit_json: Some(exit_json.into()), error: None })
    }

    /// Passes input on, and grants credit for what was taken.
    async fn feed(
        &self,
        mut input: std::pin::Pin<Box<dyn AsyncWrite + Send>>,
        mut queue: mpsc::Receiver<Bytes>,
    ) {
        while let Some(bytes) = queue.recv().await {
            let written = async {
                input.write_all(&bytes).await?;
                input.flush().await
            };
            if written.await.is_err() {
                return;
            }
            self.grant(cost(&bytes)).await;
        }
        drop(input.shutdown().await);
    }

    async fn copy_in(
        &self,
        place: &Place,
        path: &str,
        mut downs: mpsc::Receiver<Down>,
    ) -> Result<SessionEnd, Failure> {
        self.started().await;
        let (pieces, queue) = mpsc::channel::<io::Result<Bytes>>(1);
        let input: Input = Box::pin(StreamReader::new(ReceiverStream::new(queue)));
        let limits = archive::Limits::default();
        let unpack = place.driver.copy_in(&place.handle, path, input, limits);
        tokio::pin!(unpack);
        let unpacked = tokio::select! {
            unpacked = &mut unpack => unpacked,
            () = self.receive(&mut downs, pieces) => unpack.await,
        };
        unpacked?;
        Ok(SessionEnd::default())
    }

    /// Passes an archive on, and grants credit for what was taken. Dropping `pieces` is its end.
    async fn receive(
        &self,
        downs: &mut mpsc::Receiver<Down>,
        pieces: mpsc::Sender<io::Result<Bytes>>,
    ) {
        loop {
            match downs.recv().await {
                Some(Down::Data(SessionData { bytes, .. })) => {
                    let cost = cost(&bytes);
                    if pieces.send(Ok(bytes)).await.is_err() {
                        // What unpacks says why.
                        return;
                    }
                    self.grant(cost).await;
                }
                Some(Down::InputEnd(_)) => return,
                Some(Down::Close(_)) | None => {
                    // What unpacks must not take this for the end.
                    drop(pieces.send(Err(io::Error::other("it was closed"))).await);
                    return;
                }
                Some(Down::Open(_) | Down::Credit(_) | Down::Resize(_) | Down::Signal(_)) => {}
            }
        }
    }

    async fn copy_out(
        &self,
        place: &Place,
        path: &str,
        mut downs: mpsc::Receiver<Down>,
    ) -> Result<SessionEnd, Failure> {
        let tar = place.driver.copy_out(&place.handle, path).await?;
        self.started().await;
        let never = Stop::new();
        let pump = self.pump(Channel::Output, tar, &never);
        tokio::pin!(pump);
        loop {
            tokio::select! {
                done = &mut pump => {
                    done?;
                    return Ok(SessionEnd::default());
                }
                down = downs.recv() => if matches!(down, None | Some(Down::Close(_))) {
                    return Err(Failure::new("it was closed"));
                },
            }
        }
    }
}

fn command(place: &Place, exec: SessionExec) -> Result<ProcessSpec, Failure> {
    let number = Random::system().next_u64();
    let id = ProcessId::new(format!("session-{number:016x}"))?;
    let mut spec = ProcessSpec::new(id, exec.argv);
    spec.env.extend(exec.env);
    spec.dir = exec.dir;
    if let Some(text) = exec.user {
        let able = place.driver.capabilities();
        if !able.can(Ability::Users) {
            let reason = format!("the {} driver runs nothing as another user", able.name);
            return Err(Failure::new(reason));
        }
        let user = user(&text);
        spec.user = Some(user.ok_or_else(|| Failure::new("the user is no `uid` or `uid:gid`"))?);
    }
    spec.check()?;
    Ok(spec)
}

fn size(terminal: api::proto::Terminal) -> Terminal {
    let cells = |count: u32| u16::try_from(count.max(1)).unwrap_or(u16::MAX);
    Terminal { columns: cells(terminal.columns), rows: cells(terminal.rows) }
}

const SIGNALS: [(&str, Signal); 9] = [
    ("term", Signal::Term),
    ("kill", Signal::Kill),
    ("int", Signal::Int),
    ("hup", Signal::Hup),
    ("quit", Signal::Quit),
    ("usr1", Signal::Usr1),
    ("usr2", Signal::Usr2),
    ("stop", Signal::Stop),
    ("cont", Signal::Cont),
];

fn signal(name: &str) -> Result<Signal, Failure> {
    let found = SIGNALS.iter().find(|(known, _)| *known == name);
    found.map(|(_, signal)| *signal).ok_or_else(|| Failure::new(format!("no signal is {name:?}")))
}
