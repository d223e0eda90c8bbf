//! Keeps output in a bounded number of bounded files.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use super::record::{
    FILE_HEADER_BYTES, HEADER_BYTES, KEPT_BYTES_PER_FILE, KEPT_FILES, MAGIC, Record, file_name,
};
use crate::output::Source;

/// Writes records. A full disk drops bytes instead of stopping the process; the reader sees a gap.
#[derive(Debug)]
pub(super) struct Keeper {
    dir: PathBuf,
    current: Option<Current>,
    /// Offsets of the files there are, oldest first.
    files: VecDeque<u64>,
    offset: u64,
}

#[derive(Debug)]
struct Current {
    file: File,
    bytes: u64,
}

impl Keeper {
    pub(super) const fn new(dir: PathBuf) -> Self {
        Self { dir, current: None, files: VecDeque::new(), offset: 0 }
    }

    /// Keeps `bytes` bytes that lie in `buffer` behind room for a header.
    pub(super) fn append(&mut self, source: Source, buffer: &mut [u8], bytes: usize) {
        let length = u32::try_from(bytes).unwrap_or(u32::MAX);
        if let Some(header) = buffer.first_chunk_mut::<HEADER_BYTES>() {
            *header = Record { source, bytes: length }.to_header();
        }
        let record = buffer.get(..HEADER_BYTES + bytes).unwrap_or_default();
        if self.write(record).is_err() {
            // What follows goes to a new file whose name tells the gap.
            self.current = None;
        }
        self.offset += u64::from(length);
    }

    fn write(&mut self, record: &[u8]) -> io::Result<()> {
        if self.current.as_ref().is_none_or(|current| current.bytes >= KEPT_BYTES_PER_FILE) {
            self.current = Some(self.open()?);
        }
        let Some(current) = &mut self.current else { return Ok(()) };
        if let Err(error) = current.file.write_all(record) {
            current.file.set_len(current.bytes)?;
            return Err(error);
        }
        current.bytes += record.len() as u64;
        Ok(())
    }

    fn open(&mut self) -> io::Result<Current> {
        while self.files.len() >= KEPT_FILES {
            let Some(oldest) = self.files.pop_front() else { break };
            fs::remove_file(self.dir.join(file_name(oldest)))?;
        }
        let path = self.dir.join(file_name(self.offset));
        let mut file = File::options().append(true).create(true).mode(0o600).open(path)?;
        if self.files.back() != Some(&self.offset) {
            self.files.push_back(self.offset);
        }
        file.set_len(0)?;
        file.write_all(MAGIC)?;
        Ok(Current { file, bytes: FILE_HEADER_BYTES })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_becomes_a_gap_between_files() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let blocked = dir.path().join("state");
        let mut keeper = Keeper::new(blocked.clone());
        let mut buffer = [7; HEADER_BYTES + 10];
        keeper.append(Source::Stdout, &mut buffer, 10);
        fs::create_dir(&blocked).expect("makes a directory");
        keeper.append(Source::Stderr, &mut buffer, 10);
        keeper.append(Source::Stdout, &mut buffer, 3);
        let kept = fs::read(blocked.join(file_name(10))).expect("starts at the first kept byte");
        let records = kept.strip_prefix(MAGIC).expect("starts with the magic");
        assert_eq!(records.len(), 2 * HEADER_BYTES + 13);
        assert!(records.starts_with(&[2, 10, 0, 0, 0, 7]));
    }
}
