//! Sizes: what a cell has, what is taken of it, and how full that makes it. Whole numbers only.

/// How many kinds of resource there are.
pub(crate) const KINDS: usize = 5;
/// Where memory is in a [`Size`].
pub(crate) const MEMORY: usize = 0;
/// Where disk is in a [`Size`].
pub(crate) const DISK: usize = 1;
/// Where container slots are in a [`Size`].
pub(crate) const CONTAINERS: usize = 2;
/// Where CPU shares are in a [`Size`].
pub(crate) const CPU: usize = 3;
/// Where processes and threads are in a [`Size`].
pub(crate) const PIDS: usize = 4;

/// What a full cell is in the whole numbers fractions are counted in.
pub(crate) const FULL: u64 = 1 << FULL_BITS;
const FULL_BITS: u32 = 20;
/// More precise than a fraction, so that one multiplication makes a good fraction.
const SCALE_BITS: u32 = 2 * FULL_BITS;
/// What a cell that does not limit something has of it.
pub(crate) const UNLIMITED: u64 = u64::MAX;

/// So much of each resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Size(pub(crate) [u64; KINDS]);

impl Size {
    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, more) in self.0.iter_mut().zip(other.0) {
            *mine = mine.saturating_add(more);
        }
    }

    pub(crate) fn subtract(&mut self, other: &Self) {
        for (mine, less) in self.0.iter_mut().zip(other.0) {
            *mine = mine.saturating_sub(less);
        }
    }

    /// Whether it is at least as much as `other` of everything.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).all(|(mine, wanted)| *mine >= wanted)
    }
}

/// How full something is: first by what it is shortest of, then by all of it together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Fullness {
    /// The largest of the fractions.
    pub(crate) most: u64,
    /// The fractions added up.
    pub(crate) sum: u64,
}

/// All there is of each resource, prepared for making fractions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Capacity {
    pub(crate) total: Size,
    scale: Size,
}

impl Capacity {
    pub(crate) fn new(total: Size) -> Self {
        let scale = |total: u64| match total {
            // There is nothing to balance where there is none, or no end of it.
            0 | UNLIMITED => 0,
            total => (1 << SCALE_BITS) / total,
        };
        Self { total, scale: Size(total.0.map(scale)) }
    }

    /// What `used` leaves.
    pub(crate) fn free(&self, used: &Size) -> Size {
        let mut free = self.total;
        free.subtract(used);
        free
    }

    pub(crate) fn fits(&self, used: &Size, wanted: &Size) -> bool {
        (0..KINDS).all(|kind| used.0[kind].saturating_add(wanted.0[kind]) <= self.total.0[kind])
    }

    /// How full `used` and `more` make it.
    pub(crate) fn fullness(&self, used: &Size, more: &Size) -> Fullness {
        let mut fullness = Fullness::default();
        for kind in 0..KINDS {
            let taken = used.0[kind].saturating_add(more.0[kind]);
            let fraction = taken.saturating_mul(self.scale.0[kind]) >> FULL_BITS;
            fullness.most = fullness.most.max(fraction);
            fullness.sum += fraction;
        }
        fullness
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_as_full_as_what_it_is_shortest_of() {
        let capacity = Capacity::new(Size([1_000, 100, 10, UNLIMITED, 0]));
        let cases = [
            (Size([500, 0, 0, 9, 0]), FULL / 2),
            (Size([500, 75, 0, 9, 0]), FULL * 3 / 4),
            (Size([0, 0, 10, 0, 9]), FULL),
            (Size([2_000, 0, 0, 0, 0]), FULL * 2),
        ];
        for (used, most) in cases {
            let found = capacity.fullness(&used, &Size::default()).most;
            assert!(found.abs_diff(most) <= FULL / 1_000, "{used:?}: {found}, not {most}");
        }
    }

    #[test]
    fn what_fits_leaves_nothing_below_zero() {
        let capacity = Capacity::new(Size([1_000, 100, 10, UNLIMITED, 0]));
        let used = Size([900, 0, 0, 0, 0]);
        assert!(capacity.fits(&used, &Size([100, 100, 10, u64::MAX, 0])));
        assert!(!capacity.fits(&used, &Size([101, 0, 0, 0, 0])));
        assert!(!capacity.fits(&used, &Size([0, 0, 0, 0, 1])));
        assert_eq!(capacity.free(&Size([1_200, 0, 0, 0, 0])).0[MEMORY], 0);
    }
}
