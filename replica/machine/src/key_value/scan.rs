//! Keys in their order, a page at a time. Not here: how a caller goes on.

use std::ops::Bound;

use bytes::Bytes;
use lockstep_types::kv::{Entry, KvReply, Page, REPLY_ENTRIES_BYTES_MAX, Scan};

use super::{Room, versioned};
use crate::store::Store;

/// Bytes that an entry counts besides key and value, so that short keys are not for free.
const ENTRY_BYTES: usize = 16;

/// The first keys of the range: up to its limit, up to [`REPLY_ENTRIES_BYTES_MAX`] unless the first entry alone is larger, and
/// as many as there is room for. Without room for one it is left out.
pub(super) fn scan(scan: &Scan, store: &Store, room: &mut Room) -> KvReply {
    let end = if scan.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(&*scan.end) };
    let mut page = Page::default();
    let mut bytes = 0;
    for (key, stored) in store.range(Bound::Included(&scan.start), end) {
        let mut found = versioned(stored);
        if scan.keys_only {
            found.value = Bytes::new();
        }
        let entry = ENTRY_BYTES + key.len() + found.value.len();
        let full = page.entries.len() >= scan.limit as usize
            || (bytes + entry > REPLY_ENTRIES_BYTES_MAX && !page.entries.is_empty());
        if full || !room.take(entry) {
            page.next = Some(Bytes::copy_from_slice(key));
            break;
        }
        bytes += entry;
        page.entries.push(Entry { key: Bytes::copy_from_slice(key), found });
    }
    match page.entries.is_empty() && page.next.is_some() {
        true => KvReply::Omitted,
        false => KvReply::Scanned(page),
    }
}
