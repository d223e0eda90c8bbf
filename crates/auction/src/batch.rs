//! Many requests at once: in which order, and what happens when room runs out.

use model::CellId;

use crate::cells::{Cells, NONE};
use crate::choose::Ask;
use crate::request::{Request, Stage};
use crate::size::Size;
use crate::unplaced::Unplaced;

/// How many items are read before the first of them is placed.
const AHEAD: usize = 16;

/// One request of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What is to be placed.
    pub request: Request,
    /// When it is its turn.
    pub turn: Turn,
}

/// First copies come first, then tasks, then further copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// An instance of this index.
    Instance(u32),
    /// A task.
    Task,
}

/// How a batch is gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// In turn, each to the emptiest cell.
    InTurn,
    /// The largest first, whatever its turn, each to the emptiest cell.
    LargestFirst,
    /// The largest first, each to the first cell with room in the zone whose turn it is.
    Packed,
    /// In turn, each to the first cell with room.
    FirstFit,
}

/// What was found out about an item before the first is placed.
#[derive(Debug, Clone, Copy)]
struct Known {
    group: u32,
    shape: u32,
}

impl Turn {
    /// Its place in the order: the round, and the place within it.
    const fn rank(self) -> (u64, u64) {
        match self {
            Self::Instance(0) => (0, 0),
            Self::Task => (1, 0),
            Self::Instance(index) => (2, index as u64),
        }
    }
}

impl Pass {
    /// What is placed first has the lowest: the round, then the largest memory, then what the
    /// fewest cells can take, then the index.
    fn key(self, item: &Item, choice: u32) -> u64 {
        const MEMORY_BITS: u32 = 32;
        const CHOICE_BITS: u32 = 18;
        const INDEX_BITS: u32 = 12;
        let (round, index) = item.turn.rank();
        let round = if matches!(self, Self::InTurn | Self::FirstFit) { round } else { 0 };
        let up_to = |value: u64, bits: u32| value.min((1 << bits) - 1);
        let memory = up_to(u64::MAX, MEMORY_BITS) - up_to(item.request.memory_mb, MEMORY_BITS);
        let choice = if item.request.pinned.is_some() { 0 } else { u64::from(choice) };
        let key = (round << MEMORY_BITS | memory) << CHOICE_BITS | up_to(choice, CHOICE_BITS);
        key << INDEX_BITS | up_to(index, INDEX_BITS)
    }

    fn ask(self, item: &Item, known: Known) -> Ask {
        let counts = self != Self::FirstFit;
        Ask {
            group: counts.then_some(known.group),
            shape: known.shape,
            size: item.request.size(),
            pinned: item.request.pinned,
            spread: counts && item.request.spread,
            packed: matches!(self, Self::Packed | Self::FirstFit),
        }
    }
}

impl Cells {
    /// Places all of `items`, which are starting from then on; the answers are in their order.
    ///
    /// If something is left over for want of room, it is tried whether all fit when the largest are
    /// placed first, when cells are filled one after the other, and when zones and copies do not
    /// matter either; the first way in which all fit is taken.
    pub fn place_batch(&mut self, items: &[Item]) -> Vec<Result<CellId, Unplaced>> {
        self.forget_shapes();
        let known = self.prepare(items);
        self.refresh();
        let slots = self.settle(items, &known);
        let answers = self.answers(items, &known, &slots);
        for (known, slot) in known.iter().zip(&slots) {
            if *slot == NONE {
                self.groups.forget_if_empty(known.group);
            }
        }
        answers
    }

    /// Says where [`Self::place_batch`] would place each of `items`, and takes nothing.
    pub fn plan(&mut self, items: &[Item]) -> Vec<Result<CellId, Unplaced>> {
        let answers = self.place_batch(items);
        for (item, answer) in items.iter().zip(&answers) {
            if let Ok(cell) = answer {
                self.release(*cell, &item.request, Stage::Starting);
            }
        }
        answers
    }

    fn prepare(&mut self, items: &[Item]) -> Vec<Known> {
        let mut known: Vec<Known> = Vec::with_capacity(items.len());
        let mut last: Option<&Request> = None;
        for Item { request, .. } in items {
            // Copies of one group mostly come one after the other, and need the same.
            let same =
                last.filter(|last| last.group == request.group && last.needs == request.needs);
            let next = match (same, known.last()) {
                (Some(_), Some(known)) => *known,
                _ => Known {
                    group: self.groups.number(request),
                    shape: self.intern(request.needs.as_ref()),
                },
            };
            known.push(next);
            last = Some(request);
        }
        known
    }

    /// The slot of each item, which is taken.
    fn settle(&mut self, items: &[Item], known: &[Known]) -> Vec<u32> {
        let (first, complete) = self.pass(Pass::InTurn, items, known, &[]);
        if complete {
            return first;
        }
        self.undo(items, known, &first);
        let hopeless = self.hopeless(items, known, &first);
        let missing = |(slot, hopeless): (&u32, &bool)| *slot == NONE && !hopeless;
        if first.iter().zip(&hopeless).any(missing) && self.could_fit(items, &hopeless) {
            for pass in [Pass::LargestFirst, Pass::Packed, Pass::FirstFit] {
                let (slots, complete) = self.pass(pass, items, known, &hopeless);
                if complete {
                    return slots;
                }
                self.undo(items, known, &slots);
            }
        }
        for (number, slot) in first.iter().enumerate().filter(|(_, slot)| **slot != NONE) {
            let size = items[number].request.size();
            self.take(*slot, known[number].group, &size, Stage::Starting);
        }
        first
    }

    /// Which of the items that were left over do not even fit on the cells as they were.
    fn hopeless(&mut self, items: &[Item], known: &[Known], slots: &[u32]) -> Vec<bool> {
        let mut hopeless = vec![false; items.len()];
        for (number, _) in slots.iter().enumerate().filter(|(_, slot)| **slot == NONE) {
            let ask = Pass::FirstFit.ask(&items[number], known[number]);
            hopeless[number] = self.pick(&ask).is_none();
        }
        hopeless
    }

    /// Goes through all items but the `hopeless`; whether each found a place. The first pass of
    /// all knows none that are, and goes on when one finds no place.
    fn pass(
        &mut self,
        pass: Pass,
        items: &[Item],
        known: &[Known],
        hopeless: &[bool],
    ) -> (Vec<u32>, bool) {
        let mut slots = vec![NONE; items.len()];
        let mut complete = true;
        for ahead in self.order(pass, items, known).chunks(AHEAD) {
            // All are read before the first is placed: memory answers many questions at once
            // sooner than one after the other.
            let mut asks = [const { None }; AHEAD];
            for (ask, (_, number)) in asks.iter_mut().zip(ahead) {
                let number = *number as usize;
                let wanted = hopeless.get(number).is_none_or(|hopeless| !hopeless);
                *ask = wanted.then(|| (number, pass.ask(&items[number], known[number])));
            }
            for (number, ask) in asks.iter().flatten() {
                if let Some(slot) = self.pick(ask) {
                    slots[*number] = slot;
                    self.take(slot, known[*number].group, &ask.size, Stage::Starting);
                } else if pass == Pass::InTurn {
                    complete = false;
                } else {
                    return (slots, false);
                }
            }
        }
        (slots, complete)
    }

    /// The numbers of all items in the order of this pass.
    fn order(&self, pass: Pass, items: &[Item], known: &[Known]) -> Vec<(u64, u32)> {
        let choices = self.classes.choices();
        let key = |(item, known): (&Item, &Known)| pass.key(item, choices[known.shape as usize]);
        let mut order: Vec<(u64, u32)> = items.iter().zip(known).map(key).zip(0..).collect();
        order.sort_unstable();
        order
    }

    fn undo(&mut self, items: &[Item], known: &[Known], slots: &[u32]) {
        for (number, slot) in slots.iter().enumerate().filter(|(_, slot)| **slot != NONE) {
            let size = items[number].request.size();
            self.give_back(*slot, known[number].group, &size, Stage::Starting);
        }
    }

    /// Whether all but the hopeless are no more than what is free on all cells together.
    fn could_fit(&self, items: &[Item], hopeless: &[bool]) -> bool {
        let (mut wanted, mut free) = (Size::default(), Size::default());
        for (item, _) in items.iter().zip(hopeless).filter(|(_, hopeless)| !**hopeless) {
            wanted.add(&item.request.size());
        }
        for cell in self.slots.iter().filter(|cell| cell.class != NONE) {
            free.add(&cell.capacity.free(&cell.used));
        }
        free.covers(&wanted)
    }

    fn answers(
        &self,
        items: &[Item],
        known: &[Known],
        slots: &[u32],
    ) -> Vec<Result<CellId, Unplaced>> {
        // Where many are left over, most are for the same reason.
        let mut reasons = std::collections::BTreeMap::new();
        let mut answers = Vec::with_capacity(items.len());
        for (number, slot) in slots.iter().enumerate() {
            if let Some(slot) = self.slots.get(*slot as usize) {
                answers.push(Ok(slot.id));
                continue;
            }
            let (request, shape) = (&items[number].request, known[number].shape);
            let reason = reasons
                .entry((shape, request.size(), request.pinned))
                .or_insert_with(|| self.why(request, shape));
            answers.push(Err(reason.clone()));
        }
        answers
    }
}
