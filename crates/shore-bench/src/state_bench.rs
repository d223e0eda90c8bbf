//! How many job transitions the state applies per second, in memory, on one core.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{JobId, Name, Operation, Outcome, ProjectId, RunnerId, Target, Time};
use serde_json::{Value, json};
use state::{Attempt, Command, JobCommand, JobSpec, NewJob, Refusal, Reply, State};

/// Jobs that go through their whole life: enqueue, assign, acknowledge, complete.
const LIVES: u64 = 500_000;
/// Jobs that wait in line meanwhile.
const BACKLOG: u64 = 1_000;
/// Commands between two drains of the changed rows, as in a batch of the apply loop.
const BATCH: u64 = 256;

pub(crate) fn run() -> Result<Value, String> {
    let mut state = State::new("localhost");
    let runner = RunnerId(1);
    let name: Name = "bench".parse().map_err(|error| format!("{error}"))?;
    let spec = Arc::new(JobSpec {
        project: ProjectId(1),
        app: None,
        workspace: name.clone(),
        operation: Operation::Noop,
        target: Target::Any,
        depends_on: Vec::new(),
        allow_failure: Vec::new(),
        singleton: None,
        idempotency_key: None,
        origin: "bench".to_owned(),
    });
    let online = JobCommand::RunnerOnline {
        id: runner,
        name,
        labels: BTreeMap::new(),
        only_own: false,
        holds: Vec::new(),
        token: None,
    };
    apply(&mut state, 0, online)?;
    for id in 0..BACKLOG {
        enqueue(&mut state, id, &spec)?;
    }
    let started = runtime::mono_now();
    for id in BACKLOG..BACKLOG + LIVES {
        enqueue(&mut state, id, &spec)?;
        let Reply::Assigned(Some(job)) = apply(&mut state, id, JobCommand::Assign(runner))? else {
            return Err("no job was assigned".to_owned());
        };
        let attempt = Attempt { job: job.id, epoch: job.epoch };
        apply(&mut state, id, JobCommand::Ack(attempt))?;
        apply(&mut state, id, JobCommand::Complete(attempt, Outcome::Succeeded))?;
        if id % (BATCH / 4) == 0 {
            state.forget_changes();
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let transitions = (LIVES * 4) as f64;
    Ok(json!({
        "bench": "state",
        "transitions_per_s": (transitions / seconds).round(),
        "transitions": LIVES * 4,
        "seconds": seconds,
    }))
}

fn apply(state: &mut State, now: u64, command: JobCommand) -> Result<Reply, String> {
    state.apply(Time(now), Command::Job(command)).map_err(|error: Refusal| error.to_string())
}

fn enqueue(state: &mut State, id: u64, spec: &Arc<JobSpec>) -> Result<Reply, String> {
    let new = NewJob { id: JobId(u128::from(id)), spec: Arc::clone(spec), expires_in: None };
    apply(state, id, JobCommand::Queue(new))
}
