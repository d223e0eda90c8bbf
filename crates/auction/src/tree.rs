//! A tournament tree: finds the leaf with the lowest key without looking at all of them.
//!
//! Each node knows the lowest key below it and the most free memory below it, so whole parts are
//! passed over. Keys carry the number of their leaf in their lowest bits and are thereby unique.

/// How many children a node has: their keys fill one cache line.
const FAN: usize = 8;
/// How many bits of a key say which leaf it is.
pub(crate) const LEAF_BITS: u32 = 24;
/// The key of a leaf that nothing may be placed on.
pub(crate) const VACANT: u64 = u64::MAX;

/// The key of a leaf with this score.
pub(crate) const fn key(score: u64, leaf: u32) -> u64 {
    score << LEAF_BITS | leaf as u64
}

/// Which leaf a key belongs to.
pub(crate) const fn leaf_of(key: u64) -> usize {
    (key & ((1 << LEAF_BITS) - 1)) as usize
}

/// What is known of the children of a node.
#[derive(Debug, Clone, Copy)]
struct Node {
    lowest: [u64; FAN],
    freest: [u32; FAN],
}

/// The tree: the nodes of each level, the parents of leaves first, and what is known of the root.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    levels: Vec<Vec<Node>>,
    root: (u64, u32),
}

impl Default for Tree {
    fn default() -> Self {
        Self { levels: Vec::new(), root: (VACANT, 0) }
    }
}

impl Node {
    const EMPTY: Self = Self { lowest: [VACANT; FAN], freest: [0; FAN] };

    fn get(&self, child: usize) -> (u64, u32) {
        (self.lowest[child], self.freest[child])
    }

    fn set(&mut self, child: usize, (key, free): (u64, u32)) {
        (self.lowest[child], self.freest[child]) = (key, free);
    }

    /// The lowest key below it, and the most free memory.
    #[inline]
    fn summary(&self) -> (u64, u32) {
        let lowest = self.lowest.iter().fold(VACANT, |low, key| low.min(*key));
        let freest = self.freest.iter().fold(0, |high, free| high.max(*free));
        (lowest, freest)
    }
}

impl Tree {
    /// A tree of these leaves, each with its key and its free memory.
    pub(crate) fn new(leaves: impl Iterator<Item = (u64, u32)>) -> Self {
        let mut below: Vec<(u64, u32)> = leaves.collect();
        let mut levels = Vec::new();
        while below.len() > 1 || levels.is_empty() {
            let mut nodes = vec![Node::EMPTY; below.len().div_ceil(FAN).max(1)];
            for (at, value) in below.iter().enumerate() {
                nodes[at / FAN].set(at % FAN, *value);
            }
            below = nodes.iter().map(Node::summary).collect();
            levels.push(nodes);
        }
        Self { levels, root: below[0] }
    }

    /// The lowest key of all, and the most free memory.
    pub(crate) const fn root(&self) -> (u64, u32) {
        self.root
    }

    /// The key of a leaf.
    pub(crate) fn key(&self, leaf: usize) -> u64 {
        self.levels[0][leaf / FAN].lowest[leaf % FAN]
    }

    /// Gives a leaf another key and other free memory.
    pub(crate) fn set(&mut self, leaf: usize, key: u64, free: u32) {
        let (mut at, mut new) = (leaf, (key, free));
        for level in &mut self.levels {
            let node = &mut level[at / FAN];
            if node.get(at % FAN) == new {
                return;
            }
            node.set(at % FAN, new);
            new = node.summary();
            at /= FAN;
        }
        self.root = new;
    }

    /// The lowest key below `below` of a leaf with so much free memory that is `ok`.
    pub(crate) fn lowest(
        &self,
        memory: u32,
        below: u64,
        ok: &mut impl FnMut(usize) -> bool,
    ) -> Option<u64> {
        let mut best = below;
        if self.root.0 < below && self.root.1 >= memory {
            self.lower(self.levels.len(), 0, memory, &mut (&mut best, ok));
        }
        (best < below).then_some(best)
    }

    /// Looks below a node, whose own values are good enough.
    fn lower<F: FnMut(usize) -> bool>(
        &self,
        height: usize,
        at: usize,
        memory: u32,
        found: &mut (&mut u64, &mut F),
    ) {
        let Some(level) = height.checked_sub(1) else {
            if (found.1)(at) {
                *found.0 = self.key(at);
            }
            return;
        };
        let node = &self.levels[level][at];
        let mut left = node.lowest;
        // The child with the lowest key first: what it finds rules out most others.
        for _ in 0..FAN {
            let (child, key) =
                (0..FAN).zip(left).min_by_key(|(_, key)| *key).unwrap_or((0, VACANT));
            if key >= *found.0 {
                return;
            }
            left[child] = VACANT;
            if node.freest[child] >= memory {
                self.lower(level, at * FAN + child, memory, found);
            }
        }
    }

    /// The first leaf with so much free memory that is `ok`.
    pub(crate) fn first(&self, memory: u32, ok: &mut impl FnMut(usize) -> bool) -> Option<usize> {
        if self.root.0 == VACANT || self.root.1 < memory {
            return None;
        }
        self.leftmost(self.levels.len(), 0, memory, ok)
    }

    fn leftmost(
        &self,
        height: usize,
        at: usize,
        memory: u32,
        ok: &mut impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let Some(level) = height.checked_sub(1) else { return ok(at).then_some(at) };
        let node = &self.levels[level][at];
        let open = |child: &usize| node.lowest[*child] < VACANT && node.freest[*child] >= memory;
        let mut open = (0..FAN).filter(open);
        open.find_map(|child| self.leftmost(level, at * FAN + child, memory, ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares every question with a look at all leaves.
    fn check(scores: &[(u64, u32)], tree: &Tree) {
        for memory in [0, 3, 6, 9] {
            for modulus in 1..4 {
                let ok = |leaf: usize| leaf % modulus == modulus - 1;
                let fits = |leaf: &usize| scores[*leaf].1 >= memory && ok(*leaf);
                let all = (0..scores.len()).filter(|leaf| scores[*leaf].0 != VACANT);
                let good: Vec<usize> = all.filter(fits).collect();
                assert_eq!(tree.first(memory, &mut { ok }), good.first().copied());
                let lowest = good.iter().map(|leaf| scores[*leaf].0).min();
                assert_eq!(tree.lowest(memory, VACANT, &mut { ok }), lowest);
                if let Some(lowest) = lowest {
                    assert_eq!(tree.lowest(memory, lowest, &mut { ok }), None);
                }
            }
        }
    }

    #[test]
    fn it_finds_what_a_look_at_all_leaves_finds() {
        for count in [0, 1, 7, 8, 9, 64, 65, 200, 600] {
            let mut leaves: Vec<(u64, u32)> = (0..count)
                .map(|leaf| {
                    let mixed = leaf * 2_654_435_761 % 101;
                    let score =
                        if mixed % 7 == 0 { VACANT } else { key(mixed as u64, leaf as u32) };
                    (score, (mixed % 10) as u32)
                })
                .collect();
            let mut tree = Tree::new(leaves.iter().copied());
            check(&leaves, &tree);
            for step in 0..count {
                let leaf = step * 31 % count;
                leaves[leaf] = (key(step as u64 * 37 % 50, leaf as u32), (step % 10) as u32);
                tree.set(leaf, leaves[leaf].0, leaves[leaf].1);
            }
            check(&leaves, &tree);
        }
    }

    #[test]
    fn an_empty_tree_has_no_lowest_leaf() {
        assert_eq!(Tree::default().root(), (VACANT, 0));
        assert_eq!(Tree::new(std::iter::empty()).root(), (VACANT, 0));
        assert_eq!(Tree::default().first(0, &mut |_| true), None);
    }
}
