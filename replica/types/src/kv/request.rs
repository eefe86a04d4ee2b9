//! What the key-value machine can be asked. Not here: what it answers.

use alloc::vec::Vec;

use bytes::Bytes;
use thiserror::Error;

use super::{KEY_BYTES_MAX, SCAN_ENTRIES_MAX, TRANSACTION_STEPS_MAX, read_bool, read_key};
use crate::codec::{DecodeError, Reader, Writer};
use crate::limits::REQUEST_BYTES_MAX;

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
    /// Reads keys in their order. Changes nothing.
    Scan(Scan),
    /// Compares, then does one thing or the other; all of it or nothing.
    Transaction(Transaction),
}

/// What a compare compares with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// The key has this version; 0: it does not exist.
    Version(u64),
    /// The key exists with this value.
    Value(Bytes),
    /// The key exists, whatever its value.
    Exists,
}

/// The keys from `start` to `end`, in the order of their bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scan {
    /// The first key, if it exists. Empty: from the first of all. At most [`KEY_BYTES_MAX`] bytes.
    pub start: Bytes,
    /// The first key that is not wanted any more. Empty: up to the last. At most [`KEY_BYTES_MAX`] bytes.
    pub end: Bytes,
    /// Keys in the reply at most; 1 to [`SCAN_ENTRIES_MAX`].
    pub limit: u32,
    /// Leaves the values out: the reply holds empty ones.
    pub keys_only: bool,
}

/// If all of `compares` hold, the operations `then`, else the operations `otherwise`, in order, each seeing those before it.
/// One key may come in several of them. At most [`TRANSACTION_STEPS_MAX`] of each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Transaction {
    /// What must hold. None: it holds.
    pub compares: Vec<Compare>,
    /// Done if it holds.
    pub then: Vec<KvOperation>,
    /// Done if it does not.
    pub otherwise: Vec<KvOperation>,
}

/// One condition of a [`Transaction`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Compare {
    /// The key.
    pub key: Bytes,
    /// What must hold of it.
    pub expected: Expected,
}

/// One step of a [`Transaction`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KvOperation {
    /// Writes a key.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Reads a key.
    Get {
        /// The key.
        key: Bytes,
    },
    /// Removes a key.
    Delete {
        /// The key.
        key: Bytes,
    },
}

/// A request that no machine would take.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KvError {
    /// No key, or one that is too long.
    #[error("a key has 1 to {KEY_BYTES_MAX} bytes, not {bytes}")]
    Key {
        /// Its length.
        bytes: usize,
    },
    /// The start or end of a scan is longer than any key.
    #[error("the {bound} of a scan has at most {KEY_BYTES_MAX} bytes, not {bytes}")]
    Bound {
        /// Which one.
        bound: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// A scan of no key, or of too many.
    #[error("a scan gives 1 to {SCAN_ENTRIES_MAX} keys at a time, not {limit}")]
    Limit {
        /// The limit asked for.
        limit: u32,
    },
    /// A transaction of too many steps.
    #[error("a transaction has at most {TRANSACTION_STEPS_MAX} {steps}, not {count}; make it several")]
    Steps {
        /// Compares, or the operations of which branch.
        steps: &'static str,
        /// How many there are.
        count: usize,
    },
    /// More bytes than the log takes in one request.
    #[error("the request has {bytes} bytes; at most {REQUEST_BYTES_MAX} are taken")]
    TooLarge {
        /// Its canonical length.
        bytes: usize,
    },
}

impl Compare {
    /// The key has this version; 0: it does not exist.
    pub fn version(key: impl Into<Bytes>, version: u64) -> Self {
        Compare { key: key.into(), expected: Expected::Version(version) }
    }

    /// The key exists with this value.
    pub fn value(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Compare { key: key.into(), expected: Expected::Value(value.into()) }
    }

    /// The key exists, whatever its value.
    pub fn exists(key: impl Into<Bytes>) -> Self {
        Compare { key: key.into(), expected: Expected::Exists }
    }

    /// There is no such key.
    pub fn missing(key: impl Into<Bytes>) -> Self {
        Compare::version(key, 0)
    }
}

impl Scan {
    /// The first keys of all, as many as a reply takes.
    pub fn all() -> Self {
        Scan { start: Bytes::new(), end: Bytes::new(), limit: SCAN_ENTRIES_MAX, keys_only: false }
    }

    /// The first keys that begin with `prefix`, as many as a reply takes.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        Scan::all().within(prefix)
    }

    /// Only those keys that begin with `prefix`.
    #[must_use]
    pub fn within(mut self, prefix: impl Into<Bytes>) -> Self {
        let prefix = prefix.into();
        // The least bytes above all that begin with the prefix: its last byte that can count up does so.
        let mut after = prefix.to_vec();
        while after.last() == Some(&u8::MAX) {
            after.pop();
        }
        if let Some(last) = after.last_mut() {
            *last += 1;
        }
        let after = Bytes::from(after);
        if self.end.is_empty() || (!after.is_empty() && after < self.end) {
            self.end = after;
        }
        self.start = self.start.max(prefix);
        self
    }
}

impl Transaction {
    /// Whether it changes nothing, whatever its compares find.
    pub fn is_read(&self) -> bool {
        self.then.iter().chain(&self.otherwise).all(KvOperation::is_read)
    }
}

impl KvOperation {
    /// The key that it is about.
    pub fn key(&self) -> &Bytes {
        match self {
            KvOperation::Put { key, .. } | KvOperation::Get { key } | KvOperation::Delete { key } => key,
        }
    }

    /// Writes a key.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        KvOperation::Put { key: key.into(), value: value.into() }
    }

    /// Reads a key.
    pub fn get(key: impl Into<Bytes>) -> Self {
        KvOperation::Get { key: key.into() }
    }

    /// Removes a key.
    pub fn delete(key: impl Into<Bytes>) -> Self {
        KvOperation::Delete { key: key.into() }
    }

    fn is_read(&self) -> bool {
        match self {
            KvOperation::Get { .. } => true,
            KvOperation::Put { .. } | KvOperation::Delete { .. } => false,
        }
    }

    fn encode(&self, out: &mut Writer) {
        match self {
            KvOperation::Put { key, value } => out.u8(1).bytes(key).bytes(value),
            KvOperation::Get { key } => out.u8(2).bytes(key),
            KvOperation::Delete { key } => out.u8(3).bytes(key),
        };
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        match reader.u8("operation")? {
            1 => Ok(KvOperation::Put { key: read_key(reader)?, value: reader.bytes("value")? }),
            2 => Ok(KvOperation::Get { key: read_key(reader)? }),
            3 => Ok(KvOperation::Delete { key: read_key(reader)? }),
            tag => Err(DecodeError::UnknownTag { what: "operation", tag }),
        }
    }
}

impl Expected {
    fn encode(&self, out: &mut Writer) {
        match self {
            Expected::Version(version) => out.u8(1).u64(*version),
            Expected::Value(value) => out.u8(2).bytes(value),
            Expected::Exists => out.u8(3),
        };
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        match reader.u8("expectation")? {
            1 => Ok(Expected::Version(reader.u64("expected version")?)),
            2 => Ok(Expected::Value(reader.bytes("expected value")?)),
            3 => Ok(Expected::Exists),
            tag => Err(DecodeError::UnknownTag { what: "expectation", tag }),
        }
    }
}

impl KvRequest {
    /// Whether it changes nothing, and so may be answered as a read.
    pub fn is_read(&self) -> bool {
        match self {
            KvRequest::Get { .. } | KvRequest::Scan(_) => true,
            KvRequest::Put { .. } | KvRequest::Delete { .. } | KvRequest::CompareAndSet { .. } => false,
            KvRequest::Transaction(transaction) => transaction.is_read(),
        }
    }

    /// The one key that it is about. None: a scan or a transaction.
    pub fn key(&self) -> Option<&Bytes> {
        match self {
            KvRequest::Put { key, .. }
            | KvRequest::Get { key }
            | KvRequest::Delete { key }
            | KvRequest::CompareAndSet { key, .. } => Some(key),
            KvRequest::Scan(_) | KvRequest::Transaction(_) => None,
        }
    }

    /// Canonical bytes of a request that a machine and the log take.
    ///
    /// # Errors
    /// In words for whoever wrote it: a key, bound, limit or number of steps out of range, a request that is too large.
    pub fn checked(&self) -> Result<Bytes, KvError> {
        match self {
            KvRequest::Put { key, .. }
            | KvRequest::Get { key }
            | KvRequest::Delete { key }
            | KvRequest::CompareAndSet { key, .. } => check_key(key)?,
            KvRequest::Scan(scan) => {
                for (bound, bytes) in [("start", scan.start.len()), ("end", scan.end.len())] {
                    if bytes > KEY_BYTES_MAX {
                        return Err(KvError::Bound { bound, bytes });
                    }
                }
                if !(1..=SCAN_ENTRIES_MAX).contains(&scan.limit) {
                    return Err(KvError::Limit { limit: scan.limit });
                }
            }
            KvRequest::Transaction(Transaction { compares, then, otherwise }) => {
                for (steps, count) in [
                    ("compares", compares.len()),
                    ("operations if they hold", then.len()),
                    ("operations if they do not hold", otherwise.len()),
                ] {
                    if count > TRANSACTION_STEPS_MAX {
                        return Err(KvError::Steps { steps, count });
                    }
                }
                compares.iter().try_for_each(|compare| check_key(&compare.key))?;
                then.iter().chain(otherwise).try_for_each(|operation| check_key(operation.key()))?;
            }
        }
        let bytes = self.encode();
        match bytes.len() {
            0..=REQUEST_BYTES_MAX => Ok(bytes),
            bytes => Err(KvError::TooLarge { bytes }),
        }
    }

    /// Canonical bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        match self {
            KvRequest::Put { key, value } => {
                out.u8(1).bytes(key).bytes(value);
            }
            KvRequest::Get { key } => {
                out.u8(2).bytes(key);
            }
            KvRequest::Delete { key } => {
                out.u8(3).bytes(key);
            }
            KvRequest::CompareAndSet { key, expected, value } => {
                expected.encode(out.u8(4).bytes(key));
                out.bytes(value);
            }
            KvRequest::Scan(scan) => {
                out.u8(5).bytes(&scan.start).bytes(&scan.end).u32(scan.limit).u8(scan.keys_only.into());
            }
            KvRequest::Transaction(transaction) => {
                write_list(out.u8(6), &transaction.compares, |compare, out| {
                    compare.expected.encode(out.bytes(&compare.key));
                });
                write_list(&mut out, &transaction.then, KvOperation::encode);
                write_list(&mut out, &transaction.otherwise, KvOperation::encode);
            }
        }
        Bytes::from(out.finish())
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// An unknown tag, truncated or left-over bytes, a key, bound, limit or number of steps out of range.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let request = match reader.u8("key-value request")? {
            1 => KvRequest::Put { key: read_key(&mut reader)?, value: reader.bytes("value")? },
            2 => KvRequest::Get { key: read_key(&mut reader)? },
            3 => KvRequest::Delete { key: read_key(&mut reader)? },
            4 => KvRequest::CompareAndSet {
                key: read_key(&mut reader)?,
                expected: Expected::decode(&mut reader)?,
                value: reader.bytes("value")?,
            },
            5 => {
                let [start, end] = [reader.bytes("scan start")?, reader.bytes("scan end")?];
                if start.len() > KEY_BYTES_MAX || end.len() > KEY_BYTES_MAX {
                    return Err(DecodeError::OutOfRange { what: "scan bound" });
                }
                let limit = match reader.u32("scan limit")? {
                    limit @ 1..=SCAN_ENTRIES_MAX => limit,
                    _ => return Err(DecodeError::OutOfRange { what: "scan limit" }),
                };
                KvRequest::Scan(Scan { start, end, limit, keys_only: read_bool(&mut reader, "keys only")? })
            }
            6 => KvRequest::Transaction(Transaction {
                compares: read_list(&mut reader, "compare count", |reader| {
                    Ok(Compare { key: read_key(reader)?, expected: Expected::decode(reader)? })
                })?,
                then: read_list(&mut reader, "operation count", KvOperation::decode)?,
                otherwise: read_list(&mut reader, "operation count", KvOperation::decode)?,
            }),
            tag => return Err(DecodeError::UnknownTag { what: "key-value request", tag }),
        };
        reader.finish("key-value request")?;
        Ok(request)
    }
}

fn check_key(key: &Bytes) -> Result<(), KvError> {
    match key.len() {
        1..=KEY_BYTES_MAX => Ok(()),
        bytes => Err(KvError::Key { bytes }),
    }
}

fn write_list<T>(out: &mut Writer, list: &[T], write: impl Fn(&T, &mut Writer)) {
    out.u32(u32::try_from(list.len()).expect("a transaction has few steps"));
    for item in list {
        write(item, out);
    }
}

fn read_list<T>(
    reader: &mut Reader,
    what: &'static str,
    read: impl Fn(&mut Reader) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = reader.u32(what)?;
    if count as usize > TRANSACTION_STEPS_MAX {
        return Err(DecodeError::OutOfRange { what });
    }
    (0..count).map(|_| read(reader)).collect()
}
