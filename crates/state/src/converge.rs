//! Convergence: what is there follows what is wanted. Works off what changed, not everything.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::{
    DeploymentEvent, DeploymentId, DeploymentState, InstanceId, InstanceState, ProcessId, Time,
};

use crate::cells::CELL_LEASE;
use crate::command::Refusal;
use crate::records::{Cell, Deployment, Instance, Process};
use crate::tables::{Core, RowKey};

/// An instance id that follows from its process and index: it stays the same over restarts, and
/// its log can be found when its row is gone.
pub const fn instance_id(process: ProcessId, index: u32) -> InstanceId {
    InstanceId(process.0 ^ ((index as u128 + 1) << 32))
}

impl Core {
    /// Brings everything that a command touched to where it should be.
    pub(crate) fn settle(&mut self, now: Time) -> Result<(), Refusal> {
        self.converge_dirty(now)?;
        if self.indexes.placing.as_ref().is_some_and(|placing| placing.is_due()) {
            self.auction(now)?;
            // Placing marks deployments again; nothing of theirs is missing now.
            self.converge_dirty(now)?;
        }
        self.refresh_routes(now);
        Ok(())
    }

    /// Converges what is marked, and what was held back from a cell that has more room now.
    fn converge_dirty(&mut self, now: Time) -> Result<(), Refusal> {
        loop {
            while let Some(id) = self.indexes.dirty.pop_first() {
                self.converge(now, id)?;
            }
            let roomier = self.indexes.placing.as_mut().map(|placing| placing.take_roomier());
            let waiting = roomier.into_iter().flatten().filter_map(|id| self.get::<Instance>(id));
            let waiting: BTreeSet<_> = waiting.map(|row| row.deployment).collect();
            if waiting.is_empty() {
                return Ok(());
            }
            self.indexes.dirty.extend(waiting);
        }
    }

    fn converge(&mut self, now: Time, id: DeploymentId) -> Result<(), Refusal> {
        let Some(row) = self.get::<Deployment>(id).cloned() else { return Ok(()) };
        self.indexes.dirty_routes.insert(row.app);
        let mut healthy = true;
        for process in &row.processes {
            healthy &= self.converge_process(now, *process, &row)?;
        }
        self.converge_volumes(now, &row)?;
        if healthy && matches!(row.state, DeploymentState::Starting { .. }) {
            self.change_deployment(&row, &DeploymentEvent::Healthy)?;
        }
        Ok(())
    }

    pub(crate) fn instances_of(&self, process: ProcessId) -> impl Iterator<Item = &Arc<Instance>> {
        let range = (process, 0, InstanceId(0))..=(process, u32::MAX, InstanceId(u128::MAX));
        let ids = self.indexes.instances.range(range).map(|(_, _, id)| *id);
        ids.filter_map(|id| self.get::<Instance>(id))
    }

    /// The indexes below `wanted` of a process that have no row, without those `taken` over.
    fn missing(&self, process: ProcessId, wanted: u32, taken: &BTreeSet<u32>) -> Vec<u32> {
        let there: BTreeSet<u32> = self.instances_of(process).map(|row| row.index).collect();
        (0..wanted).filter(|index| !there.contains(index) && !taken.contains(index)).collect()
    }

    /// Whether anything of a deployment is left on a cell.
    pub(crate) fn runs(&self, deployment: DeploymentId) -> bool {
        let Some(row) = self.get::<Deployment>(deployment) else { return false };
        row.processes.iter().any(|process| self.instances_of(*process).next().is_some())
    }

    /// Makes what is missing, stops what is too much; whether all wanted instances are healthy.
    pub(crate) fn converge_process(
        &mut self,
        now: Time,
        id: ProcessId,
        deployment: &Deployment,
    ) -> Result<bool, Refusal> {
        let Some(process) = self.get::<Process>(id).cloned() else { return Ok(true) };
        let wanted = if deployment.state.wants_instances() { process.instances } else { 0 };
        let taken = self.taken_over(deployment, &process, wanted);
        let is_wanted = |index: u32| index < wanted && !taken.contains(&index);
        let (mut ready, mut there) = (0, 0);
        let mut extra = Vec::new();
        for row in self.instances_of(id) {
            ready += u32::from(row.index < wanted && row.state.ready_address().is_some());
            there += usize::from(is_wanted(row.index));
            if !is_wanted(row.index) && !matches!(row.state, InstanceState::Stopping { .. }) {
                extra.push(Arc::clone(row));
            }
        }
        for row in extra {
            self.stop_instance(now, &row)?;
        }
        let complete = there + taken.len() >= wanted as usize;
        for index in if complete { Vec::new() } else { self.missing(id, wanted, &taken) } {
            self.put(Instance {
                id: instance_id(id, index),
                process: id,
                deployment: deployment.id,
                index,
                state: InstanceState::Unclaimed { reason: None },
                epoch: process.last_epoch,
                last_epoch: process.last_epoch,
                before: None,
                crashes: 0,
                last_crash: None,
                rejects: 0,
                pinned: None,
                held: false,
                retry_at: None,
                since: now,
            });
        }
        self.converge_slots(now, deployment, &process)?;
        Ok(ready == wanted)
    }

    /// Everything whose deadline has passed.
    pub(crate) fn tick(&mut self, now: Time) -> Result<(), Refusal> {
        #[cfg(feature = "planted")]
        self.planted_late(now);
        let due: Vec<(Time, RowKey)> =
            self.indexes.deadlines.iter().take_while(|(at, _)| *at <= now).copied().collect();
        for (at, key) in due {
            // An earlier deadline of the same tick may have ended or removed it.
            if self.indexes.deadlines.contains(&(at, key)) {
                self.due(now, key)?;
            }
        }
        Ok(())
    }

    fn due(&mut self, now: Time, key: RowKey) -> Result<(), Refusal> {
        match key {
            RowKey::Job(id) => self.job_due(now, id),
            RowKey::Task(id) => self.task_due(now, id),
            RowKey::Signing(id) => {
                self.signing_due(id);
                Ok(())
            }
            RowKey::Cell(id) => {
                let Some(cell) = self.get::<Cell>(id).cloned() else { return Ok(()) };
                self.cell_due(now, &cell)
            }
            RowKey::Deployment(id) => self.deployment_due(now, id),
            RowKey::Instance(id) => self.instance_due(now, id),
            RowKey::Volume(id) => self.volume_due(now, id),
            RowKey::Project(_)
            | RowKey::App(_)
            | RowKey::Token(_)
            | RowKey::Key(_)
            | RowKey::Runner(_)
            | RowKey::Build(_)
            | RowKey::Delivery(_)
            | RowKey::Process(_) => Ok(()),
        }
    }

    fn deployment_due(&mut self, now: Time, id: DeploymentId) -> Result<(), Refusal> {
        let row = self.deployment(id)?;
        if row.retire_at.is_some_and(|at| at <= now) {
            return self.change_deployment(&row, &DeploymentEvent::Retire);
        }
        let reason = self.why_not_healthy(&row);
        self.change_deployment(&row, &DeploymentEvent::Fail { reason })
    }

    fn why_not_healthy(&self, row: &Deployment) -> String {
        let instances = row.processes.iter().flat_map(|process| self.instances_of(*process));
        let stuck = instances.into_iter().find_map(|instance| match &instance.state {
            InstanceState::Running { ready: true, .. } => None,
            InstanceState::Unclaimed { reason: Some(reason) } => {
                Some(format!("instance {} has no place: {reason}", instance.index))
            }
            InstanceState::Crashed { reason, .. } => {
                Some(format!("instance {} {reason}", instance.index))
            }
            InstanceState::Unclaimed { reason: None }
            | InstanceState::Claimed { .. }
            | InstanceState::Running { ready: false, .. }
            | InstanceState::Stopping { .. }
            | InstanceState::Stopped => Some(format!(
                "instance {} is {}, not healthy",
                instance.index,
                instance.state.name()
            )),
        });
        let stuck = stuck.unwrap_or_else(|| "it was not healthy".to_owned());
        format!("{stuck} when the time to start was up")
    }

    /// After a restart nobody is connected, and the same holds as after a while without a store.
    pub(crate) fn boot(&mut self, now: Time) -> Result<(), Refusal> {
        self.runners_left(now);
        self.resume(now)
    }

    /// Leases and offers start afresh, and everything is looked at once.
    pub(crate) fn resume(&mut self, now: Time) -> Result<(), Refusal> {
        self.resume_jobs(now)?;
        self.resume_tasks(now);
        let connected: Vec<Cell> = self
            .tables
            .cells
            .values()
            .filter(|cell| cell.lease_until.is_some())
            .map(|cell| (**cell).clone())
            .collect();
        for cell in connected {
            let lease_until = now.after(CELL_LEASE);
            #[cfg(feature = "planted")]
            let lease_until = if crate::planted::is("M12") { now } else { lease_until };
            self.put(Cell { lease_until: Some(lease_until), ..cell });
        }
        let starting: Vec<_> = self
            .tables
            .deployments
            .values()
            .filter(|row| matches!(row.state, DeploymentState::Starting { .. }))
            .cloned()
            .collect();
        for row in starting {
            let deadline = self.start_deadline(now, &row.processes);
            let deadline =
                deadline.after(self.hand_over((row.app, &row.workspace), &row.processes));
            let state = DeploymentState::Starting { deadline };
            self.put(Deployment { state, ..(*row).clone() });
        }
        self.indexes.dirty.extend(self.tables.deployments.keys());
        self.indexes.dirty_routes.extend(self.tables.apps.keys());
        if let Some(placing) = &mut self.indexes.placing {
            placing.look_again();
        }
        Ok(())
    }
}
