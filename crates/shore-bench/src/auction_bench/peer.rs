//! The peer: a scan over all cells for each instance, as Diego's auctioneer does it.
//!
//! A sketch of the algorithm alone. Diego's own code does much more for each cell: it parses names,
//! compares strings and prepares lines of log.

use auction::{CellInfo, Item, Turn, Unplaced};
use model::CellId;

use super::cpu_seconds;
use super::quality::Quality;

/// What each container that is starting adds to its cell's score there.
const STARTING_WEIGHT: f64 = 0.25;
/// What each copy of the same app adds.
const LOCALITY: f64 = 1_000.0;

/// What the scan came to.
pub(crate) struct Peer {
    /// On the processor, the mean of all rounds.
    pub(crate) cpu: f64,
    pub(crate) quality: Quality,
}

#[derive(Default)]
struct Cell {
    memory: [f64; 2],
    disk: [f64; 2],
    containers: [f64; 2],
    starting: f64,
    zone: usize,
    /// Copies of the app that is being placed.
    same: u32,
}

impl Cell {
    fn score(&self, memory: f64, disk: f64) -> Option<f64> {
        let after = [self.memory[0] + memory, self.disk[0] + disk, self.containers[0] + 1.0];
        let total = [self.memory[1], self.disk[1], self.containers[1]];
        if after.iter().zip(total).any(|(after, total)| *after > total) {
            return None;
        }
        let used: f64 = after.iter().zip(total).map(|(after, total)| after / total).sum();
        let same = f64::from(self.same) * LOCALITY;
        Some(used / 3.0 + self.starting * STARTING_WEIGHT + same)
    }
}

/// Places everything on empty cells, several times over.
pub(crate) fn cold(infos: &[CellInfo], items: &[Item], rounds: u64) -> Result<Peer, String> {
    let started = cpu_seconds()?;
    let mut places = Vec::new();
    for _ in 0..rounds {
        places = round(infos, items);
    }
    let cpu = (cpu_seconds()? - started) / rounds as f64;
    Ok(Peer { cpu, quality: Quality::of(infos, items, &places) })
}

fn round(infos: &[CellInfo], items: &[Item]) -> Vec<Result<CellId, Unplaced>> {
    let new = |(at, info): (usize, &CellInfo)| Cell {
        memory: [0.0, info.room.memory_mb as f64],
        disk: [0.0, info.room.disk_mb as f64],
        containers: [0.0, f64::from(info.room.containers)],
        zone: at % 3,
        ..Cell::default()
    };
    let mut cells: Vec<Cell> = infos.iter().enumerate().map(new).collect();
    let apps = items.iter().map(|item| item.request.group as usize).max().unwrap_or(0);
    let mut on: Vec<Vec<u32>> = vec![Vec::new(); apps + 1];
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|at| {
        let Item { request, turn } = &items[*at];
        let index = if let Turn::Instance(index) = turn { *index } else { 0 };
        (index, std::cmp::Reverse(request.memory_mb))
    });
    let mut places = vec![Err(Unplaced::NoCell); items.len()];
    for at in order {
        let copies = &mut on[items[at].request.group as usize];
        if let Some(cell) = place(&mut cells, copies, &items[at]) {
            copies.push(cell as u32);
            places[at] = Ok(super::id(cell));
        }
    }
    places
}

fn place(cells: &mut [Cell], copies: &[u32], item: &Item) -> Option<usize> {
    let (memory, disk) = (item.request.memory_mb as f64, item.request.disk_mb as f64);
    let mut zones = [0_u32; 3];
    for cell in copies {
        cells[*cell as usize].same += 1;
        zones[cells[*cell as usize].zone] += 1;
    }
    let mut levels = zones;
    levels.sort_unstable();
    let best = levels.iter().find_map(|level| {
        let mut best: Option<(f64, usize)> = None;
        for (at, cell) in cells.iter().enumerate().filter(|(_, cell)| zones[cell.zone] == *level) {
            let score = cell.score(memory, disk);
            if let Some(score) = score
                && best.is_none_or(|(lowest, _)| score < lowest)
            {
                best = Some((score, at));
            }
        }
        best.map(|(_, at)| at)
    });
    for cell in copies {
        cells[*cell as usize].same = 0;
    }
    let cell = &mut cells[best?];
    cell.memory[0] += memory;
    cell.disk[0] += disk;
    cell.containers[0] += 1.0;
    cell.starting += 1.0;
    best
}
