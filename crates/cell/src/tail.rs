//! The last lines of a process, for whoever wants to know why it ended.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::{MAX_TAIL_BYTES, MAX_TAIL_LINES};

/// Keeps the last lines it is given.
#[derive(Debug, Default)]
pub(crate) struct Tail(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Tail {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, line: &[u8]) {
        let line = line.get(..line.len().min(MAX_TAIL_BYTES / 2)).unwrap_or_default();
        let line = String::from_utf8_lossy(line).into_owned();
        let mut kept = self.lock();
        kept.bytes += line.len();
        kept.lines.push_back(line);
        while kept.lines.len() > MAX_TAIL_LINES || kept.bytes > MAX_TAIL_BYTES {
            let Some(oldest) = kept.lines.pop_front() else { return };
            kept.bytes -= oldest.len();
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lock().lines.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_lines_stay() {
        let tail = Tail::default();
        (0..100).for_each(|number| tail.push(number.to_string().as_bytes()));
        let lines = tail.lines();
        assert_eq!((lines.len(), lines.first().map(String::as_str)), (MAX_TAIL_LINES, Some("50")));
        tail.push(&vec![b'x'; 1 << 20]);
        tail.push(&vec![0xff; 1 << 20]);
        let bytes: usize = tail.lines().iter().map(String::len).sum();
        assert!(bytes <= MAX_TAIL_BYTES, "{bytes}");
    }
}
