//! Requests and replies of the built-in key-value machine, as bytes.
//!
//! Each key has a *version*: how often it was written since it was created. A key that does not exist has version 0, and a
//! deleted key starts anew.
//!
//! Not here: what a request does (crate `machine`), its protocol buffers (crate `wire`).

mod reply;
mod request;

use bytes::Bytes;

pub use reply::{Entry, KvReply, OperationReply, Page, TransactionReply};
pub use request::{Compare, Expected, KvError, KvOperation, KvRequest, Scan, Transaction};

use crate::codec::{DecodeError, Reader};

/// Bytes of one key at most; at least one.
pub const KEY_BYTES_MAX: usize = 4096;

/// Bytes of keys and values in the replies of one block. A block of small requests could else ask for a reply of gigabytes,
/// and every replica would fail on it, again at each restart.
pub const BLOCK_REPLY_BYTES_MAX: usize = 8 << 20;

/// Bytes of keys and values in the reply of one scan or transaction. A scan gives at least one key, whatever its size.
pub const REPLY_ENTRIES_BYTES_MAX: usize = 1 << 20;

/// Keys in the reply of one scan at most.
pub const SCAN_ENTRIES_MAX: u32 = 10_000;

/// Compares in one transaction, and operations in each of its branches, at most.
pub const TRANSACTION_STEPS_MAX: usize = 128;

/// A key's value and version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// Writes since the key was created, from 1.
    pub version: u64,
}

fn read_key(reader: &mut Reader) -> Result<Bytes, DecodeError> {
    let key = reader.bytes("key")?;
    match key.len() {
        1..=KEY_BYTES_MAX => Ok(key),
        _ => Err(DecodeError::OutOfRange { what: "key length" }),
    }
}

fn read_bool(reader: &mut Reader, what: &'static str) -> Result<bool, DecodeError> {
    match reader.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        tag => Err(DecodeError::UnknownTag { what, tag }),
    }
}
