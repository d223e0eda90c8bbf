//! Emptying a cell: an operator drains it, or it is about to leave.
//!
//! A drained cell takes nothing new. What serves on it serves until another copy is ready elsewhere;
//! what does not serve moves at once; tasks run on until the deadline. What cannot move stays where
//! it is and blocks nothing: a drain has finished as soon as only such things and tasks are left.

use std::time::Duration;

use model::{CellId, InstanceEvent, InstanceId, InstanceState, TaskEvent, TaskState, Time};

use crate::State;
use crate::cells::CELL_LEASE;
use crate::command::{Refusal, Reply, earliest};
use crate::records::{App, Cell, Deployment, Drain, Instance, PredecessorKind, Process, Task};
use crate::tables::Core;
use crate::view::CellInstance;

/// How long the tasks of a drained cell may run on unless somebody says otherwise.
pub const DRAIN_TIMEOUT: Duration = Duration::from_mins(10);
/// The longest they may run on.
pub const MAX_DRAIN_TIMEOUT: Duration = Duration::from_hours(24);

/// After how many cells in a row gave it back something counts as not to be moved.
const MANY_REJECTS: u32 = 5;

/// How far a drain is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DrainProgress {
    /// Copies of instances that were there at the beginning and are not any more.
    pub moved: usize,
    /// Those that are on their way.
    pub moving: usize,
    /// Those that stay, and why.
    pub stays: Vec<Stays>,
    /// Tasks that still run.
    pub tasks: usize,
}

/// What a drain cannot move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stays {
    /// What, in words for people.
    pub what: String,
    /// Why.
    pub reason: String,
}

impl DrainProgress {
    /// Whether nothing is left that can move.
    pub const fn is_finished(&self) -> bool {
        self.moving == 0
    }
}

impl Cell {
    /// When something has to happen to it.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        earliest([self.lease_until, self.draining.and_then(|drain| drain.deadline)])
    }
}

impl Drain {
    /// What is left of it once the cell has gone or is back: what an operator asked for.
    pub(crate) fn without_leaving(self) -> Option<Self> {
        let is_asked = self.asked || !self.leaving;
        is_asked.then_some(Self { leaving: false, ..self })
    }
}

/// The volume that keeps the instances of a process where they are, if one does.
fn pinned_by(process: &Process) -> Option<&model::Name> {
    process.spec.container.volumes.keys().next()
}

impl Core {
    /// Begins to empty a cell, or changes until when its tasks may run.
    pub(crate) fn drain(
        &mut self,
        now: Time,
        cell: &Cell,
        (timeout, leaving): (Duration, bool),
    ) -> Result<Reply, Refusal> {
        if timeout > MAX_DRAIN_TIMEOUT {
            let message = format!(
                "tasks of a drained cell may run for {} h at most",
                MAX_DRAIN_TIMEOUT.as_secs() / 3_600
            );
            return Err(Refusal::Invalid(message));
        }
        let before = cell.draining;
        // A cell that leaves has a deadline of its own: it counts as gone then.
        let leaves = before.filter(|drain| drain.leaving && !leaving);
        let asked = before.is_some_and(|drain| drain.asked || !drain.leaving);
        let drain = Drain {
            since: before.map_or(now, |drain| drain.since),
            deadline: leaves.map_or_else(|| Some(now.after(timeout)), |drain| drain.deadline),
            leaving: leaving || leaves.is_some(),
            asked: asked || !leaving,
            instances: before
                .map_or_else(|| self.instances_on(cell.id).len(), |drain| drain.instances),
        };
        self.put(Cell { draining: Some(drain), ..cell.clone() });
        for id in self.tasks_on(cell.id) {
            let task = self.task(id)?;
            if matches!(task.state, TaskState::Offered { .. }) {
                let reason = "its cell is being drained".to_owned();
                let state = task.state.next(&TaskEvent::Reject { reason })?;
                self.put(Task { state, ..(*task).clone() });
            }
        }
        for id in self.instances_on(cell.id) {
            self.evacuate(now, (cell.id, id))?;
        }
        Ok(Reply::Done)
    }

    /// Another copy of an instance is to start elsewhere.
    fn evacuate(&mut self, now: Time, (cell, id): (CellId, InstanceId)) -> Result<(), Refusal> {
        let row = self.instance(id)?;
        let is_stopping = matches!(row.state, InstanceState::Stopping { .. });
        let process = self.get::<Process>(row.process);
        let is_pinned = process.is_some_and(|process| pinned_by(process).is_some());
        if row.state.cell() != Some(cell) || is_stopping || is_pinned {
            return Ok(());
        }
        #[cfg(feature = "planted")]
        if crate::planted::is("M14") {
            return self.change_instance(now, &row, &InstanceEvent::Restart { reason: None });
        }
        let row = Self::with_predecessor(row, PredecessorKind::Evacuating);
        self.change_instance(now, &row, &InstanceEvent::Restart { reason: None })
    }

    /// A cell takes work again. What was about to move and has not goes on where it is.
    pub(crate) fn undrain(&mut self, id: CellId) -> Result<Reply, Refusal> {
        let cell = self.cell(id)?;
        if let Some(drain) = cell.draining.filter(|drain| drain.leaving) {
            if drain.asked {
                let drain = Drain { asked: false, ..drain };
                self.put(Cell { draining: Some(drain), ..cell });
                return Ok(Reply::Done);
            }
            let message = format!("cell {} is shutting down", cell.spec.name);
            return Err(Refusal::Conflict(message));
        }
        if cell.draining.is_none() {
            return Ok(Reply::Done);
        }
        self.put(Cell { draining: None, ..cell });
        self.look_at_volumes_on(id);
        for instance in self.instances_on(id) {
            let row = self.instance(instance)?;
            let before = row.before.filter(|before| before.cell == id);
            if let Some(before) = before.filter(|it| it.kind == PredecessorKind::Evacuating) {
                self.put(Self::promoted(&row, before)?);
            }
        }
        Ok(Reply::Done)
    }

    /// A cell that was leaving is gone, and so is what it had.
    pub(crate) fn left(&mut self, now: Time, cell: &Cell) -> Result<Reply, Refusal> {
        if !cell.draining.is_some_and(|drain| drain.leaving) {
            let message = format!("cell {} did not say that it leaves", cell.spec.name);
            return Err(Refusal::Conflict(message));
        }
        self.lose_cell(now, cell, ("its cell was shut down", false))?;
        Ok(Reply::Done)
    }

    /// Its lease or its drain is over.
    pub(crate) fn cell_due(&mut self, now: Time, cell: &Cell) -> Result<(), Refusal> {
        if cell.lease_until.is_some_and(|at| at <= now) {
            let secs = CELL_LEASE.as_secs();
            let why = format!("its cell has not been heard of for {secs} s");
            return self.lose_cell(now, cell, (&why, true));
        }
        let Some(drain) = cell.draining.filter(|it| it.deadline.is_some_and(|at| at <= now)) else {
            return Ok(());
        };
        if drain.leaving {
            return self.lose_cell(now, cell, ("its cell was shut down", false));
        }
        self.put(Cell { draining: Some(Drain { deadline: None, ..drain }), ..cell.clone() });
        for id in self.tasks_on(cell.id) {
            let task = self.task(id)?;
            let reason = "it still ran when the time to drain its cell was up".to_owned();
            self.end_task(now, &task, &TaskEvent::Fail { reason, detail: None })?;
        }
        Ok(())
    }

    /// Why a copy on a drained cell stays there; nothing while it can move. Once the drain is overdue,
    /// nobody waits for the end of what does not end.
    fn stays(it: &CellInstance, overdue: bool) -> Option<String> {
        if it.copy.stop {
            return overdue.then(|| "it was told to end and has not ended".to_owned());
        }
        if let Some(volume) = pinned_by(&it.process) {
            return Some(format!("pinned to this cell by volume {volume}"));
        }
        match &it.row.state {
            InstanceState::Unclaimed { .. }
                if it.row.retry_at.is_some() && it.row.rejects < MANY_REJECTS =>
            {
                None
            }
            InstanceState::Unclaimed { reason } => reason.clone(),
            InstanceState::Crashed { reason, .. }
                if it.row.crashes > it.process.spec.crash.immediate =>
            {
                Some(format!("what is to take its place crashes: {reason}"))
            }
            InstanceState::Claimed { .. }
            | InstanceState::Running { .. }
            | InstanceState::Crashed { .. }
            | InstanceState::Stopping { .. }
            | InstanceState::Stopped => None,
        }
    }

    /// `web.0 of shop/web`, with the workspace unless it is production.
    fn called(&self, row: &Instance, process: &Process) -> String {
        let own = format!("{}.{}", process.name, row.index);
        let Some(deployment) = self.get::<Deployment>(row.deployment) else { return own };
        let app = self.get::<App>(deployment.app);
        let project = app.and_then(|app| self.project(app.project).ok());
        let (Some(app), Some(project)) = (app, project) else { return own };
        let place = format!("{own} of {}/{}", project.name, app.name);
        if deployment.workspace.as_str() == crate::PRODUCTION {
            return place;
        }
        format!("{place} in {}", deployment.workspace)
    }
}

impl State {
    /// How far the drain of a cell is; nothing when it is not drained.
    pub fn drain_progress(&self, id: CellId) -> Option<DrainProgress> {
        let drain = self.get::<Cell>(id)?.draining?;
        let work = self.cell_work(id);
        let mut progress = DrainProgress {
            moved: drain.instances.saturating_sub(work.instances.len()),
            tasks: work.tasks.len(),
            ..DrainProgress::default()
        };
        for it in work.instances {
            match Core::stays(&it, drain.deadline.is_none()) {
                Some(reason) => {
                    let what = self.core.called(&it.row, &it.process);
                    progress.stays.push(Stays { what, reason });
                }
                None => progress.moving += 1,
            }
        }
        Some(progress)
    }
}
