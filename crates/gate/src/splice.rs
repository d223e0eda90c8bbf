//! Carries bytes both ways. A connection that nobody uses holds no buffer of ours.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limits::READ;

/// What one thread reads into: what is read is passed on at once or kept by its connection.
#[derive(Debug, Clone)]
pub(crate) struct Scratch(Rc<RefCell<Box<[u8]>>>);

impl Scratch {
    /// Lets `work` use it. Nothing may be waited for meanwhile.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut [u8]) -> T) -> T {
        work(&mut self.0.borrow_mut())
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(vec![0; READ].into_boxed_slice())))
    }
}

/// How far one direction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    /// There may be more to read.
    #[default]
    Open,
    /// The end was read and is to be passed on.
    Ending,
    /// It was.
    Over,
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// Read and not written yet.
    rest: Vec<u8>,
    written: usize,
    is_flushed: bool,
    phase: Phase,
}

impl Way {
    /// Carries on until there is nothing to read or no room to write. Ready: the end was passed on.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        (mut from, mut to): (Pin<&mut R>, Pin<&mut W>),
        (scratch, moved): (&Scratch, &Cell<bool>),
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead,
        W: AsyncWrite,
    {
        loop {
            while let Some(rest) = self.rest.get(self.written..).filter(|rest| !rest.is_empty()) {
                match ready!(to.as_mut().poll_write(cx, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => self.written += written,
                }
                moved.set(true);
            }
            (self.rest, self.written) = (Vec::new(), 0);
            if !self.is_flushed {
                ready!(to.as_mut().poll_flush(cx))?;
                self.is_flushed = true;
            }
            if self.phase == Phase::Ending {
                ready!(to.as_mut().poll_shutdown(cx))?;
                self.phase = Phase::Over;
            }
            if self.phase == Phase::Over {
                return Poll::Ready(Ok(()));
            }
            let mut scratch = scratch.0.borrow_mut();
            let mut buf = ReadBuf::new(&mut scratch);
            ready!(from.as_mut().poll_read(cx, &mut buf))?;
            let read = buf.filled();
            if read.is_empty() {
                self.phase = Phase::Ending;
                continue;
            }
            moved.set(true);
            self.is_flushed = false;
            let taken = match to.as_mut().poll_write(cx, read)? {
                Poll::Ready(taken) => taken,
                Poll::Pending => 0,
            };
            self.rest.extend_from_slice(&read[taken..]);
        }
    }
}

/// Carries bytes between two streams until both have ended, one breaks, or nothing came for `idle`.
/// What breaks is not taken for an end: the other side learns the difference.
pub(crate) async fn splice<A, B>(
    mut a: A,
    mut b: B,
    scratch: &Scratch,
    idle: Duration,
) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let moved = Cell::new(false);
    let (mut there, mut back) = (Way::default(), Way::default());
    let carried = std::future::poll_fn(|cx| {
        let shared = (scratch, &moved);
        let there = there.poll(cx, (Pin::new(&mut a), Pin::new(&mut b)), shared)?;
        let back = back.poll(cx, (Pin::new(&mut b), Pin::new(&mut a)), shared)?;
        if there.is_ready() && back.is_ready() {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    });
    tokio::pin!(carried);
    loop {
        // One timer for as long as it may be idle, not one for each byte.
        match runtime::timeout(idle, carried.as_mut()).await {
            Some(done) => return done,
            None if moved.take() => {}
            None => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}
