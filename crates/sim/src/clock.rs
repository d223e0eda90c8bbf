//! The server's clock, as `runtime::SteadyClock` shows the time.

use crate::planted;

/// It goes an eighth faster or slower while it is wrong.
pub(crate) const CATCH_UP: u64 = 8;
/// The longest time between two readings that counts, in milliseconds.
const LONGEST_STEP: u64 = 1_000;

/// What the machine's clock shows, and what the server makes of it.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// How far the machine's clock is ahead of true time.
    skew: i64,
    /// What was shown at `at`, a moment of true time.
    shown: u64,
    at: u64,
    /// Whether the process is stopped.
    stands: bool,
}

impl Clock {
    const fn machine(&self, now: u64) -> u64 {
        now.saturating_add_signed(self.skew)
    }

    /// The time it shows. Since it is read often, the way there is a straight line.
    pub(crate) fn read(&self, now: u64) -> u64 {
        if planted::is("M7") {
            return self.machine(now);
        }
        let step = now - self.at;
        let (even, most) = (self.shown + step, step / CATCH_UP);
        let behind = self.machine(now).saturating_sub(even).min(most);
        let ahead = even.saturating_sub(self.machine(now)).min(most);
        even + behind - ahead
    }

    fn hold(&mut self, now: u64) {
        (self.shown, self.at) = (self.read(now), now);
    }

    /// The server's process starts: it begins with the machine's time.
    pub(crate) fn start(&mut self, now: u64) {
        (self.shown, self.at) = (self.machine(now), now);
    }

    /// This moment has been, as far as others know.
    pub(crate) fn has_been(&mut self, now: u64, at: u64) {
        self.hold(now);
        self.shown = self.shown.max(at);
    }

    /// The machine's clock is set.
    pub(crate) fn jump(&mut self, now: u64, by: i64) {
        if !self.stands {
            self.hold(now);
        }
        self.skew += by;
    }

    /// The server's process is stopped: nobody reads the clock.
    pub(crate) fn stop(&mut self, now: u64) {
        self.hold(now);
        self.stands = true;
    }

    /// The process goes on; how much of the time does not count.
    pub(crate) fn go_on(&mut self, now: u64) -> u64 {
        let counts = (now - self.at).min(LONGEST_STEP);
        let lost = now - self.at - counts;
        self.shown += counts;
        self.at = now;
        self.stands = false;
        lost
    }
}
