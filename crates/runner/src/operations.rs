//! What each operation does. Everything compiles into tasks and processes.

use std::collections::BTreeMap;
use std::time::Duration;

use api::Event;
use api::http_types::{
    AppStatus, BuildView, CreateTask, DeploymentRef, DeploymentView, JobView, LogLine,
    ProcessTemplate, RecordBuild, Released, StartDeployment, TaskView,
};
use futures_util::{FutureExt as _, StreamExt as _};
use manifest::{AppFile, CheckFile, DeployFile, RunFile};
use model::{
    Action, BuildId, CREATOR, Check, CheckKind, DeploymentId, Digest, ERROR_MARK, LogSource, Name,
    Operation, ProcessSpec, TaskId, TaskSpec, UploadMode, WEB, launched, program_name,
};
use serde::Deserialize;

use crate::context::{Context, JobError};
use crate::source;

/// How long a build may take unless the project file says otherwise.
const BUILD_TIMEOUT_MS: u64 = 30 * 60 * 1_000;
/// Time between TERM and KILL unless the project file says otherwise.
const STOP_GRACE_MS: u64 = 10_000;
/// Instances of `web` unless the project file says otherwise.
const WEB_INSTANCES: u32 = 2;
/// How long one call waits for a change.
const WAIT_MS: u64 = 25_000;
/// How long a silent task or deployment is left alone before we say why it waits.
const LOOK: Duration = Duration::from_secs(3);
/// Lines shown of an instance that did not become healthy.
const LAST_LINES: u64 = 50;
/// Most characters of what a task said was wrong.
const MAX_TOLD: usize = 500;

/// Does a job and says how it ended.
pub(crate) async fn run(mut context: Context) {
    let done = operation(&mut context).await;
    context.end(done).await;
}

async fn operation(context: &mut Context) -> Result<(), JobError> {
    match context.job.operation.clone() {
        Operation::Noop => Ok(()),
        Operation::Build { source } => build(context, source).await.map(|_| ()),
        Operation::Deploy { build } => {
            let deployment = deploy(context, build).await?;
            release(context, deployment.id).await
        }
        Operation::Release { deployment } => {
            let deployment = restart(context, deployment).await?;
            release(context, deployment.id).await
        }
        Operation::Up { source } => {
            let built = build(context, source).await?;
            let deployment = deploy(context, Some(built.number)).await?;
            release(context, deployment.id).await
        }
        Operation::Restart => {
            let build = released_build(context).await?;
            let deployment = deploy(context, Some(build)).await?;
            release(context, deployment.id).await
        }
        Operation::Destroy => destroy(context).await,
    }
}

/// What the build's task leaves in its result file.
#[derive(Debug, Deserialize)]
struct BuildResult {
    image: Digest,
    processes: Vec<BuiltProcess>,
}

#[derive(Debug, Deserialize)]
struct BuiltProcess {
    name: Name,
    argv: Vec<String>,
    #[serde(default)]
    dir: Option<String>,
}

async fn build(context: &mut Context, source: Digest) -> Result<BuildView, JobError> {
    let file = context.call(|client| source::archive(client, source).boxed()).await?;
    let file = context.or_cancel(source::project_file(file)).await?;
    let app = context.job.app.clone().and_then(|name| file.apps.get(&name).cloned());
    let app = app.unwrap_or_default();
    context
        .step("Build", async |context| {
            let task = start_build(context, source, &app).await?;
            let task = follow_task(context, task).await?;
            let result = task.result.unwrap_or_default();
            let result: BuildResult = serde_json::from_str(&result).map_err(|error| {
                JobError::Failed(format!("the build's result is unreadable: {error}"))
            })?;
            let record = RecordBuild {
                id: Some(BuildId(Context::fresh_id())),
                attempt: context.attempt(),
                source,
                image: result.image,
                processes: templates(&app.deploy, result),
            };
            let build: BuildView =
                context.call(|client| client.post("/v1/builds", &record).boxed()).await?;
            let detail = format!("build {} is image {}", build.number, short(build.image));
            Ok((build, detail))
        })
        .await
}

fn short(digest: Digest) -> String {
    digest.hex().chars().take(12).collect()
}

async fn start_build(
    context: &Context,
    source: Digest,
    app: &AppFile,
) -> Result<TaskView, JobError> {
    let scope =
        [Some(&context.job.project), context.job.app.as_ref(), Some(&context.job.workspace)];
    // Names hold no underscore, so joined by it they stay apart.
    let key: Vec<&str> = scope.into_iter().flatten().map(Name::as_str).collect();
    let mut run = Action::run([CREATOR]);
    if let Action::Run { env, dir, .. } = &mut run {
        env.clone_from(&app.build.env);
        *dir = Some("/workspace".to_owned());
    }
    let actions = vec![
        Action::download(source, "/workspace", true),
        run,
        Action::upload("/export/blobs/sha256", UploadMode::DigestNamed),
    ];
    let timeout_ms = app.build.timeout_ms.unwrap_or(BUILD_TIMEOUT_MS);
    let mut spec = TaskSpec::new(Action::Serial { actions }, timeout_ms);
    spec.container.caches = BTreeMap::from([(key.join("_"), "/cache".to_owned())]);
    spec.container.egress.clone_from(&app.build.egress);
    spec.result_file = Some("/export/result.json".to_owned());
    let id = Some(TaskId(Context::fresh_id()));
    let create = CreateTask { id, attempt: context.attempt(), spec };
    context.call(|client| client.post("/v1/tasks", &create).boxed()).await
}

/// Shows a task's log until it ends, and the logs of the attempts that follow it.
async fn follow_task(context: &Context, task: TaskView) -> Result<TaskView, JobError> {
    let mut id = task.id;
    let mut resume: Option<String> = None;
    let mut said = None;
    let mut told = Told::default();
    loop {
        let path = format!("/v1/tasks/{id}/events");
        let opened = context.call(|client| client.events(&path, resume.as_deref()).boxed()).await?;
        let mut events = Box::pin(opened);
        loop {
            let next = async { Ok::<_, JobError>(runtime::timeout(LOOK, events.next()).await) };
            match context.or_cancel(next).await? {
                Some(Some(Ok(event))) => {
                    show(context, &event, &mut told).await;
                    resume = event.id.or(resume);
                }
                // The log ended, or the connection was cut: the outer loop goes on where it was.
                Some(Some(Err(_)) | None) => break,
                None => say_why(context, id, &mut said).await?,
            }
        }
        let path = format!("/v1/tasks/{id}?wait_ms={WAIT_MS}");
        let task: TaskView = context.call(|client| client.get(&path).boxed()).await?;
        if let Some(next) = task.followed_by {
            let (attempt, attempts) = (task.attempt + 1, task.attempts);
            let reason = told.with(&task.reason.unwrap_or_default());
            context.say(format!("{reason}: attempt {attempt} of {attempts} follows")).await;
            (id, resume, said, told) = (next, None, None, Told::default());
            continue;
        }
        match task.state.as_str() {
            "succeeded" => return Ok(task),
            "failed" => {
                return Err(JobError::Failed(told.with(&task.reason.unwrap_or_default())));
            }
            "cancelled" => return Err(JobError::Cancelled),
            _ => {}
        }
    }
}

/// Says why a task still waits, each reason once.
async fn say_why(context: &Context, id: TaskId, said: &mut Option<String>) -> Result<(), JobError> {
    let path = format!("/v1/tasks/{id}");
    let task: TaskView = context.call(|client| client.get(&path).boxed()).await?;
    if !task.ended && task.reason.is_some() && task.reason != *said {
        context
            .say(format!("still {}: {}", task.state, task.reason.as_deref().unwrap_or("")))
            .await;
        *said = task.reason;
    }
    Ok(())
}

/// What a task said was wrong, which tells more than how it ended.
#[derive(Debug, Default)]
struct Told {
    /// The first line of the last error.
    error: Option<String>,
    /// Whether the last line belongs to it.
    within: bool,
}

impl Told {
    fn hear(&mut self, text: &str) {
        let error = text.strip_prefix(ERROR_MARK);
        if let (Some(error), false) = (error, self.within) {
            self.error = Some(error.chars().take(MAX_TOLD).collect());
        }
        self.within = error.is_some();
    }

    fn with(self, reason: &str) -> String {
        match self.error {
            None => reason.to_owned(),
            // Its status repeats in numbers what it said in words.
            Some(error) if ended_by_itself(reason) => error,
            Some(error) => format!("{error} ({reason})"),
        }
    }
}

/// Whether a task failed because the creator did, by its own choice.
fn ended_by_itself(reason: &str) -> bool {
    let status = format!("run `{}` exited with status ", program_name(CREATOR));
    let code = reason.strip_prefix(&status);
    code.is_some_and(|code| code.bytes().all(|byte| byte.is_ascii_digit()))
}

async fn show(context: &Context, event: &Event, told: &mut Told) {
    match event.name.as_str() {
        "log" => {
            if let Ok(line) = serde_json::from_str::<LogLine>(&event.data) {
                told.hear(&line.text);
                context.line(line.source, line.text).await;
            }
        }
        "skipped" => context.say("some lines are not kept any more").await,
        _ => {}
    }
}

/// The build's processes with the project file's settings.
fn templates(deploy: &DeployFile, result: BuildResult) -> Vec<ProcessTemplate> {
    let image = result.image;
    let mut found: BTreeMap<Name, (Vec<String>, Option<String>)> =
        result.processes.into_iter().map(|it| (it.name, (it.argv, it.dir))).collect();
    for (name, process) in &deploy.processes {
        if let Some(command) = &process.command {
            found.insert(name.clone(), (launched(command.iter().cloned()), None));
        }
    }
    let template = |(name, (argv, dir)): (Name, (Vec<String>, Option<String>))| {
        let web = name.as_str() == WEB;
        let own = deploy.processes.get(&name).and_then(|process| process.instances);
        let run = settings(deploy, &name);
        let mut spec = ProcessSpec::new(argv);
        spec.stop_grace_ms = STOP_GRACE_MS;
        run.apply(&mut spec);
        spec.container.image = Some(image);
        spec.dir = dir;
        spec.pre_stop = spec.pre_stop.map(launched);
        // Copies with volumes have data of their own each: nobody gets two without asking for them.
        let usual = if spec.container.volumes.is_empty() { WEB_INSTANCES } else { 1 };
        let instances =
            if web { own.or(deploy.instances).unwrap_or(usual) } else { own.unwrap_or(0) };
        let usual = web.then(Check::default);
        spec.check = run.check.as_ref().map(check).or(usual);
        spec.startup = run.startup.as_ref().map(check);
        spec.readiness = run.readiness.as_ref().map(check);
        ProcessTemplate { name, spec, instances }
    };
    found.into_iter().map(template).collect()
}

/// What the project file says of one process. The app's own checks are for `web`.
fn settings(deploy: &DeployFile, name: &Name) -> RunFile {
    let web = name.as_str() == WEB;
    let base = if web { deploy.run.clone() } else { deploy.run.without_checks() };
    match deploy.processes.get(name) {
        Some(process) => process.run.over(&base),
        None => base,
    }
}

/// Commands find what the build installed, as processes do.
fn check(file: &CheckFile) -> Check {
    let mut check = file.check();
    if let CheckKind::Command { argv } = check.kind {
        check.kind = CheckKind::Command { argv: launched(argv) };
    }
    check
}

async fn deploy(context: &mut Context, build: Option<u64>) -> Result<DeploymentView, JobError> {
    context
        .step("Deploy", async |context| {
            let id = Some(DeploymentId(Context::fresh_id()));
            let start = StartDeployment { id, attempt: context.attempt(), build };
            let made: DeploymentView =
                context.call(|client| client.post("/v1/deployments", &start).boxed()).await?;
            wait_healthy(context, made).await
        })
        .await
}

async fn restart(
    context: &mut Context,
    deployment: DeploymentId,
) -> Result<DeploymentView, JobError> {
    context
        .step("Start", async |context| {
            let it = DeploymentRef { attempt: context.attempt(), deployment };
            let made: DeploymentView =
                context.call(|client| client.post("/v1/deployments/restart", &it).boxed()).await?;
            wait_healthy(context, made).await
        })
        .await
}

/// The number of the build that is released.
async fn released_build(context: &Context) -> Result<u64, JobError> {
    let JobView { project, app, workspace, .. } = &context.job;
    let app = app.as_ref().ok_or_else(|| JobError::Failed("the job names no app".to_owned()))?;
    let path = format!("/v1/projects/{project}/apps/{app}/status?workspace={workspace}");
    let status: AppStatus = context.call(|client| client.get(&path).boxed()).await?;
    let released = status.deployments.iter().find(|it| it.released);
    let released = released.ok_or_else(|| {
        JobError::Failed(format!("{project}/{app} has no release in {workspace}: deploy it first"))
    })?;
    released.build.ok_or_else(|| {
        JobError::Failed(format!(
            "the build of deployment {} is not kept any more",
            released.number
        ))
    })
}

async fn wait_healthy(
    context: &Context,
    mut deployment: DeploymentView,
) -> Result<(DeploymentView, String), JobError> {
    let path = format!("/v1/deployments/{}?wait_ms={}", deployment.id, LOOK.as_millis());
    let mut said = None;
    while deployment.state == "starting" {
        deployment = context.call(|client| client.get(&path).boxed()).await?;
        if let Some(news) = news(&deployment, &mut said) {
            context.say(news).await;
        }
    }
    if deployment.state == "ready" {
        let count: u32 = deployment.processes.iter().map(|process| process.wanted).sum();
        let healthy = match count {
            0 => "no instance is wanted, so nothing runs".to_owned(),
            1 => "1 instance is healthy".to_owned(),
            _ => format!("{count} instances are healthy"),
        };
        let apart = deployment.processes.iter().find(|it| it.wanted > 1 && !it.volumes.is_empty());
        if let Some(process) = apart {
            let (name, wanted) = (&process.name, process.wanted);
            context
                .say(format!("each of the {wanted} instances of {name} has data of its own"))
                .await;
        }
        let detail = format!("deployment {}: {healthy}", deployment.number);
        return Ok((deployment, detail));
    }
    last_lines(context, deployment.id).await;
    let reason = deployment.reason.unwrap_or_else(|| format!("it is {}", deployment.state));
    let has_volumes = deployment.processes.iter().any(|process| !process.volumes.is_empty());
    // What shares volumes with it had to end first.
    let stays = if has_volumes { "serves on or starts again" } else { "stays as it is" };
    Err(JobError::Failed(format!(
        "deployment {} failed: {reason}; what is released {stays}",
        deployment.number
    )))
}

/// Why instances of a deployment that starts still have no cell, unless that was said.
fn news(deployment: &DeploymentView, said: &mut Option<String>) -> Option<String> {
    let why = deployment.unplaced().filter(|_| deployment.state == "starting")?;
    if said.as_ref() == Some(&why) {
        return None;
    }
    *said = Some(why.clone());
    Some(why)
}

/// Shows what the instances of a deployment that failed said last.
async fn last_lines(context: &Context, id: DeploymentId) {
    let path = format!("/v1/deployments/{id}/logs?tail={LAST_LINES}");
    let Ok(events) = context.client.events(&path, None).await else { return };
    let mut events = Box::pin(events);
    while let Some(Ok(event)) = events.next().await {
        if let Ok(line) = serde_json::from_str::<LogLine>(&event.data) {
            let name = line.stream.unwrap_or_default();
            context.line(LogSource::Stderr, format!("{name}| {}", line.text)).await;
        }
    }
}

async fn release(context: &mut Context, deployment: DeploymentId) -> Result<(), JobError> {
    let released: Released = context
        .step("Release", async |context| {
            let it = DeploymentRef { attempt: context.attempt(), deployment };
            let released: Released =
                context.call(|client| client.post("/v1/releases", &it).boxed()).await?;
            if !released.applied {
                context.say("not every router has the new routes yet").await;
            }
            let detail =
                released.url.clone().unwrap_or_else(|| "no router is connected".to_owned());
            Ok((released, detail))
        })
        .await?;
    if let Some(url) = released.url {
        context.value("url", &url).await;
    }
    Ok(())
}

async fn destroy(context: &mut Context) -> Result<(), JobError> {
    context
        .step("Destroy", async |context| {
            let attempt = context.attempt();
            let done: Released =
                context.or_cancel(context.client.post("/v1/destroy", &attempt)).await?;
            Ok((done, "routes are withdrawn, instances stop".to_owned()))
        })
        .await
        .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_says_more_than_its_app() {
        let text = r#"
app "a" {
  deploy {
    memory = 100
    env    = { A = "1", B = "1" }
    volume "files" { path = "/data" }
    readiness { command = ["bin/ready"] }
    process "worker" {
      instances = 2
      command   = ["work"]
      env       = { B = "2" }
      pre_stop  = ["bin/drain"]
      check { tcp = true }
    }
  }
}
"#;
        let file = manifest::parse(text).expect("a good file");
        let deploy = &file.apps.values().next().expect("an app").deploy;
        let name = |name: &str| -> Name { name.parse().expect("a name") };
        let web = BuiltProcess { name: name(WEB), argv: vec!["serve".into()], dir: None };
        let image = Digest([0; 32]);
        let made = templates(deploy, BuildResult { image, processes: vec![web] });
        let [web, worker] = made.as_slice() else { panic!("two processes: {made:?}") };
        assert_eq!((web.instances, worker.instances), (1, 2), "one for each set of volumes");
        assert_eq!(web.spec.check, Some(Check::default()));
        let argv = launched(["bin/ready".to_owned()]);
        let kind = web.spec.readiness.as_ref().map(|check| &check.kind);
        assert_eq!(kind, Some(&CheckKind::Command { argv }));
        let worker = &worker.spec;
        assert_eq!(worker.check.as_ref().map(|check| &check.kind), Some(&CheckKind::Tcp));
        assert_eq!((worker.readiness.is_none(), worker.container.volumes.len()), (true, 1));
        assert_eq!(worker.container.env.values().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(worker.container.limits.memory_mb, Some(100));
        assert_eq!(worker.pre_stop, Some(launched(["bin/drain".to_owned()])));
        assert_eq!(worker.validate(), Ok(()));
    }

    #[test]
    fn the_first_line_of_the_last_error_is_the_reason() {
        let mut told = Told::default();
        for line in
            ["ok", " !     first", " !     more", "", " !     no buildpack", " !       node"]
        {
            told.hear(line);
        }
        assert_eq!(told.with("exceeded 30 min timeout"), "no buildpack (exceeded 30 min timeout)");
        assert_eq!(Told::default().with("status 1"), "status 1");
    }

    #[test]
    fn the_creators_status_is_left_out_when_it_told_more() {
        for (reason, wanted) in [
            ("run `creator` exited with status 51", "no npm"),
            (
                "run `creator` exited with status 51 (out of memory)",
                "no npm (run `creator` exited with status 51 (out of memory))",
            ),
            (
                "run `creator` was killed by signal 9",
                "no npm (run `creator` was killed by signal 9)",
            ),
        ] {
            let told = Told { error: Some("no npm".to_owned()), within: false };
            assert_eq!(told.with(reason), wanted);
        }
    }

    #[test]
    fn why_instances_wait_is_said_once_for_each_reason() {
        let deployment = |state: &str, reason: Option<&str>| -> DeploymentView {
            let instance = |index: u32| {
                serde_json::json!({
                    "id": model::InstanceId(index.into()), "index": index, "state": "unclaimed",
                    "ready": false, "reason": reason, "cell": null, "crashes": 0, "since": 0
                })
            };
            let view = serde_json::json!({
                "id": DeploymentId(1), "number": 1, "workspace": "production", "build": 1,
                "image": Digest([0; 32]), "state": state, "released": false, "created_at": 0,
                "processes": [{
                    "name": "web", "wanted": 2, "instances": [instance(0), instance(1)]
                }]
            });
            serde_json::from_value(view).expect("a deployment")
        };
        let mut said = None;
        let mut hear = |state, reason| news(&deployment(state, reason), &mut said);
        assert_eq!(hear("starting", None), None);
        let first = hear("starting", Some("no cell is connected"));
        assert_eq!(first.as_deref(), Some("2 of 2 of web wait for a cell: no cell is connected"));
        assert_eq!(hear("starting", Some("no cell is connected")), None);
        assert!(hear("starting", Some("needs 9 MiB")).is_some());
        assert_eq!(hear("failed", Some("no room")), None);
    }
}
