//! The instances that are placed, the cells they are placed on, and what some of them ask for.

use std::collections::BTreeSet;
use std::sync::Arc;

use auction::{CellInfo, Item, Needs, Offers, Request, Room, Turn};
use model::Name;

use crate::options::Options;
use crate::workload::{self, CELL_CONTAINERS, CELL_DISK_MB, CELL_MEMORY_MB, DISK_MB};

/// Instances of the app that comes last, and their memory in MiB.
const LARGE_APP: u32 = 500;
const LARGE_APP_MB: u64 = 512;

/// What choosy apps ask for.
pub(crate) struct Choosy {
    /// A fifth of the apps asks for it, a third of the cells has it.
    tag: Arc<Needs>,
    /// A tenth of the apps asks for it, half of the cells have it.
    driver: Arc<Needs>,
    /// What every cell has.
    usual: Name,
}

impl Choosy {
    pub(crate) fn new() -> Result<Self, String> {
        let name = |text: &str| text.parse::<Name>().map_err(|error| error.to_string());
        let tag = Needs { tags: BTreeSet::from([name("ssd")?]), ..Needs::default() };
        let driver = Needs { driver: Some(name("oci")?), ..Needs::default() };
        Ok(Self { tag: Arc::new(tag), driver: Arc::new(driver), usual: name("process")? })
    }

    fn of(&self, app: u128) -> Option<&Arc<Needs>> {
        match app % 10 {
            0 | 5 => Some(&self.tag),
            1 => Some(&self.driver),
            _ => None,
        }
    }

    /// A cell of one of three zones.
    pub(crate) fn info(&self, at: usize, constraints: bool) -> CellInfo {
        // Every zone has its share of both.
        let tagged = constraints && (at / 3).is_multiple_of(3);
        let driven = constraints && (at / 9).is_multiple_of(2);
        let mut offers =
            Offers { drivers: BTreeSet::from([self.usual.clone()]), ..Offers::default() };
        if tagged {
            offers.optional_tags.extend(self.tag.tags.iter().cloned());
        }
        if driven {
            offers.drivers.extend(self.driver.driver.clone());
        }
        CellInfo {
            zone: format!("zone-{}", at % 3),
            room: Room {
                memory_mb: CELL_MEMORY_MB,
                disk_mb: CELL_DISK_MB,
                containers: CELL_CONTAINERS,
                cpu_shares: None,
                pids: None,
            },
            offers,
            accepting: true,
        }
    }
}

/// All instances, app by app.
pub(crate) fn items(options: &Options, choosy: &Choosy) -> Vec<Item> {
    let mut items = Vec::with_capacity(options.instances as usize);
    for (group, app) in (1..).zip(workload::apps(options.seed, options.instances)) {
        let needs = choosy.of(group).filter(|_| options.constraints == Some(true)).cloned();
        let request = Request { needs, ..request(group, app.memory_mb) };
        items.extend((0..app.instances).map(|index| instance(&request, index)));
    }
    items
}

/// One app that is scaled up when all others are there.
pub(crate) fn large_app() -> Vec<Item> {
    let request = request(u128::MAX, LARGE_APP_MB);
    (0..LARGE_APP).map(|index| instance(&request, index)).collect()
}

fn request(group: u128, memory_mb: u64) -> Request {
    Request { group, memory_mb, disk_mb: DISK_MB, spread: true, ..Request::default() }
}

fn instance(request: &Request, index: u32) -> Item {
    Item { request: request.clone(), turn: Turn::Instance(index) }
}
