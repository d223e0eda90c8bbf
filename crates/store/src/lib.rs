//! Durability: records, the lease that fences their writer, histories, and blobs.
//!
//! The control plane lives in memory; this crate makes its changed rows durable and hands them all
//! back at start. It is told *what* to keep and never *why*: no rule of the product is known here.
//!
//! - [`Store`] is the contract: load everything, commit batches under an epoch, acquire and renew
//!   the lease, append to and query histories. It blocks; nothing is durable before it returns.
//! - [`sqlite::SqliteStore`] keeps one file, [`memory::MemoryStore`] keeps nothing past the process
//!   and can be told to refuse commits. Both pass [`conformance::all`].
//! - [`Writer`] owns the thread that commits: callers prepare the next batch while one is being
//!   made durable, and waiting batches share a transaction.
//! - [`blobs::Blobs`] keeps bytes under their SHA-256, verified whenever they are read.
//!
//! Absent on purpose: queries over records (the in-memory state answers them), caching, retries
//! (a refused commit means the state in memory is ahead of the disk; only a reload mends that).

pub mod blobs;
pub mod conformance;
pub mod memory;
pub mod sqlite;

mod contract;
mod error;
mod lock;
mod writer;

pub use contract::{
    Batch, Epoch, HistoryEntry, HistoryQuery, HistoryRow, Kind, Loaded, MAX_HISTORY_PAGE, Order,
    Record, RowVisitor, Store,
};
pub use error::StoreError;
pub use writer::{Completion, Then, Writer, WriterLimits, WriterStats};
