//! Whatever is asked: a refusal leaves no trace, and rows tell everything.

use std::collections::BTreeMap;
use std::time::Duration;

use std::sync::Arc;

use model::{
    AppId, BuildId, CellId, DeploymentId, Digest, InstanceReport, JobId, Outcome, ProcessSpec,
    RetryPolicy, RunnerId, Target, TaskId, TaskReport, Time, VolumeId, VolumeMount,
};
use proptest::prelude::{Strategy, any, prop, prop_oneof, proptest};
use state::{
    Attempt, CellCommand, Command, Delivery, Held, Instance, Job, JobCommand, JobSpec, NewJob,
    PredecessorKind, ProcessTemplate, Row, RowKey, Secret, State, Task, Volume, WorkCommand,
};

use crate::bench::{
    APP, Bench, PROJECT, SOURCE, failed, labels, name, noop, process, task_spec, up,
};

/// A command in small numbers; the state it meets makes it concrete.
type Seed = (u8, u8, u8, u8);

fn seeds() -> impl Strategy<Value = Vec<Seed>> {
    let kind = prop_oneof![5 => 0_u8..12, 8 => 12_u8..27, 1 => 27_u8..32];
    prop::collection::vec((kind, 0_u8..8, 0_u8..5, any::<u8>()), 1..150)
}

fn attempt(state: &State, pick: u8, epoch: u8) -> Attempt {
    let rows: Vec<_> = state.all::<Job>().collect();
    let Some(row) = rows.get(usize::from(pick) % rows.len().max(1)) else {
        return Attempt { job: JobId(u128::from(pick)), epoch: 0 };
    };
    let off = u32::from(epoch == 4);
    Attempt { job: row.id, epoch: row.epoch.saturating_sub(off) }
}

/// An attempt at a job in this state, if there is one; sometimes another.
fn attempt_in(state: &State, is: &str, (_, pick, small, _): Seed) -> Attempt {
    let mut wanted = state.all::<Job>().filter(|job| job.state.name() == is);
    match wanted.next() {
        Some(job) if small != 4 => Attempt { job: job.id, epoch: job.epoch },
        _ => attempt(state, pick, small),
    }
}

/// An attempt at work on the app, if there is one.
fn running(state: &State, seed: Seed) -> Attempt {
    let mut all = state.all::<Job>();
    let found = all.find(|job| job.state.name() == "running" && job.spec.app.is_some());
    match found {
        Some(job) if seed.2 != 4 => Attempt { job: job.id, epoch: job.epoch },
        _ => attempt(state, seed.1, seed.2),
    }
}

fn job_command(state: &State, seed: Seed, fresh: u128) -> JobCommand {
    let (kind, pick, small, any) = seed;
    let at = attempt(state, pick, small);
    match kind {
        0..3 => {
            let depends_on = if small == 1 { vec![at.job] } else { Vec::new() };
            let base = if any % 2 == 0 { up() } else { noop() };
            let spec = JobSpec {
                allow_failure: if any % 3 == 0 { depends_on.clone() } else { Vec::new() },
                depends_on,
                singleton: (small == 2).then(|| "one".to_owned()),
                idempotency_key: (small == 3).then(|| format!("key-{}", pick % 3)),
                target: if any % 7 == 0 { Target::Runner(RunnerId(2)) } else { Target::Any },
                ..base
            };
            let expires_in = (any % 5 == 0).then_some(Duration::from_secs(u64::from(pick)));
            JobCommand::Queue(NewJob { id: JobId(fresh), spec: spec.into(), expires_in })
        }
        3 | 4 => JobCommand::Assign(RunnerId(u128::from(pick % 3))),
        5 | 6 => JobCommand::Ack(attempt_in(state, "waiting", seed)),
        7 => JobCommand::Nack(attempt_in(state, "waiting", seed)),
        8 => JobCommand::Heartbeat(attempt_in(state, "running", seed)),
        9 => {
            let outcome = if any % 2 == 0 { Outcome::Succeeded } else { failed("exit 1") };
            JobCommand::Complete(attempt_in(state, "running", seed), outcome)
        }
        10 => JobCommand::Cancel { job: at.job, force: any % 2 == 0, reason: "r".to_owned() },
        _ => JobCommand::RunnerOnline {
            id: RunnerId(u128::from(pick % 3)),
            name: name("runner"),
            labels: labels(&[("zone", "a")]),
            only_own: any % 4 == 0,
            holds: if any % 2 == 0 { vec![at] } else { Vec::new() },
            token: None,
        },
    }
}

/// A process with or without volumes.
fn mounting(pick: u8) -> ProcessSpec {
    let mut spec = process(200);
    for (bit, volume) in [(1, "data"), (2, "cache")] {
        if pick & bit != 0 {
            let mount = VolumeMount { path: format!("/{volume}"), read_only: pick == 7 };
            spec.container.volumes.insert(name(volume), mount);
        }
    }
    spec
}

fn work_command(state: &State, seed: Seed, fresh: u128) -> WorkCommand {
    let (kind, pick, small, any) = seed;
    let attempt = running(state, seed);
    let rows: Vec<DeploymentId> = state.all::<state::Deployment>().map(|row| row.id).collect();
    let deployment = rows.get(usize::from(any) % rows.len().max(1));
    let deployment = deployment.copied().unwrap_or(DeploymentId(1));
    match kind {
        12 => {
            let mut spec = task_spec();
            spec.callback = (any % 3 == 0).then(|| "https://example.com/".to_owned());
            spec.retry = (any % 4 == 0).then_some(RetryPolicy { attempts: 3, pause_ms: 500 });
            spec.start_timeout_ms = (any % 5 == 0).then_some(2_000);
            let (id, spec) = (TaskId(fresh), Arc::new(spec));
            if any % 2 == 0 {
                return WorkCommand::CreateTask { id, attempt: Some(attempt), spec };
            }
            let key = (small == 3).then(|| format!("key-{}", pick % 3));
            WorkCommand::NewTask { id, project: PROJECT, key, spec }
        }
        13 => WorkCommand::RecordBuild {
            id: BuildId(fresh),
            attempt,
            source: SOURCE,
            image: Digest([pick; 32]),
            processes: vec![
                ProcessTemplate {
                    name: name("web"),
                    spec: mounting(pick),
                    instances: small.min(2).into(),
                },
                ProcessTemplate { name: name("worker"), spec: process(50), instances: 1 },
            ],
        },
        14 | 15 => WorkCommand::Deploy { id: DeploymentId(fresh), attempt, build: None },
        16 => WorkCommand::Restart { attempt, deployment },
        17 => WorkCommand::Release { attempt, deployment },
        18 if small == 0 => WorkCommand::Destroy(attempt),
        _ => task_command(state, seed),
    }
}

fn task_command(state: &State, (_, pick, small, any): Seed) -> WorkCommand {
    let messages: Vec<_> = state.all::<Delivery>().collect();
    let message = messages.get(usize::from(any) % messages.len().max(1));
    match (small, message) {
        (1, Some(row)) => WorkCommand::Delivered { id: row.id, attempts: row.attempts },
        (2 | 3, Some(row)) => WorkCommand::NotDelivered {
            id: row.id,
            attempts: row.attempts + u32::from(pick == 0),
            reason: "x".to_owned(),
            give_up: any % 5 == 0,
        },
        (4, _) => {
            let secret = Secret(pick.to_string());
            WorkCommand::Sign { project: PROJECT, secret, rotate: any % 2 == 0 }
        }
        _ => {
            let tasks: Vec<_> = state.all::<Task>().map(|row| row.id).collect();
            let id = tasks.get(usize::from(any) % tasks.len().max(1));
            WorkCommand::CancelTask(id.copied().unwrap_or(TaskId(1)))
        }
    }
}

fn cell_command(state: &State, (kind, pick, small, any): Seed) -> CellCommand {
    let cell = CellId(u128::from(pick % 2));
    let epoch = state.get::<state::Cell>(cell).map_or(0, |row| row.epoch);
    let instances: Vec<_> = state.all::<Instance>().collect();
    let instance = instances.get(usize::from(any) % instances.len().max(1));
    let tasks: Vec<_> = state.all::<Task>().collect();
    match (kind, instance, tasks.get(usize::from(any) % tasks.len().max(1))) {
        (19, ..) => {
            let id = cell;
            let held = |row: &&Arc<Instance>| {
                let before = row.before.map(|it| Held::Instance { id: row.id, epoch: it.epoch });
                before.into_iter().chain([Held::Instance { id: row.id, epoch: row.epoch }])
            };
            let holds =
                if any % 2 == 0 { instances.iter().flat_map(held).collect() } else { Vec::new() };
            CellCommand::Online { id, spec: crate::bench::cell_spec(1_000), holds, token: None }
        }
        (20..25, Some(row), _) => {
            let report = match (kind, small) {
                (20 | 21, _) => {
                    InstanceReport::Started { address: crate::bench::address(any.into()) }
                }
                (22 | 23, _) => InstanceReport::Ready { ready: small > 0 },
                (_, 0) => InstanceReport::Reject { reason: "full".to_owned() },
                (_, 1) => InstanceReport::Gone,
                _ => InstanceReport::Crashed {
                    reason: "x".to_owned(),
                    never_healthy: small == 2,
                    detail: None,
                },
            };
            let current = (row.state.cell().unwrap_or(cell), row.epoch);
            let before = row.before.filter(|_| any % 3 == 0).map(|it| (it.cell, it.epoch));
            let (cell, epoch) = before.unwrap_or(current);
            CellCommand::Instance { cell, instance: row.id, epoch, report }
        }
        (25 | 26, _, Some(row)) => {
            let report = match small {
                0 | 1 => TaskReport::Claim,
                2 => TaskReport::Succeeded { result: None, artifact: None },
                3 => TaskReport::Failed { reason: "x".to_owned(), detail: None },
                _ => TaskReport::Reject { reason: "full".to_owned() },
            };
            let cell = row.state.cell().unwrap_or(cell);
            CellCommand::Task { cell, task: row.id, epoch: row.epoch, report }
        }
        _ if small == 0 => CellCommand::Leave { id: cell, epoch },
        _ if small == 1 && any % 2 == 0 => {
            CellCommand::Drain { id: cell, timeout: Duration::from_secs(u64::from(any)) }
        }
        _ if small == 1 => CellCommand::Left { id: cell, epoch },
        _ if small == 2 && any % 2 == 0 => CellCommand::Undrain(cell),
        _ if small == 2 => {
            let row = state.all::<Volume>().find(|row| row.state.name() == "deleting");
            let row = row.map(|row| (row.cell, row.id));
            let (cell, volume) = row.unwrap_or((cell, VolumeId(1)));
            CellCommand::VolumeGone { cell, volume }
        }
        _ => CellCommand::Heartbeat { id: cell, epoch },
    }
}

fn command(state: &State, seed: Seed, fresh: u128) -> Command {
    let (kind, pick, small, any) = seed;
    match kind {
        0..12 => Command::Job(job_command(state, seed, fresh)),
        12..19 => Command::Work(work_command(state, seed, fresh)),
        19..27 => Command::Cell(cell_command(state, seed)),
        27 => Command::Job(JobCommand::RunnerOffline(RunnerId(u128::from(pick % 3)))),
        28 => Command::Scale {
            app: APP,
            workspace: name("production"),
            process: name("web"),
            instances: small.into(),
        },
        29 if small < 3 => {
            let rows: Vec<_> = state.all::<Volume>().map(|row| row.id).collect();
            let id = rows.get(usize::from(any) % rows.len().max(1)).copied();
            Command::RemoveVolume { id: id.unwrap_or(VolumeId(1)), force: small == 0 }
        }
        29 => Command::DeleteApp(AppId(u128::from(any % 8) * 10)),
        30 if small == 0 => Command::Rebalance { moves: u32::from(pick) },
        30 => Command::EnsureApp { id: APP, project: PROJECT, name: name("web") },
        _ => Command::Boot,
    }
}

/// What a store holds.
#[derive(Default)]
struct Rows {
    rows: BTreeMap<RowKey, Vec<u8>>,
    ended: Vec<Vec<u8>>,
}

/// Keeps rows as a store does; how many changed.
fn keep(rows: &mut Rows, state: &mut State) -> usize {
    let changes = state.take_changes().expect("rows render");
    let count = changes.rows.len();
    for change in changes.rows {
        match change.body {
            Some(body) => rows.rows.insert(change.key, body),
            None => rows.rows.remove(&change.key),
        };
    }
    rows.ended.extend(changes.archived.into_iter().map(|job| job.body));
    renew::<state::Cell>(rows, state);
    renew::<Job>(rows, state);
    count
}

/// Leases that were renewed are not kept. The rows get those of the state, and must agree in all
/// else.
fn renew<R: Row>(rows: &mut Rows, state: &State) {
    for row in state.all::<R>() {
        let Some(body) = rows.rows.get_mut(&R::key(row.id())) else { continue };
        let kept: R = serde_json::from_slice(body).expect("it loads");
        if !kept.differs(row) {
            *body = serde_json::to_vec(&**row).expect("it renders");
        }
    }
}

fn loaded(rows: &Rows) -> State {
    let mut state = State::new("localhost");
    for (key, body) in &rows.rows {
        state.load(key.kind(), body).expect("it loads");
    }
    for body in &rows.ended {
        state.load_ended(body).expect("it loads");
    }
    state
}

/// What can be asked of a state, as text.
fn picture(state: &State) -> String {
    let rows = (
        state.all::<Job>().collect::<Vec<_>>(),
        state.all::<Task>().collect::<Vec<_>>(),
        state.all::<Instance>().collect::<Vec<_>>(),
        state.all::<state::Process>().collect::<Vec<_>>(),
        state.all::<state::Deployment>().collect::<Vec<_>>(),
        state.all::<state::Build>().collect::<Vec<_>>(),
        state.all::<state::App>().collect::<Vec<_>>(),
        state.all::<state::Cell>().collect::<Vec<_>>(),
        state.all::<state::Runner>().collect::<Vec<_>>(),
        state.all::<Delivery>().collect::<Vec<_>>(),
        state.all::<Volume>().collect::<Vec<_>>(),
    );
    let cells: Vec<_> = (0..2)
        .map(|id| (state.cell_work(CellId(id)), state.volumes_to_delete(CellId(id))))
        .collect();
    let drains: Vec<_> = (0..2).map(|id| state.drain_progress(CellId(id))).collect();
    let why: Vec<_> = state.all::<Job>().map(|job| state.why_queued(job)).collect();
    let message = state.next_delivery(Time(0));
    let counts = state.counts();
    let mut counts = [counts.jobs, counts.tasks, counts.instances];
    for counts in &mut counts {
        counts.retain(|_, count| *count > 0);
    }
    let asked = (state.next_deadline(), state.ready_jobs(), cells, drains, why, message, counts);
    format!("{rows:#?}\n{asked:#?}")
}

/// What must hold of every instance and the copy before it.
fn check_copies(state: &State, shown: &str) {
    let connected =
        |cell| state.get::<state::Cell>(cell).is_some_and(|it| it.lease_until.is_some());
    for row in state.all::<Instance>() {
        let Some(before) = row.before else { continue };
        let is_stopping = before.kind == PredecessorKind::Stopping;
        assert!(before.epoch < row.last_epoch || row.state.cell().is_none(), "{shown}: {row:?}");
        assert_ne!(row.state.cell(), Some(before.cell), "{shown}: {row:?}");
        assert_eq!(
            before.kind != PredecessorKind::Suspect,
            connected(before.cell),
            "{shown}: {row:?}"
        );
        let served = row.state.ready_address().is_some() || row.state.name() == "stopping";
        assert!(is_stopping || !served, "{shown}: {row:?}");
    }
}

/// What must hold of every volume: one writer at most, and only where the data is.
fn check_volumes(state: &State, shown: &str) {
    let mut writers = BTreeMap::new();
    for row in state.all::<Instance>() {
        let Some(process) = state.get::<state::Process>(row.process) else { continue };
        if process.spec.container.volumes.is_empty() {
            continue;
        }
        let cells = row.state.cell().into_iter().chain(row.before.map(|before| before.cell));
        let volumes = state.volumes_of(row);
        for cell in cells {
            for (volume, id) in &volumes {
                let place = state.get::<Volume>(*id).expect("it is there").cell;
                let is_ending = row.state.name() == "stopping";
                assert!(is_ending || place == cell, "{shown}: {row:?} is not where {id} is");
                if !process.spec.container.volumes[volume].read_only && place == cell {
                    let other = writers.insert(*id, row.id);
                    assert_eq!(other, None, "{shown}: {id} has two writers: {row:?}");
                }
            }
            let all = volumes.len() == process.spec.container.volumes.len();
            let placed = ["claimed", "running"].contains(&row.state.name());
            assert!(all || !placed, "{shown}: {row:?} lacks volumes");
        }
        assert!(!row.held || row.state.name() == "unclaimed", "{shown}: {row:?}");
    }
}

fn live_through(seeds: Vec<Seed>) {
    let mut bench = Bench::ready();
    bench.cell(0, 2_000, &[]);
    bench.runner(0, &[]);
    bench.released(1);
    bench.work_job();
    let mut rows = Rows::default();
    keep(&mut rows, &mut bench.state);
    for (number, seed) in seeds.into_iter().enumerate() {
        bench.now += u64::from(seed.3) * 4;
        let now = Time(bench.now);
        if bench.state.next_deadline().is_some_and(|due| due <= now) {
            bench.ok(Command::Tick);
            keep(&mut rows, &mut bench.state);
        }
        let before = (picture(&bench.state), bench.state.routes());
        let fresh = (number as u128 + 1) << 80;
        let command = command(&bench.state, seed, fresh);
        let mut twin = loaded(&rows);
        let shown = format!("{command:?}");
        let done = bench.state.apply(now, command.clone());
        let again = twin.apply(now, command);
        assert_eq!(done.is_ok(), again.is_ok(), "after a reload: {shown}, {done:?}, {again:?}");
        if done.is_err() {
            assert_eq!(keep(&mut rows, &mut bench.state), 0, "{shown}");
            let after = (picture(&bench.state), bench.state.routes());
            assert!(before == after, "{shown} was refused and left traces");
        } else {
            keep(&mut rows, &mut bench.state);
        }
        check_copies(&bench.state, &shown);
        check_volumes(&bench.state, &shown);
        assert_eq!(picture(&bench.state), picture(&loaded(&rows)), "after a reload: {shown}");
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(48))]

    #[test]
    fn refusals_leave_no_trace_and_rows_tell_everything(seeds in seeds()) {
        live_through(seeds);
    }
}

/// Two deployments only read the volumes that the claim of the first made, and its cell gives it back.
#[test]
fn volumes_outlive_a_claim_that_came_to_nothing_while_another_has_them() {
    live_through(vec![(13, 7, 2, 0), (14, 0, 0, 0), (14, 0, 0, 0), (24, 0, 0, 106)]);
}
