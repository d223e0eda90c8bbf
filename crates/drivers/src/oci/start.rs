//! Starting processes in a container.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::bundle::{self, Command};
use super::files::root_of;
use super::program;
use super::remove::group_name;
use super::stage::Root;
use super::{Inner, Place};
use crate::driver::{Exit, Started, Target, Terminal};
use crate::error::{Context as _, DriverError, Result, StartFault};
use crate::proc::Id;
use crate::shim::{Enter, Launch, Request};
use crate::spec::{ContainerSpec, Handle, Limits, PATH, ProcessId, ProcessSpec, User};
use crate::supervised::Starting;

impl Inner {
    pub(super) async fn start(
        self: &Arc<Self>,
        handle: &Handle,
        spec: ProcessSpec,
    ) -> Result<Started> {
        spec.check()?;
        self.available()?;
        let lock = self.kept.lock_of(handle);
        let _together = lock.read().await;
        let container = self.kept.dirs.meta(handle)?;
        if self.kept.dirs.process(handle, &spec.id).exists() {
            return Err(DriverError::Exists { what: "process", name: spec.id.to_string() });
        }
        let running = self.running(handle)?;
        let _starting = Starting::new(&self.kept, handle, &spec.id);
        let state_dir = self.kept.dirs.create_process(handle, &spec.id)?;
        let fault = match self.begin(&container, &spec, running, &state_dir).await {
            Ok(started) => return Ok(started),
            Err(fault) => fault,
        };
        if matches!(fault, StartFault::Supervisor(_)) {
            self.kill(handle, Target::One(spec.id.clone())).await?;
        }
        self.group(handle).forget_process(&group_name(&spec.id));
        fs::remove_dir_all(&state_dir).context(|| format!("forget process {}", spec.id))?;
        Err(DriverError::Start { command: spec.argv.first().cloned().unwrap_or_default(), fault })
    }

    async fn begin(
        &self,
        container: &ContainerSpec,
        spec: &ProcessSpec,
        (place, init): (Place, Id),
        state_dir: &Path,
    ) -> std::result::Result<Started, StartFault> {
        let prepared = self.prepared(container, spec, (&place, init)).await?;
        let handle = &container.handle;
        let group = self.group(handle);
        let name = group_name(&spec.id);
        group.make_process(&name).map_err(|error| supervisor(&error))?;
        let limits = bundle::rlimits(&prepared.limits);
        let user = prepared.user;
        let launch = Launch::Enter(Enter {
            first: init,
            own_users: place.first_user != 0,
            owner: (place.first_user + user.uid, place.first_user + user.gid),
            groups: group.all_of_process(&name),
            argv: spec.argv.clone(),
            env: bundle::environment(&prepared.env),
            dir: prepared.dir,
            user: (user.uid, user.gid),
            capabilities: bundle::rights(),
            limits: limits.map(bundle::ProcessLimit::numbers).collect(),
            oom_file: group.oom_file(),
        });
        let request = Request { state_dir: state_dir.to_owned(), launch };
        let marks = [("SHORE_CONTAINER".to_owned(), handle.to_string())];
        let processes = self.kept.supervise(marks.into(), &request).await?;
        Ok(Started { pid: Some(processes.command.pid.cast_unsigned()) })
    }

    /// Sees to what a process needs in its container: in the time that its files take.
    async fn prepared(
        &self,
        container: &ContainerSpec,
        spec: &ProcessSpec,
        (place, init): (&Place, Id),
    ) -> std::result::Result<Prepared, StartFault> {
        let (container, spec, place) = (container.clone(), spec.clone(), place.clone());
        let prepare = move || Prepared::new(&container, &spec, (&place, init));
        self.kept.tasks.blocking(prepare).await
    }

    /// What the runtime is told about a process, once all it needs is there.
    pub(super) async fn process(
        &self,
        container: &ContainerSpec,
        spec: &ProcessSpec,
        place: (&Place, Id),
        terminal: Option<Terminal>,
    ) -> std::result::Result<String, StartFault> {
        let prepared = self.prepared(container, spec, place).await?;
        let process = bundle::process(&Command {
            argv: &spec.argv,
            dir: &prepared.dir,
            env: &prepared.env,
            user: prepared.user,
            limits: &prepared.limits,
            terminal,
        });
        Ok(process.to_string())
    }

    /// The runtime's command to start a process, without the container.
    pub(super) fn exec_command(&self, options: &[&str]) -> Vec<String> {
        let mut command = vec![
            self.runtime.display().to_string(),
            "--root".to_owned(),
            self.runtime_root().display().to_string(),
            "exec".to_owned(),
        ];
        command.extend(options.iter().map(|option| (*option).to_owned()));
        command
    }

    /// Waits for the end of a process; what one that lost its supervisor left behind is killed.
    pub(super) async fn wait(
        self: &Arc<Self>,
        handle: &Handle,
        process: &ProcessId,
    ) -> Result<Exit> {
        let exit = self.kept.wait(handle, process).await?;
        if exit == Exit::LOST && self.kept.dirs.container(handle).exists() {
            self.kill(handle, Target::One(process.clone())).await?;
        }
        Ok(exit)
    }
}

/// What is known about a process, once all it needs in its container is there.
struct Prepared {
    user: User,
    dir: String,
    env: BTreeMap<String, String>,
    limits: Limits,
}

impl Prepared {
    fn new(
        container: &ContainerSpec,
        spec: &ProcessSpec,
        (place, init): (&Place, Id),
    ) -> std::result::Result<Self, StartFault> {
        let user = spec.user.or(container.user).unwrap_or(User { uid: 0, gid: 0 });
        if user.uid >= super::slots::USERS || user.gid >= super::slots::USERS {
            return Err(StartFault::Other(format!(
                "user {}:{} is out of range",
                user.uid, user.gid
            )));
        }
        let dir = spec.dir.as_deref().unwrap_or("/");
        let owner = |number: u32| place.first_user + number;
        let root = Root::open(&root_of(init), (owner(user.uid), owner(user.gid)));
        let root = root.map_err(|error| supervisor(&error))?.within(program::SEARCH_LIMIT);
        root.make_dir(Path::new(dir.trim_start_matches('/')))
            .map_err(|error| program::no_directory(dir, &error))?;
        let mut env = container.env.clone();
        env.extend(spec.env.clone());
        let search = env.get("PATH").map_or(PATH, String::as_str);
        let program = spec.argv.first().map_or("", String::as_str);
        program::judge(&root, program, dir, search)?;
        let dir = if dir.starts_with('/') { dir } else { "/" };
        let limits = spec.limits.or(container.limits);
        Ok(Self { user, dir: dir.to_owned(), env, limits })
    }
}

fn supervisor(error: &io::Error) -> StartFault {
    StartFault::Supervisor(error.to_string())
}
