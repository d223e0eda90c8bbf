//! Why nothing could be placed, in words for whoever waits.

use std::fmt;
use std::sync::Arc;

use model::CellId;

use crate::cells::{Cells, NONE, Slot};
use crate::request::{Needs, Request};
use crate::size::{CONTAINERS, CPU, DISK, MEMORY, PIDS, Size};

/// Why a request has no place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unplaced {
    /// There is no cell.
    NoCell,
    /// No cell takes anything.
    NoneAccepting,
    /// No cell has what is needed besides room.
    Lacking {
        /// What no cell has all of.
        needs: Arc<Needs>,
    },
    /// Every cell that has what is needed wants tags that were not asked for.
    Reserved {
        /// What was asked for.
        needs: Arc<Needs>,
    },
    /// Even the freest cell has too little of something.
    Short {
        /// What it is short of.
        resource: Resource,
        /// How much was asked for.
        needed: u64,
        /// How much the freest cell has.
        freest: u64,
        /// What else the cell must have.
        needs: Arc<Needs>,
    },
    /// Every cell is short of one thing or another.
    Together,
    /// The one cell that may take it does not.
    Pinned {
        /// That cell.
        cell: CellId,
        /// Why not.
        why: PinnedWhy,
    },
}

/// What a cell has only so much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Memory in MiB.
    Memory,
    /// Disk in MiB.
    Disk,
    /// Containers.
    Containers,
    /// CPU shares.
    CpuShares,
    /// Processes and threads.
    Pids,
}

/// Why the cell something is pinned to does not take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinnedWhy {
    /// It is not connected.
    Away,
    /// It is drained, or may be lost.
    NotAccepting,
    /// It has not what is needed, or wants tags that were not asked for.
    Unfit(Arc<Needs>),
    /// It has too little of something.
    Short {
        /// What it is short of.
        resource: Resource,
        /// How much was asked for.
        needed: u64,
        /// How much it has.
        free: u64,
    },
    /// It holds more than it has room for already.
    Overfull,
}

impl Resource {
    /// In the order in which they are looked at.
    const ALL: [(Self, usize); 5] = [
        (Self::Memory, MEMORY),
        (Self::Disk, DISK),
        (Self::Containers, CONTAINERS),
        (Self::CpuShares, CPU),
        (Self::Pids, PIDS),
    ];

    /// `amount` of it, in words.
    fn say(self, amount: u64) -> String {
        match self {
            Self::Memory | Self::Disk => format!("{amount} MiB"),
            Self::CpuShares => format!("{amount} CPU shares"),
            Self::Pids => format!("{amount} processes"),
            Self::Containers => format!("{amount} containers"),
        }
    }

    /// The same, with its name.
    fn name(self, amount: u64) -> String {
        match self {
            Self::Memory => format!("{amount} MiB of memory"),
            Self::Disk => format!("{amount} MiB of disk"),
            Self::Containers | Self::CpuShares | Self::Pids => self.say(amount),
        }
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let driver = self.driver.iter().map(|driver| format!("driver {driver}"));
        let volumes = self.volumes.iter().map(|kind| format!("volumes of kind {kind}"));
        let tags = self.tags.iter().map(|tag| format!("tag {tag}"));
        let words: Vec<String> = driver.chain(volumes).chain(tags).collect();
        match words.split_last() {
            None => Ok(()),
            Some((last, [])) => f.write_str(last),
            Some((last, rest)) => write!(f, "{} and {last}", rest.join(", ")),
        }
    }
}

impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCell => f.write_str("no cell is connected"),
            Self::NoneAccepting => f.write_str("no cell takes new work: all are draining"),
            Self::Lacking { needs } => write!(f, "no cell has {needs}"),
            Self::Reserved { needs } => {
                write!(f, "every cell{} is kept for work with other tags", With(needs))
            }
            Self::Short { resource: Resource::Containers, needs, .. } => {
                write!(f, "every cell{} holds as many containers as it may", With(needs))
            }
            Self::Short { resource, needed, freest, needs } => {
                let (needed, freest) = (resource.name(*needed), resource.say(*freest));
                write!(f, "needs {needed}, the freest cell{} has {freest}", With(needs))
            }
            Self::Together => {
                f.write_str("no single cell has enough memory, disk and container slots together")
            }
            Self::Pinned { cell, why } => write!(f, "its volume is on {cell}, {why}"),
        }
    }
}

impl fmt::Display for PinnedWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away => f.write_str("which is not connected"),
            Self::NotAccepting => f.write_str("which takes no new work: it is draining"),
            Self::Unfit(needs) if **needs == Needs::default() => {
                f.write_str("which is kept for work with other tags")
            }
            Self::Unfit(needs) => write!(f, "which is not for work that needs {needs}"),
            Self::Short { resource: Resource::Containers, .. } => {
                f.write_str("which holds as many containers as it may")
            }
            Self::Short { resource, needed, free } => {
                let (needed, free) = (resource.name(*needed), resource.say(*free));
                write!(f, "which has {free} of the {needed} it needs")
            }
            Self::Overfull => f.write_str("which holds more than it has room for"),
        }
    }
}

impl std::error::Error for Unplaced {}

/// ` with driver oci and tag gpu`, or nothing.
struct With<'a>(&'a Needs);

impl fmt::Display for With<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self.0 == Needs::default() { Ok(()) } else { write!(f, " with {}", self.0) }
    }
}

impl Cells {
    /// Why `request` has no place now.
    pub(crate) fn why(&self, request: &Request, shape: u32) -> Unplaced {
        let needs = &self.shape_at(shape).needs;
        if let Some(cell) = request.pinned {
            return Unplaced::Pinned { cell, why: self.why_pinned(cell, request, needs) };
        }
        let there = || self.slots.iter().filter(|cell| cell.info.is_some());
        if there().next().is_none() {
            return Unplaced::NoCell;
        }
        if there().all(|cell| cell.class == NONE) {
            return Unplaced::NoneAccepting;
        }
        let meets = &self.shape_at(shape).meets;
        let fit = || there().filter(|cell| meets.get(cell.class as usize).is_some_and(|it| *it));
        if fit().next().is_none() {
            return self.why_unfit(needs);
        }
        let size = request.size();
        for (resource, kind) in Resource::ALL {
            let free = |cell: &Slot| cell.capacity.free(&cell.used).0[kind];
            let (needed, freest) = (size.0[kind], fit().map(free).max().unwrap_or(0));
            if freest < needed {
                return Unplaced::Short { resource, needed, freest, needs: Arc::clone(needs) };
            }
        }
        Unplaced::Together
    }

    /// Names the driver alone if that is what is missing, then volumes, then tags.
    fn why_unfit(&self, needs: &Arc<Needs>) -> Unplaced {
        let driver = Needs { driver: needs.driver.clone(), ..Needs::default() };
        let volumes = Needs { volumes: needs.volumes.clone(), ..driver.clone() };
        for needs in [driver, volumes, (**needs).clone()] {
            let offers = self.slots.iter().filter(|cell| cell.class != NONE).map(|cell| &cell.info);
            if !offers.flatten().any(|info| info.offers.have(&needs)) {
                return Unplaced::Lacking { needs: Arc::new(needs) };
            }
        }
        Unplaced::Reserved { needs: Arc::clone(needs) }
    }

    fn why_pinned(&self, cell: CellId, request: &Request, needs: &Needs) -> PinnedWhy {
        self.why_not_on(cell, request, needs, &Size::default()).unwrap_or(PinnedWhy::Overfull)
    }

    fn why_not_on(
        &self,
        cell: CellId,
        request: &Request,
        needs: &Needs,
        freed: &Size,
    ) -> Option<PinnedWhy> {
        let found = self.find(cell).and_then(|cell| Some((cell, cell.info.as_deref()?)));
        let Some((cell, info)) = found else { return Some(PinnedWhy::Away) };
        if !info.accepting {
            return Some(PinnedWhy::NotAccepting);
        }
        if !info.offers.meet(needs) {
            return Some(PinnedWhy::Unfit(Arc::new(needs.clone())));
        }
        let (size, mut used) = (request.size(), cell.used);
        used.subtract(freed);
        let short = Resource::ALL.into_iter().find_map(|(resource, kind)| {
            let (needed, free) = (size.0[kind], cell.capacity.free(&used).0[kind]);
            (free < needed).then_some(PinnedWhy::Short { resource, needed, free })
        });
        let fits = || cell.capacity.fits(&used, &size);
        short.or_else(|| (!fits()).then_some(PinnedWhy::Overfull))
    }

    /// Why `cell` could not take `request` once it holds `ending` no more; nothing if it could.
    pub fn why_not_after(
        &self,
        cell: CellId,
        request: &Request,
        ending: &[&Request],
    ) -> Option<PinnedWhy> {
        let mut freed = Size::default();
        for other in ending {
            freed.add(&other.size());
        }
        let needs = request.needs.as_deref().cloned().unwrap_or_default();
        self.why_not_on(cell, request, &needs, &freed)
    }
}
