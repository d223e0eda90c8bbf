//! The stream to the server: connects, again and again, and passes on what comes.

use std::time::Instant;

use api::Joining;
use api::proto::cell_down::Message as Down;
use api::proto::cell_up::Message as Up;
use api::proto::components_client::ComponentsClient;
use api::proto::session_down::Message as SessionMessage;
use api::proto::{CellDown, CellHello, CellUp, Drivers, Heartbeat, Leave, hello, json};
use futures_util::stream::{PollNext, select_with_strategy};
use model::{CellDrivers, CellSpec};
use runtime::{Backoff, Random, mono_now};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};

use crate::agent::Agent;
use crate::error::CellError;
use crate::limits::{
    CONNECT_LIMIT, DEPARTURE_LIMIT, HEARTBEAT, KEEP_ALIVE, MAX_LOG_UP, MAX_UP, RECONNECT,
    SAVE_EVERY,
};
use crate::link::Connection;
use crate::sessions::Sessions;
use crate::working::Failing;

/// Why a connection ended.
enum Closed {
    /// The agent is to stop.
    Stopped,
    /// The cell left for good.
    Left,
    /// It broke, or was never made.
    Lost(Status),
}

/// What waits to be sent: everything that matters at once, and log lines.
type Queues = (mpsc::Receiver<CellUp>, mpsc::Receiver<CellUp>);

/// An open stream.
struct Session {
    connection: Connection,
    /// What people do in containers; ends with the stream.
    sessions: Sessions,
    down: Streaming<CellDown>,
    /// When the places where logs continue are written down.
    save_at: Option<Instant>,
    /// Whether the server was told that the cell leaves.
    told: bool,
    /// Which drivers fail, and whether the server knows.
    drivers: watch::Receiver<Failing>,
    knows_drivers: bool,
}

/// How far a cell is that leaves for good.
#[derive(Debug, Default)]
pub(crate) struct Departure {
    /// Until when it may take; none before it begins.
    until: Option<Instant>,
    /// Whether nothing is left that can move, so that the rest ends.
    ends: bool,
}

impl Agent {
    /// Stays connected until it is time to stop or to leave.
    pub(crate) async fn stay(&mut self) -> Result<(), CellError> {
        let random = Random::system();
        let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
        let mut connections = 0;
        let mut refused = String::new();
        let mut joining = Joining::new(&self.endpoint);
        loop {
            let closed = match self.connect(connections + 1).await {
                Ok(session) => {
                    connections += 1;
                    backoff.reset();
                    if let Some(sentence) = joining.joined() {
                        tracing::warn!("{sentence}");
                    }
                    self.shared.options.joined.stop();
                    let closed = self.serve(session).await;
                    self.disconnected();
                    closed
                }
                Err(closed) => closed,
            };
            let status = match closed {
                Closed::Stopped | Closed::Left => return Ok(()),
                Closed::Lost(status) if connections == 0 && is_final(&status) => {
                    return Err(CellError::Refused(status.message().to_owned()));
                }
                Closed::Lost(status) => status,
            };
            if self.shared.options.leave.is_stopped() && self.is_given_up() {
                self.leave_alone().await;
                return Ok(());
            }
            if is_final(&status) && refused != status.message() {
                // Its instances go on; somebody has to give it what it needs.
                tracing::error!(reason = status.message(), "the server refuses this cell");
                status.message().clone_into(&mut refused);
            } else if let Some(sentence) = joining.failed(&status) {
                tracing::warn!("{sentence}");
            }
            self.pause(backoff.next_delay(&random)).await;
        }
    }

    /// Waits before the next attempt to connect; a stop or leave cuts that short.
    async fn pause(&mut self, delay: std::time::Duration) {
        let stop = self.shared.tasks.stop().clone();
        let leave = self.shared.options.leave.clone();
        let until = mono_now() + delay;
        let stays = !leave.is_stopped();
        loop {
            tokio::select! {
                () = stop.stopped() => return,
                () = leave.stopped(), if stays => return,
                ended = self.ended() => self.over(ended),
                () = runtime::sleep_until(until) => return,
            }
        }
    }

    fn disconnected(&mut self) {
        self.publish.send_replace(None);
        self.shared.fence.lost(mono_now());
        self.drop_claims();
    }

    async fn connect(&mut self, number: u64) -> Result<Session, Closed> {
        let (up, queue) = mpsc::channel(MAX_UP);
        let (logs, log_queue) = mpsc::channel(MAX_LOG_UP);
        // What changes from here on is told beside the hello.
        let drivers = self.shared.drivers.changes();
        let hello = self.hello().map_err(Closed::Lost)?;
        let message = CellUp { message: Some(Up::Hello(hello)) };
        up.try_send(message).expect("a new queue has room");
        let stop = self.shared.tasks.stop().clone();
        let dial = runtime::timeout(CONNECT_LIMIT, self.dial((queue, log_queue)));
        let down = match stop.or_stop(dial).await {
            None => return Err(Closed::Stopped),
            Some(None) => return Err(Closed::Lost(Status::unavailable("no answer in time"))),
            Some(Some(down)) => down.map_err(Closed::Lost)?,
        };
        let connection = Connection { number, up, logs };
        self.shared.fence.connected();
        self.publish.send_replace(Some(connection.clone()));
        let sessions = Sessions::default();
        let (save_at, told, knows_drivers) = (None, false, true);
        Ok(Session { connection, sessions, down, save_at, told, drivers, knows_drivers })
    }

    fn hello(&self) -> Result<CellHello, Status> {
        let options = &self.shared.options;
        let CellDrivers { drivers, unavailable } = self.shared.drivers.report();
        let spec = CellSpec {
            name: options.name.clone(),
            zone: options.zone.clone(),
            required_tags: options.required_tags.clone(),
            tags: options.tags.clone(),
            drivers,
            unavailable,
            memory_mb: self.capacity.memory_mb,
            disk_mb: self.capacity.disk_mb,
            containers: self.capacity.containers,
            cpu_shares: self.capacity.cpu_shares,
            pids: self.capacity.pids,
            gate: self.shared.identities.gate_address(),
            labels: options.labels.clone(),
        };
        Ok(CellHello {
            hello: Some(hello(self.home.id.0, options.name.as_str())),
            spec_json: json(&spec)?,
            holds: self.holds(),
        })
    }

    async fn dial(&self, (queue, logs): Queues) -> Result<Streaming<CellDown>, Status> {
        let connector = self.endpoint.connector().map_err(|error| api::unreachable(&error))?;
        let channel = tonic::transport::Endpoint::from(self.endpoint.url.clone())
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
            .map_err(|error| api::unreachable(&error))?;
        let mut client = ComponentsClient::new(channel)
            .max_decoding_message_size(api::MAX_MESSAGE)
            .max_encoding_message_size(api::MAX_MESSAGE);
        let (queue, logs) = (ReceiverStream::new(queue), ReceiverStream::new(logs));
        let first = |(): &mut ()| PollNext::Left;
        let mut request = Request::new(select_with_strategy(queue, logs, first));
        let bearer = MetadataValue::try_from(format!("Bearer {}", self.endpoint.token));
        let bearer = bearer.map_err(|_| Status::unauthenticated("the token is no text"))?;
        request.metadata_mut().insert("authorization", bearer);
        let mut down = client.cell(request).await?.into_inner();
        let first = down.message().await?.and_then(|first| first.message);
        let Some(Down::Welcome(welcome)) = first else {
            return Err(Status::unavailable("the server did not begin with a welcome"));
        };
        welcome.check()?;
        self.shared.identities.set_made(welcome.certificates);
        tracing::info!(server = welcome.version, "connected to the server");
        Ok(down)
    }

    async fn serve(&mut self, mut session: Session) -> Closed {
        if self.departure.until.is_some() {
            // The server has forgotten it with the connection before.
            session.say_that_it_leaves();
        }
        let stop = self.shared.tasks.stop().clone();
        let leave = self.shared.options.leave.clone();
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.reset();
        loop {
            if self.departure.ends && self.is_idle() {
                return Closed::Left;
            }
            let leaves = self.departure.until;
            tokio::select! {
                biased;
                () = stop.stopped() => return Closed::Stopped,
                message = session.down.message() => match message {
                    Ok(Some(CellDown { message: Some(message) })) => {
                        self.message(&mut session, message);
                    }
                    Ok(Some(CellDown { message: None })) => {}
                    Ok(None) => return Closed::Lost(Status::unavailable("it ended the stream")),
                    Err(status) => return Closed::Lost(status),
                },
                ended = self.ended() => self.over(ended),
                _ = heartbeat.tick(), if !self.departure.ends => {
                    session.try_send(Up::Heartbeat(Heartbeat {}));
                    if leaves.is_some() && !session.told {
                        session.say_that_it_leaves();
                    }
                    if !session.knows_drivers {
                        session.say_drivers(&self.shared.drivers.report());
                    }
                }
                Ok(()) = session.drivers.changed() => {
                    session.say_drivers(&self.shared.drivers.report());
                }
                () = at(session.save_at) => {
                    session.save_at = None;
                    self.save();
                }
                () = leave.stopped(), if leaves.is_none() => {
                    // What serves here serves until another copy does: the server says when.
                    self.departure.until = Some(mono_now() + DEPARTURE_LIMIT);
                    session.say_that_it_leaves();
                }
                () = at(leaves) => {
                    if self.departure.ends {
                        tracing::warn!("some containers did not end in time");
                        return Closed::Left;
                    }
                    self.end_all();
                }
            }
        }
    }

    /// Nothing is left that can move.
    fn end_all(&mut self) {
        let until = mono_now() + self.shared.options.leave_limit;
        self.departure = Departure { until: Some(until), ends: true };
        self.forget_all();
    }

    /// Whether nobody waits any more for a cell that leaves and has no connection.
    fn is_given_up(&self) -> bool {
        let now = mono_now();
        let late = self.departure.until.is_some_and(|until| until <= now);
        self.departure.ends || late || self.shared.fence.is_closed(now)
    }

    fn message(&mut self, session: &mut Session, message: Down) {
        match message {
            Down::Welcome(_) => {}
            Down::Drained(_) => {
                if self.departure.until.is_some() && !self.departure.ends {
                    self.end_all();
                }
            }
            Down::Desired(_) if self.departure.ends => {}
            Down::Desired(desired) => self.desired(desired),
            Down::Session(message) => {
                let place = match &message.message {
                    Some(SessionMessage::Open(open)) => self.place(open),
                    Some(_) | None => None,
                };
                let Session { sessions, connection, .. } = session;
                sessions.take(message, place, (connection, &self.shared.tasks));
            }
            Down::Claimed(work) => self.claimed(&work),
            Down::Identity(identity) => self.shared.identities.arrived(identity),
            Down::Refused(work) => self.refused(&work),
            Down::Kept(kept) => {
                if let Some(work) = &kept.work {
                    self.kept(work, &kept.resume);
                    session.save_at.get_or_insert_with(|| mono_now() + SAVE_EVERY);
                }
            }
        }
    }
}

impl Session {
    /// Sends unless too much waits already: the agent must go on listening.
    fn try_send(&self, message: Up) -> bool {
        let sent = self.connection.up.try_send(CellUp { message: Some(message) }).is_ok();
        if !sent {
            tracing::debug!("the server reads slowly");
        }
        sent
    }

    /// Said again with the next heartbeat should too much wait now.
    fn say_drivers(&mut self, drivers: &CellDrivers) {
        let message = json(drivers).map(|drivers_json| Up::Drivers(Drivers { drivers_json }));
        self.knows_drivers = message.is_ok_and(|message| self.try_send(message));
    }

    /// Said again with the next heartbeat should too much wait now.
    fn say_that_it_leaves(&mut self) {
        self.told = self.try_send(Up::Leave(Leave {}));
    }
}

/// Waits for a time that may never come.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => runtime::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Whether trying again would not help.
fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unauthenticated | Code::PermissionDenied | Code::FailedPrecondition
    )
}
