//! Tasks: at most once.

use model::{CellId, Outcome, TaskReport, TaskState};
use state::{CELL_LEASE, Command, Held, REJECT_PAUSE, Refusal, TASK_KEPT, Task, WorkCommand};

use crate::bench::{Bench, failed};

#[test]
fn offered_claimed_succeeded_kept_forgotten() {
    let mut bench = Bench::ready();
    let at = bench.work_job();
    let id = bench.task(Some(at));
    assert_eq!(bench.task_state(id), TaskState::Offered { cell: CellId(1) });
    let row = bench.task_row(id);
    bench.task_report(&row, TaskReport::Claim).expect("it was offered");
    assert!(bench.task_report(&row, TaskReport::Claim).is_err(), "only once");
    bench
        .task_report(&row, TaskReport::Succeeded { result: Some("x".to_owned()), artifact: None })
        .expect("it runs");
    assert_eq!(
        bench.task_state(id),
        TaskState::Succeeded { result: Some("x".to_owned()), artifact: None }
    );
    assert!(bench.state.cell_work(CellId(1)).tasks.is_empty());
    bench.pass(TASK_KEPT);
    assert!(bench.state.get::<Task>(id).is_none());
}

#[test]
fn a_rejected_offer_goes_on_under_a_new_epoch() {
    let mut bench = Bench::ready();
    let id = bench.task(None);
    let row = bench.task_row(id);
    bench.task_report(&row, TaskReport::Reject { reason: "full".to_owned() }).expect("it may");
    let waits = TaskState::Pending { reason: Some("full".to_owned()) };
    assert_eq!(bench.task_state(id), waits, "not at once");
    bench.pass(REJECT_PAUSE);
    let again = bench.task_row(id);
    assert!(again.epoch > row.epoch);
    let late = bench.task_report(&row, TaskReport::Claim);
    assert!(matches!(late, Err(Refusal::Stale { .. })), "the old offer is void");
}

#[test]
fn a_cell_that_restarts_fails_what_ran_and_gets_its_offers_again() {
    let mut bench = Bench::ready();
    let (ran, offered) = (bench.task(None), bench.task(None));
    let row = bench.task_row(ran);
    bench.task_report(&row, TaskReport::Claim).expect("it was offered");
    bench.cell(1, 4_000, &[]);
    let TaskState::Failed { reason, .. } = bench.task_state(ran) else { panic!("it failed") };
    assert!(reason.contains("restarted"), "{reason}");
    assert_eq!(bench.task_state(offered), TaskState::Offered { cell: CellId(1) });
    assert!(
        bench.task_report(&row, TaskReport::Succeeded { result: None, artifact: None }).is_err()
    );
}

#[test]
fn a_cell_that_reconnects_goes_on_with_what_it_holds() {
    let mut bench = Bench::ready();
    let id = bench.task(None);
    let row = bench.task_row(id);
    bench.task_report(&row, TaskReport::Claim).expect("it was offered");
    bench.cell(1, 4_000, &[Held::Task { id, epoch: row.epoch }]);
    bench
        .task_report(&row, TaskReport::Succeeded { result: None, artifact: None })
        .expect("it runs");
}

#[test]
fn the_loss_of_a_cell_fails_what_ran_and_offers_the_rest_elsewhere() {
    let mut bench = Bench::ready();
    let (ran, offered) = (bench.task(None), bench.task(None));
    let row = bench.task_row(ran);
    bench.task_report(&row, TaskReport::Claim).expect("it was offered");
    bench.now += 1_000;
    bench.cell(2, 4_000, &[]);
    bench.pass(CELL_LEASE.saturating_sub(std::time::Duration::from_secs(1)));
    assert!(matches!(bench.task_state(ran), TaskState::Failed { .. }));
    assert_eq!(bench.task_state(offered), TaskState::Offered { cell: CellId(2) });
}

#[test]
fn tasks_end_with_their_job() {
    let outcomes = [Outcome::Succeeded, failed("exit 1")];
    for outcome in outcomes {
        let mut bench = Bench::ready();
        let at = bench.work_job();
        let (ran, offered) = (bench.task(Some(at)), bench.task(Some(at)));
        let row = bench.task_row(ran);
        bench.task_report(&row, TaskReport::Claim).expect("it was offered");
        bench.complete(at, outcome);
        assert_eq!(bench.task_state(offered), TaskState::Cancelled { reason: None });
        assert!(bench.task_row(ran).cancelling, "its cell is asked to stop it");
        bench.task_report(&row, TaskReport::Cancelled).expect("it was asked");
        assert_eq!(bench.task_state(ran), TaskState::Cancelled { reason: None });
    }
}

#[test]
fn cancelling_a_task() {
    let mut bench = Bench::new();
    let pending = bench.task(None);
    assert!(matches!(bench.task_state(pending), TaskState::Pending { reason: Some(_) }));
    bench.ok(Command::Work(WorkCommand::CancelTask(pending)));
    assert_eq!(bench.task_state(pending), TaskState::Cancelled { reason: None });
    bench.ok(Command::Work(WorkCommand::CancelTask(pending)));
    bench.cell(1, 4_000, &[]);
    assert_eq!(
        bench.task_state(pending),
        TaskState::Cancelled { reason: None },
        "it is not offered any more"
    );
}

#[test]
fn a_result_that_is_too_large_is_a_failure() {
    let mut bench = Bench::ready();
    let id = bench.task(None);
    let row = bench.task_row(id);
    bench.task_report(&row, TaskReport::Claim).expect("it was offered");
    let result = Some("x".repeat(model::MAX_TASK_RESULT + 1));
    bench.task_report(&row, TaskReport::Succeeded { result, artifact: None }).expect("it runs");
    assert!(matches!(bench.task_state(id), TaskState::Failed { .. }));
}

#[test]
fn tasks_of_a_job_need_its_running_attempt() {
    let mut bench = Bench::ready();
    let at = bench.work_job();
    bench.complete(at, Outcome::Succeeded);
    let create = WorkCommand::CreateTask {
        id: model::TaskId(5),
        attempt: Some(at),
        spec: std::sync::Arc::new(crate::bench::task_spec()),
    };
    assert!(matches!(bench.work(create), Err(Refusal::Stale { .. })));
}
