//! The last changes, in memory, for watchers.
//!
//! A watcher asks for what came after a revision. What is asked for is there, or the answer is that it
//! is not kept any more: nothing is left out in silence. Nobody waits for a watcher.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use model::Time;
use state::{AnyRow, News};
use store::Epoch;
use tokio::sync::watch;

use crate::changes::Told;

/// Changes that are kept.
pub const MAX_KEPT_EVENTS: usize = 16_384;
/// Most bytes of what is kept, as far as rows differ in size.
pub const MAX_KEPT_BYTES: usize = 64 << 20;
/// What a row counts beyond texts of users in it.
const ROW_BYTES: usize = 512;
/// How many changes there is room for while one server process lives.
const CHANGES: u32 = 36;

/// The first revision of a process: later than all of those before it, because each has taken the
/// store's lease anew.
pub(crate) fn first_revision(epoch: Epoch) -> u64 {
    epoch.0 << CHANGES
}

/// A change that is kept.
#[derive(Debug)]
pub struct Kept {
    /// What changed.
    pub news: News,
    /// When it was made.
    pub(crate) at: Time,
    /// What is told of it; made for the first watcher that wants it.
    pub(crate) told: OnceLock<Option<Told>>,
    bytes: usize,
}

/// What came after a revision.
#[derive(Debug)]
pub enum After {
    /// These, the first first; none when there is nothing new.
    Events(Vec<Arc<Kept>>),
    /// It is not kept any more. Whoever lists everything now and goes on after this one misses nothing.
    Resync(u64),
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Arc<Kept>>,
    bytes: usize,
    /// What came up to here is not kept.
    floor: u64,
    newest: u64,
    dropped: u64,
}

/// The last changes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Feed {
    ring: Arc<Mutex<Ring>>,
    newest: Arc<watch::Sender<u64>>,
}

/// Roughly how much memory a change holds that its table may not.
fn bytes(news: &News) -> usize {
    let texts = match &news.row {
        Some(AnyRow::Task(task)) => task.bytes(),
        Some(AnyRow::App(app)) => {
            app.config.values().flatten().map(|(name, value)| name.len() + value.len()).sum()
        }
        Some(AnyRow::Build(build)) => build.processes.len() * ROW_BYTES,
        Some(_) | None => 0,
    };
    ROW_BYTES + texts
}

impl Feed {
    pub(crate) fn new(first: u64) -> Self {
        let ring = Ring { floor: first, newest: first, ..Ring::default() };
        Self { ring: Arc::new(Mutex::new(ring)), newest: Arc::new(watch::Sender::new(first)) }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what became durable, made at that time.
    pub(crate) fn push(&self, at: Time, news: Vec<News>) {
        let Some(newest) = news.last().map(|last| last.revision) else { return };
        let mut ring = self.ring();
        for news in news {
            let bytes = bytes(&news);
            ring.bytes += bytes;
            ring.events.push_back(Arc::new(Kept { news, at, told: OnceLock::new(), bytes }));
        }
        while ring.events.len() > MAX_KEPT_EVENTS || ring.bytes > MAX_KEPT_BYTES {
            let Some(oldest) = ring.events.pop_front() else { break };
            ring.bytes -= oldest.bytes;
            ring.floor = oldest.news.revision;
            ring.dropped += 1;
        }
        ring.newest = newest;
        drop(ring);
        self.newest.send_replace(newest);
    }

    /// The state was loaded again: what watchers know may be wrong.
    pub(crate) fn reset(&self, first: u64) {
        let mut ring = self.ring();
        ring.dropped += ring.events.len() as u64;
        ring.events.clear();
        (ring.bytes, ring.floor, ring.newest) = (0, first, first);
        drop(ring);
        self.newest.send_replace(first);
    }

    /// At most `most` changes after a revision.
    pub fn after(&self, revision: u64, most: usize) -> After {
        let ring = self.ring();
        if revision < ring.floor || revision > ring.newest {
            return After::Resync(ring.newest);
        }
        let begin = ring.events.partition_point(|kept| kept.news.revision <= revision);
        After::Events(ring.events.range(begin..).take(most).cloned().collect())
    }

    /// The revision of the last change.
    pub fn newest(&self) -> u64 {
        self.ring().newest
    }

    /// The revision before the first change that is kept.
    pub fn oldest(&self) -> u64 {
        self.ring().floor
    }

    /// How many changes are not kept any more.
    pub fn dropped(&self) -> u64 {
        self.ring().dropped
    }

    /// Waits for a change after this revision.
    pub async fn news(&self, after: u64) {
        // It lives as long as this does.
        drop(self.newest.subscribe().wait_for(|newest| *newest > after).await);
    }
}

#[cfg(test)]
mod tests {
    use model::{CellId, JobId};
    use state::{RowKey, Scope};

    use super::*;

    fn news(revision: u64) -> News {
        let key = RowKey::Cell(CellId(revision.into()));
        News { revision, key, row: None, scope: Scope::default() }
    }

    fn revisions(after: After) -> Vec<u64> {
        match after {
            After::Events(events) => events.iter().map(|kept| kept.news.revision).collect(),
            After::Resync(revision) => vec![0, revision],
        }
    }

    #[test]
    fn what_is_asked_for_is_there_or_it_is_said_that_it_is_not() {
        let feed = Feed::new(100);
        assert!(revisions(feed.after(100, 10)).is_empty());
        assert_eq!(revisions(feed.after(99, 10)), [0, 100], "from before the start");
        assert_eq!(revisions(feed.after(101, 10)), [0, 100], "from somewhere else");
        feed.push(Time(1), vec![news(101), news(102), news(105)]);
        assert_eq!(revisions(feed.after(100, 10)), [101, 102, 105]);
        assert_eq!(revisions(feed.after(101, 1)), [102]);
        assert_eq!(revisions(feed.after(103, 1)), [105]);
        feed.reset(200);
        assert_eq!(revisions(feed.after(105, 1)), [0, 200]);
        assert!(revisions(feed.after(200, 1)).is_empty());
    }

    #[test]
    fn the_oldest_go_first_and_whoever_is_behind_is_told() {
        let feed = Feed::new(0);
        let all = MAX_KEPT_EVENTS as u64 + 10;
        feed.push(Time(1), (1..=all).map(news).collect());
        assert_eq!((feed.oldest(), feed.newest(), feed.dropped()), (10, all, 10));
        assert_eq!(revisions(feed.after(9, 5)), [0, all]);
        assert_eq!(revisions(feed.after(10, 2)), [11, 12]);
    }

    #[test]
    fn large_rows_take_more_room() {
        let feed = Feed::new(0);
        let large = |revision| {
            let mut row = task();
            let result = Some("x".repeat(model::MAX_TASK_RESULT));
            row.state = model::TaskState::Succeeded { result, artifact: None };
            News { row: Some(AnyRow::Task(Arc::new(row))), ..news(revision) }
        };
        feed.push(Time(1), (1..=100).map(large).collect());
        assert!(feed.dropped() >= 100 - 64, "{}", feed.dropped());
    }

    #[test]
    fn the_spec_of_a_task_takes_room() {
        let feed = Feed::new(0);
        let large = |revision| {
            let row = state::Task { spec_bytes: model::MAX_SPEC_BYTES, ..task() };
            News { row: Some(AnyRow::Task(Arc::new(row))), ..news(revision) }
        };
        feed.push(Time(1), (1..=100).map(large).collect());
        assert!(feed.dropped() >= 100 - 64, "{}", feed.dropped());
    }

    fn task() -> state::Task {
        let spec = model::TaskSpec::new(model::Action::run(["true"]), 1);
        let row = serde_json::json!({
            "id": model::TaskId(1), "job": None::<JobId>, "spec": spec, "state": "pending",
            "reason": null, "epoch": 0, "created_at": 0, "ended_at": null
        });
        serde_json::from_value(row).expect("a task")
    }
}
