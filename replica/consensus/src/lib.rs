//! Agreement and order: one chain of blocks, one leader a view, a majority of durable acknowledgements commits.
//!
//! This crate decides and touches nothing. [`Replica::step`] takes an [`Input`] and the time, changes the replica's state
//! and says in [`Effects`] what the host must do, in the order in which it must be done. No IO, no clock, no randomness, no
//! allocation that a peer could inflate; a peer's message is believed or refused, never a panic. State is
//! `Clone + Eq + Hash`, so that a simulator and a model checker can hold it.
//!
//! # The rules, and where they stand
//!
//! | part | module | PROTOCOL | Viewstamped Replication Revisited | Raft's word |
//! |---|---|---|---|---|
//! | the leader proposes, counts acknowledgements, commits | [`leading`] | §2 | §4.1 | AppendEntries, matchIndex, §5.4.2 |
//! | a backup appends what chains from its head | [`following`] | §2 | §4.1 | AppendEntries |
//! | leaving a view, the certificate, taking the lead | [`leaving`] | §1, §3 | §4.2 | PreVote, RequestVote |
//! | catching up by hash from any peer | [`catching_up`] | §4 | §5.2 | log repair |
//! | reads without a write | [`reading`] | §6 | §6.3 | ReadIndex |
//! | who is counted, who is told, how that changes | [`membership`] | §5 | §7 | single-server change, learner |
//!
//! # One view in eight lines
//!
//! 1. A replica that hears no leader asks the others (`PreCheck`); a quorum that hears none either says yes.
//! 2. It chooses the view to enter, by asking the best head of that quorum to lead, persists `Timeout(view)` and sends it.
//! 3. Those who hear no leader join. A quorum of Timeouts for one view is its certificate.
//! 4. The leader of that view fetches the highest chain in the certificate, if it lacks it, and persists `Lead(view)`.
//! 5. It proposes an empty block, the no-op, and nothing else until a quorum acknowledged that one.
//! 6. It then streams blocks, each on top of its own head, up to a window; followers append, persist, acknowledge.
//! 7. An acknowledgement is cumulative. What a quorum acknowledged is committed, and so is everything below it.
//! 8. Heartbeats carry head and commit pointer; whoever lacks the head fetches it from any peer.
//!
//! Who counts is said by the chain itself: a block may carry one change of membership, in force above it.
//!
//! # What is absent
//!
//! Faulty blocks and signatures. The fields of the first are in the messages already.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod catching_up;
mod chain;
mod display;
mod effects;
mod following;
mod leading;
mod leaving;
mod membership;
mod message;
mod reading;
mod replica;

pub use chain::Chain;
pub use effects::{
    ChangeRefusal, Effects, Input, Moment, Promise, ReadId, ReadOutcome, Record, RecordSeq, Reject, Serve,
};
pub use membership::{Membership, Standing};
pub use message::{Envelope, FetchRefusal, Message};
pub use replica::{Options, Recovered, Replica, RoleName};
