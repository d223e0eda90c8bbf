//! A server that does what a test tells it to.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::proto::cell_down::Message as Down;
use api::proto::cell_up::Message as Up;
use api::proto::components_server::{Components, ComponentsServer};
use api::proto::{
    CellDown, CellHello, CellUp, Desired, DesiredWork, Identify, Identity, LogKept, RouterDown,
    RouterUp, RunnerDown, RunnerUp, Welcome, Work,
};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use futures_util::Stream as FutureStream;
use model::{Digest, JoinToken, TokenId};
use runtime::{Stop, Tasks};
use serde_json::{Value, json};
use testkit::{Authority, Validity};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub(crate) const SOON: Duration = Duration::from_secs(20);

#[derive(Debug, Default, Clone)]
pub(crate) struct Blobs {
    bytes: Arc<Mutex<BTreeMap<String, Bytes>>>,
    reads: Arc<Mutex<Vec<String>>>,
    held: Arc<Mutex<Option<Stop>>>,
    writes: Arc<AtomicUsize>,
}

impl Blobs {
    pub(crate) fn put(&self, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        self.map().insert(digest.to_string(), bytes);
        digest
    }

    pub(crate) fn get(&self, digest: Digest) -> Option<Bytes> {
        self.map().get(&digest.to_string()).cloned()
    }

    pub(crate) fn all(&self) -> BTreeMap<String, Bytes> {
        self.map().clone()
    }

    pub(crate) fn damage(&self, digest: Digest, bytes: &'static [u8]) {
        self.map().insert(digest.to_string(), Bytes::from_static(bytes));
    }

    pub(crate) fn reads(&self) -> Vec<String> {
        std::mem::take(&mut self.reads.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets uploads that come from here on wait until what it gives is stopped.
    pub(crate) fn hold(&self) -> Stop {
        let stop = Stop::new();
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(stop.clone());
        stop
    }

    /// How many uploads came.
    pub(crate) fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }

    fn map(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read(blobs: State<Blobs>, Path(digest): Path<String>) -> Result<Bytes, StatusCode> {
    blobs.reads.lock().unwrap_or_else(PoisonError::into_inner).push(digest.clone());
    blobs.map().get(&digest).cloned().ok_or(StatusCode::NOT_FOUND)
}

async fn write(
    blobs: State<Blobs>,
    path: Option<Path<String>>,
    body: Bytes,
) -> (StatusCode, String) {
    blobs.writes.fetch_add(1, Ordering::SeqCst);
    let held = blobs.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(stop) = held {
        stop.stopped().await;
    }
    let digest = Digest::of(&body);
    if path.is_some_and(|Path(wanted)| wanted != digest.to_string()) {
        return (StatusCode::CONFLICT, "{}".to_owned());
    }
    let stored = json!({"digest": digest, "bytes": body.len()});
    blobs.put(body);
    (StatusCode::OK, stored.to_string())
}

type Answer<T> = Pin<Box<dyn FutureStream<Item = Result<T, Status>> + Send>>;

struct Service(mpsc::Sender<Stream>);

#[tonic::async_trait]
impl Components for Service {
    type RunnerStream = Answer<RunnerDown>;
    type CellStream = Answer<CellDown>;
    type RouterStream = Answer<RouterDown>;

    async fn runner(
        &self,
        _: Request<Streaming<RunnerUp>>,
    ) -> Result<Response<Self::RunnerStream>, Status> {
        Err(Status::unimplemented("runner"))
    }

    async fn router(
        &self,
        _: Request<Streaming<RouterUp>>,
    ) -> Result<Response<Self::RouterStream>, Status> {
        Err(Status::unimplemented("router"))
    }

    async fn cell(
        &self,
        request: Request<Streaming<CellUp>>,
    ) -> Result<Response<Self::CellStream>, Status> {
        let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        if bearer != Some(format!("Bearer {}", token()).as_str()) {
            return Err(Status::unauthenticated("who are you?"));
        }
        let (down, receiver) = mpsc::channel(64);
        let up = request.into_inner();
        let stream = Stream {
            hello: CellHello::default(),
            up,
            down,
            seen: Vec::new(),
            keep: true,
            authority: None,
        };
        self.0.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

pub(crate) fn token() -> JoinToken {
    JoinToken { id: TokenId(1), secret: [1; 32], ca: None }
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) blobs: Blobs,
    streams: mpsc::Receiver<Stream>,
    tasks: Tasks,
    /// Makes certificates.
    pub(crate) authority: Option<Arc<Authority>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.stop().stop();
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        let blobs = Blobs::default();
        let (sender, streams) = mpsc::channel(4);
        let service = ComponentsServer::new(Service(sender))
            .max_decoding_message_size(api::MAX_MESSAGE)
            .max_encoding_message_size(api::MAX_MESSAGE);
        let http = Router::new()
            .route("/v1/blobs", axum::routing::post(write))
            .route("/v1/blobs/{digest}", get(read).put(write))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(blobs.clone());
        let app = tonic::service::Routes::new(service).into_axum_router().merge(http);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("has an address"));
        let tasks = Tasks::new(Stop::new());
        let stop = tasks.stop().clone();
        tasks.spawn_ok("server", async move {
            stop.or_stop(axum::serve(listener, app).into_future()).await;
        });
        Self { url, blobs, streams, tasks, authority: None }
    }

    /// The next connection of a cell, welcomed.
    pub(crate) async fn accept(&mut self) -> Stream {
        let stream = runtime::timeout(SOON, self.streams.recv()).await.expect("a cell connects");
        let mut stream = stream.expect("the service runs");
        let first = runtime::timeout(SOON, stream.up.message()).await.expect("says something");
        match first.expect("is whole").and_then(|first| first.message) {
            Some(Up::Hello(hello)) => stream.hello = hello,
            other => unreachable!("the first message is {other:?}"),
        }
        let certificates = self.authority.is_some();
        stream.authority.clone_from(&self.authority);
        let welcome = Welcome { version: "test".to_owned(), protocol: 1, certificates };
        stream.send(Down::Welcome(welcome)).await;
        stream
    }
}

/// One connection of a cell.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) hello: CellHello,
    up: Streaming<CellUp>,
    down: mpsc::Sender<Result<CellDown, Status>>,
    /// Everything reported and logged, in order: `{"report":..}` or a line of text.
    pub(crate) seen: Vec<String>,
    /// Whether log lines are acknowledged.
    pub(crate) keep: bool,
    /// Makes certificates.
    authority: Option<Arc<Authority>>,
}

impl Stream {
    pub(crate) async fn send(&self, message: Down) {
        let message = CellDown { message: Some(message) };
        self.down.send(Ok(message)).await.expect("the cell listens");
    }

    pub(crate) async fn desire(&self, full: bool, work: Vec<DesiredWork>) {
        self.send(Down::Desired(Desired { full, work, ..Desired::default() })).await;
    }

    pub(crate) async fn gone(&self, work: &Work) {
        let gone = vec![work.clone()];
        self.send(Down::Desired(Desired { gone, ..Desired::default() })).await;
    }

    /// The next report; log lines before it are acknowledged.
    pub(crate) async fn report(&mut self) -> (Work, Value) {
        runtime::timeout(SOON, async {
            loop {
                match self.next().await {
                    Up::Report(report) => {
                        let json = serde_json::from_slice(&report.report_json).expect("is JSON");
                        return (report.work.expect("names its work"), json);
                    }
                    Up::Heartbeat(_) | Up::Log(_) | Up::Identify(_) => {}
                    other => unreachable!("unexpected {other:?}"),
                }
            }
        })
        .await
        .unwrap_or_else(|| unreachable!("no report; seen: {:#?}", self.seen))
    }

    /// The next report, which must be this one.
    pub(crate) async fn expect(&mut self, wanted: Value) {
        let (_, report) = self.report().await;
        assert_eq!(report, wanted, "seen: {:#?}", self.seen);
    }

    /// Reads log lines until one of them is `line`.
    pub(crate) async fn line(&mut self, line: &str) {
        self.until(line, |seen| seen == line).await;
    }

    /// Reads log lines until one of them begins with `start`.
    pub(crate) async fn begins(&mut self, start: &str) {
        self.until(start, |seen| seen.starts_with(start)).await;
    }

    async fn until(&mut self, what: &str, is: impl Fn(&str) -> bool) {
        let read = async {
            while !self.seen.iter().any(|seen| is(seen)) {
                self.next().await;
            }
        };
        let read = runtime::timeout(SOON, read).await;
        assert!(read.is_some(), "no line {what:?}; seen: {:#?}", self.seen);
    }

    /// Goes on keeping log lines until `work` is done.
    pub(crate) async fn meanwhile(&mut self, work: impl Future<Output = ()>) {
        tokio::pin!(work);
        loop {
            tokio::select! {
                () = &mut work => return,
                message = self.try_next() => if message.is_none() {
                    return work.await;
                },
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Up {
        self.try_next().await.expect("the stream goes on")
    }

    /// A certificate for what a cell asks for.
    fn certify(&self, asked: &Identify) -> Identity {
        let work = asked.work.clone().expect("an instance");
        let id = api::proto::id_from(&work.id).expect("an id");
        let name = model::instance_host(model::InstanceId(id), work.epoch);
        let authority = self.authority.as_ref().expect("this server makes certificates");
        let certificate = authority.certificate(&name, &asked.public_key, Validity::Good);
        Identity {
            work: Some(work),
            public_key: asked.public_key.clone(),
            certificate: certificate.expect("a certificate"),
            expires_ms: testkit::GOOD_UNTIL_MS,
            authorities: authority.pem.clone(),
        }
    }

    /// The next message. Log lines are kept.
    async fn try_next(&mut self) -> Option<Up> {
        let message = self.up.message().await.ok()??.message?;
        match &message {
            Up::Log(log) => {
                let text =
                    |line: &api::proto::LogLine| String::from_utf8_lossy(&line.text).into_owned();
                self.seen.extend(log.lines.iter().map(text));
                if self.keep {
                    let kept = LogKept { work: log.work.clone(), resume: log.resume.clone() };
                    let kept = CellDown { message: Some(Down::Kept(kept)) };
                    self.down.send(Ok(kept)).await.ok()?;
                }
            }
            Up::Report(report) => {
                self.seen.push(String::from_utf8_lossy(&report.report_json).into_owned());
            }
            Up::Identify(asked) => {
                let identity = self.certify(asked);
                let identity = CellDown { message: Some(Down::Identity(identity)) };
                self.down.send(Ok(identity)).await.ok()?;
            }
            _ => {}
        }
        Some(message)
    }
}
