//! HTTP/2 by prior knowledge.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use runtime::{Stop, Tasks};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::support::{Instance, Site, read_request, soon, until};

#[derive(Clone)]
struct Spawn(Tasks);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawn {
    fn execute(&self, future: F) {
        self.0.spawn_ok("http2 client", future);
    }
}

async fn connect<B>(site: &Site, tasks: &Tasks) -> SendRequest<B>
where
    B: http_body::Body<Data = Bytes, Error = std::convert::Infallible> + Unpin + Send + 'static,
{
    let stream = site.connect().await;
    let (sender, connection) =
        handshake(Spawn(tasks.clone()), TokioIo::new(stream)).await.expect("a handshake");
    tasks.spawn_ok("http2 connection", async move {
        // Its end is seen by the requests.
        drop(connection.await);
    });
    sender
}

fn get(uri: &str) -> http::request::Builder {
    http::Request::builder().uri(uri)
}

#[tokio::test]
async fn requests_go_through_as_http_1() {
    let site = Site::start();
    let instance = Instance::echo(&site.tasks, "one").await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut sender = connect::<Full<Bytes>>(&site, &site.tasks).await;
    let mut waiting = Vec::new();
    for index in 0..20 {
        let request = get(&format!("http://A.example:80/path/{index}?q"))
            .method("POST")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("x-forwarded-for", "6.6.6.6")
            .body(Full::new(Bytes::from_static(b"body")))
            .expect("a request");
        waiting.push(sender.send_request(request));
    }
    for (index, response) in waiting.into_iter().enumerate() {
        let response = soon("the response", response).await.expect("a response");
        assert_eq!(response.status(), 200);
        let body = soon("the body", response.collect()).await.expect("a body").to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        assert!(text.contains(&format!("\nPOST /path/{index}?q HTTP/1.1\r\n")), "{text}");
        assert!(text.contains("\r\nhost: A.example:80\r\n"), "{text}");
        assert!(text.contains("\r\ncookie: a=1; b=2\r\n"), "{text}");
        assert!(text.contains("\r\nx-forwarded-for: 127.0.0.1\r\n"), "{text}");
        assert!(text.contains("content-length: 4\r\n") && text.ends_with("\r\n\r\nbody"), "{text}");
    }
    assert_eq!(site.router.stats().requests, 20);
    until("all have ended", || site.router.stats().active == 0).await;
}

#[tokio::test]
async fn hosts_are_told_the_same_as_by_http_1() {
    let site = Site::start();
    let instance = Instance::echo(&site.tasks, "one").await;
    site.serve(1, &[("a.example", &[instance.address]), ("away.example", &[])]);
    let mut sender = connect::<Empty<Bytes>>(&site, &site.tasks).await;
    for (uri, host, wanted) in [
        ("http://a.example/", None, 200),
        ("http://a.example/", Some("a.example"), 200),
        ("http://a.example/", Some("away.example"), 400),
        ("http://away.example/", None, 503),
        ("http://other.example/", None, 404),
    ] {
        let request = match host {
            Some(host) => get(uri).header("host", host),
            None => get(uri),
        };
        let request = request.body(Empty::new()).expect("a request");
        let response = soon("the response", sender.send_request(request)).await;
        assert_eq!(response.expect("a response").status(), wanted, "{uri} {host:?}");
    }
}

#[tokio::test]
async fn a_stop_lets_streams_finish_and_takes_no_more() {
    let site = Site::start();
    let others = Tasks::new(Stop::new());
    let go = Arc::new(Notify::new());
    let told = Arc::clone(&go);
    let instance = Instance::scripted(&others, move |mut stream, seen| {
        let told = Arc::clone(&told);
        async move {
            read_request(&mut stream).await.expect("a request");
            seen.fetch_add(1, Ordering::SeqCst);
            told.notified().await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            stream.write_all(answer).await.expect("the router reads");
        }
    })
    .await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut sender = connect::<Empty<Bytes>>(&site, &others).await;
    let ask = || get("http://a.example/").body(Empty::new()).expect("a request");
    let first = sender.send_request(ask());
    until("the instance has it", || instance.requests() == 1).await;
    site.tasks.stop().stop();
    let refused = async {
        while TcpStream::connect(site.address()).await.is_ok() {
            runtime::sleep(Duration::from_millis(2)).await;
        }
    };
    soon("nobody listens", refused).await;
    go.notify_one();
    let response = soon("the response", first).await.expect("a response");
    assert_eq!(response.status(), 200);
    assert!(site.tasks.shutdown(Duration::from_secs(15)).await, "the threads have ended");
    until("the connection is closed", || sender.is_closed()).await;
    assert_eq!(instance.requests(), 1);
}
