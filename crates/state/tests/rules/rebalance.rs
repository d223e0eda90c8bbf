//! Evening out: within its budget, never at the cost of what serves, and only while all is calm.

use std::collections::BTreeMap;
use std::time::Duration;

use model::{CellId, DeploymentId, InstanceReport, Outcome, VolumeMount};
use proptest::prelude::{any, prop, proptest};
use state::{
    Cell, CellCommand, Command, DRAIN_TIMEOUT, Instance, MAX_MOVES, PredecessorKind,
    REBALANCE_TOLERANCE, Refusal,
};

use crate::bench::{Bench, name, process};

fn rebalance(bench: &mut Bench, moves: u32) {
    bench.ok(Command::Rebalance { moves });
}

/// Instances with a copy that serves while another is to take its place.
fn moving(bench: &Bench) -> usize {
    let on_its_way = |row: &&std::sync::Arc<Instance>| {
        row.before.is_some_and(|before| before.kind == PredecessorKind::Evacuating)
    };
    bench.state.all::<Instance>().filter(on_its_way).count()
}

/// So many instances, that serve on cell 1, and cell 2 with nothing.
fn uneven(instances: u32) -> (Bench, DeploymentId) {
    let mut bench = Bench::ready();
    let deployment = bench.released(instances);
    bench.cell(2, 4_000, &[]);
    (bench, deployment)
}

/// Ends every copy that is to end.
fn end_old(bench: &mut Bench, cell: u128) {
    for it in bench.state.cell_work(CellId(cell)).instances {
        if it.copy.stop {
            bench.say((cell, it.row.id, it.copy.epoch), InstanceReport::Gone).expect("it ends");
        }
    }
}

/// Several apps with an instance each on cell 1, because copies of one move one at a time.
fn apps(bench: &mut Bench, count: u32) -> Vec<DeploymentId> {
    let at = bench.work_job();
    let all: Vec<_> = (0..count)
        .map(|_| {
            let deployment = bench.deploy_spec(at, 1, process(400));
            bench.healthy(deployment);
            deployment
        })
        .collect();
    bench.complete(at, Outcome::Succeeded);
    all
}

#[test]
fn a_move_serves_until_the_new_copy_does() {
    let (mut bench, deployment) = uneven(8);
    rebalance(&mut bench, 1);
    assert_eq!(bench.on(1).len(), 8, "nothing ends yet");
    assert_eq!(bench.on(2), [(7, 2, false)], "the first copy goes last");
    assert_eq!(bench.targets(), Some((deployment, 8)));
    rebalance(&mut bench, 1);
    assert_eq!(moving(&bench), 1, "one at a time");
    bench.start_all(deployment);
    assert_eq!(bench.targets(), Some((deployment, 8)));
    bench.healthy(deployment);
    assert_eq!(bench.targets(), Some((deployment, 8)));
    assert!(bench.on(1).contains(&(7, 1, true)), "now the old one ends");
    rebalance(&mut bench, 1);
    assert_eq!(moving(&bench), 0, "the old one is still there");
    end_old(&mut bench, 1);
    rebalance(&mut bench, 1);
    assert_eq!(moving(&bench), 1);
    assert_eq!(bench.state.counts().moves, 2);
}

#[test]
fn it_ends_when_all_are_about_as_full() {
    let (mut bench, first) = uneven(1);
    let mut all = apps(&mut bench, 9);
    all.push(first);
    for cell in [1, 2] {
        // All were placed on the empty cell: bring them back to one side.
        let id = CellId(cell);
        bench.ok(Command::Cell(CellCommand::Drain { id, timeout: DRAIN_TIMEOUT }));
        for deployment in &all {
            bench.healthy(*deployment);
        }
        end_old(&mut bench, cell);
        bench.ok(Command::Cell(CellCommand::Undrain(id)));
    }
    let mut rounds = 0;
    loop {
        rebalance(&mut bench, 3);
        let moves = moving(&bench);
        assert!(moves <= 3, "{moves} move at once");
        if moves == 0 {
            break;
        }
        rounds += 1;
        assert!(rounds <= 3, "it goes on and on");
        for deployment in &all {
            bench.healthy(*deployment);
        }
        (1..=2).for_each(|cell| end_old(&mut bench, cell));
    }
    assert!(rounds > 0, "nothing moved");
    let used = |cell| bench.state.cell_load(CellId(cell)).memory_mb;
    let apart = used(1).abs_diff(used(2));
    assert!(apart * 100 <= 4_000 * u64::from(REBALANCE_TOLERANCE) + 40_000, "{apart} MiB apart");
}

#[test]
fn nothing_moves_while_something_waits_or_moves() {
    let (mut bench, deployment) = uneven(8);
    bench.ok(Command::Rebalance { moves: 0 });
    assert_eq!(moving(&bench), 0, "it is off");
    let waits = bench.task(None);
    bench.cell(3, 4_000, &[]);
    let at = bench.work_job();
    let large = bench.deploy_spec(at, 1, process(9_000));
    assert_eq!(bench.states(large), ["unclaimed"]);
    rebalance(&mut bench, 5);
    assert_eq!(moving(&bench), 0, "something has no place");
    bench.complete(at, crate::bench::failed("too large"));
    assert_eq!(bench.instances(large), [], "nobody wants it any more");
    bench.ok(Command::Work(state::WorkCommand::CancelTask(waits)));
    let id = CellId(1);
    bench.ok(Command::Cell(CellCommand::Drain { id, timeout: DRAIN_TIMEOUT }));
    let drained = moving(&bench);
    rebalance(&mut bench, 5);
    assert_eq!(moving(&bench), drained, "a drain has its own moves");
    assert_eq!(bench.targets(), Some((deployment, 8)));
}

#[test]
fn what_holds_a_volume_never_moves() {
    let mut bench = Bench::ready();
    let at = bench.work_job();
    let mut pinned = process(3_000);
    let mount = VolumeMount { path: "/data".to_owned(), read_only: false };
    pinned.container.volumes.insert(name("data"), mount);
    let held = bench.deploy_spec(at, 1, pinned);
    bench.healthy(held);
    let light = bench.deploy_spec(at, 1, process(500));
    bench.healthy(light);
    bench.complete(at, Outcome::Succeeded);
    bench.cell(2, 4_000, &[]);
    rebalance(&mut bench, 1);
    assert_eq!(bench.states(held), ["running"]);
    assert_eq!(bench.states(light), ["claimed"], "it does not keep others from moving");
}

#[test]
fn a_move_that_comes_to_nothing_is_taken_back() {
    let reject = || InstanceReport::Reject { reason: "full".to_owned() };
    let crash = || {
        let (reason, never_healthy) = ("exited with 1".to_owned(), true);
        InstanceReport::Crashed { reason, never_healthy, detail: None }
    };
    for (report, started) in [(Some(reject()), false), (Some(crash()), true), (None, true)] {
        let (mut bench, deployment) = uneven(8);
        let old = bench.instances(deployment).remove(7);
        rebalance(&mut bench, 1);
        if started {
            bench.start_all(deployment);
        }
        let new = bench.instances(deployment).remove(7);
        match &report {
            Some(report) => bench.report(&new, report.clone()),
            None => bench.lose(2),
        }
        let row = bench.instances(deployment).remove(7);
        assert_eq!((&row.state, row.epoch, row.before), (&old.state, old.epoch, None));
        assert_eq!(bench.targets(), Some((deployment, 8)), "it served all the time");
        assert_eq!(bench.on(2), [], "{report:?}");
        rebalance(&mut bench, 1);
        let next = bench.instances(deployment);
        assert!(next[7].before.is_none() || report.is_none(), "not the same again");
        assert_eq!(next[6].before.is_some(), report.is_some(), "{report:?}");
    }
}

#[test]
fn a_drain_of_either_cell_takes_over() {
    for (cell, on) in [(1, CellId(2)), (2, CellId(1))] {
        let (mut bench, deployment) = uneven(8);
        rebalance(&mut bench, 1);
        let id = CellId(cell);
        bench.ok(Command::Cell(CellCommand::Drain { id, timeout: DRAIN_TIMEOUT }));
        assert_eq!(bench.targets(), Some((deployment, 8)));
        bench.healthy(deployment);
        end_old(&mut bench, cell);
        assert_eq!(bench.targets(), Some((deployment, 8)));
        assert!(bench.instances(deployment).iter().all(|row| row.state.cell() == Some(on)));
    }
}

#[test]
fn a_budget_has_an_upper_limit() {
    let mut bench = Bench::ready();
    let refused = bench.try_apply(Command::Rebalance { moves: MAX_MOVES + 1 });
    assert!(matches!(refused, Err(Refusal::Invalid(_))), "{refused:?}");
    rebalance(&mut bench, MAX_MOVES);
}

/// Where what is wanted serves.
fn serving(bench: &Bench, deployment: DeploymentId) -> usize {
    bench.instances(deployment).iter().filter(|row| row.routed().is_some()).count()
}

/// One thing that happens while cells are evened out. Nothing of it makes a copy that serves fail, so
/// as many serve as before.
fn happens(bench: &mut Bench, deployments: &[DeploymentId], (kind, pick): (u8, u8)) {
    let deployment = deployments[usize::from(pick) % deployments.len()];
    match kind {
        0 | 1 => bench.start_all(deployment),
        2 | 3 => bench.healthy(deployment),
        4 => (1..=3).for_each(|cell| end_old(bench, cell)),
        5 => {
            let claimed = |row: &std::sync::Arc<Instance>| row.state.name() == "claimed";
            if let Some(row) = bench.instances(deployment).into_iter().find(claimed) {
                bench.report(&row, InstanceReport::Reject { reason: "full".to_owned() });
            }
        }
        6 => {
            let id = CellId(u128::from(pick % 3) + 1);
            bench.ok(Command::Cell(CellCommand::Drain { id, timeout: DRAIN_TIMEOUT }));
        }
        7 => {
            bench.ok(Command::Cell(CellCommand::Undrain(CellId(u128::from(pick % 3) + 1))));
        }
        8 => bench.pass_without(9, Duration::from_secs(u64::from(pick))),
        _ => {
            bench.ok(Command::Sweep);
        }
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]

    #[test]
    fn never_more_than_the_budget_moves_and_as_many_serve_as_before(
        budget in 1_u32..4,
        seeds in prop::collection::vec((0_u8..10, any::<u8>()), 1..80),
    ) {
        let mut bench = Bench::ready();
        let mut deployments = apps(&mut bench, 6);
        deployments.push(bench.released(4));
        bench.cell(2, 4_000, &[]);
        bench.cell(3, 4_000, &[]);
        let wanted: BTreeMap<_, _> =
            deployments.iter().map(|id| (*id, serving(&bench, *id))).collect();
        for seed in seeds {
            let before = moving(&bench);
            rebalance(&mut bench, budget);
            let begun = moving(&bench) - before;
            assert!(begun == 0 || before == 0 && begun <= budget as usize, "{before} {begun}");
            happens(&mut bench, &deployments, seed);
            for (id, count) in &wanted {
                assert_eq!(serving(&bench, *id), *count, "after {seed:?}");
            }
            let drained = bench.state.all::<Cell>().any(|row| row.draining.is_some());
            assert!(drained || moving(&bench) <= budget as usize, "after {seed:?}");
        }
    }
}
