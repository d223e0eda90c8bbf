//! The same router with its instance behind a gate: what proof costs.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use model::{RouteGate, instance_host};
use runtime::{Stop, Tasks};
use serde::{Deserialize, Serialize};
use testkit::gate::{Dialer, Entry, Gate, Identity, PeerName};
use testkit::{Authority, ROUTER, Validity, gate_options};

use super::process::Child;
use super::{SERVE, load, process};

/// The attempt at the instance.
const EPOCH: u32 = 1;

/// What the router that is measured is told beyond its table.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    gate: SocketAddr,
    identity: Identity,
    authorities: String,
}

/// A gate with one instance, and a router in front of it.
pub(super) struct Gated {
    pub(super) router: Child,
    gate_pid: u32,
    runtime: tokio::runtime::Runtime,
    backend: u16,
    told: Told,
    _tasks: Tasks,
    _gate: Gate,
}

/// What a connection costs that has to be made first.
pub(super) struct Handshakes {
    pub(super) full_us: f64,
    pub(super) resumed_us: f64,
}

impl Gated {
    pub(super) fn start(dir: &Path, backend: u16) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let tasks = Tasks::new(Stop::new());
        let authority = Authority::new()?;
        let name = instance_host(super::instance(backend, 0), EPOCH);
        let identity = authority.identity(&name, Validity::Good)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, backend));
        let started = async {
            let program = std::env::current_exe().map_err(|error| error.to_string())?;
            let gate = Gate::open(gate_options(dir, program, "bench"), &tasks).await;
            let gate = gate.map_err(|error| error.to_string())?;
            gate.trust(authority.trust()).await.map_err(|error| error.to_string())?;
            let entry = Entry { name, address, identity };
            gate.put(entry).await.map_err(|error| error.to_string())?;
            let pid = gate.pid().await.map_err(|error| error.to_string())?;
            Ok::<_, String>((gate, pid))
        };
        let (gate, gate_pid) = runtime.block_on(started)?;
        let identity = authority.identity(ROUTER, Validity::Good)?;
        let told = Told { gate: gate.address(), identity, authorities: authority.pem };
        let path = dir.join("told.json");
        let text = serde_json::to_vec(&told).map_err(|error| error.to_string())?;
        std::fs::write(&path, text).map_err(|error| error.to_string())?;
        let router = Child::router(SERVE, backend, 1, Some(&path))?;
        Ok(Self { router, gate_pid, runtime, backend, told, _tasks: tasks, _gate: gate })
    }

    pub(super) fn gate_pids(&self) -> Vec<u32> {
        vec![self.gate_pid]
    }

    /// One round: what a request costs the router, and what it costs the gate.
    pub(super) fn round(&self) -> Result<(load::Figures, f64), String> {
        let before = process::cpu_us(&self.gate_pids())?;
        let figures = load::round(&self.router, &self.router.pids(), None)?;
        let used = process::cpu_us(&self.gate_pids())? - before;
        let requests = figures.rate * f64::from(super::SECONDS);
        Ok((figures, super::round(used / requests)))
    }

    /// What making connections costs gate and router together.
    pub(super) fn handshakes(&self) -> Result<Handshakes, String> {
        const MANY: u32 = 1_000;
        let told = &self.told;
        let name = instance_host(super::instance(self.backend, 0), EPOCH);
        let name = PeerName::new(name).map_err(|error| error.to_string())?;
        let cost = |is_resumed: bool| {
            let pids = [self.gate_pid, std::process::id()];
            let fresh = || dialer(told);
            let known = fresh()?;
            let before = process::cpu_us(&pids)?;
            for _ in 0..MANY {
                let dialer = if is_resumed { known.clone() } else { fresh()? };
                let dialled = self.runtime.block_on(dialer.dial(told.gate, &name));
                drop(dialled.map_err(|error| error.to_string())?);
            }
            Ok::<_, String>((process::cpu_us(&pids)? - before) / f64::from(MANY))
        };
        Ok(Handshakes { full_us: cost(false)?, resumed_us: cost(true)? })
    }
}

fn read(path: &Path) -> Result<Told, String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|error| error.to_string())
}

fn dialer(told: &Told) -> Result<Dialer, String> {
    Dialer::new(&told.identity, &told.authorities).map_err(|error| error.to_string())
}

/// What the router that is measured shows, and where its instance is.
pub(super) fn told(path: &Path) -> Result<(Dialer, RouteGate), String> {
    let told = read(path)?;
    Ok((dialer(&told)?, RouteGate { address: told.gate, epoch: EPOCH }))
}
