//! Where a container is on disk, and what its files say.
//!
//! ```text
//! <base>/.trash/...                     what is being deleted
//! <base>/.new-<handle>/                 what is being made
//! <base>/<handle>/meta.json             what it was made from
//! <base>/<handle>/root/                 its files: the container's `/`
//! <base>/<handle>/processes/<id>/       started.json, exit.json, output.*, supervisor.log
//! ```
//! Nothing is kept in memory: whoever opens the base directory knows all there is to know.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::de::DeserializeOwned;

use super::tree;
use crate::driver::{ContainerInfo, Exit, ProcessInfo, ProcessState};
use crate::error::{Context as _, DriverError, Result};
use crate::proc;
use crate::shim::{EXIT_FILE, Ended, Processes, STARTED_FILE, write_whole};
use crate::spec::{ContainerSpec, Handle, Openings, ProcessId};

const META_FILE: &str = "meta.json";
const TRASH: &str = ".trash";
/// How names of containers begin that are being made.
const DRAFT: &str = ".new-";
const PROCESSES: &str = "processes";
/// How long an agent that is being opened may look at what another one makes.
const SWEEP_LIMIT: Duration = Duration::from_secs(1);
const SWEEP_PAUSE: Duration = Duration::from_millis(2);

/// The base directory of a driver.
#[derive(Debug, Clone)]
pub(crate) struct Dirs {
    base: PathBuf,
    boot: String,
}

impl Dirs {
    /// Opens a base directory, made when missing and private to the agent's user.
    pub(crate) fn open(base: &Path) -> Result<Self> {
        let make = || {
            make_private(base, true)?;
            let base = base.canonicalize()?;
            make_private(&base.join(TRASH), true)?;
            if base.to_str().is_none() {
                return Err(io::Error::other("the path is not UTF-8"));
            }
            Ok::<_, io::Error>(Self { base, boot: proc::boot_id()? })
        };
        make().context(|| format!("open {}", base.display()))
    }

    pub(crate) fn container(&self, handle: &Handle) -> PathBuf {
        self.base.join(handle.as_str())
    }

    pub(crate) fn root(&self, handle: &Handle) -> PathBuf {
        self.container(handle).join("root")
    }

    pub(crate) fn process(&self, handle: &Handle, id: &ProcessId) -> PathBuf {
        self.container(handle).join(PROCESSES).join(id.as_str())
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.base.join(TRASH)
    }

    /// The run of the machine this is.
    pub(crate) fn boot(&self) -> &str {
        &self.boot
    }

    /// A container's path on the machine. `..` stops at the root.
    pub(crate) fn host_path(&self, handle: &Handle, path: &str) -> PathBuf {
        join_below(self.root(handle), path)
    }

    /// Begins to make a container; may block for a moment. It is there with all its parts once the draft is kept, or not at
    /// all.
    pub(crate) fn draft(&self, spec: &ContainerSpec) -> Result<Draft> {
        let context = || format!("create container {}", spec.handle);
        let at = self.container(&spec.handle);
        if at.exists() {
            return Err(exists(&spec.handle));
        }
        let dir = self.base.join(format!("{DRAFT}{}", spec.handle));
        let draft = Draft::make(dir, spec).context(context)?;
        draft.ok_or_else(|| exists(&spec.handle))
    }

    /// Makes a draft a container.
    pub(crate) fn keep(&self, draft: &Draft) -> Result<()> {
        let handle = &draft.handle;
        match fs::rename(&draft.dir, self.container(handle)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Err(exists(handle)),
            Err(error) => Err(DriverError::io(format!("create container {handle}"), error)),
        }
    }

    /// What agents that died were making: nobody may ask for the same container again.
    pub(crate) fn abandoned(&self) -> Result<Vec<Draft>> {
        let names = names(&self.base).context(|| format!("list {}", self.base.display()))?;
        let drafts = names.iter().filter_map(|name| {
            let handle = Handle::new(name.strip_prefix(DRAFT)?).ok()?;
            Draft::abandoned(self.base.join(name), handle)
        });
        Ok(drafts.collect())
    }

    /// Whether there is a container, or somebody makes one.
    pub(crate) fn any(&self) -> io::Result<bool> {
        let inside = |name: &String| name.starts_with(DRAFT) || !name.starts_with('.');
        Ok(names(&self.base)?.iter().any(inside))
    }

    /// What a container was made from; `NotFound` when there is none.
    pub(crate) fn meta(&self, handle: &Handle) -> Result<ContainerSpec> {
        match read_json(&self.container(handle).join(META_FILE)) {
            Ok(Some(spec)) => Ok(spec),
            Ok(None) => Err(DriverError::NotFound { what: "container", name: handle.to_string() }),
            Err(error) => Err(DriverError::io(format!("read container {handle}"), error)),
        }
    }

    /// Takes the name of a new process.
    pub(crate) fn create_process(&self, handle: &Handle, id: &ProcessId) -> Result<PathBuf> {
        let dir = self.process(handle, id);
        match make_private(&dir, false) {
            Ok(()) => Ok(dir),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(DriverError::Exists { what: "process", name: id.to_string() })
            }
            Err(error) => Err(DriverError::io(format!("create process {id}"), error)),
        }
    }

    /// The processes behind a started command that belong to this run of the machine.
    pub(crate) fn started(&self, dir: &Path) -> Option<Processes> {
        let processes: Processes = read_json(&dir.join(STARTED_FILE)).ok()??;
        (processes.boot == self.boot).then_some(processes)
    }

    /// Whether a process was started and nobody will ever say how it ended. One that is being
    /// started, by this agent or another, is not lost.
    pub(crate) fn lost_its_supervisor(&self, dir: &Path) -> bool {
        let gone = self.started(dir).is_some_and(|started| !started.supervisor.runs());
        // A supervisor writes before it goes.
        gone && ended(dir).is_none()
    }

    /// Checks that a process was made.
    pub(crate) fn existing(&self, handle: &Handle, id: &ProcessId) -> Result<PathBuf> {
        let dir = self.process(handle, id);
        if dir.is_dir() {
            return Ok(dir);
        }
        self.meta(handle)?;
        Err(DriverError::NotFound { what: "process", name: id.to_string() })
    }

    /// All handles there are.
    pub(crate) fn handles(&self) -> Result<Vec<Handle>> {
        let names = names(&self.base).context(|| format!("list {}", self.base.display()))?;
        Ok(names.into_iter().filter_map(|name| Handle::new(name).ok()).collect())
    }

    /// All handles there are, and those of containers that are being made.
    pub(crate) fn handles_with_drafts(&self) -> Result<Vec<Handle>> {
        let names = names(&self.base).context(|| format!("list {}", self.base.display()))?;
        let handle = |name: &String| Handle::new(name.strip_prefix(DRAFT).unwrap_or(name)).ok();
        Ok(names.iter().filter_map(handle).collect())
    }

    /// All processes of a container.
    pub(crate) fn process_ids(&self, handle: &Handle) -> Vec<ProcessId> {
        let names = names(&self.container(handle).join(PROCESSES)).unwrap_or_default();
        names.into_iter().filter_map(|name| ProcessId::new(name).ok()).collect()
    }

    pub(crate) fn container_info(&self, handle: &Handle) -> ContainerInfo {
        let properties = self.meta(handle).map(|spec| spec.properties).unwrap_or_default();
        let ids = self.process_ids(handle);
        let processes = ids.into_iter().map(|id| self.process_info(handle, id)).collect();
        ContainerInfo { handle: handle.clone(), properties, processes }
    }

    fn process_info(&self, handle: &Handle, id: ProcessId) -> ProcessInfo {
        let dir = self.process(handle, &id);
        let started = self.started(&dir);
        // Whether it runs must be asked first: it may end between the two questions.
        let supervised = started.as_ref().is_some_and(|started| started.supervisor.runs());
        let state = match ended(&dir) {
            Some(ended) => ProcessState::Exited(ended.exit),
            None if supervised => ProcessState::Running,
            None => ProcessState::Exited(Exit::LOST),
        };
        let number = |id: proc::Id| id.pid.cast_unsigned();
        ProcessInfo {
            id,
            state,
            pid: started
                .as_ref()
                .filter(|_| state == ProcessState::Running)
                .map(|started| number(started.command)),
            supervisor: started.filter(|_| supervised).map(|started| number(started.supervisor)),
        }
    }
}

/// A path below a root. `..` stops at it.
pub(crate) fn join_below(mut root: PathBuf, path: &str) -> PathBuf {
    let mut parts = Vec::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => parts.push(name),
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    root.extend(parts);
    root
}

/// How a process ended, if its supervisor wrote that down.
pub(crate) fn ended(dir: &Path) -> Option<Ended> {
    read_json(&dir.join(EXIT_FILE)).ok()?
}

fn exists(handle: &Handle) -> DriverError {
    DriverError::Exists { what: "container", name: handle.to_string() }
}

/// A container that is being made. While this lives no other agent takes it for abandoned.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) dir: PathBuf,
    pub(crate) handle: Handle,
    /// The directory itself, locked.
    _lock: File,
}

impl Draft {
    /// Makes the directory; `None` when somebody else is doing that. An agent that is just being
    /// opened may take a new directory for abandoned and remove it: then it is made again.
    fn make(dir: PathBuf, spec: &ContainerSpec) -> io::Result<Option<Self>> {
        let deadline = runtime::mono_now() + SWEEP_LIMIT;
        let lock = loop {
            match make_private(&dir, false) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            match lock(&dir)? {
                Taken::Here(lock) => break lock,
                Taken::Elsewhere if runtime::mono_now() >= deadline => return Ok(None),
                Taken::Elsewhere => runtime::pause_thread(SWEEP_PAUSE),
                // Another agent removed it meanwhile.
                Taken::Gone => {}
            }
        };
        // Making it may have failed half-way.
        tree::remove_contents(&dir)?;
        make_private(&dir.join(PROCESSES), false)?;
        write_whole(&dir, META_FILE, spec)?;
        Ok(Some(Self { dir, handle: spec.handle.clone(), _lock: lock }))
    }

    fn abandoned(dir: PathBuf, handle: Handle) -> Option<Self> {
        match lock(&dir) {
            Ok(Taken::Here(lock)) => Some(Self { dir, handle, _lock: lock }),
            Ok(Taken::Elsewhere | Taken::Gone) | Err(_) => None,
        }
    }

    /// What it was to reach, and to be reached by.
    pub(crate) fn openings(&self) -> Openings {
        let spec = read_json::<ContainerSpec>(&self.dir.join(META_FILE));
        spec.ok().flatten().map(|spec| spec.openings()).unwrap_or_default()
    }

    /// Gives up making it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        tree::remove(&self.dir)
    }
}

/// What became of locking a directory.
enum Taken {
    Here(File),
    Elsewhere,
    Gone,
}

fn lock(dir: &Path) -> io::Result<Taken> {
    let file = match File::open(dir) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Taken::Gone),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::AGAIN) => return Ok(Taken::Elsewhere),
        Err(error) => return Err(error.into()),
    }
    let same = |now: fs::Metadata| file.metadata().is_ok_and(|old| old.ino() == now.ino());
    let there = fs::metadata(dir).is_ok_and(same);
    Ok(if there { Taken::Here(file) } else { Taken::Gone })
}

pub(crate) fn make_private(dir: &Path, with_parents: bool) -> io::Result<()> {
    DirBuilder::new().mode(0o700).recursive(with_parents).create(dir)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The names in a directory, sorted.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_agent_was_making_is_removed() {
        let base = tempfile::tempdir().expect("makes a directory");
        let dirs = Dirs::open(base.path()).expect("opens");
        let spec = |name| ContainerSpec::new(Handle::new(name).expect("a good handle"));
        let whole = dirs.draft(&spec("whole")).expect("makes");
        dirs.keep(&whole).expect("keeps");
        let half = dirs.draft(&spec("half")).expect("makes");
        let again = dirs.draft(&spec("half"));
        assert!(matches!(again, Err(DriverError::Exists { .. })), "{again:?}");
        assert!(dirs.abandoned().expect("looks").is_empty(), "it is being made");
        drop(half);
        let abandoned = dirs.abandoned().expect("looks");
        assert_eq!(abandoned.len(), 1);
        assert!(abandoned.iter().all(|draft| draft.remove().is_ok()));
        assert!(!base.path().join(".new-half").exists(), "the draft is still there");
        assert_eq!(dirs.handles().expect("lists"), [spec("whole").handle]);
    }
}
