//! Starts a process through a supervisor.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Access, access};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::{Inner, locked};
use crate::driver::{Started, Target};
use crate::error::{Context as _, DriverError, Result, StartFault};
use crate::open_files;
use crate::shim::{self, Processes, Reply, Request};
use crate::spec::{ContainerSpec, Handle, ProcessId, ProcessSpec, User};

/// How long a supervisor may take to start a command.
const START_LIMIT: Duration = Duration::from_secs(10);
/// The longest reply of a supervisor.
const MAX_REPLY_BYTES: u64 = 64 << 10;
/// The name supervisors have in process lists.
const SUPERVISOR_NAME: &str = "longshore-supervisor";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why this driver cannot work here, if so.
pub(super) fn unavailable(supervisor: &Path) -> Option<String> {
    if access(supervisor, Access::EXEC_OK).is_err() {
        return Some(format!("{} cannot be executed", supervisor.display()));
    }
    let own = crate::proc::Id::of(std::process::id().cast_signed());
    match own.map(crate::proc::Id::open) {
        None => Some("/proc is not mounted".to_owned()),
        Some(Err(error)) => Some(format!("process descriptors (Linux 5.3) are missing: {error}")),
        Some(Ok(_)) => None,
    }
}

/// The environment variables that mark every process of a container, and only of it. They are how
/// processes are found that escaped from everything else.
pub(super) fn markers(
    inner: &Inner,
    handle: &Handle,
    process: Option<&ProcessId>,
) -> BTreeMap<String, String> {
    let mut markers = BTreeMap::from([
        ("SHORE_CONTAINER".to_owned(), handle.to_string()),
        ("SHORE_ROOT".to_owned(), inner.dirs.root(handle).display().to_string()),
    ]);
    if let Some(process) = process {
        markers.insert("SHORE_PROCESS".to_owned(), process.to_string());
    }
    markers
}

/// Hides a process from `list` while its start is under way.
struct Starting<'a> {
    inner: &'a Inner,
    key: (Handle, ProcessId),
}

impl<'a> Starting<'a> {
    fn new(inner: &'a Inner, handle: &Handle, process: &ProcessId) -> Self {
        let key = (handle.clone(), process.clone());
        locked(&inner.starting).insert(key.clone());
        Self { inner, key }
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        locked(&self.inner.starting).remove(&self.key);
    }
}

impl Inner {
    pub(super) async fn start(
        self: &Arc<Self>,
        handle: &Handle,
        spec: ProcessSpec,
    ) -> Result<Started> {
        spec.check()?;
        check_user(spec.user)?;
        let lock = self.lock_of(handle);
        let _together = lock.read().await;
        let container = self.dirs.meta(handle)?;
        if self.dirs.process(handle, &spec.id).exists() {
            return Err(DriverError::Exists { what: "process", name: spec.id.to_string() });
        }
        let _starting = Starting::new(self, handle, &spec.id);
        let state_dir = self.dirs.create_process(handle, &spec.id)?;
        let request = self.request(&container, &spec, &state_dir)?;
        let fault = match self.supervise(handle, &spec.id, &request).await {
            Ok(processes) => {
                return Ok(Started { pid: Some(processes.command.pid.cast_unsigned()) });
            }
            Err(fault) => fault,
        };
        if matches!(fault, StartFault::Supervisor(_)) {
            self.kill(handle, Target::One(spec.id.clone())).await?;
        }
        fs::remove_dir_all(&state_dir).context(|| format!("forget process {}", spec.id))?;
        Err(DriverError::Start { command: spec.argv.first().cloned().unwrap_or_default(), fault })
    }

    fn request(
        &self,
        container: &ContainerSpec,
        spec: &ProcessSpec,
        state_dir: &Path,
    ) -> Result<Request> {
        let handle = &container.handle;
        let dir = self.dirs.host_path(handle, spec.dir.as_deref().unwrap_or("/"));
        fs::create_dir_all(&dir).context(|| format!("make {}", dir.display()))?;
        let within = |name: &str| self.dirs.host_path(handle, name).display().to_string();
        let mut env = BTreeMap::from([
            ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
            ("HOME".to_owned(), within("home")),
            ("TMPDIR".to_owned(), within("tmp")),
        ]);
        env.extend(container.env.clone());
        env.extend(spec.env.clone());
        env.extend(markers(self, handle, Some(&spec.id)));
        let mut argv = spec.argv.clone();
        for program in argv.iter_mut().take(1).filter(|program| program.starts_with('/')) {
            let mapped = self.dirs.host_path(handle, program);
            if let Some(mapped) = mapped.to_str().filter(|_| mapped.symlink_metadata().is_ok()) {
                mapped.clone_into(program);
            }
        }
        let limits = spec.limits.or(container.limits);
        let usual_open_files = open_files::found();
        Ok(Request { state_dir: state_dir.to_owned(), argv, dir, env, limits, usual_open_files })
    }

    async fn supervise(
        &self,
        handle: &Handle,
        process: &ProcessId,
        request: &Request,
    ) -> std::result::Result<Processes, StartFault> {
        let ask = async {
            let log = File::create(request.state_dir.join("supervisor.log"))?;
            let mut supervisor = Command::new(&self.supervisor)
                .arg0(SUPERVISOR_NAME)
                .arg(shim::ARGUMENT)
                .env_clear()
                .envs(markers(self, handle, Some(process)))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(log)
                .spawn()?;
            let pipes = supervisor.stdin.take().zip(supervisor.stdout.take());
            let (mut stdin, stdout) = pipes.ok_or_else(|| io::Error::other("no pipes"))?;
            stdin.write_all(&serde_json::to_vec(request)?).await?;
            drop(stdin);
            let mut text = Vec::new();
            stdout.take(MAX_REPLY_BYTES).read_to_end(&mut text).await?;
            serde_json::from_slice(&text).map_err(io::Error::from)
        };
        match runtime::timeout(START_LIMIT, ask).await {
            Some(Ok(Reply::Started(processes))) => Ok(processes),
            Some(Ok(Reply::Failed(fault))) => Err(fault),
            Some(Err(error)) => Err(StartFault::Supervisor(error.to_string())),
            None => Err(StartFault::Supervisor("it does not answer".to_owned())),
        }
    }
}

fn check_user(user: Option<User>) -> Result<()> {
    let own =
        User { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    if user.is_some_and(|other| other != own) {
        return Err(DriverError::Unsupported(
            "processes run as the agent's user; another user needs the oci driver".to_owned(),
        ));
    }
    Ok(())
}
