//! Both backends go through the conformance suite.

use std::sync::Arc;

use store::conformance::{Place, all};
use store::memory::MemoryStore;
use store::sqlite::SqliteStore;

#[test]
fn memory_conforms() {
    all(|| {
        let store = MemoryStore::new();
        Place::new(move || Ok(Arc::new(store.clone())))
    })
    .unwrap();
}

#[test]
fn sqlite_conforms() {
    all(|| {
        let dir = tempfile::tempdir().unwrap();
        Place::new(move || Ok(Arc::new(SqliteStore::open(&dir.path().join("longshore.db"))?)))
    })
    .unwrap();
}
