//! Who is next: order, targets, exclusion, dependencies, singletons, keys.

use model::{JobId, JobState, Outcome, RunnerId, Target};
use state::{Command, JobCommand, JobSpec, MAX_DEPENDENCIES, Refusal, Reply};

use crate::bench::{Bench, labels, name, new_job, noop, up};

fn to(target: Target) -> JobSpec {
    JobSpec { target, ..noop() }
}

fn after(depends_on: &[JobId]) -> JobSpec {
    JobSpec { depends_on: depends_on.to_vec(), ..noop() }
}

#[test]
fn first_in_first_out() {
    let mut bench = Bench::ready();
    assert_eq!(bench.assign(1), None);
    let jobs: Vec<JobId> = (0..5).map(|_| bench.queue(noop())).collect();
    let taken: Vec<JobId> =
        std::iter::from_fn(|| bench.assign(1)).map(|attempt| attempt.job).collect();
    assert_eq!(taken, jobs);
}

#[test]
fn an_unknown_runner_gets_nothing() {
    let mut bench = Bench::new();
    let refused = bench.job(JobCommand::Assign(RunnerId(9)));
    assert!(matches!(refused, Err(Refusal::NotFound { .. })));
}

/// Labels of a runner.
type Labels = &'static [(&'static str, &'static str)];

#[test]
fn targets() {
    let us = || Target::Labels(labels(&[("region", "us")]));
    let both = || Target::Labels(labels(&[("region", "us"), ("disk", "fast")]));
    let table: [(Labels, bool, Target, bool); 11] = [
        (&[], false, Target::Any, true),
        (&[], true, Target::Any, false),
        (&[], true, Target::Runner(RunnerId(1)), true),
        (&[], false, Target::Runner(RunnerId(1)), true),
        (&[], false, Target::Runner(RunnerId(2)), false),
        (&[("region", "us")], false, us(), true),
        (&[("region", "us"), ("more", "x")], false, us(), true),
        (&[("region", "eu")], false, us(), false),
        (&[], false, us(), false),
        (&[("region", "us")], false, both(), false),
        (&[("region", "us")], true, us(), false),
    ];
    for (pairs, only_own, target, takes) in table {
        let mut bench = Bench::new();
        bench.runner_with(1, pairs, only_own, &[]);
        let shown = format!("{pairs:?}, only own: {only_own}, {target:?}");
        bench.queue(to(target));
        assert_eq!(bench.assign(1).is_some(), takes, "{shown}");
    }
}

#[test]
fn a_job_for_somebody_else_is_passed_over() {
    let mut bench = Bench::new();
    bench.runner(1, &[("zone", "a")]);
    bench.runner(2, &[]);
    let for_two = bench.queue(to(Target::Runner(RunnerId(2))));
    let labelled = bench.queue(to(Target::Labels(labels(&[("zone", "b")]))));
    let any = bench.queue(noop());
    assert_eq!(bench.assign(1).map(|at| at.job), Some(any));
    assert_eq!(bench.assign(1), None);
    assert_eq!(bench.assign(2).map(|at| at.job), Some(for_two));
    assert_eq!(bench.assign(2), None);
    assert_eq!(bench.is(labelled), "queued");
}

#[test]
fn the_longest_wait_wins_over_all_kinds_of_target() {
    let mut bench = Bench::new();
    bench.runner(1, &[("zone", "a")]);
    let labelled = bench.queue(to(Target::Labels(labels(&[("zone", "a")]))));
    let any = bench.queue(noop());
    let own = bench.queue(to(Target::Runner(RunnerId(1))));
    let taken: Vec<JobId> =
        std::iter::from_fn(|| bench.assign(1)).map(|attempt| attempt.job).collect();
    assert_eq!(taken, [labelled, any, own]);
}

#[test]
fn jobs_that_change_the_same_app_in_the_same_workspace_exclude_each_other() {
    let mut bench = Bench::ready();
    let first = bench.queue(up());
    let second = bench.queue(up());
    let elsewhere = bench.queue(JobSpec { workspace: name("staging"), ..up() });
    let at = bench.assign(1).expect("the first");
    assert_eq!(at.job, first);
    let other = bench.assign(1).expect("the one in another workspace");
    assert_eq!(other.job, elsewhere);
    assert_eq!(bench.assign(1), None);
    let why = bench.state.why_queued(&bench.row(second)).expect("it waits");
    assert!(why.contains(&first.to_string()), "{why}");
    let before = bench.row(second);
    bench.ack(at);
    bench.complete(at, Outcome::Succeeded);
    assert_eq!(bench.assign(1).map(|at| at.job), Some(second));
    assert_eq!(bench.state.why_queued(&before), None, "it does not wait for itself");
}

#[test]
fn dependencies_come_first_all_of_them() {
    let mut bench = Bench::ready();
    let (first, second) = (bench.queue(noop()), bench.queue(noop()));
    let last = bench.queue(after(&[first, second]));
    let (one, two) = (bench.take(1), bench.take(1));
    assert_eq!(bench.assign(1), None);
    bench.complete(one, Outcome::Succeeded);
    assert_eq!(bench.assign(1), None, "the second has not ended");
    let why = bench.state.why_queued(&bench.row(last)).expect("it waits");
    assert!(why.contains(&second.to_string()), "{why}");
    bench.complete(two, Outcome::Succeeded);
    assert_eq!(bench.assign(1).map(|at| at.job), Some(last));
}

#[test]
fn what_dependencies_may_not_be() {
    let mut bench = Bench::ready();
    let first = bench.queue(noop());
    let unknown = bench.job(JobCommand::Queue(new_job(5, after(&[JobId(4)]))));
    assert!(matches!(unknown, Err(Refusal::NotFound { .. })));
    let stray = JobSpec { allow_failure: vec![first], ..noop() };
    let stray = bench.job(JobCommand::Queue(new_job(5, stray)));
    assert!(matches!(stray, Err(Refusal::Invalid(_))));
    let many = vec![first; MAX_DEPENDENCIES + 1];
    let many = bench.job(JobCommand::Queue(new_job(5, after(&many))));
    assert!(matches!(many, Err(Refusal::Invalid(_))));
    let twice = bench.job(JobCommand::Queue(new_job(first.0, noop())));
    assert!(matches!(twice, Err(Refusal::Conflict(_))));
}

#[test]
fn several_at_once_in_any_order_but_not_in_a_cycle() {
    let mut bench = Bench::ready();
    let all =
        vec![new_job(3, after(&[JobId(2)])), new_job(1, noop()), new_job(2, after(&[JobId(1)]))];
    let Ok(Reply::Jobs(rows)) = bench.job(JobCommand::QueueAll(all)) else { panic!("refused") };
    assert_eq!(rows.iter().map(|row| row.id.0).collect::<Vec<_>>(), [3, 1, 2]);
    for wanted in 1..=3 {
        let at = bench.take(1);
        assert_eq!(at.job, JobId(wanted));
        bench.complete(at, Outcome::Succeeded);
    }
    let cycle =
        vec![new_job(7, noop()), new_job(8, after(&[JobId(9)])), new_job(9, after(&[JobId(8)]))];
    assert!(matches!(bench.job(JobCommand::QueueAll(cycle)), Err(Refusal::Invalid(_))));
    assert_eq!(bench.assign(1), None, "none of them was queued");
}

/// Why a cancelled job was.
fn ended_because(bench: &Bench, job: JobId) -> String {
    match &bench.row(job).state {
        JobState::Cancelled { reason } => reason.clone(),
        other => panic!("{other:?}"),
    }
}

fn single() -> JobSpec {
    JobSpec { singleton: Some("one".to_owned()), ..noop() }
}

#[test]
fn a_singleton_takes_the_place_of_the_queued_one() {
    let mut bench = Bench::ready();
    let old = bench.queue(single());
    let between = bench.queue(noop());
    let new = bench.queue(single());
    assert_eq!(bench.is(old), "cancelled");
    assert_eq!(ended_because(&bench, old), format!("job {new}, which is newer, took its place"));
    assert!(bench.row(old).ended_at.is_some());
    assert_eq!(bench.row(new).queued_at, bench.row(old).queued_at);
    assert_eq!(bench.assign(1).map(|at| at.job), Some(new));
    assert_eq!(bench.assign(1).map(|at| at.job), Some(between));
}

#[test]
fn a_singleton_leaves_ended_ones_alone_and_asks_the_running_one_to_stop() {
    let mut bench = Bench::ready();
    let ended = bench.queue(single());
    let at = bench.take(1);
    bench.complete(at, Outcome::Succeeded);
    let running = bench.queue(single());
    let at = bench.take(1);
    let new = bench.queue(single());
    assert_eq!(bench.is(ended), "succeeded");
    assert_eq!(bench.is(running), "running");
    assert!(bench.row(running).cancel.is_some());
    assert_eq!(bench.is(new), "queued");
    let stopped = || Outcome::Cancelled { reason: "it was cancelled".to_owned() };
    bench.complete(at, stopped());
    let why = format!("job {new}, which is newer, took its place");
    assert_eq!(ended_because(&bench, running), why, "not what its runner says");
    bench.complete(at, stopped());
    assert_eq!(ended_because(&bench, running), why, "also when the runner says it again");
}

#[test]
fn a_singleton_that_depends_on_the_one_it_replaces_does_not_wait_for_ever() {
    let mut bench = Bench::ready();
    let old = bench.queue(single());
    let new = bench.queue(JobSpec { depends_on: vec![old], ..single() });
    assert_eq!(bench.is(old), "cancelled");
    assert_eq!(bench.assign(1).map(|at| at.job), Some(new));
}

#[test]
fn the_same_key_is_the_same_job() {
    let mut bench = Bench::ready();
    let keyed = || JobSpec { idempotency_key: Some("key".to_owned()), ..noop() };
    let first = bench.queue(keyed());
    assert_eq!(bench.queue(keyed()), first);
    let at = bench.take(1);
    assert_eq!(bench.assign(1), None);
    bench.complete(at, Outcome::Succeeded);
    assert_eq!(bench.queue(keyed()), first, "also when it has ended");
}

#[test]
fn why_a_job_waits_names_what_is_missing() {
    let mut bench = Bench::new();
    let job = bench.queue(to(Target::Labels(labels(&[("gpu", "yes")]))));
    let why = |bench: &Bench| bench.state.why_queued(&bench.row(job)).expect("it waits");
    assert!(why(&bench).contains("no runner is connected"));
    bench.runner(1, &[]);
    assert!(why(&bench).contains("gpu=yes"));
    bench.runner(2, &[("gpu", "yes")]);
    assert!(why(&bench).contains("busy"));
    bench.ok(Command::Job(JobCommand::Assign(RunnerId(2))));
    assert_eq!(bench.state.why_queued(&bench.row(job)), None);
}
