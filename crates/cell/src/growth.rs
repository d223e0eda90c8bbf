//! Looks after caches in use, whose size no driver limits: ends who lets one grow too far.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use runtime::{Stop, mono_now};

use crate::caches::{Caches, Inner};
use crate::limits::{LOOK_PART, SPACE_LOOKS};

/// Tells a piece of work that it must end because a cache of it is too large.
#[derive(Debug, Default)]
pub(crate) struct Outgrown {
    stop: Stop,
    reason: OnceLock<String>,
}

impl Outgrown {
    /// Ends the work. The first reason counts.
    pub(crate) fn end(&self, reason: &str) {
        self.reason.set(reason.to_owned()).unwrap_or_default();
        self.stop.stop();
    }

    /// Waits until the work must end; says why.
    pub(crate) async fn told(&self) -> &str {
        self.stop.stopped().await;
        self.reason.get().map_or("", String::as_str)
    }
}

impl Caches {
    /// Looks after caches as long as any are in use; never ends.
    pub(crate) async fn watch(&self) {
        let (space, sizes) = SPACE_LOOKS;
        let looks = (self.every(space, relieve), self.every(sizes, enforce));
        futures_util::future::join(looks.0, looks.1).await;
    }

    async fn every(&self, pause: Duration, look: fn(&Inner)) {
        loop {
            self.used().await;
            let began = mono_now();
            let inner = Arc::clone(self.inner());
            self.inner().tasks.blocking(move || look(&inner)).await;
            let took = mono_now().saturating_duration_since(began);
            runtime::sleep(pause.max(took.saturating_mul(LOOK_PART))).await;
        }
    }
}

/// Ends who let a cache grow beyond what one may have.
fn enforce(caches: &Inner) {
    let most = caches.limits.cache;
    for (used, bytes) in caches.in_use() {
        // One that changes while it is counted is counted the next time.
        if bytes.is_ok_and(|bytes| bytes > most) {
            used.end(&format!("its cache grew beyond the {} MiB one may have here", most >> 20));
        }
    }
}

/// Makes room when too little of the disk is free: first caches go that nobody uses, then ends who
/// let one grow most, if that is as much as is lacking.
fn relieve(caches: &Inner) {
    if let Err(error) = caches.evict_while_full() {
        tracing::warn!(%error, "old caches cannot be listed");
    }
    match caches.space.lacking() {
        Ok(0) => {}
        Ok(lacking) => end_largest(caches, lacking),
        Err(error) => tracing::warn!(%error, "nobody knows how much of the disk is free"),
    }
}

/// Ends who let a cache grow most, if it grew by `least` bytes.
fn end_largest(caches: &Inner, least: u64) {
    let grown = caches.in_use().into_iter().map(|(used, bytes)| {
        // Whoever moves things about all the time must not be overlooked.
        (bytes.map_or(u64::MAX, |bytes| bytes.saturating_sub(used.began)), used)
    });
    match grown.max_by_key(|(bytes, _)| *bytes) {
        Some((bytes, used)) if bytes >= least => {
            used.end("the cell's disk is full, and its cache grew more than any other");
        }
        Some(_) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::caches::tests::{fill, names, open};

    fn is_ended(user: &Outgrown) -> Option<&str> {
        user.stop.is_stopped().then(|| user.reason.get().map_or("", String::as_str))
    }

    #[tokio::test]
    async fn who_outgrows_a_cache_is_ended_and_the_cache_goes() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let caches = open(dir.path(), (1 << 30, 16_384, 0));
        let [small, large] = [Arc::default(), Arc::default()];
        let held = [caches.hold("small", &small), caches.hold("large", &large)];
        held.iter().for_each(fill);
        enforce(caches.inner());
        assert_eq!(is_ended(&large), None, "both are small");
        fs::write(held[1].path().join("more"), vec![b'x'; 16_384]).expect("writes");
        enforce(caches.inner());
        assert_eq!(is_ended(&small), None);
        let reason = is_ended(&large).expect("is ended");
        assert!(reason.contains("its cache grew beyond"), "{reason}");
        caches.release(held.into()).await;
        assert_eq!(names(dir.path()), ["small"]);
    }

    #[tokio::test]
    async fn on_a_full_disk_who_grew_most_is_ended_after_unused_caches_went() {
        let dir = tempfile::tempdir().expect("makes a directory");
        let caches = open(dir.path(), (1 << 30, 1 << 30, 0));
        for key in ["unused", "kept"] {
            let cache = caches.hold(key, &Arc::default());
            fill(&cache);
            caches.release(vec![cache]).await;
        }
        let full = open(dir.path(), (1 << 30, 1 << 30, u64::MAX));
        let [kept, grows] = [Arc::default(), Arc::default()];
        let held = [full.hold("kept", &kept), full.hold("grows", &grows)];
        fill(&held[1]);
        relieve(full.inner());
        assert_eq!(names(dir.path()), ["grows", "kept"], "what nobody uses went");
        assert_eq!((is_ended(&kept), is_ended(&grows)), (None, None), "they took little");
        assert!(full.make_room().await.is_err());
        end_largest(full.inner(), 8_192);
        assert_eq!(is_ended(&kept), None, "it was as large when it was given out");
        assert!(is_ended(&grows).is_some_and(|reason| reason.contains("disk is full")));
    }
}
