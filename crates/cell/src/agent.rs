//! The agent: everything that is under way, and what the server wants of it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::proto::work::Kind;
use api::proto::{Desired, DesiredWork, SessionOpen, Work, from_json, id_from};
use api::{Client, Endpoint};
use drivers::Driver;
use model::{ContainerSpec, InstanceReport, ProcessSpec, TaskReport, TaskSpec, VolumeId};
use runtime::{Tasks, mono_now};
use tokio::sync::{mpsc, oneshot, watch};

use crate::actor::Actor;
use crate::adopt::{Found, adopt};
use crate::bucket::Bucket;
use crate::error::CellError;
use crate::identity::Identities;
use crate::instance::Given;
use crate::limits::{MAX_ENDED, UNREAD_CREDIT};
use crate::lines::Position;
use crate::link::{Connection, Link};
use crate::logs::{Journal, Window};
use crate::machine::{self, Home};
use crate::options::{Capacity, Options};
use crate::report::Reporter;
use crate::resume::ResumeFile;
use crate::session::Departure;
use crate::sessions::Place;
use crate::shared::Shared;
use crate::turns;
use crate::work::{Key, Want};
use crate::{instance, refuse, task, volumes};

/// The agent that runs containers on this machine.
#[derive(Debug)]
pub struct Cell;

/// One piece of work that is under way, or whose end the server may not know yet.
struct Entry {
    want: watch::Sender<Want>,
    /// For a task that waits for its claim to become durable.
    claim: Option<oneshot::Sender<()>>,
    reporter: Arc<Reporter>,
    window: Arc<Window>,
    driver: Arc<dyn Driver>,
    /// Nothing of it is left here but the news of its end.
    over: bool,
    /// Tells entries of the same work apart.
    serial: u64,
}

/// Work that came to its end.
#[derive(Debug)]
pub(crate) struct Ended {
    key: Key,
    serial: u64,
}

pub(crate) struct Agent {
    pub(crate) home: Home,
    pub(crate) endpoint: Endpoint,
    pub(crate) capacity: Capacity,
    pub(crate) shared: Arc<Shared>,
    pub(crate) publish: watch::Sender<Option<Connection>>,
    entries: BTreeMap<Key, Entry>,
    ended: (mpsc::Sender<Ended>, mpsc::Receiver<Ended>),
    /// How many entries there were.
    serial: u64,
    resume: ResumeFile,
    /// How far it is when the cell leaves.
    pub(crate) departure: Departure,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.publish.send_replace(None);
        self.save();
    }
}

impl Cell {
    /// Runs until `tasks` are asked to stop, or until the cell has left. After a stop the
    /// containers go on: the next agent in the same directory takes over.
    pub async fn run(options: Options, endpoint: Endpoint, tasks: Tasks) -> Result<(), CellError> {
        let identities = Identities::open(&options, &tasks).await?;
        let mut agent = Agent::new(options, endpoint, (identities, tasks))?;
        agent.adopt().await?;
        agent.watch_drivers();
        agent.watch_caches();
        let stayed = Box::pin(agent.stay()).await;
        if agent.shared.options.leave.is_stopped() {
            agent.shared.identities.close().await;
        } else {
            agent.shared.identities.close_unused().await;
        }
        stayed
    }
}

impl Agent {
    fn new(
        options: Options,
        endpoint: Endpoint,
        (identities, tasks): (Identities, Tasks),
    ) -> Result<Self, CellError> {
        let home = Home::open(&options.dir)?;
        let capacity = options.capacity.unwrap_or_else(|| machine::capacity(&options.dir));
        let (publish, connection) = watch::channel(None);
        let client = Client::new(endpoint.clone())?;
        let resume = ResumeFile::new(&options.dir);
        let shared = Arc::new(Shared::new(options, (client, identities), Link(connection), tasks)?);
        shared.fence.lost(mono_now());
        let ended = mpsc::channel(MAX_ENDED);
        let entries = BTreeMap::new();
        Ok(Self {
            home,
            endpoint,
            capacity,
            shared,
            publish,
            entries,
            ended,
            serial: 0,
            resume,
            departure: Departure::default(),
        })
    }

    /// Looks now and then which drivers work.
    fn watch_drivers(&self) {
        let (shared, stop) = (Arc::clone(&self.shared), self.shared.tasks.stop().clone());
        self.shared.tasks.spawn_ok("look at the drivers", async move {
            let every = shared.options.driver_look;
            stop.or_stop(shared.drivers.watch((every, &shared.tasks))).await;
        });
    }

    /// Looks after caches, so that none takes the disk of all.
    fn watch_caches(&self) {
        let (caches, stop) = (self.shared.caches.clone(), self.shared.tasks.stop().clone());
        self.shared.tasks.spawn_ok("look after caches", async move {
            stop.or_stop(caches.watch()).await;
        });
    }

    async fn adopt(&mut self) -> Result<(), CellError> {
        let positions = self.resume.read();
        let found = adopt(&self.shared).await?;
        self.shared.identities.keep_only(found.iter().map(|found| found.key)).await?;
        for Found { key, notes, held, driver } in found {
            let position = positions.get(&key.to_string()).copied().unwrap_or_default();
            tracing::info!(work = %key, "taking over an instance");
            let actor = self.open((key, turns::owner(None)), driver, position);
            actor.limit_logs(notes.log_bytes, UNREAD_CREDIT);
            actor.hold(self.shared.images.held(&held.layers));
            for key in &held.caches {
                actor.hold_cache(key);
            }
            let volumes = held.volumes.iter();
            actor.hold_volumes(
                volumes.map(|(id, writes)| self.shared.volumes.hold_on(*id, *writes)),
            );
            self.spawn(key, async move { instance::adopt(&actor, notes, position).await });
        }
        Ok(())
    }

    /// Makes the entry of new work and what takes care of it.
    fn open(
        &mut self,
        (key, owner): (Key, String),
        driver: Arc<dyn Driver>,
        position: Position,
    ) -> Actor {
        let (want, wanted) = watch::channel(Want::Run);
        let link = self.shared.link.clone();
        let window = Arc::new(Window::new(position));
        let reporter = Arc::new(Reporter::new(key, link.clone()));
        let (journal, shipper) = Journal::new(key, &link, Arc::clone(&window));
        let stop = self.shared.tasks.stop().clone();
        self.shared.tasks.spawn_ok("container log", async move {
            stop.or_stop(shipper).await;
        });
        self.serial += 1;
        let entry = Entry {
            want,
            claim: None,
            reporter: Arc::clone(&reporter),
            window,
            driver: Arc::clone(&driver),
            over: false,
            serial: self.serial,
        };
        self.entries.insert(key, entry);
        let shared = Arc::clone(&self.shared);
        let (handle, needs) = (key.handle(), Mutex::default());
        let bucket = Arc::new(Mutex::new(Bucket::new(None, mono_now())));
        let (want, outgrown) = (wanted, Arc::default());
        Actor {
            shared,
            driver,
            key,
            handle,
            owner,
            want,
            reporter,
            journal,
            bucket,
            outgrown,
            needs,
        }
    }

    /// Starts what takes care of the entry that was made last.
    fn spawn(&self, key: Key, work: impl Future<Output = ()> + Send + 'static) {
        let (stop, ended) = (self.shared.tasks.stop().clone(), self.ended.0.clone());
        let serial = self.serial;
        self.shared.tasks.spawn_ok("work", async move {
            if stop.or_stop(work).await.is_some() {
                // The agent may have ended first.
                drop(ended.send(Ended { key, serial }).await);
            }
        });
    }

    /// The same for an entry that takes no room.
    fn spawn_end(&mut self, key: Key, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.stop();
        }
        self.spawn(key, work);
    }

    /// The next work that came to its end.
    pub(crate) async fn ended(&mut self) -> Ended {
        poll_fn(|context| self.ended.1.poll_recv(context))
            .await
            .expect("the agent itself holds a sender")
    }

    pub(crate) fn over(&mut self, Ended { key, serial }: Ended) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.serial != serial {
            return;
        }
        entry.over = true;
        if *entry.want.borrow() == Want::Forget {
            self.entries.remove(&key);
        }
    }

    /// What the server should believe to run here.
    pub(crate) fn holds(&self) -> Vec<Work> {
        let held = |(_, entry): &(&Key, &Entry)| {
            entry.claim.is_none() && *entry.want.borrow() != Want::Forget
        };
        self.entries.iter().filter(held).map(|(key, _)| key.work()).collect()
    }

    /// The connection broke: a claim that was not answered is void.
    pub(crate) fn drop_claims(&mut self) {
        self.entries.retain(|_, entry| entry.claim.is_none());
    }

    pub(crate) fn claimed(&mut self, work: &Work) {
        let entry = Key::of(work).and_then(|key| self.entries.get_mut(&key));
        if let Some(claim) = entry.and_then(|entry| entry.claim.take()) {
            // It may just have been cancelled.
            claim.send(()).unwrap_or_default();
        }
    }

    /// The server does not accept a report: the work is not ours any more.
    pub(crate) fn refused(&mut self, work: &Work) {
        let Some(key) = Key::of(work) else { return };
        let Some(entry) = self.entries.get_mut(&key) else { return };
        tracing::info!(work = %key, "the server refused a report");
        if key.kind == Kind::Task || entry.reporter.ended() {
            self.forget(key);
        } else {
            // The server may just have stopped it, and then waits to hear that it is gone.
            entry.stop();
        }
    }

    /// Where a session for some work goes, if it runs here.
    pub(crate) fn place(&self, open: &SessionOpen) -> Option<Place> {
        let key = open.work.as_ref().and_then(Key::of)?;
        let entry = self.entries.get(&key)?;
        let runs = !entry.over && *entry.want.borrow() == Want::Run && entry.claim.is_none();
        runs.then(|| Place { driver: Arc::clone(&entry.driver), handle: key.handle() })
    }

    pub(crate) fn kept(&self, work: &Work, resume: &[u8]) {
        let entry = Key::of(work).and_then(|key| self.entries.get(&key));
        if let Some(entry) = entry {
            entry.window.acknowledge(resume);
        }
    }

    fn forget(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.claim = None;
        entry.want.send_replace(Want::Forget);
        if entry.over {
            self.entries.remove(&key);
        }
    }

    pub(crate) fn desired(&mut self, desired: Desired) {
        let mut listed = BTreeSet::new();
        for item in desired.work {
            let key = item.work.as_ref().and_then(Key::of);
            let Some(key) = key else {
                tracing::warn!("the server wants work that this version does not know");
                continue;
            };
            listed.insert(key);
            self.wanted(key, &item, desired.full);
        }
        let gone = desired.gone.iter().filter_map(Key::of).filter(|key| !listed.contains(key));
        let mut gone: Vec<Key> = gone.collect();
        if desired.full {
            gone.extend(self.entries.keys().filter(|key| !listed.contains(key)));
        }
        for key in gone {
            self.forget(key);
        }
        for id in desired.delete_volumes.iter().filter_map(|id| id_from(id).ok()) {
            self.remove_volume(VolumeId(id));
        }
    }

    /// Removes a volume once nothing has it, and says so.
    fn remove_volume(&self, id: VolumeId) {
        if !self.shared.volumes.begin_removal(id) {
            return;
        }
        let (shared, stop) = (Arc::clone(&self.shared), self.shared.tasks.stop().clone());
        self.shared.tasks.spawn_ok("volume removal", async move {
            stop.or_stop(volumes::removed(&shared, id)).await;
        });
    }

    fn wanted(&mut self, key: Key, item: &DesiredWork, full: bool) {
        let first = Key { epoch: 0, ..key };
        let last = Key { epoch: u32::MAX, ..key };
        let all: Vec<Key> = self.entries.range(first..=last).map(|(key, _)| *key).collect();
        for old in all.into_iter().filter(|other| *other != key) {
            self.forget(old);
        }
        if let Some(entry) = self.entries.get_mut(&key) {
            if item.stop {
                entry.stop();
            }
            if full && (!item.stop || entry.reporter.ended()) {
                let reporter = Arc::clone(&entry.reporter);
                self.say(async move { reporter.repeat().await });
            }
        } else if item.stop {
            self.end_unknown(key, "");
        } else if let Some(spec) = &item.spec_json
            && let Err(error) = self.begin(key, spec, item)
        {
            self.end_unknown(key, error.message());
        }
    }

    /// Sends without holding up the agent.
    fn say(&self, sending: impl Future<Output = ()> + Send + 'static) {
        let stop = self.shared.tasks.stop().clone();
        self.shared.tasks.spawn_ok("report", async move {
            stop.or_stop(sending).await;
        });
    }

    /// Reports on work that is not here: it was to stop, or makes no sense.
    fn end_unknown(&self, key: Key, fault: &str) {
        let reporter = Reporter::new(key, self.shared.link.clone());
        let reason = fault.to_owned();
        self.say(async move {
            match (key.kind, reason.is_empty()) {
                (Kind::Task, true) => reporter.end(&TaskReport::Cancelled).await,
                (Kind::Task, false) => {
                    reporter.end(&TaskReport::Failed { reason, detail: None }).await;
                }
                (Kind::Instance, true) => reporter.end(&InstanceReport::Gone).await,
                (Kind::Instance, false) => {
                    let crashed =
                        InstanceReport::Crashed { reason, never_healthy: true, detail: None };
                    reporter.end(&crashed).await;
                }
            }
        });
    }

    fn begin(&mut self, key: Key, spec: &[u8], item: &DesiredWork) -> Result<(), tonic::Status> {
        let labels = item.labels.clone();
        let owner = turns::owner(labels.get("project"));
        match key.kind {
            Kind::Task => {
                let spec: TaskSpec = from_json("task spec", spec)?;
                let (driver, refusal) = self
                    .driver(&spec.container, |driver| refuse::task(&spec, &driver.capabilities()));
                let actor = self.open((key, owner.clone()), driver, Position::default());
                if let Some(reason) = refusal {
                    self.spawn_end(key, async move { task::reject(&actor, &reason).await });
                    return Ok(());
                }
                actor.limit_logs(spec.container.limits.log_bytes, Duration::ZERO);
                let (claim, claimed) = oneshot::channel();
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.claim = Some(claim);
                }
                self.spawn(key, async move { task::run(&actor, (&spec, &labels), claimed).await });
            }
            Kind::Instance => {
                let spec: ProcessSpec = from_json("process spec", spec)?;
                let volumes = item.volumes.iter().filter_map(|(name, id)| {
                    Some((name.parse().ok()?, VolumeId(id_from(id).ok()?)))
                });
                let volumes = volumes.collect();
                let handle = key.handle();
                let (driver, refusal) = self.driver(&spec.container, |driver| {
                    refuse::instance(&spec, &driver.capabilities(), driver.network(&handle))
                });
                let actor = self.open((key, owner.clone()), driver, Position::default());
                if let Some(reason) = refusal {
                    self.spawn_end(key, async move { instance::reject(&actor, &reason).await });
                    return Ok(());
                }
                actor.limit_logs(spec.container.limits.log_bytes, Duration::ZERO);
                let given = Given { labels, volumes };
                self.spawn(key, async move { instance::run(&actor, &spec, &given).await });
            }
        }
        Ok(())
    }

    /// The driver of a new container, and why it cannot be made here, if so.
    fn driver(
        &self,
        spec: &ContainerSpec,
        refuse: impl FnOnce(&dyn Driver) -> Option<String>,
    ) -> (Arc<dyn Driver>, Option<String>) {
        match self.shared.drivers.choose(spec.driver.as_ref()) {
            Ok(driver) => {
                let full = self.is_full().then(|| FULL.to_owned());
                let refusal = full.or_else(|| refuse(driver.as_ref()));
                (Arc::clone(driver), refusal)
            }
            Err(reason) => (Arc::clone(self.shared.drivers.any()), Some(reason)),
        }
    }

    /// The server counts what runs; this is only for when it is wrong.
    fn is_full(&self) -> bool {
        let runs = |entry: &&Entry| !entry.over && *entry.want.borrow() == Want::Run;
        let running = self.entries.values().filter(runs).count();
        running >= usize::try_from(self.capacity.containers).unwrap_or(usize::MAX)
    }

    /// Writes down where logs continue.
    pub(crate) fn save(&self) {
        let positions: BTreeMap<String, Position> = self
            .entries
            .iter()
            .filter(|(key, _)| key.kind == Kind::Instance)
            .map(|(key, entry)| (key.to_string(), entry.window.position()))
            .collect();
        if let Err(error) = self.resume.write(&positions) {
            tracing::warn!(%error, "cannot write down where logs continue");
        }
    }

    /// Ends everything, for a cell that leaves for good.
    pub(crate) fn forget_all(&mut self) {
        let all: Vec<Key> = self.entries.keys().copied().collect();
        for key in all {
            self.forget(key);
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.entries.is_empty()
    }

    /// Waits for the end of everything without a server.
    pub(crate) async fn leave_alone(&mut self) {
        self.forget_all();
        let limit = self.shared.options.leave_limit;
        let end = async {
            while !self.is_idle() {
                let ended = self.ended().await;
                self.over(ended);
            }
        };
        if runtime::timeout(limit, end).await.is_none() {
            tracing::warn!("some containers did not end in time");
        }
    }
}

const FULL: &str = "the cell has as many containers as it may";

impl Entry {
    /// Asks for a graceful end that is reported.
    fn stop(&mut self) {
        self.claim = None;
        self.want.send_if_modified(|want| {
            let runs = *want == Want::Run;
            if runs {
                *want = Want::Stop;
            }
            runs
        });
    }
}
