//! The nouns that every Lockstep crate speaks: heights, views, identities, blocks, configurations and logged commands.
//!
//! Newtypes below everything. `no_std`, no IO, no clock, no randomness. Not here: the rules (crate `consensus`), the
//! bytes on disk (crate `wal`), protocol buffers (crate `wire`).
//!
//! | module | what it holds |
//! |---|---|
//! | [`ids`] | [`Height`], [`View`], [`Slot`], [`Epoch`], [`ServiceId`], [`ReplicaId`], [`Digest`], [`LogTime`] |
//! | [`codec`] | the little-endian encoding under all canonical bytes |
//! | [`block`] | [`BlockHeader`], [`Block`] and their canonical bytes, whose BLAKE3 digest is the block's hash |
//! | [`config`] | [`FaultModel`], [`Genesis`]: how a service is born |
//! | [`membership`] | [`Configuration`], [`Change`]: who counts, how many are enough, and how that changes |
//! | [`command`] | [`Command`], what a client asks of the log, and [`Outcome`], what it is told |
//! | [`snapshot`] | [`SnapshotRef`], the name of a snapshot |
//! | [`kv`] | requests and replies of the built-in key-value machine |
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod block;
pub mod codec;
pub mod command;
pub mod config;
pub mod ids;
pub mod kv;
pub mod limits;
pub mod membership;
pub mod snapshot;

pub use block::{Block, BlockHeader, BlockRef};
pub use codec::DecodeError;
pub use command::{Command, Invalid, Outcome, SessionId};
pub use config::{FaultModel, Genesis};
pub use ids::{Digest, Epoch, Height, LogTime, ReplicaId, ServiceId, Slot, View};
pub use membership::{Change, ChangeError, Configuration};
pub use snapshot::SnapshotRef;
