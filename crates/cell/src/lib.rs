//! The agent of one machine: runs tasks and instances in containers, as the server wants it.
//!
//! It dials the server and keeps nothing of its own beyond running containers: those outlive it,
//! and the next agent finds them again. What it reports is state, not events: after a reconnect it
//! says again whatever the server still has to know, so nothing is lost and nothing runs twice.

mod actions;
mod actor;
mod adopt;
mod agent;
mod blob;
mod bucket;
mod caches;
mod checksum;
mod error;
mod files;
mod furnish;
mod growth;
mod health;
mod identity;
mod image;
mod inside;
mod instance;
mod layers;
mod limits;
mod lines;
mod link;
mod logs;
mod machine;
mod metrics;
mod notes;
mod options;
mod pace;
mod ports;
mod prepare;
mod probe;
mod refuse;
mod report;
mod resume;
mod session;
mod sessions;
mod shared;
mod space;
mod tail;
mod task;
mod transfer;
mod turns;
mod unpack;
mod volumes;
mod web;
mod work;
mod working;
mod zips;

pub use agent::Cell;
pub use egress::{MAX_REDIRECTS, Network};
pub use error::CellError;
pub use gate::{PORT as GATE_PORT, maybe_run as maybe_run_gate};
pub use limits::{
    CACHED_BUILD_BYTES, CACHED_LAYER_BYTES, LOG_BURST_SECONDS, LOG_BYTES, MAX_CACHE_BYTES,
    MAX_CREATES, MAX_DOWNLOADS, MAX_FETCHES, MAX_LINE, MAX_NAMED_UPLOADS, MAX_SESSIONS,
    MAX_UPLOADS, PROJECT_TURNS, RESERVE_BYTES, SESSION_WINDOW, SPOOL_BYTES, TASK_GRACE, TASK_LEASE,
    UNREACHABLE_LIMIT,
};
pub use metrics::Metrics;
pub use options::{Capacity, DefaultLimits, Options};
pub use space::DiskUse;
