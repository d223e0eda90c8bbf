//! What takes care of one piece of work from its beginning to its end.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use drivers::{Driver, Exit, Handle, Outcome, ProcessId, Target};
use model::ExitStatus;
use runtime::{Backoff, Random, mono_now};
use tokio::sync::{oneshot, watch};

use crate::bucket::Bucket;
use crate::caches::Cache;
use crate::growth::Outgrown;
use crate::layers::Slot;
use crate::limits::{LOG_BYTES, REMOVE_PAUSES};
use crate::lines::Position;
use crate::logs::{Journal, Told};
use crate::report::Reporter;
use crate::shared::Shared;
use crate::tail::Tail;
use crate::volumes::Hold;
use crate::work::{Key, Want};

/// What takes care of one piece of work.
#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) shared: Arc<Shared>,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) key: Key,
    pub(crate) handle: Handle,
    /// Whose turns it takes.
    pub(crate) owner: String,
    pub(crate) want: watch::Receiver<Want>,
    pub(crate) reporter: Arc<Reporter>,
    pub(crate) journal: Journal,
    /// How much of what its container says is kept.
    pub(crate) bucket: Arc<Mutex<Bucket>>,
    /// Whether it must end because of its caches.
    pub(crate) outgrown: Arc<Outgrown>,
    /// What its container needs.
    pub(crate) needs: Mutex<Needs>,
}

/// What a container needs as long as it is there.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    pub(crate) caches: Vec<Cache>,
    pub(crate) layers: Vec<Arc<Slot>>,
    pub(crate) volumes: Vec<Hold>,
}

/// Resolves when the output of a process was read to its end.
#[derive(Debug)]
pub(crate) struct Reading {
    done: oneshot::Receiver<()>,
    tail: Arc<Tail>,
}

impl Reading {
    /// Of a process whose output nobody reads.
    pub(crate) fn nothing() -> Self {
        let (_, done) = oneshot::channel();
        Self { done, tail: Arc::default() }
    }
}

/// How the lines of a process appear in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Voice {
    /// As they are.
    Plain,
    /// Marked with a name.
    Named(String),
    /// Not at all.
    Quiet,
}

impl Actor {
    /// Waits until the work is not to go on.
    pub(crate) async fn unwanted(&self) -> Want {
        let mut want = self.want.clone();
        let wanted = want.wait_for(|want| *want != Want::Run).await.map(|want| *want);
        match wanted {
            Ok(want) => want,
            // The agent ends, and this with it.
            Err(_) => std::future::pending().await,
        }
    }

    /// Reads the output of a process in the background. Only with a position it can be resumed.
    pub(crate) async fn read(
        &self,
        process: &ProcessId,
        resume: Option<Position>,
        voice: Voice,
    ) -> Reading {
        let (done, reading) = oneshot::channel();
        let tail = Arc::<Tail>::default();
        let from = resume.unwrap_or_default().attach_from();
        match self.driver.attach(&self.handle, process, from).await {
            Ok(output) => {
                let (journal, stop) = (self.journal.clone(), self.shared.tasks.stop().clone());
                let (tail, bucket) = (Arc::clone(&tail), Arc::clone(&self.bucket));
                let metrics = Arc::clone(&self.shared.options.metrics);
                let told = Told { voice, tail, bucket, key: self.key, metrics };
                self.shared.tasks.spawn_ok("container output", async move {
                    stop.or_stop(journal.follow(output, resume, told)).await;
                    drop(done);
                });
            }
            Err(error) => self.journal.say(format!("the output cannot be read: {error}")).await,
        }
        Reading { done: reading, tail }
    }

    /// Waits until the output of an ended process was read; gives its last lines.
    pub(crate) async fn finish(&self, reading: Reading) -> Vec<String> {
        let Reading { done, tail } = reading;
        self.journal.patiently(&self.shared.options.leave, done).await;
        tail.lines()
    }

    /// Ends everything in the container.
    pub(crate) async fn stop(&self, grace: Duration) {
        if let Err(error) = self.driver.stop(&self.handle, Target::All, grace).await {
            // Removing the container kills everything in it once more.
            tracing::warn!(work = %self.key, %error, "a container does not stop");
        }
    }

    /// Sets how many bytes of lines its container may write each second; no more than the cell's
    /// operator lets any of them write. One that ran without an
    /// agent may have written more than that by now.
    pub(crate) fn limit_logs(&self, rate: Option<u64>, unread: Duration) {
        let most = self.shared.options.max_log_rate;
        let rate = rate.unwrap_or(LOG_BYTES).min(most);
        let mut bucket = Bucket::new(Some(rate), mono_now());
        bucket.credit(unread);
        *self.bucket.lock().unwrap_or_else(PoisonError::into_inner) = bucket;
    }

    fn needs(&self) -> MutexGuard<'_, Needs> {
        self.needs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps layers from being removed as long as the container is there.
    pub(crate) fn hold(&self, layers: Vec<Arc<Slot>>) {
        self.needs().layers.extend(layers);
    }

    /// The same for a cache. Gives the place where it is on this machine.
    pub(crate) fn hold_cache(&self, key: &str) -> PathBuf {
        let cache = self.shared.caches.hold(key, &self.outgrown);
        let path = cache.path();
        self.needs().caches.push(cache);
        path
    }

    /// The same for volumes.
    pub(crate) fn hold_volumes(&self, volumes: impl IntoIterator<Item = Hold>) {
        self.needs().volumes.extend(volumes);
    }

    /// Removes the container with everything in it. What it needs is kept until it is gone.
    pub(crate) async fn remove(&self) {
        remove(self.driver.as_ref(), &self.handle).await;
        let needs = std::mem::take(&mut *self.needs());
        drop((needs.layers, needs.volumes));
        self.shared.caches.release(needs.caches).await;
    }

    /// Waits until the server keeps everything the container wrote.
    pub(crate) async fn flush(&self) {
        self.journal.flush(&self.shared.options.leave).await;
    }
}

/// Removes a container. It tries until that worked: whoever waits may give something to others that
/// the container still has.
pub(crate) async fn remove(driver: &dyn Driver, handle: &Handle) {
    let random = Random::system();
    let mut backoff = Backoff::new(REMOVE_PAUSES.0, REMOVE_PAUSES.1);
    while let Err(error) = driver.remove(handle).await {
        tracing::warn!(%handle, %error, "cannot remove a container");
        runtime::sleep(backoff.next_delay(&random)).await;
    }
}

/// How a process ended, for programs.
pub(crate) const fn status(exit: &Exit) -> ExitStatus {
    match exit.outcome {
        Outcome::Lost => ExitStatus::Lost,
        Outcome::Code(_) | Outcome::Signal(_) if exit.oom => ExitStatus::OutOfMemory,
        Outcome::Code(code) => ExitStatus::Code(code),
        Outcome::Signal(signal) => ExitStatus::Signal(signal),
    }
}

/// How a process ended, for people: `exited with status 3`.
pub(crate) fn describe(exit: &Exit) -> String {
    let memory = if exit.oom { " (out of memory)" } else { "" };
    match exit.outcome {
        Outcome::Code(code) => format!("exited with status {code}{memory}"),
        Outcome::Signal(signal) => format!("was killed by signal {signal}{memory}"),
        Outcome::Lost => "was lost: its supervisor was killed or the machine restarted".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_ran_out_of_memory_is_said_to_have() {
        let exit = |outcome, oom| Exit { outcome, oom, at_ms: None };
        let cases = [
            (
                exit(Outcome::Signal(9), true),
                ExitStatus::OutOfMemory,
                "was killed by signal 9 (out of memory)",
            ),
            (exit(Outcome::Signal(9), false), ExitStatus::Signal(9), "was killed by signal 9"),
            (
                exit(Outcome::Code(137), true),
                ExitStatus::OutOfMemory,
                "exited with status 137 (out of memory)",
            ),
            (exit(Outcome::Code(137), false), ExitStatus::Code(137), "exited with status 137"),
        ];
        for (exit, wanted, said) in cases {
            assert_eq!((status(&exit), &*describe(&exit)), (wanted, said), "{exit:?}");
        }
        assert_eq!(status(&Exit::LOST), ExitStatus::Lost);
    }
}
