//! Who goes where, in which order, and why something waits.

use std::sync::Arc;

use model::{
    CellDrivers, CellId, CellSpec, DeploymentId, InstanceState, ProcessSpec, TaskId, TaskReport,
    TaskState,
};
use state::{CellCommand, Command, WorkCommand};

use crate::bench::{Bench, cell_spec, name, process, task_spec};

fn online(bench: &mut Bench, id: u128, spec: CellSpec) {
    bench.ok(Command::Cell(CellCommand::Online {
        id: CellId(id),
        spec,
        holds: Vec::new(),
        token: None,
    }));
}

fn words(text: &str) -> impl Iterator<Item = model::Name> + '_ {
    text.split_whitespace().map(name)
}

/// A cell in a sentence: drivers, required tags, tags.
fn cell(drivers: &str, required: &str, tags: &str) -> CellSpec {
    CellSpec {
        drivers: words(drivers).collect(),
        required_tags: words(required).collect(),
        tags: words(tags).collect(),
        ..cell_spec(1_000)
    }
}

fn asks(driver: &str, tags: &str, memory_mb: u64) -> ProcessSpec {
    let mut spec = process(memory_mb);
    spec.container.driver = words(driver).next();
    spec.container.tags = words(tags).collect();
    spec
}

/// One instance of a process on a cell that is there.
fn deployed(on: CellSpec, wants: ProcessSpec) -> (Bench, DeploymentId) {
    let mut bench = Bench::new();
    bench.runner(1, &[]);
    online(&mut bench, 1, on);
    let at = bench.work_job();
    let deployment = bench.deploy_spec(at, 1, wants);
    (bench, deployment)
}

fn why(bench: &Bench, deployment: DeploymentId) -> Option<String> {
    match &bench.instances(deployment)[0].state {
        InstanceState::Unclaimed { reason } => Some(reason.clone().expect("it is said at once")),
        _ => None,
    }
}

#[test]
fn drivers_tags_and_room_decide() {
    let cases: [(&str, CellSpec, ProcessSpec, Option<&str>); 9] = [
        ("nothing special", cell("process", "", ""), asks("", "", 100), None),
        ("the driver", cell("process oci", "", ""), asks("oci", "", 100), None),
        (
            "another driver",
            cell("process", "", ""),
            asks("oci", "gpu", 100),
            Some("no cell has driver oci"),
        ),
        ("a tag it has", cell("oci", "", "gpu ssd"), asks("oci", "gpu", 100), None),
        (
            "a tag it has not",
            cell("oci", "", "ssd"),
            asks("oci", "gpu", 100),
            Some("no cell has driver oci and tag gpu"),
        ),
        ("a tag that must be asked for", cell("", "gpu", "ssd"), asks("", "gpu", 100), None),
        (
            "a tag that was not asked for",
            cell("", "gpu", ""),
            asks("", "", 100),
            Some("every cell is kept for work with other tags"),
        ),
        (
            "too much memory",
            cell("", "", ""),
            asks("", "", 2_048),
            Some("needs 2048 MiB of memory, the freest cell has 1000 MiB"),
        ),
        (
            "too much memory where the tag is",
            cell("", "", "gpu"),
            asks("", "gpu", 2_048),
            Some("needs 2048 MiB of memory, the freest cell with tag gpu has 1000 MiB"),
        ),
    ];
    for (what, on, wants, wanted) in cases {
        let (bench, deployment) = deployed(on, wants);
        assert_eq!(why(&bench, deployment).as_deref(), wanted, "{what}");
    }
}

fn drivers_of(bench: &mut Bench, working: &str, failing: &[(&str, &str)]) {
    let epoch = bench.state.get::<state::Cell>(CellId(1)).expect("there").epoch;
    let unavailable = failing.iter().map(|(driver, why)| (name(driver), (*why).to_owned()));
    let drivers =
        CellDrivers { drivers: words(working).collect(), unavailable: unavailable.collect() };
    bench.ok(Command::Cell(CellCommand::Drivers { id: CellId(1), epoch, drivers }));
}

#[test]
fn a_driver_that_fails_is_avoided_until_it_works_again() {
    const FAULT: &str = "on cell cell driver docker does not work at the moment: no daemon";
    let lacking = format!("no cell has driver docker: {FAULT}");
    let none = format!("no cell takes new work: {FAULT}");
    // What works at first, and besides docker still does then; what the app asks for.
    let cases = [
        ("docker process", "process", "docker", Some(&lacking)),
        ("docker process", "process", "process", None),
        ("docker process", "process", "", None),
        ("docker", "", "", Some(&none)),
        ("docker", "", "oci", Some(&none)),
    ];
    for (first, working, wanted, told) in cases {
        let told = told.map(String::as_str);
        let mut bench = Bench::new();
        bench.runner(1, &[]);
        online(&mut bench, 1, cell(first, "", ""));
        drivers_of(&mut bench, working, &[("docker", "no daemon")]);
        let at = bench.work_job();
        let deployment = bench.deploy_spec(at, 1, asks(wanted, "", 100));
        assert_eq!(why(&bench, deployment).as_deref(), told, "{first} {wanted}");
        let mut spec = task_spec();
        spec.container.driver = words(wanted).next();
        let (id, spec) = (TaskId(bench.fresh()), Arc::new(spec));
        bench.ok(Command::Work(WorkCommand::CreateTask { id, attempt: None, spec }));
        let state = match told {
            Some(reason) => TaskState::Pending { reason: Some(reason.to_owned()) },
            None => TaskState::Offered { cell: CellId(1) },
        };
        assert_eq!(bench.task_state(id), state, "{first} {wanted}");
        // It recovers, and what waited for it goes there at once.
        drivers_of(&mut bench, first, &[]);
        let placed = first.contains(wanted);
        assert_eq!(why(&bench, deployment).is_none(), placed, "{first} {wanted}");
    }
}

#[test]
fn what_a_cell_says_of_its_drivers_has_limits() {
    let mut bench = Bench::new();
    online(&mut bench, 1, cell("process", "", ""));
    let say = |bench: &mut Bench, epoch, reason: String| {
        let unavailable = [(name("docker"), reason)].into();
        let drivers = CellDrivers { drivers: words("process").collect(), unavailable };
        bench.try_apply(Command::Cell(CellCommand::Drivers { id: CellId(1), epoch, drivers }))
    };
    assert!(say(&mut bench, 1, "x".repeat(500)).is_ok());
    assert!(say(&mut bench, 1, "x".repeat(501)).is_err(), "a reason that is too long");
    assert!(say(&mut bench, 2, String::new()).is_err(), "an earlier connection");
}

#[test]
fn tags_decide_for_tasks_too() {
    let cases: [(&str, CellSpec, &str, Option<&str>); 5] = [
        ("a tag it has", cell("", "", "gpu ssd"), "gpu", None),
        ("a tag it has not", cell("", "", "ssd"), "gpu", Some("no cell has tag gpu")),
        ("a tag that must be asked for", cell("", "gpu", "ssd"), "gpu", None),
        (
            "a tag that was not asked for",
            cell("", "gpu", ""),
            "",
            Some("every cell is kept for work with other tags"),
        ),
        ("no tags at all", cell("", "", ""), "", None),
    ];
    for (what, on, tags, wanted) in cases {
        let mut bench = Bench::new();
        online(&mut bench, 1, on);
        let mut spec = task_spec();
        spec.container.tags = words(tags).collect();
        let (id, spec) = (TaskId(bench.fresh()), Arc::new(spec));
        bench.ok(Command::Work(WorkCommand::CreateTask { id, attempt: None, spec }));
        let state = match wanted {
            Some(reason) => TaskState::Pending { reason: Some(reason.to_owned()) },
            None => TaskState::Offered { cell: CellId(1) },
        };
        assert_eq!(bench.task_state(id), state, "{what}");
    }
}

type Change = fn(&mut ProcessSpec);

#[test]
fn shares_and_pids_count_where_a_cell_limits_them() {
    let limited = CellSpec { cpu_shares: Some(100), pids: Some(50), ..cell_spec(1_000) };
    let cases: [(&str, Change, Option<&str>); 4] = [
        ("within", |spec| spec.container.limits.cpu_shares = Some(100), None),
        ("none asked for", |_| {}, None),
        (
            "too many shares",
            |spec| spec.container.limits.cpu_shares = Some(101),
            Some("needs 101 CPU shares, the freest cell has 100 CPU shares"),
        ),
        (
            "too many processes",
            |spec| spec.container.limits.pids = Some(51),
            Some("needs 51 processes, the freest cell has 50 processes"),
        ),
    ];
    for (what, change, wanted) in cases {
        let mut wants = process(100);
        change(&mut wants);
        let (bench, deployment) = deployed(limited.clone(), wants);
        assert_eq!(why(&bench, deployment).as_deref(), wanted, "{what}");
    }
}

#[test]
fn what_waits_is_placed_the_moment_something_fits() {
    let (mut bench, deployment) = deployed(cell("process", "", ""), asks("oci", "", 100));
    online(&mut bench, 2, cell("process", "", ""));
    assert!(why(&bench, deployment).is_some(), "not there");
    online(&mut bench, 3, cell("oci", "", ""));
    assert_eq!(bench.instances(deployment)[0].state.cell(), Some(CellId(3)));

    let (mut bench, deployment) = deployed(cell_spec(300), process(300));
    let task = bench.task(None);
    assert!(matches!(bench.task_state(task), TaskState::Pending { reason: Some(_) }));
    bench.healthy(deployment);
    let row = bench.instances(deployment).remove(0);
    let (reason, never_healthy) = ("exited with 1".to_owned(), true);
    let crashed = model::InstanceReport::Crashed { reason, never_healthy, detail: None };
    bench.report(&row, crashed);
    assert_eq!(bench.task_state(task).cell(), Some(CellId(1)), "something ended");
}

#[test]
fn a_cell_that_changes_is_looked_at_again() {
    let (mut bench, deployment) = deployed(cell("process", "", ""), asks("oci", "", 100));
    online(&mut bench, 1, cell("process oci", "", ""));
    assert_eq!(why(&bench, deployment), None);
}

#[test]
fn copies_spread_over_zones() {
    let mut bench = Bench::new();
    bench.runner(1, &[]);
    for (id, zone) in [(1, "a"), (2, "a"), (3, "b")] {
        online(&mut bench, id, CellSpec { zone: zone.to_owned(), ..cell_spec(1_000) });
    }
    let at = bench.work_job();
    let deployment = bench.deploy(at, 4);
    let on = |id| {
        bench.instances(deployment).iter().filter(|it| it.state.cell() == Some(CellId(id))).count()
    };
    assert_eq!((on(1), on(2), on(3)), (1, 1, 2));
}

#[test]
fn first_copies_then_tasks_then_the_rest() {
    // Everything waits, and then there is room for some of it.
    for (memory, wanted) in [(100, (1, 0)), (200, (1, 1)), (300, (2, 1))] {
        let mut bench = Bench::new();
        bench.runner(1, &[]);
        let at = bench.work_job();
        let mut spec = task_spec();
        spec.container.limits.memory_mb = Some(100);
        let id = TaskId(bench.fresh());
        bench.ok(Command::Work(WorkCommand::CreateTask {
            id,
            attempt: None,
            spec: Arc::new(spec),
        }));
        let deployment = bench.deploy(at, 2);
        bench.cell(1, memory, &[]);
        let rows = bench.instances(deployment);
        let claimed = rows.iter().filter(|row| row.state.cell().is_some()).count();
        let offered = usize::from(bench.task_state(id).cell().is_some());
        assert_eq!((claimed, offered), wanted, "room for {memory} MiB");
        assert!(rows[0].state.cell().is_some(), "the first copy comes first");
    }
}

#[test]
fn the_largest_comes_first_of_what_is_equal() {
    let mut bench = Bench::new();
    let task = |bench: &mut Bench, memory: u64| {
        let mut spec = task_spec();
        spec.container.limits.memory_mb = Some(memory);
        let id = TaskId(bench.fresh());
        bench.ok(Command::Work(WorkCommand::CreateTask {
            id,
            attempt: None,
            spec: Arc::new(spec),
        }));
        id
    };
    let (small, large) = (task(&mut bench, 100), task(&mut bench, 400));
    bench.cell(1, 450, &[]);
    assert_eq!(bench.task_state(large).cell(), Some(CellId(1)));
    assert_eq!(bench.task_state(small).cell(), None);
}

#[test]
fn however_many_wait_an_event_costs_little() {
    let mut bench = Bench::new();
    bench.cell(1, 1_000, &[]);
    let count = 20_000;
    for _ in 0..count {
        let mut spec = task_spec();
        spec.container.limits.memory_mb = Some(900);
        let id = TaskId(bench.fresh());
        bench.ok(Command::Work(WorkCommand::CreateTask {
            id,
            attempt: None,
            spec: Arc::new(spec),
        }));
        bench.state.forget_changes();
    }
    let waiting = bench.state.all::<state::Task>().filter(|task| task.state.cell().is_none());
    assert_eq!(waiting.count(), count - 1);
    // With a look at everything that waits each time this would take minutes.
    for _ in 0..100 {
        let running = bench.state.all::<state::Task>().find(|task| task.state.cell().is_some());
        let row = running.cloned().expect("one is there");
        let reason = "full".to_owned();
        bench.task_report(&row, TaskReport::Reject { reason }).expect("it was offered");
    }
    let waiting = bench.state.all::<state::Task>().filter(|task| task.state.cell().is_none());
    assert_eq!(waiting.count(), count - 1, "always one is placed");
}
