//! Making and removing containers, and bringing stopped ones up again.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::client::{Body, escaped};
use super::{Inner, inside, wire};
use crate::error::{Context as _, DriverError, Result};
use crate::oci::layers::bring_a_system;
use crate::oci::{bundle, seccomp};
use crate::proc::Id;
use crate::shim::write_whole;
use crate::spec::{ContainerSpec, Handle, Limits, Mount, PLATFORM_BYTES, PLATFORM_DIR};
use crate::supervised::{Draft, tree};

/// The file that says where a container is in Docker.
const PLACE_FILE: &str = "docker.json";
/// How long the first process may take to listen.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);
/// Bytes of the directory the first process listens in.
const SOCKET_DIR_BYTES: u64 = 64 << 10;
/// The least memory Docker gives.
const LEAST_MEMORY_BYTES: u64 = 6 << 20;
/// The period processor time is given out in, and the least of it, in microseconds.
const CPU_PERIOD: u64 = 100_000;
const LEAST_CPU_QUOTA: u64 = 1_000;
/// What root in a container may do beyond other users, of what the kernel has names for.
const CAPABILITIES: [&str; 8] =
    ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID"];
/// The label with whose container it is, the one with its handle.
const OWNER_LABEL: &str = "longshore.owner";
const HANDLE_LABEL: &str = "longshore.handle";

/// Where a container is, as long as it runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Place {
    /// The run of the machine it belongs to.
    boot: String,
    /// Its first process.
    pub(super) first: Id,
    /// Its address.
    pub(super) address: IpAddr,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    state: State,
    network_settings: NetworkSettings,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    #[serde(default)]
    running: bool,
    #[serde(default)]
    pid: i32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    #[serde(default)]
    networks: std::collections::BTreeMap<String, Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    #[serde(default, rename = "IPAddress")]
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    image: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Sized {
    #[serde(default)]
    size_rw: u64,
}

impl Inner {
    /// The name of a container in Docker. It tells nobody what it runs: containers of one network
    /// can look up each other's names.
    pub(super) fn name(&self, handle: &Handle) -> String {
        let mut digest = hex::encode(Sha256::digest(format!("{}/{handle}", self.owner)));
        digest.truncate(24);
        format!("longshore-{digest}")
    }

    pub(super) fn create(&self, spec: &ContainerSpec) -> Result<()> {
        spec.check()?;
        let draft = self.kept.dirs.draft(spec)?;
        let made = self.make(spec, &draft).and_then(|()| self.kept.dirs.keep(&draft));
        if made.is_err() {
            self.give_up(&draft);
        }
        made
    }

    fn make(&self, spec: &ContainerSpec, draft: &Draft) -> Result<()> {
        let name = self.name(&spec.handle);
        let context = || format!("create container {}", spec.handle);
        // A draft that was given up may have left one.
        self.discard(&spec.handle)?;
        self.ensure_network()?;
        self.images.with(&self.client, &spec.root.layers, |image| {
            let address = self.subnet.free_address(&self.client)?;
            let wanted = self.wanted(spec, image, address);
            let made: std::result::Result<Value, _> =
                self.client.post(&format!("/containers/create?name={name}"), &wanted);
            made.map(drop).context(context)
        })?;
        self.bring_up(&spec.handle, spec, &draft.dir)
    }

    /// Starts a container that does not run, and writes down where it is.
    fn bring_up(&self, handle: &Handle, spec: &ContainerSpec, dir: &Path) -> Result<()> {
        let name = self.name(handle);
        let begin = || {
            self.client.send("POST", &format!("/containers/{name}/start"), &Body::Empty)?;
            let found: Inspected = self.client.get(&format!("/containers/{name}/json"))?;
            let place = self.place(&found)?;
            until_it_listens(place.first)?;
            Ok::<_, io::Error>(place)
        };
        let place = begin().context(|| format!("start container {handle}"))?;
        self.subnet.allow(place.address, &spec.egress)?;
        write_whole(dir, PLACE_FILE, &place).context(|| format!("note container {handle}"))
    }

    fn place(&self, found: &Inspected) -> io::Result<Place> {
        let elsewhere =
            || io::Error::other("it does not run, or the daemon is on another machine than this");
        let first = Some(found.state.pid).filter(|pid| found.state.running && *pid > 0);
        let first = first.and_then(Id::of).ok_or_else(elsewhere)?;
        let endpoint = found.network_settings.networks.get(&self.subnet.name);
        let address = endpoint.and_then(|endpoint| endpoint.address.parse().ok());
        let address = address.ok_or_else(|| io::Error::other("it has no address"))?;
        Ok(Place { boot: crate::proc::boot_id()?, first, address })
    }

    /// Where a container is, if it runs.
    pub(super) fn running(&self, handle: &Handle) -> Option<Place> {
        let text = fs::read(self.kept.dirs.container(handle).join(PLACE_FILE)).ok()?;
        let place: Place = serde_json::from_slice(&text).ok()?;
        let here = place.boot == crate::proc::boot_id().ok()?;
        (here && place.first.runs()).then_some(place)
    }

    /// Where a container is; one that was stopped, by a restart of the machine or of Docker for
    /// example, is brought up. The caller must be alone with it.
    pub(super) fn revive(&self, handle: &Handle) -> Result<Place> {
        let spec = self.kept.dirs.meta(handle)?;
        if self.running(handle).is_none() {
            tracing::info!(%handle, "the container does not run: starting it");
            self.ensure_network()?;
            self.bring_up(handle, &spec, &self.kept.dirs.container(handle))?;
        }
        self.running(handle).ok_or_else(|| {
            DriverError::io(
                format!("start container {handle}"),
                io::Error::other("it ended at once"),
            )
        })
    }

    /// Removes what Docker has of a container.
    fn discard(&self, handle: &Handle) -> Result<()> {
        let path = format!("/containers/{}?force=1&v=1", self.name(handle));
        let removed = match self.client.delete(&path) {
            Err(refusal) if refusal.is_missing() => return Ok(()),
            // It is being removed already: by an agent that died, or by a person.
            Err(refusal) if refusal.is_conflict() => self.until_gone(handle),
            other => other.context(|| format!("remove container {handle}")),
        };
        if removed.is_ok() {
            return removed;
        }
        // Docker cannot delete directories that are nested very deep. It stopped the container first.
        self.delete_files(handle)?;
        match self.client.delete(&path) {
            Err(refusal) if refusal.is_missing() => Ok(()),
            other => other.context(|| format!("remove container {handle}")),
        }
    }

    /// Deletes what a stopped container wrote, where its files are on this machine.
    fn delete_files(&self, handle: &Handle) -> Result<()> {
        let context = || format!("delete the files of {handle}");
        let path = format!("/containers/{}/json", self.name(handle));
        let found: Value = self.client.get(&path).context(context)?;
        let runs = found["State"]["Running"].as_bool().unwrap_or(true);
        match found["GraphDriver"]["Data"]["UpperDir"].as_str().map(Path::new) {
            Some(dir) if !runs && dir.is_dir() => tree::remove_contents(dir).context(context),
            _ => Ok(()),
        }
    }

    fn until_gone(&self, handle: &Handle) -> Result<()> {
        let path = format!("/containers/{}/json", self.name(handle));
        let deadline = runtime::mono_now() + LISTEN_LIMIT;
        loop {
            match self.client.get::<Value>(&path) {
                Err(refusal) if refusal.is_missing() => return Ok(()),
                Err(refusal) => return Err(refusal).context(|| format!("remove {handle}")),
                Ok(_) if runtime::mono_now() < deadline => runtime::pause_thread(PAUSE),
                Ok(_) => {
                    let limit_ms = u64::try_from(LISTEN_LIMIT.as_millis()).unwrap_or(u64::MAX);
                    return Err(DriverError::Timeout { what: "removing a container", limit_ms });
                }
            }
        }
    }

    fn give_up(&self, draft: &Draft) {
        let remove = || {
            self.discard(&draft.handle)?;
            draft.remove().context(|| format!("remove {}", draft.dir.display()))?;
            self.images.tidy(&self.client, &self.images_in_use()?)
        };
        if let Err(error) = remove() {
            tracing::warn!(handle = %draft.handle, %error, "a container half made is left");
        }
    }

    /// Removes a container with everything that was made for it.
    pub(super) fn remove(&self, handle: &Handle) -> Result<()> {
        let at = self.kept.dirs.container(handle);
        if !at.exists() {
            return Ok(());
        }
        let place = fs::read(at.join(PLACE_FILE)).ok();
        let place: Option<Place> = place.and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(place) = place {
            self.subnet.forbid(place.address)?;
        }
        self.discard(handle)?;
        self.kept.disk.forget(handle);
        let trash = self.kept.dirs.trash();
        let remove = || tree::remove(&tree::move_into(&at, &trash)?);
        remove().context(|| format!("remove container {handle}"))?;
        self.images.tidy(&self.client, &self.images_in_use()?)
    }

    fn own(&self) -> io::Result<Vec<Listed>> {
        let label = format!("{OWNER_LABEL}={}", self.owner);
        let filter = escaped(&json!({ "label": [label] }).to_string());
        Ok(self.client.get(&format!("/containers/json?all=1&filters={filter}"))?)
    }

    fn images_in_use(&self) -> Result<BTreeSet<String>> {
        let own = self.own().context(|| "list containers".to_owned())?;
        Ok(own.into_iter().map(|found| found.image).collect())
    }

    /// Removes containers of ours that nobody knows any more, and what agents that died were
    /// making.
    pub(super) fn sweep(&self) -> Result<()> {
        for draft in self.kept.dirs.abandoned()? {
            self.give_up(&draft);
        }
        let own = self.own().context(|| "list containers".to_owned())?;
        // Those that are made while this looks have a draft already.
        let known = self.kept.dirs.handles_with_drafts()?;
        let known: BTreeSet<String> = known.iter().map(|handle| self.name(handle)).collect();
        for name in own.iter().flat_map(|found| &found.names) {
            let name = name.trim_start_matches('/');
            if !known.contains(name) {
                tracing::info!(name, "removing a container nobody knows");
                match self.client.delete(&format!("/containers/{name}?force=1&v=1")) {
                    // Somebody else does that right now.
                    Err(refusal) if refusal.is_missing() || refusal.is_conflict() => {}
                    other => other.context(|| format!("remove container {name}"))?,
                }
            }
        }
        Ok(())
    }

    /// Makes the network containers are in, or finds it.
    fn ensure_network(&self) -> Result<()> {
        if self.subnet.ensure(&self.client)? { self.allow_all() } else { Ok(()) }
    }

    /// Puts rules for the network back that another program removed, while containers run.
    pub(super) fn mend(&self) -> Result<()> {
        let handles = self.kept.dirs.handles()?;
        let needed = handles.iter().any(|handle| self.running(handle).is_some());
        if needed && self.subnet.mend()? {
            tracing::warn!("another program removed the rules of containers: they were made again");
            self.allow_all()?;
        }
        Ok(())
    }

    /// Sets the rules of every container that runs.
    fn allow_all(&self) -> Result<()> {
        for handle in self.kept.dirs.handles()? {
            if let (Some(place), Ok(spec)) = (self.running(&handle), self.kept.dirs.meta(&handle)) {
                self.subnet.allow(place.address, &spec.egress)?;
            }
        }
        Ok(())
    }

    /// Bytes a container has written to its own layer.
    pub(super) fn disk_bytes(&self, handle: &Handle) -> u64 {
        let path = format!("/containers/{}/json?size=1", self.name(handle));
        self.client.get::<Sized>(&path).map_or(0, |found| found.size_rw)
    }

    fn wanted(&self, spec: &ContainerSpec, image: &str, address: Ipv4Addr) -> Value {
        json!({
            "Image": image,
            "Hostname": "container",
            "User": "0:0",
            "WorkingDir": "/",
            "Entrypoint": [wire::PROGRAM],
            "Cmd": [],
            "Env": [],
            // Nobody asks the first process to end itself.
            "StopSignal": "SIGKILL",
            "Labels": { OWNER_LABEL: self.owner, HANDLE_LABEL: spec.handle.as_str() },
            "HostConfig": self.host_config(spec),
            "NetworkingConfig": { "EndpointsConfig": { &self.subnet.name: {
                "IPAMConfig": { "IPv4Address": address },
            } } },
        })
    }

    fn host_config(&self, spec: &ContainerSpec) -> Value {
        let base =
            if bring_a_system(&spec.root.layers) { &[] } else { self.base_mounts.as_slice() };
        let program = Mount {
            source: self.program.clone(),
            target: wire::PROGRAM.to_owned(),
            read_only: true,
        };
        let mounts: Vec<Value> =
            [&program].into_iter().chain(base).chain(&spec.mounts).map(mount).collect();
        let socket_dir = wire::SOCKET.rsplit_once('/').map_or("/", |(dir, _)| dir);
        let mut memory_dirs = json!({
            socket_dir: format!("rw,nosuid,nodev,noexec,mode=0700,size={SOCKET_DIR_BYTES}"),
        });
        if let Some(bytes) = spec.root.tmp_bytes {
            memory_dirs["/tmp"] = format!("rw,nosuid,nodev,exec,mode=1777,size={bytes}").into();
        }
        if spec.root.read_only {
            memory_dirs[PLATFORM_DIR] =
                format!("rw,nosuid,nodev,noexec,mode=0755,size={PLATFORM_BYTES}").into();
        }
        let mut config = json!({
            "Mounts": mounts,
            "Tmpfs": memory_dirs,
            "ReadonlyRootfs": spec.root.read_only,
            "NetworkMode": self.subnet.name,
            "CapDrop": ["ALL"],
            "CapAdd": CAPABILITIES,
            "SecurityOpt": ["no-new-privileges", format!("seccomp={}", seccomp::profile())],
            "Privileged": false,
            "MaskedPaths": bundle::MASKED,
            // Beyond Docker's own list, the directory above the control groups of version 1.
            "ReadonlyPaths": bundle::READ_ONLY,
            "IpcMode": "private",
            "RestartPolicy": { "Name": "no" },
            "LogConfig": { "Type": "none" },
        });
        if Path::new("/proc/sys/net/ipv6").exists() {
            config["Sysctls"] = json!({ "net.ipv6.conf.all.disable_ipv6": "1" });
        }
        self.limit(&mut config, spec.limits);
        config
    }

    fn limit(&self, config: &mut Value, limits: Limits) {
        if let Some(bytes) = limits.memory_bytes.map(|bytes| bytes.max(LEAST_MEMORY_BYTES)) {
            config["Memory"] = bytes.into();
            // Memory and swap together: there is no swap.
            config["MemorySwap"] = bytes.into();
        }
        if let Some(millis) = limits.cpu_millis {
            let quota = millis.saturating_mul(CPU_PERIOD) / 1_000;
            config["CpuPeriod"] = CPU_PERIOD.into();
            config["CpuQuota"] = quota.max(LEAST_CPU_QUOTA).into();
            config["CpuShares"] = (millis.saturating_mul(1_024) / 1_000).clamp(2, 262_144).into();
        }
        config["PidsLimit"] = processes(limits).saturating_add(1).into();
        if let Some(bytes) = limits.disk_bytes.filter(|_| self.facts().has_quota) {
            config["StorageOpt"] = json!({ "size": bytes.to_string() });
        }
    }
}

/// How many processes and threads a container may have, without its first.
pub(super) fn processes(limits: Limits) -> u64 {
    limits.processes.unwrap_or(bundle::PROCESSES)
}

fn mount(mount: &Mount) -> Value {
    json!({
        "Type": "bind",
        "Source": mount.source,
        "Target": mount.target,
        "ReadOnly": mount.read_only,
        "BindOptions": { "Propagation": "rprivate" },
    })
}

/// Waits until the first process of a container can be asked.
fn until_it_listens(first: Id) -> io::Result<()> {
    let socket = inside::socket(first);
    let deadline = runtime::mono_now() + LISTEN_LIMIT;
    while !socket.exists() {
        if !first.runs() {
            return Err(io::Error::other("its first process ended at once"));
        }
        if runtime::mono_now() >= deadline {
            return Err(io::Error::other("its first process does not listen"));
        }
        runtime::pause_thread(PAUSE);
    }
    Ok(())
}
