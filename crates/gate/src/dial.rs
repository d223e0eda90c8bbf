//! The router's half: connects to an instance through its gate and knows that it is the one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::identity::{self, Identity, IdentityError};
use crate::stream::TlsStream;

/// What a gate says once the instance has taken the connection.
pub(crate) const READY: u8 = 1;

/// Who we are, and whom we believe.
#[derive(Debug, Clone)]
pub struct Dialer(Arc<ClientConfig>);

/// The name of an instance, ready for connecting.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerName(ServerName<'static>);

impl PeerName {
    /// Reads a name as certificates have it.
    pub fn new(name: String) -> Result<Self, IdentityError> {
        let refused = IdentityError::Name(name.clone());
        ServerName::try_from(name).map(Self).map_err(|_| refused)
    }
}

impl Dialer {
    /// A dialer that shows `identity` and believes these authorities (PEM).
    pub fn new(identity: &Identity, authorities: &str) -> Result<Self, IdentityError> {
        identity::client(identity, authorities).map(Self)
    }

    /// Connects to the instance called `name` through the gate at `address`. When this returns, the
    /// instance has proven its name and taken the connection; before, nothing was sent to it.
    pub async fn dial(&self, address: SocketAddr, name: &PeerName) -> io::Result<TlsStream> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let tls = ClientConnection::new(Arc::clone(&self.0), name.0.clone());
        let tls = tls.map_err(io::Error::other)?;
        let mut stream = TlsStream::new(tcp, Connection::Client(tls));
        stream.handshake().await?;
        // In TLS 1.3 we are done before the gate has seen who we are.
        match stream.read_u8().await? {
            READY => Ok(stream),
            other => Err(io::Error::other(format!("the gate said {other}"))),
        }
    }
}
