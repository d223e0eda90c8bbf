//! `shore job`, and the commands that queue one: deploy, release, rollback, destroy.

use std::time::Duration;

use api::http_types::{AppStatus, CancelJob, DeploymentView, JobView, LogLine, QueueJob};
use api::{Client, ClientError};
use futures_util::StreamExt as _;
use model::{JobId, Name, Operation};
use runtime::{Backoff, Random};

use super::Shell;
use super::access::now;
use super::apps::{Which, status_of, unconfirmed};
use crate::args::{AppArgs, AppOnly, DeployArgs, JobCommand, ReleaseArgs, RestartArgs, StopArgs};
use crate::error::{CliError, ErrorKind, Result};
use crate::output::{Output, ago};

/// How often a cut connection is opened again before giving up.
const MAX_RECONNECTS: u32 = 30;
/// How long instances that were destroyed may take to end: longer than any grace they usually have.
const END_LIMIT: Duration = Duration::from_mins(2);
/// How often we look whether they have.
const END_LOOK: Duration = Duration::from_millis(200);

pub(super) async fn job(shell: &Shell, command: JobCommand) -> Result<()> {
    let client = shell.client()?;
    match command {
        JobCommand::List { project, app, state, limit } => {
            let mut path = format!("/v1/jobs?limit={limit}");
            for (key, value) in [("project", project), ("app", app)] {
                path += &value.map_or_else(String::new, |value| format!("&{key}={value}"));
            }
            // States are words of letters; anything else would match nothing.
            let state =
                state.map(|s| s.chars().filter(char::is_ascii_alphabetic).collect::<String>());
            path += &state.map_or_else(String::new, |state| format!("&state={state}"));
            let list: Vec<JobView> = client.get(&path).await?;
            let header = ["id", "what", "app", "state", "queued", "why"];
            shell.output.table(&list, &header, "there are no jobs", row);
            Ok(())
        }
        JobCommand::Show { job } => {
            let view: JobView = client.get(&format!("/v1/jobs/{job}")).await?;
            shell.output.value(&view, || row(&view).join("  "));
            Ok(())
        }
        JobCommand::Attach { job } => {
            let ended = follow(&client, shell.output, job).await?;
            finish(&ended)
        }
        JobCommand::Cancel { job, force } => {
            let path = format!("/v1/jobs/{job}");
            let view: JobView = client.get(&path).await?;
            if view.ended {
                let message = format!("cannot cancel job {job}: it has ended already");
                return Err(CliError::new(ErrorKind::Conflict, message)
                    .hint(format!("it is {}: see `shore job show {job}`", view.state)));
            }
            let cancel = CancelJob { force, reason: None };
            client.post::<_, ()>(&format!("{path}/cancel"), &cancel).await?;
            let view: JobView = client.get(&path).await?;
            shell.output.done(&view, &format!("job {job} is asked to stop"));
            Ok(())
        }
    }
}

fn row(job: &JobView) -> Vec<String> {
    let app = job
        .app
        .as_ref()
        .map_or_else(|| job.project.to_string(), |app| format!("{}/{app}", job.project));
    let why = job.reason.clone().or_else(|| job.why_queued.clone()).unwrap_or_default();
    vec![
        job.id.to_string(),
        job.operation.name().to_owned(),
        app,
        job.state.clone(),
        ago(now(), job.queued_at),
        why,
    ]
}

/// Shows a job until it ends; a cut connection is opened again where it was.
pub(crate) async fn follow(client: &Client, output: Output, job: JobId) -> Result<JobView> {
    let random = Random::system();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
    let mut resume: Option<String> = None;
    let mut failures = 0;
    loop {
        match follow_once(client, output, job, &mut resume).await {
            Ok(Some(ended)) => return Ok(ended),
            Ok(None) => failures = 0,
            Err(error) if !error.is_transient() || failures >= MAX_RECONNECTS => {
                let hint = format!("the job goes on: follow it with `shore job attach {job}`");
                return Err(CliError::from(error).hint(hint));
            }
            Err(_) => failures += 1,
        }
        runtime::sleep(backoff.next_delay(&random)).await;
    }
}

async fn follow_once(
    client: &Client,
    output: Output,
    job: JobId,
    resume: &mut Option<String>,
) -> std::result::Result<Option<JobView>, ClientError> {
    let path = format!("/v1/jobs/{job}/events");
    let mut events = Box::pin(client.events(&path, resume.as_deref()).await?);
    while let Some(event) = events.next().await {
        let event = event?;
        match event.name.as_str() {
            "log" => {
                if let Ok(line) = serde_json::from_str::<LogLine>(&event.data) {
                    output.job_line(&line);
                }
            }
            "skipped" => output.say("some lines are not kept any more"),
            "job" => {
                if let Ok(view) = serde_json::from_str::<JobView>(&event.data) {
                    output.job_state(&view);
                }
            }
            "end" => return Ok(serde_json::from_str(&event.data).ok()),
            _ => {}
        }
        *resume = event.id.or_else(|| resume.take());
    }
    Ok(None)
}

/// An ended job as the command's result.
pub(crate) fn finish(job: &JobView) -> Result<()> {
    if job.state == "succeeded" {
        return Ok(());
    }
    let reason = job.reason.clone().unwrap_or_default();
    let message = format!("job {} ({}) {}: {reason}", job.id, job.operation.name(), job.state);
    Err(CliError::new(ErrorKind::Failed, message)
        .hint(format!("look at it again with `shore job attach {}`", job.id)))
}

/// Queues an operation on an app and follows it to its end.
pub(crate) async fn queue_and_follow(
    shell: &Shell,
    client: &Client,
    (which, workspace): (&Which, &Name),
    operation: Operation,
    goes_on: GoesOn,
) -> Result<()> {
    let supersede = matches!(operation, Operation::Up { .. });
    let queue = QueueJob {
        project: which.project.clone(),
        app: Some(which.app.clone()),
        workspace: Some(workspace.clone()),
        operation,
        target: None,
        depends_on: Vec::new(),
        allow_failure: Vec::new(),
        supersede,
        idempotency_key: None,
        expires_ms: None,
        origin: Some("shore".to_owned()),
    };
    let job: JobView = client.post("/v1/jobs", &queue).await?;
    let followed = follow(client, shell.output, job.id);
    let ended = match goes_on {
        GoesOn::No => followed.await?,
        GoesOn::Yes => tokio::select! {
            ended = followed => ended?,
            () = crate::roles::interrupted() => return Err(left(&job)),
        },
    };
    finish(&ended)
}

/// Whether a job goes on when the one who follows it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GoesOn {
    /// The server goes on, too.
    Yes,
    /// The server ends with this program.
    No,
}

/// Somebody has seen enough of a job.
fn left(job: &JobView) -> CliError {
    let id = job.id;
    let message = format!("job {id} ({}) goes on on the server", job.operation.name());
    let hint =
        format!("follow it with `shore job attach {id}`, end it with `shore job cancel {id}`");
    CliError::new(ErrorKind::Interrupted, message).hint(hint)
}

async fn change(shell: &Shell, args: &AppArgs, operation: Operation) -> Result<()> {
    let client = shell.client()?;
    let which = Which::find(args, None)?;
    let place = (&which, &args.workspace);
    queue_and_follow(shell, &client, place, operation, GoesOn::Yes).await
}

pub(super) async fn deploy(shell: &Shell, args: DeployArgs) -> Result<()> {
    change(shell, &args.app, Operation::Deploy { build: args.build }).await
}

pub(super) async fn restart(shell: &Shell, args: RestartArgs) -> Result<()> {
    if let Some(instance) = args.instance {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        if !instance.chars().all(plain) {
            return Err(CliError::invalid(format!("`{instance}` is no instance, as `web.0` is")));
        }
        let which = Which::find(&args.app, None)?;
        let rest = format!("instances/{instance}/restart?");
        let path = which.path(&rest, &args.app.workspace);
        shell.client()?.post::<_, ()>(&path, &serde_json::json!({})).await?;
        let restarting = serde_json::json!({ "event": "restarting", "instance": instance });
        shell.output.done(&restarting, &format!("instance {instance} is being restarted"));
        return Ok(());
    }
    change(shell, &args.app, Operation::Restart).await
}

pub(super) async fn release(shell: &Shell, args: ReleaseArgs) -> Result<()> {
    let status = status_of(shell, &args.app).await?;
    let wanted = status.deployments.iter().find(|it| it.number == args.deployment);
    let Some(deployment) = wanted.map(|it| it.id) else {
        let (project, app) = (&status.app.project, &status.app.name);
        let message = format!("there is no deployment {} of {project}/{app}", args.deployment);
        let known: Vec<String> =
            status.deployments.iter().map(|it| it.number.to_string()).collect();
        let hint = match known.as_slice() {
            [] => "there are none yet: `shore up` makes one".to_owned(),
            known => format!("there are {}: see `shore status --all`", known.join(", ")),
        };
        return Err(CliError::new(ErrorKind::NotFound, message).hint(hint));
    };
    change(shell, &args.app, Operation::Release { deployment }).await
}

pub(super) async fn rollback(shell: &Shell, args: AppOnly) -> Result<()> {
    let status = status_of(shell, &args.app).await?;
    let deployment = previous(&status).ok_or_else(|| nothing_before(&status))?;
    change(shell, &args.app, Operation::Release { deployment }).await
}

/// Why there is no way back, and what there is instead.
fn nothing_before(status: &AppStatus) -> CliError {
    let (project, app) = (&status.app.project, &status.app.name);
    let released = status.deployments.iter().any(|it| it.released);
    let message = if released {
        format!("cannot roll back {project}/{app}: there is no earlier deployment that ran")
    } else {
        format!("cannot roll back {project}/{app}: nothing is released")
    };
    let hint = match status.deployments.iter().find(|it| ran(it)) {
        Some(last) if !released => format!("`shore release {}` brings it back", last.number),
        Some(_) | None => "list deployments with `shore status --all`".to_owned(),
    };
    CliError::new(ErrorKind::NotFound, message).hint(hint)
}

fn ran(deployment: &DeploymentView) -> bool {
    matches!(deployment.state.as_str(), "ready" | "retired")
}

/// The newest deployment before the released one that was healthy once.
fn previous(status: &AppStatus) -> Option<model::DeploymentId> {
    let released = status.deployments.iter().find(|it| it.released)?.number;
    let mut earlier = status.deployments.iter().filter(|it| it.number < released);
    earlier.find(|it| ran(it)).map(|it| it.id)
}

pub(super) async fn destroy(shell: &Shell, args: StopArgs) -> Result<()> {
    let StopArgs { destroy: args, no_wait } = args;
    let which = Which::find(&args.app, None)?;
    if !args.yes {
        let message = format!(
            "this stops {}/{} in {} and withdraws its routes",
            which.project, which.app, args.app.workspace
        );
        return Err(unconfirmed(message));
    }
    let (client, workspace) = (shell.client()?, &args.app.workspace);
    let place = (&which, workspace);
    queue_and_follow(shell, &client, place, Operation::Destroy, GoesOn::Yes).await?;
    if no_wait {
        return Ok(());
    }
    until_ended(shell, &client, &which.path("status?", workspace)).await
}

/// Waits until no instance is left, and says which are.
async fn until_ended(shell: &Shell, client: &Client, path: &str) -> Result<()> {
    let deadline = runtime::mono_now() + END_LIMIT;
    let mut said = Vec::new();
    loop {
        let status: AppStatus = client.get(path).await?;
        let left = instances(&status);
        if left.is_empty() {
            return Ok(());
        }
        let names = left.join(", ");
        if runtime::mono_now() >= deadline {
            let seconds = END_LIMIT.as_secs();
            let message = format!("still there {seconds} s after they were to end: {names}");
            return Err(CliError::new(ErrorKind::Unavailable, message)
                .hint("they end once their cell does its work: see `shore cell list`"));
        }
        if left != said {
            shell.output.say(&format!("waiting for the end of {names}"));
            said = left;
        }
        runtime::sleep(END_LOOK).await;
    }
}

/// The instances there are.
fn instances(status: &AppStatus) -> Vec<String> {
    let processes = status.deployments.iter().flat_map(|it| &it.processes);
    let names = processes.flat_map(|it| {
        it.instances.iter().map(|instance| format!("{}.{}", it.name, instance.index))
    });
    names.collect()
}
