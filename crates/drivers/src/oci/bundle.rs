//! What a runtime is told about a container and about a process in it.

use std::collections::BTreeMap;

use rustix::process::{Resource, getrlimit};
use rustix::thread::CapabilitySet;
use serde_json::{Value, json};

use super::seccomp;
use super::slots::USERS;
use crate::driver::Terminal;
use crate::spec::{ContainerSpec, Limits, PATH, PLATFORM_BYTES, PLATFORM_DIR, Root, User};

/// What the container's own root may do: manage its files and users, and listen on low ports.
const CAPABILITIES: [(&str, CapabilitySet); 8] = [
    ("CAP_CHOWN", CapabilitySet::CHOWN),
    ("CAP_DAC_OVERRIDE", CapabilitySet::DAC_OVERRIDE),
    ("CAP_FOWNER", CapabilitySet::FOWNER),
    ("CAP_FSETID", CapabilitySet::FSETID),
    ("CAP_KILL", CapabilitySet::KILL),
    ("CAP_NET_BIND_SERVICE", CapabilitySet::NET_BIND_SERVICE),
    ("CAP_SETGID", CapabilitySet::SETGID),
    ("CAP_SETUID", CapabilitySet::SETUID),
];
/// Where the first process of a container is in it.
pub(super) const IDLE: &str = "/dev/.shore-idle";
/// Processes and threads of a container that has no other limit: of the 32,768 the kernel numbers
/// unless it is told otherwise, a few containers must not take all.
pub(crate) const PROCESSES: u64 = 512;
/// Open files of a process that has no other limit: soft, and hard. Some programs close or select every
/// file they might have.
const OPEN_FILES: u64 = 1024;
const MAX_OPEN_FILES: u64 = 1 << 19;
/// Signals that wait and timers of all processes of one user; the kernel gives hundreds of thousands
/// to the machine's root, with whom containers without users of their own share what it counts.
pub(crate) const PENDING_SIGNALS: u64 = 256;
/// Bytes of POSIX message queues of one user: what the kernel gives everybody.
pub(crate) const MESSAGE_QUEUE_BYTES: u64 = 819_200;
/// Terminals of a container: the machine has 4,096 for all.
const TERMINALS: u32 = 64;
const SHARED_MEMORY_BYTES: u64 = 64 << 20;
/// Processor time is handed out in periods of this many microseconds.
const PERIOD: u64 = 100_000;
const SMALLEST_QUOTA: u64 = 1_000;
const FEWEST_SHARES: u64 = 2;
/// What the memory of a container without a first process could be; runtimes refuse less.
const LEAST_MEMORY: u64 = 4 << 20;

/// Paths of `/proc` and `/sys` that tell about the machine.
pub(crate) const MASKED: [&str; 14] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// Paths that change the machine.
pub(crate) const READ_ONLY: [&str; 6] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys/fs/cgroup"];

/// Where things are that a runtime must know.
#[derive(Debug)]
pub(super) struct Places<'a> {
    /// The root, with every mount in it.
    pub(super) root: &'a str,
    /// The first process.
    pub(super) idle: &'a str,
    /// The control group.
    pub(super) group: &'a str,
    pub(super) hostname: &'a str,
    /// The user of the machine that user 0 is, in a user namespace.
    pub(super) first_user: Option<u32>,
    /// The user namespace, where it has one.
    pub(super) users: &'a str,
    pub(super) limits_swap: bool,
    /// Whether the machine knows IPv6.
    pub(super) has_ipv6: bool,
}

/// The whole configuration of a container.
pub(super) fn container(spec: &ContainerSpec, places: &Places<'_>) -> Value {
    let mut namespaces: Vec<Value> = ["pid", "mount", "ipc", "uts", "network", "cgroup"]
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    let mut linux = json!({
        "cgroupsPath": format!("/{}", places.group),
        "resources": resources(&spec.limits, places.limits_swap),
        "maskedPaths": MASKED,
        "readonlyPaths": READ_ONLY,
        "rootfsPropagation": "private",
        "seccomp": seccomp::profile(),
        "sysctl": sysctl(places.has_ipv6),
    });
    if let Some(first) = places.first_user {
        // The mappings are those the namespace has; runtimes want to be told nevertheless.
        namespaces.push(json!({"type": "user", "path": places.users}));
        let all = json!([{"containerID": 0, "hostID": first, "size": USERS}]);
        linux["uidMappings"] = all.clone();
        linux["gidMappings"] = all;
    }
    linux["namespaces"] = namespaces.into();
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": places.root, "readonly": spec.root.read_only},
        "hostname": places.hostname,
        "process": idle(),
        "mounts": mounts(&spec.root, places.idle),
        "linux": linux,
    })
}

/// The first process. It has no rights.
fn idle() -> Value {
    json!({
        "terminal": false,
        "user": {"uid": 0, "gid": 0},
        "args": [IDLE],
        "env": [],
        "cwd": "/",
        "capabilities": capabilities(&[]),
        "noNewPrivileges": true,
    })
}

fn capabilities(names: &[&str]) -> Value {
    json!({
        "bounding": names,
        "effective": names,
        "permitted": names,
        "inheritable": [],
        "ambient": [],
    })
}

fn mounts(root: &Root, idle: &str) -> Vec<Value> {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let size = format!("size={SHARED_MEMORY_BYTES}");
    let terminals = format!("max={TERMINALS}");
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=64k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5", &terminals],
        ),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &size]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        json!({
            "destination": IDLE, "type": "bind", "source": idle,
            "options": ["bind", "ro", "nosuid", "nodev"],
        }),
    ];
    if root.read_only {
        let size = format!("size={PLATFORM_BYTES}");
        let options = ["nosuid", "noexec", "nodev", "mode=755", &size];
        mounts.push(mount(PLATFORM_DIR, "tmpfs", &options));
    }
    if let Some(bytes) = root.tmp_bytes {
        let size = format!("size={bytes}");
        mounts.push(mount("/tmp", "tmpfs", &["nosuid", "nodev", "mode=1777", &size]));
    }
    mounts
}

fn sysctl(has_ipv6: bool) -> Value {
    let mut settings = json!({"net.ipv4.ip_unprivileged_port_start": "0"});
    if has_ipv6 {
        settings["net.ipv6.conf.all.disable_ipv6"] = "1".into();
        settings["net.ipv6.conf.default.disable_ipv6"] = "1".into();
    }
    settings
}

fn resources(limits: &Limits, limits_swap: bool) -> Value {
    // The first process is one more.
    let processes = limits.processes.unwrap_or(PROCESSES).saturating_add(1);
    let mut resources = json!({
        "devices": [{"allow": false, "access": "rwm"}],
        "pids": {"limit": i64::try_from(processes).unwrap_or(i64::MAX)},
    });
    if let Some(bytes) = limits.memory_bytes {
        let bytes = bytes.max(LEAST_MEMORY);
        resources["memory"] = json!({"limit": bytes});
        if limits_swap {
            resources["memory"]["swap"] = bytes.into();
        }
    }
    if let Some(millis) = limits.cpu_millis {
        let quota = (millis.saturating_mul(PERIOD) / 1000).max(SMALLEST_QUOTA);
        let shares = (millis.saturating_mul(1024) / 1000).max(FEWEST_SHARES);
        resources["cpu"] = json!({"quota": quota, "period": PERIOD, "shares": shares});
    }
    resources
}

/// A process to be started.
#[derive(Debug)]
pub(super) struct Command<'a> {
    pub(super) argv: &'a [String],
    pub(super) dir: &'a str,
    pub(super) env: &'a BTreeMap<String, String>,
    pub(super) user: User,
    pub(super) limits: &'a Limits,
    /// The size of its terminal, if it has one.
    pub(super) terminal: Option<Terminal>,
}

/// The configuration of a process.
pub(super) fn process(command: &Command<'_>) -> Value {
    let mut env = environment(command.env);
    if command.terminal.is_some() {
        env.entry("TERM".to_owned()).or_insert_with(|| "xterm-256color".to_owned());
    }
    let env: Vec<String> = env.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    let size = command.terminal.map(|size| json!({"width": size.columns, "height": size.rows}));
    json!({
        "terminal": command.terminal.is_some(),
        "consoleSize": size,
        "user": {"uid": command.user.uid, "gid": command.user.gid, "umask": 0o022},
        "args": command.argv,
        "env": env,
        "cwd": command.dir,
        "capabilities": capabilities(&CAPABILITIES.map(|(name, _)| name)),
        "rlimits": rlimits(command.limits).map(named).collect::<Vec<_>>(),
        "noNewPrivileges": true,
    })
}

/// The environment of a process: what it is given, and what every one has.
pub(crate) fn environment(given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let usual = [("PATH", PATH), ("HOME", "/home"), ("TMPDIR", "/tmp")];
    let mut env: BTreeMap<String, String> =
        usual.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    env.extend(given.iter().map(|(key, value)| (key.clone(), value.clone())));
    env
}

/// A limit the kernel keeps for a single process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProcessLimit {
    name: &'static str,
    kind: Resource,
    soft: u64,
    hard: u64,
}

fn named(limit: ProcessLimit) -> Value {
    json!({"type": limit.name, "soft": limit.soft, "hard": limit.hard})
}

impl ProcessLimit {
    /// The kernel's number of what is limited, the soft and the hard limit.
    pub(crate) const fn numbers(self) -> (u32, u64, u64) {
        (self.kind as u32, self.soft, self.hard)
    }
}

/// The limits the kernel keeps for single processes, none of them above what the agent may.
pub(super) fn rlimits(limits: &Limits) -> impl Iterator<Item = ProcessLimit> + use<> {
    process_limits(limits, MAX_OPEN_FILES, MESSAGE_QUEUE_BYTES).map(|limit| {
        let most = getrlimit(limit.kind).maximum.unwrap_or(u64::MAX);
        ProcessLimit { soft: limit.soft.min(most), hard: limit.hard.min(most), ..limit }
    })
}

/// The limits the kernel keeps for single processes. A process without a limit of open files may
/// raise its own up to `files`.
pub(crate) fn process_limits(
    limits: &Limits,
    files: u64,
    queue_bytes: u64,
) -> impl Iterator<Item = ProcessLimit> + use<> {
    let files = limits.open_files.map_or((OPEN_FILES, files), |files| (files, files));
    let same = |limit: Option<u64>| limit.map(|limit| (limit, limit));
    let wanted = [
        ("RLIMIT_CORE", Resource::Core, Some((0, 0))),
        ("RLIMIT_NOFILE", Resource::Nofile, Some(files)),
        ("RLIMIT_AS", Resource::As, same(limits.address_space_bytes)),
        ("RLIMIT_FSIZE", Resource::Fsize, same(limits.file_bytes)),
        ("RLIMIT_CPU", Resource::Cpu, same(limits.cpu_seconds)),
        ("RLIMIT_SIGPENDING", Resource::Sigpending, same(Some(PENDING_SIGNALS))),
        ("RLIMIT_MSGQUEUE", Resource::Msgqueue, same(Some(queue_bytes))),
    ];
    wanted.into_iter().filter_map(|(name, kind, limit)| {
        let (soft, hard) = limit?;
        Some(ProcessLimit { name, kind, soft, hard })
    })
}

/// What a process may do, as a set of the kernel's.
pub(super) fn rights() -> u64 {
    CAPABILITIES.iter().map(|(_, right)| right.bits()).sum()
}
