//! Connections to instances: kept, tried again, and never given to another instance.

use std::sync::atomic::Ordering;

use model::{DeploymentId, InstanceId, Route, RouteTable, RouteTarget};
use router::Limits;
use tokio::io::AsyncWriteExt as _;

use crate::support::{Instance, Site, read_request, read_response, soon, until};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\n\r\nx";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Keeps connections only as bare sockets.
fn cold() -> Site {
    Site::with(Limits { warm: 0, ..Limits::default() })
}

#[tokio::test]
async fn connections_are_kept_for_the_next_request() {
    keeps_connections(Site::start()).await;
    keeps_connections(cold()).await;
}

async fn keeps_connections(site: Site) {
    let instance = Instance::echo(&site.tasks, "one").await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut stream = site.connect().await;
    for ask in [GET, POST, GET, GET] {
        stream.write_all(ask.as_bytes()).await.expect("the router reads");
        soon("the answer", read_response(&mut stream)).await.expect("an answer");
    }
    assert_eq!((instance.connections(), instance.requests()), (1, 4));
    assert_eq!(site.router.stats().upstream_connections, 1);
}

#[tokio::test]
async fn kept_connections_are_closed_after_a_while() {
    let upstream_idle = std::time::Duration::from_millis(20);
    closes_in_time(Site::with(Limits { upstream_idle, ..Limits::default() })).await;
    closes_in_time(Site::with(Limits { upstream_idle, warm: 0, ..Limits::default() })).await;
}

async fn closes_in_time(site: Site) {
    let instance = Instance::scripted(&site.tasks, |mut stream, seen| async move {
        while read_request(&mut stream).await.is_some() {
            stream.write_all(OK).await.expect("the router reads");
        }
        seen.fetch_add(1, Ordering::SeqCst);
    })
    .await;
    site.serve(1, &[("a.example", &[instance.address])]);
    assert!(site.get("a.example").await.ends_with("ok"));
    until("the connection is closed", || instance.requests() == 1).await;
}

/// Answers the first request of each connection and breaks it off at the second.
async fn forgetful(site: &Site) -> Instance {
    Instance::scripted(&site.tasks, |mut stream, seen| async move {
        read_request(&mut stream).await.expect("a request");
        stream.write_all(OK).await.expect("the router reads");
        if read_request(&mut stream).await.is_some() {
            seen.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await
}

#[tokio::test]
async fn a_kept_connection_that_breaks_is_replaced_when_that_is_safe() {
    replaces_broken_connections(Site::start()).await;
    replaces_broken_connections(cold()).await;
}

async fn replaces_broken_connections(site: Site) {
    let instance = forgetful(&site).await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut stream = site.connect().await;
    for broken in 0..5 {
        stream.write_all(GET.as_bytes()).await.expect("the router reads");
        let answer = soon("the answer", read_response(&mut stream)).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert_eq!(instance.requests(), broken);
    }
    assert_eq!(site.router.stats().retries, 4);
    // This one may have been acted upon, so it is not sent again.
    stream.write_all(POST.as_bytes()).await.expect("the router reads");
    let answer = soon("the answer", read_response(&mut stream)).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!((instance.connections(), instance.requests()), (5, 5));
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_costs_no_request() {
    survives_a_close(Site::start()).await;
    survives_a_close(cold()).await;
}

/// Some servers tell why they close a connection that nobody used.
#[tokio::test]
async fn what_nobody_asked_for_answers_no_request() {
    for site in [Site::start(), cold()] {
        let instance = Instance::scripted(&site.tasks, |mut stream, seen| async move {
            read_request(&mut stream).await.expect("a request");
            stream.write_all(OK).await.expect("the router reads");
            let late = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(late).await.expect("the router keeps the connection");
            seen.fetch_add(1, Ordering::SeqCst);
            read_request(&mut stream).await;
        })
        .await;
        site.serve(1, &[("a.example", &[instance.address])]);
        let mut stream = site.connect().await;
        for round in 1..=5 {
            stream.write_all(GET.as_bytes()).await.expect("the router reads");
            let answer = soon("the answer", read_response(&mut stream)).await.expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            until("the instance has said it", || instance.requests() == round).await;
        }
    }
}

async fn survives_a_close(site: Site) {
    let instance = Instance::scripted(&site.tasks, |mut stream, seen| async move {
        read_request(&mut stream).await.expect("a request");
        stream.write_all(OK).await.expect("the router reads");
        stream.shutdown().await.expect("a close");
        seen.fetch_add(1, Ordering::SeqCst);
    })
    .await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut stream = site.connect().await;
    for round in 1..=5 {
        stream.write_all(POST.as_bytes()).await.expect("the router reads");
        let answer = soon("the answer", read_response(&mut stream)).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        until("the instance has closed", || instance.requests() == round).await;
        // The close is read by the kept connection, or by the sweep.
        until("the close arrives", || {
            std::fs::read_to_string("/proc/net/tcp").is_ok_and(|table| {
                let peer = format!("0100007F:{:04X} 08", instance.address.port());
                !table.contains(&peer)
            })
        })
        .await;
    }
}

#[tokio::test]
async fn a_close_that_is_read_before_the_next_request_costs_no_request() {
    let site = Site::start();
    let instance = Instance::scripted(&site.tasks, |mut stream, seen| async move {
        read_request(&mut stream).await.expect("a request");
        stream.write_all(OK).await.expect("the router reads");
        stream.shutdown().await.expect("a close");
        seen.fetch_add(1, Ordering::SeqCst);
    })
    .await;
    site.serve(1, &[("a.example", &[instance.address])]);
    // More often than not the router knows of the close when the request comes, and has not read it.
    for round in 1..=20 {
        let mut stream = site.connect().await;
        stream.write_all(POST.as_bytes()).await.expect("the router reads");
        let answer = soon("the answer", read_response(&mut stream)).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        until("the instance has closed", || instance.requests() == round).await;
    }
}

#[tokio::test]
async fn an_address_that_changed_hands_gets_no_kept_connection() {
    keeps_to_the_instance(Site::start()).await;
    keeps_to_the_instance(cold()).await;
}

async fn keeps_to_the_instance(site: Site) {
    let instance = Instance::echo(&site.tasks, "one").await;
    let table = |generation, id| RouteTable {
        generation,
        routes: vec![Route {
            host: "a.example".parse().expect("a host"),
            deployment: DeploymentId(1),
            targets: vec![RouteTarget {
                instance: InstanceId(id),
                address: instance.address,
                gate: None,
            }],
        }],
    };
    let mut stream = site.connect().await;
    for id in 1..=5 {
        site.router.apply(&table(u64::try_from(id).expect("small"), id));
        for _ in 0..3 {
            stream.write_all(GET.as_bytes()).await.expect("the router reads");
            soon("the answer", read_response(&mut stream)).await.expect("an answer");
        }
    }
    assert_eq!((instance.connections(), instance.requests()), (5, 15));
}

#[tokio::test]
async fn what_is_not_a_response_is_not_passed_on() {
    let site = Site::start();
    let long: &'static str = Box::leak("x".repeat(100_000).into_boxed_str());
    let long = format!("HTTP/1.1 200 OK\r\nX-Long: {long}\r\n\r\n");
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X-Many: 1\r\n".repeat(200));
    for bytes in [
        "garbage\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-Cut",
        "",
        &long,
        &many,
    ] {
        let bytes: &'static [u8] = Box::leak(bytes.to_owned().into_bytes().into_boxed_slice());
        let instance = Instance::saying(&site.tasks, bytes).await;
        let generation = site.router.generation() + 1;
        site.serve(generation, &[("a.example", &[instance.address])]);
        let answer = site.get("a.example").await;
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]);
        assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{shown:?}: {answer}");
        assert_eq!(instance.requests(), 1, "{shown:?}");
    }
}

#[tokio::test]
async fn more_than_a_response_spoils_the_connection() {
    let site = Site::start();
    let instance = Instance::scripted(&site.tasks, |mut stream, seen| async move {
        while read_request(&mut stream).await.is_some() {
            seen.fetch_add(1, Ordering::SeqCst);
            let two = [OK, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"].concat();
            if stream.write_all(&two).await.is_err() {
                return;
            }
        }
    })
    .await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut stream = site.connect().await;
    for _ in 0..5 {
        stream.write_all(GET.as_bytes()).await.expect("the router reads");
        let answer = soon("the answer", read_response(&mut stream)).await.expect("an answer");
        assert!(answer.ends_with("ok"), "{answer}");
    }
    assert_eq!(instance.connections(), 5);
}
