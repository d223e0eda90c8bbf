//! One request: which instance it goes to, how it gets there, and what comes back.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;

use crate::body::{RequestBody, ResponseBody, Streamed};
use crate::client::{Client, Serving, Upgraded};
use crate::head::Verdict;
use crate::headers;
use crate::host::Host;
use crate::stats::Count;
use crate::table::{Entry, Target};
use crate::upstream::{Lease, Link, SendError};
use crate::worker::Worker;

/// Most instances a request is offered to.
const MAX_TARGETS: usize = 3;
/// When a client should come back to an app that is away.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

type Answer = Response<ResponseBody>;

/// Serves one request.
pub(crate) async fn serve(
    client: Rc<Client>,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let serving = client.begin(!request.body().is_end_stream());
    let began = runtime::mono_now();
    let answer = match admit(&client, &request) {
        Ok(admitted) => forward(serving, admitted, request).await,
        Err(refusal) => refusal.page(&client.worker),
    };
    client.worker.counters.answered(answer.status(), began.elapsed());
    Ok(answer)
}

/// Where a request may go.
struct Admitted {
    entry: Arc<Entry>,
    host: HeaderValue,
    upgrade: Option<HeaderValue>,
}

/// Why a request goes nowhere.
#[derive(Debug)]
enum Refusal {
    Bad(&'static str),
    Method,
    UnknownHost(Box<Host>),
    NoTarget,
    Upstream,
    TimedOut,
}

impl Refusal {
    fn page(self, worker: &Worker) -> Answer {
        let (count, status, text) = match self {
            Self::Bad(why) => (Count::BadRequest, StatusCode::BAD_REQUEST, why.into()),
            Self::Method => (
                Count::BadRequest,
                StatusCode::METHOD_NOT_ALLOWED,
                "This is not a forward proxy.\n".into(),
            ),
            Self::UnknownHost(host) => {
                let text = format!("No app answers at {}. Check the address.\n", host.as_str());
                (Count::UnknownHost, StatusCode::NOT_FOUND, text.into())
            }
            Self::NoTarget => (
                Count::NoTarget,
                StatusCode::SERVICE_UNAVAILABLE,
                "The app at this address is not running now. Try again in a moment.\n".into(),
            ),
            Self::Upstream => (
                Count::Upstream,
                StatusCode::BAD_GATEWAY,
                "The app at this address did not answer properly.\n".into(),
            ),
            Self::TimedOut => (
                Count::UpstreamTimeout,
                StatusCode::GATEWAY_TIMEOUT,
                "The app at this address took too long to answer.\n".into(),
            ),
        };
        worker.counters.add(count);
        page(status, text)
    }
}

fn page(status: StatusCode, text: Bytes) -> Answer {
    let mut answer = Response::new(ResponseBody::Page(text));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, plain);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    match status {
        StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        StatusCode::BAD_REQUEST => close(headers),
        _ => {}
    }
    answer
}

fn close(headers: &mut http::HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// Decides whether a request is one we understand, and whose it is.
fn admit(client: &Client, request: &Request<Incoming>) -> Result<Admitted, Refusal> {
    if !client.is_h2 {
        look_again(client, request)?;
    }
    if request.method() == Method::CONNECT {
        return Err(Refusal::Method);
    }
    let (host, name) = host(request)?;
    let entry = client.worker.routes.load().find(name.as_bytes()).map(Arc::clone);
    let Some(entry) = entry else { return Err(Refusal::UnknownHost(Box::new(name))) };
    if entry.targets.is_empty() {
        return Err(Refusal::NoTarget);
    }
    let may_upgrade = request.version() == Version::HTTP_11 && request.body().is_end_stream();
    let upgrade = headers::upgrade(request.headers())
        .filter(|protocol| may_upgrade && !protocol.as_bytes().eq_ignore_ascii_case(b"h2c"));
    Ok(Admitted { entry, host, upgrade })
}

/// Refuses heads that another server might read otherwise than we do.
fn look_again(client: &Client, request: &Request<Incoming>) -> Result<(), Refusal> {
    match client.look_again(request.method().as_str()) {
        Verdict::Strict(_) => Ok(()),
        Verdict::Unseen if !request.headers().contains_key(header::TRANSFER_ENCODING) => Ok(()),
        Verdict::Unseen => Err(Refusal::Bad("A chunked request cannot be pipelined here.\n")),
        Verdict::BareLineFeed => Err(Refusal::Bad("A line of the request ends improperly.\n")),
        Verdict::Framing => Err(Refusal::Bad("The request has more than one length.\n")),
    }
}

/// The request's one host: as it was given, and as it is looked up.
fn host(request: &Request<Incoming>) -> Result<(HeaderValue, Host), Refusal> {
    let mut fields = request.headers().get_all(header::HOST).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return Err(Refusal::Bad("The request names more than one host.\n"));
    }
    let parse = |text: &[u8]| Host::parse(text).ok_or(Refusal::Bad("This is not a host.\n"));
    let (given, name) = match (request.uri().authority(), field) {
        (None, Some(field)) => (field.clone(), parse(field.as_bytes())?),
        (Some(authority), field) => {
            let name = parse(authority.as_str().as_bytes())?;
            if let Some(field) = field
                && parse(field.as_bytes())?.as_bytes() != name.as_bytes()
            {
                return Err(Refusal::Bad("The request names two different hosts.\n"));
            }
            if field.is_none() && request.version() != Version::HTTP_2 {
                return Err(Refusal::Bad("The request names no host.\n"));
            }
            let given = HeaderValue::from_str(authority.as_str());
            (given.map_err(|_| Refusal::Bad("This is not a host.\n"))?, name)
        }
        (None, None) => return Err(Refusal::Bad("The request names no host.\n")),
    };
    Ok((given, name))
}

/// The targets a request was offered to in vain.
#[derive(Debug, Default)]
struct Tried([Option<u64>; MAX_TARGETS], usize);

impl Tried {
    fn add(&mut self, target: &Target) {
        if let Some(slot) = self.0.get_mut(self.1) {
            *slot = Some(target.number);
            self.1 += 1;
        }
    }

    fn has(&self, target: &Target) -> bool {
        self.0.contains(&Some(target.number))
    }

    const fn is_full(&self) -> bool {
        self.1 >= MAX_TARGETS
    }
}

/// The better of two targets drawn at random; one that refuses connections only when all do.
fn choose<'a>(worker: &Worker, entry: &'a Entry, tried: &Tried) -> Option<&'a Arc<Target>> {
    let targets = &entry.targets;
    if let [only] = &**targets {
        return (!tried.has(only)).then_some(only);
    }
    let count = targets.len();
    let first = worker.below(count);
    let second = (first + 1 + worker.below(count - 1)) % count;
    let now = worker.exact_now();
    let usable = |target: &Arc<Target>| !tried.has(target) && !target.is_failing(now);
    match (usable(&targets[first]), usable(&targets[second])) {
        (true, true) => {
            let load = |at: usize| worker.pools.active(&targets[at]);
            Some(&targets[if load(second) < load(first) { second } else { first }])
        }
        (true, false) => Some(&targets[first]),
        (false, true) => Some(&targets[second]),
        (false, false) => {
            let in_turn = || (0..count).map(|step| &targets[(first + step) % count]);
            in_turn().find(|target| usable(target)).or_else(|| in_turn().find(|it| !tried.has(it)))
        }
    }
}

async fn forward(serving: Serving, admitted: Admitted, request: Request<Incoming>) -> Answer {
    let Admitted { entry, host, upgrade } = admitted;
    let mut request = request.map(|body| {
        if body.is_end_stream() {
            RequestBody::Empty
        } else {
            RequestBody::Client(body, Rc::clone(&serving))
        }
    });
    headers::forward(&mut request, &serving, &host, upgrade.clone());
    let is_head = request.method() == Method::HEAD;
    let wants_upgrade = upgrade.is_some();
    let client = Rc::clone(&serving);
    let mut answer = match exchange(&client, &entry, request).await {
        Ok((response, link, lease)) => {
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                switch(&client, upgrade, response, (link, lease))
            } else {
                stream(serving, response, link, lease, is_head)
            }
        }
        Err(refusal) => Err(refusal),
    }
    .unwrap_or_else(|refusal| refusal.page(&client.worker));
    // What the client may have sent already belongs to the protocol it did not get.
    if wants_upgrade && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        close(answer.headers_mut());
    }
    answer
}

type Exchanged = (Response<Incoming>, Box<Link>, Lease);

/// Finds an instance that takes the request, and waits for the head of its response.
async fn exchange(
    client: &Rc<Client>,
    entry: &Entry,
    mut request: Request<RequestBody>,
) -> Result<Exchanged, Refusal> {
    let worker = &client.worker;
    let mut tried = Tried::default();
    let mut may_reuse = true;
    let mut is_first = true;
    while !tried.is_full() {
        let Some(target) = choose(worker, entry, &tried) else { break };
        if !std::mem::replace(&mut is_first, false) {
            worker.counters.add(Count::Retries);
        }
        target.begin_trial(worker.exact_now());
        let lease = worker.pools.lease(target);
        let reused = if may_reuse { lease.reuse(target, &worker.limits).await } else { None };
        let is_reused = reused.is_some();
        let link = if is_reused { reused } else { open(worker, target).await };
        let Some(mut link) = link else {
            tried.add(target);
            continue;
        };
        // Only what may be repeated although it might have arrived.
        let may_repeat = is_reused
            && request.method().is_idempotent()
            && matches!(request.body(), RequestBody::Empty);
        let sent = send(client, &mut link, request, may_repeat).await;
        if sent.is_err() && client.is_broken() {
            return Err(Refusal::Bad("The body of the request makes no sense.\n"));
        }
        match sent {
            Ok(response) => {
                target.answered();
                return Ok((response, link, lease));
            }
            Err(SendError::Unsent(again) | SendError::Unanswered(Some(again))) => request = *again,
            Err(SendError::Unanswered(None) | SendError::Garbled) => return Err(Refusal::Upstream),
            Err(SendError::TimedOut) => return Err(Refusal::TimedOut),
        }
        // A kept connection had been closed; a fresh one says what is the matter.
        if link.is_unreachable() {
            target.failed(worker.exact_now());
            tried.add(target);
        } else if !is_reused {
            tried.add(target);
        }
        may_reuse = false;
    }
    Err(Refusal::Upstream)
}

async fn open(worker: &Worker, target: &Target) -> Option<Box<Link>> {
    match Link::open(target, worker).await {
        Ok(link) => {
            worker.counters.add(Count::UpstreamConnections);
            Some(link)
        }
        Err(error) => {
            tracing::debug!(address = %target.address, %error, "an instance took no connection");
            target.failed(worker.exact_now());
            None
        }
    }
}

async fn send(
    client: &Client,
    link: &mut Link,
    request: Request<RequestBody>,
    keeps: bool,
) -> Result<Response<Incoming>, SendError> {
    client.set_waiting(true);
    let sent = if client.is_h2 {
        // Many requests share the connection, so each has a timer of its own.
        let sending = link.send(request, keeps, |_| false);
        let limit = client.worker.limits.response_timeout;
        runtime::timeout(limit, sending).await.unwrap_or(Err(SendError::TimedOut))
    } else {
        link.send(request, keeps, |_| client.take_unanswered()).await
    };
    client.set_waiting(false);
    sent
}

/// Passes a response on.
fn stream(
    serving: Serving,
    response: Response<Incoming>,
    link: Box<Link>,
    lease: Lease,
    is_head: bool,
) -> Result<Answer, Refusal> {
    let (mut parts, incoming) = response.into_parts();
    if !headers::answer(&mut parts.headers, None) {
        return Err(Refusal::Upstream);
    }
    parts.version = Version::HTTP_11;
    if is_head || incoming.is_end_stream() {
        lease.keep(link, serving.worker.now(), &serving.worker.limits);
        return Ok(Response::from_parts(parts, ResponseBody::Empty));
    }
    let streamed = Streamed { incoming, link: Some(link), lease, serving };
    Ok(Response::from_parts(parts, ResponseBody::Upstream(streamed)))
}

/// Turns the connection over to the protocol the instance agreed to.
fn switch(
    client: &Client,
    wanted: Option<HeaderValue>,
    response: Response<Incoming>,
    (link, lease): (Box<Link>, Lease),
) -> Result<Answer, Refusal> {
    let agreed = headers::upgrade(response.headers());
    let same = |wanted: &HeaderValue, agreed: &HeaderValue| {
        wanted.as_bytes().eq_ignore_ascii_case(agreed.as_bytes())
    };
    let Some(protocol) = wanted.zip(agreed).filter(|(wanted, agreed)| same(wanted, agreed)) else {
        return Err(Refusal::Upstream);
    };
    let (io, sent) = link.into_raw().ok_or(Refusal::Upstream)?;
    *client.upgraded.borrow_mut() = Some(Upgraded { io, sent, lease });
    let (mut parts, _) = response.into_parts();
    headers::answer(&mut parts.headers, Some(protocol.1));
    Ok(Response::from_parts(parts, ResponseBody::Empty))
}
