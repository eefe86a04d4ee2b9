//! Client library of Lockstep services.
//!
//! [`Client`] sends requests exactly once through any replica: one session, one stream, many calls at a time, fail-over and
//! retry inside, an honest outcome outside. [`AdminClient`] speaks to one replica. Not here: the rules of retry (crate
//! `session`), the bytes on the wire (crate `wire`).
//!
//! ```no_run
//! # async fn example() -> Result<(), lockstep_client::ClientError> {
//! use lockstep_client::{Client, ClientOptions};
//!
//! let client = Client::connect(ClientOptions::new(["config.default.svc:7400"]))?;
//! let version = client.kv().put("colour", "blue").await?;
//! # Ok(())
//! # }
//! ```

mod admin;
mod client;
mod connection;
mod driver;
mod endpoint;
mod error;
mod kv;
mod pool;

pub use admin::{ADMIN_TIMEOUT, AdminClient, HAND_OVER_TIMEOUT, Health, Located, TAKE_SNAPSHOT_TIMEOUT, health};
pub use client::{Client, ClientOptions, Resolution, TIMEOUT};
pub use error::{AdminError, ClientError};
pub use kv::{CasOutcome, Kv};
pub use lockstep_session::Ticket;
pub use lockstep_types::kv::{
    Compare, Entry, Expected, KvOperation, OperationReply, Page, SCAN_ENTRIES_MAX, Scan, Transaction, TransactionReply,
    Versioned,
};
pub use lockstep_wire::{
    Divergence, Leader, MemberStatus, Membership, ReplicaStatus, Role, SnapshotFetch, SnapshotsStatus, StateDoubt,
};
pub use tonic::Code;
