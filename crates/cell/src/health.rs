//! Health checks.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use model::{Check, CheckKind};
use runtime::mono_now;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::limits::CHECK_PAUSES;

/// The longest status line.
const MAX_STATUS_LINE: usize = 1024;
/// How long a new instance may take over its first page: it may have to compile or to connect first.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// Answers that count as healthy.
const HEALTHY: std::ops::RangeInclusive<u16> = 200..=399;

/// What a check found that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It passes for the first time.
    Healthy,
    /// It did not pass in time.
    NeverHealthy { reason: String },
    /// It passed, and failed too often since.
    Unhealthy { reason: String },
}

/// Checks one instance.
#[derive(Debug)]
pub(crate) struct Health {
    check: Check,
    address: SocketAddr,
    /// Until when it must pass for the first time.
    deadline: Instant,
    /// When the next check is due.
    next: Instant,
    pause: Duration,
    passed: bool,
    failed: u32,
}

impl Health {
    pub(crate) fn new(check: Check, address: SocketAddr) -> Self {
        let now = mono_now();
        let deadline = now + Duration::from_millis(check.start_timeout_ms);
        let (pause, _) = CHECK_PAUSES;
        Self { check, address, deadline, next: now, pause, passed: false, failed: 0 }
    }

    /// Checks until there is something to say. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Verdict {
        loop {
            runtime::sleep_until(self.next).await;
            let found = self.ask().await;
            let now = mono_now();
            match found {
                Ok(()) => {
                    self.failed = 0;
                    self.next = now + Duration::from_millis(self.check.interval_ms);
                    if !std::mem::replace(&mut self.passed, true) {
                        return Verdict::Healthy;
                    }
                }
                Err(fault) if self.passed => {
                    self.failed += 1;
                    self.next = now + Duration::from_millis(self.check.interval_ms);
                    if self.failed >= self.check.failures {
                        return Verdict::Unhealthy { reason: self.unhealthy(&fault) };
                    }
                }
                Err(fault) if now >= self.deadline => {
                    let limit = Length(Duration::from_millis(self.check.start_timeout_ms));
                    let reason = format!("was never healthy in {limit}; last check: {fault}");
                    return Verdict::NeverHealthy { reason };
                }
                Err(_) => {
                    self.next = (now + self.pause).min(self.deadline);
                    self.pause = (self.pause * 2).min(CHECK_PAUSES.1);
                }
            }
        }
    }

    fn unhealthy(&self, fault: &str) -> String {
        match self.failed {
            1 => format!("became unhealthy: {fault}"),
            times => format!("became unhealthy: {times} checks in a row failed, the last: {fault}"),
        }
    }

    async fn ask(&self) -> Result<(), String> {
        let first_answer = self.check.kind == CheckKind::Answers && !self.passed;
        let limit = Duration::from_millis(self.check.timeout_ms);
        let limit = if first_answer { limit.max(FIRST_ANSWER) } else { limit };
        let ask = async {
            let stream = TcpStream::connect(self.address).await;
            let stream = stream.map_err(|error| self.refused(&error))?;
            match &self.check.kind {
                CheckKind::Answers if first_answer => self.get(stream, "/").await.map(drop),
                CheckKind::Command { .. } => Err("this cell runs no commands".to_owned()),
                CheckKind::Answers | CheckKind::Tcp => Ok(()),
                CheckKind::Http { path } => match self.get(stream, path).await? {
                    status if HEALTHY.contains(&status) => Ok(()),
                    status => {
                        let port = self.address.port();
                        Err(format!("GET {path} on port {port} answered {status}"))
                    }
                },
            }
        };
        let port = self.address.port();
        let late = || Err(format!("no answer on port {port} within {}", Length(limit)));
        runtime::timeout(limit, ask).await.unwrap_or_else(late)
    }

    fn refused(&self, error: &io::Error) -> String {
        let port = self.address.port();
        if error.kind() == io::ErrorKind::ConnectionRefused {
            return format!("connection refused on port {port}");
        }
        format!("cannot connect to port {port}: {error}")
    }

    /// The status that a page is answered with.
    async fn get(&self, mut stream: TcpStream, path: &str) -> Result<u16, String> {
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

/// A duration as people write it: `60 s`, `250 ms`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Length(pub(crate) Duration);

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        if ms.is_multiple_of(1_000) { write!(f, "{} s", ms / 1_000) } else { write!(f, "{ms} ms") }
    }
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

    fn check(kind: CheckKind) -> Check {
        Check {
            kind,
            interval_ms: 10,
            timeout_ms: 200,
            start_timeout_ms: 100,
            failures: 2,
            ..Check::default()
        }
    }

    #[tokio::test]
    async fn a_closed_port_is_never_healthy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        drop(listener);
        let verdict = Health::new(check(CheckKind::Tcp), address).next().await;
        let port = address.port();
        let reason =
            format!("was never healthy in 100 ms; last check: connection refused on port {port}");
        assert_eq!(verdict, Verdict::NeverHealthy { reason });
    }

    #[tokio::test]
    async fn a_port_without_an_answer_is_not_healthy_at_first() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        let mut health = Health::new(check(CheckKind::Answers), address);
        let serve = async {
            // A master that listens while its worker dies, then one whose worker lives.
            drop(listener.accept().await.expect("accepts"));
            let (mut stream, _) = listener.accept().await.expect("accepts");
            stream.write_all(b"HTTP/1.1 404 x\r\n\r\n").await.expect("answers");
            drop(stream.read_to_end(&mut Vec::new()).await);
            // Later checks ask for no page, so a quiet app stays quiet.
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let mut asked = Vec::new();
            stream.read_to_end(&mut asked).await.expect("an end");
            asked
        };
        let watch = async {
            let verdict = health.next().await;
            // The next check passes, so there is nothing to say.
            let quiet = runtime::timeout(Duration::from_millis(100), health.next()).await;
            (verdict, quiet)
        };
        let (asked, verdicts) = tokio::join!(serve, watch);
        assert_eq!(verdicts, (Verdict::Healthy, None));
        assert_eq!(asked, b"");
    }

    #[tokio::test]
    async fn failures_in_a_row_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has an address");
        let mut health = Health::new(check(CheckKind::Http { path: "/up".into() }), address);
        let serve = async {
            for status in [503, 200, 500, 302, 500, 500] {
                let (mut stream, _) = listener.accept().await.expect("accepts");
                let answer = format!("HTTP/1.1 {status} x\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.expect("answers");
                // Reading to the end makes the close a clean one.
                drop(stream.read_to_end(&mut Vec::new()).await);
            }
        };
        let watch = async {
            assert_eq!(health.next().await, Verdict::Healthy);
            health.next().await
        };
        let ((), verdict) = tokio::join!(serve, watch);
        let port = address.port();
        let reason = format!(
            "became unhealthy: 2 checks in a row failed, the last: GET /up on port {port} answered 500"
        );
        assert_eq!(verdict, Verdict::Unhealthy { reason });
    }
}
