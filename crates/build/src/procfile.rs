//! `Procfile`: process types and their command lines.

use crate::words::{Line, WordsError};

/// The name of the file.
pub const FILE: &str = "Procfile";
/// Most characters of a process type.
pub const MAX_TYPE: usize = 63;
/// Most process types.
pub const MAX_TYPES: usize = 100;

/// One process type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name: `web`, `worker`.
    pub process_type: String,
    /// Its command line.
    pub line: String,
}

/// Why a Procfile cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct ProcfileError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is no `type: command`.
    #[error(
        "{0:?} is not `<type>: <command>` with a type of 1 to {MAX_TYPE} letters, digits, `-` or `_`"
    )]
    Form(String),
    /// The type is there twice.
    #[error("process type {0:?} is defined twice")]
    Twice(String),
    /// There are too many.
    #[error("more than {MAX_TYPES} process types")]
    TooMany,
    /// The command cannot be run.
    #[error("{process_type}: {error}")]
    Command {
        /// The process type.
        process_type: String,
        /// Why.
        error: WordsError,
    },
}

/// Reads a Procfile. Every command in it is known to split when this returns.
pub fn parse(text: &str) -> Result<Vec<Entry>, ProcfileError> {
    let mut entries: Vec<Entry> = Vec::new();
    for (at, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || line.starts_with("//") {
            continue;
        }
        let entry = entry(line, &entries).map_err(|fault| ProcfileError { line: at + 1, fault })?;
        entries.push(entry);
    }
    Ok(entries)
}

fn entry(line: &str, before: &[Entry]) -> Result<Entry, Fault> {
    let form = || Fault::Form(line.chars().take(60).collect());
    let (name, command) = line.split_once(':').ok_or_else(form)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > MAX_TYPE || !name.chars().all(plain) {
        return Err(form());
    }
    if before.iter().any(|entry| entry.process_type == name) {
        return Err(Fault::Twice(name.to_owned()));
    }
    if before.len() == MAX_TYPES {
        return Err(Fault::TooMany);
    }
    let command = command.trim();
    Line::parse(command)
        .map_err(|error| Fault::Command { process_type: name.to_owned(), error })?;
    Ok(Entry { process_type: name.to_owned(), line: command.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_blank_lines_are_left_out() {
        let text = "# a\r\n\r\nweb: python3 app.py --port $PORT # here\r\n// b\nmy_worker-2:x\n";
        let entries = parse(text).expect("a Procfile");
        let pairs: Vec<_> =
            entries.iter().map(|e| (e.process_type.as_str(), e.line.as_str())).collect();
        let web = ("web", "python3 app.py --port $PORT # here");
        assert_eq!(pairs, [web, ("my_worker-2", "x")]);
    }

    #[test]
    fn each_fault_names_its_line() {
        let long = format!("{}: x", "a".repeat(MAX_TYPE + 1));
        for (text, wanted) in [
            ("web: a\n<<<<<<< HEAD\n", "line 2: \"<<<<<<< HEAD\" is not"),
            ("web: a\nweb: b", "line 2: process type \"web\" is defined twice"),
            ("we b: a", "line 1"),
            (": a", "line 1"),
            ("web:", "line 1: web: there is no command"),
            ("web: cd x && y", "line 1: web: `&&` needs a shell"),
            ("web: 'a", "line 1: web: `'` is never closed"),
            (&long, "line 1"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.starts_with(wanted), "{error}");
        }
    }
}
