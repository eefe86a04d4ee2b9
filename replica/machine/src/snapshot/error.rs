//! What can be wrong with a snapshot.

use lockstep_types::{DecodeError, ServiceId};
use thiserror::Error;

use crate::machine::MachineError;

/// A chunk that is not the next one of any snapshot of this service. The executor that was being restored is of no use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("chunk {chunk} of the snapshot is unusable: {fault}; fetch the snapshot again, from another replica")]
pub struct RestoreError {
    /// Which chunk, from 0; the number of chunks if one is missing at the end.
    pub chunk: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a chunk.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// Bytes that do not decode, or a format of a later release.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// More than [`CHUNK_BYTES_MAX`](super::CHUNK_BYTES_MAX).
    #[error("it has {bytes} bytes, and a chunk has at most {}", super::CHUNK_BYTES_MAX)]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The chunks come in another order: head, sessions, store.
    #[error("a chunk of kind {kind} cannot follow here")]
    Kind {
        /// The kind that was found.
        kind: u8,
    },
    /// Nothing in it.
    #[error("it holds nothing")]
    Empty,
    /// The chunk before ends too early or too late for this one.
    #[error("it begins or ends where no chunk of this state does")]
    Cut,
    /// Another service's state.
    #[error("it is of service {theirs}, and this is service {ours}")]
    Service {
        /// The service in the snapshot.
        theirs: ServiceId,
        /// The service in the genesis.
        ours: ServiceId,
    },
    /// The state of another machine.
    #[error("it is a state of machine {theirs:?}, and this service runs {ours:?}")]
    Machine {
        /// The machine in the snapshot.
        theirs: String,
        /// The machine in the genesis.
        ours: String,
    },
    /// The service's own machine is not in this release.
    #[error(transparent)]
    Unavailable(#[from] MachineError),
    /// Another replicated limit than the genesis'.
    #[error("its limit {what} is {theirs}, and this service has {ours}")]
    Limit {
        /// The limit's name in the genesis.
        what: &'static str,
        /// Its value in the snapshot.
        theirs: u64,
        /// Its value in the genesis.
        ours: u64,
    },
    /// A number or length that no state has.
    #[error("{what} is out of range")]
    OutOfRange {
        /// Which.
        what: &'static str,
    },
    /// Keys or sessions that do not ascend, which includes one that is there twice.
    #[error("{what} does not come after the one before")]
    Order {
        /// Which.
        what: &'static str,
    },
    /// Two sessions with one nonce.
    #[error("two sessions have the same nonce")]
    Nonce,
    /// More than the head says.
    #[error("there are more {what} than the {expected} that the head says")]
    More {
        /// Sessions or keys.
        what: &'static str,
        /// How many there should be.
        expected: u64,
    },
    /// Less than the head says.
    #[error("it is missing: {found} of {expected} {what} are there")]
    Missing {
        /// Heads, sessions or keys.
        what: &'static str,
        /// How many are there.
        found: u64,
        /// How many there should be.
        expected: u64,
    },
    /// An entry that the machine never wrote.
    #[error("the machine wrote no such entry: {reason}")]
    Entry {
        /// Why.
        reason: &'static str,
    },
}
