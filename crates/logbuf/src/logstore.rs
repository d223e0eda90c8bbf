//! Many streams: named, opened on demand, continued after a restart.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buffer::LogBuffer;
use crate::error::LogError;
use crate::limits::StoreLimits;
use crate::spill;

const MAX_ID_BYTES: usize = 128;
/// When room is needed, this part of the streams is closed at once.
const CLOSED_PART: usize = 8;

/// Of the streams that may be open, this part may be held by followers at once.
const FOLLOWED_PART: usize = 2;

/// Streams by name, in memory or in a directory:
///
/// ```text
/// ab/<name>/00000000000000000000.log      ab: from the checksum of the name
/// ```
#[derive(Debug)]
pub struct LogStore {
    root: Option<PathBuf>,
    limits: StoreLimits,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    streams: HashMap<String, Stream>,
    uses: u64,
}

#[derive(Debug)]
struct Stream {
    log: LogBuffer,
    used: u64,
}

impl Stream {
    /// Whether nobody else has it. New users come through the lock of the store only.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.log.shared) == 1
    }
}

impl LogStore {
    /// Streams that end with the process.
    pub fn in_memory(limits: StoreLimits) -> Self {
        Self { root: None, limits, open: Mutex::default() }
    }

    /// Streams in `root`, which nobody else may use.
    pub fn open(root: &Path, limits: StoreLimits) -> Result<Self, LogError> {
        fs::create_dir_all(root).map_err(|error| LogError::io("open", root, &error))?;
        Ok(Self { root: Some(root.to_owned()), limits, open: Mutex::default() })
    }

    /// The stream `id`, made as needed, for a moment; see [`Self::follow`]. May block on the disk.
    pub fn stream(&self, id: &str) -> Result<LogBuffer, LogError> {
        check_id(id)?;
        self.take(&mut self.lock(), id)
    }

    fn take(&self, open: &mut Open, id: &str) -> Result<LogBuffer, LogError> {
        open.uses += 1;
        let uses = open.uses;
        if let Some(stream) = open.streams.get_mut(id) {
            stream.used = uses;
            return Ok(stream.log.clone());
        }
        if open.streams.len() >= self.limits.open_streams {
            make_room(open, self.limits.open_streams)?;
        }
        let log = match &self.root {
            Some(root) => LogBuffer::open(&dir_of(root, id), self.limits.stream)?,
            None => LogBuffer::in_memory(self.limits.stream),
        };
        open.streams.insert(id.to_owned(), Stream { log: log.clone(), used: uses });
        Ok(log)
    }

    /// The stream `id` for somebody who holds it for long. At most half of the streams that may be
    /// open are held like that at once, so that there is always room for those who write.
    pub fn follow(&self, id: &str) -> Result<LogBuffer, LogError> {
        check_id(id)?;
        let limit = (self.limits.open_streams / FOLLOWED_PART).max(1);
        let mut open = self.lock();
        let held = |stream: &Stream| !stream.is_idle();
        if !open.streams.get(id).is_some_and(held)
            && open.streams.values().filter(|stream| held(stream)).count() >= limit
        {
            return Err(LogError::TooManyFollowed { limit });
        }
        self.take(&mut open, id)
    }

    /// The stream `id` if there is one.
    pub fn existing(&self, id: &str) -> Result<Option<LogBuffer>, LogError> {
        check_id(id)?;
        let known = self.lock().streams.contains_key(id)
            || self.root.as_ref().is_some_and(|root| dir_of(root, id).is_dir());
        if known { self.stream(id).map(Some) } else { Ok(None) }
    }

    /// Hands what all streams have appended to the operating system. All are tried; the first
    /// failure is returned.
    pub fn flush(&self) -> Result<(), LogError> {
        let logs: Vec<LogBuffer> =
            self.lock().streams.values().map(|stream| stream.log.clone()).collect();
        let failed = logs.iter().map(LogBuffer::flush).filter_map(Result::err);
        failed.reduce(|first, _| first).map_or(Ok(()), Err)
    }

    /// Forgets a stream and removes its files. Who still has it reads on from memory.
    pub fn remove(&self, id: &str) -> Result<(), LogError> {
        check_id(id)?;
        let mut open = self.lock();
        open.streams.remove(id);
        let Some(root) = &self.root else { return Ok(()) };
        let dir = dir_of(root, id);
        if let Err(error) = fs::remove_dir_all(&dir)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(LogError::io("remove", &dir, &error));
        }
        Ok(())
    }

    /// Removes entries older than their limit from disk, of open and closed streams. Streams of
    /// which nothing would be left go altogether, unless somebody has them. May take a while.
    pub fn sweep(&self, now_ms: u64) -> Result<(), LogError> {
        let Some(root) = &self.root else { return Ok(()) };
        for (id, dir) in stored(root).map_err(|error| LogError::io("list", root, &error))? {
            // Held for one stream at a time: nobody may open it while its files go.
            let mut open = self.lock();
            match open.streams.get(&id) {
                Some(stream) if !stream.is_idle() => stream.log.sweep(now_ms),
                Some(stream) => {
                    stream.log.flush()?;
                    open.streams.remove(&id);
                    spill::sweep_closed(&dir, &self.limits.stream, now_ms)?;
                }
                None => spill::sweep_closed(&dir, &self.limits.stream, now_ms)?,
            }
        }
        Ok(())
    }

    /// How many streams are open.
    pub fn open_streams(&self) -> usize {
        self.lock().streams.len()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LogStore {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::warn!(%error, "log lines were not written");
        }
    }
}

/// Closes the streams that were not used for the longest time.
fn make_room(open: &mut Open, limit: usize) -> Result<(), LogError> {
    let mut idle: Vec<(u64, String)> = open
        .streams
        .iter()
        .filter(|(_, stream)| stream.is_idle())
        .map(|(id, stream)| (stream.used, id.clone()))
        .collect();
    idle.sort_unstable();
    if idle.is_empty() {
        return Err(LogError::TooMany { limit });
    }
    idle.truncate((limit / CLOSED_PART).max(1));
    for (_, id) in idle {
        if let Some(stream) = open.streams.get(&id) {
            stream.log.flush()?;
        }
        open.streams.remove(&id);
    }
    Ok(())
}

fn check_id(id: &str) -> Result<(), LogError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let good =
        (1..=MAX_ID_BYTES).contains(&id.len()) && !id.starts_with('.') && id.bytes().all(allowed);
    if good { Ok(()) } else { Err(LogError::BadId { id: id.chars().take(MAX_ID_BYTES).collect() }) }
}

/// Spread over 256 directories, so that none of them gets too large.
fn dir_of(root: &Path, id: &str) -> PathBuf {
    let [shard, ..] = crc32fast::hash(id.as_bytes()).to_le_bytes();
    root.join(hex::encode([shard])).join(id)
}

fn stored(root: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for shard in fs::read_dir(root)? {
        let shard = shard?;
        if !shard.file_type()?.is_dir() {
            continue;
        }
        for stream in fs::read_dir(shard.path())? {
            let stream = stream?;
            let name = stream.file_name().to_string_lossy().into_owned();
            // Only what this store would look up again is its own.
            if check_id(&name).is_ok() && stream.path() == dir_of(root, &name) {
                found.push((name, stream.path()));
            }
        }
    }
    Ok(found)
}
