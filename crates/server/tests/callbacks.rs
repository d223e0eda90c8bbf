//! Who wants to know how a task ended is told, by signed messages that are sent until they are taken
//! and that never lead into a private network.

mod parts;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::{Action, Name, ProjectId, TaskId, TaskSpec, Time};
use runtime::{Stop, Tasks};
use server::{Network, Server, Settings, signature};
use state::{Callback, Command, Delivery, Reply, State, Task, WorkCommand, delivery_id};
use store::memory::MemoryStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const PROJECT: ProjectId = ProjectId(1);
const LIMIT: Duration = Duration::from_secs(20);

async fn start(store: &Arc<MemoryStore>, dir: &Path, allowed: &[&str]) -> (Server, Tasks) {
    let tasks = Tasks::new(Stop::new());
    let networks = allowed.iter().map(|text| text.parse::<Network>().expect("a network"));
    let settings = Settings { callback_networks: networks.collect(), ..Settings::default() };
    let parts = parts::parts(store, &tasks, settings);
    (Server::start(parts, dir).await.expect("starts"), tasks)
}

async fn project(server: &Server) {
    let name: Name = "shop".parse().expect("a name");
    server.apply(Command::CreateProject { id: PROJECT, name }).await.expect("made");
}

/// A task that was cancelled before it began, with a callback.
async fn ended(server: &Server, number: u128, url: String) -> TaskId {
    let mut spec = TaskSpec::new(Action::run(["true"]), 1_000);
    spec.callback = Some(url);
    spec.annotation = Some("mine".to_owned());
    let new = WorkCommand::NewTask {
        id: TaskId(number),
        project: PROJECT,
        key: None,
        spec: Arc::new(spec),
    };
    let Reply::Task(task) = server.apply(Command::Work(new)).await.expect("made") else {
        unreachable!("a task is answered with the task")
    };
    let cancel = Command::Work(WorkCommand::CancelTask(task.id));
    server.apply(cancel).await.expect("cancelled");
    task.id
}

/// One request to a listener: its head and body. It is answered with `status`.
async fn take(listener: &TcpListener, status: &str) -> (String, Vec<u8>) {
    let accept = runtime::timeout(LIMIT, listener.accept()).await.expect("somebody comes");
    let (mut stream, _) = accept.expect("accepts");
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 4_096];
        let count = stream.read(&mut piece).await.expect("reads");
        bytes.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = header(head, "content-length").parse::<usize>().expect("a length");
        if body.len() >= length {
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("writes");
            return (head.to_owned(), body.as_bytes().to_vec());
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    let of = |line: &&'a str| line.to_lowercase().starts_with(&format!("{name}: "));
    let line = head.lines().find(of).unwrap_or_else(|| unreachable!("{name} is missing: {head}"));
    line.split_once(": ").expect("a value").1
}

async fn wait_for<T: Send + 'static>(
    server: &Server,
    read: impl Fn(&State) -> Option<T> + Send + Sync + 'static,
) -> T {
    let waited = runtime::timeout(LIMIT, server.wait_for(read)).await;
    waited.expect("in time").expect("the server answers")
}

#[tokio::test]
async fn a_message_is_signed_and_sent_until_it_is_taken() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let store = Arc::new(MemoryStore::new());
    let (server, tasks) = start(&store, dir.path(), &["127.0.0.0/8"]).await;
    project(&server).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("an address").port();
    let id = ended(&server, 7, format!("http://127.0.0.1:{port}/hook?a=b")).await;
    let (first, _) = take(&listener, "500 No").await;
    assert!(first.starts_with("POST /hook?a=b HTTP/1.1"), "{first}");
    // Whoever sent it is gone, and the next one goes on.
    tasks.shutdown(LIMIT).await;
    drop(server);
    let other = tempfile::tempdir().expect("makes a directory");
    let (server, _tasks) = start(&store, other.path(), &["127.0.0.0/8"]).await;
    let (second, body) = take(&listener, "204 Yes").await;
    assert_eq!(header(&second, "shore-delivery"), delivery_id(id).to_string());
    assert_eq!(header(&first, "shore-delivery"), header(&second, "shore-delivery"));
    let secret = server.signing(PROJECT, false).await.expect("there is one").secret.0.clone();
    let signed = header(&second, "shore-signature");
    let seconds = signed.split([',', '=']).nth(1).expect("a time");
    let at = Time(seconds.parse::<u64>().expect("a number") * 1_000);
    assert_eq!(signature(&[&secret], at, &body), signed);
    let told: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(told["task"], id.to_string());
    assert_eq!((&told["state"], &told["failed"]), (&"cancelled".into(), &true.into()));
    assert_eq!((&told["project"], &told["annotation"]), (&"shop".into(), &"mine".into()));
    wait_for(&server, move |state| {
        let callback = &state.get::<Task>(id)?.callback;
        matches!(callback, Some(Callback::Delivered { .. })).then_some(())
    })
    .await;
}

#[tokio::test]
async fn who_is_gone_gets_no_more() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let (server, _tasks) = start(&Arc::new(MemoryStore::new()), dir.path(), &["127.0.0.1"]).await;
    project(&server).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("an address").port();
    let id = ended(&server, 7, format!("http://127.0.0.1:{port}/")).await;
    take(&listener, "410 Gone").await;
    let reason = wait_for(&server, move |state| match &state.get::<Task>(id)?.callback {
        Some(Callback::GivenUp { reason, .. }) => Some(reason.clone()),
        _ => None,
    })
    .await;
    assert_eq!(reason, "it answered 410");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let (server, _tasks) = start(&Arc::new(MemoryStore::new()), dir.path(), &["127.0.0.1"]).await;
    project(&server).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("an address").port();
    let id = ended(&server, 7, format!("http://127.0.0.1:{port}/")).await;
    take(&listener, &format!("302 Found\r\nlocation: http://127.0.0.1:{port}/other")).await;
    let last = wait_for(&server, move |state| state.get::<Delivery>(delivery_id(id))?.last.clone());
    assert!(last.await.contains("302"));
    let (again, _) = take(&listener, "200 Yes").await;
    assert!(again.starts_with("POST / "), "{again}");
}

#[tokio::test]
async fn private_networks_are_not_reached() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let (server, _tasks) = start(&Arc::new(MemoryStore::new()), dir.path(), &[]).await;
    project(&server).await;
    let canary = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = canary.local_addr().expect("an address").port();
    let hosts = ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]", "[::1]", "0"];
    for (number, host) in hosts.into_iter().enumerate() {
        let id = ended(&server, 100 + number as u128, format!("http://{host}:{port}/")).await;
        let last =
            wait_for(&server, move |state| state.get::<Delivery>(delivery_id(id))?.last.clone());
        let last = last.await;
        let refused = last.contains("not a public address") || last.contains("cannot be resolved");
        assert!(refused, "{host}: {last}");
    }
    let nobody = runtime::timeout(Duration::from_millis(50), canary.accept()).await;
    assert!(nobody.is_none(), "somebody connected");
}
