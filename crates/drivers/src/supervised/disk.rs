//! How much disk containers use, measured now and then.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::locked;
use crate::spec::Handle;

/// How long a measured disk usage is good for at least.
const DISK_PERIOD: Duration = Duration::from_secs(10);
/// A tree that takes long to measure is measured so much more rarely.
const DISK_COST_FACTOR: u32 = 200;

/// The last disk usage of each container, because measuring one means walking through it.
#[derive(Debug, Default)]
pub(crate) struct DiskCache(Mutex<BTreeMap<Handle, Measured>>);

#[derive(Debug, Clone, Copy)]
struct Measured {
    bytes: u64,
    good_until: Instant,
}

impl DiskCache {
    pub(crate) fn forget(&self, handle: &Handle) {
        locked(&self.0).remove(handle);
    }

    pub(crate) fn get(&self, handle: &Handle, measure: impl FnOnce() -> u64) -> u64 {
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
