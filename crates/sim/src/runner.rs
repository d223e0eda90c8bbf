//! Fake runners: they take jobs and do what the real one does, without doing anything.

use std::collections::BTreeMap;

use model::{
    Action, BuildId, Check, ContainerSpec, CrashPolicy, DeploymentId, DeploymentState, Digest,
    JobId, Name, Operation, Outcome, ProcessSpec, RetryPolicy, RunnerId, TaskId, TaskSpec,
    TaskState,
};
use state::{Attempt, Command, ProcessTemplate, Reply, WorkCommand};

use crate::message::{Answer, Ask, Caller, Down, Event, Node, Up};
use crate::rng::Rng;
use crate::world::World;

/// How long a task may wait for a place once faults have stopped.
const PATIENCE: u64 = 30_000;

/// What a piece of work does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Pause,
    Task,
    WaitTask(TaskId),
    Record,
    Deploy(Option<u64>),
    Restart(DeploymentId),
    WaitReady(DeploymentId),
    Release(DeploymentId),
    Destroy,
}

/// A job in progress.
#[derive(Debug)]
struct Work {
    stage: Stage,
    operation: Operation,
    /// The call whose answer it waits for.
    asked: bool,
}

/// A job this runner holds.
#[derive(Debug)]
struct Held {
    epoch: u32,
    offered: Option<Operation>,
    cancel: bool,
    work: Option<Work>,
    ended: Option<Outcome>,
    /// Lines of its log that the server has, and that were written.
    lines: (u64, u64),
}

/// One runner.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) id: RunnerId,
    pub(crate) name: Name,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) only_own: bool,
    capacity: u32,
    pub(crate) alive: bool,
    life: u64,
    pub(crate) conn: Option<u64>,
    held: BTreeMap<JobId, Held>,
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("a name in the program is a name")
}

impl Runner {
    pub(crate) fn some(rng: &Rng, now: u64) -> Vec<Self> {
        let count = rng.between(1, 3);
        (0..count)
            .map(|number| Self {
                id: RunnerId(rng.id(now)),
                name: name(&format!("runner-{number}")),
                labels: BTreeMap::from([("zone".to_owned(), format!("z{}", number % 2))]),
                only_own: number == 2,
                capacity: u32::try_from(rng.between(1, 3)).unwrap_or(1),
                alive: false,
                life: 0,
                conn: None,
                held: BTreeMap::new(),
            })
            .collect()
    }

    /// Whether it has nothing left to do or to say.
    pub(crate) fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    pub(crate) fn holds(&self, job: JobId) -> bool {
        self.held.contains_key(&job)
    }

    /// How much of a log the server has, and how much was written.
    pub(crate) fn log_of(&mut self, at: Attempt) -> Option<(&mut u64, &mut u64)> {
        let held = self.held.get_mut(&at.job).filter(|held| held.epoch == at.epoch)?;
        let (kept, written) = &mut held.lines;
        Some((kept, written))
    }

    /// The attempts it is at work on.
    fn works_on(&self, job: JobId) -> bool {
        self.held.get(&job).is_some_and(|held| held.work.is_some())
    }
}

impl World {
    pub(crate) fn runner_starts(&mut self, index: usize) {
        let runner = &mut self.runners[index];
        if runner.alive {
            return;
        }
        runner.alive = true;
        runner.life += 1;
        let life = runner.life;
        self.later(1, Event::Connect { node: Node::Runner(index), life });
    }

    /// It is killed and forgets everything.
    pub(crate) fn runner_dies(&mut self, index: usize) {
        let runner = &mut self.runners[index];
        runner.alive = false;
        runner.held.clear();
        if let Some(conn) = runner.conn.take() {
            self.dead_end(conn);
        }
    }

    pub(crate) fn runner_connects(&mut self, index: usize, life: u64) {
        let runner = &self.runners[index];
        if !runner.alive || runner.life != life || runner.conn.is_some() {
            return;
        }
        let confirmed = runner.held.iter().filter(|(_, held)| held.offered.is_none());
        let holds = confirmed.map(|(job, held)| Attempt { job: *job, epoch: held.epoch }).collect();
        let conn = self.open(Node::Runner(index), Up::Runner(holds));
        self.runners[index].conn = Some(conn);
        self.later(5_000, Event::Beat { node: Node::Runner(index), conn });
    }

    pub(crate) fn runner_cut(&mut self, index: usize, conn: u64) -> Option<u64> {
        let runner = &mut self.runners[index];
        if runner.conn != Some(conn) {
            return None;
        }
        runner.conn = None;
        Some(runner.life)
    }

    pub(crate) fn runner_beats(&mut self, index: usize, conn: u64) -> bool {
        if self.runners[index].conn != Some(conn) {
            return false;
        }
        let busy = |held: &Held| held.offered.is_none() && held.ended.is_none();
        let beats: Vec<Attempt> = self.runners[index]
            .held
            .iter()
            .filter(|(_, held)| busy(held))
            .map(|(job, held)| Attempt { job: *job, epoch: held.epoch })
            .collect();
        for at in beats {
            self.send_up(conn, Up::Heartbeat(at));
        }
        true
    }

    fn offer_capacity(&mut self, index: usize, conn: u64) {
        let runner = &self.runners[index];
        let held = u32::try_from(runner.held.len()).unwrap_or(u32::MAX);
        let free = runner.capacity.saturating_sub(held);
        self.send_up(conn, Up::Capacity(free));
    }

    pub(crate) fn runner_hears(&mut self, index: usize, conn: u64, message: Down) {
        if self.runners[index].conn != Some(conn) {
            return;
        }
        match message {
            Down::Welcome => self.runner_welcome(index, conn),
            Down::Assignment(job) => {
                let at = Attempt { job: job.id, epoch: job.epoch };
                if self.chaos && self.rng.chance(40) {
                    return self.send_up(conn, Up::Nack(at));
                }
                let held = Held {
                    epoch: job.epoch,
                    offered: Some(job.spec.operation.clone()),
                    cancel: false,
                    work: None,
                    ended: None,
                    lines: (0, 0),
                };
                self.runners[index].held.insert(job.id, held);
                self.send_up(conn, Up::Ack(at));
            }
            Down::Started(at) => self.runner_starts_work(index, at),
            Down::Ended(at) => {
                self.runner_forgets(index, at, true);
                self.offer_capacity(index, conn);
            }
            Down::Revoked(at) => {
                self.runner_forgets(index, at, false);
                self.offer_capacity(index, conn);
            }
            Down::Cancel(at) => self.runner_cancels(index, at),
            Down::Kept(at, lines) => {
                if let Some((kept, _)) = self.runners[index].log_of(at) {
                    *kept = lines.max(*kept);
                }
            }
            Down::Desired { .. }
            | Down::Claimed(_)
            | Down::Refused(_)
            | Down::Table(_)
            | Down::Changes { .. } => {}
        }
    }

    fn runner_welcome(&mut self, index: usize, conn: u64) {
        let runner = &mut self.runners[index];
        runner.held.retain(|_, held| held.offered.is_none());
        let ended: Vec<_> = runner
            .held
            .iter()
            .filter_map(|(job, held)| {
                Some((Attempt { job: *job, epoch: held.epoch }, held.ended.clone()?))
            })
            .collect();
        for (at, outcome) in ended {
            self.send_up(conn, Up::Complete(at, outcome));
        }
        self.offer_capacity(index, conn);
    }

    fn runner_forgets(&mut self, index: usize, at: Attempt, confirmed: bool) {
        let held = &mut self.runners[index].held;
        if held.get(&at.job).is_none_or(|held| held.epoch != at.epoch) {
            return;
        }
        let Some(gone) = held.remove(&at.job) else { return };
        if let (true, Some(outcome)) = (confirmed, gone.ended) {
            self.check_ended(at, &outcome);
        }
    }

    /// The acknowledgement is durable: the work starts.
    fn runner_starts_work(&mut self, index: usize, at: Attempt) {
        let runner = &mut self.runners[index];
        let Some(held) = runner.held.get_mut(&at.job).filter(|held| held.epoch == at.epoch) else {
            return;
        };
        let Some(operation) = held.offered.take() else { return };
        let stage = match &operation {
            Operation::Noop => Stage::Pause,
            Operation::Build { .. } | Operation::Up { .. } => Stage::Task,
            Operation::Deploy { build } => Stage::Deploy(*build),
            // Which build it is makes no difference to any rule.
            Operation::Restart => Stage::Deploy(None),
            Operation::Release { deployment } => Stage::Restart(*deployment),
            Operation::Destroy => Stage::Destroy,
        };
        held.work = Some(Work { stage, operation, asked: false });
        let others =
            (0..self.runners.len()).filter(|other| *other != index).collect::<Vec<usize>>();
        let twice = others.into_iter().any(|other| self.runners[other].works_on(at.job));
        if twice {
            self.fail("I1", format!("two runners work on {}", at.job));
        }
        self.check_started(at);
        let (job, epoch, life) = (at.job, at.epoch, self.runners[index].life);
        let pause = self.rng.between(1, 300);
        self.later(pause, Event::Work { runner: index, life, job, epoch });
    }

    fn runner_cancels(&mut self, index: usize, at: Attempt) {
        let held = &mut self.runners[index].held;
        let Some(held) = held.get_mut(&at.job).filter(|held| held.epoch == at.epoch) else {
            return;
        };
        held.cancel = true;
        if held.work.is_some() {
            let reason = "it was cancelled".to_owned();
            self.work_ends(index, at, Outcome::Cancelled { reason });
        }
    }

    fn work_ends(&mut self, index: usize, at: Attempt, outcome: Outcome) {
        let runner = &mut self.runners[index];
        let Some(held) = runner.held.get_mut(&at.job) else { return };
        held.work = None;
        held.ended = Some(outcome.clone());
        self.check.working.remove(&at.job);
        if let Some(conn) = self.runners[index].conn {
            self.send_up(conn, Up::Complete(at, outcome));
        }
    }

    fn work_of(
        &mut self,
        runner: usize,
        life: u64,
        (job, epoch): (JobId, u32),
    ) -> Option<&mut Work> {
        let runner = self.runners.get_mut(runner).filter(|it| it.alive && it.life == life)?;
        runner.held.get_mut(&job).filter(|held| held.epoch == epoch)?.work.as_mut()
    }

    /// Time for the next step of a job.
    pub(crate) fn work_on(&mut self, runner: usize, life: u64, (job, epoch): (JobId, u32)) {
        let at = Attempt { job, epoch };
        let cancelled = self.runners[runner].held.get(&job).is_some_and(|held| held.cancel);
        let Some(work) = self.work_of(runner, life, (job, epoch)) else { return };
        if cancelled {
            let reason = "it was cancelled".to_owned();
            return self.work_ends(runner, at, Outcome::Cancelled { reason });
        }
        if work.asked {
            return;
        }
        work.asked = true;
        let (stage, operation) = (work.stage, work.operation.clone());
        self.runner_writes(runner, at);
        let ask = match stage {
            Stage::Pause => {
                let outcome = if self.rng.chance(100) {
                    Outcome::Failed { reason: "it did not work out".to_owned() }
                } else {
                    Outcome::Succeeded
                };
                return self.work_ends(runner, at, outcome);
            }
            Stage::WaitTask(id) => Ask::Task(id),
            Stage::WaitReady(id) => Ask::Deployment(id),
            _ => Ask::Apply(Box::new(Command::Work(self.work_command(stage, at, &operation)))),
        };
        self.call(Caller::Work { runner, life, job, epoch }, ask);
    }

    fn work_command(
        &mut self,
        stage: Stage,
        attempt: Attempt,
        operation: &Operation,
    ) -> WorkCommand {
        let id = self.rng.id(self.now);
        match stage {
            Stage::Task | Stage::Pause | Stage::WaitTask(_) | Stage::WaitReady(_) => {
                WorkCommand::CreateTask {
                    id: TaskId(id),
                    attempt: Some(attempt),
                    spec: std::sync::Arc::new(task_spec(&self.rng)),
                }
            }
            Stage::Record => {
                let source =
                    if let Operation::Build { source } | Operation::Up { source } = operation {
                        *source
                    } else {
                        Digest::of(b"source")
                    };
                let processes = templates(&self.rng);
                let image = Digest::of(&id.to_le_bytes());
                WorkCommand::RecordBuild { id: BuildId(id), attempt, source, image, processes }
            }
            Stage::Deploy(build) => WorkCommand::Deploy { id: DeploymentId(id), attempt, build },
            Stage::Restart(deployment) => WorkCommand::Restart { attempt, deployment },
            Stage::Release(deployment) => WorkCommand::Release { attempt, deployment },
            Stage::Destroy => WorkCommand::Destroy(attempt),
        }
    }

    /// What a job asked for was answered.
    pub(crate) fn work_answered(
        &mut self,
        runner: usize,
        life: u64,
        (job, epoch): (JobId, u32),
        answer: Answer,
    ) {
        let at = Attempt { job, epoch };
        let impatient = self.rested_for() > PATIENCE;
        let Some(work) = self.work_of(runner, life, (job, epoch)) else { return };
        work.asked = false;
        let done = match &answer {
            Answer::Task(Some(TaskState::Pending { reason: Some(reason) })) if impatient => {
                Err(format!("still no place: {reason}"))
            }
            _ => next(work, answer),
        };
        match done {
            Ok(Some(stage)) => {
                let waits = matches!(stage, Stage::WaitTask(_) | Stage::WaitReady(_));
                work.stage = stage;
                let pause = if waits { self.rng.between(100, 500) } else { 1 };
                self.later(pause, Event::Work { runner, life, job, epoch });
            }
            Ok(None) => self.work_ends(runner, at, Outcome::Succeeded),
            Err(reason) => self.work_ends(runner, at, Outcome::Failed { reason }),
        }
    }
}

/// The next stage, or the end.
fn next(work: &Work, answer: Answer) -> Result<Option<Stage>, String> {
    let up = matches!(work.operation, Operation::Up { .. });
    match (work.stage, answer) {
        (
            stage @ (Stage::WaitTask(_) | Stage::WaitReady(_)),
            Answer::Broken | Answer::Unavailable,
        ) => Ok(Some(stage)),
        (_, Answer::Broken | Answer::Unavailable) => Err("the server does not answer".to_owned()),
        (_, Answer::Refused(refusal)) => Err(refusal.to_string()),
        (Stage::Task, Answer::Done(Reply::Task(task))) => Ok(Some(Stage::WaitTask(task.id))),
        (Stage::WaitTask(id), Answer::Task(Some(state))) => match state {
            TaskState::Succeeded { .. } => Ok(Some(Stage::Record)),
            TaskState::Failed { reason, .. } => Err(reason),
            TaskState::Cancelled { .. } => Err("its task was cancelled".to_owned()),
            TaskState::Pending { .. } | TaskState::Offered { .. } | TaskState::Running { .. } => {
                Ok(Some(Stage::WaitTask(id)))
            }
        },
        (Stage::Record, Answer::Done(Reply::Build(build))) => {
            Ok(up.then_some(Stage::Deploy(Some(build.number))))
        }
        (Stage::Deploy(_) | Stage::Restart(_), Answer::Done(Reply::Deployment(row))) => {
            Ok(Some(Stage::WaitReady(row.id)))
        }
        (Stage::WaitReady(id), Answer::Deployment(Some(state))) => match state {
            DeploymentState::Starting { .. } => Ok(Some(Stage::WaitReady(id))),
            DeploymentState::Ready => Ok(Some(Stage::Release(id))),
            DeploymentState::Failed { reason } => Err(reason),
            DeploymentState::Retired => Err("it is retired".to_owned()),
        },
        (Stage::Release(_) | Stage::Destroy, Answer::Done(Reply::Released(_))) => Ok(None),
        (stage, answer) => Err(format!("{stage:?} was answered with {answer:?}")),
    }
}

fn task_spec(rng: &Rng) -> TaskSpec {
    let mut spec = TaskSpec::new(Action::run(["build"]), 60_000);
    spec.container.limits.memory_mb = Some(rng.between(64, 512));
    asks(rng, &mut spec.container);
    spec.retry = rng.chance(200).then_some(RetryPolicy { attempts: 2, pause_ms: 500 });
    spec
}

/// What a cell must have for some of what runs.
pub(crate) fn asks(rng: &Rng, container: &mut ContainerSpec) {
    if rng.chance(100) {
        container.driver = Some(name("docker"));
    }
    if rng.chance(120) {
        container.tags.insert(name(if rng.chance(700) { "ssd" } else { "gpu" }));
    }
    container.limits.cpu_shares = rng.chance(300).then(|| rng.between(50, 400));
    container.limits.pids = rng.chance(200).then(|| rng.between(10, 60));
}

/// What an image runs. The word after the program says how it behaves.
fn templates(rng: &Rng) -> Vec<ProcessTemplate> {
    let behaviour = match rng.below(20) {
        0 => "never-healthy",
        1 => "crashes",
        _ => "good",
    };
    let memory_mb = Some(rng.between(64, 300));
    let check = Check { start_timeout_ms: rng.between(3_000, 40_000), ..Check::default() };
    let crash = CrashPolicy { base_ms: 1_000, cap_ms: 8_000, ..CrashPolicy::default() };
    let spec = |check| {
        let mut spec = ProcessSpec::new(["app", behaviour]);
        spec.container.limits.memory_mb = memory_mb;
        asks(rng, &mut spec.container);
        spec.check = check;
        spec.stop_grace_ms = 500;
        spec.crash = crash;
        spec
    };
    let count = |high| u32::try_from(rng.between(0, high)).unwrap_or(0);
    let (web, worker) = (count(2) + 1, count(2));
    vec![
        ProcessTemplate { name: name("web"), spec: spec(Some(check.clone())), instances: web },
        ProcessTemplate { name: name("worker"), spec: spec(None), instances: worker },
    ]
}
