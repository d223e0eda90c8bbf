//! The stream that brings the table.

use std::net::SocketAddr;
use std::pin::Pin;

use api::Endpoint;
use api::proto::components_server::{Components, ComponentsServer};
use api::proto::router_down::Message as Down;
use api::proto::router_up::Message as Up;
use api::proto::{
    CellDown, CellUp, Changes, RouteChange, RouterDown, RouterUp, RunnerDown, RunnerUp, Welcome,
};
use model::{JoinToken, TokenId};
use router::{Limits, Options, Router};
use runtime::{Stop, Tasks};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::support::{Instance, Site, options, soon, table, until};

type Out<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// One stream as the server sees it.
struct Session {
    token: String,
    down: mpsc::Sender<Result<RouterDown, Status>>,
    up: Streaming<RouterUp>,
}

impl Session {
    async fn tell(&self, message: Down) {
        let message = RouterDown { message: Some(message) };
        self.down.send(Ok(message)).await.expect("the router listens");
    }

    async fn hear(&mut self) -> Up {
        let message = soon("a message", self.up.message()).await.expect("a stream");
        message.and_then(|it| it.message).expect("a message")
    }

    async fn tell_table(&mut self, generation: u64, hosts: &[(&str, &[SocketAddr])]) {
        let json = api::proto::json(&table(generation, hosts)).expect("a table");
        self.tell(Down::TableJson(json)).await;
    }
}

struct Fake {
    sessions: Mutex<mpsc::Sender<Session>>,
}

#[tonic::async_trait]
impl Components for Fake {
    type RunnerStream = Out<RunnerDown>;
    type CellStream = Out<CellDown>;
    type RouterStream = Out<RouterDown>;

    async fn runner(
        &self,
        _: Request<Streaming<RunnerUp>>,
    ) -> Result<Response<Self::RunnerStream>, Status> {
        Err(Status::unimplemented("no runners"))
    }

    async fn cell(
        &self,
        _: Request<Streaming<CellUp>>,
    ) -> Result<Response<Self::CellStream>, Status> {
        Err(Status::unimplemented("no cells"))
    }

    async fn router(
        &self,
        request: Request<Streaming<RouterUp>>,
    ) -> Result<Response<Self::RouterStream>, Status> {
        let token = request.metadata().get("authorization").and_then(|it| it.to_str().ok());
        let token = token.unwrap_or_default().to_owned();
        let (down, out) = mpsc::channel(16);
        let session = Session { token, down, up: request.into_inner() };
        self.sessions.lock().await.send(session).await.map_err(|_| Status::aborted("over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }
}

/// A server that can be stopped and started again at the same address.
struct Server {
    address: SocketAddr,
    tasks: Tasks,
    sessions: mpsc::Receiver<Session>,
}

impl Server {
    async fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (sessions, opened) = mpsc::channel(16);
        let tasks = Tasks::new(Stop::new());
        let fake = ComponentsServer::new(Fake { sessions: Mutex::new(sessions) });
        let stop = tasks.stop().clone();
        tasks.spawn_ok("server", async move {
            let incoming = TcpListenerStream::new(listener);
            let serving =
                tonic::transport::Server::builder().add_service(fake).serve_with_incoming(incoming);
            stop.or_stop(serving).await;
        });
        Self { address, tasks, sessions: opened }
    }

    /// The next stream and the generation the router comes with.
    async fn session(&mut self) -> (Session, u64) {
        let mut session = soon("a stream", self.sessions.recv()).await.expect("a stream");
        let hello = match session.hear().await {
            Up::Hello(hello) => Some(hello),
            Up::Applied(_) | Up::Identify(_) => None,
        };
        let hello = hello.expect("the first message is a hello");
        assert_eq!(hello.hello.map(|hello| hello.name), Some("test".into()));
        assert!(hello.http_port > 0);
        let welcome = Welcome { version: "1".into(), protocol: 1, certificates: false };
        session.tell(Down::Welcome(welcome)).await;
        (session, hello.generation)
    }
}

fn token() -> JoinToken {
    JoinToken { id: TokenId(1), secret: [1; 32], ca: None }
}

fn start(server: SocketAddr, options: Options) -> Site {
    let tasks = Tasks::new(Stop::new());
    let endpoint = Endpoint::new(&format!("http://{server}"), token()).expect("an endpoint");
    let router = Router::start(options, Some(endpoint), &tasks).expect("the router starts");
    Site { router, tasks }
}

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn changes(from: u64, to: u64, host: &str, route: Option<&model::Route>) -> Down {
    let route_json = route.map(|route| api::proto::json(route).expect("a route"));
    let change = RouteChange { host: host.into(), route_json };
    Down::Changes(Changes { from, to, changes: vec![change] })
}

#[tokio::test]
async fn tables_and_changes_are_applied_by_generation() {
    let mut server = Server::start(anywhere()).await;
    let site = start(server.address, options(Limits::default()));
    let instance = Instance::echo(&site.tasks, "one").await;
    let (mut session, generation) = server.session().await;
    assert_eq!(session.token, format!("Bearer {}", token()));
    assert_eq!(generation, 0);
    session.tell_table(5, &[("a.example", &[instance.address])]).await;
    assert_eq!(session.hear().await, Up::Applied(5));
    assert!(site.get("a.example").await.contains("one\nGET"));

    let routes = table(6, &[("b.example", &[instance.address])]).routes;
    session.tell(changes(5, 6, "b.example", routes.first())).await;
    assert_eq!(session.hear().await, Up::Applied(6));
    assert!(site.get("b.example").await.contains("one\nGET"));
    session.tell(changes(6, 7, "a.example", None)).await;
    assert_eq!(session.hear().await, Up::Applied(7));
    assert!(site.get("a.example").await.starts_with("HTTP/1.1 404 "));

    // An older table is refused without an answer; the next message is for the newer one.
    session.tell_table(4, &[]).await;
    session.tell_table(7, &[("b.example", &[instance.address])]).await;
    assert_eq!(session.hear().await, Up::Applied(7));
    assert!(site.get("b.example").await.contains("one\nGET"));

    // Changes that do not fit make the router ask again.
    session.tell(changes(9, 10, "b.example", None)).await;
    let (mut session, generation) = server.session().await;
    assert_eq!(generation, 7);
    session.tell_table(10, &[]).await;
    assert_eq!(session.hear().await, Up::Applied(10));
    assert!(site.get("b.example").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn a_table_larger_than_a_message_comes_in_parts_and_at_once() {
    let mut server = Server::start(anywhere()).await;
    let site = start(server.address, options(Limits::default()));
    let instance = Instance::echo(&site.tasks, "one").await;
    let (mut session, _) = server.session().await;
    session.tell_table(1, &[("a.example", &[instance.address])]).await;
    assert_eq!(session.hear().await, Up::Applied(1));

    let pad = ["x"; 3].map(|x| x.repeat(63)).join(".");
    let names: Vec<String> = (0..50_000).map(|number| format!("h{number}.{pad}.example")).collect();
    let all = [instance.address];
    let mut hosts: Vec<(&str, &[SocketAddr])> =
        names.iter().map(|name| (name.as_str(), all.as_slice())).collect();
    hosts.push(("b.example", &all));
    let json = api::proto::json(&table(2, &hosts)).expect("a table");
    assert!(json.len() > api::MAX_MESSAGE, "only {} bytes", json.len());
    let mut parts = api::proto::table_messages(json);
    let last = parts.pop().expect("several parts");
    for part in parts {
        session.tell(part).await;
    }
    assert!(site.get("a.example").await.contains("one\nGET"), "half a table is none");
    session.tell(last).await;
    assert_eq!(session.hear().await, Up::Applied(2));
    assert!(site.get("b.example").await.contains("one\nGET"));
    assert!(site.get("a.example").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn without_the_server_the_last_table_serves_on() {
    let mut server = Server::start(anywhere()).await;
    let site = start(server.address, options(Limits::default()));
    let instance = Instance::echo(&site.tasks, "one").await;
    let (mut session, _) = server.session().await;
    session.tell_table(3, &[("a.example", &[instance.address])]).await;
    assert_eq!(session.hear().await, Up::Applied(3));
    let address = server.address;
    drop(session);
    assert!(server.tasks.shutdown(std::time::Duration::from_secs(10)).await);
    drop(server);
    for _ in 0..50 {
        assert!(site.get("a.example").await.contains("one\nGET"));
    }
    let mut server = Server::start(address).await;
    let (mut session, generation) = server.session().await;
    assert_eq!(generation, 3);
    session.tell_table(4, &[]).await;
    assert_eq!(session.hear().await, Up::Applied(4));
}

#[tokio::test]
async fn a_restart_serves_the_kept_table_before_the_server_is_there() {
    let dir = tempfile::tempdir().expect("a folder");
    let keep = dir.path().join("routes.json");
    let kept = || Options { keep: Some(keep.clone()), ..options(Limits::default()) };
    let mut server = Server::start(anywhere()).await;
    let others = Tasks::new(Stop::new());
    let instance = Instance::echo(&others, "one").await;
    let site = start(server.address, kept());
    let (mut session, _) = server.session().await;
    let routes: &[(&str, &[SocketAddr])] = &[("a.example", &[instance.address])];
    session.tell_table(3, routes).await;
    assert_eq!(session.hear().await, Up::Applied(3));
    session.tell_table(4, routes).await;
    assert_eq!(session.hear().await, Up::Applied(4));
    assert!(site.tasks.shutdown(std::time::Duration::from_secs(10)).await);
    drop((site, session));
    let text = std::fs::read(&keep).expect("a kept table");
    let read: model::RouteTable = serde_json::from_slice(&text).expect("a table");
    assert_eq!(read, table(4, routes));

    assert!(server.tasks.shutdown(std::time::Duration::from_secs(10)).await);
    let site = start(server.address, kept());
    assert_eq!(site.router.generation(), 4);
    assert!(site.get("a.example").await.contains("one\nGET"));
    assert!(site.tasks.shutdown(std::time::Duration::from_secs(10)).await);

    std::fs::write(&keep, "{").expect("a broken file");
    let site = start(server.address, kept());
    assert_eq!(site.router.generation(), 0);
    until("it runs", || site.router.stats().connections == 0).await;
}
