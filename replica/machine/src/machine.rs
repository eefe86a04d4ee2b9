//! What a state machine is, and how one is found by name.

use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_types::{Digest, Height, LogTime, View};
use thiserror::Error;

use crate::faults::KeyValueWithFaults;
use crate::key_value::KeyValue;
use crate::store::Store;

/// The code of a replicated state machine. Its state lives in the [`Store`], so it has none of its own: every method takes
/// `&self`, and a machine that hides state behind it diverges.
///
/// What it answers and writes may depend on the context, the requests and the store, and on nothing else.
pub trait StateMachine: Debug + Send + Sync {
    /// Executes the requests of one block in order; one reply each. Requests that it does not understand get a reply, too.
    fn apply(&self, context: &Context, requests: &[Bytes], store: &mut Store) -> Vec<Bytes>;

    /// Whether an entry can be one that this machine wrote. A snapshot with another is refused, so that `apply` and `query`
    /// may rely on it.
    ///
    /// # Errors
    /// What is wrong with it, in a few words.
    fn check(&self, key: &[u8], value: &[u8]) -> Result<(), &'static str>;

    /// Answers a read. A request that would write gets the machine's own refusal.
    fn query(&self, request: &Bytes, store: &Store) -> Bytes;
}

/// All that a machine learns about the block that it executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Height of the block.
    pub height: Height,
    /// View in which it was proposed.
    pub view: View,
    /// The only clock.
    pub log_time: LogTime,
    /// The only randomness: differs from block to block, the same on every replica. Not secret, and the leader can bias it.
    pub seed: Digest,
}

/// A machine that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MachineError {
    /// No release, or a later one, has this machine.
    #[error("unknown state machine {name:?}; this release has KeyValue")]
    Unknown {
        /// The name given.
        name: String,
    },
}

/// The built-in machine of this name.
///
/// # Errors
/// A name that is not in [`Genesis::MACHINES`](lockstep_types::Genesis::MACHINES).
pub fn by_name(name: &str) -> Result<Arc<dyn StateMachine>, MachineError> {
    match name {
        KeyValue::NAME => Ok(Arc::new(KeyValue)),
        KeyValueWithFaults::NAME => Ok(Arc::new(KeyValueWithFaults::default())),
        name => Err(MachineError::Unknown { name: name.into() }),
    }
}
