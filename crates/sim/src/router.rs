//! Fake routers: they keep a table and refuse an older one.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use model::{HostName, Route};

use crate::message::{Down, Event, Node, Up};
use crate::rng::Rng;
use crate::world::World;

/// One router.
#[derive(Debug, Default)]
pub(crate) struct Router {
    pub(crate) alive: bool,
    life: u64,
    pub(crate) conn: Option<u64>,
    pub(crate) generation: u64,
    pub(crate) table: BTreeMap<HostName, Route>,
}

impl Router {
    pub(crate) fn some(rng: &Rng) -> Vec<Self> {
        (0..rng.between(1, 2)).map(|_| Self::default()).collect()
    }
}

impl Router {
    /// Whether requests go to this address.
    pub(crate) fn sends_to(&self, address: SocketAddr) -> bool {
        let mut targets = self.table.values().flat_map(|route| &route.targets);
        targets.any(|target| target.address == address)
    }
}

impl World {
    pub(crate) fn router_starts(&mut self, index: usize) {
        let router = &mut self.routers[index];
        if router.alive {
            return;
        }
        router.alive = true;
        router.life += 1;
        let life = router.life;
        self.later(1, Event::Connect { node: Node::Router(index), life });
    }

    /// It is killed; the table is in its file.
    pub(crate) fn router_dies(&mut self, index: usize) {
        self.routers[index].alive = false;
        if let Some(conn) = self.routers[index].conn.take() {
            self.dead_end(conn);
        }
    }

    pub(crate) fn router_connects(&mut self, index: usize, life: u64) {
        let router = &self.routers[index];
        if router.alive && router.life == life && router.conn.is_none() {
            let generation = router.generation;
            let conn = self.open(Node::Router(index), Up::Router(generation));
            self.routers[index].conn = Some(conn);
        }
    }

    pub(crate) fn router_cut(&mut self, index: usize, conn: u64) -> Option<u64> {
        let router = &mut self.routers[index];
        if router.conn != Some(conn) {
            return None;
        }
        router.conn = None;
        Some(router.life)
    }

    pub(crate) fn router_hears(&mut self, index: usize, conn: u64, message: Down) {
        let router = &mut self.routers[index];
        if router.conn != Some(conn) {
            return;
        }
        match message {
            Down::Table(table) => {
                if table.generation < router.generation {
                    return self.note(format_args!("router {index} refuses an older table"));
                }
                router.generation = table.generation;
                router.table =
                    table.routes.into_iter().map(|route| (route.host.clone(), route)).collect();
                self.send_up(conn, Up::Serves(table.generation));
            }
            Down::Changes { from, to, changes } => {
                if to < router.generation {
                    return self.note(format_args!("router {index} refuses older changes"));
                }
                if from != router.generation {
                    // It asks for the whole table by connecting again.
                    return self.cut(conn, 1, 1);
                }
                router.generation = to;
                for change in changes {
                    match change.route {
                        Some(route) => router.table.insert(change.host, route),
                        None => router.table.remove(&change.host),
                    };
                }
                self.send_up(conn, Up::Serves(to));
            }
            _ => {}
        }
    }
}
