//! Evening out: copies that serve move from the fullest cells to the emptiest, a few at a time.
//!
//! A move is what a drain does to one instance: another copy starts on the cell that was chosen for
//! it, and the first serves until that one is ready. Unlike a drain it is never urgent. A move begins
//! only while nothing waits for a cell and nothing else moves, and one whose new copy crashes, is
//! given back or is lost is taken back: the first copy is the wanted one again.

use std::sync::Arc;
use std::time::Duration;

use auction::{Budget, Move};
use model::{CellId, DeploymentState, InstanceState, ProcessId, Time};

use crate::command::{Refusal, Reply};
use crate::records::{Cell, Deployment, Instance, Predecessor, PredecessorKind, Process};
use crate::tables::Core;

/// How often moves are asked for unless an operator says otherwise.
pub const REBALANCE_PERIOD: Duration = Duration::from_mins(1);
/// The most instances that an operator may have moving at once.
pub const MAX_MOVES: u32 = 1_000;
/// Cells that are fuller than the emptiest by no more than this are left alone, in percentage points.
pub const REBALANCE_TOLERANCE: u32 = 10;

/// How many proposals are looked at for each move: not all that evens out may move just now.
const PROPOSALS: usize = 4;

impl Core {
    /// Begins at most so many moves, if nothing waits for a cell and nothing moves.
    pub(crate) fn rebalance(&mut self, now: Time, most: u32) -> Result<Reply, Refusal> {
        if most > MAX_MOVES {
            let message = format!("at most {MAX_MOVES} instances may move at once, not {most}");
            return Err(Refusal::Invalid(message));
        }
        if !self.is_calm() {
            return Ok(Reply::Done);
        }
        let moves = (most as usize).saturating_mul(PROPOSALS);
        let budget = Budget { moves, tolerance: REBALANCE_TOLERANCE };
        let proposed = self.indexes.placing.as_ref().map(|placing| placing.proposals(budget));
        let mut left = most;
        for proposal in proposed.into_iter().flatten() {
            if left == 0 {
                break;
            }
            left -= u32::from(self.begin_move(now, proposal)?);
        }
        Ok(Reply::Done)
    }

    /// Whether everything has a place and nothing is on its way to another.
    fn is_calm(&self) -> bool {
        let counts = &self.indexes.counts.instances;
        let none = |state| counts.get(state).is_none_or(|count| *count == 0);
        let waits = self.indexes.placing.as_ref().is_none_or(|placing| placing.is_waited_for());
        self.indexes.moving.is_empty() && none("unclaimed") && none("claimed") && !waits
    }

    /// Begins one move, unless what is proposed may not move now.
    fn begin_move(&mut self, now: Time, proposal: Move) -> Result<bool, Refusal> {
        let process = ProcessId(proposal.group);
        let Some(row) = self.movable(now, process, proposal.from) else { return Ok(false) };
        // Until the old copy has ended, what was to be free by then is not.
        let placing = self.indexes.placing.as_ref();
        let fits = placing.is_some_and(|it| it.fits(proposal.to, process));
        if !fits {
            return Ok(false);
        }
        let row = Self::with_predecessor((*row).clone(), PredecessorKind::Evacuating);
        let id = row.id;
        self.put(Instance { state: InstanceState::Unclaimed { reason: None }, ..row });
        self.place_instance(now, id, proposal.to)?;
        self.indexes.counts.moves += 1;
        Ok(true)
    }

    /// The copy of a process on a cell that may move: one that serves and did not fail lately, of a
    /// deployment that is to stay, and bound to nothing there. First copies go last.
    fn movable(&self, now: Time, process: ProcessId, from: CellId) -> Option<Arc<Instance>> {
        let known = self.get::<Process>(process)?;
        let deployment = self.get::<Deployment>(known.deployment)?;
        let stays = deployment.state == DeploymentState::Ready && deployment.retire_at.is_none();
        if !stays || !known.spec.container.volumes.is_empty() {
            return None;
        }
        let calm_after = Duration::from_millis(known.spec.crash.reset_after_ms);
        let serves = |row: &&Arc<Instance>| {
            let here = matches!(row.state, InstanceState::Running { cell, ready: true, .. } if cell == from);
            let crash = row.last_crash.as_ref();
            let is_calm = crash.is_none_or(|crash| now.since(crash.at) >= calm_after);
            here && is_calm && row.before.is_none() && row.rejects == 0
        };
        self.instances_of(process).filter(serves).last().cloned()
    }

    /// The copy that goes on when the one that was to take its place comes to nothing: its cell is
    /// there and is not being emptied, so it was only to be evened out.
    pub(crate) fn moves_from(&self, row: &Instance) -> Option<Predecessor> {
        let before = row.before.filter(|it| it.kind == PredecessorKind::Evacuating)?;
        let cell = self.get::<Cell>(before.cell)?;
        cell.accepts().then_some(before)
    }

    /// Ends a move: the first copy is the wanted one again.
    pub(crate) fn take_back(&mut self, row: &Instance, before: Predecessor) -> Result<(), Refusal> {
        self.put(Instance { retry_at: None, ..Self::promoted(row, before)? });
        Ok(())
    }
}
