//! What replicas remember of each other, so that one that forgot is found out: its volume was restored from an old copy,
//! cloned, or lost what it had called durable (PROTOCOL §8, schedule M3). A replica that forgot a promise can break it.
//!
//! At its start a replica says what its disk holds: a [`Claim`]. Every other one knows what this identity wrote and promised
//! in earlier starts: it heard its acknowledgements, and once a second each tells all others what it wrote and what it heard. A claim that falls
//! short of that is [`Amnesia`]: the identity is never listened to again, and retires as soon as it hears so.
//!
//! What is remembered goes into the note of each batch of the log, and so costs no write of its own. It is detection, not
//! prevention: what only a lost replica heard, in the second before it was lost, nobody remembers.

mod drive;

use std::collections::BTreeMap;
use std::fmt;

use lockstep_types::codec::{Reader, Writer};
use lockstep_types::{DecodeError, Height, ReplicaId, View};
use thiserror::Error;

pub(crate) use drive::Witnessing;

/// The rank of a block: view, then height.
pub type Rank = (View, Height);

/// Bytes of one entry in a note.
const ENTRY_BYTES: usize = 16 + 8 + 8 + 2 * MARK_BYTES;
const MARK_BYTES: usize = 2 * 12 + 8;

/// Entries in a note at most: a full house of voters and one that joins, but for the replica itself.
pub(crate) const NOTED_MAX: usize = 8;

/// How far a replica came: what it wrote, and what it promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// The highest block: that it ever wrote, or that it acknowledged.
    pub rank: Rank,
    /// The newest view that it promised to enter by a Timeout.
    pub promised: View,
}

impl Mark {
    /// Both of the higher ones.
    pub fn max(self, other: Mark) -> Mark {
        Mark { rank: self.rank.max(other.rank), promised: self.promised.max(other.promised) }
    }

    /// Whether it reaches as far as `other` in both.
    pub fn covers(self, other: Mark) -> bool {
        self.rank >= other.rank && self.promised >= other.promised
    }
}

/// What a replica says of itself, once a start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Claim {
    /// Its starts so far, this one included.
    pub boot: u64,
    /// Random, of this start alone: two processes with the same count are told apart by it.
    pub start: u64,
    /// What its disk held.
    pub holds: Mark,
}

/// What is remembered of a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Remembered {
    /// Its newest start that was heard of.
    pub claim: Claim,
    /// What it acknowledged and promised, in this start or before.
    pub heard: Mark,
    /// It claimed less than was remembered: nothing that it says counts.
    pub forgot: bool,
}

impl Remembered {
    /// What is wrong with an identity of which this is known, if another remembers that.
    fn contradicts(&self, theirs: &Remembered) -> Option<Amnesia> {
        let Claim { boot, start, .. } = theirs.claim;
        if boot > self.claim.boot {
            Some(Amnesia::EarlierStart { theirs: self.claim.boot, seen: boot })
        } else if boot == self.claim.boot && start != self.claim.start {
            Some(Amnesia::Twin { boot })
        } else if theirs.forgot || !self.heard.covers(theirs.heard) {
            Some(Amnesia::Forgot { holds: self.heard, heard: theirs.heard })
        } else {
            None
        }
    }
}

/// Why an identity is not listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Amnesia {
    /// It started more often than it remembers.
    #[error("it says that it started {theirs} times, and it had started {seen} times before")]
    EarlierStart {
        /// What it says.
        theirs: u64,
        /// What is remembered.
        seen: u64,
    },
    /// Two processes say to be the same start.
    #[error("another process runs with the same identity and is in its {boot}. start as well")]
    Twin {
        /// Their count of starts.
        boot: u64,
    },
    /// Its disk holds less than it acknowledged or promised.
    #[error("its disk holds {holds}, and it had gone up to {heard}")]
    Forgot {
        /// What it says.
        holds: Mark,
        /// What is remembered.
        heard: Mark,
    },
}

/// What one replica remembers of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Witness {
    all: BTreeMap<ReplicaId, Remembered>,
}

impl Witness {
    /// Takes the claim of a replica that calls, or was called.
    ///
    /// # Errors
    /// It forgot something.
    pub fn meet(&mut self, replica: ReplicaId, claim: Claim) -> Result<(), Amnesia> {
        let known = self.all.entry(replica).or_insert(Remembered { claim, ..Remembered::default() });
        let before = known.claim;
        if claim.boot < before.boot {
            return Err(Amnesia::EarlierStart { theirs: claim.boot, seen: before.boot });
        }
        if claim.boot == before.boot && claim.start != before.start {
            return Err(Amnesia::Twin { boot: claim.boot });
        }
        if claim.boot > before.boot {
            known.forgot |= !claim.holds.covers(known.heard);
            known.claim = claim;
        }
        if known.forgot {
            return Err(Amnesia::Forgot { holds: known.claim.holds, heard: known.heard });
        }
        Ok(())
    }

    /// Takes in what a replica that was met acknowledged or promised.
    pub(crate) fn hear(&mut self, replica: ReplicaId, heard: Mark) {
        if let Some(known) = self.all.get_mut(&replica) {
            known.heard = known.heard.max(heard);
        }
    }

    /// Takes in what another one remembers of a replica.
    pub(crate) fn learn(&mut self, replica: ReplicaId, theirs: Remembered) {
        let Some(ours) = self.all.get_mut(&replica) else {
            self.all.insert(replica, theirs);
            return;
        };
        let (older, newer) = if theirs.claim.boot < ours.claim.boot { (theirs, *ours) } else { (*ours, theirs) };
        // Of the same start each heard a part.
        let forgot = older.claim.boot < newer.claim.boot && !newer.claim.holds.covers(older.heard);
        *ours = Remembered {
            claim: if older.claim.boot == newer.claim.boot { ours.claim } else { newer.claim },
            heard: older.heard.max(newer.heard),
            forgot: older.forgot || newer.forgot || forgot,
        };
    }

    /// Whether this identity was found to have forgotten something.
    pub fn forgot(&self, replica: ReplicaId) -> bool {
        self.all.get(&replica).is_some_and(|known| known.forgot)
    }

    /// What is remembered of a replica.
    pub fn of(&self, replica: ReplicaId) -> Option<Remembered> {
        self.all.get(&replica).copied()
    }

    /// All that is remembered.
    pub fn all(&self) -> Vec<(ReplicaId, Remembered)> {
        self.all.iter().map(|(replica, known)| (*replica, *known)).collect()
    }

    /// Forgets who no longer counts.
    pub(crate) fn retain(&mut self, counts: impl Fn(ReplicaId) -> bool) {
        self.all.retain(|replica, _| counts(*replica));
    }

    /// For the note of a batch, up to [`NOTED_MAX`] entries.
    pub(crate) fn encode(&self, out: &mut Writer) {
        let noted = self.all.iter().take(NOTED_MAX);
        out.u8(u8::try_from(noted.len()).expect("a few"));
        for (replica, Remembered { claim, heard, forgot }) in noted {
            // The highest bit of a count of starts is never reached.
            let boot = claim.boot | if *forgot { FORGOT } else { 0 };
            out.raw(replica.as_bytes()).u64(boot).u64(claim.start);
            put(out, claim.holds);
            put(out, *heard);
        }
    }

    pub(crate) fn decode(bits: &mut Reader) -> Result<Self, DecodeError> {
        let count = bits.u8("number remembered")?;
        let mut all = BTreeMap::new();
        for _ in 0..count {
            let replica = bits.replica("replica remembered")?;
            let (boot, start) = (bits.u64("starts remembered")?, bits.u64("start remembered")?);
            let claim = Claim { boot: boot & !FORGOT, start, holds: mark(bits)? };
            all.insert(replica, Remembered { claim, heard: mark(bits)?, forgot: boot & FORGOT != 0 });
        }
        Ok(Witness { all })
    }
}

const FORGOT: u64 = 1 << 63;

/// Bytes that [`Witness::encode`] takes at most.
pub(crate) const NOTE_BYTES_MAX: usize = 1 + NOTED_MAX * ENTRY_BYTES;

pub(crate) fn put(out: &mut Writer, Mark { rank: (view, height), promised }: Mark) {
    out.view(view).height(height).view(promised);
}

pub(crate) fn mark(bits: &mut Reader) -> Result<Mark, DecodeError> {
    let rank = (bits.view("view of a mark")?, bits.height("height of a mark")?);
    Ok(Mark { rank, promised: bits.view("promise of a mark")? })
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mark { rank: (view, height), promised } = self;
        write!(f, "block {height}@{view}, promise {promised}")
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::Slot;

    use super::*;

    const A: ReplicaId = ReplicaId::from_bytes([1; 16]);

    fn at(height: u64, promised: u64) -> Mark {
        let view = |round| View { round, leader: Slot::new(1) };
        Mark { rank: (view(1), Height::new(height)), promised: view(promised) }
    }

    fn claim(boot: u64, holds: Mark) -> Claim {
        Claim { boot, start: boot * 7, holds }
    }

    #[test]
    fn claim_that_holds_all_that_was_heard_is_taken() {
        let mut witness = Witness::default();
        assert_eq!(witness.meet(A, claim(1, Mark::default())), Ok(()));
        witness.hear(A, at(9, 2));
        // The same start calls again: it says what it held when it began.
        assert_eq!(witness.meet(A, claim(1, Mark::default())), Ok(()));
        assert_eq!(witness.meet(A, claim(2, at(9, 2))), Ok(()));
        assert_eq!(witness.meet(A, claim(5, at(12, 3))), Ok(()));
    }

    #[test]
    fn claim_that_falls_short_is_amnesia_for_good() {
        for holds in [at(8, 2), at(9, 1), Mark::default()] {
            let mut witness = Witness::default();
            witness.meet(A, claim(1, Mark::default())).expect("the first start");
            witness.hear(A, at(9, 2));
            let forgot = Amnesia::Forgot { holds, heard: at(9, 2) };
            assert_eq!(witness.meet(A, claim(2, holds)), Err(forgot));
            assert_eq!(witness.meet(A, claim(2, holds)), Err(forgot));
            assert!(witness.meet(A, claim(3, at(20, 5))).is_err(), "who forgot once never votes again");
        }
    }

    #[test]
    fn start_that_is_counted_twice_is_a_twin() {
        let mut witness = Witness::default();
        witness.meet(A, claim(4, at(3, 1))).expect("the first to say so");
        let twin = Claim { start: 1, ..claim(4, at(3, 1)) };
        assert_eq!(witness.meet(A, twin), Err(Amnesia::Twin { boot: 4 }));
        assert_eq!(witness.meet(A, claim(3, at(3, 1))), Err(Amnesia::EarlierStart { theirs: 3, seen: 4 }));
        assert_eq!(witness.meet(A, claim(4, at(3, 1))), Ok(()));
    }

    #[test]
    fn amnesia_shows_in_whatever_order_it_is_learnt() {
        let before = Remembered { claim: claim(1, Mark::default()), heard: at(9, 2), forgot: false };
        let after = Remembered { claim: claim(2, at(5, 2)), heard: at(6, 2), forgot: false };
        for order in [[before, after], [after, before]] {
            let mut witness = Witness::default();
            order.into_iter().for_each(|known| witness.learn(A, known));
            assert!(witness.forgot(A));
            assert!(witness.meet(A, claim(2, at(5, 2))).is_err());
        }
    }

    #[test]
    fn parts_of_one_start_are_added_up() {
        let mut witness = Witness::default();
        witness.meet(A, claim(3, at(2, 1))).expect("met");
        witness.hear(A, at(9, 1));
        witness.learn(A, Remembered { claim: claim(3, at(2, 1)), heard: at(5, 4), forgot: false });
        let known = witness.of(A).expect("met");
        assert_eq!((known.heard, known.forgot), (at(9, 4), false));
        witness.learn(A, Remembered { claim: claim(1, Mark::default()), heard: at(2, 1), forgot: false });
        assert_eq!(witness.of(A), Some(known), "it held what was heard before");
    }

    #[test]
    fn note_gives_back_what_was_put_in() {
        let mut witness = Witness::default();
        for number in 1..=NOTED_MAX as u8 {
            let replica = ReplicaId::from_bytes([number; 16]);
            let known = Remembered { claim: claim(2, at(5, 1)), heard: at(u64::from(number), 3), forgot: number == 2 };
            witness.learn(replica, known);
        }
        let mut out = Writer::default();
        witness.encode(&mut out);
        let bytes = out.finish();
        assert_eq!(bytes.len(), NOTE_BYTES_MAX);
        let mut bits = Reader::new(bytes.into());
        assert_eq!(Witness::decode(&mut bits), Ok(witness));
        assert_eq!(bits.finish("note"), Ok(()));
    }
}
