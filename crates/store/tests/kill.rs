//! What was acknowledged survives kill -9: a child commits and tells, the parent kills and looks.
#![expect(clippy::unwrap_used, reason = "a test ends where an expectation is not met")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use runtime::{Random, mono_now};
use store::sqlite::SqliteStore;
use store::{Batch, HistoryEntry, HistoryQuery, Kind, Record, Store as _, Writer, WriterLimits};

const N: Kind = Kind::new("n");
const LOG: Kind = Kind::new("log");
const CHILD_DIR: &str = "STORE_KILL_TEST_DIR";
const ROUNDS: u32 = 12;
/// Rows of one batch: they must be there together or not at all.
const ROWS: u128 = 8;
const IN_FLIGHT: usize = 8;

fn database(dir: &Path) -> PathBuf {
    dir.join("longshore.db")
}

fn batch(number: u128) -> Batch {
    let body = number.to_string().into_bytes();
    let row = |n| Record::put(N, number * ROWS + n, body.clone());
    let at_ms = u64::try_from(number).unwrap();
    let line = HistoryEntry { kind: LOG, key: String::new(), at_ms, body: body.clone() };
    Batch { records: (0..ROWS).map(row).collect(), histories: vec![line] }
}

/// The numbers of the batches that are there, each checked to be whole.
fn batches_in(store: &SqliteStore) -> Vec<u128> {
    let mut rows: BTreeMap<u128, u128> = BTreeMap::new();
    store
        .load(&mut |_, id, body| {
            assert_eq!(body, (id / ROWS).to_string().as_bytes());
            *rows.entry(id / ROWS).or_default() += 1;
            Ok(())
        })
        .unwrap();
    assert!(rows.values().all(|count| *count == ROWS), "a batch is torn");
    rows.into_keys().collect()
}

/// The test that is its own child when [`CHILD_DIR`] says so.
const CHILD: &str = "what_was_acknowledged_survives_kill_9";

/// What the child process does, for ever.
fn commit_and_tell(dir: &Path) {
    let store = Arc::new(SqliteStore::open(&database(dir)).unwrap());
    let epoch = store.acquire("child", 0, 1_000).unwrap();
    let mut next = batches_in(&store).last().map_or(0, |last| last + 1);
    let writer = Writer::start(store, epoch, WriterLimits::default()).unwrap();
    let mut waiting = VecDeque::new();
    let mut out = std::io::stdout();
    loop {
        waiting.push_back((next, writer.submit(batch(next)).unwrap()));
        next += 1;
        if waiting.len() >= IN_FLIGHT {
            let (number, completion) = waiting.pop_front().unwrap();
            completion.wait().unwrap();
            // The line break in front keeps the number clear of what the test harness prints.
            out.write_all(format!("\nack {number}\n").as_bytes()).unwrap();
            out.flush().unwrap();
        }
    }
}

/// This test program as the child that commits into `dir`.
fn child(dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", CHILD, "--nocapture"]).env(CHILD_DIR, dir);
    command
}

/// Lets a child commit until it is killed after `life`; returns what it said was durable.
fn acknowledged(dir: &Path, life: Duration) -> Vec<u128> {
    let mut child = child(dir).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut started = None;
    let mut acks = Vec::new();
    for line in lines {
        let Some(number) = line.unwrap().strip_prefix("ack ").map(str::to_owned) else { continue };
        acks.push(number.parse().unwrap());
        let since = *started.get_or_insert_with(mono_now);
        if since.elapsed() >= life {
            // Lines already in the pipe are still read: they were acknowledged too.
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    acks
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        return commit_and_tell(dir.as_ref());
    }
    let dir = tempfile::tempdir().unwrap();
    let random = Random::system();
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        let life = Duration::from_micros(random.next_u64() % 120_000);
        all.extend(acknowledged(dir.path(), life));
        let store = SqliteStore::open(&database(dir.path())).unwrap();
        let there = batches_in(&store);
        let missing: Vec<_> = all.iter().filter(|n| there.binary_search(n).is_err()).collect();
        assert!(missing.is_empty(), "round {round}: acknowledged but gone: {missing:?}");
        let lines = store.query_history(&HistoryQuery::newest(LOG, 1)).unwrap();
        assert_eq!(lines[0].seq, there.len() as u64, "one history line per batch");
    }
    assert!(all.len() >= ROUNDS as usize);
}

#[test]
fn a_second_process_is_refused_and_told_who_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let _mine = SqliteStore::open(&database(dir.path())).unwrap();
    let output = child(dir.path()).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("InUse"), "{said}");
    assert!(said.contains(&std::process::id().to_string()), "{said}");
}
