//! The form of kept output.
//!
//! Output is kept in files named `output.<offset of the first byte>`. Each starts with a magic and
//! then holds records: source, length, bytes. Offsets count the bytes processes wrote, not framing,
//! so a gap between the end of one file and the start of the next is exactly what was dropped.

use crate::output::Source;

/// How many output files are kept.
pub const KEPT_FILES: usize = 2;
/// How large one of them gets.
pub const KEPT_BYTES_PER_FILE: u64 = 16 << 20;
/// The largest record, with its header.
pub(crate) const MAX_RECORD_BYTES: usize = HEADER_BYTES + (64 << 10);
/// The bytes before a record's data.
pub(crate) const HEADER_BYTES: usize = 5;
/// The bytes before the first record of a file.
pub(crate) const FILE_HEADER_BYTES: u64 = MAGIC.len() as u64;
pub(super) const MAGIC: &[u8] = b"shore-output-1\n\0";
const PREFIX: &str = "output.";

/// The header of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) source: Source,
    pub(crate) bytes: u32,
}

impl Record {
    /// The header's length.
    pub(crate) const HEADER: usize = HEADER_BYTES;

    pub(super) fn to_header(self) -> [u8; HEADER_BYTES] {
        let [a, b, c, d] = self.bytes.to_le_bytes();
        let source = match self.source {
            Source::Stdout => 1,
            Source::Stderr => 2,
        };
        [source, a, b, c, d]
    }

    /// Reads a header; `None` when it is damaged.
    pub(crate) fn from_header([source, a, b, c, d]: [u8; HEADER_BYTES]) -> Option<Self> {
        let source = match source {
            1 => Source::Stdout,
            2 => Source::Stderr,
            _ => return None,
        };
        let bytes = u32::from_le_bytes([a, b, c, d]);
        (bytes as usize <= MAX_RECORD_BYTES).then_some(Self { source, bytes })
    }
}

/// The name of the file whose first byte has this offset.
pub(super) fn file_name(start: u64) -> String {
    format!("{PREFIX}{start:020}")
}

/// The offset of a file's first byte, from its name.
pub(crate) fn file_start(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_names_come_back() {
        let record = Record { source: Source::Stderr, bytes: 65_536 };
        assert_eq!(Record::from_header(record.to_header()), Some(record));
        assert_eq!(Record::from_header([9, 0, 0, 0, 0]), None);
        assert_eq!(Record::from_header([1, 255, 255, 255, 255]), None);
        assert_eq!(file_start(&file_name(42)), Some(42));
        assert_eq!(file_start("exit.json"), None);
    }
}
