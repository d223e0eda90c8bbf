//! A steady stream of requests, as many a second whatever happens, and what became of each.
//!
//! The client is one that people have: it keeps its connections, knows more than one address of the
//! service, and sends a GET once more, after a short pause, on a new connection and to the next
//! address, when the connection failed before a byte of an answer. Browsers and load balancers do
//! the same.

use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lan::Host;
use crate::load::answer;
use crate::{Failure, Page, wait_for};

/// How long a request may take, each time it is sent.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// The pause before a request is sent again. The system takes a moment to close the sockets of a
/// process that was killed, one after the other, and until then takes connections for them.
pub const AGAIN_PAUSE: Duration = Duration::from_millis(200);
/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Failures that are kept word for word.
const KEPT: usize = 1_000;
/// How long the stream must go well to count as calm.
const CALM: Duration = Duration::from_millis(500);

/// Whom to ask for what, and how often.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The host that asks; this machine when absent.
    pub from: Option<Host>,
    /// The addresses of the service.
    pub at: Vec<SocketAddr>,
    /// The names of the apps, asked in turn.
    pub hosts: Vec<String>,
    /// Requests a second, all apps together.
    pub rate: u32,
    /// Connections they are spread over.
    pub connections: u32,
}

/// One request that failed, also when sent again.
#[derive(Debug, Clone)]
pub struct Failed {
    /// When.
    pub at: Instant,
    /// How.
    pub why: String,
}

/// What became of requests.
#[derive(Debug, Clone, Default)]
pub struct Met {
    /// Requests that ended, well or not.
    pub requests: u64,
    /// Those that were answered otherwise than with 200, or not at all.
    pub failed: u64,
    /// Those that were sent twice.
    pub again: u64,
    /// How long the slowest took.
    pub slowest: Duration,
    /// The first failures.
    pub failures: Vec<Failed>,
}

#[derive(Debug, Default)]
struct Tally {
    met: Met,
    last_failed: Option<Instant>,
    /// How long each took since the last mark, only the slowest.
    slowest: Duration,
}

#[derive(Debug)]
struct Shared {
    wanted: Wanted,
    stop: AtomicBool,
    tally: Mutex<Tally>,
}

/// The stream. It ends when this is dropped.
#[derive(Debug)]
pub struct Steady {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// A moment of the stream, to count from.
#[derive(Debug, Clone)]
pub struct Mark {
    at: Instant,
    met: Met,
}

impl Mark {
    /// How long ago it was.
    pub fn elapsed(&self) -> Duration {
        runtime::mono_now().duration_since(self.at)
    }

    /// When it was.
    pub const fn at(&self) -> Instant {
        self.at
    }
}

impl Met {
    /// The time from the first to the last failure, and when the first was, counted from `mark`.
    pub fn window(&self, mark: &Mark) -> Option<(Duration, Duration)> {
        let first = self.failures.first()?.at.duration_since(mark.at);
        let last = self.failures.last()?.at.duration_since(mark.at);
        Some((first, last))
    }
}

impl Steady {
    /// Starts asking.
    pub fn start(wanted: Wanted) -> Result<Self, Failure> {
        let connections = wanted.connections.max(1);
        let pause = Duration::from_secs(1) * connections / wanted.rate.max(1);
        let (stop, tally) = (AtomicBool::new(false), Mutex::default());
        let shared = Arc::new(Shared { wanted, stop, tally });
        let mut threads = Vec::new();
        for number in 0..connections {
            let (shared, offset) = (Arc::clone(&shared), pause * number / connections);
            let thread = runtime::spawn_thread("steady", move || {
                if let Some(Err(error)) = shared.wanted.from.as_ref().map(Host::enter) {
                    return shared.note(Duration::ZERO, false, Err(error));
                }
                shared.ask(number as usize, offset, pause);
            });
            threads.push(thread.map_err(|error| error.to_string())?);
        }
        Ok(Self { shared, threads })
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on.
    pub fn mark(&self) -> Mark {
        let mut tally = self.tally();
        tally.slowest = Duration::ZERO;
        tally.met.failures.clear();
        Mark { at: runtime::mono_now(), met: tally.met.clone() }
    }

    /// What happened since the last mark, which is this one.
    pub fn since(&self, mark: &Mark) -> Met {
        let tally = self.tally();
        Met {
            requests: tally.met.requests - mark.met.requests,
            failed: tally.met.failed - mark.met.failed,
            again: tally.met.again - mark.met.again,
            slowest: tally.slowest,
            failures: tally.met.failures.clone(),
        }
    }

    /// What happened since it began.
    pub fn all(&self) -> Met {
        let tally = self.tally();
        Met { slowest: tally.slowest, ..tally.met.clone() }
    }

    /// Waits until nothing has failed for a while.
    pub fn calm(&self, limit: Duration) -> Result<(), Failure> {
        let from = runtime::mono_now();
        let calm = || {
            let last = self.tally().last_failed.unwrap_or(from).max(from);
            (last.elapsed() > CALM).then_some(())
        };
        let why = || self.tally().met.failures.last().map(|it| it.why.clone());
        wait_for("requests to go well", limit, calm)
            .map_err(|late| format!("{late}; the last failure: {:?}", why()))
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            // It notes its own failures.
            drop(thread.join());
        }
    }
}

/// One page from one address, asked for by `from`.
pub fn get_from(from: &Host, at: SocketAddr, host: &str) -> Result<Page, Failure> {
    let (from, host) = (from.clone(), host.to_owned());
    let asking = runtime::spawn_thread("ask", move || -> Result<Page, Failure> {
        from.enter()?;
        let ask = || {
            let mut stream = TcpStream::connect_timeout(&at, CONNECT_LIMIT)?;
            stream.set_read_timeout(Some(REQUEST_LIMIT))?;
            write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
            crate::http::answer(&mut stream)
        };
        ask().map_err(|error: std::io::Error| format!("{at}: {error}"))
    });
    let asking = asking.map_err(|error| error.to_string())?;
    asking.join().unwrap_or_else(|_| Err("the thread that asked broke".to_owned()))
}

/// A connection, and which of the addresses it goes to.
struct Line {
    stream: BufReader<TcpStream>,
    to: usize,
}

impl Shared {
    /// Asks in turn, each time when the time has come, or at once when it has passed.
    fn ask(&self, number: usize, offset: Duration, pause: Duration) {
        let mut due = runtime::mono_now() + offset;
        let mut line = None;
        let mut turn = number;
        while !self.stop.load(Ordering::SeqCst) {
            runtime::pause_thread(due.saturating_duration_since(runtime::mono_now()));
            // Whoever waited long for an answer does not make up for it.
            due = (due + pause).max(runtime::mono_now());
            let host = &self.wanted.hosts[turn % self.wanted.hosts.len()];
            let began = runtime::mono_now();
            let to = line.as_ref().map_or(turn, |line: &Line| line.to);
            let first = self.once(&mut line, to, host);
            let again = matches!(first, Err(Fault::Silent(_)));
            let done = match first {
                Err(Fault::Silent(before)) => {
                    runtime::pause_thread(AGAIN_PAUSE);
                    self.once(&mut line, to + 1, host).map_err(|it| {
                        let (Fault::Silent(now) | Fault::Bad(now)) = it;
                        format!("{before}; again: {now}")
                    })
                }
                Err(Fault::Bad(why)) => Err(why),
                Ok(()) => Ok(()),
            };
            self.note(began.elapsed(), again, done.map_err(|why| format!("{host}: {why}")));
            turn += 1;
        }
    }

    fn note(&self, took: Duration, again: bool, done: Result<(), Failure>) {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.met.requests += 1;
        tally.met.again += u64::from(again);
        tally.slowest = tally.slowest.max(took);
        if let Err(why) = done {
            let at = runtime::mono_now();
            tally.met.failed += 1;
            tally.last_failed = Some(at);
            if tally.met.failures.len() < KEPT {
                tally.met.failures.push(Failed { at, why });
            }
        }
    }

    /// Sends one request, on the connection there is or on a new one.
    fn once(&self, line: &mut Option<Line>, to: usize, host: &str) -> Result<(), Fault> {
        let mut kept = match line.take() {
            Some(kept) => kept,
            None => self.connect(to).map_err(|error| Fault::Silent(error.to_string()))?,
        };
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let silent = |error: std::io::Error| Fault::Silent(error.to_string());
        kept.stream.get_mut().write_all(request.as_bytes()).map_err(silent)?;
        has_begun(kept.stream.get_ref()).map_err(silent)?;
        let (status, stays) = answer(&mut kept.stream)
            .map_err(|error| Fault::Bad(format!("its answer broke: {error}")))?;
        if stays {
            *line = Some(kept);
        }
        if status == 200 { Ok(()) } else { Err(Fault::Bad(format!("answered with {status}"))) }
    }

    fn connect(&self, to: usize) -> std::io::Result<Line> {
        let to = to % self.wanted.at.len();
        let address = self.wanted.at[to];
        let stream = TcpStream::connect_timeout(&address, CONNECT_LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REQUEST_LIMIT))?;
        stream.set_write_timeout(Some(REQUEST_LIMIT))?;
        Ok(Line { stream: BufReader::new(stream), to })
    }
}

/// Why a request got no good answer.
enum Fault {
    /// The connection failed before a byte of an answer.
    Silent(String),
    /// There was an answer, or part of one.
    Bad(String),
}

/// Waits for the first byte of an answer.
fn has_begun(stream: &TcpStream) -> std::io::Result<()> {
    let peeked = loop {
        match stream.peek(&mut [0]) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            peeked => break peeked,
        }
    };
    match peeked {
        Ok(0) => Err(std::io::Error::other("the connection was closed without an answer")),
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}
