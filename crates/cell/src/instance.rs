//! Instances: started, watched, reported, stopped.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use drivers::{DriverError, Exit, ProcessId, ProcessSpec as Command, Signal, Target};
use futures_util::future;
use model::{ExitStatus, FailureDetail, InstanceReport, Name, ProcessSpec, StopSignal, VolumeId};
use runtime::mono_now;

use crate::actor::{Actor, Reading, Voice, describe, status};
use crate::error::{Context as _, Failure};
use crate::health::{Checks, Health, Length, Verdict};
use crate::identity::{self, Proof};
use crate::inside::Inside;
use crate::limits::REJECT_PAUSE;
use crate::lines::Position;
use crate::notes::Notes;
use crate::ports::Port;
use crate::prepare::{self, Order};
use crate::probe::Prober;
use crate::shared::{Place, inner_port};
use crate::work::Want;

/// The name of a process whose type is not told.
const DEFAULT_PROCESS: &str = "app";
/// The name of the hook before a stop, as a process and in the log.
const PRE_STOP: &str = "pre-stop";
/// Labels, and the variables an app finds them in.
const LABELS: [(&str, &str); 5] = [
    ("project", "SHORE_PROJECT"),
    ("app", "SHORE_APP"),
    ("workspace", "SHORE_WORKSPACE"),
    ("index", "SHORE_INSTANCE_INDEX"),
    ("deployment", "SHORE_DEPLOYMENT"),
];

/// What the server says of an instance besides its spec.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) labels: HashMap<String, String>,
    pub(crate) volumes: BTreeMap<Name, VolumeId>,
}

/// An instance whose process was started.
struct Running<'a> {
    actor: &'a Actor,
    notes: Notes,
    place: Place,
    reading: Reading,
    proof: Option<Proof>,
}

/// What [`start`] made.
struct Begun {
    notes: Notes,
    place: Place,
    proof: Option<Proof>,
}

/// Why an instance ends.
enum End {
    Unwanted(Want),
    Exited(Exit),
    NeverHealthy(String),
    Unhealthy(String),
}

/// Starts an instance and takes care of it to its end.
pub(crate) async fn run(actor: &Actor, spec: &ProcessSpec, given: &Given) {
    let Some(port) = actor.shared.ports.take() else {
        return reject(actor, "the cell has no free port").await;
    };
    let started = match start(actor, (spec, given), port).await {
        Ok(started) => started,
        Err(failure) => {
            actor.shared.identities.forget(actor.key).await;
            actor.remove().await;
            let reason = format!("could not start: {failure}");
            let crashed = InstanceReport::Crashed { reason, never_healthy: false, detail: None };
            return actor.reporter.end(&crashed).await;
        }
    };
    let Some(Begun { notes, place, proof }) = started else {
        actor.shared.identities.forget(actor.key).await;
        actor.remove().await;
        if *actor.want.borrow() == Want::Stop {
            actor.reporter.end(&InstanceReport::Gone).await;
        }
        return;
    };
    let reading = actor.read(&notes.process, Some(Position::default()), Voice::Plain).await;
    Running { actor, notes, place, reading, proof }.watch().await;
}

/// Takes care of an instance that an earlier agent started.
pub(crate) async fn adopt(actor: &Actor, notes: Notes, resume: Position) {
    let port = actor.shared.ports.keep(notes.host_port);
    let place = actor.shared.place(actor, port);
    let reading = actor.read(&notes.process, Some(resume), Voice::Plain).await;
    let proof = Some(actor.shared.identities.known(actor.key).await);
    Running { actor, notes, place, reading, proof }.watch().await;
}

/// Gives an instance back that cannot run here.
pub(crate) async fn reject(actor: &Actor, reason: &str) {
    runtime::sleep(REJECT_PAUSE).await;
    actor.reporter.end(&InstanceReport::Reject { reason: reason.to_owned() }).await;
}

/// Makes the container and starts the process; `None` when it is not wanted any more.
async fn start(
    actor: &Actor,
    (spec, given): (&ProcessSpec, &Given),
    port: Port,
) -> Result<Option<Begun>, Failure> {
    let Given { labels, volumes } = given;
    let name = labels.get("process").map_or(DEFAULT_PROCESS, String::as_str);
    let ports = (inner_port(actor, &port), port.number);
    let notes = Notes::new(spec, ProcessId::new(name)?, ports);
    let properties = notes.properties()?;
    let env = variables(actor, labels, &notes);
    let host = Some(actor.shared.inner_host(actor));
    let publish = actor.shared.publish(actor, &port);
    let container = &spec.container;
    let order = Order { spec: container, labels, volumes, properties, env, host, publish };
    let identities = &actor.shared.identities;
    let made = future::try_join(prepare::container(actor, order), identities.obtain(actor));
    let (image_dir, obtained) = tokio::select! {
        biased;
        _ = actor.unwanted() => return Ok(None),
        made = made => made?,
    };
    let mut command = Command::new(notes.process.clone(), spec.argv.iter().map(String::as_str));
    command.dir = spec.dir.clone().or(image_dir);
    let place = actor.shared.place(actor, port);
    if place.address.ip().is_unspecified() {
        return Err(Failure::new("the container has no address"));
    }
    let proving = identities.prove(actor, (place.address, obtained));
    let proof = tokio::select! {
        biased;
        _ = actor.unwanted() => return Ok(None),
        proof = proving => proof?,
    };
    actor.driver.start(&actor.handle, command).await?;
    Ok(Some(Begun { notes, place, proof }))
}

/// What every process of an instance finds in its environment.
fn variables(
    actor: &Actor,
    labels: &HashMap<String, String>,
    notes: &Notes,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([
        ("PORT".to_owned(), notes.port.to_string()),
        ("SHORE_INSTANCE_ID".to_owned(), actor.key.id_text()),
        ("SHORE_PROCESS".to_owned(), notes.process.to_string()),
    ]);
    if actor.shared.identities.are_made() {
        let dir = identity::directory(actor.driver.as_ref(), &actor.handle);
        env.insert(identity::VARIABLE.to_owned(), dir);
    }
    for (label, variable) in LABELS {
        env.extend(labels.get(label).map(|value| (variable.to_owned(), value.clone())));
    }
    env
}

impl Running<'_> {
    async fn watch(self) {
        self.actor.reporter.started(self.place.published).await;
        let end = match self.end().await {
            Ok(end) => end,
            Err(failure) => End::Unhealthy(format!("cannot be watched: {failure}")),
        };
        self.finish(end).await;
    }

    fn health(&self) -> Health {
        let Self { actor, notes, place, .. } = self;
        let checks = Checks {
            startup: notes.startup.clone(),
            liveness: notes.check.clone(),
            readiness: notes.readiness.clone(),
        };
        let (driver, handle) = (actor.driver.clone(), actor.handle.clone());
        let inside = Some(Inside { driver, handle, dir: notes.dir.clone() });
        let prober = Prober { address: place.address, inside };
        // The low half of an id is random.
        let spread = u64::try_from(actor.key.id & u128::from(u64::MAX)).unwrap_or_default();
        Health::new(checks, prober, spread)
    }

    /// Keeps its certificate valid; never ends.
    async fn renewal(&self) {
        let Self { actor, place, .. } = self;
        match self.proof {
            Some(proof) => actor.shared.identities.renew(actor, place.address, proof).await,
            None => std::future::pending().await,
        }
    }

    /// Waits for whatever ends the instance.
    async fn end(&self) -> Result<End, Failure> {
        let actor = self.actor;
        let mut health = self.health();
        let mut refuses = false;
        let exit = actor.driver.wait(&actor.handle, &self.notes.process);
        tokio::pin!(exit);
        let renewal = self.renewal();
        tokio::pin!(renewal);
        loop {
            tokio::select! {
                biased;
                want = actor.unwanted() => return Ok(End::Unwanted(want)),
                () = &mut renewal => {}
                reason = actor.outgrown.told() => {
                    actor.stop(Duration::ZERO).await;
                    return Ok(End::Unhealthy(reason.to_owned()));
                }
                exit = &mut exit => {
                    return exit.map(End::Exited).context(|| "its end is unknown".to_owned());
                }
                verdict = health.next() => match verdict {
                    Verdict::Ready => {
                        if std::mem::take(&mut refuses) {
                            actor.journal.say("takes requests").await;
                        }
                        actor.reporter.ready(true).await;
                    }
                    Verdict::NotReady { reason } => {
                        refuses = true;
                        actor.journal.say(format!("takes no requests: {reason}")).await;
                        actor.reporter.ready(false).await;
                    }
                    Verdict::NeverHealthy { reason } => return Ok(End::NeverHealthy(reason)),
                    Verdict::Unhealthy { reason } => {
                        actor.reporter.ready(false).await;
                        return Ok(End::Unhealthy(reason));
                    }
                },
            }
        }
    }

    /// Lets the process end by itself: first the hook, then the signal, both within the grace.
    async fn end_gracefully(&self) {
        let Self { actor, notes, .. } = self;
        let grace = Duration::from_millis(notes.grace_ms);
        let until = mono_now() + grace;
        if grace.is_zero() {
            return;
        }
        if let Some(hook) = &notes.pre_stop
            && let Err(failure) = self.hook(hook, grace).await
        {
            // It ends anyway.
            actor.journal.say(format!("{PRE_STOP}: {failure}")).await;
        }
        let driver = &actor.driver;
        match driver.signal(&actor.handle, &notes.process, signal(notes.stop_signal)).await {
            Err(DriverError::NotRunning { .. }) => return,
            Err(error) => tracing::warn!(work = %actor.key, %error, "cannot signal a process"),
            Ok(()) => {}
        }
        let left = until.saturating_duration_since(mono_now());
        let exit = driver.wait(&actor.handle, &notes.process);
        if runtime::timeout(left, exit).await.is_none() {
            let said = format!("did not end within {} of being asked: killed", Length(grace));
            actor.journal.say(said).await;
        }
    }

    async fn hook(&self, argv: &[String], limit: Duration) -> Result<(), Failure> {
        let Self { actor, notes, .. } = self;
        let id = ProcessId::new(PRE_STOP)?;
        let mut command = Command::new(id.clone(), argv.iter().map(String::as_str));
        command.dir.clone_from(&notes.dir);
        actor.driver.start(&actor.handle, command).await?;
        let reading = actor.read(&id, None, Voice::Named(PRE_STOP.to_owned())).await;
        let exit = runtime::timeout(limit, actor.driver.wait(&actor.handle, &id)).await;
        if exit.is_none() {
            actor.driver.stop(&actor.handle, Target::One(id), Duration::ZERO).await?;
        }
        actor.finish(reading).await;
        match exit.transpose()? {
            Some(exit) if exit.success() => Ok(()),
            Some(exit) => Err(Failure::new(describe(&exit))),
            None => Err(Failure::new(format!("did not end within {}", Length(limit)))),
        }
    }

    /// Ends what is left, ships the last lines, reports and removes.
    async fn finish(self, end: End) {
        if !matches!(end, End::Exited(_)) {
            self.end_gracefully().await;
        }
        let Self { actor, place, reading, .. } = self;
        actor.stop(Duration::ZERO).await;
        let tail = actor.finish(reading).await;
        actor.flush().await;
        let exit = match &end {
            End::Exited(exit) => Some(status(exit)),
            End::Unwanted(_) | End::NeverHealthy(_) | End::Unhealthy(_) => None,
        };
        let crashed = |reason, never_healthy| crashed((reason, never_healthy), (exit, tail));
        let report = match end {
            End::Exited(exit) => {
                // The process is gone already: a restart need not wait for its files.
                actor.reporter.end(&crashed(describe(&exit), false)).await;
                None
            }
            End::NeverHealthy(reason) => Some(crashed(reason, true)),
            End::Unhealthy(reason) => Some(crashed(reason, false)),
            End::Unwanted(Want::Forget) => None,
            End::Unwanted(Want::Run | Want::Stop) => Some(InstanceReport::Gone),
        };
        // Nothing leads to its address any more when that becomes another one's.
        actor.shared.identities.forget(actor.key).await;
        actor.remove().await;
        drop(place);
        if let Some(report) = report {
            actor.reporter.end(&report).await;
        }
    }
}

fn crashed(
    (reason, never_healthy): (String, bool),
    (exit, tail): (Option<ExitStatus>, Vec<String>),
) -> InstanceReport {
    let detail = FailureDetail { action: None, exit, tail };
    InstanceReport::Crashed { reason, never_healthy, detail: Some(Box::new(detail)) }
}

const fn signal(signal: StopSignal) -> Signal {
    match signal {
        StopSignal::Term => Signal::Term,
        StopSignal::Int => Signal::Int,
        StopSignal::Quit => Signal::Quit,
        StopSignal::Hup => Signal::Hup,
        StopSignal::Usr1 => Signal::Usr1,
        StopSignal::Usr2 => Signal::Usr2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_can_set_what_tells_of_an_instance() {
        for (_, variable) in LABELS {
            assert!(model::PLATFORM_ENV.contains(&variable), "{variable}");
        }
    }
}
