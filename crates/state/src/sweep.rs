//! The sweep: what events should have done, done again for a slice of everything.
//!
//! Nothing relies on it. Each command brings what it touched to where it should be, and each deadline
//! is a row's; the sweep is there for the bug that nobody has found yet. It costs as much as a slice,
//! however much there is, and goes round.

use std::ops::Bound;
use std::time::Duration;

use model::{DeploymentId, InstanceEvent, InstanceId, InstanceState, Time};

use crate::command::Refusal;
use crate::records::{Deployment, Instance, Predecessor, PredecessorKind, Process};
use crate::tables::{Core, RowKey};

/// How often a slice is looked at.
pub const SWEEP: Duration = Duration::from_secs(30);
/// How many deployments, and how many instances, are looked at in one go.
pub const SWEEP_SLICE: usize = 1_000;
/// How long a cell may prepare an instance before another gets it.
pub const CLAIM_LIMIT: Duration = Duration::from_mins(15);
/// How long routes lead to a copy on a cell that is not heard of while nothing can replace it.
pub const SUSPECT_LIMIT: Duration = Duration::from_hours(1);

/// Where the last sweep ended. It is not kept: after a restart sweeps begin anew.
#[derive(Debug, Default)]
pub(crate) struct Swept {
    deployment: Option<DeploymentId>,
    instance: Option<InstanceId>,
}

/// The next slice after where the last one ended; from the beginning once the end was reached.
fn slice<K: Copy + Ord, V>(
    rows: &std::collections::BTreeMap<K, V>,
    after: &mut Option<K>,
) -> Vec<K> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let keys: Vec<K> =
        rows.range((from, Bound::Unbounded)).map(|(key, _)| *key).take(SWEEP_SLICE).collect();
    *after = keys.last().copied().filter(|_| keys.len() == SWEEP_SLICE);
    keys
}

impl Core {
    /// Looks at the next slice of everything.
    pub(crate) fn sweep(&mut self, now: Time) -> Result<(), Refusal> {
        // Convergence makes what is missing and ends what is too much.
        let deployments = slice(&self.tables.deployments, &mut self.swept.deployment);
        self.indexes.dirty.extend(deployments);
        for id in slice(&self.tables.instances, &mut self.swept.instance) {
            self.sweep_instance(now, id)?;
        }
        if let Some(placing) = &mut self.indexes.placing {
            placing.look_again();
        }
        // Renewed leases are not kept, but that the clock has been this far is.
        let latest = self.tables.cells.values().max_by_key(|cell| cell.lease_until);
        self.changed.extend(latest.map(|cell| RowKey::Cell(cell.id)));
        Ok(())
    }

    fn sweep_instance(&mut self, now: Time, id: InstanceId) -> Result<(), Refusal> {
        let row = self.instance(id)?;
        let known = self.get::<Process>(row.process).is_some()
            && self.get::<Deployment>(row.deployment).is_some();
        if !known {
            // A cell that still has it is told of nothing and so ends it.
            self.remove_instance(&row);
            return Ok(());
        }
        if row.before.is_some_and(|before| self.is_forlorn(now, &row, before)) {
            self.drop_before(&row);
            return self.sweep_instance(now, id);
        }
        let since = now.since(row.since);
        match &row.state {
            InstanceState::Claimed { cell } if !self.is_connected(*cell) => {
                let reason = Some("its cell is not there any more".to_owned());
                self.change_instance(now, &row, &InstanceEvent::Restart { reason })
            }
            InstanceState::Claimed { .. } if since >= CLAIM_LIMIT => {
                let minutes = CLAIM_LIMIT.as_secs() / 60;
                let reason = Some(format!("its cell did not start it within {minutes} min"));
                self.change_instance(now, &row, &InstanceEvent::Restart { reason })
            }
            InstanceState::Running { cell, .. } if !self.is_connected(*cell) => {
                let why = "its cell is not there any more";
                self.instance_lost(now, (*cell, id), (why, true))
            }
            InstanceState::Stopping { cell } if !self.is_connected(*cell) => {
                self.instance_lost(now, (*cell, id), ("", false))
            }
            InstanceState::Crashed { .. } | InstanceState::Unclaimed { .. }
                if row.next_deadline().is_some_and(|at| at <= now) =>
            {
                self.instance_due(now, id)
            }
            InstanceState::Unclaimed { .. }
            | InstanceState::Claimed { .. }
            | InstanceState::Running { .. }
            | InstanceState::Crashed { .. }
            | InstanceState::Stopping { .. }
            | InstanceState::Stopped => Ok(()),
        }
    }

    /// Whether nobody will ever say more of the copy before the current one.
    fn is_forlorn(&self, now: Time, row: &Instance, before: Predecessor) -> bool {
        let is_there = self.is_connected(before.cell);
        match before.kind {
            PredecessorKind::Suspect => is_there || now.since(row.since) >= SUSPECT_LIMIT,
            PredecessorKind::Evacuating | PredecessorKind::Stopping => !is_there,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::CellId;

    use super::*;
    use crate::records::Cell;
    use crate::{CellCommand, Command, State};

    const CELL: CellId = CellId(7);
    const NOW: Time = Time(100_000_000);

    /// Rows as a store holds them: a released deployment of one instance on a connected cell.
    fn state() -> (State, InstanceId) {
        let rows = include_str!("sweep/rows.jsonl");
        let mut state = State::new("localhost");
        for line in rows.lines() {
            let (kind, body) = line.split_once(' ').expect("a kind and a body");
            state.load(kind, body.as_bytes()).expect("it loads");
        }
        state.apply(NOW, Command::Boot).expect("it boots");
        state.take_changes().expect("rows render");
        let id = state.core.tables.instances.keys().next().copied().expect("there is one");
        (state, id)
    }

    /// Changes the row of the instance without anybody noticing.
    fn behind_its_back(state: &mut State, id: InstanceId, change: impl FnOnce(&mut Instance)) {
        let row = state.core.tables.instances.get_mut(&id).expect("it is there");
        change(Arc::make_mut(row));
    }

    fn swept(state: &mut State, at: Time) -> Vec<Instance> {
        let cell = state.core.tables.cells.get(&CELL).expect("it is there").clone();
        if cell.lease_until.is_some() {
            let beat = CellCommand::Heartbeat { id: CELL, epoch: cell.epoch };
            state.apply(at, Command::Cell(beat)).expect("it is connected");
        }
        state.apply(at, Command::Sweep).expect("a sweep is never refused");
        state.core.tables.instances.values().map(|row| (**row).clone()).collect()
    }

    #[test]
    fn nothing_is_wrong_and_nothing_changes() {
        let (mut state, _) = state();
        swept(&mut state, NOW);
        let changed = state.take_changes().expect("rows render").rows;
        assert!(changed.iter().all(|change| change.key.kind() == "cell"), "{changed:?}");
    }

    #[test]
    fn a_missing_instance_is_made() {
        let (mut state, id) = state();
        state.core.tables.instances.remove(&id);
        state.core.indexes.instances.clear();
        let rows = swept(&mut state, NOW);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].state, InstanceState::Claimed { cell: CELL });
    }

    #[test]
    fn what_is_too_much_ends() {
        let (mut state, id) = state();
        let process = state.core.tables.processes.values_mut().next().expect("there is one");
        Arc::make_mut(process).instances = 0;
        let rows = swept(&mut state, NOW);
        assert_eq!(rows[0].id, id);
        assert_eq!(rows[0].state, InstanceState::Stopping { cell: CELL });
    }

    #[test]
    fn a_claim_that_nobody_confirms_ends() {
        let (mut state, id) = state();
        behind_its_back(&mut state, id, |row| {
            row.state = InstanceState::Claimed { cell: CELL };
            row.since = NOW;
        });
        let early = swept(&mut state, NOW.after(CLAIM_LIMIT.saturating_sub(SWEEP)));
        assert_eq!(early[0].epoch, 1);
        let late = swept(&mut state, NOW.after(CLAIM_LIMIT));
        assert_eq!((late[0].state.name(), late[0].epoch), ("claimed", 2), "it is offered again");
    }

    #[test]
    fn what_is_due_happens() {
        let (mut state, id) = state();
        let states = [
            InstanceState::Crashed { restart_at: Some(NOW), reason: "x".into(), detail: None },
            InstanceState::Unclaimed { reason: Some("a cell gave it back".into()) },
        ];
        for due in states {
            behind_its_back(&mut state, id, |row| {
                row.state = due;
                row.retry_at = Some(NOW);
            });
            let rows = swept(&mut state, NOW);
            assert_eq!(rows[0].state, InstanceState::Claimed { cell: CELL });
        }
    }

    #[test]
    fn rows_that_nobody_owns_go() {
        let (mut state, _) = state();
        state.core.tables.processes.clear();
        assert_eq!(swept(&mut state, NOW), []);
    }

    #[test]
    fn a_suspect_of_a_cell_that_is_gone_for_good_is_dropped() {
        let (mut state, id) = state();
        let cell = state.core.tables.cells.get_mut(&CELL).expect("it is there");
        Arc::make_mut(cell).lease_until = None;
        state.core.indexes.placing = None;
        let rows = swept(&mut state, NOW);
        let before = rows[0].before.expect("it may still serve");
        assert_eq!((before.kind, before.cell), (PredecessorKind::Suspect, CELL));
        assert!(matches!(rows[0].state, InstanceState::Unclaimed { .. }));
        let early = swept(&mut state, NOW.after(SUSPECT_LIMIT.saturating_sub(SWEEP)));
        assert!(early[0].before.is_some());
        assert_eq!(swept(&mut state, NOW.after(SUSPECT_LIMIT))[0].before, None);
        assert_eq!(state.get::<Instance>(id).map(|row| row.epoch), Some(1));
    }

    #[test]
    fn a_copy_that_nobody_can_report_on_is_dropped() {
        let (mut state, id) = state();
        for kind in [PredecessorKind::Evacuating, PredecessorKind::Stopping] {
            behind_its_back(&mut state, id, |row| {
                let address = row.state.ready_address().expect("it is ready");
                let cell = CellId(99);
                let since = NOW;
                row.before =
                    Some(Predecessor { cell, address, epoch: 0, kind, ready: true, since });
            });
            assert_eq!(swept(&mut state, NOW)[0].before, None);
        }
        assert!(state.get::<Cell>(CellId(99)).is_none());
    }

    #[test]
    fn slices_go_round() {
        let rows: std::collections::BTreeMap<usize, bool> =
            (0..=SWEEP_SLICE * 2).map(|key| (key, true)).collect();
        let mut after = None;
        let mut looked = Vec::new();
        for _ in 0..4 {
            looked.push(slice(&rows, &mut after).len());
        }
        assert_eq!(looked, [SWEEP_SLICE, SWEEP_SLICE, 1, SWEEP_SLICE]);
    }
}
