//! Who waits for a change of one row.

mod parts;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use model::{Action, Name, ProjectId, TaskId, TaskSpec, TokenId};
use runtime::{Stop, Tasks};
use server::{ApplyError, MAX_WAITING_CALLS, Server, Settings};
use state::{Command, RowKey, State, Task, WorkCommand};
use store::memory::MemoryStore;

const LIMIT: Duration = Duration::from_secs(20);

async fn start(tasks: &Tasks, dir: &std::path::Path) -> Server {
    let parts = parts::parts(&Arc::new(MemoryStore::new()), tasks, Settings::default());
    let server = Server::start(parts, dir).await.expect("starts");
    let name: Name = "shop".parse().expect("a name");
    server.apply(Command::CreateProject { id: ProjectId(1), name }).await.expect("made");
    server
}

async fn make(server: &Server, id: TaskId) {
    let spec = Arc::new(TaskSpec::new(Action::run(["true"]), 1_000));
    let new = WorkCommand::NewTask { id, project: ProjectId(1), key: None, spec };
    server.apply(Command::Work(new)).await.expect("made");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_a_row_looks_again_when_that_changes_and_not_before() {
    let (dir, tasks) = (tempfile::tempdir().expect("a directory"), Tasks::new(Stop::new()));
    let server = start(&tasks, dir.path()).await;
    let id = TaskId(1 << 8);
    make(&server, id).await;
    let looks = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&looks);
    let (other, over) = (server.clone(), tokio::sync::oneshot::channel());
    tasks.spawn_ok("waiter", async move {
        let is_over = move |state: &State| {
            seen.fetch_add(1, Ordering::SeqCst);
            state.get::<Task>(id).is_none_or(|task| task.state.is_terminal()).then_some(())
        };
        let found = other.wait_for_row(RowKey::Task(id), is_over).await;
        drop(over.0.send(found));
    });
    let looked = async {
        while looks.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    runtime::timeout(LIMIT, looked).await.expect("it looks at once");
    for number in 2..50 {
        make(&server, TaskId(number << 8)).await;
    }
    server.apply(Command::Work(WorkCommand::CancelTask(id))).await.expect("it waits");
    let found = runtime::timeout(LIMIT, over.1).await.expect("it is woken").expect("an answer");
    assert!(found.is_ok(), "{found:?}");
    assert_eq!(looks.load(Ordering::SeqCst), 2, "once at first, once when it changed");
    // Nobody waits for a server that ends.
    let never = server.wait_for_row(RowKey::Task(id), |_| None::<()>);
    let (ended, ()) = tokio::join!(runtime::timeout(LIMIT, never), async { tasks.stop().stop() });
    assert!(matches!(ended, Some(Err(ApplyError::Unavailable(_)))), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_has_so_many_calls_that_wait() {
    let (dir, tasks) = (tempfile::tempdir().expect("a directory"), Tasks::new(Stop::new()));
    let server = start(&tasks, dir.path()).await;
    let (one, other) = (TokenId(1), TokenId(2));
    let waiting: Vec<_> = (0..MAX_WAITING_CALLS).map(|_| server.waiting(one)).collect();
    assert!(waiting.iter().all(Option::is_some));
    assert!(server.waiting(one).is_none());
    assert!(server.waiting(other).is_some());
    drop(waiting);
    assert!(server.waiting(one).is_some());
    tasks.stop().stop();
}
