//! Starting processes in containers.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use super::Inner;
use super::cgroup::Cgroups;
use super::container::{Place, processes};
use super::wire::Order;
use crate::driver::{Started, Target, Terminal};
use crate::error::{Context as _, DriverError, Result, StartFault};
use crate::oci::bundle;
use crate::shim::{Inside, Launch, Request};
use crate::spec::{ContainerSpec, Handle, ProcessId, ProcessSpec};
use crate::supervised::{Starting, locked};

/// Bytes of message queues of all containers, whose root is the machine's: half of what root has.
const MESSAGE_QUEUE_BYTES: u64 = bundle::MESSAGE_QUEUE_BYTES / 2;

/// The environment variables that mark the processes of a container, or of one process in it.
pub(super) fn marks(handle: &Handle, process: Option<&ProcessId>) -> BTreeMap<String, String> {
    let mut marks = BTreeMap::from([("SHORE_CONTAINER".to_owned(), handle.to_string())]);
    marks.extend(process.map(|process| ("SHORE_PROCESS".to_owned(), process.to_string())));
    marks
}

impl Inner {
    pub(super) async fn start(
        self: &Arc<Self>,
        handle: &Handle,
        spec: ProcessSpec,
    ) -> Result<Started> {
        spec.check()?;
        let place = self.up(handle).await?;
        let lock = self.kept.lock_of(handle);
        let _together = lock.read().await;
        let container = self.kept.dirs.meta(handle)?;
        if self.kept.dirs.process(handle, &spec.id).exists() {
            return Err(DriverError::Exists { what: "process", name: spec.id.to_string() });
        }
        let _starting = Starting::new(&self.kept, handle, &spec.id);
        let state_dir = self.kept.dirs.create_process(handle, &spec.id)?;
        let order = order(&container, &spec, None);
        let _room = self.make_room(&container, &place)?;
        let oom_file = Cgroups::of(place.first.pid).ok().and_then(|groups| groups.oom_file());
        let inside = Inside { first: place.first, order, oom_file };
        let request = Request { state_dir: state_dir.clone(), launch: Launch::Inside(inside) };
        let fault = match self.kept.supervise(marks(handle, Some(&spec.id)), &request).await {
            Ok(processes) => {
                return Ok(Started { pid: Some(processes.command.pid.cast_unsigned()) });
            }
            Err(fault) => fault,
        };
        if matches!(fault, StartFault::Supervisor(_)) {
            self.kill(handle, &Target::One(spec.id.clone())).await?;
        }
        fs::remove_dir_all(&state_dir).context(|| format!("forget process {}", spec.id))?;
        Err(DriverError::Start { command: spec.argv.first().cloned().unwrap_or_default(), fault })
    }

    /// Lets one more launcher be in a container. Launchers are no processes of it: its limit grows
    /// with their number.
    pub(super) fn make_room(&self, container: &ContainerSpec, place: &Place) -> Result<Room<'_>> {
        let room = Room { inner: self, handle: container.handle.clone() };
        let mut launching = locked(&self.launching);
        *launching.entry(room.handle.clone()).or_default() += 1;
        let known = self.launchers(&room.handle).filter(|launcher| launcher.runs()).count();
        let soon = launching.get(&room.handle).copied().unwrap_or_default();
        let own = 1 + soon + u64::try_from(known).unwrap_or(u64::MAX);
        let most = processes(container.limits).saturating_add(own);
        let set = Cgroups::of(place.first.pid).and_then(|groups| groups.limit_processes(most));
        drop(launching);
        set.context(|| format!("limit the processes of {}", container.handle))?;
        Ok(room)
    }

    /// Where a container is, which runs from now on.
    pub(super) async fn up(self: &Arc<Self>, handle: &Handle) -> Result<Place> {
        self.kept.dirs.meta(handle)?;
        if let Some(place) = self.running(handle) {
            return Ok(place);
        }
        let alone = self.kept.lock_of(handle).write_owned().await;
        let name = handle.clone();
        self.work(move |inner| {
            let revived = inner.revive(&name);
            drop(alone);
            revived
        })
        .await
    }
}

/// A launcher that is about to be.
pub(super) struct Room<'a> {
    inner: &'a Inner,
    handle: Handle,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let mut launching = locked(&self.inner.launching);
        if let Some(count) = launching.get_mut(&self.handle) {
            *count -= 1;
        }
        launching.retain(|_, count| *count > 0);
    }
}

/// A process as the first one of its container is told.
pub(super) fn order(
    container: &ContainerSpec,
    spec: &ProcessSpec,
    terminal: Option<Terminal>,
) -> Order {
    let mut env = container.env.clone();
    env.extend(spec.env.clone());
    let mut env = bundle::environment(&env);
    env.extend(marks(&container.handle, Some(&spec.id)));
    let limits = spec.limits.or(container.limits);
    // The container has a limit of files of its own, which Docker gave it.
    let limits = bundle::process_limits(&limits, u64::MAX, MESSAGE_QUEUE_BYTES);
    Order {
        dir: spec.dir.clone().unwrap_or_else(|| "/".to_owned()),
        user: spec.user.or(container.user).map(|user| (user.uid, user.gid)),
        terminal: terminal.map(|terminal| (terminal.columns, terminal.rows)),
        limits: limits.map(bundle::ProcessLimit::numbers).collect(),
        argv: spec.argv.clone(),
        env: env.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
    }
}
