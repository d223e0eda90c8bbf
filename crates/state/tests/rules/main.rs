//! The rules of the control plane, as somebody outside sees them.
#![expect(clippy::panic, reason = "helpers of tests panic as tests do")]

mod away;
mod bench;
mod config;
mod crashes;
mod deployments;
mod drains;
mod jobs;
mod news;
mod placing;
mod predecessors;
mod properties;
mod queue;
mod rebalance;
mod routes;
mod task_ends;
mod task_limits;
mod tasks;
mod volumes;
