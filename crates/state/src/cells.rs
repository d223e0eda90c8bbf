//! Cells and what they report.

use std::collections::BTreeSet;
use std::time::Duration;

use model::{
    CellDrivers, CellId, CellSpec, FailureDetail, InstanceId, MAX_TASK_RESULT, TaskEvent, TaskId,
    TaskReport, TaskState, Time, TokenId,
};

use crate::command::{CellCommand, Held, Refusal, Reply};
use crate::drains::DRAIN_TIMEOUT;
use crate::instances::reject_pause;
use crate::records::{Cell, Drain, Task, Token};
use crate::tables::Core;

/// How long a cell may be silent before it counts as gone. Heartbeats come every 5 s.
pub const CELL_LEASE: Duration = Duration::from_secs(15);
/// Most tasks and instances that a cell may say it holds.
pub const MAX_HELD: usize = 100_000;
/// Most characters of a reason that is kept.
pub const MAX_REASON: usize = 10_000;

impl Cell {
    /// The same with the lease of another version.
    pub(crate) fn renewed(&self, other: &Self) -> Self {
        let both = self.lease_until.is_some() && other.lease_until.is_some();
        let lease_until = if both { other.lease_until } else { self.lease_until };
        Self { lease_until, ..self.clone() }
    }
}

pub(crate) fn cut(reason: String) -> String {
    match reason.char_indices().nth(MAX_REASON) {
        Some((end, _)) => reason.get(..end).unwrap_or_default().to_owned(),
        None => reason,
    }
}

pub(crate) fn bounded(detail: Option<Box<FailureDetail>>) -> Option<Box<FailureDetail>> {
    detail.map(|mut detail| {
        detail.bound();
        detail
    })
}

fn check(spec: &CellSpec) -> Result<(), Refusal> {
    spec.validate().map_err(|error| {
        let name = &spec.name;
        Refusal::Invalid(format!("what cell {name} says it offers is not allowed: {error}"))
    })
}

impl Core {
    pub(crate) fn cell_command(
        &mut self,
        now: Time,
        command: CellCommand,
    ) -> Result<Reply, Refusal> {
        match command {
            CellCommand::Online { id, spec, holds, token } => {
                self.cell_online(now, (id, token), spec, &holds)
            }
            CellCommand::Heartbeat { id, epoch } => {
                let cell = self.connected(id, epoch)?;
                self.renew(Cell { lease_until: Some(now.after(CELL_LEASE)), ..cell });
                Ok(Reply::Done)
            }
            CellCommand::Drivers { id, epoch, drivers: CellDrivers { drivers, unavailable } } => {
                let cell = self.connected(id, epoch)?;
                let spec = CellSpec { drivers, unavailable, ..cell.spec.clone() };
                check(&spec)?;
                if spec != cell.spec {
                    self.put(Cell { spec, ..cell });
                }
                Ok(Reply::Done)
            }
            CellCommand::Over { id, epoch, report } => {
                self.connected(id, epoch)?;
                self.cell_command(now, *report)
            }
            CellCommand::Leave { id, epoch } => {
                let cell = self.connected(id, epoch)?;
                self.drain(now, &cell, (DRAIN_TIMEOUT, true))
            }
            CellCommand::Left { id, epoch } => {
                let cell = self.connected(id, epoch)?;
                self.left(now, &cell)
            }
            CellCommand::Drain { id, timeout } => {
                let cell = self.cell(id)?;
                self.drain(now, &cell, (timeout, false))
            }
            CellCommand::Undrain(id) => self.undrain(id),
            CellCommand::Task { cell, task, epoch, report } => {
                self.task_report(now, cell, task, (epoch, report))
            }
            CellCommand::Instance { cell, instance, epoch, report } => {
                self.instance_report(now, cell, instance, (epoch, report))
            }
            CellCommand::VolumeGone { cell, volume } => self.volume_gone(cell, volume),
        }
    }

    pub(crate) fn cell(&self, id: CellId) -> Result<Cell, Refusal> {
        let row = self.get::<Cell>(id).ok_or_else(|| Refusal::not_found("cell", id))?;
        Ok((**row).clone())
    }

    fn connected(&self, id: CellId, epoch: u32) -> Result<Cell, Refusal> {
        let cell = self.cell(id)?;
        if cell.epoch == epoch && cell.lease_until.is_some() {
            Ok(cell)
        } else {
            Err(Refusal::stale("cell", id))
        }
    }

    fn cell_online(
        &mut self,
        now: Time,
        (id, token): (CellId, Option<TokenId>),
        spec: CellSpec,
        holds: &[Held],
    ) -> Result<Reply, Refusal> {
        check(&spec)?;
        if holds.len() > MAX_HELD {
            let message = format!("cell {} says it holds more than {MAX_HELD} things", spec.name);
            return Err(Refusal::Invalid(message));
        }
        let holds: BTreeSet<Held> = holds.iter().copied().collect();
        let before = self.get::<Cell>(id).cloned();
        let known = before.as_ref().and_then(|cell| cell.token).filter(|it| token != Some(*it));
        if known.is_some_and(|it| self.get::<Token>(it).is_some_and(|row| row.works(now))) {
            // A cell gets the variables and files of what runs on it.
            let message = format!(
                "cell {id} belongs to another token, which still works: start it without a new one (it \
                 keeps its own), revoke that one, or start this cell with a directory of its own"
            );
            return Err(Refusal::Conflict(message));
        }
        if before.is_none() {
            self.room_for_cell()?;
        }
        let epoch = before.as_ref().map_or(1, |cell| cell.epoch + 1);
        let joined_at = before.as_ref().map_or(now, |cell| cell.joined_at);
        if before.as_ref().is_some_and(|cell| cell.spec.gate != spec.gate) {
            self.reroute(id);
        }
        // One that leaves says so again; what an operator asked for stays.
        let draining = before.and_then(|cell| cell.draining).and_then(Drain::without_leaving);
        let lease_until = Some(now.after(CELL_LEASE));
        self.put(Cell { id, spec, lease_until, epoch, joined_at, draining, token });
        for task in self.tasks_on(id) {
            let row = self.task(task)?;
            let holds_it = holds.contains(&Held::Task { id: task, epoch: row.epoch });
            if !holds_it && matches!(row.state, TaskState::Running { .. }) {
                let reason = "its cell restarted and no longer has it".to_owned();
                self.end_task(now, &row, &TaskEvent::Fail { reason, detail: None })?;
            }
        }
        for instance in self.instances_on(id) {
            self.instance_back(now, (id, instance), &holds)?;
        }
        self.look_at_volumes_on(id);
        Ok(Reply::Epoch(epoch))
    }

    pub(crate) fn tasks_on(&self, cell: CellId) -> Vec<TaskId> {
        let range = (cell, TaskId(0))..=(cell, TaskId(u128::MAX));
        self.indexes.tasks_by_cell.range(range).map(|(_, id)| *id).collect()
    }

    pub(crate) fn instances_on(&self, cell: CellId) -> Vec<InstanceId> {
        let range = (cell, InstanceId(0))..=(cell, InstanceId(u128::MAX));
        self.indexes.instances_by_cell.range(range).map(|(_, id)| *id).collect()
    }

    fn task_report(
        &mut self,
        now: Time,
        cell: CellId,
        id: TaskId,
        (epoch, report): (u32, TaskReport),
    ) -> Result<Reply, Refusal> {
        let task = self.task(id)?;
        if task.epoch != epoch || task.state.cell() != Some(cell) {
            return Err(Refusal::stale("task", id));
        }
        match report {
            TaskReport::Claim => {
                let state = task.state.next(&TaskEvent::Claim)?;
                self.put(Task { state, ..(*task).clone() });
            }
            TaskReport::Reject { reason } => {
                let state = task.state.next(&TaskEvent::Reject { reason: cut(reason) })?;
                let rejects = task.rejects.saturating_add(1);
                let paused_until = Some(now.after(reject_pause(rejects)));
                self.put(Task { state, rejects, paused_until, ..(*task).clone() });
            }
            TaskReport::Succeeded { result, artifact } => {
                let bytes = result.as_ref().map_or(0, String::len);
                let fault = if bytes > MAX_TASK_RESULT {
                    Some(format!("its result is larger than {MAX_TASK_RESULT} bytes"))
                } else if bytes > 0 && !self.has_room_for_result(&task, bytes) {
                    Some(format!("its result of {bytes} bytes does not fit beside others"))
                } else {
                    None
                };
                let event = match fault {
                    Some(reason) => TaskEvent::Fail { reason, detail: None },
                    None => TaskEvent::Succeed { result, artifact },
                };
                self.end_task(now, &task, &event)?;
            }
            TaskReport::Failed { reason, detail } => {
                let fail = TaskEvent::Fail { reason: cut(reason), detail: bounded(detail) };
                self.end_task(now, &task, &fail)?;
            }
            TaskReport::Cancelled => {
                self.end_task(now, &task, &TaskEvent::Cancel { reason: None })?;
            }
        }
        Ok(Reply::Done)
    }

    /// A cell's lease ended, or it left: its tasks fail, its instances go elsewhere.
    pub(crate) fn lose_cell(
        &mut self,
        now: Time,
        cell: &Cell,
        (why, may_serve): (&str, bool),
    ) -> Result<(), Refusal> {
        let draining = cell.draining.and_then(Drain::without_leaving);
        self.put(Cell { lease_until: None, epoch: cell.epoch + 1, draining, ..cell.clone() });
        for id in self.tasks_on(cell.id) {
            let task = self.task(id)?;
            if matches!(task.state, TaskState::Offered { .. }) {
                let state = task.state.next(&TaskEvent::Reject { reason: why.to_owned() })?;
                self.put(Task { state, ..(*task).clone() });
            } else {
                let reason = format!("{why} while it was running");
                self.end_task(now, &task, &TaskEvent::Fail { reason, detail: None })?;
            }
        }
        for id in self.instances_on(cell.id) {
            self.instance_lost(now, (cell.id, id), (why, may_serve))?;
        }
        Ok(())
    }
}
