//! The instances of a gate: in memory to serve, and each in a file of its own for the next gate.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustls::ServerConfig;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::identity::{Common, Identity, Trust};
use crate::limits::MAX_PER_INSTANCE;

/// The file that says who may be believed.
const TRUST: &str = "trust.json";
/// The directory of one file for each instance.
const INSTANCES: &str = "instances";

/// One instance as an agent tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The name in its certificate, which routers ask for.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Who it is.
    pub identity: Identity,
}

/// One instance as it is served.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) address: SocketAddr,
    pub(crate) config: Arc<ServerConfig>,
    standing: Arc<Standing>,
}

/// What stays of an instance when its certificate is renewed.
#[derive(Debug, Default)]
struct Standing {
    is_gone: AtomicBool,
    connections: AtomicUsize,
}

/// A connection to an instance that counts against its limit.
#[derive(Debug)]
pub(crate) struct Place(Arc<Standing>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Instance {
    /// A place for one more connection, if there is one.
    pub(crate) fn place(&self) -> Option<Place> {
        let before = self.standing.connections.fetch_add(1, Ordering::Relaxed);
        let place = Place(Arc::clone(&self.standing));
        (before < MAX_PER_INSTANCE).then_some(place)
    }

    /// Whether it was removed: from then on its address may be another one's.
    pub(crate) fn is_gone(&self) -> bool {
        self.standing.is_gone.load(Ordering::SeqCst)
    }
}

/// Everything a gate knows.
#[derive(Debug)]
pub(crate) struct Table {
    dir: PathBuf,
    served: RwLock<BTreeMap<String, Arc<Instance>>>,
    /// Held while anything changes, so that files and memory agree.
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    trust: Option<(Trust, Common)>,
    entries: BTreeMap<String, Entry>,
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Makes a directory that only its owner enters.
pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file that only its owner reads, whole or not at all.
fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    fs::rename(fresh, path)
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    serde_json::from_reader(io::BufReader::new(File::open(path)?)).map_err(invalid)
}

/// A name that is safe as a file's.
fn check_name(name: &str) -> io::Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let is_name = !name.is_empty() && name.len() <= 200 && !name.starts_with('.');
    if is_name && name.bytes().all(fits) {
        return Ok(());
    }
    Err(invalid(format!("`{}` is not the name of an instance", name.escape_debug())))
}

impl Table {
    /// Reads what an earlier gate left in `dir`. What makes no sense there is passed over.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let instances = dir.join(INSTANCES);
        private_dir(&instances)?;
        let (served, told) = (RwLock::default(), Mutex::default());
        let table = Self { dir: dir.to_owned(), served, told };
        match read(&dir.join(TRUST)) {
            Ok(trust) => table.trust(trust)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(table),
            Err(error) => return Err(error),
        }
        for file in fs::read_dir(&instances)? {
            let path = file?.path();
            let is_whole = path.extension().is_some_and(|extension| extension == "json");
            if !is_whole {
                continue;
            }
            if let Err(error) = read(&path).and_then(|entry| table.put(entry)) {
                tracing::warn!(path = %path.display(), %error, "an instance cannot be served");
            }
        }
        Ok(table)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(INSTANCES).join(format!("{name}.json"))
    }

    /// The instance with this name.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Instance>> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).get(name).map(Arc::clone)
    }

    fn serve(&self, common: &Common, entry: &Entry) -> io::Result<()> {
        let config = common.server(&entry.identity).map_err(invalid)?;
        let before = self.find(&entry.name);
        // At another address it is another one: connections under way are not its.
        let standing = match before.filter(|before| before.address == entry.address) {
            Some(before) => Arc::clone(&before.standing),
            None => Arc::default(),
        };
        let fresh = Arc::new(Instance { address: entry.address, config, standing });
        self.swap(&entry.name, Some(fresh));
        Ok(())
    }

    fn swap(&self, name: &str, fresh: Option<Arc<Instance>>) {
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        let stays = |before: &Instance| {
            fresh.as_ref().is_some_and(|fresh| Arc::ptr_eq(&fresh.standing, &before.standing))
        };
        if let Some(before) = served.get(name).filter(|before| !stays(before)) {
            before.standing.is_gone.store(true, Ordering::SeqCst);
        }
        match fresh {
            Some(fresh) => drop(served.insert(name.to_owned(), fresh)),
            None => drop(served.remove(name)),
        }
    }

    /// Serves an instance from now on, or with another certificate.
    pub(crate) fn put(&self, entry: Entry) -> io::Result<()> {
        check_name(&entry.name)?;
        let mut told = self.told();
        let (_, common) = told.trust.as_ref().ok_or_else(|| invalid("nobody is trusted yet"))?;
        self.serve(common, &entry)?;
        if told.entries.get(&entry.name) != Some(&entry) {
            write(&self.file(&entry.name), &entry)?;
            told.entries.insert(entry.name.clone(), entry);
        }
        Ok(())
    }

    /// Ends the way to an instance. When this returns, no connection reaches its address any more
    /// that did not before.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        let mut told = self.told();
        self.swap(name, None);
        told.entries.remove(name);
        match fs::remove_file(self.file(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Believes these from now on.
    pub(crate) fn trust(&self, trust: Trust) -> io::Result<()> {
        let mut told = self.told();
        if told.trust.as_ref().is_some_and(|(known, _)| *known == trust) {
            return Ok(());
        }
        let common = Common::new(&trust).map_err(invalid)?;
        for entry in told.entries.values() {
            self.serve(&common, entry)?;
        }
        write(&self.dir.join(TRUST), &trust)?;
        told.trust = Some((trust, common));
        Ok(())
    }

    /// What is served, and until when each may be believed.
    pub(crate) fn held(&self) -> BTreeMap<String, u64> {
        let told = self.told();
        let held = |(name, entry): (&String, &Entry)| (name.clone(), entry.identity.expires_ms);
        told.entries.iter().map(held).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa};

    use super::*;
    use crate::identity::Key;

    const ONE: &str = "ins-1.1.instance.internal";

    fn entry(port: u16) -> Entry {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![ONE.to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        let identity = Identity { certificate, key: key.serialize_pem(), expires_ms: 1 };
        Entry { name: ONE.to_owned(), address: ([127, 0, 0, 1], port).into(), identity }
    }

    fn trust() -> Trust {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authorities = params.self_signed(&key).expect("a certificate").pem();
        Trust { authorities, clients: "router.internal".to_owned() }
    }

    #[test]
    fn a_connection_that_was_looked_up_before_the_end_learns_of_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let table = Table::open(dir.path()).expect("a table");
        assert!(table.put(entry(1)).is_err(), "nobody is trusted");
        table.trust(trust()).expect("it trusts");
        table.put(entry(1)).expect("it serves");
        let first = table.find(ONE).expect("an instance");
        table.put(entry(1)).expect("another certificate");
        assert!(!first.is_gone(), "it has the same address");
        let renewed = table.find(ONE).expect("an instance");
        table.put(entry(2)).expect("another address");
        assert!(first.is_gone() && renewed.is_gone());
        let moved = table.find(ONE).expect("an instance");
        table.remove(ONE).expect("it forgets");
        table.remove(ONE).expect("once more changes nothing");
        assert!(moved.is_gone() && table.find(ONE).is_none());
    }

    #[test]
    fn the_next_gate_serves_what_this_one_did() {
        let dir = tempfile::tempdir().expect("a directory");
        let table = Table::open(dir.path()).expect("a table");
        table.trust(trust()).expect("it trusts");
        table.put(entry(1)).expect("it serves");
        let file = table.file(ONE);
        let mode = fs::metadata(&file).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(dir.path().join(INSTANCES).join("bad.json"), "{").expect("a file");
        let next = Table::open(dir.path()).expect("a table");
        assert_eq!(next.held(), table.held());
        assert!(next.find(ONE).is_some());
        next.remove(ONE).expect("it forgets");
        assert!(!file.exists());
    }

    #[test]
    fn a_name_is_no_path_and_a_key_is_not_shown() {
        for bad in ["", "..", "../a", "a/b", ".a", "a b", "a\0"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name(ONE).is_ok());
        let entry = entry(1);
        let shown = format!("{entry:?} {:?}", Key::generate().expect("a key"));
        assert!(!shown.contains("PRIVATE") && !shown.contains(&entry.identity.key), "{shown}");
    }
}
