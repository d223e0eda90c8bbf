//! Connections to instances, and the ones kept for the next request.
//!
//! A connection has no task of its own: whoever uses it drives it. That saves two task switches for
//! each request, and a connection nobody uses does nothing.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use gate::TlsStream;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Connection, SendRequest};
use hyper_util::rt::TokioIo;
use rustix::net::SendFlags;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::body::RequestBody;
use crate::options::Limits;
use crate::stats::Count;
use crate::table::{Kept, Resting, Target};
use crate::worker::Worker;

/// What went over a connection since its request began.
#[derive(Debug, Default)]
struct Tally {
    read: Cell<bool>,
    /// Whether the request may be sent again: then it is better soon given up than waited for.
    repeats: Cell<bool>,
    /// What was sent was not acknowledged in time: the instance's machine is out of reach.
    unreachable: Cell<bool>,
    /// Whether what is written is to be remembered.
    keeps: Cell<bool>,
    /// The request as it was written, to be written once more on another connection.
    sent: RefCell<Vec<u8>>,
}

impl Tally {
    fn begin(&self, keeps: bool) {
        self.read.set(false);
        self.keeps.set(keeps);
        self.repeats.set(keeps);
        self.sent.borrow_mut().clear();
    }

    fn offered(&self, bufs: &[std::io::IoSlice<'_>]) {
        // The whole head is offered at once; what is offered again was not all taken.
        if self.keeps.replace(false) {
            let mut sent = self.sent.borrow_mut();
            for buf in bufs {
                sent.extend_from_slice(buf);
            }
        }
    }
}

/// How an instance is spoken to.
#[derive(Debug)]
pub(crate) enum Stream {
    /// At its address.
    Plain(TcpStream),
    /// Through its machine's gate.
    Sealed(TlsStream),
}

impl Stream {
    const fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Sealed(stream) => stream.socket(),
        }
    }
}

/// An instance's socket, watched.
#[derive(Debug)]
pub(crate) struct UpstreamIo {
    stream: Stream,
    tally: Rc<Tally>,
    /// Nothing is on its way in a socket that was kept, so the first write has room. To hear that
    /// from the system first would cost a turn of the event loop.
    has_room: bool,
    /// How long the other side may take to acknowledge a request that may be sent again. A machine
    /// that went away without a word says nothing at all, and the system would go on for minutes.
    patience: Duration,
    /// Whether the system was told so. A body may wait for an instance that reads slowly.
    is_hurried: bool,
}

impl UpstreamIo {
    /// Tells the system how long to wait for acknowledgements, if that is another time than before.
    fn hurry(&mut self) {
        let hurry = self.tally.repeats.get();
        if hurry != self.is_hurried {
            let limit = if hurry { self.patience } else { Duration::ZERO };
            let limit = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
            // Without it the connection works all the same.
            rustix::net::sockopt::set_tcp_user_timeout(self.stream.socket(), limit)
                .unwrap_or_default();
            self.is_hurried = hurry;
        }
    }

    /// Writes without asking for room, once; `None` when that was of no use.
    fn write_at_once(&mut self, bytes: &[u8]) -> Option<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match &self.stream {
            Stream::Plain(stream) if std::mem::take(&mut self.has_room) => {
                rustix::net::send(stream, bytes, flags).ok()
            }
            Stream::Plain(_) | Stream::Sealed(_) => None,
        }
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Sealed(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if buf.filled().len() > before {
            this.tally.read.set(true);
        } else if let Poll::Ready(Err(error)) = &polled
            && error.kind() == std::io::ErrorKind::TimedOut
        {
            this.tally.unreachable.set(true);
        }
        polled
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        this.hurry();
        this.tally.offered(&[std::io::IoSlice::new(buf)]);
        if let Some(written) = this.write_at_once(buf) {
            return Poll::Ready(Ok(written));
        }
        match &mut this.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Sealed(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        this.hurry();
        this.tally.offered(bufs);
        if let [only] = bufs
            && let Some(written) = this.write_at_once(only)
        {
            return Poll::Ready(Ok(written));
        }
        match &mut this.stream {
            Stream::Plain(stream) => write_vectored(stream, cx, bufs),
            Stream::Sealed(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(_) => Poll::Ready(Ok(())),
            Stream::Sealed(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Sealed(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Writes several pieces. Few bytes are cheaper to copy together than to hand over in pieces.
pub(crate) fn write_vectored(
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
    bufs: &[std::io::IoSlice<'_>],
) -> Poll<std::io::Result<usize>> {
    const FEW: usize = 2_048;
    let stream = Pin::new(stream);
    if let [only] = bufs {
        return stream.poll_write(cx, only);
    }
    let length: usize = bufs.iter().map(|buf| buf.len()).sum();
    if length > FEW {
        return stream.poll_write_vectored(cx, bufs);
    }
    let mut together = [0; FEW];
    let mut rest = together.as_mut_slice();
    for buf in bufs {
        let (place, after) = rest.split_at_mut(buf.len());
        place.copy_from_slice(buf);
        rest = after;
    }
    stream.poll_write(cx, &together[..length])
}

/// Why there is no response.
#[derive(Debug)]
pub(crate) enum SendError {
    /// Nothing of the request was sent: it comes back.
    Unsent(Box<Request<RequestBody>>),
    /// Something was sent, and the connection broke before a byte of a response. The request comes
    /// back if it was to be remembered.
    Unanswered(Option<Box<Request<RequestBody>>>),
    /// What the instance sent is not a response.
    Garbled,
    /// The instance took too long.
    TimedOut,
}

/// One connection to an instance.
pub(crate) struct Link {
    sender: SendRequest<RequestBody>,
    /// Gone once it ended with a request that it had not taken.
    connection: Option<Connection<TokioIo<UpstreamIo>, RequestBody>>,
    tally: Rc<Tally>,
    idle_since: u64,
    is_over: bool,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("is_over", &self.is_over).finish_non_exhaustive()
    }
}

impl Link {
    /// Opens a connection. One through a gate exists only once the instance has proven itself.
    pub(crate) async fn open(target: &Target, worker: &Worker) -> std::io::Result<Box<Self>> {
        let limits = &worker.limits;
        let connect = async {
            let Some(gate) = &target.gate else {
                let stream = TcpStream::connect(target.address).await?;
                stream.set_nodelay(true)?;
                return Ok::<_, std::io::Error>(Stream::Plain(stream));
            };
            // Boxed: a handshake is large and rare.
            let dialled = Box::pin(worker.identity.dial(gate)).await?;
            worker.counters.add(Count::GateHandshakes);
            if dialled.is_resumed() {
                worker.counters.add(Count::GateResumed);
            }
            Ok(Stream::Sealed(dialled))
        };
        match runtime::timeout(limits.connect_timeout, connect).await {
            Some(stream) => {
                Self::over(Kept { stream: stream?, is_hurried: false }, false, limits).await
            }
            None => Err(std::io::ErrorKind::TimedOut.into()),
        }
    }

    /// Speaks HTTP over a connection that no request is on.
    async fn over(
        Kept { stream, is_hurried }: Kept<Stream>,
        has_room: bool,
        limits: &Limits,
    ) -> std::io::Result<Box<Self>> {
        let tally = Rc::new(Tally::default());
        let (kept, patience) = (Rc::clone(&tally), limits.connect_timeout);
        let io = UpstreamIo { stream, tally: kept, has_room, patience, is_hurried };
        let io = TokioIo::new(io);
        let mut builder = hyper::client::conn::http1::Builder::new();
        builder.max_buf_size(limits.header_bytes).max_header_size(limits.header_bytes);
        let (sender, connection) =
            builder.handshake(io).await.map_err(|_| std::io::Error::other("no handshake"))?;
        let connection = Some(connection);
        Ok(Box::new(Self { sender, connection, tally, idle_since: 0, is_over: false }))
    }

    /// Drives the connection. False: it has ended.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) -> bool {
        self.is_over = self.is_over || has_ended(&mut self.connection, cx);
        !self.is_over
    }

    /// Whether the instance's machine acknowledged nothing for too long.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.tally.unreachable.get()
    }

    /// Whether it can take the next request now.
    pub(crate) fn is_ready(&self) -> bool {
        !self.is_over && self.sender.is_ready()
    }

    /// Sends a request and waits for the head of the response. With `keeps`, a request without a
    /// body is remembered as long as no response begins. `is_late` tells when to give up.
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
        keeps: bool,
        is_late: impl Fn(&Context<'_>) -> bool,
    ) -> Result<Response<Incoming>, SendError> {
        self.tally.begin(keeps);
        let mut response = std::pin::pin!(self.sender.try_send_request(request));
        let (connection, tally, is_over) = (&mut self.connection, &self.tally, &mut self.is_over);
        let answer = std::future::poll_fn(|cx| {
            *is_over = *is_over || has_ended(connection, cx);
            // Without a byte read there is nothing to ask for, and asking costs a wake-up.
            if (*is_over || tally.read.get())
                && let Poll::Ready(answer) = response.as_mut().poll(cx)
            {
                return Poll::Ready(Some(answer));
            }
            // The instance had closed a kept connection, and that was read before the request was
            // taken: the request waits in the connection, which gives it back when it goes.
            if *is_over
                && connection.take().is_some()
                && let Poll::Ready(answer) = response.as_mut().poll(cx)
            {
                return Poll::Ready(Some(answer));
            }
            if is_late(cx) { Poll::Ready(None) } else { Poll::Pending }
        });
        match answer.await {
            Some(Ok(response)) => Ok(response),
            Some(Err(mut error)) => Err(match error.take_message() {
                Some(request) => SendError::Unsent(Box::new(request)),
                None if self.tally.read.get() => SendError::Garbled,
                None => SendError::Unanswered(written(&self.tally.sent.borrow()).map(Box::new)),
            }),
            None => Err(SendError::TimedOut),
        }
    }

    /// Gives up HTTP after a 101: the socket, and what was read beyond the response.
    pub(crate) fn into_raw(self) -> Option<(UpstreamIo, Bytes)> {
        let parts = self.connection?.into_parts();
        Some((parts.io.into_inner(), parts.read_buf))
    }
}

/// Drives a connection and says whether it has ended.
fn has_ended(
    connection: &mut Option<Connection<TokioIo<UpstreamIo>, RequestBody>>,
    cx: &mut Context<'_>,
) -> bool {
    connection.as_mut().is_none_or(|connection| connection.poll_without_shutdown(cx).is_ready())
}

/// The request that was written as these bytes; it has no body.
fn written(bytes: &[u8]) -> Option<Request<RequestBody>> {
    let text = bytes.strip_suffix(b"\r\n\r\n")?;
    let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let mut first = lines.next()?.split(|byte| *byte == b' ');
    let mut request = Request::new(RequestBody::Empty);
    *request.method_mut() = http::Method::from_bytes(first.next()?).ok()?;
    *request.uri_mut() = http::Uri::try_from(first.next()?).ok()?;
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at(colon);
        let name = http::HeaderName::from_bytes(name).ok()?;
        let value = http::HeaderValue::from_bytes(value.get(1..)?.trim_ascii_start()).ok()?;
        request.headers_mut().append(name, value);
    }
    Some(request)
}

/// What a thread has of one target.
#[expect(clippy::vec_box, reason = "a link moves for each request, and it is large")]
#[derive(Debug)]
pub(crate) struct Pool {
    target: Weak<Target>,
    /// Requests this thread has there now.
    active: Cell<u32>,
    idle: RefCell<Vec<Box<Link>>>,
}

/// The pools of a thread, by the target's number: an address alone never finds a connection.
///
/// A thread keeps few connections with all they need. What it has beyond those goes to the target
/// as bare sockets, which any thread may take.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    pools: RefCell<HashMap<u64, Rc<Pool>, RandomState>>,
    idle: Rc<Cell<usize>>,
}

impl Pools {
    fn pool(&self, target: &Arc<Target>) -> Rc<Pool> {
        let mut pools = self.pools.borrow_mut();
        let pool = pools.entry(target.number).or_insert_with(|| {
            let target = Arc::downgrade(target);
            Rc::new(Pool { target, active: Cell::new(0), idle: RefCell::default() })
        });
        Rc::clone(pool)
    }

    /// How many requests this thread has at the target now.
    pub(crate) fn active(&self, target: &Target) -> u32 {
        self.pools.borrow().get(&target.number).map_or(0, |pool| pool.active.get())
    }

    /// Counts one more request at the target.
    pub(crate) fn lease(&self, target: &Arc<Target>) -> Lease {
        let pool = self.pool(target);
        pool.active.set(pool.active.get() + 1);
        Lease { pool, idle: Rc::clone(&self.idle) }
    }

    /// Drops connections that nobody will use: the target is in no table, or it was long ago.
    pub(crate) fn sweep(&self, now: u64, limits: &Limits) {
        let mut kept = 0;
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.pools.borrow_mut().retain(|_, pool| {
            let mut idle = pool.idle.borrow_mut();
            if pool.target.strong_count() == 0 {
                idle.clear();
                return false;
            }
            idle.retain_mut(|link| {
                let age = u128::from(now.saturating_sub(link.idle_since));
                age <= limits.upstream_idle.as_millis() && link.drive(&mut cx) && link.is_ready()
            });
            kept += idle.len();
            pool.active.get() > 0 || !idle.is_empty()
        });
        self.idle.set(kept);
    }
}

/// One request's place at a target.
#[derive(Debug)]
pub(crate) struct Lease {
    pool: Rc<Pool>,
    idle: Rc<Cell<usize>>,
}

impl Lease {
    /// A connection that was used before, the latest first.
    pub(crate) async fn reuse(&self, target: &Target, limits: &Limits) -> Option<Box<Link>> {
        let link = self.pool.idle.borrow_mut().pop();
        if link.is_some() {
            self.idle.set(self.idle.get().saturating_sub(1));
            return link;
        }
        let Kept { stream, is_hurried } = target.take_socket()?;
        let stream = match stream {
            Resting::Plain(stream) => Stream::Plain(TcpStream::from_std(stream).ok()?),
            Resting::Sealed(parked) => Stream::Sealed(parked.resume().ok()?),
        };
        Link::over(Kept { stream, is_hurried }, true, limits).await.ok()
    }

    /// Keeps a connection for the next request, if it can take one.
    pub(crate) fn keep(&self, mut link: Box<Link>, now: u64, limits: &Limits) {
        if !link.is_ready() {
            return;
        }
        let mut idle = self.pool.idle.borrow_mut();
        if self.idle.get() < limits.warm && idle.len() < limits.idle_per_target {
            link.idle_since = now;
            idle.push(link);
            self.idle.set(self.idle.get() + 1);
        } else if let Some(target) = self.pool.target.upgrade() {
            let Some((io, rest)) = link.into_raw() else { return };
            let is_hurried = io.is_hurried;
            let resting = match io.stream {
                Stream::Plain(stream) => stream.into_std().ok().map(Resting::Plain),
                Stream::Sealed(stream) => stream.park().map(Resting::Sealed),
            };
            if let Some(stream) = resting.filter(|_| rest.is_empty()) {
                target.keep_socket(Kept { stream, is_hurried }, now, limits);
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.active.set(self.pool.active.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_request_is_read_back() {
        let bytes =
            b"GET /a?b HTTP/1.1\r\nhost: a:1\r\nx-twice: 1\r\nx-twice: 2\r\nx-none: \r\n\r\n";
        let request = written(bytes).expect("a request");
        assert_eq!(request.method(), http::Method::GET);
        assert_eq!(request.uri(), "/a?b");
        assert_eq!(request.headers()["host"], "a:1");
        assert_eq!(request.headers()["x-none"], "");
        let twice: Vec<_> = request.headers().get_all("x-twice").iter().collect();
        assert_eq!(twice, ["1", "2"]);
        assert!(written(&bytes[..20]).is_none());
        assert!(written(b"").is_none());
    }
}
