//! What an all-in-one server needs while nothing happens, and how soon it is ready.

use std::time::Duration;

use runtime::mono_now;
use serde_json::{Value, json};
use testkit::{Dev, shore_binary};

/// How long it is left alone before and while it is watched.
const SETTLE: Duration = Duration::from_secs(3);
const WATCH: Duration = Duration::from_secs(20);
/// Clock ticks a second in /proc, on every Linux.
const TICKS: f64 = 100.0;
const STARTS: usize = 5;

pub(crate) fn run() -> Result<Value, String> {
    let shore = shore_binary()?;
    let mut ready = Vec::new();
    for _ in 0..STARTS {
        let started = mono_now();
        let mut dev = Dev::start(&shore)?;
        ready.push(started.elapsed());
        dev.stop()?;
    }
    ready.sort_unstable();
    let dev = Dev::start(&shore)?;
    let pid = dev.pid().ok_or("it is gone")?;
    runtime::pause_thread(SETTLE);
    let (before, started) = (cpu_ticks(pid)?, mono_now());
    runtime::pause_thread(WATCH);
    let used = cpu_ticks(pid)? - before;
    let percent = used / TICKS / started.elapsed().as_secs_f64() * 100.0;
    Ok(json!({
        "bench": "idle",
        "rss_mb": rss_mb(pid)?,
        "cpu_percent": (percent * 1000.0).round() / 1000.0,
        "ready_ms": ready.get(STARTS / 2).map_or(0, Duration::as_millis),
    }))
}

fn cpu_ticks(pid: u32) -> Result<f64, String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|e| e.to_string())?;
    let after = stat.rsplit(") ").next().unwrap_or_default();
    let fields: Vec<&str> = after.split(' ').collect();
    let field = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok());
    // utime and stime are fields 14 and 15; the state after the name is field 3.
    Ok(field(11).unwrap_or(0.0) + field(12).unwrap_or(0.0))
}

/// Memory of a process now, in MB.
pub(crate) fn rss_mb(pid: u32) -> Result<f64, String> {
    memory_mb(pid, "VmRSS:")
}

/// The most memory that a process has had, in MB.
pub(crate) fn peak_rss_mb(pid: u32) -> Result<f64, String> {
    memory_mb(pid, "VmHWM:")
}

fn memory_mb(pid: u32, field: &str) -> Result<f64, String> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| e.to_string())?;
    let line = status.lines().find(|line| line.starts_with(field)).unwrap_or_default();
    let kb: f64 = line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0.0);
    Ok((kb / 102.4).round() / 10.0)
}
