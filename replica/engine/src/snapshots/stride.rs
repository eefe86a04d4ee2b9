//! Which snapshot points to take when writing one takes longer than the way to the next.
//!
//! Replicas write at different speeds. If each took the next point once it is free, a fast and a slow one, or two that are out of
//! step, could for ever take different points: nothing would be agreed on, and the log never cut. So points have ranks that all
//! replicas compute alike, each rank half as many as the one below, and who cannot keep up takes only those of a higher rank:
//! what it takes, the others take as well, unless they are writing at that moment. Pure.

use lockstep_types::{Digest, Height};

/// The highest rank that is waited for: one point in 64.
const RANK_MAX: u32 = 6;

/// The least rank of a point that this replica takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stride(u32);

impl Stride {
    /// Whether to take the point at this height.
    pub fn takes(self, point: Height) -> bool {
        rank(point) >= self.0
    }

    /// A point that it would have taken came too early.
    pub fn lengthen(&mut self) {
        self.0 = (self.0 + 1).min(RANK_MAX);
    }

    /// A snapshot was written, and no point that it would have taken came meanwhile.
    pub fn shorten(&mut self) {
        self.0 = self.0.saturating_sub(1);
    }
}

/// The zero bits that the hash of a height ends with: heights of points are anything but evenly spread.
fn rank(point: Height) -> u32 {
    let hash = Digest::of(&point.get().to_le_bytes());
    let low = hash.as_bytes().first_chunk().copied().map_or(0, u64::from_le_bytes);
    low.trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(stride: Stride) -> Vec<u64> {
        (1..=10_000).filter(|height| stride.takes(Height::new(*height))).collect()
    }

    #[test]
    fn stride_of_one_who_cannot_keep_up_is_part_of_every_shorter_one() {
        let mut stride = Stride::default();
        assert_eq!(taken(stride).len(), 10_000);
        for _ in 0..RANK_MAX {
            let before = taken(stride);
            stride.lengthen();
            let after = taken(stride);
            assert!(after.iter().all(|height| before.contains(height)));
            assert!(after.len() * 3 < before.len() * 2 && after.len() * 3 > before.len(), "about half are left");
        }
        let longest = stride;
        stride.lengthen();
        assert_eq!(stride, longest, "there is always a point to come");
    }

    #[test]
    fn stride_of_one_who_keeps_up_again_is_all_points() {
        let mut stride = Stride::default();
        stride.lengthen();
        stride.shorten();
        stride.shorten();
        assert_eq!(stride, Stride::default());
    }
}
