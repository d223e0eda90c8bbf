//! Classes: cells that no request can tell apart but by how full they are.
//!
//! A class holds cells of one zone, of about the same size, with the same offers. Words that nobody
//! ever asked for do not count, or a cluster in which every cell has a tag of its own would have as
//! many classes as cells.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::{CellId, Name};

use crate::cells::{Cells, NONE, Slot, Weights};
use crate::request::{CellInfo, Needs, Offers};
use crate::size::{FULL, MEMORY, Size};
use crate::tree::{Tree, VACANT, key};

/// How many kinds of needs are remembered between batches.
const MAX_SHAPES: usize = 1_024;
/// How many classes without cells are kept before all are made again.
const MAX_EMPTY: usize = 64;

/// What cells of one class have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ClassKey {
    /// The power of two of their memory.
    bucket: u32,
    zone: u32,
    offers: Offers,
}

/// The cells of one class, and which of them is the emptiest.
#[derive(Debug)]
pub(crate) struct Class {
    /// In order. Some may have left.
    ids: Vec<CellId>,
    /// The slot of each.
    pub(crate) slots: Vec<u32>,
    pub(crate) tree: Tree,
    /// Whether `tree` must be made again.
    stale: bool,
    /// How many have left.
    left: usize,
    /// Of this size, nothing fits until something is freed.
    pub(crate) refused: Option<Size>,
}

/// A class as the requests of one shape see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) bucket: u32,
    pub(crate) zone: u32,
    pub(crate) class: u32,
}

/// The classes that meet the same needs.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    pub(crate) needs: Arc<Needs>,
    /// In order, so that those of one bucket are together.
    pub(crate) places: Vec<Place>,
    pub(crate) zones: Vec<u32>,
    /// For each class, whether it is among `places`.
    pub(crate) meets: Vec<bool>,
}

/// All classes and shapes.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    keys: BTreeMap<ClassKey, u32>,
    pub(crate) all: Vec<Class>,
    zones: BTreeMap<String, u32>,
    shapes_by_needs: BTreeMap<Arc<Needs>, u32>,
    pub(crate) shapes: Vec<Shape>,
    asked: Asked,
    /// Whether any class has to make its tree again.
    stale: bool,
    /// Whether shapes have to look for their classes again.
    shapes_stale: bool,
}

/// Every word that somebody asked for.
#[derive(Debug, Default)]
struct Asked {
    tags: BTreeSet<Name>,
    drivers: BTreeSet<Name>,
    volumes: BTreeSet<Name>,
}

impl Asked {
    /// Adds the words of `needs`; whether one of them is new.
    fn add(&mut self, needs: &Needs) -> bool {
        let before = self.tags.len() + self.drivers.len() + self.volumes.len();
        self.tags.extend(needs.tags.iter().cloned());
        self.drivers.extend(needs.driver.iter().cloned());
        self.volumes.extend(needs.volumes.iter().cloned());
        before < self.tags.len() + self.drivers.len() + self.volumes.len()
    }

    /// What of `offers` makes a difference to somebody. A required tag always does.
    fn of(&self, offers: &Offers) -> Offers {
        let both = |a: &BTreeSet<Name>, b| a.intersection(b).cloned().collect();
        Offers {
            required_tags: offers.required_tags.clone(),
            optional_tags: both(&offers.optional_tags, &self.tags),
            drivers: both(&offers.drivers, &self.drivers),
            volumes: both(&offers.volumes, &self.volumes),
        }
    }
}

impl Classes {
    pub(crate) fn zone_count(&self) -> usize {
        self.zones.len()
    }

    /// The shape of `needs`, if somebody had them before.
    pub(crate) fn shape(&self, needs: Option<&Arc<Needs>>) -> Option<u32> {
        needs.map_or(Some(0), |needs| self.shapes_by_needs.get(needs).copied())
    }

    fn key(&self, info: &CellInfo, zone: u32) -> ClassKey {
        let bucket = info.room.memory_mb.checked_ilog2().unwrap_or(0);
        ClassKey { bucket, zone, offers: self.asked.of(&info.offers) }
    }

    fn zone(&mut self, name: &str) -> u32 {
        if let Some(zone) = self.zones.get(name) {
            return *zone;
        }
        let zone = self.zones.len() as u32;
        self.zones.insert(name.to_owned(), zone);
        zone
    }

    fn class(&mut self, key: ClassKey) -> u32 {
        let new = self.all.len() as u32;
        let class = *self.keys.entry(key).or_insert(new);
        if class == new {
            self.all.push(Class {
                ids: Vec::new(),
                slots: Vec::new(),
                tree: Tree::default(),
                stale: true,
                left: 0,
                refused: None,
            });
            self.shapes_stale = true;
        }
        class
    }

    /// How many cells requests of each shape can choose from.
    pub(crate) fn choices(&self) -> Vec<u32> {
        let cells = |place: &Place| self.all[place.class as usize].count() as u32;
        self.shapes.iter().map(|shape| shape.places.iter().map(cells).sum()).collect()
    }

    fn refresh_shapes(&mut self) {
        for shape in &mut self.shapes {
            let good = self.keys.iter().filter(|(key, _)| key.offers.meet(&shape.needs));
            shape.places = good
                .map(|(key, class)| Place { bucket: key.bucket, zone: key.zone, class: *class })
                .collect();
            shape.places.sort_unstable();
            shape.zones = shape.places.iter().map(|place| place.zone).collect();
            shape.zones.sort_unstable();
            shape.zones.dedup();
            shape.meets = vec![false; self.all.len()];
            for place in &shape.places {
                shape.meets[place.class as usize] = true;
            }
        }
        self.shapes_stale = false;
    }
}

impl Class {
    /// Makes the tree again, without those that have left.
    fn rebuild(&mut self, class: u32, slots: &mut [Slot], weights: Weights) {
        let mut members: Vec<(CellId, u32)> =
            self.ids.iter().copied().zip(self.slots.iter().copied()).collect();
        members.retain(|(id, slot)| {
            let slot = &slots[*slot as usize];
            slot.class == class && slot.id == *id
        });
        (self.ids, self.slots) = members.into_iter().unzip();
        for (leaf, slot) in self.slots.iter().enumerate() {
            slots[*slot as usize].leaf = leaf as u32;
        }
        let leaves = self.slots.iter().map(|slot| slots[*slot as usize].leaf_value(weights));
        self.tree = Tree::new(leaves);
        (self.stale, self.left, self.refused) = (false, 0, None);
    }

    const fn count(&self) -> usize {
        self.ids.len() - self.left
    }
}

impl Cells {
    /// Puts a cell that takes work into its class.
    pub(crate) fn enter(&mut self, slot: u32) {
        let Self { slots, classes, zone_of, weights, .. } = self;
        let cell = &mut slots[slot as usize];
        let Some(info) = cell.info.as_ref().filter(|info| info.accepting) else { return };
        let zone = classes.zone(&info.zone);
        let key = classes.key(info, zone);
        let class = classes.class(key);
        zone_of[slot as usize] = zone;
        cell.class = class;
        let stale = &mut classes.stale;
        let class = &mut classes.all[class as usize];
        class.refused = None;
        match class.ids.binary_search(&cell.id) {
            Ok(at) => {
                class.slots[at] = slot;
                class.left -= 1;
                cell.leaf = at as u32;
                if !class.stale {
                    let (key, free) = cell.leaf_value(*weights);
                    class.tree.set(at, key, free);
                }
            }
            Err(at) => {
                class.ids.insert(at, cell.id);
                class.slots.insert(at, slot);
                class.stale = true;
            }
        }
        *stale |= class.stale || weights.bin_packing > 0;
    }

    /// Takes a cell out of its class.
    pub(crate) fn leave(&mut self, slot: u32) {
        let cell = &mut self.slots[slot as usize];
        let class = std::mem::replace(&mut cell.class, NONE);
        self.zone_of[slot as usize] = NONE;
        let Some(class) = self.classes.all.get_mut(class as usize) else { return };
        class.left += 1;
        if !class.stale {
            class.tree.set(cell.leaf as usize, VACANT, 0);
            class.stale = class.left * 2 > class.ids.len();
            self.classes.stale |= class.stale;
        }
        self.classes.stale |= self.weights.bin_packing > 0;
    }

    /// The key of a cell has changed.
    pub(crate) fn touch(&mut self, slot: u32, freed: bool) {
        let cell = &self.slots[slot as usize];
        let Some(class) = self.classes.all.get_mut(cell.class as usize) else { return };
        if freed {
            class.refused = None;
        }
        if !class.stale {
            let (key, free) = cell.leaf_value(self.weights);
            class.tree.set(cell.leaf as usize, key, free);
        }
    }

    /// The shape of `needs`. New words split classes.
    pub(crate) fn intern(&mut self, needs: Option<&Arc<Needs>>) -> u32 {
        if let Some(shape) = self.classes.shape(needs) {
            return shape;
        }
        let needs = needs.cloned().unwrap_or_default();
        let shape = self.classes.shapes.len() as u32;
        let is_new = self.classes.asked.add(&needs);
        self.classes.shapes_by_needs.insert(Arc::clone(&needs), shape);
        self.classes.shapes.push(Shape { needs, ..Shape::default() });
        self.classes.shapes_stale = true;
        if is_new {
            self.regroup();
        }
        shape
    }

    /// Forgets shapes when there are too many. Numbers of shapes are void afterwards.
    pub(crate) fn forget_shapes(&mut self) {
        if self.classes.shapes.len() <= MAX_SHAPES {
            return;
        }
        self.classes.shapes.truncate(1);
        self.classes.shapes_by_needs.clear();
        self.classes.shapes_by_needs.insert(Arc::default(), 0);
        self.classes.asked = Asked::default();
        self.regroup();
    }

    /// Makes all classes again.
    fn regroup(&mut self) {
        self.classes.keys.clear();
        self.classes.all.clear();
        self.classes.zones.clear();
        self.classes.shapes_stale = true;
        let mut order: Vec<u32> = (0..self.slots.len() as u32).collect();
        // In order, so that each enters at the end of its class.
        order.sort_unstable_by_key(|slot| self.slots[*slot as usize].id);
        for slot in order {
            self.slots[slot as usize].class = NONE;
            self.zone_of[slot as usize] = NONE;
            self.enter(slot);
        }
    }

    /// Brings trees and shapes up to date.
    pub(crate) fn refresh(&mut self) {
        if self.classes.stale {
            if self.classes.all.iter().filter(|class| class.count() == 0).count() > MAX_EMPTY {
                self.regroup();
            }
            if self.weights.bin_packing > 0 {
                self.rank();
            }
            for (number, class) in self.classes.all.iter_mut().enumerate() {
                if class.stale {
                    class.rebuild(number as u32, &mut self.slots, self.weights);
                }
            }
            self.classes.stale = false;
        }
        if self.classes.shapes_stale {
            self.classes.refresh_shapes();
        }
    }

    /// Numbers the cells of each zone, for bin packing.
    fn rank(&mut self) {
        let mut zones: BTreeMap<u32, Vec<(CellId, u32)>> = BTreeMap::new();
        for (slot, zone) in self.zone_of.iter().enumerate().filter(|(_, zone)| **zone != NONE) {
            zones.entry(*zone).or_default().push((self.slots[slot].id, slot as u32));
        }
        for cells in zones.values_mut() {
            cells.sort_unstable();
            let count = cells.len() as u64;
            for (place, (_, slot)) in (0..).zip(cells) {
                self.slots[*slot as usize].rank = place * FULL / count;
            }
        }
        for class in &mut self.classes.all {
            class.stale = true;
        }
    }
}

impl Slot {
    /// What its leaf says of it: its key, and its free memory.
    pub(crate) fn leaf_value(&self, weights: Weights) -> (u64, u32) {
        let free = self.capacity.free(&self.used).0[MEMORY];
        let key = key(weights.score(self, &Size::default()), self.leaf);
        (key, u32::try_from(free).unwrap_or(u32::MAX))
    }
}
