//! What the digests that replicas named say of the own state. A pure function: the same digests, the same verdict.
//!
//! Counted are the voters of today, of each configuration in play, and not those of the time of the block: whoever came since
//! has executed it as well, and whoever left answers no more. Two digests of one height never both have a quorum, so those who
//! are fenced at one time are never more than the failures that the service tolerates.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_types::{Digest, Height, Slot};

use super::digests::Digests;

/// Where two executions part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parting {
    /// The lowest height at which they are known to differ.
    pub block: Height,
    /// They are known to be equal right below: this very block was executed differently.
    pub exact: bool,
    /// Who differs.
    pub witness: Slot,
    /// Its digest there.
    pub digest: Digest,
}

/// The verdict on the own state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No voter is known to differ.
    Unopposed,
    /// Somebody differs, and a quorum, this replica included, agrees.
    Upheld,
    /// A quorum differs, and agrees.
    Against(Parting),
    /// Somebody differs, and no side is known to have a quorum.
    Open(Parting),
}

/// Who counts.
pub(crate) trait Voters {
    /// Whether this one votes.
    fn votes(&self, slot: Slot) -> bool;
    /// Whether these are a quorum.
    fn is_quorum(&self, slots: &BTreeSet<Slot>) -> bool;
}

/// Whether a quorum, `me` included, has the own digest at `block` or above.
pub(crate) fn is_upheld(
    me: Slot,
    own: &Digests,
    peers: &BTreeMap<Slot, &Digests>,
    voters: &impl Voters,
    block: Height,
) -> bool {
    let agrees = |theirs: &Digests| {
        let common = own.newest_common(theirs).filter(|common| *common >= block);
        common.is_some_and(|common| own.get(common) == theirs.get(common))
    };
    let agreeing = peers.iter().filter(|(_, theirs)| agrees(theirs)).map(|(slot, _)| *slot);
    voters.is_quorum(&agreeing.chain([me]).collect())
}

/// Judges the digests of `me` by those of its peers.
pub(crate) fn verdict(me: Slot, own: &Digests, peers: &BTreeMap<Slot, &Digests>, voters: &impl Voters) -> Verdict {
    let partings: BTreeMap<Slot, Parting> = peers
        .iter()
        .filter(|(slot, _)| voters.votes(**slot))
        .filter_map(|(slot, theirs)| Some((*slot, parting(own, *slot, theirs)?)))
        .collect();
    let Some(lowest) = partings.values().min_by_key(|parting| parting.block).copied() else {
        return Verdict::Unopposed;
    };
    if is_upheld(me, own, peers, voters, lowest.block) {
        return Verdict::Upheld;
    }
    // The heights at which those who differ may still be of one mind: the first and last of each, and right below where two part.
    let mut heights: BTreeSet<Height> = BTreeSet::new();
    for (slot, parting) in &partings {
        heights.extend([parting.block, peers[slot].last()]);
        let others = partings.keys().filter_map(|other| peers[slot].first_difference(peers[other]));
        heights.extend(others.map(Height::prev));
    }
    for height in heights {
        let mut sides: BTreeMap<Digest, BTreeSet<Slot>> = BTreeMap::new();
        for (slot, parting) in &partings {
            if let Some(digest) = peers[slot].get(height).filter(|_| parting.block <= height) {
                sides.entry(digest).or_default().insert(*slot);
            }
        }
        if let Some(side) = sides.values().find(|side| voters.is_quorum(side)) {
            let of_side = side.iter().map(|slot| partings[slot]);
            return Verdict::Against(of_side.min_by_key(|parting| parting.block).expect("a quorum is not empty"));
        }
    }
    Verdict::Open(lowest)
}

fn parting(own: &Digests, witness: Slot, theirs: &Digests) -> Option<Parting> {
    let block = own.first_difference(theirs)?;
    let below = block.prev();
    // Before the first block nothing differs.
    let exact = below == Height::ZERO || own.get(below).is_some_and(|own| Some(own) == theirs.get(below));
    Some(Parting { block, exact, witness, digest: theirs.get(block).expect("both have it") })
}

#[cfg(test)]
mod tests {
    use super::super::digests::tests::digests;
    use super::*;

    /// Slots 1 up to a number.
    struct All(u32);

    impl Voters for All {
        fn votes(&self, slot: Slot) -> bool {
            slot.get() <= self.0
        }

        fn is_quorum(&self, slots: &BTreeSet<Slot>) -> bool {
            slots.iter().filter(|slot| self.votes(**slot)).count() > self.0 as usize / 2
        }
    }

    /// The verdict of replica 1 of so many, the others' digests in order from 2 on.
    fn judge(voters: u32, own: &Digests, others: &[Digests]) -> Verdict {
        let peers = (2..).map(Slot::new).zip(others).collect();
        verdict(Slot::new(1), own, &peers, &All(voters))
    }

    fn parts(verdict: Verdict) -> (u64, bool, u32) {
        let (Verdict::Against(parting) | Verdict::Open(parting)) = verdict else { panic!("{verdict:?}") };
        (parting.block.get(), parting.exact, parting.witness.get())
    }

    #[test]
    fn equal_digests_are_unopposed() {
        let own = digests(1, "", "aaaa");
        assert_eq!(judge(3, &own, &[own.clone(), digests(1, "", "aaaaaa")]), Verdict::Unopposed);
        assert_eq!(
            judge(3, &own, &[Digests::default(), digests(20, "b", "b")]),
            Verdict::Unopposed,
            "nothing in common"
        );
    }

    #[test]
    fn quorum_that_differs_is_against_at_the_first_block() {
        let others = [digests(1, "", "aaaa"), digests(1, "", "aaa")];
        let verdict = judge(3, &digests(1, "", "aabaa"), &others);
        assert!(matches!(verdict, Verdict::Against(_)), "{verdict:?}");
        assert_eq!(parts(verdict), (3, true, 2));
    }

    #[test]
    fn quorum_that_agrees_upholds() {
        let own = digests(1, "", "aaaa");
        assert_eq!(judge(3, &own, &[own.clone(), digests(1, "", "ab")]), Verdict::Upheld);
        // One who agreed only before the block says nothing about it.
        let verdict = judge(3, &own, &[digests(1, "", "a"), digests(1, "", "ab")]);
        assert!(matches!(verdict, Verdict::Open(_)), "{verdict:?}");
    }

    #[test]
    fn two_answers_of_three_voters_are_open() {
        let verdict = judge(3, &digests(1, "", "aaaa"), &[digests(1, "", "aaba")]);
        assert!(matches!(verdict, Verdict::Open(_)), "{verdict:?}");
        assert_eq!(parts(verdict), (3, true, 2));
    }

    #[test]
    fn three_answers_of_three_voters_are_open() {
        let verdict = judge(3, &digests(1, "", "aaaa"), &[digests(1, "", "aaba"), digests(1, "", "abaa")]);
        assert!(matches!(verdict, Verdict::Open(_)), "{verdict:?}");
    }

    #[test]
    fn quorum_that_parts_later_is_still_against() {
        // Both others differ from this replica at block 2, and from each other at block 4.
        let verdict = judge(3, &digests(1, "", "aaaaa"), &[digests(1, "", "abaaa"), digests(1, "", "abaca")]);
        assert!(matches!(verdict, Verdict::Against(_)), "{verdict:?}");
        assert_eq!(parts(verdict), (2, true, 2));
    }

    #[test]
    fn digests_known_from_above_the_block_only_are_against_and_not_exact() {
        let others = [digests(4, "aba", "aa"), digests(4, "aba", "a")];
        let verdict = judge(3, &digests(1, "", "aaaaa"), &others);
        assert_eq!(parts(verdict), (4, false, 2));
        // One who knows the block itself makes it exact: from the height that all have, they are of one mind.
        let others = [digests(4, "aba", "aa"), digests(1, "", "abaaa")];
        assert_eq!(parts(judge(3, &digests(1, "", "aaaaa"), &others)), (2, true, 3));
    }

    #[test]
    fn standby_that_differs_is_no_opponent() {
        let own = digests(1, "", "aaaa");
        assert_eq!(judge(1, &own, &[digests(1, "", "ab")]), Verdict::Unopposed);
        assert_eq!(judge(3, &own, &[own.clone(), own.clone(), digests(1, "", "ab")]), Verdict::Unopposed);
    }

    #[test]
    fn at_most_as_many_as_may_fail_have_a_quorum_against_them() {
        // Every way in which five replicas can give one of three answers.
        for ways in 0..3u32.pow(5) {
            let answer = |replica: u32| digests(1, "", ["aa", "ab", "ac"][(ways / 3u32.pow(replica) % 3) as usize]);
            let against = (0..5).filter(|replica| {
                let peers: BTreeMap<Slot, Digests> = (0..5)
                    .filter(|other| other != replica)
                    .map(|other| (Slot::new(other + 1), answer(other)))
                    .collect();
                let peers = peers.iter().map(|(slot, digests)| (*slot, digests)).collect();
                let verdict = verdict(Slot::new(replica + 1), &answer(*replica), &peers, &All(5));
                matches!(verdict, Verdict::Against(_))
            });
            assert!(against.count() <= 2, "answers {ways}");
        }
    }
}
