//! Keys and certificates as text, and what TLS makes of them.

use std::sync::Arc;

use rcgen::{KeyPair, PublicKeyData as _};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::{ClientSessionMemoryCache, Resumption, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, ProducesTickets, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use serde::{Deserialize, Serialize};

use crate::limits::MAX_SESSIONS;

/// What both sides of a gate's connection speak: one byte that says the instance took the
/// connection, then whatever the router and the instance say to each other.
pub(crate) const ALPN: &[u8] = b"longshore-gate/1";

/// Why keys or certificates are of no use.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A key cannot be made.
    #[error("cannot make a key: {0}")]
    Key(#[from] rcgen::Error),
    /// A text is not what it should be.
    #[error("cannot read the {what}: {error}")]
    Text {
        /// What was read.
        what: &'static str,
        /// Why it cannot be.
        error: String,
    },
    /// TLS does not take it.
    #[error("cannot use the certificate: {0}")]
    Tls(#[from] rustls::Error),
    /// A name cannot be one.
    #[error("`{0}` is not a name that a certificate can have")]
    Name(String),
}

/// A private key. It is made where it is used and never sent anywhere.
pub struct Key(KeyPair);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// Makes a key (ECDSA, P-256).
    pub fn generate() -> Result<Self, IdentityError> {
        Ok(Self(KeyPair::generate()?))
    }

    /// What an authority needs to make a certificate: the public half, as DER.
    pub fn public(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// The private half, as PEM.
    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }
}

/// A certificate with its key, as PEM. `Debug` does not show the key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Milliseconds since 1970 after which nobody accepts it.
    pub expires_ms: u64,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity(until {})", self.expires_ms)
    }
}

type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Identity {
    fn parse(&self) -> Result<Chain, IdentityError> {
        let chain = certificates("certificate", &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|error| IdentityError::Text { what: "key", error: error.to_string() })?;
        Ok((chain, key))
    }
}

/// Who may be believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// Certificates of authorities, as PEM, one after the other.
    pub authorities: String,
    /// The name that the certificate of whoever connects must have.
    pub clients: String,
}

fn certificates(
    what: &'static str,
    pem: &str,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| IdentityError::Text { what, error: error.to_string() })
}

fn roots(pem: &str) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("authority", pem)? {
        roots.add(certificate)?;
    }
    Ok(Arc::new(roots))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// What all instances of a gate have in common.
#[derive(Debug, Clone)]
pub(crate) struct Common {
    provider: Arc<CryptoProvider>,
    clients: Arc<Clients>,
    tickets: Arc<dyn ProducesTickets>,
}

impl Common {
    /// Tickets of another one are of no use here: what it trusted may be trusted no more.
    pub(crate) fn new(trust: &Trust) -> Result<Self, IdentityError> {
        let provider = provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(
            roots(&trust.authorities)?,
            Arc::clone(&provider),
        );
        let verifier = verifier
            .build()
            .map_err(|error| IdentityError::Text { what: "authority", error: error.to_string() })?;
        let clients = Arc::new(Clients { verifier, name: name(&trust.clients)? });
        let tickets = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        Ok(Self { provider, clients, tickets })
    }

    /// How connections to the instance with this identity are taken.
    pub(crate) fn server(&self, identity: &Identity) -> Result<Arc<ServerConfig>, IdentityError> {
        let (chain, key) = identity.parse()?;
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::clone(&self.clients) as Arc<dyn ClientCertVerifier>)
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.ticketer = Arc::clone(&self.tickets);
        Ok(Arc::new(config))
    }
}

/// How a handshake is refused: there is no certificate for anybody.
pub(crate) fn refusing() -> Result<Arc<ServerConfig>, IdentityError> {
    let nobody = rustls::server::ResolvesServerCertUsingSni::new();
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(nobody));
    Ok(Arc::new(config))
}

fn name(text: &str) -> Result<ServerName<'static>, IdentityError> {
    ServerName::try_from(text.to_owned()).map_err(|_| IdentityError::Name(text.to_owned()))
}

/// Accepts a certificate of a known authority if it has the name of those who may connect.
/// Instances have certificates of the same authority.
#[derive(Debug)]
struct Clients {
    verifier: Arc<dyn ClientCertVerifier>,
    name: ServerName<'static>,
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, &self.name)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// How a router connects: who it is and whom it believes.
pub(crate) fn client(
    identity: &Identity,
    authorities: &str,
) -> Result<Arc<ClientConfig>, IdentityError> {
    let (chain, key) = identity.parse()?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(authorities)?)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    let sessions = ClientSessionMemoryCache::new(MAX_SESSIONS);
    config.resumption = Resumption::store(Arc::new(sessions));
    Ok(Arc::new(config))
}
