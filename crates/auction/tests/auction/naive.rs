//! The same rule, written down as a look at every cell: slow, and without anything to keep up.

use std::collections::BTreeMap;

use auction::{CellInfo, Item, Request, STARTING_WEIGHT, Stage, Turn};
use model::CellId;

/// What runs or starts on some cell.
pub(crate) type Held = (CellId, Request, Stage);

/// The cells, and a plain list of what they hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Naive {
    pub(crate) cells: BTreeMap<CellId, CellInfo>,
    pub(crate) held: Vec<Held>,
}

/// Memory, disk, containers, CPU shares, processes.
type Sizes = [u64; 5];

const fn sizes(request: &Request) -> Sizes {
    [request.memory_mb, request.disk_mb, 1, request.cpu_shares, request.pids]
}

fn room(info: &CellInfo) -> Sizes {
    let room = info.room;
    let (cpu, pids) = (room.cpu_shares.unwrap_or(u64::MAX), room.pids.unwrap_or(u64::MAX));
    [room.memory_mb, room.disk_mb, u64::from(room.containers), cpu, pids]
}

/// The fractions of `room` that `used` is.
fn fractions(used: Sizes, room: Sizes) -> impl Iterator<Item = u64> {
    used.into_iter().zip(room).map(|(used, room)| match room {
        0 | u64::MAX => 0,
        room => (used * ((1 << 40) / room)) >> 20,
    })
}

impl Naive {
    fn sum(&self, cell: CellId, wanted: impl Fn(Stage) -> bool) -> Sizes {
        let on = self.held.iter().filter(|(on, _, stage)| *on == cell && wanted(*stage));
        on.fold([0; 5], |mut sum, (_, request, _)| {
            for (sum, size) in sum.iter_mut().zip(sizes(request)) {
                *sum += size;
            }
            sum
        })
    }

    pub(crate) fn fits(&self, cell: CellId, request: &Request) -> bool {
        let used = self.sum(cell, |_| true);
        let all = used.into_iter().zip(sizes(request)).zip(room(&self.cells[&cell]));
        all.into_iter().all(|((used, more), room)| used + more <= room)
    }

    /// How much is against a cell: first what it is shortest of, then everything together.
    fn score(&self, cell: CellId, more: Sizes) -> (u64, u64) {
        let room = room(&self.cells[&cell]);
        let plus = |mut used: Sizes| {
            for (used, more) in used.iter_mut().zip(more) {
                *used += more;
            }
            used
        };
        let used = plus(self.sum(cell, |_| true));
        let starting = plus(self.sum(cell, |stage| stage == Stage::Starting));
        let most = |sizes| fractions(sizes, room).max().unwrap_or(0);
        let tie = (fractions(used, room).sum::<u64>() >> 11).min(4_095);
        (most(used) + most(starting) * u64::from(STARTING_WEIGHT), tie)
    }

    pub(crate) fn copies(&self, cell: CellId, group: u128) -> usize {
        self.held.iter().filter(|(on, request, _)| *on == cell && request.group == group).count()
    }

    pub(crate) fn in_zone(&self, zone: &str, group: u128) -> usize {
        let counts = |cell: &CellId| {
            self.cells.get(cell).is_some_and(|info| info.accepting && info.zone == zone)
        };
        let copies =
            self.held.iter().filter(|(cell, request, _)| request.group == group && counts(cell));
        copies.count()
    }

    pub(crate) fn will_do(&self, cell: CellId, request: &Request) -> bool {
        let needs = request.needs.clone().unwrap_or_default();
        let info = &self.cells[&cell];
        info.accepting && info.offers.meet(&needs)
    }

    pub(crate) fn choose(&self, request: &Request) -> Option<CellId> {
        let fit = |cell: &CellId| self.will_do(*cell, request);
        let cells: Vec<CellId> = self.cells.keys().copied().filter(fit).collect();
        if let Some(pinned) = request.pinned {
            let found = cells.into_iter().find(|cell| *cell == pinned);
            return found.filter(|cell| self.fits(*cell, request));
        }
        let mut levels: BTreeMap<usize, Vec<CellId>> = BTreeMap::new();
        for cell in cells {
            let zone = &self.cells[&cell].zone;
            let level = if request.spread { self.in_zone(zone, request.group) } else { 0 };
            let level = levels.entry(level).or_default();
            if self.fits(cell, request) {
                level.push(cell);
            }
        }
        levels.values().find_map(|cells| self.best(cells, request))
    }

    /// The best of some cells: first those without a copy, the emptiest of each size as they are,
    /// then among these as they would be; if all have copies, that with the fewest.
    fn best(&self, cells: &[CellId], request: &Request) -> Option<CellId> {
        let after = |cell: CellId| (self.score(cell, sizes(request)), cell);
        let mut emptiest: BTreeMap<u32, ((u64, u64), CellId)> = BTreeMap::new();
        for cell in cells.iter().filter(|cell| self.copies(**cell, request.group) == 0) {
            let size = self.cells[cell].room.memory_mb.checked_ilog2().unwrap_or(0);
            let now = (self.score(*cell, [0; 5]), *cell);
            let lowest = emptiest.entry(size).or_insert(now);
            *lowest = now.min(*lowest);
        }
        let best = emptiest.values().map(|(_, cell)| after(*cell)).min();
        let crowded =
            || cells.iter().map(|cell| (self.copies(*cell, request.group), after(*cell))).min();
        best.or_else(|| crowded().map(|(_, best)| best)).map(|(_, cell)| cell)
    }

    /// Places items in turn, without trying again when room runs out.
    pub(crate) fn place_batch(&mut self, items: &[Item]) -> Vec<Option<CellId>> {
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|at| {
            let Item { request, turn } = &items[*at];
            let (round, index) = match turn {
                Turn::Instance(0) => (0, 0),
                Turn::Task => (1, 0),
                Turn::Instance(index) => (2, *index),
            };
            let will_do = |cell: &&CellId| self.will_do(**cell, request);
            let choice = match request.pinned {
                Some(_) => 0,
                None => self.cells.keys().filter(will_do).count(),
            };
            (round, u64::MAX - request.memory_mb, choice, index)
        });
        let mut places = vec![None; items.len()];
        for at in order {
            let request = &items[at].request;
            places[at] = self.choose(request);
            if let Some(cell) = places[at] {
                self.held.push((cell, request.clone(), Stage::Starting));
            }
        }
        places
    }
}
