//! What a committed block does: deterministic state machines, the store that the host keeps for them, the client sessions
//! that make a request count once, and the digest that shows when two replicas disagree. PROTOCOL §7, §9.
//!
//! The engine holds one [`Executor`] and gives it every committed block, in order, once. A block goes through it in four steps:
//!
//! 1. *Filter.* One pass over the commands, in order. The session table answers what it can: a retry, a session opened or
//!    closed, a refusal. It sees its own earlier hits, so a duplicate inside one block is found as well (schedule S12d).
//! 2. *Execute.* The [`StateMachine`] gets all requests that remain as one batch. It sees a [`Context`], the requests and the
//!    [`Store`]: no clock, no randomness, no session.
//! 3. *Record and evict.* Replies go into the table; then, and only then, the replicated rule ends sessions. That holds
//!    from the next block on.
//! 4. *Digest.* Previous digest, block hash, ordered write set, outcomes and evictions are hashed into the next digest.
//!
//! Blocks are counted in bytes as well, so that all replicas take their snapshots at the same heights: see
//! [`Applied::snapshot_point`].
//!
//! | module | what it holds |
//! |---|---|
//! | [`executor`] | [`Executor`], [`Applied`], [`Stats`] |
//! | [`machine`] | [`StateMachine`], [`Context`], and how a machine is found by name |
//! | [`key_value`] | [`KeyValue`], the built-in machine |
//! | [`faults`] | [`KeyValueWithFaults`], the same with faults on request, for exercises and tests |
//! | [`store`] | [`Store`], the ordered map below every machine, and the write set of a block |
//! | [`snapshot`] | [`Frozen`], [`Chunks`], [`Restoring`]: all of this state as chunks of canonical bytes, and back |
//! | `sessions` | the session table: who may execute what, cached replies, eviction |
//!
//! Invariants:
//!
//! - Same genesis, same blocks: same outcomes, same digest, same chunks of a snapshot, on every replica, after every restart
//!   and after every restore. Nothing here reads a clock, draws a number or walks a map without order.
//! - Committed bytes never panic. A command that does not decode is [`Invalid::Malformed`](lockstep_types::Invalid), a body
//!   that does not decode is the machine's own reply. Panics are our bugs: a block out of order, a machine that loses a reply or
//!   exceeds a limit.
//! - (session, sequence) executes at most once, and its answer never changes while the table knows it.
//! - Freezing is O(1) and stalls nothing: store and sessions are persistent maps, and what is frozen never changes.
//! - Bytes of a snapshot never panic, whoever sent them: they are refused in words, or they are a state.
//! - Nothing kept here shares memory with a block: a small value must not hold two megabytes.
//!
//! Not here: the files and transfer of snapshots and who agrees on them, when to reply (the engine); the order of blocks
//! (crate `consensus`); what follows from a digest that differs (PROTOCOL §9).

pub mod executor;
pub mod faults;
pub mod key_value;
pub mod machine;
#[cfg(test)]
mod model;
mod sessions;
pub mod snapshot;
pub mod store;
#[cfg(test)]
mod testing;

pub use executor::{Applied, Executor, Stats};
pub use faults::KeyValueWithFaults;
pub use key_value::KeyValue;
pub use machine::{Context, MachineError, StateMachine, by_name};
pub use snapshot::{CHUNK_BYTES_MAX, Chunks, Frozen, RestoreError, Restoring};
pub use store::{Change, Store, first_difference};
