//! Why a log operation failed.

use std::io;
use std::path::{Path, PathBuf};

/// Why a log operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The stream has ended; nothing can be appended.
    #[error("the log has ended")]
    Ended,
    /// The name cannot be a stream's.
    #[error("{id:?} cannot name a log: use 1 to 128 letters, digits, '-', '_' and '.', not first")]
    BadId {
        /// The name.
        id: String,
    },
    /// Every open stream is in use and no more may be opened.
    #[error("{limit} logs are in use, which is the limit")]
    TooMany {
        /// How many may be open.
        limit: usize,
    },
    /// So many streams are followed that another one would leave too few for those who write.
    #[error("{limit} logs are being followed, which is the limit")]
    TooManyFollowed {
        /// How many may be.
        limit: usize,
    },
    /// The operating system refused.
    #[error("cannot {attempt} {}: {detail}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// What it said.
        detail: String,
    },
}

impl LogError {
    pub(crate) fn io(attempt: &'static str, path: &Path, error: &io::Error) -> Self {
        Self::Io { attempt, path: path.to_owned(), detail: error.to_string() }
    }
}
