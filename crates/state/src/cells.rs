//! Cells and what they report.

use std::time::Duration;

use model::{
    CellId, CellSpec, DeploymentEvent, DeploymentState, FailureDetail, InstanceEvent, InstanceId,
    InstanceReport, InstanceState, MAX_TASK_RESULT, TaskEvent, TaskId, TaskReport, TaskState, Time,
};

use crate::command::{CellCommand, Held, Refusal, Reply};
use crate::records::{Cell, Deployment, Instance, Process, Task};
use crate::tables::Core;

/// How long a cell may be silent before it counts as gone. Heartbeats come every 5 s.
pub const CELL_LEASE: Duration = Duration::from_secs(15);
/// Most characters of a reason that is kept.
pub const MAX_REASON: usize = 10_000;

impl Instance {
    /// When something has to happen to it.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        match &self.state {
            InstanceState::Crashed { restart_at, .. } => *restart_at,
            InstanceState::Unclaimed { .. }
            | InstanceState::Claimed { .. }
            | InstanceState::Running { .. }
            | InstanceState::Stopping { .. }
            | InstanceState::Stopped => None,
        }
    }
}

fn cut(reason: String) -> String {
    match reason.char_indices().nth(MAX_REASON) {
        Some((end, _)) => reason.get(..end).unwrap_or_default().to_owned(),
        None => reason,
    }
}

fn bounded(detail: Option<Box<FailureDetail>>) -> Option<Box<FailureDetail>> {
    detail.map(|mut detail| {
        detail.bound();
        detail
    })
}

impl Core {
    pub(crate) fn cell_command(
        &mut self,
        now: Time,
        command: CellCommand,
    ) -> Result<Reply, Refusal> {
        match command {
            CellCommand::Online { id, spec, holds } => self.cell_online(now, id, spec, &holds),
            CellCommand::Heartbeat { id, epoch } => {
                let cell = self.connected(id, epoch)?;
                self.put(Cell { lease_until: Some(now.after(CELL_LEASE)), ..cell });
                Ok(Reply::Done)
            }
            CellCommand::Over { id, epoch, report } => {
                self.connected(id, epoch)?;
                self.cell_command(now, *report)
            }
            CellCommand::Leave { id, epoch } => {
                let cell = self.connected(id, epoch)?;
                self.lose_cell(now, &cell, "its cell was shut down")?;
                Ok(Reply::Done)
            }
            CellCommand::Task { cell, task, epoch, report } => {
                self.task_report(now, cell, task, (epoch, report))
            }
            CellCommand::Instance { cell, instance, epoch, report } => {
                self.instance_report(now, cell, instance, (epoch, report))
            }
        }
    }

    fn connected(&self, id: CellId, epoch: u32) -> Result<Cell, Refusal> {
        let cell = self.get::<Cell>(id).ok_or_else(|| Refusal::not_found("cell", id))?;
        if cell.epoch == epoch && cell.lease_until.is_some() {
            Ok((**cell).clone())
        } else {
            Err(Refusal::stale("cell", id))
        }
    }

    fn cell_online(
        &mut self,
        now: Time,
        id: CellId,
        spec: CellSpec,
        holds: &[Held],
    ) -> Result<Reply, Refusal> {
        let before = self.get::<Cell>(id).cloned();
        let epoch = before.as_ref().map_or(1, |cell| cell.epoch + 1);
        let joined_at = before.map_or(now, |cell| cell.joined_at);
        self.put(Cell { id, spec, lease_until: Some(now.after(CELL_LEASE)), epoch, joined_at });
        for task in self.tasks_on(id) {
            let row = self.task(task)?;
            let holds_it = holds.contains(&Held::Task { id: task, epoch: row.epoch });
            if !holds_it && matches!(row.state, TaskState::Running { .. }) {
                let reason = "its cell restarted and no longer has it".to_owned();
                self.end_task(now, &row, &TaskEvent::Fail { reason, detail: None })?;
            }
        }
        for instance in self.instances_on(id) {
            let row = self.instance(instance)?;
            if holds.contains(&Held::Instance { id: instance, epoch: row.epoch }) {
                continue;
            }
            match row.state {
                InstanceState::Running { .. } => {
                    let reason = "it vanished while its cell was away".to_owned();
                    self.crash(now, &row, (reason, None))?;
                }
                InstanceState::Stopping { .. } => self.gone(now, &row)?,
                InstanceState::Unclaimed { .. }
                | InstanceState::Claimed { .. }
                | InstanceState::Crashed { .. }
                | InstanceState::Stopped => {}
            }
        }
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

    pub(crate) fn instance(&self, id: InstanceId) -> Result<Instance, Refusal> {
        let row = self.get::<Instance>(id).ok_or_else(|| Refusal::not_found("instance", id))?;
        Ok((**row).clone())
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
                self.put(Task { state, ..(*task).clone() });
            }
            TaskReport::Succeeded { result } => {
                if result.as_ref().is_some_and(|text| text.len() > MAX_TASK_RESULT) {
                    let reason = format!("its result is larger than {MAX_TASK_RESULT} bytes");
                    self.end_task(now, &task, &TaskEvent::Fail { reason, detail: None })?;
                } else {
                    self.end_task(now, &task, &TaskEvent::Succeed { result })?;
                }
            }
            TaskReport::Failed { reason, detail } => {
                let fail = TaskEvent::Fail { reason: cut(reason), detail: bounded(detail) };
                self.end_task(now, &task, &fail)?;
            }
            TaskReport::Cancelled => self.end_task(now, &task, &TaskEvent::Cancel)?,
        }
        Ok(Reply::Done)
    }

    fn instance_report(
        &mut self,
        now: Time,
        cell: CellId,
        id: InstanceId,
        (epoch, report): (u32, InstanceReport),
    ) -> Result<Reply, Refusal> {
        let row = self.instance(id)?;
        if row.epoch != epoch || row.state.cell() != Some(cell) {
            return Err(Refusal::stale("instance", id));
        }
        let is_stopping = matches!(row.state, InstanceState::Stopping { .. });
        match report {
            // It may have been stopped while the cell made up its mind: nothing of it is there.
            InstanceReport::Reject { .. } | InstanceReport::Gone if is_stopping => {
                self.gone(now, &row)?;
            }
            InstanceReport::Reject { reason } => {
                self.change_instance(now, &row, &InstanceEvent::Reject { reason: cut(reason) })?;
            }
            InstanceReport::Started { address } => {
                // A re-adopted instance reports itself again.
                let is_known = matches!(row.state, InstanceState::Running { address: it, .. } if it == address);
                if !is_known {
                    self.change_instance(now, &row, &InstanceEvent::Started { address })?;
                }
            }
            InstanceReport::Ready { ready } => {
                self.change_instance(now, &row, &InstanceEvent::Ready(ready))?;
            }
            InstanceReport::Crashed { reason, never_healthy, detail } => {
                let reason = cut(reason);
                if never_healthy {
                    self.fail_starting(&row, &reason)?;
                }
                self.crash(now, &row, (reason, bounded(detail)))?;
            }
            InstanceReport::Gone => {
                self.crash(now, &row, ("it was removed from its cell".to_owned(), None))?;
            }
        }
        Ok(Reply::Done)
    }

    pub(crate) fn change_instance(
        &mut self,
        now: Time,
        row: &Instance,
        event: &InstanceEvent,
    ) -> Result<(), Refusal> {
        let state = row.state.next(event)?;
        if state != row.state {
            // Running since it started, however often its check changed its mind.
            let same = matches!(event, InstanceEvent::Ready(_));
            let since = if same { row.since } else { now };
            self.put(Instance { state, since, ..row.clone() });
        }
        Ok(())
    }

    fn gone(&mut self, now: Time, row: &Instance) -> Result<(), Refusal> {
        self.change_instance(now, row, &InstanceEvent::Gone)?;
        self.remove_instance(row);
        Ok(())
    }

    /// Counts a crash and decides when the instance starts again.
    fn crash(
        &mut self,
        now: Time,
        row: &Instance,
        (reason, detail): (String, Option<Box<FailureDetail>>),
    ) -> Result<(), Refusal> {
        if matches!(row.state, InstanceState::Stopping { .. }) {
            return self.gone(now, row);
        }
        let policy = self.get::<Process>(row.process).map(|p| p.spec.crash).unwrap_or_default();
        let ran = matches!(row.state, InstanceState::Running { .. })
            && now.since(row.since) >= Duration::from_millis(policy.reset_after_ms);
        let crashes = if ran { 1 } else { row.crashes.saturating_add(1) };
        let restart_at = policy.pause(crashes).map(|pause| now.after(pause));
        if crashes > policy.immediate {
            self.fail_starting(row, &reason)?;
        }
        let row = Instance { crashes, ..row.clone() };
        self.change_instance(now, &row, &InstanceEvent::Crash { restart_at, reason, detail })
    }

    /// A deployment that is still starting fails with the instance's reason.
    fn fail_starting(&mut self, row: &Instance, reason: &str) -> Result<(), Refusal> {
        let Some(deployment) = self.get::<Deployment>(row.deployment).cloned() else {
            return Ok(());
        };
        if !matches!(deployment.state, DeploymentState::Starting { .. }) {
            return Ok(());
        }
        let name = self.get::<Process>(row.process).map(|p| p.name.to_string());
        let name = name.unwrap_or_else(|| row.id.to_string());
        let reason = format!("instance {name}.{} {reason}", row.index);
        self.change_deployment(&deployment, &DeploymentEvent::Fail { reason })
    }

    /// A cell's lease ended, or it left: its tasks fail, its instances go elsewhere.
    pub(crate) fn lose_cell(&mut self, now: Time, cell: &Cell, why: &str) -> Result<(), Refusal> {
        self.put(Cell { lease_until: None, epoch: cell.epoch + 1, ..cell.clone() });
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
            let row = self.instance(id)?;
            if matches!(row.state, InstanceState::Stopping { .. }) {
                self.gone(now, &row)?;
            } else {
                let reason = Some(why.to_owned());
                self.change_instance(now, &row, &InstanceEvent::Restart { reason })?;
            }
        }
        self.indexes.auction_due = true;
        Ok(())
    }
}
