//! Decisions of the world, all drawn from one seed.

use runtime::Random;

/// Repeats exactly for the same seed.
#[derive(Debug)]
pub(crate) struct Rng(Random);

impl Rng {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(Random::seeded(seed))
    }

    /// Below `limit`, which is not zero.
    pub(crate) fn below(&self, limit: u64) -> u64 {
        self.0.next_u64() % limit.max(1)
    }

    /// From `low` to `high`, both included.
    pub(crate) fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// Whether something happens that happens `per_mille` times in a thousand.
    pub(crate) fn chance(&self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }

    /// A place in a list of `len` elements.
    pub(crate) fn index(&self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    /// A fresh identifier that sorts by time.
    pub(crate) fn id(&self, now: u64) -> u128 {
        (u128::from(now) << 80) | (u128::from(self.0.next_u64()) << 16)
    }
}
