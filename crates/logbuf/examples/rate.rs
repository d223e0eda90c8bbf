//! Measures one buffer with several readers at once; prints one JSON line per way of use.
#![expect(clippy::cast_precision_loss, reason = "a rate needs no more precision")]

use std::error::Error;
use std::io::Write as _;

use logbuf::{Limits, Line, LogBuffer, LogError, Read, Reader, Start};
use runtime::mono_now;

const LINES: u64 = 4_000_000;
const READERS: u64 = 8;
const WORKERS: usize = 2;
const LINE: [u8; 100] = [b'x'; 100];

/// Reads to the end; returns how many entries it saw and how many it was told it missed.
async fn follow(mut reader: Reader) -> Result<(u64, u64), LogError> {
    let (mut seen, mut skipped) = (0, 0);
    loop {
        match reader.next_batch(4_096).await? {
            Read::Batch(batch) => {
                seen += batch.iter().filter(|entry| entry.data.len() == LINE.len()).count() as u64;
            }
            Read::Skipped { count, .. } => skipped += count,
            Read::Ended => return Ok((seen, skipped)),
        }
    }
}

fn append(log: &LogBuffer, at_once: u64) -> Result<(), LogError> {
    for n in 0..LINES / at_once {
        let line = Line { time_ms: n, source: 1, data: &LINE };
        log.append_all((0..at_once).map(|_| line))?;
    }
    log.end()
}

fn run(name: &str, log: &LogBuffer, at_once: u64) -> Result<(), Box<dyn Error>> {
    let pool =
        tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    let tasks = runtime::Tasks::new(runtime::Stop::new());
    let (done, mut finished) = tokio::sync::mpsc::channel(8);
    let start = mono_now();
    pool.block_on(async {
        for _ in 0..READERS {
            let (reader, done) = (log.reader(Start::Oldest), done.clone());
            tasks.spawn_ok("reader", async move {
                drop(done.send(follow(reader).await).await);
            });
        }
    });
    drop(done);
    append(log, at_once)?;
    let appended = start.elapsed();
    let (mut seen, mut skipped) = (0, 0);
    while let Some(result) = finished.blocking_recv() {
        let (reader_saw, reader_skipped) = result?;
        seen += reader_saw;
        skipped += reader_skipped;
    }
    let all = start.elapsed();
    assert_eq!(seen + skipped, LINES * READERS, "every line is seen or told to be missing");
    writeln!(
        std::io::stdout(),
        "{{\"buffer\":\"{name}\",\"lines_at_once\":{at_once},\"readers\":{READERS},\
         \"lines_per_s\":{:.0},\"lines_per_s_until_all_are_read\":{:.0},\"skipped\":{skipped}}}",
        LINES as f64 / appended.as_secs_f64(),
        LINES as f64 / all.as_secs_f64(),
    )?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    for at_once in [1, 32] {
        run("memory", &LogBuffer::in_memory(Limits::default()), at_once)?;
        let dir = tempfile::tempdir_in(".")?;
        let limits = Limits { disk_bytes: u64::MAX, ..Limits::default() };
        run("disk", &LogBuffer::open(dir.path(), limits)?, at_once)?;
    }
    Ok(())
}
