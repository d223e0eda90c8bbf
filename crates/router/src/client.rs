//! What a thread knows of one client connection.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::head::{self, Verdict};
use crate::host;
use crate::stats::Count;
use crate::upstream::{Lease, UpstreamIo, write_vectored};
use crate::worker::Worker;

/// What the client is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Between requests.
    Idle,
    /// In the middle of a request's head; a new connection begins here.
    Head,
    /// A request is being served.
    Busy,
    /// The connection is not ours to understand any more.
    Tunnel,
}

/// Why the sweeper wakes a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdicts {
    Fine,
    Close,
    Unanswered,
}

/// The upstream half of an upgraded connection.
#[derive(Debug)]
pub(crate) struct Upgraded {
    pub(crate) io: UpstreamIo,
    /// What the instance sent after its 101.
    pub(crate) sent: Bytes,
    /// The place at the instance, for as long as it lasts.
    pub(crate) lease: Lease,
}

/// One client connection. Shared by its I/O, its requests and the thread's sweeper.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) worker: Rc<Worker>,
    pub(crate) peer: IpAddr,
    /// The client's address, rendered.
    pub(crate) peer_value: HeaderValue,
    pub(crate) is_h2: bool,
    pub(crate) upgraded: RefCell<Option<Upgraded>>,
    phase: Cell<Phase>,
    /// Requests being served; more than one only with HTTP/2.
    requests: Cell<u32>,
    /// When the phase began.
    since: Cell<u64>,
    /// Since when the client owes us a read or a write.
    stalled: Cell<Option<u64>>,
    /// Since when an instance owes us the head of a response.
    waiting: Cell<Option<u64>>,
    verdict: Cell<Verdicts>,
    waker: RefCell<Option<Waker>>,
    /// Whether the body of a request broke off or made no sense.
    is_broken: Cell<bool>,
    /// Raw bytes since the last request's head, to look at again: see [`head`].
    raw: RefCell<Vec<u8>>,
    keeps_raw: Cell<bool>,
    /// How each `Forwarded` field begins.
    pub(crate) forwarded: Box<str>,
}

/// A request being served: it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Serving(Rc<Client>);

impl std::ops::Deref for Serving {
    type Target = Rc<Client>;

    fn deref(&self) -> &Rc<Client> {
        &self.0
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A buffer larger than this is not kept between requests.
const KEPT_RAW: usize = 4_096;

impl Client {
    pub(crate) fn new(worker: Rc<Worker>, peer: SocketAddr, is_h2: bool) -> Rc<Self> {
        let peer = peer.ip().to_canonical();
        let text = Bytes::from(peer.to_string());
        Rc::new(Self {
            since: Cell::new(worker.now()),
            worker,
            peer,
            peer_value: HeaderValue::from_maybe_shared(text)
                .unwrap_or_else(|_| HeaderValue::from_static("unknown")),
            is_h2,
            upgraded: RefCell::new(None),
            phase: Cell::new(Phase::Head),
            requests: Cell::new(0),
            stalled: Cell::new(None),
            waiting: Cell::new(None),
            verdict: Cell::new(Verdicts::Fine),
            waker: RefCell::new(None),
            is_broken: Cell::new(false),
            raw: RefCell::new(Vec::new()),
            keeps_raw: Cell::new(!is_h2),
            forwarded: host::forwarded_for(peer),
        })
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(self.worker.now());
    }

    /// A request begins. With a body, what is read from now on is not a head.
    pub(crate) fn begin(self: &Rc<Self>, has_body: bool) -> Serving {
        self.requests.set(self.requests.get() + 1);
        self.enter(Phase::Busy);
        if has_body {
            self.keeps_raw.set(false);
        }
        self.worker.counters.add(Count::Requests);
        self.worker.counters.add(Count::Active);
        Serving(Rc::clone(self))
    }

    /// A request ended.
    fn end(&self) {
        self.worker.counters.add(Count::ActiveEnded);
        self.requests.set(self.requests.get().saturating_sub(1));
        if self.requests.get() > 0 || self.phase.get() == Phase::Tunnel {
            return;
        }
        self.stalled.set(None);
        self.waiting.set(None);
        if !self.keeps_raw.get() {
            self.keeps_raw.set(!self.is_h2);
            self.raw.borrow_mut().clear();
        }
        let has_begun_another = !self.raw.borrow().is_empty();
        self.enter(if has_begun_another { Phase::Head } else { Phase::Idle });
    }

    pub(crate) fn tunnels(&self) {
        self.enter(Phase::Tunnel);
        self.keeps_raw.set(false);
        *self.raw.borrow_mut() = Vec::new();
    }

    /// Looks at the raw head of the request that begins, and forgets it.
    pub(crate) fn look_again(&self, method: &str) -> Verdict {
        let mut raw = self.raw.borrow_mut();
        let verdict = head::check(&raw, method);
        match verdict {
            Verdict::Strict(length) if length < raw.len() => drop(raw.drain(..length)),
            Verdict::Strict(_) | Verdict::Unseen | Verdict::BareLineFeed | Verdict::Framing => {
                raw.clear();
            }
        }
        raw.shrink_to(KEPT_RAW);
        verdict
    }

    /// Notes that an instance owes a response, or does not any more.
    pub(crate) fn set_waiting(&self, is_waiting: bool) {
        self.waiting.set(is_waiting.then(|| self.worker.now()));
    }

    /// Notes that the client owes a read or a write, or does not any more.
    pub(crate) fn set_stalled(&self, is_stalled: bool) {
        if is_stalled != self.stalled.get().is_some() {
            self.stalled.set(is_stalled.then(|| self.worker.now()));
        }
    }

    /// Notes that a body broke off or made no sense. Nothing can follow on this connection.
    pub(crate) fn set_broken(&self) {
        self.is_broken.set(true);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken.get() && !self.is_h2
    }

    /// Whether the instance has taken too long.
    pub(crate) fn take_unanswered(&self) -> bool {
        let unanswered = self.verdict.get() == Verdicts::Unanswered;
        if unanswered {
            self.verdict.set(Verdicts::Fine);
        }
        unanswered
    }

    /// Whether the client has taken too long.
    pub(crate) fn is_closed(&self) -> bool {
        self.verdict.get() == Verdicts::Close
    }

    /// Gives a client that is to be closed the time of a head to end by itself.
    pub(crate) fn forgive(&self) {
        self.verdict.set(Verdicts::Fine);
        if self.requests.get() == 0 {
            self.enter(Phase::Head);
        }
    }

    /// Has `cx`'s task woken when there is something to look at.
    pub(crate) fn watch(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }

    pub(crate) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Looks for what has taken too long.
    pub(crate) fn sweep(&self) {
        let limits = &self.worker.limits;
        let now = self.worker.now();
        let longer = |since: u64, limit: std::time::Duration| {
            u128::from(now.saturating_sub(since)) > limit.as_millis()
        };
        let since = self.since.get();
        let too_long = match self.phase.get() {
            Phase::Idle => longer(since, limits.client_idle),
            Phase::Head => longer(since, limits.header_timeout),
            Phase::Busy => self.stalled.get().is_some_and(|at| longer(at, limits.client_stall)),
            Phase::Tunnel => false,
        };
        let unanswered = self.waiting.get().is_some_and(|at| longer(at, limits.response_timeout));
        if too_long {
            self.verdict.set(Verdicts::Close);
            self.wake();
        } else if unanswered && !self.is_h2 {
            self.waiting.set(None);
            self.verdict.set(Verdicts::Unanswered);
            self.wake();
        }
    }

    fn read(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        // With HTTP/2, bytes between requests need not be the beginning of one.
        if self.phase.get() == Phase::Idle && !self.is_h2 {
            self.enter(Phase::Head);
        }
        if self.keeps_raw.get() {
            let mut raw = self.raw.borrow_mut();
            // hyper refuses a longer head by itself.
            if raw.len() <= self.worker.limits.header_bytes {
                raw.extend_from_slice(bytes);
            }
        }
    }
}

/// A client's socket, watched.
#[derive(Debug)]
pub(crate) struct ClientIo {
    pub(crate) stream: TcpStream,
    pub(crate) client: Rc<Client>,
}

impl AsyncRead for ClientIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if polled.is_ready() {
            this.client.read(&buf.filled()[before..]);
        }
        polled
    }
}

impl ClientIo {
    fn wrote<T>(&self, polled: Poll<std::io::Result<T>>) -> Poll<std::io::Result<T>> {
        self.client.set_stalled(polled.is_pending());
        polled
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.wrote(polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        let polled = write_vectored(&mut this.stream, cx, bufs);
        this.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
