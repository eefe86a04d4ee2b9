//! What the key-value machine answers.

use alloc::vec::Vec;

use bytes::Bytes;

use super::{Versioned, read_bool};
use crate::codec::{DecodeError, Reader, Writer};

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
    /// Keys or values that would have been the reply are left out: replies of one block are bounded by
    /// [`BLOCK_REPLY_BYTES_MAX`](super::BLOCK_REPLY_BYTES_MAX). Nothing was changed; ask again.
    Omitted,
    /// Keys of a scan.
    Scanned(Page),
    /// What a transaction did.
    Transaction(TransactionReply),
    /// The transaction reads values of more than [`REPLY_ENTRIES_BYTES_MAX`](super::REPLY_ENTRIES_BYTES_MAX) bytes. Nothing
    /// was changed; read fewer keys at a time.
    TooLarge,
}

/// A part of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Page {
    /// In the order of the keys.
    pub entries: Vec<Entry>,
    /// The key that comes next in the range: where to go on. None: that was all.
    pub next: Option<Bytes>,
}

/// A key that a scan found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// Its value, empty if only keys were asked for, and its version.
    pub found: Versioned,
}

/// What a transaction did.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TransactionReply {
    /// All compares held, and the operations `then` were done; else `otherwise`.
    pub held: bool,
    /// One for each operation done, in order.
    pub replies: Vec<OperationReply>,
}

/// What one operation of a transaction did.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OperationReply {
    /// The key was written and has this version.
    Put {
        /// From 1.
        version: u64,
    },
    /// The key was read.
    Get {
        /// None: no such key.
        found: Option<Versioned>,
    },
    /// The key is gone.
    Delete {
        /// Whether it was there.
        deleted: bool,
    },
}

impl KvReply {
    /// Canonical bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        match self {
            KvReply::Written { version } => {
                out.u8(1).u64(*version);
            }
            KvReply::Found(found) => write_versioned(out.u8(2), found),
            KvReply::Missing => {
                out.u8(3);
            }
            KvReply::Deleted => {
                out.u8(4);
            }
            KvReply::Mismatch { current: None } => {
                out.u8(5);
            }
            KvReply::Mismatch { current: Some(current) } => write_versioned(out.u8(6), current),
            KvReply::Invalid => {
                out.u8(7);
            }
            KvReply::Omitted => {
                out.u8(8);
            }
            KvReply::Scanned(page) => {
                out.u8(9).u32(count(&page.entries));
                for Entry { key, found } in &page.entries {
                    write_versioned(out.bytes(key), found);
                }
                // No key is empty, so an empty one says that there is none.
                out.bytes(page.next.as_deref().unwrap_or_default());
            }
            KvReply::Transaction(transaction) => {
                out.u8(10).u8(transaction.held.into()).u32(count(&transaction.replies));
                for reply in &transaction.replies {
                    match reply {
                        OperationReply::Put { version } => {
                            out.u8(1).u64(*version);
                        }
                        OperationReply::Get { found: None } => {
                            out.u8(2);
                        }
                        OperationReply::Get { found: Some(found) } => write_versioned(out.u8(3), found),
                        OperationReply::Delete { deleted } => {
                            out.u8(4).u8((*deleted).into());
                        }
                    }
                }
            }
            KvReply::TooLarge => {
                out.u8(11);
            }
        }
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
            9 => {
                let entries = read_list(&mut reader, "entry count", |reader| {
                    Ok(Entry { key: reader.bytes("key")?, found: read_versioned(reader)? })
                })?;
                KvReply::Scanned(Page { entries, next: Some(reader.bytes("next key")?).filter(|key| !key.is_empty()) })
            }
            10 => {
                let held = read_bool(&mut reader, "whether compares held")?;
                let replies = read_list(&mut reader, "reply count", |reader| match reader.u8("operation reply")? {
                    1 => Ok(OperationReply::Put { version: reader.u64("version")? }),
                    2 => Ok(OperationReply::Get { found: None }),
                    3 => Ok(OperationReply::Get { found: Some(read_versioned(reader)?) }),
                    4 => Ok(OperationReply::Delete { deleted: read_bool(reader, "whether it was there")? }),
                    tag => Err(DecodeError::UnknownTag { what: "operation reply", tag }),
                })?;
                KvReply::Transaction(TransactionReply { held, replies })
            }
            11 => KvReply::TooLarge,
            tag => return Err(DecodeError::UnknownTag { what: "key-value reply", tag }),
        };
        reader.finish("key-value reply")?;
        Ok(reply)
    }
}

fn write_versioned(out: &mut Writer, found: &Versioned) {
    out.u64(found.version).bytes(&found.value);
}

fn read_versioned(reader: &mut Reader) -> Result<Versioned, DecodeError> {
    Ok(Versioned { version: reader.u64("version")?, value: reader.bytes("value")? })
}

fn count<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).expect("a reply is bounded far below that")
}

/// Reads a list of whatever length: it grows with what is there, never by what is claimed.
fn read_list<T>(
    reader: &mut Reader,
    what: &'static str,
    read: impl Fn(&mut Reader) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = reader.u32(what)?;
    let mut list = Vec::new();
    for _ in 0..count {
        list.push(read(reader)?);
    }
    Ok(list)
}
