//! Bodies go through as they come, both ways.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

use crate::support::{
    Instance, Site, read_all, read_request, read_response, read_until, soon, until,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn events_arrive_while_the_response_goes_on() {
    let site = Site::start();
    let next = Arc::new(Notify::new());
    let told = Arc::clone(&next);
    let instance = Instance::scripted(&site.tasks, move |mut stream, _| {
        let told = Arc::clone(&told);
        async move {
            read_request(&mut stream).await.expect("a request");
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                        Transfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.expect("the router reads");
            for event in 0..3 {
                told.notified().await;
                let event = format!("data: {event}\n\n");
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                stream.write_all(chunk.as_bytes()).await.expect("the router reads");
            }
            told.notified().await;
            stream.write_all(b"0\r\n\r\n").await.expect("the router reads");
        }
    })
    .await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut stream = site.connect().await;
    stream.write_all(GET.as_bytes()).await.expect("the router reads");
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.contains("text/event-stream"), "{head}");
    for event in 0..3 {
        next.notify_one();
        read_until(&mut stream, &format!("data: {event}\n\n\r\n")).await;
    }
    next.notify_one();
    read_until(&mut stream, "0\r\n\r\n").await;
}

#[tokio::test]
async fn a_request_body_arrives_while_it_is_sent() {
    let site = Site::start();
    let instance = Instance::scripted(&site.tasks, |mut stream, seen| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        for part in 0..3 {
            read_until(&mut stream, &format!("part {part}\r\n")).await;
            seen.fetch_add(1, Ordering::SeqCst);
        }
        read_until(&mut stream, "0\r\n\r\n").await;
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        stream.write_all(answer).await.expect("the router reads");
    })
    .await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut stream = site.connect().await;
    let head = "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("the router reads");
    for part in 0..3 {
        stream.write_all(format!("6\r\npart {part}\r\n").as_bytes()).await.expect("it reads");
        until("the part arrives", || instance.requests() == part + 1).await;
    }
    stream.write_all(b"0\r\n\r\n").await.expect("the router reads");
    let answer = soon("the answer", read_response(&mut stream)).await.expect("an answer");
    assert!(answer.ends_with("ok"), "{answer}");
}

/// The most memory this process had at a time.
fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1_024
}

#[tokio::test]
async fn big_bodies_take_no_memory() {
    const SIZE: usize = 100 * MIB;
    let site = Site::start();
    let instance = Instance::scripted(&site.tasks, |mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        let mut buffer = vec![0; 64 * 1_024];
        let mut left = SIZE;
        while left > 0 {
            let read = stream.read(&mut buffer).await.expect("the router writes");
            left -= read;
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("the router reads");
        for _ in 0..SIZE / buffer.len() {
            stream.write_all(&buffer).await.expect("the router reads");
        }
    })
    .await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let before = peak_memory();
    let mut stream = site.connect().await;
    let head = format!("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {SIZE}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("the router reads");
    let mut buffer = vec![0; 64 * 1_024];
    for _ in 0..SIZE / buffer.len() {
        stream.write_all(&buffer).await.expect("the router reads");
    }
    read_until(&mut stream, "\r\n\r\n").await;
    let mut left = SIZE;
    while left > 0 {
        left -= soon("more", stream.read(&mut buffer)).await.expect("the router writes");
    }
    let grown = peak_memory() - before;
    assert!(grown < 16 * MIB, "{grown} bytes more");
}

#[tokio::test]
async fn a_response_that_breaks_off_is_not_made_whole() {
    let site = Site::start();
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
    let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    for (begin, end) in [(length, ""), (chunks, ""), (chunks, "zz\r\n")] {
        let next = Arc::new(Notify::new());
        let told = Arc::clone(&next);
        let instance = Instance::scripted(&site.tasks, move |mut stream, _| {
            let told = Arc::clone(&told);
            async move {
                read_request(&mut stream).await.expect("a request");
                stream.write_all(begin.as_bytes()).await.expect("the router reads");
                told.notified().await;
                stream.write_all(end.as_bytes()).await.expect("the router reads");
            }
        })
        .await;
        let generation = site.router.generation() + 1;
        site.serve(generation, &[("a.example", &[instance.address])]);
        // The client wants to keep the connection, and sees it closed.
        let mut stream = site.connect().await;
        stream.write_all(GET.as_bytes()).await.expect("the router reads");
        read_until(&mut stream, "half").await;
        next.notify_one();
        assert_eq!(soon("the end", read_all(&mut stream)).await.trim_end(), "");
    }
    assert_eq!(site.router.stats().upstream_errors, 3);
}

#[tokio::test]
async fn a_response_until_the_end_of_the_connection_is_whole() {
    let site = Site::start();
    let instance = Instance::saying(&site.tasks, b"HTTP/1.1 200 OK\r\n\r\nall of it").await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut stream = site.connect().await;
    stream.write_all(GET.as_bytes()).await.expect("the router reads");
    let answer = read_until(&mut stream, "0\r\n\r\n").await;
    assert!(answer.contains("9\r\nall of it\r\n"), "{answer}");
    assert_eq!(site.router.stats().upstream_errors, 0);
}

#[tokio::test]
async fn trailers_go_to_who_takes_them() {
    let site = Site::start();
    let instance = Instance::saying(
        &site.tasks,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n\
          2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
    )
    .await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let ask = "GET / HTTP/1.1\r\nHost: a.example\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n";
    let answer = site.ask(ask).await;
    assert!(answer.ends_with("0\r\nx-sum: 7\r\n\r\n"), "{answer}");
    let answer = site.get("a.example").await;
    assert!(answer.ends_with("0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn expectations_and_early_hints_do_not_confuse() {
    let site = Site::start();
    let instance = Instance::scripted(&site.tasks, |mut stream, _| async move {
        let request = read_request(&mut stream).await.expect("a request");
        assert!(!request.contains("expect"), "{request}");
        let answer = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
                       HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody";
        stream.write_all(answer).await.expect("the router reads");
    })
    .await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut stream = site.connect().await;
    let head = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\n\
                Expect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("the router reads");
    let go_on = read_until(&mut stream, "\r\n\r\n").await;
    assert_eq!(go_on, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"body").await.expect("the router reads");
    let answer = soon("the answer", read_response(&mut stream)).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("body"), "{answer}");
}

#[tokio::test]
async fn responses_without_a_body_keep_their_length_and_the_connection() {
    let site = Site::start();
    let instance = Instance::scripted(&site.tasks, |mut stream, _| async move {
        while let Some(request) = read_request(&mut stream).await {
            let answer = match request.split(' ').next() {
                Some("HEAD") => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
                Some("DELETE") => "HTTP/1.1 204 No Content\r\n\r\n",
                _ => "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 9\r\n\r\n",
            };
            stream.write_all(answer.as_bytes()).await.expect("the router reads");
        }
    })
    .await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut stream = site.connect().await;
    for (method, wanted) in
        [("HEAD", "content-length: 1000\r\n"), ("DELETE", "204 No Content"), ("GET", "etag: \"a\"")]
    {
        let ask = format!("{method} / HTTP/1.1\r\nHost: a.example\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.expect("the router reads");
        let head = read_until(&mut stream, "\r\n\r\n").await;
        assert!(head.contains(wanted), "{method}: {head}");
    }
    assert_eq!(instance.connections(), 1);
}
