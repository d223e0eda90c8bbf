//! Reads what a URL answers with. When the connection breaks, reading goes on where it was, unless
//! the server cannot do that or has something else there by now.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{
    ACCEPT_RANGES, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_RANGE,
    LAST_MODIFIED, RANGE,
};
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Incoming};
use runtime::{Backoff, Random};

pub(crate) use egress::{Ask, Body, Guard, Url, Web};

use crate::blob::Pieces;
use crate::error::Failure;
use crate::health::Length;
use crate::limits::{FETCH_ATTEMPTS, IDLE_LIMIT, RECONNECT};

fn nothing() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

async fn get(
    web: &Web,
    url: &Url,
    headers: Vec<(HeaderName, HeaderValue)>,
) -> Result<(Url, Response<Incoming>), Failure> {
    let body = || Ok(nothing());
    let ask = Ask { method: Method::GET, headers, body: &body, length: None };
    Ok(web.ask(url, &ask).await?)
}

struct Fetch {
    web: Arc<Web>,
    url: Url,
    body: Incoming,
    /// How many bytes came.
    done: u64,
    /// What the server calls the version that is being read, if it can go on in the middle of it.
    version: Option<HeaderValue>,
    /// How often it may still break without a byte in between.
    left: u32,
    backoff: Backoff,
}

/// Begins to read; also says how many bytes will come, if the server does.
pub(crate) async fn fetch(web: &Arc<Web>, url: &Url) -> Result<(Pieces, Option<u64>), Failure> {
    let (_, answer) = get(web, url, Vec::new()).await?;
    if answer.status() != StatusCode::OK {
        return Err(Failure::new(format!("{url} answered {}", answer.status().as_u16())));
    }
    let length = answer.body().size_hint().exact();
    let version = version(answer.headers());
    let fetch = Fetch {
        web: Arc::clone(web),
        url: url.clone(),
        body: answer.into_body(),
        done: 0,
        version,
        left: FETCH_ATTEMPTS,
        backoff: Backoff::new(RECONNECT.0, RECONNECT.1),
    };
    let next = |fetch: Option<Fetch>| async move {
        let mut fetch = fetch?;
        match fetch.next().await.transpose()? {
            Ok(piece) => Some((Ok(piece), Some(fetch))),
            Err(error) => Some((Err(error), None)),
        }
    };
    Ok((futures_util::stream::unfold(Some(fetch), next).boxed(), length))
}

/// A name of the version that changes whenever a byte does.
fn version(headers: &HeaderMap) -> Option<HeaderValue> {
    if headers.get(ACCEPT_RANGES).is_some_and(|value| value == "none") {
        return None;
    }
    let strong = headers.get(ETAG).filter(|etag| etag.as_bytes().starts_with(b"\""));
    strong.or_else(|| headers.get(LAST_MODIFIED)).cloned()
}

impl Fetch {
    /// The next bytes; nothing at the end.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let error = match runtime::timeout(IDLE_LIMIT, self.body.frame()).await {
                Some(None) => return Ok(None),
                Some(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => {
                        self.done += data.len() as u64;
                        self.left = FETCH_ATTEMPTS;
                        return Ok(Some(data));
                    }
                    Ok(_) | Err(_) => continue,
                },
                Some(Some(Err(error))) => format!("the connection broke: {error}"),
                None => format!("no bytes came for {}", Length(IDLE_LIMIT)),
            };
            self.go_on(&error).await?;
        }
    }

    /// Asks for the rest.
    async fn go_on(&mut self, broke: &str) -> io::Result<()> {
        let Some(version) = self.version.clone() else { return Err(io::Error::other(broke)) };
        while self.left > 0 {
            self.left -= 1;
            runtime::sleep(self.backoff.next_delay(&Random::system())).await;
            let range = HeaderValue::try_from(format!("bytes={}-", self.done));
            let range = range.map_err(io::Error::other)?;
            let headers = vec![(RANGE, range), (IF_RANGE, version.clone())];
            match get(&self.web, &self.url, headers).await {
                Ok((_, answer)) => {
                    if !self.continues(&answer) {
                        return Err(io::Error::other("it changed while it was read"));
                    }
                    tracing::debug!(url = %self.url, from = self.done, "a download goes on");
                    self.body = answer.into_body();
                    return Ok(());
                }
                Err(failure) if failure.transient => {}
                Err(failure) => return Err(io::Error::other(failure.reason)),
            }
        }
        Err(io::Error::other(broke))
    }

    fn continues(&self, answer: &Response<Incoming>) -> bool {
        let begins = format!("bytes {}-", self.done);
        let range = answer.headers().get(CONTENT_RANGE);
        answer.status() == StatusCode::PARTIAL_CONTENT
            && range.is_some_and(|range| range.as_bytes().starts_with(begins.as_bytes()))
    }
}
