//! Measures how many rows per second the SQLite store makes durable; prints one JSON line.
#![expect(clippy::cast_precision_loss, reason = "a rate needs no more precision")]

use std::collections::VecDeque;
use std::error::Error;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use runtime::{Random, mono_now};
use store::sqlite::SqliteStore;
use store::{Batch, Kind, Record, Store as _, Writer, WriterLimits};

const JOB: Kind = Kind::new("job");
const BATCH_ROWS: usize = 256;
const IN_FLIGHT: usize = 16;
const RUN: Duration = Duration::from_secs(4);
const BODY: &str = r#"{"project":"5f0c","app":"web","workspace":"production","state":{"running":{"runner":"01j9","lease_until":1760000000000}},"queued_ms":1760000000000,"attempt":1,"n":"#;

fn batch(random: &Random, time: u128, known: &mut Vec<u128>) -> Batch {
    let row = |n: usize| {
        let fresh = (time << 80) | u128::from(random.next_u64());
        let pick = usize::try_from(random.next_u64() >> 33).unwrap_or(0);
        let id = if n.is_multiple_of(2) || known.is_empty() {
            known.push(fresh);
            fresh
        } else {
            // Half of the rows change a recent one, as jobs and instances do.
            let recent = known.len().min(10_000);
            known[known.len() - 1 - pick % recent]
        };
        let mut body = Vec::with_capacity(BODY.len() + 24);
        body.extend_from_slice(BODY.as_bytes());
        body.extend_from_slice(n.to_string().as_bytes());
        body.push(b'}');
        Record::put(JOB, id, body)
    };
    Batch::of((0..BATCH_ROWS).map(row).collect())
}

fn run(in_flight: usize) -> Result<(f64, f64, f64), Box<dyn Error>> {
    let dir = tempfile::tempdir_in(".")?;
    let store = Arc::new(SqliteStore::open(&dir.path().join("rate.db"))?);
    let epoch = store.acquire("rate", 0, u64::from(u32::MAX))?;
    let writer = Writer::start(store.clone(), epoch, WriterLimits::default())?;
    let (random, mut known, mut time) = (Random::seeded(1), Vec::new(), 0);
    let mut waiting = VecDeque::new();
    let start = mono_now();
    while start.elapsed() < RUN {
        time += 1;
        waiting.push_back(writer.submit(batch(&random, time, &mut known))?);
        if waiting.len() >= in_flight
            && let Some(oldest) = waiting.pop_front()
        {
            oldest.wait()?;
        }
    }
    for completion in waiting {
        completion.wait()?;
    }
    let (seconds, stats) = (start.elapsed().as_secs_f64(), writer.stats());
    drop(writer);
    let start = mono_now();
    let loaded = store.load(&mut |_, _, _| Ok(()))?;
    let load_rate = loaded.records as f64 / start.elapsed().as_secs_f64();
    Ok((stats.rows as f64 / seconds, stats.commits as f64 / seconds, load_rate))
}

fn main() -> Result<(), Box<dyn Error>> {
    let (alone, alone_commits, _) = run(1)?;
    let (piped, piped_commits, load) = run(IN_FLIGHT)?;
    writeln!(
        std::io::stdout(),
        "{{\"batch_rows\":{BATCH_ROWS},\"rows_per_s\":{alone:.0},\"commits_per_s\":{alone_commits:.0},\
         \"pipelined_rows_per_s\":{piped:.0},\"pipelined_commits_per_s\":{piped_commits:.0},\
         \"load_rows_per_s\":{load:.0}}}"
    )?;
    Ok(())
}
