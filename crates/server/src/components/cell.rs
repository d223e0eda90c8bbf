//! One cell's stream: sends what should run there, takes what it reports and logs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::proto::cell_down::Message as Down;
use api::proto::cell_up::Message as Up;
use api::proto::work::Kind;
use api::proto::{
    CellDown, CellHello, CellLog, CellUp, Drained, Drivers, Identify, LogKept, Report, VolumeGone,
    Work, from_json, id_bytes, id_from,
};
use bytes::Bytes;
use model::{
    CellDrivers, CellId, CellSpec, Digest, InstanceId, MAX_TASK_RESULT, TaskId, TaskReport, Time,
    TokenId, VolumeId,
};
use state::{
    App, Cell, CellCommand, CellInstance, CellUnit, Command, Deployment, Held, Instance, Order,
    Process, Project, Reply, State, Task, WorkKey,
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::desired::{Item, Orders, Parts, Spec};
use super::{first, identity, status, welcome};
use crate::apply::ApplyError;
use crate::identity::Subject;
use crate::server::{ROUTER_WAIT, Server};
use crate::wakes::{Look, Waking};

type Out = mpsc::Sender<Result<CellDown, Status>>;
/// How long after the disk refused log lines they are written again.
const REWRITE_PAUSE: Duration = Duration::from_secs(1);

struct Session {
    server: Server,
    cell: CellId,
    /// The epoch of this connection.
    epoch: u32,
    down: Out,
    /// What the cell was told.
    told: BTreeMap<WorkKey, Order>,
    /// Instances to stop, and a generation of routes that has none to them: the cell is told once
    /// routers serve it, so that nothing new arrives at an instance that is being ended.
    withdrawn: BTreeMap<WorkKey, u64>,
    /// The generation that is waited for, and how long at most.
    waiting: Option<(u64, Instant)>,
    /// The generation that every router serves, as far as was waited for.
    served: u64,
    /// When the next instance that drains has done so.
    drained: Option<Instant>,
    /// What the cell is told once its lines are written to disk, by log. A later one says more.
    unwritten: BTreeMap<String, LogKept>,
    /// Volumes that the cell was told to delete.
    deleting: BTreeSet<VolumeId>,
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
    (server, token): (Server, TokenId),
    mut up: Streaming<CellUp>,
    down: Out,
) -> Result<(), Status> {
    let Some(Up::Hello(hello)) = first(&mut up).await?.message else {
        return Err(Status::failed_precondition("the first message must be a hello"));
    };
    let (id, mut welcome) = welcome(hello.hello.as_ref())?;
    welcome.certificates = server.issues_certificates();
    let wakes = server.apply_loop().wakes().subscribe(CellId(id));
    let epoch = online(&server, (CellId(id), token), &hello).await?;
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
        deleting: BTreeSet::new(),
        rewrite: None,
        leaving: None,
    };
    session.send(Down::Welcome(welcome)).await?;
    session.send_work(Look::Everything, true).await?;
    let _line = session.server.sessions().cell_came(session.cell, epoch, &session.down);
    let ended = session.stay(&mut up, &wakes).await;
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

async fn online(
    server: &Server,
    (id, token): (CellId, TokenId),
    hello: &CellHello,
) -> Result<u32, Status> {
    let token = Some(token);
    let spec: CellSpec = from_json("cell spec", &hello.spec_json)?;
    let spec_name = spec.name.clone();
    let holds = hello.holds.iter().map(held).collect::<Result<Vec<_>, _>>()?;
    let command = CellCommand::Online { id, spec, holds, token };
    let name = spec_name.clone();
    let namesakes = move |state: &State| {
        let others = state.all::<Cell>().filter(|row| row.id != id && row.spec.name == name);
        others.map(|row| row.id.to_string()).collect::<Vec<_>>()
    };
    match server.apply(Command::Cell(command)).await.map_err(status)? {
        Reply::Epoch(epoch) => {
            let others = server.read(namesakes).await.map_err(status)?;
            if !others.is_empty() {
                let (name, others) = (spec_name, others.join(", "));
                tracing::warn!(cell = %id, %name, others, "a cell joined with the name of others");
            }
            Ok(epoch)
        }
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

const fn key(held: Held) -> WorkKey {
    match held {
        Held::Task { id, .. } => WorkKey::Task(id),
        Held::Instance { id, .. } => WorkKey::Instance(id),
    }
}

fn work_of(key: WorkKey, epoch: u32) -> Work {
    let (kind, id) = match key {
        WorkKey::Task(id) => (Kind::Task, id.0),
        WorkKey::Instance(id) => (Kind::Instance, id.0),
    };
    Work { kind: kind.into(), id: id_bytes(id), epoch }
}

impl Session {
    /// Goes on until the cell ends the stream, or it breaks.
    async fn stay(&mut self, up: &mut Streaming<CellUp>, wakes: &Waking) -> Result<(), Status> {
        loop {
            tokio::select! {
                message = up.message() => match message? {
                    Some(CellUp { message: Some(message) }) => self.message(message).await?,
                    Some(CellUp { message: None }) => {}
                    None => return Ok(()),
                },
                look = wakes.next() => self.send_work(look, false).await?,
                generation = served(&self.server, self.waiting) => {
                    self.served = self.served.max(generation);
                    self.waiting = None;
                    self.send_work(Look::At(BTreeSet::new()), false).await?;
                }
                () = at(self.drained) => self.send_work(Look::At(BTreeSet::new()), false).await?,
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

    async fn message(&mut self, message: Up) -> Result<(), Status> {
        let (id, epoch) = (self.cell, self.epoch);
        match message {
            Up::Hello(_) => Err(Status::failed_precondition("a second hello")),
            Up::Heartbeat(_) => {
                let beat = CellCommand::Heartbeat { id, epoch };
                self.server.apply(Command::Cell(beat)).await.map(|_| ()).map_err(status)
            }
            Up::Drivers(Drivers { drivers_json }) => {
                let drivers: CellDrivers = from_json("drivers of a cell", &drivers_json)?;
                let changed = CellCommand::Drivers { id, epoch, drivers };
                self.server.apply(Command::Cell(changed)).await.map(|_| ()).map_err(status)
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
                let key = key(held(&work)?);
                let stream = match key {
                    WorkKey::Task(id) => id.to_string(),
                    WorkKey::Instance(id) => id.to_string(),
                };
                // Only what the cell was told to run may write, and only into its own log.
                if !self.told.contains_key(&key) {
                    return self.send(Down::Kept(LogKept { work: Some(work), resume })).await;
                }
                self.server.append_log(&stream, &lines);
                self.unwritten.insert(stream.clone(), LogKept { work: Some(work), resume });
                self.write(&stream).await
            }
            Up::VolumeGone(VolumeGone { id }) => self.volume_gone(VolumeId(id_from(&id)?)).await,
            Up::Session(up) => self.server.sessions().take(id, epoch, up),
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
        let told = self.told.get(&WorkKey::Instance(id));
        // What moved on meanwhile is asked for no more: the cell is told so by what it should run.
        if told.is_none_or(|order| order.epoch != epoch) {
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
                let report = self.with_room((id, epoch), report).await?;
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

    /// A result that does not fit beside what is kept of tasks becomes an artifact.
    async fn with_room(
        &self,
        (id, epoch): (TaskId, u32),
        report: TaskReport,
    ) -> Result<TaskReport, Status> {
        let TaskReport::Succeeded { result: Some(text), artifact: None } = &report else {
            return Ok(report);
        };
        let (cell, bytes) = (self.cell, text.len());
        let lacks_room = move |state: &State| {
            let here = |task: &&Arc<Task>| task.epoch == epoch && task.state.cell() == Some(cell);
            let task = state.get::<Task>(id).filter(here);
            bytes <= MAX_TASK_RESULT
                && task.is_some_and(|task| !state.has_room_for_result(task, bytes))
        };
        if !self.server.read(lacks_room).await.map_err(status)? {
            return Ok(report);
        }
        let stored = self.server.blobs().put(text.as_bytes()).await;
        let stored = stored.map_err(|error| {
            Status::unavailable(format!("keep the result of task {id}: {error}"))
        })?;
        let artifact = Some(Digest(stored.digest));
        Ok(TaskReport::Succeeded { result: None, artifact })
    }

    /// A volume is deleted. What the cell says of another is not believed.
    async fn volume_gone(&self, volume: VolumeId) -> Result<(), Status> {
        let cell = self.cell;
        let report = Box::new(CellCommand::VolumeGone { cell, volume });
        let command = CellCommand::Over { id: cell, epoch: self.epoch, report };
        match self.server.apply(Command::Cell(command)).await {
            Ok(_) => Ok(()),
            Err(ApplyError::Refused(refusal)) => {
                tracing::info!(%cell, %refusal, "a cell deleted a volume that nobody gave up");
                Ok(())
            }
            Err(error @ ApplyError::Unavailable(_)) => Err(status(error)),
        }
    }

    /// Sends what the cell should run, as far as it was not told before; `full` tells it all.
    async fn send_work(&mut self, look: Look, full: bool) -> Result<(), Status> {
        let cell = self.cell;
        let now = self.server.now();
        let withdrawn = std::mem::take(&mut self.withdrawn);
        let everything = look == Look::Everything;
        let mut known: BTreeMap<WorkKey, Option<Order>> = match look {
            Look::Everything => self.told.iter().map(|(key, is)| (*key, Some(*is))).collect(),
            // What waits for routers or drains is looked at each time.
            Look::At(keys) => {
                let keys = keys.into_iter().chain(withdrawn.keys().copied());
                keys.map(|key| (key, self.told.get(&key).copied())).collect()
            }
        };
        let routed = Routed { now, withdrawn, served: self.served };
        let look = move |state: &State| {
            if everything {
                for key in state.cell_keys(cell) {
                    known.entry(key).or_default();
                }
            }
            let deleting: BTreeSet<_> = state.volumes_to_delete(cell).into_iter().collect();
            (wanted(state, cell, &known, &routed), is_drained(state, cell), deleting)
        };
        let (wanted, is_drained, deleting) = self.server.read(look).await.map_err(status)?;
        for (key, order) in wanted.now {
            match order {
                Some(order) => self.told.insert(key, order),
                None => self.told.remove(&key),
            };
        }
        let told = std::mem::replace(&mut self.deleting, deleting);
        let to_delete = self.deleting.iter().filter(|id| full || !told.contains(id));
        let delete_volumes: Vec<Bytes> = to_delete.map(|id| id_bytes(id.0)).collect();
        self.withdrawn = wanted.withdrawn;
        let newest = self.withdrawn.values().max().filter(|newest| **newest > self.served);
        if let (Some(generation), None) = (newest, self.waiting) {
            self.waiting = Some((*generation, runtime::mono_now() + ROUTER_WAIT));
        }
        self.drained = wanted.drained.map(|at| runtime::mono_now() + at.since(now));
        let Wanted { news, gone, .. } = wanted;
        if full || !news.is_empty() || !gone.is_empty() || !delete_volumes.is_empty() {
            let mut parts = Parts::of(Orders { full, work: news, gone, delete_volumes });
            while let Some(part) = parts.next()? {
                self.send(Down::Desired(part)).await?;
            }
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
    withdrawn: BTreeMap<WorkKey, u64>,
    served: u64,
}

#[derive(Default)]
struct Wanted {
    /// What the cell is told now, of all that was looked at.
    now: BTreeMap<WorkKey, Option<Order>>,
    news: Vec<Item>,
    gone: Vec<Work>,
    withdrawn: BTreeMap<WorkKey, u64>,
    drained: Option<Time>,
}

impl Wanted {
    /// Whether the end of an instance must wait: for routers, or until it has drained.
    fn holds_back(
        &mut self,
        state: &State,
        key: WorkKey,
        it: &CellInstance,
        routed: &Routed,
    ) -> bool {
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

/// What has changed of `known`, which is what the cell was told.
fn wanted(
    state: &State,
    cell: CellId,
    known: &BTreeMap<WorkKey, Option<Order>>,
    routed: &Routed,
) -> Wanted {
    let mut wanted = Wanted::default();
    for (&key, &before) in known {
        let Some(unit) = state.cell_unit(cell, key) else {
            wanted.now.insert(key, None);
            wanted.gone.extend(before.map(|before| work_of(key, before.epoch)));
            continue;
        };
        let mut order = unit.order();
        // It was told to run, so routes may have pointed at it until now.
        let ran = before == Some(Order { stop: false, ..order });
        if let CellUnit::Instance(it) = &unit
            && order.stop
            && ran
            && wanted.holds_back(state, key, it, routed)
        {
            order.stop = false;
        }
        wanted.now.insert(key, Some(order));
        if before != Some(order) {
            let is_known = before.is_some_and(|before| before.epoch == order.epoch);
            wanted.news.push(item(state, &unit, (key, order), is_known));
        }
    }
    wanted
}

/// One thing to do; what the cell knows of it already, or has no use for, is left out.
fn item(state: &State, unit: &CellUnit, (key, order): (WorkKey, Order), is_known: bool) -> Item {
    let (spec, labels, volumes) = match unit {
        CellUnit::Task(task) => {
            let project = task.project.and_then(|id| state.get::<Project>(id));
            let label = |project: &Project| ("project".to_owned(), project.name.to_string());
            let labels = project.map(|it| label(it)).into_iter().collect();
            (Spec::Task(task.spec.clone()), labels, HashMap::new())
        }
        CellUnit::Instance(it) => {
            let labels = labels(state, &it.process, it.row.index);
            (Spec::Process(it.process.spec.clone()), labels, volumes(state, &it.row))
        }
    };
    let spec = (!is_known && !order.stop).then_some(spec);
    Item { work: work_of(key, order.epoch), spec, stop: order.stop, labels, volumes }
}

fn volumes(state: &State, row: &Instance) -> HashMap<String, Bytes> {
    let volumes = state.volumes_of(row).into_iter();
    volumes.map(|(name, id)| (name.to_string(), id_bytes(id.0))).collect()
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
