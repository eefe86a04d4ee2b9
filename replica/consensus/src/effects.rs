//! What one step takes in, and what it asks for. The host carries the effects out in the order of their fields.

use alloc::vec::Vec;
use core::fmt;

use bytes::Bytes;
use lockstep_types::{
    Block, BlockRef, Change, ChangeError, Configuration, Digest, Epoch, Height, LogTime, Slot, SnapshotRef, View,
};

use crate::message::{Envelope, Message};

/// Microseconds of the replica's own monotonic clock, since any fixed moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// This many microseconds after the fixed moment.
    pub const fn from_micros(micros: u64) -> Self {
        Moment(micros)
    }

    /// Microseconds since the fixed moment.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// This much later.
    pub const fn plus(self, micros: u64) -> Moment {
        Moment(self.0.saturating_add(micros))
    }

    /// Microseconds since `earlier`; 0 if it is later.
    pub const fn since(self, earlier: Moment) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Position of a record in the write-ahead log's queue: 1 for the first after a start. 0: durable since before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordSeq(u64);

impl RecordSeq {
    /// Durable since before this start.
    pub const ZERO: RecordSeq = RecordSeq(0);

    /// The record after this one.
    pub fn next(self) -> RecordSeq {
        RecordSeq(self.0 + 1)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for RecordSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Names a read in the host's books.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// What happens to a replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::large_enum_variant, reason = "most inputs are messages")]
pub enum Input {
    /// Time passed. The host calls at [`crate::Replica::deadline`] at the latest.
    Tick,
    /// A peer's message. Nothing about it is believed.
    Receive {
        /// The member that sent it, as the transport authenticated it.
        from: Slot,
        /// The sender's configuration.
        epoch: Epoch,
        /// What it says.
        message: Message,
    },
    /// Put these commands into the next block. Only while [`crate::Replica::can_propose`].
    Propose {
        /// Canonical body of the block (`lockstep_types::block::encode_body`).
        body: Bytes,
        /// The host's wall clock.
        wall: LogTime,
    },
    /// Change the membership: proposes an empty block that carries the change. `Effects::proposed` names it; it is in force
    /// above that block, and done with once [`crate::Replica::membership`] says that it is settled.
    Change(Change),
    /// All records up to this one are on the disk.
    Durable(RecordSeq),
    /// The host applied up to this height.
    Applied {
        /// At most the committed height.
        height: Height,
        /// The rolling execution digest there.
        digest: Digest,
    },
    /// A quorum agrees on this snapshot, and it is durable here: peers that lag below the log may have it.
    Offer(SnapshotRef),
    /// What [`Effects::install`] asked for is durable, and the host's state is that of the snapshot.
    Installed {
        /// The snapshot.
        snapshot: SnapshotRef,
        /// Log time of its block.
        log_time: LogTime,
        /// The configuration in force above its block.
        configuration: Configuration,
    },
    /// What [`Effects::install`] asked for cannot be had.
    InstallFailed,
    /// The state of the host is in doubt, on a quorum's word, or no longer (PROTOCOL §9). Log, acknowledgements and votes are not:
    /// they go on. A replica that is fenced leads nobody, decides no reads and offers no snapshot.
    Fence(bool),
    /// The log below this height is about to go: a durable snapshot holds the state there. At most the applied height, and
    /// what is durable.
    Forget(Height),
    /// A linearizable read arrived.
    Read(ReadId),
    /// Make another voter lead.
    HandOver {
        /// Whom; none: the one that is caught up best.
        target: Option<Slot>,
    },
}

/// What must be on the disk. Records go through one queue, first in, first out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    /// A block. It replaces whatever the log held at its height and above.
    Block(Block),
    /// The chain goes on from this block alone, for which a durable snapshot stands: a start that finds this and not that
    /// snapshot must not begin with what the log held before.
    Base(BlockRef),
    /// A promise about views. The newest of each kind counts.
    Promise(Promise),
}

/// What a replica may never forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Promise {
    /// No block is acknowledged in a view below this one.
    Timeout(View),
    /// This replica leads the view, and after a restart proposes in no view up to it (schedule S1).
    Lead(View),
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Promise::Timeout(view) => write!(f, "promise Timeout view={view}"),
            Promise::Lead(view) => write!(f, "promise Lead view={view}"),
        }
    }
}

/// What one step asks of its host, in the order in which it is carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[must_use]
pub struct Effects {
    /// Messages that promise nothing: sent at once.
    pub send: Vec<Envelope>,
    /// Records for the write-ahead log, in this order, with their numbers.
    pub persist: Vec<(RecordSeq, Record)>,
    /// Messages that promise what a record holds: sent only once that record is durable.
    pub send_after: Vec<(RecordSeq, Envelope)>,
    /// Blocks to read from the log and send to a peer that lags.
    pub serve: Vec<Serve>,
    /// A snapshot to fetch, and the peer that offers it: the log that follows cannot be had otherwise. One at a time; ends with
    /// [`Input::Installed`] or [`Input::InstallFailed`].
    pub install: Option<(Slot, SnapshotRef)>,
    /// The block that [`Input::Propose`] or [`Input::Change`] made.
    pub proposed: Option<BlockRef>,
    /// Everything up to this block is now committed: apply it in order.
    pub committed: Option<BlockRef>,
    /// Reads that were decided.
    pub reads: Vec<(ReadId, ReadOutcome)>,
    /// Why an input changed nothing, for the logs and the scripts.
    pub rejected: Option<Reject>,
}

/// Blocks that a peer asked for: heights `after + 1 ..= to` of the chain as it stands now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serve {
    /// The peer.
    pub to: Slot,
    /// The height below the first block.
    pub after: Height,
    /// The last height; the host may stop earlier, to bound a message.
    pub upto: Height,
    /// The commit pointer to send along.
    pub committed: BlockRef,
}

/// What became of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReadOutcome {
    /// Answer once this height is applied.
    At(Height),
    /// This replica does not lead, or no longer: ask the leader.
    NotLeader,
}

/// Why an input changed nothing. Never an error of ours: a late message, a peer's bug, or its lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reject {
    /// A message of a view that this replica left.
    StaleView {
        /// The message's view.
        theirs: View,
        /// The current view.
        ours: View,
    },
    /// A view so far ahead that no correct replica is in it.
    FarView {
        /// The current view.
        ours: View,
    },
    /// The sender speaks for a view that another slot leads.
    NotItsLeader {
        /// The view.
        view: View,
        /// The sender.
        from: Slot,
    },
    /// The sender was never a member as far as this replica knows, or the message names a slot that does not vote.
    UnknownSlot {
        /// The slot.
        slot: Slot,
    },
    /// The sender was removed, which is committed and settled: it never returns, and may be told so.
    Removed {
        /// The slot.
        slot: Slot,
    },
    /// A question to a voter, and this replica is none.
    NoVoter,
    /// A change of membership that cannot be, or not now.
    Change(ChangeRefusal),
    /// A block that belongs to another service or epoch, or does not fit its own view or height.
    BadBlock {
        /// The height it claims.
        height: Height,
    },
    /// A chain that would replace a committed block.
    BelowCommitted {
        /// The height it would replace.
        height: Height,
        /// What is committed.
        committed: Height,
    },
    /// An acknowledgement of a block that is not on this leader's chain.
    OtherChain {
        /// The height acknowledged.
        height: Height,
    },
    /// An answer that nobody waits for.
    Unexpected,
    /// A proposal, change or hand-over that this replica cannot carry out now: it does not lead, or is not ready to.
    NotNow,
}

/// Why a leader does not propose a change of membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeRefusal {
    /// It is so already, or can never be.
    Impossible(ChangeError),
    /// Another change is not committed yet.
    InFlight {
        /// The height of its block.
        height: Height,
    },
    /// The standby to promote was not heard recently, or has not acknowledged a block near the head.
    Lagging {
        /// The standby.
        slot: Slot,
    },
    /// Of the voters that would be left, too few were heard recently and are caught up.
    NoQuorumLeft {
        /// The voter to remove.
        slot: Slot,
        /// How many would be left and are fit.
        left: usize,
        /// How many would have to be.
        needed: usize,
    },
}

impl fmt::Display for ChangeRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChangeRefusal::Impossible(error) => error.fmt(f),
            ChangeRefusal::InFlight { height } => write!(f, "the change at {height} is not committed yet"),
            ChangeRefusal::Lagging { slot } => write!(f, "{slot} is not caught up"),
            ChangeRefusal::NoQuorumLeft { slot, left, needed } => {
                write!(f, "without {slot} only {left} caught-up voters would be left, and {needed} are needed")
            }
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reject::StaleView { theirs, ours } => write!(f, "stale view {theirs} < {ours}"),
            Reject::FarView { ours } => write!(f, "far ahead of view {ours}"),
            Reject::NotItsLeader { view, from } => write!(f, "{from} does not lead view {view}"),
            Reject::UnknownSlot { slot } => write!(f, "{slot} is unknown"),
            Reject::Removed { slot } => write!(f, "{slot} was removed"),
            Reject::NoVoter => f.write_str("no voter here"),
            Reject::Change(refusal) => refusal.fmt(f),
            Reject::BadBlock { height } => write!(f, "bad block at {height}"),
            Reject::BelowCommitted { height, committed } => write!(f, "block {height} below committed {committed}"),
            Reject::OtherChain { height } => write!(f, "height {height} of another chain"),
            Reject::Unexpected => f.write_str("unexpected answer"),
            Reject::NotNow => f.write_str("not now"),
        }
    }
}
