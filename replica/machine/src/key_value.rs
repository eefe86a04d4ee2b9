//! The built-in machine: put, get, delete, compare-and-set. Its requests and replies are in [`lockstep_types::kv`].

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
        let mut bytes = 0;
        requests.iter().map(|request| bounded(execute(request, store), &mut bytes).encode()).collect()
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
        let reply = match KvRequest::decode(request.clone()) {
            Ok(KvRequest::Get { key }) => get(&key, store),
            Ok(KvRequest::Put { .. } | KvRequest::Delete { .. } | KvRequest::CompareAndSet { .. }) | Err(_) => {
                KvReply::Invalid
            }
        };
        reply.encode()
    }
}

fn execute(request: &Bytes, store: &mut Store) -> KvReply {
    match KvRequest::decode(request.clone()) {
        Ok(KvRequest::Put { key, value }) => store.update(&key, |current| write(current, &value)),
        Ok(KvRequest::Get { key }) => get(&key, store),
        Ok(KvRequest::Delete { key }) => match store.delete(&key) {
            true => KvReply::Deleted,
            false => KvReply::Missing,
        },
        Ok(KvRequest::CompareAndSet { key, expected, value }) => store.update(&key, |current| {
            let holds = match expected {
                Expected::Version(expected) => expected == current.map_or(0, version),
                Expected::Value(expected) => current.is_some_and(|current| current[VERSION_BYTES..] == expected),
            };
            match holds {
                true => write(current, &value),
                false => (Change::Keep, KvReply::Mismatch { current: current.map(versioned) }),
            }
        }),
        Err(_) => KvReply::Invalid,
    }
}

/// Leaves a value out of a reply once the replies of this block hold too many bytes. Only replies of requests that changed
/// nothing carry a value.
fn bounded(reply: KvReply, bytes: &mut usize) -> KvReply {
    let value = match &reply {
        KvReply::Found(found) | KvReply::Mismatch { current: Some(found) } => found.value.len(),
        KvReply::Written { .. }
        | KvReply::Missing
        | KvReply::Deleted
        | KvReply::Mismatch { current: None }
        | KvReply::Invalid
        | KvReply::Omitted => return reply,
    };
    if *bytes + value > BLOCK_REPLY_BYTES_MAX {
        return KvReply::Omitted;
    }
    *bytes += value;
    reply
}

fn get(key: &[u8], store: &Store) -> KvReply {
    store.get(key).map_or(KvReply::Missing, |stored| KvReply::Found(versioned(stored)))
}

/// The next version of a key. Copies the value: the request shares the memory of its block.
fn write(current: Option<&Bytes>, value: &[u8]) -> (Change, KvReply) {
    let version = current.map_or(0, version) + 1;
    let mut stored = Vec::with_capacity(VERSION_BYTES + value.len());
    stored.extend_from_slice(&version.to_le_bytes());
    stored.extend_from_slice(value);
    (Change::Put(stored), KvReply::Written { version })
}

const VERSION_BYTES: usize = size_of::<u64>();

fn version(stored: &Bytes) -> u64 {
    let bytes = stored.first_chunk().expect("every stored value starts with its version");
    u64::from_le_bytes(*bytes)
}

fn versioned(stored: &Bytes) -> Versioned {
    Versioned { value: stored.slice(VERSION_BYTES..), version: version(stored) }
}

#[cfg(test)]
mod tests {
    use lockstep_types::{Digest, Height, LogTime, View};

    use super::*;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn put(key: &'static str, value: &'static str) -> KvRequest {
        KvRequest::Put { key: bytes(key), value: bytes(value) }
    }

    fn get_request(key: &'static str) -> KvRequest {
        KvRequest::Get { key: bytes(key) }
    }

    fn delete(key: &'static str) -> KvRequest {
        KvRequest::Delete { key: bytes(key) }
    }

    fn compare(key: &'static str, expected: Expected, value: &'static str) -> KvRequest {
        KvRequest::CompareAndSet { key: bytes(key), expected, value: bytes(value) }
    }

    fn found(value: &'static str, version: u64) -> Versioned {
        Versioned { value: bytes(value), version }
    }

    fn apply(store: &mut Store, requests: &[Bytes]) -> Vec<KvReply> {
        let context =
            Context { height: Height::new(1), view: View::ZERO, log_time: LogTime::default(), seed: Digest::ZERO };
        let replies = KeyValue.apply(&context, requests, store);
        replies.into_iter().map(|reply| KvReply::decode(reply).expect("a reply of this machine")).collect()
    }

    /// Runs these requests as one batch on an empty store.
    fn run(requests: &[KvRequest]) -> Vec<KvReply> {
        apply(&mut Store::default(), &requests.iter().map(KvRequest::encode).collect::<Vec<_>>())
    }

    #[test]
    fn replies_of_one_block_are_bounded_and_change_nothing_beyond() {
        // A block of small requests must not ask for gigabytes of replies: it is committed, and would kill every replica.
        let large = Bytes::from(vec![7; 1 << 20]);
        let mut requests = vec![KvRequest::Put { key: bytes("k"), value: large }.encode()];
        requests.extend((0..64).map(|_| compare("k", Expected::Version(9), "x").encode()));
        requests.push(put("k", "small").encode());
        requests.push(get_request("k").encode());
        let replies = apply(&mut Store::default(), &requests);
        let full = |reply: &&KvReply| matches!(reply, KvReply::Mismatch { current: Some(_) });
        assert_eq!(replies.iter().filter(full).count(), BLOCK_REPLY_BYTES_MAX >> 20);
        assert_eq!(replies.iter().filter(|reply| **reply == KvReply::Omitted).count(), 57);
        assert_eq!(replies[65], KvReply::Written { version: 2 }, "writes go on");
    }

    #[test]
    fn put_counts_versions_from_one() {
        // A key's version is how often it was written.
        let replies = run(&[put("k", "a"), put("k", "b"), put("other", "c"), get_request("k")]);
        let written = |version| KvReply::Written { version };
        assert_eq!(replies, [written(1), written(2), written(1), KvReply::Found(found("b", 2))]);
    }

    #[test]
    fn get_without_key_is_missing() {
        // A key that was never written, or was deleted, is not there.
        let replies = run(&[get_request("k"), put("k", ""), get_request("k"), delete("k"), get_request("k")]);
        let written = KvReply::Written { version: 1 };
        assert_eq!(
            replies,
            [KvReply::Missing, written, KvReply::Found(found("", 1)), KvReply::Deleted, KvReply::Missing]
        );
    }

    #[test]
    fn delete_then_put_starts_anew() {
        // A deleted key's version is forgotten; deleting what is not there says so.
        let replies = run(&[put("k", "a"), put("k", "b"), delete("k"), delete("k"), put("k", "c")]);
        let written = |version| KvReply::Written { version };
        assert_eq!(replies, [written(1), written(2), KvReply::Deleted, KvReply::Missing, written(1)]);
    }

    #[test]
    fn compare_and_set_by_version_writes_only_if_it_holds() {
        // Version 0 expects that the key does not exist.
        let replies = run(&[
            compare("k", Expected::Version(1), "a"),
            compare("k", Expected::Version(0), "b"),
            compare("k", Expected::Version(0), "c"),
            compare("k", Expected::Version(1), "d"),
            get_request("k"),
        ]);
        let written = |version| KvReply::Written { version };
        let mismatch = |current| KvReply::Mismatch { current };
        assert_eq!(
            replies,
            [mismatch(None), written(1), mismatch(Some(found("b", 1))), written(2), KvReply::Found(found("d", 2))]
        );
    }

    #[test]
    fn compare_and_set_by_value_writes_only_if_it_holds() {
        // A key that does not exist has no value, not an empty one.
        let value = |text| Expected::Value(bytes(text));
        let replies = run(&[
            compare("k", value(""), "a"),
            put("k", "a"),
            compare("k", value("b"), "c"),
            compare("k", value("a"), "d"),
            get_request("k"),
        ]);
        let written = |version| KvReply::Written { version };
        let mismatch = |current| KvReply::Mismatch { current };
        assert_eq!(
            replies,
            [mismatch(None), written(1), mismatch(Some(found("a", 1))), written(2), KvReply::Found(found("d", 2))]
        );
    }

    #[test]
    fn request_malformed_is_invalid_and_writes_nothing() {
        // Bytes that are no request get the machine's own reply, and those around them are executed.
        let mut store = Store::default();
        let truncated = put("k", "value").encode().slice(..6);
        let replies = apply(&mut store, &[Bytes::new(), truncated, bytes("junk"), put("", "a").encode()]);
        assert_eq!(replies, vec![KvReply::Invalid; 4]);
        assert!(store.is_empty() && store.writes().is_empty());
        assert_eq!(apply(&mut store, &[bytes("junk"), put("k", "a").encode()])[1], KvReply::Written { version: 1 });
    }

    #[test]
    fn query_reads_and_never_writes() {
        // A read answers a get as apply does and refuses everything else.
        let mut store = Store::default();
        apply(&mut store, &[put("k", "a").encode()]);
        let query = |request: KvRequest| KvReply::decode(KeyValue.query(&request.encode(), &store));
        assert_eq!(query(get_request("k")), Ok(KvReply::Found(found("a", 1))));
        assert_eq!(query(get_request("other")), Ok(KvReply::Missing));
        for request in [put("k", "b"), delete("k"), compare("k", Expected::Version(1), "b")] {
            assert_eq!(query(request), Ok(KvReply::Invalid));
        }
        assert_eq!(KvReply::decode(KeyValue.query(&bytes("junk"), &store)), Ok(KvReply::Invalid));
    }
}
