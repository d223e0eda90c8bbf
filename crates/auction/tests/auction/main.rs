//! Placement from outside: reasons, the rule compared with a scan, simulated clusters, moves.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "clusters of tests are small"
)]

mod fill;
mod naive;
mod placing;
mod properties;
mod reasons;
mod rebalance;
mod simulation;

use std::collections::BTreeSet;
use std::sync::Arc;

use auction::{CellInfo, Cells, Item, Needs, Offers, Request, Room, Turn};
use model::{CellId, Name};

/// The words of a text.
fn words(text: &str) -> BTreeSet<Name> {
    text.split_whitespace().map(|word| word.parse().expect("a name")).collect()
}

/// A cell of a zone with so much memory and disk, and room for so many containers.
fn cell(zone: &str, size: u64, containers: u32) -> CellInfo {
    CellInfo {
        zone: zone.to_owned(),
        room: Room { memory_mb: size, disk_mb: size, containers, ..Room::default() },
        offers: Offers::default(),
        accepting: true,
    }
}

/// `info` with a driver and optional tags.
fn with(info: CellInfo, drivers: &str, optional_tags: &str) -> CellInfo {
    let offers =
        Offers { drivers: words(drivers), optional_tags: words(optional_tags), ..info.offers };
    CellInfo { offers, ..info }
}

/// Cells numbered from 1.
fn cells(infos: impl IntoIterator<Item = CellInfo>) -> Cells {
    let mut cells = Cells::default();
    for (id, info) in (1..).zip(infos) {
        cells.put_cell(CellId(id), info);
    }
    cells
}

/// One copy of a group that is spread.
fn copy(group: u128, memory_mb: u64) -> Request {
    Request { group, memory_mb, disk_mb: memory_mb, spread: true, ..Request::default() }
}

/// Needs of a driver, if any, and tags.
fn needs(driver: &str, tags: &str) -> Arc<Needs> {
    let driver = words(driver).pop_first();
    Arc::new(Needs { driver, tags: words(tags), ..Needs::default() })
}

/// Instances of one app, from index 0.
fn app(group: u128, instances: u32, memory_mb: u64) -> Vec<Item> {
    let item = |index| Item { request: copy(group, memory_mb), turn: Turn::Instance(index) };
    (0..instances).map(item).collect()
}

/// How many of `places` are on each of so many cells.
fn counts(places: &[Result<CellId, auction::Unplaced>], cells: u128) -> Vec<usize> {
    let on = |id| places.iter().filter(|place| **place == Ok(CellId(id))).count();
    (1..=cells).map(on).collect()
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}
