//! What replicas say to each other. Every message prints on one line.

use alloc::vec::Vec;
use core::fmt;

use lockstep_types::{Block, BlockRef, Digest, Epoch, Height, Slot, SnapshotRef, View};

/// A message with its receiver. The sender is whoever steps; transports authenticate it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// The receiver.
    pub to: Slot,
    /// The sender's configuration.
    pub epoch: Epoch,
    /// What is said.
    pub message: Message,
}

/// From, to, and in which part of the protocol:
///
/// | message | from → to | part |
/// |---|---|---|
/// | `Propose`, `Heartbeat` | leader → all members | normal case |
/// | `Ack`, `HeartbeatReply` | follower → leader | normal case, reads |
/// | `PreCheck`, `PreCheckReply` | one who suspects ↔ all voters | leaving a view |
/// | `HandOver` | leader → all voters | leaving a view |
/// | `Timeout` | one who left → all voters | leaving a view |
/// | `Fetch`, `Fetched` | one who lags ↔ anyone | catch-up |
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// A block of the leader of `view`, which extends the leader's chain.
    Propose {
        /// The leader's view, and the block's.
        view: View,
        /// The block.
        block: Block,
        /// The leader's commit pointer.
        committed: BlockRef,
    },
    /// The leader lives; and what it has.
    Heartbeat {
        /// The leader's view.
        view: View,
        /// Counts up within the view; confirms reads that arrived before it began (PROTOCOL §6).
        round: u64,
        /// The leader's head.
        head: BlockRef,
        /// The leader's commit pointer.
        committed: BlockRef,
        /// The highest height that the receiver acknowledged in this view, as the leader knows it.
        acknowledged: Height,
    },
    /// The sender is in `view` and has left it for no other. Promises nothing about its disk.
    HeartbeatReply {
        /// The leader's view.
        view: View,
        /// The round answered.
        round: u64,
    },
    /// Every block up to this one is durable here. Cumulative.
    Ack {
        /// The view in which this is said.
        view: View,
        /// The last block covered.
        height: Height,
        /// Its hash: counted only if it stands on the leader's own chain.
        hash: Digest,
        /// The height that the sender has applied.
        applied: Height,
        /// The rolling execution digest there.
        digest: Digest,
    },
    /// Would you leave your view for this one? Changes nothing.
    PreCheck {
        /// A view above the sender's.
        view: View,
    },
    /// The answer, and what a partitioned replica can learn from it.
    PreCheckReply {
        /// The view that was asked about.
        view: View,
        /// The replier has no leader that it hears.
        would_leave: bool,
        /// The replier's current view.
        current: View,
        /// The replier's head: the best one is asked to lead.
        head: BlockRef,
        /// The replier's commit pointer: a chain to catch up with when the leader cannot be heard.
        committed: BlockRef,
    },
    /// The leader of `view` asks all to leave it for `next`. Promises nothing, so a hung disk can say it too.
    HandOver {
        /// The sender's view.
        view: View,
        /// The view to enter; its leader is the target.
        next: View,
    },
    /// The sender left every view below `view` and acknowledges nothing in them any more. Durable before it is sent.
    Timeout {
        /// The view to enter.
        view: View,
        /// The sender's rank: the last block that it queued for its disk before this promise (schedule S2).
        rank: BlockRef,
        /// Heights below the rank that the sender cannot read.
        faults: Vec<Height>,
    },
    /// Send what follows.
    Fetch {
        /// The last height that the asker holds.
        after: Height,
        /// Its hash there.
        anchor: Digest,
        /// The block to reach.
        tip: BlockRef,
    },
    /// Blocks that follow the anchor on the chain of `tip`, or that are committed.
    Fetched {
        /// The anchor's height, as asked.
        after: Height,
        /// Consecutive blocks from `after + 1`, or why there are none.
        blocks: Result<Vec<Block>, FetchRefusal>,
        /// The sender's commit pointer.
        committed: BlockRef,
    },
}

impl Message {
    /// The highest round of a view that this message would make its receiver remember.
    pub(crate) fn names_round(&self) -> Option<u64> {
        match self {
            Message::Propose { view, .. } | Message::Heartbeat { view, .. } | Message::PreCheck { view } => {
                Some(view.round)
            }
            Message::Timeout { view, rank, .. } => Some(view.round.max(rank.view.round)),
            Message::PreCheckReply { view, current, .. } => Some(view.round.max(current.round)),
            Message::HandOver { view, next } => Some(view.round.max(next.round)),
            Message::HeartbeatReply { .. } | Message::Ack { .. } | Message::Fetch { .. } | Message::Fetched { .. } => {
                None
            }
        }
    }
}

/// Why a [`Message::Fetch`] brought nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FetchRefusal {
    /// The anchor does not stand on the sender's chain.
    Diverged,
    /// The sender has nothing above the anchor that it may serve.
    Nothing,
    /// The sender's log begins above the anchor. What it offers instead holds the state there, and the log goes on from it.
    Forgotten {
        /// A snapshot that a quorum agrees on.
        snapshot: SnapshotRef,
    },
}

impl fmt::Display for FetchRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FetchRefusal::Diverged => f.write_str("diverged"),
            FetchRefusal::Nothing => f.write_str("nothing"),
            FetchRefusal::Forgotten { snapshot } => write!(f, "forgotten, {snapshot}"),
        }
    }
}

impl fmt::Display for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "→{} {}", self.to, self.message)
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Message::Propose { view, block, committed } => {
                write!(f, "Propose view={view} block={block} committed={}", committed.height)
            }
            Message::Heartbeat { view, round, head, committed, acknowledged } => {
                write!(
                    f,
                    "Heartbeat view={view} round={round} head={head} committed={} acked={acknowledged}",
                    committed.height
                )
            }
            Message::HeartbeatReply { view, round } => write!(f, "HeartbeatReply view={view} round={round}"),
            Message::Ack { view, height, hash: _, applied, digest: _ } => {
                write!(f, "Ack view={view} height={height} applied={applied}")
            }
            Message::PreCheck { view } => write!(f, "PreCheck view={view}"),
            Message::PreCheckReply { view, would_leave, current, head, committed } => write!(
                f,
                "PreCheckReply view={view} {} current={current} head={head} committed={}",
                if *would_leave { "yes" } else { "no" },
                committed.height
            ),
            Message::HandOver { view, next } => write!(f, "HandOver view={view} next={next}"),
            Message::Timeout { view, rank, faults } => {
                write!(f, "Timeout view={view} rank={rank}")?;
                if faults.is_empty() { Ok(()) } else { write!(f, " faults={}", faults.len()) }
            }
            Message::Fetch { after, anchor: _, tip } => write!(f, "Fetch after={after} tip={tip}"),
            Message::Fetched { after, blocks: Ok(blocks), committed } => {
                write!(f, "Fetched after={after} blocks={} committed={}", blocks.len(), committed.height)
            }
            Message::Fetched { after, blocks: Err(refusal), committed } => {
                write!(f, "Fetched after={after} {refusal} committed={}", committed.height)
            }
        }
    }
}
