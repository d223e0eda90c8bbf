//! Specs: what to run, with which environment, limits and checks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Action, ActionError, CrashPolicy, Digest};

/// Most environment variables of one container.
pub const MAX_ENV_VARS: usize = 500;
/// Most characters of the name of a variable.
pub const MAX_ENV_NAME: usize = 256;
/// Most bytes of all names and values of one container's environment.
pub const MAX_ENV_BYTES: usize = 128 * 1024;
/// Most instances of one process.
pub const MAX_INSTANCES: u32 = 1_000;

/// Resources. Absent: the cell's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Memory in MiB.
    pub memory_mb: Option<u64>,
    /// Disk in MiB.
    pub disk_mb: Option<u64>,
    /// Relative share of CPU time.
    pub cpu_shares: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Open files.
    pub files: Option<u64>,
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
    /// How to know that it is healthy; it counts as healthy once started when absent.
    pub check: Option<Check>,
    /// How long it has between TERM and KILL, in milliseconds.
    pub stop_grace_ms: u64,
    /// When it starts again after a crash.
    #[serde(default)]
    pub crash: CrashPolicy,
}

/// A health check. All times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// What is asked.
    pub kind: CheckKind,
    /// Between two checks of a healthy instance.
    pub interval_ms: u64,
    /// For one check.
    pub timeout_ms: u64,
    /// From start to the first success; later it counts as crashed.
    pub start_timeout_ms: u64,
    /// How many failures in a row make a healthy instance unhealthy.
    pub failures: u32,
}

/// What a health check asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum CheckKind {
    /// `GET path` on the instance's port answers with 200 to 399.
    Http {
        /// The path, starting with `/`.
        path: String,
    },
    /// `GET /` on the instance's port is answered over HTTP, whatever the status, the first time;
    /// from then on the port accepts a connection. Some servers listen before they have loaded the
    /// code they serve.
    Answers,
    /// The instance's port accepts a connection.
    Tcp,
}

impl Default for Check {
    fn default() -> Self {
        Self {
            kind: CheckKind::Answers,
            interval_ms: 10_000,
            timeout_ms: 2_000,
            start_timeout_ms: 60_000,
            failures: 3,
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
    /// A text that makes no sense.
    #[error("{field} is not allowed: {reason}")]
    Text {
        /// Which field.
        field: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
}

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

fn range(
    field: &'static str,
    value: u64,
    bounds: std::ops::RangeInclusive<u64>,
    allowed: &'static str,
) -> Result<(), SpecError> {
    if bounds.contains(&value) { Ok(()) } else { Err(SpecError::Range { field, value, allowed }) }
}

impl Limits {
    fn validate(&self) -> Result<(), SpecError> {
        let fields = [
            ("memory_mb", self.memory_mb),
            ("disk_mb", self.disk_mb),
            ("cpu_shares", self.cpu_shares),
            ("pids", self.pids),
            ("files", self.files),
        ];
        for (field, value) in fields {
            if let Some(value) = value {
                range(field, value, 1..=1 << 32, "1 to 4294967296")?;
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
            if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
                let reason = "an absolute path without `..` is wanted";
                return Err(SpecError::Text { field: "cache path", reason });
            }
        }
        Ok(())
    }
}

const DAY_MS: u64 = 86_400_000;

impl TaskSpec {
    /// Checks every field.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.container.validate()?;
        self.action.validate()?;
        range("timeout_ms", self.timeout_ms, 1..=DAY_MS, "1 ms to 24 h")
    }
}

impl ProcessSpec {
    /// Checks every field.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.container.validate()?;
        if self.argv.first().is_none_or(String::is_empty) {
            return Err(SpecError::Text { field: "argv", reason: "it names no program" });
        }
        if self.argv.iter().map(String::len).sum::<usize>() > crate::MAX_RUN_BYTES {
            return Err(SpecError::Text { field: "argv", reason: "it has more than 128 KiB" });
        }
        if self.argv.iter().any(|argument| argument.contains('\0')) {
            return Err(SpecError::Text { field: "argv", reason: "it holds a NUL byte" });
        }
        range("stop_grace_ms", self.stop_grace_ms, 0..=3_600_000, "0 to 1 h")?;
        let Some(check) = &self.check else { return Ok(()) };
        if let CheckKind::Http { path } = &check.kind
            && (!path.starts_with('/') || path.chars().any(|c| c.is_control() || c == ' '))
        {
            let reason = "start it with `/` and leave out spaces and control characters";
            return Err(SpecError::Text { field: "check path", reason });
        }
        range("check interval_ms", check.interval_ms, 10..=DAY_MS, "10 ms to 24 h")?;
        range("check timeout_ms", check.timeout_ms, 1..=600_000, "1 ms to 10 min")?;
        range("check start_timeout_ms", check.start_timeout_ms, 1..=DAY_MS, "1 ms to 24 h")?;
        range("check failures", u64::from(check.failures), 1..=1_000, "1 to 1000")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> ProcessSpec {
        ProcessSpec {
            container: ContainerSpec::default(),
            argv: vec!["app".into()],
            dir: None,
            check: Some(Check::default()),
            stop_grace_ms: 10_000,
            crash: CrashPolicy::default(),
        }
    }

    #[test]
    fn a_plain_process_is_fine() {
        assert_eq!(process().validate(), Ok(()));
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
    }
}
