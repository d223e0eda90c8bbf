//! Keeping connections busy while something else happens, and counting what failed.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::Failure;

/// Failures that are kept word for word.
const KEPT: usize = 20;

/// What a load met.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// Requests that were answered with 200.
    pub good: u64,
    /// Requests that were not.
    pub bad: u64,
    /// How the first of those went wrong.
    pub failures: Vec<String>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    good: AtomicU64,
    bad: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// Connections that send one request after the other until told to stop.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Keeps `connections` busy with `GET /` of `host`.
    pub fn start(port: u16, host: &str, connections: usize) -> Result<Self, Failure> {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for _ in 0..connections {
            let (shared, host) = (Arc::clone(&shared), host.to_owned());
            let thread = runtime::spawn_thread("load", move || shared.run(port, &host));
            threads.push(thread.map_err(|error| error.to_string())?);
        }
        Ok(Self { shared, threads })
    }

    /// Ends the connections and says what they met.
    pub fn finish(self) -> Loaded {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            if thread.join().is_err() {
                self.shared.fail("a load thread broke".to_owned());
            }
        }
        let failures = self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Loaded {
            good: self.shared.good.load(Ordering::SeqCst),
            bad: self.shared.bad.load(Ordering::SeqCst),
            failures,
        }
    }
}

impl Shared {
    fn run(&self, port: u16, host: &str) {
        while !self.stop.load(Ordering::SeqCst) {
            if let Err(error) = self.connection(port, host) {
                self.fail(error.to_string());
                // A refused connection must not spin.
                runtime::pause_thread(Duration::from_millis(5));
            }
        }
    }

    fn fail(&self, reason: String) {
        self.bad.fetch_add(1, Ordering::SeqCst);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < KEPT {
            failures.push(reason);
        }
    }

    fn connection(&self, port: u16, host: &str) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        while !self.stop.load(Ordering::SeqCst) {
            stream.write_all(request.as_bytes())?;
            let (status, keep) = answer(&mut reader)?;
            if status == 200 {
                self.good.fetch_add(1, Ordering::SeqCst);
            } else {
                self.fail(format!("answered with {status}"));
            }
            if !keep {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Reads one answer with a known length; its status, and whether the connection stays.
pub(crate) fn answer(reader: &mut BufReader<TcpStream>) -> std::io::Result<(u16, bool)> {
    let broken = |what: &str| std::io::Error::other(format!("the answer {what}"));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| broken("has no status"))?;
    let (mut length, mut keep, mut chunked) = (0_u64, true, false);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(broken("ended in its head"));
        }
        let header = line.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        match header.split_once(": ") {
            Some(("content-length", value)) => length = value.parse().unwrap_or(0),
            Some(("connection", "close")) => keep = false,
            Some(("transfer-encoding", _)) => chunked = true,
            _ => {}
        }
    }
    if chunked {
        skip_chunks(reader)?;
    } else {
        let copied = std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
        if copied < length {
            return Err(broken("ended in its body"));
        }
    }
    Ok((status, keep))
}

fn skip_chunks(reader: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
        let copied = std::io::copy(&mut reader.take(size + 2), &mut std::io::sink())?;
        if copied < size + 2 {
            return Err(std::io::Error::other("the answer ended in a chunk"));
        }
        if size == 0 {
            return Ok(());
        }
    }
}
