//! Protocol buffers of package `lockstep.v1`: the generated code, its limits, and conversions to `lockstep-types`.
//!
//! Used by replicas, clients and the operator. The build needs no `protoc`. Not here: connections (crates `replica` and
//! `client`), the canonical bytes that are hashed or written to disk (crate `types`).
//!
//! | module | what it holds |
//! |---|---|
//! | [`v1`] | generated messages, clients and servers |
//! | [`limits`] | how large frames and queues may be |
//! | [`convert`] | [`lockstep_types::Command`] ↔ [`v1::Request`], [`lockstep_types::Outcome`] ↔ [`v1::Response`] and identities |
//! | `key_value` | requests and replies of the key-value machine ↔ the messages of [`v1::key_value_server::KeyValue`] |
//! | [`admin`] | the typed form of [`v1::StatusResponse`] |

pub mod admin;
pub mod convert;
mod key_value;
pub mod limits;

pub use admin::{
    Divergence, MemberStatus, Membership, ReplicaStatus, Role, SnapshotFetch, SnapshotsStatus, StateDoubt,
};
pub use convert::{Answer, Leader, Operation, Refusal, WireError};

/// The generated code. Field docs are the comments in `proto/lockstep/v1/`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("lockstep.v1");
}

/// The descriptors of package `lockstep.v1`, encoded, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lockstep.v1.descriptors"));
