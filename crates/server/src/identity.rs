//! Certificates for instances and routers. Keys are made where they are used and stay there; nothing
//! that is issued is stored.

use std::path::Path;
use std::time::Duration;

use model::{AppId, InstanceId, Name, ROUTER_HOST, Time, instance_host};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType, SubjectPublicKeyInfo,
};
use state::{App, Deployment, Instance, Process, Project, State};

use crate::tls::{TlsError, open_authority};

/// How long a certificate is good. Half of it passes before another one is asked for, so a server
/// may be away for the other half.
pub const CERTIFICATE_LIFE: Duration = Duration::from_hours(24);
/// How much earlier it begins: clocks of other machines may be late.
const CLOCK_SLACK: Duration = Duration::from_hours(24);
/// The longest public key that is looked at. One that is accepted has 91 bytes.
const MAX_PUBLIC_KEY: usize = 512;

/// The authority of instances and routers. It is not the one that signs the server's own certificate:
/// no mistake here can make a server of an instance.
#[derive(Debug)]
pub struct IdentityAuthority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate, as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) expires_ms: u64,
    pub(crate) authorities: String,
}

/// Who a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// One attempt at an instance.
    Instance { id: InstanceId, epoch: u32, project: Name, app: Name, process: Name },
    /// A router.
    Router(u128),
}

impl Subject {
    /// The attempt at an instance, with the names of what it belongs to.
    pub(crate) fn instance(state: &State, id: InstanceId, epoch: u32) -> Option<Self> {
        let process = state.get::<Process>(state.get::<Instance>(id)?.process)?;
        let app: AppId = state.get::<Deployment>(process.deployment)?.app;
        let app = state.get::<App>(app)?;
        let project = state.get::<Project>(app.project)?;
        Some(Self::Instance {
            id,
            epoch,
            project: project.name.clone(),
            app: app.name.clone(),
            process: process.name.clone(),
        })
    }

    fn common_name(&self) -> String {
        match self {
            Self::Instance { id, .. } => id.to_string(),
            Self::Router(id) => format!("{id:032x}"),
        }
    }

    fn host(&self) -> String {
        match self {
            Self::Instance { id, epoch, .. } => instance_host(*id, *epoch),
            Self::Router(_) => ROUTER_HOST.to_owned(),
        }
    }

    fn uri(&self, domain: &str) -> String {
        match self {
            Self::Instance { id, project, app, process, .. } => format!(
                "spiffe://{domain}/project/{project}/app/{app}/process/{process}/instance/{id}"
            ),
            Self::Router(id) => format!("spiffe://{domain}/router/{id:032x}"),
        }
    }
}

impl IdentityAuthority {
    /// Reads the authority in `dir`, or makes one there.
    pub fn open(dir: &Path) -> Result<Self, TlsError> {
        let files = (dir.join("identity.key"), dir.join("identity.pem"));
        let (issuer, pem) = open_authority(&files, "Longshore instance authority")?;
        Ok(Self { issuer, pem })
    }

    /// Makes a certificate for a public key.
    pub(crate) fn issue(
        &self,
        subject: &Subject,
        domain: &str,
        public_key: &[u8],
        now: Time,
    ) -> Result<Issued, TlsError> {
        if public_key.len() > MAX_PUBLIC_KEY {
            return Err(TlsError::PublicKey);
        }
        let key = SubjectPublicKeyInfo::from_der(public_key).map_err(|_| TlsError::PublicKey)?;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(TlsError::PublicKey);
        }
        let mut params = CertificateParams::new(vec![subject.host()])?;
        params.subject_alt_names.push(SanType::URI(subject.uri(domain).try_into()?));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject.common_name());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (epoch, now) = (rcgen::date_time_ymd(1970, 1, 1), Duration::from_millis(now.0));
        params.not_before = epoch + now.saturating_sub(CLOCK_SLACK);
        params.not_after = epoch + (now + CERTIFICATE_LIFE);
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        let expires = (now + CERTIFICATE_LIFE).as_millis();
        Ok(Issued {
            certificate,
            expires_ms: u64::try_from(expires).unwrap_or(u64::MAX),
            authorities: self.pem.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse("name", text).expect("a name")
    }

    fn subject() -> Subject {
        Subject::Instance {
            id: InstanceId(7),
            epoch: 3,
            project: name("shop"),
            app: name("web"),
            process: name("worker"),
        }
    }

    #[test]
    fn a_certificate_says_who_it_is_for_and_nothing_else_changes() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = IdentityAuthority::open(dir.path()).expect("a new authority");
        let again = IdentityAuthority::open(dir.path()).expect("the same authority");
        assert_eq!(authority.pem, again.pem);
        let key = KeyPair::generate().expect("a key").subject_public_key_info();
        let issued = authority.issue(&subject(), "example.com", &key, Time(86_400_000));
        let issued = issued.expect("a certificate");
        assert_eq!(issued.expires_ms, 2 * 86_400_000);
        assert_eq!(issued.authorities, authority.pem);
        assert!(!issued.certificate.contains("PRIVATE"));
        assert_eq!(
            subject().uri("example.com"),
            "spiffe://example.com/project/shop/app/web/process/worker/\
             instance/ins_00000000000000000000000007"
        );
        assert_eq!(Subject::Router(10).host(), ROUTER_HOST);
        assert_ne!(subject().host(), ROUTER_HOST);
    }

    #[test]
    fn only_the_usual_kind_of_key_gets_a_certificate() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = IdentityAuthority::open(dir.path()).expect("an authority");
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        for bad in [Vec::new(), vec![0; 91], vec![0; 10_000], other.subject_public_key_info()] {
            let refused = authority.issue(&subject(), "example.com", &bad, Time(0));
            assert!(matches!(refused, Err(TlsError::PublicKey)), "{refused:?}");
        }
    }
}
