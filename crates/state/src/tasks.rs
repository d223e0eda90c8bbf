//! Tasks: made, expired, cancelled, ended, tried again, forgotten.

use std::sync::Arc;
use std::time::Duration;

use model::{
    Action, JobId, ProjectId, TASK_START_MS, TaskEvent, TaskId, TaskSpec, TaskState, Time,
};

use crate::command::{Refusal, Reply, earliest};
use crate::records::{Callback, Cell, Project, Task};
use crate::tables::Core;
use crate::work::same;

/// How long an ended task is kept for whoever asks how it ended.
pub const TASK_KEPT: Duration = Duration::from_mins(10);
/// How long a cell has to confirm that a cancelled task has ended; then it counts as cancelled
/// anyway. Longer than the longest a task is given to end by itself.
pub const CANCEL_FORCE: Duration = Duration::from_mins(1);
/// Most tasks that have not ended.
pub const MAX_OPEN_TASKS: usize = 100_000;
/// Most tasks of one project that have not ended.
pub const MAX_OPEN_TASKS_PER_PROJECT: usize = 10_000;
/// Most tasks of one project that are kept, ended ones too: some eighty a second for as long as they
/// are kept.
pub const MAX_KEPT_TASKS_PER_PROJECT: usize = 50_000;
/// Most tasks that are kept, ended ones too; each takes some 2 KiB of memory.
pub const MAX_KEPT_TASKS: usize = 200_000;
/// Most bytes of the specs and results of one project's tasks that are kept.
pub const MAX_TASK_BYTES_PER_PROJECT: usize = 64 << 20;
/// Most bytes of the specs and results of all tasks that are kept: what a server of 1 GiB can hold.
pub const MAX_TASK_BYTES: usize = 512 << 20;
/// Most bytes of a spec that is kept whole when its task has ended.
pub const MAX_ENDED_SPEC: usize = 4 << 10;
/// Most bytes of the words that name a task a second time.
pub const MAX_TASK_KEY: usize = 200;

/// When there is room again.
const FORGOTTEN: &str = "those that ended are forgotten ten minutes after their end, or after their \
                         callback was answered or given up: see to it that callbacks answer";

/// Who a task belongs to.
#[derive(Debug, Default)]
pub(crate) struct Maker {
    pub(crate) job: Option<JobId>,
    pub(crate) project: Option<ProjectId>,
    pub(crate) key: Option<String>,
}

/// How much is kept of tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeptTasks {
    /// How many, ended ones too.
    pub tasks: usize,
    /// Bytes of their specs and results.
    pub bytes: usize,
}

impl KeptTasks {
    pub(crate) fn add(&mut self, row: &Task) {
        self.tasks += 1;
        self.bytes += row.bytes();
    }

    pub(crate) fn remove(&mut self, row: &Task) {
        self.tasks = self.tasks.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(row.bytes());
    }
}

/// What is still looked at of the spec of a task that ended: who is told, what else it says, and how
/// often it was tried.
fn remains(spec: &TaskSpec) -> TaskSpec {
    let nothing = Action::Serial { actions: Vec::new() };
    let mut remains = TaskSpec::new(nothing, spec.timeout_ms);
    remains.container.driver.clone_from(&spec.container.driver);
    remains.callback.clone_from(&spec.callback);
    remains.annotation.clone_from(&spec.annotation);
    remains.retry = spec.retry;
    remains.start_timeout_ms = spec.start_timeout_ms;
    remains
}

impl Task {
    /// Bytes of its spec and of how it ended.
    pub fn bytes(&self) -> usize {
        let end = match &self.state {
            TaskState::Succeeded { result, .. } => result.as_ref().map_or(0, String::len),
            TaskState::Failed { reason, detail } => {
                let tail = detail.iter().flat_map(|detail| &detail.tail);
                reason.len() + tail.map(String::len).sum::<usize>()
            }
            TaskState::Pending { .. }
            | TaskState::Offered { .. }
            | TaskState::Running { .. }
            | TaskState::Cancelled { .. } => 0,
        };
        self.spec_bytes + end
    }

    /// Whether it runs or ran this.
    fn does(&self, spec: &TaskSpec) -> bool {
        match self.ran {
            Some(ran) => spec.digest() == Some(ran),
            None => *self.spec == *spec,
        }
    }

    /// Forgets what nobody looks at any more: it runs no more.
    fn shrink(&mut self) {
        if self.spec_bytes <= MAX_ENDED_SPEC {
            return;
        }
        let Some(ran) = self.spec.digest() else { return };
        let remains = remains(&self.spec);
        self.spec_bytes = remains.bytes();
        self.spec = Arc::new(remains);
        self.ran = Some(ran);
    }

    /// When something has to happen to it.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        match &self.state {
            TaskState::Pending { .. } | TaskState::Offered { .. } => {
                earliest([self.paused_until, self.start_by])
            }
            TaskState::Running { .. } => self.cancel_by,
            TaskState::Succeeded { .. }
            | TaskState::Failed { .. }
            | TaskState::Cancelled { .. } => self.forget_at(),
        }
    }

    /// When it may be forgotten: not while an attempt follows it or somebody is to be told of it.
    fn forget_at(&self) -> Option<Time> {
        let since = match (&self.followed_by, &self.callback) {
            (Some(_), _) | (_, Some(Callback::Waiting)) => return None,
            (None, Some(Callback::Delivered { at } | Callback::GivenUp { at, .. })) => Some(*at),
            (None, None) => None,
        };
        self.ended_at.max(since).map(|at| at.after(TASK_KEPT))
    }

    /// Whether its policy wants another attempt.
    fn is_retried(&self) -> bool {
        let attempts = self.spec.retry.map_or(1, |retry| retry.attempts);
        matches!(self.state, TaskState::Failed { .. })
            && !self.cancelling
            && self.attempt < attempts
    }
}

/// A length of time as people say it.
fn span(ms: u64) -> String {
    match ms {
        ms if ms % 60_000 == 0 => format!("{} min", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("{} s", ms / 1_000),
        ms => format!("{ms} ms"),
    }
}

fn start_by(now: Time, spec: &TaskSpec) -> Time {
    let ms = spec.start_timeout_ms.unwrap_or(TASK_START_MS);
    now.after(Duration::from_millis(ms))
}

/// The spec of a task that somebody made for a project, as it runs: its caches are the project's.
fn owned(project: &Project, spec: &TaskSpec) -> TaskSpec {
    let mut spec = spec.clone();
    // Names hold no underscore, so no other project, and no build of this one, has such a key.
    let key = |key: String| format!("{}__{key}", project.name);
    let caches = std::mem::take(&mut spec.container.caches);
    spec.container.caches = caches.into_iter().map(|(name, path)| (key(name), path)).collect();
    spec
}

/// A volume has one writer, which is an instance.
fn no_volumes(spec: &TaskSpec) -> Result<(), Refusal> {
    if spec.container.volumes.is_empty() {
        return Ok(());
    }
    let message = "container.volumes is not allowed: volumes belong to processes";
    Err(Refusal::Invalid(message.to_owned()))
}

impl Core {
    pub(crate) fn task(&self, id: TaskId) -> Result<Arc<Task>, Refusal> {
        self.get::<Task>(id).cloned().ok_or_else(|| Refusal::not_found("task", id))
    }

    pub(crate) fn create_task(
        &mut self,
        now: Time,
        id: TaskId,
        maker: Maker,
        spec: Arc<TaskSpec>,
    ) -> Result<Reply, Refusal> {
        spec.validate().map_err(|error| Refusal::Invalid(error.to_string()))?;
        no_volumes(&spec)?;
        let bytes = spec.bytes();
        self.put_task(now, id, maker, (spec, bytes))
    }

    fn put_task(
        &mut self,
        now: Time,
        id: TaskId,
        maker: Maker,
        (spec, spec_bytes): (Arc<TaskSpec>, usize),
    ) -> Result<Reply, Refusal> {
        self.put(Task {
            id,
            job: maker.job,
            project: maker.project,
            start_by: Some(start_by(now, &spec)),
            spec_bytes,
            spec,
            ran: None,
            state: TaskState::Pending { reason: None },
            epoch: 0,
            created_at: now,
            ended_at: None,
            cancelling: false,
            cancel_by: None,
            paused_until: None,
            key: maker.key,
            attempt: 1,
            rejects: 0,
            retry_of: None,
            followed_by: None,
            callback: None,
        });
        Ok(Reply::Task(self.task(id)?))
    }

    /// Makes a task that somebody asked for directly.
    pub(crate) fn new_task(
        &mut self,
        now: Time,
        id: TaskId,
        (project, key): (ProjectId, Option<String>),
        spec: &TaskSpec,
    ) -> Result<Reply, Refusal> {
        let invalid = |message: &str| Err(Refusal::Invalid(message.to_owned()));
        no_volumes(spec)?;
        let plain = |key: &String| key.len() <= MAX_TASK_KEY && !key.chars().any(char::is_control);
        if key.as_ref().is_some_and(|key| !plain(key)) {
            return invalid(
                "idempotency_key is not allowed: use at most 200 bytes, none of them control",
            );
        }
        let spec = Arc::new(owned(self.project(project)?, spec));
        if let Some(key) = &key
            && let Some(known) = self.indexes.task_keys.get(&(project, key.clone()))
        {
            let known = self.task(*known)?;
            if known.does(&spec) {
                return Ok(Reply::Task(known));
            }
            let message = format!("idempotency_key names task {}, which is another one", known.id);
            return Err(Refusal::Conflict(message));
        }
        if let Some(known) = self.get::<Task>(id).cloned() {
            let is = known.project == Some(project) && known.does(&spec) && known.key == key;
            return same(is, Reply::Task(known));
        }
        self.add_task(now, id, (project, key), spec)
    }

    /// Makes a task beside an app.
    pub(crate) fn run_once(
        &mut self,
        now: Time,
        id: TaskId,
        project: ProjectId,
        spec: Arc<TaskSpec>,
    ) -> Result<Reply, Refusal> {
        no_volumes(&spec)?;
        self.add_task(now, id, (project, None), spec)
    }

    fn add_task(
        &mut self,
        now: Time,
        id: TaskId,
        (project, key): (ProjectId, Option<String>),
        spec: Arc<TaskSpec>,
    ) -> Result<Reply, Refusal> {
        spec.validate().map_err(|error| Refusal::Invalid(error.to_string()))?;
        let bytes = spec.bytes();
        self.has_room_for_task(project, bytes)?;
        let maker = Maker { job: None, project: Some(project), key };
        self.put_task(now, id, maker, (spec, bytes))
    }

    fn has_room_for_task(&self, project: ProjectId, bytes: usize) -> Result<(), Refusal> {
        let all: usize = self.indexes.open_tasks.values().sum();
        let own = self.indexes.open_tasks.get(&project).copied().unwrap_or(0);
        if own >= MAX_OPEN_TASKS_PER_PROJECT || all >= MAX_OPEN_TASKS {
            let message = format!(
                "{own} tasks of this project and {all} in all have not ended, at most \
                 {MAX_OPEN_TASKS_PER_PROJECT} and {MAX_OPEN_TASKS} may wait: try again later"
            );
            return Err(Refusal::Conflict(message));
        }
        let (own, all) = self.indexes.kept_tasks(project);
        if own.tasks >= MAX_KEPT_TASKS_PER_PROJECT || all.tasks >= MAX_KEPT_TASKS {
            let message = format!(
                "{} tasks of this project and {} in all are kept, at most \
                 {MAX_KEPT_TASKS_PER_PROJECT} and {MAX_KEPT_TASKS} may be: {FORGOTTEN}",
                own.tasks, all.tasks
            );
            return Err(Refusal::Conflict(message));
        }
        let fits = |kept: KeptTasks, most: usize| kept.bytes.saturating_add(bytes) <= most;
        if !fits(own, MAX_TASK_BYTES_PER_PROJECT) || !fits(all, MAX_TASK_BYTES) {
            let message = format!(
                "a spec of {bytes} bytes does not fit beside the tasks that are kept, which take {} \
                 bytes for this project and {} in all of {MAX_TASK_BYTES_PER_PROJECT} and \
                 {MAX_TASK_BYTES}: make it smaller, cancel tasks that wait, or try again later; \
                 {FORGOTTEN}",
                own.bytes, all.bytes
            );
            return Err(Refusal::Conflict(message));
        }
        Ok(())
    }

    /// Whether a text of so many bytes that a task leaves fits beside what is kept of tasks.
    pub(crate) fn has_room_for_result(&self, task: &Task, bytes: usize) -> bool {
        let own = task.project.map(|project| self.indexes.kept_tasks(project).0.bytes);
        let (own, all) = (own.unwrap_or(0), self.indexes.all_kept_tasks().bytes);
        own.saturating_add(bytes) <= MAX_TASK_BYTES_PER_PROJECT
            && all.saturating_add(bytes) <= MAX_TASK_BYTES
    }

    /// Asks for the end of a task, or of the attempt that it was followed by.
    pub(crate) fn cancel_task(&mut self, now: Time, id: TaskId) -> Result<(), Refusal> {
        let mut task = self.task(id)?;
        while let Some(next) = task.followed_by {
            task = self.task(next)?;
        }
        match task.state {
            TaskState::Pending { .. } | TaskState::Offered { .. } => {
                self.end_task(now, &task, &TaskEvent::Cancel { reason: None })
            }
            TaskState::Running { .. } if task.cancelling => Ok(()),
            TaskState::Running { .. } => {
                let cancel_by = Some(now.after(CANCEL_FORCE));
                self.put(Task { cancelling: true, cancel_by, ..(*task).clone() });
                Ok(())
            }
            TaskState::Succeeded { .. }
            | TaskState::Failed { .. }
            | TaskState::Cancelled { .. } => Ok(()),
        }
    }

    /// Ends a task. When it failed and its policy says so, another one follows.
    pub(crate) fn end_task(
        &mut self,
        now: Time,
        task: &Task,
        event: &TaskEvent,
    ) -> Result<(), Refusal> {
        let state = task.state.next(event)?;
        let row = Task { state, ..task.clone() };
        self.close_task(now, row, true);
        Ok(())
    }

    fn close_task(&mut self, now: Time, task: Task, may_follow: bool) {
        let mut row = Task {
            ended_at: Some(now),
            cancel_by: None,
            start_by: None,
            paused_until: None,
            ..task
        };
        if may_follow && row.is_retried() {
            let next = self.attempt_after(now, &row);
            row.followed_by = Some(next.id);
            self.put(next);
        } else {
            self.call_back(now, &mut row);
        }
        row.shrink();
        self.put(row);
    }

    /// The task that does the same once more.
    fn attempt_after(&self, now: Time, row: &Task) -> Task {
        let pause = row.spec.retry.map_or(0, |retry| retry.pause_after(row.attempt));
        let until = now.after(Duration::from_millis(pause));
        // Follows from the id before it, and somebody may have taken that one.
        let mut id = TaskId(row.id.0.wrapping_add(1));
        while self.get::<Task>(id).is_some() {
            id = TaskId(id.0.wrapping_add(1));
        }
        Task {
            id,
            state: TaskState::Pending { reason: None },
            epoch: 0,
            created_at: now,
            ended_at: None,
            start_by: Some(start_by(until, &row.spec)),
            paused_until: Some(until),
            key: None,
            rejects: 0,
            attempt: row.attempt + 1,
            retry_of: Some(row.id),
            ..row.clone()
        }
    }

    pub(crate) fn task_due(&mut self, now: Time, id: TaskId) -> Result<(), Refusal> {
        let task = self.task(id)?;
        match &task.state {
            TaskState::Pending { .. } | TaskState::Offered { .. } => {
                if task.start_by.is_some_and(|at| at <= now) {
                    return self.expire_task(now, &task);
                }
                self.put(Task { paused_until: None, ..(*task).clone() });
                Ok(())
            }
            TaskState::Running { .. } => {
                let secs = CANCEL_FORCE.as_secs();
                let reason = Some(format!("its cell did not confirm within {secs} s"));
                self.end_task(now, &task, &TaskEvent::Cancel { reason })
            }
            TaskState::Succeeded { .. }
            | TaskState::Failed { .. }
            | TaskState::Cancelled { .. } => {
                self.forget_task(&task);
                Ok(())
            }
        }
    }

    /// No cell began it in time. Waiting longer is not what a retry is for.
    fn expire_task(&mut self, now: Time, task: &Task) -> Result<(), Refusal> {
        let limit = span(task.spec.start_timeout_ms.unwrap_or(TASK_START_MS));
        let why = match &task.state {
            TaskState::Pending { reason } => reason.clone(),
            TaskState::Offered { cell } => Some(match self.get::<Cell>(*cell) {
                Some(cell) => format!("cell {} did not claim it", cell.spec.name),
                None => format!("cell {cell} did not claim it"),
            }),
            TaskState::Running { .. }
            | TaskState::Succeeded { .. }
            | TaskState::Failed { .. }
            | TaskState::Cancelled { .. } => None,
        };
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        let reason = format!("was not started within {limit}{why}");
        let state = task.state.next(&TaskEvent::Fail { reason, detail: None })?;
        self.close_task(now, Task { state, ..task.clone() }, false);
        Ok(())
    }

    /// Removes a task with the attempts before it.
    fn forget_task(&mut self, task: &Task) {
        self.delete::<Task>(task.id);
        let mut before = task.retry_of;
        while let Some(row) = before.and_then(|id| self.get::<Task>(id)).cloned() {
            self.delete::<Task>(row.id);
            before = row.retry_of;
        }
    }

    /// After a restart, or a while without a store, cells get their time to confirm once more.
    pub(crate) fn resume_tasks(&mut self, now: Time) {
        let cancelling: Vec<_> =
            self.tables.tasks.values().filter(|row| row.cancel_by.is_some()).cloned().collect();
        for row in cancelling {
            self.put(Task { cancel_by: Some(now.after(CANCEL_FORCE)), ..(*row).clone() });
        }
        #[cfg(feature = "planted")]
        if crate::planted::is("M9") {
            self.planted_again(now);
        }
    }

    /// After a restart, whatever was to be tried again is scheduled once more.
    #[cfg(feature = "planted")]
    fn planted_again(&mut self, now: Time) {
        let failed: Vec<_> =
            self.tables.tasks.values().filter(|row| row.is_retried()).cloned().collect();
        for row in failed {
            let next = self.attempt_after(now, &row);
            self.put(Task { followed_by: Some(next.id), ..(*row).clone() });
            self.put(next);
        }
    }

    /// The ids of all attempts at the same work, the first first, up to this one.
    pub(crate) fn attempts_up_to(&self, task: &Task) -> Vec<TaskId> {
        let mut ids = vec![task.id];
        let mut before = task.retry_of;
        while let Some(row) = before.and_then(|id| self.get::<Task>(id)) {
            ids.push(row.id);
            before = row.retry_of;
        }
        ids.reverse();
        ids
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn spans_read_well() {
        assert_eq!([1_800_000, 5_000, 1_500].map(span), ["30 min", "5 s", "1500 ms"]);
    }

    #[test]
    fn a_cache_of_a_task_is_its_projects() {
        let name = "shop".parse().expect("a name");
        let project = Project { id: ProjectId(1), name, created_at: Time(0) };
        let mut spec = TaskSpec::new(Action::run(["true"]), 1);
        spec.container.caches = BTreeMap::from([("other_web_production".into(), "/c".into())]);
        let owned = owned(&project, &spec);
        let keys: Vec<_> = owned.container.caches.keys().collect();
        assert_eq!(keys, ["shop__other_web_production"]);
    }
}
