//! Leases: nobody counts as gone who was heard of within the lease.

use std::collections::BTreeMap;

use model::{CellId, JobId, JobState};
use state::{CELL_LEASE, Cell, CellCommand, Command, JOB_LEASE, Job, JobCommand};

use crate::clock::CATCH_UP;
use crate::world::World;

/// How late a tick is at most, with its commit, in milliseconds.
const LATE_TICK: u64 = 10_000;

/// When the server last heard of somebody, in milliseconds in which it was awake.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    cells: BTreeMap<CellId, u64>,
    jobs: BTreeMap<JobId, u64>,
    /// When leases last began afresh.
    began: u64,
}

/// Who had a lease before a tick.
#[derive(Debug)]
pub(crate) struct Leases {
    cells: Vec<CellId>,
    jobs: Vec<JobId>,
}

impl World {
    /// True time, as far as the server was awake.
    const fn awake(&self) -> u64 {
        self.now - self.shell.stood_still
    }

    /// The server carried out a command by which it heard of somebody.
    pub(crate) fn heard(&mut self, command: &Command) {
        let now = self.awake();
        let heard = &mut self.shell.heard;
        match command {
            Command::Boot | Command::Resume => heard.began = now,
            Command::Cell(CellCommand::Online { id, .. } | CellCommand::Heartbeat { id, .. }) => {
                heard.cells.insert(*id, now);
            }
            Command::Job(command) => {
                if let JobCommand::Ack(at) | JobCommand::Heartbeat(at) = command.said() {
                    heard.jobs.insert(at.job, now);
                }
            }
            _ => {}
        }
    }

    /// P3: whoever is silent counts as gone soon after the lease. The server's clock goes an eighth
    /// slower at most, and a tick may be late.
    pub(crate) fn check_silent(&mut self) {
        let now = self.awake();
        let Some(state) = self.shell.settled() else { return };
        let heard = &self.shell.heard;
        let lease = u64::try_from(CELL_LEASE.as_millis()).unwrap_or(u64::MAX);
        let silent = state.all::<Cell>().filter(|row| row.lease_until.is_some()).find_map(|row| {
            let last = heard.cells.get(&row.id).copied().unwrap_or(0).max(heard.began);
            let silent = now.saturating_sub(last);
            (silent > lease + lease / CATCH_UP + LATE_TICK).then_some((row.id, silent))
        });
        if let Some((id, silent)) = silent {
            self.fail("P3", format!("{id} has been silent for {silent} ms and counts as there"));
        }
    }

    /// Who has a lease that a tick may end.
    pub(crate) fn leases(&self, command: &Command) -> Option<Leases> {
        let state = self.shell.live.as_ref().filter(|_| matches!(command, Command::Tick))?;
        let stays = |row: &&std::sync::Arc<Cell>| {
            row.lease_until.is_some() && !row.draining.is_some_and(|it| it.leaving)
        };
        let runs = |row: &&std::sync::Arc<Job>| matches!(row.state, JobState::Running { .. });
        let cells = state.all::<Cell>().filter(stays).map(|row| row.id).collect();
        Some(Leases { cells, jobs: state.all::<Job>().filter(runs).map(|row| row.id).collect() })
    }

    /// P3, P4, I8: a tick gave somebody up. That must not be early, whatever the clocks show; the
    /// server's goes an eighth faster at most.
    pub(crate) fn check_leases(&mut self, before: &Leases) {
        let now = self.awake();
        let Some(state) = &self.shell.live else { return };
        let heard = &self.shell.heard;
        let early = |last: Option<&u64>, lease: std::time::Duration| {
            let last = last.copied().unwrap_or(0).max(heard.began);
            let lease = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
            let silent = now.saturating_sub(last);
            (silent < lease - lease / CATCH_UP - 1).then_some(silent)
        };
        let gone = |id: &&CellId| state.get::<Cell>(**id).is_none_or(|it| it.lease_until.is_none());
        let cell = before.cells.iter().filter(gone).find_map(|id| {
            let silent = early(heard.cells.get(id), CELL_LEASE)?;
            Some(format!("{id} was given up after {silent} ms"))
        });
        let ended = |id: &&JobId| {
            state.get::<Job>(**id).is_none_or(|it| !matches!(it.state, JobState::Running { .. }))
        };
        let job = before.jobs.iter().filter(ended).find_map(|id| {
            let silent = early(heard.jobs.get(id), JOB_LEASE)?;
            Some(format!("{id} was given up after {silent} ms"))
        });
        if let Some(detail) = cell.or(job) {
            self.fail("lease", detail);
        }
    }
}
