//! Runners and cells that are away: each new one adds a row, so not all of them are remembered.

use model::{CellId, RunnerId};

use crate::command::Refusal;
use crate::records::{Cell, Runner};
use crate::tables::{Core, Row};

/// Most runners, and most cells, that are remembered while they are away and have nothing to do.
/// The one that is away longest, or joined first, is forgotten; it may join again as a new one.
pub const MAX_AWAY: usize = 1_000;
/// Most runners, and most cells, in all.
pub const MAX_MEMBERS: usize = 20_000;

impl Core {
    /// Makes room for one more runner.
    pub(crate) fn room_for_runner(&mut self) -> Result<(), Refusal> {
        let idle = |row: &Runner| {
            let held = self.indexes.queue.by_runner.get(&row.id);
            let holds_jobs = held.is_some_and(|jobs| !jobs.is_empty());
            (!row.online && !holds_jobs).then_some((row.since, row.id))
        };
        let forgotten: Option<RunnerId> = self.forgotten::<Runner, _>(idle, "runners")?;
        if let Some(id) = forgotten {
            self.delete::<Runner>(id);
        }
        Ok(())
    }

    /// Makes room for one more cell. What an operator emptied, and what has a volume, stays.
    pub(crate) fn room_for_cell(&mut self) -> Result<(), Refusal> {
        let idle = |row: &Cell| {
            let away = row.lease_until.is_none() && row.draining.is_none_or(|drain| !drain.asked);
            let idle = away
                && self.volumes_on(row.id).next().is_none()
                && self.tasks_on(row.id).is_empty()
                && self.instances_on(row.id).is_empty();
            idle.then_some((row.joined_at, row.id))
        };
        let forgotten: Option<CellId> = self.forgotten::<Cell, _>(idle, "cells")?;
        if let Some(id) = forgotten {
            self.delete::<Cell>(id);
        }
        Ok(())
    }

    /// The row that is forgotten for a new one: the first of those that may be, when they are too
    /// many.
    fn forgotten<R: Row, At: Ord>(
        &self,
        idle: impl Fn(&R) -> Option<(At, R::Id)>,
        what: &str,
    ) -> Result<Option<R::Id>, Refusal>
    where
        R::Id: Ord,
    {
        let rows = R::table(&self.tables);
        if rows.len() < MAX_AWAY {
            return Ok(None);
        }
        let away: Vec<_> = rows.values().filter_map(|row| idle(row)).collect();
        if away.len() >= MAX_AWAY {
            return Ok(away.into_iter().min().map(|(_, id)| id));
        }
        if rows.len() >= MAX_MEMBERS {
            let message = format!("there are {MAX_MEMBERS} {what}, which is the limit");
            return Err(Refusal::Conflict(message));
        }
        Ok(None)
    }
}
