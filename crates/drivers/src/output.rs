//! What processes write, as chunks that a reader can resume from exactly.

use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// A place in the output of a process: how many bytes both streams together wrote before it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct OutputOffset(pub u64);

/// Which stream bytes were written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Bytes a process wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The stream they were written to.
    pub source: Source,
    /// Where the first of them is.
    pub offset: OutputOffset,
    /// The bytes.
    pub bytes: Bytes,
}

/// One element of an [`OutputStream`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Bytes a process wrote.
    Chunk(Chunk),
    /// Bytes nobody can read any more: the kept output is bounded and nobody read in time.
    Dropped {
        /// Where the gap starts.
        offset: OutputOffset,
        /// How long it is.
        bytes: u64,
    },
}

impl Output {
    /// Where to attach again to continue right after this element.
    pub fn end(&self) -> OutputOffset {
        match self {
            Self::Chunk(chunk) => OutputOffset(chunk.offset.0 + chunk.bytes.len() as u64),
            Self::Dropped { offset, bytes } => OutputOffset(offset.0 + bytes),
        }
    }
}

/// The output of one process. It ends when the process has ended and all of it was read.
pub type OutputStream = BoxStream<'static, Result<Output>>;
