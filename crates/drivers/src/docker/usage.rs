//! What a container uses.

use std::io;
use std::sync::Arc;

use super::Inner;
use super::cgroup::Cgroups;
use crate::driver::Stats;
use crate::error::{Context as _, Result};
use crate::proc::Id;
use crate::spec::Handle;

impl Inner {
    pub(super) async fn stats(self: &Arc<Self>, handle: &Handle) -> Result<Stats> {
        self.kept.dirs.meta(handle)?;
        let measured = handle.clone();
        let stats = self.work(move |inner| inner.measure(&measured)).await;
        stats.context(|| format!("measure container {handle}"))
    }

    fn measure(&self, handle: &Handle) -> io::Result<Stats> {
        let mut stats = Stats {
            disk_bytes: self.kept.disk.get(handle, || self.disk_bytes(handle)),
            ..Stats::default()
        };
        // One that does not run uses nothing else.
        let Some(place) = self.running(handle) else { return Ok(stats) };
        let groups = match Cgroups::of(place.first.pid) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(stats),
            other => other?,
        };
        let spared = self.spared(handle, place.first);
        let members = groups.processes()?.into_iter().filter_map(Id::of);
        let members = members.filter(|id| !spared.contains(id) && id.runs()).count();
        stats.processes = u32::try_from(members).unwrap_or(u32::MAX);
        stats.rss_bytes = groups.memory_bytes();
        stats.cpu = groups.cpu();
        stats.throttled = groups.throttled();
        stats.oom_kills = groups.oom_kills();
        Ok(stats)
    }
}
