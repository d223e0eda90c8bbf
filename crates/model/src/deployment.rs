//! Deployments: an immutable image with its configuration, and their state machine.

use serde::{Deserialize, Serialize};

use crate::{Refused, Time};

/// Where a deployment stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum DeploymentState {
    /// Its instances are starting.
    Starting {
        /// When it fails unless every instance is healthy before.
        deadline: Time,
    },
    /// Every instance was healthy once: routes may point at it.
    Ready,
    /// It never became healthy.
    Failed {
        /// Why, for people: the last probe result or the exit.
        reason: String,
    },
    /// Stopped on purpose; it can be started again.
    Retired,
}

/// What can happen to a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeploymentEvent {
    /// Every instance is healthy.
    Healthy,
    /// It will not become healthy.
    Fail {
        /// Why, for people.
        reason: String,
    },
    /// Nothing points at it any more, or it was destroyed.
    Retire,
    /// Start its instances again.
    Start {
        /// When it fails unless every instance is healthy before.
        deadline: Time,
    },
}

impl DeploymentState {
    /// The word shown to people.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Ready => "ready",
            Self::Failed { .. } => "failed",
            Self::Retired => "retired",
        }
    }

    /// Whether its instances should exist.
    pub const fn wants_instances(&self) -> bool {
        match self {
            Self::Starting { .. } | Self::Ready => true,
            Self::Failed { .. } | Self::Retired => false,
        }
    }

    /// The state after `event`.
    pub fn next(&self, event: &DeploymentEvent) -> Result<Self, Refused> {
        match (self, event) {
            (Self::Starting { .. }, DeploymentEvent::Healthy) => Ok(Self::Ready),
            (Self::Starting { .. }, DeploymentEvent::Fail { reason }) => {
                Ok(Self::Failed { reason: reason.clone() })
            }
            (Self::Starting { .. } | Self::Ready, DeploymentEvent::Retire) => Ok(Self::Retired),
            (Self::Failed { .. }, DeploymentEvent::Retire)
            | (Self::Ready, DeploymentEvent::Start { .. }) => Ok(self.clone()),
            (Self::Retired, DeploymentEvent::Start { deadline }) => {
                Ok(Self::Starting { deadline: *deadline })
            }
            (
                Self::Starting { .. } | Self::Ready | Self::Failed { .. } | Self::Retired,
                DeploymentEvent::Healthy
                | DeploymentEvent::Fail { .. }
                | DeploymentEvent::Retire
                | DeploymentEvent::Start { .. },
            ) => Err(Refused { what: "deployment", state: self.name(), event: event.name() }),
        }
    }
}

impl DeploymentEvent {
    /// The word used in refusals.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Fail { .. } => "fail",
            Self::Retire => "retire",
            Self::Start { .. } => "start",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_table() {
        let states = [
            DeploymentState::Starting { deadline: Time(9) },
            DeploymentState::Ready,
            DeploymentState::Failed { reason: "exit 1".into() },
            DeploymentState::Retired,
        ];
        let events = [
            DeploymentEvent::Healthy,
            DeploymentEvent::Fail { reason: "exit 1".into() },
            DeploymentEvent::Retire,
            DeploymentEvent::Start { deadline: Time(9) },
        ];
        insta::assert_snapshot!(crate::tests::table(
            &states,
            &events,
            DeploymentState::name,
            |event| event.name().to_owned(),
            DeploymentState::next,
        ));
    }
}
