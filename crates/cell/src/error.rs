//! Why the agent cannot run, and why work on it failed.

use std::fmt;
use std::io;
use std::path::PathBuf;

use api::{ClientError, ConnectError};
use drivers::DriverError;
use model::FailureDetail;

use crate::limits::MAX_REASON;

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// Its directory cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    Data {
        /// Which file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another agent uses its directory.
    #[error("another cell runs in {}", .0.display())]
    InUse(PathBuf),
    /// No driver works here.
    #[error("no driver works on this machine: {0}")]
    NoDriver(String),
    /// A driver failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The server's address makes no sense.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server cannot be called.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The gate in front of its instances does not work.
    #[error(transparent)]
    Gate(#[from] gate::GateError),
    /// The server does not want this cell.
    #[error("the server refused this cell: {0}")]
    Refused(String),
}

/// Why work failed, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    /// Whether the same may work later.
    pub(crate) transient: bool,
    /// Whether it was ended because something else failed or was no longer wanted.
    pub(crate) interrupted: bool,
    /// What exactly failed, if anything of the task's own did.
    pub(crate) detail: Option<Box<FailureDetail>>,
}

impl Failure {
    pub(crate) fn new(reason: impl fmt::Display) -> Self {
        let reason = reason.to_string();
        let reason = match reason.char_indices().nth(MAX_REASON) {
            Some((end, _)) => reason.get(..end).unwrap_or_default().to_owned(),
            None => reason,
        };
        Self { reason, transient: false, interrupted: false, detail: None }
    }

    /// The end of what was not to go on.
    pub(crate) fn interrupted() -> Self {
        Self { interrupted: true, ..Self::new("was interrupted") }
    }

    /// Notes which action of the tree failed, unless one below it is noted.
    pub(crate) fn at(mut self, path: &str) -> Self {
        let detail = self.detail.get_or_insert_default();
        detail.action.get_or_insert_with(|| path.to_owned());
        self
    }

    pub(crate) fn within(self, what: impl fmt::Display) -> Self {
        let reason = Self::new(format!("{what}: {}", self.reason)).reason;
        Self { reason, ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl From<egress::Failure> for Failure {
    fn from(failure: egress::Failure) -> Self {
        Self { transient: failure.transient, ..Self::new(failure.reason) }
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        Self::new(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(error)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self { transient: error.is_transient(), ..Self::new(error) }
    }
}

/// Adds what was being done.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| error.into().within(what()))
    }
}
