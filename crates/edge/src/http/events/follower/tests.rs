//! What is in the log of an app.

use std::sync::Arc;

use axum::response::{IntoResponse as _, Sse};
use model::{
    BuildId, Digest, JobId, LogSource, Operation, Outcome, ProcessSpec, ProjectId, RunnerId, Target,
};
use runtime::{Ids, Random, Stop, SystemClock, Tasks};
use server::{Parts, Settings};
use state::{Attempt, Command, JobCommand, JobSpec, NewJob, ProcessTemplate, WorkCommand};
use store::blobs::BlobLimits;
use store::memory::MemoryStore;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;

const APP: AppId = AppId(2);
const LIMIT: Duration = Duration::from_secs(30);

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

async fn start(dir: &std::path::Path) -> Server {
    let parts = Parts {
        store: Arc::new(MemoryStore::new()),
        clock: Arc::new(SystemClock),
        ids: Ids::new(Random::seeded(1)),
        tasks: Tasks::new(Stop::new()),
        domain: "localhost".to_owned(),
        authority: None,
        blobs: BlobLimits::default(),
        settings: Settings::default(),
    };
    let server = Server::start(parts, dir).await.expect("starts");
    let id = RunnerId(3);
    let labels = BTreeMap::new();
    let online = JobCommand::RunnerOnline {
        id,
        name: name("runner"),
        labels,
        only_own: false,
        holds: Vec::new(),
        token: None,
    };
    for command in [
        Command::CreateProject { id: ProjectId(1), name: name("shop") },
        Command::EnsureApp { id: APP, project: ProjectId(1), name: name("web") },
        Command::Job(online),
    ] {
        server.apply(command).await.expect("is allowed");
    }
    server
}

/// A deployment of so many instances of a process, whose job fails: the next one takes its place.
async fn deploy(server: &Server, number: u128, (process, instances): (&str, u32)) -> DeploymentId {
    let spec = JobSpec {
        project: ProjectId(1),
        app: Some(APP),
        workspace: name("production"),
        operation: Operation::Up { source: Digest([1; 32]) },
        target: Target::Any,
        depends_on: Vec::new(),
        allow_failure: Vec::new(),
        singleton: None,
        idempotency_key: None,
        origin: String::new(),
    };
    let attempt = Attempt { job: JobId(number), epoch: 1 };
    let (id, build) = (DeploymentId(number), BuildId(number));
    let job = NewJob { id: attempt.job, spec: Arc::new(spec), expires_in: None };
    let spec = ProcessSpec::new(["serve"]);
    let processes = vec![ProcessTemplate { name: name(process), spec, instances }];
    let (source, image) = (Digest([1; 32]), Digest([2; 32]));
    let outcome = Outcome::Failed { reason: "no".to_owned() };
    for command in [
        Command::Job(JobCommand::Queue(job)),
        Command::Job(JobCommand::Assign(RunnerId(3))),
        Command::Job(JobCommand::Ack(attempt)),
        Command::Work(WorkCommand::RecordBuild { id: build, attempt, source, image, processes }),
        Command::Work(WorkCommand::Deploy { id, attempt, build: None }),
        Command::Job(JobCommand::Complete(attempt, outcome)),
    ] {
        server.apply(command).await.expect("is allowed");
    }
    id
}

/// Adds a line of an instance of a deployment.
async fn say(server: &Server, id: DeploymentId, index: u32, (at, text): (u64, &str)) {
    let look = move |state: &Control| {
        let row = state.get::<Deployment>(id)?;
        Some(state::instance_id(*row.processes.first()?, index))
    };
    let id = server.read(look).await.expect("reads").expect("is there");
    let log = server.logs().stream(&id.to_string()).expect("opens");
    log.append(at, LogSource::Stdout.code(), text.as_bytes()).expect("appends");
}

fn chosen(process: Option<&str>, index: Option<u32>) -> Chosen {
    let only = Only { process: process.map(str::to_owned), index };
    Chosen { app: APP, workspace: name("production"), deployment: None, only }
}

fn query(follow: bool, tail: Option<u64>, since: Option<u64>) -> LogQuery {
    LogQuery { follow: Some(follow), tail, since, workspace: None }
}

/// The lines somebody is shown, and the last event's id.
async fn shown(follower: AppFollower) -> (Vec<String>, String) {
    let (out, events) = mpsc::channel(1_000);
    follower.run(Sink(out)).await.expect("is followed");
    let body = Sse::new(ReceiverStream::new(events)).into_response().into_body();
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("ends");
    let body = String::from_utf8(body.to_vec()).expect("is text");
    let part = |key| body.lines().filter_map(move |line| line.strip_prefix(key));
    let texts = part("data: ").filter_map(|data| {
        let line: serde_json::Value = serde_json::from_str(data).ok()?;
        Some(line.get("text")?.as_str()?.to_owned())
    });
    (texts.collect(), part("id: ").next_back().unwrap_or_default().to_owned())
}

async fn lines(server: &Server, chosen: Chosen, query: LogQuery) -> Vec<String> {
    shown(AppFollower::new(server, chosen, query, BTreeMap::new())).await.0
}

#[tokio::test]
async fn what_earlier_deployments_said_is_in_the_log_of_the_app() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let server = start(dir.path()).await;
    let old = deploy(&server, 11, ("web", 2)).await;
    say(&server, old, 0, (10, "I serve")).await;
    say(&server, old, 1, (11, "so do I")).await;
    let new = deploy(&server, 12, ("web", 1)).await;
    say(&server, new, 0, (20, "I am new")).await;
    say(&server, old, 0, (30, "bye")).await;
    let table: [(_, _, _, &[&str]); 6] = [
        (None, None, None, &["I serve", "so do I", "I am new", "bye"]),
        (None, Some(2), None, &["I am new", "bye"]),
        (None, Some(1_000), None, &["I serve", "so do I", "I am new", "bye"]),
        (None, None, Some(20), &["I am new", "bye"]),
        (None, Some(1), Some(20), &["bye"]),
        // The new deployment has no such instance; what the old one's said is still there.
        (Some(1), None, None, &["so do I"]),
    ];
    for (index, tail, since, wanted) in table {
        let all = chosen(Some("web"), index);
        all.check(&server).await.expect("is known");
        assert_eq!(lines(&server, all, query(false, tail, since)).await, wanted, "{tail:?}");
    }
    let only = Chosen { deployment: Some(old), ..chosen(None, None) };
    assert_eq!(lines(&server, only, query(false, Some(1), None)).await, ["bye"]);
    // Who comes back is not shown again what was left out.
    let again = query(false, Some(2), None);
    let first = AppFollower::new(&server, chosen(None, None), again.clone(), BTreeMap::new());
    let at = positions(&shown(first).await.1);
    say(&server, new, 0, (40, "more")).await;
    let resumed = AppFollower::new(&server, chosen(None, None), again, at);
    assert_eq!(shown(resumed).await.0, ["more"]);
}

#[tokio::test]
async fn only_so_many_past_deployments_are_in_it() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let server = start(dir.path()).await;
    let mut said = Vec::new();
    for number in 0..14_u64 {
        let id = deploy(&server, u128::from(number) + 100, ("web", 1)).await;
        // The last but one said nothing, and does not count.
        if number != 12 {
            say(&server, id, 0, (number, &number.to_string())).await;
            said.push(number.to_string());
        }
    }
    let wanted = &said[said.len() - MAX_PAST - 1..];
    assert_eq!(lines(&server, chosen(None, None), query(false, None, None)).await, wanted);
}

#[tokio::test]
async fn following_goes_on_with_new_deployments() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let server = start(dir.path()).await;
    let old = deploy(&server, 11, ("web", 1)).await;
    say(&server, old, 0, (10, "one")).await;
    let (out, mut events) = mpsc::channel(16);
    let all = query(true, None, None);
    let follower = AppFollower::new(&server, chosen(None, None), all, BTreeMap::new());
    server.tasks().spawn_ok("follower", async move {
        drop(follower.run(Sink(out)).await);
    });
    for (number, text) in [(0, "one"), (12, "two")] {
        if number > 0 {
            let new = deploy(&server, number, ("web", 1)).await;
            say(&server, new, 0, (20, text)).await;
        }
        let event = runtime::timeout(LIMIT, events.recv()).await.expect("in time");
        let event = format!("{:?}", event.expect("goes on").expect("is an event"));
        assert!(event.contains(text), "{event}");
    }
    server.tasks().stop().stop();
}

#[tokio::test]
async fn names_that_nothing_has_are_refused_with_those_there_are() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let server = start(dir.path()).await;
    chosen(Some("nope"), None).check(&server).await.expect("it was never deployed");
    deploy(&server, 11, ("clock", 0)).await;
    chosen(Some("clock"), None).check(&server).await.expect("it may be scaled");
    let none = chosen(Some("clock"), Some(0)).check(&server).await.expect_err("none runs");
    assert_eq!(none.words().1, "there are clock (scaled to 0)");
    deploy(&server, 12, ("web", 3)).await;
    let table = [
        (Some("nope"), None, "process nope"),
        (Some("web"), Some(7), "instance web.7"),
        (None, Some(7), "instance 7 of any process"),
    ];
    for (process, index, words) in table {
        let refused = chosen(process, index).check(&server).await.expect_err("nothing has it");
        let (message, hint) = refused.words();
        assert_eq!(message, format!("there is no {words} in what is deployed"));
        assert_eq!(hint, "there are web.0 to web.2");
    }
    for (process, index) in [(None, None), (Some("web"), None), (Some("web"), Some(2))] {
        chosen(process, index).check(&server).await.expect("is there");
    }
}
