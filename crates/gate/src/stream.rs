//! A TLS connection over a TCP socket, without a task or buffers of its own.
//!
//! It is what `tokio-rustls` has, but it can be taken apart and put together on another thread, as a
//! router does with the connections it keeps.

use std::io::{self, Read as _, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::limits::TLS_BUFFER;

/// A TLS connection over a TCP socket.
#[derive(Debug)]
pub struct TlsStream {
    io: TcpStream,
    tls: Box<Connection>,
    /// The socket has no more to read.
    has_ended: bool,
}

/// What is left of a [`TlsStream`] that nobody reads or writes: it belongs to no event loop.
#[derive(Debug)]
pub struct Parked {
    socket: std::net::TcpStream,
    tls: Box<Connection>,
}

impl Parked {
    /// The socket, to see whether anything came.
    pub const fn socket(&self) -> &std::net::TcpStream {
        &self.socket
    }

    /// Goes on, on the event loop of this thread.
    pub fn resume(self) -> io::Result<TlsStream> {
        let io = TcpStream::from_std(self.socket)?;
        Ok(TlsStream { io, tls: self.tls, has_ended: false })
    }
}

/// The socket as `rustls` wants it; "not now" is an error there.
struct Sync<'a, 'b> {
    io: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

fn at_once<T>(polled: Poll<io::Result<T>>) -> io::Result<T> {
    match polled {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl io::Read for Sync<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        at_once(Pin::new(&mut *self.io).poll_read(self.cx, &mut buf))?;
        Ok(buf.filled().len())
    }
}

impl io::Write for Sync<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        at_once(Pin::new(&mut *self.io).poll_write(self.cx, buf))
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        at_once(Pin::new(&mut *self.io).poll_write_vectored(self.cx, bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pending<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}

impl TlsStream {
    pub(crate) fn new(io: TcpStream, mut tls: Connection) -> Self {
        tls.set_buffer_limit(Some(TLS_BUFFER));
        Self { io, tls: Box::new(tls), has_ended: false }
    }

    /// Takes it off this thread's event loop, unless something is under way.
    pub fn park(self) -> Option<Parked> {
        let is_quiet = !self.has_ended && !self.tls.wants_write() && !self.tls.is_handshaking();
        let socket = is_quiet.then(|| self.io.into_std().ok()).flatten()?;
        Some(Parked { socket, tls: self.tls })
    }

    /// Reads from the socket once; false at its end.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let read = self.tls.read_tls(&mut Sync { io: &mut self.io, cx });
        let read = ready!(pending(read))?;
        if let Err(error) = self.tls.process_new_packets() {
            // The alert says why; that it may not arrive changes nothing.
            let told = self.tls.write_tls(&mut Sync { io: &mut self.io, cx });
            drop(told);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        self.has_ended |= read == 0;
        Poll::Ready(Ok(read > 0))
    }

    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            let written = self.tls.write_tls(&mut Sync { io: &mut self.io, cx });
            if ready!(pending(written))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Completes the handshake.
    pub(crate) async fn handshake(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            loop {
                ready!(self.drain(cx))?;
                if !self.tls.is_handshaking() {
                    return Poll::Ready(Ok(()));
                }
                if !ready!(self.fill(cx))? {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
            }
        })
        .await
    }

    /// The socket, for its options.
    pub const fn socket(&self) -> &TcpStream {
        &self.io
    }

    /// Whether the handshake was shortened by what an earlier one left.
    pub fn is_resumed(&self) -> bool {
        self.tls.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            // At its end without a farewell this says so: what came may not be all.
            match this.tls.reader().read(buf.initialize_unfilled()) {
                Ok(read) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            ready!(this.fill(cx))?;
            // A change of keys may ask for an answer; the next write takes it along if it must.
            if let Poll::Ready(Err(error)) = this.drain(cx) {
                return Poll::Ready(Err(error));
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            let taken = this.tls.writer().write_vectored(bufs)?;
            let drained = this.drain(cx)?;
            if taken > 0 || bufs.iter().all(|buf| buf.is_empty()) {
                return Poll::Ready(Ok(taken));
            }
            ready!(drained);
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().drain(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.tls.send_close_notify();
        ready!(this.drain(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
