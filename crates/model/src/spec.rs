//! Specs: what to run, with which environment, limits and checks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{Action, ActionError, Check, CrashPolicy, Digest, Name, parse_user};

/// Most environment variables of one container.
pub const MAX_ENV_VARS: usize = 500;
/// Most characters of the name of a variable.
pub const MAX_ENV_NAME: usize = 256;
/// Most bytes of all names and values of one container's environment.
pub const MAX_ENV_BYTES: usize = 128 * 1024;
/// Most instances of one process.
pub const MAX_INSTANCES: u32 = 1_000;

/// Most processes and threads of one container: Linux cannot have more, and its cgroups refuse it.
pub const MAX_PIDS: u64 = 1 << 22;
/// Most CPU shares of one container, 1,024 for each core: Linux refuses more.
pub const MAX_CPU_SHARES: u64 = 1 << 18;
/// Most open files of one process: what Linux allows at most unless it is told otherwise (`nr_open`).
pub const MAX_FILES: u64 = 1 << 20;

/// Resources. Absent: the cell's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Memory in MiB.
    pub memory_mb: Option<u64>,
    /// Disk in MiB.
    pub disk_mb: Option<u64>,
    /// Relative share of CPU time: 1,024 for each core, at most [`MAX_CPU_SHARES`].
    pub cpu_shares: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Open files.
    pub files: Option<u64>,
    /// Bytes of log lines a second; more in short bursts. What exceeds it is dropped and counted.
    pub log_bytes: Option<u64>,
}

/// The box something runs in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// The OCI image manifest in the blob store whose layers make the root; an empty root if absent.
    pub image: Option<Digest>,
    /// Environment, on top of the image's.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Resources.
    #[serde(default)]
    pub limits: Limits,
    /// Directories that live on between containers of the same key on one cell: key to path.
    #[serde(default)]
    pub caches: BTreeMap<String, String>,
    /// Volumes: name to where and how they are mounted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<Name, VolumeMount>,
    /// The driver it must run on; any of a cell's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<Name>,
    /// What the cell must be tagged with.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<Name>,
    /// Connections it may open beyond the usual, where the driver restricts them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressRule>,
    /// Who runs its processes, as `uid` or `uid:gid`; the container's own root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether only volumes, caches and `/tmp` may be written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// MiB of `/tmp`, which then is memory; part of the disk when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tmp_mb: Option<u64>,
}

/// Where a volume is in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeMount {
    /// An absolute path.
    pub path: String,
    /// Whether the container may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// Lets a container open connections that would be refused otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressRule {
    /// An address or a network, as in `10.1.0.0/16`.
    pub to: String,
    /// Which protocol; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<EgressProtocol>,
    /// First and last port, for TCP and UDP; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<(u16, u16)>,
}

/// A protocol of an [`EgressRule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the protocols'")]
pub enum EgressProtocol {
    Tcp,
    Udp,
    Icmp,
}

impl EgressRule {
    /// The address and how many leading bits of it count.
    pub fn network(&self) -> Option<(IpAddr, u8)> {
        let (address, prefix) = match self.to.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (self.to.as_str(), None),
        };
        let address: IpAddr = address.parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(bits), |prefix| prefix.parse().ok())?;
        Some((address, prefix)).filter(|_| prefix <= bits)
    }

    fn validate(&self) -> Result<(), SpecError> {
        let field = "egress rule";
        if self.network().is_none() {
            let reason = "`to` is neither an address nor a network such as 10.1.0.0/16";
            return Err(SpecError::Text { field, reason });
        }
        let has_ports = matches!(self.protocol, Some(EgressProtocol::Tcp | EgressProtocol::Udp));
        if self.ports.is_some() && !has_ports {
            let reason = "`ports` need `protocol`: tcp or udp";
            return Err(SpecError::Text { field, reason });
        }
        if self.ports.is_some_and(|(first, last)| first > last) {
            let reason = "`ports` go from the lower to the higher";
            return Err(SpecError::Text { field, reason });
        }
        Ok(())
    }
}

/// Work to run at most once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// Where.
    pub container: ContainerSpec,
    /// What.
    pub action: Action,
    /// A file read as the result after success.
    pub result_file: Option<String>,
    /// How long it may take, in milliseconds.
    pub timeout_ms: u64,
    /// How long it may wait for a cell, in milliseconds; [`TASK_START_MS`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_timeout_ms: Option<u64>,
    /// Who is told when it has ended, with a signed `POST`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback: Option<String>,
    /// Whether another task follows when it failed; never by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
    /// Words of whoever made it, handed back with its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotation: Option<String>,
}

/// How long a task waits for a cell unless it says otherwise, in milliseconds. Diego's value.
pub const TASK_START_MS: u64 = 1_800_000;

/// Most bytes of a task's annotation.
pub const MAX_ANNOTATION: usize = 10 << 10;
/// The drivers there are.
pub const DRIVERS: [&str; 3] = ["process", "oci", "docker"];

impl RetryPolicy {
    /// The pause after so many attempts, in milliseconds.
    pub fn pause_after(&self, attempts: u32) -> u64 {
        let doubled = 1_u64.checked_shl(attempts.saturating_sub(1)).unwrap_or(u64::MAX);
        self.pause_ms.saturating_mul(doubled).min(DAY_MS)
    }
}

/// When a failed task is followed by a new one that does the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryPolicy {
    /// How many tasks at most, with the first one.
    pub attempts: u32,
    /// The first pause between two, in milliseconds; it doubles each time.
    pub pause_ms: u64,
}

/// A long-running process, wanted N times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessSpec {
    /// Where.
    pub container: ContainerSpec,
    /// The program and its arguments. No shell is involved.
    pub argv: Vec<String>,
    /// The working directory.
    pub dir: Option<String>,
    /// How to know that it lives: it restarts when this fails, and counts as healthy once it passed.
    /// Healthy once started when absent.
    pub check: Option<Check>,
    /// How to know that it has started, where that differs from `check`; that one begins after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<Check>,
    /// How to know that it can take requests: routes point at it only while this passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Check>,
    /// How long it has from the pre-stop hook to KILL, in milliseconds.
    pub stop_grace_ms: u64,
    /// What asks it to end.
    #[serde(default, skip_serializing_if = "StopSignal::is_default")]
    pub stop_signal: StopSignal,
    /// Run in the container before the signal; how it ends does not matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_stop: Option<Vec<String>>,
    /// When it starts again after a crash.
    #[serde(default)]
    pub crash: CrashPolicy,
}

/// A signal that asks a process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the system's")]
pub enum StopSignal {
    #[default]
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
}

impl StopSignal {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl ProcessSpec {
    /// A process with nothing special about it and the usual check.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            container: ContainerSpec::default(),
            argv: argv.into_iter().map(Into::into).collect(),
            dir: None,
            check: Some(Check::default()),
            startup: None,
            readiness: None,
            stop_grace_ms: 10_000,
            stop_signal: StopSignal::Term,
            pre_stop: None,
            crash: CrashPolicy::default(),
        }
    }
}

impl TaskSpec {
    /// A task with nothing special about it.
    pub fn new(action: Action, timeout_ms: u64) -> Self {
        Self {
            container: ContainerSpec::default(),
            action,
            result_file: None,
            timeout_ms,
            start_timeout_ms: None,
            callback: None,
            retry: None,
            annotation: None,
        }
    }
}

/// Why a spec is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The action tree is wrong.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// A variable's name cannot be used.
    #[error(
        "environment variable {0:?} is not allowed: use A-Z, a-z, 0-9 and `_`, no digit first, at \
         most {MAX_ENV_NAME} in all"
    )]
    EnvName(String),
    /// A variable's value cannot be used.
    #[error("the value of environment variable {0} holds a NUL byte")]
    EnvValue(String),
    /// Too much environment.
    #[error(
        "the environment is too large: at most {MAX_ENV_VARS} variables and {MAX_ENV_BYTES} bytes"
    )]
    EnvSize,
    /// A number that makes no sense.
    #[error("{field} is {value}, allowed is {allowed}")]
    Range {
        /// Which field.
        field: &'static str,
        /// What it was.
        value: u64,
        /// What is allowed.
        allowed: &'static str,
    },
    /// Too large as a whole.
    #[error(
        "the spec is too large: it takes {0} bytes as JSON, at most {MAX_SPEC_BYTES} are allowed; \
         put large contents into the image, or into a blob that a download brings"
    )]
    Size(usize),
    /// A path that belongs to the system of the container.
    #[error(
        "{what} cannot be at {path}: that would hide or change the container's own system. Use a \
         directory of its own, such as /data or /var/lib/app"
    )]
    SystemPath {
        /// What was to be there.
        what: String,
        /// Where.
        path: String,
    },
    /// One mount hides another.
    #[error(
        "{what} at {path} and {other} at {other_path} overlap: give each a directory of its own"
    )]
    Overlap {
        /// What is mounted.
        what: String,
        /// Where.
        path: String,
        /// What else is mounted.
        other: String,
        /// Where that is.
        other_path: String,
    },
    /// A text that makes no sense.
    #[error("{field} is not allowed: {reason}")]
    Text {
        /// Which field.
        field: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Most bytes of a task's or a process's spec as JSON. The server keeps specs in memory, and many of
/// them go to a cell at once.
pub const MAX_SPEC_BYTES: usize = 1 << 20;

/// Counts what is written.
struct Counter(usize);

impl std::io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How many bytes something takes as JSON; as many as there are when it cannot be rendered.
pub(crate) fn json_bytes(value: &impl Serialize) -> usize {
    let mut counter = Counter(0);
    serde_json::to_writer(&mut counter, value).map_or(usize::MAX, |()| counter.0)
}

fn validate_size(bytes: usize) -> Result<(), SpecError> {
    if bytes <= MAX_SPEC_BYTES { Ok(()) } else { Err(SpecError::Size(bytes)) }
}

/// Most bytes of log lines a second that a container may ask for: a few of them fill a disk's bandwidth
/// and the stream of their cell.
pub const MAX_LOG_RATE: u64 = 4 << 20;

/// Longest name of a cache: room for the names of a project, an app and a workspace.
pub const MAX_CACHE_KEY: usize = 128;

/// Checks names, values and size of an environment.
pub fn validate_env(env: &BTreeMap<String, String>) -> Result<(), SpecError> {
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    if env.len() > MAX_ENV_VARS || bytes > MAX_ENV_BYTES {
        return Err(SpecError::EnvSize);
    }
    for (name, value) in env {
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !first || !plain || name.len() > MAX_ENV_NAME {
            return Err(SpecError::EnvName(name.chars().take(64).collect()));
        }
        if value.contains('\0') {
            return Err(SpecError::EnvValue(name.clone()));
        }
    }
    Ok(())
}

pub(crate) fn range(
    field: &'static str,
    value: u64,
    bounds: std::ops::RangeInclusive<u64>,
    allowed: &'static str,
) -> Result<(), SpecError> {
    if bounds.contains(&value) { Ok(()) } else { Err(SpecError::Range { field, value, allowed }) }
}

impl Limits {
    fn validate(&self) -> Result<(), SpecError> {
        let (most, any) = (1 << 32, "1 to 4294967296");
        let fields = [
            ("memory_mb", self.memory_mb, most, any),
            ("disk_mb", self.disk_mb, most, any),
            ("cpu_shares", self.cpu_shares, MAX_CPU_SHARES, "1 to 262144, which is 256 cores"),
            ("pids", self.pids, MAX_PIDS, "1 to 4194304"),
            ("files", self.files, MAX_FILES, "1 to 1048576"),
            ("log_bytes", self.log_bytes, MAX_LOG_RATE, "1 to 4194304"),
        ];
        for (field, value, most, allowed) in fields {
            if let Some(value) = value {
                range(field, value, 1..=most, allowed)?;
            }
        }
        Ok(())
    }
}

impl ContainerSpec {
    fn validate(&self) -> Result<(), SpecError> {
        validate_env(&self.env)?;
        self.limits.validate()?;
        for (key, path) in &self.caches {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            if key.is_empty() || key.len() > MAX_CACHE_KEY || !key.chars().all(plain) {
                let reason = "use 1 to 128 of A-Z, a-z, 0-9, `-` and `_`";
                return Err(SpecError::Text { field: "cache key", reason });
            }
            validate_path("cache path", path)?;
        }
        too_many("caches", self.caches.len(), MAX_MOUNTS)?;
        too_many("volumes", self.volumes.len(), MAX_MOUNTS)?;
        too_many("tags", self.tags.len(), MAX_TAGS)?;
        too_many("egress rules", self.egress.len(), MAX_EGRESS_RULES)?;
        for volume in self.volumes.values() {
            validate_path("volume path", &volume.path)?;
        }
        self.validate_mounts()?;
        for rule in &self.egress {
            rule.validate()?;
        }
        if self.driver.as_ref().is_some_and(|driver| !DRIVERS.contains(&driver.as_str())) {
            let reason = "there are process, oci and docker";
            return Err(SpecError::Text { field: "driver", reason });
        }
        if self.user.as_deref().is_some_and(|user| parse_user(user).is_none()) {
            let reason = "it is no `uid` or `uid:gid`";
            return Err(SpecError::Text { field: "user", reason });
        }
        match self.tmp_mb {
            Some(mb) => range("tmp_mb", mb, 1..=1 << 20, "1 to 1048576"),
            None => Ok(()),
        }
    }
}

/// Directories in which the container's system or the platform mounts things: nothing may be at or
/// below them.
const SYSTEM_TREES: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Directories of the container's system, which nothing may replace. Below them a directory of an
/// app's own may be fine.
const SYSTEM_DIRS: [&str; 13] = [
    "/bin",
    "/boot",
    "/etc",
    "/lib",
    "/lib64",
    "/run",
    "/sbin",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/sbin",
    "/var",
];

/// The parts of a path that say where it is.
fn parts(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !matches!(*part, "" | ".")).collect()
}

fn is_system(path: &[&str]) -> bool {
    path.is_empty()
        || SYSTEM_TREES.iter().any(|tree| path.starts_with(&parts(tree)))
        || SYSTEM_DIRS.iter().any(|dir| path == parts(dir))
}

impl ContainerSpec {
    /// Volumes and caches lie beside each other, and volumes on nothing the system needs.
    fn validate_mounts(&self) -> Result<(), SpecError> {
        let volumes = self.volumes.iter().map(|(name, it)| (format!("volume {name}"), &it.path));
        for (what, path) in volumes.clone() {
            if is_system(&parts(path)) {
                return Err(SpecError::SystemPath { what, path: path.clone() });
            }
        }
        let caches = self.caches.iter().map(|(key, path)| (format!("cache {key}"), path));
        let mounts: Vec<_> = volumes.chain(caches).map(|it| (parts(it.1), it)).collect();
        for (at, (own, (what, path))) in mounts.iter().enumerate() {
            let hides = |theirs: &[&str]| own.starts_with(theirs) || theirs.starts_with(own);
            let found = mounts.iter().skip(at + 1).find(|(theirs, _)| hides(theirs));
            if let Some((_, (other, other_path))) = found {
                return Err(SpecError::Overlap {
                    what: what.clone(),
                    path: (*path).clone(),
                    other: other.clone(),
                    other_path: (*other_path).clone(),
                });
            }
        }
        Ok(())
    }
}

/// Most volumes and most caches of one container.
pub const MAX_MOUNTS: usize = 16;
/// Most tags one container may ask for.
pub const MAX_TAGS: usize = 16;
/// Most egress rules of one container.
pub const MAX_EGRESS_RULES: usize = 200;

pub(crate) fn too_many(field: &'static str, count: usize, most: usize) -> Result<(), SpecError> {
    if count <= most {
        Ok(())
    } else {
        Err(SpecError::Text { field, reason: "there are too many" })
    }
}

fn validate_path(field: &'static str, path: &str) -> Result<(), SpecError> {
    let below = path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|part| part != ".."));
    let plain = !path.chars().any(|c| c.is_control() || matches!(c, ':' | ','));
    if below && plain && path.len() <= 4_096 {
        return Ok(());
    }
    let reason = "an absolute path without `..`, `:`, `,` and control characters is wanted";
    Err(SpecError::Text { field, reason })
}

pub(crate) fn validate_argv(field: &'static str, argv: &[String]) -> Result<(), SpecError> {
    let refused = |reason| Err(SpecError::Text { field, reason });
    if argv.first().is_none_or(String::is_empty) {
        return refused("it names no program");
    }
    if argv.iter().map(String::len).sum::<usize>() > crate::MAX_RUN_BYTES {
        return refused("it has more than 128 KiB");
    }
    if argv.iter().any(|argument| argument.contains('\0')) {
        return refused("it holds a NUL byte");
    }
    Ok(())
}

pub(crate) const DAY_MS: u64 = 86_400_000;

impl TaskSpec {
    /// How many bytes it takes as JSON.
    pub fn bytes(&self) -> usize {
        json_bytes(self)
    }

    /// What its JSON hashes to; none when it cannot be rendered.
    pub fn digest(&self) -> Option<Digest> {
        serde_json::to_vec(self).ok().map(|json| Digest::of(&json))
    }

    /// Checks every field.
    pub fn validate(&self) -> Result<(), SpecError> {
        validate_size(self.bytes())?;
        self.container.validate()?;
        self.action.validate()?;
        range("timeout_ms", self.timeout_ms, 1..=DAY_MS, "1 ms to 24 h")?;
        if let Some(path) = &self.result_file {
            validate_path("result_file", path)?;
        }
        if self.annotation.as_ref().is_some_and(|text| text.len() > MAX_ANNOTATION) {
            return Err(SpecError::Text { field: "annotation", reason: "it has more than 10 KiB" });
        }
        if let Some(ms) = self.start_timeout_ms {
            range("start_timeout_ms", ms, 1..=DAY_MS, "1 ms to 24 h")?;
        }
        if let Some(retry) = self.retry {
            range("retry attempts", retry.attempts.into(), 2..=100, "2 to 100")?;
            range("retry pause_ms", retry.pause_ms, 1..=DAY_MS, "1 ms to 24 h")?;
        }
        let is_url = |url: &String| {
            let known = url.starts_with("https://") || url.starts_with("http://");
            let plain = !url.chars().any(|c| c.is_control() || c.is_whitespace());
            known && plain && url.len() <= crate::MAX_URL_BYTES
        };
        if self.callback.as_ref().is_some_and(|url| !is_url(url)) {
            let reason = "a url that starts with `https://` or `http://` is wanted";
            return Err(SpecError::Text { field: "callback", reason });
        }
        Ok(())
    }
}

impl ProcessSpec {
    /// Checks every field.
    pub fn validate(&self) -> Result<(), SpecError> {
        validate_size(json_bytes(self))?;
        self.container.validate()?;
        validate_argv("argv", &self.argv)?;
        if let Some(hook) = &self.pre_stop {
            validate_argv("pre_stop", hook)?;
        }
        range("stop_grace_ms", self.stop_grace_ms, 0..=3_600_000, "0 to 1 h")?;
        for check in [&self.check, &self.startup, &self.readiness].into_iter().flatten() {
            check.validate()?;
        }
        self.crash.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CheckKind;

    fn process() -> ProcessSpec {
        ProcessSpec::new(["app"])
    }

    #[test]
    fn a_plain_process_is_fine() {
        assert_eq!(process().validate(), Ok(()));
    }

    #[test]
    fn a_spec_that_is_too_large_is_refused_with_its_size() {
        let word = "x".repeat(crate::MAX_RUN_BYTES - 1);
        let actions = |count| vec![Action::run([word.clone()]); count];
        let task = |count| TaskSpec::new(Action::Serial { actions: actions(count) }, 1);
        assert_eq!(task(7).validate(), Ok(()));
        let bytes = serde_json::to_vec(&task(8)).expect("renders").len();
        assert!(bytes > MAX_SPEC_BYTES);
        assert_eq!(task(8).validate(), Err(SpecError::Size(bytes)));
        let mut spec = process();
        spec.container.user = Some("1".repeat(MAX_SPEC_BYTES));
        assert!(matches!(spec.validate(), Err(SpecError::Size(_))));
    }

    #[test]
    fn each_bad_field_is_named() {
        let refused = |change: fn(&mut ProcessSpec)| {
            let mut spec = process();
            change(&mut spec);
            spec.validate().expect_err("refused").to_string()
        };
        assert!(refused(|s| s.argv.clear()).contains("argv"));
        assert!(refused(|s| s.stop_grace_ms = u64::MAX).contains("stop_grace_ms"));
        assert!(refused(|s| s.container.limits.memory_mb = Some(0)).contains("memory_mb"));
        let many = refused(|s| s.container.limits.log_bytes = Some(MAX_LOG_RATE + 1));
        assert_eq!(many, "log_bytes is 4194305, allowed is 1 to 4194304");
        let many = refused(|s| s.container.limits.cpu_shares = Some(MAX_CPU_SHARES + 1));
        assert_eq!(many, "cpu_shares is 262145, allowed is 1 to 262144, which is 256 cores");
        assert_eq!(
            refused(|s| s.container.driver = "qemu".parse().ok()),
            "driver is not allowed: there are process, oci and docker"
        );
        for (pids, files) in [(0, 0), (MAX_PIDS + 1, MAX_FILES + 1)] {
            let mut spec = process();
            spec.container.limits.pids = Some(pids);
            assert!(spec.validate().expect_err("refused").to_string().starts_with("pids"));
            spec.container.limits = Limits { files: Some(files), ..Limits::default() };
            assert!(spec.validate().expect_err("refused").to_string().starts_with("files"));
        }
        assert!(
            refused(|s| {
                s.container.env.insert("A B".into(), String::new());
            })
            .contains("A B")
        );
        assert!(
            refused(|s| {
                s.container.env.insert("BIG".into(), "x".repeat(MAX_ENV_BYTES));
            })
            .contains("too large")
        );
        assert!(
            refused(|s| {
                s.container.caches.insert("k".into(), "/a/../b".into());
            })
            .contains("cache path")
        );
        assert!(
            refused(|s| {
                s.check =
                    Some(Check { kind: CheckKind::Http { path: "x".into() }, ..Check::default() });
            })
            .contains("check path")
        );
        let hook = refused(|s| s.pre_stop = Some(Vec::new()));
        assert!(hook.contains("pre_stop"), "{hook}");
        let user = refused(|s| s.container.user = Some("-1".into()));
        assert!(user.contains("user"), "{user}");
        let readiness = refused(|s| {
            let kind = CheckKind::Command { argv: vec![String::new()] };
            s.readiness = Some(Check { kind, ..Check::default() });
        });
        assert!(readiness.contains("check command"), "{readiness}");
        let volume = refused(|s| {
            let name = "data".parse().expect("a name");
            let mount = VolumeMount { path: "/a/../b".into(), read_only: false };
            s.container.volumes.insert(name, mount);
        });
        assert!(volume.contains("volume path"), "{volume}");
    }

    type ChangePolicy = fn(&mut CrashPolicy);

    #[test]
    fn each_bad_field_of_a_crash_policy_is_named() {
        let cases: [(&str, ChangePolicy); 6] = [
            ("crash immediate", |it| it.immediate = 1_001),
            ("crash base_ms", |it| it.base_ms = u64::MAX),
            ("crash cap_ms", |it| it.cap_ms = DAY_MS + 1),
            ("crash cap_ms", |it| it.cap_ms = it.base_ms - 1),
            ("crash reset_after_ms", |it| it.reset_after_ms = u64::MAX),
            ("crash give_up_after", |it| it.give_up_after = 0),
        ];
        for (field, change) in cases {
            let mut spec = process();
            change(&mut spec.crash);
            let message = spec.validate().expect_err("refused").to_string();
            assert!(message.starts_with(field), "{field}: {message}");
        }
        let mut spec = process();
        spec.crash.base_ms = 0;
        assert_eq!(spec.validate(), Ok(()), "restarts without a pause");
    }

    fn mounting(volumes: &[(&str, &str)], caches: &[(&str, &str)]) -> Result<(), String> {
        let mut spec = process();
        for (name, path) in volumes {
            let mount = VolumeMount { path: (*path).to_owned(), read_only: false };
            spec.container.volumes.insert(name.parse().expect("a name"), mount);
        }
        let caches = caches.iter().map(|(key, path)| ((*key).to_owned(), (*path).to_owned()));
        spec.container.caches = caches.collect();
        spec.validate().map_err(|error| error.to_string())
    }

    #[test]
    fn mounts_lie_beside_each_other() {
        let overlap = [
            ("/data", "/data"),
            ("/data", "/data/"),
            ("/data", "//./data/sub"),
            ("/data/a/b", "/data/a"),
        ];
        for (one, other) in overlap {
            let said = mounting(&[("a", one), ("b", other)], &[]).expect_err("they overlap");
            assert!(
                said.starts_with(&format!("volume a at {one} and volume b at {other}")),
                "{said}"
            );
            let said = mounting(&[("a", one)], &[("deps", other)]).expect_err("they overlap");
            assert!(said.contains(&format!("cache deps at {other} overlap")), "{said}");
        }
        assert_eq!(mounting(&[("a", "/data/a"), ("b", "/data/ab")], &[("c", "/data/b")]), Ok(()));
    }

    #[test]
    fn a_volume_leaves_the_system_alone() {
        let system = [
            "/",
            "//",
            "/.",
            "/etc",
            "/etc/",
            "/usr",
            "/usr/lib",
            "/proc",
            "/proc/self",
            "/dev/shm",
            "/sys",
            "/bin",
            "/lib",
            "/lib64",
            "/sbin",
            "/run",
            "/tmp",
            "/./tmp",
        ];
        for path in system {
            let said = mounting(&[("a", path)], &[]).expect_err(path);
            assert!(said.starts_with(&format!("volume a cannot be at {path}: ")), "{said}");
        }
        for path in ["/data", "/etc/app", "/usr/local/data", "/var/lib/app", "/tmp/app", "/device"]
        {
            assert_eq!(mounting(&[("a", path)], &[]), Ok(()), "{path}");
        }
    }

    type Change = fn(&mut TaskSpec);

    #[test]
    fn each_bad_field_of_a_task_is_named() {
        let refused = |change: fn(&mut TaskSpec)| {
            let mut spec = TaskSpec::new(Action::run(["true"]), 1_000);
            change(&mut spec);
            spec.validate().expect_err("refused").to_string()
        };
        let cases: [(&str, Change); 8] = [
            ("timeout_ms", |s| s.timeout_ms = 0),
            ("start_timeout_ms", |s| s.start_timeout_ms = Some(u64::MAX)),
            ("result_file", |s| s.result_file = Some("relative".into())),
            ("annotation", |s| s.annotation = Some("x".repeat(MAX_ANNOTATION + 1))),
            ("callback", |s| s.callback = Some("gopher://example.com".into())),
            ("retry attempts", |s| s.retry = Some(RetryPolicy { attempts: 1, pause_ms: 1 })),
            ("retry pause_ms", |s| s.retry = Some(RetryPolicy { attempts: 2, pause_ms: 0 })),
            ("driver", |s| s.container.driver = Some("warp".parse().expect("a name"))),
        ];
        for (field, change) in cases {
            let message = refused(change);
            assert!(message.starts_with(field), "{field}: {message}");
        }
    }

    #[test]
    fn pauses_between_attempts_double_up_to_a_day() {
        let policy = RetryPolicy { attempts: 100, pause_ms: 1_000 };
        assert_eq!([1, 2, 3].map(|n| policy.pause_after(n)), [1_000, 2_000, 4_000]);
        assert_eq!([60, 100].map(|n| policy.pause_after(n)), [DAY_MS; 2]);
    }

    #[test]
    fn egress_rules_name_a_network() {
        let rule = |to: &str, ports| EgressRule {
            to: to.into(),
            protocol: Some(EgressProtocol::Tcp),
            ports,
        };
        for good in ["10.0.0.1", "10.0.0.0/8", "fd00::/8", "0.0.0.0/0"] {
            assert_eq!(rule(good, Some((80, 81))).validate(), Ok(()), "{good}");
        }
        for bad in ["", "10.0.0.0/33", "example.com", "10.0.0.0/x", "10.0.0.0/"] {
            assert!(rule(bad, None).validate().is_err(), "{bad}");
        }
        assert!(rule("10.0.0.1", Some((81, 80))).validate().is_err());
    }
}
