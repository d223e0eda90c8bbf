//! Reaching the server: plain TCP on loopback, TLS pinned to the server's own authority elsewhere.

use std::pin::Pin;
use std::str::FromStr as _;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use model::{Digest, JoinToken};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where the server is and how to prove who we are.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `http://host:port` or `https://host:port`.
    pub url: Uri,
    /// Our token.
    pub token: JoinToken,
}

/// Why a server that answers is not the right one.
pub const OTHER_AUTHORITY: &str =
    "this is not the server that made the token: its authority is another one";

/// The server's certificate is of another authority than the one the token names.
#[derive(Debug, thiserror::Error)]
#[error("{OTHER_AUTHORITY}")]
pub(crate) struct OtherAuthority;

/// Why the server cannot be addressed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address makes no sense.
    #[error("`{0}` is not a server address: `http://host:port` or `https://host:port` is wanted")]
    Address(String),
    /// Plain HTTP beyond this machine would send the token in the clear.
    #[error("{0} is not a loopback address, and anything but loopback needs https")]
    Plain(String),
    /// The cryptography library refused.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// TLS without a way to know the server.
    #[error("the token names no certificate authority: use the join token the server printed")]
    NoAuthority,
}

impl Endpoint {
    /// An endpoint from what people type.
    pub fn new(url: &str, token: JoinToken) -> Result<Self, ConnectError> {
        let wrong = || ConnectError::Address(url.to_owned());
        let uri = Uri::from_str(url).map_err(|_| wrong())?;
        let host = uri.host().ok_or_else(wrong)?;
        match uri.scheme_str() {
            Some("http") if is_loopback(host) => {}
            Some("http") => return Err(ConnectError::Plain(url.to_owned())),
            Some("https") if token.ca.is_none() => return Err(ConnectError::NoAuthority),
            Some("https") => {}
            Some(_) | None => return Err(wrong()),
        }
        Ok(Self { url: uri, token })
    }

    /// Its address for people.
    pub fn shown(&self) -> String {
        self.url.to_string().trim_end_matches('/').to_owned()
    }

    /// A connector for this endpoint.
    pub fn connector(&self) -> Result<Connector, ConnectError> {
        let ca = self.token.ca.filter(|_| self.url.scheme_str() == Some("https"));
        let tls = ca.map(|ca| pinned(ca).map(Arc::new)).transpose()?;
        Ok(Connector { tls })
    }
}

/// Whether a server with this address would have to run on this machine.
pub fn is_loopback_url(url: &str) -> bool {
    Uri::from_str(url).is_ok_and(|url| url.host().is_some_and(is_loopback))
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn pinned(ca: [u8; 32]) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Pinned { ca: Digest(ca), provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Accepts exactly one certificate authority: the one whose fingerprint the token carries. The
/// server sends it along; everything else is the usual verification.
#[derive(Debug)]
struct Pinned {
    ca: Digest,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let known = intermediates.iter().find(|cert| Digest::of(cert.as_ref()) == self.ca);
        let Some(ca) = known else {
            return Err(rustls::Error::General(OTHER_AUTHORITY.to_owned()));
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Opens connections to the server. Works for the HTTP client and for component streams.
#[derive(Debug, Clone)]
pub struct Connector {
    tls: Option<Arc<ClientConfig>>,
}

impl Connector {
    /// The same for HTTP/1.1 only, whose connections can become something else.
    #[must_use]
    pub fn for_upgrades(self) -> Self {
        let tls = self.tls.map(|config| {
            let mut config = Arc::unwrap_or_clone(config);
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Arc::new(config)
        });
        Self { tls }
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<IoStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<TokioIo<IoStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = self.tls.clone();
        Box::pin(async move {
            let opened = tokio::time::timeout(OPEN_LIMIT, open(&uri, tls)).await;
            let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, NO_ANSWER);
            opened.unwrap_or_else(|_| Err(late())).map(TokioIo::new)
        })
    }
}

/// How long a connection may take to be made: TCP and TLS.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// What is said after that.
const NO_ANSWER: &str = "no answer within 10 s";

async fn open(uri: &Uri, tls: Option<Arc<ClientConfig>>) -> std::io::Result<IoStream> {
    let host = uri.host().unwrap_or("localhost").trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(crate::SERVER_PORT);
    let tcp = TcpStream::connect((host.as_str(), port)).await?;
    tcp.set_nodelay(true)?;
    let Some(config) = tls else { return Ok(IoStream::Plain(tcp)) };
    let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
    let stream = TlsConnector::from(config).connect(name, tcp).await.map_err(named)?;
    Ok(IoStream::Tls(Box::new(stream)))
}

/// Tells a server of another authority from every other failure.
fn named(error: std::io::Error) -> std::io::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::General(reason)) if reason == OTHER_AUTHORITY => {
            std::io::Error::new(std::io::ErrorKind::PermissionDenied, OtherAuthority)
        }
        _ => error,
    }
}

/// A connection to the server.
#[derive(Debug)]
pub enum IoStream {
    /// On this machine.
    Plain(TcpStream),
    /// Anywhere else.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Connection for IoStream {
    fn connected(&self) -> Connected {
        match self {
            Self::Plain(_) => Connected::new(),
            Self::Tls(stream) => match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => Connected::new().negotiated_h2(),
                Some(_) | None => Connected::new(),
            },
        }
    }
}

impl AsyncRead for IoStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for IoStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::TokenId;

    fn token(ca: Option<[u8; 32]>) -> JoinToken {
        JoinToken { id: TokenId(1), secret: [1; 32], ca }
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for good in ["http://127.0.0.1:7420", "http://localhost:1", "http://[::1]:2"] {
            assert!(Endpoint::new(good, token(None)).is_ok(), "{good}");
        }
        for bad in
            ["http://10.0.0.1:7420", "http://example.com", "ftp://localhost", "", "https://a"]
        {
            assert!(Endpoint::new(bad, token(None)).is_err(), "{bad}");
        }
        assert!(Endpoint::new("https://example.com:7420", token(Some([1; 32]))).is_ok());
    }
}
