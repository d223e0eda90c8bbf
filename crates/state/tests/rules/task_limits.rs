//! How much of tasks is kept.

use std::sync::Arc;

use model::{
    Action, CellId, MAX_TASK_RESULT, RetryPolicy, TaskId, TaskReport, TaskSpec, TaskState,
};
use state::{
    KeptTasks, MAX_ENDED_SPEC, MAX_KEPT_TASKS_PER_PROJECT, MAX_TASK_BYTES_PER_PROJECT, Refusal,
    Reply, TASK_KEPT, Task, WorkCommand, delivery_id,
};

use crate::bench::{APP, Bench, PROJECT, task_spec};

fn make(bench: &mut Bench, key: Option<&str>, spec: TaskSpec) -> Result<Arc<Task>, Refusal> {
    let (id, key) = (TaskId(bench.fresh()), key.map(str::to_owned));
    let new = WorkCommand::NewTask { id, project: PROJECT, key, spec: Arc::new(spec) };
    match bench.work(new)? {
        Reply::Task(task) => Ok(task),
        other => panic!("{other:?}"),
    }
}

fn large(callback: bool) -> TaskSpec {
    let word = || Action::run(["x".repeat(100 << 10)]);
    let actions = (0..9).map(|_| word()).collect();
    let callback = callback.then(|| "https://example.com/hook".to_owned());
    TaskSpec { action: Action::Serial { actions }, callback, ..task_spec() }
}

fn cancel(bench: &mut Bench, id: TaskId) {
    bench.work(WorkCommand::CancelTask(id)).expect("it is there");
}

/// What there is, counted again.
fn counted(bench: &Bench) -> KeptTasks {
    let rows = bench.state.all::<Task>().filter(|task| task.project == Some(PROJECT));
    let bytes: Vec<usize> = rows.map(|task| task.bytes()).collect();
    KeptTasks { tasks: bytes.len(), bytes: bytes.iter().sum() }
}

fn kept(bench: &Bench) -> KeptTasks {
    let (own, all) = bench.state.kept_tasks(PROJECT);
    assert_eq!(own, all, "there is one project");
    assert_eq!(own, counted(bench));
    own
}

#[test]
fn an_ended_task_keeps_no_large_spec_and_is_still_the_same_task() {
    let mut bench = Bench::new();
    let mut spec = large(true);
    spec.annotation = Some("mine".to_owned());
    spec.container.driver = Some("process".parse().expect("a name"));
    let id = make(&mut bench, Some("once"), spec.clone()).expect("made").id;
    let whole = kept(&bench).bytes;
    assert_eq!(whole, serde_json::to_vec(&spec).expect("renders").len());
    cancel(&mut bench, id);
    let row = bench.task_row(id);
    assert!(row.bytes() <= MAX_ENDED_SPEC, "{}", row.bytes());
    assert!(serde_json::to_vec(&*row).expect("renders").len() < 2 * MAX_ENDED_SPEC);
    assert_eq!(kept(&bench).bytes, row.bytes());
    assert_eq!(row.spec.annotation.as_deref(), Some("mine"));
    assert_eq!(row.spec.callback, spec.callback);
    assert_eq!(row.spec.container.driver, spec.container.driver);
    assert_eq!(make(&mut bench, Some("once"), spec.clone()).expect("it is known").id, id);
    spec.timeout_ms += 1;
    let refusal = make(&mut bench, Some("once"), spec).expect_err("it is another one");
    assert!(matches!(refusal, Refusal::Conflict(_)), "{refusal}");
    // A small one is kept as it is.
    let id = make(&mut bench, None, task_spec()).expect("made").id;
    cancel(&mut bench, id);
    assert_eq!(*bench.task_row(id).spec, task_spec());
}

#[test]
fn the_attempt_after_a_failure_runs_the_whole_spec() {
    let mut bench = Bench::ready();
    let retry = Some(RetryPolicy { attempts: 2, pause_ms: 1 });
    let spec = TaskSpec { retry, ..large(false) };
    let first = make(&mut bench, None, spec.clone()).expect("made");
    let report = |bench: &mut Bench, id, report| {
        let row = bench.task_row(id);
        assert_eq!(row.state.cell(), Some(CellId(1)), "{:?}", row.state);
        bench.task_report(&row, report).expect("it is its");
    };
    report(&mut bench, first.id, TaskReport::Claim);
    let failed = TaskReport::Failed { reason: "exit 1".to_owned(), detail: None };
    report(&mut bench, first.id, failed);
    let first = bench.task_row(first.id);
    assert!(first.bytes() <= MAX_ENDED_SPEC);
    let second = bench.task_row(first.followed_by.expect("it is tried again"));
    assert_eq!(*second.spec, spec);
    assert_eq!(kept(&bench).tasks, 2);
    bench.secs(1);
    report(&mut bench, second.id, TaskReport::Claim);
    report(&mut bench, second.id, TaskReport::Succeeded { result: None, artifact: None });
    assert!(matches!(bench.task_state(second.id), TaskState::Succeeded { .. }));
    assert!(kept(&bench).bytes <= 2 * MAX_ENDED_SPEC);
    bench.pass(TASK_KEPT);
    assert_eq!(kept(&bench), KeptTasks::default());
}

#[test]
fn specs_fill_their_projects_share_and_no_more() {
    let mut bench = Bench::new();
    let spec = large(false);
    let fit = MAX_TASK_BYTES_PER_PROJECT / spec.bytes();
    let mut last = None;
    for _ in 0..fit {
        last = Some(make(&mut bench, None, spec.clone()).expect("there is room").id);
    }
    let refusal = make(&mut bench, None, spec.clone()).expect_err("it is full").to_string();
    assert!(refusal.contains("does not fit") && refusal.contains("cancel"), "{refusal}");
    let id = TaskId(bench.fresh());
    let once = WorkCommand::RunOnce { id, app: APP, spec: Arc::new(spec.clone()) };
    let refusal = bench.work(once.clone()).expect_err("it is full for this, too").to_string();
    assert!(refusal.contains("does not fit"), "{refusal}");
    make(&mut bench, None, task_spec()).expect("there is room for a small one");
    cancel(&mut bench, last.expect("some fit"));
    bench.work(once).expect("what ended takes little");
    assert!(kept(&bench).bytes <= MAX_TASK_BYTES_PER_PROJECT);
}

#[test]
fn results_fill_their_projects_share_and_no_more() {
    let mut bench = Bench::ready();
    let most = MAX_TASK_BYTES_PER_PROJECT / MAX_TASK_RESULT;
    let mut whole = 0;
    let refused = loop {
        let id = make(&mut bench, None, task_spec()).expect("there is room").id;
        let result = Some("x".repeat(MAX_TASK_RESULT));
        for report in [TaskReport::Claim, TaskReport::Succeeded { result, artifact: None }] {
            let row = bench.task_row(id);
            bench.task_report(&row, report).expect("it is its");
        }
        match bench.task_state(id) {
            TaskState::Succeeded { result: Some(_), .. } if whole < most => whole += 1,
            TaskState::Failed { reason, .. } => break reason,
            other => panic!("{whole} before it, {}", other.name()),
        }
    };
    assert!(refused.contains("does not fit"), "{refused}");
    assert_eq!(whole, most - 1, "the specs take some of the room");
    assert!(kept(&bench).bytes <= MAX_TASK_BYTES_PER_PROJECT);
}

#[test]
fn tasks_whose_callback_is_not_answered_count_until_it_is() {
    let mut bench = Bench::new();
    let spec = TaskSpec { callback: large(true).callback, ..task_spec() };
    let mut first = None;
    for _ in 0..MAX_KEPT_TASKS_PER_PROJECT {
        let id = make(&mut bench, None, spec.clone()).expect("there is room").id;
        cancel(&mut bench, id);
        first.get_or_insert(id);
    }
    bench.pass(TASK_KEPT);
    let refusal = make(&mut bench, None, spec.clone()).expect_err("it is full").to_string();
    assert!(refusal.contains("callbacks answer"), "{refusal}");
    let id = delivery_id(first.expect("some were made"));
    bench.work(WorkCommand::Delivered { id, attempts: 0 }).expect("it waits");
    bench.pass(TASK_KEPT);
    make(&mut bench, None, spec).expect("one was forgotten");
}
