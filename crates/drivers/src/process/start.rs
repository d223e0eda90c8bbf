//! Starts a process through a supervisor.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use super::Inner;
use crate::driver::{Started, Target};
use crate::error::{Context as _, DriverError, Result, StartFault};
use crate::open_files;
use crate::shim::{Direct, Launch, Request};
use crate::spec::{ContainerSpec, Handle, PATH, ProcessId, ProcessSpec, User};
use crate::supervised::Starting;

/// The environment variables that mark every process of a container, and only of it. They are how
/// processes are found that escaped from everything else.
pub(super) fn markers(
    inner: &Inner,
    handle: &Handle,
    process: Option<&ProcessId>,
) -> BTreeMap<String, String> {
    let mut markers = BTreeMap::from([
        ("SHORE_CONTAINER".to_owned(), handle.to_string()),
        ("SHORE_ROOT".to_owned(), inner.kept.dirs.root(handle).display().to_string()),
    ]);
    if let Some(process) = process {
        markers.insert("SHORE_PROCESS".to_owned(), process.to_string());
    }
    markers
}

impl Inner {
    pub(super) async fn start(
        self: &Arc<Self>,
        handle: &Handle,
        spec: ProcessSpec,
    ) -> Result<Started> {
        spec.check()?;
        check_user(spec.user)?;
        let lock = self.kept.lock_of(handle);
        let _together = lock.read().await;
        let container = self.kept.dirs.meta(handle)?;
        if self.kept.dirs.process(handle, &spec.id).exists() {
            return Err(DriverError::Exists { what: "process", name: spec.id.to_string() });
        }
        let _starting = Starting::new(&self.kept, handle, &spec.id);
        let state_dir = self.kept.dirs.create_process(handle, &spec.id)?;
        let marks = markers(self, handle, Some(&spec.id));
        let launch = Launch::Direct(self.direct(&container, &spec, marks.clone()).await?);
        let request = Request { state_dir: state_dir.clone(), launch };
        let fault = match self.kept.supervise(marks, &request).await {
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

    /// A process as a command of this machine, which finds `marks` in its environment.
    pub(super) async fn direct(
        self: &Arc<Self>,
        container: &ContainerSpec,
        spec: &ProcessSpec,
        marks: BTreeMap<String, String>,
    ) -> Result<Direct> {
        let (inner, container, spec) = (Arc::clone(self), container.clone(), spec.clone());
        let find = move || inner.find_direct(&container, &spec, marks);
        self.kept.tasks.blocking(find).await
    }

    fn find_direct(
        &self,
        container: &ContainerSpec,
        spec: &ProcessSpec,
        marks: BTreeMap<String, String>,
    ) -> Result<Direct> {
        let handle = &container.handle;
        let dir = self.kept.dirs.host_path(handle, spec.dir.as_deref().unwrap_or("/"));
        fs::create_dir_all(&dir).context(|| format!("make {}", dir.display()))?;
        let within = |name: &str| self.kept.dirs.host_path(handle, name).display().to_string();
        let mut env = BTreeMap::from([
            ("PATH".to_owned(), PATH.to_owned()),
            ("HOME".to_owned(), within("home")),
            ("TMPDIR".to_owned(), within("tmp")),
        ]);
        env.extend(container.env.clone());
        env.extend(spec.env.clone());
        env.extend(marks);
        let mut argv = spec.argv.clone();
        for program in argv.iter_mut().take(1).filter(|program| program.starts_with('/')) {
            let mapped = self.kept.dirs.host_path(handle, program);
            if let Some(mapped) = mapped.to_str().filter(|_| mapped.symlink_metadata().is_ok()) {
                mapped.clone_into(program);
            }
        }
        let limits = spec.limits.or(container.limits);
        Ok(Direct { argv, dir, env, limits, usual_open_files: open_files::found() })
    }
}

pub(super) fn check_user(user: Option<User>) -> Result<()> {
    let own =
        User { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    if user.is_some_and(|other| other != own) {
        return Err(DriverError::Unsupported(
            "processes run as the agent's user; another user needs the oci driver".to_owned(),
        ));
    }
    Ok(())
}
