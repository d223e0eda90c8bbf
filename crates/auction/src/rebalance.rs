//! Proposals for moving what runs from the fullest cells to the emptiest.

use std::collections::{BTreeMap, BTreeSet};

use model::CellId;

use crate::cells::{Cells, NONE};
use crate::groups::{About, Copies};
use crate::size::{FULL, Size};

/// How many of the emptiest cells are looked at for one container.
const MAX_TARGETS: usize = 8;

/// How much may be disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// At most so many moves; at most one of each group in any case.
    pub moves: usize,
    /// Cells that are fuller than the emptiest by no more than this are left alone, in percentage
    /// points.
    pub tolerance: u32,
}

/// A container that would better be elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// A copy of this group,
    pub group: u128,
    /// which is here,
    pub from: CellId,
    /// would better be there.
    pub to: CellId,
}

/// What the cells would be like after the moves proposed so far.
struct Plan<'a> {
    cells: &'a Cells,
    used: BTreeMap<u32, Size>,
    /// How full each cell is, the emptiest first.
    order: BTreeSet<(u64, CellId, u32)>,
}

impl Cells {
    /// Moves that would even out how full cells are, within `budget`, the most useful first.
    ///
    /// A move never brings copies of a group closer together, neither on cells nor in zones, and
    /// never makes its target fuller than its source becomes. Tasks and what is pinned stay.
    pub fn rebalance(&self, budget: Budget) -> Vec<Move> {
        let mut plan = Plan::new(self);
        let candidates = plan.candidates(budget);
        let (mut moves, mut done) = (Vec::new(), BTreeSet::new());
        while moves.len() < budget.moves {
            let Some(source) = plan.fullest(budget) else { break };
            let waiting = candidates.get(&source).map_or(&[][..], Vec::as_slice);
            let mut left = waiting.iter().filter(|group| !done.contains(*group));
            let found = left.find_map(|group| Some((*group, plan.target(source, *group)?)));
            let Some((group, to)) = found else {
                // Nothing on it can go anywhere: it is no source any more.
                plan.order.pop_last();
                continue;
            };
            done.insert(group);
            moves.push(plan.apply(group, source, to));
        }
        moves
    }
}

impl<'a> Plan<'a> {
    fn new(cells: &'a Cells) -> Self {
        let mut plan = Self { cells, used: BTreeMap::new(), order: BTreeSet::new() };
        for (slot, cell) in (0..).zip(&cells.slots) {
            if cell.class != NONE {
                plan.used.insert(slot, cell.used);
                plan.order.insert((plan.fullness(slot, &Size::default()), cell.id, slot));
            }
        }
        plan
    }

    fn fullness(&self, slot: u32, more: &Size) -> u64 {
        let used = self.used.get(&slot).copied().unwrap_or_default();
        self.cells.slots[slot as usize].capacity.fullness(&used, more).most
    }

    /// The fullest cell, if it is too full for its budget.
    fn fullest(&self, budget: Budget) -> Option<u32> {
        let ((lowest, ..), (highest, _, slot)) = (self.order.first()?, self.order.last()?);
        let tolerance = u64::from(budget.tolerance) * FULL / 100;
        (*highest > lowest + tolerance).then_some(*slot)
    }

    /// What may be moved from each cell that is too full, the largest first.
    fn candidates(&self, budget: Budget) -> BTreeMap<u32, Vec<u32>> {
        let lowest = self.order.first().map_or(0, |(lowest, ..)| *lowest);
        let limit = lowest + u64::from(budget.tolerance) * FULL / 100;
        let full = self.order.range((limit + 1, CellId(0), 0)..);
        let mut found: BTreeMap<u32, Vec<u32>> =
            full.map(|(.., slot)| (*slot, Vec::new())).collect();
        let groups = &self.cells.groups;
        for group in groups.numbers().filter(|group| groups.about(*group).movable) {
            for on in groups.copies(group) {
                if let Some(waiting) = found.get_mut(&on.slot) {
                    waiting.push(group);
                }
            }
        }
        for (slot, waiting) in &mut found {
            let capacity = &self.cells.slots[*slot as usize].capacity;
            waiting.sort_unstable_by_key(|group| {
                let about = groups.about(*group);
                let share = capacity.fullness(&about.size, &Size::default()).most;
                (std::cmp::Reverse(share), about.id)
            });
        }
        found
    }

    /// Where a copy of `group` would better be than on `source`.
    fn target(&self, source: u32, group: u32) -> Option<u32> {
        let about = self.cells.groups.about(group);
        let mut left = self.used.get(&source).copied()?;
        left.subtract(&about.size);
        let left =
            self.cells.slots[source as usize].capacity.fullness(&left, &Size::default()).most;
        let emptiest = self.order.iter().map(|(.., slot)| *slot).filter(|slot| *slot != source);
        emptiest.take(MAX_TARGETS).find(|slot| {
            self.fullness(*slot, &about.size) <= left
                && self.will_do(*slot, about)
                && self.spreads(group, source, *slot)
        })
    }

    fn will_do(&self, slot: u32, about: &About) -> bool {
        let cell = &self.cells.slots[slot as usize];
        let used = self.used.get(&slot).copied().unwrap_or_default();
        let needs = about.needs.as_deref().cloned().unwrap_or_default();
        cell.capacity.fits(&used, &about.size)
            && cell.info.as_ref().is_some_and(|info| info.offers.meet(&needs))
    }

    /// Whether copies are as far apart as before once one has moved.
    fn spreads(&self, group: u32, from: u32, to: u32) -> bool {
        let copies = self.cells.groups.copies(group);
        let on = |slot| copies.iter().find(|on| on.slot == slot).map_or(0, |on| on.count);
        let zone = |slot: u32| self.cells.zone_of[slot as usize];
        let within = |wanted| {
            let inside = copies.iter().filter(|on: &&Copies| zone(on.slot) == wanted);
            inside.map(|on| on.count).sum::<u32>()
        };
        let (old, new) = (zone(from), zone(to));
        on(to) < on(from) && (old == new || within(new) < within(old))
    }

    fn apply(&mut self, group: u32, from: u32, to: u32) -> Move {
        let about = self.cells.groups.about(group);
        let id = |slot: u32| self.cells.slots[slot as usize].id;
        let (from_id, to_id) = (id(from), id(to));
        for slot in [from, to] {
            self.order.remove(&(self.fullness(slot, &Size::default()), id(slot), slot));
        }
        if let Some(used) = self.used.get_mut(&from) {
            used.subtract(&about.size);
        }
        if let Some(used) = self.used.get_mut(&to) {
            used.add(&about.size);
        }
        for (slot, id) in [(from, from_id), (to, to_id)] {
            self.order.insert((self.fullness(slot, &Size::default()), id, slot));
        }
        Move { group: about.id, from: from_id, to: to_id }
    }
}
