//! One stream of entries.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::LogError;
use crate::limits::Limits;
use crate::reader::{Reader, Start};
use crate::ring::Ring;
use crate::spill::{Recovered, Spill, Tail};

/// One line or event to append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// When it was taken.
    pub time_ms: u64,
    /// Where it came from, as the writer numbers its sources.
    pub source: u8,
    /// Its bytes.
    pub data: &'a [u8],
}

/// One stream. Clones are the same stream; it may be written and read from any thread.
#[derive(Debug, Clone)]
pub struct LogBuffer {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    ring: Mutex<Ring>,
    pub(crate) spill: Option<Spill>,
    readers: AtomicU64,
}

impl Shared {
    pub(crate) fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is not on disk yet while holding `tail`, so that every entry is written once.
    fn spill(&self, spill: &Spill, tail: &mut Tail) -> Result<(), LogError> {
        let (batch, next) = {
            let ring = self.ring();
            (ring.unspilled(), ring.next())
        };
        let written = spill.append(tail, &batch);
        drop(batch);
        match &written {
            Ok(()) => self.ring().mark_spilled(next),
            Err(_) => self.ring().put_off_spill(),
        }
        written
    }
}

/// Unlocks the ring, then wakes everybody who waits for it.
fn wake(mut ring: MutexGuard<'_, Ring>) {
    let wakers = ring.take_wakers();
    drop(ring);
    for (_, waker) in wakers {
        waker.wake();
    }
}

impl LogBuffer {
    /// A stream that is kept in memory only.
    pub fn in_memory(limits: Limits) -> Self {
        Self::new(Ring::new(limits), None)
    }

    /// The stream in `dir`, which nobody else may have open. Blocks while it reads the last file.
    pub fn open(dir: &Path, limits: Limits) -> Result<Self, LogError> {
        let Recovered { spill, next, ended } = Spill::open(dir, limits)?;
        Ok(Self::new(Ring::continued(limits, next, ended), Some(spill)))
    }

    fn new(ring: Ring, spill: Option<Spill>) -> Self {
        let shared = Shared { ring: Mutex::new(ring), spill, readers: AtomicU64::new(0) };
        Self { shared: Arc::new(shared) }
    }

    /// Appends one line and returns its number. See [`Self::append_all`].
    pub fn append(&self, time_ms: u64, source: u8, data: &[u8]) -> Result<u64, LogError> {
        Ok(self.append_all([Line { time_ms, source, data }])?.start)
    }

    /// Appends lines and returns their numbers. Never waits for a reader.
    ///
    /// Now and then (see [`Limits::flush_bytes`]) this writes what waits to the files of the
    /// stream, without syncing them. A disk that refuses fails [`Self::flush`], not this: the
    /// entries stay in memory as long as they fit.
    pub fn append_all<'a>(
        &self,
        lines: impl IntoIterator<Item = Line<'a>>,
    ) -> Result<Range<u64>, LogError> {
        let mut ring = self.shared.ring();
        if ring.is_ended() {
            return Err(LogError::Ended);
        }
        let first = ring.next();
        for line in lines {
            ring.push(line);
        }
        let (next, wants_spill) = (ring.next(), ring.wants_spill());
        wake(ring);
        if wants_spill && let Err(error) = self.flush() {
            tracing::warn!(%error, "log lines stay in memory");
        }
        Ok(first..next)
    }

    /// Hands everything appended so far to the operating system.
    pub fn flush(&self) -> Result<(), LogError> {
        let Some(spill) = &self.shared.spill else { return Ok(()) };
        self.shared.spill(spill, &mut spill.tail())
    }

    /// Ends the stream: readers come to its end, writers are refused, also after a restart.
    pub fn end(&self) -> Result<(), LogError> {
        let mut ring = self.shared.ring();
        if !ring.end() {
            return Ok(());
        }
        let next = ring.next();
        wake(ring);
        let Some(spill) = &self.shared.spill else { return Ok(()) };
        let mut tail = spill.tail();
        self.shared.spill(spill, &mut tail)?;
        spill.append_end(&mut tail, next)
    }

    /// Whether it has ended.
    pub fn is_ended(&self) -> bool {
        self.shared.ring().is_ended()
    }

    /// The numbers of the entries that can be read: from the oldest to the one that comes next.
    pub fn range(&self) -> Range<u64> {
        let (first, next) = {
            let ring = self.shared.ring();
            (ring.first(), ring.next())
        };
        let spilled = self.shared.spill.as_ref().and_then(Spill::first);
        spilled.map_or(first, |spilled| spilled.min(first))..next
    }

    /// A reader that begins at `start`.
    pub fn reader(&self, start: Start) -> Reader {
        let range = self.range();
        let at = match start {
            Start::Oldest => range.start,
            Start::Now => range.end,
            Start::Last(count) => range.end.saturating_sub(count).max(range.start),
            // A number from before a crash may be higher than what was kept.
            Start::At(seq) => seq.min(range.end),
        };
        let id = self.shared.readers.fetch_add(1, Ordering::Relaxed);
        Reader::new(self.clone(), id, at)
    }

    /// Removes files that are older than [`Limits::keep_ms`] from disk.
    pub fn sweep(&self, now_ms: u64) {
        if let Some(spill) = &self.shared.spill {
            spill.sweep(now_ms);
        }
    }
}
