//! A place in a stream, and the way on from there.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::buffer::LogBuffer;
use crate::error::LogError;
use crate::frame;
use crate::page::{Batch, Page, Slice};
use crate::ring::Look;
use crate::spill::Spill;

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the oldest entry there is.
    Oldest,
    /// At most this many entries before the end.
    Last(u64),
    /// With what comes next.
    Now,
    /// At the entry with this number; use [`Reader::position`] or [`Batch::end`] to resume.
    At(u64),
}

/// What a reader found.
#[derive(Debug, Clone)]
pub enum Read {
    /// Entries, in order and without a gap.
    Batch(Batch),
    /// The `count` entries from the number `from` on are no longer kept.
    Skipped {
        /// The first of them.
        from: u64,
        /// How many they are.
        count: u64,
    },
    /// The stream ended.
    Ended,
}

/// Reads a stream, at its own pace. Dropping a future of it loses nothing.
#[derive(Debug)]
pub struct Reader {
    log: LogBuffer,
    id: u64,
    at: u64,
    cursor: Option<Cursor>,
}

/// A file being read, held whole: files are small.
#[derive(Debug)]
struct Cursor {
    first: u64,
    bytes: Vec<u8>,
    at: usize,
    page: Arc<Page>,
}

impl Reader {
    pub(crate) const fn new(log: LogBuffer, id: u64, at: u64) -> Self {
        Self { log, id, at, cursor: None }
    }

    /// The number of the entry that is read next.
    pub const fn position(&self) -> u64 {
        self.at
    }

    /// Waits for entries and returns at most `max` of them.
    pub async fn next_batch(&mut self, max: usize) -> Result<Read, LogError> {
        loop {
            if let Some(read) = self.batch_now(max).await? {
                return Ok(read);
            }
            poll_fn(|cx| self.poll_ready(cx)).await;
        }
    }

    /// Returns at most `max` of the entries that are there; `None` when there is nothing new.
    ///
    /// Waits for the disk, when it has to read from there, but never for a writer.
    pub async fn batch_now(&mut self, max: usize) -> Result<Option<Read>, LogError> {
        let look = self.log.shared.ring().look(self.at, max);
        Ok(match look {
            Look::Batch(batch) => {
                self.cursor = None;
                self.at = batch.end();
                Some(Read::Batch(batch))
            }
            Look::Behind(kept) => Some(self.catch_up(kept, max.max(1)).await?),
            Look::Nothing => None,
            Look::Ended => Some(Read::Ended),
        })
    }

    /// Ready once [`Self::batch_now`] has something.
    pub(crate) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut ring = self.log.shared.ring();
        if self.at < ring.next() || ring.is_ended() {
            return Poll::Ready(());
        }
        ring.wait(self.id, cx.waker());
        Poll::Pending
    }

    /// Reads from disk, or skips to `kept`, the first entry in memory.
    async fn catch_up(&mut self, kept: u64, max: usize) -> Result<Read, LogError> {
        let log = self.log.clone();
        let found = match &log.shared.spill {
            Some(spill) => self.seek(spill).await?,
            None => None,
        };
        let Some(page) = found.filter(|page| page.first() < kept) else {
            return Ok(self.skip_to(kept));
        };
        if page.first() > self.at {
            return Ok(self.skip_to(page.first()));
        }
        let mut batch = Batch::default();
        batch.push(Slice::of(&page, self.at, max));
        self.at = batch.end();
        Ok(Read::Batch(batch))
    }

    const fn skip_to(&mut self, seq: u64) -> Read {
        let (from, count) = (self.at, seq - self.at);
        self.at = seq;
        Read::Skipped { from, count }
    }

    /// The page on disk that has the entry `self.at`, or else the first one after it.
    async fn seek(&mut self, spill: &Spill) -> Result<Option<Arc<Page>>, LogError> {
        let mut file = match self.cursor.take() {
            Some(mut cursor) => {
                if cursor.forward(self.at) {
                    return Ok(Some(self.keep(cursor)));
                }
                // The file may have grown since it was read; if it has nothing new, go on.
                spill.find(self.at.max(cursor.first))
            }
            None => spill.find(self.at),
        };
        while let Some((first, path)) = file {
            if let Some(mut cursor) = Cursor::open(first, path).await?
                && cursor.forward(self.at)
            {
                return Ok(Some(self.keep(cursor)));
            }
            file = spill.find_after(first);
        }
        Ok(None)
    }

    fn keep(&mut self, cursor: Cursor) -> Arc<Page> {
        Arc::clone(&self.cursor.insert(cursor).page)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.log.shared.ring().forget(self.id);
    }
}

impl Cursor {
    /// `None` when the file was removed meanwhile.
    async fn open(first: u64, path: PathBuf) -> Result<Option<Self>, LogError> {
        match tokio::fs::read(&path).await {
            Ok(bytes) => {
                let page = Arc::new(Page::starting_at(first));
                Ok(Some(Self { first, bytes, at: 0, page }))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LogError::io("read", &path, &error)),
        }
    }

    /// Moves to the page that has the entry `seq` or is the first one after it.
    fn forward(&mut self, seq: u64) -> bool {
        if self.page.len() > 0 && seq < self.page.end() {
            return true;
        }
        while let Some(frame) = frame::find(&self.bytes, self.at) {
            self.at = frame.after;
            if frame.end() > seq {
                self.page = Arc::new(frame.page());
                return self.page.len() > 0;
            }
        }
        false
    }
}
