//! Asks servers on the Internet for users: over HTTP/1.1, with or without TLS, through the guard.
//!
//! A connection serves one request. hyper speaks the protocol; resolving, connecting and following
//! redirects are done here, because that is where the guard has to stand. It knows nothing of who
//! asks or why.

mod guard;
mod url;

use std::io::{self, IoSlice};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, USER_AGENT};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, LOCATION};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use runtime::{Stop, Tasks};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;

pub use guard::{Guard, Network};
pub use url::Url;

/// How many redirects are followed.
pub const MAX_REDIRECTS: usize = 5;
/// How many addresses of one name are looked at.
pub const MAX_ADDRESSES: usize = 16;
/// How long connecting may take, and TLS after that.
const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// How long a server may take to begin its answer, and to take more of a request.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);

/// Where systems keep the certificate authorities they trust.
const ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why a server was not asked, or did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// What happened, for people.
    pub reason: String,
    /// Whether the same may work later.
    pub transient: bool,
}

impl Failure {
    pub(crate) fn new(reason: impl std::fmt::Display) -> Self {
        Self { reason: reason.to_string(), transient: false }
    }

    fn within(self, what: impl std::fmt::Display) -> Self {
        Self { reason: format!("{what}: {}", self.reason), ..self }
    }
}

/// What is sent along with a request.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Asks servers on the Internet.
#[derive(Debug)]
pub struct Web {
    guard: Guard,
    tasks: Tasks,
    tls: OnceLock<Result<Arc<ClientConfig>, String>>,
}

/// What is asked for. The body is made anew for every server that is asked.
pub struct Ask<'a> {
    /// The method.
    pub method: Method,
    /// Headers beyond the usual.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Makes the body.
    pub body: &'a (dyn Fn() -> io::Result<Body> + Sync),
    /// How large the body is, if that is known.
    pub length: Option<u64>,
}

impl std::fmt::Debug for Ask<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {:?} bytes", self.method, self.length)
    }
}

impl Web {
    /// Whether a URL names an address outright that is never asked. What a name leads to is looked at
    /// when it is asked.
    pub fn forbids(&self, url: &Url) -> bool {
        url.address().is_some_and(|address| !self.guard.permits(address))
    }

    /// Through `guard`; connections belong to `tasks`.
    pub fn new(guard: Guard, tasks: Tasks) -> Self {
        Self { guard, tasks, tls: OnceLock::new() }
    }

    /// Asks, follows redirects, and gives an answer that is a success.
    pub async fn ask(
        &self,
        url: &Url,
        ask: &Ask<'_>,
    ) -> Result<(Url, Response<Incoming>), Failure> {
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.once(&at, ask).await.map_err(|failure| failure.within(&at))?;
            if answer.status().is_success() {
                return Ok((at, answer));
            }
            // All others may mean that the body is to be left out.
            let again = [StatusCode::TEMPORARY_REDIRECT, StatusCode::PERMANENT_REDIRECT];
            let other = [StatusCode::MOVED_PERMANENTLY, StatusCode::FOUND, StatusCode::SEE_OTHER];
            let status = answer.status();
            let reads = ask.method == Method::GET;
            let follows = again.contains(&status) || reads && other.contains(&status);
            let location = answer.headers().get(LOCATION).filter(|_| follows);
            let location = location.and_then(|location| location.to_str().ok());
            let Some(location) = location else { return Err(refused(&at, answer.status())) };
            at = at.follow(location).map_err(|failure| failure.within(&at))?;
        }
        Err(Failure::new(format!("{url}: more than {MAX_REDIRECTS} redirects")))
    }

    /// Asks, and gives whatever the answer is.
    pub async fn once(&self, url: &Url, ask: &Ask<'_>) -> Result<Response<Incoming>, Failure> {
        let tcp = runtime::timeout(DIAL_LIMIT, self.dial(url)).await;
        let tcp = tcp.ok_or_else(|| late("no connection", DIAL_LIMIT))??;
        if !url.tls {
            return self.exchange(tcp, url, ask).await;
        }
        let name = url.host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(name).map_err(Failure::new)?;
        let connect = TlsConnector::from(self.tls()?).connect(name, tcp);
        let stream = runtime::timeout(DIAL_LIMIT, connect).await;
        let stream = stream.ok_or_else(|| late("no TLS", DIAL_LIMIT))?;
        let stream = stream.map_err(|error| Failure {
            transient: error.get_ref().is_none_or(|inner| !inner.is::<rustls::Error>()),
            ..Failure::new(format!("TLS failed: {error}"))
        })?;
        self.exchange(stream, url, ask).await
    }

    async fn dial(&self, url: &Url) -> Result<TcpStream, Failure> {
        let mut last = None;
        for address in self.guard.resolve(&url.host, url.port).await? {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
        }
        let reason = last.map_or_else(String::new, |error| error.to_string());
        Err(Failure { transient: true, ..Failure::new(format!("cannot connect: {reason}")) })
    }

    async fn exchange<S>(
        &self,
        stream: S,
        url: &Url,
        ask: &Ask<'_>,
    ) -> Result<Response<Incoming>, Failure>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let taken = Arc::new(Notify::new());
        let stream = TokioIo::new(Told { stream, taken: Arc::clone(&taken) });
        let (mut sender, connection) =
            http1::handshake(stream).await.map_err(|error| broken(&error))?;
        let (stop, given_up) = (self.tasks.stop().clone(), Stop::new());
        let mut unanswered = Unanswered(Some(given_up.clone()));
        self.tasks.spawn_ok("transfer", async move {
            // Whoever waits for the answer hears of an error, too.
            drop(stop.or_stop(given_up.or_stop(connection)).await);
        });
        let request = request(url, ask)?;
        let answer = answered(sender.send_request(request), &taken).await?;
        unanswered.0 = None;
        answer.map_err(|error| broken(&error))
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, Failure> {
        self.tls.get_or_init(config).clone().map_err(Failure::new)
    }
}

/// Ends a connection when it is dropped, unless the answer came: then who reads that does. A server
/// that takes nothing would keep it for ever.
struct Unanswered(Option<Stop>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            connection.stop();
        }
    }
}

/// A connection that tells when the other side takes bytes.
struct Told<S> {
    stream: S,
    taken: Arc<Notify>,
}

impl<S> Told<S> {
    fn tell(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(&written, Poll::Ready(Ok(count)) if *count > 0) {
            self.taken.notify_one();
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Told<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Told<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.tell(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.tell(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Waits for an answer as long as the other side takes bytes: the answer to a large body comes after
/// it.
async fn answered<T>(answer: impl Future<Output = T>, taken: &Notify) -> Result<T, Failure> {
    let mut answer = std::pin::pin!(answer);
    loop {
        let step = async {
            tokio::select! {
                biased;
                answer = &mut answer => Some(answer),
                () = taken.notified() => None,
            }
        };
        match runtime::timeout(ANSWER_LIMIT, step).await {
            Some(Some(answer)) => return Ok(answer),
            Some(None) => {}
            None => return Err(late("nothing taken and no answer", ANSWER_LIMIT)),
        }
    }
}

fn request(url: &Url, ask: &Ask<'_>) -> Result<Request<Body>, Failure> {
    let mut request = Request::builder()
        .method(&ask.method)
        .uri(&url.target)
        .header(HOST, url.host_header())
        .header(USER_AGENT, "longshore")
        .header(ACCEPT, "*/*")
        .header(ACCEPT_ENCODING, "identity");
    if let Some(authorization) = &url.authorization {
        request = request.header(AUTHORIZATION, authorization);
    }
    if let Some(length) = ask.length {
        request = request.header(CONTENT_LENGTH, length);
    }
    for (name, value) in &ask.headers {
        request = request.header(name, value);
    }
    let body = (ask.body)().map_err(Failure::new)?;
    request.body(body).map_err(Failure::new)
}

fn config() -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = ROOTS.iter().find(|file| Path::new(file).is_file()) {
        let certificates = CertificateDer::pem_file_iter(file);
        let certificates = certificates.map_err(|error| format!("{file}: {error}"))?;
        roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    }
    if roots.is_empty() {
        return Err("this machine trusts no certificate authority: install ca-certificates".into());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

fn refused(url: &Url, status: StatusCode) -> Failure {
    let later = status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    Failure { transient: later, ..Failure::new(format!("{url} answered {}", status.as_u16())) }
}

fn late(what: &str, limit: Duration) -> Failure {
    let secs = limit.as_secs();
    Failure { transient: true, ..Failure::new(format!("{what} within {secs} s")) }
}

fn broken(error: &hyper::Error) -> Failure {
    // hyper names the cause, such as an error of the body, below its own words.
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    let permanent = std::error::Error::source(error)
        .and_then(|cause| cause.downcast_ref::<io::Error>())
        .is_some_and(|cause| cause.kind() == io::ErrorKind::InvalidData);
    let reason = format!("the connection broke: {error}{}", cause.unwrap_or_default());
    Failure { transient: !permanent, ..Failure::new(reason) }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};
    use hyper::body::Frame;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const PIECES: usize = 8;
    const NAP: Duration = Duration::from_millis(500);
    const PIECE: [u8; 4096] = [7; 4096];

    /// A body of some pieces.
    fn body() -> Body {
        let pieces = (0..PIECES).map(|_| Ok(Frame::data(Bytes::from_static(&PIECE))));
        StreamBody::new(tokio_stream::iter(pieces)).boxed_unsync()
    }

    async fn put(stream: tokio::io::DuplexStream) -> Result<StatusCode, Failure> {
        let tasks = Tasks::new(Stop::new());
        let web = Web::new(Guard::default(), tasks);
        let url = Url::parse("http://example.com/x").expect("a URL");
        let again = || Ok(body());
        let ask = Ask { method: Method::PUT, headers: Vec::new(), body: &again, length: None };
        web.exchange(stream, &url, &ask).await.map(|answer| answer.status())
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_takes_nothing_is_given_up() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let given_up = runtime::timeout(ANSWER_LIMIT + Duration::from_secs(1), put(ours)).await;
        let failure = given_up.expect("after its limit").expect_err("it is given up");
        assert!(failure.transient && failure.reason.contains("60 s"), "{failure}");
        // The connection ends, too.
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).await.expect("reads");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_server_has_as_long_as_it_takes_something() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let server = async move {
            let (mut seen, mut buffer, mut naps) = (Vec::new(), [0; 1024], 0);
            while !seen.ends_with(b"0\r\n\r\n") {
                runtime::sleep(NAP).await;
                naps += 1;
                let count = theirs.read(&mut buffer).await.expect("reads");
                assert!(count > 0, "it was given up");
                seen.extend_from_slice(buffer.get(..count).expect("is in it"));
            }
            let answer = b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n";
            theirs.write_all(answer).await.expect("writes");
            (theirs, naps)
        };
        let (answer, (_theirs, naps)) = tokio::join!(put(ours), server);
        assert_eq!(answer.expect("an answer"), StatusCode::CREATED);
        assert!(NAP * naps > ANSWER_LIMIT * 2, "{naps}");
    }
}
