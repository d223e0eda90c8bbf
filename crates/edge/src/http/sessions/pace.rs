//! How fast what carries no bytes is taken from a client: sizes, signals, pings, tiny credits.
//!
//! Bytes are bounded by credit. These are not, and each of them is work for the server and for a
//! cell, so a client that sends more of them is read more slowly. Nothing is lost.

use std::time::{Duration, Instant};

/// How many are taken at once from a client that was quiet.
pub(super) const BURST: u32 = 128;
/// How many are taken in a second after that: more than a window that is drawn larger has sizes.
pub(super) const PER_SECOND: u32 = 100;

/// How long it takes until one more may be taken.
const EACH: Duration = Duration::from_millis(1_000 / PER_SECOND as u64);

/// The pace of one client.
#[derive(Debug)]
pub(super) struct Pace {
    /// When as many may be taken as ever.
    full: Instant,
}

impl Pace {
    pub(super) const fn new(now: Instant) -> Self {
        Self { full: now }
    }

    /// Takes one. Gives when the client may be read again, if not now.
    pub(super) fn take(&mut self, now: Instant) -> Option<Instant> {
        self.full = self.full.max(now) + EACH;
        let next = self.full.checked_sub(EACH * BURST).unwrap_or(now);
        (next > now).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use runtime::mono_now;

    use super::*;

    #[test]
    fn a_burst_is_free_and_more_has_a_pace() {
        let now = mono_now();
        let mut pace = Pace::new(now);
        let at_once = (0..BURST).filter(|_| pace.take(now).is_none()).count();
        assert_eq!(at_once, BURST as usize);
        // From here on each has to wait for one more.
        for more in 1..=PER_SECOND {
            assert_eq!(pace.take(now), Some(now + EACH * more));
        }
        // What was waited for is free once; a pause gives all of it back.
        let later = now + EACH * (PER_SECOND + 1);
        assert_eq!(pace.take(later), None);
        assert!(pace.take(later).is_some());
        let long_after = later + EACH * (2 * BURST);
        let at_once = (0..2 * BURST).filter(|_| pace.take(long_after).is_none()).count();
        assert_eq!(at_once, BURST as usize);
    }

    #[test]
    fn legitimate_use_never_waits() {
        let start = mono_now();
        let mut pace = Pace::new(start);
        // A window that is drawn larger for ten seconds, sixty sizes a second.
        for frame in 0..600_u32 {
            let now = start + Duration::from_micros(16_667) * frame;
            assert_eq!(pace.take(now), None);
        }
    }
}
