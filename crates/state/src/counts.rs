//! How many rows are in which state, kept as rows change, so that reading it costs nothing.

use std::collections::BTreeMap;

/// So many by the word of their state.
pub type ByState = BTreeMap<&'static str, u64>;

/// How many there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Jobs: those that have not ended, and the last that have.
    pub jobs: ByState,
    /// Tasks that are kept.
    pub tasks: ByState,
    /// Instances.
    pub instances: ByState,
    /// Auctions that were held since the state was loaded.
    pub auctions: u64,
    /// Places that were found for tasks and instances since the state was loaded.
    pub placed: u64,
    /// Places that were not found.
    pub unplaced: u64,
    /// Moves that were begun to even out how full cells are.
    pub moves: u64,
}

impl Counts {
    /// A place was looked for.
    pub(crate) const fn tally(&mut self, found: bool) {
        if found {
            self.placed += 1;
        } else {
            self.unplaced += 1;
        }
    }
}

pub(crate) fn more(counts: &mut ByState, state: &'static str) {
    *counts.entry(state).or_default() += 1;
}

pub(crate) fn fewer(counts: &mut ByState, state: &'static str) {
    if let Some(count) = counts.get_mut(state) {
        *count = count.saturating_sub(1);
    }
}
