//! The part of a stream that is on disk: files of frames, named by the number they begin with.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use crate::error::LogError;
use crate::frame;
use crate::limits::Limits;
use crate::page::Batch;

const SUFFIX: &str = ".log";

/// Files of one stream.
#[derive(Debug)]
pub(crate) struct Spill {
    dir: PathBuf,
    limits: Limits,
    files: Mutex<VecDeque<SpillFile>>,
    tail: Mutex<Tail>,
}

#[derive(Debug, Clone, Copy)]
struct SpillFile {
    first: u64,
    bytes: u64,
    touched_ms: u64,
}

/// The file being written, once there was something to write. Whoever holds it writes alone.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    open: Option<(File, u64)>,
    scratch: Vec<u8>,
}

/// What the files of a stream say about it.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) spill: Spill,
    pub(crate) next: u64,
    pub(crate) ended: bool,
}

impl Spill {
    /// Opens the stream in `dir`, making it as needed; a torn end of its last file is cut off.
    pub(crate) fn open(dir: &Path, limits: Limits) -> Result<Recovered, LogError> {
        let open = || {
            fs::create_dir_all(dir)?;
            let mut files = scan(dir)?;
            let (next, ended) = match files.back_mut() {
                Some(last) => recover(&path_in(dir, last.first), last)?,
                None => (0, false),
            };
            Ok((files, next, ended))
        };
        let (files, next, ended) =
            open().map_err(|error| LogError::io("open the log in", dir, &error))?;
        let (dir, files) = (dir.to_owned(), Mutex::new(files));
        let spill = Self { dir, limits, files, tail: Mutex::default() };
        Ok(Recovered { spill, next, ended })
    }

    /// Waits for the right to write.
    pub(crate) fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> MutexGuard<'_, VecDeque<SpillFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the oldest entry on disk.
    pub(crate) fn first(&self) -> Option<u64> {
        self.files().front().map(|file| file.first)
    }

    /// Appends entries, in one call to the system.
    pub(crate) fn append(&self, tail: &mut Tail, batch: &Batch) -> Result<(), LogError> {
        if batch.is_empty() {
            return Ok(());
        }
        tail.scratch.clear();
        frame::encode(batch, &mut tail.scratch);
        self.write(tail, batch.first(), batch.last_time_ms())
    }

    /// Notes that the stream ended before the number `next`.
    pub(crate) fn append_end(&self, tail: &mut Tail, next: u64) -> Result<(), LogError> {
        tail.scratch.clear();
        frame::encode_end(next, &mut tail.scratch);
        self.write(tail, next, 0)
    }

    fn write(&self, tail: &mut Tail, first: u64, time_ms: u64) -> Result<(), LogError> {
        let fail = |error: &io::Error| LogError::io("write the log in", &self.dir, error);
        let (mut file, len) = match tail.open.take() {
            Some((file, len)) if len < self.limits.file_bytes => (file, len),
            Some(_) | None => self.next_file(first).map_err(|error| fail(&error))?,
        };
        if let Err(error) = file.write_all(&tail.scratch) {
            // What was written of it would be passed over by readers; it only wastes space.
            drop(file.set_len(len));
            return Err(fail(&error));
        }
        let written = tail.scratch.len() as u64;
        // A burst should not hold its memory for ever.
        tail.scratch.shrink_to(self.limits.flush_bytes.saturating_mul(2));
        tail.open = Some((file, len + written));
        let mut files = self.files();
        if let Some(last) = files.back_mut() {
            last.bytes = len + written;
            last.touched_ms = last.touched_ms.max(time_ms);
        }
        self.shrink(&mut files);
        Ok(())
    }

    /// Goes on with the last file while it has room, or starts one whose first entry is `first`.
    fn next_file(&self, first: u64) -> io::Result<(File, u64)> {
        let mut files = self.files();
        let reused = files.back().filter(|last| last.bytes < self.limits.file_bytes);
        let name = reused.map_or(first, |last| last.first);
        let path = path_in(&self.dir, name);
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let len = file.metadata()?.len();
        if reused.is_none() {
            files.push_back(SpillFile { first, bytes: len, touched_ms: 0 });
        }
        Ok((file, len))
    }

    fn shrink(&self, files: &mut VecDeque<SpillFile>) {
        let mut total: u64 = files.iter().map(|file| file.bytes).sum();
        while total > self.limits.disk_bytes && files.len() > 1 {
            total -= self.remove_oldest(files);
        }
    }

    fn remove_oldest(&self, files: &mut VecDeque<SpillFile>) -> u64 {
        let Some(oldest) = files.pop_front() else { return 0 };
        remove(&path_in(&self.dir, oldest.first));
        oldest.bytes
    }

    /// Removes files whose newest entry is too old; the one being written stays.
    pub(crate) fn sweep(&self, now_ms: u64) {
        let mut files = self.files();
        while files.len() > 1
            && files.front().is_some_and(|file| self.limits.outdated(file, now_ms))
        {
            self.remove_oldest(&mut files);
        }
    }

    /// The file in which the entry `seq` is, or else the first one after it.
    pub(crate) fn find(&self, seq: u64) -> Option<(u64, PathBuf)> {
        let files = self.files();
        let after = files.partition_point(|file| file.first <= seq);
        let file = files.get(after.saturating_sub(1))?;
        Some((file.first, path_in(&self.dir, file.first)))
    }

    /// The file that follows the one that begins with `first`.
    pub(crate) fn find_after(&self, first: u64) -> Option<(u64, PathBuf)> {
        let files = self.files();
        let file = files.get(files.partition_point(|file| file.first <= first))?;
        Some((file.first, path_in(&self.dir, file.first)))
    }
}

impl Limits {
    const fn outdated(&self, file: &SpillFile, now_ms: u64) -> bool {
        file.touched_ms.saturating_add(self.keep_ms) < now_ms
    }
}

/// Removes what is too old of a stream that nobody has open; all of it when nothing would be left.
pub(crate) fn sweep_closed(dir: &Path, limits: &Limits, now_ms: u64) -> Result<(), LogError> {
    let fail = |error: &io::Error| LogError::io("clean up the log in", dir, error);
    let files = scan(dir).map_err(|error| fail(&error))?;
    if files.iter().all(|file| limits.outdated(file, now_ms)) {
        return fs::remove_dir_all(dir).map_err(|error| fail(&error));
    }
    let old = files.iter().take_while(|file| limits.outdated(file, now_ms));
    for file in old {
        remove(&path_in(dir, file.first));
    }
    Ok(())
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "an old log file stays");
    }
}

fn path_in(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}{SUFFIX}"))
}

fn scan(dir: &Path) -> io::Result<VecDeque<SpillFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
        let Some(first) = number.and_then(|number| number.parse().ok()) else { continue };
        let meta = entry.metadata()?;
        let touched = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let touched_ms =
            touched.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        files.push(SpillFile { first, bytes: meta.len(), touched_ms });
    }
    files.sort_by_key(|file| file.first);
    Ok(files.into())
}

/// Reads the last file to learn how the stream ended; cuts a torn end off.
fn recover(path: &Path, last: &mut SpillFile) -> io::Result<(u64, bool)> {
    let bytes = fs::read(path)?;
    let (mut next, mut ended, mut whole) = (last.first, false, 0);
    while let Some(frame) = frame::find(&bytes, whole) {
        next = next.max(frame.end());
        ended = frame.count == 0;
        whole = frame.after;
    }
    if whole < bytes.len() {
        tracing::warn!(path = %path.display(), torn = bytes.len() - whole, "cut off a torn end");
        OpenOptions::new().write(true).open(path)?.set_len(whole as u64)?;
        last.bytes = whole as u64;
    }
    Ok((next, ended))
}
