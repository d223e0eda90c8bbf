//! How good a placement is, found by looking at the result alone.

use std::collections::BTreeMap;

use auction::{CellInfo, Item, Needs, Unplaced};
use model::CellId;
use serde_json::{Value, json};

/// What can be said of a placement.
#[derive(Debug, Default)]
pub(crate) struct Quality {
    /// Standard deviation of the memory in use over cells, in percentage points.
    pub(crate) memory_sd_points: f64,
    /// The lowest, mean and highest memory in use, in percent.
    pub(crate) memory_low: f64,
    pub(crate) memory_mean: f64,
    pub(crate) memory_high: f64,
    /// Standard deviation of the number of containers over cells.
    pub(crate) containers_sd: f64,
    /// Instances without a place.
    pub(crate) failed: usize,
    /// Copies on a cell beyond as many as even spreading puts there.
    pub(crate) avoidable_colocation: usize,
    /// Apps with two copies more in one zone than in another.
    pub(crate) zone_spread_over_1: usize,
    /// Cells that hold more than they have room for.
    pub(crate) overcommitted: usize,
}

impl Quality {
    /// Looks at a placement. Cells without room are gone.
    pub(crate) fn of(
        infos: &[CellInfo],
        items: &[Item],
        places: &[Result<CellId, Unplaced>],
    ) -> Self {
        let mut quality = Self::default();
        quality.look_at_cells(infos, items, places);
        let (mut from, mut fitting) = (0, BTreeMap::new());
        while from < items.len() {
            let app = items[from].request.group;
            let copies = items[from..].iter().take_while(|it| it.request.group == app).count();
            let of_app = from..from + copies;
            let needs = items[from].request.needs.clone().unwrap_or_default();
            let fitting = *fitting.entry(needs).or_insert_with_key(|needs| count(infos, needs));
            quality.look_at_app(fitting, &places[of_app]);
            from += copies;
        }
        quality
    }

    fn look_at_cells(
        &mut self,
        infos: &[CellInfo],
        items: &[Item],
        places: &[Result<CellId, Unplaced>],
    ) {
        let mut used = vec![(0_u64, 0_u64, 0_u32); infos.len()];
        for (item, place) in items.iter().zip(places) {
            let Ok(cell) = place else {
                self.failed += 1;
                continue;
            };
            let (memory, disk, containers) = &mut used[number(*cell)];
            *memory += item.request.memory_mb;
            *disk += item.request.disk_mb;
            *containers += 1;
        }
        let cells = || used.iter().zip(infos).filter(|(_, info)| info.room.memory_mb > 0);
        let too_much = |((memory, disk, containers), info): &(&(u64, u64, u32), &CellInfo)| {
            let room = info.room;
            *memory > room.memory_mb || *disk > room.disk_mb || *containers > room.containers
        };
        self.overcommitted = cells().filter(too_much).count();
        let percent = |((memory, ..), info): (&(u64, u64, u32), &CellInfo)| {
            *memory as f64 * 100.0 / info.room.memory_mb as f64
        };
        (self.memory_mean, self.memory_sd_points) = spread(cells().map(percent));
        self.memory_low = cells().map(percent).fold(f64::INFINITY, f64::min);
        self.memory_high = cells().map(percent).fold(0.0, f64::max);
        self.containers_sd = spread(cells().map(|((.., count), _)| f64::from(*count))).1;
    }

    /// The copies of one app, for which there are so many cells.
    fn look_at_app(&mut self, fitting: usize, places: &[Result<CellId, Unplaced>]) {
        if places.len() < 2 {
            return;
        }
        let mut cells: Vec<usize> =
            places.iter().filter_map(|place| place.as_ref().ok()).map(|id| number(*id)).collect();
        cells.sort_unstable();
        let even = cells.len().div_ceil(fitting.max(1));
        let copies = cells.chunk_by(|a, b| a == b).map(<[usize]>::len);
        self.avoidable_colocation += copies.map(|count| count.saturating_sub(even)).sum::<usize>();
        let mut zones = [0_usize; 3];
        for cell in cells {
            zones[cell % 3] += 1;
        }
        let (low, high) = (zones.iter().min(), zones.iter().max());
        self.zone_spread_over_1 += usize::from(high > low.map(|low| low + 1).as_ref());
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "memory_sd_points": self.memory_sd_points,
            "memory_percent": [self.memory_low, self.memory_mean, self.memory_high],
            "containers_sd": self.containers_sd,
            "failed": self.failed,
            "avoidable_colocation": self.avoidable_colocation,
            "zone_spread_over_1": self.zone_spread_over_1,
            "overcommitted": self.overcommitted,
        })
    }
}

fn number(cell: CellId) -> usize {
    cell.0 as usize - 1
}

/// How many cells there are for `needs`.
fn count(infos: &[CellInfo], needs: &Needs) -> usize {
    let there = |info: &&CellInfo| info.room.memory_mb > 0 && info.offers.meet(needs);
    infos.iter().filter(there).count()
}

/// Mean and standard deviation.
fn spread(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let count = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}
