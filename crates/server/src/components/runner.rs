//! One runner's stream: offers jobs, keeps their leases, tells about cancellation.

use std::collections::BTreeMap;

use api::proto::runner_down::Message as Down;
use api::proto::runner_up::Message as Up;
use api::proto::{
    Assignment, Attempt, Cancel, Complete, JobKept, JobLog, RunnerDown, RunnerHello, RunnerUp,
    from_json, json,
};
use model::{JobId, RunnerId, TokenId};
use state::{Command, Job, JobCommand, Reply, RowKey};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{component_name, first, status, welcome};
use crate::apply::{ApplyError, Published};
use crate::server::{Server, next_event};
use crate::views;

type Out = mpsc::Sender<Result<RunnerDown, Status>>;

struct Session {
    server: Server,
    runner: RunnerId,
    /// Which of its streams this is.
    number: u128,
    down: Out,
    /// How many more jobs the runner takes.
    capacity: u32,
    /// What it holds: epoch, lines of log received, whether it was told to stop.
    held: BTreeMap<JobId, Held>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    epoch: u32,
    lines: u64,
    told_to_stop: bool,
}

pub(super) async fn session(
    (server, token): (Server, TokenId),
    mut up: Streaming<RunnerUp>,
    down: Out,
) -> Result<(), Status> {
    let Some(Up::Hello(hello)) = first(&mut up).await?.message else {
        return Err(Status::failed_precondition("the first message must be a hello"));
    };
    let (id, welcome) = welcome(hello.hello.as_ref())?;
    let runner = RunnerId(id);
    // Before it counts as the newest stream of that runner, which cuts off the others.
    let now = server.now();
    let may = server.read(move |state| state.runner_may_join(now, runner, token)).await;
    may.and_then(|may| Ok(may?)).map_err(status)?;
    let mut events = server.subscribe();
    let number = server.runner_came(runner);
    let _newest = Newest { server: server.clone(), runner, number };
    let mut session = Session { server, runner, number, down, capacity: 0, held: BTreeMap::new() };
    session.online(hello, token).await?;
    let _online = Online { server: session.server.clone(), runner };
    session.check_held().await?;
    session.send(Down::Welcome(welcome)).await?;
    loop {
        tokio::select! {
            message = up.message() => match message {
                Ok(Some(RunnerUp { message: Some(message) })) => {
                    if let Err(status) = session.message(message).await {
                        break Err(status);
                    }
                }
                Ok(Some(RunnerUp { message: None })) => {}
                Ok(None) => break Ok(()),
                Err(status) => break Err(status),
            },
            event = next_event(&mut events) => match event {
                Ok(event) => {
                    if let Err(status) = session.event(&event).await {
                        break Err(status);
                    }
                }
                Err(_) => break Ok(()),
            },
        }
    }
}

/// That a stream is its runner's newest, until it ends or another one comes.
struct Newest {
    server: Server,
    runner: RunnerId,
    number: u128,
}

impl Drop for Newest {
    fn drop(&mut self) {
        self.server.runner_gone(self.runner, self.number);
    }
}

/// Says that a runner's stream has ended, however it did.
struct Online {
    server: Server,
    runner: RunnerId,
}

impl Drop for Online {
    fn drop(&mut self) {
        let (server, runner) = (self.server.clone(), self.runner);
        self.server.tasks().spawn_ok("runner-offline", async move {
            let offline = Command::Job(JobCommand::RunnerOffline(runner));
            if let Err(error) = server.apply(offline).await {
                tracing::warn!(%runner, %error, "a runner that went away still counts as online");
            }
        });
    }
}

impl Session {
    async fn apply(&self, command: JobCommand) -> Result<Reply, ApplyError> {
        self.server.apply(Command::Job(command)).await
    }

    /// Applies a report that counts only for a job of this runner.
    async fn report(&self, report: JobCommand) -> Result<Reply, ApplyError> {
        self.apply(JobCommand::Over { runner: self.runner, report: Box::new(report) }).await
    }

    async fn send(&self, message: Down) -> Result<(), Status> {
        self.down
            .send(Ok(RunnerDown { message: Some(message) }))
            .await
            .map_err(|_| Status::cancelled("the runner is gone"))
    }

    async fn online(&mut self, hello: RunnerHello, token: TokenId) -> Result<(), Status> {
        let name = component_name(hello.hello.as_ref(), "runner")?;
        let holds = hello.holds.iter().map(attempt).collect::<Result<Vec<_>, _>>()?;
        for held in &holds {
            // Only the runner that holds a job writes its log, so its length is what arrived.
            let log = self.server.logs().stream(&held.job.to_string());
            let lines = log.map_or(0, |log| log.range().end);
            self.held.insert(held.job, Held { epoch: held.epoch, lines, told_to_stop: false });
        }
        let RunnerHello { labels, only_own, .. } = hello;
        let labels = labels.into_iter().collect();
        let (id, token) = (self.runner, Some(token));
        self.apply(JobCommand::RunnerOnline { id, name, labels, only_own, holds, token })
            .await
            .map_err(status)?;
        Ok(())
    }

    async fn message(&mut self, message: Up) -> Result<(), Status> {
        match message {
            Up::Hello(_) => Err(Status::failed_precondition("a second hello")),
            Up::Capacity(capacity) => {
                self.capacity = capacity;
                self.offer().await
            }
            Up::Ack(it) => {
                let done = self.report(JobCommand::Ack(attempt(&it)?)).await;
                self.confirm(done, it, Down::Started).await?;
                self.check_held().await
            }
            Up::Nack(it) => {
                self.held.remove(&it.job_id()?);
                let done = self.report(JobCommand::Nack(attempt(&it)?)).await;
                self.confirm(done, it, Down::Revoked).await
            }
            Up::Heartbeat(it) => match self.report(JobCommand::Heartbeat(attempt(&it)?)).await {
                Ok(_) => Ok(()),
                refused => self.confirm(refused, it, Down::Revoked).await,
            },
            Up::Log(log) => self.log(log).await,
            Up::Complete(Complete { attempt: Some(it), outcome_json }) => {
                let outcome = from_json("outcome", &outcome_json)?;
                let done = self.report(JobCommand::Complete(attempt(&it)?, outcome)).await;
                self.held.remove(&it.job_id()?);
                self.confirm(done, it, Down::Ended).await
            }
            Up::Complete(Complete { attempt: None, .. }) => {
                Err(Status::invalid_argument("a completion names no attempt"))
            }
        }
    }

    /// Tells the runner that its report is durable, or that the attempt is not its own any more.
    async fn confirm(
        &mut self,
        done: Result<Reply, ApplyError>,
        it: Attempt,
        yes: fn(Attempt) -> Down,
    ) -> Result<(), Status> {
        match done {
            Ok(_) => self.send(yes(it)).await,
            Err(ApplyError::Refused(refusal)) => {
                tracing::info!(runner = %self.runner, %refusal, "a runner's report was refused");
                self.held.remove(&it.job_id()?);
                self.send(Down::Revoked(it)).await
            }
            Err(error @ ApplyError::Unavailable(_)) => Err(status(error)),
        }
    }

    async fn log(&mut self, log: JobLog) -> Result<(), Status> {
        let Some(attempt) = log.attempt else {
            return Err(Status::invalid_argument("log lines name no attempt"));
        };
        let job = attempt.job_id()?;
        let Some(held) = self.held.get_mut(&job).filter(|held| held.epoch == attempt.epoch) else {
            return Ok(());
        };
        let stream = job.to_string();
        let server = &self.server;
        let append = || {
            // After a reconnect the runner repeats what it does not know to have arrived; after a
            // crash of ours, lines that had arrived may be gone.
            let known = held.lines.saturating_sub(log.first);
            let lost = log.first.saturating_sub(held.lines);
            let known = usize::try_from(known).unwrap_or(usize::MAX).min(log.lines.len());
            held.lines = held.lines.max(log.first + log.lines.len() as u64);
            if lost > 0 {
                server.say(&stream, &format!("({lost} lines were lost with the server)"));
            }
            let new = log.lines.get(known..).unwrap_or_default();
            if !new.is_empty() {
                server.append_log(&stream, new);
            }
            held.lines
        };
        let Some(lines) = server.if_newest((self.runner, self.number), append) else {
            return Ok(());
        };
        // What the disk refuses stays in memory: a job does not stand still for its log.
        let _in_file = self.server.write_log(&stream).await;
        self.send(Down::Kept(JobKept { attempt: Some(attempt), lines })).await
    }

    async fn event(&mut self, event: &Published) -> Result<(), Status> {
        let mine = |key: &RowKey| matches!(key, RowKey::Job(id) if self.held.contains_key(id));
        if event.rows.is_empty() || event.rows.iter().any(mine) {
            self.check_held().await?;
        }
        let about_jobs = |key: &RowKey| matches!(key, RowKey::Job(_));
        if event.rows.is_empty() || event.rows.iter().any(about_jobs) {
            self.offer().await?;
        }
        Ok(())
    }

    /// Offers jobs while the runner takes more.
    async fn offer(&mut self) -> Result<(), Status> {
        while self.capacity > 0 {
            if self.server.read(state::State::ready_jobs).await.map_err(status)? == 0 {
                return Ok(());
            }
            let reply = self.apply(JobCommand::Assign(self.runner)).await.map_err(status)?;
            let Reply::Assigned(Some(job)) = reply else { return Ok(()) };
            self.capacity -= 1;
            self.held.insert(job.id, Held { epoch: job.epoch, lines: 0, told_to_stop: false });
            let (id, epoch) = (job.id, job.epoch);
            let view = self.server.read(move |state| views::job(state, &job)).await;
            let job_json = json(&view.map_err(status)?)?;
            let attempt = Some(Attempt::of(id, epoch));
            self.send(Down::Assignment(Assignment { attempt, job_json })).await?;
        }
        Ok(())
    }

    /// Tells the runner which of its jobs are to stop or are not its own any more.
    async fn check_held(&mut self) -> Result<(), Status> {
        let ids: Vec<(JobId, u32)> = self.held.iter().map(|(id, held)| (*id, held.epoch)).collect();
        let rows = self
            .server
            .read(move |state| {
                let row = |(id, epoch)| (id, epoch, state.get::<Job>(id).cloned());
                ids.into_iter().map(row).collect::<Vec<_>>()
            })
            .await
            .map_err(status)?;
        for (id, epoch, row) in rows {
            let own = Some(self.runner);
            let row = row.filter(|job| job.epoch == epoch && job.state.runner() == own);
            let attempt = Attempt::of(id, epoch);
            let Some(job) = row else {
                self.held.remove(&id);
                self.send(Down::Revoked(attempt)).await?;
                continue;
            };
            let (Some(reason), Some(held)) = (&job.cancel, self.held.get_mut(&id)) else {
                continue;
            };
            if !std::mem::replace(&mut held.told_to_stop, true) {
                let cancel = Cancel { attempt: Some(attempt), reason: reason.clone() };
                self.send(Down::Cancel(cancel)).await?;
            }
        }
        Ok(())
    }
}

fn attempt(it: &Attempt) -> Result<state::Attempt, Status> {
    Ok(state::Attempt { job: it.job_id()?, epoch: it.epoch })
}
