//! The nouns of the platform: typed identifiers, specs, states and their transitions, validation.
//!
//! Nothing here does I/O, knows the time, draws a random number or speaks a wire format other than
//! serde's. A transition is a total function: every `(state, event)` pair has an answer, and the
//! tables printed by the tests are the documentation.

mod action;
mod check;
mod component;
mod convention;
mod deployment;
mod digest;
mod id;
mod identity;
mod instance;
mod job;
mod log;
mod name;
mod report;
mod route;
mod spec;
mod task;
mod time;

pub use action::{
    Action, ActionError, Checksum, ChecksumAlgorithm, MAX_ACTION_DEPTH, MAX_ACTIONS,
    MAX_PHRASE_BYTES, MAX_RUN_BYTES, MAX_TRANSFER_BYTES, MAX_URL_BYTES, UploadMode, parse_user,
};
pub use check::{Check, CheckKind, MIN_COMMAND_INTERVAL_MS};
pub use component::{
    CellDrivers, CellSpec, JoinToken, MAX_DRIVER_REASON, PROTOCOL, ProtocolMismatch, ProtocolRange,
    Role, check_labels, negotiate,
};
pub use convention::{
    CREATOR, DEFAULT_APP, LAUNCHER, LIFECYCLE, PLATFORM_ENV, PROGRAMS, STATIC_SERVER, WEB,
    launched, program_name,
};
pub use deployment::{DeploymentEvent, DeploymentState};
pub use digest::{Digest, DigestError};
pub use id::{
    AppId, BuildId, CellId, DeliveryId, DeploymentId, IdError, InstanceId, JobId, KeyId, ProcessId,
    ProjectId, RunnerId, SessionId, TaskId, TokenId, VolumeId, parse_ulid,
};
pub use identity::{IDENTITY_DIR, ROUTER_HOST, instance_host};
pub use instance::{CrashPolicy, InstanceEvent, InstanceState};
pub use job::{JobEvent, JobState, Operation, Outcome, Target};
pub use log::{ERROR_MARK, LogEntry, LogSource, StepStatus, TerminalEvent};
pub use name::{HostName, MAX_NAME, Name, NameError};
pub use report::{InstanceReport, TaskReport};
pub use route::{Route, RouteGate, RouteTable, RouteTarget};
pub use spec::{
    ContainerSpec, DRIVERS, EgressProtocol, EgressRule, Limits, MAX_ANNOTATION, MAX_CACHE_KEY,
    MAX_CPU_SHARES, MAX_EGRESS_RULES, MAX_ENV_BYTES, MAX_ENV_NAME, MAX_ENV_VARS, MAX_FILES,
    MAX_INSTANCES, MAX_LOG_RATE, MAX_MOUNTS, MAX_PIDS, MAX_SPEC_BYTES, MAX_TAGS, ProcessSpec,
    RetryPolicy, SpecError, StopSignal, TASK_START_MS, TaskSpec, VolumeMount, validate_env,
};
pub use task::{
    ExitStatus, FailureDetail, MAX_TAIL_BYTES, MAX_TAIL_LINES, MAX_TASK_ARTIFACT, MAX_TASK_RESULT,
    TaskEvent, TaskState,
};
pub use time::Time;

/// A transition that the state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {state}, so it cannot take {event}")]
pub struct Refused {
    /// The kind of thing: `job`, `task`, `instance`, `deployment`.
    pub what: &'static str,
    /// The state it was in.
    pub state: &'static str,
    /// The event that was refused.
    pub event: &'static str,
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use crate::Refused;

    /// Renders every `(state, event)` pair: one line per event, one column per state.
    pub(crate) fn table<S, E>(
        states: &[S],
        events: &[E],
        state_name: impl Fn(&S) -> &'static str,
        event_name: impl Fn(&E) -> String,
        next: impl Fn(&S, &E) -> Result<S, Refused>,
    ) -> String {
        let mut text = format!("{:<20}", "event");
        for state in states {
            write!(text, "{:<12}", state_name(state)).expect("writing to a string");
        }
        for event in events {
            let line = states.iter().fold(format!("{:<20}", event_name(event)), |line, state| {
                line + &format!("{:<12}", next(state, event).as_ref().map_or("-", &state_name))
            });
            text += "\n";
            text += line.trim_end();
        }
        text
    }
}
