//! Clients and instances that take too long or want too much.

use std::time::Duration;

use router::Limits;
use tokio::io::AsyncWriteExt as _;

use crate::support::{
    Instance, Site, read_all, read_request, read_response, read_until, soon, until,
};

const SHORT: Duration = Duration::from_millis(60);
const GET: &str = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";

#[tokio::test]
async fn slow_heads_are_cut_and_others_are_served() {
    let site = Site::with(Limits { header_timeout: SHORT, ..Limits::default() });
    let instance = Instance::echo(&site.tasks, "one").await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut slow = Vec::new();
    for start in ["", "P", "PRI", "GET / HT", "GET / HTTP/1.1\r\nHost: a.example\r\nX: "] {
        let mut stream = site.connect().await;
        stream.write_all(start.as_bytes()).await.expect("the router reads");
        slow.push(stream);
    }
    // One that begins well.
    let mut stream = site.connect().await;
    stream.write_all(format!("{GET}GET /").as_bytes()).await.expect("the router reads");
    soon("the answer", read_until(&mut stream, "\r\n\r\n")).await;
    slow.push(stream);
    for stream in &mut slow {
        soon("the end", read_all(stream)).await;
        assert!(site.get("a.example").await.starts_with("HTTP/1.1 200 OK\r\n"));
    }
    assert_eq!(site.router.stats().timed_out_connections, 6);
    until("all are gone", || site.router.stats().connections == 0).await;
}

#[tokio::test]
async fn a_connection_between_requests_is_closed_after_a_while() {
    let site = Site::with(Limits { client_idle: SHORT, ..Limits::default() });
    let instance = Instance::echo(&site.tasks, "one").await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut stream = site.connect().await;
    stream.write_all(GET.as_bytes()).await.expect("the router reads");
    soon("the answer", read_response(&mut stream)).await.expect("an answer");
    assert_eq!(soon("the end", read_all(&mut stream)).await, "");
}

#[tokio::test]
async fn a_client_that_owes_a_body_or_takes_no_response_is_cut() {
    let site = Site::with(Limits { client_stall: SHORT, ..Limits::default() });
    let instance = Instance::scripted(&site.tasks, |mut stream, _| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await;
        if head.starts_with("GET") {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("the router reads");
            while stream.write_all(&[b'x'; 4_096]).await.is_ok() {}
        }
        read_all(&mut stream).await;
    })
    .await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let post = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100\r\n\r\npart";
    for ask in [GET, post] {
        let mut stream = site.connect().await;
        stream.write_all(ask.as_bytes()).await.expect("the router reads");
        let before = site.router.stats().timed_out_connections;
        until("it is cut", || site.router.stats().timed_out_connections > before).await;
        until("it is gone", || site.router.stats().connections == 0).await;
    }
    until("nothing is going on", || site.router.stats().active == 0).await;
}

#[tokio::test]
async fn an_instance_that_does_not_answer_is_given_up() {
    let site = Site::with(Limits { response_timeout: SHORT, ..Limits::default() });
    let instance = Instance::scripted(&site.tasks, |mut stream, _| async move {
        read_request(&mut stream).await.expect("a request");
        read_all(&mut stream).await;
    })
    .await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let answer = site.get("a.example").await;
    assert!(answer.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"), "{answer}");
    assert_eq!(site.router.stats().upstream_timeouts, 1);
}

#[tokio::test]
async fn heads_have_a_size() {
    let site = Site::start();
    let instance = Instance::echo(&site.tasks, "one").await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let head = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n";
    let large = "x".repeat(60_000);
    let answer = site.ask(format!("{head}X: {large}\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{}", answer.len());
    let larger = "x".repeat(70_000);
    let many = "X: 1\r\n".repeat(200);
    let path = "x".repeat(66_000);
    for bad in [
        format!("{head}X: {larger}\r\n\r\n"),
        format!("{head}{many}\r\n"),
        format!("GET /{path} HTTP/1.1\r\nHost: a.example\r\n\r\n"),
    ] {
        let answer = site.ask(bad).await;
        // The rest of a request that is refused early may turn the answer into a reset.
        let is_refused = ["HTTP/1.1 431 ", "HTTP/1.1 414 ", "HTTP/1.1 400 "]
            .iter()
            .any(|refusal| answer.starts_with(refusal));
        assert!(is_refused || answer.is_empty(), "{answer}");
    }
    assert_eq!(instance.requests(), 1);
}

#[tokio::test]
async fn connections_have_a_number() {
    let site = Site::with(Limits { connections: 2, ..Limits::default() });
    let instance = Instance::echo(&site.tasks, "one").await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut two = Vec::new();
    for _ in 0..2 {
        let mut stream = site.connect().await;
        stream.write_all(GET.as_bytes()).await.expect("the router reads");
        soon("the answer", read_response(&mut stream)).await.expect("an answer");
        two.push(stream);
    }
    let mut third = site.connect().await;
    assert_eq!(soon("the end", read_all(&mut third)).await, "");
    assert_eq!(site.router.stats().too_many_connections, 1);
    drop(two);
    until("there is room", || site.router.stats().connections == 0).await;
    assert!(site.get("a.example").await.starts_with("HTTP/1.1 200 OK\r\n"));
}
