//! Rolling execution digests at consecutive heights: once two replicas differ, they differ at every height above.

use std::collections::VecDeque;

use lockstep_types::{Digest, Height};

/// Digests kept: as many blocks may lie between an execution and the comparison.
const KEPT: usize = 4096;

/// The digests of one replica, the newest [`KEPT`] of one execution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digests {
    /// The height of the first one.
    first: Height,
    list: VecDeque<Digest>,
}

impl Digests {
    /// One digest: what an execution begins with.
    pub fn from(height: Height, digest: Digest) -> Self {
        Digests { first: height, list: VecDeque::from([digest]) }
    }

    /// Takes the next digest; what does not follow begins anew.
    pub fn push(&mut self, height: Height, digest: Digest) {
        if self.list.is_empty() || height != self.last().next() {
            *self = Digests::from(height, digest);
            return;
        }
        self.list.push_back(digest);
        if self.list.len() > KEPT {
            self.list.pop_front();
            self.first = self.first.next();
        }
    }

    /// Takes in consecutive digests from `first` on of the same execution; what is known stays.
    pub fn extend(&mut self, first: Height, digests: &[Digest]) {
        let mut height = first;
        for digest in digests {
            if self.list.is_empty() || height > self.last() {
                self.push(height, *digest);
            }
            height = height.next();
        }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The lowest height; zero if there is none.
    pub fn first(&self) -> Height {
        self.first
    }

    /// The highest height; zero if there is none.
    pub fn last(&self) -> Height {
        Height::new(self.first.get() + (self.list.len() as u64).saturating_sub(1))
    }

    pub fn get(&self, height: Height) -> Option<Digest> {
        let index = height.get().checked_sub(self.first.get())?;
        self.list.get(usize::try_from(index).ok()?).copied()
    }

    /// Digests above `height`, at most so many, and the height of the first.
    pub fn above(&self, height: Height, most: usize) -> (Height, Vec<Digest>) {
        let first = height.next().max(self.first);
        let skip = usize::try_from(first.above(self.first)).expect("a ring fits in memory");
        (first, self.list.iter().skip(skip).take(most).copied().collect())
    }

    /// The highest height that both have.
    pub fn newest_common(&self, other: &Digests) -> Option<Height> {
        let height = self.last().min(other.last());
        (self.get(height).is_some() && other.get(height).is_some()).then_some(height)
    }

    /// The lowest height at which both have a digest and the two differ.
    pub fn first_difference(&self, other: &Digests) -> Option<Height> {
        let differ = |height: u64| self.get(Height::new(height)) != other.get(Height::new(height));
        let newest = self.newest_common(other)?.get();
        let oldest = self.first.max(other.first).get();
        if !differ(newest) {
            return None;
        }
        let (mut low, mut high) = (oldest, newest);
        while low < high {
            let middle = low + (high - low) / 2;
            if differ(middle) { high = middle } else { low = middle + 1 }
        }
        Some(Height::new(high))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Digests from a height on: each letter is an execution of one block, on top of those before.
    pub fn digests(first: u64, before: &str, blocks: &str) -> Digests {
        let mut digests = Digests::default();
        let mut history = before.to_owned();
        for (height, block) in (first..).zip(blocks.chars()) {
            history.push(block);
            digests.push(Height::new(height), Digest::of(history.as_bytes()));
        }
        digests
    }

    #[test]
    fn difference_of_two_executions_is_found_at_the_very_block() {
        let (ours, theirs) = (digests(1, "", "aaaaaaaaaa"), digests(1, "", "aaaaaabaaaaaa"));
        assert_eq!(ours.first_difference(&theirs), Some(Height::new(7)));
        assert_eq!(ours.first_difference(&ours), None);
        assert_eq!(ours.newest_common(&theirs), Some(Height::new(10)));
    }

    #[test]
    fn difference_below_what_both_have_shows_at_the_lowest_common_height() {
        let theirs = digests(9, "aaabaaaa", "aa");
        assert_eq!(digests(1, "", "aaaaaaaaaa").first_difference(&theirs), Some(Height::new(9)));
        assert_eq!(digests(1, "", "aaa").first_difference(&theirs), None, "they have no height in common");
    }

    #[test]
    fn digests_of_one_execution_are_taken_in_once_and_a_gap_begins_anew() {
        let whole = digests(1, "", "aaaaaaaa");
        let mut taken = digests(1, "", "aaa");
        let (first, more) = whole.above(Height::new(2), 3);
        assert_eq!((first, more.len()), (Height::new(3), 3));
        taken.extend(first, &more);
        assert_eq!(taken, digests(1, "", "aaaaa"));
        let (first, more) = whole.above(Height::new(6), 100);
        taken.extend(first, &more);
        assert_eq!((taken.first(), taken.last()), (Height::new(7), Height::new(8)));
    }

    #[test]
    fn digests_beyond_what_is_kept_go_oldest_first() {
        let mut digests = Digests::from(Height::ZERO, Digest::ZERO);
        (1..=KEPT as u64).for_each(|height| digests.push(Height::new(height), Digest::ZERO));
        assert_eq!((digests.first(), digests.last()), (Height::new(1), Height::new(KEPT as u64)));
    }
}
