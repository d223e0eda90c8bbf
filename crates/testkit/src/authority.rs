//! An authority that makes any certificate, also wrong ones, and gates with them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use gate::{Dialer, Identity, Key, Options, Trust};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SubjectPublicKeyInfo,
};

use crate::Failure;

/// The name that routers have.
pub const ROUTER: &str = "router.internal";

/// When a good certificate ends: milliseconds since 1970, at the beginning of 2100.
pub const GOOD_UNTIL_MS: u64 = 4_102_444_800_000;

/// Whether a certificate is good now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// For this century.
    Good,
    /// It was, for a year.
    Expired,
}

/// An authority of its own.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub pem: String,
}

fn failure(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}

impl Authority {
    /// Makes one. No two have the same name.
    pub fn new() -> Result<Self, Failure> {
        let key = KeyPair::generate().map_err(failure)?;
        let mut params = CertificateParams::default();
        let name = runtime::Random::system().next_u64().to_string();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let pem = params.self_signed(&key).map_err(failure)?.pem();
        Ok(Self { issuer: Issuer::from_ca_cert_pem(&pem, key).map_err(failure)?, pem })
    }

    /// Makes a key and a certificate for it.
    pub fn identity(&self, name: &str, validity: Validity) -> Result<Identity, Failure> {
        let key = Key::generate().map_err(failure)?;
        let certificate = self.certificate(name, &key.public(), validity)?;
        Ok(Identity { certificate, key: key.pem(), expires_ms: GOOD_UNTIL_MS })
    }

    /// Makes a certificate for somebody's public key.
    pub fn certificate(
        &self,
        name: &str,
        public_key: &[u8],
        validity: Validity,
    ) -> Result<String, Failure> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(failure)?;
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = match validity {
            Validity::Good => rcgen::date_time_ymd(2100, 1, 1),
            Validity::Expired => rcgen::date_time_ymd(2001, 1, 1),
        };
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let public = SubjectPublicKeyInfo::from_der(public_key).map_err(failure)?;
        Ok(params.signed_by(&public, &self.issuer).map_err(failure)?.pem())
    }

    /// Connects as whoever has this identity, and believes this authority.
    pub fn dialer(&self, identity: &Identity) -> Result<Dialer, Failure> {
        Dialer::new(identity, &self.pem).map_err(failure)
    }

    /// Connects as a router.
    pub fn router(&self) -> Result<Dialer, Failure> {
        self.dialer(&self.identity(ROUTER, Validity::Good)?)
    }

    /// What a gate is told: routers of this authority may connect.
    pub fn trust(&self) -> Trust {
        Trust { authorities: self.pem.clone(), clients: ROUTER.to_owned() }
    }
}

/// A gate in a directory, on a free port of loopback.
pub fn gate_options(dir: &Path, program: impl Into<PathBuf>, version: &str) -> Options {
    Options {
        dir: dir.join("gate"),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        program: program.into(),
        version: version.to_owned(),
    }
}
