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
    let work = (1_u128..).zip(shares).map(|(runner, share)| share_of(to, runner, share));
    futures_util::future::try_join_all(work).await.map(drop)
}

async fn share_of(to: &impl Applies, runner: u128, share: Vec<AppSize>) -> Result<(), String> {
    let project = Project::make(to, runner).await?;
    for (number, app) in (1..).zip(share) {
        let mut process = ProcessSpec::new(["app"]);
        process.container.limits.memory_mb = Some(app.memory_mb);
        process.container.limits.disk_mb = Some(workload::DISK_MB);
        project.deploy(to, number, (process, app.instances)).await?;
    }
    Ok(())
}

/// A project with a runner of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Project(u128);

impl Project {
    pub(crate) async fn make(to: &impl Applies, number: u128) -> Result<Self, String> {
        let called = name(&format!("project-{number}"))?;
        to.ask(Command::CreateProject { id: ProjectId(number), name: called }).await?;
        let (id, labels, holds) = (RunnerId(number), BTreeMap::new(), Vec::new());
        let (name, only_own, token) = (name("bench")?, true, None);
        let online = JobCommand::RunnerOnline { id, name, labels, only_own, holds, token };
        to.ask(Command::Job(online)).await?;
        Ok(Self(number))
    }

    /// Deploys an app that has one process, `web`.
    pub(crate) async fn deploy(
        self,
        to: &impl Applies,
        number: u128,
        (spec, instances): (ProcessSpec, u32),
    ) -> Result<DeploymentId, String> {
        // Identifiers of processes and instances follow from the deployment's.
        let id = (self.0 << 96) + (number << 72);
        let template = ProcessTemplate { name: name("web")?, spec, instances };
        one(to, self.0, (id, number), template).await?;
        Ok(DeploymentId(id))
    }

    /// Ends everything of an app.
    pub(crate) async fn end(self, to: &impl Applies, number: u128) -> Result<(), String> {
        let id = (self.0 << 96) + (number << 72);
        let attempt = begin(to, self.0, (JobId(id + 1), AppId(id)), Operation::Destroy).await?;
        to.ask(Command::Work(WorkCommand::Destroy(attempt))).await?;
        complete(to, attempt).await
    }
}

/// A job for an app that runs on the project's own runner.
async fn begin(
    to: &impl Applies,
    runner: u128,
    (id, app): (JobId, AppId),
    operation: Operation,
) -> Result<Attempt, String> {
    let spec = JobSpec {
        project: ProjectId(runner),
        app: Some(app),
        workspace: name("production")?,
        operation,
        target: Target::Runner(RunnerId(runner)),
        depends_on: Vec::new(),
        allow_failure: Vec::new(),
        singleton: None,
        idempotency_key: None,
        origin: "bench".to_owned(),
    };
    let new = NewJob { id, spec: Arc::new(spec), expires_in: None };
    to.ask(Command::Job(JobCommand::Queue(new))).await?;
    let assigned = to.ask(Command::Job(JobCommand::Assign(RunnerId(runner)))).await?;
    let Reply::Assigned(Some(job)) = assigned else {
        return Err("no job was assigned".to_owned());
    };
    let attempt = Attempt { job: job.id, epoch: job.epoch };
    to.ask(Command::Job(JobCommand::Ack(attempt))).await?;
    Ok(attempt)
}

async fn complete(to: &impl Applies, attempt: Attempt) -> Result<(), String> {
    to.ask(Command::Job(JobCommand::Complete(attempt, Outcome::Succeeded))).await.map(drop)
}

async fn one(
    to: &impl Applies,
    runner: u128,
    (id, number): (u128, u128),
    template: ProcessTemplate,
) -> Result<(), String> {
    let (project, app) = (ProjectId(runner), AppId(id));
    let called = name(&format!("app-{number}"))?;
    to.ask(Command::EnsureApp { id: app, project, name: called }).await?;
    let operation = Operation::Up { source: Digest([1; 32]) };
    let attempt = begin(to, runner, (JobId(id), app), operation).await?;
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
    complete(to, attempt).await
}
