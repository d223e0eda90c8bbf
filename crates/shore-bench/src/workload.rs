//! The apps of the placement and process benchmarks, so that others can repeat them: everything
//! follows from one seed through splitmix64.

use std::collections::{BTreeMap, BTreeSet};

use model::{CellSpec, Name};

/// Memory of a cell in MiB.
pub(crate) const CELL_MEMORY_MB: u64 = 65_536;
/// Disk of a cell in MiB.
pub(crate) const CELL_DISK_MB: u64 = 524_288;
/// Containers a cell takes.
pub(crate) const CELL_CONTAINERS: u32 = 250;
/// Disk of an instance in MiB.
pub(crate) const DISK_MB: u64 = 1_024;

/// splitmix64.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut it = self.0;
        it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        it ^ (it >> 31)
    }
}

/// One app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AppSize {
    pub(crate) instances: u32,
    pub(crate) memory_mb: u64,
}

/// Apps with so many instances in all; the last one is cut to fit.
pub(crate) fn apps(seed: u64, instances: u32) -> Vec<AppSize> {
    let mut rng = Rng(seed);
    let (mut apps, mut left) = (Vec::new(), instances);
    while left > 0 {
        let wanted = match rng.next() % 100 {
            0..50 => 1,
            50..80 => 2,
            80..95 => 4,
            95..99 => 10,
            _ => 50,
        };
        let memory_mb = match rng.next() % 100 {
            0..60 => 256,
            60..85 => 512,
            85..95 => 1_024,
            _ => 2_048,
        };
        let instances = wanted.min(left);
        left -= instances;
        apps.push(AppSize { instances, memory_mb });
    }
    apps
}

/// A name that is known to be one.
pub(crate) fn name(text: &str) -> Result<Name, String> {
    text.parse().map_err(|error| format!("{error}"))
}

/// The cell of this number, in one of three zones.
pub(crate) fn cell(number: u32) -> Result<CellSpec, String> {
    Ok(CellSpec {
        name: name(&format!("cell-{number}"))?,
        zone: format!("zone-{}", number % 3),
        required_tags: BTreeSet::new(),
        tags: BTreeSet::new(),
        drivers: BTreeSet::from([name("process")?]),
        unavailable: BTreeMap::new(),
        memory_mb: CELL_MEMORY_MB,
        disk_mb: CELL_DISK_MB,
        containers: CELL_CONTAINERS,
        cpu_shares: None,
        pids: None,
        gate: None,
        labels: BTreeMap::new(),
    })
}
