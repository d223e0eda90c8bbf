//! Health checks: how a cell finds out how an instance is.

use serde::{Deserialize, Serialize};

use crate::spec::{DAY_MS, SpecError, range};

/// The shortest interval of a check that runs a command, in milliseconds: to start a program takes the
/// cell's own processor time, which no limit of the container holds.
pub const MIN_COMMAND_INTERVAL_MS: u64 = 1_000;

/// A health check. All times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// What is asked.
    pub kind: CheckKind,
    /// The port that is asked; the instance's own when absent. Only containers with a network of
    /// their own have others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Between two checks once it passes.
    pub interval_ms: u64,
    /// By how much of the interval checks are moved at random, in percent, so that many instances
    /// are not asked at the same moment.
    #[serde(default = "ten")]
    pub jitter_percent: u32,
    /// For one check.
    pub timeout_ms: u64,
    /// From start to the first success; later it counts as crashed.
    pub start_timeout_ms: u64,
    /// How many failures in a row make a passing check fail.
    pub failures: u32,
    /// How many successes in a row make a failing check pass.
    #[serde(default = "one")]
    pub successes: u32,
}

const fn ten() -> u32 {
    10
}

const fn one() -> u32 {
    1
}

/// What a health check asks. The cell asks, over IPv4 or IPv6 as the instance's address is; nothing
/// is needed in the image, but for a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum CheckKind {
    /// `GET path` on the port answers with 200 to 399.
    Http {
        /// The path, starting with `/`.
        path: String,
    },
    /// `GET /` on the port is answered over HTTP, whatever the status, the first time; from then on
    /// the port accepts a connection. Some servers listen before they have loaded the code they
    /// serve.
    Answers,
    /// The port accepts a connection.
    Tcp,
    /// The command, run in the container, exits with 0.
    Command {
        /// The program and its arguments. No shell is involved.
        argv: Vec<String>,
    },
}

impl Default for Check {
    fn default() -> Self {
        Self {
            kind: CheckKind::Answers,
            port: None,
            interval_ms: 10_000,
            jitter_percent: ten(),
            timeout_ms: 2_000,
            start_timeout_ms: 60_000,
            failures: 3,
            successes: one(),
        }
    }
}

impl Check {
    pub(crate) fn validate(&self) -> Result<(), SpecError> {
        match &self.kind {
            CheckKind::Http { path }
                if !path.starts_with('/') || path.chars().any(|c| c.is_control() || c == ' ') =>
            {
                let reason = "start it with `/` and leave out spaces and control characters";
                return Err(SpecError::Text { field: "check path", reason });
            }
            CheckKind::Command { argv } => crate::spec::validate_argv("check command", argv)?,
            CheckKind::Http { .. } | CheckKind::Answers | CheckKind::Tcp => {}
        }
        if self.port == Some(0) {
            return Err(SpecError::Text { field: "check port", reason: "it is 0" });
        }
        if matches!(self.kind, CheckKind::Command { .. }) {
            let field = "interval_ms of a check with a command";
            range(field, self.interval_ms, MIN_COMMAND_INTERVAL_MS..=DAY_MS, "1 s to 24 h")?;
        }
        range("check interval_ms", self.interval_ms, 10..=DAY_MS, "10 ms to 24 h")?;
        range("check jitter_percent", self.jitter_percent.into(), 0..=100, "0 to 100")?;
        range("check timeout_ms", self.timeout_ms, 1..=600_000, "1 ms to 10 min")?;
        range("check start_timeout_ms", self.start_timeout_ms, 1..=DAY_MS, "1 ms to 24 h")?;
        range("check failures", self.failures.into(), 1..=1_000, "1 to 1000")?;
        range("check successes", self.successes.into(), 1..=1_000, "1 to 1000")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_not_run_again_and_again() {
        let argv = vec!["true".to_owned()];
        let check = |kind, interval_ms| Check { kind, interval_ms, ..Check::default() };
        let command = CheckKind::Command { argv };
        let refused = check(command.clone(), MIN_COMMAND_INTERVAL_MS - 1).validate();
        let refused = refused.expect_err("refused").to_string();
        assert_eq!(refused, "interval_ms of a check with a command is 999, allowed is 1 s to 24 h");
        assert_eq!(check(command, MIN_COMMAND_INTERVAL_MS).validate(), Ok(()));
        assert_eq!(check(CheckKind::Tcp, 10).validate(), Ok(()));
    }
}
