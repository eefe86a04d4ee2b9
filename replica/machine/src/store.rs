//! The ordered map that the host keeps for a machine, and what a block wrote to it.

use std::collections::BTreeMap;

use bytes::Bytes;

/// Bytes by key, in the order of the keys, and the writes of the current block in the order they were made.
///
/// Invariant: keys and values own their memory; nothing shares the buffer of a block.
#[derive(Clone, Debug, Default)]
pub struct Store {
    entries: BTreeMap<Box<[u8]>, Bytes>,
    /// Writes since [`Store::begin`], one after another. A put is 1, key, value; a delete is 2, key; byte strings as in
    /// [`lockstep_types::codec`]. One buffer, because a block of thousands of small writes is hashed several times faster
    /// in one piece, and its room is used again.
    writes: Vec<u8>,
}

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
    /// Writes `value`, whatever was there.
    pub fn put(&mut self, key: &[u8], value: Vec<u8>) {
        self.update(key, |_| (Change::Put(value), ()));
    }

    /// Removes `key`. Says whether it was there.
    pub fn delete(&mut self, key: &[u8]) -> bool {
        self.update(key, |current| (Change::Delete, current.is_some()))
    }

    /// Reads and changes a key in one search: `change` sees the current value and says what becomes of it.
    /// Removing a key that is not there is no write.
    pub fn update<R>(&mut self, key: &[u8], change: impl FnOnce(Option<&Bytes>) -> (Change, R)) -> R {
        match self.entries.get_mut(key) {
            Some(current) => {
                let (change, result) = change(Some(current));
                match change {
                    Change::Keep => {}
                    Change::Put(value) => {
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

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
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

fn record_put(writes: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    writes.push(1);
    record_bytes(writes, key);
    record_bytes(writes, value);
}

fn record_delete(writes: &mut Vec<u8>, key: &[u8]) {
    writes.push(2);
    record_bytes(writes, key);
}

fn record_bytes(writes: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("keys and values are bounded far below 4 GiB");
    writes.extend_from_slice(&length.to_le_bytes());
    writes.extend_from_slice(bytes);
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
    fn entries_come_in_order_of_keys() {
        // The order is that of the bytes, whatever the order of writes.
        let mut store = Store::default();
        for key in [&b"b"[..], b"", b"ab", b"a"] {
            store.put(key, key.to_vec());
        }
        let keys: Vec<&[u8]> = store.iter().map(|(key, _)| key).collect();
        assert_eq!((keys, store.len()), (vec![&b""[..], b"a", b"ab", b"b"], 4));
    }
}
