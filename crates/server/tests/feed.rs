//! Changes are numbered, kept for a while, and never left out in silence; also over restarts.

mod parts;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::{Name, ProjectId};
use runtime::{Stop, Tasks};
use server::{After, Server, Settings};
use state::{Command, Project};
use store::StoreError;
use store::memory::{Fault, MemoryStore};

async fn start(store: &Arc<MemoryStore>, dir: &Path) -> Server {
    let parts = parts::parts(store, &Tasks::new(Stop::new()), Settings::default());
    Server::start(parts, dir).await.expect("starts")
}

async fn project(server: &Server, number: u128) -> Result<(), server::ApplyError> {
    let name: Name = format!("p{number}").parse().expect("a name");
    server.apply(Command::CreateProject { id: ProjectId(number), name }).await.map(drop)
}

async fn told(server: &Server, after: u64) -> Vec<(u64, String)> {
    let After::Events(kept) = server.feed().after(after, 1_000) else {
        unreachable!("it is kept");
    };
    let told = server.tell(kept).await.expect("the server answers");
    let one = |kept: &Arc<server::Kept>| {
        Some((kept.news.revision, format!("{} {}", kept.told()?.kind, kept.told()?.json)))
    };
    told.iter().filter_map(one).collect()
}

#[tokio::test]
async fn a_list_and_what_came_after_it_leave_no_gap() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let server = start(&Arc::new(MemoryStore::new()), dir.path()).await;
    project(&server, 1).await.expect("made");
    let (revision, listed) =
        server.read_at(|state| state.all::<Project>().count()).await.expect("reads");
    assert_eq!(listed, 1);
    project(&server, 2).await.expect("made");
    server.apply(Command::DeleteProject(ProjectId(1))).await.expect("removed");
    let told = told(&server, revision).await;
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].1.contains(r#""op":"put""#) && told[0].1.contains("p2"), "{told:?}");
    assert!(told[1].1.contains(r#""op":"delete""#), "{told:?}");
    assert!(told[0].0 < told[1].0);
}

#[tokio::test]
async fn revisions_grow_over_restarts_and_who_is_behind_is_told() {
    let (store, dir) = (Arc::new(MemoryStore::new()), tempfile::tempdir().expect("a directory"));
    let server = start(&store, dir.path()).await;
    project(&server, 1).await.expect("made");
    let before = server.feed().newest();
    drop(server);
    let other = tempfile::tempdir().expect("makes a directory");
    let server = start(&store, other.path()).await;
    assert!(server.feed().newest() > before);
    assert!(matches!(server.feed().after(before, 1), After::Resync(now) if now > before));
}

#[tokio::test]
async fn what_a_failed_commit_would_have_changed_is_never_told() {
    let (store, dir) = (Arc::new(MemoryStore::new()), tempfile::tempdir().expect("a directory"));
    let server = start(&store, dir.path()).await;
    project(&server, 1).await.expect("made");
    let before = server.feed().newest();
    let mut fault = Some(Fault::Refuse(StoreError::Injected("no space".to_owned())));
    store.inject(Box::new(move |_| fault.take()));
    project(&server, 2).await.expect_err("refused");
    // Nothing else is tried for a moment.
    let again = async { while project(&server, 3).await.is_err() {} };
    assert!(runtime::timeout(Duration::from_secs(20), again).await.is_some());
    let After::Resync(now) = server.feed().after(before, 10) else {
        unreachable!("what was known may be wrong");
    };
    assert!(now > before);
    let (revision, there) =
        server.read_at(|state| state.all::<Project>().count()).await.expect("reads");
    assert_eq!(there, 2);
    project(&server, 4).await.expect("made");
    assert_eq!(told(&server, revision).await.len(), 1);
}
