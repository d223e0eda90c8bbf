//! Random histories against a plain list.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where an expectation is not met"
)]

use std::path::Path;

use logbuf::{Limits, LogBuffer, Read, Reader, Start};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<Vec<u8>>),
    Flush,
    Restart,
    Open(Start),
    Read(usize, usize),
    Drop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let start = prop_oneof![
        Just(Start::Oldest),
        Just(Start::Now),
        (0_u64..60).prop_map(Start::Last),
        (0_u64..200).prop_map(Start::At),
    ];
    prop_oneof![
        4 => vec(vec(any::<u8>(), 0..12), 1..20).prop_map(Step::Append),
        1 => Just(Step::Flush),
        1 => Just(Step::Restart),
        2 => start.prop_map(Step::Open),
        6 => (0_usize..6, 1_usize..30).prop_map(|(reader, max)| Step::Read(reader, max)),
        1 => (0_usize..6).prop_map(Step::Drop),
    ]
}

/// A reader and where the model says it is.
struct Follower {
    reader: Reader,
    at: u64,
}

struct World<'a> {
    dir: Option<&'a Path>,
    limits: Limits,
    log: LogBuffer,
    written: Vec<Vec<u8>>,
    followers: Vec<Follower>,
}

impl World<'_> {
    fn open(dir: Option<&Path>, limits: Limits) -> LogBuffer {
        dir.map_or_else(
            || LogBuffer::in_memory(limits),
            |dir| LogBuffer::open(dir, limits).unwrap(),
        )
    }

    async fn run(&mut self, step: Step) {
        match step {
            Step::Append(lines) => {
                for line in lines {
                    let seq = self.log.append(self.written.len() as u64, 3, &line).unwrap();
                    assert_eq!(seq, self.written.len() as u64);
                    self.written.push(line);
                }
            }
            Step::Flush => self.log.flush().unwrap(),
            Step::Restart if self.dir.is_some() => {
                self.followers.clear();
                self.log.flush().unwrap();
                self.log = Self::open(self.dir, self.limits);
            }
            Step::Open(start) => self.follow(start),
            Step::Read(index, max) => self.read(index, max).await,
            Step::Drop(index) if index < self.followers.len() => {
                self.followers.remove(index);
            }
            Step::Restart | Step::Drop(_) => {}
        }
    }

    fn follow(&mut self, start: Start) {
        let range = self.log.range();
        let at = match start {
            Start::Oldest => range.start,
            Start::Now => range.end,
            Start::Last(count) => range.start.max(range.end - count.min(range.end)),
            Start::At(seq) => seq.min(range.end),
        };
        let reader = self.log.reader(start);
        assert_eq!(reader.position(), at);
        self.followers.push(Follower { reader, at });
    }

    async fn read(&mut self, index: usize, max: usize) {
        let Some(follower) = self.followers.get_mut(index) else { return };
        let range = self.log.range();
        match follower.reader.batch_now(max).await.unwrap() {
            None => assert_eq!(follower.at, range.end, "nothing new only at the end"),
            Some(Read::Skipped { from, count }) => {
                assert_eq!(from, follower.at);
                assert_eq!(from + count, range.start, "exactly what is gone");
                follower.at = range.start;
            }
            Some(Read::Batch(batch)) => {
                assert!(batch.len() <= max && !batch.is_empty());
                for entry in batch.iter() {
                    assert_eq!(
                        (entry.seq, entry.time_ms, entry.source),
                        (follower.at, follower.at, 3)
                    );
                    assert_eq!(entry.data, self.written[usize::try_from(entry.seq).unwrap()]);
                    follower.at += 1;
                }
            }
            Some(Read::Ended) => panic!("it never ends"),
        }
        assert_eq!(follower.reader.position(), follower.at);
    }
}

fn check(dir: Option<&Path>, limits: Limits, steps: Vec<Step>) {
    let log = World::open(dir, limits);
    let mut world = World { dir, limits, log, written: Vec::new(), followers: Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for step in steps {
            world.run(step).await;
        }
        let range = world.log.range();
        assert_eq!(range.end, world.written.len() as u64);
        world.followers.clear();
        world.follow(Start::Oldest);
        while world.followers[0].at < range.end {
            world.read(0, 50).await;
        }
    });
}

const LIMITS: Limits = Limits {
    memory_bytes: 600,
    memory_entries: 24,
    line_bytes: 100,
    flush_bytes: 150,
    file_bytes: 400,
    disk_bytes: 1_500,
    keep_ms: 1_000,
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_buffer_in_memory_is_a_list_with_its_front_cut_off(steps in vec(step(), 1..60)) {
        check(None, LIMITS, steps);
    }

    #[test]
    fn a_buffer_on_disk_is_a_list_with_its_front_cut_off(steps in vec(step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        check(Some(dir.path()), LIMITS, steps);
    }
}
