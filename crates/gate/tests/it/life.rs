//! Gates that end, are started again, and are replaced.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use gate::{Gate, PeerName};
use runtime::{Stop, Tasks};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use testkit::Validity;

use crate::support::{App, Site, authority, echo, name, options, soon, until};

fn pid(number: u32) -> Pid {
    Pid::from_raw(number.cast_signed()).expect("a process")
}

#[tokio::test]
async fn a_killed_gate_is_started_again_with_all_it_knew() {
    let site = Site::start().await;
    let (app, one) = (App::start().await, name(1, 1));
    site.put(&one, app.address).await;
    let router = site.router();
    for _ in 0..5 {
        let killed = site.gate.pid().await.expect("a gate");
        kill_process(pid(killed), Signal::KILL).expect("it was there");
        // Who connects meanwhile waits in the socket that the agent holds, too.
        let mut stream = loop {
            match site.dial(&router, &one).await {
                Ok(stream) => break stream,
                Err(error) => assert!(!error.to_string().contains("refused"), "{error}"),
            }
        };
        echo(&mut stream, "still there").await.expect("an echo");
        assert_ne!(site.gate.pid().await.expect("a gate"), killed);
    }
    assert_eq!(site.gate.held().await.expect("an answer").len(), 1);
}

#[tokio::test]
async fn a_gate_outlives_its_agent_and_is_found_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut agent = Command::new(env!("CARGO_BIN_EXE_gate-testbed"))
        .arg("agent")
        .arg(dir.path().join("gate"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("an agent");
    let mut said = String::new();
    let output = agent.stdout.take().expect("its output");
    BufReader::new(output).read_line(&mut said).expect("an address");
    let address: std::net::SocketAddr = said.trim().parse().expect("an address");
    let (authority, app, one) = (authority(), App::start().await, name(1, 1));
    let router = authority.router().expect("a dialer");
    let (first, second) = (Tasks::new(Stop::new()), Tasks::new(Stop::new()));
    let gate = Gate::open(options(dir.path(), "1"), &first).await.expect("the same gate");
    assert_eq!(gate.address(), address);
    gate.trust(authority.trust()).await.expect("it trusts");
    let identity = authority.identity(&one, Validity::Good).expect("an identity");
    let entry = gate::Entry { name: one.clone(), address: app.address, identity };
    gate.put(entry).await.expect("it takes the instance");
    let peer = PeerName::new(one.clone()).expect("a name");
    let mut stream = router.dial(address, &peer).await.expect("a connection");
    let before = gate.pid().await.expect("a gate");
    agent.kill().expect("the agent is killed");
    agent.wait().expect("it is gone");
    assert!(first.shutdown(std::time::Duration::from_secs(5)).await);
    drop(gate);
    echo(&mut stream, "nobody is missed").await.expect("an echo");
    router.dial(address, &peer).await.expect("a new connection");
    let gate = Gate::open(options(dir.path(), "1"), &second).await.expect("the same gate");
    assert_eq!((gate.pid().await.expect("a gate"), gate.address()), (before, address));
    echo(&mut stream, "still").await.expect("an echo");
    assert!(gate.held().await.expect("an answer").contains_key(&one));
}

#[tokio::test]
async fn a_gate_ends_when_its_directory_is_gone() {
    let site = Site::start().await;
    let process = pid(site.gate.pid().await.expect("a gate"));
    assert!(site.tasks.shutdown(std::time::Duration::from_secs(5)).await);
    site.dir.close().expect("the directory goes");
    until("the gate ends", async || test_kill_process(process).is_err() || is_zombie(process))
        .await;
}

/// Whether only its parent has not looked yet.
fn is_zombie(process: Pid) -> bool {
    let path = format!("/proc/{}/stat", process.as_raw_nonzero());
    std::fs::read_to_string(path).is_ok_and(|stat| stat.contains(") Z "))
}

/// Routers ask while a gate is replaced, again and again: on kept connections and on new ones.
#[tokio::test]
async fn a_gate_is_replaced_under_load_and_nothing_is_lost() {
    let site = Arc::new(Site::start().await);
    let (app, one) = (App::start().await, name(1, 1));
    site.put(&one, app.address).await;
    let (asked, enough) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let load = Tasks::new(Stop::new());
    let (ended, mut end) = tokio::sync::mpsc::channel(8);
    for _ in 0..8 {
        let (site, ended) = (Arc::clone(&site), ended.clone());
        let (asked, enough, one) = (Arc::clone(&asked), Arc::clone(&enough), one.clone());
        load.spawn_ok("router", async move {
            let router = site.router();
            let mut kept = site.dial(&router, &one).await.expect("a connection");
            while !enough.load(Ordering::SeqCst) {
                echo(&mut kept, "on a kept one").await.expect("an echo");
                let mut fresh = site.dial(&router, &one).await.expect("a connection");
                echo(&mut fresh, "on a new one").await.expect("an echo");
                asked.fetch_add(2, Ordering::SeqCst);
            }
            ended.send(()).await.expect("the test waits");
        });
    }
    let mut pids = vec![site.gate.pid().await.expect("a gate")];
    for version in ["2", "3", "4", "5"] {
        let before = asked.load(Ordering::SeqCst);
        until("some were served", async || asked.load(Ordering::SeqCst) > before + 100).await;
        let options = options(site.dir.path(), version);
        let gate = Gate::open(options, &site.tasks).await.expect("another gate");
        assert_eq!(gate.address(), site.gate.address());
        pids.push(gate.pid().await.expect("a gate"));
    }
    let before = asked.load(Ordering::SeqCst);
    until("some were served", async || asked.load(Ordering::SeqCst) > before + 100).await;
    enough.store(true, Ordering::SeqCst);
    for _ in 0..8 {
        soon("every router ends well", end.recv()).await.expect("it did");
    }
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 5, "each was another process");
    for old in &pids {
        let is_gone = async || test_kill_process(pid(*old)).is_err() || is_zombie(pid(*old));
        if *old != site.gate.pid().await.expect("a gate") {
            until("a replaced gate ends", is_gone).await;
        }
    }
}

#[tokio::test]
async fn a_closed_gate_stays_closed() {
    let site = Site::start().await;
    let (app, one) = (App::start().await, name(1, 1));
    site.put(&one, app.address).await;
    let mut kept = site.dial(&site.router(), &one).await.expect("a connection");
    let process = pid(site.gate.pid().await.expect("a gate"));
    site.gate.close().await.expect("it closes");
    until("nobody gets in", async || {
        tokio::net::TcpStream::connect(site.gate.address()).await.is_err()
    })
    .await;
    echo(&mut kept, "what is open goes on").await.expect("an echo");
    assert!(site.gate.pid().await.is_err());
    drop(kept);
    until("it ends", async || test_kill_process(process).is_err() || is_zombie(process)).await;
}
