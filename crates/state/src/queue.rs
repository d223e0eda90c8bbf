//! The order of waiting jobs: who is next, who is held up by what.

use std::collections::{BTreeMap, BTreeSet};

use model::{AppId, JobId, JobState, Name, ProjectId, RunnerId, Target, Time};

use crate::records::{Job, JobSpec, Runner};

/// Jobs that change what an app runs exclude each other per app and workspace.
pub(crate) type Scope = (AppId, Name);
type Place = (Time, JobId);

/// Indexes over jobs, kept up to date by every change of a job row.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Queued, nothing in the way, by target.
    ready: BTreeMap<Target, BTreeSet<Place>>,
    /// Queued jobs that change an app, whether ready or not.
    by_scope: BTreeMap<Scope, BTreeSet<(Place, Target)>>,
    /// Who holds a scope. After a crash at an unlucky moment nobody else may be in here.
    held: BTreeMap<Scope, BTreeSet<JobId>>,
    /// How many jobs are queued, whatever holds them up.
    queued: usize,
    /// The same by project.
    queued_by_project: BTreeMap<ProjectId, usize>,
    /// Jobs that wait for the key to end.
    pub(crate) dependents: BTreeMap<JobId, BTreeSet<JobId>>,
    /// Jobs of a singleton that have not ended.
    pub(crate) singletons: BTreeMap<String, BTreeSet<JobId>>,
    /// Jobs by idempotency key.
    pub(crate) keys: BTreeMap<String, JobId>,
    /// Jobs a runner holds.
    pub(crate) by_runner: BTreeMap<RunnerId, BTreeSet<JobId>>,
    /// Ended jobs, oldest first.
    pub(crate) finished: BTreeSet<(Time, JobId)>,
}

fn scope(spec: &JobSpec) -> Option<Scope> {
    let app = spec.app?;
    spec.operation.changes_app().then(|| (app, spec.workspace.clone()))
}

fn discard<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

impl Queue {
    pub(crate) fn add(&mut self, job: &Job) {
        if let Some(key) = &job.spec.idempotency_key {
            self.keys.insert(key.clone(), job.id);
        }
        for dependency in &job.waits_for {
            self.dependents.entry(*dependency).or_default().insert(job.id);
        }
        match &job.state {
            JobState::Queued => self.add_queued(job),
            JobState::Waiting { runner, .. } | JobState::Running { runner, .. } => {
                self.by_runner.entry(*runner).or_default().insert(job.id);
                self.hold(job);
            }
            JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled { .. } => {
                self.finished.insert((job.ended_at.unwrap_or(job.queued_at), job.id));
            }
        }
        if !job.state.is_terminal()
            && let Some(singleton) = &job.spec.singleton
        {
            self.singletons.entry(singleton.clone()).or_default().insert(job.id);
        }
    }

    pub(crate) fn remove(&mut self, job: &Job) {
        if let Some(key) = &job.spec.idempotency_key {
            self.keys.remove(key);
        }
        for dependency in &job.waits_for {
            discard(&mut self.dependents, dependency, &job.id);
        }
        match &job.state {
            JobState::Queued => self.remove_queued(job),
            JobState::Waiting { runner, .. } | JobState::Running { runner, .. } => {
                discard(&mut self.by_runner, runner, &job.id);
                self.release(job);
            }
            JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled { .. } => {
                self.finished.remove(&(job.ended_at.unwrap_or(job.queued_at), job.id));
            }
        }
        if let Some(singleton) = &job.spec.singleton {
            discard(&mut self.singletons, singleton, &job.id);
        }
    }

    fn add_queued(&mut self, job: &Job) {
        self.queued += 1;
        *self.queued_by_project.entry(job.spec.project).or_default() += 1;
        if !job.waits_for.is_empty() {
            return;
        }
        let place = (job.queued_at, job.id);
        let mut free = true;
        if let Some(scope) = scope(&job.spec) {
            free = !self.held.contains_key(&scope);
            self.by_scope.entry(scope).or_default().insert((place, job.spec.target.clone()));
        }
        if free {
            self.make_ready(place, &job.spec.target);
        }
    }

    fn make_ready(&mut self, place: Place, target: &Target) {
        if let Some(set) = self.ready.get_mut(target) {
            set.insert(place);
        } else {
            self.ready.insert(target.clone(), BTreeSet::from([place]));
        }
    }

    fn remove_queued(&mut self, job: &Job) {
        self.queued -= 1;
        if let Some(queued) = self.queued_by_project.get_mut(&job.spec.project) {
            *queued -= 1;
            if *queued == 0 {
                self.queued_by_project.remove(&job.spec.project);
            }
        }
        let place = (job.queued_at, job.id);
        if let Some(scope) = scope(&job.spec) {
            discard(&mut self.by_scope, &scope, &(place, job.spec.target.clone()));
        }
        if let Some(set) = self.ready.get_mut(&job.spec.target) {
            set.remove(&place);
            if set.is_empty() && job.spec.target != Target::Any {
                self.ready.remove(&job.spec.target);
            }
        }
    }

    fn hold(&mut self, job: &Job) {
        let Some(scope) = scope(&job.spec) else { return };
        for (place, target) in self.by_scope.get(&scope).into_iter().flatten() {
            discard(&mut self.ready, target, place);
        }
        self.held.entry(scope).or_default().insert(job.id);
    }

    fn release(&mut self, job: &Job) {
        let Some(scope) = scope(&job.spec) else { return };
        discard(&mut self.held, &scope, &job.id);
        if self.held.contains_key(&scope) {
            return;
        }
        let waiting: Vec<_> = self.by_scope.get(&scope).into_iter().flatten().cloned().collect();
        for (place, target) in waiting {
            self.make_ready(place, &target);
        }
    }

    /// The job `runner` should take now: the one that has waited longest among those it may take.
    pub(crate) fn next_for(&self, runner: &Runner) -> Option<JobId> {
        let first = |target: &Target| self.ready.get(target).and_then(BTreeSet::first);
        let own = first(&Target::Runner(runner.id));
        if runner.only_own {
            return own.map(|(_, job)| *job);
        }
        // Labels sort after `Any` and `Runner`, so only label targets are scanned.
        let labelled = self
            .ready
            .range(Target::Labels(BTreeMap::new())..)
            .filter(|(target, _)| accepts(runner, target))
            .filter_map(|(_, set)| set.first());
        labelled.chain(own).chain(first(&Target::Any)).min().map(|(_, job)| *job)
    }

    /// Who holds the scope of `spec`.
    pub(crate) fn holder(&self, spec: &JobSpec) -> Option<JobId> {
        self.held.get(&scope(spec)?)?.first().copied()
    }

    /// How many jobs are queued, whether or not they could start now.
    pub(crate) const fn queued_len(&self) -> usize {
        self.queued
    }

    /// How many jobs of a project are queued.
    pub(crate) fn queued_of(&self, project: ProjectId) -> usize {
        self.queued_by_project.get(&project).copied().unwrap_or(0)
    }

    /// How many jobs could start now.
    pub(crate) fn ready_len(&self) -> usize {
        self.ready.values().map(BTreeSet::len).sum()
    }
}

/// Whether `runner` may take a job with this target.
pub(crate) fn accepts(runner: &Runner, target: &Target) -> bool {
    match target {
        Target::Any => !runner.only_own,
        Target::Runner(id) => *id == runner.id,
        Target::Labels(wanted) => {
            !runner.only_own && wanted.iter().all(|(k, v)| runner.labels.get(k) == Some(v))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::Operation;

    use super::*;

    #[test]
    fn queued_jobs_count_whatever_holds_them_up() {
        let spec = Arc::new(JobSpec {
            project: ProjectId(1),
            app: Some(AppId(1)),
            workspace: "production".parse().expect("a name"),
            operation: Operation::Destroy,
            target: Target::Any,
            depends_on: Vec::new(),
            allow_failure: Vec::new(),
            singleton: None,
            idempotency_key: None,
            origin: String::new(),
        });
        let job = |id, state, waits_for: &[JobId]| Job {
            id: JobId(id),
            spec: Arc::clone(&spec),
            state,
            epoch: 0,
            queued_at: Time(0),
            started_at: None,
            ended_at: None,
            expires_at: None,
            cancel: None,
            waits_for: waits_for.iter().copied().collect(),
        };
        let mut queue = Queue::default();
        let runs = JobState::Running { runner: RunnerId(1), lease_until: Time(9) };
        queue.add(&job(1, runs, &[]));
        queue.add(&job(2, JobState::Queued, &[]));
        queue.add(&job(3, JobState::Queued, &[JobId(1)]));
        assert_eq!((queue.ready_len(), queue.queued_len()), (0, 2));
        queue.remove(&job(3, JobState::Queued, &[JobId(1)]));
        assert_eq!(queue.queued_len(), 1);
    }
}
