//! How much a stream and a store of streams may keep.

/// How much one stream keeps, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes kept in memory, counting a little for each entry.
    pub memory_bytes: usize,
    /// Entries kept in memory.
    pub memory_entries: usize,
    /// Longer lines are cut, and end in a note that says so.
    pub line_bytes: usize,
    /// Entries are written to disk whenever this many bytes of them wait.
    pub flush_bytes: usize,
    /// A file is full at this size; files are what retention removes.
    pub file_bytes: u64,
    /// Bytes kept on disk.
    pub disk_bytes: u64,
    /// Age at which entries may go from disk.
    pub keep_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 512 << 10,
            memory_entries: 8_192,
            line_bytes: 64 << 10,
            flush_bytes: 64 << 10,
            file_bytes: 1 << 20,
            disk_bytes: 64 << 20,
            keep_ms: 7 * 24 * 3_600 * 1_000,
        }
    }
}

/// Memory is given back in pieces of this part of the limits.
const PIECES: usize = 8;

impl Limits {
    pub(crate) fn page_bytes(&self) -> usize {
        (self.memory_bytes / PIECES).max(1)
    }

    pub(crate) fn page_entries(&self) -> usize {
        (self.memory_entries / PIECES).max(1)
    }
}

/// How much a store of streams keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    /// Streams that are open at once; those nobody uses are closed to make room.
    pub open_streams: usize,
    /// What each stream keeps.
    pub stream: Limits,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { open_streams: 1_024, stream: Limits::default() }
    }
}
