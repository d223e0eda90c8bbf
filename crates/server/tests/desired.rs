//! A cell is told all its work however large the specs of it are.

mod parts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::proto::cell_down::Message as Down;
use api::proto::cell_up::Message as Up;
use api::proto::components_client::ComponentsClient;
use api::proto::{CellDown, CellHello, CellUp, Desired, Report, Work, hello, json};
use model::{
    Action, CellId, MAX_TASK_RESULT, Name, ProjectId, Role, TaskId, TaskReport, TaskSpec, TaskState,
};
use runtime::{Stop, Tasks};
use server::{Server, Settings};
use state::{Command, MAX_TASK_BYTES_PER_PROJECT, State, Task, WorkCommand};
use store::memory::MemoryStore;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Streaming};

const LIMIT: Duration = Duration::from_mins(1);
const PROJECT: ProjectId = ProjectId(1);
/// Together some 21 MiB, more than one message may have.
const TASKS: u128 = 24;

async fn start(tasks: &Tasks, dir: &std::path::Path) -> (Server, String) {
    let parts = parts::parts(&Arc::new(MemoryStore::new()), tasks, Settings::default());
    let server = Server::start(parts, dir).await.expect("starts");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}", listener.local_addr().expect("has an address"));
    let serving = tonic::transport::Server::builder()
        .add_service(server.components())
        .serve_with_incoming(TcpListenerStream::new(listener));
    let stop = tasks.stop().clone();
    tasks.spawn_ok("components", async move {
        stop.or_stop(serving).await;
    });
    (server, url)
}

/// The stream of a cell that runs nothing it was not told of, and takes what a real one takes.
struct Cell {
    up: mpsc::Sender<CellUp>,
    down: Streaming<CellDown>,
}

impl Cell {
    async fn join(url: &str, token: &str, holds: Vec<Work>) -> Self {
        let mut client = ComponentsClient::connect(url.to_owned())
            .await
            .expect("connects")
            .max_decoding_message_size(api::MAX_MESSAGE);
        let spec = serde_json::json!({
            "name": "cell", "zone": "a", "drivers": ["process"], "memory_mb": 1 << 20,
            "disk_mb": 1 << 20, "containers": 1_000
        });
        let first = CellHello {
            hello: Some(hello(1, "cell")),
            spec_json: json(&spec).expect("renders"),
            holds,
        };
        let (up, queue) = mpsc::channel(8);
        up.send(CellUp { message: Some(Up::Hello(first)) }).await.expect("a queue");
        let mut request = Request::new(ReceiverStream::new(queue));
        let bearer = format!("Bearer {token}").parse().expect("is text");
        request.metadata_mut().insert("authorization", bearer);
        let mut down = client.cell(request).await.expect("is admitted").into_inner();
        let welcome = down.message().await.expect("a message").and_then(|it| it.message);
        assert!(matches!(welcome, Some(Down::Welcome(_))), "{welcome:?}");
        Self { up, down }
    }

    async fn desired(&mut self) -> Desired {
        loop {
            let next = runtime::timeout(LIMIT, self.down.message()).await.expect("in time");
            match next.expect("can be received").and_then(|it| it.message) {
                Some(Down::Desired(desired)) => return desired,
                Some(_) => {}
                None => unreachable!("the stream ended"),
            }
        }
    }

    async fn report(&self, work: Work, report: &TaskReport) {
        let report_json = json(report).expect("renders");
        let message = Some(Up::Report(Report { work: Some(work), report_json }));
        self.up.send(CellUp { message }).await.expect("a queue");
    }
}

type Specs = BTreeMap<Vec<u8>, TaskSpec>;

fn take(specs: &mut Specs, desired: Desired) -> BTreeSet<Vec<u8>> {
    let mut named = BTreeSet::new();
    for work in desired.work {
        let id = work.work.expect("names its work").id.to_vec();
        if let Some(spec) = work.spec_json {
            let project = work.labels.get("project").map(String::as_str);
            assert_eq!(project, Some("shop"), "whose it is");
            specs.insert(id.clone(), serde_json::from_slice(&spec).expect("is a spec"));
        }
        named.insert(id);
    }
    named
}

fn large(number: u128) -> TaskSpec {
    let action = |part| Action::run([format!("{number}-{part}"), "x".repeat(127 << 10)]);
    TaskSpec::new(Action::Serial { actions: (0..7).map(action).collect() }, 600_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_with_more_specs_than_a_message_holds_is_told_all_of_them_again_and_again() {
    let (dir, tasks) = (tempfile::tempdir().expect("a directory"), Tasks::new(Stop::new()));
    let (server, url) = start(&tasks, dir.path()).await;
    let name: Name = "shop".parse().expect("a name");
    server.apply(Command::CreateProject { id: PROJECT, name }).await.expect("made");
    let token = server.create_token(Role::Cell, None, String::new(), None).await.expect("made");
    let token = token.to_string();
    let mut cell = Cell::join(&url, &token, Vec::new()).await;
    assert!(cell.desired().await.full);
    for number in 1..=TASKS {
        let (id, spec) = (TaskId(number << 8), Arc::new(large(number)));
        let new = WorkCommand::NewTask { id, project: PROJECT, key: None, spec };
        server.apply(Command::Work(new)).await.expect("made");
    }
    // As they come.
    let mut specs = Specs::new();
    while specs.len() < TASKS as usize {
        let desired = cell.desired().await;
        assert!(!desired.full);
        take(&mut specs, desired);
    }
    let wanted: Specs =
        (1..=TASKS).map(|it| ((it << 8).to_be_bytes().to_vec(), large(it))).collect();
    assert!(specs == wanted);
    // All at once, to the same cell, which has forgotten everything.
    let bytes: usize = wanted.values().map(TaskSpec::bytes).sum();
    assert!(bytes > api::MAX_MESSAGE, "{bytes}");
    for _ in 0..2 {
        cell = Cell::join(&url, &token, offered(&server).await).await;
        let (mut specs, mut parts) = (Specs::new(), 0);
        let named = loop {
            let desired = cell.desired().await;
            parts += 1;
            let full = desired.full;
            let named = take(&mut specs, desired);
            if full {
                break named;
            }
        };
        assert!(specs == wanted, "{} of {}", specs.len(), wanted.len());
        assert!(named.iter().eq(wanted.keys()), "what is not named would end");
        assert!(parts >= bytes / api::MAX_DESIRED_PART, "{parts}");
    }
    drop(cell);
    tasks.stop().stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn results_that_do_not_fit_become_artifacts() {
    let (dir, tasks) = (tempfile::tempdir().expect("a directory"), Tasks::new(Stop::new()));
    let (server, url) = start(&tasks, dir.path()).await;
    let name: Name = "shop".parse().expect("a name");
    server.apply(Command::CreateProject { id: PROJECT, name }).await.expect("made");
    let token = server.create_token(Role::Cell, None, String::new(), None).await.expect("made");
    let mut cell = Cell::join(&url, &token.to_string(), Vec::new()).await;
    let fit = (MAX_TASK_BYTES_PER_PROJECT / MAX_TASK_RESULT) as u128;
    for number in 1..=fit + 2 {
        let spec = Arc::new(TaskSpec::new(Action::run(["true"]), 600_000));
        let id = TaskId(number << 8);
        let new = WorkCommand::NewTask { id, project: PROJECT, key: None, spec };
        server.apply(Command::Work(new)).await.expect("made");
    }
    let result = "x".repeat(MAX_TASK_RESULT);
    let mut told = 0;
    while told < fit + 2 {
        for work in cell.desired().await.work.into_iter().filter(|it| it.spec_json.is_some()) {
            let work = work.work.expect("names its work");
            cell.report(work.clone(), &TaskReport::Claim).await;
            let result = Some(result.clone());
            cell.report(work, &TaskReport::Succeeded { result, artifact: None }).await;
            told += 1;
        }
    }
    let ended = |state: &State| {
        let ended = state.all::<Task>().all(|task| task.state.is_terminal());
        ended.then(|| state.all::<Task>().map(|task| task.state.clone()).collect::<Vec<_>>())
    };
    let ended = runtime::timeout(LIMIT, server.wait_for(ended)).await.expect("in time");
    let mut counts = [0, 0];
    for state in ended.expect("a read") {
        match state {
            TaskState::Succeeded { result: Some(text), artifact: None } if text == result => {
                counts[0] += 1;
            }
            TaskState::Succeeded { result: None, artifact: Some(digest) } => {
                let size = server.blobs().len(digest.0).await.expect("is there");
                assert_eq!(size, Some(result.len() as u64));
                counts[1] += 1;
            }
            other => unreachable!("{other:?}"),
        }
    }
    assert_eq!(counts, [fit - 1, 3], "the specs take some of the room");
    tasks.stop().stop();
}

/// What the cell is to have.
async fn offered(server: &Server) -> Vec<Work> {
    let epochs = |state: &State| {
        let own = state.all::<Task>().filter(|task| task.state.cell() == Some(CellId(1)));
        own.map(|task| (task.id, task.epoch)).collect::<Vec<_>>()
    };
    let epochs = server.read(epochs).await.expect("a read");
    let work = |(id, epoch): (TaskId, u32)| Work {
        kind: api::proto::work::Kind::Task.into(),
        id: api::proto::id_bytes(id.0),
        epoch,
    };
    epochs.into_iter().map(work).collect()
}
