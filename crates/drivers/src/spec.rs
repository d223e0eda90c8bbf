//! What a caller asks for: containers, processes and their limits.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{DriverError, Result};

/// The longest handle or process identifier.
const MAX_NAME_BYTES: usize = 80;
/// The most properties of one container.
const MAX_PROPERTIES: usize = 64;
/// The longest key or value of a property.
const MAX_PROPERTY_BYTES: usize = 4096;
/// The most bytes of arguments and environment of one process.
const MAX_COMMAND_BYTES: usize = 1 << 20;

/// Names a container on one machine: `[a-z0-9_.-]{1,80}`, starting with a letter or a digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Handle(String);

/// Names a process in its container; the same form as a [`Handle`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProcessId(String);

fn checked(what: &'static str, name: String) -> Result<String> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(DriverError::invalid(
            what,
            format!("must have 1 to {MAX_NAME_BYTES} characters"),
        ));
    }
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let first_is_plain = name.bytes().next().is_some_and(plain);
    if !first_is_plain || !name.bytes().all(|b| plain(b) || matches!(b, b'_' | b'.' | b'-')) {
        return Err(DriverError::invalid(
            what,
            "only a-z, 0-9, '_', '.' and '-', starting with a letter or a digit",
        ));
    }
    Ok(name)
}

macro_rules! name {
    ($type:ident, $what:literal) => {
        impl $type {
            /// Checks the form of `name`.
            pub fn new(name: impl Into<String>) -> Result<Self> {
                checked($what, name.into()).map(Self)
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $type {
            type Error = DriverError;

            fn try_from(name: String) -> Result<Self> {
                Self::new(name)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }
    };
}

name!(Handle, "handle");
name!(ProcessId, "process id");

/// Limits of a container or of one process; `None` leaves a limit as the machine has it.
///
/// A driver enforces those its [`Capabilities`](crate::Capabilities) name and ignores the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Resident memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Virtual address space in bytes of each process. Breaks programs that reserve much and use
    /// little (Node, Go, Java); meant for small tools.
    pub address_space_bytes: Option<u64>,
    /// Bytes on disk below the container's root.
    pub disk_bytes: Option<u64>,
    /// Share of the processor in thousandths of one core.
    pub cpu_millis: Option<u64>,
    /// Processor seconds each process may use up.
    pub cpu_seconds: Option<u64>,
    /// Processes and threads. Where the system counts per user, so does this limit.
    pub processes: Option<u64>,
    /// Open files of each process.
    pub open_files: Option<u64>,
    /// Bytes of the largest file a process may write.
    pub file_bytes: Option<u64>,
}

impl Limits {
    /// These limits where set, else those of `base`.
    #[must_use]
    pub fn or(self, base: Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.or(base.memory_bytes),
            address_space_bytes: self.address_space_bytes.or(base.address_space_bytes),
            disk_bytes: self.disk_bytes.or(base.disk_bytes),
            cpu_millis: self.cpu_millis.or(base.cpu_millis),
            cpu_seconds: self.cpu_seconds.or(base.cpu_seconds),
            processes: self.processes.or(base.processes),
            open_files: self.open_files.or(base.open_files),
            file_bytes: self.file_bytes.or(base.file_bytes),
        }
    }
}

/// Where the platform puts files into a container that runs, such as its certificates.
pub(crate) const PLATFORM_DIR: &str = "/run/shore";
/// Bytes of it where the root cannot be written: a few certificates of some KiB each, for each of the
/// times they were renewed that are kept.
pub(crate) const PLATFORM_BYTES: u64 = 4 << 20;
/// Connections of one container to others: the machine keeps track of 65,536 to 262,144 for all.
pub(crate) const MAX_CONNECTIONS: u32 = 4096;
/// The most mounts of one container.
const MAX_MOUNTS: usize = 64;
/// The most published ports of one container.
const MAX_PUBLISHED: usize = 16;
/// The most egress rules of one container.
const MAX_EGRESS_RULES: usize = 256;

/// The file system a container starts with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Root {
    /// Directories with the unpacked layers of an image, from the lowest to the highest. A file
    /// `.wh.NAME` removes `NAME` of the layers below, `.wh..wh..opq` everything beside it. They are
    /// shared: nothing a container does may change them. They must stay until it is removed.
    pub layers: Vec<PathBuf>,
    /// Nothing outside mounts and `/tmp` may be written. What the platform brings is below
    /// `/run/shore`, which then is memory.
    pub read_only: bool,
    /// Bytes of `/tmp`, which then is memory; part of the disk when absent.
    pub tmp_bytes: Option<u64>,
}

/// A directory or file of the machine that a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where it is on the machine. It must exist.
    pub source: PathBuf,
    /// Where it is in the container: an absolute path, made when missing.
    pub target: String,
    /// Whether the container may only read it.
    pub read_only: bool,
}

/// A port of the machine that leads to one of a container with a network of its own. It does so as
/// long as the container is there, also while no agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// The port on every address of the machine but loopback.
    pub host: u16,
    /// The port in the container, over TCP.
    pub container: u16,
}

/// A protocol of an [`EgressRule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the protocols'")]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
    All,
}

/// Lets a container open connections that would be refused: without rules it reaches public
/// addresses and name servers, and neither private nor link-local ones nor the machine itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRule {
    /// The first address of the network.
    pub network: IpAddr,
    /// How many leading bits count: up to 32 or 128.
    pub prefix: u8,
    /// Which protocol.
    pub protocol: Protocol,
    /// First and last port, for TCP and UDP; all when absent.
    #[serde(default)]
    pub ports: Option<(u16, u16)>,
}

/// What a container is made from. Where the driver does not lay out roots and mounts itself (see
/// [`Ability::LayOut`](crate::Ability::LayOut)) its root is empty and the caller
/// copies in what it needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its name on this machine.
    pub handle: Handle,
    /// Limits of all its processes unless a process overrides them.
    #[serde(default)]
    pub limits: Limits,
    /// The caller's notes, kept with the container and given back by `list`.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
    /// Environment of every process, below the process's own.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Its file system.
    #[serde(default)]
    pub root: Root,
    /// What of the machine it sees. Where the driver does not lay it out, the caller links each target
    /// to its source, and what is copied goes through these links and no others.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Which connections it may open beyond the usual.
    #[serde(default)]
    pub egress: Vec<EgressRule>,
    /// Who runs its processes unless they say otherwise; its own root when absent. Numbers count
    /// inside the container.
    #[serde(default)]
    pub user: Option<User>,
    /// How other machines reach it, where the driver can do that.
    #[serde(default)]
    pub publish: Vec<Publish>,
}

/// What a container reaches, and what reaches it, beyond the usual.
#[derive(Debug, Clone, Default)]
pub(crate) struct Openings {
    pub(crate) egress: Vec<EgressRule>,
    pub(crate) publish: Vec<Publish>,
}

impl ContainerSpec {
    /// Its part of the machine's filter.
    pub(crate) fn openings(&self) -> Openings {
        Openings { egress: self.egress.clone(), publish: self.publish.clone() }
    }

    /// A container without limits, properties or environment.
    pub const fn new(handle: Handle) -> Self {
        Self {
            handle,
            limits: Limits {
                memory_bytes: None,
                address_space_bytes: None,
                disk_bytes: None,
                cpu_millis: None,
                cpu_seconds: None,
                processes: None,
                open_files: None,
                file_bytes: None,
            },
            properties: BTreeMap::new(),
            env: BTreeMap::new(),
            root: Root { layers: Vec::new(), read_only: false, tmp_bytes: None },
            mounts: Vec::new(),
            egress: Vec::new(),
            user: None,
            publish: Vec::new(),
        }
    }

    /// Checks everything a driver relies on.
    pub fn check(&self) -> Result<()> {
        if self.publish.len() > MAX_PUBLISHED {
            return Err(DriverError::invalid("publish", format!("more than {MAX_PUBLISHED}")));
        }
        if self.publish.iter().any(|it| it.host == 0 || it.container == 0) {
            return Err(DriverError::invalid("publish", "a port is 0"));
        }
        check_mounts(&self.mounts)?;
        check_egress(&self.egress)?;
        if self.properties.len() > MAX_PROPERTIES {
            return Err(DriverError::invalid("properties", format!("more than {MAX_PROPERTIES}")));
        }
        let long = |text: &String| text.len() > MAX_PROPERTY_BYTES;
        if self.properties.iter().any(|(key, value)| long(key) || long(value)) {
            let reason = format!("a key or value is longer than {MAX_PROPERTY_BYTES} bytes");
            return Err(DriverError::invalid("properties", reason));
        }
        check_env(&self.env)
    }
}

/// Where programs are looked for, in containers and on the machine, when nothing else is said.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Who runs a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Numeric user.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
}

impl User {
    /// User and group 0.
    pub const ROOT: Self = Self { uid: 0, gid: 0 };
}

/// A command to start in a container. Its standard input is empty.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Its name in the container, never used twice.
    pub id: ProcessId,
    /// Program and arguments, passed on byte for byte; nothing interprets them.
    pub argv: Vec<String>,
    /// Working directory, a path in the container; made when missing. Default: `/`.
    pub dir: Option<String>,
    /// Environment on top of the container's.
    pub env: BTreeMap<String, String>,
    /// Another user than the driver's own, where the driver can do that.
    pub user: Option<User>,
    /// Limits that replace the container's.
    pub limits: Limits,
}

impl ProcessSpec {
    /// A process with only a command.
    pub fn new<S: Into<String>>(id: ProcessId, argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            id,
            argv: argv.into_iter().map(Into::into).collect(),
            dir: None,
            env: BTreeMap::new(),
            user: None,
            limits: Limits::default(),
        }
    }

    /// Checks everything a driver relies on.
    pub fn check(&self) -> Result<()> {
        if self.argv.first().is_none_or(String::is_empty) {
            return Err(DriverError::invalid("command", "is empty"));
        }
        if self.argv.iter().chain(&self.dir).any(|text| text.contains('\0')) {
            return Err(DriverError::invalid("command", "contains a NUL byte"));
        }
        let bytes: usize = self.argv.iter().map(String::len).sum::<usize>()
            + self.env.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        if bytes > MAX_COMMAND_BYTES {
            let reason = format!("arguments and environment exceed {MAX_COMMAND_BYTES} bytes");
            return Err(DriverError::invalid("command", reason));
        }
        check_env(&self.env)
    }
}

fn check_mounts(mounts: &[Mount]) -> Result<()> {
    if mounts.len() > MAX_MOUNTS {
        return Err(DriverError::invalid("mounts", format!("more than {MAX_MOUNTS}")));
    }
    for Mount { source, target, .. } in mounts {
        let parts = || target.split('/').skip(1);
        let plain = target.starts_with('/') && parts().any(|part| !part.is_empty());
        if !plain || parts().any(|part| part == "..") || target.contains(['\0', ':', ',']) {
            let reason = format!("{target:?} is no absolute path below the root");
            return Err(DriverError::invalid("mount", reason));
        }
        if !source.is_absolute() {
            let reason = format!("{} is not absolute", source.display());
            return Err(DriverError::invalid("mount", reason));
        }
    }
    Ok(())
}

fn check_egress(rules: &[EgressRule]) -> Result<()> {
    if rules.len() > MAX_EGRESS_RULES {
        return Err(DriverError::invalid("egress rules", format!("more than {MAX_EGRESS_RULES}")));
    }
    for rule in rules {
        let bits = if rule.network.is_ipv4() { 32 } else { 128 };
        let ports_fit = rule.ports.is_none_or(|(first, last)| {
            first <= last && matches!(rule.protocol, Protocol::Tcp | Protocol::Udp)
        });
        if rule.prefix > bits || !ports_fit {
            return Err(DriverError::invalid("egress rule", format!("{rule:?}")));
        }
    }
    Ok(())
}

fn check_env(env: &BTreeMap<String, String>) -> Result<()> {
    for (key, value) in env {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(DriverError::invalid("environment", format!("variable {key:?}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_and_rules_are_checked() {
        let spec = |target: &str| {
            let mut spec = ContainerSpec::new(Handle::new("a").expect("a handle"));
            let (source, target) = (PathBuf::from("/srv"), target.to_owned());
            spec.mounts.push(Mount { source, target, read_only: true });
            spec
        };
        assert!(spec("/data/x").check().is_ok());
        for bad in ["", "/", "//", "data", "/a/../b", "/a:b", "/a\0"] {
            assert!(spec(bad).check().is_err(), "{bad:?}");
        }
        let rule = |prefix, protocol, ports| {
            let mut spec = spec("/data");
            let network = IpAddr::from([10, 0, 0, 0]);
            spec.egress.push(EgressRule { network, prefix, protocol, ports });
            spec.check().is_ok()
        };
        assert!(rule(8, Protocol::Tcp, Some((80, 90))) && rule(32, Protocol::All, None));
        assert!(!rule(33, Protocol::All, None) && !rule(8, Protocol::Icmp, Some((1, 2))));
        assert!(!rule(8, Protocol::Tcp, Some((90, 80))));
    }

    #[test]
    fn handles_have_one_form() {
        for good in ["a", "web.1", "a-b_c", "0", &"x".repeat(80)] {
            assert!(Handle::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".a", "-a", "A", "a/b", "a b", "ä", "a\0", &"x".repeat(81)] {
            assert!(Handle::new(bad).is_err(), "{bad}");
        }
    }
}
