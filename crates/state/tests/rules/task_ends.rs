//! How tasks end: expiry, retries, cancellation that is not confirmed, and who is told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use model::{CellId, Digest, RetryPolicy, TaskId, TaskReport, TaskSpec, TaskState, Time};
use state::{
    CANCEL_FORCE, CELL_LEASE, Callback, Command, DELIVERY_LIFE, Delivery, Refusal, Reply,
    SECRET_OVERLAP, Secret, Signing, TASK_KEPT, Task, WorkCommand, delivery_id,
};

use crate::bench::{Bench, PROJECT, name, task_spec};

fn make(bench: &mut Bench, key: Option<&str>, spec: TaskSpec) -> Result<Arc<Task>, Refusal> {
    let (id, key) = (TaskId(bench.fresh()), key.map(str::to_owned));
    let new = WorkCommand::NewTask { id, project: PROJECT, key, spec: Arc::new(spec) };
    match bench.work(new)? {
        Reply::Task(task) => Ok(task),
        other => panic!("{other:?}"),
    }
}

fn retried(attempts: u32) -> TaskSpec {
    TaskSpec { retry: Some(RetryPolicy { attempts, pause_ms: 2_000 }), ..task_spec() }
}

fn called_back() -> TaskSpec {
    TaskSpec { callback: Some("https://example.com/hook".to_owned()), ..task_spec() }
}

fn claim(bench: &mut Bench, id: TaskId) -> Arc<Task> {
    let row = bench.task_row(id);
    bench.task_report(&row, TaskReport::Claim).expect("it was offered");
    bench.task_row(id)
}

fn fail(bench: &mut Bench, id: TaskId) -> Arc<Task> {
    let row = claim(bench, id);
    let report = TaskReport::Failed { reason: "exit 1".to_owned(), detail: None };
    bench.task_report(&row, report).expect("it runs");
    bench.task_row(id)
}

fn reason(bench: &Bench, id: TaskId) -> String {
    match bench.task_state(id) {
        TaskState::Failed { reason, .. } => reason,
        TaskState::Cancelled { reason } => reason.unwrap_or_default(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_task_without_a_place_fails_with_the_last_reason() {
    let mut bench = Bench::new();
    let id = bench.task(None);
    bench.secs(30 * 60 - 1);
    assert_eq!(bench.task_state(id).name(), "pending");
    bench.secs(1);
    let why = reason(&bench, id);
    assert!(why.starts_with("was not started within 30 min: "), "{why}");
    assert!(why.contains("no cell"), "{why}");
}

#[test]
fn an_offer_that_no_cell_claims_expires_too_and_is_not_retried() {
    let mut bench = Bench::ready();
    let spec = TaskSpec { start_timeout_ms: Some(5_000), ..retried(3) };
    let id = make(&mut bench, None, spec).expect("made").id;
    let row = bench.task_row(id);
    assert_eq!(row.state, TaskState::Offered { cell: CellId(1) });
    bench.secs(5);
    assert!(reason(&bench, id).starts_with("was not started within 5 s: cell cell did "));
    assert_eq!(bench.task_row(id).followed_by, None);
    assert!(bench.state.cell_work(CellId(1)).tasks.is_empty());
    let late = bench.state.apply(
        Time(bench.now),
        Command::Cell(state::CellCommand::Task {
            cell: CellId(1),
            task: id,
            epoch: row.epoch,
            report: TaskReport::Claim,
        }),
    );
    assert!(matches!(late, Err(Refusal::Stale { .. })), "its time is over");
}

#[test]
fn what_cells_give_back_is_offered_less_and_less_often_and_fails_with_their_reason() {
    let mut bench = Bench::ready();
    let id = bench.task(None);
    let why = "the process driver runs nothing as another user";
    let mut offers = 0;
    while bench.task_state(id).name() != "failed" {
        let row = bench.task_row(id);
        if row.state.name() == "offered" {
            offers += 1;
            let reject = TaskReport::Reject { reason: why.to_owned() };
            bench.task_report(&row, reject).expect("it may");
        }
        bench.pass_without(9, Duration::from_secs(1));
    }
    assert!((25..=40).contains(&offers), "{offers} offers in 30 min");
    assert!(reason(&bench, id).contains(why), "{}", reason(&bench, id));
}

#[test]
fn a_task_that_was_claimed_does_not_expire() {
    let mut bench = Bench::ready();
    let spec = TaskSpec { start_timeout_ms: Some(5_000), ..task_spec() };
    let id = make(&mut bench, None, spec).expect("made").id;
    claim(&mut bench, id);
    bench.secs(6);
    assert_eq!(bench.task_state(id).name(), "running");
}

#[test]
fn a_failed_attempt_is_followed_by_a_new_task_after_a_pause() {
    let mut bench = Bench::ready();
    let first = make(&mut bench, None, retried(3)).expect("made").id;
    let row = fail(&mut bench, first);
    let second = row.followed_by.expect("another follows");
    let next = bench.task_row(second);
    assert_eq!((next.attempt, next.retry_of), (2, Some(first)));
    assert_eq!(next.state, TaskState::Pending { reason: None });
    bench.secs(1);
    assert_eq!(bench.task_state(second).name(), "pending", "it pauses");
    bench.secs(1);
    assert_eq!(bench.task_state(second).name(), "offered");
    let third = fail(&mut bench, second).followed_by.expect("another follows");
    bench.secs(3);
    assert_eq!(bench.task_state(third).name(), "pending", "the pause doubles");
    bench.secs(1);
    assert_eq!(fail(&mut bench, third).followed_by, None, "three attempts, no more");
    bench.pass(TASK_KEPT.saturating_sub(Duration::from_secs(1)));
    assert_eq!(bench.state.all::<Task>().count(), 3, "the chain is kept together");
    bench.secs(1);
    assert_eq!(bench.state.all::<Task>().count(), 0);
}

#[test]
fn the_loss_of_a_cell_is_a_failure_that_is_retried() {
    let mut bench = Bench::ready();
    let first = make(&mut bench, None, retried(2)).expect("made").id;
    claim(&mut bench, first);
    bench.pass(CELL_LEASE);
    assert_eq!(bench.task_state(first).name(), "failed");
    let second = bench.task_row(first).followed_by.expect("another follows");
    assert_ne!(second, first, "no task runs twice");
}

#[test]
fn what_was_cancelled_is_not_retried() {
    let mut bench = Bench::ready();
    let first = make(&mut bench, None, retried(3)).expect("made").id;
    let row = claim(&mut bench, first);
    bench.ok(Command::Work(WorkCommand::CancelTask(first)));
    let report = TaskReport::Failed { reason: "exit 1".to_owned(), detail: None };
    bench.task_report(&row, report).expect("it runs");
    assert_eq!(bench.task_row(first).followed_by, None);
}

#[test]
fn cancelling_a_task_that_was_followed_cancels_the_one_that_waits() {
    let mut bench = Bench::ready();
    let first = make(&mut bench, None, retried(3)).expect("made").id;
    let second = fail(&mut bench, first).followed_by.expect("another follows");
    bench.ok(Command::Work(WorkCommand::CancelTask(first)));
    assert_eq!(bench.task_state(second), TaskState::Cancelled { reason: None });
}

#[test]
fn cancelling_what_is_unknown_or_has_ended_changes_nothing() {
    let mut bench = Bench::ready();
    let unknown = bench.work(WorkCommand::CancelTask(TaskId(7)));
    assert!(matches!(unknown, Err(Refusal::NotFound { .. })), "{unknown:?}");
    let (done, failed) = (bench.task(None), bench.task(None));
    let row = claim(&mut bench, done);
    let result = Some("x".to_owned());
    bench.task_report(&row, TaskReport::Succeeded { result, artifact: None }).expect("it runs");
    fail(&mut bench, failed);
    for id in [done, failed] {
        let before = bench.task_row(id);
        bench.state.forget_changes();
        bench.ok(Command::Work(WorkCommand::CancelTask(id)));
        assert_eq!(bench.task_row(id), before);
        assert_eq!(bench.state.take_changes().expect("rows render").rows, [], "{before:?}");
    }
}

#[test]
fn the_end_of_a_job_ends_the_attempt_that_pauses() {
    let mut bench = Bench::ready();
    let at = bench.work_job();
    let id = TaskId(bench.fresh());
    let create = WorkCommand::CreateTask { id, attempt: Some(at), spec: Arc::new(retried(3)) };
    bench.ok(Command::Work(create));
    let second = fail(&mut bench, id).followed_by.expect("another follows");
    bench.complete(at, crate::bench::failed("no"));
    assert_eq!(bench.task_state(second), TaskState::Cancelled { reason: None });
}

#[test]
fn a_cell_that_does_not_confirm_cannot_keep_a_task_running_for_ever() {
    let mut bench = Bench::ready();
    let id = make(&mut bench, None, task_spec()).expect("made").id;
    claim(&mut bench, id);
    bench.ok(Command::Work(WorkCommand::CancelTask(id)));
    for _ in 0..6 {
        bench.secs(9);
        let epoch = 1;
        let beat = state::CellCommand::Heartbeat { id: CellId(1), epoch };
        bench.ok(Command::Cell(beat));
    }
    assert_eq!(bench.task_state(id).name(), "running");
    bench.pass(CANCEL_FORCE.saturating_sub(Duration::from_secs(54)));
    assert_eq!(reason(&bench, id), "its cell did not confirm within 60 s");
    assert!(bench.state.cell_work(CellId(1)).tasks.is_empty());
}

#[test]
fn a_result_may_be_a_blob() {
    let mut bench = Bench::ready();
    let id = bench.task(None);
    let row = claim(&mut bench, id);
    let artifact = Some(Digest([9; 32]));
    bench.task_report(&row, TaskReport::Succeeded { result: None, artifact }).expect("it runs");
    assert_eq!(bench.task_state(id), TaskState::Succeeded { result: None, artifact });
}

#[test]
fn the_same_key_names_the_same_task() {
    let mut bench = Bench::ready();
    let first = make(&mut bench, Some("a"), task_spec()).expect("made");
    let again = make(&mut bench, Some("a"), task_spec()).expect("the same");
    assert_eq!(first.id, again.id);
    let other = TaskSpec { timeout_ms: 7, ..task_spec() };
    let refused = make(&mut bench, Some("a"), other.clone()).expect_err("another task");
    assert!(refused.to_string().starts_with("idempotency_key"), "{refused}");
    let taken =
        WorkCommand::NewTask { id: first.id, project: PROJECT, key: None, spec: Arc::new(other) };
    assert!(matches!(bench.work(taken), Err(Refusal::Conflict(_))));
    assert_eq!(bench.state.all::<Task>().count(), 1);
}

#[test]
fn senseless_tasks_are_refused_with_the_fields_name() {
    let mut bench = Bench::ready();
    let refused = |bench: &mut Bench, change: fn(&mut TaskSpec)| {
        let mut spec = task_spec();
        change(&mut spec);
        make(bench, None, spec).expect_err("refused").to_string()
    };
    let volume = refused(&mut bench, |spec| {
        let mount = model::VolumeMount { path: "/data".to_owned(), read_only: false };
        spec.container.volumes.insert(name("data"), mount);
    });
    assert!(volume.contains("volumes"), "{volume}");
    let memory = refused(&mut bench, |spec| spec.container.limits.memory_mb = Some(0));
    assert!(memory.contains("memory_mb"), "{memory}");
    let long = make(&mut bench, Some(&"x".repeat(300)), task_spec()).expect_err("refused");
    assert!(long.to_string().contains("idempotency_key"), "{long}");
}

#[test]
fn the_end_and_its_message_are_one_change() {
    let mut bench = Bench::ready();
    let id = make(&mut bench, None, called_back()).expect("made").id;
    let row = claim(&mut bench, id);
    bench.state.forget_changes();
    let done = TaskReport::Succeeded { result: None, artifact: None };
    bench.task_report(&row, done).expect("it runs");
    let kinds: Vec<_> = bench.state.take_changes().expect("renders").rows;
    let kinds: Vec<_> = kinds.iter().map(|change| change.key.kind()).collect();
    assert_eq!(kinds, ["task", "delivery"]);
    assert_eq!(bench.task_row(id).callback, Some(Callback::Waiting));
    bench.pass(TASK_KEPT * 2);
    bench.task_row(id);
    bench.ok(Command::Work(WorkCommand::Delivered { id: delivery_id(id), attempts: 0 }));
    let at = Time(bench.now);
    assert_eq!(bench.task_row(id).callback, Some(Callback::Delivered { at }));
    bench.pass(TASK_KEPT);
    assert!(bench.state.get::<Task>(id).is_none());
}

#[test]
fn only_the_last_attempt_calls_back() {
    let mut bench = Bench::ready();
    let spec = TaskSpec { callback: called_back().callback, ..retried(2) };
    let first = make(&mut bench, None, spec).expect("made").id;
    let second = fail(&mut bench, first).followed_by.expect("another follows");
    assert_eq!(bench.state.all::<Delivery>().count(), 0);
    bench.secs(2);
    let row = fail(&mut bench, second);
    assert_eq!(bench.state.all::<Delivery>().count(), 1);
    assert_eq!(bench.state.attempts_up_to(&row), [first, second]);
}

#[test]
fn a_task_without_a_place_calls_back_once() {
    let mut bench = Bench::new();
    let id = make(&mut bench, None, called_back()).expect("made").id;
    bench.secs(30 * 60 - 1);
    assert_eq!(bench.state.all::<Delivery>().count(), 0, "it waits");
    bench.secs(1);
    assert_eq!(bench.task_state(id).name(), "failed");
    let messages: Vec<_> = bench.state.all::<Delivery>().map(|row| row.id).collect();
    assert_eq!(messages, [delivery_id(id)]);
    assert_eq!(bench.task_row(id).callback, Some(Callback::Waiting));
}

#[test]
fn a_message_is_tried_less_and_less_often_for_a_day() {
    let mut bench = Bench::new();
    let id = make(&mut bench, None, called_back()).expect("made").id;
    bench.ok(Command::Work(WorkCommand::CancelTask(id)));
    let (message, began) = (delivery_id(id), bench.now);
    let mut pauses = Vec::new();
    while let Some(row) = bench.state.get::<Delivery>(message).cloned() {
        pauses.push(row.due.0.saturating_sub(bench.now) / 1_000);
        bench.now = row.due.0;
        assert_eq!(bench.state.deliveries_due(Time(bench.now), 4, &BTreeSet::new()).len(), 1);
        let attempts = row.attempts;
        let not = |attempts, reason: &str| WorkCommand::NotDelivered {
            id: message,
            attempts,
            reason: reason.to_owned(),
            give_up: false,
        };
        bench.ok(Command::Work(not(attempts, "it answered 500")));
        let late = bench.work(not(attempts, "late"));
        assert!(late.is_err(), "each try counts once");
    }
    assert_eq!(pauses[..6], [0, 1, 2, 4, 8, 16]);
    assert_eq!(pauses.last(), Some(&3_600));
    assert!(Time(bench.now).since(Time(began)) <= DELIVERY_LIFE);
    assert!(
        Time(bench.now).since(Time(began)) > DELIVERY_LIFE.saturating_sub(Duration::from_hours(1))
    );
    let callback = bench.task_row(id).callback.clone();
    assert!(matches!(callback, Some(Callback::GivenUp { reason, .. }) if reason.contains("500")));
}

#[test]
fn a_project_with_many_messages_leaves_room_for_others() {
    let mut bench = Bench::new();
    let other = model::ProjectId(2);
    bench.ok(Command::CreateProject { id: other, name: name("other") });
    let end = |bench: &mut Bench, project| {
        let (id, key, spec) = (TaskId(bench.fresh()), None, Arc::new(called_back()));
        bench.ok(Command::Work(WorkCommand::NewTask { id, project, key, spec }));
        bench.ok(Command::Work(WorkCommand::CancelTask(id)));
        delivery_id(id)
    };
    let many: Vec<_> = (0..10).map(|_| end(&mut bench, PROJECT)).collect();
    let one = end(&mut bench, other);
    let due = |bench: &Bench, busy: &[model::DeliveryId]| {
        let busy = busy.iter().copied().collect();
        let due = bench.state.deliveries_due(Time(bench.now), 4, &busy);
        due.iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(due(&bench, &[]), [many[0], many[1], many[2], many[3], one]);
    assert_eq!(due(&bench, &many[..3]), [many[3], one]);
    assert_eq!(due(&bench, &[one, many[0]]), [many[1], many[2], many[3]]);
}

#[test]
fn a_receiver_that_wants_no_more_gets_no_more() {
    let mut bench = Bench::new();
    let id = make(&mut bench, None, called_back()).expect("made").id;
    bench.ok(Command::Work(WorkCommand::CancelTask(id)));
    bench.ok(Command::Work(WorkCommand::NotDelivered {
        id: delivery_id(id),
        attempts: 0,
        reason: "it answered 410".to_owned(),
        give_up: true,
    }));
    assert_eq!(bench.state.all::<Delivery>().count(), 0);
}

#[test]
fn a_secret_is_made_once_and_the_one_before_it_signs_on_for_a_while() {
    let mut bench = Bench::new();
    let sign = |bench: &mut Bench, secret: &str, rotate| {
        let secret = Secret(secret.to_owned());
        match bench.ok(Command::Work(WorkCommand::Sign { project: PROJECT, secret, rotate })) {
            Reply::Signing(row) => row,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(sign(&mut bench, "first", false).secret.0, "first");
    let row = sign(&mut bench, "two", false);
    assert_eq!(row.secret.0, "first");
    assert!(!format!("{row:?}").contains("first"), "{row:?}");
    let row = sign(&mut bench, "three", true);
    assert_eq!(row.secret.0, "three");
    assert_eq!(row.before.as_ref().map(|it| it.secret.0.as_str()), Some("first"));
    bench.pass(SECRET_OVERLAP);
    assert_eq!(bench.state.get::<Signing>(PROJECT).expect("kept").before, None);
}

#[test]
fn a_project_takes_its_messages_with_it() {
    let mut bench = Bench::new();
    let id = make(&mut bench, None, called_back()).expect("made").id;
    bench.ok(Command::DeleteApp(crate::bench::APP));
    let busy = bench.try_apply(Command::DeleteProject(PROJECT));
    assert!(matches!(busy, Err(Refusal::Conflict(_))), "a task has not ended");
    bench.ok(Command::Work(WorkCommand::CancelTask(id)));
    bench.ok(Command::DeleteProject(PROJECT));
    assert_eq!(bench.state.all::<Delivery>().count(), 0);
}
