//! The route table: generations, changes, and what a router that is behind is told.

use model::{CellId, InstanceReport, RouteGate, RouteTable, RouteTarget, Time};
use state::{CellCommand, Command, Held, KEPT_CHANGES, State, WorkCommand};

use crate::bench::{Bench, address, cell_spec};

fn flip(bench: &mut Bench, deployment: model::DeploymentId, ready: bool) {
    let row = bench.instances(deployment).remove(0);
    bench.report(&row, InstanceReport::Ready { ready });
}

#[test]
fn every_change_grows_the_generation_and_can_be_asked_for() {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    let before = bench.state.routes();
    flip(&mut bench, deployment, false);
    flip(&mut bench, deployment, true);
    let after = bench.state.routes();
    assert!(after.generation >= before.generation + 2);
    let changes = bench.state.routes_since(before.generation).expect("they are kept");
    assert_eq!(changes.len(), 2);
    let mut routes = before.routes;
    for change in changes {
        routes.retain(|route| route.host != change.host);
        routes.extend(change.route);
    }
    assert_eq!(RouteTable { generation: after.generation, routes }, after);
    assert_eq!(bench.state.routes_since(after.generation), Some(Vec::new()));
}

#[test]
fn an_unknown_generation_asks_for_the_whole_table() {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    let first = bench.state.route_generation();
    for turn in 0..=KEPT_CHANGES {
        flip(&mut bench, deployment, turn % 2 == 1);
    }
    let last = bench.state.route_generation();
    assert_eq!(bench.state.routes_since(first), None, "too far back");
    assert!(bench.state.routes_since(last - 1).is_some());
    assert_eq!(bench.state.routes_since(last + 1), None, "from the future");
    assert_eq!(bench.state.routes_since(0), None, "from nowhere");
}

#[test]
fn nothing_changes_without_a_change() {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    let before = bench.state.routes();
    let at = bench.work_job();
    let again = WorkCommand::Release { attempt: at, deployment };
    bench.now += 1_000;
    bench.ok(Command::Work(again));
    assert_eq!(bench.state.routes(), before);
}

#[test]
fn an_empty_table_after_a_restart_is_newer_than_the_one_before() {
    let mut bench = Bench::ready();
    bench.released(1);
    let served = bench.state.routes();
    let at = bench.work_job();
    bench.ok(Command::Work(WorkCommand::Destroy(at)));
    bench.now += 1_000;
    let rows = bench.state.take_changes().expect("rows render").rows;
    let mut fresh = State::new("localhost");
    for row in rows {
        if let Some(body) = row.body {
            fresh.load(row.key.kind(), &body).expect("it loads");
        }
    }
    fresh.apply(Time(bench.now), Command::Boot).expect("it boots");
    assert_eq!(fresh.routes().routes, []);
    assert!(fresh.route_generation() > served.generation, "a router would refuse it");
    assert_eq!(fresh.routes_since(served.generation), None, "it is told the whole table");
}

#[test]
fn a_router_that_is_ahead_takes_the_table_of_a_server_whose_clock_was_set_back() {
    let mut bench = Bench::ready();
    bench.released(1);
    let hour = 3_600_000;
    let ahead = bench.state.route_generation() + hour;
    let before = bench.state.routes().routes;
    bench.ok(Command::RoutesServed { generation: ahead });
    assert!(bench.state.route_generation() > ahead);
    assert_eq!(bench.state.routes().routes, before);
    let caught_up = bench.state.route_generation();
    bench.ok(Command::RoutesServed { generation: 1 });
    bench.ok(Command::RoutesServed { generation: u64::MAX });
    assert_eq!(bench.state.route_generation(), caught_up, "neither says anything");
    assert_eq!(bench.state.routes_since(ahead), None, "it is told the whole table");
}

fn target(bench: &Bench) -> RouteTarget {
    bench.state.routes().routes[0].targets[0]
}

#[test]
fn instances_are_reached_through_the_gate_of_their_cell() {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    let row = bench.instances(deployment).remove(0);
    let plain = target(&bench);
    assert_eq!(plain.gate, None);
    let mut generation = bench.state.route_generation();
    for gate in [Some(address(7_423)), Some(address(7_424)), Some(address(7_424)), None] {
        let spec = model::CellSpec { gate, ..cell_spec(4_000) };
        let before = target(&bench);
        let holds = vec![Held::Instance { id: row.id, epoch: row.epoch }];
        bench.ok(Command::Cell(CellCommand::Online { id: CellId(1), spec, holds, token: None }));
        let gate = gate.map(|address| RouteGate { address, epoch: row.epoch });
        assert_eq!(target(&bench), RouteTarget { gate, ..plain });
        let is_changed = bench.state.route_generation() > generation;
        assert_eq!(is_changed, target(&bench) != before);
        generation = bench.state.route_generation();
    }
}

#[test]
fn routes_are_there_before_the_first_command() {
    let mut bench = Bench::ready();
    bench.released(1);
    let before = bench.state.routes();
    let served = before.generation;
    let rows = bench.state.take_changes().expect("rows render").rows;
    // Loaded at the same time, later, and by a clock that was set back.
    for (now, least) in [(served, served + 1), (served + 5_000, served + 5_000), (1, served + 1)] {
        let mut again = State::new("localhost");
        for change in &rows {
            let Some(body) = &change.body else { continue };
            again.load(change.key.kind(), body).expect("it loads");
        }
        again.loaded(Time(now), served);
        let routes = again.routes();
        assert_eq!(routes.routes, before.routes, "at {now}");
        assert!(routes.generation >= least, "{} at {now}", routes.generation);
        assert_eq!(
            again.routes_since(served),
            None,
            "a router that is behind gets the whole table"
        );
        again.apply(Time(now), Command::Boot).expect("it boots");
        assert_eq!(again.routes(), routes, "a command changes nothing about it");
    }
}

#[test]
fn a_process_that_told_of_no_routes_begins_with_the_present() {
    let mut state = State::new("localhost");
    state.loaded(Time(7), 0);
    assert_eq!(state.routes(), RouteTable { generation: 7, routes: Vec::new() });
    state.loaded(Time(7), 9);
    assert_eq!(state.route_generation(), 10, "an empty table, too, is later than the last one");
}
