//! Jobs and runners: line, assignment, leases, cancellation, dependencies.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use model::{
    JobEvent, JobId, JobState, Outcome, ProjectId, RunnerId, Target, Time, TokenId, check_labels,
};

use crate::command::{Attempt, JobCommand, NewJob, Refusal, Reply, earliest};
use crate::records::{Job, JobSpec, Runner, Token};
use crate::tables::{Core, RowKey};

/// How long a runner has to acknowledge an offer.
pub const ACK_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a runner may be silent before its job is lost. Heartbeats come every 5 s.
pub const JOB_LEASE: Duration = Duration::from_secs(20);
/// How many ended jobs stay in memory; the history has them all.
pub const MAX_FINISHED_JOBS: usize = 10_000;
/// Most jobs that may wait in line.
pub const MAX_QUEUED_JOBS: usize = 1_000_000;
/// Most jobs of one project that may wait in line.
pub const MAX_QUEUED_PER_PROJECT: usize = 10_000;
/// Most characters of the words a job brings: its key, its origin, a label.
pub const MAX_TEXT: usize = 256;
/// Most labels a job may ask a runner for.
const MAX_LABELS: usize = 16;
/// Most dependencies of one job.
pub const MAX_DEPENDENCIES: usize = 100;

impl Job {
    /// The same with the lease of another version.
    pub(crate) fn renewed(&self, other: &Self) -> Self {
        let state = match (&self.state, &other.state) {
            (JobState::Running { runner, .. }, JobState::Running { runner: same, .. })
                if runner == same =>
            {
                other.state.clone()
            }
            _ => self.state.clone(),
        };
        Self { state, ..self.clone() }
    }

    /// When something has to happen to it.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        match &self.state {
            JobState::Queued => self.expires_at,
            JobState::Waiting { ack_by, .. } => earliest([Some(*ack_by), self.expires_at]),
            JobState::Running { lease_until, .. } => Some(*lease_until),
            JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled { .. } => None,
        }
    }
}

/// Refuses what is too long or means nothing.
fn checked_spec(spec: &JobSpec) -> Result<(), Refusal> {
    let invalid = |message: String| Err(Refusal::Invalid(message));
    if spec.depends_on.len() > MAX_DEPENDENCIES {
        return invalid(format!("a job depends on at most {MAX_DEPENDENCIES} others"));
    }
    if spec.allow_failure.iter().any(|id| !spec.depends_on.contains(id)) {
        return invalid("allow_failure names a job that is not in depends_on".to_owned());
    }
    let wanted = match &spec.target {
        Target::Labels(labels) => Some(labels),
        Target::Any | Target::Runner(_) => None,
    };
    if wanted.is_some_and(|labels| labels.len() > MAX_LABELS) {
        return invalid(format!("a job asks for at most {MAX_LABELS} labels"));
    }
    let words = wanted.into_iter().flatten().flat_map(|(name, value)| [name, value]);
    let words = words.chain(&spec.idempotency_key).chain([&spec.origin]);
    for word in words {
        if word.chars().count() > MAX_TEXT || word.chars().any(char::is_control) {
            return invalid(format!(
                "a key, an origin and a label have at most {MAX_TEXT} characters, none of them a \
                 control character"
            ));
        }
    }
    Ok(())
}

impl Core {
    pub(crate) fn job_command(&mut self, now: Time, command: JobCommand) -> Result<Reply, Refusal> {
        match command {
            JobCommand::Queue(new) => self.queue_job(now, new),
            JobCommand::QueueAll(all) => self.queue_all(now, all),
            JobCommand::Assign(runner) => self.assign(now, runner),
            JobCommand::Ack(attempt) => {
                let job = self.attempt(attempt)?;
                let lease_until = now.after(JOB_LEASE);
                let state = job.state.next(&JobEvent::Ack { lease_until })?;
                self.put(Job { state, started_at: Some(now), ..(*job).clone() });
                Ok(Reply::Done)
            }
            JobCommand::Nack(attempt) => {
                let job = self.attempt(attempt)?;
                self.requeue(now, &job)?;
                Ok(Reply::Done)
            }
            JobCommand::Heartbeat(attempt) => {
                #[cfg(feature = "planted")]
                let attempt = self.planted_attempt(attempt)?;
                let job = self.attempt(attempt)?;
                let lease_until = now.after(JOB_LEASE);
                let state = job.state.next(&JobEvent::Heartbeat { lease_until })?;
                self.put(Job { state, ..(*job).clone() });
                Ok(Reply::Done)
            }
            JobCommand::Complete(attempt, outcome) => self.complete(now, attempt, outcome),
            JobCommand::Cancel { job, force, reason } => {
                self.cancel_job(now, job, force, &reason)?;
                Ok(Reply::Done)
            }
            JobCommand::RunnerOnline { id, name, labels, only_own, holds, token } => {
                self.may_join(now, id, token)?;
                check_labels(&labels).map_err(|error| Refusal::Invalid(error.to_string()))?;
                if self.get::<Runner>(id).is_none() {
                    self.room_for_runner()?;
                }
                let streams = self.get::<Runner>(id).map_or(0, |runner| runner.streams);
                let streams = streams.saturating_add(1);
                let (online, since) = (true, now);
                self.put(Runner { id, name, labels, only_own, online, streams, since, token });
                self.runner_holds(now, id, &holds)?;
                Ok(Reply::Done)
            }
            JobCommand::Over { runner, report } => {
                self.reports_its_own(runner, &report)?;
                self.job_command(now, *report)
            }
            JobCommand::RunnerOffline(id) => self.runner_offline(now, id),
        }
    }

    /// Whether a runner may join with this token: its jobs are its own.
    pub(crate) fn may_join(
        &self,
        now: Time,
        id: RunnerId,
        token: Option<TokenId>,
    ) -> Result<(), Refusal> {
        let before = self.get::<Runner>(id).and_then(|runner| runner.token);
        let other = before.filter(|it| token != Some(*it)).and_then(|it| self.get::<Token>(it));
        if other.is_some_and(|row| row.works(now)) {
            let message = format!(
                "runner {id} belongs to another token, which still works: start it without a new one \
                 (it keeps its own), revoke that one, or start this runner with a directory of its own"
            );
            return Err(Refusal::Conflict(message));
        }
        Ok(())
    }

    /// Refuses a report on a job that another runner has, and what is no report.
    fn reports_its_own(&self, runner: RunnerId, report: &JobCommand) -> Result<(), Refusal> {
        let Some(at) = report.reported() else {
            return Err(Refusal::Invalid("a runner reports on attempts only".to_owned()));
        };
        // Planted: reports of old epochs count, whoever makes them.
        #[cfg(feature = "planted")]
        if crate::planted::is("M1") || crate::planted::is("M2") {
            return Ok(());
        }
        match self.job(at.job)?.state.runner() {
            Some(holder) if holder != runner => Err(Refusal::stale("job", at.job)),
            Some(_) | None => Ok(()),
        }
    }

    /// The job of an attempt, if the attempt is the current one.
    pub(crate) fn attempt(&self, attempt: Attempt) -> Result<Arc<Job>, Refusal> {
        let job = self.job(attempt.job)?;
        let stale = job.epoch != attempt.epoch;
        #[cfg(feature = "planted")]
        let stale = stale && !crate::planted::is("M1");
        if stale { Err(Refusal::stale("job", attempt.job)) } else { Ok(job) }
    }

    /// The attempt that a sign of life counts for.
    #[cfg(feature = "planted")]
    fn planted_attempt(&self, attempt: Attempt) -> Result<Attempt, Refusal> {
        let epoch =
            if crate::planted::is("M2") { self.job(attempt.job)?.epoch } else { attempt.epoch };
        Ok(Attempt { epoch, ..attempt })
    }

    /// The job of an attempt that a runner is working on right now.
    pub(crate) fn running(&self, attempt: Attempt) -> Result<Arc<Job>, Refusal> {
        let job = self.attempt(attempt)?;
        match job.state {
            JobState::Running { .. } if job.cancel.is_none() => Ok(job),
            JobState::Running { .. } => {
                Err(Refusal::Conflict(format!("job {} was asked to stop", job.id)))
            }
            JobState::Queued
            | JobState::Waiting { .. }
            | JobState::Succeeded
            | JobState::Failed { .. }
            | JobState::Cancelled { .. } => Err(Refusal::stale("job", job.id)),
        }
    }

    pub(crate) fn job(&self, id: JobId) -> Result<Arc<Job>, Refusal> {
        self.get::<Job>(id).cloned().ok_or_else(|| Refusal::not_found("job", id))
    }

    fn queue_job(&mut self, now: Time, new: NewJob) -> Result<Reply, Refusal> {
        if let Some(known) = self.same_key(&new.spec) {
            return Ok(Reply::Job(known));
        }
        let id = new.id;
        self.insert_job(now, new)?;
        Ok(Reply::Job(self.job(id)?))
    }

    fn same_key(&self, spec: &JobSpec) -> Option<Arc<Job>> {
        #[cfg(feature = "planted")]
        if crate::planted::is("M10") {
            return None;
        }
        let id = self.indexes.queue.keys.get(spec.idempotency_key.as_ref()?)?;
        self.get::<Job>(*id).cloned()
    }

    /// Queues dependencies before their dependents; a cycle leaves a rest that cannot be ordered.
    fn queue_all(&mut self, now: Time, all: Vec<NewJob>) -> Result<Reply, Refusal> {
        let ids: Vec<JobId> = all.iter().map(|new| new.id).collect();
        let mut rest = all;
        while !rest.is_empty() {
            let open: BTreeSet<JobId> = rest.iter().map(|new| new.id).collect();
            let (blocked, free): (Vec<_>, Vec<_>) = rest
                .into_iter()
                .partition(|new| new.spec.depends_on.iter().any(|id| open.contains(id)));
            if free.is_empty() {
                let message = "the jobs depend on each other in a cycle: break it";
                return Err(Refusal::Invalid(message.to_owned()));
            }
            for new in free {
                self.insert_job(now, new)?;
            }
            rest = blocked;
        }
        ids.into_iter().map(|id| self.job(id)).collect::<Result<_, _>>().map(Reply::Jobs)
    }

    fn insert_job(&mut self, now: Time, new: NewJob) -> Result<(), Refusal> {
        let NewJob { id, spec, expires_in } = new;
        if self.get::<Job>(id).is_some() {
            return Err(Refusal::Conflict(format!("job {id} exists already")));
        }
        self.checked_room(spec.project)?;
        checked_spec(&spec)?;
        let queued_at = self.replace_singleton(now, id, &spec)?;
        // After that: what it replaced may be what it depends on.
        let mut waits_for = BTreeSet::new();
        for dependency in &spec.depends_on {
            let row = self.job(*dependency)?;
            if row.spec.project != spec.project {
                return Err(Refusal::not_found("job", dependency));
            }
            if !row.state.is_terminal() {
                waits_for.insert(*dependency);
            }
        }
        self.put(Job {
            id,
            spec,
            state: JobState::Queued,
            epoch: 0,
            queued_at,
            started_at: None,
            ended_at: None,
            expires_at: expires_in.map(|limit| now.after(limit)),
            cancel: None,
            waits_for,
        });
        Ok(())
    }

    /// Refuses more jobs in line than may wait.
    fn checked_room(&self, project: ProjectId) -> Result<(), Refusal> {
        let queue = &self.indexes.queue;
        let limit = if queue.queued_len() >= MAX_QUEUED_JOBS {
            MAX_QUEUED_JOBS
        } else if queue.queued_of(project) >= MAX_QUEUED_PER_PROJECT {
            MAX_QUEUED_PER_PROJECT
        } else {
            return Ok(());
        };
        Err(Refusal::Conflict(format!("{limit} jobs wait in line: try again later")))
    }

    /// Ends the queued job of the same singleton, whose place in line the new one takes, and asks
    /// the running one to stop.
    fn replace_singleton(&mut self, now: Time, id: JobId, spec: &JobSpec) -> Result<Time, Refusal> {
        let Some(singleton) = &spec.singleton else { return Ok(now) };
        let others = self.indexes.queue.singletons.get(singleton).cloned().unwrap_or_default();
        let mut queued_at = now;
        for other in others {
            let job = self.job(other)?;
            if job.state == JobState::Queued {
                queued_at = queued_at.min(job.queued_at);
            }
            self.cancel_job(
                now,
                other,
                false,
                &format!("job {id}, which is newer, took its place"),
            )?;
        }
        Ok(queued_at)
    }

    fn assign(&mut self, now: Time, id: RunnerId) -> Result<Reply, Refusal> {
        let runner =
            self.get::<Runner>(id).cloned().ok_or_else(|| Refusal::not_found("runner", id))?;
        let Some(next) = self.indexes.queue.next_for(&runner) else {
            return Ok(Reply::Assigned(None));
        };
        let job = self.job(next)?;
        let event = JobEvent::Assign { runner: id, ack_by: now.after(ACK_TIMEOUT) };
        let state = job.state.next(&event)?;
        self.put(Job { state, epoch: job.epoch + 1, ..(*job).clone() });
        Ok(Reply::Assigned(Some(self.job(next)?)))
    }

    fn requeue(&mut self, now: Time, job: &Job) -> Result<(), Refusal> {
        let state = job.state.next(&JobEvent::Nack)?;
        #[cfg(feature = "planted")]
        if crate::planted::is("M5") {
            return Ok(());
        }
        if let Some(reason) = &job.cancel {
            let event = JobEvent::Cancel { reason: reason.clone() };
            return self.end_job(now, job, state.next(&event)?);
        }
        #[cfg(feature = "planted")]
        if crate::planted::is("M6") {
            self.put(Job { state, ..job.clone() });
            return Ok(());
        }
        self.put(Job { state, epoch: job.epoch + 1, ..job.clone() });
        Ok(())
    }

    fn complete(&mut self, now: Time, at: Attempt, outcome: Outcome) -> Result<Reply, Refusal> {
        let job = self.attempt(at)?;
        // Who asked it to stop said why; its runner cannot know.
        let outcome = match (outcome, &job.cancel) {
            (Outcome::Cancelled { .. }, Some(reason)) => {
                Outcome::Cancelled { reason: reason.clone() }
            }
            (outcome, _) => outcome,
        };
        if job.state.is_terminal() && job.state == JobState::from(outcome.clone()) {
            // The answer to the first report was lost on its way.
            return Ok(Reply::Done);
        }
        let state = job.state.next(&JobEvent::Complete(outcome))?;
        self.end_job(now, &job, state)?;
        Ok(Reply::Done)
    }

    fn cancel_job(
        &mut self,
        now: Time,
        id: JobId,
        force: bool,
        reason: &str,
    ) -> Result<(), Refusal> {
        let job = self.job(id)?;
        if job.state.is_terminal() {
            return Ok(());
        }
        let reason = reason.to_owned();
        let event = if force {
            JobEvent::ForceCancel { reason: reason.clone() }
        } else {
            JobEvent::Cancel { reason: reason.clone() }
        };
        let state = job.state.next(&event)?;
        if state.is_terminal() {
            return self.end_job(now, &job, state);
        }
        #[cfg(feature = "planted")]
        if crate::planted::is("M18") && matches!(state, JobState::Waiting { .. }) {
            return Ok(());
        }
        self.put(Job { state, cancel: Some(reason), ..(*job).clone() });
        Ok(())
    }

    /// Ends a job: its dependents move on or fail, its tasks stop, its unfinished deployments go.
    fn end_job(&mut self, now: Time, job: &Job, state: JobState) -> Result<(), Refusal> {
        let mut ending = vec![(job.id, state)];
        while let Some((id, state)) = ending.pop() {
            let job = self.job(id)?;
            let failed = state != JobState::Succeeded;
            // The epoch stays: a repeated report of the same end is answered, not refused.
            self.put(Job {
                state,
                ended_at: Some(now),
                waits_for: BTreeSet::new(),
                ..(*job).clone()
            });
            let dependents = self.indexes.queue.dependents.get(&id).cloned();
            for dependent in dependents.into_iter().flatten() {
                let row = self.job(dependent)?;
                let mut waits_for = row.waits_for.clone();
                waits_for.remove(&id);
                self.put(Job { waits_for, ..(*row).clone() });
                if failed && !row.spec.allow_failure.contains(&id) {
                    let reason = format!("dependency {id} did not succeed");
                    ending.push((dependent, row.state.next(&JobEvent::Drop { reason })?));
                }
            }
            self.end_work_of(now, id, failed)?;
        }
        Ok(())
    }

    fn runner_holds(
        &mut self,
        now: Time,
        runner: RunnerId,
        holds: &[Attempt],
    ) -> Result<(), Refusal> {
        let held = self.indexes.queue.by_runner.get(&runner).cloned().unwrap_or_default();
        for id in held {
            let job = self.job(id)?;
            if holds.contains(&Attempt { job: id, epoch: job.epoch }) {
                continue;
            }
            match &job.state {
                JobState::Waiting { .. } => self.requeue(now, &job)?,
                JobState::Running { .. } => {
                    let reason = "its runner restarted while it was running".to_owned();
                    let state = job.state.next(&JobEvent::Lost { reason })?;
                    self.end_job(now, &job, state)?;
                }
                JobState::Queued
                | JobState::Succeeded
                | JobState::Failed { .. }
                | JobState::Cancelled { .. } => {}
            }
        }
        Ok(())
    }

    fn runner_offline(&mut self, now: Time, id: RunnerId) -> Result<Reply, Refusal> {
        let Some(runner) = self.get::<Runner>(id).cloned() else { return Ok(Reply::Done) };
        let streams = runner.streams.saturating_sub(1);
        if streams > 0 {
            self.put(Runner { streams, ..(*runner).clone() });
            return Ok(Reply::Done);
        }
        self.put(Runner { online: false, streams, since: now, ..(*runner).clone() });
        let held = self.indexes.queue.by_runner.get(&id).cloned().unwrap_or_default();
        for id in held {
            let job = self.job(id)?;
            if matches!(job.state, JobState::Waiting { .. }) {
                self.requeue(now, &job)?;
            }
        }
        Ok(Reply::Done)
    }

    /// A job's deadline passed.
    pub(crate) fn job_due(&mut self, now: Time, id: JobId) -> Result<(), Refusal> {
        let job = self.job(id)?;
        match &job.state {
            #[cfg(feature = "planted")]
            JobState::Running { .. } if crate::planted::is("M8") => {
                self.put(Job { state: JobState::Queued, epoch: job.epoch + 1, ..(*job).clone() });
                Ok(())
            }
            JobState::Running { .. } => {
                let secs = JOB_LEASE.as_secs();
                let reason = format!("its runner has not been heard of for {secs} s");
                let state = job.state.next(&JobEvent::Lost { reason })?;
                self.end_job(now, &job, state)
            }
            JobState::Queued | JobState::Waiting { .. }
                if job.expires_at.is_some_and(|at| at <= now) =>
            {
                let reason = "no runner took it before it expired".to_owned();
                let state = job.state.next(&JobEvent::Drop { reason })?;
                self.end_job(now, &job, state)
            }
            JobState::Waiting { .. } => self.requeue(now, &job),
            JobState::Queued
            | JobState::Succeeded
            | JobState::Failed { .. }
            | JobState::Cancelled { .. } => Ok(()),
        }
    }

    /// After a restart every offer and lease starts afresh: nobody could report in between.
    pub(crate) fn resume_jobs(&mut self, now: Time) -> Result<(), Refusal> {
        let held: Vec<JobId> = self.indexes.queue.by_runner.values().flatten().copied().collect();
        for id in held {
            let job = self.job(id)?;
            let state = match &job.state {
                JobState::Waiting { runner, .. } => {
                    JobState::Waiting { runner: *runner, ack_by: now.after(ACK_TIMEOUT) }
                }
                other => other.next(&JobEvent::Heartbeat { lease_until: now.after(JOB_LEASE) })?,
            };
            self.put(Job { state, ..(*job).clone() });
        }
        Ok(())
    }

    /// No runner is connected to a server that has just started.
    pub(crate) fn runners_left(&mut self, now: Time) {
        let online: Vec<Runner> =
            self.tables.runners.values().filter(|r| r.online).map(|r| (**r).clone()).collect();
        for runner in online {
            self.put(Runner { online: false, streams: 0, since: now, ..runner });
        }
    }

    /// Whether the row is a job that will never change again.
    pub(crate) fn has_ended(&self, key: RowKey) -> bool {
        let RowKey::Job(id) = key else { return false };
        self.get::<Job>(id).is_some_and(|job| job.state.is_terminal())
    }

    /// Lets go of ended jobs beyond the limit, oldest first.
    pub(crate) fn forget_old_jobs(&mut self) {
        while self.indexes.queue.finished.len() > MAX_FINISHED_JOBS {
            let Some((_, id)) = self.indexes.queue.finished.first().copied() else { break };
            self.replace::<Job>(id, None);
        }
    }
}
