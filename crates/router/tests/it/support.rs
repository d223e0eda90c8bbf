//! Routers, instances and clients to test with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use model::{DeploymentId, InstanceId, Route, RouteTable, RouteTarget};
use router::{Limits, Options, Router};
use runtime::{Stop, Tasks};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How long anything in a test may take before it is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `future`, but not for ever.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    runtime::timeout(PATIENCE, future).await.expect(what)
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            runtime::sleep(Duration::from_millis(2)).await;
        }
    };
    soon(what, wait).await;
}

/// A router with two threads and its tasks.
pub(crate) struct Site {
    pub(crate) router: Router,
    pub(crate) tasks: Tasks,
}

impl Site {
    pub(crate) fn start() -> Self {
        Self::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let tasks = Tasks::new(Stop::new());
        let router = Router::start(options(limits), None, &tasks).expect("the router starts");
        Self { router, tasks }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.router.addresses()[0]
    }

    /// Serves these hosts, each from the instances at its addresses.
    pub(crate) fn serve(&self, generation: u64, hosts: &[(&str, &[SocketAddr])]) {
        self.router.apply(&table(generation, hosts));
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address()).await.expect("the router accepts")
    }

    /// Sends bytes on a connection of their own and reads until it is closed.
    pub(crate) async fn ask(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes.as_ref()).await.expect("the router reads");
        soon("the answer", read_all(&mut stream)).await
    }

    /// A GET on a connection of its own.
    pub(crate) async fn get(&self, host: &str) -> String {
        self.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
    }
}

pub(crate) fn options(limits: Limits) -> Options {
    Options {
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        threads: 2,
        id: 7,
        name: "test".into(),
        limits,
        ..Options::default()
    }
}

/// A table whose instances are numbered by their address.
pub(crate) fn table(generation: u64, hosts: &[(&str, &[SocketAddr])]) -> RouteTable {
    let target = |address: &SocketAddr| RouteTarget {
        instance: InstanceId(u128::from(address.port())),
        address: *address,
        gate: None,
    };
    let route = |(host, addresses): &(&str, &[SocketAddr])| Route {
        host: host.parse().expect("a host"),
        deployment: DeploymentId(1),
        targets: addresses.iter().map(target).collect(),
    };
    RouteTable { generation, routes: hosts.iter().map(route).collect() }
}

/// Reads until the peer closes; what it sent may not be text.
pub(crate) async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset after the answer is an end, too.
    drop(stream.read_to_end(&mut bytes).await);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads up to and with `end`.
pub(crate) async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut bytes = Vec::new();
    let read = async {
        while !bytes.ends_with(end.as_bytes()) {
            let byte = stream.read_u8().await.expect("more bytes");
            bytes.push(byte);
        }
    };
    soon("the bytes", read).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads one response whose length is given; `None` when the connection ended before it.
pub(crate) async fn read_response(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4_096];
    loop {
        let head = bytes.windows(4).position(|it| it == b"\r\n\r\n").map(|at| at + 4);
        if let Some(head) = head {
            let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
            let length = text.split("content-length: ").nth(1)?.split("\r\n").next()?;
            if bytes.len() == head + length.parse::<usize>().ok()? {
                return Some(String::from_utf8_lossy(&bytes).into_owned());
            }
        }
        let read = stream.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&buffer[..read]);
    }
}

/// An instance: it answers each request with what it got.
#[derive(Clone)]
pub(crate) struct Instance {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl Instance {
    /// Answers with its name, then the head it got, then the body.
    pub(crate) async fn echo(tasks: &Tasks, name: &'static str) -> Self {
        Self::scripted(tasks, move |mut stream, seen| async move {
            while let Some(request) = read_request(&mut stream).await {
                seen.fetch_add(1, Ordering::SeqCst);
                let body = format!("{name}\n{request}");
                let length = body.len();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                if stream.write_all((head + &body).as_bytes()).await.is_err() {
                    return;
                }
            }
        })
        .await
    }

    /// Answers every request with these bytes and closes.
    pub(crate) async fn saying(tasks: &Tasks, bytes: &'static [u8]) -> Self {
        Self::scripted(tasks, move |mut stream, seen| async move {
            if read_request(&mut stream).await.is_some() {
                seen.fetch_add(1, Ordering::SeqCst);
                drop(stream.write_all(bytes).await);
            }
        })
        .await
    }

    /// Does with each connection as it is told.
    pub(crate) async fn scripted<S, F>(tasks: &Tasks, script: S) -> Self
    where
        S: Fn(TcpStream, Arc<AtomicUsize>) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (connections, requests) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let instance = Self {
            address,
            connections: Arc::clone(&connections),
            requests: Arc::clone(&requests),
        };
        let (stop, mine) = (tasks.stop().clone(), tasks.clone());
        tasks.spawn_ok("instance", async move {
            while let Some(Ok((stream, _))) = stop.or_stop(listener.accept()).await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (script, stop) = (script(stream, Arc::clone(&requests)), stop.clone());
                mine.spawn_ok("instance connection", async move {
                    stop.or_stop(script).await;
                });
            }
        });
        instance
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// An address where nobody listens.
pub(crate) async fn nowhere() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("an address")
}

/// Reads a request and its body: by length, or all chunks as they are on the wire.
pub(crate) async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_lowercase();
            let length = head.split("content-length: ").nth(1);
            let length = length.and_then(|it| it.split("\r\n").next()?.parse::<usize>().ok());
            let is_chunked = head.contains("transfer-encoding: chunked");
            let is_whole = match length {
                Some(length) => body.len() == length,
                None => !is_chunked || body.ends_with("0\r\n\r\n"),
            };
            if is_whole {
                return Some(text);
            }
        }
        let mut buffer = [0; 4_096];
        let read = stream.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&buffer[..read]);
    }
}
