//! Several streams in order of time.
#![expect(clippy::unwrap_used, reason = "a test ends where an expectation is not met")]

use std::time::Duration;

use logbuf::{Item, Limits, LogBuffer, Merge, Start};

/// The times of each stream, and what the merge gives: stream and time.
type Row = (&'static [&'static [u64]], &'static [(usize, u64)]);

fn log(times: &[u64]) -> LogBuffer {
    let log = LogBuffer::in_memory(Limits::default());
    write(&log, times);
    log
}

fn write(log: &LogBuffer, times: &[u64]) {
    for time in times {
        log.append(*time, 0, b"x").unwrap();
    }
}

fn merge_of(logs: &[&LogBuffer]) -> Merge<usize> {
    let mut merge = Merge::new();
    for (key, log) in logs.iter().enumerate() {
        merge.add(key, log.reader(Start::Oldest));
    }
    merge
}

/// What is there now, as (stream, times) per group.
async fn groups(merge: &mut Merge<usize>, max: usize) -> Vec<(usize, Vec<u64>)> {
    let mut groups = Vec::new();
    while let Some(group) = merge.next_now(max).await.unwrap() {
        match group.item {
            Item::Entries(entries) => {
                let times = entries.iter().map(|entry| entry.get().time_ms).collect();
                groups.push((group.key, times));
            }
            Item::Skipped { .. } => groups.push((group.key, vec![])),
            Item::Ended => {}
        }
    }
    groups
}

async fn flat(merge: &mut Merge<usize>, max: usize) -> Vec<(usize, u64)> {
    let groups = groups(merge, max).await;
    groups.into_iter().flat_map(|(key, times)| times.into_iter().map(move |t| (key, t))).collect()
}

#[tokio::test]
async fn tables_of_streams_become_one() {
    let table: [Row; 6] = [
        (&[&[1, 2, 3]], &[(0, 1), (0, 2), (0, 3)]),
        (&[&[1, 3, 5], &[2, 4]], &[(0, 1), (1, 2), (0, 3), (1, 4), (0, 5)]),
        (&[&[1], &[2, 3, 4, 5]], &[(0, 1), (1, 2), (1, 3), (1, 4), (1, 5)]),
        (&[&[10, 11], &[1, 2], &[5]], &[(1, 1), (1, 2), (2, 5), (0, 10), (0, 11)]),
        (&[&[7], &[7], &[]], &[(0, 7), (1, 7)]),
        // A stream stays in its own order, whatever its clock did.
        (&[&[5, 1, 6], &[2, 9]], &[(1, 2), (0, 5), (0, 1), (0, 6), (1, 9)]),
    ];
    for (streams, want) in table {
        let logs: Vec<_> = streams.iter().map(|times| log(times)).collect();
        for max in [1, 2, 60] {
            let mut merge = merge_of(&logs.iter().collect::<Vec<_>>());
            assert_eq!(flat(&mut merge, max).await, want, "{streams:?}, {max} at once");
        }
    }
}

#[tokio::test]
async fn nothing_is_lost_across_calls_and_long_streams() {
    let even: Vec<u64> = (0..1_000).map(|n| n * 2).collect();
    let odd: Vec<u64> = (0..1_000).map(|n| n * 2 + 1).collect();
    let (one, two) = (log(&even), log(&odd));
    let mut merge = merge_of(&[&one, &two]);
    let mut seen = Vec::new();
    for _ in 0..300 {
        let group = merge.next_now(1).await.unwrap().unwrap();
        let Item::Entries(entries) = group.item else { panic!("entries are there") };
        seen.extend(entries.iter().map(|entry| entry.get().time_ms));
    }
    seen.extend(flat(&mut merge, 60).await.into_iter().map(|(_, time)| time));
    assert_eq!(seen, (0..2_000).collect::<Vec<u64>>());
    write(&one, &[5_000]);
    write(&two, &[4_000]);
    assert_eq!(flat(&mut merge, 60).await, [(1, 4_000), (0, 5_000)]);
}

#[tokio::test]
async fn consecutive_entries_of_one_stream_are_grouped() {
    let (one, two) = (log(&[1, 2, 3, 7, 8]), log(&[4, 5, 6]));
    let mut merge = merge_of(&[&one, &two]);
    assert_eq!(
        groups(&mut merge, 60).await,
        [(0, vec![1, 2, 3]), (1, vec![4, 5, 6]), (0, vec![7, 8])]
    );
    let mut merge = merge_of(&[&one, &two]);
    assert_eq!(groups(&mut merge, 2).await[..2], [(0, vec![1, 2]), (0, vec![3])]);
}

#[tokio::test]
async fn streams_come_and_go() {
    let (one, two) = (log(&[1, 2, 3]), log(&[10, 11]));
    let mut merge = merge_of(&[&one, &two]);
    assert_eq!(groups(&mut merge, 2).await[0], (0, vec![1, 2]));
    let mut merge = merge_of(&[&one, &two]);
    let Some(group) = merge.next_now(2).await.unwrap() else { panic!("entries are there") };
    assert_eq!(group.key, 0);
    assert_eq!(merge.remove(&0), Some(2), "what was read ahead is not counted as given");
    assert_eq!(merge.remove(&0), None);
    merge.add(0, one.reader(Start::At(2)));
    assert_eq!(flat(&mut merge, 60).await, [(0, 3), (1, 10), (1, 11)]);
    one.end().unwrap();
    two.end().unwrap();
    let mut ended = Vec::new();
    while let Some(group) = merge.next(60).await.unwrap() {
        assert!(matches!(group.item, Item::Ended));
        ended.push(group.key);
    }
    ended.sort_unstable();
    assert_eq!(ended, [0, 1]);
    assert!(merge.is_empty());
}

#[tokio::test]
async fn gaps_are_told_before_what_follows_them() {
    let small = LogBuffer::in_memory(Limits { memory_entries: 8, ..Limits::default() });
    let mut merge = Merge::new();
    merge.add(0, small.reader(Start::Oldest));
    write(&small, &(0..100).collect::<Vec<_>>());
    let kept = small.range().start;
    let group = merge.next(60).await.unwrap().unwrap();
    assert!(matches!(group.item, Item::Skipped { from: 0, count } if count == kept));
    let rest: Vec<_> = (kept..100).map(|time| (0, time)).collect();
    assert_eq!(flat(&mut merge, 60).await, rest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_merge_is_woken_by_any_stream() {
    let logs = [log(&[]), log(&[]), log(&[])];
    let mut merge = merge_of(&logs.iter().collect::<Vec<_>>());
    let writer = {
        let logs = logs.clone();
        runtime::spawn_thread("writer", move || {
            for n in 0..3_000 {
                let log = &logs[usize::try_from(n % 3).unwrap()];
                log.append(n, 0, b"x").unwrap();
                if n % 100 == 0 {
                    std::thread::yield_now();
                }
            }
            for log in logs {
                log.end().unwrap();
            }
        })
        .unwrap()
    };
    let mut next = [0_u64, 1, 2];
    let all = async {
        while let Some(group) = merge.next(60).await.unwrap() {
            let Item::Entries(entries) = group.item else { continue };
            for entry in entries {
                assert_eq!(entry.get().time_ms, next[group.key]);
                next[group.key] += 3;
            }
        }
    };
    runtime::timeout(Duration::from_secs(30), all).await.unwrap();
    assert_eq!(next, [3_000, 3_001, 3_002]);
    writer.join().unwrap();
}
