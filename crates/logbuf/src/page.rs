//! Entries in memory: pages shared between the buffer and its readers, and views into them.

use std::ops::Range;
use std::sync::Arc;

/// What an entry costs in memory besides its bytes.
pub(crate) const ENTRY_OVERHEAD: usize = size_of::<Meta>();

#[derive(Debug, Clone, Copy)]
struct Meta {
    time_ms: u64,
    end: u32,
    source: u8,
}

/// A run of consecutive entries, their bytes side by side.
#[derive(Debug, Clone, Default)]
pub(crate) struct Page {
    first: u64,
    metas: Vec<Meta>,
    data: Vec<u8>,
}

impl Page {
    pub(crate) const fn starting_at(first: u64) -> Self {
        Self { first, metas: Vec::new(), data: Vec::new() }
    }

    pub(crate) const fn first(&self) -> u64 {
        self.first
    }

    pub(crate) const fn end(&self) -> u64 {
        self.first + self.metas.len() as u64
    }

    pub(crate) const fn len(&self) -> usize {
        self.metas.len()
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.data.len() + self.metas.len() * ENTRY_OVERHEAD
    }

    /// Adds an entry. The owner starts another page long before one holds 4 GiB.
    pub(crate) fn push(&mut self, time_ms: u64, source: u8, data: &[u8]) {
        self.data.extend_from_slice(data);
        let end = u32::try_from(self.data.len()).unwrap_or(u32::MAX);
        self.metas.push(Meta { time_ms, end, source });
    }

    fn entry(&self, index: usize) -> EntryRef<'_> {
        let meta = self.metas[index];
        let start = index.checked_sub(1).map_or(0, |before| self.metas[before].end);
        let data = &self.data[start as usize..meta.end as usize];
        EntryRef {
            seq: self.first + index as u64,
            time_ms: meta.time_ms,
            source: meta.source,
            data,
        }
    }
}

/// One entry of a stream, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// Its number in the stream.
    pub seq: u64,
    /// Its time, as the writer gave it.
    pub time_ms: u64,
    /// Where it came from, as the writer numbers its sources (stdout, stderr, …).
    pub source: u8,
    /// The line or event.
    pub data: &'a [u8],
}

/// One entry of a stream, shared with the buffer.
#[derive(Debug, Clone)]
pub struct Entry {
    page: Arc<Page>,
    index: usize,
}

impl Entry {
    /// The entry itself.
    pub fn get(&self) -> EntryRef<'_> {
        self.page.entry(self.index)
    }
}

/// Part of a page.
#[derive(Debug, Clone)]
pub(crate) struct Slice {
    page: Arc<Page>,
    range: Range<usize>,
}

impl Slice {
    /// The entries of `page` from number `seq` on, at most `max`.
    pub(crate) fn of(page: &Arc<Page>, seq: u64, max: usize) -> Self {
        let skip = seq.saturating_sub(page.first);
        let from = usize::try_from(skip).unwrap_or(usize::MAX).min(page.len());
        let to = page.len().min(from.saturating_add(max));
        Self { page: Arc::clone(page), range: from..to }
    }

    pub(crate) fn first(&self) -> u64 {
        self.page.first() + self.range.start as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.range.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = EntryRef<'_>> {
        self.range.clone().map(|index| self.page.entry(index))
    }
}

/// Consecutive entries. Cheap to clone and to keep: it shares memory with the buffer.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    slices: Vec<Slice>,
}

impl Batch {
    pub(crate) fn push(&mut self, slice: Slice) {
        if slice.len() > 0 {
            self.slices.push(slice);
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.slices.iter().map(Slice::len).sum()
    }

    /// Whether there are none. A batch from a reader has some.
    pub const fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// The number of the first entry.
    pub fn first(&self) -> u64 {
        self.slices.first().map_or(0, Slice::first)
    }

    /// The number after the last entry: where to resume.
    pub fn end(&self) -> u64 {
        self.first() + self.len() as u64
    }

    pub(crate) fn last_time_ms(&self) -> u64 {
        self.slices.last().and_then(|slice| slice.iter().last()).map_or(0, |last| last.time_ms)
    }

    /// The entries, borrowed.
    pub fn iter(&self) -> impl Iterator<Item = EntryRef<'_>> {
        self.slices.iter().flat_map(Slice::iter)
    }

    /// The entries, shared.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        self.slices.iter().flat_map(|slice| {
            slice.range.clone().map(|index| Entry { page: Arc::clone(&slice.page), index })
        })
    }
}
