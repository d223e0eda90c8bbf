//! Exponential back-off with full jitter.

use std::time::Duration;

use crate::Random;

/// Delays that double from `base` to `cap`, each drawn uniformly from its upper half.
///
/// The upper half keeps a reconnecting fleet spread out and still guarantees a minimum pause.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    /// A back-off that starts at `base` and never exceeds `cap`.
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempt: 0 }
    }

    /// The next delay.
    pub fn next_delay(&mut self, random: &Random) -> Duration {
        let doubled = self.base.saturating_mul(2_u32.saturating_pow(self.attempt)).min(self.cap);
        self.attempt = self.attempt.saturating_add(1);
        let half = doubled / 2;
        let span = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_micros(random.next_u64() % span)
    }

    /// Starts over after a success.
    pub const fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_and_reset() {
        let random = Random::seeded(7);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let delays: Vec<Duration> = (0..8).map(|_| backoff.next_delay(&random)).collect();
        for (attempt, delay) in delays.iter().enumerate() {
            let full = Duration::from_millis(100 << attempt).min(Duration::from_secs(2));
            assert!(*delay >= full / 2 && *delay <= full, "attempt {attempt}: {delay:?}");
        }
        backoff.reset();
        assert!(backoff.next_delay(&random) <= Duration::from_millis(100));
    }
}
