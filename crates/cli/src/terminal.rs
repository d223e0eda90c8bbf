//! The terminal of whoever types: raw while a session has it, and the words that end one.

use std::io::{self, IsTerminal as _};

use api::sessions::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Whether standard input and output are a terminal.
pub(crate) fn is_here() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// How large the terminal is; the usual size when it does not say.
pub(crate) fn size() -> TerminalSize {
    let usual = TerminalSize { columns: 80, rows: 24 };
    let found = terminal_size::terminal_size_of(io::stdout())
        .or_else(|| terminal_size::terminal_size_of(io::stdin()));
    found.map_or(usual, |(columns, rows)| TerminalSize { columns: columns.0, rows: rows.0 })
}

/// The terminal passes every key on as long as this is there, and is as before after that.
#[derive(Debug)]
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Takes the terminal of standard input.
    pub(crate) fn take() -> io::Result<Self> {
        let before = tcgetattr(rustix::stdio::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that went away needs nothing.
        let set = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
        set.unwrap_or_default();
    }
}

/// Finds `~.` after a line's end in what is typed, as ssh does; `~~` is one `~`.
#[derive(Debug)]
pub(crate) struct Escapes(State);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A line begins.
    Begin,
    /// A `~` was typed there.
    Tilde,
    Within,
}

/// What is to be done with what was typed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// It is passed on.
    Bytes(Vec<u8>),
    /// The session is to end, after these bytes.
    End(Vec<u8>),
}

impl Escapes {
    pub(crate) const fn new() -> Self {
        Self(State::Begin)
    }

    /// Takes what was typed.
    pub(crate) fn take(&mut self, typed: &[u8]) -> Typed {
        let mut bytes = Vec::with_capacity(typed.len() + 1);
        for byte in typed {
            match (self.0, *byte) {
                (State::Begin, b'~') => {
                    self.0 = State::Tilde;
                    continue;
                }
                (State::Tilde, b'.') => return Typed::End(bytes),
                (State::Tilde, b'~') | (State::Begin | State::Within, _) => {}
                (State::Tilde, _) => bytes.push(b'~'),
            }
            bytes.push(*byte);
            self.0 = if matches!(byte, b'\r' | b'\n') { State::Begin } else { State::Within };
        }
        Typed::Bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_after_a_line_s_end() {
        let typed = |parts: &[&str]| {
            let mut escapes = Escapes::new();
            let mut all = Vec::new();
            for part in parts {
                match escapes.take(part.as_bytes()) {
                    Typed::Bytes(bytes) => all.extend(bytes),
                    Typed::End(bytes) => {
                        all.extend(bytes);
                        return (String::from_utf8(all).expect("text"), true);
                    }
                }
            }
            (String::from_utf8(all).expect("text"), false)
        };
        for (parts, passed, ended) in [
            (&["ls ~.\r"][..], "ls ~.\r", false),
            (&["~."], "", true),
            (&["ls\r~", ".x"], "ls\r", true),
            (&["~~.\r"], "~.\r", false),
            (&["~x~.\n~"], "~x~.\n", false),
            (&["a~\r", "~", "~", "~."], "a~\r~~.", false),
            (&["~\r~."], "~\r", true),
        ] {
            assert_eq!(typed(parts), (passed.to_owned(), ended), "{parts:?}");
        }
    }
}
