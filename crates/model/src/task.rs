//! Tasks: work run at most once on a cell, and their state machine.

use serde::{Deserialize, Serialize};

use crate::{CellId, Digest, Refused};

/// Most bytes of an inline result.
pub const MAX_TASK_RESULT: usize = 1 << 20;
/// Most bytes of a result that is kept as a blob, because it is larger than that or no text.
pub const MAX_TASK_ARTIFACT: u64 = 1 << 30;

/// Most lines of output that are kept with a failure or a crash.
pub const MAX_TAIL_LINES: usize = 50;
/// Most bytes of those lines.
pub const MAX_TAIL_BYTES: usize = 8 << 10;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// It was killed because memory ran out.
    OutOfMemory,
    /// Nobody knows: its supervisor was killed, or the machine restarted.
    Lost,
}

/// What failed, beyond the sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FailureDetail {
    /// Which action of the tree, as in `serial[1].timeout.run`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// How its process ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitStatus>,
    /// The last lines of its output.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tail: Vec<String>,
}

impl FailureDetail {
    /// Drops the oldest lines beyond [`MAX_TAIL_LINES`] and [`MAX_TAIL_BYTES`].
    pub fn bound(&mut self) {
        let mut bytes = 0;
        let fits = |line: &&String| {
            bytes += line.len();
            bytes <= MAX_TAIL_BYTES
        };
        let kept = self.tail.iter().rev().take(MAX_TAIL_LINES).take_while(fits).count();
        self.tail.drain(..self.tail.len() - kept);
    }
}

/// Where a task stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TaskState {
    /// Waiting for a cell.
    Pending {
        /// Why no cell took it yet, for people.
        reason: Option<String>,
    },
    /// Offered to a cell. Nothing runs before the cell's claim is durable.
    Offered {
        /// The cell.
        cell: CellId,
    },
    /// Claimed: the cell may have started it, so it never starts anywhere else.
    Running {
        /// The cell.
        cell: CellId,
    },
    /// Ended well.
    Succeeded {
        /// What the task left in its result file.
        result: Option<String>,
        /// The blob that holds it, where it is too large to be kept here or is no text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        artifact: Option<Digest>,
    },
    /// Ended badly.
    Failed {
        /// Why, for people.
        reason: String,
        /// What exactly.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<Box<FailureDetail>>,
    },
    /// Ended because somebody asked.
    Cancelled {
        /// What is known beyond that, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

/// What can happen to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEvent {
    /// The auction chose a cell.
    Offer {
        /// The cell.
        cell: CellId,
    },
    /// The cell gave the offer back, or went away before claiming it.
    Reject {
        /// Why, for people.
        reason: String,
    },
    /// The cell claims it.
    Claim,
    /// The actions succeeded.
    Succeed {
        /// What the task left in its result file.
        result: Option<String>,
        /// The blob that holds it.
        artifact: Option<Digest>,
    },
    /// The actions failed, or the cell is gone.
    Fail {
        /// Why, for people.
        reason: String,
        /// What exactly.
        detail: Option<Box<FailureDetail>>,
    },
    /// Somebody asked for an end and nothing runs, or the cell stopped it, or did not say so in time.
    Cancel {
        /// What is known beyond that, for people.
        reason: Option<String>,
    },
}

impl TaskState {
    /// The word shown to people.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Pending { .. } => "pending",
            Self::Offered { .. } => "offered",
            Self::Running { .. } => "running",
            Self::Succeeded { .. } => "succeeded",
            Self::Failed { .. } => "failed",
            Self::Cancelled { .. } => "cancelled",
        }
    }

    /// Whether it can never change again.
    pub const fn is_terminal(&self) -> bool {
        match self {
            Self::Pending { .. } | Self::Offered { .. } | Self::Running { .. } => false,
            Self::Succeeded { .. } | Self::Failed { .. } | Self::Cancelled { .. } => true,
        }
    }

    /// The cell that holds it.
    pub const fn cell(&self) -> Option<CellId> {
        match self {
            Self::Offered { cell } | Self::Running { cell } => Some(*cell),
            Self::Pending { .. }
            | Self::Succeeded { .. }
            | Self::Failed { .. }
            | Self::Cancelled { .. } => None,
        }
    }

    /// The state after `event`.
    pub fn next(&self, event: &TaskEvent) -> Result<Self, Refused> {
        match (self, event) {
            (Self::Pending { .. }, TaskEvent::Offer { cell }) => Ok(Self::Offered { cell: *cell }),
            (Self::Pending { .. } | Self::Offered { .. }, TaskEvent::Reject { reason }) => {
                Ok(Self::Pending { reason: Some(reason.clone()) })
            }
            (Self::Offered { cell }, TaskEvent::Claim) => Ok(Self::Running { cell: *cell }),
            (Self::Running { .. }, TaskEvent::Succeed { result, artifact }) => {
                Ok(Self::Succeeded { result: result.clone(), artifact: *artifact })
            }
            (
                Self::Pending { .. } | Self::Offered { .. } | Self::Running { .. },
                TaskEvent::Fail { reason, detail },
            ) => Ok(Self::Failed { reason: reason.clone(), detail: detail.clone() }),
            (
                Self::Pending { .. } | Self::Offered { .. } | Self::Running { .. },
                TaskEvent::Cancel { reason },
            ) => Ok(Self::Cancelled { reason: reason.clone() }),
            (
                Self::Pending { .. }
                | Self::Offered { .. }
                | Self::Running { .. }
                | Self::Succeeded { .. }
                | Self::Failed { .. }
                | Self::Cancelled { .. },
                _,
            ) => Err(Refused { what: "task", state: self.name(), event: event.name() }),
        }
    }
}

impl TaskEvent {
    /// The word used in refusals.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Offer { .. } => "offer",
            Self::Reject { .. } => "reject",
            Self::Claim => "claim",
            Self::Succeed { .. } => "succeed",
            Self::Fail { .. } => "fail",
            Self::Cancel { .. } => "cancel",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_of_a_tail_are_kept() {
        let mut long = FailureDetail {
            tail: (0..100).map(|n| n.to_string()).collect(),
            ..FailureDetail::default()
        };
        long.bound();
        assert_eq!(long.tail.first().map(String::as_str), Some("50"));
        long.tail = vec!["x".repeat(MAX_TAIL_BYTES), "last".into()];
        long.bound();
        assert_eq!(long.tail, ["last"]);
    }

    #[test]
    fn rows_of_earlier_versions_are_read() {
        let read = |text: &str| serde_json::from_str::<TaskState>(text).expect("reads");
        let done = read(r#"{"state":"succeeded","result":"x"}"#);
        assert_eq!(done, TaskState::Succeeded { result: Some("x".into()), artifact: None });
        assert_eq!(read(r#"{"state":"cancelled"}"#), TaskState::Cancelled { reason: None });
    }

    #[test]
    fn transition_table() {
        let cell = CellId(1);
        let states = [
            TaskState::Pending { reason: None },
            TaskState::Offered { cell },
            TaskState::Running { cell },
            TaskState::Succeeded { result: None, artifact: None },
            TaskState::Failed { reason: "because".into(), detail: None },
            TaskState::Cancelled { reason: None },
        ];
        let events = [
            TaskEvent::Offer { cell },
            TaskEvent::Reject { reason: "full".into() },
            TaskEvent::Claim,
            TaskEvent::Succeed { result: None, artifact: None },
            TaskEvent::Fail { reason: "exit 1".into(), detail: None },
            TaskEvent::Cancel { reason: None },
        ];
        insta::assert_snapshot!(crate::tests::table(
            &states,
            &events,
            TaskState::name,
            |event| event.name().to_owned(),
            TaskState::next,
        ));
        for state in states.iter().filter(|s| s.is_terminal()) {
            assert!(
                events.iter().all(|e| state.next(e).is_err()),
                "{} never changes",
                state.name()
            );
        }
    }
}
