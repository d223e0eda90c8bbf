//! What watchers are told: every step, each with a number of its own, and where it belongs.

use model::{CellId, InstanceReport, InstanceState, ProjectId, Time};
use state::{AnyRow, CellCommand, Command, News, RowKey};

use crate::bench::{APP, Bench, PROJECT, name};

fn news(bench: &mut Bench) -> Vec<News> {
    bench.state.take_changes().expect("rows render").news
}

#[test]
fn every_step_is_told_also_those_that_the_store_does_not_see() {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    let row = bench.instances(deployment)[0].clone();
    bench.state.forget_changes();
    let before = bench.state.revision();
    let reason = "exited with 1".to_owned();
    let crashed = InstanceReport::Crashed { reason, never_healthy: false, detail: None };
    bench.report(&row, crashed);
    // It starts again at once, in another command of the same batch.
    bench.secs(0);
    let news = news(&mut bench);
    let states: Vec<&str> = news
        .iter()
        .filter_map(|news| match &news.row {
            Some(AnyRow::Instance(row)) => Some(row.state.name()),
            _ => None,
        })
        .collect();
    assert_eq!(states, ["crashed", "claimed"]);
    let revisions: Vec<u64> = news.iter().map(|news| news.revision).collect();
    let wanted: Vec<u64> = (before + 1..=bench.state.revision()).collect();
    assert_eq!(revisions, wanted);
    assert!(matches!(bench.instance(row.id).state, InstanceState::Claimed { .. }));
}

#[test]
fn leases_that_are_renewed_are_no_news() {
    let mut bench = Bench::ready();
    bench.state.forget_changes();
    bench.now += 1_000;
    let beat = CellCommand::Heartbeat { id: CellId(1), epoch: 1 };
    bench.ok(Command::Cell(beat));
    let changes = bench.state.take_changes().expect("rows render");
    assert_eq!((changes.rows.len(), changes.news.len()), (0, 0));
    assert_eq!(changes.cells.len(), 0, "nobody has to look");
    assert_eq!(bench.state.last_heard(), Some(Time(bench.now)));
    // That the clock has been this far is kept all the same.
    bench.ok(Command::Sweep);
    let changes = bench.state.take_changes().expect("rows render");
    assert_eq!((changes.rows.len(), changes.news.len()), (1, 0));
}

#[test]
fn what_is_refused_is_not_told() {
    let mut bench = Bench::ready();
    bench.state.forget_changes();
    let before = bench.state.revision();
    bench.try_apply(Command::DeleteProject(PROJECT)).expect_err("it has an app");
    let double = Command::CreateProject { id: ProjectId(9), name: name("shop") };
    bench.try_apply(double).expect_err("the name is taken");
    assert_eq!(bench.state.revision(), before);
    assert!(news(&mut bench).is_empty());
}

#[test]
fn what_is_gone_is_told_with_where_it_belonged() {
    let mut bench = Bench::ready();
    bench.state.forget_changes();
    bench.ok(Command::DeleteApp(APP));
    let gone: Vec<_> = news(&mut bench)
        .iter()
        .map(|news| (news.key, news.row.is_none(), news.scope.project, news.scope.app))
        .collect();
    assert_eq!(gone, [(RowKey::App(APP), true, Some(PROJECT), Some(APP))]);
}
