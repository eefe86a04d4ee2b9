//! What replicas say to each other: the rules' messages, and what carries clients' requests to the leader.

use std::fmt;

use bytes::Bytes;
use lockstep_consensus::Message;
use lockstep_types::{Digest, Height, Outcome, ReplicaId, SnapshotRef};

use crate::witness::Remembered;

/// A message between two replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "most are messages of the rules")]
pub enum PeerMessage {
    /// A message of the rules.
    Consensus(Message),
    /// A client's command, for the leader to propose.
    Forward {
        /// Chosen by the sender; the same for a repeated attempt.
        id: u64,
        /// Canonical bytes.
        command: Bytes,
    },
    /// The answer to a [`PeerMessage::Forward`].
    ForwardReply {
        /// As forwarded.
        id: u64,
        /// What became of it.
        result: ForwardResult,
    },
    /// From which height on may reads that arrived before this be answered?
    ReadIndex {
        /// Chosen by the sender.
        id: u64,
    },
    /// The answer to a [`PeerMessage::ReadIndex`].
    ReadIndexReply {
        /// As asked.
        id: u64,
        /// None: the receiver does not lead.
        height: Option<Height>,
    },
    /// What the sender remembers of replicas, the receiver among them.
    Remembered(Vec<(ReplicaId, Remembered)>),
    /// The snapshots on the sender's disk.
    Snapshots {
        /// Oldest first, a few.
        kept: Vec<SnapshotRef>,
        /// The sender wants to know the receiver's.
        asks: bool,
    },
    /// Send this part of a snapshot.
    FetchChunk {
        /// Digest of the manifest or chunk.
        digest: Digest,
    },
    /// The answer to a [`PeerMessage::FetchChunk`].
    Chunk {
        /// As asked.
        digest: Digest,
        /// None: the sender does not have it.
        bytes: Option<Bytes>,
    },
    /// The sender's rolling execution digests at consecutive heights.
    Digests {
        /// Counts up whenever the sender's state is built anew: what it said in an earlier round counts no more.
        round: u64,
        /// The height of the first one.
        first: Height,
        /// At most [`DIGESTS_MAX`](crate::divergence::DIGESTS_MAX).
        digests: Vec<Digest>,
        /// The sender has those of the receiver up to this height, in this round of the receiver's.
        have: (u64, Height),
    },
    /// What did this block write?
    FetchWrites {
        /// The block.
        height: Height,
    },
    /// The answer to a [`PeerMessage::FetchWrites`].
    Writes {
        /// As asked.
        height: Height,
        /// The first of its writes, in canonical bytes. None: the sender does not remember.
        writes: Option<Bytes>,
    },
}

/// What became of a forwarded command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardResult {
    /// It was committed and applied.
    Outcome(Outcome),
    /// The receiver does not lead; it proposed nothing for this attempt.
    NotLeader,
    /// The receiver's queues are full; it proposed nothing for this attempt.
    Overloaded,
}

impl fmt::Display for PeerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerMessage::Consensus(message) => message.fmt(f),
            PeerMessage::Forward { id, command } => write!(f, "Forward id={id} {}B", command.len()),
            PeerMessage::ForwardReply { id, result: ForwardResult::Outcome(outcome) } => {
                write!(f, "ForwardReply id={id} {outcome}")
            }
            PeerMessage::ForwardReply { id, result } => write!(f, "ForwardReply id={id} {result:?}"),
            PeerMessage::ReadIndex { id } => write!(f, "ReadIndex id={id}"),
            PeerMessage::ReadIndexReply { id, height: Some(height) } => {
                write!(f, "ReadIndexReply id={id} height={height}")
            }
            PeerMessage::ReadIndexReply { id, height: None } => write!(f, "ReadIndexReply id={id} not leader"),
            PeerMessage::Remembered(all) => {
                write!(f, "Remembered")?;
                all.iter().try_for_each(|(replica, known)| write!(f, " {replica} {}", known.heard))
            }
            PeerMessage::Snapshots { kept, asks } => {
                write!(f, "Snapshots")?;
                kept.iter().try_for_each(|snapshot| write!(f, " {}", snapshot.block))?;
                f.write_str(if *asks { " asks" } else { "" })
            }
            PeerMessage::FetchChunk { digest } => write!(f, "FetchChunk {digest}"),
            PeerMessage::Chunk { digest, bytes: Some(bytes) } => write!(f, "Chunk {digest} {}B", bytes.len()),
            PeerMessage::Chunk { digest, bytes: None } => write!(f, "Chunk {digest} missing"),
            PeerMessage::Digests { round, first, digests, have: (of, upto) } => {
                write!(f, "Digests round={round} {first}+{} has {upto} of round {of}", digests.len())
            }
            PeerMessage::FetchWrites { height } => write!(f, "FetchWrites {height}"),
            PeerMessage::Writes { height, writes: Some(writes) } => write!(f, "Writes {height} {}B", writes.len()),
            PeerMessage::Writes { height, writes: None } => write!(f, "Writes {height} forgotten"),
        }
    }
}
