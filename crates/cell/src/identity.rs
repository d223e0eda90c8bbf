//! Who the instances of this cell are: certificates from the server, shown to routers by the gate
//! and to whomever they like by the instances themselves.
//!
//! Keys are made here and stay on this machine: in the gate's table and in the container.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use api::proto::cell_up::Message;
use api::proto::{Identify, Identity as Told};
use bytes::Bytes;
use drivers::{Driver, Handle, Isolation, archive};
use gate::{Entry, Gate, Identity, Key as PrivateKey, Trust};
use model::{IDENTITY_DIR, InstanceId, ROUTER_HOST, instance_host};
use runtime::{Backoff, Clock as _, Random, SystemClock, Tasks};
use tokio::sync::oneshot;

use crate::actor::Actor;
use crate::error::{CellError, Failure};
use crate::limits::{IDENTITY_ATTEMPTS, IDENTITY_LIMIT, REMOVE_PAUSES, RENEW_LEFT, RENEW_LOOK};
use crate::link::Link;
use crate::options::Options;
use crate::work::Key;

/// Where a container finds its certificates.
pub(crate) const VARIABLE: &str = "SHORE_IDENTITY_DIR";
/// The link to the files that are valid now. Where it leads goes round, so that what is read is
/// never written.
const CURRENT: &str = "current";
/// How many places there are, and how long each is the next one.
const SLOTS: u64 = 64;
/// See [`SLOTS`].
const SLOT_MS: u64 = 60_000;

/// Certificates of the instances of one cell.
#[derive(Debug)]
pub(crate) struct Identities {
    gate: Option<Gate>,
    /// What the server is asked for now.
    asked: Mutex<BTreeMap<Key, Asked>>,
    /// Whether the server makes certificates.
    are_made: AtomicBool,
}

#[derive(Debug)]
struct Asked {
    public: Bytes,
    tell: oneshot::Sender<Told>,
}

/// A certificate that an instance has, until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proof {
    expires_ms: u64,
}

impl Proof {
    /// One of which nothing is known: another one is asked for soon.
    pub(crate) const UNKNOWN: Self = Self { expires_ms: 0 };
}

fn name(key: Key) -> String {
    instance_host(InstanceId(key.id), key.epoch)
}

/// An identity, and the authorities that vouch for such.
pub(crate) type Obtained = (Identity, String);

impl Identities {
    /// Finds or starts the gate, if this cell is to have one.
    pub(crate) async fn open(options: &Options, tasks: &Tasks) -> Result<Self, CellError> {
        let gate = match options.gate {
            Some(listen) => {
                let told = gate::Options {
                    dir: options.dir.join("gate"),
                    listen,
                    program: options.platform_exe.clone(),
                    version: api::VERSION.to_owned(),
                };
                Some(Gate::open(told, tasks).await?)
            }
            None => None,
        };
        Ok(Self { gate, asked: Mutex::default(), are_made: AtomicBool::new(false) })
    }

    /// Where routers reach the instances.
    pub(crate) fn gate_address(&self) -> Option<SocketAddr> {
        self.gate.as_ref().map(Gate::address)
    }

    /// Whether the server makes certificates, as it said when it let the cell in.
    pub(crate) fn set_made(&self, are_made: bool) {
        self.are_made.store(are_made, Ordering::Relaxed);
    }

    pub(crate) fn are_made(&self) -> bool {
        self.are_made.load(Ordering::Relaxed)
    }

    fn asked(&self) -> MutexGuard<'_, BTreeMap<Key, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server answered.
    pub(crate) fn arrived(&self, told: Told) {
        let key = told.work.as_ref().and_then(Key::of);
        let Some(key) = key else { return };
        let mut asked = self.asked();
        if asked.get(&key).is_some_and(|asked| asked.public == told.public_key)
            && let Some(Asked { tell, .. }) = asked.remove(&key)
        {
            // Whoever asked may have given up.
            drop(tell.send(told));
        }
    }

    async fn ask(&self, link: &Link, key: Key) -> Result<Obtained, Failure> {
        for _ in 0..IDENTITY_ATTEMPTS {
            let private = PrivateKey::generate().map_err(Failure::new)?;
            let public = Bytes::from(private.public());
            let (tell, told) = oneshot::channel();
            self.asked().insert(key, Asked { public: public.clone(), tell });
            let identify = Identify { work: Some(key.work()), public_key: public };
            link.send(Message::Identify(identify)).await;
            if let Some(Ok(told)) = runtime::timeout(IDENTITY_LIMIT, told).await {
                let Told { certificate, expires_ms, authorities, .. } = told;
                return Ok((Identity { certificate, key: private.pem(), expires_ms }, authorities));
            }
        }
        self.asked().remove(&key);
        Err(Failure::new("the server made no certificate for it in time"))
    }

    /// Gets a certificate for an instance. `None`: this server makes none, and none is needed.
    pub(crate) async fn obtain(&self, actor: &Actor) -> Result<Option<Obtained>, Failure> {
        if self.are_made() {
            return self.ask(&actor.shared.link, actor.key).await.map(Some);
        }
        match self.gate {
            Some(_) => Err(Failure::new("the server makes no certificates")),
            None => Ok(None),
        }
    }

    /// Gives a certificate to the container of an instance and to the gate, which then lets routers
    /// through to `address`.
    pub(crate) async fn prove(
        &self,
        actor: &Actor,
        (address, obtained): (SocketAddr, Option<Obtained>),
    ) -> Result<Option<Proof>, Failure> {
        let Some((identity, authorities)) = obtained else { return Ok(None) };
        let proof = Proof { expires_ms: identity.expires_ms };
        if let Err(failure) = put(actor, &identity, &authorities).await {
            actor.journal.say(format!("it cannot have its certificate: {failure}")).await;
        }
        if let Some(gate) = &self.gate {
            let clients = ROUTER_HOST.to_owned();
            gate.trust(Trust { authorities, clients }).await.map_err(Failure::new)?;
            let entry = Entry { name: name(actor.key), address, identity };
            gate.put(entry).await.map_err(Failure::new)?;
        }
        Ok(Some(proof))
    }

    /// What the gate already has for an instance that another agent started.
    pub(crate) async fn known(&self, key: Key) -> Proof {
        let Some(gate) = &self.gate else { return Proof::UNKNOWN };
        let held = gate.held().await.unwrap_or_default();
        let expires_ms = held.get(&name(key)).copied().unwrap_or_default();
        Proof { expires_ms }
    }

    /// Renews a certificate whenever half of its time is over.
    pub(crate) async fn renew(&self, actor: &Actor, address: SocketAddr, mut proof: Proof) {
        loop {
            let left = proof.expires_ms.saturating_sub(SystemClock.now_ms());
            let is_due = u128::from(left) < RENEW_LEFT.as_millis();
            if is_due && self.are_made() && actor.shared.link.current().is_some() {
                let renewed = match self.obtain(actor).await {
                    Ok(obtained) => self.prove(actor, (address, obtained)).await,
                    Err(failure) => Err(failure),
                };
                match renewed {
                    Ok(renewed) => proof = renewed.unwrap_or(proof),
                    Err(failure) => {
                        tracing::warn!(work = %actor.key, %failure, "a certificate is not renewed");
                    }
                }
            }
            runtime::sleep(RENEW_LOOK).await;
        }
    }

    /// Ends the way to an instance: after this its address may be another one's. It tries until that
    /// worked.
    pub(crate) async fn forget(&self, key: Key) {
        self.asked().remove(&key);
        let Some(gate) = &self.gate else { return };
        let random = Random::system();
        let mut backoff = Backoff::new(REMOVE_PAUSES.0, REMOVE_PAUSES.1);
        while let Err(error) = gate.remove(&name(key)).await {
            tracing::warn!(work = %key, %error, "the gate does not forget an instance");
            runtime::sleep(backoff.next_delay(&random)).await;
        }
    }

    /// Ends the way to every instance that is not one of these.
    pub(crate) async fn keep_only(&self, keys: impl Iterator<Item = Key>) -> Result<(), CellError> {
        let Some(gate) = &self.gate else { return Ok(()) };
        let names: BTreeSet<String> = keys.map(name).collect();
        for held in gate.held().await?.keys().filter(|held| !names.contains(*held)) {
            gate.remove(held).await?;
        }
        Ok(())
    }

    /// The agent ends. A gate that serves nobody ends with it, and frees its port.
    pub(crate) async fn close_unused(&self) {
        if let Some(gate) = &self.gate
            && gate.held().await.is_ok_and(|held| held.is_empty())
        {
            self.close().await;
        }
    }

    /// The cell leaves for good, and its gate with it.
    pub(crate) async fn close(&self) {
        if let Some(gate) = &self.gate
            && let Err(error) = gate.close().await
        {
            tracing::warn!(%error, "the gate does not end");
        }
    }
}

/// The directory of the certificates, as processes of a container see it.
pub(crate) fn directory(driver: &dyn Driver, handle: &Handle) -> String {
    let is_apart = driver.capabilities().isolation != Isolation::None;
    let outside = driver.host_path(handle, IDENTITY_DIR).filter(|_| !is_apart);
    outside.map_or_else(|| IDENTITY_DIR.to_owned(), |path| path.display().to_string())
}

/// Puts the files into the container. Names lead through one link, which is replaced last: whoever
/// opens them has the old ones or the new ones.
async fn put(actor: &Actor, identity: &Identity, authorities: &str) -> Result<(), Failure> {
    let slot = (identity.expires_ms / SLOT_MS % SLOTS).to_string();
    let files =
        [("cert.pem", &*identity.certificate), ("key.pem", &identity.key), ("ca.pem", authorities)];
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(text.len()).unwrap_or(0));
        header.set_mode(0o600);
        tar.append_data(&mut header, format!("{slot}/{name}"), text.as_bytes())?;
    }
    let links = files.map(|(name, _)| (name, format!("{CURRENT}/{name}")));
    let links = links.into_iter().chain([(CURRENT, slot.clone())]);
    for (name, target) in links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, name, target)?;
    }
    let tar = std::io::Cursor::new(tar.into_inner()?);
    let limits = archive::Limits::default();
    actor.driver.copy_in(&actor.handle, IDENTITY_DIR, Box::pin(tar), limits).await?;
    Ok(())
}
