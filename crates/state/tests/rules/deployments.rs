//! From a build to routes and back to nothing.

use std::time::Duration;

use model::{
    BuildId, CellId, Check, CrashPolicy, DeploymentId, DeploymentState, Digest, InstanceReport,
    InstanceState, Outcome, Time,
};
use state::{
    CELL_LEASE, CellCommand, Command, DEPLOY_SLACK, DRAIN, Held, JobCommand, Process,
    ProcessTemplate, Refusal, WorkCommand,
};

use crate::bench::{APP, Bench, SOURCE, address, failed, name, process};

fn crashed(reason: &str, never_healthy: bool) -> InstanceReport {
    InstanceReport::Crashed { reason: reason.to_owned(), never_healthy, detail: None }
}

fn reason(bench: &Bench, deployment: DeploymentId) -> String {
    match bench.deployment_state(deployment) {
        DeploymentState::Failed { reason } => reason,
        other => panic!("it is {other:?}"),
    }
}

#[test]
fn healthy_ready_released_drained_retired() {
    let mut bench = Bench::ready();
    let old = bench.released(2);
    assert_eq!(bench.targets(), Some((old, 2)));
    let at = bench.work_job();
    let new = bench.deploy(at, 1);
    let release = WorkCommand::Release { attempt: at, deployment: new };
    assert!(matches!(bench.work(release), Err(Refusal::Conflict(_))), "not before it is ready");
    bench.start_all(new);
    assert!(matches!(bench.deployment_state(new), DeploymentState::Starting { .. }));
    bench.healthy(new);
    assert_eq!(bench.deployment_state(new), DeploymentState::Ready);
    assert_eq!(bench.targets(), Some((old, 2)), "ready is not released");
    bench.release(at, new);
    assert_eq!(bench.targets(), Some((new, 1)));
    bench.complete(at, Outcome::Succeeded);
    assert_eq!(bench.states(old), ["running", "running"], "it drains");
    bench.pass(DRAIN);
    assert_eq!(bench.deployment_state(old), DeploymentState::Retired);
    assert_eq!(bench.states(old), ["stopping", "stopping"]);
    let it = bench.state.cell_work(CellId(1)).instances.remove(0);
    assert_eq!(bench.state.stop_due(&it), it.row.since, "it has drained");
    bench.gone(old);
    assert_eq!(bench.instances(old), []);
    assert_eq!(bench.states(new), ["running"]);
}

#[test]
fn the_startup_check_says_how_long_a_start_may_take() {
    let mut bench = Bench::ready();
    let at = bench.work_job();
    let mut spec = process(100);
    spec.startup = Some(Check { start_timeout_ms: 600_000, ..Check::default() });
    let new = bench.deploy_spec(at, 1, spec);
    let DeploymentState::Starting { deadline } = bench.deployment_state(new) else {
        panic!("it starts");
    };
    assert_eq!(deadline.since(Time(bench.now)), Duration::from_mins(10) + DEPLOY_SLACK);
}

type Act = fn(&mut Bench, DeploymentId);

#[test]
fn never_healthy_fails_and_leaves_the_routes() {
    let table: [(&str, bool, Act); 3] = [
        ("was not healthy in time", false, |bench, new| {
            bench.start_all(new);
            let row = bench.instances(new).remove(0);
            bench.report(&row, crashed("was not healthy in time", true));
        }),
        ("exited with 1", false, |bench, new| {
            for _ in 0..3 {
                bench.start_all(new);
                let row = bench.instances(new).remove(0);
                bench.report(&row, crashed("exited with 1", false));
                bench.secs(0);
            }
        }),
        ("when the time to start was up", true, |bench, new| {
            bench.start_all(new);
            bench.secs(60);
            assert!(matches!(bench.deployment_state(new), DeploymentState::Starting { .. }));
            bench.pass(DEPLOY_SLACK);
        }),
    ];
    for (why, late, fail) in table {
        let mut bench = Bench::ready();
        let old = bench.released(1);
        let at = bench.work_job();
        let new = bench.deploy(at, 2);
        if late {
            // Heartbeats keep everything else alive meanwhile.
            bench.state = steady(&mut bench);
        }
        fail(&mut bench, new);
        assert!(reason(&bench, new).contains(why), "{}", reason(&bench, new));
        assert!(bench.states(new).iter().all(|state| *state == "stopping"));
        assert_eq!(bench.targets(), Some((old, 1)), "{why}");
        let release = WorkCommand::Release { attempt: at, deployment: new };
        assert!(bench.work(release).is_err());
        let restart = WorkCommand::Restart { attempt: at, deployment: new };
        assert!(bench.work(restart).is_err(), "what never was healthy cannot come back");
    }
}

/// The same state with leases that do not end soon.
fn steady(bench: &mut Bench) -> state::State {
    let mut state = std::mem::replace(&mut bench.state, state::State::new("localhost"));
    let now = Time(bench.now + 200_000);
    for cell in state.all::<state::Cell>().cloned().collect::<Vec<_>>() {
        let beat = CellCommand::Heartbeat { id: cell.id, epoch: cell.epoch };
        state.apply(now, Command::Cell(beat)).expect("it is connected");
    }
    let jobs: Vec<_> =
        state.all::<state::Job>().filter(|job| job.state.runner().is_some()).cloned().collect();
    for job in jobs {
        let at = state::Attempt { job: job.id, epoch: job.epoch };
        state.apply(now, Command::Job(JobCommand::Heartbeat(at))).expect("it runs");
    }
    state
}

#[test]
fn a_job_that_ends_takes_its_unreleased_deployment_along() {
    for ready in [false, true] {
        let mut bench = Bench::ready();
        let at = bench.work_job();
        let deployment = bench.deploy(at, 1);
        if ready {
            bench.healthy(deployment);
        }
        bench.cancel(at.job, true);
        if ready {
            assert_eq!(bench.deployment_state(deployment), DeploymentState::Retired);
        } else {
            assert_eq!(reason(&bench, deployment), "its job ended before it was healthy");
        }
        assert_eq!(bench.states(deployment), ["stopping"]);
        bench.gone(deployment);
        let at = bench.work_job();
        let again = bench.work(WorkCommand::Restart { attempt: at, deployment });
        assert_eq!(again.is_ok(), ready, "only what was healthy once starts again");
    }
}

#[test]
fn a_deployment_that_was_healthy_can_be_started_again_even_after_a_cancelled_attempt() {
    let mut bench = Bench::ready();
    let old = bench.released(1);
    let _new = bench.released(1);
    bench.pass(DRAIN);
    bench.gone(old);
    let at = bench.work_job();
    bench.ok(Command::Work(WorkCommand::Restart { attempt: at, deployment: old }));
    bench.complete(at, failed("gave up"));
    assert_eq!(bench.deployment_state(old), DeploymentState::Retired);
    bench.gone(old);
    let at = bench.work_job();
    bench.ok(Command::Work(WorkCommand::Restart { attempt: at, deployment: old }));
    bench.healthy(old);
    bench.release(at, old);
    assert_eq!(bench.targets(), Some((old, 1)));
}

#[test]
fn a_job_that_fails_after_the_release_leaves_what_it_released() {
    let mut bench = Bench::ready();
    let at = bench.work_job();
    let deployment = bench.deploy(at, 1);
    bench.healthy(deployment);
    bench.release(at, deployment);
    bench.complete(at, failed("too late"));
    assert_eq!(bench.targets(), Some((deployment, 1)));
}

#[test]
fn two_deadlines_of_one_deployment_in_one_tick() {
    let mut bench = Bench::ready();
    let at = bench.work_job();
    let deployment = bench.deploy(at, 1);
    // Nobody ticked for long: the job's lease, the cell's and the deployment's time are all over.
    bench.now += 1_000_000;
    bench.ok(Command::Tick);
    assert_eq!(bench.is(at.job), "failed");
    assert!(matches!(bench.deployment_state(deployment), DeploymentState::Failed { .. }));
}

#[test]
fn crashes_restart_at_once_then_later() {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    bench.state = steady(&mut bench);
    for pause in [0, 0, 30, 60] {
        let row = bench.instances(deployment).remove(0);
        let epoch = row.epoch;
        bench.report(&row, crashed("exited with 1", false));
        assert_eq!(bench.targets(), Some((deployment, 0)), "no route leads to it");
        if pause > 0 {
            bench.secs(pause - 1);
            assert_eq!(bench.states(deployment), ["crashed"], "it waits {pause} s");
            bench.secs(1);
        } else {
            bench.secs(0);
        }
        assert_eq!(bench.states(deployment), ["claimed"], "after {pause} s");
        assert!(bench.instances(deployment)[0].epoch > epoch);
        bench.healthy(deployment);
    }
    assert_eq!(bench.deployment_state(deployment), DeploymentState::Ready, "a crash is no failure");
    bench.state = steady(&mut bench);
    bench.secs(100);
    bench.state = steady(&mut bench);
    bench.secs(100);
    bench.state = steady(&mut bench);
    bench.secs(150);
    let row = bench.instances(deployment).remove(0);
    bench.report(&row, crashed("exited with 1", false));
    assert_eq!(bench.instances(deployment)[0].crashes, 1, "it ran long enough");
}

#[test]
fn a_policy_of_ones_own_says_how_often_and_when_and_the_others_go_on() {
    let mut bench = Bench::ready();
    let at = bench.work_job();
    let mut spec = process(100);
    spec.crash =
        CrashPolicy { immediate: 1, base_ms: 5_000, give_up_after: 3, ..CrashPolicy::default() };
    let deployment = bench.deploy_spec(at, 2, spec);
    bench.healthy(deployment);
    bench.release(at, deployment);
    bench.complete(at, Outcome::Succeeded);
    let other = bench.instances(deployment).remove(1);
    for pause in [0, 5] {
        let row = bench.instances(deployment).remove(0);
        bench.report(&row, crashed("exited with 1", false));
        if pause > 0 {
            bench.pass_without(9, Duration::from_secs(pause - 1));
            assert_eq!(bench.states(deployment)[0], "crashed", "it waits {pause} s");
            bench.pass_without(9, Duration::from_secs(1));
        } else {
            bench.secs(0);
        }
        assert_eq!(bench.states(deployment)[0], "claimed", "after {pause} s");
        bench.healthy(deployment);
        assert_eq!(bench.targets(), Some((deployment, 2)));
    }
    let row = bench.instances(deployment).remove(0);
    bench.report(&row, crashed("exited with 1", false));
    let down = bench.instances(deployment).remove(0);
    assert!(matches!(down.state, InstanceState::Crashed { restart_at: None, .. }), "{down:?}");
    bench.pass_without(9, Duration::from_hours(1));
    assert_eq!(bench.instances(deployment), [down, other]);
    assert_eq!(bench.targets(), Some((deployment, 1)));
}

#[test]
fn the_loss_of_a_cell_moves_its_instances() {
    let mut bench = Bench::ready();
    let deployment = bench.released(2);
    assert!(bench.instances(deployment).iter().all(|row| row.state.cell() == Some(CellId(1))));
    bench.pass(CELL_LEASE.saturating_sub(Duration::from_secs(1)));
    let two = bench.cell(2, 4_000, &[]);
    assert_eq!(two, 1);
    bench.secs(1);
    let rows = bench.instances(deployment);
    assert!(rows.iter().all(|row| row.state == InstanceState::Claimed { cell: CellId(2) }));
    assert_eq!(bench.targets(), Some((deployment, 2)), "the lost ones may still serve");
    bench.healthy(deployment);
    assert_eq!(bench.targets(), Some((deployment, 2)));
    // The first comes back with what it still runs: it is told of nothing, so it ends it.
    let holds: Vec<Held> =
        rows.iter().map(|row| Held::Instance { id: row.id, epoch: row.epoch - 1 }).collect();
    bench.cell(1, 4_000, &holds);
    assert!(bench.state.cell_work(CellId(1)).instances.is_empty());
    assert_eq!(bench.targets(), Some((deployment, 2)));
}

#[test]
fn a_cell_that_comes_back_keeps_what_it_holds() {
    let mut bench = Bench::ready();
    let deployment = bench.released(2);
    let rows = bench.instances(deployment);
    let held = Held::Instance { id: rows[0].id, epoch: rows[0].epoch };
    bench.cell(1, 4_000, &[held]);
    assert_eq!(bench.instances(deployment)[0], rows[0]);
    assert_eq!(bench.targets(), Some((deployment, 1)), "the other one vanished");
    bench.secs(0);
    assert_eq!(bench.states(deployment), ["running", "claimed"]);
}

#[test]
fn a_cell_that_leaves_gives_its_work_away_at_once() {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    let epoch = bench.cell(2, 4_000, &[]);
    assert_eq!(epoch, 1);
    bench.ok(Command::Cell(CellCommand::Leave { id: CellId(1), epoch: 1 }));
    let moved = InstanceState::Claimed { cell: CellId(2) };
    assert_eq!(bench.instances(deployment)[0].state, moved);
}

fn scale(bench: &mut Bench, instances: u32) {
    let (workspace, process) = (name("production"), name("web"));
    bench.ok(Command::Scale { app: APP, workspace, process, instances });
}

#[test]
fn scaling_up_and_down() {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    scale(&mut bench, 3);
    assert_eq!(bench.states(deployment), ["running", "claimed", "claimed"]);
    bench.healthy(deployment);
    assert_eq!(bench.targets(), Some((deployment, 3)));
    scale(&mut bench, 1);
    assert_eq!(bench.states(deployment), ["running", "stopping", "stopping"]);
    assert_eq!(bench.targets(), Some((deployment, 1)));
    let it = bench.state.cell_work(CellId(1)).instances.remove(2);
    assert!(it.copy.stop);
    assert_eq!(bench.state.stop_due(&it), it.row.since.after(DRAIN), "what answered drains");
    bench.gone(deployment);
    assert_eq!(bench.instances(deployment).len(), 1);
    let at = bench.work_job();
    scale(&mut bench, 2);
    let next = bench.deploy(at, 1);
    assert_eq!(bench.instances(next).len(), 2, "what a person set outlives the deployment");
}

#[test]
fn processes_scale_apart_and_only_web_has_targets() {
    let mut bench = Bench::ready();
    let at = bench.work_job();
    let template = |of: &str| ProcessTemplate { name: name(of), spec: process(100), instances: 1 };
    let (build, id) = (BuildId(bench.fresh()), DeploymentId(bench.fresh()));
    bench.ok(Command::Work(WorkCommand::RecordBuild {
        id: build,
        attempt: at,
        source: SOURCE,
        image: Digest([2; 32]),
        processes: vec![template("web"), template("worker")],
    }));
    bench.ok(Command::Work(WorkCommand::Deploy { id, attempt: at, build: None }));
    bench.healthy(id);
    bench.release(at, id);
    bench.complete(at, Outcome::Succeeded);
    let of = |bench: &Bench, process: &str| {
        let row = bench.state.all::<Process>().find(|row| row.name == name(process));
        let row = row.expect("it is there").id;
        let mut rows = bench.instances(id);
        rows.retain(|it| it.process == row);
        rows
    };
    let web = of(&bench, "web");
    let wanted = web[0].id;
    for workers in [3, 0, 2] {
        let (workspace, process) = (name("production"), name("worker"));
        bench.ok(Command::Scale { app: APP, workspace, process, instances: workers });
        bench.healthy(id);
        bench.gone(id);
        assert_eq!(of(&bench, "worker").len(), workers as usize);
        assert_eq!(of(&bench, "web"), web, "{workers} workers");
        let routes = bench.state.routes().routes;
        let targets: Vec<_> =
            routes.iter().flat_map(|route| &route.targets).map(|it| it.instance).collect();
        assert_eq!(targets, [wanted], "{workers} workers");
    }
}

#[test]
fn an_instance_made_again_goes_on_from_its_last_epoch() {
    let mut bench = Bench::ready();
    let deployment = bench.released(2);
    let old = bench.instances(deployment).remove(1);
    scale(&mut bench, 1);
    bench.gone(deployment);
    scale(&mut bench, 2);
    let new = bench.instances(deployment).remove(1);
    assert_eq!(new.id, old.id, "its log goes on");
    assert!(new.epoch > old.epoch, "{} is after {}", new.epoch, old.epoch);
    // What the old one had to say is refused.
    let late = CellCommand::Instance {
        cell: CellId(1),
        instance: old.id,
        epoch: old.epoch,
        report: InstanceReport::Ready { ready: true },
    };
    assert!(matches!(bench.try_apply(Command::Cell(late)), Err(Refusal::Stale { .. })));
}

#[test]
fn an_instance_stopped_while_its_cell_rejects_it_is_gone() {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    scale(&mut bench, 2);
    let row = bench.instances(deployment).remove(1);
    scale(&mut bench, 1);
    assert_eq!(bench.states(deployment), ["running", "stopping"]);
    bench.report(&row, InstanceReport::Reject { reason: "full".to_owned() });
    assert_eq!(bench.states(deployment), ["running"]);
}

#[test]
fn what_does_not_fit_waits_with_a_reason() {
    let mut bench = Bench::new();
    bench.runner(1, &[]);
    bench.cell(1, 150, &[]);
    let at = bench.work_job();
    let deployment = bench.deploy(at, 2);
    assert_eq!(bench.states(deployment), ["claimed", "unclaimed"]);
    let waiting = bench.instances(deployment).remove(1);
    let InstanceState::Unclaimed { reason: Some(reason) } = &waiting.state else {
        panic!("{waiting:?}")
    };
    assert!(reason.contains("memory"), "{reason}");
    bench.cell(2, 150, &[]);
    assert_eq!(bench.states(deployment), ["claimed", "claimed"]);
}

#[test]
fn destroying_withdraws_the_routes_and_stops_everything() {
    let mut bench = Bench::ready();
    let deployment = bench.released(2);
    let at = bench.work_job();
    bench.ok(Command::Work(WorkCommand::Destroy(at)));
    assert_eq!(bench.targets(), None);
    assert_eq!(bench.deployment_state(deployment), DeploymentState::Retired);
    bench.complete(at, Outcome::Succeeded);
    let refused = bench.try_apply(Command::DeleteApp(APP));
    assert!(matches!(refused, Err(Refusal::Conflict(_))), "instances still stop");
    bench.gone(deployment);
    bench.ok(Command::DeleteApp(APP));
    assert_eq!(bench.state.all::<Process>().count(), 0);
    assert_eq!(bench.state.all::<state::Build>().count(), 0);
    assert_eq!(bench.state.all::<state::Deployment>().count(), 0);
}

#[test]
fn an_app_whose_release_wants_nothing_just_now_is_not_deleted() {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    scale(&mut bench, 0);
    bench.gone(deployment);
    let refused = bench.try_apply(Command::DeleteApp(APP));
    assert!(matches!(refused, Err(Refusal::Conflict(_))), "destroy it first");
}

#[test]
fn a_restart_of_the_server_gives_starting_deployments_their_whole_time() {
    let mut bench = Bench::ready();
    let at = bench.work_job();
    let deployment = bench.deploy(at, 1);
    bench.now += 50_000;
    bench.ok(Command::Boot);
    let wanted = Time(bench.now).after(Duration::from_mins(1) + DEPLOY_SLACK);
    let DeploymentState::Starting { deadline } = bench.deployment_state(deployment) else {
        panic!("it starts")
    };
    assert_eq!(deadline, wanted, "its check may take 60 s");
}

#[test]
fn work_needs_a_running_attempt_that_was_not_cancelled() {
    let mut bench = Bench::ready();
    let at = bench.work_job();
    let old = state::Attempt { epoch: at.epoch - 1, ..at };
    assert!(matches!(bench.work(WorkCommand::Destroy(old)), Err(Refusal::Stale { .. })));
    bench.cancel(at.job, false);
    assert!(matches!(bench.work(WorkCommand::Destroy(at)), Err(Refusal::Conflict(_))));
}

#[test]
fn a_re_adopted_instance_may_say_again_where_it_listens() {
    let mut bench = Bench::ready();
    let deployment = bench.released(1);
    let row = bench.instances(deployment).remove(0);
    let InstanceState::Running { address: known, .. } = row.state else { panic!("it runs") };
    bench.report(&row, InstanceReport::Started { address: known });
    assert_eq!(bench.targets(), Some((deployment, 1)));
    let instance = row.id;
    let elsewhere = CellCommand::Instance {
        cell: CellId(1),
        instance,
        epoch: row.epoch,
        report: InstanceReport::Started { address: address(9_999) },
    };
    assert!(bench.try_apply(Command::Cell(elsewhere)).is_err());
    assert_eq!(bench.instance(instance), row);
}
