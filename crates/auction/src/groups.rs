//! Which cells hold copies of which group.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::request::{Needs, Request};
use crate::size::Size;

/// Looks numbers up by identifier. It cannot be iterated: its order means nothing.
#[derive(Debug)]
pub(crate) struct Lookup<K>(HashMap<K, u32, FixedState>);

impl<K> Default for Lookup<K> {
    fn default() -> Self {
        Self(HashMap::with_hasher(FixedState::default()))
    }
}

impl<K: std::hash::Hash + Eq> Lookup<K> {
    pub(crate) fn get(&self, key: &K) -> Option<u32> {
        self.0.get(key).copied()
    }

    pub(crate) fn remove(&mut self, key: &K) {
        self.0.remove(key);
    }

    /// The number of `key`, which becomes `new` if it has none.
    pub(crate) fn get_or_insert(&mut self, key: K, new: u32) -> u32 {
        *self.0.entry(key).or_insert(new)
    }
}

/// How many copies are on one cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copies {
    pub(crate) slot: u32,
    pub(crate) count: u32,
}

/// What is known of one copy, for moving it.
#[derive(Debug, Clone, Default)]
pub(crate) struct About {
    pub(crate) id: u128,
    pub(crate) size: Size,
    pub(crate) needs: Option<Arc<Needs>>,
    pub(crate) movable: bool,
}

/// All groups, by number. Numbers of groups without copies are used again.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    by_id: Lookup<u128>,
    copies: Vec<Vec<Copies>>,
    about: Vec<About>,
    free: Vec<u32>,
}

impl Groups {
    pub(crate) fn find(&self, id: u128) -> Option<u32> {
        self.by_id.get(&id)
    }

    /// The number of the group of `request`, a new one if it has none yet.
    pub(crate) fn number(&mut self, request: &Request) -> u32 {
        let new = self.free.last().copied().unwrap_or(self.copies.len() as u32);
        let number = self.by_id.get_or_insert(request.group, new);
        if number == new {
            if self.free.pop().is_none() {
                self.copies.push(Vec::new());
                self.about.push(About::default());
            }
            self.about[number as usize] = About {
                id: request.group,
                size: request.size(),
                needs: request.needs.clone(),
                movable: request.spread && !request.stays && request.pinned.is_none(),
            };
        }
        number
    }

    pub(crate) fn copies(&self, group: u32) -> &[Copies] {
        &self.copies[group as usize]
    }

    pub(crate) fn about(&self, group: u32) -> &About {
        &self.about[group as usize]
    }

    /// All numbers that are or were in use.
    pub(crate) fn numbers(&self) -> std::ops::Range<u32> {
        0..self.copies.len() as u32
    }

    pub(crate) fn add(&mut self, group: u32, slot: u32) {
        let copies = &mut self.copies[group as usize];
        match copies.iter_mut().find(|on| on.slot == slot) {
            Some(on) => on.count += 1,
            None => copies.push(Copies { slot, count: 1 }),
        }
    }

    /// Takes one copy away; whether there was one.
    pub(crate) fn remove(&mut self, group: u32, slot: u32) -> bool {
        let copies = &mut self.copies[group as usize];
        let Some(at) = copies.iter().position(|on| on.slot == slot) else { return false };
        copies[at].count -= 1;
        if copies[at].count == 0 {
            copies.swap_remove(at);
        }
        true
    }

    /// Lets go of a group that has no copies.
    pub(crate) fn forget_if_empty(&mut self, group: u32) {
        let about = &self.about[group as usize];
        if self.copies[group as usize].is_empty() && self.find(about.id) == Some(group) {
            self.by_id.remove(&about.id);
            self.free.push(group);
        }
    }
}
