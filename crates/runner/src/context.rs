//! What a running job has at hand: its client, its steps, its end.

use std::time::Duration;

use api::http_types::{AttemptRef, JobView};
use api::proto::LogLine;
use api::{Client, ClientError};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use model::{JobId, LogSource, Outcome, StepStatus, TerminalEvent};
use runtime::{Backoff, Clock as _, Ids, Random, Stop, SystemClock, mono_now};
use tokio::sync::mpsc;

/// How long a call is tried again while the server is away. Longer than its restart takes, shorter
/// than people wait.
const RETRY_FOR: Duration = Duration::from_mins(1);
const RETRY_BASE: Duration = Duration::from_millis(50);
const RETRY_CAP: Duration = Duration::from_secs(2);

/// What a running job tells the stream.
#[derive(Debug)]
pub(crate) enum JobEvent {
    /// A line of its log.
    Line(LogLine),
    /// It is over.
    Ended(Outcome),
}

/// Why a job did not get through.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    /// The server said no, or is gone.
    #[error("{0}")]
    Call(#[from] ClientError),
    /// The work failed.
    #[error("{0}")]
    Failed(String),
    /// It was told to stop.
    #[error("it was told to stop")]
    Cancelled,
}

/// A running job.
pub(crate) struct Context {
    pub(crate) job: JobView,
    pub(crate) client: Client,
    cancel: Stop,
    events: mpsc::Sender<(JobId, u32, JobEvent)>,
    steps: u32,
}

impl Context {
    pub(crate) const fn new(
        job: JobView,
        client: Client,
        cancel: Stop,
        events: mpsc::Sender<(JobId, u32, JobEvent)>,
    ) -> Self {
        Self { job, client, cancel, events, steps: 0 }
    }

    /// Names this attempt in calls.
    pub(crate) const fn attempt(&self) -> AttemptRef {
        AttemptRef { job: self.job.id, epoch: self.job.epoch }
    }

    /// Waits for `work` unless the job is told to stop first.
    pub(crate) async fn or_cancel<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, JobError>
    where
        JobError: From<E>,
    {
        match self.cancel.or_stop(work).await {
            Some(done) => Ok(done?),
            None => Err(JobError::Cancelled),
        }
    }

    /// Calls the server; while it cannot be reached or cannot write, tries again for a while.
    pub(crate) async fn call<'a, T>(
        &'a self,
        call: impl Fn(&'a Client) -> BoxFuture<'a, Result<T, ClientError>>,
    ) -> Result<T, JobError> {
        let random = Random::system();
        let mut backoff = Backoff::new(RETRY_BASE, RETRY_CAP);
        let began = mono_now();
        loop {
            match self.or_cancel(async { Ok::<_, JobError>(call(&self.client).await) }).await? {
                Err(error) if error.is_transient() && began.elapsed() < RETRY_FOR => {
                    let pause = async {
                        runtime::sleep(backoff.next_delay(&random)).await;
                        Ok::<_, JobError>(())
                    };
                    self.or_cancel(pause).await?;
                }
                done => return Ok(done?),
            }
        }
    }

    /// A fresh identifier, so that a repeated call is known to be one.
    pub(crate) fn fresh_id() -> u128 {
        Ids::new(Random::system()).fresh(&SystemClock)
    }

    async fn emit(&self, event: &TerminalEvent) {
        let text = serde_json::to_vec(event).unwrap_or_default();
        let line = LogLine {
            at_ms: SystemClock.now_ms(),
            source: u32::from(LogSource::Event.code()),
            text: Bytes::from(text),
        };
        // The stream ends only with the runner.
        drop(self.events.send((self.job.id, self.job.epoch, JobEvent::Line(line))).await);
    }

    /// A named result.
    pub(crate) async fn value(&self, name: &str, value: &str) {
        let event = TerminalEvent::Value { name: name.to_owned(), value: value.to_owned() };
        self.emit(&event).await;
    }

    /// A line that belongs to the current step.
    pub(crate) async fn line(&self, source: LogSource, text: String) {
        self.emit(&TerminalEvent::Line { step: self.steps, source, text }).await;
    }

    /// A line of our own that belongs to the current step.
    pub(crate) async fn say(&self, text: impl Into<String>) {
        self.line(LogSource::System, text.into()).await;
    }

    /// Runs a step and shows how it begins and ends. `work` returns a short result.
    pub(crate) async fn step<T>(
        &mut self,
        title: &str,
        work: impl AsyncFnOnce(&Self) -> Result<(T, String), JobError>,
    ) -> Result<T, JobError> {
        self.steps += 1;
        let step = self.steps;
        self.emit(&TerminalEvent::StepStarted { step, title: title.to_owned() }).await;
        let began = mono_now();
        let done = work(self).await;
        let (status, detail) = match &done {
            Ok((_, detail)) => (StepStatus::Ok, detail.clone()),
            Err(JobError::Cancelled) => (StepStatus::Cancelled, "cancelled".to_owned()),
            Err(error) => (StepStatus::Failed, error.to_string()),
        };
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.emit(&TerminalEvent::StepEnded { step, status, detail, ms }).await;
        done.map(|(value, _)| value)
    }

    /// Says how the job ended.
    pub(crate) async fn end(self, done: Result<(), JobError>) {
        let outcome = match done {
            Ok(()) => Outcome::Succeeded,
            Err(JobError::Cancelled) => {
                Outcome::Cancelled { reason: "it was cancelled".to_owned() }
            }
            Err(error) => Outcome::Failed { reason: error.to_string() },
        };
        let ended = (self.job.id, self.job.epoch, JobEvent::Ended(outcome));
        drop(self.events.send(ended).await);
    }
}
