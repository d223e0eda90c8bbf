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

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::driver::{ContainerInfo, Exit, ProcessInfo, ProcessState};
use crate::error::{Context as _, DriverError, Result};
use crate::proc;
use crate::shim::{EXIT_FILE, Ended, Processes, STARTED_FILE, write_whole};
use crate::spec::{ContainerSpec, Handle, ProcessId};

const META_FILE: &str = "meta.json";
const TRASH: &str = ".trash";
/// How names of containers begin that are being made.
const DRAFT: &str = ".new-";
/// Directories every root starts with.
const ROOT_DIRS: [&str; 2] = ["home", "tmp"];

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
            remove_drafts(&base)?;
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
        self.container(handle).join("processes").join(id.as_str())
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.base.join(TRASH)
    }

    /// A container's path on the machine. `..` stops at the root.
    pub(crate) fn host_path(&self, handle: &Handle, path: &str) -> PathBuf {
        let mut parts = Vec::new();
        for part in Path::new(path).components() {
            match part {
                Component::Normal(name) => parts.push(name),
                Component::ParentDir => drop(parts.pop()),
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        let mut host = self.root(handle);
        host.extend(parts);
        host
    }

    /// Makes a container in one step: it is there with all its parts, or not at all.
    pub(crate) fn create(&self, spec: &ContainerSpec) -> Result<()> {
        let at = self.container(&spec.handle);
        let context = || format!("create container {}", spec.handle);
        let exists = || DriverError::Exists { what: "container", name: spec.handle.to_string() };
        if at.exists() {
            return Err(exists());
        }
        let draft = self.base.join(format!("{DRAFT}{}", spec.handle));
        make_draft(&draft, spec).context(context)?;
        match fs::rename(&draft, &at) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Err(exists()),
            Err(error) => Err(DriverError::io(context(), error)),
        }
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

    /// All processes of a container.
    pub(crate) fn process_ids(&self, handle: &Handle) -> Vec<ProcessId> {
        let names = names(&self.container(handle).join("processes")).unwrap_or_default();
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

/// How a process ended, if its supervisor wrote that down.
pub(crate) fn ended(dir: &Path) -> Option<Ended> {
    read_json(&dir.join(EXIT_FILE)).ok()?
}

/// Removes what agents that died were making: nobody may ask for the same container again.
fn remove_drafts(base: &Path) -> io::Result<()> {
    for name in names(base)?.iter().filter(|name| name.starts_with(DRAFT)) {
        fs::remove_dir_all(base.join(name))?;
    }
    Ok(())
}

fn make_draft(draft: &Path, spec: &ContainerSpec) -> io::Result<()> {
    if draft.exists() {
        // Making it failed half-way.
        fs::remove_dir_all(draft)?;
    }
    make_private(draft, false)?;
    make_private(&draft.join("processes"), false)?;
    make_private(&draft.join("root"), false)?;
    for dir in ROOT_DIRS {
        make_private(&draft.join("root").join(dir), false)?;
    }
    write_whole(draft, META_FILE, spec)
}

fn make_private(dir: &Path, with_parents: bool) -> io::Result<()> {
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
        let handle = |name| Handle::new(name).expect("a good handle");
        dirs.create(&ContainerSpec::new(handle("whole"))).expect("makes");
        let draft = base.path().join(".new-half");
        make_draft(&draft, &ContainerSpec::new(handle("half"))).expect("makes");
        let dirs = Dirs::open(base.path()).expect("opens again");
        assert!(!draft.exists(), "the draft is still there");
        assert_eq!(dirs.handles().expect("lists"), [handle("whole")]);
    }
}
