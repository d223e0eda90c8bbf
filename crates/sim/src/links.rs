//! Links that carry nothing for a while: in one direction, or in both.
//!
//! A partition delays what is sent. A component that hears nothing for two keep-alive periods gives
//! its connection up and looks for another; the server may notice much later, so that what was under
//! way on the old connection arrives after the hello of the new one.

use crate::message::{Caller, Event, Node};
use crate::world::World;

/// Within this time a component notices that its connection is dead, in milliseconds.
const NOTICED: (u64, u64) = (3_000, 6_000);
/// What is under way arrives within this time unless the link was slow.
const SOON: u64 = 500;
/// How long a router may be behind after its link was slow: longer than anything waits for it.
const LATE: u64 = 3_000;
/// How long after that the server notices at most.
const SERVER_NOTICES: u64 = 20_000;

/// Until when nothing gets through.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Blocked {
    pub(crate) up: u64,
    pub(crate) down: u64,
}

impl Blocked {
    /// Whether no new connection can be made.
    pub(crate) fn is_cut(self, now: u64) -> bool {
        self.up.max(self.down) > now
    }
}

impl World {
    pub(crate) fn blocked(&self, node: Node) -> Blocked {
        self.blocked.get(&node).copied().unwrap_or_default()
    }

    /// Messages of a component, or to it, or both, do not get through for a while.
    pub(crate) fn partition(&mut self, node: Node) {
        let span = if self.rng.chance(300) { 40_000 } else { 12_000 };
        let span = self.rng.between(500, span);
        let until = self.now + span;
        let (up, down) = match self.rng.below(3) {
            0 => (until, 0),
            1 => (0, until),
            _ => (until, until),
        };
        self.note(format_args!("{node:?} is cut off: up {} down {}", up > 0, down > 0));
        let known = self.blocked(node);
        let blocked = Blocked { up: known.up.max(up), down: known.down.max(down) };
        self.blocked.insert(node, blocked);
        self.silence(node, span);
    }

    /// The connections of a component are silent for so long: it gives them up.
    pub(crate) fn silence(&mut self, node: Node, span: u64) {
        let conns = self.open_conns();
        for (conn, _) in conns.into_iter().filter(|(_, it)| *it == node) {
            let noticed = self.rng.between(NOTICED.0, NOTICED.1);
            if span > noticed {
                self.later(noticed, Event::NodeCut { node, conn });
                let later = self.rng.between(1, SERVER_NOTICES);
                self.later(noticed + later, Event::Break { conn });
            }
        }
    }

    /// The server notices at last that nobody is at the other end.
    pub(crate) fn break_half(&mut self, conn: u64) {
        self.cut(conn, 1, 1);
    }

    /// Whether a call, or its answer, cannot get through.
    pub(crate) fn is_cut_off(&self, caller: Caller) -> bool {
        match caller {
            Caller::Work { runner, .. } => self.blocked(Node::Runner(runner)).is_cut(self.now),
            Caller::Client(_) => false,
        }
    }

    /// Whether the server waits for a router before it lets go of what that may lead to.
    pub(crate) fn is_up_to_date(&self, conn: u64) -> bool {
        let Some(it) = self.conns.get(&conn) else { return false };
        let blocked = self.blocked(it.node);
        let slow = it.stalled_until.max(it.slow_until).max(blocked.up).max(blocked.down) + LATE
            > self.now
            || it.up_at.max(it.down_at) > self.now + SOON;
        !slow && self.shell.sessions.get(&conn).is_some_and(crate::session::Session::is_served)
    }

    /// Everything gets through again, and at once.
    pub(crate) fn rejoin(&mut self) {
        self.blocked.clear();
        for conn in self.conns.values_mut() {
            // What is under way arrives when it would have.
            conn.slow_until = conn.stalled_until.max(conn.up_at).max(conn.down_at);
            conn.stalled_until = 0;
        }
    }
}
