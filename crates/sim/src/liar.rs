//! Components that say what is not so: reports of attempts they do not hold, of work that is not
//! theirs, and of work that they ended long ago. The server has to refuse each of them.

use model::{CellId, InstanceReport, Outcome, TaskReport};
use state::Attempt;

use crate::message::{Key, Node, Up};
use crate::world::World;

impl World {
    /// Some component says something that is not so.
    pub(crate) fn lie(&mut self) {
        let talk: Vec<(u64, Node)> = self.open_conns();
        if talk.is_empty() {
            return;
        }
        for _ in 0..self.rng.between(1, 6) {
            let (conn, node) = talk[self.rng.index(talk.len())];
            let lie = match node {
                Node::Runner(index) => self.runners_lie(index),
                Node::Cell(index) => self.cells_lie(self.cells[index].id),
                Node::Router(_) => None,
            };
            if let Some(lie) = lie {
                self.note(format_args!("{node:?} says {lie:?}, which is not so"));
                self.send_up(conn, lie);
            }
        }
    }

    /// A report of an attempt that is over, or was never.
    fn runners_lie(&self, index: usize) -> Option<Up> {
        let jobs = &self.check.jobs;
        let open = jobs.values().filter(|job| !job.state.is_terminal());
        let held = open.filter(|job| !self.runners[index].holds(job.id)).count();
        let nth = self.rng.index(held.max(1));
        let open = jobs.values().filter(|job| !job.state.is_terminal());
        let job = open.filter(|job| !self.runners[index].holds(job.id)).nth(nth)?;
        let epoch = match self.rng.below(3) {
            0 => job.epoch.checked_sub(1)?,
            1 => job.epoch.checked_sub(2)?,
            _ => job.epoch + 1,
        };
        let at = Attempt { job: job.id, epoch };
        Some(match self.rng.below(5) {
            0 => Up::Ack(at),
            1 => Up::Nack(at),
            2 => Up::Heartbeat(at),
            3 => Up::Complete(at, Outcome::Succeeded),
            _ => Up::Log { at, first: 0, count: 2 },
        })
    }

    /// A report of work that another cell has, or that this one has not any more.
    fn cells_lie(&self, cell: CellId) -> Option<Up> {
        let is_task = self.rng.chance(400);
        let (id, epoch, own) = if is_task {
            let nth = self.rng.index(self.check.tasks.len().max(1));
            let row = self.check.tasks.values().nth(nth)?;
            (row.id.0, row.epoch, row.state.cell() == Some(cell))
        } else {
            let nth = self.rng.index(self.check.instances.len().max(1));
            let row = self.check.instances.values().nth(nth)?;
            (row.id.0, row.epoch, row.copy_on(cell).is_some())
        };
        let epoch = match self.rng.below(3) {
            0 if !own => epoch,
            1 => epoch + 1,
            // What it had before it has the one it has now.
            _ => epoch.checked_sub(2)?,
        };
        let key = Key { is_task, id, epoch };
        let failed = || TaskReport::Failed { reason: "a lie".to_owned(), detail: None };
        let address = std::net::SocketAddr::from(([10, 9, 9, 9], 9));
        Some(match (is_task, self.rng.below(4)) {
            (true, 0) => Up::Task(key, TaskReport::Claim),
            (true, 1) => Up::Task(key, TaskReport::Succeeded { result: None, artifact: None }),
            (true, 2) => Up::Task(key, TaskReport::Cancelled),
            (true, _) => Up::Task(key, failed()),
            (false, 0) => Up::Instance(key, InstanceReport::Started { address }),
            (false, 1) => Up::Instance(key, InstanceReport::Ready { ready: false }),
            (false, 2) => Up::Instance(key, InstanceReport::Gone),
            (false, _) => {
                let reason = "a lie".to_owned();
                let never_healthy = self.rng.chance(500);
                Up::Instance(key, InstanceReport::Crashed { reason, never_healthy, detail: None })
            }
        })
    }
}
