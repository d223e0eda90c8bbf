//! The router beside nginx: CPU per request, memory, and what a change of routes costs.

mod change;
mod gated;
mod load;
mod process;

use std::io::{BufRead as _, Read as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use model::{DeploymentId, InstanceId, Route, RouteGate, RouteTable, RouteTarget};
use router::{Options, Router};
use runtime::{Stop, Tasks};
use serde_json::{Value, json};

use process::{Child, Nginx};

/// The hidden argument that makes this program a router: `router --serve BACKEND HOSTS [FILE]`. The
/// file says who it is, and that instances are behind a gate.
const SERVE: &str = "--serve";
/// Hosts of the large table.
const HOSTS: usize = 10_000;
/// Rounds of each measurement, taken in turns.
const ROUNDS: usize = 5;
/// How long `wrk` loads in each round.
const SECONDS: u32 = 3;
/// Bytes of a response's body.
const BODY: usize = 1_024;
/// Threads of the router and workers of nginx.
const THREADS: usize = 2;

pub(crate) fn run() -> Result<Value, String> {
    if std::env::args().nth(2).as_deref() == Some(SERVE) {
        return serve();
    }
    let dir = process::Dir::new()?;
    // Each proxy has a backend of its own: kept connections to one address are as many as ports.
    let body = "x".repeat(BODY);
    let backends =
        [Nginx::backend(&dir, "backend-a", &body)?, Nginx::backend(&dir, "backend-b", &body)?];
    let one = Pair::start(&dir, &backends, 1)?;
    let many = Pair::start(&dir, &backends, HOSTS)?;
    let gated = gated::Gated::start(&dir, backends[0].port)?;
    let mut gate_us = Vec::new();
    let spread = load::spread_script(&dir, HOSTS)?;
    let mut figures = [const { Vec::new() }; 5];
    for _ in 0..ROUNDS {
        figures[0].push(load::round(&one.router, &one.router.pids(), None)?);
        figures[1].push(load::round(&one.nginx, &one.nginx.pids(), None)?);
        figures[2].push(load::round(&many.router, &many.router.pids(), Some(&spread))?);
        figures[3].push(load::round(&many.nginx, &many.nginx.pids(), Some(&spread))?);
        let (round, gate) = gated.round()?;
        figures[4].push(round);
        gate_us.push(gate);
    }
    let handshakes = gated.handshakes()?;
    let change = change::measure(&dir)?;
    let [ours, theirs, ours_many, theirs_many, proven] =
        figures.map(|rounds| load::median(&rounds));
    Ok(json!({
        "bench": "router",
        "cpu_us_per_request": ours.cpu_us,
        "nginx_cpu_us_per_request": theirs.cpu_us,
        "ratio": round(ours.cpu_us / theirs.cpu_us),
        "requests_per_second": ours.rate,
        "nginx_requests_per_second": theirs.rate,
        "cpu_us_10k_routes": ours_many.cpu_us,
        "nginx_cpu_us_10k_routes": theirs_many.cpu_us,
        "ratio_10k_routes": round(ours_many.cpu_us / theirs_many.cpu_us),
        "rss_mb_10k_routes": process::rss_mb(&many.router.pids())?,
        "nginx_rss_mb_10k_routes": process::rss_mb(&many.nginx.pids())?,
        "cpu_us_gated": proven.cpu_us,
        "cpu_us_gate": load::middle(gate_us),
        "requests_per_second_gated": proven.rate,
        "rss_mb_gate": process::rss_mb(&gated.gate_pids())?,
        "handshake_us": round(handshakes.full_us),
        "handshake_resumed_us": round(handshakes.resumed_us),
        "rss_mb": process::rss_mb(&one.router.pids())?,
        "route_change_ms": change.median_ms,
        "route_change_max_ms": change.max_ms,
        "route_change_floor_ms": change.floor_ms,
        "route_changes": change.changes,
        "requests_during_changes": change.requests,
        "lost": change.lost,
    }))
}

fn round(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

/// Both proxies with as many hosts.
struct Pair {
    router: Child,
    nginx: Nginx,
}

impl Pair {
    fn start(dir: &Path, backends: &[Nginx; 2], hosts: usize) -> Result<Self, String> {
        let router = Child::router(SERVE, backends[0].port, hosts, None)?;
        let nginx = Nginx::proxy(dir, backends[1].port, hosts, THREADS)?;
        Ok(Self { router, nginx })
    }
}

fn host(index: usize) -> String {
    format!("h{index}.bench.example")
}

/// The instance of a host.
fn instance(backend: u16, index: usize) -> InstanceId {
    InstanceId((u128::from(backend) << 32) + index as u128)
}

/// A table in which every host is an app with an instance of its own, all at one address.
fn table(
    generation: u64,
    hosts: usize,
    backend: u16,
    gate: Option<RouteGate>,
) -> Result<RouteTable, String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, backend));
    let routes = (0..hosts).map(|index| {
        let target = RouteTarget { instance: instance(backend, index), address, gate };
        Ok(Route {
            host: host(index).parse().map_err(|error| format!("{error}"))?,
            deployment: DeploymentId(1),
            targets: vec![target],
        })
    });
    Ok(RouteTable { generation, routes: routes.collect::<Result<_, String>>()? })
}

/// Starts a router on a free port. The runtime carries its tasks and must live as long.
fn start_router() -> Result<(tokio::runtime::Runtime, Tasks, Router), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let tasks = Tasks::new(Stop::new());
    let options = Options {
        listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
        threads: THREADS,
        ..Options::default()
    };
    let entered = runtime.enter();
    let router = Router::start(options, None, &tasks).map_err(|error| error.to_string())?;
    drop(entered);
    Ok((runtime, tasks, router))
}

/// Is the router: says its port and serves until the parent closes our input.
fn serve() -> Result<Value, String> {
    let argument = |at| std::env::args().nth(at).and_then(|it| it.parse::<usize>().ok());
    let (backend, hosts) = argument(3).zip(argument(4)).ok_or("--serve BACKEND HOSTS")?;
    let backend = u16::try_from(backend).map_err(|error| error.to_string())?;
    let (_runtime, tasks, router) = start_router()?;
    let mut gate = None;
    if let Some(path) = std::env::args().nth(5) {
        let (dialer, told) = gated::told(Path::new(&path))?;
        router.prove(dialer);
        gate = Some(told);
    }
    router.apply(&table(1, hosts, backend, gate)?);
    process::say(&router.addresses()[0].port().to_string())?;
    let mut rest = Vec::new();
    std::io::stdin().lock().read_to_end(&mut rest).map_err(|error| error.to_string())?;
    tasks.stop().stop();
    Ok(Value::Null)
}

/// The first line of what a child says.
fn first_line(output: impl std::io::Read) -> Result<String, String> {
    let mut line = String::new();
    std::io::BufReader::new(output).read_line(&mut line).map_err(|error| error.to_string())?;
    Ok(line.trim().to_owned())
}
