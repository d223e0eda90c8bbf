//! Routes that change under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::{Instance, Site, read_response, soon, until};

const CONNECTIONS: usize = 32;
const CHANGES: u64 = 200;

#[derive(Default)]
struct Load {
    stop: AtomicBool,
    answered: AtomicUsize,
    failed: AtomicUsize,
    running: AtomicUsize,
}

/// Asks until told to stop. Any answer but a good one from a or b counts as failed.
async fn ask(mut stream: TcpStream, load: &Load) {
    while !load.stop.load(Ordering::SeqCst) {
        let get = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
        let is_sent = stream.write_all(get).await.is_ok();
        let answer = if is_sent { read_response(&mut stream).await } else { None };
        let is_good = answer.is_some_and(|answer| {
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            answer.starts_with("HTTP/1.1 200 OK\r\n") && (body.starts_with("instance"))
        });
        let count = if is_good { &load.answered } else { &load.failed };
        count.fetch_add(1, Ordering::SeqCst);
        if !is_good {
            break;
        }
    }
    load.running.fetch_sub(1, Ordering::SeqCst);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_routes_change() {
    let site = Site::start();
    let mut instances = Vec::new();
    for _ in 0..4 {
        instances.push(Instance::echo(&site.tasks, "instance").await);
    }
    let addresses: Vec<_> = instances.iter().map(|instance| instance.address).collect();
    let (blue, green) = addresses.split_at(2);
    site.serve(1, &[("a.example", blue)]);
    let load = Arc::new(Load::default());
    for _ in 0..CONNECTIONS {
        let (stream, load) = (site.connect().await, Arc::clone(&load));
        load.running.fetch_add(1, Ordering::SeqCst);
        site.tasks.spawn_ok("load", async move { ask(stream, &load).await });
    }
    for change in 0..CHANGES {
        let set = if change % 2 == 0 { green } else { blue };
        site.serve(change + 2, &[("a.example", set)]);
        let answered = load.answered.load(Ordering::SeqCst);
        let is_more = || load.answered.load(Ordering::SeqCst) >= answered + CONNECTIONS;
        until("requests go on", || is_more() || load.failed.load(Ordering::SeqCst) > 0).await;
    }
    load.stop.store(true, Ordering::SeqCst);
    until("all have stopped", || load.running.load(Ordering::SeqCst) == 0).await;
    assert_eq!(load.failed.load(Ordering::SeqCst), 0);
    assert!(instances.iter().all(|instance| instance.requests() > 0));
}

#[tokio::test]
async fn the_next_request_goes_by_the_new_table_and_the_last_one_finishes() {
    let site = Site::start();
    let next = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&next);
    let old = Instance::scripted(&site.tasks, move |mut stream, seen| {
        let told = Arc::clone(&told);
        async move {
            crate::support::read_request(&mut stream).await.expect("a request");
            seen.fetch_add(1, Ordering::SeqCst);
            told.notified().await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold";
            stream.write_all(answer).await.expect("the router reads");
            // The kept connection is closed because its route is gone.
            crate::support::read_all(&mut stream).await;
            seen.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let new = Instance::echo(&site.tasks, "new").await;
    site.serve(1, &[("a.example", &[old.address])]);
    let get = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let mut first = site.connect().await;
    first.write_all(get).await.expect("the router reads");
    until("the old instance has it", || old.requests() == 1).await;
    site.serve(2, &[("a.example", &[new.address])]);
    for _ in 0..10 {
        assert!(site.get("a.example").await.contains("new\nGET"));
    }
    next.notify_one();
    let answer = soon("the old answer", read_response(&mut first)).await.expect("an answer");
    assert!(answer.ends_with("old"), "{answer}");
    until("the kept connection is closed", || old.requests() == 2).await;
    assert_eq!((old.connections(), new.requests()), (1, 10));
}
