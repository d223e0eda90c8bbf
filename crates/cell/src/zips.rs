//! Opens zip archives whose tables of contents are not trusted.
//!
//! Whoever reads an archive holds its whole table in memory. So what the records at its end say is
//! looked at first, and what is read of the table is limited: the records may not be true.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config};

use crate::checksum::permanent;
use crate::limits::{MAX_ZIP_ENTRIES, MAX_ZIP_TABLE};

/// The record at the end, how it begins, and where in it the size of the table is.
const END: (&[u8], usize) = (b"PK\x05\x06", 12);
/// The record before it that says where the large one is, where in it, and how long it is.
const LOCATOR: (&[u8], usize, usize) = (b"PK\x06\x07", 8, 20);
/// The large record with numbers of 64 bits.
const LARGE_END: &[u8] = b"PK\x06\x06";
/// Where in it its own size is, the number of entries and the size of the table; its length.
const LARGE_FIELDS: ([usize; 3], usize) = ([4, 32, 40], 56);
/// A comment of at most 64 KiB may follow the last record.
const TAIL_BYTES: u64 = 66 << 10;
/// What is read besides the table.
const AROUND_BYTES: u64 = 1 << 20;

/// A file of which so much may still be read.
pub(crate) struct Metered {
    file: File,
    left: Arc<AtomicU64>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.load(Ordering::Relaxed);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 && !buffer.is_empty() {
            return Err(too_large());
        }
        let read = self.file.read(buffer.get_mut(..most).unwrap_or_default())?;
        self.left.store(left - read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Seek for Metered {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

fn too_large() -> io::Error {
    permanent(format!("its table is larger than {} MiB", MAX_ZIP_TABLE >> 20))
}

/// Opens an archive that begins where the file does.
pub(crate) fn open(file: File) -> io::Result<ZipArchive<Metered>> {
    check(&file).map_err(|error| unreadable(&error))?;
    let left = Arc::new(AtomicU64::new(MAX_ZIP_TABLE + AROUND_BYTES));
    let metered = Metered { file, left: Arc::clone(&left) };
    // Nothing is searched for in the whole of it.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let archive = ZipArchive::with_config(config, metered).map_err(|error| unreadable(&error))?;
    left.store(u64::MAX, Ordering::Relaxed);
    Ok(archive)
}

pub(crate) fn unreadable(error: &impl fmt::Display) -> io::Error {
    permanent(format!("zip archive: {error}"))
}

/// Refuses an archive with a record that announces too much. Anything in the last bytes that looks
/// like one may be taken for it.
fn check(file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(TAIL_BYTES);
    let mut tail = Vec::new();
    let mut reader = file;
    reader.seek(SeekFrom::Start(start))?;
    reader.take(TAIL_BYTES).read_to_end(&mut tail)?;
    for at in 0..tail.len() {
        let record = tail.get(at..).unwrap_or_default();
        if !record.starts_with(END.0) {
            continue;
        }
        let size = record.get(END.1..END.1 + 4).and_then(|bytes| bytes.try_into().ok());
        let size = size.map_or(0, u32::from_le_bytes);
        if size != u32::MAX && u64::from(size) > MAX_ZIP_TABLE {
            return Err(too_large());
        }
        let locator = at.checked_sub(LOCATOR.2).and_then(|before| tail.get(before..at));
        if let Some(locator) = locator.filter(|locator| locator.starts_with(LOCATOR.0)) {
            check_large(file, number(locator, LOCATOR.1))?;
        }
    }
    Ok(())
}

fn check_large(file: &File, at: u64) -> io::Result<()> {
    let mut record = [0; LARGE_FIELDS.1];
    match file.read_exact_at(&mut record, at) {
        // Nobody can read a record there.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        // No file is as long as that.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(()),
        read => read?,
    }
    if !record.starts_with(LARGE_END) {
        return Ok(());
    }
    let [own, entries, table] = LARGE_FIELDS.0.map(|field| number(&record, field));
    if entries > MAX_ZIP_ENTRIES {
        return Err(permanent(format!("it has more than {MAX_ZIP_ENTRIES} entries")));
    }
    if table > MAX_ZIP_TABLE || own > AROUND_BYTES {
        return Err(too_large());
    }
    Ok(())
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// An archive with such a table, and the records behind it say this: entries, bytes of the
    /// table and of the large record; without the last there is no large record.
    fn archive(table: &[u8], (entries, size, own): (u64, u64, Option<u64>)) -> File {
        let mut bytes = b"PK\x03\x04".repeat(16);
        let start = bytes.len() as u64;
        bytes.extend_from_slice(table);
        let at = bytes.len() as u64;
        let short = |number: u64| u16::try_from(number).unwrap_or(u16::MAX).to_le_bytes();
        let word = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        if let Some(own) = own {
            let numbers = [own, 0x002d_002d, 0].map(u64::to_le_bytes).concat();
            bytes.extend([LARGE_END, &numbers[..12], &[0; 8]].concat());
            bytes.extend([entries, entries, size, start].map(u64::to_le_bytes).concat());
            bytes.extend([LOCATOR.0, &[0; 4], &at.to_le_bytes(), &1_u32.to_le_bytes()].concat());
        }
        let (entries, size) = if own.is_some() { (u64::MAX, u64::MAX) } else { (entries, size) };
        bytes.extend([END.0, &[0; 4], &short(entries), &short(entries)].concat());
        bytes.extend([&word(size)[..], &word(start), &[0; 2]].concat());
        let mut file = tempfile::tempfile().expect("makes");
        file.write_all(&bytes).expect("writes");
        file
    }

    /// Entries with names of this length.
    fn table(entries: usize, name: usize) -> Vec<u8> {
        let mut table = Vec::new();
        for number in 0..entries {
            let mut header = [0; 46];
            header[..4].copy_from_slice(b"PK\x01\x02");
            header[28..30].copy_from_slice(&u16::try_from(name).expect("fits").to_le_bytes());
            table.extend_from_slice(&header);
            table.extend_from_slice(format!("{number:0name$}").as_bytes());
        }
        table
    }

    #[test]
    fn a_table_is_read_that_is_small() {
        for own in [None, Some(44)] {
            let table = table(3, 5);
            let archive = open(archive(&table, (3, table.len() as u64, own))).expect("opens");
            assert_eq!(archive.len(), 3, "{own:?}");
        }
    }

    #[test]
    fn a_table_is_refused_that_is_large_or_says_so() {
        let few = table(3, 5);
        let large = table(300, 60_000);
        let cases = [
            (&few, (MAX_ZIP_ENTRIES + 1, 153, Some(44)), "more than 200000 entries"),
            (&few, (3, MAX_ZIP_TABLE + 1, Some(44)), "its table is larger than 16 MiB"),
            (&few, (3, MAX_ZIP_TABLE + 1, None), "its table is larger than 16 MiB"),
            (&few, (3, 153, Some(1 << 40)), "its table is larger than 16 MiB"),
            // The records say that it is small.
            (&large, (300, 153, None), "its table is larger than 16 MiB"),
            (&large, (300, 153, Some(44)), "its table is larger than 16 MiB"),
        ];
        for (table, says, wanted) in cases {
            let error = open(archive(table, says)).err().expect("is refused");
            assert!(error.to_string().contains(wanted), "{says:?}: {error}");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
