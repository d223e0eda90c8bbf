//! Connections that change their protocol.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Instance, Site, read_all, read_request, read_until, soon, until};

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive, Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const AGREE: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Agrees, then sends back all it gets.
async fn echoing(site: &Site) -> Instance {
    Instance::scripted(&site.tasks, |mut stream, _| async move {
        let request = read_request(&mut stream).await.expect("a request");
        assert!(request.contains("upgrade: websocket\r\n"), "{request}");
        assert!(request.contains("connection: upgrade\r\n"), "{request}");
        stream.write_all(&[AGREE, b"hello "].concat()).await.expect("the router reads");
        let mut buffer = [0; 1_024];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..read]).await.expect("the router reads");
        }
    })
    .await
}

#[tokio::test]
async fn bytes_go_both_ways_after_the_agreement() {
    let site = Site::start();
    let instance = echoing(&site).await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut stream = site.connect().await;
    // The first bytes of the new protocol come with the request.
    stream.write_all(format!("{ASK}early ").as_bytes()).await.expect("the router reads");
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(head.contains("upgrade: websocket\r\n"), "{head}");
    read_until(&mut stream, "hello early ").await;
    until("the tunnel is counted", || site.router.stats().tunnels == 1).await;
    for round in 0..100 {
        let text = format!("message {round};");
        stream.write_all(text.as_bytes()).await.expect("the router reads");
        assert_eq!(read_until(&mut stream, ";").await, text);
    }
    stream.shutdown().await.expect("a half-closed connection");
    assert_eq!(soon("the end", read_all(&mut stream)).await, "");
    until("the tunnel is gone", || site.router.stats().tunnels == 0).await;
    until("so is the connection", || site.router.stats().connections == 0).await;
}

#[tokio::test]
async fn without_an_agreement_nothing_more_goes_through() {
    let site = Site::start();
    for answer in [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno".as_slice(),
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        let instance = Instance::scripted(&site.tasks, move |mut stream, seen| async move {
            read_request(&mut stream).await.expect("a request");
            stream.write_all(answer).await.expect("the router reads");
            let mut rest = Vec::new();
            drop(stream.read_to_end(&mut rest).await);
            seen.store(rest.len() + 1, std::sync::atomic::Ordering::SeqCst);
        })
        .await;
        let generation = site.router.generation() + 1;
        site.serve(generation, &[("a.example", &[instance.address])]);
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n";
        let answer = site.ask(format!("{ASK}{smuggled}")).await;
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        // The kept connection goes with its route.
        site.serve(generation + 1, &[]);
        until("the instance is left", || instance.requests() > 0).await;
        assert_eq!(instance.requests(), 1, "bytes after the request went through");
    }
}

#[tokio::test]
async fn a_response_that_switches_unasked_is_an_error() {
    let site = Site::start();
    let instance = Instance::saying(&site.tasks, AGREE).await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let answer = site.get("a.example").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    for ask in [
        "GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Content-Length: 1\r\n\r\nx",
    ] {
        let mut stream = site.connect().await;
        stream.write_all(ask.as_bytes()).await.expect("the router reads");
        let head = read_until(&mut stream, "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{ask:?}: {head}");
    }
}
