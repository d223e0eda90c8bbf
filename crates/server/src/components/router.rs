//! One router's stream: the route table by generation, then numbered changes.

use std::time::{Duration, Instant};

use api::proto::router_down::Message as Down;
use api::proto::router_up::Message as Up;
use api::proto::{Changes, Heartbeat, RouteChange, RouterDown, RouterUp, json, table_messages};
use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{first, identity, status, welcome};
use crate::identity::Subject;
use crate::server::{Server, next_event};

type Out = mpsc::Sender<Result<RouterDown, Status>>;

/// How often a router hears that the server is there, whatever else it is told.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Something that is due at even intervals, whatever else happens meanwhile.
#[derive(Debug)]
struct Beat {
    every: Duration,
    due: Instant,
}

impl Beat {
    fn new(every: Duration) -> Self {
        Self { every, due: runtime::mono_now() + every }
    }

    /// Waits until it is due. A wait that is given up is gone on with by the next one.
    async fn next(&mut self) {
        runtime::sleep_until(self.due).await;
        self.due = runtime::mono_now() + self.every;
    }
}

struct Session {
    server: Server,
    router: u128,
    /// Which of its connections this is.
    number: u128,
    down: Out,
    /// The generation the router was sent.
    sent: u64,
}

pub(super) async fn session(
    server: Server,
    mut up: Streaming<RouterUp>,
    down: Out,
) -> Result<(), Status> {
    let Some(Up::Hello(hello)) = first(&mut up).await?.message else {
        return Err(Status::failed_precondition("the first message must be a hello"));
    };
    let (router, welcome) = welcome(hello.hello.as_ref())?;
    let port = u16::try_from(hello.http_port).ok().filter(|port| *port != 0);
    let number = server.router_came(router, port);
    let kept = state::Command::RoutesServed { generation: hello.generation };
    let mut session = Session { server, router, number, down, sent: 0 };
    session.send(Down::Welcome(welcome)).await?;
    session.server.apply(kept).await.map_err(status)?;
    if !hello.public_key.is_empty() {
        session.identify(hello.public_key).await?;
    }
    session.run(&mut up).await
}

impl Drop for Session {
    /// However the session ends, nobody waits for this router any more.
    fn drop(&mut self) {
        self.server.router_gone(self.router, self.number);
    }
}

impl Session {
    async fn send(&self, message: Down) -> Result<(), Status> {
        self.down
            .send(Ok(RouterDown { message: Some(message) }))
            .await
            .map_err(|_| Status::cancelled("the router is gone"))
    }

    async fn run(&mut self, up: &mut Streaming<RouterUp>) -> Result<(), Status> {
        let mut events = self.server.subscribe();
        self.send_table().await?;
        let mut heartbeat = Beat::new(HEARTBEAT);
        loop {
            tokio::select! {
                message = up.message() => match message? {
                    Some(RouterUp { message: Some(Up::Applied(generation)) }) => {
                        self.server.router_serves(self.router, self.number, generation);
                    }
                    Some(RouterUp { message: Some(Up::Identify(asked)) }) => {
                        self.identify(asked.public_key).await?;
                    }
                    Some(RouterUp { message: Some(Up::Hello(_)) }) => {
                        return Err(Status::failed_precondition("a second hello"));
                    }
                    Some(RouterUp { message: None }) => {}
                    None => return Ok(()),
                },
                event = next_event(&mut events) => match event {
                    Ok(event) if event.routes == self.sent => {}
                    Ok(_) => self.send_changes().await?,
                    Err(_) => return Ok(()),
                },
                () = heartbeat.next() => self.send(Down::Heartbeat(Heartbeat {})).await?,
            }
        }
    }

    /// Sends a certificate, with which the router gets in where instances prove who they are.
    async fn identify(&self, public_key: Bytes) -> Result<(), Status> {
        let Some(issued) = self.server.issue(&Subject::Router(self.router), &public_key) else {
            return Ok(());
        };
        self.send(Down::Identity(identity(issued, (None, public_key))?)).await
    }

    async fn send_table(&mut self) -> Result<(), Status> {
        let table = self.server.read(state::State::routes).await.map_err(status)?;
        self.sent = table.generation;
        for message in table_messages(json(&table)?) {
            self.send(message).await?;
        }
        Ok(())
    }

    async fn send_changes(&mut self) -> Result<(), Status> {
        let from = self.sent;
        let read = move |state: &state::State| (state.routes_since(from), state.route_generation());
        let (changes, to) = self.server.read(read).await.map_err(status)?;
        let Some(changes) = changes else { return self.send_table().await };
        if changes.is_empty() {
            return Ok(());
        }
        let render = |change: state::RouteChange| {
            let route_json = change.route.as_ref().map(json).transpose()?;
            Ok(RouteChange { host: change.host.to_string(), route_json })
        };
        let changes = changes.into_iter().map(render).collect::<Result<Vec<_>, Status>>()?;
        let bytes = |change: &RouteChange| change.route_json.as_ref().map_or(0, Bytes::len);
        if changes.iter().map(bytes).sum::<usize>() > api::MAX_TABLE_PART {
            return self.send_table().await;
        }
        self.sent = to;
        self.send(Down::Changes(Changes { from, to, changes })).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_heartbeat_is_not_put_off_by_events() {
        const EVENT: Duration = Duration::from_millis(2);
        const MOST: usize = 1_000;
        let mut beat = Beat::new(10 * EVENT);
        let mut events = 0;
        loop {
            tokio::select! {
                () = beat.next() => break,
                () = runtime::sleep(EVENT) => events += 1,
            }
            assert!(events < MOST, "it never came");
        }
        assert!(events > 0, "nothing came in between");
    }
}
