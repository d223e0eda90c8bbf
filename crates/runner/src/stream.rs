//! The job stream: takes offers, starts what the server confirmed, reports, survives reconnects.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use api::proto::components_client::ComponentsClient;
use api::proto::runner_down::Message as Down;
use api::proto::runner_up::Message as Up;
use api::proto::{
    Assignment, Attempt, Complete, JobLog, LogLine, RunnerHello, RunnerUp, from_json, hello, json,
};
use api::{Client, ClientError, Endpoint, Joining};
use model::{JobId, Name, Outcome, RunnerId};
use runtime::{Backoff, Random, Stop, Tasks, mono_now};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use crate::context::{Context, JobEvent};
use crate::operations;

/// How often a running job's lease is renewed.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// Events of running jobs that may wait; then the jobs wait.
const MAX_EVENTS: usize = 1_024;
/// Messages to the server that may wait.
const MAX_UP: usize = 256;
/// Lines sent at once.
const MAX_LINES: usize = 256;
/// Lines of a job that the server has not confirmed; then the jobs wait.
const MAX_UNCONFIRMED: usize = 4_096;
/// How long the server may take to accept the stream.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const RECONNECT_BASE: Duration = Duration::from_millis(100);
const RECONNECT_CAP: Duration = Duration::from_secs(3);

/// What a runner is.
#[derive(Debug, Clone)]
pub struct Options {
    /// Kept for the life of the runner, so that it can take up its jobs after a reconnect.
    pub id: RunnerId,
    /// Its name.
    pub name: Name,
    /// Jobs may ask for labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it takes only jobs targeted at its id.
    pub only_own: bool,
    /// How many jobs it works on at once.
    pub capacity: u32,
    /// Fires once the server has let it in.
    pub joined: Stop,
}

/// Why a runner cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The server cannot be addressed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server will never let it in.
    #[error("the server refused this runner: {0}")]
    Refused(String),
}

/// A job this runner holds.
struct Held {
    epoch: u32,
    /// The job as the server showed it, until the acknowledgement is durable.
    offered: Option<Box<api::http_types::JobView>>,
    cancel: Stop,
    /// Lines the server has confirmed.
    confirmed: u64,
    /// Lines after those, which are sent again after a reconnect.
    lines: VecDeque<LogLine>,
    /// How many of them were sent on this connection.
    sent: usize,
    /// How it ended, until the server has confirmed it.
    ended: Option<Outcome>,
    /// Whether that was sent on this connection.
    end_sent: bool,
}

struct Runner {
    options: Options,
    client: Client,
    tasks: Tasks,
    joining: Joining,
    held: BTreeMap<JobId, Held>,
    events: mpsc::Sender<(JobId, u32, JobEvent)>,
}

/// Takes jobs until a stop is asked for.
pub async fn run(options: Options, endpoint: Endpoint, tasks: Tasks) -> Result<(), RunnerError> {
    let joining = Joining::new(&endpoint);
    let client = Client::new(endpoint)?;
    let (events, mut happened) = mpsc::channel(MAX_EVENTS);
    let held = BTreeMap::new();
    let mut runner = Runner { options, client, tasks, joining, held, events };
    let random = Random::system();
    let mut backoff = Backoff::new(RECONNECT_BASE, RECONNECT_CAP);
    let stop = runner.tasks.stop().clone();
    while !stop.is_stopped() {
        let status = match stop.or_stop(runner.session(&mut happened, &mut backoff)).await {
            None => break,
            Some(Ok(())) => Status::unavailable("it ended the stream"),
            // A server that let it in once and seems to be another one now may come back.
            Some(Err(status))
                if is_final(&status)
                    && !(runner.options.joined.is_stopped()
                        && status.message() == api::OTHER_AUTHORITY) =>
            {
                return Err(RunnerError::Refused(status.message().to_owned()));
            }
            Some(Err(status)) => status,
        };
        if let Some(sentence) = runner.joining.failed(&status) {
            tracing::warn!("{sentence}");
        }
        if stop.or_stop(runtime::sleep(backoff.next_delay(&random))).await.is_none() {
            break;
        }
    }
    for held in runner.held.values() {
        held.cancel.stop();
    }
    Ok(())
}

/// Whether trying again cannot help.
fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        tonic::Code::Unauthenticated
            | tonic::Code::PermissionDenied
            | tonic::Code::FailedPrecondition
    )
}

type Happened = mpsc::Receiver<(JobId, u32, JobEvent)>;

impl Runner {
    async fn connect(
        &self,
        up: mpsc::Receiver<RunnerUp>,
    ) -> Result<Streaming<api::proto::RunnerDown>, Status> {
        let endpoint = self.client.endpoint();
        let connector =
            endpoint.connector().map_err(|error| Status::internal(error.to_string()))?;
        let channel = tonic::transport::Endpoint::from(endpoint.url.clone())
            .http2_keep_alive_interval(HEARTBEAT)
            .keep_alive_timeout(HEARTBEAT)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .connect_with_connector(connector)
            .await
            .map_err(|error| api::unreachable(&error))?;
        let mut request = Request::new(ReceiverStream::new(up));
        let bearer = format!("Bearer {}", endpoint.token);
        let bearer = bearer.parse().map_err(|_| Status::internal("the token is no header"))?;
        request.metadata_mut().insert("authorization", bearer);
        let client = ComponentsClient::new(channel);
        let mut client = client
            .max_decoding_message_size(api::MAX_MESSAGE)
            .max_encoding_message_size(api::MAX_MESSAGE);
        Ok(client.runner(request).await?.into_inner())
    }

    async fn session(
        &mut self,
        happened: &mut Happened,
        backoff: &mut Backoff,
    ) -> Result<(), Status> {
        let (up, receiver) = mpsc::channel(MAX_UP);
        send(&up, self.hello()).await?;
        let opened = runtime::timeout(CONNECT_LIMIT, self.connect(receiver)).await;
        let mut down = opened.ok_or_else(|| Status::unavailable("no answer in time"))??;
        let mut beat = mono_now() + HEARTBEAT;
        loop {
            tokio::select! {
                message = down.message() => match message? {
                    Some(message) => {
                        if let Some(Down::Welcome(welcome)) = &message.message {
                            welcome.check()?;
                            backoff.reset();
                            self.joined();
                            self.welcome(&up).await?;
                        } else if let Some(message) = message.message {
                            self.message(message, &up).await?;
                        }
                    }
                    None => return Ok(()),
                },
                Some(event) = happened.recv(), if self.takes_more() => {
                    self.take(event, happened);
                    self.say(&up).await?;
                }
                () = runtime::sleep_until(beat) => {
                    beat = mono_now() + HEARTBEAT;
                    for (job, held) in &self.held {
                        if held.offered.is_none() && held.ended.is_none() {
                            send(&up, Up::Heartbeat(Attempt::of(*job, held.epoch))).await?;
                        }
                    }
                }
            }
        }
    }

    fn joined(&mut self) {
        if let Some(sentence) = self.joining.joined() {
            tracing::warn!("{sentence}");
        }
        self.options.joined.stop();
    }

    fn hello(&self) -> Up {
        // An offer that was not confirmed before the connection broke went back in line.
        let holds = self.held.iter().filter(|(_, held)| held.offered.is_none());
        Up::Hello(RunnerHello {
            hello: Some(hello(self.options.id.0, self.options.name.as_str())),
            labels: self.options.labels.clone().into_iter().collect(),
            only_own: self.options.only_own,
            holds: holds.map(|(job, held)| Attempt::of(*job, held.epoch)).collect(),
        })
    }

    async fn welcome(&mut self, up: &mpsc::Sender<RunnerUp>) -> Result<(), Status> {
        self.held.retain(|_, held| held.offered.is_none());
        for held in self.held.values_mut() {
            held.sent = 0;
            held.end_sent = false;
        }
        self.say(up).await?;
        self.offer_capacity(up).await
    }

    async fn offer_capacity(&self, up: &mpsc::Sender<RunnerUp>) -> Result<(), Status> {
        let held = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        send(up, Up::Capacity(self.options.capacity.saturating_sub(held))).await
    }

    async fn message(&mut self, message: Down, up: &mpsc::Sender<RunnerUp>) -> Result<(), Status> {
        match message {
            Down::Welcome(_) => Ok(()),
            Down::Assignment(assignment) => self.assigned(assignment, up).await,
            Down::Started(attempt) => self.started(&attempt),
            Down::Ended(attempt) => {
                self.forget(&attempt)?;
                self.offer_capacity(up).await
            }
            Down::Revoked(attempt) => {
                if let Some(held) = self.held.get(&attempt.job_id()?) {
                    held.cancel.stop();
                }
                self.forget(&attempt)?;
                self.offer_capacity(up).await
            }
            Down::Kept(kept) => {
                let Some(attempt) = kept.attempt else { return Ok(()) };
                if let Some(held) = self.held.get_mut(&attempt.job_id()?) {
                    held.confirm(kept.lines);
                }
                self.say(up).await
            }
            Down::Cancel(cancel) => {
                let Some(attempt) = cancel.attempt else { return Ok(()) };
                if let Some(held) = self.held.get(&attempt.job_id()?) {
                    tracing::info!(job = %attempt.job_id()?, cancel.reason, "a job is to stop");
                    held.cancel.stop();
                }
                Ok(())
            }
        }
    }

    async fn assigned(
        &mut self,
        assignment: Assignment,
        up: &mpsc::Sender<RunnerUp>,
    ) -> Result<(), Status> {
        let Some(attempt) = assignment.attempt else { return Ok(()) };
        let job = attempt.job_id()?;
        let view = match from_json("job", &assignment.job_json) {
            Ok(view) => view,
            Err(error) => {
                tracing::error!(%job, error = error.message(), "an offered job is not understood");
                return send(up, Up::Nack(attempt)).await;
            }
        };
        let held = Held {
            epoch: attempt.epoch,
            offered: Some(Box::new(view)),
            cancel: Stop::new(),
            confirmed: 0,
            lines: VecDeque::new(),
            sent: 0,
            ended: None,
            end_sent: false,
        };
        self.held.insert(job, held);
        send(up, Up::Ack(attempt)).await
    }

    /// The acknowledgement is durable: the work starts.
    fn started(&mut self, attempt: &Attempt) -> Result<(), Status> {
        let id = attempt.job_id()?;
        let Some(held) = self.held.get_mut(&id).filter(|held| held.epoch == attempt.epoch) else {
            return Ok(());
        };
        let Some(job) = held.offered.take() else { return Ok(()) };
        let context =
            Context::new(*job, self.client.clone(), held.cancel.clone(), self.events.clone());
        self.tasks.spawn_ok("job", operations::run(context));
        Ok(())
    }

    fn forget(&mut self, attempt: &Attempt) -> Result<(), Status> {
        let job = attempt.job_id()?;
        if self.held.get(&job).is_some_and(|held| held.epoch == attempt.epoch) {
            self.held.remove(&job);
        }
        Ok(())
    }

    /// Whether what jobs say can still be kept until the server confirms it.
    fn takes_more(&self) -> bool {
        self.held.values().all(|held| held.lines.len() < MAX_UNCONFIRMED)
    }

    /// Keeps what jobs said.
    fn take(&mut self, first: (JobId, u32, JobEvent), happened: &mut Happened) {
        let mut next = Some(first);
        let mut taken = 0;
        while let Some((job, epoch, event)) = next {
            if let Some(held) = self.held.get_mut(&job).filter(|held| held.epoch == epoch) {
                match event {
                    JobEvent::Line(line) => held.lines.push_back(line),
                    JobEvent::Ended(outcome) => held.ended = Some(outcome),
                }
            }
            taken += 1;
            next = if taken < MAX_LINES { happened.try_recv().ok() } else { None };
        }
    }

    /// Sends what was not sent on this connection: lines first, then how the job ended.
    async fn say(&mut self, up: &mpsc::Sender<RunnerUp>) -> Result<(), Status> {
        for (job, held) in &mut self.held {
            let attempt = Attempt::of(*job, held.epoch);
            while held.sent < held.lines.len() {
                let lines: Vec<_> =
                    held.lines.iter().skip(held.sent).take(MAX_LINES).cloned().collect();
                let first = held.confirmed + held.sent as u64;
                held.sent += lines.len();
                let attempt = Some(attempt.clone());
                send(up, Up::Log(JobLog { attempt, first, lines })).await?;
            }
            if let (Some(outcome), false) = (&held.ended, held.end_sent) {
                held.end_sent = true;
                complete(up, attempt, outcome).await?;
            }
        }
        Ok(())
    }
}

impl Held {
    /// The server has so many lines.
    fn confirm(&mut self, lines: u64) {
        let new = usize::try_from(lines.saturating_sub(self.confirmed)).unwrap_or(usize::MAX);
        let new = new.min(self.lines.len());
        self.lines.drain(..new);
        self.sent = self.sent.saturating_sub(new);
        self.confirmed += new as u64;
    }
}

async fn complete(
    up: &mpsc::Sender<RunnerUp>,
    attempt: Attempt,
    outcome: &Outcome,
) -> Result<(), Status> {
    let outcome_json = json(outcome)?;
    send(up, Up::Complete(Complete { attempt: Some(attempt), outcome_json })).await
}

async fn send(up: &mpsc::Sender<RunnerUp>, message: Up) -> Result<(), Status> {
    up.send(RunnerUp { message: Some(message) })
        .await
        .map_err(|_| Status::unavailable("the stream is closed"))
}
