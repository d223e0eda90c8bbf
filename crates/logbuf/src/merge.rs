//! Several streams read as one, in order of time.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use crate::error::LogError;
use crate::page::Entry;
use crate::reader::{Read, Reader};

/// Entries read ahead of each stream.
const LOOKAHEAD: usize = 64;

/// What one stream contributes next.
#[derive(Debug, Clone)]
pub struct Group<K> {
    /// Which stream.
    pub key: K,
    /// What it contributes.
    pub item: Item,
}

/// Something from one stream.
#[derive(Debug, Clone)]
pub enum Item {
    /// Consecutive entries.
    Entries(Vec<Entry>),
    /// The `count` entries from the number `from` on are no longer kept.
    Skipped {
        /// The first of them.
        from: u64,
        /// How many they are.
        count: u64,
    },
    /// The stream ended and is no longer part of the merge.
    Ended,
}

/// Follows several streams as one.
///
/// What is there is given in order of time; entries of one stream stay in their order. A stream
/// with nothing new is not waited for, so a line that arrives late comes late. Nothing is lost:
/// what was read ahead of one stream while another came first is kept for the next call.
#[derive(Debug)]
pub struct Merge<K> {
    sources: Vec<Source<K>>,
}

#[derive(Debug)]
struct Source<K> {
    key: K,
    reader: Reader,
    ahead: VecDeque<Entry>,
    mark: Option<Item>,
}

impl<K: Clone + PartialEq> Merge<K> {
    /// A merge of no streams.
    pub const fn new() -> Self {
        Self { sources: Vec::new() }
    }

    /// Adds a stream; it starts where `reader` stands.
    pub fn add(&mut self, key: K, reader: Reader) {
        self.sources.push(Source { key, reader, ahead: VecDeque::new(), mark: None });
    }

    /// Takes a stream out, with what was read ahead of it. Returns where to resume it.
    pub fn remove(&mut self, key: &K) -> Option<u64> {
        let index = self.sources.iter().position(|source| source.key == *key)?;
        Some(self.sources.remove(index).position())
    }

    /// How many streams are followed.
    pub const fn len(&self) -> usize {
        self.sources.len()
    }

    /// Whether none is followed any more.
    pub const fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Waits for the next entries, at most `max` of one stream; `None` once no stream is left.
    pub async fn next(&mut self, max: usize) -> Result<Option<Group<K>>, LogError> {
        while !self.sources.is_empty() {
            if let Some(group) = self.next_now(max).await? {
                return Ok(Some(group));
            }
            poll_fn(|cx| self.poll_ready(cx)).await;
        }
        Ok(None)
    }

    /// The next entries of those that are there; `None` when there is nothing new.
    pub async fn next_now(&mut self, max: usize) -> Result<Option<Group<K>>, LogError> {
        for source in &mut self.sources {
            source.fill().await?;
        }
        if let Some(marked) = self.marked() {
            return Ok(Some(marked));
        }
        let mut picked = Vec::new();
        let mut from = None;
        while picked.len() < max.max(1)
            && let Some(index) = self.earliest()
            && from.is_none_or(|from| from == index)
        {
            from = Some(index);
            picked.extend(self.sources[index].ahead.pop_front());
            // Another stream may be earlier than what this one has not read yet.
            if self.sources[index].ahead.is_empty() {
                break;
            }
        }
        let Some(index) = from else { return Ok(None) };
        Ok(Some(Group { key: self.sources[index].key.clone(), item: Item::Entries(picked) }))
    }

    /// A stream that has a gap or its end where its next entry would be.
    fn marked(&mut self) -> Option<Group<K>> {
        let is_next = |source: &Source<K>| source.ahead.is_empty() && source.mark.is_some();
        let index = self.sources.iter().position(is_next)?;
        let item = self.sources[index].mark.take()?;
        let key = self.sources[index].key.clone();
        if matches!(item, Item::Ended) {
            self.sources.remove(index);
        }
        Some(Group { key, item })
    }

    /// The stream with the earliest entry; of several the one that was added first.
    fn earliest(&self) -> Option<usize> {
        let heads = self.sources.iter().enumerate();
        heads
            .filter_map(|(index, source)| Some((source.ahead.front()?.get().time_ms, index)))
            .min()
            .map(|(_, index)| index)
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut ready = Poll::Pending;
        for source in &self.sources {
            if source.reader.poll_ready(cx).is_ready() {
                ready = Poll::Ready(());
            }
        }
        ready
    }
}

impl<K: Clone + PartialEq> Default for Merge<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K> Source<K> {
    async fn fill(&mut self) -> Result<(), LogError> {
        if !self.ahead.is_empty() || self.mark.is_some() {
            return Ok(());
        }
        match self.reader.batch_now(LOOKAHEAD).await? {
            Some(Read::Batch(batch)) => self.ahead.extend(batch.entries()),
            Some(Read::Skipped { from, count }) => self.mark = Some(Item::Skipped { from, count }),
            Some(Read::Ended) => self.mark = Some(Item::Ended),
            None => {}
        }
        Ok(())
    }

    fn position(&self) -> u64 {
        self.ahead.front().map_or_else(|| self.reader.position(), |entry| entry.get().seq)
    }
}
