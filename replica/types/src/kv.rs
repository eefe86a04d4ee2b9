//! Requests and replies of the built-in key-value machine, as bytes.
//!
//! Each key has a *version*: how often it was written since it was created. A key that does not exist has version 0, and a
//! deleted key starts anew.

use bytes::Bytes;

use crate::codec::{DecodeError, Reader, Writer};

/// Bytes of one key at most; at least one.
pub const KEY_BYTES_MAX: usize = 4096;

/// Bytes of values in the replies of one block. A block of small requests could else ask for a reply of gigabytes, and every
/// replica would fail on it, again at each restart.
pub const BLOCK_REPLY_BYTES_MAX: usize = 8 << 20;

/// A request to the key-value machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KvRequest {
    /// Writes a key.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Reads a key. Changes nothing.
    Get {
        /// The key.
        key: Bytes,
    },
    /// Removes a key.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Writes a key if it is as expected.
    CompareAndSet {
        /// The key.
        key: Bytes,
        /// What must hold.
        expected: Expected,
        /// The value to write then.
        value: Bytes,
    },
}

/// What a compare-and-set compares with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// The key has this version; 0: it does not exist.
    Version(u64),
    /// The key exists with this value.
    Value(Bytes),
}

/// A key's value and version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// Writes since the key was created, from 1.
    pub version: u64,
}

/// A reply of the key-value machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KvReply {
    /// The key was written and now has this version.
    Written {
        /// From 1.
        version: u64,
    },
    /// The key is there.
    Found(Versioned),
    /// The key is not there.
    Missing,
    /// The key was removed.
    Deleted,
    /// Compare-and-set found something else and wrote nothing.
    Mismatch {
        /// What it found.
        current: Option<Versioned>,
    },
    /// A request that the machine does not understand. It changed nothing.
    Invalid,
    /// A value that would have been the reply is left out: replies of one block are bounded by
    /// [`BLOCK_REPLY_BYTES_MAX`]. Nothing was changed; ask again.
    Omitted,
}

impl KvRequest {
    /// Whether it changes nothing, and so may be answered as a read.
    pub fn is_read(&self) -> bool {
        match self {
            KvRequest::Get { .. } => true,
            KvRequest::Put { .. } | KvRequest::Delete { .. } | KvRequest::CompareAndSet { .. } => false,
        }
    }

    /// The key that it is about.
    pub fn key(&self) -> &Bytes {
        match self {
            KvRequest::Put { key, .. }
            | KvRequest::Get { key }
            | KvRequest::Delete { key }
            | KvRequest::CompareAndSet { key, .. } => key,
        }
    }

    /// Canonical bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        match self {
            KvRequest::Put { key, value } => out.u8(1).bytes(key).bytes(value),
            KvRequest::Get { key } => out.u8(2).bytes(key),
            KvRequest::Delete { key } => out.u8(3).bytes(key),
            KvRequest::CompareAndSet { key, expected, value } => {
                out.u8(4).bytes(key);
                match expected {
                    Expected::Version(version) => out.u8(1).u64(*version),
                    Expected::Value(value) => out.u8(2).bytes(value),
                };
                out.bytes(value)
            }
        };
        Bytes::from(out.finish())
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// An unknown tag, truncated or left-over bytes, a key that is empty or above [`KEY_BYTES_MAX`].
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let tag = reader.u8("key-value request")?;
        let key = reader.bytes("key")?;
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(DecodeError::OutOfRange { what: "key length" });
        }
        let request = match tag {
            1 => KvRequest::Put { key, value: reader.bytes("value")? },
            2 => KvRequest::Get { key },
            3 => KvRequest::Delete { key },
            4 => {
                let expected = match reader.u8("expectation")? {
                    1 => Expected::Version(reader.u64("expected version")?),
                    2 => Expected::Value(reader.bytes("expected value")?),
                    tag => return Err(DecodeError::UnknownTag { what: "expectation", tag }),
                };
                KvRequest::CompareAndSet { key, expected, value: reader.bytes("value")? }
            }
            tag => return Err(DecodeError::UnknownTag { what: "key-value request", tag }),
        };
        reader.finish("key-value request")?;
        Ok(request)
    }
}

impl KvReply {
    /// Canonical bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        match self {
            KvReply::Written { version } => out.u8(1).u64(*version),
            KvReply::Found(found) => out.u8(2).u64(found.version).bytes(&found.value),
            KvReply::Missing => out.u8(3),
            KvReply::Deleted => out.u8(4),
            KvReply::Mismatch { current: None } => out.u8(5),
            KvReply::Mismatch { current: Some(current) } => out.u8(6).u64(current.version).bytes(&current.value),
            KvReply::Invalid => out.u8(7),
            KvReply::Omitted => out.u8(8),
        };
        Bytes::from(out.finish())
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// An unknown tag, truncated or left-over bytes.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let reply = match reader.u8("key-value reply")? {
            1 => KvReply::Written { version: reader.u64("version")? },
            2 => KvReply::Found(read_versioned(&mut reader)?),
            3 => KvReply::Missing,
            4 => KvReply::Deleted,
            5 => KvReply::Mismatch { current: None },
            6 => KvReply::Mismatch { current: Some(read_versioned(&mut reader)?) },
            7 => KvReply::Invalid,
            8 => KvReply::Omitted,
            tag => return Err(DecodeError::UnknownTag { what: "key-value reply", tag }),
        };
        reader.finish("key-value reply")?;
        Ok(reply)
    }
}

fn read_versioned(reader: &mut Reader) -> Result<Versioned, DecodeError> {
    Ok(Versioned { version: reader.u64("version")?, value: reader.bytes("value")? })
}
