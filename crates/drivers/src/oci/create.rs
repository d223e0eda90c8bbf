//! Making containers.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::bundle::{self, Places};
use super::net;
use super::stage::{self, Plan};
use super::{Inner, Place, layers, slots};
use crate::error::{Context as _, DriverError, Result};
use crate::proc::Id;
use crate::shim::write_whole;
use crate::spec::{ContainerSpec, Openings};
use crate::supervised::{Draft, locked, make_private};

/// What belongs to a container outside of its directory.
pub(super) const PLACE_FILE: &str = "place.json";
/// What the runtime complains about, in the container's directory.
const RUNTIME_LOG: &str = "runtime.log";
const PID_FILE: &str = "pid";
const DISK_FILE: &str = "disk";
const CONFIG_FILE: &str = "config.json";
/// The first process of every container.
const IDLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/idle"));
/// How long the runtime may take.
const RUNTIME_LIMIT: Duration = Duration::from_mins(1);
/// How often other filters of the machine are told about ours.
const ACCEPT_PERIOD: Duration = Duration::from_mins(1);
/// Directories of every root, below its layers, with their permissions.
const SKELETON: [(&str, u32); 9] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o1777),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
];
const LAST_TO_BE_KILLED: &str = "-999";
const MAX_HOSTNAME: usize = 63;

impl Inner {
    /// Makes what all containers share.
    pub(super) fn prepare(&self) -> io::Result<()> {
        let idle = self.idle();
        if fs::read(&idle).ok().as_deref() != Some(IDLE) {
            let draft = self.base.join(format!(".idle.{}", std::process::id()));
            fs::write(&draft, IDLE)?;
            fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
            fs::rename(draft, idle)?;
        }
        for (name, mode) in SKELETON {
            let dir = self.skeleton().join(name);
            fs::create_dir_all(&dir)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode))?;
        }
        make_private(&self.runtime_root(), true)?;
        // A runtime enters the root's path on the machine once more, with each process it starts.
        fs::create_dir_all(stage_dir().join(stage::ROOT))?;
        self.slots.make()
    }

    fn idle(&self) -> PathBuf {
        self.base.join(".idle")
    }

    fn skeleton(&self) -> PathBuf {
        self.base.join(".skeleton")
    }

    pub(super) async fn create(self: &Arc<Self>, spec: ContainerSpec) -> Result<()> {
        spec.check()?;
        self.available()?;
        let lock = self.kept.lock_of(&spec.handle);
        let _alone = lock.write().await;
        let (dirs, wanted) = (self.kept.dirs.clone(), spec.clone());
        let draft = Arc::new(self.kept.tasks.blocking(move || dirs.draft(&wanted)).await?);
        let made = self.make(&spec, &draft).await;
        let made = made.and_then(|()| self.kept.dirs.keep(&draft));
        if made.is_err() {
            let (inner, openings) = (Arc::clone(self), spec.openings());
            let undo = move || {
                inner.dismantle(&draft.handle, &draft.dir, &openings)?;
                draft.remove()?;
                inner.leave_nothing()
            };
            if let Err(error) = self.kept.tasks.blocking(undo).await {
                tracing::error!(%error, "what was half-made is left for the next start");
            }
        }
        made
    }

    async fn make(self: &Arc<Self>, spec: &ContainerSpec, draft: &Arc<Draft>) -> Result<()> {
        let context = || format!("create container {}", spec.handle);
        let (inner, wanted, at) = (Arc::clone(self), spec.clone(), Arc::clone(draft));
        let planned = move || inner.plan(&wanted, &at);
        let (mut place, plan) = self.kept.tasks.blocking(planned).await.context(context)?;
        let (inner, openings, slot) = (Arc::clone(self), spec.openings(), place.slot);
        let protect = self.kept.tasks.blocking(move || inner.protect(slot, &openings));
        let (protected, started) = futures_util::future::join(protect, self.stage(&plan)).await;
        protected.context(|| "write the filter rules".to_owned())?;
        let init = started.context(context)?;
        let (inner, at) = (Arc::clone(self), Arc::clone(draft));
        let connect = move || {
            // Killing it, when memory runs out, would gain nothing and end all the others.
            let mortality = format!("/proc/{}/oom_score_adj", init.pid);
            if let Err(error) = fs::write(mortality, LAST_TO_BE_KILLED) {
                tracing::debug!(%error, "the first process is as mortal as others");
            }
            inner.limit_all();
            inner.net.connect(place.slot, init.pid)?;
            place.init = Some(init);
            write_whole(&at.dir, PLACE_FILE, &place)
        };
        self.kept.tasks.blocking(connect).await.context(context)
    }

    /// Takes what the container needs of the machine and writes down what to do.
    fn plan(&self, spec: &ContainerSpec, draft: &Draft) -> io::Result<(Place, Plan)> {
        let holders = [&*draft.dir, &*self.kept.dirs.container(&spec.handle)];
        let slot = self.slots.take(holders)?;
        let disk_bytes = spec.limits.disk_bytes.filter(|_| self.limits_disk);
        let place = Place {
            boot: self.kept.dirs.boot().to_owned(),
            slot,
            first_user: if self.own_users { slot.first_user() } else { 0 },
            init: None,
            own_disk: disk_bytes.is_some(),
        };
        write_whole(&draft.dir, PLACE_FILE, &place)?;
        let mut lower = vec![self.skeleton()];
        for layer in &spec.root.layers {
            lower.push(self.layers.mountable(layer)?);
        }
        let image = disk_bytes.map(|_| draft.dir.join(DISK_FILE));
        if let Some((image, bytes)) = image.as_ref().zip(disk_bytes) {
            self.disks.make(image, bytes)?;
        }
        let first_user = self.own_users.then_some(place.first_user);
        let hostname = hostname(spec.handle.as_str());
        let stage = stage_dir();
        let on_stage = |name: &str| stage.join(name).display().to_string();
        let config = bundle::container(
            spec,
            &Places {
                root: &on_stage(stage::ROOT),
                idle: &on_stage(stage::IDLE),
                group: &format!("{}/{}", self.net.prefix, spec.handle),
                hostname: &hostname,
                first_user,
                users: &on_stage(stage::USERS),
                limits_swap: self.layout.limits_swap(),
                has_ipv6: Path::new("/proc/sys/net/ipv6").exists(),
            },
        );
        fs::write(draft.dir.join(CONFIG_FILE), serde_json::to_vec(&config)?)?;
        let has_system = layers::bring_a_system(&spec.root.layers);
        let base = if has_system { Vec::new() } else { self.base_mounts.clone() };
        let address = self.net.address(slot).to_string();
        let plan = Plan {
            stage,
            container: draft.dir.clone(),
            layers: lower,
            image,
            first_user,
            base,
            mounts: spec.mounts.clone(),
            files: files(&hostname, &address),
            defaults: accounts(),
            idle: self.idle(),
            runtime: self.runtime_command(spec, &draft.dir),
        };
        Ok((place, plan))
    }

    fn runtime_command(&self, spec: &ContainerSpec, dir: &Path) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        vec![
            text(&self.runtime),
            "--root".to_owned(),
            text(&self.runtime_root()),
            "--log".to_owned(),
            text(&dir.join(RUNTIME_LOG)),
            "run".to_owned(),
            "--detach".to_owned(),
            "--bundle".to_owned(),
            text(dir),
            "--pid-file".to_owned(),
            text(&dir.join(PID_FILE)),
            spec.handle.to_string(),
        ]
    }

    /// Sees to it that the rules hold before anything runs.
    fn protect(&self, slot: slots::Slot, openings: &Openings) -> io::Result<()> {
        let _alone = self.network_lock()?;
        self.net.protect(slot, openings)?;
        let mut accepted = locked(&self.accepted);
        let now = runtime::mono_now();
        if accepted.is_none_or(|at| now.saturating_duration_since(at) > ACCEPT_PERIOD) {
            self.net.close()?;
            self.net.accept()?;
            *accepted = Some(now);
        }
        Ok(())
    }

    /// Lays out the root and starts the first process.
    async fn stage(&self, plan: &Plan) -> io::Result<Id> {
        let mut helper = Command::new(self.kept.supervisor())
            .arg(stage::ARGUMENT)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let stdin = helper.stdin.take();
        let work = async {
            if let Some(mut stdin) = stdin {
                stdin.write_all(&serde_json::to_vec(plan)?).await?;
            }
            helper.wait().await
        };
        let status = runtime::timeout(RUNTIME_LIMIT, work).await;
        let status = status.ok_or_else(|| io::Error::other("the runtime does not end"))??;
        if !status.success() {
            return Err(io::Error::other(complaint(&plan.container)));
        }
        let pid = fs::read_to_string(plan.container.join(PID_FILE))?;
        let id = Id::of(pid.trim().parse().map_err(io::Error::other)?);
        id.ok_or_else(|| io::Error::other("its first process ended at once"))
    }
}

/// Where roots are laid out, each in a mount namespace of its own.
fn stage_dir() -> PathBuf {
    Path::new(slots::RUN).join("stage")
}

/// Why a container was not made.
fn complaint(dir: &Path) -> String {
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let text = [stage::COMPLAINT_FILE, RUNTIME_LOG].map(read).concat();
    text.trim().lines().last().unwrap_or("the runtime does not say why").to_owned()
}

/// The container's name in its network: what a host's may be made of, not too long.
fn hostname(handle: &str) -> String {
    let plain = handle.replace(['_', '.'], "-");
    let short: String = plain.chars().take(MAX_HOSTNAME).collect();
    short.trim_end_matches('-').to_owned()
}

/// Files every container has.
fn files(hostname: &str, address: &str) -> Vec<(String, String)> {
    let hosts = format!("127.0.0.1\tlocalhost\n{address}\t{hostname}\n");
    let file = |name: &str, text: String| (name.to_owned(), text);
    vec![
        file("hostname", format!("{hostname}\n")),
        file("hosts", hosts),
        file("resolv.conf", net::resolvers().0),
    ]
}

/// The accounts of an image that brings none.
fn accounts() -> Vec<(String, String)> {
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/sh\n";
    let group = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n";
    vec![("passwd".to_owned(), passwd.to_owned()), ("group".to_owned(), group.to_owned())]
}

impl Inner {
    /// Held while rules of the network are made or removed, by this agent or another.
    pub(super) fn network_lock(&self) -> io::Result<fs::File> {
        let file = fs::File::create(self.base.join(".network"))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(file)
    }
}

/// An error of the driver as one of the system, where both may happen.
pub(super) fn plain(error: DriverError) -> io::Error {
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_is_one() {
        assert_eq!(hostname("web.1_a"), "web-1-a");
        let long = hostname(&format!("{}-{}", "x".repeat(62), "y".repeat(17)));
        assert_eq!(long, "x".repeat(62));
    }
}
