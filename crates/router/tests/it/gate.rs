//! Instances behind a real gate.

use std::net::SocketAddr;

use ::gate::{Entry, Gate};
use model::{DeploymentId, InstanceId, Route, RouteGate, RouteTable, RouteTarget, instance_host};
use router::Limits;
use runtime::{Stop, Tasks};
use testkit::{Authority, Validity, gate_options};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Instance, Site, nowhere, read_response, read_until, soon, until};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\n\r\nx";

/// A gate, and a router that it knows.
struct Gated {
    site: Site,
    gate: Gate,
    authority: Authority,
    _dir: tempfile::TempDir,
    tasks: Tasks,
}

impl Gated {
    async fn start(limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let tasks = Tasks::new(Stop::new());
        let options = gate_options(dir.path(), env!("CARGO_BIN_EXE_router-testbed"), "1");
        let gate = Gate::open(options, &tasks).await.expect("a gate");
        let authority = Authority::new().expect("an authority");
        gate.trust(authority.trust()).await.expect("it trusts");
        let site = Site::with(limits);
        site.router.prove(authority.router().expect("a dialer"));
        Self { site, gate, authority, _dir: dir, tasks }
    }

    async fn put(&self, instance: u128, epoch: u32, address: SocketAddr) {
        let name = instance_host(InstanceId(instance), epoch);
        let identity = self.authority.identity(&name, Validity::Good).expect("an identity");
        self.gate.put(Entry { name, address, identity }).await.expect("it takes the instance");
    }

    async fn remove(&self, instance: u128, epoch: u32) {
        let name = instance_host(InstanceId(instance), epoch);
        self.gate.remove(&name).await.expect("it forgets");
    }

    /// Sends `a.example` to these, as (instance, epoch, address).
    fn serve(&self, generation: u64, targets: &[(u128, u32, SocketAddr)]) {
        let targets = targets.iter().map(|(instance, epoch, address)| RouteTarget {
            instance: InstanceId(*instance),
            address: *address,
            gate: Some(RouteGate { address: self.gate.address(), epoch: *epoch }),
        });
        let host = "a.example".parse().expect("a host");
        let route = Route { host, deployment: DeploymentId(1), targets: targets.collect() };
        self.site.router.apply(&RouteTable { generation, routes: vec![route] });
    }
}

#[tokio::test]
async fn requests_go_through_and_connections_are_kept() {
    for limits in [Limits::default(), Limits { warm: 0, ..Limits::default() }] {
        let gated = Gated::start(limits).await;
        let instance = Instance::echo(&gated.site.tasks, "one").await;
        gated.put(1, 1, instance.address).await;
        gated.serve(1, &[(1, 1, instance.address)]);
        let mut stream = gated.site.connect().await;
        for ask in [GET, POST, GET].repeat(3) {
            stream.write_all(ask.as_bytes()).await.expect("the router reads");
            let answer = soon("an answer", read_response(&mut stream)).await;
            assert!(answer.expect("an answer").contains("\r\n\r\none\n"));
        }
        assert_eq!((instance.connections(), instance.requests()), (1, 9));
        assert_eq!(gated.site.router.stats().gate_handshakes, 1);
    }
}

#[tokio::test]
async fn large_bodies_go_both_ways() {
    let gated = Gated::start(Limits::default()).await;
    let instance = Instance::echo(&gated.site.tasks, "one").await;
    gated.put(1, 1, instance.address).await;
    gated.serve(1, &[(1, 1, instance.address)]);
    let body = "0123456789".repeat(20_000);
    let head = format!(
        "POST / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let answer = gated.site.ask(head + &body).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(&body));
}

/// The address of an instance that ended is another app's now, and the router has not heard of it.
#[tokio::test]
async fn whoever_has_the_address_now_gets_nothing() {
    for limits in [Limits::default(), Limits { warm: 0, ..Limits::default() }] {
        let gated = Gated::start(limits).await;
        let other = Instance::echo(&gated.site.tasks, "another app").await;
        gated.put(1, 1, other.address).await;
        gated.serve(1, &[(1, 1, other.address)]);
        // So far it is the one, and connections to it are kept.
        let answer = gated.site.get("a.example").await;
        assert!(answer.contains("another app"), "{answer}");
        gated.remove(1, 1).await;
        gated.put(2, 1, other.address).await;
        gated.serve(2, &[(1, 2, other.address)]);
        let (requests, connections) = (other.requests(), other.connections());
        for ask in [GET, POST].repeat(10) {
            let mut stream = gated.site.connect().await;
            stream.write_all(ask.as_bytes()).await.expect("the router reads");
            let answer = soon("an answer", read_response(&mut stream)).await.expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        }
        assert_eq!((other.requests(), other.connections()), (requests, connections));
    }
}

#[tokio::test]
async fn an_instance_that_is_gone_costs_no_request() {
    let gated = Gated::start(Limits::default()).await;
    let instance = Instance::echo(&gated.site.tasks, "here").await;
    gated.put(1, 1, instance.address).await;
    // One is not known to the gate, of another only an earlier attempt is, and one has crashed.
    let crashed = nowhere().await;
    gated.put(3, 1, crashed).await;
    let here = (1, 1, instance.address);
    for gone in [(2, 1, instance.address), (1, 2, instance.address), (3, 1, crashed)] {
        gated.serve(u64::from(gone.2.port()), &[here, gone]);
        for ask in [GET, POST].repeat(10) {
            let mut stream = gated.site.connect().await;
            stream.write_all(ask.as_bytes()).await.expect("the router reads");
            let answer = soon("an answer", read_response(&mut stream)).await.expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    }
}

#[tokio::test]
async fn a_router_without_a_certificate_sends_nothing() {
    let gated = Gated::start(Limits::default()).await;
    let instance = Instance::echo(&gated.site.tasks, "one").await;
    gated.put(1, 1, instance.address).await;
    let target = (1, 1, instance.address);
    let identity = gated.authority.identity("other.internal", Validity::Good).expect("one");
    gated.site.router.prove(gated.authority.dialer(&identity).expect("a dialer"));
    gated.serve(1, &[target]);
    assert!(gated.site.get("a.example").await.starts_with("HTTP/1.1 502 "));
    gated.site.router.prove(gated.authority.router().expect("a dialer"));
    assert!(gated.site.get("a.example").await.starts_with("HTTP/1.1 200 "));
    assert_eq!(instance.connections(), 1);
}

#[tokio::test]
async fn an_upgraded_connection_goes_through() {
    let gated = Gated::start(Limits::default()).await;
    let instance = Instance::scripted(&gated.site.tasks, |mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        let agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                      Upgrade: echo\r\n\r\nhello";
        stream.write_all(agreed.as_bytes()).await.expect("the router reads");
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.expect("it echoes");
    })
    .await;
    gated.put(1, 1, instance.address).await;
    gated.serve(1, &[(1, 1, instance.address)]);
    let mut stream = gated.site.connect().await;
    let ask = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.expect("the router reads");
    assert!(read_until(&mut stream, "hello").await.starts_with("HTTP/1.1 101 "));
    for text in ["one", "two", "three"] {
        stream.write_all(text.as_bytes()).await.expect("the router reads");
        assert_eq!(read_until(&mut stream, text).await, text);
    }
    stream.shutdown().await.expect("the end is passed on");
    assert_eq!(soon("the end", stream.read(&mut [0; 8])).await.expect("an end"), 0);
    until("the gate has no connection", || gated.site.router.stats().tunnels == 0).await;
}

#[tokio::test]
async fn a_response_that_breaks_off_is_not_taken_for_a_whole_one() {
    let gated = Gated::start(Limits::default()).await;
    let instance = Instance::scripted(&gated.site.tasks, |mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        // Its length is told by its end, and its end is a reset.
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhalf").await.expect("the router reads");
        runtime::sleep(std::time::Duration::from_millis(50)).await;
        stream.set_zero_linger().expect("a reset");
    })
    .await;
    gated.put(1, 1, instance.address).await;
    gated.serve(1, &[(1, 1, instance.address)]);
    let mut stream = gated.site.connect().await;
    stream.write_all(GET.as_bytes()).await.expect("the router reads");
    let mut answer = String::new();
    drop(soon("the end", stream.read_to_string(&mut answer)).await);
    assert!(answer.contains("half") && !answer.ends_with("0\r\n\r\n"), "{answer}");
    assert!(gated.tasks.shutdown(std::time::Duration::from_secs(5)).await);
}
