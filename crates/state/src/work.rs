//! Tasks, builds, deployments and releases: what a job asks for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use model::{
    AppId, BuildId, DeploymentEvent, DeploymentId, DeploymentState, JobId, MAX_INSTANCES, Name,
    ProcessId, TaskId, Time,
};

use crate::access::checked_workspace;
use crate::command::{Attempt, Refusal, Reply, WorkCommand, earliest};
use crate::records::{App, Build, Deployment, Job, Process, ProcessTemplate, Task};
use crate::tables::Core;
use crate::tasks::Maker;

/// What a deployment gets beyond its longest health-check start time before it fails.
pub const DEPLOY_SLACK: Duration = Duration::from_secs(30);
/// How long a deployment goes on after its routes moved away, and an instance after it was scaled
/// away, so that requests under way end.
pub const DRAIN: Duration = Duration::from_secs(3);
/// Most processes of one deployment.
pub const MAX_PROCESSES: usize = 20;
/// How many retired or failed deployments of an app are kept to roll back to.
pub const KEPT_DEPLOYMENTS: usize = 20;
/// How many builds of an app are kept.
pub const KEPT_BUILDS: usize = 20;

impl Deployment {
    /// When something has to happen to it.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        match &self.state {
            DeploymentState::Starting { deadline } => earliest([Some(*deadline), self.retire_at]),
            DeploymentState::Ready => self.retire_at,
            DeploymentState::Failed { .. } | DeploymentState::Retired => None,
        }
    }
}

/// A process id that follows from its deployment, so that one fresh id is enough for all.
fn process_id(deployment: DeploymentId, ordinal: usize) -> ProcessId {
    ProcessId(deployment.0 ^ (ordinal as u128 + 1))
}

impl Core {
    pub(crate) fn work(&mut self, now: Time, command: WorkCommand) -> Result<Reply, Refusal> {
        match command {
            WorkCommand::CreateTask { id, attempt, spec } => {
                let job = attempt.map(|attempt| self.running(attempt)).transpose()?;
                if let Some(known) = self.get::<Task>(id).cloned() {
                    // The answer to the first call was lost on its way.
                    return same(known.job == job.map(|job| job.id), Reply::Task(known));
                }
                let project = job.as_ref().map(|job| job.spec.project);
                let job = job.map(|job| job.id);
                self.create_task(now, id, Maker { job, project, key: None }, spec)
            }
            WorkCommand::RunOnce { id, app, spec } => {
                let project = self.app(app)?.project;
                self.run_once(now, id, project, spec)
            }
            WorkCommand::NewTask { id, project, key, spec } => {
                self.new_task(now, id, (project, key), &spec)
            }
            WorkCommand::Delivered { id, attempts } => self.delivered(now, id, attempts),
            WorkCommand::NotDelivered { id, attempts, reason, give_up } => {
                self.not_delivered(now, (id, attempts), &reason, give_up)
            }
            WorkCommand::Sign { project, secret, rotate } => {
                self.sign(now, project, secret, rotate)
            }
            WorkCommand::CancelTask(id) => {
                self.cancel_task(now, id)?;
                Ok(Reply::Done)
            }
            WorkCommand::RecordBuild { id, attempt, source, image, processes } => {
                check_processes(&processes)?;
                let (job, mut app) = self.job_and_app(attempt)?;
                if let Some(known) = self.get::<Build>(id).cloned() {
                    return same(known.app == app.id, Reply::Build(known));
                }
                app.builds += 1;
                let build = Build {
                    id,
                    app: app.id,
                    workspace: job.spec.workspace.clone(),
                    number: app.builds,
                    source,
                    image,
                    processes,
                    created_at: now,
                };
                self.put(build.clone());
                self.prune_builds(app.id);
                self.put(app);
                Ok(Reply::Build(Arc::new(build)))
            }
            WorkCommand::Deploy { id, attempt, build } => self.deploy(now, id, attempt, build),
            WorkCommand::Restart { attempt, deployment } => self.restart(now, attempt, deployment),
            WorkCommand::Release { attempt, deployment } => self.release(now, attempt, deployment),
            WorkCommand::Destroy(attempt) => {
                let (job, app) = self.job_and_app(attempt)?;
                self.destroy(now, app, &job.spec.workspace.clone())
            }
        }
    }

    pub(crate) fn deployment(&self, id: DeploymentId) -> Result<Arc<Deployment>, Refusal> {
        self.get::<Deployment>(id).cloned().ok_or_else(|| Refusal::not_found("deployment", id))
    }

    pub(crate) fn deployments_of(&self, app: AppId) -> impl Iterator<Item = &Arc<Deployment>> {
        let range = (app, 0, DeploymentId(0))..=(app, u64::MAX, DeploymentId(u128::MAX));
        self.indexes.deployments.range(range).filter_map(|(_, _, id)| self.get::<Deployment>(*id))
    }

    pub(crate) fn builds_of(&self, app: AppId) -> impl DoubleEndedIterator<Item = &Arc<Build>> {
        let range = (app, 0, BuildId(0))..=(app, u64::MAX, BuildId(u128::MAX));
        self.indexes.builds.range(range).filter_map(|(_, _, id)| self.get::<Build>(*id))
    }

    fn job_and_app(&self, attempt: Attempt) -> Result<(Arc<Job>, App), Refusal> {
        let job = self.running(attempt)?;
        let id = job.spec.app.ok_or_else(|| {
            Refusal::Invalid(format!("job {} ({}) has no app", job.id, job.spec.operation.name()))
        })?;
        Ok((job, self.app(id)?.clone()))
    }

    /// What a job leaves behind when it ends: its tasks stop; a deployment it did not release goes.
    pub(crate) fn end_work_of(
        &mut self,
        now: Time,
        job: JobId,
        failed: bool,
    ) -> Result<(), Refusal> {
        let range = (job, TaskId(0))..=(job, TaskId(u128::MAX));
        let tasks: Vec<_> = self.indexes.tasks_by_job.range(range).map(|(_, id)| *id).collect();
        for task in tasks {
            self.cancel_task(now, task)?;
        }
        if !failed {
            return Ok(());
        }
        let range = (job, DeploymentId(0))..=(job, DeploymentId(u128::MAX));
        let made: Vec<_> =
            self.indexes.deployments_by_job.range(range).map(|(_, id)| *id).collect();
        for id in made {
            let row = self.deployment(id)?;
            if row.state.wants_instances() && !self.is_released(&row) {
                self.abandon(&row, "its job ended before it was healthy")?;
            }
        }
        Ok(())
    }

    /// Nobody wants a deployment any more. One that was healthy can be started again later; one
    /// that never was has failed.
    fn abandon(&mut self, row: &Deployment, why: &str) -> Result<(), Refusal> {
        let never_ready = matches!(row.state, DeploymentState::Starting { .. }) && !row.was_ready;
        let event = if never_ready {
            DeploymentEvent::Fail { reason: why.to_owned() }
        } else {
            DeploymentEvent::Retire
        };
        self.change_deployment(row, &event)
    }

    pub(crate) fn is_released(&self, row: &Deployment) -> bool {
        self.get::<App>(row.app)
            .is_some_and(|app| app.released.get(&row.workspace) == Some(&row.id))
    }

    pub(crate) fn change_deployment(
        &mut self,
        row: &Deployment,
        event: &DeploymentEvent,
    ) -> Result<(), Refusal> {
        let state = row.state.next(event)?;
        let was_ready = row.was_ready || state == DeploymentState::Ready;
        self.put(Deployment { state, was_ready, retire_at: None, ..row.clone() });
        Ok(())
    }

    fn deploy(
        &mut self,
        now: Time,
        id: DeploymentId,
        attempt: Attempt,
        build: Option<u64>,
    ) -> Result<Reply, Refusal> {
        let (job, mut app) = self.job_and_app(attempt)?;
        if let Some(known) = self.get::<Deployment>(id).cloned() {
            return same(known.job == Some(job.id), Reply::Deployment(known));
        }
        let found = match build {
            Some(number) => self.builds_of(app.id).find(|row| row.number == number),
            None => self.builds_of(app.id).next_back(),
        };
        let build = found.cloned().ok_or_else(|| {
            let name = build.map_or_else(|| "at all".to_owned(), |number| number.to_string());
            Refusal::not_found("build", format!("{name} of app {}", app.name))
        })?;
        let workspace = job.spec.workspace.clone();
        checked_workspace(&app, &workspace)?;
        app.deployments += 1;
        let processes: Vec<ProcessId> =
            (0..build.processes.len()).map(|ordinal| process_id(id, ordinal)).collect();
        for (template, process) in build.processes.iter().zip(&processes) {
            self.put(self.process_of(*process, id, &app, &workspace, template));
        }
        app.starts += 1;
        let deadline = self.start_deadline(now, &processes);
        let deadline = deadline.after(self.hand_over((app.id, &workspace), &processes));
        self.put(Deployment {
            id,
            app: app.id,
            workspace,
            number: app.deployments,
            build: build.id,
            image: build.image,
            state: DeploymentState::Starting { deadline },
            processes,
            was_ready: false,
            job: Some(job.id),
            created_at: now,
            retire_at: None,
            start: app.starts,
        });
        self.put(app);
        Ok(Reply::Deployment(self.deployment(id)?))
    }

    #[expect(clippy::too_many_arguments, clippy::unused_self, reason = "builds one row from five")]
    fn process_of(
        &self,
        id: ProcessId,
        deployment: DeploymentId,
        app: &App,
        workspace: &Name,
        template: &ProcessTemplate,
    ) -> Process {
        let mut spec = template.spec.clone();
        let config = app.config.get(workspace).cloned().unwrap_or_default();
        spec.container.env.extend(config);
        let scaled = app.scale.get(workspace).and_then(|scale| scale.get(&template.name));
        Process {
            id,
            deployment,
            name: template.name.clone(),
            spec: Arc::new(spec),
            instances: scaled.copied().unwrap_or(template.instances),
            last_epoch: 0,
        }
    }

    /// When a deployment of these processes has failed unless it is healthy.
    pub(crate) fn start_deadline(&self, now: Time, processes: &[ProcessId]) -> Time {
        let longest = processes
            .iter()
            .filter_map(|id| self.get::<Process>(*id))
            .filter_map(|row| row.spec.startup.as_ref().or(row.spec.check.as_ref()))
            .map(|check| check.start_timeout_ms)
            .max()
            .unwrap_or(0);
        now.after(Duration::from_millis(longest) + DEPLOY_SLACK)
    }

    fn restart(&mut self, now: Time, attempt: Attempt, id: DeploymentId) -> Result<Reply, Refusal> {
        let (job, mut app) = self.job_and_app(attempt)?;
        let row = self.deployment(id)?;
        if row.app != app.id || row.workspace != job.spec.workspace {
            return Err(Refusal::not_found("deployment", format!("{id} of app {}", app.name)));
        }
        let deadline = self.start_deadline(now, &row.processes);
        let deadline = deadline.after(self.hand_over((row.app, &row.workspace), &row.processes));
        // One that was healthy and has let go of its volumes since begins again.
        let gave_way = row.state == DeploymentState::Ready && self.gave_way(&row);
        let from =
            if gave_way { row.state.next(&DeploymentEvent::Retire)? } else { row.state.clone() };
        let state = from.next(&DeploymentEvent::Start { deadline })?;
        let job = if from.wants_instances() { row.job } else { Some(job.id) };
        app.starts += 1;
        let start = app.starts;
        self.put(app);
        self.put(Deployment { state, job, retire_at: None, start, ..(*row).clone() });
        Ok(Reply::Deployment(self.deployment(id)?))
    }

    fn release(&mut self, now: Time, attempt: Attempt, id: DeploymentId) -> Result<Reply, Refusal> {
        let (job, mut app) = self.job_and_app(attempt)?;
        let row = self.deployment(id)?;
        if row.app != app.id || row.workspace != job.spec.workspace {
            return Err(Refusal::not_found("deployment", format!("{id} of app {}", app.name)));
        }
        if row.state != DeploymentState::Ready {
            let message = format!("deployment {id} is {}, not ready", row.state.name());
            return Err(Refusal::Conflict(message));
        }
        if self.gave_way(&row) {
            let message = format!(
                "deployment {id} has let go of its volumes for one that was started later: start it \
                 again first"
            );
            return Err(Refusal::Conflict(message));
        }
        let before = app.released.insert(row.workspace.clone(), id);
        if before != Some(id) {
            app.releases += 1;
            if let Some(old) = before.and_then(|old| self.get::<Deployment>(old).cloned()) {
                self.put(Deployment { retire_at: Some(now.after(DRAIN)), ..(*old).clone() });
            }
        }
        self.put(Deployment { retire_at: None, ..(*row).clone() });
        let app_id = app.id;
        self.put(app);
        self.prune_deployments(app_id);
        self.refresh_routes(now);
        Ok(Reply::Released(self.routes.generation()))
    }

    fn destroy(&mut self, now: Time, mut app: App, workspace: &Name) -> Result<Reply, Refusal> {
        app.released.remove(workspace);
        let rows: Vec<_> = self
            .deployments_of(app.id)
            .filter(|row| row.workspace == *workspace && row.state.wants_instances())
            .cloned()
            .collect();
        for row in rows {
            self.abandon(&row, "its app was destroyed before it was healthy")?;
        }
        self.put(app);
        self.refresh_routes(now);
        Ok(Reply::Released(self.routes.generation()))
    }

    /// Forgets the oldest deployments that run nothing, beyond [`KEPT_DEPLOYMENTS`].
    fn prune_deployments(&mut self, app: AppId) {
        let ended: Vec<_> = self
            .deployments_of(app)
            .filter(|row| !row.state.wants_instances() && !self.runs(row.id))
            .cloned()
            .collect();
        for row in ended.iter().rev().skip(KEPT_DEPLOYMENTS) {
            for process in &row.processes {
                self.delete::<Process>(*process);
            }
            self.delete::<Deployment>(row.id);
        }
    }

    /// Forgets the oldest builds that no deployment uses, beyond [`KEPT_BUILDS`].
    fn prune_builds(&mut self, app: AppId) {
        let used: Vec<BuildId> = self.deployments_of(app).map(|row| row.build).collect();
        let kept = KEPT_BUILDS;
        // Worlds are too short for as many builds as are kept.
        #[cfg(feature = "planted")]
        let (used, kept) = if crate::planted::is("M16") { (Vec::new(), 1) } else { (used, kept) };
        let old: Vec<_> = self
            .builds_of(app)
            .rev()
            .filter(|row| !used.contains(&row.id))
            .skip(kept)
            .map(|row| row.id)
            .collect();
        for id in old {
            self.delete::<Build>(id);
        }
    }
}

/// The answer to a call that is repeated, unless its id belongs to somebody else's work.
pub(crate) fn same(is: bool, reply: Reply) -> Result<Reply, Refusal> {
    if is { Ok(reply) } else { Err(Refusal::Conflict("this id is taken".to_owned())) }
}

fn check_processes(processes: &[ProcessTemplate]) -> Result<(), Refusal> {
    let mut names = BTreeSet::new();
    if processes.is_empty() || processes.len() > MAX_PROCESSES {
        let message = format!("an image needs 1 to {MAX_PROCESSES} processes");
        return Err(Refusal::Invalid(message));
    }
    for process in processes {
        let name = &process.name;
        if !names.insert(name) {
            return Err(Refusal::Invalid(format!("process {name} is there twice")));
        }
        if process.instances > MAX_INSTANCES {
            let message = format!("process {name} wants more than {MAX_INSTANCES} instances");
            return Err(Refusal::Invalid(message));
        }
        process
            .spec
            .validate()
            .map_err(|error| Refusal::Invalid(format!("process {name} is not allowed: {error}")))?;
    }
    Ok(())
}
