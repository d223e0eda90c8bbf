//! Tasks: claimed, carried out once, reported, forgotten.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use model::{TaskReport, TaskSpec};
use runtime::{Stop, mono_now};
use tokio::sync::oneshot;

use crate::actions::Executor;
use crate::actor::Actor;
use crate::error::{Context as _, Failure};
use crate::health::Length;
use crate::limits::{REJECT_PAUSE, TASK_GRACE};
use crate::prepare;
use crate::transfer::{self, Left};
use crate::work::Want;

/// A task, and what it belongs to.
type Order<'a> = (&'a TaskSpec, &'a HashMap<String, String>);

/// Why a task is ended before its time.
enum Cut {
    Unwanted(Want),
    Late,
    /// A cache of it grew too large.
    Outgrown(String),
    /// The server gave it up.
    Away,
}

/// Claims a task and carries it out once `claimed` says that the claim is durable. If that never
/// comes, nothing was started.
pub(crate) async fn run(actor: &Actor, order: Order<'_>, claimed: oneshot::Receiver<()>) {
    actor.reporter.claim().await;
    let want = tokio::select! {
        biased;
        want = actor.unwanted() => want,
        claimed = claimed => match claimed {
            Ok(()) => Want::Run,
            Err(_) => Want::Forget,
        },
    };
    match want {
        Want::Run => carry_out(actor, order).await,
        Want::Stop => actor.reporter.end(&TaskReport::Cancelled).await,
        Want::Forget => {}
    }
}

/// Gives a task back that cannot run here.
pub(crate) async fn reject(actor: &Actor, reason: &str) {
    runtime::sleep(REJECT_PAUSE).await;
    actor.reporter.end(&TaskReport::Reject { reason: reason.to_owned() }).await;
}

async fn carry_out(actor: &Actor, order: Order<'_>) {
    let (spec, _) = order;
    let limit = Duration::from_millis(spec.timeout_ms);
    let lease = actor.shared.options.task_lease;
    let stop = Stop::new();
    let report = {
        let work = work(actor, order, &stop);
        tokio::pin!(work);
        let cut = tokio::select! {
            biased;
            want = actor.unwanted() => Cut::Unwanted(want),
            done = &mut work => {
                let report = done.map_or_else(
                    |failure| TaskReport::Failed { reason: failure.reason, detail: failure.detail },
                    |left| match left {
                        None => TaskReport::Succeeded { result: None, artifact: None },
                        Some(Left::Text(text)) => {
                            TaskReport::Succeeded { result: Some(text), artifact: None }
                        }
                        Some(Left::Blob(digest)) => {
                            TaskReport::Succeeded { result: None, artifact: Some(digest) }
                        }
                    },
                );
                return finish(actor, Some(report)).await;
            }
            () = runtime::sleep(limit) => Cut::Late,
            reason = actor.outgrown.told() => {
                // What it writes meanwhile others may need.
                actor.stop(Duration::ZERO).await;
                Cut::Outgrown(reason.to_owned())
            }
            () = actor.shared.fence.closed_for(lease) => Cut::Away,
        };
        stop.stop();
        // What runs is ended gracefully; how it ends does not matter any more.
        drop(work.await);
        match cut {
            Cut::Unwanted(Want::Run | Want::Stop) => Some(TaskReport::Cancelled),
            Cut::Unwanted(Want::Forget) => None,
            Cut::Away => {
                let reason = format!("the server was out of reach for {}", Length(lease));
                Some(TaskReport::Failed { reason, detail: None })
            }
            Cut::Outgrown(reason) => Some(TaskReport::Failed { reason, detail: None }),
            Cut::Late => {
                let reason = format!("exceeded {} timeout", Length(limit));
                Some(TaskReport::Failed { reason, detail: None })
            }
        }
    };
    finish(actor, report).await;
}

async fn work(
    actor: &Actor,
    (spec, labels): Order<'_>,
    stop: &Stop,
) -> Result<Option<Left>, Failure> {
    let (properties, env) = (BTreeMap::new(), BTreeMap::new());
    let container = &spec.container;
    let (host, publish, volumes) = (None, None, &BTreeMap::new());
    let order = prepare::Order { spec: container, labels, volumes, properties, env, host, publish };
    let prepared = stop.or_stop(prepare::container(actor, order)).await;
    let dir = prepared.unwrap_or_else(|| Err(Failure::interrupted()))?;
    if actor.shared.fence.is_closed(mono_now()) {
        return Err(Failure::new("the server was out of reach when it was about to start"));
    }
    let executor = Executor { actor, dir, started: AtomicU32::new(0) };
    executor.run(&spec.action, stop).await?;
    let Some(file) = &spec.result_file else { return Ok(None) };
    let left = stop.or_stop(transfer::result(actor, file)).await;
    let left = left.unwrap_or_else(|| Err(Failure::interrupted()));
    left.map(Some).context(|| format!("its result {file} cannot be kept"))
}

/// Ends what is left, ships the last lines, reports, and removes the container.
async fn finish(actor: &Actor, report: Option<TaskReport>) {
    let grace = if report.is_some() { Duration::ZERO } else { TASK_GRACE };
    actor.stop(grace).await;
    actor.flush().await;
    if let Some(report) = report {
        actor.reporter.end(&report).await;
    }
    actor.remove().await;
}
