//! The part of a stream that is in memory: pages from the oldest to the one being filled.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use crate::buffer::Line;
use crate::limits::Limits;
use crate::page::{Batch, Page, Slice};

/// When a reader holds the page being filled, a page of at least this many entries is left to it
/// and another one started; a smaller one is copied.
const COPIED_ENTRIES: usize = 16;
/// Entries that could not be spilled are kept until memory use is this many times its limit.
const UNSPILLED_FACTOR: usize = 2;

/// What there is at a place in the stream.
#[derive(Debug)]
pub(crate) enum Look {
    /// Entries from there on.
    Batch(Batch),
    /// It is before the first entry in memory, which has this number.
    Behind(u64),
    /// Nothing yet.
    Nothing,
    /// Nothing, and nothing will come.
    Ended,
}

/// Pages of one stream, and who waits for more.
#[derive(Debug)]
pub(crate) struct Ring {
    limits: Limits,
    older: VecDeque<Arc<Page>>,
    newest: Arc<Page>,
    bytes: usize,
    entries: usize,
    /// Entries below are on disk, or need not be.
    spilled: u64,
    waiting_bytes: usize,
    ended: bool,
    wakers: Vec<(u64, Waker)>,
}

impl Ring {
    /// An empty ring of a stream that is in memory only.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            older: VecDeque::new(),
            newest: Arc::new(Page::starting_at(0)),
            bytes: 0,
            entries: 0,
            spilled: u64::MAX,
            waiting_bytes: 0,
            ended: false,
            wakers: Vec::new(),
        }
    }

    /// An empty ring of a stream whose entries below `next` are on disk.
    pub(crate) fn continued(limits: Limits, next: u64, ended: bool) -> Self {
        let newest = Arc::new(Page::starting_at(next));
        Self { newest, spilled: next, ended, ..Self::new(limits) }
    }

    pub(crate) fn first(&self) -> u64 {
        self.older.front().unwrap_or(&self.newest).first()
    }

    pub(crate) fn next(&self) -> u64 {
        self.newest.end()
    }

    pub(crate) const fn is_ended(&self) -> bool {
        self.ended
    }

    /// Whether enough waits for the disk that it should be written now.
    pub(crate) const fn wants_spill(&self) -> bool {
        self.waiting_bytes >= self.limits.flush_bytes && self.spilled != u64::MAX
    }

    pub(crate) fn push(&mut self, line: Line<'_>) {
        let held = Arc::get_mut(&mut self.newest).is_none();
        let full = self.newest.bytes() >= self.limits.page_bytes()
            || self.newest.len() >= self.limits.page_entries();
        if full || (held && self.newest.len() >= COPIED_ENTRIES) {
            let fresh = Arc::new(Page::starting_at(self.newest.end()));
            self.older.push_back(std::mem::replace(&mut self.newest, fresh));
        }
        let page = Arc::make_mut(&mut self.newest);
        let before = page.bytes();
        match cut(line.data, self.limits.line_bytes) {
            Some(cut) => page.push(line.time_ms, line.source, &cut),
            None => page.push(line.time_ms, line.source, line.data),
        }
        let added = page.bytes() - before;
        self.bytes += added;
        self.waiting_bytes += added;
        self.entries += 1;
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.over(1)
            && let Some(oldest) = self.older.front()
        {
            if oldest.end() > self.spilled && !self.over(UNSPILLED_FACTOR) {
                return;
            }
            self.bytes -= oldest.bytes();
            self.entries -= oldest.len();
            self.older.pop_front();
        }
    }

    const fn over(&self, factor: usize) -> bool {
        self.bytes > self.limits.memory_bytes.saturating_mul(factor)
            || self.entries > self.limits.memory_entries.saturating_mul(factor)
    }

    /// Up to `max` entries from the number `seq` on.
    pub(crate) fn look(&self, seq: u64, max: usize) -> Look {
        if seq < self.first() {
            return Look::Behind(self.first());
        }
        if seq >= self.next() {
            return if self.ended { Look::Ended } else { Look::Nothing };
        }
        Look::Batch(self.slices(seq, max.max(1)))
    }

    fn slices(&self, seq: u64, max: usize) -> Batch {
        let mut batch = Batch::default();
        let (mut seq, mut room) = (seq, max);
        let start = self.older.partition_point(|page| page.end() <= seq);
        for page in self.older.range(start..).chain([&self.newest]) {
            let slice = Slice::of(page, seq, room);
            room -= slice.len();
            seq += slice.len() as u64;
            batch.push(slice);
            if room == 0 {
                break;
            }
        }
        batch
    }

    /// Everything that is not on disk yet.
    pub(crate) fn unspilled(&self) -> Batch {
        let from = self.spilled.max(self.first());
        if from >= self.next() { Batch::default() } else { self.slices(from, usize::MAX) }
    }

    /// Entries below `end` are on disk now.
    pub(crate) fn mark_spilled(&mut self, end: u64) {
        self.spilled = end;
        self.waiting_bytes = 0;
        self.shrink();
    }

    /// Nothing could be written; it is tried again once as much again is waiting.
    pub(crate) const fn put_off_spill(&mut self) {
        self.waiting_bytes = 0;
    }

    /// Ends the stream; false when it had ended before.
    pub(crate) const fn end(&mut self) -> bool {
        !std::mem::replace(&mut self.ended, true)
    }

    /// Has `waker` woken by the next change; one per reader.
    pub(crate) fn wait(&mut self, reader: u64, waker: &Waker) {
        match self.wakers.iter_mut().find(|(id, _)| *id == reader) {
            Some((_, known)) => known.clone_from(waker),
            None => self.wakers.push((reader, waker.clone())),
        }
    }

    /// A reader that is gone need not be woken.
    pub(crate) fn forget(&mut self, reader: u64) {
        self.wakers.retain(|(id, _)| *id != reader);
    }

    /// Who waits; to be woken once the ring is unlocked.
    pub(crate) fn take_wakers(&mut self) -> Vec<(u64, Waker)> {
        std::mem::take(&mut self.wakers)
    }
}

/// A line that is too long, cut, with a note in its last bytes.
fn cut(data: &[u8], limit: usize) -> Option<Vec<u8>> {
    if data.len() <= limit {
        return None;
    }
    let note = format!(" [cut: the line had {} bytes]", data.len());
    let keep = limit.saturating_sub(note.len());
    let mut line = data[..char_boundary(data, keep)].to_vec();
    line.extend_from_slice(note.as_bytes());
    line.truncate(limit);
    Some(line)
}

/// The greatest index up to `at` that does not split a UTF-8 character.
fn char_boundary(data: &[u8], at: usize) -> usize {
    let continues = |index: usize| data.get(index).is_some_and(|byte| byte & 0xc0 == 0x80);
    (at.saturating_sub(3)..=at).rev().find(|&index| !continues(index)).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(data: &[u8]) -> Line<'_> {
        Line { time_ms: 0, source: 0, data }
    }

    #[test]
    fn long_lines_are_cut_between_characters_and_say_so() {
        assert_eq!(cut(b"short", 5), None);
        let long = "\u{e9}".repeat(100);
        let cut_line = String::from_utf8(cut(long.as_bytes(), 100).unwrap()).unwrap();
        assert!(cut_line.len() <= 100, "{cut_line}");
        assert!(cut_line.ends_with("\u{e9} [cut: the line had 200 bytes]"), "{cut_line}");
        assert_eq!(cut(&[b'x'; 50], 3).unwrap().len(), 3);
    }

    #[test]
    fn memory_is_bounded_even_while_nothing_can_be_spilled() {
        let limits = Limits { memory_bytes: 10_000, memory_entries: 100, ..Limits::default() };
        let in_memory = Ring::new(limits);
        let on_disk = Ring::continued(limits, 0, false);
        for (mut ring, factor) in [(in_memory, 1), (on_disk, UNSPILLED_FACTOR)] {
            for _ in 0..10_000 {
                ring.push(line(&[b'x'; 50]));
                assert!(ring.entries <= 100 * factor, "{}", ring.entries);
                assert!(ring.bytes <= 10_000 * factor, "{}", ring.bytes);
            }
            assert_eq!(ring.next() - ring.first(), ring.entries as u64);
        }
    }

    #[test]
    fn a_page_in_a_readers_hands_never_changes() {
        let mut ring = Ring::new(Limits::default());
        ring.push(line(b"a"));
        let Look::Batch(held) = ring.look(0, 9) else { panic!("one entry is there") };
        ring.push(line(b"b"));
        assert_eq!(held.len(), 1);
        assert!(ring.older.is_empty(), "a small page is copied, not left behind");
        let Look::Batch(both) = ring.look(0, 9) else { panic!("two entries are there") };
        assert_eq!(both.iter().map(|entry| entry.data).collect::<Vec<_>>(), [b"a", b"b"]);
    }
}
