//! What goes wrong with one instance: it is kept, waited for and said, and the others do not notice.

use std::net::SocketAddr;
use std::time::Duration;

use model::{
    CellId, CellSpec, ExitStatus, FailureDetail, InstanceReport, InstanceState, Role, TokenId,
};
use state::{
    CellCommand, Command, DRAIN, Held, Instance, MAX_HELD, NewToken, REJECT_PAUSE, Refusal, Reply,
};

use crate::bench::{APP, Bench, cell_spec, name};

fn restart(bench: &mut Bench, process: &str, index: u32) -> Result<Reply, Refusal> {
    let (workspace, process) = (name("production"), name(process));
    bench.try_apply(Command::RestartInstance { app: APP, workspace, process, index })
}

#[test]
fn how_the_last_crash_went_is_kept_while_it_starts_again() {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    let row = bench.instances(deployment).remove(0);
    let detail = FailureDetail {
        exit: Some(ExitStatus::OutOfMemory),
        tail: (0..100).map(|line| line.to_string()).collect(),
        ..FailureDetail::default()
    };
    bench.report(
        &row,
        InstanceReport::Crashed {
            reason: "was killed".to_owned(),
            never_healthy: false,
            detail: Some(Box::new(detail)),
        },
    );
    bench.secs(0);
    bench.healthy(deployment);
    let row = bench.instances(deployment).remove(0);
    assert!(row.state.ready_address().is_some());
    let crash = row.last_crash.as_ref().expect("it is kept");
    let detail = crash.detail.as_ref().expect("it is kept");
    assert_eq!((crash.reason.as_str(), detail.exit), ("was killed", Some(ExitStatus::OutOfMemory)));
    assert_eq!(detail.tail.len(), model::MAX_TAIL_LINES);
}

#[test]
fn a_cell_that_gives_it_back_again_and_again_is_not_asked_all_the_time() {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    let row = bench.instances(deployment).remove(0);
    let (reason, never_healthy) = ("exited with 1".to_owned(), false);
    bench.report(&row, InstanceReport::Crashed { reason, never_healthy, detail: None });
    bench.secs(0);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let row = bench.instances(deployment).remove(0);
        let began = bench.now;
        bench.report(&row, InstanceReport::Reject { reason: "full".to_owned() });
        let waiting = bench.instances(deployment).remove(0);
        let reason = "cell cell gave it back: full".to_owned();
        assert_eq!(waiting.state, InstanceState::Unclaimed { reason: Some(reason) });
        let retry_at = waiting.retry_at.expect("it waits");
        bench.task(None);
        assert_eq!(bench.states(deployment), ["unclaimed"], "not before its time");
        bench.pass_without(9, retry_at.since(model::Time(began)));
        bench.ok(Command::Tick);
        assert_eq!(bench.states(deployment), ["claimed"], "it is offered again");
        pauses.push(retry_at.0 - began);
    }
    let second = u64::try_from(REJECT_PAUSE.as_millis()).expect("it is short");
    assert_eq!(pauses[..5], [1, 2, 4, 8, 16].map(|times| times * second));
    assert!(pauses.iter().all(|pause| *pause <= 64 * second));
}

#[test]
fn what_starts_after_all_was_never_rejected() {
    let mut bench = Bench::ready();
    let at = bench.work_job();
    let deployment = bench.deploy(at, 1);
    let row = bench.instances(deployment).remove(0);
    bench.report(&row, InstanceReport::Reject { reason: "full".to_owned() });
    bench.pass(REJECT_PAUSE);
    bench.healthy(deployment);
    let row = bench.instances(deployment).remove(0);
    assert_eq!((row.rejects, row.retry_at), (0, None));
}

#[test]
fn one_instance_is_restarted_and_the_others_do_not_notice() {
    let mut bench = Bench::ready();
    let deployment = bench.released(3);
    let before = bench.instances(deployment);
    restart(&mut bench, "web", 1).expect("it is there");
    assert_eq!(bench.states(deployment), ["running", "stopping", "running"]);
    let it = bench.state.cell_work(CellId(1)).instances.into_iter().find(|it| it.copy.stop);
    let due = bench.state.stop_due(&it.expect("one stops"));
    assert_eq!(due, model::Time(bench.now).after(DRAIN), "requests under way end first");
    restart(&mut bench, "web", 1).expect("it is being restarted");
    bench.gone(deployment);
    let after = bench.instances(deployment);
    assert_eq!(after[1].state, InstanceState::Claimed { cell: CellId(1) });
    assert!(after[1].epoch > before[1].epoch);
    assert_eq!((&after[0], &after[2]), (&before[0], &before[2]));
    bench.healthy(deployment);
    assert_eq!(bench.targets(), Some((deployment, 3)));
    for (process, index) in [("web", 3), ("worker", 0)] {
        let refused = restart(&mut bench, process, index);
        assert!(matches!(refused, Err(Refusal::NotFound { .. })), "{process}.{index}");
    }
}

#[test]
fn a_restart_of_what_gave_up_begins_anew() {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    for _ in 0..3 {
        bench.healthy(deployment);
        let row = bench.instances(deployment).remove(0);
        let (reason, never_healthy) = ("exited with 1".to_owned(), false);
        bench.report(&row, InstanceReport::Crashed { reason, never_healthy, detail: None });
        bench.secs(0);
    }
    assert_eq!(bench.states(deployment), ["crashed"]);
    restart(&mut bench, "web", 0).expect("it is there");
    let row = bench.instances(deployment).remove(0);
    assert_eq!((row.state.name(), row.crashes), ("claimed", 0));
}

#[test]
fn scaling_changes_no_row_of_what_stays() {
    let mut bench = Bench::ready();
    let deployment = bench.released(2);
    let before = bench.instances(deployment);
    bench.state.forget_changes();
    for instances in [4, 2] {
        let (workspace, process) = (name("production"), name("web"));
        bench.ok(Command::Scale { app: APP, workspace, process, instances });
        let changed = bench.state.take_changes().expect("rows render").rows;
        let touched = |row: &Instance| {
            changed.iter().any(|change| change.key == state::RowKey::Instance(row.id))
        };
        assert!(!before.iter().any(|row| touched(row)), "to {instances}");
    }
    assert_eq!(bench.instances(deployment)[..2], before[..]);
}

#[test]
fn scaling_down_removes_what_waits_after_a_crash() {
    let mut bench = Bench::ready();
    let deployment = bench.released(2);
    while bench.states(deployment)[1] != "crashed" {
        bench.healthy(deployment);
        let row = bench.instances(deployment).remove(1);
        let (reason, never_healthy) = ("exited with 1".to_owned(), false);
        bench.report(&row, InstanceReport::Crashed { reason, never_healthy, detail: None });
        bench.secs(0);
    }
    let before = bench.instances(deployment);
    let InstanceState::Crashed { restart_at: Some(_), .. } = before[1].state else {
        panic!("it waits for its restart: {:?}", before[1]);
    };
    let (workspace, process) = (name("production"), name("web"));
    bench.ok(Command::Scale { app: APP, workspace, process, instances: 1 });
    for minutes in [0, 10] {
        bench.pass_without(9, Duration::from_mins(minutes));
        assert_eq!(bench.instances(deployment), before[..1], "after {minutes} min");
        assert_eq!(bench.on(1), [(0, before[0].epoch, false)]);
        assert_eq!(bench.targets(), Some((deployment, 1)));
    }
}

#[test]
fn a_cell_that_lies_is_refused_and_changes_nothing() {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    bench.cell(2, 4_000, &[]);
    let row = (*bench.instances(deployment)[0]).clone();
    let online = |change: fn(&mut CellSpec)| {
        let mut spec = cell_spec(4_000);
        change(&mut spec);
        Command::Cell(CellCommand::Online { id: CellId(2), spec, holds: Vec::new(), token: None })
    };
    let many = vec![Held::Instance { id: row.id, epoch: 1 }; MAX_HELD + 1];
    let elsewhere: SocketAddr = ([10, 9, 9, 9], 80).into();
    let report = |cell, epoch, report| {
        let cell = CellId(cell);
        Command::Cell(CellCommand::Instance { cell, instance: row.id, epoch, report })
    };
    let started = InstanceReport::Started { address: elsewhere };
    let lies: [(&str, Command); 9] = [
        ("absurd memory", online(|spec| spec.memory_mb = u64::MAX)),
        ("absurd disk", online(|spec| spec.disk_mb = u64::MAX)),
        ("absurdly many containers", online(|spec| spec.containers = u32::MAX)),
        ("absurd shares", online(|spec| spec.cpu_shares = Some(u64::MAX))),
        ("a zone as long as a book", online(|spec| spec.zone = "z".repeat(10_000))),
        (
            "holding everything",
            Command::Cell(CellCommand::Online {
                id: CellId(2),
                spec: cell_spec(4_000),
                holds: many,
                token: None,
            }),
        ),
        ("the work of another cell", report(2, row.epoch, started.clone())),
        ("an epoch to come", report(1, row.epoch + 1, InstanceReport::Gone)),
        ("another address", report(1, row.epoch, started)),
    ];
    for (what, lie) in lies {
        bench.state.forget_changes();
        let refused = bench.try_apply(lie).expect_err(what).to_string();
        assert!(refused.len() < 300, "{what}: {refused}");
        assert_eq!(bench.state.take_changes().expect("rows render").rows, [], "{what}");
    }
    // What it was never told to run it is told to end, and nobody else notices.
    let held = Held::Instance { id: row.id, epoch: row.epoch };
    bench.cell(2, 4_000, &[held, Held::Instance { id: row.id, epoch: row.epoch + 7 }]);
    assert_eq!(bench.on(2), []);
    assert_eq!(*bench.instances(deployment)[0], row);
    bench.pass(Duration::from_secs(1));
}

#[test]
fn a_cell_belongs_to_the_token_it_joined_with() {
    let mut bench = Bench::ready();
    let token = |id: u128| NewToken {
        id: TokenId(id),
        role: Role::Cell,
        project: None,
        hash: model::Digest([u8::try_from(id).expect("small"); 32]),
        label: String::new(),
        ttl: None,
    };
    bench.ok(Command::CreateToken(token(1)));
    bench.ok(Command::CreateToken(token(2)));
    let join = |id: u128| {
        let (spec, token) = (cell_spec(4_000), Some(TokenId(id)));
        Command::Cell(CellCommand::Online { id: CellId(7), spec, holds: Vec::new(), token })
    };
    bench.ok(join(1));
    bench.ok(join(1));
    let refused = bench.try_apply(join(2)).expect_err("it is another's");
    assert!(refused.to_string().contains("belongs to another token"), "{refused}");
    bench.ok(Command::RevokeToken(TokenId(1)));
    bench.ok(join(2));
    assert!(bench.try_apply(join(1)).is_err(), "it moved");
}
