//! Writing and reading one stream in memory.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where an expectation is not met"
)]

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use logbuf::{Limits, LogBuffer, LogError, Read, Reader, Start};

/// Pieces of `size` entries, `pieces` of them kept.
fn small(pieces: usize, size: usize) -> LogBuffer {
    // A piece is an eighth of the limit, so that many entries make eight.
    assert_eq!(pieces * size % 8, 0);
    LogBuffer::in_memory(Limits { memory_entries: pieces * size, ..Limits::default() })
}

fn write(log: &LogBuffer, numbers: std::ops::Range<u64>) {
    for n in numbers {
        log.append(n, 1, n.to_string().as_bytes()).unwrap();
    }
}

fn texts(read: &Read) -> Vec<String> {
    match read {
        Read::Batch(batch) => {
            batch.iter().map(|entry| String::from_utf8(entry.data.to_vec()).unwrap()).collect()
        }
        other => panic!("no entries: {other:?}"),
    }
}

async fn now(reader: &mut Reader, max: usize) -> Vec<String> {
    reader.batch_now(max).await.unwrap().as_ref().map(texts).unwrap_or_default()
}

fn numbers(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn poll<F: Future>(future: Pin<&mut F>, count: &Arc<Count>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(&Waker::from(Arc::clone(count))))
}

#[tokio::test]
async fn what_is_written_is_read_and_what_comes_is_waited_for() {
    let log = LogBuffer::in_memory(Limits::default());
    write(&log, 0..3);
    let mut reader = log.reader(Start::Oldest);
    assert_eq!(now(&mut reader, 10).await, numbers(0..3));
    assert_eq!(now(&mut reader, 10).await, numbers(0..0));
    let count = Arc::new(Count::default());
    {
        let mut waiting = pin!(reader.next_batch(10));
        assert!(poll(waiting.as_mut(), &count).is_pending());
        write(&log, 3..5);
        assert_eq!(count.0.load(Ordering::SeqCst), 1, "woken once, by the first line");
        let Poll::Ready(read) = poll(waiting.as_mut(), &count) else { panic!("lines are there") };
        assert_eq!(texts(&read.unwrap()), numbers(3..5));
    }
    write(&log, 5..9);
    assert_eq!(now(&mut reader, 10).await, numbers(5..9));
    let entry = log.reader(Start::At(4)).batch_now(1).await.unwrap().unwrap();
    let Read::Batch(batch) = entry else { panic!("it is kept") };
    let entry = batch.iter().next().unwrap();
    assert_eq!((entry.seq, entry.time_ms, entry.source, entry.data), (4, 4, 1, &b"4"[..]));
    assert_eq!((batch.first(), batch.end(), batch.len()), (4, 5, 1));
}

#[tokio::test]
async fn the_end_wakes_readers_after_what_is_left() {
    let log = LogBuffer::in_memory(Limits::default());
    let (mut waiting, mut behind) = (log.reader(Start::Now), log.reader(Start::Oldest));
    let count = Arc::new(Count::default());
    {
        let mut next = pin!(waiting.next_batch(10));
        assert!(poll(next.as_mut(), &count).is_pending());
        log.end().unwrap();
        assert!(matches!(poll(next.as_mut(), &count), Poll::Ready(Ok(Read::Ended))));
    }
    assert!(matches!(behind.next_batch(10).await, Ok(Read::Ended)));
    assert!(matches!(behind.next_batch(10).await, Ok(Read::Ended)), "and again");
    assert_eq!(log.append(0, 0, b"late"), Err(LogError::Ended));
    log.end().unwrap();

    let log = LogBuffer::in_memory(Limits::default());
    write(&log, 0..2);
    log.end().unwrap();
    let mut reader = log.reader(Start::Oldest);
    assert_eq!(now(&mut reader, 10).await, numbers(0..2));
    assert!(matches!(reader.next_batch(10).await, Ok(Read::Ended)));
}

#[tokio::test]
async fn a_dropped_wait_loses_nothing_and_leaves_nobody_to_wake() {
    let log = LogBuffer::in_memory(Limits::default());
    let mut reader = log.reader(Start::Now);
    let count = Arc::new(Count::default());
    for _ in 0..3 {
        assert!(poll(pin!(reader.next_batch(10)), &count).is_pending());
    }
    write(&log, 0..1);
    assert_eq!(count.0.load(Ordering::SeqCst), 1, "one reader, one waker");
    assert_eq!(now(&mut reader, 10).await, numbers(0..1));
    assert!(poll(pin!(reader.next_batch(10)), &count).is_pending());
    drop(reader);
    write(&log, 1..2);
    assert_eq!(count.0.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_part_can_be_read() {
    let log = LogBuffer::in_memory(Limits::default());
    write(&log, 0..5);
    let mut reader = log.reader(Start::Oldest);
    assert_eq!(now(&mut reader, 2).await, numbers(0..2));
    assert_eq!(now(&mut reader, 0).await, numbers(2..3), "at least one");
    assert_eq!(now(&mut reader, 10).await, numbers(3..5));
}

#[tokio::test]
async fn a_full_buffer_goes_on_and_says_what_is_gone() {
    let log = small(4, 2);
    let mut early = log.reader(Start::Oldest);
    write(&log, 0..2);
    assert_eq!(now(&mut early, 10).await, numbers(0..2));
    write(&log, 2..53);
    let kept = log.range();
    assert_eq!(kept.end, 53);
    assert!((7..=8).contains(&(kept.end - kept.start)), "{kept:?}");
    let Some(Read::Skipped { from, count }) = early.batch_now(10).await.unwrap() else {
        panic!("what is gone is told")
    };
    assert_eq!((from, from + count), (2, kept.start));
    assert_eq!(now(&mut early, 100).await, numbers(kept));
    assert_eq!(now(&mut early, 100).await, numbers(0..0));
}

#[tokio::test]
async fn readers_begin_where_they_are_told() {
    for (written, start, want) in [
        (5, Start::Now, 5..7),
        (5, Start::Last(2), 3..7),
        (5, Start::Last(0), 5..7),
        (5, Start::Last(99), 0..7),
        (0, Start::Last(5), 0..2),
        (5, Start::Oldest, 0..7),
        (5, Start::At(4), 4..7),
        (5, Start::At(5), 5..7),
        // Numbers that were never given out, as after a crash.
        (5, Start::At(1_000), 5..7),
    ] {
        let log = small(8, 64);
        write(&log, 0..written);
        let mut reader = log.reader(start);
        assert_eq!(reader.position(), want.start, "{start:?} of {written}");
        write(&log, written..written + 2);
        assert_eq!(now(&mut reader, 10).await, numbers(want), "{start:?} of {written}");
    }
}

#[tokio::test]
async fn history_spans_pieces_and_is_exact() {
    let log = small(8, 4);
    write(&log, 0..100);
    for wanted in 1..=28 {
        let mut reader = log.reader(Start::Last(wanted));
        assert_eq!(now(&mut reader, 100).await, numbers(100 - wanted..100), "last {wanted}");
    }
    let mut gone = log.reader(Start::At(3));
    let kept = log.range().start;
    let read = gone.next_batch(10).await.unwrap();
    assert!(matches!(read, Read::Skipped { from: 3, count } if count == kept - 3), "{read:?}");
}

#[test]
fn batches_stay_while_the_buffer_goes_on() {
    let log = small(1, 8);
    write(&log, 0..4);
    let mut reader = log.reader(Start::Oldest);
    let count = Arc::new(Count::default());
    let Poll::Ready(Ok(read)) = poll(pin!(reader.next_batch(10)), &count) else {
        panic!("lines are there")
    };
    write(&log, 4..1_000);
    assert_eq!(texts(&read), numbers(0..4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_and_writers_miss_nothing() {
    const WRITERS: u8 = 4;
    const LINES: u64 = 5_000;
    let log = LogBuffer::in_memory(Limits {
        memory_entries: usize::MAX,
        memory_bytes: usize::MAX,
        ..Limits::default()
    });
    let tasks = runtime::Tasks::new(runtime::Stop::new());
    let (done, mut finished) = tokio::sync::mpsc::channel(8);
    for _ in 0..8 {
        let (mut reader, done) = (log.reader(Start::Now), done.clone());
        tasks.spawn_ok("reader", async move {
            let mut last = [None; WRITERS as usize];
            while let Read::Batch(batch) = reader.next_batch(100).await.unwrap() {
                for entry in batch.iter() {
                    let n = entry.time_ms;
                    let before = last[usize::from(entry.source)].replace(n);
                    assert_eq!(n, before.map_or(0, |before: u64| before + 1), "in order");
                }
                // Lets the writer come to an empty buffer now and then.
                tokio::task::yield_now().await;
            }
            done.send(last).await.unwrap();
        });
    }
    let writers: Vec<_> = (0..WRITERS)
        .map(|source| {
            let log = log.clone();
            runtime::spawn_thread("writer", move || {
                for n in 0..LINES {
                    log.append(n, source, b"line").unwrap();
                }
            })
            .unwrap()
        })
        .collect();
    for writer in writers {
        tasks.blocking(move || writer.join().unwrap()).await;
    }
    log.end().unwrap();
    for _ in 0..8 {
        let last = runtime::timeout(Duration::from_secs(30), finished.recv()).await.unwrap();
        assert_eq!(last, Some([Some(LINES - 1); WRITERS as usize]));
    }
}
