//! The copy before the current one: it serves while its cell is silent, and never for longer.

use std::net::SocketAddr;
use std::time::Duration;

use model::{CellId, DeploymentId, InstanceReport, InstanceState, Outcome, Time};
use state::{
    CELL_LEASE, Command, DRAIN, Held, Instance, Predecessor, PredecessorKind, Refusal, WorkCommand,
};

use crate::bench::{APP, Bench, address, name};

/// One instance that serves on cell 1, and cell 2 with nothing.
fn serving() -> (Bench, DeploymentId, Instance) {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    bench.cell(2, 4_000, &[]);
    let row = (*bench.instances(deployment)[0]).clone();
    assert_eq!(row.state.cell(), Some(CellId(1)));
    (bench, deployment, row)
}

fn held(row: &Instance) -> Held {
    Held::Instance { id: row.id, epoch: row.epoch }
}

fn routed(bench: &Bench) -> Vec<SocketAddr> {
    let routes = bench.state.routes().routes;
    routes.iter().flat_map(|route| &route.targets).map(|target| target.address).collect()
}

fn scale(bench: &mut Bench, instances: u32) {
    let (workspace, process) = (name("production"), name("web"));
    bench.ok(Command::Scale { app: APP, workspace, process, instances });
}

/// As [`serving`], and cell 1 was lost.
fn suspect() -> (Bench, DeploymentId, Instance) {
    let (mut bench, deployment, old) = serving();
    bench.lose(1);
    let row = (*bench.instances(deployment)[0]).clone();
    let (epoch, since) = (old.epoch, old.since);
    let address = old.state.ready_address().expect("it was ready");
    let kind = PredecessorKind::Suspect;
    let before = Predecessor { cell: CellId(1), address, epoch, kind, ready: true, since };
    assert_eq!(row.before, Some(before));
    assert_eq!(row.state, InstanceState::Claimed { cell: CellId(2) }, "placed by the same event");
    (bench, deployment, old)
}

#[test]
fn a_lost_cell_counts_as_gone_15_s_after_its_last_word_and_is_replaced_at_once() {
    let (mut bench, deployment, _) = serving();
    bench.lose(1);
    assert!(CELL_LEASE <= Duration::from_secs(15));
    assert_eq!(bench.instances(deployment)[0].since, Time(bench.now));
}

#[test]
fn routes_keep_to_the_suspect_until_the_next_copy_is_ready() {
    let (mut bench, deployment, old) = suspect();
    let was = old.state.ready_address().expect("it was ready");
    assert_eq!(routed(&bench), [was]);
    bench.start_all(deployment);
    assert_eq!(routed(&bench), [was]);
    bench.healthy(deployment);
    let row = bench.instances(deployment).remove(0);
    assert_eq!(row.before, None);
    assert_eq!(routed(&bench), [row.state.ready_address().expect("it is ready")]);
    // It comes back with a copy nobody needs: it is told of nothing, so it ends that.
    bench.cell(1, 4_000, &[held(&old)]);
    assert_eq!(bench.on(1), []);
    assert_eq!(*bench.instances(deployment)[0], *row);
    let late = bench.say((1, old.id, old.epoch), InstanceReport::Ready { ready: true });
    assert!(matches!(late, Err(Refusal::Stale { .. })));
}

#[test]
fn a_suspect_whose_cell_is_back_in_time_is_the_current_copy_again() {
    let starts: [fn(&mut Bench, DeploymentId); 3] = [
        |_, _| {},
        |bench, deployment| bench.start_all(deployment),
        |bench, deployment| {
            bench.start_all(deployment);
            let row = bench.instances(deployment).remove(0);
            let (reason, never_healthy) = ("exited with 1".to_owned(), false);
            bench.report(&row, InstanceReport::Crashed { reason, never_healthy, detail: None });
        },
    ];
    for start in starts {
        let (mut bench, deployment, old) = suspect();
        start(&mut bench, deployment);
        let next = bench.instances(deployment).remove(0);
        bench.cell(1, 4_000, &[held(&old)]);
        let row = bench.instances(deployment).remove(0);
        assert_eq!((&row.state, row.epoch, row.since), (&old.state, old.epoch, old.since));
        assert_eq!(row.before, None);
        assert_eq!(bench.on(2), [], "what was to replace it is told to go");
        let late = bench.say((2, next.id, next.epoch), InstanceReport::Ready { ready: true });
        assert!(matches!(late, Err(Refusal::Stale { .. })));
        // A later copy has a later epoch than any before.
        bench.lose(1);
        assert!(bench.instances(deployment)[0].epoch > next.epoch);
    }
}

#[test]
fn a_cell_that_is_back_without_its_suspect_ends_the_doubt() {
    let (mut bench, deployment, _) = suspect();
    bench.cell(1, 4_000, &[]);
    assert_eq!(bench.instances(deployment)[0].before, None);
    assert_eq!(routed(&bench), []);
    assert_eq!(bench.states(deployment), ["claimed"]);
}

#[test]
fn the_loss_of_the_next_copys_cell_leaves_the_suspect() {
    for started in [false, true] {
        let (mut bench, deployment, old) = suspect();
        if started {
            bench.start_all(deployment);
        }
        bench.lose(2);
        let row = bench.instances(deployment).remove(0);
        assert!(matches!(row.state, InstanceState::Unclaimed { .. }), "{:?}", row.state);
        assert_eq!(row.before.map(|it| it.epoch), Some(old.epoch));
        assert_eq!(routed(&bench), [old.state.ready_address().expect("it was ready")]);
        bench.cell(2, 4_000, &[]);
        assert!(bench.instances(deployment)[0].epoch > row.epoch);
        bench.healthy(deployment);
        assert_eq!(bench.instances(deployment)[0].before, None);
    }
}

#[test]
fn a_next_copy_that_served_and_is_lost_is_the_suspect_in_turn() {
    let (mut bench, deployment, _) = suspect();
    bench.healthy(deployment);
    let second = bench.instances(deployment).remove(0);
    bench.lose(2);
    let row = bench.instances(deployment).remove(0);
    assert_eq!(row.before.map(|it| (it.cell, it.epoch)), Some((CellId(2), second.epoch)));
}

#[test]
fn what_did_not_serve_leaves_no_suspect() {
    for started in [false, true] {
        let mut bench = Bench::ready();
        let at = bench.work_job();
        let deployment = bench.deploy(at, 1);
        if started {
            bench.start_all(deployment);
        }
        bench.cell(2, 4_000, &[]);
        bench.lose(1);
        assert_eq!(bench.instances(deployment)[0].before, None);
        assert_eq!(bench.states(deployment), ["claimed"]);
    }
}

#[test]
fn the_end_of_a_suspect_is_no_crash_of_the_next() {
    let ends = [
        InstanceReport::Crashed { reason: "x".to_owned(), never_healthy: true, detail: None },
        InstanceReport::Gone,
        InstanceReport::Reject { reason: "full".to_owned() },
    ];
    for end in ends {
        let (mut bench, deployment, old) = suspect();
        bench.say((1, old.id, old.epoch), end).expect("it is known");
        let row = bench.instances(deployment).remove(0);
        assert_eq!((row.before, row.crashes), (None, 0));
        assert_eq!(row.state, InstanceState::Claimed { cell: CellId(2) });
        assert_eq!(routed(&bench), []);
    }
}

#[test]
fn a_suspect_says_what_it_is_and_no_more() {
    let (mut bench, deployment, old) = suspect();
    let at = (1, old.id, old.epoch);
    let was = old.state.ready_address().expect("it was ready");
    bench.say(at, InstanceReport::Started { address: was }).expect("it is there");
    let elsewhere = bench.say(at, InstanceReport::Started { address: address(9_999) });
    assert!(matches!(elsewhere, Err(Refusal::Stale { .. })));
    bench.say(at, InstanceReport::Ready { ready: false }).expect("it is there");
    assert_eq!(routed(&bench), []);
    bench.say(at, InstanceReport::Ready { ready: true }).expect("it is there");
    assert_eq!(routed(&bench), [was]);
    assert_eq!(bench.states(deployment), ["claimed"], "the next one is as it was");
    let wrong = bench.say((2, old.id, old.epoch), InstanceReport::Gone);
    assert!(matches!(wrong, Err(Refusal::Stale { .. })), "another cell says nothing of it");
}

#[test]
fn what_is_not_wanted_ends_with_its_predecessor() {
    let ends: [fn(&mut Bench); 2] = [
        |bench| scale(bench, 0),
        |bench| {
            let at = bench.work_job();
            bench.ok(Command::Work(WorkCommand::Destroy(at)));
            bench.complete(at, Outcome::Succeeded);
        },
    ];
    for end in ends {
        let (mut bench, deployment, old) = suspect();
        end(&mut bench);
        let row = bench.instances(deployment).remove(0);
        assert_eq!(row.before, None, "a silent cell cannot be told");
        assert_eq!(row.state, InstanceState::Stopping { cell: CellId(2) });
        assert_eq!(routed(&bench), []);
        bench.gone(deployment);
        assert_eq!(bench.instances(deployment), []);
        bench.cell(1, 4_000, &[held(&old)]);
        assert_eq!(bench.on(1), [], "it is told of nothing, so it ends it");
    }
}

#[test]
fn what_waits_for_a_cell_and_is_not_wanted_any_more_is_gone_with_its_suspect() {
    let (mut bench, deployment, _) = serving();
    bench.lose(2);
    bench.lose(1);
    let row = bench.instances(deployment).remove(0);
    assert!(matches!(row.state, InstanceState::Unclaimed { .. }), "{:?}", row.state);
    scale(&mut bench, 0);
    assert_eq!(bench.instances(deployment), []);
    scale(&mut bench, 1);
    bench.cell(2, 4_000, &[]);
    assert!(bench.instances(deployment)[0].epoch > row.epoch);
    bench.pass(DRAIN);
}
