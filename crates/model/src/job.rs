//! Jobs: operations queued for a runner, and their state machine.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{DeploymentId, Digest, Refused, RunnerId, Time};

/// Where a job may run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Any runner that is not reserved for its own jobs.
    Any,
    /// Exactly this runner.
    Runner(RunnerId),
    /// Any runner whose labels contain all of these.
    Labels(BTreeMap<String, String>),
}

/// What a job does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Operation {
    /// Nothing; succeeds at once. For tests and measurements.
    Noop,
    /// Makes an image from the source archive.
    Build {
        /// The archive, a gzip-compressed tar in the blob store.
        source: Digest,
    },
    /// Starts an image as a new deployment and waits until it is healthy.
    Deploy {
        /// The build to deploy; the newest one when absent.
        build: Option<u64>,
    },
    /// Points the routes at a deployment; starts it first when it is retired.
    Release {
        /// The deployment.
        deployment: DeploymentId,
    },
    /// Build, deploy, release.
    Up {
        /// The archive, a gzip-compressed tar in the blob store.
        source: Digest,
    },
    /// Starts what is released again, as a new deployment with today's configuration.
    Restart,
    /// Stops everything the app runs in the workspace and withdraws its routes.
    Destroy,
}

impl Operation {
    /// The word shown to people and used for scopes.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Noop => "noop",
            Self::Build { .. } => "build",
            Self::Deploy { .. } => "deploy",
            Self::Release { .. } => "release",
            Self::Up { .. } => "up",
            Self::Restart => "restart",
            Self::Destroy => "destroy",
        }
    }

    /// Whether it changes what the app runs: such jobs exclude each other per app and workspace.
    pub const fn changes_app(&self) -> bool {
        match self {
            Self::Noop => false,
            Self::Build { .. }
            | Self::Deploy { .. }
            | Self::Release { .. }
            | Self::Up { .. }
            | Self::Restart
            | Self::Destroy => true,
        }
    }
}

/// Where a job stands. Data lives in the variant it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum JobState {
    /// In line for a runner.
    Queued,
    /// Offered to a runner that has not acknowledged it yet.
    Waiting {
        /// The runner.
        runner: RunnerId,
        /// When the offer lapses.
        ack_by: Time,
    },
    /// A runner works on it.
    Running {
        /// The runner.
        runner: RunnerId,
        /// When the runner counts as lost unless it reports before.
        lease_until: Time,
    },
    /// Ended well.
    Succeeded,
    /// Ended badly.
    Failed {
        /// Why, for people.
        reason: String,
    },
    /// Ended because somebody asked.
    Cancelled {
        /// Who or what asked, for people.
        reason: String,
    },
}

/// How a runner says a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Well.
    Succeeded,
    /// Badly.
    Failed {
        /// Why, for people.
        reason: String,
    },
    /// It stopped because it was told to.
    Cancelled {
        /// Why, for people.
        reason: String,
    },
}

/// What can happen to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEvent {
    /// A runner was chosen.
    Assign {
        /// The runner.
        runner: RunnerId,
        /// When the offer lapses.
        ack_by: Time,
    },
    /// The runner took it.
    Ack {
        /// When the lease ends.
        lease_until: Time,
    },
    /// The runner gave it back, went away before taking it, or did not answer in time.
    Nack,
    /// The runner is still at work.
    Heartbeat {
        /// When the lease ends now.
        lease_until: Time,
    },
    /// The runner finished.
    Complete(Outcome),
    /// The runner is gone.
    Lost {
        /// How it showed, for people.
        reason: String,
    },
    /// Ended while it was still in line: expiry, a failed dependency.
    Drop {
        /// Why, for people.
        reason: String,
    },
    /// Somebody asked for an end. A runner that has it stops and says so; in line it ends at once.
    Cancel {
        /// Who or what asked, for people.
        reason: String,
    },
    /// Somebody asked for an end without waiting for the runner.
    ForceCancel {
        /// Who or what asked, for people.
        reason: String,
    },
}

impl JobState {
    /// The word shown to people.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Waiting { .. } => "waiting",
            Self::Running { .. } => "running",
            Self::Succeeded => "succeeded",
            Self::Failed { .. } => "failed",
            Self::Cancelled { .. } => "cancelled",
        }
    }

    /// Whether it can never change again.
    pub const fn is_terminal(&self) -> bool {
        match self {
            Self::Queued | Self::Waiting { .. } | Self::Running { .. } => false,
            Self::Succeeded | Self::Failed { .. } | Self::Cancelled { .. } => true,
        }
    }

    /// The runner that holds it.
    pub const fn runner(&self) -> Option<RunnerId> {
        match self {
            Self::Waiting { runner, .. } | Self::Running { runner, .. } => Some(*runner),
            Self::Queued | Self::Succeeded | Self::Failed { .. } | Self::Cancelled { .. } => None,
        }
    }

    /// The state after `event`. A `Cancel` of a job a runner holds leaves the state as it is: the
    /// wish is kept beside it, so that it cannot be lost to an acknowledgement.
    pub fn next(&self, event: &JobEvent) -> Result<Self, Refused> {
        match (self, event) {
            (Self::Queued, JobEvent::Assign { runner, ack_by }) => {
                Ok(Self::Waiting { runner: *runner, ack_by: *ack_by })
            }
            (Self::Waiting { runner, .. }, JobEvent::Ack { lease_until })
            | (Self::Running { runner, .. }, JobEvent::Heartbeat { lease_until }) => {
                Ok(Self::Running { runner: *runner, lease_until: *lease_until })
            }
            (Self::Waiting { .. }, JobEvent::Nack) => Ok(Self::Queued),
            (Self::Running { .. }, JobEvent::Complete(outcome)) => Ok(outcome.clone().into()),
            (Self::Running { .. }, JobEvent::Lost { reason })
            | (Self::Queued | Self::Waiting { .. }, JobEvent::Drop { reason }) => {
                Ok(Self::Failed { reason: reason.clone() })
            }
            (Self::Queued, JobEvent::Cancel { reason })
            | (
                Self::Queued | Self::Waiting { .. } | Self::Running { .. },
                JobEvent::ForceCancel { reason },
            ) => Ok(Self::Cancelled { reason: reason.clone() }),
            (Self::Waiting { .. } | Self::Running { .. }, JobEvent::Cancel { .. }) => {
                Ok(self.clone())
            }
            (
                Self::Queued
                | Self::Waiting { .. }
                | Self::Running { .. }
                | Self::Succeeded
                | Self::Failed { .. }
                | Self::Cancelled { .. },
                _,
            ) => Err(Refused { what: "job", state: self.name(), event: event.name() }),
        }
    }
}

impl From<Outcome> for JobState {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Succeeded => Self::Succeeded,
            Outcome::Failed { reason } => Self::Failed { reason },
            Outcome::Cancelled { reason } => Self::Cancelled { reason },
        }
    }
}

impl JobEvent {
    /// The word used in refusals.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Assign { .. } => "assign",
            Self::Ack { .. } => "ack",
            Self::Nack => "nack",
            Self::Heartbeat { .. } => "heartbeat",
            Self::Complete(_) => "complete",
            Self::Lost { .. } => "lost",
            Self::Drop { .. } => "drop",
            Self::Cancel { .. } => "cancel",
            Self::ForceCancel { .. } => "force cancel",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_read_back_from_their_json() {
        let source = Digest::of(b"source");
        let all = [
            Operation::Noop,
            Operation::Build { source },
            Operation::Deploy { build: Some(7) },
            Operation::Release { deployment: DeploymentId(9) },
            Operation::Up { source },
            Operation::Restart,
            Operation::Destroy,
        ];
        for operation in all {
            let json = serde_json::to_string(&operation).expect("operations serialise");
            let word = format!("\"op\":\"{}\"", operation.name());
            assert!(json.contains(&word), "{json}");
            assert_eq!(serde_json::from_str::<Operation>(&json).expect("and back"), operation);
        }
    }

    #[test]
    fn transition_table() {
        let runner = RunnerId(1);
        let reason = || "because".to_owned();
        let states = [
            JobState::Queued,
            JobState::Waiting { runner, ack_by: Time(10) },
            JobState::Running { runner, lease_until: Time(20) },
            JobState::Succeeded,
            JobState::Failed { reason: reason() },
            JobState::Cancelled { reason: reason() },
        ];
        let events = [
            JobEvent::Assign { runner, ack_by: Time(10) },
            JobEvent::Ack { lease_until: Time(20) },
            JobEvent::Nack,
            JobEvent::Heartbeat { lease_until: Time(30) },
            JobEvent::Complete(Outcome::Succeeded),
            JobEvent::Complete(Outcome::Failed { reason: reason() }),
            JobEvent::Complete(Outcome::Cancelled { reason: reason() }),
            JobEvent::Lost { reason: reason() },
            JobEvent::Drop { reason: reason() },
            JobEvent::Cancel { reason: reason() },
            JobEvent::ForceCancel { reason: reason() },
        ];
        insta::assert_snapshot!(crate::tests::table(
            &states,
            &events,
            JobState::name,
            |event| match event {
                JobEvent::Complete(outcome) =>
                    format!("complete:{}", JobState::from(outcome.clone()).name()),
                other => other.name().to_owned(),
            },
            JobState::next,
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
