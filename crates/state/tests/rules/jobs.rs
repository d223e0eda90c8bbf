//! The life of one job: acknowledged, renewed, completed, cancelled, lost, expired, archived.

use std::time::Duration;

use model::{Digest, JobId, JobState, Outcome, ProjectId, Role, RunnerId, Target, Time, TokenId};
use state::{
    ACK_TIMEOUT, Attempt, Command, JOB_LEASE, JobCommand, JobSpec, MAX_FINISHED_JOBS,
    MAX_QUEUED_PER_PROJECT, MAX_TEXT, NewJob, NewToken, Refusal, Runner,
};

use crate::bench::{Bench, REASON, failed, name, new_job, noop, up};

fn refused(done: &Result<state::Reply, Refusal>) -> bool {
    matches!(done, Err(Refusal::Stale { .. } | Refusal::Transition(_)))
}

#[test]
fn acknowledged_renewed_and_completed() {
    let mut bench = Bench::ready();
    let job = bench.queue(noop());
    let at = bench.assign(1).expect("it waits");
    assert_eq!((bench.is(job), at.epoch), ("waiting", 1));
    bench.ack(at);
    assert_eq!(bench.is(job), "running");
    assert!(bench.row(job).started_at.is_some());
    for _ in 0..10 {
        bench.secs(15);
        bench.ok(Command::Job(JobCommand::Heartbeat(at)));
    }
    bench.complete(at, Outcome::Succeeded);
    assert_eq!(bench.is(job), "succeeded");
    bench.complete(at, Outcome::Succeeded);
    assert!(refused(&bench.job(JobCommand::Complete(at, failed("late")))), "another end is not");
}

#[test]
fn a_nack_and_a_late_acknowledgement_put_it_back_in_line() {
    for late in [false, true] {
        let mut bench = Bench::ready();
        let job = bench.queue(noop());
        let at = bench.assign(1).expect("it waits");
        if late {
            bench.pass(ACK_TIMEOUT);
        } else {
            bench.ok(Command::Job(JobCommand::Nack(at)));
        }
        assert_eq!((bench.is(job), bench.row(job).epoch), ("queued", at.epoch + 1));
        assert!(bench.row(job).started_at.is_none());
        assert!(refused(&bench.job(JobCommand::Ack(at))), "the offer is void");
        let again = bench.assign(1).expect("it waits again");
        assert!(refused(&bench.job(JobCommand::Ack(at))), "and stays void");
        bench.ack(again);
        assert!(refused(&bench.job(JobCommand::Nack(again))), "it was taken");
    }
}

#[test]
fn an_error_is_kept_and_drops_dependents_and_theirs() {
    let mut bench = Bench::ready();
    let first = bench.queue(noop());
    let allows = |id| noop_after(&[id], &[id]);
    let child = bench.queue(noop_after(&[first], &[]));
    let grandchild = bench.queue(noop_after(&[child], &[]));
    let tolerant = bench.queue(allows(first));
    let mixed = bench.queue(noop_after(&[first, tolerant], &[tolerant]));
    let at = bench.take(1);
    bench.complete(at, failed("exit 1"));
    assert_eq!(bench.row(first).state, JobState::Failed { reason: "exit 1".to_owned() });
    let reason = format!("dependency {first} did not succeed");
    assert_eq!(bench.row(child).state, JobState::Failed { reason });
    for (job, is) in [(grandchild, "failed"), (tolerant, "queued"), (mixed, "failed")] {
        assert_eq!(bench.is(job), is, "{job}");
    }
    assert_eq!(bench.assign(1).map(|at| at.job), Some(tolerant));
}

fn noop_after(depends_on: &[JobId], allow_failure: &[JobId]) -> JobSpec {
    let (depends_on, allow_failure) = (depends_on.to_vec(), allow_failure.to_vec());
    JobSpec { depends_on, allow_failure, ..noop() }
}

#[test]
fn cancelling() {
    let table = [
        // How far it is, whether by force, its state after that.
        ("queued", false, "cancelled"),
        ("queued", true, "cancelled"),
        ("waiting", false, "waiting"),
        ("waiting", true, "cancelled"),
        ("running", false, "running"),
        ("running", true, "cancelled"),
        ("succeeded", false, "succeeded"),
        ("succeeded", true, "succeeded"),
    ];
    for (far, force, after) in table {
        let mut bench = Bench::ready();
        let job = bench.queue(up());
        let child = bench.queue(noop_after(&[job], &[]));
        let next = bench.queue(up());
        match far {
            "waiting" => drop(bench.assign(1)),
            "running" => drop(bench.take(1)),
            "succeeded" => {
                let at = bench.take(1);
                bench.complete(at, Outcome::Succeeded);
            }
            _ => {}
        }
        assert_eq!(bench.is(job), far);
        bench.cancel(job, force);
        assert_eq!(bench.is(job), after, "{far}, by force: {force}");
        let asked = bench.row(job).cancel.is_some();
        assert_eq!(asked, far == after && far != "succeeded", "{far}, by force: {force}");
        let dropped = after == "cancelled";
        assert_eq!(bench.is(child) == "failed", dropped, "{far}, by force: {force}");
        // The app is free again as soon as the job has ended.
        let free = bench.assign(1).map(|at| at.job);
        let over = after == "cancelled" || far == "succeeded";
        assert_eq!(free.is_some(), over, "{far}, by force: {force}, next is {next}");
    }
}

#[test]
fn a_cancelled_offer_ends_instead_of_going_back_in_line() {
    for late in [false, true] {
        let mut bench = Bench::ready();
        let job = bench.queue(noop());
        let at = bench.assign(1).expect("it waits");
        bench.cancel(job, false);
        if late {
            bench.pass(ACK_TIMEOUT);
        } else {
            bench.ok(Command::Job(JobCommand::Nack(at)));
        }
        assert_eq!(bench.row(job).state, JobState::Cancelled { reason: REASON.to_owned() });
    }
}

#[test]
fn a_cancellation_outlives_the_acknowledgement_it_races_with() {
    let mut bench = Bench::ready();
    let job = bench.queue(noop());
    let at = bench.assign(1).expect("it waits");
    bench.cancel(job, false);
    bench.ack(at);
    assert_eq!(bench.row(job).cancel.as_deref(), Some(REASON));
}

#[test]
fn a_silent_runner_loses_its_job() {
    let mut bench = Bench::ready();
    let job = bench.queue(noop());
    let at = bench.take(1);
    bench.pass(JOB_LEASE.saturating_sub(Duration::from_millis(1)));
    assert_eq!(bench.is(job), "running");
    bench.ok(Command::Job(JobCommand::Heartbeat(at)));
    bench.pass(JOB_LEASE.saturating_sub(Duration::from_millis(1)));
    assert_eq!(bench.is(job), "running");
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.is(job), "failed");
    assert!(refused(&bench.job(JobCommand::Complete(at, Outcome::Succeeded))));
}

#[test]
fn a_restart_of_the_server_starts_leases_and_offers_afresh() {
    let mut bench = Bench::ready();
    let running = bench.queue(noop());
    let waiting = bench.queue(noop());
    bench.take(1);
    bench.assign(1).expect("it waits");
    bench.now += 3_600_000;
    bench.ok(Command::Boot);
    bench.ok(Command::Tick);
    assert_eq!((bench.is(running), bench.is(waiting)), ("running", "waiting"));
    bench.secs(60);
    assert_eq!((bench.is(running), bench.is(waiting)), ("failed", "queued"));
}

#[test]
fn expiry_ends_what_no_runner_took() {
    for assigned in [false, true] {
        let mut bench = Bench::ready();
        let id = JobId(77);
        let expires_in = Some(Duration::from_secs(5));
        let new = NewJob { expires_in, ..new_job(id.0, noop()) };
        bench.ok(Command::Job(JobCommand::Queue(new)));
        if assigned {
            bench.assign(1).expect("it waits");
        }
        bench.secs(5);
        assert_eq!(bench.is(id), "failed", "assigned: {assigned}");
    }
    let mut bench = Bench::ready();
    let expires_in = Some(Duration::from_secs(5));
    let new = NewJob { expires_in, ..new_job(77, noop()) };
    bench.ok(Command::Job(JobCommand::Queue(new)));
    bench.take(1);
    bench.secs(6);
    assert_eq!(bench.is(JobId(77)), "running", "one that runs does not expire");
}

#[test]
fn a_runner_that_comes_back_keeps_what_it_holds() {
    let mut bench = Bench::ready();
    let (kept, lost, offered) = (bench.queue(noop()), bench.queue(noop()), bench.queue(noop()));
    let at = bench.take(1);
    bench.take(1);
    bench.assign(1).expect("the third");
    bench.runner_with(1, &[], false, &[at]);
    assert_eq!(bench.is(kept), "running");
    assert_eq!(bench.is(lost), "failed");
    assert_eq!(bench.is(offered), "queued");
}

#[test]
fn holding_an_old_epoch_is_holding_nothing() {
    let mut bench = Bench::ready();
    let job = bench.queue(noop());
    let at = bench.take(1);
    bench.runner_with(1, &[], false, &[Attempt { epoch: at.epoch - 1, ..at }]);
    assert_eq!(bench.is(job), "failed");
}

#[test]
fn the_late_end_of_an_old_stream_does_not_take_the_new_one_offline() {
    let mut bench = Bench::ready();
    let id = RunnerId(1);
    let online = |bench: &Bench| bench.state.get::<Runner>(id).is_some_and(|row| row.online);
    bench.runner(1, &[]);
    let job = bench.queue(noop());
    let at = bench.assign(1).expect("it waits");
    bench.ok(Command::Job(JobCommand::RunnerOffline(id)));
    assert!(online(&bench), "the old stream ended, the new one is open");
    bench.ack(at);
    assert_eq!(bench.is(job), "running");
    bench.ok(Command::Job(JobCommand::RunnerOffline(id)));
    assert!(!online(&bench));
    bench.runner(1, &[]);
    bench.runner(1, &[]);
    bench.ok(Command::Boot);
    assert!(!online(&bench), "no stream survives a restart of the server");
    bench.runner(1, &[]);
    bench.ok(Command::Job(JobCommand::RunnerOffline(id)));
    assert!(!online(&bench));
}

#[test]
fn ended_jobs_move_to_the_history_and_the_newest_stay_at_hand() {
    let mut bench = Bench::ready();
    bench.state.forget_changes();
    let mut archived = Vec::new();
    let mut jobs = Vec::new();
    for _ in 0..MAX_FINISHED_JOBS + 3 {
        jobs.push(bench.queue(noop()));
        let at = bench.take(1);
        bench.complete(at, Outcome::Succeeded);
        let changes = bench.state.take_changes().expect("rows render");
        assert!(changes.rows.iter().all(|row| row.body.is_none()), "{:?}", changes.rows);
        archived.extend(changes.archived);
    }
    let ids: Vec<u128> = archived.iter().map(|row| row.id).collect();
    assert_eq!(ids, jobs.iter().map(|id| id.0).collect::<Vec<_>>());
    assert!(archived.iter().all(|row| row.kind == "job"));
    let known: Vec<JobId> = bench.state.all::<state::Job>().map(|job| job.id).collect();
    assert_eq!(known, jobs.split_off(3));

    let mut again = state::State::new("localhost");
    let last = archived.pop().expect("there are some");
    again.load_ended(&last.body).expect("it loads");
    assert_eq!(again.all::<state::Job>().count(), 1);
    assert!(again.take_changes().expect("rows render").archived.is_empty(), "once is enough");
    again.load(last.kind, &last.body).expect("an earlier version kept it among the rows");
    let moved = again.take_changes().expect("rows render");
    assert_eq!(moved.archived, [last]);
    assert!(moved.rows.iter().all(|row| row.body.is_none()));
}

#[test]
fn a_job_brings_few_words_and_waits_with_few_others() {
    let mut bench = Bench::ready();
    let queue = |bench: &mut Bench, spec| {
        let new = new_job(bench.fresh(), spec);
        bench.job(JobCommand::Queue(new)).map(drop)
    };
    let labels = |count: usize, word: &str| {
        let labels = (0..count).map(|at| (format!("{word}{at}"), String::new())).collect();
        JobSpec { target: Target::Labels(labels), ..noop() }
    };
    let long = "x".repeat(MAX_TEXT + 1);
    let refused = [
        JobSpec { idempotency_key: Some(long.clone()), ..noop() },
        JobSpec { origin: "a\u{1b}[2J".to_owned(), ..noop() },
        labels(17, "a"),
        labels(1, &long),
    ];
    for spec in refused {
        let refusal = queue(&mut bench, spec).expect_err("it is too much");
        assert!(matches!(refusal, Refusal::Invalid(_)), "{refusal}");
    }
    queue(&mut bench, labels(16, "a")).expect("that is allowed");
    for _ in 1..MAX_QUEUED_PER_PROJECT {
        queue(&mut bench, noop()).expect("there is room");
    }
    let refusal = queue(&mut bench, noop()).expect_err("the project's line is full");
    assert!(matches!(refusal, Refusal::Conflict(_)), "{refusal}");
    let other = JobSpec { project: ProjectId(99), ..noop() };
    queue(&mut bench, other).expect("another project's line is its own");
}

#[test]
fn a_job_depends_on_jobs_of_its_project() {
    let mut bench = Bench::ready();
    let first = bench.queue(noop());
    let spec = JobSpec { project: ProjectId(99), depends_on: vec![first], ..noop() };
    let new = new_job(bench.fresh(), spec);
    let refusal = bench.job(JobCommand::Queue(new)).expect_err("not its own");
    assert!(matches!(refusal, Refusal::NotFound { .. }), "{refusal}");
}

#[test]
fn a_runner_belongs_to_the_token_it_joined_with() {
    let mut bench = Bench::new();
    for id in [1, 2] {
        bench.ok(Command::CreateToken(NewToken {
            id: TokenId(id),
            role: Role::Runner,
            project: None,
            hash: Digest([u8::try_from(id).expect("small"); 32]),
            label: String::new(),
            ttl: None,
        }));
    }
    let join = |id, token| {
        let (id, name, token) = (RunnerId(id), name("runner"), Some(TokenId(token)));
        let (labels, holds) = (std::collections::BTreeMap::new(), Vec::new());
        JobCommand::RunnerOnline { id, name, labels, only_own: false, holds, token }
    };
    bench.ok(Command::Job(join(7, 1)));
    bench.ok(Command::Job(join(7, 1)));
    bench.ok(Command::Job(join(8, 2)));
    let job = bench.queue(noop());
    let at = bench.assign(7).expect("it waits");
    bench.ack(at);
    assert_eq!(bench.state.token_at_work(job), Some(TokenId(1)));
    let refused = bench.job(join(7, 2)).expect_err("it is another's").to_string();
    assert!(refused.contains("belongs to another token"), "{refused}");
    assert_eq!(bench.is(job), "running", "the job of the first goes on");
    let now = Time(bench.now);
    assert!(bench.state.runner_may_join(now, RunnerId(7), TokenId(2)).is_err());
    bench.ok(Command::RevokeToken(TokenId(1)));
    bench.ok(Command::Job(join(7, 2)));
    assert!(bench.job(join(7, 1)).is_err(), "it moved");
}

#[test]
fn a_runner_reports_on_its_own_jobs_only() {
    let mut bench = Bench::ready();
    bench.runner(2, &[]);
    let over =
        |runner, report| JobCommand::Over { runner: RunnerId(runner), report: Box::new(report) };
    let reports = |at| {
        let done = JobCommand::Complete(at, Outcome::Succeeded);
        [JobCommand::Ack(at), JobCommand::Nack(at), JobCommand::Heartbeat(at), done]
    };
    let job = bench.queue(noop());
    let at = bench.assign(1).expect("it waits");
    for acked in [false, true] {
        if acked {
            bench.job(over(1, JobCommand::Ack(at))).expect("it is its own");
        }
        for report in reports(at) {
            let shown = format!("{report:?}");
            bench.state.forget_changes();
            let refused = bench.job(over(2, report));
            assert!(matches!(refused, Err(Refusal::Stale { .. })), "{shown}: {refused:?}");
            assert_eq!(bench.state.take_changes().expect("rows render").rows, [], "{shown}");
        }
    }
    bench.job(over(1, JobCommand::Heartbeat(at))).expect("it is its own");
    let cancel = JobCommand::Cancel { job, force: true, reason: "x".to_owned() };
    let refused = bench.job(over(1, cancel));
    assert!(matches!(refused, Err(Refusal::Invalid(_))), "that is no report");
    for _ in 0..2 {
        let done = JobCommand::Complete(at, Outcome::Succeeded);
        bench.job(over(1, done)).expect("also when it did not hear the answer");
    }
    assert_eq!(bench.is(job), "succeeded");
}
