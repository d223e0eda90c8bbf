//! Placement: which cell takes what. Pure: cells and a request in, a cell or a reason out.
//!
//! The score of a cell is the mean of its used fractions (memory, disk, containers) plus a weight
//! for what is starting there and a penalty for each copy of the same app, as Diego scores; the
//! lowest wins, ties go to the lowest id, so the result depends on nothing but the arguments.

use std::collections::BTreeMap;

use model::CellId;

use crate::request::Request;

/// What a container that is still starting adds to its cell's score (Diego's default).
const STARTING_WEIGHT: f64 = 0.25;
/// What each copy of the same app adds, more than a full cell: spread wins over balance.
const LOCALITY_PENALTY: f64 = 1_000.0;
/// A cell as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CellView {
    /// Memory in MiB: all of it, and what is taken.
    pub memory_mb: Usage,
    /// Disk in MiB: all of it, and what is taken.
    pub disk_mb: Usage,
    /// Containers: how many fit, and how many there are.
    pub containers: Usage,
    /// Containers that have not started yet.
    pub starting: u64,
    /// How many containers of each group (an app, a build) it holds.
    pub groups: BTreeMap<u128, u64>,
}

/// Something of which there is only so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// How much there is.
    pub total: u64,
    /// How much is taken.
    pub used: u64,
}

impl Usage {
    const fn free(self) -> u64 {
        self.total.saturating_sub(self.used)
    }

    #[expect(clippy::cast_precision_loss, reason = "fractions of MiB counts need no 64 bits")]
    fn fraction(self) -> f64 {
        if self.total == 0 { 1.0 } else { self.used as f64 / self.total as f64 }
    }
}

impl CellView {
    /// Takes what `request` asks for.
    pub fn take(&mut self, request: &Request, starting: bool) {
        self.memory_mb.used += request.memory_mb;
        self.disk_mb.used += request.disk_mb;
        self.containers.used += 1;
        self.starting += u64::from(starting);
        *self.groups.entry(request.group).or_default() += 1;
    }

    fn fits(&self, request: &Request) -> bool {
        self.memory_mb.free() >= request.memory_mb
            && self.disk_mb.free() >= request.disk_mb
            && self.containers.free() >= 1
    }

    #[expect(clippy::cast_precision_loss, reason = "container counts are small")]
    fn score(&self, request: &Request) -> f64 {
        let used = self.memory_mb.fraction() + self.disk_mb.fraction() + self.containers.fraction();
        let same = self.groups.get(&request.group).copied().unwrap_or(0);
        used / 3.0 + self.starting as f64 * STARTING_WEIGHT + same as f64 * LOCALITY_PENALTY
    }
}

/// Chooses a cell for `request` and takes the resources there, or says why none fits.
pub fn place(cells: &mut BTreeMap<CellId, CellView>, request: &Request) -> Result<CellId, String> {
    let best = cells
        .iter()
        .filter(|(_, cell)| cell.fits(request))
        .min_by(|(_, a), (_, b)| a.score(request).total_cmp(&b.score(request)))
        .map(|(id, _)| *id);
    let Some(chosen) = best else { return Err(reason(cells, request)) };
    if let Some(cell) = cells.get_mut(&chosen) {
        cell.take(request, true);
    }
    Ok(chosen)
}

fn reason(cells: &BTreeMap<CellId, CellView>, request: &Request) -> String {
    let most = |free: fn(&CellView) -> u64| cells.values().map(free).max().unwrap_or(0);
    let memory = most(|cell| cell.memory_mb.free());
    let disk = most(|cell| cell.disk_mb.free());
    if cells.is_empty() {
        "no cell is connected".to_owned()
    } else if memory < request.memory_mb {
        format!("needs {} MiB of memory, the freest cell has {memory} MiB", request.memory_mb)
    } else if disk < request.disk_mb {
        format!("needs {} MiB of disk, the freest cell has {disk} MiB", request.disk_mb)
    } else if most(|cell| cell.containers.free()) == 0 {
        "every cell holds as many containers as it may".to_owned()
    } else {
        "no single cell has enough memory, disk and container slots together".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(memory: u64) -> CellView {
        CellView {
            memory_mb: Usage { total: memory, used: 0 },
            disk_mb: Usage { total: 10_000, used: 0 },
            containers: Usage { total: 10, used: 0 },
            ..CellView::default()
        }
    }

    fn request(memory_mb: u64, group: u128) -> Request {
        Request { memory_mb, disk_mb: 100, group, ..Request::default() }
    }

    #[test]
    fn copies_of_one_app_spread_before_cells_balance() {
        let mut cells = BTreeMap::from([(CellId(1), cell(10_000)), (CellId(2), cell(1_000))]);
        let chosen: Vec<_> = (0..4).map(|_| place(&mut cells, &request(100, 7))).collect();
        let on = |id| chosen.iter().filter(|c| **c == Ok(CellId(id))).count();
        assert_eq!((on(1), on(2)), (2, 2));
    }

    #[test]
    fn the_reason_names_what_is_short() {
        let why = |cells: &mut BTreeMap<_, _>, memory| {
            place(cells, &request(memory, 1)).expect_err("nothing fits")
        };
        assert_eq!(why(&mut BTreeMap::new(), 1), "no cell is connected");
        let mut cells = BTreeMap::from([(CellId(1), cell(1_000))]);
        assert_eq!(
            why(&mut cells, 2_048),
            "needs 2048 MiB of memory, the freest cell has 1000 MiB"
        );
        for _ in 0..10 {
            assert_eq!(place(&mut cells, &request(1, 1)), Ok(CellId(1)));
        }
        assert_eq!(why(&mut cells, 1), "every cell holds as many containers as it may");
    }
}
