//! What is placed, and what cells say of themselves.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::{CellId, Name};

use crate::size::{Size, UNLIMITED};

/// Memory asked for when an app names none, in MiB.
pub const DEFAULT_MEMORY_MB: u64 = 256;
/// Disk asked for when an app names none, in MiB.
pub const DEFAULT_DISK_MB: u64 = 1_024;

/// One container that wants a cell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// Copies of one group, such as the instances of a process, are spread.
    pub group: u128,
    /// Memory in MiB.
    pub memory_mb: u64,
    /// Disk in MiB.
    pub disk_mb: u64,
    /// CPU shares.
    pub cpu_shares: u64,
    /// Processes and threads.
    pub pids: u64,
    /// What the cell must have; nothing in particular if absent.
    pub needs: Option<Arc<Needs>>,
    /// The only cell that will do, because something it works on lives there.
    pub pinned: Option<CellId>,
    /// Whether copies are spread over zones. Tasks are not, and are never moved either.
    pub spread: bool,
    /// Whether it is never moved, wherever it is placed.
    pub stays: bool,
}

/// What a container needs of its cell besides room.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Needs {
    /// The driver, if not just any.
    pub driver: Option<Name>,
    /// The tags it asks for.
    pub tags: BTreeSet<Name>,
    /// The kinds of volumes it mounts.
    pub volumes: BTreeSet<Name>,
}

/// What a cell has besides room.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Offers {
    /// Tags that work must ask for to come here.
    pub required_tags: BTreeSet<Name>,
    /// Tags that work may ask for.
    pub optional_tags: BTreeSet<Name>,
    /// Drivers.
    pub drivers: BTreeSet<Name>,
    /// Kinds of volumes.
    pub volumes: BTreeSet<Name>,
}

/// How much of everything a cell has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// Memory in MiB.
    pub memory_mb: u64,
    /// Disk in MiB.
    pub disk_mb: u64,
    /// How many containers it may hold.
    pub containers: u32,
    /// CPU shares, if they are limited.
    pub cpu_shares: Option<u64>,
    /// Processes and threads, if they are limited.
    pub pids: Option<u64>,
}

/// A cell as placement sees it, without what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CellInfo {
    /// The zone it fails with.
    pub zone: String,
    /// How much it has.
    pub room: Room,
    /// What else it has.
    pub offers: Offers,
    /// Whether it takes new work: a cell that is drained or may be lost does not.
    pub accepting: bool,
}

/// How far what a cell holds has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It was placed and is not up yet.
    Starting,
    /// It runs.
    Running,
}

impl Request {
    pub(crate) const fn size(&self) -> Size {
        Size([self.memory_mb, self.disk_mb, 1, self.cpu_shares, self.pids])
    }
}

impl Room {
    pub(crate) fn total(&self) -> Size {
        let (cpu, pids) = (self.cpu_shares.unwrap_or(UNLIMITED), self.pids.unwrap_or(UNLIMITED));
        Size([self.memory_mb, self.disk_mb, u64::from(self.containers), cpu, pids])
    }
}

impl Offers {
    /// Whether work with these needs may come here: it must ask for every required tag, and for
    /// none that is not there.
    pub fn meet(&self, needs: &Needs) -> bool {
        self.have(needs) && self.required_tags.is_subset(&needs.tags)
    }

    /// Whether everything that is needed is there.
    pub(crate) fn have(&self, needs: &Needs) -> bool {
        let has = |tag| self.required_tags.contains(tag) || self.optional_tags.contains(tag);
        needs.driver.as_ref().is_none_or(|driver| self.drivers.contains(driver))
            && needs.volumes.is_subset(&self.volumes)
            && needs.tags.iter().all(has)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> BTreeSet<Name> {
        text.split_whitespace().map(|word| word.parse().expect("a name")).collect()
    }

    #[test]
    fn tags_drivers_and_volumes_decide_who_may_come() {
        let offers = Offers {
            required_tags: words("gpu"),
            optional_tags: words("ssd"),
            drivers: words("oci process"),
            volumes: words("nfs local"),
        };
        let cases = [
            ("", "gpu", "", true),
            ("", "gpu ssd", "", true),
            ("", "", "", false),
            ("", "ssd", "", false),
            ("", "gpu arm", "", false),
            ("oci", "gpu", "", true),
            ("vm", "gpu", "", false),
            ("process", "gpu", "nfs local", true),
            ("process", "gpu", "nfs block", false),
        ];
        for (driver, tags, volumes, expected) in cases {
            let driver = words(driver).pop_first();
            let needs = Needs { driver, tags: words(tags), volumes: words(volumes) };
            assert_eq!(offers.meet(&needs), expected, "{needs:?}");
        }
    }
}
