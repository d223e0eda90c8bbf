//! The server's own certificate authority, and the certificate it serves with.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::Digest;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// Why the server cannot offer TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read or written.
    #[error("cannot {attempt} {path}: {error}")]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: String,
        /// Why it failed.
        error: std::io::Error,
    },
    /// A certificate could not be made or read.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// Something else than a public key of the usual kind was sent.
    #[error("this is no public key (ECDSA, P-256)")]
    PublicKey,
    /// TLS refused the certificate.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// An authority that signs this server's certificate. Its fingerprint is part of every join token.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

fn file_error<'a>(
    attempt: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> TlsError + 'a {
    move |error| TlsError::File { attempt, path: path.display().to_string(), error }
}

impl Authority {
    /// Reads the authority in `dir`, or makes one there.
    pub fn open(dir: &Path) -> Result<Self, TlsError> {
        let files = (dir.join("ca.key"), dir.join("ca.pem"));
        let (issuer, pem) = open_authority(&files, "Longshore server authority")?;
        let certificate = rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes())
            .map_err(|error| file_error("read", &files.1)(std::io::Error::other(error)))?;
        Ok(Self { issuer, certificate })
    }

    /// SHA-256 of the authority's certificate.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(self.certificate.as_ref())
    }

    /// A TLS configuration with a fresh certificate for `names` (host names and addresses).
    pub fn server_config(&self, names: Vec<String>) -> Result<Arc<ServerConfig>, TlsError> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(names)?.signed_by(&key, &self.issuer)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, private)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Reads the authority in two files, its key and its certificate, or makes it. Gives its
/// certificate as PEM, too.
pub(crate) fn open_authority(
    (key_file, cert_file): &(PathBuf, PathBuf),
    name: &str,
) -> Result<(Issuer<'static, KeyPair>, String), TlsError> {
    if !key_file.exists() {
        make_authority(key_file, cert_file, name)?;
    }
    let key = std::fs::read_to_string(key_file).map_err(file_error("read", key_file))?;
    let pem = std::fs::read_to_string(cert_file).map_err(file_error("read", cert_file))?;
    Ok((Issuer::from_ca_cert_pem(&pem, KeyPair::from_pem(&key)?)?, pem))
}

fn make_authority(key_file: &Path, cert_file: &Path, name: &str) -> Result<(), TlsError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key)?;
    // The key last: where it is, the certificate is too.
    write_private(cert_file, &certificate.pem())?;
    write_private(key_file, &key.serialize_pem())
}

fn write_private(path: &Path, text: &str) -> Result<(), TlsError> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(file_error("write", path))?;
    file.write_all(text.as_bytes()).map_err(file_error("write", path))?;
    file.sync_all().map_err(file_error("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_stays_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Authority::open(dir.path()).expect("a new authority");
        let second = Authority::open(dir.path()).expect("the same authority");
        assert_eq!(first.fingerprint(), second.fingerprint());
        assert!(second.server_config(vec!["localhost".into(), "127.0.0.1".into()]).is_ok());
    }
}
