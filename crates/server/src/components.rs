//! The component streams: everything that dials the server.

mod cell;
mod desired;
mod router;
mod runner;

use std::pin::Pin;

use api::proto::components_server::{Components, ComponentsServer};
use api::proto::{
    CellDown, CellUp, Hello, Identity, RouterDown, RouterUp, RunnerDown, RunnerUp, Welcome, Work,
    id_from,
};
use bytes::Bytes;
use futures_util::Stream;
use model::PROTOCOL;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::apply::ApplyError;
use crate::auth::{Action, Principal, TokenFault, allows};
use crate::identity::Issued;
use crate::server::Server;
use crate::tls::TlsError;

/// Messages that may wait for a component that reads slowly.
const MAX_DOWN: usize = 256;

type Down<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<Down<T>>, Status>;

impl Server {
    /// The gRPC service for runners, cells and routers.
    pub fn components(&self) -> ComponentsServer<Service> {
        ComponentsServer::new(Service { server: self.clone() })
            .max_decoding_message_size(api::MAX_MESSAGE)
            .max_encoding_message_size(api::MAX_MESSAGE)
    }

    async fn admit<T>(&self, request: &Request<T>, action: Action) -> Result<Principal, Status> {
        let bearer = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| refused(TokenFault::Missing, action))?;
        let principal = self.authenticate(bearer).await.map_err(status)?;
        let principal = principal.map_err(|fault| refused(fault, action))?;
        if !allows(&principal, action, None) {
            let (role, wanted) = (principal.role.name(), stream_of(action));
            let message = format!(
                "this is a token for the role {role}, not {wanted}: make one with \
                 `shore token create --role {wanted}`"
            );
            return Err(Status::permission_denied(message));
        }
        Ok(principal)
    }
}

/// The role a stream is for.
const fn stream_of(action: Action) -> &'static str {
    match action {
        Action::Runner => "runner",
        Action::Cell => "cell",
        Action::Router => "router",
        Action::Read | Action::Change | Action::Administer | Action::Work | Action::Bytes => "none",
    }
}

/// A token that lets nobody in, as a component is told.
fn refused(fault: TokenFault, action: Action) -> Status {
    let wanted = stream_of(action);
    Status::unauthenticated(format!(
        "{fault}: make a new one with `shore token create --role {wanted}`"
    ))
}

/// A failed command as a gRPC status.
fn status(error: ApplyError) -> Status {
    match error {
        ApplyError::Unavailable(reason) => Status::unavailable(reason),
        ApplyError::Refused(refusal) => Status::failed_precondition(refusal.to_string()),
    }
}

/// Checks a component's protocol and answers with ours.
fn welcome(hello: Option<&Hello>) -> Result<(u128, Welcome), Status> {
    let hello = hello.ok_or_else(|| Status::invalid_argument("the hello is empty"))?;
    let protocol = model::negotiate(hello.protocol(), PROTOCOL).map_err(|mismatch| {
        let ours = api::VERSION;
        let theirs: String = hello.version.chars().take(40).collect();
        Status::failed_precondition(format!("{mismatch} (client {theirs}, server {ours})"))
    })?;
    Ok((
        id_from(&hello.id)?,
        Welcome { version: api::VERSION.to_owned(), protocol, certificates: false },
    ))
}

/// A certificate as a component is told of it.
fn identity(
    issued: Result<Issued, TlsError>,
    (work, public_key): (Option<Work>, Bytes),
) -> Result<Identity, Status> {
    let Issued { certificate, expires_ms, authorities } =
        issued.map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(Identity { work, public_key, certificate, expires_ms, authorities })
}

/// The name of a component, or one made from its id when it gave none that is allowed.
fn component_name(hello: Option<&Hello>, fallback: &str) -> Result<model::Name, Status> {
    let given = hello.map(|hello| hello.name.as_str()).filter(|name| !name.is_empty());
    model::Name::parse("component", given.unwrap_or(fallback))
        .map_err(|error| Status::invalid_argument(error.to_string()))
}

/// The first message of a stream.
async fn first<T>(up: &mut Streaming<T>) -> Result<T, Status> {
    up.message().await?.ok_or_else(|| Status::invalid_argument("the stream ended before a hello"))
}

/// The service behind the streams.
#[derive(Debug, Clone)]
pub struct Service {
    server: Server,
}

impl Service {
    /// Runs a session until either side ends it or its token stops working; its error is the
    /// stream's last item.
    fn run<U, D, F>(
        &self,
        name: &'static str,
        (principal, action): (Principal, Action),
        session: F,
    ) -> Response<Down<D>>
    where
        D: Send + 'static,
        F: FnOnce(mpsc::Sender<Result<D, Status>>) -> U,
        U: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let (down, receiver) = mpsc::channel(MAX_DOWN);
        let session = session(down.clone());
        let server = self.server.clone();
        let stop = server.tasks().stop().clone();
        let running = async move {
            tokio::select! {
                ended = session => ended,
                fault = server.token_ends(principal.token) => match fault {
                    Ok(fault) => Err(refused(fault, action)),
                    Err(error) => Err(status(error)),
                },
            }
        };
        self.server.tasks().spawn_ok(name, async move {
            let ended = stop.or_stop(running).await;
            let ended = ended.unwrap_or_else(|| Err(Status::unavailable("the server is stopping")));
            if let Err(status) = ended {
                tracing::debug!(stream = name, %status, "a component's stream ended");
                // The component may have gone first.
                drop(down.send(Err(status)).await);
            }
        });
        Response::new(Box::pin(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl Components for Service {
    type RunnerStream = Down<RunnerDown>;
    type CellStream = Down<CellDown>;
    type RouterStream = Down<RouterDown>;

    async fn runner(&self, request: Request<Streaming<RunnerUp>>) -> Answer<RunnerDown> {
        let bearer = (self.server.admit(&request, Action::Runner).await?, Action::Runner);
        let (joining, up) = ((self.server.clone(), bearer.0.token), request.into_inner());
        Ok(self.run("runner-stream", bearer, |down| runner::session(joining, up, down)))
    }

    async fn cell(&self, request: Request<Streaming<CellUp>>) -> Answer<CellDown> {
        let bearer = (self.server.admit(&request, Action::Cell).await?, Action::Cell);
        let (joining, up) = ((self.server.clone(), bearer.0.token), request.into_inner());
        Ok(self.run("cell-stream", bearer, |down| cell::session(joining, up, down)))
    }

    async fn router(&self, request: Request<Streaming<RouterUp>>) -> Answer<RouterDown> {
        let bearer = (self.server.admit(&request, Action::Router).await?, Action::Router);
        let (server, up) = (self.server.clone(), request.into_inner());
        Ok(self.run("router-stream", bearer, |down| router::session(server, up, down)))
    }
}
