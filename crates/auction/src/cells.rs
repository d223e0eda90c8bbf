//! The index: every cell, how full it is, and what it holds of each group.

use std::sync::Arc;

use model::CellId;

use crate::classes::{Classes, Shape};
use crate::groups::{Groups, Lookup};
use crate::request::{CellInfo, Request, Stage};
use crate::size::{CONTAINERS, Capacity, DISK, FULL, MEMORY, Size};
use crate::tree::LEAF_BITS;

/// How many times its size a container counts while it starts.
pub const STARTING_WEIGHT: u32 = 100;
/// Stands for no class and no zone.
pub(crate) const NONE: u32 = u32::MAX;
/// How precise the second part of a score is: what decides between cells that are equally full.
const TIE_BITS: u32 = 12;
const SUM_SHIFT: u32 = 11;

/// What counts how much when cells are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// How many times its size a container counts while it starts.
    pub starting: u32,
    /// What the last cell of a zone counts more than the first, in thousandths of a full cell.
    /// With any, cells are filled one after the other rather than evenly.
    pub bin_packing: u32,
}

impl Default for Weights {
    fn default() -> Self {
        Self { starting: STARTING_WEIGHT, bin_packing: 0 }
    }
}

/// What a cell holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Memory in MiB.
    pub memory_mb: u64,
    /// Disk in MiB.
    pub disk_mb: u64,
    /// Containers.
    pub containers: u64,
    /// How many of them are starting.
    pub starting: u64,
}

/// A cell, or what is left of one that holds something.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) id: CellId,
    pub(crate) class: u32,
    pub(crate) leaf: u32,
    pub(crate) capacity: Capacity,
    pub(crate) used: Size,
    pub(crate) starting: Size,
    pub(crate) rank: u64,
    pub(crate) info: Option<Box<CellInfo>>,
}

/// All cells. What it answers depends on what was put and held, not on when.
#[derive(Debug)]
pub struct Cells {
    pub(crate) weights: Weights,
    pub(crate) slots: Vec<Slot>,
    /// The zone of each slot, as long as it takes work.
    pub(crate) zone_of: Vec<u32>,
    by_id: Lookup<CellId>,
    free: Vec<u32>,
    pub(crate) groups: Groups,
    pub(crate) classes: Classes,
    /// Copies of one group in each zone: kept to save its allocation.
    pub(crate) counts: Vec<u32>,
}

impl Default for Cells {
    fn default() -> Self {
        Self::new(Weights::default())
    }
}

impl Weights {
    /// How much is against `cell` once it holds `more`, which then starts. Lower is better.
    pub(crate) fn score(self, cell: &Slot, more: &Size) -> u64 {
        let used = cell.capacity.fullness(&cell.used, more);
        let starting = cell.capacity.fullness(&cell.starting, more).most;
        let rank = cell.rank * u64::from(self.bin_packing) / 1_000;
        let score = used.most + starting * u64::from(self.starting) + rank;
        let most = (1 << (u64::BITS - LEAF_BITS - TIE_BITS)) - 2;
        let tie = (used.sum >> SUM_SHIFT).min((1 << TIE_BITS) - 1);
        score.min(most) << TIE_BITS | tie
    }
}

impl Cells {
    /// No cells.
    pub fn new(weights: Weights) -> Self {
        let mut cells = Self {
            weights,
            slots: Vec::new(),
            zone_of: Vec::new(),
            by_id: Lookup::default(),
            free: Vec::new(),
            groups: Groups::default(),
            classes: Classes::default(),
            counts: Vec::new(),
        };
        cells.intern(Some(&Arc::default()));
        cells
    }

    /// Adds a cell, or says what changed about it. What it holds stays.
    pub fn put_cell(&mut self, id: CellId, info: CellInfo) {
        let slot = self.slot(id);
        let cell = &mut self.slots[slot as usize];
        if cell.info.as_deref() == Some(&info) {
            return;
        }
        cell.capacity = Capacity::new(info.room.total());
        cell.info = Some(Box::new(info));
        self.leave(slot);
        self.enter(slot);
    }

    /// Takes a cell away. What it holds is remembered until it is released.
    pub fn remove_cell(&mut self, id: CellId) {
        let Some(slot) = self.by_id.get(&id) else { return };
        self.slots[slot as usize].info = None;
        self.leave(slot);
        self.forget_if_gone(slot);
    }

    /// A cell holds a container. It may do so before the cell is there, and beyond its room.
    pub fn hold(&mut self, cell: CellId, request: &Request, stage: Stage) {
        let slot = self.slot(cell);
        let group = self.groups.number(request);
        self.take(slot, group, &request.size(), stage);
    }

    /// A cell holds a container no more. Nothing happens if it held none of that group.
    pub fn release(&mut self, cell: CellId, request: &Request, stage: Stage) {
        let Some(slot) = self.by_id.get(&cell) else { return };
        let Some(group) = self.groups.find(request.group) else { return };
        self.give_back(slot, group, &request.size(), stage);
        self.groups.forget_if_empty(group);
        self.forget_if_gone(slot);
    }

    /// A container that was held as starting runs now.
    pub fn started(&mut self, cell: CellId, request: &Request) {
        let Some(slot) = self.by_id.get(&cell) else { return };
        self.slots[slot as usize].starting.subtract(&request.size());
        self.touch(slot, false);
    }

    /// What a cell holds.
    pub fn load(&self, cell: CellId) -> Option<Load> {
        let slot = &self.slots[self.by_id.get(&cell)? as usize];
        Some(Load {
            memory_mb: slot.used.0[MEMORY],
            disk_mb: slot.used.0[DISK],
            containers: slot.used.0[CONTAINERS],
            starting: slot.starting.0[CONTAINERS],
        })
    }

    pub(crate) fn take(&mut self, slot: u32, group: u32, size: &Size, stage: Stage) {
        let cell = &mut self.slots[slot as usize];
        cell.used.add(size);
        if stage == Stage::Starting {
            cell.starting.add(size);
        }
        self.groups.add(group, slot);
        self.touch(slot, false);
    }

    pub(crate) fn give_back(&mut self, slot: u32, group: u32, size: &Size, stage: Stage) {
        if !self.groups.remove(group, slot) {
            return;
        }
        let cell = &mut self.slots[slot as usize];
        cell.used.subtract(size);
        if stage == Stage::Starting {
            cell.starting.subtract(size);
        }
        self.touch(slot, true);
    }

    pub(crate) fn find(&self, id: CellId) -> Option<&Slot> {
        self.by_id.get(&id).map(|slot| &self.slots[slot as usize])
    }

    pub(crate) fn find_number(&self, id: CellId) -> Option<u32> {
        self.by_id.get(&id)
    }

    pub(crate) fn shape_at(&self, shape: u32) -> &Shape {
        &self.classes.shapes[shape as usize]
    }

    fn slot(&mut self, id: CellId) -> u32 {
        let new = self.free.last().copied().unwrap_or(self.slots.len() as u32);
        let slot = self.by_id.get_or_insert(id, new);
        if slot == new {
            let empty = Slot {
                id,
                class: NONE,
                leaf: 0,
                capacity: Capacity::default(),
                used: Size::default(),
                starting: Size::default(),
                rank: 0,
                info: None,
            };
            if self.free.pop().is_some() {
                self.slots[slot as usize] = empty;
            } else {
                self.slots.push(empty);
                self.zone_of.push(NONE);
            }
        }
        slot
    }

    /// Lets go of a cell that is not there and holds nothing.
    fn forget_if_gone(&mut self, slot: u32) {
        let cell = &self.slots[slot as usize];
        if cell.info.is_none()
            && cell.used.0[CONTAINERS] == 0
            && self.by_id.get(&cell.id) == Some(slot)
        {
            self.by_id.remove(&cell.id);
            self.free.push(slot);
        }
    }
}

const _: () = assert!(FULL.is_power_of_two(), "fractions are shifted");
