//! Wall clock, monotonic clock and timers.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Reads wall time. Durable deadlines use it; measuring and fencing use [`mono_now`].
pub trait Clock: Send + Sync + Debug {
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64;

    /// Tells it that this moment has been, as far as others know. A clock that can goes on from
    /// there when it shows an earlier one.
    fn has_been(&self, _ms: u64) {}
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Wall time for leases: it goes on only as far as this process was there to hear from others.
///
/// A process that is stopped, a machine that sleeps and a clock that is set all look like time in
/// which nobody reported. This clock leaves such time out, then catches up with the wall a little
/// at a time: it never jumps and never goes back. Somebody has to read it often; see
/// [`SteadyClock::keep_up`].
#[derive(Debug)]
pub struct SteadyClock(Mutex<Shown>);

/// The longest time between two readings that counts.
const LONGEST_STEP: Duration = Duration::from_secs(1);
/// How often it is read at least.
const READ_EVERY: Duration = Duration::from_millis(250);
/// How much faster or slower it goes while it is wrong: an eighth.
const CATCH_UP: u32 = 8;

/// The farthest a steady clock is put ahead of the wall by [`Clock::has_been`]: it would need eight
/// times as long to be right again.
const FARTHEST_AHEAD: Duration = Duration::from_hours(24);

/// What a steady clock showed last.
#[derive(Debug)]
struct Shown {
    /// Time since the Unix epoch.
    time: Duration,
    at: Instant,
}

impl Shown {
    /// The next reading, with the wall's time then.
    fn read(&mut self, at: Instant, wall: Duration) -> Duration {
        let step = at.saturating_duration_since(self.at).min(LONGEST_STEP);
        self.at = self.at.max(at);
        let (even, most) = (self.time + step, step / CATCH_UP);
        let behind = wall.saturating_sub(even).min(most);
        let ahead = even.saturating_sub(wall).min(most);
        self.time = (even + behind).saturating_sub(ahead);
        self.time
    }
}

impl SteadyClock {
    /// Starts with the machine's time.
    pub fn new() -> Self {
        let time = Duration::from_millis(SystemClock.now_ms());
        Self(Mutex::new(Shown { time, at: mono_now() }))
    }

    /// Reads the clock often enough for all of the time to count; never ends.
    pub async fn keep_up(&self) {
        loop {
            self.now_ms();
            sleep(READ_EVERY).await;
        }
    }
}

impl Default for SteadyClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SteadyClock {
    fn now_ms(&self) -> u64 {
        let wall = Duration::from_millis(SystemClock.now_ms());
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        u64::try_from(shown.read(mono_now(), wall).as_millis()).unwrap_or(u64::MAX)
    }

    fn has_been(&self, ms: u64) {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = Duration::from_millis(ms);
        if known <= shown.time + FARTHEST_AHEAD {
            shown.time = shown.time.max(known);
        }
    }
}

/// A clock that moves only when told to, for tests and simulations.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// A clock that shows `now_ms`.
    pub const fn new(now_ms: u64) -> Self {
        Self(AtomicU64::new(now_ms))
    }

    /// Moves the clock by `ms` milliseconds.
    pub fn advance(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// The monotonic clock: for measuring and for local deadlines, never for records.
pub fn mono_now() -> Instant {
    Instant::now()
}

/// Sleeps for `duration`.
pub async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// Sleeps until the monotonic instant `at`.
pub async fn sleep_until(at: Instant) {
    tokio::time::sleep_until(at.into()).await;
}

/// Runs `future` for at most `limit`; `None` when the limit came first.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(limit, future).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Reads four times a second while `at` and the wall go on for so long; what it shows then.
    fn go_on(shown: &mut Shown, wall: &mut Duration, length: Duration) -> Duration {
        let end = shown.at + length;
        while shown.at < end {
            *wall += READ_EVERY;
            shown.read(shown.at + READ_EVERY, *wall);
        }
        shown.time
    }

    #[test]
    fn time_in_which_nobody_was_there_is_left_out_and_caught_up_with() {
        let mut wall = 1_000 * SECOND;
        let mut shown = Shown { time: wall, at: mono_now() };
        assert_eq!(go_on(&mut shown, &mut wall, 5 * SECOND), wall);
        wall += 60 * SECOND;
        let before = shown.time;
        let after = shown.read(shown.at + 60 * SECOND, wall);
        assert!(after <= before + LONGEST_STEP * 9 / 8, "a stop counts as little");
        assert_eq!(go_on(&mut shown, &mut wall, 8 * SECOND), after + 9 * SECOND);
        assert_eq!(go_on(&mut shown, &mut wall, 600 * SECOND), wall, "it has caught up");
    }

    #[test]
    fn a_moment_that_has_been_does_not_come_again() {
        let clock = SteadyClock::new();
        let now = clock.now_ms();
        let (hour, year) = (3_600_000, 365 * 24 * 3_600_000);
        clock.has_been(now - hour);
        assert!((now..now + hour).contains(&clock.now_ms()));
        clock.has_been(now + hour);
        assert!((now + hour..now + 2 * hour).contains(&clock.now_ms()));
        clock.has_been(now + year);
        assert!(clock.now_ms() < now + 2 * hour, "it would never be right again");
    }

    #[test]
    fn a_clock_that_is_set_moves_nothing_at_once() {
        for set in [3_600, -3_600] {
            let mut wall = 10_000 * SECOND;
            let mut shown = Shown { time: wall, at: mono_now() };
            wall =
                if set > 0 { wall + 3_600 * SECOND } else { wall.saturating_sub(3_600 * SECOND) };
            let before = shown.time;
            let after = go_on(&mut shown, &mut wall, 16 * SECOND);
            let passed = after.checked_sub(before).expect("it never goes back");
            assert!((14 * SECOND..=18 * SECOND).contains(&passed), "{set}: {passed:?} in 16 s");
        }
    }
}
