//! The built-in machine: put, get, delete, compare-and-set, scan, transaction. Its requests and replies are in
//! [`lockstep_types::kv`].

mod scan;
#[cfg(test)]
mod tests;
mod transaction;

use bytes::Bytes;
use lockstep_types::kv::{BLOCK_REPLY_BYTES_MAX, Expected, KvReply, KvRequest, Versioned};
use lockstep_types::limits::REQUEST_BYTES_MAX;

use crate::machine::{Context, StateMachine};
use crate::snapshot::COUNT_MAX;
use crate::store::{Change, Store};

/// Keys with values and versions. In the store, a value follows the eight bytes of its version: one allocation for both.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeyValue;

impl KeyValue {
    /// The name in a genesis.
    pub const NAME: &str = "KeyValue";
}

impl StateMachine for KeyValue {
    fn apply(&self, _: &Context, requests: &[Bytes], store: &mut Store) -> Vec<Bytes> {
        let mut room = Room(BLOCK_REPLY_BYTES_MAX);
        requests.iter().map(|request| execute(request, store, &mut room).encode()).collect()
    }

    fn check(&self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let Some((version, value)) = value.split_first_chunk() else {
            return Err("the value has no version");
        };
        match u64::from_le_bytes(*version) {
            _ if key.is_empty() => Err("the key is empty"),
            1..=COUNT_MAX if value.len() <= REQUEST_BYTES_MAX => Ok(()),
            1..=COUNT_MAX => Err("the value is larger than a request"),
            _ => Err("the version is out of range"),
        }
    }

    fn query(&self, request: &Bytes, store: &Store) -> Bytes {
        let mut room = Room(BLOCK_REPLY_BYTES_MAX);
        let reply = match KvRequest::decode(request.clone()) {
            Ok(KvRequest::Get { key }) => get(&key, store),
            Ok(KvRequest::Scan(scan)) => scan::scan(&scan, store, &mut room),
            Ok(KvRequest::Transaction(transaction)) => transaction::query(&transaction, store, &mut room),
            Ok(KvRequest::Put { .. } | KvRequest::Delete { .. } | KvRequest::CompareAndSet { .. }) | Err(_) => {
                KvReply::Invalid
            }
        };
        reply.encode()
    }
}

/// Bytes that the replies of a block may still take. A block of small requests must not ask for gigabytes: it is committed,
/// and every replica would fail on it.
struct Room(usize);

impl Room {
    /// Takes that much, if it is there.
    fn take(&mut self, bytes: usize) -> bool {
        let enough = bytes <= self.0;
        if enough {
            self.0 -= bytes;
        }
        enough
    }
}

fn execute(request: &Bytes, store: &mut Store, room: &mut Room) -> KvReply {
    match KvRequest::decode(request.clone()) {
        Ok(KvRequest::Put { key, value }) => KvReply::Written { version: put(&key, &value, store) },
        Ok(KvRequest::Get { key }) => bounded(get(&key, store), room),
        Ok(KvRequest::Delete { key }) => match store.delete(&key) {
            true => KvReply::Deleted,
            false => KvReply::Missing,
        },
        Ok(KvRequest::CompareAndSet { key, expected, value }) => {
            let reply = store.update(&key, |current| match holds(&expected, current) {
                true => {
                    let (stored, version) = write(current, &value);
                    (Change::Put(stored), KvReply::Written { version })
                }
                false => (Change::Keep, KvReply::Mismatch { current: current.map(versioned) }),
            });
            bounded(reply, room)
        }
        Ok(KvRequest::Scan(scan)) => scan::scan(&scan, store, room),
        Ok(KvRequest::Transaction(transaction)) => transaction::execute(&transaction, store, room),
        Err(_) => KvReply::Invalid,
    }
}

/// Leaves a value out of a reply once the replies of this block hold too many bytes. Only replies of requests that changed
/// nothing carry a value.
fn bounded(reply: KvReply, room: &mut Room) -> KvReply {
    let value = match &reply {
        KvReply::Found(found) | KvReply::Mismatch { current: Some(found) } => found.value.len(),
        KvReply::Written { .. }
        | KvReply::Missing
        | KvReply::Deleted
        | KvReply::Mismatch { current: None }
        | KvReply::Invalid
        | KvReply::Omitted
        | KvReply::Scanned(_)
        | KvReply::Transaction(_)
        | KvReply::TooLarge => 0,
    };
    if room.take(value) { reply } else { KvReply::Omitted }
}

fn get(key: &[u8], store: &Store) -> KvReply {
    store.get(key).map_or(KvReply::Missing, |stored| KvReply::Found(versioned(stored)))
}

/// Writes a key and gives its new version.
fn put(key: &[u8], value: &[u8], store: &mut Store) -> u64 {
    store.update(key, |current| {
        let (stored, version) = write(current, value);
        (Change::Put(stored), version)
    })
}

fn holds(expected: &Expected, current: Option<&Bytes>) -> bool {
    match expected {
        Expected::Version(expected) => *expected == current.map_or(0, version),
        Expected::Value(expected) => current.is_some_and(|current| current[VERSION_BYTES..] == *expected),
        Expected::Exists => current.is_some(),
    }
}

/// What is stored for the next version of a key, and that version. Copies the value: the request shares the memory of its
/// block.
fn write(current: Option<&Bytes>, value: &[u8]) -> (Vec<u8>, u64) {
    let version = current.map_or(0, version) + 1;
    let mut stored = Vec::with_capacity(VERSION_BYTES + value.len());
    stored.extend_from_slice(&version.to_le_bytes());
    stored.extend_from_slice(value);
    (stored, version)
}

const VERSION_BYTES: usize = size_of::<u64>();

fn version(stored: &Bytes) -> u64 {
    let bytes = stored.first_chunk().expect("every stored value starts with its version");
    u64::from_le_bytes(*bytes)
}

fn versioned(stored: &Bytes) -> Versioned {
    Versioned { value: stored.slice(VERSION_BYTES..), version: version(stored) }
}
