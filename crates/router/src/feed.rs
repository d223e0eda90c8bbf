//! Where the table comes from: the server's stream and, before that, the file of the last run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::proto::router_down::Message as Down;
use api::proto::router_up::Message as Up;
use api::proto::{Changes, Identify, RouterDown, RouterHello, RouterUp, components_client};
use api::{Connector, Endpoint, Joining};
use bytes::Bytes;
use model::{HostName, Route, RouteTable};
use runtime::{Backoff, Kind, Random, Stop, Tasks, mono_now};
use tokio::sync::{mpsc, watch};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Status, Streaming};

use crate::table::{Applied, Routes, TableChanges};
use crate::{Options, Router, StartError};

/// Pauses between attempts to reach the server.
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
/// See [`RECONNECT_FIRST`].
const RECONNECT_LAST: Duration = Duration::from_secs(2);
/// How long the server may take to accept the stream.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server may be silent; it says something every 5 s.
const SILENCE: Duration = Duration::from_secs(20);
/// How often a silent connection is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(10);
/// Messages waiting to be sent. There is one for each generation we serve.
const UP_QUEUE: usize = 16;
/// The pause after the table was written to disk, as a multiple of the time that took.
const KEEP_PAUSE: u32 = 4;

/// Serves the table of the last run. Without one, or with one that makes no sense, it starts empty.
pub(crate) fn load(routes: &Routes, path: &Path) {
    let table = match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice::<RouteTable>(&bytes).map_err(std::io::Error::from),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => Err(error),
    };
    match table {
        Ok(table) => {
            routes.replace(&table);
            tracing::info!(generation = table.generation, "serving the kept route table");
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the kept table is unreadable");
        }
    }
}

/// Writes a table so that a reader finds the old one or the new one, never a part.
fn keep(table: &RouteTable, path: &Path) -> std::io::Result<()> {
    use std::io::Write as _;
    let fresh = path.with_extension("new");
    let mut file = std::fs::File::create(&fresh)?;
    file.write_all(&serde_json::to_vec(table)?)?;
    file.sync_data()?;
    std::fs::rename(&fresh, path)
}

/// Starts the tasks that bring the table and keep it.
pub(crate) fn start(
    router: &Router,
    endpoint: Endpoint,
    options: Options,
    tasks: &Tasks,
) -> Result<(), StartError> {
    let token = format!("Bearer {}", endpoint.token);
    let joining = Joining::new(&endpoint);
    let mut feed = Feed {
        router: router.clone(),
        connector: endpoint.connector()?,
        token: token.parse().map_err(|_| std::io::Error::other("the token is not text"))?,
        url: endpoint.url,
        id: options.id,
        name: options.name,
        joined: options.joined,
        changed: watch::Sender::new(router.generation()),
        kept: watch::Sender::new(router.generation()),
        keeps: true,
    };
    if let Some(path) = options.keep {
        let keeper = Keeper {
            router: router.clone(),
            path,
            changed: feed.changed.subscribe(),
            kept: feed.kept.clone(),
            tasks: tasks.clone(),
        };
        tasks.spawn_ok("router table keeper", keeper.run());
    } else {
        feed.keeps = false;
    }
    let stop = tasks.stop().clone();
    let refused = router.refused.clone();
    tasks.spawn(Kind::Critical, "router feed", async move {
        let Some(Err(reason)) = stop.or_stop(feed.run(joining, &stop)).await else { return Ok(()) };
        refused.send_replace(Some(reason.clone()));
        Err(reason)
    });
    Ok(())
}

/// Writes the table while it changes, and once more in the end.
struct Keeper {
    router: Router,
    path: PathBuf,
    changed: watch::Receiver<u64>,
    /// The generation that a restart would serve.
    kept: watch::Sender<u64>,
    tasks: Tasks,
}

impl Keeper {
    async fn run(mut self) {
        let stop = self.tasks.stop().clone();
        let mut kept = self.router.generation();
        let mut is_last = false;
        while !is_last {
            is_last = !matches!(stop.or_stop(self.changed.changed()).await, Some(Ok(())));
            let table = self.router.shared.routes.model();
            if table.generation == kept {
                continue;
            }
            kept = table.generation;
            let (to, began) = (self.path.clone(), mono_now());
            if let Err(error) = self.tasks.blocking(move || keep(&table, &to)).await {
                tracing::warn!(path = %self.path.display(), %error, "the route table cannot be kept");
            }
            // Nobody waits for a disk that is full: the table is served all the same.
            self.kept.send_replace(kept);
            stop.or_stop(runtime::sleep(began.elapsed() * KEEP_PAUSE)).await;
        }
    }
}

struct Feed {
    router: Router,
    url: http::Uri,
    connector: Connector,
    token: MetadataValue<Ascii>,
    id: u128,
    name: String,
    joined: Stop,
    changed: watch::Sender<u64>,
    /// The generation that a restart would serve: the server is told that one, since it ends
    /// instances once no router would send requests to them any more.
    kept: watch::Sender<u64>,
    /// Whether the table is kept at all.
    keeps: bool,
}

impl Feed {
    /// Stays connected until a stop. An error is why the server does not want this router, when there
    /// is no table to go on with.
    async fn run(self, mut joining: Joining, stop: &Stop) -> Result<(), String> {
        let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_LAST);
        let random = Random::system();
        let mut refused = String::new();
        while !stop.is_stopped() {
            let status = match self.session(&mut backoff, &mut joining).await {
                Ok(()) => Status::unavailable("it ended the stream"),
                Err(status) => status,
            };
            let delay = backoff.next_delay(&random);
            let (message, generation) = (status.message(), self.router.generation());
            if !is_final(&status) {
                if let Some(sentence) = joining.failed(&status) {
                    tracing::warn!("{sentence}; the last table goes on serving");
                }
            } else if generation == 0 {
                return Err(message.to_owned());
            } else if refused != message {
                tracing::error!(
                    reason = message,
                    generation,
                    "the server refuses this router; the last table goes on serving"
                );
                message.clone_into(&mut refused);
            }
            runtime::sleep(delay).await;
        }
        Ok(())
    }

    async fn session(&self, backoff: &mut Backoff, joining: &mut Joining) -> Result<(), Status> {
        let (up, messages) = mpsc::channel(UP_QUEUE);
        let hello = RouterHello {
            hello: Some(api::proto::hello(self.id, &self.name)),
            generation: self.router.generation(),
            http_port: self.router.addresses().first().map_or(0, |first| first.port().into()),
            public_key: self.public_key()?,
        };
        tell(&up, Up::Hello(hello)).await?;
        let opened = runtime::timeout(CONNECT_TIMEOUT, self.open(messages)).await;
        let mut down = opened.ok_or_else(|| Status::deadline_exceeded("no answer in time"))??;
        let mut coming = Coming::default();
        let mut kept = self.kept.subscribe();
        let mut silent_at = mono_now() + SILENCE;
        loop {
            if coming.renewal.is_some_and(|due| mono_now() >= due) {
                coming.renewal = None;
                let public_key = self.public_key()?;
                tell(&up, Up::Identify(Identify { work: None, public_key })).await?;
            }
            let next = tokio::select! {
                next = down.message() => next?,
                Ok(()) = kept.changed() => {
                    let generation = *kept.borrow_and_update();
                    tell(&up, Up::Applied(generation)).await?;
                    continue;
                }
                () = runtime::sleep_until(silent_at) => {
                    return Err(Status::deadline_exceeded("the server went silent"));
                }
            };
            silent_at = mono_now() + SILENCE;
            let Some(message) = next else { return Ok(()) };
            if let Some(message) = message.message {
                self.message(message, &mut coming, &up).await?;
                backoff.reset();
                self.joined.stop();
                if let Some(sentence) = joining.joined() {
                    tracing::warn!("{sentence}");
                }
            }
        }
    }

    async fn open(&self, up: mpsc::Receiver<RouterUp>) -> Result<Streaming<RouterDown>, Status> {
        let channel = tonic::transport::Endpoint::from(self.url.clone())
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_EVERY)
            .keep_alive_while_idle(true)
            .connect_with_connector(self.connector.clone())
            .await
            .map_err(|error| api::unreachable(&error))?;
        let mut client = components_client::ComponentsClient::new(channel)
            .max_decoding_message_size(api::MAX_MESSAGE);
        let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(up));
        request.metadata_mut().insert("authorization", self.token.clone());
        Ok(client.router(request).await?.into_inner())
    }

    /// Makes a key that the server is to make a certificate for.
    fn public_key(&self) -> Result<Bytes, Status> {
        let public = self.router.shared.identity.ask();
        public.map(Bytes::from).map_err(|error| Status::internal(error.to_string()))
    }

    /// Takes in what the server says.
    async fn message(
        &self,
        message: Down,
        coming: &mut Coming,
        up: &mpsc::Sender<RouterUp>,
    ) -> Result<(), Status> {
        let applied = match message {
            Down::Welcome(welcome) => {
                welcome.check()?;
                tracing::info!(server = welcome.version, "the server gives the routes");
                return Ok(());
            }
            Down::Heartbeat(_) => return Ok(()),
            Down::Identity(identity) => {
                match self.router.shared.identity.take(identity) {
                    Ok(due) => coming.renewal = Some(due),
                    Err(error) => tracing::warn!(%error, "the router has no new certificate"),
                }
                return Ok(());
            }
            Down::TableJson(json) => {
                let table: RouteTable = api::proto::from_json("route table", &json)?;
                self.router.apply(&table)
            }
            Down::TablePart(part) => {
                let parts = &mut coming.parts;
                if parts.len() + part.json.len() > api::MAX_TABLE {
                    let message = format!("the route table has more than {} bytes", api::MAX_TABLE);
                    return Err(Status::resource_exhausted(message));
                }
                parts.extend_from_slice(&part.json);
                if !part.last {
                    return Ok(());
                }
                let table = api::proto::from_json("route table", &std::mem::take(parts))?;
                self.router.apply(&table)
            }
            Down::Changes(changes) => self.router.change(&read(changes)?),
        };
        match applied {
            Applied::Now => {
                let generation = self.router.generation();
                self.changed.send_replace(generation);
                // What is kept already is not written again.
                if self.keeps && *self.kept.borrow() != generation {
                    return Ok(());
                }
                tell(up, Up::Applied(generation)).await
            }
            Applied::Older => {
                tracing::warn!("the server sent a table older than the one served; it is refused");
                Ok(())
            }
            Applied::Gap => Err(Status::aborted("changes are missing: asking for the whole table")),
        }
    }
}

/// What is to be gone on with in the course of a session.
#[derive(Default)]
struct Coming {
    /// A table that is not whole yet.
    parts: Vec<u8>,
    /// When the next certificate is asked for. The server says something every few seconds.
    renewal: Option<Instant>,
}

/// Whether trying again cannot help.
fn is_final(status: &Status) -> bool {
    use tonic::Code::{FailedPrecondition, PermissionDenied, Unauthenticated};
    matches!(status.code(), FailedPrecondition | PermissionDenied | Unauthenticated)
}

async fn tell(up: &mpsc::Sender<RouterUp>, message: Up) -> Result<(), Status> {
    up.send(RouterUp { message: Some(message) })
        .await
        .map_err(|_| Status::unavailable("the stream is closed"))
}

fn read(changes: Changes) -> Result<TableChanges, Status> {
    let each = changes.changes.into_iter().map(|change| {
        let host: HostName = change
            .host
            .parse()
            .map_err(|error| Status::invalid_argument(format!("a change: {error}")))?;
        let route = change.route_json.as_deref();
        let route: Option<Route> =
            route.map(|json| api::proto::from_json("route", json)).transpose()?;
        Ok((host, route))
    });
    let list = each.collect::<Result<Vec<_>, Status>>()?;
    Ok(TableChanges { from: changes.from, to: changes.to, changes: list })
}
