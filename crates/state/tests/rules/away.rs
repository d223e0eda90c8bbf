//! Runners and cells that are away are forgotten in the end.

use std::collections::BTreeMap;

use model::{CellId, RunnerId};
use state::{Cell, CellCommand, Command, JobCommand, MAX_AWAY, Refusal, Runner};

use crate::bench::{Bench, name, noop};

fn join(id: u128, labels: BTreeMap<String, String>) -> JobCommand {
    let (id, name) = (RunnerId(id), name("runner"));
    JobCommand::RunnerOnline { id, name, labels, only_own: false, holds: Vec::new(), token: None }
}

fn runners(bench: &Bench) -> Vec<u128> {
    bench.state.all::<Runner>().map(|row| row.id.0).collect()
}

#[test]
fn runners_that_are_away_are_not_all_remembered() {
    let mut bench = Bench::new();
    let most = MAX_AWAY as u128;
    // The first stays, the second has a job.
    for id in [1, 2] {
        bench.ok(Command::Job(join(id, BTreeMap::new())));
    }
    let job = bench.queue(noop());
    let at = bench.assign(2).expect("it waits");
    bench.ack(at);
    for id in 2..most + 3 {
        bench.secs(1);
        if id > 2 {
            bench.ok(Command::Job(join(id, BTreeMap::new())));
        }
        bench.ok(Command::Job(JobCommand::RunnerOffline(RunnerId(id))));
        // A job that runs goes on without the stream.
        bench.ok(Command::Job(JobCommand::Heartbeat(at)));
    }
    assert_eq!(bench.is(job), "running");
    assert_eq!(runners(&bench).len(), MAX_AWAY + 2);
    bench.ok(Command::Job(join(most + 3, BTreeMap::new())));
    let left = runners(&bench);
    assert_eq!(left.len(), MAX_AWAY + 2, "one went for the new one");
    assert_eq!(left[..3], [1, 2, 4], "the third was away longest of those with nothing to do");
    bench.ok(Command::Job(join(4, BTreeMap::new())));
    assert_eq!(runners(&bench).len(), MAX_AWAY + 2, "who comes back takes no room");
}

fn leave(bench: &mut Bench, id: CellId, epoch: u32) {
    bench.ok(Command::Cell(CellCommand::Leave { id, epoch }));
    bench.ok(Command::Cell(CellCommand::Left { id, epoch }));
}

#[test]
fn cells_that_are_away_are_not_all_remembered() {
    let mut bench = Bench::new();
    let most = MAX_AWAY as u128;
    for id in 1..=most {
        let epoch = bench.cell(id, 1_000, &[]);
        let id = CellId(id);
        if id == CellId(1) {
            let timeout = state::DRAIN_TIMEOUT;
            bench.ok(Command::Cell(CellCommand::Drain { id, timeout }));
        }
        leave(&mut bench, id, epoch);
        bench.secs(1);
    }
    bench.cell(most + 1, 1_000, &[]);
    bench.cell(most + 2, 1_000, &[]);
    let left: Vec<_> = bench.state.all::<Cell>().map(|row| row.id.0).collect();
    assert_eq!(left.len(), MAX_AWAY + 2, "the one an operator emptied is not counted");
    let epoch = bench.state.get::<Cell>(CellId(most + 1)).expect("it is there").epoch;
    leave(&mut bench, CellId(most + 1), epoch);
    bench.cell(most + 3, 1_000, &[]);
    let left: Vec<_> = bench.state.all::<Cell>().map(|row| row.id.0).collect();
    assert_eq!(left.len(), MAX_AWAY + 2);
    assert_eq!(left[..2], [1, 3], "the second joined first");
}

#[test]
fn labels_of_a_runner_have_a_size() {
    let mut bench = Bench::new();
    let long = BTreeMap::from([("a".to_owned(), "x".repeat(201))]);
    let many = (0..65).map(|number| (number.to_string(), String::new())).collect();
    for labels in [long, many] {
        let refusal = bench.job(join(1, labels)).expect_err("too large");
        assert!(matches!(refusal, Refusal::Invalid(_)), "{refusal}");
    }
    assert_eq!(runners(&bench), [0; 0]);
}
