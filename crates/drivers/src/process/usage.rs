//! What a container uses.

use std::io;
use std::sync::Arc;

use super::Inner;
use crate::driver::Stats;
use crate::error::{Context as _, Result};
use crate::proc::{self, Id, Table};
use crate::spec::Handle;
use crate::supervised::{self, tree};

impl Inner {
    pub(super) async fn stats(self: &Arc<Self>, handle: &Handle) -> Result<Stats> {
        self.kept.dirs.meta(handle)?;
        let inner = Arc::clone(self);
        let measured = handle.clone();
        let stats = self.kept.tasks.blocking(move || inner.measure(&measured)).await;
        stats.context(|| format!("measure container {handle}"))
    }

    fn measure(&self, handle: &Handle) -> io::Result<Stats> {
        let table = Table::read()?;
        let mut stats = Stats::default();
        let mut ticks = 0;
        for id in self.kept.dirs.process_ids(handle) {
            let dir = self.kept.dirs.process(handle, &id);
            let supervisor = self.kept.dirs.started(&dir).map(|started| started.supervisor);
            let Some((supervisor, entry)) =
                supervisor.and_then(|id| Some((id, table.get(id).filter(|entry| !entry.ended)?)))
            else {
                ticks += supervised::ended(&dir).map_or(0, |ended| ended.ticks);
                continue;
            };
            ticks += entry.child_ticks + stats.count(&table, supervisor);
        }
        for keeper in self.sessions.of(handle) {
            ticks += stats.count(&table, keeper);
        }
        stats.cpu = proc::ticks(ticks);
        let root = self.kept.dirs.root(handle);
        stats.disk_bytes = self.kept.disk.get(handle, || tree::disk_bytes_in_use(&root));
        Ok(stats)
    }
}

impl Stats {
    /// Counts what runs below a supervisor; the ticks it used come back.
    fn count(&mut self, table: &Table, supervisor: Id) -> u64 {
        let mut ticks = 0;
        for member in table.descendants(&[supervisor]).iter().filter_map(|id| table.get(*id)) {
            ticks += member.own_ticks + member.child_ticks;
            if !member.ended {
                self.processes += 1;
                self.rss_bytes += proc::pages(member.rss_pages);
            }
        }
        ticks
    }
}
