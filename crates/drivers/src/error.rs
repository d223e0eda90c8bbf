//! What can go wrong, in words a user can act on.

use std::io;

/// The result of a driver operation.
pub type Result<T> = std::result::Result<T, DriverError>;

/// Why a driver could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The request breaks a rule of its form.
    #[error("invalid {what}: {reason}")]
    Invalid {
        /// The part of the request.
        what: &'static str,
        /// The broken rule.
        reason: String,
    },
    /// There is already one with this name.
    #[error("{what} {name:?} exists already")]
    Exists {
        /// Container or process.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// There is none with this name.
    #[error("there is no {what} {name:?}")]
    NotFound {
        /// Container, process or path.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The process has ended, so nothing can be sent to it.
    #[error("process {process:?} is not running")]
    NotRunning {
        /// The process.
        process: String,
    },
    /// This driver, or this machine, cannot do that.
    #[error("not supported by this driver: {0}")]
    Unsupported(String),
    /// The command could not be started.
    #[error("cannot start {command:?}: {fault}")]
    Start {
        /// The command as it was given.
        command: String,
        /// What stood in the way.
        fault: StartFault,
    },
    /// A tar stream was refused because it breaks a rule.
    #[error("archive refused at {entry:?}: {reason}")]
    Archive {
        /// The entry.
        entry: String,
        /// The rule.
        reason: String,
    },
    /// Something did not end within its limit.
    #[error("{what} did not end within {limit_ms} ms")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// The limit in milliseconds.
        limit_ms: u64,
    },
    /// The operating system refused.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// Why a command could not be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum StartFault {
    /// There is no such command, or a script names an interpreter that does not exist.
    #[error("no such command (or its interpreter is missing)")]
    Missing,
    /// The file may not be executed.
    #[error("permission denied (is it executable?)")]
    Denied,
    /// The file is not a program this machine can run.
    #[error("not a program for this machine")]
    Format,
    /// The working directory cannot be entered.
    #[error("cannot enter the working directory {0:?}")]
    Directory(String),
    /// A limit could not be set or was hit at once.
    #[error("limits: {0}")]
    Limits(String),
    /// The supervisor of the process failed.
    #[error("supervisor: {0}")]
    Supervisor(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl DriverError {
    /// An operating-system error with what was being done.
    pub(crate) fn io(context: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { context: context.into(), source: source.into() }
    }

    pub(crate) fn invalid(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { what, reason: reason.into() }
    }
}

/// Adds what was being done to an operating-system error.
pub(crate) trait Context<T> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| DriverError::io(context(), error))
    }
}
