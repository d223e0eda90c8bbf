//! How much of something each of many takes, so that one does not take the room of all.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts what each takes, up to a share. Cheap to clone.
#[derive(Debug)]
pub struct Shares<K> {
    most: usize,
    counts: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self { most: self.most, counts: Arc::clone(&self.counts) }
    }
}

/// One that is taken until this is dropped.
#[derive(Debug)]
pub struct Share<K: Hash + Eq> {
    key: K,
    counts: Arc<Mutex<HashMap<K, usize>>>,
}

fn locked<K>(counts: &Mutex<HashMap<K, usize>>) -> MutexGuard<'_, HashMap<K, usize>> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Hash + Eq + Clone> Shares<K> {
    /// Each may take this many at once.
    pub fn of(most: usize) -> Self {
        Self { most, counts: Arc::default() }
    }

    /// How many each may take at once.
    pub const fn most(&self) -> usize {
        self.most
    }

    /// One more; `None` when it has as many as it may.
    pub fn take(&self, key: K) -> Option<Share<K>> {
        let mut counts = locked(&self.counts);
        let count = counts.entry(key.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Share { key, counts: Arc::clone(&self.counts) })
    }
}

impl<K: Hash + Eq> Drop for Share<K> {
    fn drop(&mut self) {
        let mut counts = locked(&self.counts);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_takes_its_own_room_only() {
        let shares = Shares::of(2);
        let taken = [shares.take("one"), shares.take("one")];
        assert!(taken.iter().all(Option::is_some));
        assert!(shares.take("one").is_none());
        let other = shares.take("other");
        assert!(other.is_some());
        drop(taken);
        assert!(shares.take("one").is_some());
        drop(other);
        assert!(locked(&shares.counts).is_empty(), "nothing is left of those who took");
    }
}
