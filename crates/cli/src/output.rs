//! Everything that is printed. Data goes to standard output, talk to standard error.
use std::io::Write as _;

use api::http_types::{JobView, LogLine};
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
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
            let mut table = Table::new();
            table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
            table.set_header(header.iter().map(|title| title.to_uppercase()));
            for it in rows {
                table.add_row(row(it).iter().map(|cell| inert(cell)));
            }
            let text: Vec<String> =
                table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
            out(&text.join("\n"));
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

    /// How a job stands, when that says more than the steps do.
    pub(crate) fn job_state(self, job: &JobView) {
        if self.json {
            Self::line_of(&serde_json::json!({ "event": "job", "job": job }));
        } else if let Some(why) = &job.why_queued {
            err(&format!("{DIM}job {} {}{RESET}", job.id, inert(why)));
        }
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

fn err(text: &str) {
    writeln!(anstream::stderr(), "{text}").unwrap_or_default();
}

/// Bytes as they are.
pub(crate) fn raw(bytes: &[u8]) {
    // A reader that went away needs no more.
    drop(std::io::stdout().write_all(bytes));
}

/// How long ago something was, for a table.
pub(crate) fn ago(now: Time, at: Time) -> String {
    let seconds = now.since(at).as_secs();
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3_600 => format!("{} min ago", seconds / 60),
        3_600..86_400 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_users_is_inert() {
        assert_eq!(inert("a\x1b[31mb\rc\td"), "a\u{fffd}[31mb\u{fffd}c\td");
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
