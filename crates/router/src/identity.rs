//! Who this router is for the gates of cell machines. Kept in a file, so that a restart can prove it
//! before the server is reached.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::proto;
use arc_swap::ArcSwapOption;
use gate::{Dialer, IdentityError, Key, TlsStream};
use runtime::{Clock as _, SystemClock};
use serde::{Deserialize, Serialize};

use crate::table::Gate;

/// The file beside the route table's.
const FILE: &str = "identity.json";
/// How soon a certificate that seems to be over already is asked for again.
const SOONEST: Duration = Duration::from_secs(30);

/// What is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    identity: gate::Identity,
    authorities: String,
}

/// Who this router is for gates; nobody until the server said so.
#[derive(Debug)]
pub(crate) struct Identity {
    dialer: ArcSwapOption<Dialer>,
    path: Option<PathBuf>,
    /// The key that a certificate was asked for.
    asked: Mutex<Option<Key>>,
}

impl Identity {
    /// Reads what the last run kept beside the table.
    pub(crate) fn new(table: Option<&Path>) -> Self {
        let path = table.map(|table| table.with_file_name(FILE));
        let dialer = path.as_deref().and_then(|path| match load(path) {
            Ok(dialer) => Some(dialer.into()),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the kept identity is unreadable");
                None
            }
        });
        Self { dialer: ArcSwapOption::new(dialer), path, asked: Mutex::default() }
    }

    /// Makes a key, and gives what the server needs to make a certificate for it.
    pub(crate) fn ask(&self) -> Result<Vec<u8>, IdentityError> {
        let key = Key::generate()?;
        let public = key.public();
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
        Ok(public)
    }

    /// Takes a certificate, and says when to ask for the next one: when half of its time is over.
    pub(crate) fn take(&self, told: proto::Identity) -> io::Result<Instant> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).take();
        let key = asked.filter(|key| key.public() == told.public_key);
        let key = key.ok_or_else(|| io::Error::other("nobody asked for this certificate"))?;
        let (certificate, expires_ms) = (told.certificate, told.expires_ms);
        let identity = gate::Identity { certificate, key: key.pem(), expires_ms };
        let dialer = Dialer::new(&identity, &told.authorities).map_err(io::Error::other)?;
        self.prove(dialer);
        if let Some(path) = &self.path {
            let kept = Kept { identity, authorities: told.authorities };
            if let Err(error) = keep(path, &kept) {
                tracing::warn!(path = %path.display(), %error, "cannot keep the identity");
            }
        }
        let left = Duration::from_millis(expires_ms.saturating_sub(SystemClock.now_ms()));
        Ok(runtime::mono_now() + (left / 2).max(SOONEST))
    }

    /// Shows gates this from now on.
    pub(crate) fn prove(&self, dialer: Dialer) {
        self.dialer.store(Some(dialer.into()));
    }

    /// Connects to the instance behind a gate.
    pub(crate) async fn dial(&self, gate: &Gate) -> io::Result<TlsStream> {
        let dialer = self.dialer.load_full();
        let dialer = dialer.ok_or_else(|| io::Error::other("the router has no certificate yet"))?;
        dialer.dial(gate.address(), &gate.name).await
    }
}

fn load(path: &Path) -> io::Result<Dialer> {
    let kept: Kept = serde_json::from_slice(&std::fs::read(path)?)?;
    Dialer::new(&kept.identity, &kept.authorities).map_err(io::Error::other)
}

/// Writes the file whole or not at all; only its owner reads it.
fn keep(path: &Path, kept: &Kept) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(&serde_json::to_vec(kept)?)?;
    file.sync_data()?;
    std::fs::rename(fresh, path)
}
