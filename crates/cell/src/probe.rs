//! One question of a health check.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use model::{Check, CheckKind};
use runtime::mono_now;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::health::Length;
use crate::inside::Inside;

/// The longest status line.
const MAX_STATUS_LINE: usize = 1024;
/// How long a new instance may take over its first page: it may have to compile or to connect first.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// Answers that count as healthy.
const HEALTHY: std::ops::RangeInclusive<u16> = 200..=399;
/// How often the agent looks whether it is late itself while it waits for an answer.
const PULSE: Duration = Duration::from_millis(25);

/// Why a check failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) text: String,
    /// Whether this agent got so little processor time that it says nothing about the instance.
    pub(crate) starved: bool,
}

/// Asks one instance.
#[derive(Debug)]
pub(crate) struct Prober {
    pub(crate) address: SocketAddr,
    /// For commands.
    pub(crate) inside: Option<Inside>,
}

impl Prober {
    /// Asks once. `first` says whether it never answered before.
    pub(crate) async fn ask(&self, check: &Check, first: bool) -> Result<(), Fault> {
        let first_answer = check.kind == CheckKind::Answers && first;
        let limit = Duration::from_millis(check.timeout_ms);
        let limit = if first_answer { limit.max(FIRST_ANSWER) } else { limit };
        let sure = |text: String| Fault { text, starved: false };
        let port = check.port.unwrap_or_else(|| self.address.port());
        let asked = Asked { address: SocketAddr::new(self.address.ip(), port) };
        let (found, late) = match &check.kind {
            CheckKind::Command { argv } => {
                let Some(inside) = &self.inside else {
                    return Err(sure("there is nothing to run commands in".to_owned()));
                };
                let begin = mono_now();
                let (found, late) = pulse(inside.check(argv, limit)).await;
                let timed_out = mono_now() - begin >= limit;
                (found, if timed_out { late } else { Duration::ZERO })
            }
            CheckKind::Answers if first_answer => asked.within(limit, asked.get("/")).await,
            CheckKind::Answers | CheckKind::Tcp => asked.within(limit, asked.connect()).await,
            CheckKind::Http { path } => asked.within(limit, asked.healthy(path)).await,
        };
        found.map_err(|text| Fault { text, starved: late >= limit / 2 })
    }
}

/// Runs `work`; also says how late this agent was meanwhile at its latest.
async fn pulse<T>(work: impl Future<Output = T>) -> (T, Duration) {
    tokio::pin!(work);
    let mut late = Duration::ZERO;
    loop {
        let due = mono_now() + PULSE;
        tokio::select! {
            biased;
            () = runtime::sleep_until(due) => {
                late = late.max(mono_now().saturating_duration_since(due));
            }
            done = &mut work => {
                // It may have been late only now, and the answer with it.
                return (done, late.max(mono_now().saturating_duration_since(due)));
            }
        }
    }
}

struct Asked {
    address: SocketAddr,
}

impl Asked {
    async fn within<T>(
        &self,
        limit: Duration,
        ask: impl Future<Output = Result<T, String>>,
    ) -> (Result<(), String>, Duration) {
        let (answer, late) = pulse(runtime::timeout(limit, ask)).await;
        if let Some(answer) = answer {
            return (answer.map(drop), Duration::ZERO);
        }
        let port = self.address.port();
        (Err(format!("no answer on port {port} within {}", Length(limit))), late)
    }

    async fn connect(&self) -> Result<TcpStream, String> {
        let stream = TcpStream::connect(self.address).await;
        stream.map_err(|error| self.refused(&error))
    }

    async fn healthy(&self, path: &str) -> Result<(), String> {
        let status = self.get(path).await?;
        if HEALTHY.contains(&status) {
            return Ok(());
        }
        Err(format!("GET {path} on port {} answered {status}", self.address.port()))
    }

    fn refused(&self, error: &io::Error) -> String {
        let port = self.address.port();
        if error.kind() == io::ErrorKind::ConnectionRefused {
            return format!("connection refused on port {port}");
        }
        format!("cannot connect to port {port}: {error}")
    }

    /// The status that a page is answered with.
    async fn get(&self, path: &str) -> Result<u16, String> {
        let mut stream = self.connect().await?;
        let port = self.address.port();
        let broken = |error: io::Error| format!("GET {path} on port {port} broke: {error}");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: longshore-check\r\n\
             Accept: */*\r\nConnection: close\r\n\r\n",
            self.address
        );
        stream.write_all(request.as_bytes()).await.map_err(broken)?;
        let mut line = Vec::new();
        let mut piece = [0; 256];
        while !line.contains(&b'\n') && line.len() < MAX_STATUS_LINE {
            let read = stream.read(&mut piece).await.map_err(broken)?;
            if read == 0 {
                break;
            }
            line.extend_from_slice(piece.get(..read).unwrap_or_default());
        }
        status(&line).ok_or_else(|| format!("the answer to GET {path} on port {port} is not HTTP"))
    }
}

/// The status of an HTTP/1 answer.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    words.next()?.strip_prefix("HTTP/1.")?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn status_lines() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\nA: b\r\n"), Some(204));
        assert_eq!(status(b"HTTP/1.0 500\n"), Some(500));
        for bad in [&b""[..], b"HTTP/2 200", b"SSH-2.0-x\r\n", b"\xff\n"] {
            assert_eq!(status(bad), None);
        }
    }

    /// A prober of a port that takes connections and never answers.
    async fn deaf(host: &str) -> (TcpListener, Prober) {
        let listener = TcpListener::bind((host, 0)).await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        (listener, Prober { address, inside: None })
    }

    fn http() -> Check {
        let kind = CheckKind::Http { path: "/".into() };
        Check { kind, timeout_ms: 200, ..Check::default() }
    }

    #[tokio::test]
    async fn a_starved_agent_knows_it() {
        let (_listener, prober) = deaf("127.0.0.1").await;
        let fault = prober.ask(&http(), false).await.expect_err("no answer");
        assert!(!fault.starved, "{fault:?}");
        let burn = async {
            runtime::sleep(Duration::from_millis(50)).await;
            // Nothing else runs on this thread meanwhile.
            runtime::pause_thread(Duration::from_millis(300));
        };
        let check = http();
        let (fault, ()) = tokio::join!(prober.ask(&check, false), burn);
        assert!(fault.expect_err("no answer").starved);
    }

    #[tokio::test]
    async fn other_ports_and_both_protocols_are_asked() {
        for host in ["127.0.0.1", "::1"] {
            let (listener, mut prober) = deaf(host).await;
            let check = Check { kind: CheckKind::Tcp, port: Some(prober.address.port()), ..http() };
            prober.address.set_port(1);
            assert_eq!(prober.ask(&check, false).await, Ok(()), "{host}");
            drop(listener);
            let fault = prober.ask(&check, false).await.expect_err("nobody listens");
            assert!(fault.text.starts_with("connection refused on port"), "{fault:?}");
        }
    }
}
