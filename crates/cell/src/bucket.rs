//! How much of what a container says is kept: so many bytes a second, with room for bursts.
//!
//! What is too much is counted, and the count is said in the log it is missing from. Nothing ever
//! waits for this, and no other container is concerned.

use std::time::{Duration, Instant};

use crate::limits::{LOG_BURST_SECONDS, LOG_BYTES, MAX_LINE};

/// How long what was dropped is gathered before it is said.
const GATHER: Duration = Duration::from_secs(1);

/// Lets lines through as far as there is room.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: u64,
    /// Bytes that may be let through now.
    tokens: u64,
    filled: Instant,
    dropped: Dropped,
    /// When what was dropped is to be said.
    due: Option<Instant>,
}

/// What was not let through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) lines: u64,
    pub(crate) bytes: u64,
}

impl Bucket {
    pub(crate) fn new(rate: Option<u64>, now: Instant) -> Self {
        let rate = rate.unwrap_or(LOG_BYTES);
        let dropped = Dropped::default();
        let mut new = Self { rate, tokens: 0, filled: now, dropped, due: None };
        new.tokens = new.size();
        new
    }

    /// Any line fits, however low the rate.
    fn size(&self) -> u64 {
        self.rate.saturating_mul(LOG_BURST_SECONDS).max(MAX_LINE as u64 + 1)
    }

    /// Room for what was written while nobody could read it.
    pub(crate) fn credit(&mut self, time: Duration) {
        self.tokens = self.tokens.saturating_add(self.worth(time));
    }

    fn worth(&self, time: Duration) -> u64 {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.rate.saturating_mul(micros) / 1_000_000
    }

    /// Whether a line of so many bytes is kept.
    pub(crate) fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let gained = self.worth(now.saturating_duration_since(self.filled));
        if gained > 0 {
            self.filled = now;
            // What was credited stays.
            self.tokens = self.tokens.max(self.tokens.saturating_add(gained).min(self.size()));
        }
        // Its line end counts, too.
        let bytes = bytes as u64 + 1;
        if let Some(left) = self.tokens.checked_sub(bytes) {
            self.tokens = left;
            return true;
        }
        self.dropped.lines += 1;
        self.dropped.bytes += bytes;
        self.due.get_or_insert(now + GATHER);
        false
    }

    /// When the next count is to be said.
    pub(crate) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What was dropped since the last time, in words.
    pub(crate) fn report(&mut self) -> Option<(Dropped, String)> {
        self.due.take()?;
        let dropped = std::mem::take(&mut self.dropped);
        let lines = grouped(dropped.lines);
        let noun = if dropped.lines == 1 { "line" } else { "lines" };
        let (bytes, rate) = (sized(dropped.bytes), sized(self.rate));
        Some((dropped, format!("longshore: {lines} {noun} ({bytes}) dropped: over {rate}/s")))
    }
}

/// `1,234`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `5 MB`, `12 KB`, `7 bytes`
fn sized(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} bytes"),
        1_024..1_048_576 => format!("{} KB", bytes >> 10),
        1_048_576.. => format!("{} MB", grouped(bytes >> 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::mono_now;

    #[test]
    fn bursts_pass_and_floods_are_counted() {
        let now = mono_now();
        let mut bucket = Bucket::new(Some(1 << 20), now);
        let line = 1_023;
        let passed = (0..6_000).filter(|_| bucket.take(line, now)).count();
        assert_eq!(passed, 4 << 10, "four seconds' worth");
        assert_eq!(bucket.due(), Some(now + GATHER));
        let (dropped, text) = bucket.report().expect("something was dropped");
        assert_eq!(dropped, Dropped { lines: 1_904, bytes: 1_904 << 10 });
        assert_eq!(text, "longshore: 1,904 lines (1 MB) dropped: over 1 MB/s");
        assert_eq!((bucket.report(), bucket.due()), (None, None));
        let later = now + Duration::from_millis(500);
        let passed = (0..6_000).filter(|_| bucket.take(line, later)).count();
        assert_eq!(passed, 512);
        // An hour of silence is worth a burst; an hour of waiting is worth all of it.
        let later = later + Duration::from_hours(1);
        assert_eq!((0..6_000).filter(|_| bucket.take(line, later)).count(), 4 << 10);
        bucket.credit(Duration::from_secs(8));
        let passed = (0..20_000).filter(|_| bucket.take(line, later)).count();
        assert_eq!(passed, 8 << 10);
    }

    #[test]
    fn any_line_passes_some_time() {
        let now = mono_now();
        let mut bucket = Bucket::new(Some(1), now);
        assert!(bucket.take(MAX_LINE, now) && !bucket.take(MAX_LINE, now));
        assert!(bucket.take(MAX_LINE, now + Duration::from_hours(24)));
        let (_, text) = bucket.report().expect("one was dropped");
        assert_eq!(text, "longshore: 1 line (64 KB) dropped: over 1 bytes/s");
    }
}
