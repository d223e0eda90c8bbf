//! Random numbers and fresh identifiers.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Clock;

/// A source of random numbers: the operating system's, or a seeded one that repeats exactly.
#[derive(Debug)]
pub struct Random {
    seeded: Option<AtomicU64>,
}

impl Random {
    /// The operating system's generator.
    pub const fn system() -> Self {
        Self { seeded: None }
    }

    /// splitmix64 from `seed`: the same seed gives the same numbers.
    pub const fn seeded(seed: u64) -> Self {
        Self { seeded: Some(AtomicU64::new(seed)) }
    }

    /// The next 64 random bits.
    pub fn next_u64(&self) -> u64 {
        let mut bytes = [0_u8; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Fills `bytes`.
    pub fn fill(&self, bytes: &mut [u8]) {
        let Some(state) = &self.seeded else {
            getrandom::fill(bytes).expect("the operating system gives random bytes");
            return;
        };
        for chunk in bytes.chunks_mut(8) {
            let next = splitmix64(state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed));
            chunk.copy_from_slice(&next.to_le_bytes()[..chunk.len()]);
        }
    }
}

const fn splitmix64(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Makes 128-bit identifiers: 48 bits of milliseconds, then 80 random bits, so they sort by time.
#[derive(Debug)]
pub struct Ids {
    random: Random,
}

impl Ids {
    /// Identifiers from the given randomness.
    pub const fn new(random: Random) -> Self {
        Self { random }
    }

    /// A fresh identifier made at the time `clock` shows.
    pub fn fresh(&self, clock: &dyn Clock) -> u128 {
        let mut low = [0_u8; 16];
        self.random.fill(&mut low[6..]);
        (u128::from(clock.now_ms()) << 80) | u128::from_be_bytes(low)
    }

    /// The randomness behind the identifiers, for secrets and jitter.
    pub const fn random(&self) -> &Random {
        &self.random
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ManualClock;

    #[test]
    fn seeded_ids_repeat_and_sort_by_time() {
        let clock = ManualClock::new(1_000);
        let draw = || {
            let ids = Ids::new(Random::seeded(42));
            (ids.fresh(&clock), ids.fresh(&clock))
        };
        assert_eq!(draw(), draw());
        let ids = Ids::new(Random::system());
        let early = ids.fresh(&clock);
        clock.advance(1);
        assert!(ids.fresh(&clock) > early);
    }
}
