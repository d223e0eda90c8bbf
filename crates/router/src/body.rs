//! The bodies that go through, without a box and without a copy.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::client::{Client, Serving};
use crate::stats::Count;
use crate::upstream::{Lease, Link};

type Polled = Poll<Option<Result<Frame<Bytes>, hyper::Error>>>;

/// The body of a request on its way to an instance.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// There is none.
    Empty,
    /// What the client sends.
    Client(Incoming, Rc<Client>),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let Self::Client(incoming, client) = self.get_mut() else { return Poll::Ready(None) };
        let polled = Pin::new(incoming).poll_frame(cx);
        if !client.is_h2 {
            client.set_stalled(polled.is_pending());
        }
        if matches!(polled, Poll::Ready(Some(Err(_)))) {
            client.set_broken();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(incoming, _) => incoming.size_hint(),
        }
    }
}

/// The body of a response on its way to the client.
#[derive(Debug)]
pub(crate) enum ResponseBody {
    /// There is none, or it was all sent.
    Empty,
    /// One of our own pages.
    Page(Bytes),
    /// What the instance sends.
    Upstream(Streamed),
}

/// A response that is being received. It drives the connection it comes from.
#[derive(Debug)]
pub(crate) struct Streamed {
    pub(crate) incoming: Incoming,
    pub(crate) link: Option<Box<Link>>,
    pub(crate) lease: Lease,
    pub(crate) serving: Serving,
}

impl Streamed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        let mut polled = Pin::new(&mut self.incoming).poll_frame(cx);
        if polled.is_pending()
            && let Some(link) = &mut self.link
        {
            if !link.drive(cx) {
                // Its end is told to the body, too.
                self.link = None;
            }
            polled = Pin::new(&mut self.incoming).poll_frame(cx);
        }
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Some(Ok(_))) if !self.incoming.is_end_stream() => {}
            Poll::Ready(Some(Ok(_)) | None) => self.finish(cx),
            Poll::Ready(Some(Err(_))) => {
                self.serving.worker.counters.add(Count::Upstream);
                self.link = None;
            }
        }
        polled
    }

    /// The response is complete: the connection is free for the next request.
    fn finish(&mut self, cx: &mut Context<'_>) {
        let Some(mut link) = self.link.take() else { return };
        if link.is_ready() || (link.drive(cx) && link.is_ready()) {
            let worker = &self.serving.worker;
            self.lease.keep(link, worker.now(), &worker.limits);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Page(text) => {
                let text = std::mem::take(text);
                *this = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(text))))
            }
            Self::Upstream(streamed) => streamed.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Page(text) => text.is_empty(),
            Self::Upstream(streamed) => streamed.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Page(text) => SizeHint::with_exact(text.len() as u64),
            Self::Upstream(streamed) => streamed.incoming.size_hint(),
        }
    }
}
