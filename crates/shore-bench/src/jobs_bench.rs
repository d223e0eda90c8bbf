//! Durable job lifecycles through the real apply loop and SQLite at `synchronous=FULL`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::{JobId, Name, Operation, Outcome, ProjectId, RunnerId, Target};
use runtime::{Ids, Random, Stop, SystemClock, Tasks, mono_now};
use serde_json::{Value, json};
use server::Loop;
use state::{Attempt, Command, JobCommand, JobSpec, NewJob, Reply};
use store::sqlite::SqliteStore;
use tokio::sync::mpsc;

/// Callers at once: the figure's own condition.
const CALLERS: u32 = 256;
/// How long they go on.
const RUN: Duration = Duration::from_secs(5);
/// Commits of the single caller and syncs of the bare file.
const SINGLES: u32 = 500;

pub(crate) fn run() -> Result<Value, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(measure())
}

async fn measure() -> Result<Value, String> {
    let dir = tempfile::tempdir_in(".").map_err(|error| error.to_string())?;
    let store = SqliteStore::open(&dir.path().join("store.db")).map_err(|e| e.to_string())?;
    let apply = Loop::start(Arc::new(store), Arc::new(SystemClock), "localhost");
    let apply = apply.map_err(|error| error.to_string())?;
    let fsync = fsync_us(&dir.path().join("bare"))?;
    let single = single_us(&apply).await?;
    let (lives, seconds) = many(&apply).await?;
    Ok(json!({
        "bench": "jobs",
        "lifecycles_per_s": (lives as f64 / seconds).round(),
        "callers": CALLERS,
        "commands_per_s": (lives as f64 * 4.0 / seconds).round(),
        "single_commit_us": single.round(),
        "fsync_us": fsync.round(),
        "single_commit_to_fsync": single / fsync,
    }))
}

/// The floor: overwriting 4 KiB of a file in place and waiting for the disk, median.
fn fsync_us(path: &Path) -> Result<f64, String> {
    use std::os::unix::fs::FileExt as _;
    let mut file = std::fs::File::create(path).map_err(|error| error.to_string())?;
    let block = [7_u8; 4096];
    for _ in 0..SINGLES {
        file.write_all(&block).map_err(|error| error.to_string())?;
    }
    file.sync_all().map_err(|error| error.to_string())?;
    let mut times = Vec::new();
    for number in 0..SINGLES {
        let started = mono_now();
        let at = u64::from(number) * block.len() as u64;
        file.write_all_at(&block, at).map_err(|error| error.to_string())?;
        file.sync_data().map_err(|error| error.to_string())?;
        times.push(started.elapsed());
    }
    Ok(median_us(times))
}

pub(crate) fn median_us(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

fn spec() -> Result<Arc<JobSpec>, String> {
    Ok(Arc::new(JobSpec {
        project: ProjectId(1),
        app: None,
        workspace: "bench".parse().map_err(|error| format!("{error}"))?,
        operation: Operation::Noop,
        target: Target::Any,
        depends_on: Vec::new(),
        allow_failure: Vec::new(),
        singleton: None,
        idempotency_key: None,
        origin: "bench".to_owned(),
    }))
}

async fn job(apply: &Loop, command: JobCommand) -> Result<Reply, String> {
    apply.apply(Command::Job(command)).await.map_err(|error| error.to_string())
}

async fn online(apply: &Loop, id: RunnerId) -> Result<(), String> {
    let name: Name = "bench".parse().map_err(|error| format!("{error}"))?;
    let (labels, holds) = (BTreeMap::new(), Vec::new());
    let (only_own, token) = (false, None);
    job(apply, JobCommand::RunnerOnline { id, name, labels, only_own, holds, token }).await?;
    Ok(())
}

/// One job's whole life; each step is durable before the next one begins.
async fn life(
    apply: &Loop,
    ids: &Ids,
    spec: &Arc<JobSpec>,
    runner: RunnerId,
) -> Result<(), String> {
    let id = JobId(ids.fresh(&SystemClock));
    let new = NewJob { id, spec: Arc::clone(spec), expires_in: None };
    job(apply, JobCommand::Queue(new)).await?;
    let Reply::Assigned(Some(assigned)) = job(apply, JobCommand::Assign(runner)).await? else {
        return Err("no job was assigned".to_owned());
    };
    let attempt = Attempt { job: assigned.id, epoch: assigned.epoch };
    job(apply, JobCommand::Ack(attempt)).await?;
    job(apply, JobCommand::Complete(attempt, Outcome::Succeeded)).await?;
    Ok(())
}

/// What one command costs a caller who is alone, median.
async fn single_us(apply: &Loop) -> Result<f64, String> {
    let (ids, spec) = (Ids::new(Random::system()), spec()?);
    let mut times = Vec::new();
    for _ in 0..SINGLES {
        let id = JobId(ids.fresh(&SystemClock));
        let new = NewJob { id, spec: Arc::clone(&spec), expires_in: None };
        let started = mono_now();
        job(apply, JobCommand::Queue(new)).await?;
        times.push(started.elapsed());
    }
    Ok(median_us(times))
}

async fn many(apply: &Loop) -> Result<(u64, f64), String> {
    let tasks = Tasks::new(Stop::new());
    let (done, mut counted) = mpsc::channel(CALLERS as usize);
    let started = mono_now();
    let end = started + RUN;
    for caller in 0..CALLERS {
        let (apply, done, spec) = (apply.clone(), done.clone(), spec()?);
        tasks.spawn_ok("caller", async move {
            let lives = caller_lives(&apply, RunnerId(u128::from(caller)), &spec, end).await;
            // The receiver outlives every caller.
            drop(done.send(lives).await);
        });
    }
    drop(done);
    let mut lives = 0;
    while let Some(count) = counted.recv().await {
        lives += count?;
    }
    Ok((lives, started.elapsed().as_secs_f64()))
}

async fn caller_lives(
    apply: &Loop,
    runner: RunnerId,
    spec: &Arc<JobSpec>,
    end: std::time::Instant,
) -> Result<u64, String> {
    let ids = Ids::new(Random::system());
    online(apply, runner).await?;
    let mut lives = 0;
    while mono_now() < end {
        life(apply, &ids, spec, runner).await?;
        lives += 1;
    }
    Ok(lives)
}
