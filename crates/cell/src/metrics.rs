//! What an agent counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::bucket::Dropped;

/// Counts of one agent, from its start.
#[derive(Debug, Default)]
pub struct Metrics {
    lines: AtomicU64,
    bytes: AtomicU64,
}

impl Metrics {
    pub(crate) fn dropped(&self, dropped: Dropped) {
        self.lines.fetch_add(dropped.lines, Ordering::Relaxed);
        self.bytes.fetch_add(dropped.bytes, Ordering::Relaxed);
    }

    /// Log lines that containers wrote beyond what they may, and their bytes.
    pub fn log_dropped(&self) -> (u64, u64) {
        (self.lines.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}
