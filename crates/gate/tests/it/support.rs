//! An authority, gates, instances that count what reaches them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gate::{Dialer, Entry, Gate, Identity, Options, PeerName, TlsStream};
use runtime::{Stop, Tasks};
use testkit::{Authority, Validity, gate_options};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How long anything in a test may take before it is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    runtime::timeout(PATIENCE, future).await.expect(what)
}

pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            runtime::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, wait).await;
}

pub(crate) fn name(instance: u32, epoch: u32) -> String {
    format!("ins-{instance}.{epoch}.instance.internal")
}

async fn say_again(stream: &mut TcpStream, count: &AtomicUsize) {
    let mut buffer = [0; 4_096];
    while let Ok(read) = stream.read(&mut buffer).await {
        count.fetch_add(read, Ordering::SeqCst);
        if read == 0 || stream.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// An instance that sends back what it gets.
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    bytes: Arc<AtomicUsize>,
    tasks: Tasks,
}

impl App {
    pub(crate) async fn start() -> Self {
        Self::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
    }

    pub(crate) async fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("the address is free");
        let address = listener.local_addr().expect("an address");
        let (bytes, tasks) = (Arc::new(AtomicUsize::new(0)), Tasks::new(Stop::new()));
        let (stop, mine, count) = (tasks.stop().clone(), tasks.clone(), Arc::clone(&bytes));
        tasks.spawn_ok("app", async move {
            while let Some(Ok((mut stream, _))) = stop.or_stop(listener.accept()).await {
                let (stop, count) = (stop.clone(), Arc::clone(&count));
                mine.spawn_ok("connection", async move {
                    stop.or_stop(say_again(&mut stream, &count)).await;
                });
            }
        });
        Self { address, bytes, tasks }
    }

    /// How many bytes reached it.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    pub(crate) async fn stop(self) {
        assert!(self.tasks.shutdown(PATIENCE).await);
    }
}

pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) authority: Authority,
    pub(crate) gate: Gate,
    pub(crate) tasks: Tasks,
}

pub(crate) fn options(dir: &Path, version: &str) -> Options {
    gate_options(dir, env!("CARGO_BIN_EXE_gate-testbed"), version)
}

pub(crate) fn authority() -> Authority {
    Authority::new().expect("an authority")
}

impl Site {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let tasks = Tasks::new(Stop::new());
        let gate = Gate::open(options(dir.path(), "1"), &tasks).await.expect("a gate");
        let authority = authority();
        gate.trust(authority.trust()).await.expect("it trusts");
        Self { dir, authority, gate, tasks }
    }

    pub(crate) async fn put(&self, name: &str, address: SocketAddr) {
        self.put_as(
            name,
            address,
            self.authority.identity(name, Validity::Good).expect("an identity"),
        )
        .await;
    }

    pub(crate) async fn put_as(&self, name: &str, address: SocketAddr, identity: Identity) {
        let entry = Entry { name: name.to_owned(), address, identity };
        self.gate.put(entry).await.expect("it takes the instance");
    }

    pub(crate) async fn dial(&self, dialer: &Dialer, name: &str) -> io::Result<TlsStream> {
        let name = PeerName::new(name.to_owned()).expect("a name");
        soon("a connection or none", dialer.dial(self.gate.address(), &name)).await
    }

    pub(crate) fn router(&self) -> Dialer {
        self.authority.router().expect("a dialer")
    }

    /// The reason why there is no connection.
    pub(crate) async fn refusal(&self, dialer: &Dialer, name: &str) -> String {
        self.dial(dialer, name).await.expect_err("refused").to_string()
    }
}

/// Sends something and waits until it comes back.
pub(crate) async fn echo(stream: &mut TlsStream, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).await?;
    assert_eq!(back, text.as_bytes());
    Ok(())
}
