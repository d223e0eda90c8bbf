//! What goes wrong.

use std::time::Duration;

use state::{Cell, CellCommand, Command};

use crate::message::{Event, Node, Origin, Up};
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
        match self.rng.below(31) {
            24..27 => self.partition(node),
            27..29 => self.lie(),
            29 => {
                let span = if self.rng.chance(300) { 60_000 } else { 5_000 };
                let span = self.rng.between(200, span);
                self.server_freezes(span);
            }
            30 => self.cut_many(),
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
            20..22 => self.drain_some(),
            22..24 => self.cell_leaves(),
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

    /// An operator drains a cell, or takes that back.
    fn drain_some(&mut self) {
        let id = self.cells[self.rng.index(self.cells.len())].id;
        let timeout = Duration::from_secs(self.rng.between(1, 60));
        let command = if self.rng.chance(600) {
            CellCommand::Drain { id, timeout }
        } else {
            CellCommand::Undrain(id)
        };
        self.operate(command);
    }

    fn operate(&mut self, command: CellCommand) {
        self.note(format_args!("an operator asks for {command:?}"));
        if self.shell.is_serving() {
            self.ask_apply(Command::Cell(command), Origin::Operator);
        }
    }

    /// Once faults have stopped, every cell is to take work again.
    pub(crate) fn undrain_all(&mut self) {
        let Some(state) = self.shell.settled() else { return };
        let asked =
            |row: &&std::sync::Arc<Cell>| row.draining.is_some_and(|it| it.asked || !it.leaving);
        let drained = state.all::<Cell>().filter(asked);
        let drained: Vec<_> = drained.map(|row| row.id).collect();
        for id in drained {
            self.operate(CellCommand::Undrain(id));
        }
    }

    /// A cell shuts down as it should: it says so, serves on for a while, and is gone.
    fn cell_leaves(&mut self) {
        let index = self.rng.index(self.cells.len());
        let cell = &self.cells[index];
        let (Some(conn), false) = (cell.conn, self.is_frozen(Node::Cell(index))) else { return };
        let life = cell.life;
        self.note(format_args!("cell {index} leaves"));
        self.send_up(conn, Up::CellLeave);
        let away = self.rng.between(500, 30_000);
        self.later(away, Event::Away { cell: index, life });
    }

    pub(crate) fn cell_is_away(&mut self, index: usize, life: u64) {
        let cell = &self.cells[index];
        if !cell.alive || cell.life != life {
            return;
        }
        self.note(format_args!("cell {index} is away"));
        self.closed.extend(self.cells[index].conn);
        self.cell_dies(index, true);
        let away = self.rng.between(100, 20_000);
        self.later(away, Event::Start { node: Node::Cell(index) });
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

    /// A switch fails: several components are cut off at once.
    fn cut_many(&mut self) {
        for node in self.nodes() {
            if self.rng.chance(500) {
                self.partition(node);
            }
        }
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
        let span = self.rng.between(200, 12_000);
        let until = self.now + span;
        self.silence(node, span);
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
        self.shell.clock.jump(self.now, by);
    }
}
