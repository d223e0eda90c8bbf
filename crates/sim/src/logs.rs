//! Logs of jobs: runners send lines until they are kept, the server appends what is new.

use state::Attempt;

use crate::message::{Node, Up};
use crate::world::World;

impl World {
    /// A runner's work writes something.
    pub(crate) fn runner_writes(&mut self, index: usize, at: Attempt) {
        let lines = self.rng.between(1, 3);
        let runner = &mut self.runners[index];
        let Some((kept, written)) = runner.log_of(at) else { return };
        *written += lines;
        let (first, count) = (*kept, *written - *kept);
        if let Some(conn) = runner.conn {
            self.send_up(conn, Up::Log { at, first, count });
        }
    }

    /// The server puts lines into the log of a job. I11: they are the next ones, and they come from
    /// the runner that works on the attempt whose lines they are.
    pub(crate) fn append_log(&mut self, index: usize, at: Attempt, (from, to): (u64, u64)) {
        if to <= from {
            return;
        }
        let next = self.shell.logs.insert(at.job, to).unwrap_or(0);
        if from != next {
            let detail = format!("lines {from} to {to} of {} follow line {next}", at.job);
            return self.fail("I11", detail);
        }
        let row = self.check.jobs.get(&at.job);
        let runner = self.runners[index].id;
        let owns = row.is_some_and(|row| {
            row.epoch == at.epoch && row.state.runner().is_none_or(|holder| holder == runner)
        });
        if !owns {
            let who = Node::Runner(index);
            let row = row.map(|row| (row.epoch, &row.state));
            let detail = format!("{who:?} wrote lines of {at:?}, which is at {row:?}");
            self.fail("I11", detail);
        }
    }
}
