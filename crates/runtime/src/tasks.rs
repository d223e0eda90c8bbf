//! The task registry: every spawned task has a name and an owner that can stop it and wait for it.

use std::fmt::Debug;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What happens when a task ends with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The process cannot go on without it: everything is asked to stop.
    Critical,
    /// One connection, one job: its end is nobody else's.
    Ordinary,
}

/// Tells everybody who holds a clone that it is time to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop(CancellationToken);

impl Stop {
    /// A fresh signal.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everybody to stop.
    pub fn stop(&self) {
        self.0.cancel();
    }

    /// Whether a stop was asked for.
    pub fn is_stopped(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until a stop is asked for.
    pub async fn stopped(&self) {
        self.0.cancelled().await;
    }

    /// A signal that also fires when this one does.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// Runs `future` until it ends or a stop is asked for; `None` when stopped first.
    pub async fn or_stop<F: Future>(&self, future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            () = self.0.cancelled() => None,
            output = future => Some(output),
        }
    }
}

/// Owns spawned tasks. Cheap to clone; all clones share one registry.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: Stop,
}

impl Tasks {
    /// An empty registry whose tasks watch `stop`.
    pub fn new(stop: Stop) -> Self {
        Self { tracker: TaskTracker::new(), stop }
    }

    /// The stop signal of this registry.
    pub const fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Spawns a named task. An error is logged once, here; a `Critical` one stops the registry.
    pub fn spawn<F, E>(&self, kind: Kind, name: &'static str, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Debug,
    {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            if let Err(error) = future.await {
                tracing::error!(task = name, ?error, "task failed");
                if kind == Kind::Critical {
                    stop.stop();
                }
            }
        });
    }

    /// Spawns a task that cannot fail.
    pub fn spawn_ok<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(Kind::Ordinary, name, async move {
            future.await;
            Ok::<(), std::convert::Infallible>(())
        });
    }

    /// Runs blocking work on the blocking pool.
    pub async fn blocking<T, F>(&self, work: F) -> T
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        self.tracker
            .spawn_blocking(work)
            .await
            .expect("blocking work ends without a panic and is never aborted")
    }

    /// Asks all tasks to stop and waits at most `grace`; false when some are still running.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.stop.stop();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

/// Runs blocking work on the blocking pool of the current runtime.
pub async fn blocking<T, F>(work: F) -> T
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    tokio::task::spawn_blocking(work)
        .await
        .expect("blocking work ends without a panic and is never aborted")
}

/// Starts a named operating-system thread.
pub fn spawn_thread<F, T>(name: &str, work: F) -> std::io::Result<std::thread::JoinHandle<T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// Pauses the calling operating-system thread. Never call it from an asynchronous task.
pub fn pause_thread(duration: Duration) {
    std::thread::sleep(duration);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_critical_failure_stops_the_others() {
        let tasks = Tasks::new(Stop::new());
        let stop = tasks.stop().clone();
        tasks.spawn_ok("waits", async move { stop.stopped().await });
        tasks.spawn(Kind::Critical, "fails", async { Err("broken") });
        tasks.stop().stopped().await;
        assert!(tasks.shutdown(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn shutdown_reports_a_task_that_does_not_end() {
        let tasks = Tasks::new(Stop::new());
        tasks.spawn_ok("never", std::future::pending());
        assert!(!tasks.shutdown(Duration::from_millis(1)).await);
    }
}
