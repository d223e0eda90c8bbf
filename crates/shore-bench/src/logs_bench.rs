//! Lines through one log buffer with readers that follow it.

use std::time::Duration;

use logbuf::{Limits, LogBuffer, Read, Start};
use runtime::{Stop, Tasks, mono_now};
use serde_json::{Value, json};
use tokio::sync::mpsc;

const READERS: usize = 8;
const LINES: u64 = 3_000_000;
/// Bytes of a line.
const LINE: usize = 100;
/// Entries taken at once.
const BATCH: usize = 1_024;
/// How often the owner writes to disk.
const FLUSH: Duration = Duration::from_millis(200);

pub(crate) fn run() -> Result<Value, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(measure())
}

async fn measure() -> Result<Value, String> {
    let dir = tempfile::tempdir_in(".").map_err(|error| error.to_string())?;
    // Nothing may be skipped: everything a slow reader misses in memory is on disk.
    let limits = Limits { disk_bytes: 1 << 30, ..Limits::default() };
    let log = LogBuffer::open(dir.path(), limits).map_err(|error| error.to_string())?;
    let tasks = Tasks::new(Stop::new());
    let (done, mut counted) = mpsc::channel(READERS);
    for _ in 0..READERS {
        let (mut reader, done) = (log.reader(Start::Oldest), done.clone());
        tasks.spawn_ok("reader", async move {
            let (mut lines, mut skipped) = (0, 0);
            loop {
                match reader.next_batch(BATCH).await {
                    Ok(Read::Batch(batch)) => lines += batch.len() as u64,
                    Ok(Read::Skipped { count, .. }) => skipped += count,
                    Ok(Read::Ended) | Err(_) => break,
                }
            }
            // The receiver outlives every reader.
            done.send((lines, skipped)).await.unwrap_or_default();
        });
    }
    drop(done);
    let started = mono_now();
    let writer = log.clone();
    runtime::blocking(move || write(&writer)).await?;
    let (mut read, mut skipped) = (0, 0);
    while let Some((lines, lost)) = counted.recv().await {
        read += lines;
        skipped += lost;
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(json!({
        "bench": "logs",
        "lines_per_s": (LINES as f64 / seconds).round(),
        "readers": READERS,
        "lines": LINES,
        "read": read,
        "skipped": skipped,
    }))
}

fn write(log: &LogBuffer) -> Result<(), String> {
    let line = [b'x'; LINE];
    let mut flushed = mono_now();
    for number in 0..LINES {
        log.append(number, 0, &line).map_err(|error| error.to_string())?;
        if number % 1_024 == 0 && flushed.elapsed() > FLUSH {
            log.flush().map_err(|error| error.to_string())?;
            flushed = mono_now();
        }
    }
    log.end().map_err(|error| error.to_string())
}
