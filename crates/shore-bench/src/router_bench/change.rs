//! What a change of routes costs under load: how long until all connections see it, and what fails.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::process::Nginx;

/// Connections that load.
const CONNECTIONS: usize = 32;
/// How often the route changes.
const CHANGES: u64 = 200;
/// How often it is looked whether all connections see a change.
const GLANCE: Duration = Duration::from_micros(100);
/// How long a connection may wait for anything.
const PATIENCE: Duration = Duration::from_secs(5);

/// What came of it.
pub(super) struct Figures {
    pub(super) median_ms: f64,
    pub(super) max_ms: f64,
    /// The same median when the route does not change: what it takes until every connection was
    /// answered once more.
    pub(super) floor_ms: f64,
    pub(super) changes: u64,
    pub(super) requests: u64,
    pub(super) lost: u64,
}

/// What a loading connection tells: the instance that answered a request sent at or after a change.
#[derive(Default)]
struct Seen {
    /// The round in which the last answered request was sent.
    round: AtomicU64,
    /// Which instance answered it.
    instance: AtomicU64,
}

#[derive(Default)]
struct Shared {
    change: AtomicU64,
    round: AtomicU64,
    stop: AtomicBool,
    requests: AtomicU64,
    lost: AtomicU64,
}

pub(super) fn measure(dir: &Path) -> Result<Figures, String> {
    let backends = [
        Nginx::backend(dir, "change-a", &"a".repeat(64))?,
        Nginx::backend(dir, "change-b", &"b".repeat(64))?,
    ];
    let (runtime, tasks, router) = super::start_router()?;
    let table = |change: u64| {
        let backend = &backends[usize::try_from(change % 2).unwrap_or(0)];
        super::table(change + 1, 1, backend.port, None)
    };
    router.apply(&table(0)?);
    let shared = Arc::new(Shared::default());
    let mut seen = Vec::new();
    let mut threads = Vec::new();
    for index in 0..CONNECTIONS {
        let mine = Arc::new(Seen::default());
        seen.push(Arc::clone(&mine));
        let (shared, address) = (Arc::clone(&shared), router.addresses()[0]);
        let thread = runtime::spawn_thread(&format!("load-{index}"), move || {
            while !shared.stop.load(Ordering::SeqCst) {
                if load(address, &shared, &mine).is_err() {
                    shared.lost.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        threads.push(thread.map_err(|error| error.to_string())?);
    }
    let (mut times, mut floor) = (Vec::new(), Vec::new());
    for change in 1..=CHANGES {
        let fresh = table(change)?;
        let started = runtime::mono_now();
        router.apply(&fresh);
        shared.begin_round(change);
        times.push(until_seen(&seen, &shared, started)?);
        let started = runtime::mono_now();
        shared.begin_round(change);
        floor.push(until_seen(&seen, &shared, started)?);
    }
    shared.stop.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().map_err(|_| "a loading thread broke")?;
    }
    tasks.stop().stop();
    drop(runtime);
    times.sort_by(f64::total_cmp);
    floor.sort_by(f64::total_cmp);
    Ok(Figures {
        median_ms: super::round(times[times.len() / 2]),
        max_ms: super::round(times[times.len() - 1]),
        floor_ms: super::round(floor[floor.len() / 2]),
        changes: CHANGES,
        requests: shared.requests.load(Ordering::SeqCst),
        lost: shared.lost.load(Ordering::SeqCst),
    })
}

impl Shared {
    /// From now on, answers to requests that are sent from now on are waited for.
    fn begin_round(&self, change: u64) {
        self.change.store(change, Ordering::SeqCst);
        self.round.fetch_add(1, Ordering::SeqCst);
    }
}

/// Waits until every connection was answered, by the instance of the last change, a request it sent
/// in this round; milliseconds since `started`.
fn until_seen(seen: &[Arc<Seen>], shared: &Shared, started: Instant) -> Result<f64, String> {
    let change = shared.change.load(Ordering::SeqCst);
    let round = shared.round.load(Ordering::SeqCst);
    while !seen.iter().all(|seen| {
        seen.round.load(Ordering::SeqCst) >= round
            && seen.instance.load(Ordering::SeqCst) == change % 2
    }) {
        if started.elapsed() > PATIENCE {
            return Err(format!("change {change} is not seen by all connections"));
        }
        runtime::pause_thread(GLANCE);
    }
    Ok(started.elapsed().as_secs_f64() * 1_000.0)
}

/// Asks over one connection until told to stop. A request sent after a change and answered by the
/// old instance counts as lost, too.
fn load(address: SocketAddr, shared: &Shared, seen: &Seen) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", super::host(0));
    let mut buffer = [0; 4_096];
    while !shared.stop.load(Ordering::SeqCst) {
        let round = shared.round.load(Ordering::SeqCst);
        let change = shared.change.load(Ordering::SeqCst);
        stream.write_all(request.as_bytes())?;
        let answer = answer(&mut stream, &mut buffer)?;
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let is_between = shared.change.load(Ordering::SeqCst) != change;
        if !is_between && answer != change % 2 {
            // The table may have changed before its number was told.
            let next_is_coming = answer == (change + 1) % 2;
            if !next_is_coming {
                return Err(std::io::Error::other("the wrong instance answered"));
            }
        }
        seen.instance.store(answer, Ordering::SeqCst);
        seen.round.store(round, Ordering::SeqCst);
    }
    Ok(())
}

/// Reads one answer; 0 or 1 for the instance it came from.
fn answer(stream: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<u64> {
    let mut length = 0;
    loop {
        let read = stream.read(&mut buffer[length..])?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        length += read;
        let Some(head) = buffer[..length].windows(4).position(|it| it == b"\r\n\r\n") else {
            continue;
        };
        let body = &buffer[head + 4..length];
        if body.len() < 64 {
            continue;
        }
        let is_good = buffer.starts_with(b"HTTP/1.1 200") && body.len() == 64;
        return match body[0] {
            b'a' if is_good => Ok(0),
            b'b' if is_good => Ok(1),
            _ => Err(std::io::Error::other("this is not an answer")),
        };
    }
}
