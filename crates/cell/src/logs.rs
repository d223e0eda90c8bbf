//! Ships the lines of one container to the server, bounded, in order, and again after a reconnect.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::proto::{CellLog, LogLine};
use bytes::Bytes;
use drivers::{Output, OutputStream};
use futures_util::StreamExt as _;
use model::LogSource;
use runtime::{Clock as _, Stop, SystemClock, mono_now};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::actor::Voice;
use crate::bucket::Bucket;
use crate::limits::{
    BATCH_DELAY, FLUSH_LIMIT, MAX_BATCH_BYTES, MAX_BATCH_LINES, MAX_PIECES, MAX_UNKEPT,
};
use crate::lines::{Line, Position, Splitter};
use crate::link::{Connection, Link};
use crate::metrics::Metrics;
use crate::tail::Tail;
use crate::work::Key;

/// What the server has not acknowledged yet, and up to where it did.
#[derive(Debug, Default)]
pub(crate) struct Window {
    inner: Mutex<Unkept>,
    kept: Notify,
}

#[derive(Debug, Default)]
struct Unkept {
    messages: VecDeque<(u64, CellLog)>,
    last: u64,
    position: Position,
}

fn encode(number: u64, position: Position) -> Bytes {
    let words = [number, position.stdout, position.stderr];
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn decode(resume: &[u8]) -> Option<(u64, Position)> {
    let mut words = resume.chunks_exact(8).filter_map(|word| word.try_into().ok());
    let mut next = || words.next().map(u64::from_be_bytes);
    Some((next()?, Position { stdout: next()?, stderr: next()? }))
}

impl Window {
    pub(crate) fn new(position: Position) -> Self {
        let inner = Mutex::new(Unkept { position, ..Unkept::default() });
        Self { inner, kept: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Unkept> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the server's word for it that lines are kept.
    pub(crate) fn acknowledge(&self, resume: &[u8]) {
        let Some((number, position)) = decode(resume) else { return };
        let mut inner = self.lock();
        if number > inner.last {
            return;
        }
        while inner.messages.front().is_some_and(|(sent, _)| *sent <= number) {
            inner.messages.pop_front();
            inner.position = position;
        }
        drop(inner);
        self.kept.notify_one();
    }

    /// Where the output continues after everything the server keeps.
    pub(crate) fn position(&self) -> Position {
        self.lock().position
    }

    /// Changes whenever lines are sent or acknowledged.
    fn progress(&self) -> (u64, usize) {
        let inner = self.lock();
        (inner.last, inner.messages.len())
    }

    fn is_full(&self) -> bool {
        self.lock().messages.len() >= MAX_UNKEPT
    }

    fn is_empty(&self) -> bool {
        self.lock().messages.is_empty()
    }

    fn all(&self) -> Vec<CellLog> {
        self.lock().messages.iter().map(|(_, message)| message.clone()).collect()
    }

    fn push(&self, key: Key, lines: Vec<LogLine>, position: Position) -> CellLog {
        let mut inner = self.lock();
        inner.last += 1;
        let number = inner.last;
        let resume = encode(number, position);
        let message = CellLog { work: Some(key.work()), resume, lines };
        inner.messages.push_back((number, message.clone()));
        message
    }
}

enum Piece {
    Lines { lines: Vec<LogLine>, position: Option<Position> },
    Flush(oneshot::Sender<()>),
}

/// Takes the lines of one container. Clones write to the same log.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    pieces: mpsc::Sender<Piece>,
    link: Link,
    window: Arc<Window>,
}

impl Journal {
    /// A journal, and what ships it until all clones of the journal are dropped.
    pub(crate) fn new(
        key: Key,
        link: &Link,
        window: Arc<Window>,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (pieces, receiver) = mpsc::channel(MAX_PIECES);
        let shipper = Shipper {
            key,
            link: link.clone(),
            connection: None,
            position: window.position(),
            window: Arc::clone(&window),
            lines: VecDeque::new(),
            bytes: 0,
            next_position: None,
            due: mono_now(),
            flushing: Vec::new(),
        };
        (Self { pieces, link: link.clone(), window }, shipper.run(receiver))
    }

    /// Adds a line of the platform's own.
    pub(crate) async fn say(&self, text: impl Into<String>) {
        self.lines(vec![(LogSource::System, text.into().into())], None).await;
    }

    async fn lines(&self, lines: Vec<Line>, position: Option<Position>) {
        let at_ms = SystemClock.now_ms();
        let line = |(source, text): Line| LogLine { at_ms, source: source.code().into(), text };
        let lines = lines.into_iter().map(line).collect();
        // The shipper ends with the agent only.
        drop(self.pieces.send(Piece::Lines { lines, position }).await);
    }

    /// Waits until the server keeps every line so far.
    pub(crate) async fn flush(&self, leave: &Stop) {
        let (done, flushed) = oneshot::channel();
        if self.pieces.send(Piece::Flush(done)).await.is_ok() {
            self.patiently(leave, flushed).await;
        }
    }

    /// Waits for `done`, but not for a server that is connected and does not acknowledge
    /// anything, nor for one that is away when the cell leaves for good.
    pub(crate) async fn patiently(&self, leave: &Stop, mut done: oneshot::Receiver<()>) {
        let mut before = self.window.progress();
        while runtime::timeout(FLUSH_LIMIT, &mut done).await.is_none() {
            let now = self.window.progress();
            let away = self.link.current().is_none() && !leave.is_stopped();
            if !away && now == before {
                tracing::warn!("the last log lines are not acknowledged");
                return;
            }
            before = now;
        }
    }

    /// Reads the output of a process to its end.
    pub(crate) async fn follow(
        &self,
        mut output: OutputStream,
        resume: Option<Position>,
        told: Told,
    ) {
        let mut splitter = Splitter::new(resume.unwrap_or_default());
        let position = |splitter: &Splitter| resume.map(|_| splitter.position());
        let mut pace = Pace::new(mono_now());
        loop {
            let item = tokio::select! {
                item = output.next() => item,
                () = told.due() => {
                    self.lines(told.said().into_iter().collect(), position(&splitter)).await;
                    continue;
                }
            };
            match item {
                Some(Ok(item)) => {
                    if let Output::Chunk(chunk) = &item {
                        runtime::sleep_until(pace.due(chunk.bytes.len(), mono_now())).await;
                    }
                    let lines = told.tell(splitter.push(&item));
                    let begin = mono_now();
                    self.lines(lines, position(&splitter)).await;
                    told.waited(mono_now() - begin);
                }
                Some(Err(error)) => {
                    self.say(format!("the output cannot be read any more: {error}")).await;
                    break;
                }
                None => break,
            }
        }
        let mut rest = told.tell(splitter.finish());
        rest.extend(told.said());
        if !rest.is_empty() {
            self.lines(rest, position(&splitter)).await;
        }
    }
}

/// Output that is read of one process in a second: four times what the server keeps at most. A flood
/// beyond it would take the processor time of others; the process does not wait for it, and what its
/// supervisor does not keep until it is read is told as a gap.
const READ_BYTES_PER_SECOND: u64 = 16 << 20;
/// What is read at once, as a time at that pace.
const READ_AHEAD: Duration = Duration::from_secs(2);
const NANOS: u64 = 1_000_000_000;

/// How fast output is read.
struct Pace {
    /// When all that was read until now would have been at an even pace.
    due: Instant,
}

impl Pace {
    const fn new(now: Instant) -> Self {
        Self { due: now }
    }

    /// When so many bytes more may have been read.
    fn due(&mut self, bytes: usize, now: Instant) -> Instant {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let cost = bytes.saturating_mul(NANOS / READ_BYTES_PER_SECOND.min(NANOS));
        let least = now.checked_sub(READ_AHEAD).unwrap_or(now);
        self.due = self.due.max(least) + Duration::from_nanos(cost);
        self.due.max(now)
    }
}

/// What becomes of the lines of one process.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) voice: Voice,
    pub(crate) tail: Arc<Tail>,
    /// How much of it is kept; all processes of a container share one.
    pub(crate) bucket: Arc<Mutex<Bucket>>,
    pub(crate) key: Key,
    pub(crate) metrics: Arc<Metrics>,
}

impl Told {
    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, mut lines: Vec<Line>) -> Vec<Line> {
        for (_, text) in &lines {
            self.tail.push(text);
        }
        if let Voice::Named(name) = &self.voice {
            for (_, text) in &mut lines {
                *text = [b"[", name.as_bytes(), b"] ", text.as_ref()].concat().into();
            }
        }
        let mut bucket = self.bucket();
        let now = mono_now();
        // What the platform says of the output is not the container's to pay for.
        lines.retain(|(source, text)| *source == LogSource::System || bucket.take(text.len(), now));
        lines
    }

    /// Lines waited that long for whoever sends them; it is not the container's fault.
    fn waited(&self, time: Duration) {
        self.bucket().credit(time);
    }

    /// Waits until there is something to say about lines that were dropped.
    async fn due(&self) {
        let due = self.bucket().due();
        match due {
            Some(due) => runtime::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    fn said(&self) -> Option<Line> {
        let (dropped, text) = self.bucket().report()?;
        self.metrics.dropped(dropped);
        tracing::warn!(work = %self.key, dropped.lines, dropped.bytes, "log lines were dropped");
        Some((LogSource::System, text.into()))
    }
}

struct Shipper {
    key: Key,
    link: Link,
    /// The connection that has everything up to now.
    connection: Option<Connection>,
    window: Arc<Window>,
    lines: VecDeque<LogLine>,
    bytes: usize,
    /// Where the output continues after all waiting lines.
    next_position: Option<Position>,
    /// Where it continues after the last message.
    position: Position,
    /// When waiting lines are sent even if they are few.
    due: Instant,
    flushing: Vec<oneshot::Sender<()>>,
}

impl Shipper {
    async fn run(mut self, mut pieces: mpsc::Receiver<Piece>) {
        loop {
            self.reconnect().await;
            self.ship().await;
            let many = self.is_many();
            let waits = !self.lines.is_empty() && !many && !self.window.is_full();
            tokio::select! {
                biased;
                () = self.link.changed() => {}
                () = self.window.kept.notified() => {}
                piece = pieces.recv(), if !many => match piece {
                    Some(piece) => self.add(piece),
                    None => return,
                },
                () = runtime::sleep_until(self.due), if waits => {}
            }
        }
    }

    fn is_many(&self) -> bool {
        self.lines.len() >= MAX_BATCH_LINES || self.bytes >= MAX_BATCH_BYTES
    }

    fn add(&mut self, piece: Piece) {
        match piece {
            Piece::Lines { lines, position } => {
                if self.lines.is_empty() {
                    self.due = self.due.max(mono_now());
                }
                self.bytes += lines.iter().map(|line| line.text.len()).sum::<usize>();
                self.lines.extend(lines);
                self.next_position = position.or(self.next_position);
                if self.lines.is_empty() {
                    self.position = self.next_position.unwrap_or(self.position);
                }
            }
            Piece::Flush(done) => self.flushing.push(done),
        }
    }

    /// Sends what is due, as far as the window has room.
    async fn ship(&mut self) {
        while !self.lines.is_empty() && !self.window.is_full() {
            let now = mono_now();
            if !self.is_many() && self.flushing.is_empty() && now < self.due {
                return;
            }
            let count = self.lines.len().min(MAX_BATCH_LINES);
            let lines: Vec<LogLine> = self.lines.drain(..count).collect();
            self.bytes -= lines.iter().map(|line| line.text.len()).sum::<usize>();
            if self.lines.is_empty() {
                self.position = self.next_position.unwrap_or(self.position);
            }
            self.due = now + BATCH_DELAY;
            let message = self.window.push(self.key, lines, self.position);
            self.send(message).await;
        }
        if self.lines.is_empty() && self.window.is_empty() {
            for done in self.flushing.drain(..) {
                // Whoever waited may have given up.
                done.send(()).unwrap_or_default();
            }
        }
    }

    async fn send(&self, message: CellLog) {
        if let Some(connection) = &self.connection {
            connection.log(message).await;
        }
    }

    /// Sends everything that the server of a new connection may not have.
    async fn reconnect(&mut self) {
        let current = self.link.current();
        let number = |connection: &Option<Connection>| connection.as_ref().map(|c| c.number);
        if number(&current) == number(&self.connection) {
            return;
        }
        self.connection = current;
        for message in self.window.all() {
            self.send(message).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_read_at_a_pace_and_a_burst_at_once() {
        const PIECE: usize = 64 << 10;
        let begin = mono_now();
        let mut pace = Pace::new(begin);
        let later = begin + READ_AHEAD;
        let mut at = later;
        let ends: Vec<Instant> = (0..2_560)
            .map(|_| {
                at = pace.due(PIECE, at);
                at
            })
            .collect();
        assert_eq!(ends[256], later, "a second's output waits for nothing");
        let took = ends[2_559] - later;
        assert!(took.abs_diff(Duration::from_secs(8)) < Duration::from_secs(1), "{took:?}");
    }

    #[test]
    fn only_what_was_sent_is_acknowledged() {
        let key = Key { kind: api::proto::work::Kind::Task, id: 1, epoch: 1 };
        let window = Window::new(Position::default());
        let at = |stdout| Position { stdout, stderr: stdout };
        let first = window.push(key, Vec::new(), at(5));
        let second = window.push(key, Vec::new(), at(9));
        window.acknowledge(&encode(99, at(99)));
        window.acknowledge(b"nonsense");
        assert_eq!((window.position(), window.all().len()), (at(0), 2));
        window.acknowledge(&first.resume);
        assert_eq!((window.position(), window.all().len()), (at(5), 1));
        window.acknowledge(&second.resume);
        window.acknowledge(&first.resume);
        assert_eq!((window.position(), window.is_empty()), (at(9), true));
    }
}
