//! Stopping.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use router::Limits;
use runtime::{Stop, Tasks};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::support::{Instance, Site, read_all, read_request, read_response, soon, until};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
const GRACE: Duration = Duration::from_secs(15);

/// Answers when told; its tasks outlive the router's.
async fn waiting(tasks: &Tasks, go: &Arc<Notify>) -> Instance {
    let go = Arc::clone(go);
    Instance::scripted(tasks, move |mut stream, seen| {
        let go = Arc::clone(&go);
        async move {
            while read_request(&mut stream).await.is_some() {
                seen.fetch_add(1, Ordering::SeqCst);
                go.notified().await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                stream.write_all(answer).await.expect("the router reads");
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_stop_finishes_what_began_and_begins_nothing() {
    let (site, others, go) = (Site::start(), Tasks::new(Stop::new()), Arc::new(Notify::new()));
    let instance = waiting(&others, &go).await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut idle = site.connect().await;
    idle.write_all(GET).await.expect("the router reads");
    go.notify_one();
    soon("the answer", read_response(&mut idle)).await.expect("an answer");
    let mut silent = site.connect().await;
    let mut busy = site.connect().await;
    busy.write_all(GET).await.expect("the router reads");
    until("the request is there", || instance.requests() == 2).await;
    site.tasks.stop().stop();
    assert_eq!(soon("the idle one ends", read_all(&mut idle)).await, "");
    assert_eq!(soon("the silent one ends", read_all(&mut silent)).await, "");
    let refused = async {
        while TcpStream::connect(site.address()).await.is_ok() {
            runtime::sleep(Duration::from_millis(2)).await;
        }
    };
    soon("nobody listens", refused).await;
    go.notify_one();
    let answer = soon("the last answer", read_all(&mut busy)).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert!(site.tasks.shutdown(GRACE).await, "the threads have ended");
}

#[tokio::test]
async fn a_drain_has_an_end() {
    let limits = Limits { drain_grace: Duration::from_millis(50), ..Limits::default() };
    let (site, others, go) = (Site::with(limits), Tasks::new(Stop::new()), Arc::default());
    let instance = waiting(&others, &go).await;
    site.serve(1, &[("a.example", &[instance.address])]);
    let mut busy = site.connect().await;
    busy.write_all(GET).await.expect("the router reads");
    until("the request is there", || instance.requests() == 1).await;
    assert!(site.tasks.shutdown(GRACE).await, "the threads have ended");
    assert_eq!(soon("the connection is cut", read_all(&mut busy)).await, "");
}

#[tokio::test]
async fn a_port_in_use_is_an_error() {
    let site = Site::start();
    let options = router::Options { listen: vec![site.address()], ..router::Options::default() };
    let error = router::Router::start(options, None, &site.tasks).expect_err("it is in use");
    assert!(error.to_string().starts_with("cannot listen on 127.0.0.1:"), "{error}");
    let error = router::Router::start(router::Options::default(), None, &site.tasks);
    assert!(matches!(error, Err(router::StartError::NoListener)), "{error:?}");
}

#[tokio::test]
async fn a_socket_that_listens_already_is_taken_over() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let tasks = Tasks::new(Stop::new());
    let options =
        router::Options { listeners: vec![listener], threads: 2, ..router::Options::default() };
    let router = router::Router::start(options, None, &tasks).expect("the router starts");
    assert_eq!(router.addresses(), [address]);
    let site = Site { router, tasks };
    let instance = Instance::echo(&site.tasks, "one").await;
    site.serve(1, &[("a.example", &[instance.address])]);
    for _ in 0..20 {
        assert!(site.get("a.example").await.contains("one\nGET"));
    }
}
