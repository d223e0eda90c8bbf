//! What a store is: the rows it keeps and the operations every backend offers.

use std::fmt::{Debug, Display, Formatter};

use crate::StoreError;

/// Most rows one history query may return, whatever it asks for.
pub const MAX_HISTORY_PAGE: u32 = 10_000;

/// The kind of a record or of a history, such as `job` or `audit`. Kinds are fixed in the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(&'static str);

impl Kind {
    /// Names a kind.
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// The name as it is stored.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// One changed row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub kind: Kind,
    /// Which one.
    pub id: u128,
    /// Its JSON text, or `None` when the row is deleted.
    pub body: Option<Vec<u8>>,
}

impl Record {
    /// A row that now has this body.
    pub const fn put(kind: Kind, id: u128, body: Vec<u8>) -> Self {
        Self { kind, id, body: Some(body) }
    }

    /// A row that no longer exists.
    pub const fn delete(kind: Kind, id: u128) -> Self {
        Self { kind, id, body: None }
    }
}

/// One line to append to a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Which history.
    pub kind: Kind,
    /// What the line is about, for filtering; may be empty.
    pub key: String,
    /// When it happened, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Its JSON text.
    pub body: Vec<u8>,
}

/// One line read back from a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// Its place in the history: 1 for the first line ever, then without gaps. Never reused.
    pub seq: u64,
    /// What it is about.
    pub key: String,
    /// When it happened.
    pub at_ms: u64,
    /// Its JSON text.
    pub body: Vec<u8>,
}

/// Which end of a history to read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// From the first line on.
    #[default]
    OldestFirst,
    /// From the last line back.
    NewestFirst,
}

/// Which lines of one history to read. All filters must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryQuery {
    /// Which history.
    pub kind: Kind,
    /// Only lines about this key.
    pub key: Option<String>,
    /// Only lines with a greater sequence number.
    pub after: Option<u64>,
    /// Only lines with a smaller sequence number.
    pub before: Option<u64>,
    /// Only lines that happened at this time or later.
    pub since_ms: Option<u64>,
    /// Which end to start from.
    pub order: Order,
    /// At most this many lines, and never more than [`MAX_HISTORY_PAGE`].
    pub limit: u32,
}

impl HistoryQuery {
    /// The first `limit` lines of a history.
    pub const fn new(kind: Kind, limit: u32) -> Self {
        Self {
            kind,
            key: None,
            after: None,
            before: None,
            since_ms: None,
            order: Order::OldestFirst,
            limit,
        }
    }

    /// The last `limit` lines of a history, newest first.
    pub const fn newest(kind: Kind, limit: u32) -> Self {
        let mut query = Self::new(kind, limit);
        query.order = Order::NewestFirst;
        query
    }

    pub(crate) fn page(&self) -> u32 {
        self.limit.min(MAX_HISTORY_PAGE)
    }
}

/// Changes that become durable together or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// Changed rows; of two changes to one row the later wins.
    pub records: Vec<Record>,
    /// Lines appended to histories, in this order.
    pub histories: Vec<HistoryEntry>,
}

impl Batch {
    /// A batch of records only.
    pub const fn of(records: Vec<Record>) -> Self {
        Self { records, histories: Vec::new() }
    }

    /// How many rows it writes.
    pub const fn rows(&self) -> usize {
        self.records.len() + self.histories.len()
    }
}

/// Which holder of the lease is writing. Every acquisition gets a greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Display for Epoch {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        Display::fmt(&self.0, f)
    }
}

/// What a load went over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Records handed out.
    pub records: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// The epoch that was current during the load.
    pub epoch: Epoch,
    /// The format of the stored rows.
    pub format: u32,
}

/// Is handed each record of a load: kind, identifier, JSON text. What it returns as an error ends
/// the load.
pub type RowVisitor<'a> = dyn FnMut(&str, u128, &[u8]) -> Result<(), String> + 'a;

/// Keeps rows. Every call blocks; what returned `Ok` is durable.
pub trait Store: Send + Sync + Debug {
    /// Hands every record to `each`, kind by kind, by ascending identifier within a kind.
    fn load(&self, each: &mut RowVisitor<'_>) -> Result<Loaded, StoreError>;

    /// Makes all of `batches` durable in one transaction, or none of them.
    ///
    /// Refused with [`StoreError::Deposed`] unless `epoch` is the current one.
    fn commit(&self, epoch: Epoch, batches: Vec<Batch>) -> Result<(), StoreError>;

    /// Takes the lease until `now_ms + ttl_ms` under a fresh epoch.
    ///
    /// Refused with [`StoreError::Held`] while another holder's lease has not run out. The same
    /// holder gets it again at once (it restarted), and its earlier epoch is deposed.
    fn acquire(&self, holder: &str, now_ms: u64, ttl_ms: u64) -> Result<Epoch, StoreError>;

    /// Extends the lease until `now_ms + ttl_ms`.
    fn renew(&self, epoch: Epoch, now_ms: u64, ttl_ms: u64) -> Result<(), StoreError>;

    /// Gives the lease up, so that another holder need not wait for it to run out.
    fn release(&self, epoch: Epoch) -> Result<(), StoreError>;

    /// Reads lines of one history.
    fn query_history(&self, query: &HistoryQuery) -> Result<Vec<HistoryRow>, StoreError>;

    /// Removes at most `limit` of the oldest lines with a sequence number below `before`; returns
    /// how many. Sequence numbers are not reused.
    fn prune_history(
        &self,
        epoch: Epoch,
        kind: Kind,
        before: u64,
        limit: u32,
    ) -> Result<u64, StoreError>;
}
