//! What a cell reports of its work.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{Digest, FailureDetail};

/// News of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum TaskReport {
    /// The cell wants to start it; it may do so only after the answer.
    Claim,
    /// The cell cannot take it.
    Reject {
        /// Why.
        reason: String,
    },
    /// Its actions succeeded.
    Succeeded {
        /// What it left in its result file.
        result: Option<String>,
        /// The blob it was uploaded as, where it is larger than [`crate::MAX_TASK_RESULT`] or no text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        artifact: Option<Digest>,
    },
    /// Its actions failed.
    Failed {
        /// Why.
        reason: String,
        /// What exactly.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<Box<FailureDetail>>,
    },
    /// It was stopped because it was cancelled.
    Cancelled,
}

/// News of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum InstanceReport {
    /// The cell cannot take it.
    Reject {
        /// Why.
        reason: String,
    },
    /// Its process runs.
    Started {
        /// Where it listens.
        address: SocketAddr,
    },
    /// Its health check changed its mind.
    Ready {
        /// Whether it passes.
        ready: bool,
    },
    /// It ended by itself or never became healthy.
    Crashed {
        /// What happened.
        reason: String,
        /// Trying again at once would not help: it ran, but never became healthy.
        never_healthy: bool,
        /// What exactly.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<Box<FailureDetail>>,
    },
    /// Nothing of it is left on the cell.
    Gone,
}
