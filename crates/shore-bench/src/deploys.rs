//! Apps that are deployed as `shore up` does it, each by a job of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::{
    AppId, BuildId, DeploymentId, Digest, JobId, Operation, Outcome, ProcessSpec, ProjectId,
    RunnerId, Target,
};
use server::{Loop, Server};
use state::{Attempt, Command, JobCommand, JobSpec, NewJob, ProcessTemplate, Reply, WorkCommand};

use crate::workload::{self, AppSize, name};

/// Runners that deploy at once, and projects, one of each.
const RUNNERS: u32 = 512;

/// Carries out commands.
pub(crate) trait Applies {
    /// The answer, once it is durable.
    fn ask(&self, command: Command) -> impl Future<Output = Result<Reply, String>>;
}

impl Applies for Loop {
    async fn ask(&self, command: Command) -> Result<Reply, String> {
        self.apply(command).await.map_err(|error| error.to_string())
    }
}

impl Applies for Server {
    async fn ask(&self, command: Command) -> Result<Reply, String> {
        self.apply(command).await.map_err(|error| error.to_string())
    }
}

/// Deploys every app.
pub(crate) async fn all(to: &impl Applies, apps: &[AppSize]) -> Result<(), String> {
    let mut shares: Vec<Vec<AppSize>> = vec![Vec::new(); RUNNERS as usize];
    for (number, app) in apps.iter().enumerate() {
        shares[number % RUNNERS as usize].push(*app);
    }
    let work = (1..).zip(shares).map(|(runner, share)| share_of(to, runner, share));
    futures_util::future::try_join_all(work).await.map(drop)
}

async fn share_of(to: &impl Applies, runner: u128, share: Vec<AppSize>) -> Result<(), String> {
    let project = ProjectId(runner);
    let called = name(&format!("project-{runner}"))?;
    to.ask(Command::CreateProject { id: project, name: called }).await?;
    let (id, labels, holds) = (RunnerId(runner), BTreeMap::new(), Vec::new());
    let online =
        JobCommand::RunnerOnline { id, name: name("bench")?, labels, only_own: true, holds };
    to.ask(Command::Job(online)).await?;
    for (number, app) in (1_u128..).zip(share) {
        // Identifiers of processes and instances follow from the deployment's.
        one(to, runner, (runner << 96) + (number << 72), app).await?;
    }
    Ok(())
}

async fn one(to: &impl Applies, runner: u128, id: u128, size: AppSize) -> Result<(), String> {
    let (project, app) = (ProjectId(runner), AppId(id));
    let called = name(&format!("app-{}", (id >> 72) & 0xff_ffff))?;
    to.ask(Command::EnsureApp { id: app, project, name: called }).await?;
    let spec = JobSpec {
        project,
        app: Some(app),
        workspace: name("production")?,
        operation: Operation::Up { source: Digest([1; 32]) },
        target: Target::Runner(RunnerId(runner)),
        depends_on: Vec::new(),
        allow_failure: Vec::new(),
        singleton: None,
        idempotency_key: None,
        origin: "bench".to_owned(),
    };
    let new = NewJob { id: JobId(id), spec: Arc::new(spec), expires_in: None };
    to.ask(Command::Job(JobCommand::Queue(new))).await?;
    let assigned = to.ask(Command::Job(JobCommand::Assign(RunnerId(runner)))).await?;
    let Reply::Assigned(Some(job)) = assigned else {
        return Err("no job was assigned".to_owned());
    };
    let attempt = Attempt { job: job.id, epoch: job.epoch };
    to.ask(Command::Job(JobCommand::Ack(attempt))).await?;
    let mut process = ProcessSpec::new(["app"]);
    process.container.limits.memory_mb = Some(size.memory_mb);
    process.container.limits.disk_mb = Some(workload::DISK_MB);
    let template = ProcessTemplate { name: name("web")?, spec: process, instances: size.instances };
    to.ask(Command::Work(WorkCommand::RecordBuild {
        id: BuildId(id),
        attempt,
        source: Digest([1; 32]),
        image: Digest([2; 32]),
        processes: vec![template],
    }))
    .await?;
    let deploy = WorkCommand::Deploy { id: DeploymentId(id), attempt, build: None };
    to.ask(Command::Work(deploy)).await?;
    to.ask(Command::Job(JobCommand::Complete(attempt, Outcome::Succeeded))).await.map(drop)
}
