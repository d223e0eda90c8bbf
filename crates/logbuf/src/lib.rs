//! The log buffer: one writer side, many readers, bounded memory, spilled to disk.
//!
//! - A [`LogBuffer`] is one stream of entries, numbered from 0 without gaps. Appending never waits
//!   for a reader.
//! - A [`Reader`] starts anywhere, follows to the end and beyond, and shares memory with the buffer
//!   and with other readers. What it can no longer have is told as [`Read::Skipped`], with the
//!   exact numbers.
//! - What no longer fits into memory is read back from files, when the stream has a directory;
//!   [`LogStore`] keeps many such streams and continues them after a restart.
//! - [`Merge`] follows several streams as one, in order of time.
//!
//! Absent on purpose: time (callers say what time it is), timers (the owner calls
//! [`LogStore::flush`] as often as it wants its lines on disk), and syncing to the device: a line
//! survives the process once it was flushed, and the machine when the system wrote it back.

mod buffer;
mod error;
mod frame;
mod limits;
mod logstore;
mod merge;
mod page;
mod reader;
mod ring;
mod spill;

pub use buffer::{Line, LogBuffer};
pub use error::LogError;
pub use limits::{Limits, StoreLimits};
pub use logstore::LogStore;
pub use merge::{Group, Item, Merge};
pub use page::{Batch, Entry, EntryRef};
pub use reader::{Read, Reader, Start};
