//! Entries as bytes in a file: frames that are told apart from garbage.
//!
//! ```text
//! magic u32 | length of the rest u32 | crc32 of the rest u32 | first number u64 | count u32
//! then per entry: time u64 | source u8 | length u32 | bytes          (all little-endian)
//! ```
//! A frame without entries says that the stream ended before its number.

use crate::page::{Batch, Page};

const MAGIC: [u8; 4] = *b"\xf5lg\x01";
const HEAD_BYTES: usize = 12;
const FIXED_BYTES: usize = 12;
const ENTRY_BYTES: usize = 13;

/// A frame found in a file.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    /// The number of its first entry, or of the entry that will never come.
    pub(crate) first: u64,
    /// How many entries it has.
    pub(crate) count: u32,
    /// Where the bytes after it begin.
    pub(crate) after: usize,
    entries: &'a [u8],
}

impl Frame<'_> {
    pub(crate) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// The entries of the frame.
    pub(crate) fn page(&self) -> Page {
        let mut page = Page::starting_at(self.first);
        let mut rest = self.entries;
        while let Some((time_ms, source, data, after)) = entry(rest) {
            page.push(time_ms, source, data);
            rest = after;
        }
        page
    }
}

fn entry(bytes: &[u8]) -> Option<(u64, u8, &[u8], &[u8])> {
    let (time_ms, rest) = bytes.split_first_chunk::<8>()?;
    let (&source, rest) = rest.split_first()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (data, after) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    Some((u64::from_le_bytes(*time_ms), source, data, after))
}

/// Writes the entries of `batch` as one frame.
pub(crate) fn encode(batch: &Batch, out: &mut Vec<u8>) {
    let head = begin(out, batch.first(), batch.len());
    for entry in batch.iter() {
        out.extend_from_slice(&entry.time_ms.to_le_bytes());
        out.push(entry.source);
        out.extend_from_slice(&length(entry.data.len()));
        out.extend_from_slice(entry.data);
    }
    finish(out, head);
}

/// Writes that the stream ended before the number `next`.
pub(crate) fn encode_end(next: u64, out: &mut Vec<u8>) {
    let head = begin(out, next, 0);
    finish(out, head);
}

fn begin(out: &mut Vec<u8>, first: u64, count: usize) -> usize {
    let head = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; HEAD_BYTES - MAGIC.len()]);
    out.extend_from_slice(&first.to_le_bytes());
    out.extend_from_slice(&length(count));
    head
}

fn finish(out: &mut [u8], head: usize) {
    let (front, rest) = out.split_at_mut(head + HEAD_BYTES);
    let front = &mut front[head..];
    front[4..8].copy_from_slice(&length(rest.len()));
    front[8..12].copy_from_slice(&crc32fast::hash(rest).to_le_bytes());
}

/// Pages and lines are bounded far below 4 GiB.
fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes()
}

/// The first whole frame at `from` or later; bytes that are none are passed over.
pub(crate) fn find(bytes: &[u8], from: usize) -> Option<Frame<'_>> {
    let mut at = from;
    loop {
        if let Some(frame) = decode(bytes, at) {
            return Some(frame);
        }
        let next = at.checked_add(1)?;
        let rest = bytes.get(next..)?;
        at = next + rest.windows(MAGIC.len()).position(|window| *window == MAGIC)?;
    }
}

fn decode(bytes: &[u8], at: usize) -> Option<Frame<'_>> {
    let rest = bytes.get(at..)?.strip_prefix(&MAGIC)?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let body = rest.get(..u32::from_le_bytes(*len) as usize)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (first, entries) = body.split_first_chunk::<8>()?;
    let (count, entries) = entries.split_first_chunk::<4>()?;
    let (first, count) = (u64::from_le_bytes(*first), u32::from_le_bytes(*count));
    let fits = entries.len() >= count as usize * ENTRY_BYTES;
    let after = at + HEAD_BYTES + FIXED_BYTES + entries.len();
    fits.then_some(Frame { first, count, after, entries })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Slice;
    use std::sync::Arc;

    fn all_of(page: Page) -> Batch {
        let mut batch = Batch::default();
        batch.push(Slice::of(&Arc::new(page), 0, usize::MAX));
        batch
    }

    fn frame(first: u64, lines: &[&str]) -> Vec<u8> {
        let mut page = Page::starting_at(first);
        for line in lines {
            page.push(7, 2, line.as_bytes());
        }
        let mut out = Vec::new();
        encode(&all_of(page), &mut out);
        out
    }

    fn found(bytes: &[u8]) -> Vec<(u64, u32)> {
        let (mut at, mut frames) = (0, Vec::new());
        while let Some(frame) = find(bytes, at) {
            frames.push((frame.first, frame.count));
            assert_eq!(frame.page().end(), frame.end());
            at = frame.after;
        }
        frames
    }

    #[test]
    fn frames_are_found_again() {
        let mut bytes = [frame(5, &["a", "", "ccc"]), frame(8, &["d"])].concat();
        encode_end(9, &mut bytes);
        assert_eq!(found(&bytes), [(5, 3), (8, 1), (9, 0)]);
        let batch = all_of(find(&bytes, 0).unwrap().page());
        let entries: Vec<_> =
            batch.iter().map(|e| (e.seq, e.time_ms, e.source, e.data.len())).collect();
        assert_eq!(entries, [(5, 7, 2, 1), (6, 7, 2, 0), (7, 7, 2, 3)]);
    }

    #[test]
    fn every_torn_tail_leaves_the_frames_before_it() {
        let (one, two) = (frame(0, &["first"]), frame(1, &["second"]));
        let both = [one.clone(), two].concat();
        for len in one.len()..both.len() {
            assert_eq!(found(&both[..len]), [(0, 1)], "cut at {len}");
        }
    }

    #[test]
    fn damage_costs_one_frame_whichever_byte_it_hits() {
        let (one, two, three) = (frame(0, &["a"]), frame(1, &["b"]), frame(2, &["c"]));
        let whole = [one.clone(), two.clone(), three].concat();
        for at in one.len()..one.len() + two.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            assert_eq!(found(&damaged), [(0, 1), (2, 1)], "byte {at}");
        }
    }
}
