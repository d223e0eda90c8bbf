//! Emptying a cell: what serves serves on until another copy does, and what cannot move says why.

use std::time::Duration;

use model::{
    CellId, DeploymentId, InstanceReport, InstanceState, TaskReport, TaskState, VolumeMount,
};
use state::{
    Cell, CellCommand, Command, DRAIN, DRAIN_TIMEOUT, DrainProgress, Held, MAX_DRAIN_TIMEOUT,
    PredecessorKind, Refusal, Stays,
};

use crate::bench::{APP, Bench, name, process};

fn drain(bench: &mut Bench, cell: u128) {
    let id = CellId(cell);
    bench.ok(Command::Cell(CellCommand::Drain { id, timeout: DRAIN_TIMEOUT }));
}

fn undrain(bench: &mut Bench, cell: u128) {
    bench.ok(Command::Cell(CellCommand::Undrain(CellId(cell))));
}

fn progress(bench: &Bench, cell: u128) -> DrainProgress {
    bench.state.drain_progress(CellId(cell)).expect("it is drained")
}

/// So many instances that serve on cell 1, and cell 2 with nothing.
fn serving(instances: u32) -> (Bench, DeploymentId) {
    let mut bench = Bench::ready();
    let deployment = bench.released(instances);
    bench.cell(2, 4_000, &[]);
    (bench, deployment)
}

#[test]
fn what_serves_is_ended_only_once_another_copy_serves() {
    let (mut bench, deployment) = serving(2);
    let old = bench.instances(deployment);
    drain(&mut bench, 1);
    assert_eq!(bench.states(deployment), ["claimed", "claimed"]);
    assert_eq!(bench.on(1), [(0, 1, false), (1, 1, false)], "nothing ends yet");
    assert_eq!(bench.on(2), [(0, 2, false), (1, 2, false)]);
    assert_eq!(bench.targets(), Some((deployment, 2)));
    assert!(!progress(&bench, 1).is_finished());
    bench.start_all(deployment);
    let first = bench.instances(deployment).remove(0);
    bench.report(&first, InstanceReport::Ready { ready: true });
    assert_eq!(bench.on(1), [(0, 1, true), (1, 1, false)], "one has moved");
    let ending = bench.state.cell_work(CellId(1)).instances.remove(0);
    let due = bench.state.stop_due(&ending);
    assert_eq!(due, model::Time(bench.now).after(DRAIN), "requests under way end first");
    bench.healthy(deployment);
    for row in &old {
        bench.say((1, row.id, row.epoch), InstanceReport::Gone).expect("it is known");
    }
    assert_eq!(bench.on(1), []);
    let wanted = DrainProgress { moved: 2, ..DrainProgress::default() };
    assert_eq!(progress(&bench, 1), wanted);
    assert_eq!(bench.targets(), Some((deployment, 2)));
    assert!(bench.instances(deployment).iter().all(|row| row.before.is_none()));
}

#[test]
fn nobody_waits_for_ever_for_what_does_not_end() {
    let (mut bench, deployment) = serving(1);
    drain(&mut bench, 1);
    bench.healthy(deployment);
    assert_eq!(bench.on(1), [(0, 1, true)]);
    assert!(!progress(&bench, 1).is_finished());
    bench.pass_without(9, DRAIN_TIMEOUT);
    let progress = progress(&bench, 1);
    assert!(progress.is_finished());
    assert_eq!(progress.stays.len(), 1);
    assert_eq!(progress.stays[0].reason, "it was told to end and has not ended");
}

#[test]
fn what_does_not_serve_moves_at_once() {
    for started in [false, true] {
        let mut bench = Bench::ready();
        let at = bench.work_job();
        let deployment = bench.deploy(at, 1);
        if started {
            bench.start_all(deployment);
        }
        bench.cell(2, 4_000, &[]);
        drain(&mut bench, 1);
        let row = bench.instances(deployment).remove(0);
        assert_eq!((&row.state, row.before), (&InstanceState::Claimed { cell: CellId(2) }, None));
        assert_eq!(bench.on(1), []);
    }
}

#[test]
fn a_drained_cell_takes_nothing_new_even_after_it_was_away() {
    let (mut bench, deployment) = serving(1);
    drain(&mut bench, 2);
    bench.lose(2);
    bench.cell(2, 4_000, &[]);
    let task = bench.task(None);
    assert_eq!(bench.task_state(task).cell(), Some(CellId(1)));
    drain(&mut bench, 1);
    let waiting = bench.task(None);
    let TaskState::Pending { reason: Some(reason) } = bench.task_state(waiting) else {
        panic!("nothing takes it")
    };
    assert_eq!(reason, "no cell takes new work: all are draining");
    assert_eq!(bench.task_state(task), TaskState::Pending { reason: Some(reason) }, "it moved");
    undrain(&mut bench, 2);
    assert_eq!(bench.task_state(task).cell(), Some(CellId(2)));
    assert_eq!(bench.states(deployment), ["claimed"]);
}

#[test]
fn what_cannot_move_serves_on_and_does_not_block() {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    drain(&mut bench, 1);
    assert_eq!(bench.targets(), Some((deployment, 1)), "it serves on");
    let stays = Stays {
        what: "web.0 of shop/web".to_owned(),
        reason: "no cell takes new work: all are draining".to_owned(),
    };
    let now = progress(&bench, 1);
    assert!(now.is_finished());
    assert_eq!(now.stays, [stays]);
    bench.cell(2, 4_000, &[]);
    assert!(!progress(&bench, 1).is_finished(), "now it can");
    bench.healthy(deployment);
    assert_eq!(bench.on(1), [(0, 1, true)]);
}

#[test]
fn what_holds_a_volume_stays_with_it() {
    let mut bench = Bench::ready();
    let at = bench.work_job();
    let mut pinned = process(100);
    let mount = |read_only| VolumeMount { path: "/data".to_owned(), read_only };
    pinned.container.volumes.insert(name("data"), mount(false));
    let deployment = bench.deploy_spec(at, 1, pinned);
    bench.healthy(deployment);
    bench.cell(2, 4_000, &[]);
    drain(&mut bench, 1);
    assert_eq!(bench.states(deployment), ["running"]);
    let now = progress(&bench, 1);
    assert!(now.is_finished());
    assert_eq!(now.stays[0].reason, "pinned to this cell by volume data");
    bench.secs(700);
    assert_ne!(bench.states(deployment), ["claimed"], "not even when the time is up");
}

#[test]
fn tasks_run_on_until_the_deadline() {
    let mut bench = Bench::ready();
    let (ran, offered) = (bench.task(None), bench.task(None));
    let row = bench.task_row(ran);
    bench.task_report(&row, TaskReport::Claim).expect("it was offered");
    drain(&mut bench, 1);
    assert!(matches!(bench.task_state(offered), TaskState::Pending { .. }));
    let now = progress(&bench, 1);
    assert!((now.is_finished(), now.tasks) == (true, 1), "{now:?}");
    bench.pass_without(9, DRAIN_TIMEOUT.saturating_sub(Duration::from_secs(1)));
    assert_eq!(bench.task_state(ran), TaskState::Running { cell: CellId(1) });
    bench.secs(1);
    let TaskState::Failed { reason, .. } = bench.task_state(ran) else { panic!("it failed") };
    assert!(reason.contains("drain"), "{reason}");
    let cell = bench.state.get::<Cell>(CellId(1)).expect("it is there");
    assert!(cell.lease_until.is_some() && cell.draining.is_some(), "it stays as it is");
}

#[test]
fn undraining_takes_back_what_has_not_moved() {
    let (mut bench, deployment) = serving(2);
    let old = bench.instances(deployment);
    drain(&mut bench, 1);
    bench.start_all(deployment);
    let first = bench.instances(deployment).remove(0);
    bench.report(&first, InstanceReport::Ready { ready: true });
    undrain(&mut bench, 1);
    assert_eq!(bench.on(1), [(0, 1, true), (1, 1, false)], "one had moved");
    assert_eq!(bench.on(2), [(0, 2, false)]);
    let back = bench.instances(deployment).remove(1);
    assert_eq!((&back.state, back.epoch), (&old[1].state, old[1].epoch));
    assert_eq!(bench.targets(), Some((deployment, 2)));
    assert_eq!(bench.state.drain_progress(CellId(1)), None);
    undrain(&mut bench, 1);
}

#[test]
fn a_drained_cell_that_was_away_goes_on_being_drained() {
    for back in [true, false] {
        let (mut bench, deployment) = serving(1);
        let old = bench.instances(deployment).remove(0);
        drain(&mut bench, 1);
        bench.lose(1);
        let suspect = bench.instances(deployment).remove(0);
        assert_eq!(suspect.before.map(|it| it.kind), Some(PredecessorKind::Suspect));
        let held = Held::Instance { id: old.id, epoch: old.epoch };
        bench.cell(1, 4_000, if back { std::slice::from_ref(&held) } else { &[] });
        let row = bench.instances(deployment).remove(0);
        let kind = back.then_some(PredecessorKind::Evacuating);
        assert_eq!(row.before.map(|it| it.kind), kind);
        assert_eq!(bench.states(deployment), ["claimed"]);
    }
}

#[test]
fn a_cell_that_leaves_is_drained_and_what_is_left_at_the_end_is_lost() {
    for moved in [true, false] {
        let (mut bench, deployment) = serving(1);
        let (id, epoch) = (CellId(1), 1);
        let left = CellCommand::Left { id, epoch };
        let early = bench.try_apply(Command::Cell(left.clone()));
        assert!(matches!(early, Err(Refusal::Conflict(_))), "it did not say so");
        bench.ok(Command::Cell(CellCommand::Leave { id, epoch }));
        let undrained = bench.try_apply(Command::Cell(CellCommand::Undrain(id)));
        assert!(matches!(undrained, Err(Refusal::Conflict(_))), "it is shutting down");
        assert_eq!(bench.targets(), Some((deployment, 1)));
        if moved {
            bench.healthy(deployment);
        }
        bench.ok(Command::Cell(left));
        let targets = usize::from(moved);
        assert_eq!(bench.targets(), Some((deployment, targets)), "nothing of it serves any more");
        assert_eq!(bench.instances(deployment)[0].before, None);
        let beat = bench.try_apply(Command::Cell(CellCommand::Heartbeat { id, epoch }));
        assert!(matches!(beat, Err(Refusal::Stale { .. })));
        bench.cell(1, 4_000, &[]);
        assert_eq!(bench.state.drain_progress(id), None, "it is new");
    }
}

#[test]
fn a_cell_that_takes_too_long_to_leave_is_lost() {
    let mut bench = Bench::ready();
    let task = bench.task(None);
    bench.task_report(&bench.task_row(task).clone(), TaskReport::Claim).expect("it was offered");
    bench.ok(Command::Cell(CellCommand::Leave { id: CellId(1), epoch: 1 }));
    bench.pass_without(9, DRAIN_TIMEOUT);
    assert!(matches!(bench.task_state(task), TaskState::Failed { .. }));
    assert_eq!(bench.state.get::<Cell>(CellId(1)).and_then(|cell| cell.lease_until), None);
}

#[test]
fn an_operators_drain_of_a_cell_that_leaves_does_not_end_what_serves() {
    let (mut bench, deployment) = serving(1);
    let (id, epoch) = (CellId(1), 1);
    bench.ok(Command::Cell(CellCommand::Leave { id, epoch }));
    let timeout = Duration::from_secs(1);
    bench.ok(Command::Cell(CellCommand::Drain { id, timeout }));
    bench.pass_without(9, Duration::from_secs(5));
    assert_eq!(bench.on(1), [(0, 1, false)], "nothing serves elsewhere yet");
    assert_eq!(bench.targets(), Some((deployment, 1)));
    bench.ok(Command::Cell(CellCommand::Heartbeat { id, epoch }));
}

#[test]
fn what_an_operator_asked_for_outlives_that_the_cell_leaves() {
    let id = CellId(1);
    let ask = || CellCommand::Drain { id, timeout: DRAIN_TIMEOUT };
    let leave = || CellCommand::Leave { id, epoch: 1 };
    let undrain = || CellCommand::Undrain(id);
    let table: [(&[CellCommand], bool); 5] = [
        (&[ask(), leave()], true),
        (&[leave(), ask()], true),
        (&[leave()], false),
        (&[ask(), leave(), undrain()], false),
        (&[leave(), ask(), undrain(), ask()], true),
    ];
    for (said, stays) in table {
        for orderly in [true, false] {
            let (mut bench, _) = serving(1);
            for command in said {
                bench.ok(Command::Cell(command.clone()));
            }
            if orderly {
                bench.ok(Command::Cell(CellCommand::Left { id, epoch: 1 }));
            }
            bench.cell(1, 4_000, &[]);
            let draining = bench.state.get::<Cell>(id).and_then(|cell| cell.draining);
            assert_eq!(draining.is_some(), stays, "{said:?} {orderly}");
            assert!(!draining.is_some_and(|drain| drain.leaving), "it is back");
        }
    }
}

#[test]
fn an_evacuated_copy_that_ends_by_itself_is_not_missed() {
    let (mut bench, deployment) = serving(1);
    let old = bench.instances(deployment).remove(0);
    drain(&mut bench, 1);
    let (reason, never_healthy) = ("exited with 1".to_owned(), false);
    let crashed = InstanceReport::Crashed { reason, never_healthy, detail: None };
    bench.say((1, old.id, old.epoch), crashed).expect("it is known");
    let row = bench.instances(deployment).remove(0);
    assert_eq!((row.before, row.crashes), (None, 0));
    assert_eq!(bench.targets(), Some((deployment, 0)));
}

#[test]
fn what_is_not_wanted_any_more_ends_on_both_cells() {
    let (mut bench, deployment) = serving(1);
    let old = bench.instances(deployment).remove(0);
    drain(&mut bench, 1);
    let (workspace, process) = (name("production"), name("web"));
    bench.ok(Command::Scale { app: APP, workspace, process, instances: 0 });
    assert_eq!((bench.on(1), bench.on(2)), (vec![(0, 1, true)], vec![(0, 2, true)]));
    bench.gone(deployment);
    assert_eq!(bench.states(deployment), ["stopping"], "the one before is still there");
    assert_eq!(bench.on(1), [(0, 1, true)]);
    bench.say((1, old.id, old.epoch), InstanceReport::Gone).expect("it is known");
    assert_eq!(bench.instances(deployment), []);
}

#[test]
fn a_drain_that_never_ends_is_refused() {
    let mut bench = Bench::ready();
    let timeout = MAX_DRAIN_TIMEOUT + Duration::from_secs(1);
    let long = CellCommand::Drain { id: CellId(1), timeout };
    assert!(matches!(bench.try_apply(Command::Cell(long)), Err(Refusal::Invalid(_))));
    let unknown = CellCommand::Drain { id: CellId(7), timeout: DRAIN_TIMEOUT };
    assert!(matches!(bench.try_apply(Command::Cell(unknown)), Err(Refusal::NotFound { .. })));
}
