//! Everything that is printed. Data goes to standard output, talk to standard error.
use std::io::{IsTerminal, Write};

use api::http_types::{JobView, LogLine};
use comfy_table::presets::NOTHING;
use comfy_table::{ColumnConstraint, ContentArrangement, Table};
use model::{ERROR_MARK, LogSource, Name, StepStatus, TerminalEvent, Time};
use serde::Serialize;

use crate::error::CliError;

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const RESET: &str = "\x1b[0m";

/// Blanks around a cell of a table.
const PADDING: usize = 2;
/// Least characters that are left of a table's last column.
const MIN_TEXT: usize = 16;

/// Text of users cannot move the cursor or change colours.
fn inert(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// One value as JSON, or `text` for people.
    pub(crate) fn value(self, value: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            Self::line_of(value);
        } else {
            out(&inert_lines(&text()));
        }
    }

    /// A list: one JSON object a line, or a table for people; `empty` says so when there is none.
    /// The first column says what a row is about, the last one is free text.
    pub(crate) fn table<T: Serialize>(
        self,
        rows: &[T],
        header: &[&str],
        empty: &str,
        row: impl Fn(&T) -> Vec<String>,
    ) {
        if self.json {
            for row in rows {
                Self::line_of(row);
            }
        } else if rows.is_empty() {
            self.say(empty);
        } else {
            let rows: Vec<Vec<String>> = rows.iter().map(row).collect();
            let width = terminal_size::terminal_size_of(std::io::stdout());
            out(&table_text(header, &rows, width.map(|(columns, _)| columns.0)));
        }
    }

    fn line_of(value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(line) => out(&line),
            Err(error) => err(&format!("cannot render the answer: {error}")),
        }
    }

    /// Talk, on standard error; nothing with `--json`.
    pub(crate) fn say(self, text: &str) {
        if !self.json {
            err(text);
        }
    }

    /// That something is done: JSON on standard output, talk for people.
    pub(crate) fn done(self, value: &impl Serialize, text: &str) {
        if self.json {
            Self::line_of(value);
        } else {
            err(&inert_lines(text));
        }
    }

    /// An error, on standard error.
    pub(crate) fn error(self, error: &CliError) {
        if self.json {
            let hint = &error.hint;
            let body = serde_json::json!({
                "error": { "kind": error.kind.name(), "message": error.message, "hint": hint }
            });
            err(&body.to_string());
            return;
        }
        err(&format!("{RED}error:{RESET} {}", inert_lines(&error.message)));
        if let Some(hint) = &error.hint {
            err(&format!("{YELLOW}hint:{RESET} {}", inert_lines(hint)));
        }
    }

    /// Says where an app answers now. What `shore up` does after this can be interrupted.
    pub(crate) fn live(self, project: &Name, app: &Name, url: &str) {
        if self.json {
            let live = serde_json::json!({
                "event": "live", "project": project, "app": app, "url": url
            });
            Self::line_of(&live);
        } else {
            err(&format!("\n{project}/{app} is live at {url}"));
        }
    }

    /// A line of a job's log.
    pub(crate) fn job_line(self, line: &LogLine) {
        let event = (line.source == LogSource::Event)
            .then(|| serde_json::from_str::<TerminalEvent>(&line.text).ok())
            .flatten();
        match (self.json, event) {
            (true, Some(event)) => Self::line_of(&event),
            (true, None) => Self::line_of(line),
            (false, Some(event)) => out(&styled(&event)),
            (false, None) => out(&format!("    {}", inert(&line.text))),
        }
    }

    /// A line of an app's log.
    pub(crate) fn app_line(self, line: &LogLine, times: bool) {
        if self.json {
            Self::line_of(line);
            return;
        }
        let stream = line.stream.as_deref().unwrap_or("");
        let at = if times { format!("{} ", line.at) } else { String::new() };
        out(&format!("{DIM}{at}{stream:<8}|{RESET} {}", inert(&line.text)));
    }

    /// A line of a command: what it wrote goes where it wrote it, as it is. On a terminal it is inert
    /// as all text of users is.
    pub(crate) fn command_line(self, line: &LogLine) {
        match line.source {
            _ if self.json => Self::line_of(line),
            LogSource::Stdout => written(std::io::stdout().lock(), &line.text),
            LogSource::Stderr => written(std::io::stderr().lock(), &line.text),
            LogSource::System | LogSource::Event => {
                err(&format!("{DIM}{}{RESET}", inert(&line.text)));
            }
        }
    }

    /// How a job stands, when that says more than the steps do.
    pub(crate) fn job_state(self, job: &JobView) {
        if self.json {
            Self::line_of(&serde_json::json!({ "event": "job", "job": job }));
        } else if let Some(why) = &job.why_queued {
            err(&format!("{DIM}job {} {}{RESET}", job.id, inert(why)));
        }
    }
}

/// A table without the columns that are empty in every row, as wide as the terminal at most: the last
/// column is cut first, then the others are broken, but never the first one.
fn table_text(header: &[&str], rows: &[Vec<String>], width: Option<u16>) -> String {
    let full = |at: &usize| rows.iter().any(|row| row.get(*at).is_some_and(|it| !it.is_empty()));
    let shown: Vec<usize> = (0..header.len()).filter(full).collect();
    let mut cells: Vec<Vec<String>> = Vec::with_capacity(rows.len() + 1);
    cells.push(shown.iter().filter_map(|at| header.get(*at)).map(|it| it.to_uppercase()).collect());
    let inert_cells = |row: &Vec<String>| {
        shown.iter().filter_map(|at| row.get(*at)).map(|it| inert(it)).collect()
    };
    cells.extend(rows.iter().map(inert_cells));
    let mut table = table_of(&cells);
    if let Some(width) = width {
        let widths = table.column_max_content_widths();
        let others =
            widths.iter().rev().skip(1).map(|it| usize::from(*it) + PADDING).sum::<usize>();
        let left = usize::from(width).saturating_sub(others + PADDING).max(MIN_TEXT);
        for text in cells.iter_mut().skip(1).filter_map(|row| row.last_mut()) {
            cut(text, left);
        }
        table = table_of(&cells);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        if let Some(first) = table.column_mut(0).filter(|_| shown.len() > 1) {
            first.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

fn table_of(cells: &[Vec<String>]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if let Some((header, rows)) = cells.split_first() {
        table.set_header(header);
        for row in rows {
            table.add_row(row);
        }
    }
    table
}

/// Leaves at most `most` characters of a text; `…` says that there are more.
fn cut(text: &mut String, most: usize) {
    if text.chars().count() > most {
        *text = text.chars().take(most.saturating_sub(1)).chain(['…']).collect();
    }
}

fn inert_lines(text: &str) -> String {
    text.lines().map(inert).collect::<Vec<_>>().join("\n")
}

fn styled(event: &TerminalEvent) -> String {
    let text = inert(&event.to_string());
    match event {
        TerminalEvent::StepStarted { .. } => format!("{BOLD}{text}{RESET}"),
        TerminalEvent::StepEnded { status, .. } => {
            let colour = match status {
                StepStatus::Ok | StepStatus::Skipped => GREEN,
                StepStatus::Failed => RED,
                StepStatus::Cancelled => YELLOW,
            };
            format!("{colour}{text}{RESET}")
        }
        TerminalEvent::Line { .. } => format!("{DIM}{text}{RESET}"),
        TerminalEvent::Value { name, value } => {
            format!("{BOLD}{}: {}{RESET}", inert(name), inert(value))
        }
    }
}

/// An error inside a container; it becomes part of the task's or instance's log.
pub(crate) fn inside_error(reason: &str) {
    let lines = reason.lines().map(|line| format!("{ERROR_MARK}{line}"));
    err(&lines.collect::<Vec<_>>().join("\n"));
}

/// A reader that went away misses what is printed; the work goes on.
fn out(text: &str) {
    let mut stdout = anstream::stdout();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).unwrap_or_default();
}

/// A line as it was written; a reader that went away misses it.
fn written(mut to: impl Write + IsTerminal, text: &str) {
    let done =
        if to.is_terminal() { writeln!(to, "{}", inert(text)) } else { writeln!(to, "{text}") };
    done.and_then(|()| to.flush()).unwrap_or_default();
}

fn err(text: &str) {
    writeln!(anstream::stderr(), "{text}").unwrap_or_default();
}

/// How far something is, on the last line of a terminal; what was there is replaced.
pub(crate) fn progress(text: &str) {
    let mut stderr = anstream::stderr();
    write!(stderr, "\r{text}\x1b[K").and_then(|()| stderr.flush()).unwrap_or_default();
}

/// Bytes as they are.
pub(crate) fn raw(bytes: &[u8]) {
    // A reader that went away needs no more.
    drop(std::io::stdout().write_all(bytes));
}

/// How long ago something was, for a table.
pub(crate) fn ago(now: Time, at: Time) -> String {
    format!("{} ago", span(now.since(at).as_secs()))
}

/// How long it is until something, for a table.
pub(crate) fn until(now: Time, at: Time) -> String {
    format!("in {}", span(at.since(now).as_secs()))
}

fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_users_is_inert() {
        assert_eq!(inert("a\x1b[31mb\rc\td"), "a\u{fffd}[31mb\u{fffd}c\td");
    }

    fn lines(header: &[&str], rows: &[[&str; 4]], width: Option<u16>) -> Vec<String> {
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|&it| it.to_owned()).collect()).collect();
        table_text(header, &rows, width).lines().map(str::to_owned).collect()
    }

    #[test]
    fn tables_leave_out_what_is_empty_and_fit_the_terminal() {
        let header = ["id", "why", "is", "text"];
        let long = "x".repeat(100);
        let id = "job_0123456789abcdefghijklmnop";
        let rows = [[id, "", "good", &long], [id, "", "bad", ""]];
        let all = lines(&header, &rows, None);
        assert!(!all[0].contains("WHY") && all[1].ends_with(&long), "{all:?}");
        let fits = lines(&header, &rows, Some(80));
        assert_eq!(fits.len(), 3, "{fits:?}");
        assert!(fits[1].ends_with("x…") && fits.iter().all(|it| it.chars().count() <= 80));
        // Narrower than what cannot be cut: the first column stays whole.
        let narrow = lines(&header, &rows, Some(48));
        assert!(narrow.iter().all(|it| it.chars().count() <= 48), "{narrow:?}");
        assert_eq!(narrow.iter().filter(|it| it.contains(id)).count(), 2, "{narrow:?}");
    }

    #[test]
    fn ages_are_short() {
        let ages = [0, 59, 60, 3_599, 3_600, 86_399, 86_400, 864_000];
        let shown: Vec<String> = ages.iter().map(|s| ago(Time(s * 1_000), Time(0))).collect();
        assert_eq!(
            shown,
            [
                "0 s ago",
                "59 s ago",
                "1 min ago",
                "59 min ago",
                "1 h ago",
                "23 h ago",
                "1 d ago",
                "10 d ago"
            ]
        );
    }
}
