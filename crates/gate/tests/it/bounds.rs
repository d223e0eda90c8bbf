//! What one peer can take from the others.

use std::time::Duration;

use tokio::net::TcpStream;

use crate::support::{App, Site, echo, name, soon};

/// Memory the gate has resident, in KiB.
fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a figure");
    line.trim_end_matches("kB").trim().parse().expect("a number")
}

#[tokio::test]
async fn slow_handshakes_hold_nobody_up() {
    let site = Site::start().await;
    let (app, one) = (App::start().await, name(1, 1));
    site.put(&one, app.address).await;
    let router = site.router();
    // More than may be under way at once, and none of them says a word.
    let most = gate::MAX_HANDSHAKES * gate::MAX_THREADS + 100;
    let mut silent = Vec::new();
    for at in 0..most {
        silent.push(TcpStream::connect(site.gate.address()).await.expect("it accepts"));
        if at % 100 == 0 {
            let mut stream = site.dial(&router, &one).await.expect("a connection");
            echo(&mut stream, "hello").await.expect("an echo");
        }
    }
    let started = runtime::mono_now();
    let mut stream = site.dial(&router, &one).await.expect("a connection");
    echo(&mut stream, "hello").await.expect("an echo");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    // And they end by themselves.
    let last = silent.last_mut().expect("there are some");
    let mut byte = [0];
    let read = tokio::io::AsyncReadExt::read(last, &mut byte);
    assert_eq!(soon("it is closed", read).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn connections_that_nobody_uses_cost_little() {
    const MANY: usize = 1_000;
    let site = Site::start().await;
    let (app, one) = (App::start().await, name(1, 1));
    site.put(&one, app.address).await;
    let router = site.router();
    let pid = site.gate.pid().await.expect("a gate");
    let mut idle = Vec::new();
    for at in 0..=MANY {
        if at == 1 {
            println!("one connection: {} KiB", resident(pid));
        }
        let mut stream = site.dial(&router, &one).await.expect("a connection");
        echo(&mut stream, "hello").await.expect("an echo");
        idle.push(stream);
    }
    let many = resident(pid);
    println!("{MANY} connections: {many} KiB");
    assert!(many < 48 << 10, "{many} KiB for {MANY} idle connections");
    assert_eq!(site.gate.connections().await.expect("an answer"), MANY + 1);
}

#[tokio::test]
async fn one_instance_cannot_take_all_connections() {
    let site = Site::start().await;
    let (app, one, two) = (App::start().await, name(1, 1), name(2, 1));
    site.put(&one, app.address).await;
    site.put(&two, app.address).await;
    let router = site.router();
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let needed = u64::try_from(3 * gate::MAX_PER_INSTANCE).expect("a number");
    if files.is_some_and(|files| files / 4 < needed) {
        println!("this machine gives a process too few files to reach the limit");
        return;
    }
    let mut taken = Vec::new();
    for _ in 0..gate::MAX_PER_INSTANCE {
        taken.push(site.dial(&router, &one).await.expect("a connection"));
    }
    assert!(site.dial(&router, &one).await.is_err());
    site.dial(&router, &two).await.expect("the neighbour is let in");
    drop(taken.pop());
    crate::support::until("a place is free", async || site.dial(&router, &one).await.is_ok()).await;
}
