//! Divergence: replicas compare the digests of what they executed; one that a quorum differs from is fenced and its state
//! built anew. PROTOCOL §9, schedule S11.
//!
//! | module | what it does |
//! |---|---|
//! | `digests` | rolling digests at consecutive heights, and where two executions part |
//! | `verdict` | what the digests that replicas named say of the own state |
//! | `drive` | what an engine does about it, and when |
//! | [`fence`] | the fence on the disk |
//! | `writes` | what the last blocks wrote, to name the key that differs |
//!
//! *Comparing.* Replicas tell each other the digest after every block, many at a time; who has them all is told nothing.
//!
//! *Fencing.* With a quorum against its state a replica applies nothing, answers no reads, leads nobody and serves no snapshot.
//! Its log, acknowledgements and votes are not in doubt and go on.
//!
//! *Doubting.* Where somebody differs and no side has a quorum, both stop applying and replying.
//!
//! *Rebuilding.* Either way the state is built anew: from the newest snapshot below the block that a quorum agreed on, or from
//! the genesis, and executed up to that block. A flipped bit is gone then. An execution that differs again shows that the state
//! machine is not deterministic here, which no further attempt would change: the replica stays as it is and says so.

mod digests;
mod drive;
pub mod fence;
mod verdict;
mod writes;

use std::collections::BTreeMap;

use bytes::Bytes;
use lockstep_consensus::Moment;
use lockstep_types::{Digest, Height, Slot};

use digests::Digests;
use fence::Fence;
use verdict::Parting;
use writes::Writes;

/// Digests in one message at most, 32 KiB.
pub const DIGESTS_MAX: usize = 1024;

/// All that a replica knows of its state and that of others.
#[derive(Debug)]
pub(crate) struct Divergence {
    /// Microseconds between two messages to a peer that lacks digests.
    pace: u64,
    /// Counts up whenever the state is built anew, also over restarts.
    round: u64,
    own: Digests,
    peers: BTreeMap<Slot, Peer>,
    writes: Writes,
    halt: Option<Halt>,
    /// The last halt of this process that is over.
    last: Option<DivergenceStatus>,
    /// Something came that the verdict rests on.
    judge: bool,
    announce_at: Moment,
    /// The own height when digests were last sent.
    announced: Height,
    counters: DivergenceCounters,
}

/// What is known of a peer.
#[derive(Debug, Default)]
struct Peer {
    /// What it named counts for this round of its own.
    round: u64,
    digests: Digests,
    /// It has the own digests of this round up to here.
    has: (u64, Height),
    /// It does not know what is held of its digests.
    owed: bool,
}

/// A reason not to apply.
#[derive(Debug)]
struct Halt {
    parting: Parting,
    /// A quorum is against this state; else nobody has one.
    fenced: bool,
    stage: Stage,
    /// What the block wrote when it was executed first.
    wrote: Option<Bytes>,
    key: Option<Bytes>,
    /// When the witness is asked again what the block wrote there.
    ask_at: Moment,
    asked: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Others may still answer.
    Waiting { until: Moment },
    /// Snapshots of the state that is believed no more are on the disk, or on their way there.
    Clearing,
    /// A snapshot is read.
    Loading,
    /// No snapshot here will do: one is fetched from peers, or asked about again at this moment.
    Fetching { again_at: Moment },
    /// Blocks are executed, up to the one in question.
    Executing,
    /// It was executed again and is no better.
    Again,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DivergenceCounters {
    /// Times that somebody was found to differ and no quorum agreed with this replica.
    pub halts: u64,
    /// Times that a quorum was against the state of this replica.
    pub fences: u64,
    /// States built anew.
    pub rebuilds: u64,
}

/// What is wrong with the state of a replica, or was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DivergenceStatus {
    /// What it is now.
    pub state: StateDoubt,
    /// The first block that is known to have been executed differently.
    pub block: Height,
    /// It was equal right below: this very block was.
    pub exact: bool,
    /// The first key that this block wrote differently; none if it is not known, or only answers differ.
    pub key: Option<Bytes>,
    /// One who differs.
    pub witness: Slot,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StateDoubt {
    /// It is over: the state is that of a quorum.
    Over,
    /// Somebody differs, and no side has a quorum: nothing is applied or answered.
    Open,
    /// The same, and executing the block again changed nothing.
    OpenAgain,
    /// A quorum is against it: it is being built anew.
    Fenced,
    /// The same, and it differs again: the state machine is not deterministic on this replica.
    FencedAgain,
}

impl Divergence {
    pub fn new(boot: u64, pace: u64, applied: Height, digest: Digest) -> Self {
        Divergence {
            pace,
            round: boot << 20,
            own: Digests::from(applied, digest),
            peers: BTreeMap::new(),
            writes: Writes::default(),
            halt: None,
            last: None,
            judge: false,
            announce_at: Moment::default(),
            announced: Height::ZERO,
            counters: DivergenceCounters::default(),
        }
    }

    /// A block was applied.
    pub fn applied(&mut self, height: Height, digest: Digest, writes: &[u8]) {
        self.own.push(height, digest);
        self.writes.push(height, writes);
        self.judge = true;
    }

    /// The highest block that may be applied; none: whatever is committed. Nothing of it is answered while the state is in doubt.
    pub fn limit(&self) -> Option<Height> {
        match self.halt.as_ref()? {
            Halt { stage: Stage::Executing, parting, .. } => Some(parting.block),
            Halt { stage: Stage::Again, fenced: false, .. } => Some(self.next_comparable()),
            Halt {
                stage: Stage::Waiting { .. } | Stage::Clearing | Stage::Loading | Stage::Fetching { .. } | Stage::Again,
                ..
            } => Some(Height::ZERO),
        }
    }

    /// Others may have gone on for so long that they remember no digest as low as the own ones: the lowest that one of them
    /// has above. Zero if there is none.
    fn next_comparable(&self) -> Height {
        let firsts = self.peers.values().filter(|peer| !peer.digests.is_empty()).map(|peer| peer.digests.first());
        firsts.filter(|first| *first > self.own.last()).min().unwrap_or(Height::ZERO)
    }

    /// Nothing is answered from this state.
    pub fn is_halted(&self) -> bool {
        self.halt.is_some()
    }

    /// A quorum is against this state.
    pub fn is_fenced(&self) -> bool {
        self.halt.as_ref().is_some_and(|halt| halt.fenced)
    }

    /// Whether the own digests are there to be compared: not while the state is being built.
    fn speaks(&self) -> bool {
        match &self.halt {
            None => true,
            Some(Halt { fenced: false, stage: Stage::Waiting { .. } | Stage::Again, .. }) => true,
            Some(_) => false,
        }
    }

    /// When something is due.
    pub fn deadline(&self) -> Moment {
        let halt = self.halt.as_ref().and_then(|halt| match halt.stage {
            Stage::Waiting { until } => Some(until),
            Stage::Fetching { again_at } => Some(again_at),
            Stage::Clearing | Stage::Loading | Stage::Executing | Stage::Again => None,
        });
        halt.map_or(self.announce_at, |at| at.min(self.announce_at))
    }

    pub fn status(&self) -> Option<DivergenceStatus> {
        self.halt.as_ref().map(Halt::status).or_else(|| self.last.clone())
    }

    pub fn counters(&self) -> DivergenceCounters {
        self.counters
    }
}

impl Halt {
    fn new(parting: Parting, fenced: bool, stage: Stage, wrote: Option<Bytes>, now: Moment) -> Self {
        Halt { parting, fenced, stage, wrote, key: None, ask_at: now, asked: 0 }
    }

    fn fence(&self) -> Fence {
        Fence { block: self.parting.block, exact: self.parting.exact, digest: self.parting.digest }
    }

    fn status(&self) -> DivergenceStatus {
        let state = match (self.fenced, self.stage == Stage::Again) {
            (false, false) => StateDoubt::Open,
            (false, true) => StateDoubt::OpenAgain,
            (true, false) => StateDoubt::Fenced,
            (true, true) => StateDoubt::FencedAgain,
        };
        let Parting { block, exact, witness, digest: _ } = self.parting;
        DivergenceStatus { state, block, exact, key: self.key.clone(), witness }
    }
}

impl std::fmt::Display for DivergenceStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = if self.exact { "at" } else { "at or below" };
        match self.state {
            StateDoubt::Over => {
                write!(f, "its state differed from that of {} {at} block {}", self.witness, self.block)?
            }
            StateDoubt::Open | StateDoubt::OpenAgain => {
                write!(f, "its state and that of {} differ {at} block {}", self.witness, self.block)?;
            }
            StateDoubt::Fenced | StateDoubt::FencedAgain => {
                write!(f, "is fenced: its state differs from that of a quorum {at} block {}", self.block)?;
            }
        }
        if let Some(key) = &self.key {
            write!(f, ", key {:?}", String::from_utf8_lossy(key))?;
        }
        f.write_str(match self.state {
            StateDoubt::Over => "; it was built anew and is equal now",
            StateDoubt::Open => ", and no side is a quorum; the block is executed again",
            StateDoubt::OpenAgain => {
                ", and no side is a quorum; executed again it was no better: bring back the other voters, they decide"
            }
            StateDoubt::Fenced => "; the state is being built anew",
            StateDoubt::FencedAgain => {
                "; executed again it differs again: the state machine is not deterministic on this replica; \
                 correct what makes it differ and restart the replica, or replace it"
            }
        })
    }
}
