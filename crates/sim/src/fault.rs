//! What goes wrong.

use crate::message::{Event, Node};
use crate::world::World;

impl World {
    /// Something goes wrong, and something else will.
    pub(crate) fn fault(&mut self) {
        if !self.chaos {
            return;
        }
        let pause = self.rng.between(300, 12_000);
        self.later(pause, Event::Fault);
        let nodes = self.nodes();
        let node = nodes[self.rng.index(nodes.len())];
        match self.rng.below(20) {
            0..3 => self.server_crash(),
            3..7 => self.kill(node),
            7..12 => self.break_one(),
            12..15 => self.stall_one(),
            15..18 => {
                let span = if self.rng.chance(400) { 60_000 } else { 8_000 };
                let span = self.rng.between(500, span);
                self.freeze(node, span);
            }
            18 if self.mood.jumps => self.jump(),
            _ => self.freeze_runners(),
        }
    }

    /// Offers run out, go to another runner that does not answer either, and are acknowledged late.
    fn freeze_runners(&mut self) {
        for index in 0..self.runners.len() {
            let span = self.rng.between(15_000, 60_000);
            self.freeze(Node::Runner(index), span);
        }
    }

    fn kill(&mut self, node: Node) {
        if self.is_frozen(node) {
            return;
        }
        self.note(format_args!("{node:?} is killed"));
        match node {
            Node::Runner(index) => self.runner_dies(index),
            Node::Cell(index) => {
                let whole = self.rng.chance(300);
                self.cell_dies(index, whole);
            }
            Node::Router(index) => self.router_dies(index),
        }
        let away = if self.rng.chance(300) { 40_000 } else { 3_000 };
        let away = self.rng.between(100, away);
        self.later(away, Event::Start { node });
    }

    fn break_one(&mut self) {
        let conns = self.open_conns();
        if !conns.is_empty() {
            let (conn, _) = conns[self.rng.index(conns.len())];
            self.break_conn(conn);
        }
    }

    fn stall_one(&mut self) {
        let conns = self.open_conns();
        if conns.is_empty() {
            return;
        }
        let (conn, node) = conns[self.rng.index(conns.len())];
        let until = self.now + self.rng.between(200, 12_000);
        self.note(format_args!("the link to {node:?} is slow until {until}"));
        if let Some(it) = self.conns.get_mut(&conn) {
            it.stalled_until = until;
        }
    }

    /// The server's wall clock is set forwards or back.
    fn jump(&mut self) {
        let by = i64::try_from(self.rng.between(1_000, 40_000)).unwrap_or(0);
        let by = if self.rng.chance(500) { by } else { -by };
        self.note(format_args!("the server's clock jumps by {by} ms"));
        self.shell.skew += by;
        self.shell.set_back |= by < 0;
    }
}
