//! What a container uses.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Inner, dirs, locked, tree};
use crate::driver::Stats;
use crate::error::{Context as _, Result};
use crate::proc::{self, Table};
use crate::spec::Handle;

/// How long a measured disk usage is good for at least.
const DISK_PERIOD: Duration = Duration::from_secs(10);
/// A tree that takes long to measure is measured so much more rarely.
const DISK_COST_FACTOR: u32 = 200;

/// The last disk usage of each container, because measuring one means walking through it.
#[derive(Debug, Default)]
pub(super) struct DiskCache(Mutex<BTreeMap<Handle, Measured>>);

#[derive(Debug, Clone, Copy)]
struct Measured {
    bytes: u64,
    good_until: Instant,
}

impl DiskCache {
    pub(super) fn forget(&self, handle: &Handle) {
        locked(&self.0).remove(handle);
    }

    fn get(&self, handle: &Handle, measure: impl FnOnce() -> u64) -> u64 {
        let now = runtime::mono_now();
        if let Some(known) = locked(&self.0).get(handle).filter(|known| known.good_until > now) {
            return known.bytes;
        }
        let bytes = measure();
        let done = runtime::mono_now();
        let good_until = done + DISK_PERIOD.max((done - now) * DISK_COST_FACTOR);
        locked(&self.0).insert(handle.clone(), Measured { bytes, good_until });
        bytes
    }
}

impl Inner {
    pub(super) async fn stats(self: &Arc<Self>, handle: &Handle) -> Result<Stats> {
        self.dirs.meta(handle)?;
        let inner = Arc::clone(self);
        let measured = handle.clone();
        let stats = self.tasks.blocking(move || inner.measure(&measured)).await;
        stats.context(|| format!("measure container {handle}"))
    }

    fn measure(&self, handle: &Handle) -> io::Result<Stats> {
        let table = Table::read()?;
        let mut stats = Stats::default();
        let mut ticks = 0;
        for id in self.dirs.process_ids(handle) {
            let dir = self.dirs.process(handle, &id);
            let supervisor = self.dirs.started(&dir).map(|started| started.supervisor);
            let Some((supervisor, entry)) =
                supervisor.and_then(|id| Some((id, table.get(id).filter(|entry| !entry.ended)?)))
            else {
                ticks += dirs::ended(&dir).map_or(0, |ended| ended.ticks);
                continue;
            };
            ticks += entry.child_ticks;
            for member in table.descendants(&[supervisor]).iter().filter_map(|id| table.get(*id)) {
                ticks += member.own_ticks + member.child_ticks;
                if !member.ended {
                    stats.processes += 1;
                    stats.rss_bytes += proc::pages(member.rss_pages);
                }
            }
        }
        stats.cpu = proc::ticks(ticks);
        let root = self.dirs.root(handle);
        stats.disk_bytes = self.disk.get(handle, || tree::disk_bytes(&root));
        Ok(stats)
    }
}
