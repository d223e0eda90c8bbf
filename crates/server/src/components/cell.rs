//! One cell's stream: sends what should run there, takes what it reports and logs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::proto::cell_down::Message as Down;
use api::proto::cell_up::Message as Up;
use api::proto::work::Kind;
use api::proto::{
    CellDown, CellHello, CellLog, CellUp, Desired, DesiredWork, Drained, Identify, LogKept, Report,
    Work, from_json, id_bytes, id_from, json,
};
use bytes::Bytes;
use model::{CellId, CellSpec, InstanceId, TaskId, TaskReport, Time};
use state::{
    App, CellCommand, CellInstance, Command, Deployment, Held, InstanceCopy, Process, Project,
    Reply, State,
};
use tokio::sync::{broadcast, mpsc};
use tonic::{Status, Streaming};

use super::{first, identity, status, welcome};
use crate::apply::{ApplyError, Published};
use crate::identity::Subject;
use crate::server::{ROUTER_WAIT, Server, next_event};

type Events = broadcast::Receiver<Arc<Published>>;
type Out = mpsc::Sender<Result<CellDown, Status>>;
/// How long after the disk refused log lines they are written again.
const REWRITE_PAUSE: Duration = Duration::from_secs(1);
/// Which container: kind and id.
type Key = (i32, u128);

struct Session {
    server: Server,
    cell: CellId,
    /// The epoch of this connection.
    epoch: u32,
    down: Out,
    /// What the cell was told: epoch, and whether to stop.
    told: BTreeMap<Key, (u32, bool)>,
    /// Instances to stop, and a generation of routes that has none to them: the cell is told once
    /// routers serve it, so that nothing new arrives at an instance that is being ended.
    withdrawn: BTreeMap<Key, u64>,
    /// The generation that is waited for, and how long at most.
    waiting: Option<(u64, Instant)>,
    /// The generation that every router serves, as far as was waited for.
    served: u64,
    /// When the next instance that drains has done so.
    drained: Option<Instant>,
    /// What the cell is told once its lines are written to disk, by log. A later one says more.
    unwritten: BTreeMap<String, LogKept>,
    /// When writing is tried again.
    rewrite: Option<Instant>,
    /// Whether the cell said that it leaves.
    leaving: Option<Leaving>,
}

/// How far a cell is that leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// Something on it can still move.
    Draining,
    /// It was told that it may go.
    Drained,
}

pub(super) async fn session(
    server: Server,
    mut up: Streaming<CellUp>,
    down: Out,
) -> Result<(), Status> {
    let Some(Up::Hello(hello)) = first(&mut up).await?.message else {
        return Err(Status::failed_precondition("the first message must be a hello"));
    };
    let (id, mut welcome) = welcome(hello.hello.as_ref())?;
    welcome.certificates = server.issues_certificates();
    let mut events = server.subscribe();
    let epoch = online(&server, CellId(id), &hello).await?;
    let mut session = Session {
        server,
        cell: CellId(id),
        epoch,
        down,
        told: BTreeMap::new(),
        withdrawn: BTreeMap::new(),
        waiting: None,
        served: 0,
        drained: None,
        unwritten: BTreeMap::new(),
        rewrite: None,
        leaving: None,
    };
    session.send(Down::Welcome(welcome)).await?;
    session.send_work(true).await?;
    let ended = session.stay(&mut up, &mut events).await;
    session.left(ended.is_ok()).await;
    ended
}

/// Waits until routers serve a generation, or for as long as that may take.
async fn served(server: &Server, waiting: Option<(u64, Instant)>) -> u64 {
    let Some((generation, until)) = waiting else { return std::future::pending().await };
    if !server.routers_serve_by(generation, until).await {
        tracing::warn!(generation, "a router does not serve the routes; instances stop regardless");
    }
    generation
}

/// Waits for a moment that may never come.
async fn at(at: Option<Instant>) {
    match at {
        Some(at) => runtime::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn online(server: &Server, id: CellId, hello: &CellHello) -> Result<u32, Status> {
    let spec: CellSpec = from_json("cell spec", &hello.spec_json)?;
    let holds = hello.holds.iter().map(held).collect::<Result<Vec<_>, _>>()?;
    let command = CellCommand::Online { id, spec, holds };
    match server.apply(Command::Cell(command)).await.map_err(status)? {
        Reply::Epoch(epoch) => Ok(epoch),
        other => Err(Status::internal(format!("unexpected reply {other:?}"))),
    }
}

fn held(work: &Work) -> Result<Held, Status> {
    let id = id_from(&work.id)?;
    Ok(match work.kind() {
        Kind::Task => Held::Task { id: TaskId(id), epoch: work.epoch },
        Kind::Instance => Held::Instance { id: InstanceId(id), epoch: work.epoch },
    })
}

fn work_of(kind: i32, id: u128, epoch: u32) -> Work {
    Work { kind, id: id_bytes(id), epoch }
}

impl Session {
    /// Goes on until the cell ends the stream, or it breaks.
    async fn stay(
        &mut self,
        up: &mut Streaming<CellUp>,
        events: &mut Events,
    ) -> Result<(), Status> {
        loop {
            tokio::select! {
                message = up.message() => match message? {
                    Some(CellUp { message: Some(message) }) => self.message(message).await?,
                    Some(CellUp { message: None }) => {}
                    None => return Ok(()),
                },
                event = next_event(events) => match event {
                    Ok(event) if self.concerns(&event) => self.send_work(false).await?,
                    Ok(_) => {}
                    Err(_) => return Err(Status::unavailable("the server is stopping")),
                },
                generation = served(&self.server, self.waiting) => {
                    self.served = self.served.max(generation);
                    self.waiting = None;
                    self.send_work(false).await?;
                }
                () = at(self.drained) => self.send_work(false).await?,
                () = at(self.rewrite) => self.write_again().await?,
            }
        }
    }

    /// The stream of a cell that leaves has ended. One that broke while something could still move
    /// may be opened again.
    async fn left(&self, orderly: bool) {
        let gone = match self.leaving {
            None => false,
            Some(Leaving::Draining) => orderly,
            Some(Leaving::Drained) => true,
        };
        if !gone {
            return;
        }
        let left = CellCommand::Left { id: self.cell, epoch: self.epoch };
        if let Err(error) = self.server.apply(Command::Cell(left)).await {
            tracing::debug!(cell = %self.cell, %error, "a cell left in another way");
        }
    }

    async fn send(&self, message: Down) -> Result<(), Status> {
        self.down
            .send(Ok(CellDown { message: Some(message) }))
            .await
            .map_err(|_| Status::cancelled("the cell is gone"))
    }

    fn concerns(&self, event: &Published) -> bool {
        event.cells.contains(&self.cell) || event.rows.is_empty()
    }

    async fn message(&mut self, message: Up) -> Result<(), Status> {
        let (id, epoch) = (self.cell, self.epoch);
        match message {
            Up::Hello(_) => Err(Status::failed_precondition("a second hello")),
            Up::Heartbeat(_) => {
                let beat = CellCommand::Heartbeat { id, epoch };
                self.server.apply(Command::Cell(beat)).await.map(|_| ()).map_err(status)
            }
            Up::Leave(_) => {
                self.leaving.get_or_insert(Leaving::Draining);
                let leave = CellCommand::Leave { id, epoch };
                self.server.apply(Command::Cell(leave)).await.map(|_| ()).map_err(status)
            }
            Up::Identify(Identify { work: Some(work), public_key }) => {
                self.identify(work, public_key).await
            }
            Up::Report(Report { work: Some(work), report_json }) => {
                self.report(work, &report_json).await
            }
            Up::Log(CellLog { work: Some(work), resume, lines }) => {
                let stream = match held(&work)? {
                    Held::Task { id, .. } => id.to_string(),
                    Held::Instance { id, .. } => id.to_string(),
                };
                // Only what the cell was told to run may write, and only into its own log.
                if !self.told.contains_key(&(work.kind, id_from(&work.id)?)) {
                    return self.send(Down::Kept(LogKept { work: Some(work), resume })).await;
                }
                self.server.append_log(&stream, &lines);
                self.unwritten.insert(stream.clone(), LogKept { work: Some(work), resume });
                self.write(&stream).await
            }
            // Nobody opens sessions yet.
            Up::Session(_) => Ok(()),
            Up::Report(Report { work: None, .. })
            | Up::Log(CellLog { work: None, .. })
            | Up::Identify(Identify { work: None, .. }) => {
                Err(Status::invalid_argument("a report names no work"))
            }
        }
    }

    /// Sends a certificate for an instance, if the cell was told to run it.
    async fn identify(&mut self, work: Work, public_key: Bytes) -> Result<(), Status> {
        let Held::Instance { id, epoch } = held(&work)? else {
            return Err(Status::invalid_argument("only an instance has a certificate"));
        };
        let told = self.told.get(&(work.kind, id.0));
        // What moved on meanwhile is asked for no more: the cell is told so by what it should run.
        if told.is_none_or(|(known, _)| *known != epoch) {
            return Ok(());
        }
        let read = move |state: &State| Subject::instance(state, id, epoch);
        let Some(subject) = self.server.read(read).await.map_err(status)? else { return Ok(()) };
        let Some(issued) = self.server.issue(&subject, &public_key) else { return Ok(()) };
        self.send(Down::Identity(identity(issued, (Some(work), public_key))?)).await
    }

    /// Writes a log to disk, then tells the cell that it is kept. What the disk refuses the cell
    /// keeps: it sends a few more messages and then leaves the output where it is.
    async fn write(&mut self, stream: &str) -> Result<(), Status> {
        if !self.server.write_log(stream).await {
            self.rewrite.get_or_insert_with(|| runtime::mono_now() + REWRITE_PAUSE);
            return Ok(());
        }
        match self.unwritten.remove(stream) {
            Some(kept) => self.send(Down::Kept(kept)).await,
            None => Ok(()),
        }
    }

    async fn write_again(&mut self) -> Result<(), Status> {
        self.rewrite = None;
        let streams: Vec<String> = self.unwritten.keys().cloned().collect();
        for stream in streams {
            self.write(&stream).await?;
        }
        Ok(())
    }

    async fn report(&mut self, work: Work, report_json: &[u8]) -> Result<(), Status> {
        let cell = self.cell;
        let (command, claim) = match held(&work)? {
            Held::Task { id, epoch } => {
                let report: TaskReport = from_json("task report", report_json)?;
                let claim = report == TaskReport::Claim;
                (CellCommand::Task { cell, task: id, epoch, report }, claim)
            }
            Held::Instance { id, epoch } => {
                let report = from_json("instance report", report_json)?;
                (CellCommand::Instance { cell, instance: id, epoch, report }, false)
            }
        };
        let report = Box::new(command);
        let command = CellCommand::Over { id: cell, epoch: self.epoch, report };
        match self.server.apply(Command::Cell(command)).await {
            Ok(_) if claim => self.send(Down::Claimed(work)).await,
            Ok(_) => Ok(()),
            Err(ApplyError::Refused(refusal)) => {
                tracing::info!(cell = %cell, %refusal, "a cell's report was refused");
                self.send(Down::Refused(work)).await
            }
            Err(error @ ApplyError::Unavailable(_)) => Err(status(error)),
        }
    }

    /// Sends what the cell should run, as far as it was not told before.
    async fn send_work(&mut self, full: bool) -> Result<(), Status> {
        let cell = self.cell;
        let told = if full { BTreeMap::new() } else { self.told.clone() };
        let now = self.server.now();
        let withdrawn = std::mem::take(&mut self.withdrawn);
        let routed = Routed { now, withdrawn, served: self.served };
        let look =
            move |state: &State| (wanted(state, cell, &told, &routed), is_drained(state, cell));
        let (wanted, is_drained) = self.server.read(look).await.map_err(status)?;
        let wanted = wanted?;
        let gone: Vec<Work> = self
            .told
            .iter()
            .filter(|(key, _)| !wanted.now.contains_key(key))
            .map(|((kind, id), (epoch, _))| work_of(*kind, *id, *epoch))
            .collect();
        self.told = wanted.now;
        self.withdrawn = wanted.withdrawn;
        let newest = self.withdrawn.values().max().filter(|newest| **newest > self.served);
        if let (Some(generation), None) = (newest, self.waiting) {
            self.waiting = Some((*generation, runtime::mono_now() + ROUTER_WAIT));
        }
        self.drained = wanted.drained.map(|at| runtime::mono_now() + at.since(now));
        if full || !wanted.news.is_empty() || !gone.is_empty() {
            self.send(Down::Desired(Desired { full, work: wanted.news, gone })).await?;
        }
        if is_drained && self.leaving == Some(Leaving::Draining) {
            self.leaving = Some(Leaving::Drained);
            self.send(Down::Drained(Drained {})).await?;
        }
        Ok(())
    }
}

/// Whether a cell is being emptied and nothing is left on it that can move.
fn is_drained(state: &State, cell: CellId) -> bool {
    state.drain_progress(cell).is_some_and(|progress| progress.is_finished())
}

/// What is known of the routes to instances that are to stop.
struct Routed {
    now: Time,
    withdrawn: BTreeMap<Key, u64>,
    served: u64,
}

#[derive(Default)]
struct Wanted {
    now: BTreeMap<Key, (u32, bool)>,
    news: Vec<DesiredWork>,
    withdrawn: BTreeMap<Key, u64>,
    drained: Option<Time>,
}

impl Wanted {
    /// Whether the end of an instance must wait: for routers, or until it has drained.
    fn holds_back(&mut self, state: &State, key: Key, it: &CellInstance, routed: &Routed) -> bool {
        let since = routed.withdrawn.get(&key).copied();
        let since = since.unwrap_or_else(|| state.route_generation());
        let due = state.stop_due(it);
        let drains = due > routed.now;
        let is_routed = since > routed.served;
        if drains {
            self.drained = Some(self.drained.map_or(due, |other| other.min(due)));
        }
        if drains || is_routed {
            self.withdrawn.insert(key, since);
        }
        drains || is_routed
    }
}

fn wanted(
    state: &State,
    cell: CellId,
    told: &BTreeMap<Key, (u32, bool)>,
    routed: &Routed,
) -> Result<Wanted, Status> {
    let mut wanted = Wanted::default();
    let work = state.cell_work(cell);
    for task in work.tasks {
        let key = (Kind::Task.into(), task.id.0);
        let before = told.get(&key);
        let is = (task.epoch, task.cancelling);
        wanted.now.insert(key, is);
        if before != Some(&is) {
            let known = before.is_some_and(|(epoch, _)| *epoch == task.epoch);
            wanted.news.push(DesiredWork {
                work: Some(work_of(key.0, key.1, task.epoch)),
                spec_json: if known { None } else { Some(json(&*task.spec)?) },
                stop: task.cancelling,
                labels: HashMap::new(),
            });
        }
    }
    for it in work.instances {
        let key = (Kind::Instance.into(), it.row.id.0);
        let before = told.get(&key);
        let InstanceCopy { epoch, stop, .. } = it.copy;
        let is = (epoch, stop);
        // It was told to run, so routes may have pointed at it until now.
        if stop && before == Some(&(epoch, false)) && wanted.holds_back(state, key, &it, routed) {
            wanted.now.insert(key, (epoch, false));
            continue;
        }
        wanted.now.insert(key, is);
        if before != Some(&is) {
            let known = before.is_some_and(|(known, _)| *known == epoch);
            wanted.news.push(DesiredWork {
                work: Some(work_of(key.0, key.1, epoch)),
                spec_json: if known { None } else { Some(json(&*it.process.spec)?) },
                stop,
                labels: labels(state, &it.process, it.row.index),
            });
        }
    }
    Ok(wanted)
}

/// What an instance is, in words people use; the cell puts it into the environment.
fn labels(state: &State, process: &Process, index: u32) -> HashMap<String, String> {
    let mut labels = HashMap::from([
        ("process".to_owned(), process.name.to_string()),
        ("index".to_owned(), index.to_string()),
    ]);
    let Some(deployment) = state.get::<Deployment>(process.deployment) else { return labels };
    labels.insert("workspace".to_owned(), deployment.workspace.to_string());
    labels.insert("deployment".to_owned(), deployment.number.to_string());
    let Some(app) = state.get::<App>(deployment.app) else { return labels };
    labels.insert("app".to_owned(), app.name.to_string());
    if let Some(project) = state.get::<Project>(app.project) {
        labels.insert("project".to_owned(), project.name.to_string());
    }
    labels
}
