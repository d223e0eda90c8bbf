//! Streams on disk: reading behind memory, restarts, torn ends, retention, many streams.
#![expect(clippy::unwrap_used, reason = "a test ends where an expectation is not met")]

use std::fs::{self, OpenOptions};
use std::ops::Range;
use std::path::{Path, PathBuf};

use logbuf::{Limits, LogBuffer, LogError, LogStore, Read, Reader, Start, StoreLimits};

/// Little memory, little files: 16 entries in memory, a few dozen in a file.
const LIMITS: Limits = Limits {
    memory_bytes: 64 << 10,
    memory_entries: 16,
    line_bytes: 1 << 10,
    flush_bytes: 300,
    file_bytes: 1_000,
    disk_bytes: 1 << 20,
    keep_ms: 1_000,
};

fn write(log: &LogBuffer, range: Range<u64>) {
    for n in range {
        log.append(n, 0, n.to_string().as_bytes()).unwrap();
    }
}

/// Everything up to the end as it is now: the numbers seen, and the gaps as (first, next).
async fn drain(reader: &mut Reader) -> (Vec<u64>, Vec<(u64, u64)>) {
    let (mut seen, mut gaps) = (Vec::new(), Vec::new());
    while let Some(read) = reader.batch_now(7).await.unwrap() {
        match read {
            Read::Batch(batch) => {
                for entry in batch.iter() {
                    assert_eq!(entry.data, entry.seq.to_string().as_bytes());
                    seen.push(entry.seq);
                }
            }
            Read::Skipped { from, count } => gaps.push((from, from + count)),
            Read::Ended => break,
        }
    }
    (seen, gaps)
}

fn numbers(range: Range<u64>) -> Vec<u64> {
    range.collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test]
async fn a_reader_behind_memory_reads_from_disk_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogBuffer::open(dir.path(), LIMITS).unwrap();
    let mut reader = log.reader(Start::Oldest);
    write(&log, 0..1_000);
    assert!(files(dir.path()).len() > 5);
    assert_eq!(drain(&mut reader).await, (numbers(0..1_000), vec![]));
    write(&log, 1_000..1_010);
    assert_eq!(drain(&mut reader).await, (numbers(1_000..1_010), vec![]));
    let mut middle = log.reader(Start::Last(500));
    assert_eq!(drain(&mut middle).await.0, numbers(510..1_010));
    // One that reads a little, again and again, while the writer runs ahead.
    let mut slow = log.reader(Start::At(3));
    let mut seen = Vec::new();
    for round in 0..200 {
        write(&log, 1_010 + round * 5..1_015 + round * 5);
        let Some(Read::Batch(batch)) = slow.batch_now(9).await.unwrap() else { panic!("no gap") };
        seen.extend(batch.iter().map(|entry| entry.seq));
    }
    seen.extend(drain(&mut slow).await.0);
    assert_eq!(seen, numbers(3..2_010));
}

#[tokio::test]
async fn a_restart_goes_on_with_the_next_number() {
    let dir = tempfile::tempdir().unwrap();
    let mut written = 0;
    for round in 0..5 {
        let log = LogBuffer::open(dir.path(), LIMITS).unwrap();
        assert_eq!(log.range(), 0..written);
        let mut reader = log.reader(Start::Last(40));
        let from = written.saturating_sub(40);
        assert_eq!(drain(&mut reader).await.0, numbers(from..written), "round {round}");
        write(&log, written..written + 33);
        written += 33;
        assert_eq!(drain(&mut reader).await.0, numbers(written - 33..written), "round {round}");
        log.flush().unwrap();
    }
    let log = LogBuffer::open(dir.path(), LIMITS).unwrap();
    log.end().unwrap();
    drop(log);
    let log = LogBuffer::open(dir.path(), LIMITS).unwrap();
    assert!(log.is_ended());
    assert_eq!(log.append(0, 0, b"late"), Err(LogError::Ended));
    let mut reader = log.reader(Start::Oldest);
    assert_eq!(drain(&mut reader).await.0, numbers(0..written));
    assert!(matches!(reader.next_batch(1).await, Ok(Read::Ended)));
}

#[tokio::test]
async fn a_torn_end_is_cut_off_wherever_it_tears() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogBuffer::open(dir.path(), LIMITS).unwrap();
    for n in 0..3 {
        write(&log, n * 4..n * 4 + 4);
        log.flush().unwrap();
    }
    drop(log);
    let path = files(dir.path()).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let frame = whole.len() / 3 - 8;
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        let log = LogBuffer::open(dir.path(), LIMITS).unwrap();
        let kept = log.range().end;
        assert!(kept.is_multiple_of(4) && kept >= (len / (frame + 16)) as u64 * 4, "{len}: {kept}");
        write(&log, kept..kept + 2);
        log.flush().unwrap();
        drop(log);
        let log = LogBuffer::open(dir.path(), LIMITS).unwrap();
        let read = drain(&mut log.reader(Start::Oldest)).await;
        assert_eq!(read, (numbers(0..kept + 2), vec![]), "cut at {len}");
    }
}

#[tokio::test]
async fn damage_in_the_middle_is_a_gap_with_exact_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let log = LogBuffer::open(dir.path(), LIMITS).unwrap();
    for n in 0..3 {
        write(&log, n * 4..n * 4 + 4);
        log.flush().unwrap();
    }
    drop(log);
    let path = files(dir.path()).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&path, bytes).unwrap();
    let log = LogBuffer::open(dir.path(), LIMITS).unwrap();
    let (seen, gaps) = drain(&mut log.reader(Start::Oldest)).await;
    assert_eq!(seen, [numbers(0..4), numbers(8..12)].concat());
    assert_eq!(gaps, [(4, 8)]);
}

#[tokio::test]
async fn old_bytes_and_old_files_go_and_readers_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { disk_bytes: 5_000, ..LIMITS };
    let log = LogBuffer::open(dir.path(), limits).unwrap();
    let mut slow = log.reader(Start::Oldest);
    write(&log, 0..2_000);
    let on_disk: u64 = files(dir.path()).iter().map(|file| file.metadata().unwrap().len()).sum();
    assert!(on_disk <= 5_000 && on_disk > 3_000, "{on_disk}");
    let kept = log.range();
    assert!(kept.start > 1_000);
    let read = drain(&mut slow).await;
    assert_eq!(read, (numbers(kept.clone()), vec![(0, kept.start)]));
    // The time of a line is its number here: at 2,900 lines before 1,900 are too old.
    log.sweep(2_900);
    let swept = log.range();
    assert!(swept.start > kept.start && swept.start <= 1_901, "{swept:?}");
    log.sweep(1_000_000);
    write(&log, 2_000..2_001);
    assert_eq!(log.range().end, 2_001);
    assert_eq!(drain(&mut slow).await.0, [2_000]);
}

#[tokio::test]
async fn a_disk_that_refuses_costs_nothing_while_memory_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stream");
    let log = LogBuffer::open(&path, LIMITS).unwrap();
    let mut reader = log.reader(Start::Oldest);
    fs::remove_dir(&path).unwrap();
    write(&log, 0..20);
    assert!(matches!(log.flush(), Err(LogError::Io { .. })));
    fs::create_dir(&path).unwrap();
    write(&log, 20..24);
    log.flush().unwrap();
    assert_eq!(drain(&mut reader).await, (numbers(0..24), vec![]));
    fs::remove_dir_all(&path).unwrap();
    drop(log);

    let log = LogBuffer::open(&path, LIMITS).unwrap();
    let mut reader = log.reader(Start::Oldest);
    fs::remove_dir(&path).unwrap();
    write(&log, 0..1_000);
    fs::create_dir(&path).unwrap();
    write(&log, 1_000..2_000);
    let (seen, gaps) = drain(&mut reader).await;
    assert_eq!(gaps.len(), 1, "what neither memory nor disk could hold: {gaps:?}");
    assert_eq!(seen, numbers(gaps[0].1..2_000));
}

#[tokio::test]
async fn a_store_continues_its_streams() {
    let dir = tempfile::tempdir().unwrap();
    let limits = StoreLimits { open_streams: 4, stream: LIMITS };
    let store = LogStore::open(dir.path(), limits).unwrap();
    for n in 0..20 {
        let log = store.stream(&format!("job-{n}")).unwrap();
        write(&log, 0..n + 1);
    }
    assert!(store.open_streams() <= 4);
    for n in 0..20 {
        let log = store.existing(&format!("job-{n}")).unwrap().unwrap();
        assert_eq!(drain(&mut log.reader(Start::Oldest)).await.0, numbers(0..n + 1));
    }
    drop(store);
    let store = LogStore::open(dir.path(), limits).unwrap();
    let log = store.stream("job-7").unwrap();
    assert_eq!(log.append(8, 0, b"8").unwrap(), 8);
    assert!(store.existing("job-99").unwrap().is_none());
    store.remove("job-7").unwrap();
    assert!(store.existing("job-7").unwrap().is_none());
    store.remove("job-7").unwrap();
}

#[test]
fn a_store_refuses_more_than_its_limit_only_while_all_are_in_use() {
    let store = LogStore::in_memory(StoreLimits { open_streams: 2, stream: LIMITS });
    let first = store.stream("a").unwrap();
    let _reader = store.stream("b").unwrap().reader(Start::Now);
    assert_eq!(store.stream("c").unwrap_err(), LogError::TooMany { limit: 2 });
    write(&first, 0..1);
    assert_eq!(store.stream("a").unwrap().range(), 0..1, "the same stream");
    drop(first);
    store.stream("c").unwrap();
}

#[test]
fn names_that_could_leave_the_directory_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(dir.path(), StoreLimits::default()).unwrap();
    let long = "x".repeat(129);
    for id in ["", ".", "..", ".hidden", "a/b", "../x", "a\0b", "a b", "\u{fc}", "-\n", &long] {
        let refused = LogError::BadId { id: id.chars().take(128).collect() };
        assert_eq!(store.stream(id).unwrap_err(), refused);
        assert_eq!(store.existing(id).unwrap_err(), refused);
        assert_eq!(store.remove(id).unwrap_err(), refused);
    }
    for id in ["a", "job-01J9.stdout", "A_b", &"x".repeat(128)] {
        store.stream(id).unwrap();
    }
}

#[tokio::test]
async fn sweeping_a_store_removes_streams_nobody_has() {
    let dir = tempfile::tempdir().unwrap();
    let store =
        LogStore::open(dir.path(), StoreLimits { open_streams: 9, stream: LIMITS }).unwrap();
    let kept = store.stream("kept").unwrap();
    write(&kept, 0..200);
    write(&store.stream("old").unwrap(), 0..200);
    store.flush().unwrap();
    store.sweep(500).unwrap();
    let far_future = 1 << 50;
    store.sweep(far_future).unwrap();
    assert!(store.existing("old").unwrap().is_none());
    assert_eq!(kept.range().end, 200);
    write(&kept, 200..201);
    let log = store.existing("kept").unwrap().unwrap();
    assert_eq!(drain(&mut log.reader(Start::Last(1))).await.0, [200]);
}

#[test]
fn foreign_files_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    fs::write(dir.path().join("x.log"), "mine").unwrap();
    let log = LogBuffer::open(dir.path(), LIMITS).unwrap();
    write(&log, 0..100);
    log.flush().unwrap();
    log.sweep(u64::MAX);
    assert_eq!(fs::read(dir.path().join("notes.txt")).unwrap(), b"mine");
    assert_eq!(fs::read(dir.path().join("x.log")).unwrap(), b"mine");
    let last =
        files(dir.path()).into_iter().rfind(|f| f.to_string_lossy().contains("0000")).unwrap();
    drop(log);
    // Garbage after the last entry, as some file systems leave after a power cut.
    std::io::Write::write_all(
        &mut OpenOptions::new().append(true).open(last).unwrap(),
        &[0; 4_096],
    )
    .unwrap();
    assert_eq!(LogBuffer::open(dir.path(), LIMITS).unwrap().range().end, 100);
}

#[test]
fn followers_leave_room_for_writers() {
    let store = LogStore::in_memory(StoreLimits { open_streams: 4, stream: LIMITS });
    let first = store.follow("a").unwrap();
    let _second = store.follow("b").unwrap();
    assert_eq!(store.follow("c").unwrap_err(), LogError::TooManyFollowed { limit: 2 });
    let same = store.follow("a").expect("a log that is followed anyway takes no more room");
    for id in ["c", "d", "e", "f", "a"] {
        store.stream(id).expect("a writer has room").append(1, 1, b"line").unwrap();
    }
    drop((first, same));
    store.follow("c").expect("there is room again");
}
