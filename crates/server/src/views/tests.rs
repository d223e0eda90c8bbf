//! What people are told of instances that another copy serves for.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{
    AppId, BuildId, DeploymentId, Digest, InstanceReport, JobId, Operation, Outcome, ProcessSpec,
    RunnerId, Target, Time,
};
use state::{
    Attempt, CELL_LEASE, CellCommand, Command, DRAIN_TIMEOUT, JobCommand, JobSpec, NewJob,
    ProcessTemplate, WorkCommand,
};

use super::*;

const NOW: Time = Time(1_000_000);
const CELL: CellId = CellId(5);
const DEPLOYMENT: DeploymentId = DeploymentId(7);

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn does(state: &mut State, command: Command) {
    let shown = format!("{command:?}");
    state.apply(NOW, command).unwrap_or_else(|refusal| panic!("{shown}: {refusal}"));
}

fn job() -> JobSpec {
    JobSpec {
        project: ProjectId(1),
        app: Some(AppId(2)),
        workspace: name("production"),
        operation: Operation::Up { source: Digest([1; 32]) },
        target: Target::Any,
        depends_on: Vec::new(),
        allow_failure: Vec::new(),
        singleton: None,
        idempotency_key: None,
        origin: String::new(),
    }
}

fn online() -> [Command; 2] {
    let spec = serde_json::json!({
        "name": "one", "zone": "a", "drivers": [], "memory_mb": 4_000, "disk_mb": 4_000,
        "containers": 10
    });
    let spec = serde_json::from_value(spec).expect("a spec");
    let (id, labels) = (RunnerId(3), BTreeMap::new());
    let runner = JobCommand::RunnerOnline {
        id,
        name: name("runner"),
        labels,
        only_own: false,
        holds: Vec::new(),
        token: None,
    };
    let cell = CellCommand::Online { id: CELL, spec, holds: Vec::new(), token: None };
    [Command::Job(runner), Command::Cell(cell)]
}

/// One released instance that serves on the only cell.
fn serving() -> State {
    let mut state = State::new("localhost");
    let attempt = Attempt { job: JobId(4), epoch: 1 };
    let job = NewJob { id: attempt.job, spec: Arc::new(job()), expires_in: None };
    let template =
        ProcessTemplate { name: name("web"), spec: ProcessSpec::new(["serve"]), instances: 1 };
    let build = WorkCommand::RecordBuild {
        id: BuildId(6),
        attempt,
        source: Digest([1; 32]),
        image: Digest([2; 32]),
        processes: vec![template],
    };
    does(&mut state, Command::CreateProject { id: ProjectId(1), name: name("shop") });
    let app = Command::EnsureApp { id: AppId(2), project: ProjectId(1), name: name("web") };
    does(&mut state, app);
    for command in online() {
        does(&mut state, command);
    }
    does(&mut state, Command::Job(JobCommand::Queue(job)));
    does(&mut state, Command::Job(JobCommand::Assign(RunnerId(3))));
    does(&mut state, Command::Job(JobCommand::Ack(attempt)));
    does(&mut state, Command::Work(build));
    let deploy = WorkCommand::Deploy { id: DEPLOYMENT, attempt, build: None };
    does(&mut state, Command::Work(deploy));
    let address = ([10, 0, 0, 1], 80).into();
    for report in [InstanceReport::Started { address }, InstanceReport::Ready { ready: true }] {
        let row = state.all::<Instance>().next().expect("is there");
        let (instance, epoch) = (row.id, row.epoch);
        let said = CellCommand::Instance { cell: CELL, instance, epoch, report };
        does(&mut state, Command::Cell(said));
    }
    let release = WorkCommand::Release { attempt, deployment: DEPLOYMENT };
    does(&mut state, Command::Work(release));
    does(&mut state, Command::Job(JobCommand::Complete(attempt, Outcome::Succeeded)));
    state
}

fn shown(state: &State) -> InstanceView {
    instance(state, state.all::<Instance>().next().expect("is there"))
}

#[test]
fn what_has_no_cell_says_which_copy_serves_meanwhile() {
    let mut state = serving();
    let before = shown(&state);
    assert_eq!((before.ready, before.predecessor, before.reason), (true, None, None));
    does(&mut state, Command::Cell(CellCommand::Drain { id: CELL, timeout: DRAIN_TIMEOUT }));
    let view = shown(&state);
    assert_eq!((view.state.as_str(), view.cell, view.ready), ("unclaimed", None, false));
    let serves = view.predecessor.expect("the copy before it serves");
    assert_eq!((serves.cell, serves.cell_name), (CELL, Some(name("one"))));
    assert_eq!(serves.address, "10.0.0.1:80");
    let why = view.reason.expect("it says why");
    assert!(why.ends_with("all are draining; the copy on cell one still serves"), "{why}");
    does(&mut state, Command::Cell(CellCommand::Undrain(CELL)));
    let back = shown(&state);
    assert_eq!((back.cell, back.ready, back.predecessor), (Some(CELL), true, None));
}

#[test]
fn a_copy_on_a_cell_that_is_not_heard_of_may_serve() {
    let mut state = serving();
    state.apply(NOW.after(CELL_LEASE), Command::Tick).expect("time passes");
    let why = shown(&state).reason.expect("it says why");
    assert!(why.ends_with("the copy on cell one may still serve"), "{why}");
}
