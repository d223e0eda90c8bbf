//! The apply loop against a store that refuses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use model::{CellId, CellSpec, Name, ProjectId, Time};
use runtime::{Clock as _, ManualClock, SystemClock};
use server::{ApplyError, Loop};
use state::{CELL_LEASE, Cell, CellCommand, Command, Project};
use store::StoreError;
use store::memory::{Fault, MemoryStore};

/// What a cell says of itself.
const SPEC: &str =
    r#"{"name":"cell","zone":"a","drivers":[],"memory_mb":1,"disk_mb":1,"containers":1}"#;

fn create(id: u128, name: &str) -> Command {
    Command::CreateProject { id: ProjectId(id), name: name.parse().expect("a name") }
}

async fn names(apply: &Loop) -> Vec<Name> {
    let read = |state: &state::State| state.all::<Project>().map(|row| row.name.clone()).collect();
    apply.read(read).await.expect("a read")
}

fn start(store: &MemoryStore) -> Loop {
    Loop::start(Arc::new(store.clone()), Arc::new(SystemClock), "localhost").expect("a loop")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_commit_is_never_answered_as_done() {
    let store = MemoryStore::new();
    let apply = start(&store);
    apply.apply(create(1, "kept")).await.expect("a good store");
    let mut events = apply.subscribe();
    let mut once = Some(Fault::Refuse(StoreError::Injected("full".to_owned())));
    store.inject(Box::new(move |_| once.take()));
    let refused = apply.apply(create(2, "refused")).await.expect_err("the store refuses");
    assert!(matches!(&refused, ApplyError::Unavailable(why) if why.contains("full")), "{refused}");
    // Until the state is loaded again, everything is answered as unavailable; then it goes on.
    let again = async { while apply.apply(create(3, "later")).await.is_err() {} };
    assert!(runtime::timeout(Duration::from_secs(20), again).await.is_some());
    assert_eq!(names(&apply).await.iter().map(Name::as_str).collect::<Vec<_>>(), ["kept", "later"]);
    // Whoever waits looks at everything again: a commit that failed may have been kept.
    let look_again = async {
        loop {
            // The news of what was answered before may still come first.
            let event = events.recv().await.expect("an event");
            if event.rows.is_empty() && event.cells.is_empty() {
                break;
            }
        }
    };
    assert!(runtime::timeout(Duration::from_secs(20), look_again).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_kept_but_not_answered_is_there_afterwards() {
    let store = MemoryStore::new();
    let apply = start(&store);
    let mut once = Some(Fault::KeepButFail(StoreError::Injected("cut".to_owned())));
    store.inject(Box::new(move |_| once.take()));
    apply.apply(create(1, "maybe")).await.expect_err("the answer is lost");
    let again = async { while apply.apply(create(2, "later")).await.is_err() {} };
    assert!(runtime::timeout(Duration::from_secs(20), again).await.is_some());
    assert_eq!(names(&apply).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_there_after_a_restart() {
    let store = MemoryStore::new();
    let apply = start(&store);
    for id in 0..100 {
        apply.apply(create(id, &format!("project-{id}"))).await.expect("a good store");
    }
    drop(apply);
    assert_eq!(names(&start(&store)).await.len(), 100);
}

/// Whether the cell's lease runs, and until when.
async fn lease(apply: &Loop) -> Option<Time> {
    let read = |state: &state::State| state.get::<Cell>(CellId(1)).and_then(|it| it.lease_until);
    apply.read(read).await.expect("a read")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_refuses_is_not_tried_again_at_once() {
    let (store, clock) = (MemoryStore::new(), Arc::new(ManualClock::new(1_000_000)));
    let apply = Loop::start(Arc::new(store.clone()), Arc::clone(&clock) as _, "localhost");
    let apply = apply.expect("a loop");
    let tried = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tried);
    store.inject(Box::new(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Some(Fault::Refuse(StoreError::Injected("full".to_owned())))
    }));
    for number in 0..100 {
        let create = Command::CreateProject {
            id: ProjectId(number + 1),
            name: format!("shop-{number}").parse().expect("a name"),
        };
        let refused = apply.apply(create).await.expect_err("the store is full").to_string();
        assert!(refused.contains("full"), "{refused}");
        let read = apply.read(|state| state.all::<Cell>().count()).await;
        assert_eq!(read.expect("what is there can be read"), 0);
    }
    let tried = tried.load(Ordering::Relaxed);
    assert!((1..20).contains(&tried), "{tried} attempts of 100");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_does_not_end_while_no_heartbeat_could_be_kept() {
    let (store, clock) = (MemoryStore::new(), Arc::new(ManualClock::new(1_000_000)));
    let apply = Loop::start(Arc::new(store.clone()), Arc::clone(&clock) as _, "localhost");
    let apply = apply.expect("a loop");
    let spec: CellSpec = serde_json::from_str(SPEC).expect("a cell");
    let online = CellCommand::Online { id: CellId(1), spec, holds: Vec::new(), token: None };
    apply.apply(Command::Cell(online)).await.expect("a good store");
    let full = || Some(Fault::Refuse(StoreError::Injected("full".to_owned())));
    store.inject(Box::new(move |_| full()));
    let lease_ms = u64::try_from(CELL_LEASE.as_millis()).expect("a short lease");
    for _ in 0..3 {
        clock.advance(lease_ms);
        apply.apply(Command::Tick).await.expect_err("the end of a lease cannot be kept");
        let again = async { while apply.apply(Command::Tick).await.is_err() {} };
        assert!(runtime::timeout(Duration::from_secs(20), again).await.is_some());
        assert_eq!(lease(&apply).await, Some(Time(clock.now_ms() + lease_ms)), "it starts afresh");
        let beat = CellCommand::Heartbeat { id: CellId(1), epoch: 1 };
        apply.apply(Command::Cell(beat)).await.expect("a heartbeat needs no store");
    }
    store.inject(Box::new(|_| None));
    clock.advance(lease_ms);
    let again = async { while apply.apply(Command::Tick).await.is_err() {} };
    assert!(runtime::timeout(Duration::from_secs(20), again).await.is_some());
    assert_eq!(lease(&apply).await, None, "and then ends as ever");
}
