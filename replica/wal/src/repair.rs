//! Makes a log that was judged sound ready for more: rewrites its tail, zeroes what is cut, syncs; or begins an empty log.
//!
//! Killed at any point it can run again: it writes over bytes only what they already are, or zeros where nothing counts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::error::IoFailure;
use crate::format::{
    self, BLOCK, DATA_AT, Digest, IDENTIFIER, SEAL, SEGMENT_HEADER, SLOTS, Seal, SegmentHeader, ZEROS, seal_at,
    segment_name, slot_at,
};
use crate::recover::{Kept, Recovered};
use crate::wal::Cursor;
use crate::{BatchSeq, Disk, Options, Recovery, TornTail, WalId};

/// Bytes read at once in search of remains.
const CHUNK: u64 = 64 * BLOCK;

/// The end of a sound log.
pub(crate) struct Tail {
    pub cursor: Cursor,
    /// Of the last segment.
    pub header: SegmentHeader,
    /// Of the segment before it.
    pub before: Option<SegmentHeader>,
    /// The last batches, oldest first.
    pub kept: VecDeque<Kept>,
}

/// Begins an empty log with segment 1.
pub(crate) fn create<D: Disk>(
    disk: &D,
    id: &WalId,
    options: &Options,
    found: BTreeMap<u64, u64>,
) -> Result<Recovered, IoFailure> {
    let mut spares = spares(disk, options, found)?;
    let name = segment_name(1);
    if !spares.remove(&1) {
        disk.allocate(&name, options.segment_bytes).map_err(IoFailure::of("allocate", &name))?;
    }
    let (first, previous, segment_bytes) = (BatchSeq(1), Digest::default(), options.segment_bytes);
    let header = SegmentHeader { id: *id, segment: 1, first, segment_bytes, previous };
    let cursor = Cursor { segment: 1, offset: DATA_AT, end: seal_at(segment_bytes), next: first, previous };
    settle(disk, id, &Tail { cursor, header, before: None, kept: VecDeque::new() })?;
    let recovery = Recovery { last: None, note: None, cut: None, created: true, first_segment: 1, segments: 1 };
    Ok(Recovered { cursor, last_segment: None, spares, recovery })
}

/// Of the segments never begun, keeps those that can be used as they are. `found`: number and size.
pub(crate) fn spares<D: Disk>(
    disk: &D,
    options: &Options,
    found: BTreeMap<u64, u64>,
) -> Result<BTreeSet<u64>, IoFailure> {
    let mut spares = BTreeSet::new();
    for (number, len) in found {
        if len == options.segment_bytes {
            spares.insert(number);
        } else {
            // Its allocation was interrupted, or the option has changed.
            let name = segment_name(number);
            disk.remove(&name).map_err(IoFailure::of("remove", &name))?;
        }
    }
    Ok(spares)
}

/// Makes durable what is kept, and zeroes what is not.
pub(crate) fn settle<D: Disk>(disk: &D, id: &WalId, tail: &Tail) -> Result<Option<TornTail>, IoFailure> {
    let active = tail.cursor.segment;
    // Batches before the last segment were synced before it was begun; rewriting them is for a cache that lied.
    for kept in tail.kept.iter().filter(|kept| kept.identifier.segment != active && !kept.bytes.is_empty()) {
        let name = segment_name(kept.identifier.segment);
        write_batch(disk, &name, kept)?;
        disk.sync(&name).map_err(IoFailure::of("sync", &name))?;
    }
    if let Some(before) = tail.before {
        // The process may have stopped between the header and the seal.
        let name = segment_name(before.segment);
        let seal = Seal { segment: before.segment, next: tail.header.first, last: tail.header.previous }.encode(id);
        let block: [&[u8]; 2] = [&seal, &ZEROS[SEAL..]];
        disk.write_at(&name, &[(seal_at(before.segment_bytes), &block)]).map_err(IoFailure::of("write", &name))?;
        disk.sync(&name).map_err(IoFailure::of("sync", &name))?;
    }

    let name = segment_name(active);
    let header = tail.header.encode();
    let block: [&[u8]; 2] = [&header, &ZEROS[SEGMENT_HEADER..]];
    disk.write_at(&name, &[(0, &block)]).map_err(IoFailure::of("write", &name))?;
    for kept in tail.kept.iter().filter(|kept| kept.identifier.segment == active && !kept.bytes.is_empty()) {
        write_batch(disk, &name, kept)?;
    }
    for slot in 0..SLOTS {
        write_slot(disk, id, &name, tail, slot)?;
    }
    disk.write_at(&name, &[(tail.cursor.end, &[&ZEROS])]).map_err(IoFailure::of("write", &name))?;
    let cut = zero_rest(disk, &name, &tail.cursor)?;
    disk.sync(&name).map_err(IoFailure::of("sync", &name))?;
    Ok(cut)
}

fn write_batch<D: Disk>(disk: &D, name: &str, kept: &Kept) -> Result<(), IoFailure> {
    let len = kept.bytes.len() as u64;
    let padding = (format::padded(len) - len) as usize;
    let slices: [&[u8]; 2] = [&kept.bytes, &ZEROS[..padding]];
    disk.write_at(name, &[(kept.identifier.offset, &slices)]).map_err(IoFailure::of("write", name))
}

/// The identifier that belongs into a slot of the last segment, or zeros.
fn write_slot<D: Disk>(disk: &D, id: &WalId, name: &str, tail: &Tail, slot: u64) -> Result<(), IoFailure> {
    let identifiers = tail.kept.iter().map(|kept| &kept.identifier);
    let here = identifiers.rev().find(|found| found.segment == tail.cursor.segment && found.seq.0 % SLOTS == slot);
    let at = slot_at(tail.cursor.end, BatchSeq(slot));
    let written = match here {
        Some(identifier) => {
            let head = identifier.encode(id);
            let padding = &ZEROS[IDENTIFIER + identifier.note.len()..];
            disk.write_at(name, &[(at, &[&head, &identifier.note, padding])])
        }
        None => disk.write_at(name, &[(at, &[&ZEROS])]),
    };
    written.map_err(IoFailure::of("write", name))
}

/// Zeroes whatever there is behind the last batch, block by block.
fn zero_rest<D: Disk>(disk: &D, name: &str, cursor: &Cursor) -> Result<Option<TornTail>, IoFailure> {
    let mut buffer = vec![0; CHUNK as usize];
    let mut remains_end = None;
    let mut at = cursor.offset;
    while at < cursor.end {
        let chunk = &mut buffer[..CHUNK.min(cursor.end - at) as usize];
        disk.read_at(name, at, chunk).map_err(IoFailure::of("read", name))?;
        for block in chunk.chunks(BLOCK as usize) {
            let len = block.len();
            if block != &ZEROS[..len] {
                disk.write_at(name, &[(at, &[&ZEROS[..len]])]).map_err(IoFailure::of("write", name))?;
                remains_end = Some(at + len as u64);
            }
            at += len as u64;
        }
    }
    Ok(remains_end.map(|end| TornTail {
        segment: cursor.segment,
        offset: cursor.offset,
        sequence: cursor.next,
        bytes: end - cursor.offset,
    }))
}
