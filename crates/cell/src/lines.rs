//! Splits the output of a process into lines and knows exactly where to continue.

use bytes::{Bytes, BytesMut};
use drivers::{Chunk, Output, OutputOffset, Source};
use model::LogSource;

use crate::limits::MAX_LINE;

/// How far each stream of a process was turned into lines. Offsets count both streams together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) stdout: u64,
    pub(crate) stderr: u64,
}

impl Position {
    /// Where to read on: nothing before it is needed again.
    pub(crate) fn attach_from(self) -> OutputOffset {
        OutputOffset(self.stdout.min(self.stderr))
    }
}

/// How a line ends that was too long.
pub(crate) const CUT: &str = " [longshore: cut, a line has at most 65536 bytes]";

/// A line and where it came from.
pub(crate) type Line = (LogSource, Bytes);

#[derive(Debug, Default)]
struct Side {
    /// The beginning of a line whose end was not read yet.
    partial: BytesMut,
    /// Where the partial line begins, or else the next one.
    done: u64,
    /// Whether the line was too long, and the rest of it is left out.
    cut: bool,
}

/// Turns chunks into lines.
#[derive(Debug)]
pub(crate) struct Splitter {
    stdout: Side,
    stderr: Side,
}

impl Splitter {
    /// Skips what was turned into lines before `position`.
    pub(crate) fn new(position: Position) -> Self {
        let side = |done| Side { partial: BytesMut::new(), done, cut: false };
        Self { stdout: side(position.stdout), stderr: side(position.stderr) }
    }

    pub(crate) const fn position(&self) -> Position {
        Position { stdout: self.stdout.done, stderr: self.stderr.done }
    }

    /// The lines that end in `output`.
    pub(crate) fn push(&mut self, output: &Output) -> Vec<Line> {
        let mut lines = Vec::new();
        match output {
            Output::Chunk(chunk) => self.chunk(chunk, &mut lines),
            Output::Dropped { bytes, .. } => {
                lines = self.finish();
                let text = format!("{bytes} bytes of output were dropped");
                lines.push((LogSource::System, text.into()));
            }
        }
        let end = output.end().0;
        for side in [&mut self.stdout, &mut self.stderr] {
            if side.partial.is_empty() {
                side.done = side.done.max(end);
            }
        }
        lines
    }

    fn chunk(&mut self, chunk: &Chunk, lines: &mut Vec<Line>) {
        let (side, source) = match chunk.source {
            Source::Stdout => (&mut self.stdout, LogSource::Stdout),
            Source::Stderr => (&mut self.stderr, LogSource::Stderr),
        };
        let read = side.done + side.partial.len() as u64;
        let skipped = read.saturating_sub(chunk.offset.0).min(chunk.bytes.len() as u64);
        let mut rest = chunk.bytes.slice(usize::try_from(skipped).unwrap_or(0)..);
        let mut offset = chunk.offset.0 + skipped;
        if side.partial.is_empty() {
            side.done = side.done.max(offset);
        }
        while !rest.is_empty() {
            if side.cut {
                let end = rest.iter().position(|byte| *byte == b'\n');
                let left_out = rest.split_to(end.map_or(rest.len(), |end| end + 1));
                offset += left_out.len() as u64;
                side.done = offset;
                side.cut = end.is_none();
                continue;
            }
            let room = MAX_LINE.saturating_sub(side.partial.len());
            let window = rest.get(..room.saturating_add(1).min(rest.len())).unwrap_or_default();
            let end = window.iter().position(|byte| *byte == b'\n');
            if end.is_none() && rest.len() <= room {
                side.partial.extend_from_slice(&rest);
                return;
            }
            let text = rest.split_to(end.unwrap_or(room));
            offset += text.len() as u64;
            if end.is_some() {
                drop(rest.split_to(1));
                offset += 1;
            }
            side.cut = end.is_none();
            lines.push((source, side.line(text)));
            side.done = offset;
        }
    }

    /// What was left without a line end.
    pub(crate) fn finish(&mut self) -> Vec<Line> {
        let sides = [(LogSource::Stdout, &mut self.stdout), (LogSource::Stderr, &mut self.stderr)];
        let mut lines = Vec::new();
        for (source, side) in sides {
            if !side.partial.is_empty() {
                side.done += side.partial.len() as u64;
                lines.push((source, side.line(Bytes::new())));
            }
        }
        lines
    }
}

impl Side {
    fn line(&mut self, end: Bytes) -> Bytes {
        let mut line = if self.partial.is_empty() {
            end
        } else {
            self.partial.extend_from_slice(&end);
            self.partial.split().freeze()
        };
        if self.cut {
            // Not in the middle of a character.
            let end = line.iter().rposition(|byte| byte & 0xc0 != 0x80).unwrap_or(0);
            let whole = line.utf8_chunks().last().is_none_or(|last| last.invalid().is_empty());
            let end = if whole { line.len() } else { end };
            return [line.get(..end).unwrap_or_default(), CUT.as_bytes()].concat().into();
        }
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(source: Source, offset: u64, text: &str) -> Output {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        Output::Chunk(Chunk { source, offset: OutputOffset(offset), bytes })
    }

    fn texts(lines: &[Line]) -> Vec<String> {
        let text = |line: &Line| format!("{:?} {}", line.0, String::from_utf8_lossy(&line.1));
        lines.iter().map(text).collect()
    }

    #[test]
    fn lines_may_come_in_pieces_and_mixed() {
        let mut splitter = Splitter::new(Position::default());
        assert_eq!(texts(&splitter.push(&chunk(Source::Stdout, 0, "a\r\nb"))), ["Stdout a"]);
        assert_eq!(splitter.position(), Position { stdout: 3, stderr: 4 });
        assert_eq!(texts(&splitter.push(&chunk(Source::Stderr, 4, "err\n"))), ["Stderr err"]);
        assert_eq!(splitter.position(), Position { stdout: 3, stderr: 8 });
        let lines = splitter.push(&chunk(Source::Stdout, 8, "c\n\nd"));
        assert_eq!(texts(&lines), ["Stdout bc", "Stdout "]);
        assert_eq!(texts(&splitter.finish()), ["Stdout d"]);
    }

    #[test]
    fn a_restart_loses_and_repeats_nothing() {
        let all = [
            chunk(Source::Stdout, 0, "a\nb"),
            chunk(Source::Stderr, 3, "x\ny\n"),
            chunk(Source::Stdout, 7, "c\nd\n"),
        ];
        let mut splitter = Splitter::new(Position::default());
        let mut seen = texts(&splitter.push(&all[0]));
        seen.extend(texts(&splitter.push(&all[1])));
        let position = splitter.position();
        assert_eq!(position.attach_from(), OutputOffset(2));
        let mut later = Splitter::new(position);
        // What a driver gives when attached at 2.
        seen.extend(texts(&later.push(&chunk(Source::Stdout, 2, "b"))));
        seen.extend(texts(&later.push(&all[1])));
        seen.extend(texts(&later.push(&all[2])));
        assert_eq!(seen, ["Stdout a", "Stderr x", "Stderr y", "Stdout bc", "Stdout d"]);
    }

    #[test]
    fn long_lines_are_cut_and_say_so() {
        let mut splitter = Splitter::new(Position::default());
        let text = "x".repeat(MAX_LINE * 2 + 5);
        let lines = texts(&splitter.push(&chunk(Source::Stdout, 0, &text)));
        assert_eq!(lines, [format!("Stdout {}{CUT}", "x".repeat(MAX_LINE))]);
        let mut at = text.len() as u64;
        assert_eq!(splitter.position(), Position { stdout: at, stderr: at });
        let exact = format!("still\n{}\nz\n", "y".repeat(MAX_LINE));
        let lines = splitter.push(&chunk(Source::Stdout, at, &exact));
        assert_eq!(lines.iter().map(|line| line.1.len()).collect::<Vec<_>>(), [MAX_LINE, 1]);
        at += exact.len() as u64;
        let wide = format!("{}ää\nend\n", "y".repeat(MAX_LINE - 1));
        let lines = texts(&splitter.push(&chunk(Source::Stdout, at, &wide)));
        assert_eq!(
            lines,
            [format!("Stdout {}{CUT}", "y".repeat(MAX_LINE - 1)), "Stdout end".into()]
        );
        assert!(CUT.contains(&MAX_LINE.to_string()));
    }

    #[test]
    fn gaps_are_told() {
        let mut splitter = Splitter::new(Position::default());
        splitter.push(&chunk(Source::Stdout, 0, "half"));
        let lines = splitter.push(&Output::Dropped { offset: OutputOffset(4), bytes: 100 });
        assert_eq!(texts(&lines), ["Stdout half", "System 100 bytes of output were dropped"]);
        assert_eq!(splitter.position(), Position { stdout: 104, stderr: 104 });
    }
}
