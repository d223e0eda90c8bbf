//! The rule: which cell takes a container.

use model::CellId;

use crate::cells::{Cells, NONE, Slot, Weights};
use crate::classes::{Class, Place};
use crate::groups::Copies;
use crate::request::{Request, Stage};
use crate::size::{MEMORY, Size};
use crate::tree::{LEAF_BITS, VACANT, leaf_of};
use crate::unplaced::Unplaced;

/// A request as the index sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    /// Its group, if it has copies that matter.
    pub(crate) group: Option<u32>,
    pub(crate) shape: u32,
    pub(crate) size: Size,
    pub(crate) pinned: Option<CellId>,
    /// Whether zones are balanced.
    pub(crate) spread: bool,
    /// Whether the first cell with room will do, rather than the emptiest.
    pub(crate) packed: bool,
}

/// A cell that would do: what is against it, then its identifier, then its slot.
type Candidate = (u64, CellId, u32);

impl Cells {
    /// Chooses a cell for `request`, which is starting there from now on, or says why none will do.
    pub fn place(&mut self, request: &Request) -> Result<CellId, Unplaced> {
        let cell = self.choose(request)?;
        self.hold(cell, request, Stage::Starting);
        Ok(cell)
    }

    /// Chooses a cell for `request` without taking anything there.
    pub fn choose(&mut self, request: &Request) -> Result<CellId, Unplaced> {
        self.forget_shapes();
        let shape = self.intern(request.needs.as_ref());
        self.refresh();
        let ask = Ask {
            group: self.groups.find(request.group),
            shape,
            size: request.size(),
            pinned: request.pinned,
            spread: request.spread,
            packed: false,
        };
        let slot = self.pick(&ask).ok_or_else(|| self.why(request, shape))?;
        Ok(self.slots[slot as usize].id)
    }

    /// The best cell, or the one it is pinned to. Trees and shapes must be up to date.
    pub(crate) fn pick(&mut self, ask: &Ask) -> Option<u32> {
        match ask.pinned {
            Some(cell) => self.pick_pinned(cell, ask),
            None => self.pick_best(ask),
        }
    }

    fn pick_pinned(&self, cell: CellId, ask: &Ask) -> Option<u32> {
        let slot = self.find_number(cell)?;
        let cell = &self.slots[slot as usize];
        let meets = self.shape_at(ask.shape).meets.get(cell.class as usize).copied();
        (meets.unwrap_or(false) && cell.fits(&ask.size)).then_some(slot)
    }

    fn pick_best(&mut self, ask: &Ask) -> Option<u32> {
        let mut counts = std::mem::take(&mut self.counts);
        counts.clear();
        counts.resize(self.classes.zone_count(), 0);
        if ask.spread {
            for on in self.copies(ask) {
                let zone = self.zone_of[on.slot as usize];
                if zone != NONE {
                    counts[zone as usize] += on.count;
                }
            }
        }
        let mut floor = 0;
        let mut found = None;
        while let Some(level) = self.next_level(ask.shape, &counts, floor) {
            found = self.without_copy(ask, &counts, level);
            found = found.or_else(|| self.with_copy(ask, &counts, level));
            if found.is_some() {
                break;
            }
            floor = level + 1;
        }
        self.counts = counts;
        found
    }

    fn copies(&self, ask: &Ask) -> &[Copies] {
        ask.group.map_or(&[], |group| self.groups.copies(group))
    }

    /// The fewest copies, but at least `floor`, that a zone with cells for this shape has.
    fn next_level(&self, shape: u32, counts: &[u32], floor: u32) -> Option<u32> {
        let zones = self.shape_at(shape).zones.iter();
        zones.map(|zone| counts[*zone as usize]).filter(|count| *count >= floor).min()
    }

    /// The best cell without a copy of the group, in the zones with `level` copies.
    fn without_copy(&mut self, ask: &Ask, counts: &[u32], level: u32) -> Option<u32> {
        let Self { classes, slots, groups, weights, .. } = self;
        let places = &classes.shapes[ask.shape as usize].places;
        let search = Search {
            ask,
            slots,
            copies: ask.group.map_or(&[], |group| groups.copies(group)),
            memory: u32::try_from(ask.size.0[MEMORY]).unwrap_or(u32::MAX),
        };
        let mut winner: Option<Candidate> = None;
        for bucket in places.chunk_by(|a, b| a.bucket == b.bucket) {
            let open = |place: &&Place| counts[place.zone as usize] == level;
            let mut best: Option<Candidate> = None;
            for place in bucket.iter().filter(open) {
                let class = &mut classes.all[place.class as usize];
                best = lower(best, search.best_of(class, best));
            }
            // Cells of about one size are compared as they are, those of different sizes as they
            // would be: the same container fills a small one more.
            let after = |(_, id, slot)| (search.after(*weights, slot), id, slot);
            winner = lower(winner, best.map(after));
        }
        winner.map(|(.., slot)| slot)
    }

    /// The best cell of those that have copies already: one with the fewest.
    fn with_copy(&self, ask: &Ask, counts: &[u32], level: u32) -> Option<u32> {
        let meets = &self.shape_at(ask.shape).meets;
        let open = |on: &&Copies| {
            let cell = &self.slots[on.slot as usize];
            let zone = self.zone_of[on.slot as usize];
            zone != NONE
                && counts[zone as usize] == level
                && meets[cell.class as usize]
                && cell.fits(&ask.size)
        };
        let against = |on: &Copies| {
            let cell = &self.slots[on.slot as usize];
            (on.count, self.weights.score(cell, &ask.size), cell.id, on.slot)
        };
        self.copies(ask).iter().filter(open).map(against).min().map(|(.., slot)| slot)
    }
}

impl Slot {
    pub(crate) fn fits(&self, size: &Size) -> bool {
        self.capacity.fits(&self.used, size)
    }
}

/// The better of two, if there are any.
fn lower(a: Option<Candidate>, b: Option<Candidate>) -> Option<Candidate> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Looks for a cell without a copy.
struct Search<'a> {
    ask: &'a Ask,
    slots: &'a [Slot],
    copies: &'a [Copies],
    memory: u32,
}

impl Search<'_> {
    /// The best cell of `class` that is no worse than `best`.
    fn best_of(&self, class: &mut Class, best: Option<Candidate>) -> Option<Candidate> {
        if class.refused.is_some_and(|refused| self.ask.size.covers(&refused)) {
            return None;
        }
        let leaf = if self.ask.packed {
            class.tree.first(self.memory, &mut |leaf| self.will_do(class.slots[leaf]))
        } else {
            // Equal scores of two classes are decided by the identifier.
            let below = best.map_or(VACANT, |(score, ..)| (score + 1) << LEAF_BITS);
            self.lowest(class, below).map(leaf_of)
        };
        let Some(leaf) = leaf else {
            if self.copies.is_empty() && (best.is_none() || self.ask.packed) {
                class.refused = Some(self.ask.size);
            }
            return None;
        };
        let slot = class.slots[leaf];
        let score = if self.ask.packed { 0 } else { class.tree.key(leaf) >> LEAF_BITS };
        Some((score, self.slots[slot as usize].id, slot))
    }

    fn lowest(&self, class: &Class, below: u64) -> Option<u64> {
        let (key, freest) = class.tree.root();
        if key >= below || freest < self.memory {
            return None;
        }
        // Nearly always the emptiest cell of all will do.
        if self.will_do(class.slots[leaf_of(key)]) {
            return Some(key);
        }
        class.tree.lowest(self.memory, below, &mut |leaf| self.will_do(class.slots[leaf]))
    }

    fn will_do(&self, slot: u32) -> bool {
        self.slots[slot as usize].fits(&self.ask.size)
            && !self.copies.iter().any(|on| on.slot == slot)
    }

    fn after(&self, weights: Weights, slot: u32) -> u64 {
        if self.ask.packed { 0 } else { weights.score(&self.slots[slot as usize], &self.ask.size) }
    }
}
