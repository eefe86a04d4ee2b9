//! The ordered map that the host keeps for a machine, and what a block wrote to it.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use lockstep_types::codec::Reader;
use lockstep_types::kv::KEY_BYTES_MAX;
use lockstep_types::limits::REQUEST_BYTES_MAX;

/// Bytes by key, in the order of the keys, and the writes of the current block in the order they were made.
///
/// A persistent map: a clone is O(1) and goes its own way, and a write copies only the nodes on its path that a clone still
/// shares. Without a clone it writes in place, at about 1.2 times the price of a `BTreeMap` (100,000 keys of 256 bytes).
///
/// Invariants: keys and values own their memory, nothing shares the buffer of a block; none is larger than
/// [`Store::KEY_BYTES_MAX`] and [`Store::VALUE_BYTES_MAX`].
#[derive(Clone, Debug, Default)]
pub struct Store {
    entries: Entries,
    /// Writes since [`Store::begin`], one after another. A put is 1, key, value; a delete is 2, key; byte strings as in
    /// [`lockstep_types::codec`]. One buffer, because a block of thousands of small writes is hashed several times faster
    /// in one piece, and its room is used again.
    writes: Vec<u8>,
}

/// Keys are shared, not boxed: a node that is copied copies all its keys.
pub(crate) type Entries = OrdMap<Arc<[u8]>, Bytes>;

/// What [`Store::update`] does with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Leaves it as it is.
    Keep,
    /// Gives it this value.
    Put(Vec<u8>),
    /// Removes it.
    Delete,
}

impl Store {
    /// Bytes of a key at most.
    pub const KEY_BYTES_MAX: usize = KEY_BYTES_MAX;
    /// Bytes of a value at most: the largest request and 4 KiB of a machine's own. A snapshot holds a value in one piece.
    pub const VALUE_BYTES_MAX: usize = REQUEST_BYTES_MAX + 4096;

    /// Writes `value`, whatever was there.
    pub fn put(&mut self, key: &[u8], value: Vec<u8>) {
        self.update(key, |_| (Change::Put(value), ()));
    }

    /// Removes `key`. Says whether it was there.
    pub fn delete(&mut self, key: &[u8]) -> bool {
        self.update(key, |current| (Change::Delete, current.is_some()))
    }

    /// Reads and changes a key in one search: `change` sees the current value and says what becomes of it.
    /// Removing a key that is not there is no write. Panics on a key or value above the limits: a machine bounds what it
    /// writes.
    pub fn update<R>(&mut self, key: &[u8], change: impl FnOnce(Option<&Bytes>) -> (Change, R)) -> R {
        match self.entries.get_mut(key) {
            Some(current) => {
                let (change, result) = change(Some(current));
                match change {
                    Change::Keep => {}
                    Change::Put(value) => {
                        assert_bounded(key, &value);
                        *current = Bytes::from(value);
                        record_put(&mut self.writes, key, current);
                    }
                    Change::Delete => {
                        self.entries.remove(key);
                        record_delete(&mut self.writes, key);
                    }
                }
                result
            }
            None => {
                let (change, result) = change(None);
                match change {
                    Change::Keep | Change::Delete => {}
                    Change::Put(value) => {
                        assert_bounded(key, &value);
                        record_put(&mut self.writes, key, &value);
                        self.entries.insert(key.into(), Bytes::from(value));
                    }
                }
                result
            }
        }
    }

    /// The value of `key`.
    pub fn get(&self, key: &[u8]) -> Option<&Bytes> {
        self.entries.get(key)
    }

    /// Keys and values in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Bytes)> {
        self.entries.iter().map(|(key, value)| (&**key, value))
    }

    /// Keys and values from `start` to `end`, in the order of the keys.
    pub fn range(&self, start: Bound<&[u8]>, end: Bound<&[u8]>) -> impl Iterator<Item = (&[u8], &Bytes)> {
        let range: (Bound<&[u8]>, Bound<&[u8]>) = (start, end);
        self.entries.range::<_, [u8]>(range).map(|(key, value)| (&**key, value))
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What a snapshot is made of, in O(1).
    pub(crate) fn entries(&self) -> Entries {
        self.entries.clone()
    }

    /// Starts a block: forgets the writes of the one before.
    pub(crate) fn begin(&mut self) {
        self.writes.clear();
    }

    /// Canonical bytes of the writes since [`Store::begin`].
    pub(crate) fn writes(&self) -> &[u8] {
        &self.writes
    }
}

impl From<Entries> for Store {
    fn from(entries: Entries) -> Self {
        Store { entries, writes: Vec::new() }
    }
}

const PUT: u8 = 1;
const DELETE: u8 = 2;

/// Every replica would fail on a snapshot of something larger; so it fails here, at the write.
fn assert_bounded(key: &[u8], value: &[u8]) {
    assert!(
        key.len() <= Store::KEY_BYTES_MAX && value.len() <= Store::VALUE_BYTES_MAX,
        "the machine wrote a value of {} bytes under a key of {} bytes",
        value.len(),
        key.len()
    );
}

fn record_put(writes: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    writes.push(PUT);
    record_bytes(writes, key);
    record_bytes(writes, value);
}

fn record_delete(writes: &mut Vec<u8>, key: &[u8]) {
    writes.push(DELETE);
    record_bytes(writes, key);
}

fn record_bytes(writes: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("keys and values are bounded far below 4 GiB");
    writes.extend_from_slice(&length.to_le_bytes());
    writes.extend_from_slice(bytes);
}

/// The key of the first write in which two write sets of one block differ, of [`Executor::writes`](crate::Executor::writes):
/// where one ends, the next key of the other. None if there is none in what is given: either may be cut short.
pub fn first_difference(ours: &[u8], theirs: &[u8]) -> Option<Bytes> {
    let (mut ours, mut theirs) =
        (Reader::new(Bytes::copy_from_slice(ours)), Reader::new(Bytes::copy_from_slice(theirs)));
    loop {
        match (next_write(&mut ours), next_write(&mut theirs)) {
            (Some(ours), Some(theirs)) if ours == theirs => {}
            // The sound side is not known here; the lower key is the same for both.
            (Some((ours, _)), Some((theirs, _))) => return Some(ours.min(theirs)),
            (Some((key, _)), None) | (None, Some((key, _))) => return Some(key),
            (None, None) => return None,
        }
    }
}

/// A key, and its new value or none.
fn next_write(writes: &mut Reader) -> Option<(Bytes, Option<Bytes>)> {
    match writes.u8("write").ok()? {
        PUT => Some((writes.bytes("key").ok()?, Some(writes.bytes("value").ok()?))),
        DELETE => Some((writes.bytes("key").ok()?, None)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_set_keeps_order_and_overwritten_writes() {
        // The write set is what was done, in order, not what came of it.
        let mut store = Store::default();
        store.put(b"b", vec![1]);
        store.put(b"a", vec![2, 3]);
        store.put(b"b", vec![]);
        assert!(store.delete(b"a"));
        let put_b = [1, 1, 0, 0, 0, b'b', 1, 0, 0, 0, 1];
        let put_a = [1, 1, 0, 0, 0, b'a', 2, 0, 0, 0, 2, 3];
        let put_b_again = [1, 1, 0, 0, 0, b'b', 0, 0, 0, 0];
        let delete_a = [2, 1, 0, 0, 0, b'a'];
        assert_eq!(store.writes(), [&put_b[..], &put_a, &put_b_again, &delete_a].concat());
    }

    #[test]
    fn write_set_of_no_change_is_empty() {
        // A key kept as it is and a key removed that was not there are no writes.
        let mut store = Store::default();
        store.put(b"a", vec![1]);
        store.begin();
        assert!(!store.delete(b"b"));
        assert_eq!(store.update(b"a", |current| (Change::Keep, current.cloned())), Some(Bytes::from_static(&[1])));
        assert!(store.writes().is_empty());
    }

    #[test]
    fn first_difference_names_the_key_of_the_first_write_that_differs() {
        let writes = |changes: &[(&[u8], Option<&[u8]>)]| {
            let mut store = Store::default();
            store.put(b"gone", vec![]);
            store.begin();
            for (key, value) in changes {
                match value {
                    Some(value) => store.put(key, value.to_vec()),
                    None => assert!(store.delete(key)),
                }
            }
            store.writes().to_vec()
        };
        let both = writes(&[(b"b", Some(b"1")), (b"a", Some(b"1"))]);
        let key = |ours: &[u8], theirs: &[u8]| first_difference(ours, theirs);
        assert_eq!(key(&both, &both), None);
        assert_eq!(key(&both, &writes(&[(b"b", Some(b"1")), (b"a", Some(b"2"))])).as_deref(), Some(&b"a"[..]));
        assert_eq!(key(&both, &writes(&[(b"b", Some(b"1"))])).as_deref(), Some(&b"a"[..]), "one ends");
        assert_eq!(key(&both, &writes(&[(b"gone", None)])).as_deref(), Some(&b"b"[..]), "the lower of two keys");
        // What a peer sends may be anything.
        assert_eq!(key(&[], &[9, 9, 9]), None);
        assert_eq!(key(&both[..7], &both), Some(Bytes::from_static(b"b")), "cut short");
    }

    #[test]
    fn entries_come_in_order_of_keys() {
        // The order is that of the bytes, whatever the order of writes.
        let mut store = Store::default();
        for key in [&b"b"[..], b"", b"ab", b"a"] {
            store.put(key, key.to_vec());
        }
        let keys: Vec<&[u8]> = store.iter().map(|(key, _)| key).collect();
        assert_eq!((keys, store.len()), (vec![&b""[..], b"a", b"ab", b"b"], 4));
    }

    #[test]
    fn clone_and_original_go_their_own_ways() {
        // A clone is a snapshot: neither sees what the other writes, overwrites or deletes from then on.
        let mut store = Store::default();
        for number in 0..1000u32 {
            store.put(&number.to_be_bytes(), vec![0]);
        }
        let before: Vec<(Vec<u8>, Bytes)> = store.iter().map(|(key, value)| (key.to_vec(), value.clone())).collect();
        let mut clone = store.clone();
        for number in 0..1000u32 {
            match number % 3 {
                0 => store.put(&number.to_be_bytes(), vec![1]),
                1 => assert!(store.delete(&number.to_be_bytes())),
                _ => store.put(&(number + 5000).to_be_bytes(), vec![2]),
            }
        }
        assert!(clone.iter().eq(before.iter().map(|(key, value)| (&**key, value))));
        clone.put(&2u32.to_be_bytes(), vec![3]);
        assert_eq!(store.get(&2u32.to_be_bytes()), Some(&Bytes::from_static(&[0])));
    }

    #[test]
    #[should_panic(expected = "the machine wrote a value of 1052673 bytes under a key of 1 bytes")]
    fn value_above_the_limit_panics() {
        // What no snapshot could carry stops the replica at once, not at the next snapshot.
        Store::default().put(b"k", vec![0; Store::VALUE_BYTES_MAX + 1]);
    }

    #[test]
    fn range_takes_its_bounds_at_their_word() {
        // From one bound to the other, in order.
        let mut store = Store::default();
        for key in [&b"a"[..], b"ab", b"b", b"c"] {
            store.put(key, vec![]);
        }
        let keys = |start, end| store.range(start, end).map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys(Bound::Included(b"ab"), Bound::Excluded(b"c")), [&b"ab"[..], b"b"]);
        assert_eq!(keys(Bound::Excluded(b"ab"), Bound::Unbounded), [&b"b"[..], b"c"]);
        assert_eq!(keys(Bound::Included(b"c"), Bound::Excluded(b"b")), [&b""[..]; 0]);
    }
}
