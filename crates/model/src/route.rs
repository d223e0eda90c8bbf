//! What the router serves.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{DeploymentId, HostName, InstanceId};

/// Every route, at one generation. A receiver refuses a table older than the one it has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouteTable {
    /// Grows with every change.
    pub generation: u64,
    /// One entry per host, ordered by host.
    pub routes: Vec<Route>,
}

/// One host and the instances that answer for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The host as the client names it, without a port.
    pub host: HostName,
    /// The deployment the host points at.
    pub deployment: DeploymentId,
    /// Ready instances. Empty: the host is known, but nothing can answer now.
    pub targets: Vec<RouteTarget>,
}

/// One instance that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTarget {
    /// Which instance.
    pub instance: InstanceId,
    /// Where it listens.
    pub address: SocketAddr,
    /// How it is reached on a machine that proves who it is; else by its address alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<RouteGate>,
}

/// The gate in front of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RouteGate {
    /// Where the gate listens.
    pub address: SocketAddr,
    /// The attempt at the instance, which is part of the name it proves.
    pub epoch: u32,
}
