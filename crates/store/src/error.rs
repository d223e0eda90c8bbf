//! Why the store refused, and what a person can do about it.

use std::path::{Path, PathBuf};

/// Why an operation on a store failed. Nothing of it was kept, unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Somebody else took the lease.
    #[error("epoch {epoch} was deposed: the store is at epoch {current}")]
    Deposed {
        /// The epoch the caller wrote under.
        epoch: u64,
        /// The epoch the store is at.
        current: u64,
    },
    /// Another holder's lease has not run out.
    #[error("the store is led by {holder} until {until_ms} ms")]
    Held {
        /// Who holds it.
        holder: String,
        /// When it runs out, in milliseconds since the Unix epoch.
        until_ms: u64,
    },
    /// Another process has it open.
    #[error("cannot open {}: it is in use by {}", path.display(), holder_name(*pid))]
    InUse {
        /// What was opened.
        path: PathBuf,
        /// The process that has it, when it said so.
        pid: Option<u32>,
    },
    /// The file was not written by this program.
    #[error("cannot open {}: {detail}; it was left as it is", path.display())]
    Foreign {
        /// What was opened.
        path: PathBuf,
        /// What it looks like instead.
        detail: String,
    },
    /// The file was written by a later release.
    #[error(
        "cannot open {}: it has format {found}, this release knows up to {known}; it was left as it is",
        path.display()
    )]
    Newer {
        /// What was opened.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// Stored bytes are not what was written.
    #[error("cannot {attempt} {}: it is damaged: {detail}", path.display())]
    Corrupt {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The disk is full.
    #[error("cannot {attempt} {}: the disk is full ({detail})", path.display())]
    Full {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// The operating system refused. A commit that ends so may or may not be there after a restart.
    #[error("cannot {attempt} {}: {detail}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// The database refused for a reason that has no variant of its own.
    #[error("cannot {attempt} {}: {detail}", path.display())]
    Database {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// What it said.
        detail: String,
    },
    /// A row cannot be written, or the visitor of a load refused it.
    #[error("record {kind}/{id:032x} cannot be used: {detail}")]
    BadRecord {
        /// Its kind.
        kind: String,
        /// Its identifier.
        id: u128,
        /// Why not.
        detail: String,
    },
    /// An earlier batch of the same writer was refused, so this one was not tried.
    #[error("not written, because an earlier batch was refused: {cause}")]
    Halted {
        /// Why the earlier one was refused.
        cause: Box<Self>,
    },
    /// The writer was shut down before it took the batch.
    #[error("the writer is shut down")]
    Closed,
    /// A test asked for this refusal.
    #[error("injected: {0}")]
    Injected(String),
}

impl StoreError {
    /// What a person can do about it.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Deposed { .. } => "another server leads now; this one must reload as a standby",
            Self::Held { .. } => "wait for the lease to run out, or stop the leading server",
            Self::InUse { .. } => "stop the other process, or give this one its own data directory",
            Self::Foreign { .. } => "point the data directory at an empty folder or at a store",
            Self::Newer { .. } => "start the release that wrote it, or restore an older backup",
            Self::Corrupt { .. } => "restore the last backup; keep the damaged file for inspection",
            Self::Full { .. } => {
                "free space or enlarge the disk; a server that runs goes on by itself"
            }
            Self::Io { .. } => "check the disk, its mount and the permissions of the file",
            Self::Database { .. } => "see the message; if it persists, restore the last backup",
            Self::BadRecord { .. } => "the row was written by other software or is damaged",
            Self::Halted { cause } => cause.hint(),
            Self::Closed => "the server is stopping",
            Self::Injected(_) => "this only happens in tests",
        }
    }

    /// An operating-system error, told apart by whether the disk is full.
    pub(crate) fn io(attempt: &'static str, path: &Path, error: &std::io::Error) -> Self {
        let (path, detail) = (path.to_owned(), error.to_string());
        if is_full(error) {
            return Self::Full { attempt, path, detail };
        }
        Self::Io { attempt, path, detail }
    }
}

/// Whether the system said that there is no room, by disk, by quota or by a limit on files.
pub(crate) fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn holder_name(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// Takes the removal of what is not there for done.
pub(crate) fn if_there(removed: std::io::Result<()>) -> std::io::Result<()> {
    let absent = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    removed.or_else(|error| if absent(&error) { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disk_and_quota_are_told_apart_from_other_io_errors() {
        for (errno, full) in
            [(28, true), (122, true), (27, true), (5, false), (13, false), (30, false)]
        {
            let source = std::io::Error::from_raw_os_error(errno);
            let error = StoreError::io("write", Path::new("/data/longshore.db"), &source);
            assert_eq!(matches!(error, StoreError::Full { .. }), full, "errno {errno}");
            assert!(error.to_string().contains("write /data/longshore.db"), "{error}");
        }
    }

    #[test]
    fn a_halted_writer_gives_the_hint_of_its_cause() {
        let cause = StoreError::Deposed { epoch: 1, current: 2 };
        let halted = StoreError::Halted { cause: Box::new(cause.clone()) };
        assert_eq!(halted.hint(), cause.hint());
        assert!(halted.to_string().contains("epoch 1 was deposed"));
    }
}
