//! Instances: what cells report of them, and the copy before the one that is wanted.
//!
//! A row has one current copy and at most one predecessor: a copy that served when its cell went
//! silent or was drained, and serves until the current one is ready. Each copy has an epoch of its
//! own, so what is said of one never counts for the other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use model::{
    AppId, CellId, DeploymentEvent, DeploymentState, FailureDetail, InstanceEvent, InstanceId,
    InstanceReport, InstanceState, Name, Time,
};

use crate::cells::{bounded, cut};
use crate::command::{Held, Refusal, Reply};
use crate::converge::instance_id;
use crate::records::{Cell, Crash, Deployment, Instance, Predecessor, PredecessorKind, Process};
use crate::tables::Core;

impl Instance {
    /// When something has to happen to it.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        match &self.state {
            InstanceState::Crashed { restart_at, .. } => *restart_at,
            InstanceState::Unclaimed { .. } => self.retry_at,
            InstanceState::Claimed { .. }
            | InstanceState::Running { .. }
            | InstanceState::Stopping { .. }
            | InstanceState::Stopped => None,
        }
    }
}

/// The pause before something is offered again that so many cells in a row gave back.
pub(crate) fn reject_pause(rejects: u32) -> Duration {
    let doublings = rejects.saturating_sub(1).min(REJECT_DOUBLINGS);
    REJECT_PAUSE.saturating_mul(1 << doublings)
}

/// The pause after a cell gave something back for the first time; it doubles each time.
pub const REJECT_PAUSE: Duration = Duration::from_secs(1);
/// How often it doubles: the longest is a minute.
const REJECT_DOUBLINGS: u32 = 6;

/// What is left of a copy once the one after it is ready: a suspect's cell is not there to be told,
/// so it is told to end it when it comes back with it.
const fn outrun(now: Time, before: Predecessor) -> Option<Predecessor> {
    match before.kind {
        PredecessorKind::Suspect => None,
        PredecessorKind::Evacuating => {
            Some(Predecessor { kind: PredecessorKind::Stopping, since: now, ..before })
        }
        PredecessorKind::Stopping => Some(before),
    }
}

impl Core {
    pub(crate) fn instance(&self, id: InstanceId) -> Result<Instance, Refusal> {
        let row = self.get::<Instance>(id).ok_or_else(|| Refusal::not_found("instance", id))?;
        Ok((**row).clone())
    }

    pub(crate) fn instance_report(
        &mut self,
        now: Time,
        cell: CellId,
        id: InstanceId,
        (epoch, report): (u32, InstanceReport),
    ) -> Result<Reply, Refusal> {
        let row = self.instance(id)?;
        if row.epoch != epoch || row.state.cell() != Some(cell) {
            self.predecessor_report(&row, cell, (epoch, report))?;
            return Ok(Reply::Done);
        }
        let is_stopping = matches!(row.state, InstanceState::Stopping { .. });
        match report {
            // It may have been stopped while the cell made up its mind: nothing of it is there.
            InstanceReport::Reject { .. } | InstanceReport::Gone if is_stopping => {
                self.gone(now, &row)?;
            }
            InstanceReport::Reject { reason } => self.rejected(now, &row, (cell, &reason))?,
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

    /// News of the copy before the current one. It never changes what is wanted.
    fn predecessor_report(
        &mut self,
        row: &Instance,
        cell: CellId,
        (epoch, report): (u32, InstanceReport),
    ) -> Result<(), Refusal> {
        let Some(before) = row.before.filter(|it| it.cell == cell && it.epoch == epoch) else {
            return Err(Refusal::stale("instance", row.id));
        };
        let before = match report {
            InstanceReport::Started { address } if address == before.address => Some(before),
            InstanceReport::Started { .. } => {
                return Err(Refusal::stale("instance", row.id));
            }
            InstanceReport::Ready { ready } => Some(Predecessor { ready, ..before }),
            InstanceReport::Crashed { .. }
            | InstanceReport::Reject { .. }
            | InstanceReport::Gone => None,
        };
        self.put_before(row, before);
        Ok(())
    }

    fn put_before(&mut self, row: &Instance, before: Option<Predecessor>) {
        if row.before != before {
            self.put(Instance { before, ..row.clone() });
        }
    }

    /// Forgets the copy before the current one. A cell that still has it is told of nothing.
    pub(crate) fn drop_before(&mut self, row: &Instance) {
        self.put_before(row, None);
    }

    pub(crate) fn is_connected(&self, cell: CellId) -> bool {
        self.get::<Cell>(cell).is_some_and(|cell| cell.lease_until.is_some())
    }

    /// The copy before the current one, where it can be told to end.
    fn lingering(&self, row: &Instance) -> Option<Predecessor> {
        row.before.filter(|before| self.is_connected(before.cell))
    }

    pub(crate) fn change_instance(
        &mut self,
        now: Time,
        row: &Instance,
        event: &InstanceEvent,
    ) -> Result<(), Refusal> {
        let state = row.state.next(event)?;
        if state == row.state {
            return Ok(());
        }
        let fails =
            matches!(state, InstanceState::Unclaimed { .. } | InstanceState::Crashed { .. });
        if let Some(before) = self.moves_from(row).filter(|_| fails) {
            return self.take_back(row, before);
        }
        let before = match &state {
            InstanceState::Running { ready: true, .. } => {
                row.before.and_then(|before| outrun(now, before))
            }
            InstanceState::Stopping { .. } => {
                self.lingering(row).and_then(|before| outrun(now, before))
            }
            // A cell knows one copy of an instance: told of the next, it ends the one before.
            InstanceState::Claimed { cell } => row.before.filter(|before| before.cell != *cell),
            InstanceState::Unclaimed { .. }
            | InstanceState::Running { ready: false, .. }
            | InstanceState::Crashed { .. }
            | InstanceState::Stopped => row.before,
        };
        // Running since it started, however often its check changed its mind; waiting since it
        // began to, whatever for.
        let same = row.state.name() == state.name();
        let since = if same { row.since } else { now };
        let retry_at = row.retry_at.filter(|_| matches!(event, InstanceEvent::Reject { .. }));
        let runs = matches!(state, InstanceState::Running { .. });
        let rejects = if runs { 0 } else { row.rejects };
        self.claim_ended(now, row, &state);
        self.put(Instance { state, before, rejects, retry_at, since, ..row.clone() });
        Ok(())
    }

    /// A cell gave it back. Another may take it, or the same one later, but not again and again.
    fn rejected(
        &mut self,
        now: Time,
        row: &Instance,
        (cell, reason): (CellId, &str),
    ) -> Result<(), Refusal> {
        let rejects = row.rejects.saturating_add(1);
        let retry_at = Some(now.after(reject_pause(rejects)));
        let row = Instance { rejects, retry_at, ..row.clone() };
        let name = self.cell(cell)?.spec.name;
        let reason = cut(format!("cell {name} gave it back: {reason}"));
        self.change_instance(now, &row, &InstanceEvent::Reject { reason })
    }

    /// Time to start again, or to be offered again.
    pub(crate) fn instance_due(&mut self, now: Time, id: InstanceId) -> Result<(), Refusal> {
        let row = self.instance(id)?;
        if matches!(row.state, InstanceState::Unclaimed { .. }) {
            self.put(Instance { retry_at: None, ..row });
            return Ok(());
        }
        self.change_instance(now, &row, &InstanceEvent::Restart { reason: None })
    }

    /// Ends one instance gracefully; as it is wanted, it is made again.
    pub(crate) fn restart_instance(
        &mut self,
        now: Time,
        (app, workspace): (AppId, &Name),
        (process, index): (&Name, u32),
    ) -> Result<Reply, Refusal> {
        let row = self.released_process(app, workspace, process)?;
        let id = instance_id(row.id, index);
        let Some(instance) = self.get::<Instance>(id).cloned() else {
            return Err(Refusal::not_found("instance", format!("{process}.{index}")));
        };
        if !matches!(instance.state, InstanceState::Stopping { .. }) {
            self.stop_instance(now, &instance)?;
        }
        Ok(Reply::Done)
    }

    /// The row once the copy before takes the place of the current one, which is told of nothing
    /// any more and so ends.
    pub(crate) fn promoted(row: &Instance, before: Predecessor) -> Result<Instance, Refusal> {
        let Predecessor { cell, address, epoch, ready, since, .. } = before;
        let state = row.state.next(&InstanceEvent::Promote { cell, address, ready })?;
        let last_epoch = row.highest_epoch();
        Ok(Instance { state, epoch, last_epoch, before: None, since, ..row.clone() })
    }

    /// Ends what there is of an instance: every copy of it that is on a cell.
    pub(crate) fn stop_instance(&mut self, now: Time, row: &Instance) -> Result<(), Refusal> {
        let row = match (row.state.cell(), self.lingering(row)) {
            (None, Some(before)) => Self::promoted(row, before)?,
            (None, None) | (Some(_), _) => row.clone(),
        };
        self.change_instance(now, &row, &InstanceEvent::Stop)?;
        if row.state.cell().is_none() {
            self.remove_instance(&row);
        }
        Ok(())
    }

    /// Nothing of the current copy is left, and none is wanted.
    fn gone(&mut self, now: Time, row: &Instance) -> Result<(), Refusal> {
        if let Some(before) = self.lingering(row) {
            self.put(Self::promoted(row, before)?);
            return Ok(());
        }
        self.change_instance(now, row, &InstanceEvent::Gone)?;
        self.remove_instance(row);
        Ok(())
    }

    /// Removes the row of an instance that is on no cell. Its process remembers the epoch.
    pub(crate) fn remove_instance(&mut self, row: &Instance) {
        self.delete::<Instance>(row.id);
        let highest = row.highest_epoch();
        let process = self.get::<Process>(row.process).cloned();
        if let Some(process) = process.filter(|process| process.last_epoch < highest) {
            self.put(Process { last_epoch: highest, ..(*process).clone() });
        }
    }

    /// A cell is there again and says what it holds.
    pub(crate) fn instance_back(
        &mut self,
        now: Time,
        (cell, id): (CellId, InstanceId),
        holds: &BTreeSet<Held>,
    ) -> Result<(), Refusal> {
        let row = self.instance(id)?;
        if let Some(before) = row.before.filter(|before| before.cell == cell) {
            let held = holds.contains(&Held::Instance { id, epoch: before.epoch });
            return self.predecessor_back(&row, before, held);
        }
        if holds.contains(&Held::Instance { id, epoch: row.epoch }) {
            return Ok(());
        }
        match row.state {
            InstanceState::Running { .. } => {
                let reason = "it vanished while its cell was away".to_owned();
                self.crash(now, &row, (reason, None))
            }
            InstanceState::Stopping { .. } => self.gone(now, &row),
            InstanceState::Unclaimed { .. }
            | InstanceState::Claimed { .. }
            | InstanceState::Crashed { .. }
            | InstanceState::Stopped => Ok(()),
        }
    }

    /// The cell of a copy that was replaced, or is being replaced, is there again. While the next
    /// one is not ready, the copy that is there is the better one.
    fn predecessor_back(
        &mut self,
        row: &Instance,
        before: Predecessor,
        held: bool,
    ) -> Result<(), Refusal> {
        match before.kind {
            _ if !held => self.put_before(row, None),
            PredecessorKind::Suspect | PredecessorKind::Evacuating
                if self.cell(before.cell)?.draining.is_some() =>
            {
                let before = Predecessor { kind: PredecessorKind::Evacuating, ..before };
                self.put_before(row, Some(before));
            }
            PredecessorKind::Suspect | PredecessorKind::Evacuating => {
                self.put(Self::promoted(row, before)?);
            }
            PredecessorKind::Stopping => {}
        }
        Ok(())
    }

    /// A cell is not there any more. What served on it may still do so.
    pub(crate) fn instance_lost(
        &mut self,
        now: Time,
        (cell, id): (CellId, InstanceId),
        (why, may_serve): (&str, bool),
    ) -> Result<(), Refusal> {
        let row = self.instance(id)?;
        if let Some(before) = row.before.filter(|before| before.cell == cell) {
            let serves = may_serve && before.ready && before.kind != PredecessorKind::Stopping;
            let suspect = Predecessor { kind: PredecessorKind::Suspect, ..before };
            self.put_before(&row, Some(suspect).filter(|_| serves));
            return Ok(());
        }
        if matches!(row.state, InstanceState::Stopping { .. }) {
            return self.gone(now, &row);
        }
        let suspect = PredecessorKind::Suspect;
        let row = if may_serve { Self::with_predecessor(row, suspect) } else { row };
        let reason = Some(why.to_owned());
        self.change_instance(now, &row, &InstanceEvent::Restart { reason })
    }

    /// The row with its current copy as the predecessor of the next, if it serves. One that serves
    /// in its place already stays.
    pub(crate) fn with_predecessor(row: Instance, kind: PredecessorKind) -> Instance {
        let InstanceState::Running { cell, address, ready: true } = row.state else { return row };
        if row.before.is_some_and(|before| before.kind != PredecessorKind::Stopping) {
            return row;
        }
        let (epoch, since) = (row.epoch, row.since);
        let before = Some(Predecessor { cell, address, epoch, kind, ready: true, since });
        Instance { before, ..row }
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
        let crash = Crash { at: now, reason: reason.clone(), detail: detail.clone() };
        let row = Instance { crashes, last_crash: Some(Arc::new(crash)), ..row.clone() };
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
}
