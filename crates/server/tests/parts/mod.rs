//! What a server is made of in tests: real, but for a store in memory.

use std::sync::Arc;

use runtime::{Ids, Random, SystemClock, Tasks};
use server::{Parts, Settings};
use store::blobs::BlobLimits;
use store::memory::MemoryStore;

/// The usual parts around a store.
pub(crate) fn parts(store: &Arc<MemoryStore>, tasks: &Tasks, settings: Settings) -> Parts {
    Parts {
        store: Arc::clone(store) as Arc<dyn store::Store>,
        clock: Arc::new(SystemClock),
        ids: Ids::new(Random::system()),
        tasks: tasks.clone(),
        domain: "localhost".to_owned(),
        authority: None,
        blobs: BlobLimits::default(),
        settings,
    }
}
