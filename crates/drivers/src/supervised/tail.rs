//! Reads kept output while it is being written.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::{Buf as _, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream;

use super::life::Life;
use crate::error::DriverError;
use crate::output::{Chunk, Output, OutputOffset, OutputStream};
use crate::shim::{FILE_HEADER_BYTES, Record, file_start};

const READ_BYTES: usize = 64 << 10;
/// How many reads may pass before other tasks get a turn.
const READS_PER_TURN: u32 = 16;

/// A reader at some place of the output of one process.
#[derive(Debug)]
struct Tail {
    dir: PathBuf,
    /// The offset of the next byte to hand out.
    wanted: u64,
    current: Option<Current>,
}

/// An output file that is being read. It stays readable when the supervisor removes it.
#[derive(Debug)]
struct Current {
    file: File,
    start: u64,
    /// Where in the file the next read starts.
    position: u64,
    /// The offset of the first byte behind the next record header.
    offset: u64,
    pending: BytesMut,
}

/// What one look at the files gave.
enum Look {
    Found(Output),
    /// Read on: there was something, but nothing to hand out.
    Again,
    Nothing,
}

/// The output of a process from `from` on.
pub(crate) fn stream(dir: PathBuf, life: Life, from: OutputOffset) -> OutputStream {
    let tail = Tail { dir, wanted: from.0, current: None };
    stream::unfold(Some((tail, life)), |state| async move {
        let (mut tail, mut life) = state?;
        match tail.next(&mut life).await {
            Ok(Some(output)) => Some((Ok(output), Some((tail, life)))),
            Ok(None) => None,
            Err(error) => Some((Err(DriverError::io("read output", error)), None)),
        }
    })
    .boxed()
}

impl Tail {
    async fn next(&mut self, life: &mut Life) -> io::Result<Option<Output>> {
        let mut over = false;
        let mut reads = 0;
        loop {
            match self.look()? {
                Look::Found(output) => {
                    self.wanted = output.end().0;
                    return Ok(Some(output));
                }
                Look::Again => {
                    reads += 1;
                    if reads % READS_PER_TURN == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                Look::Nothing if over => return Ok(None),
                // What was written before the end was seen must still be read.
                Look::Nothing if life.is_over() => over = true,
                Look::Nothing => life.changed().await,
            }
        }
    }

    fn look(&mut self) -> io::Result<Look> {
        let Some(current) = &mut self.current else { return self.enter() };
        if let Some(record) = current.header()? {
            return current.take(record, self.wanted);
        }
        if current.fill()? {
            return Ok(Look::Again);
        }
        self.leave()
    }

    /// Opens the file that has the wanted offset, or else the first after it.
    fn enter(&mut self) -> io::Result<Look> {
        let files = files(&self.dir)?;
        let wanted = self.wanted;
        let holding = files.iter().rev().find(|start| **start <= wanted);
        let Some(start) = holding.or_else(|| files.first()).copied() else {
            return Ok(Look::Nothing);
        };
        self.open(start)
    }

    /// Goes to the next file once there is one, because then this one grows no more.
    fn leave(&mut self) -> io::Result<Look> {
        let Some(current) = &mut self.current else { return Ok(Look::Nothing) };
        let after = current.start;
        let Some(next) = files(&self.dir)?.into_iter().find(|start| *start > after) else {
            return Ok(Look::Nothing);
        };
        if current.fill()? {
            return Ok(Look::Again);
        }
        self.open(next)
    }

    fn open(&mut self, start: u64) -> io::Result<Look> {
        match Current::open(&self.dir, start) {
            Ok(current) => self.current = Some(current),
            // It was removed since it was listed: look again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.current = None;
                return Ok(Look::Again);
            }
            Err(error) => return Err(error),
        }
        if start <= self.wanted {
            return Ok(Look::Again);
        }
        let offset = OutputOffset(self.wanted);
        Ok(Look::Found(Output::Dropped { offset, bytes: start - self.wanted }))
    }
}

impl Current {
    fn open(dir: &Path, start: u64) -> io::Result<Self> {
        let file = File::open(dir.join(format!("output.{start:020}")))?;
        let pending = BytesMut::with_capacity(READ_BYTES);
        Ok(Self { file, start, position: FILE_HEADER_BYTES, offset: start, pending })
    }

    /// The next record's header, when the whole record was read.
    fn header(&self) -> io::Result<Option<Record>> {
        let Some(header) = self.pending.first_chunk::<{ Record::HEADER }>() else {
            return Ok(None);
        };
        let record = Record::from_header(*header)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "damaged output file"))?;
        let whole = self.pending.len() >= Record::HEADER + record.bytes as usize;
        Ok(whole.then_some(record))
    }

    fn take(&mut self, record: Record, wanted: u64) -> io::Result<Look> {
        self.pending.advance(Record::HEADER);
        let mut bytes = self.pending.split_to(record.bytes as usize).freeze();
        let start = self.offset;
        self.offset += u64::from(record.bytes);
        if self.offset <= wanted {
            return Ok(Look::Again);
        }
        let skipped = wanted.saturating_sub(start);
        bytes.advance(usize::try_from(skipped).map_err(io::Error::other)?);
        let offset = OutputOffset(start + skipped);
        Ok(Look::Found(Output::Chunk(Chunk { source: record.source, offset, bytes })))
    }

    /// Reads more; false at the end of what there is.
    fn fill(&mut self) -> io::Result<bool> {
        let have = self.pending.len();
        self.pending.resize(have + READ_BYTES, 0);
        let room = self.pending.get_mut(have..).unwrap_or_default();
        let read = self.file.read_at(room, self.position);
        self.pending.truncate(have + read.as_ref().map_or(0, |read| *read));
        let read = read?;
        self.position += read as u64;
        Ok(read > 0)
    }
}

/// The offsets output files start at, in order. A removed directory has none.
fn files(dir: &Path) -> io::Result<Vec<u64>> {
    let listing = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut starts = Vec::new();
    for file in listing {
        starts.extend(file?.file_name().to_str().and_then(file_start));
    }
    starts.sort_unstable();
    Ok(starts)
}
