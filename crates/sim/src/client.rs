//! Fake clients: they queue jobs, again when they heard nothing, cancel, scale and wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::{
    Action, AppId, Digest, JobId, Name, Operation, ProjectId, RetryPolicy, Target, TaskId, TaskSpec,
};
use state::{Command, JobCommand, JobSpec, NewJob, Reply, WorkCommand};

use crate::message::{Answer, Ask, Caller, Event};
use crate::rng::Rng;
use crate::runner::{asks, name};
use crate::world::World;

/// Something a client wants until it has an answer.
#[derive(Debug, Clone)]
enum What {
    Project,
    App(usize),
    Queue {
        spec: Arc<JobSpec>,
        expires: Option<u64>,
    },
    Cancel {
        job: JobId,
        force: bool,
    },
    Follow(JobId),
    /// A task of a client's own, with the words that name it.
    Task(String, Arc<TaskSpec>),
    /// One try is enough.
    Once(Box<Command>),
}

#[derive(Debug)]
struct Errand {
    what: What,
}

/// All clients.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) count: usize,
    project: ProjectId,
    apps: Vec<AppId>,
    ready: Vec<bool>,
    begun: bool,
    errands: BTreeMap<u64, Errand>,
    known: Vec<JobId>,
    /// Which job each key gave.
    keys: BTreeMap<String, JobId>,
    number: u64,
}

impl Clients {
    pub(crate) fn new(rng: &Rng, now: u64) -> Self {
        let apps: Vec<AppId> = (0..rng.between(1, 3)).map(|_| AppId(rng.id(now))).collect();
        Self {
            count: usize::try_from(rng.between(1, 4)).unwrap_or(1),
            project: ProjectId(rng.id(now)),
            ready: vec![false; apps.len()],
            apps,
            begun: false,
            errands: BTreeMap::new(),
            known: Vec::new(),
            keys: BTreeMap::new(),
            number: 0,
        }
    }

    /// An errand that is still open.
    pub(crate) fn errand(&self) -> Option<String> {
        self.errands.values().next().map(|errand| format!("{:?}", errand.what))
    }
}

impl World {
    /// The first thing clients do.
    pub(crate) fn clients_prepare(&mut self) {
        if !std::mem::replace(&mut self.clients.begun, true) {
            self.errand(What::Project);
        }
    }

    fn errand(&mut self, what: What) {
        let id = self.fresh();
        self.clients.errands.insert(id, Errand { what });
        self.errand_again(id);
    }

    pub(crate) fn errand_again(&mut self, id: u64) {
        let Some(errand) = self.clients.errands.get(&id) else { return };
        let fresh = JobId(self.rng.id(self.now));
        let ask = match errand.what.clone() {
            What::Project => {
                let id = self.clients.project;
                Ask::Apply(Box::new(Command::CreateProject { id, name: name("project") }))
            }
            What::App(index) => {
                let (id, project) = (self.clients.apps[index], self.clients.project);
                let name = name(&format!("app-{index}"));
                Ask::Apply(Box::new(Command::EnsureApp { id, project, name }))
            }
            What::Queue { spec, expires } => {
                let expires_in = expires.map(Duration::from_millis);
                let new = NewJob { id: fresh, spec, expires_in };
                Ask::Apply(Box::new(Command::Job(JobCommand::Queue(new))))
            }
            What::Cancel { job, force } => {
                let reason = "a client asks".to_owned();
                Ask::Apply(Box::new(Command::Job(JobCommand::Cancel { job, force, reason })))
            }
            What::Follow(job) => Ask::Follow(job),
            What::Task(key, spec) => {
                let (id, project) = (TaskId(self.rng.id(self.now)), self.clients.project);
                let new = WorkCommand::NewTask { id, project, key: Some(key), spec };
                Ask::Apply(Box::new(Command::Work(new)))
            }
            What::Once(command) => Ask::Apply(command),
        };
        self.call(Caller::Client(id), ask);
    }

    pub(crate) fn errand_answered(&mut self, id: u64, answer: Answer) {
        let Some(errand) = self.clients.errands.get(&id) else { return };
        let what = errand.what.clone();
        let again = match (&what, answer) {
            (What::Once(_), _) | (What::Follow(_), Answer::Over) => false,
            (What::Queue { spec, .. }, Answer::Broken | Answer::Unavailable) => {
                spec.idempotency_key.is_some()
            }
            (_, Answer::Broken | Answer::Unavailable) => true,
            (What::Queue { spec, .. }, Answer::Done(Reply::Job(job))) => {
                let key = spec.idempotency_key.clone();
                self.queued(job.id, key);
                false
            }
            (What::Task(..), Answer::Done(Reply::Task(task))) => {
                self.check_made(task.id);
                if self.rng.chance(250) {
                    let cancel = Command::Work(WorkCommand::CancelTask(task.id));
                    self.errand(What::Once(Box::new(cancel)));
                }
                false
            }
            (What::Cancel { job, force }, Answer::Done(_)) => {
                let (job, force) = (*job, *force);
                self.check_cancelled(job, force);
                false
            }
            (What::Project, _) => {
                for index in 0..self.clients.apps.len() {
                    self.errand(What::App(index));
                }
                false
            }
            (What::App(index), _) => {
                self.clients.ready[*index] = true;
                false
            }
            _ => false,
        };
        if again {
            let pause = self.rng.between(100, 3_000);
            self.later(pause, Event::Errand { errand: id });
        } else {
            self.clients.errands.remove(&id);
        }
    }

    fn queued(&mut self, id: JobId, key: Option<String>) {
        self.check_queued(id);
        if let Some(key) = key {
            let first = *self.clients.keys.entry(key.clone()).or_insert(id);
            if first != id {
                self.fail("idempotency", format!("key {key} gave {first} and then {id}"));
            }
        }
        if !self.clients.known.contains(&id) {
            self.clients.known.push(id);
            if self.rng.chance(600) {
                self.errand(What::Follow(id));
            }
        }
    }

    /// A client does something.
    pub(crate) fn client_acts(&mut self, client: usize) {
        if !self.chaos {
            return;
        }
        let pause = self.rng.between(300, 6_000);
        self.later(pause, Event::Client { client });
        if self.clients.ready.iter().any(|ready| !ready) {
            return;
        }
        match self.rng.below(25) {
            0..14 => self.queue_something(),
            20..23 => self.make_task(),
            23.. => self.restart_something(),
            14..18 => self.cancel_something(),
            18 => self.scale_something(),
            _ => {
                let app = self.some_app();
                let workspace = self.some_workspace();
                let value = Some(self.rng.below(9).to_string());
                let vars = BTreeMap::from([("A".to_owned(), value)]);
                self.errand(What::Once(Box::new(Command::SetConfig { app, workspace, vars })));
            }
        }
    }

    fn make_task(&mut self) {
        self.clients.number += 1;
        let key = format!("task-{}", self.clients.number);
        let mut spec = TaskSpec::new(Action::run(["once"]), 60_000);
        spec.container.limits.memory_mb = Some(self.rng.between(64, 512));
        asks(&self.rng, &mut spec.container);
        spec.start_timeout_ms = Some(self.rng.between(5_000, 60_000));
        spec.callback = self.rng.chance(700).then(|| "https://example.com/".to_owned());
        spec.retry = self.rng.chance(400).then(|| RetryPolicy {
            attempts: u32::try_from(self.rng.between(2, 4)).unwrap_or(2),
            pause_ms: self.rng.between(100, 3_000),
        });
        self.errand(What::Task(key, Arc::new(spec)));
    }

    fn some_app(&self) -> AppId {
        self.clients.apps[self.rng.index(self.clients.apps.len())]
    }

    fn some_workspace(&self) -> Name {
        name(if self.rng.chance(750) { "production" } else { "staging" })
    }

    /// One of the jobs queued last.
    fn some_job(&self) -> Option<JobId> {
        let known = &self.clients.known;
        let last = known.len().min(6);
        (last > 0).then(|| known[known.len() - 1 - self.rng.index(last)])
    }

    fn cancel_something(&mut self) {
        if let Some(job) = self.some_job() {
            let force = self.rng.chance(300);
            self.errand(What::Cancel { job, force });
        }
    }

    fn scale_something(&mut self) {
        let process = name(if self.rng.chance(600) { "web" } else { "worker" });
        let (app, workspace) = (self.some_app(), self.some_workspace());
        let instances = u32::try_from(self.rng.below(4)).unwrap_or(0);
        let scale = Command::Scale { app, workspace, process, instances };
        self.errand(What::Once(Box::new(scale)));
    }

    /// One instance is ended gracefully, and another takes its place.
    fn restart_something(&mut self) {
        let process = name(if self.rng.chance(600) { "web" } else { "worker" });
        let (app, workspace) = (self.some_app(), self.some_workspace());
        let index = u32::try_from(self.rng.below(3)).unwrap_or(0);
        let restart = Command::RestartInstance { app, workspace, process, index };
        self.errand(What::Once(Box::new(restart)));
    }

    fn some_operation(&self) -> Operation {
        let source = Digest::of(b"source");
        match self.rng.below(20) {
            0..8 => Operation::Noop,
            8..13 => Operation::Up { source },
            13 => Operation::Restart,
            14 => Operation::Deploy { build: None },
            15..17 => {
                let all = &self.check.deployments;
                let nth = all.keys().nth(self.rng.index(all.len().max(1)));
                nth.map_or(Operation::Noop, |id| Operation::Release { deployment: *id })
            }
            17..19 => Operation::Destroy,
            _ => Operation::Build { source },
        }
    }

    fn some_target(&self) -> Target {
        match self.rng.below(10) {
            0 => Target::Runner(self.runners[self.rng.index(self.runners.len())].id),
            1 => Target::Labels(BTreeMap::from([("zone".to_owned(), "z0".to_owned())])),
            _ => Target::Any,
        }
    }

    fn queue_something(&mut self) {
        let operation = self.some_operation();
        self.clients.number += 1;
        let number = self.clients.number;
        let mut depends_on: Vec<JobId> = Vec::new();
        if self.rng.chance(200) {
            depends_on.extend(self.some_job());
        }
        let may_fail = self.rng.chance(500);
        let spec = Arc::new(JobSpec {
            project: self.clients.project,
            app: operation.changes_app().then(|| self.some_app()),
            workspace: self.some_workspace(),
            operation,
            target: self.some_target(),
            allow_failure: if may_fail { depends_on.clone() } else { Vec::new() },
            depends_on,
            singleton: self.rng.chance(120).then(|| format!("single-{}", self.rng.below(2))),
            idempotency_key: self.rng.chance(750).then(|| format!("key-{number}")),
            origin: String::new(),
        });
        let expires = self.rng.chance(100).then(|| self.rng.between(1_000, 40_000));
        let twice = spec.idempotency_key.is_some() && self.rng.chance(150);
        let what = What::Queue { spec, expires };
        if twice {
            self.errand(what.clone());
        }
        self.errand(what);
    }
}
