//! Instances that can prove who they are.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use api::proto::Drained;
use api::proto::cell_down::Message as Down;
use api::proto::cell_up::Message as Up;
use drivers::Driver as _;
use gate::{Dialer, PeerName};
use model::{CellSpec, InstanceId, instance_host};
use serde_json::json;
use testkit::Authority;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::bench::{
    Agent, Bench, http_check, instance, instance_work, process, stopped, until, web,
};
use crate::instances::ready;
use crate::server::{SOON, Server, Stream};

async fn server() -> (Server, Arc<Authority>) {
    let authority = Arc::new(Authority::new().expect("an authority"));
    let mut server = Server::start().await;
    server.authority = Some(Arc::clone(&authority));
    (server, authority)
}

fn start(bench: &Bench, server: &Server) -> Agent {
    bench.start_with(&server.url, |options| {
        options.gate = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    })
}

fn gate_of(stream: &Stream) -> SocketAddr {
    let spec: CellSpec = serde_json::from_slice(&stream.hello.spec_json).expect("a spec");
    spec.gate.expect("it has a gate")
}

async fn page(router: &Dialer, gate: SocketAddr, id: u128, epoch: u32) -> Result<String, String> {
    let name = PeerName::new(instance_host(InstanceId(id), epoch)).expect("a name");
    let mut stream = router.dial(gate, &name).await.map_err(|error| error.to_string())?;
    let ask = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    stream.write_all(ask).await.map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(|error| error.to_string())?;
    Ok(answer)
}

#[tokio::test]
async fn routers_reach_an_instance_through_the_gate_as_long_as_it_is_there() {
    let (bench, (mut server, authority)) = (Bench::new(), server().await);
    let agent = start(&bench, &server);
    let mut stream = server.accept().await;
    let (gate, router) = (gate_of(&stream), authority.router().expect("a dialer"));
    let wanted = instance(1, &web(Some(http_check())));
    stream.desire(true, vec![wanted.clone()]).await;
    ready(&mut stream).await;
    let answer = page(&router, gate, 1, 1).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    for (id, epoch) in [(1, 2), (2, 1)] {
        let refusal = page(&router, gate, id, epoch).await.expect_err("nobody there");
        assert!(refusal.contains("AccessDenied"), "{refusal}");
    }
    // Nobody needs the agent for what runs.
    agent.stop().await;
    drop(stream);
    page(&router, gate, 1, 1).await.expect("an answer without an agent");
    let agent = start(&bench, &server);
    let mut stream = server.accept().await;
    assert_eq!(gate_of(&stream), gate, "the gate was found again");
    stream.desire(true, vec![wanted.clone()]).await;
    page(&router, gate, 1, 1).await.expect("an answer");
    stream.desire(false, vec![stopped(&wanted)]).await;
    stream.line(r#"{"report":"gone"}"#).await;
    let refusal = page(&router, gate, 1, 1).await.expect_err("it is gone");
    assert!(refusal.contains("AccessDenied"), "{refusal}");
    stream.gone(&instance_work(1, 1)).await;
    agent.stop().await;
    // It served nobody any more.
    is_closed(gate).await;
}

/// Waits until nobody listens there.
async fn is_closed(gate: SocketAddr) {
    let closed = async {
        while tokio::net::TcpStream::connect(gate).await.is_ok() {
            runtime::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(runtime::timeout(SOON, closed).await.is_some(), "the gate goes on");
}

#[tokio::test]
async fn the_next_agent_closes_the_way_to_what_ended_without_one() {
    let (bench, (mut server, authority)) = (Bench::new(), server().await);
    let agent = start(&bench, &server);
    let mut stream = server.accept().await;
    let (gate, router) = (gate_of(&stream), authority.router().expect("a dialer"));
    stream.desire(true, vec![instance(1, &web(Some(http_check())))]).await;
    ready(&mut stream).await;
    agent.stop().await;
    drop(stream);
    // Its machine lost the container altogether.
    for container in bench.containers() {
        let pid = i32::try_from(bench.pid()).expect("a process");
        let pid = rustix::process::Pid::from_raw(pid).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
        let container = bench.dir.path().join("containers").join(container);
        until("it is gone", || fs::remove_dir_all(&container).is_ok()).await;
    }
    let agent = start(&bench, &server);
    let stream = server.accept().await;
    assert!(stream.hello.holds.is_empty());
    let refusal = page(&router, gate, 1, 1).await.expect_err("it is gone");
    assert!(refusal.contains("AccessDenied"), "{refusal}");
    agent.stop().await;
}

#[tokio::test]
async fn the_gate_ends_with_a_cell_that_leaves() {
    let (bench, (mut server, _)) = (Bench::new(), server().await);
    let agent = start(&bench, &server);
    let mut stream = server.accept().await;
    let gate = gate_of(&stream);
    assert!(tokio::net::TcpStream::connect(gate).await.is_ok());
    agent.leave.stop();
    while !matches!(stream.next().await, Up::Leave(_)) {}
    stream.send(Down::Drained(Drained {})).await;
    stream.meanwhile(is_closed(gate)).await;
}

#[tokio::test]
async fn an_instance_has_its_certificate() {
    for gated in [false, true] {
        let (bench, (mut server, authority)) = (Bench::new(), server().await);
        let agent = if gated { start(&bench, &server) } else { bench.start(&server) };
        let mut stream = server.accept().await;
        let text =
            "cd \"$SHORE_IDENTITY_DIR\" && ls cert.pem key.pem ca.pem && cat ca.pem; sleep 9";
        let mut spec = process(&["/bin/sh", "-c", text], None);
        spec.stop_grace_ms = 0;
        let wanted = instance(1, &spec);
        stream.desire(true, vec![wanted.clone()]).await;
        for line in ["cert.pem", "key.pem", "ca.pem", "-----END CERTIFICATE-----"] {
            stream.line(line).await;
        }
        let dir = bench.root().join("run/shore/identity");
        let read = |name| fs::read_to_string(dir.join(name)).expect("it reads");
        assert_eq!(read("ca.pem"), authority.pem);
        assert!(read("cert.pem").starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(read("key.pem").starts_with("-----BEGIN PRIVATE KEY-----"));
        let mode = fs::metadata(dir.join("key.pem")).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(stream.seen.iter().all(|line| !line.contains("PRIVATE")), "{:?}", stream.seen);
        stream.desire(false, vec![stopped(&wanted)]).await;
        stream.line(&json!({"report": "gone"}).to_string()).await;
        agent.stop().await;
    }
}

#[tokio::test]
async fn an_app_with_a_user_of_its_own_reads_its_certificate() {
    let (bench, (mut server, _)) = (Bench::new(), server().await);
    let tasks = runtime::Tasks::new(runtime::Stop::new());
    let mut config = drivers::oci::Config::new(bench.dir.path().join("oci"));
    config.supervisor = crate::bench::TESTBED.into();
    config.base_mounts = drivers::oci::Config::machine_base();
    let driver = drivers::oci::OciDriver::open(&config, tasks.clone()).expect("opens");
    if let Some(reason) = driver.capabilities().unavailable {
        let mut out = std::io::stdout();
        return writeln!(out, "skipped: {reason}").expect("writes");
    }
    let agent = bench.start_with(&server.url, |options| options.drivers = vec![Arc::new(driver)]);
    let mut stream = server.accept().await;
    let text = "cd \"$SHORE_IDENTITY_DIR\" && id -u && stat -L -c '%n %u:%g %a' key.pem && \
                head -1 key.pem | tr -d '-' && sleep 1000";
    let mut spec = process(&["/bin/sh", "-c", text], None);
    spec.stop_grace_ms = 0;
    spec.container.user = Some("1234:2345".to_owned());
    for (id, read_only) in [(1, false), (2, true)] {
        spec.container.read_only = read_only;
        let wanted = instance(id, &spec);
        stream.desire(false, vec![wanted.clone()]).await;
        for line in ["1234", "key.pem 1234:2345 600", "BEGIN PRIVATE KEY"] {
            stream.line(line).await;
        }
        stream.desire(false, vec![stopped(&wanted)]).await;
        stream.line(&json!({"report": "gone"}).to_string()).await;
    }
    agent.stop().await;
    assert!(tasks.shutdown(SOON).await);
}
