//! What people read while work goes on: log lines and structured events of a job.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Time;

/// How the lines of an error begin that one of our programs reports from inside a container.
pub const ERROR_MARK: &str = " !     ";

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// Standard output of user code.
    Stdout,
    /// Standard error of user code.
    Stderr,
    /// The platform itself.
    System,
    /// A structured event; the text is a [`TerminalEvent`] in JSON.
    Event,
}

impl LogSource {
    /// The number kept in log buffers.
    pub const fn code(self) -> u8 {
        match self {
            Self::Stdout => 0,
            Self::Stderr => 1,
            Self::System => 2,
            Self::Event => 3,
        }
    }

    /// The source of a number kept in log buffers; unknown ones are the platform's.
    pub const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Stdout,
            1 => Self::Stderr,
            3 => Self::Event,
            _ => Self::System,
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// When it was read.
    pub at: Time,
    /// Where it came from.
    pub source: LogSource,
    /// The text, without its line end.
    pub text: String,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// Well.
    Ok,
    /// Badly.
    Failed,
    /// There was nothing to do.
    Skipped,
    /// Somebody asked for an end.
    Cancelled,
}

/// What a running operation tells people. Rendered live on a terminal, as lines by `--json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TerminalEvent {
    /// A step began.
    StepStarted {
        /// Its number within the job, from 1.
        step: u32,
        /// What it does, as in `Build`.
        title: String,
    },
    /// A step ended.
    StepEnded {
        /// Its number.
        step: u32,
        /// How.
        status: StepStatus,
        /// A short result, as in an image digest or a reason.
        detail: String,
        /// How long it took, in milliseconds.
        ms: u64,
    },
    /// A line that belongs to a step.
    Line {
        /// The step's number.
        step: u32,
        /// Where it came from.
        source: LogSource,
        /// The text, without its line end.
        text: String,
    },
    /// A named result, as in the URL.
    Value {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
}

impl StepStatus {
    /// The sign shown before the step.
    pub const fn sign(self) -> char {
        match self {
            Self::Ok => '✓',
            Self::Failed => '✗',
            Self::Skipped => '-',
            Self::Cancelled => '!',
        }
    }
}

impl fmt::Display for TerminalEvent {
    /// The event as one line of plain text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StepStarted { title, .. } => write!(f, "==> {title}"),
            Self::StepEnded { status, detail, ms, .. } => {
                let (seconds, tenths) = (ms / 1_000, ms % 1_000 / 100);
                write!(f, "  {} {detail} ({seconds}.{tenths} s)", status.sign())
            }
            Self::Line { text, .. } => write!(f, "    {text}"),
            Self::Value { name, value } => write!(f, "{name}: {value}"),
        }
    }
}
