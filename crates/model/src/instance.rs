//! Instances: one running copy of a process, and their state machine.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::spec::{DAY_MS, range};
use crate::{CellId, FailureDetail, Refused, SpecError, Time};

/// Where an instance stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum InstanceState {
    /// Waiting for a cell.
    Unclaimed {
        /// Why no cell took it yet, for people.
        reason: Option<String>,
    },
    /// A cell was chosen and prepares it.
    Claimed {
        /// The cell.
        cell: CellId,
    },
    /// Its process runs.
    Running {
        /// The cell.
        cell: CellId,
        /// Where it listens.
        address: SocketAddr,
        /// Whether its health check passes, so that routes may point at it.
        ready: bool,
    },
    /// It ended by itself or never became healthy.
    Crashed {
        /// When it starts again; never when absent.
        restart_at: Option<Time>,
        /// What happened, for people.
        reason: String,
        /// What exactly.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<Box<FailureDetail>>,
    },
    /// It is not wanted any more; its routes are withdrawn and the cell ends it.
    Stopping {
        /// The cell.
        cell: CellId,
    },
    /// Gone from its cell.
    Stopped,
}

/// What can happen to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstanceEvent {
    /// The auction chose a cell.
    Claim {
        /// The cell.
        cell: CellId,
    },
    /// No cell took it, or the chosen one gave it back.
    Reject {
        /// Why, for people.
        reason: String,
    },
    /// The process started.
    Started {
        /// Where it listens.
        address: SocketAddr,
    },
    /// The health check changed its mind.
    Ready(bool),
    /// It ended by itself or never became healthy.
    Crash {
        /// When it starts again; never when absent.
        restart_at: Option<Time>,
        /// What happened, for people.
        reason: String,
        /// What exactly.
        detail: Option<Box<FailureDetail>>,
    },
    /// Time to start again, or the cell is gone.
    Restart {
        /// Why, for people.
        reason: Option<String>,
    },
    /// It is not wanted any more.
    Stop,
    /// The cell says nothing of it is left.
    Gone,
    /// A copy from before takes its place again: it runs on, or it ends where it is.
    Promote {
        /// The cell of that copy.
        cell: CellId,
        /// Where it listens.
        address: SocketAddr,
        /// Whether its health check passes.
        ready: bool,
    },
}

impl InstanceState {
    /// The word shown to people.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Unclaimed { .. } => "unclaimed",
            Self::Claimed { .. } => "claimed",
            Self::Running { .. } => "running",
            Self::Crashed { .. } => "crashed",
            Self::Stopping { .. } => "stopping",
            Self::Stopped => "stopped",
        }
    }

    /// The cell that holds it.
    pub const fn cell(&self) -> Option<CellId> {
        match self {
            Self::Claimed { cell } | Self::Running { cell, .. } | Self::Stopping { cell } => {
                Some(*cell)
            }
            Self::Unclaimed { .. } | Self::Crashed { .. } | Self::Stopped => None,
        }
    }

    /// Where it can be reached, when a route may point at it.
    pub const fn ready_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Running { address, ready: true, .. } => Some(*address),
            Self::Running { ready: false, .. }
            | Self::Unclaimed { .. }
            | Self::Claimed { .. }
            | Self::Crashed { .. }
            | Self::Stopping { .. }
            | Self::Stopped => None,
        }
    }

    /// The state after `event`.
    pub fn next(&self, event: &InstanceEvent) -> Result<Self, Refused> {
        match (self, event) {
            (Self::Unclaimed { .. }, InstanceEvent::Claim { cell }) => {
                Ok(Self::Claimed { cell: *cell })
            }
            (Self::Unclaimed { .. } | Self::Claimed { .. }, InstanceEvent::Reject { reason }) => {
                Ok(Self::Unclaimed { reason: Some(reason.clone()) })
            }
            (Self::Claimed { cell }, InstanceEvent::Started { address }) => {
                Ok(Self::Running { cell: *cell, address: *address, ready: false })
            }
            (Self::Running { cell, address, .. }, InstanceEvent::Ready(ready)) => {
                Ok(Self::Running { cell: *cell, address: *address, ready: *ready })
            }
            (
                Self::Claimed { .. } | Self::Running { .. },
                InstanceEvent::Crash { restart_at, reason, detail },
            ) => Ok(Self::Crashed {
                restart_at: *restart_at,
                reason: reason.clone(),
                detail: detail.clone(),
            }),
            (
                Self::Claimed { .. } | Self::Running { .. } | Self::Crashed { .. },
                InstanceEvent::Restart { reason },
            ) => Ok(Self::Unclaimed { reason: reason.clone() }),
            (
                Self::Claimed { cell } | Self::Running { cell, .. } | Self::Stopping { cell },
                InstanceEvent::Stop,
            ) => Ok(Self::Stopping { cell: *cell }),
            (Self::Unclaimed { .. } | Self::Crashed { .. }, InstanceEvent::Stop)
            | (Self::Stopping { .. }, InstanceEvent::Gone) => Ok(Self::Stopped),
            (
                Self::Unclaimed { .. }
                | Self::Claimed { .. }
                | Self::Running { .. }
                | Self::Crashed { .. },
                InstanceEvent::Promote { cell, address, ready },
            ) => Ok(Self::Running { cell: *cell, address: *address, ready: *ready }),
            (Self::Stopping { .. }, InstanceEvent::Promote { cell, .. }) => {
                Ok(Self::Stopping { cell: *cell })
            }
            (
                Self::Unclaimed { .. }
                | Self::Claimed { .. }
                | Self::Running { .. }
                | Self::Crashed { .. }
                | Self::Stopping { .. }
                | Self::Stopped,
                _,
            ) => Err(Refused { what: "instance", state: self.name(), event: event.name() }),
        }
    }
}

impl InstanceEvent {
    /// The word used in refusals.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Claim { .. } => "claim",
            Self::Reject { .. } => "reject",
            Self::Started { .. } => "started",
            Self::Ready(_) => "ready",
            Self::Crash { .. } => "crash",
            Self::Restart { .. } => "restart",
            Self::Stop => "stop",
            Self::Gone => "gone",
            Self::Promote { .. } => "promote",
        }
    }
}

/// When a crashed instance starts again. The defaults are Diego's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CrashPolicy {
    /// How many crashes in a row restart at once.
    pub immediate: u32,
    /// The first delay after those, in milliseconds; it doubles each time.
    pub base_ms: u64,
    /// The longest delay, in milliseconds.
    pub cap_ms: u64,
    /// How long an instance must run for its crashes to be forgotten, in milliseconds.
    pub reset_after_ms: u64,
    /// After how many crashes in a row it stays down.
    pub give_up_after: u32,
}

impl Default for CrashPolicy {
    fn default() -> Self {
        Self {
            immediate: 2,
            base_ms: 30_000,
            cap_ms: 960_000,
            reset_after_ms: 300_000,
            give_up_after: 200,
        }
    }
}

impl CrashPolicy {
    /// The pause before the restart that follows crash number `crashes` (1 for the first);
    /// `None` when it stays down.
    pub fn pause(&self, crashes: u32) -> Option<Duration> {
        if crashes >= self.give_up_after {
            return None;
        }
        let Some(doublings) = crashes.checked_sub(self.immediate.saturating_add(1)) else {
            return Some(Duration::ZERO);
        };
        let factor = 1_u64.checked_shl(doublings).unwrap_or(u64::MAX);
        Some(Duration::from_millis(self.base_ms.saturating_mul(factor).min(self.cap_ms)))
    }

    pub(crate) fn validate(&self) -> Result<(), SpecError> {
        range("crash immediate", self.immediate.into(), 0..=1_000, "0 to 1000")?;
        range("crash base_ms", self.base_ms, 0..=DAY_MS, "0 to 24 h")?;
        range("crash cap_ms", self.cap_ms, 0..=DAY_MS, "0 to 24 h")?;
        range("crash reset_after_ms", self.reset_after_ms, 0..=DAY_MS, "0 to 24 h")?;
        range("crash give_up_after", self.give_up_after.into(), 1..=1_000_000, "1 to 1000000")?;
        if self.cap_ms < self.base_ms {
            let reason = "it is shorter than base_ms";
            return Err(SpecError::Text { field: "crash cap_ms", reason });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_table() {
        let cell = CellId(1);
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        let states = [
            InstanceState::Unclaimed { reason: None },
            InstanceState::Claimed { cell },
            InstanceState::Running { cell, address, ready: true },
            InstanceState::Crashed { restart_at: None, reason: "exit 1".into(), detail: None },
            InstanceState::Stopping { cell },
            InstanceState::Stopped,
        ];
        let events = [
            InstanceEvent::Claim { cell },
            InstanceEvent::Reject { reason: "full".into() },
            InstanceEvent::Started { address },
            InstanceEvent::Ready(true),
            InstanceEvent::Crash { restart_at: None, reason: "exit 1".into(), detail: None },
            InstanceEvent::Restart { reason: None },
            InstanceEvent::Stop,
            InstanceEvent::Gone,
            InstanceEvent::Promote { cell, address, ready: true },
        ];
        insta::assert_snapshot!(crate::tests::table(
            &states,
            &events,
            InstanceState::name,
            |event| event.name().to_owned(),
            InstanceState::next,
        ));
        assert!(events.iter().all(|e| InstanceState::Stopped.next(e).is_err()));
    }

    #[test]
    fn the_default_policy_waits_as_diego_does() {
        let policy = CrashPolicy::default();
        let secs = |n| Some(Duration::from_secs(n));
        let pauses: Vec<_> = (1..=10).map(|n| policy.pause(n)).collect();
        let wanted = [0, 0, 30, 60, 120, 240, 480, 960, 960, 960].map(secs);
        assert_eq!(pauses, wanted);
        assert_eq!(policy.pause(199), secs(960));
        assert_eq!(policy.pause(200), None);
    }
}
