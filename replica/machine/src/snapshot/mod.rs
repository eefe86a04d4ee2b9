//! All replicated state as a sequence of chunks of bytes, and back.
//!
//! [`Frozen`] is the state at one height, taken in O(1) and untouched by what the executor does next; [`Chunks`] writes it
//! down chunk by chunk, at whatever pace; [`Restoring`] takes the chunks, in order, and makes an executor that goes on as the
//! first would have. Equal states have equal chunks, on every replica and after every restore; a snapshot is thus named by
//! the hashes of its chunks.
//!
//! A chunk is a kind, one byte, and records in the encoding of [`lockstep_types::codec`]:
//!
//! | kind | records |
//! |---|---|
//! | 1, head: the first chunk, and the only one of its kind | format version, service, machine, limits; applied height, execution digest, bytes since the last snapshot point, counters; how many sessions and keys follow |
//! | 2, sessions in the order of their ids | id, nonce, acknowledged, last use (height 0: none), count of answers; each answer a record of its own |
//! | 3, store in the order of the keys | key, value |
//!
//! Where a chunk ends is decided by the names of the entries (see `cutter`), so that two snapshots of a large store share most
//! of their chunks.
//!
//! Invariant: what [`Restoring`] accepts is exactly what [`Chunks`] gives for the state it ends with.
//!
//! Not here: hashes of chunks, files, who fetches what from whom, and whether a quorum agrees on a snapshot.

mod cutter;
mod error;
mod head;
mod restore;
#[cfg(test)]
mod tests;

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_types::codec::Writer;
use lockstep_types::{Digest, Height, SessionId};

pub use cutter::CHUNK_BYTES_MAX;
use cutter::{Cutter, Sizes};
pub use error::{Fault, RestoreError};
pub(crate) use head::{Head, Origin};
pub use restore::Restoring;

use crate::executor::REPLY_BYTES_MAX;
use crate::sessions::{Answer, Session, Sessions};
use crate::store::{Entries, Store};

/// Version of the chunks.
const FORMAT: u16 = 1;

const HEAD: u8 = 1;
const SESSIONS: u8 = 2;
const STORE: u8 = 3;

const REPLIED: u8 = 1;
const CANCELLED: u8 = 2;

/// Heights, sequences, versions and counters at most: no log gets there, and what is added to them does not overflow.
pub(crate) const COUNT_MAX: u64 = 1 << 62;

/// Bytes of a session's first record.
const SESSION_BYTES: usize = 12 + 16 + 8 + 12 + 4;

// A chunk of one record holds the largest: no record is ever split.
const _: () = assert!(1 + 4 + Store::KEY_BYTES_MAX + 4 + Store::VALUE_BYTES_MAX <= CHUNK_BYTES_MAX);
const _: () = assert!(1 + 1 + 4 + REPLY_BYTES_MAX <= CHUNK_BYTES_MAX && SESSION_BYTES < CHUNK_BYTES_MAX);

/// All replicated state at one height. A clone is O(1); the executor that it came from goes its own way, and copies what it
/// changes for as long as this is held.
#[derive(Clone, Debug)]
pub struct Frozen {
    head: Head,
    sessions: Sessions,
    entries: Entries,
}

impl Frozen {
    pub(crate) fn new(head: Head, sessions: Sessions, entries: Entries) -> Self {
        Frozen { head, sessions, entries }
    }

    /// The height of the state.
    pub fn applied(&self) -> Height {
        self.head.applied
    }

    /// The execution digest at that height.
    pub fn digest(&self) -> Digest {
        self.head.digest
    }

    /// The canonical chunks, the first of them small and never absent. Each is made when it is asked for.
    pub fn chunks(&self) -> Chunks {
        Chunks { frozen: self.clone(), place: Place::Head, sizes: Sizes::USUAL }
    }
}

/// The chunks of a [`Frozen`] state. A clone goes on from where this one stands. None is empty or larger than
/// [`CHUNK_BYTES_MAX`], and most are about a quarter of that.
#[derive(Clone, Debug)]
pub struct Chunks {
    frozen: Frozen,
    place: Place,
    sizes: Sizes,
}

/// What comes next.
#[derive(Clone, Debug)]
enum Place {
    Head,
    /// This record of this session. No session has the id that it begins with.
    Sessions {
        session: SessionId,
        record: usize,
    },
    /// The first key, or the one after this.
    Store {
        after: Option<Arc<[u8]>>,
    },
    End,
}

impl Iterator for Chunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        loop {
            let chunk = match self.place.clone() {
                Place::Head => self.head(),
                Place::Sessions { session, record } => self.sessions(session, record),
                Place::Store { after } => self.store(after),
                Place::End => return None,
            };
            if chunk.len() > 1 {
                return Some(Bytes::from(chunk));
            }
        }
    }
}

impl Chunks {
    fn head(&mut self) -> Vec<u8> {
        let mut out = Writer::default();
        self.frozen.head.encode(out.u8(HEAD));
        self.place = Place::Sessions { session: SessionId::default(), record: 0 };
        out.finish()
    }

    fn sessions(&mut self, from: SessionId, record: usize) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(SESSIONS);
        let mut cutter = Cutter::new(self.sizes);
        for (id, session) in self.frozen.sessions.range(from) {
            let first = if id == from { record } else { 0 };
            for record in first..=session.answers.len() {
                let bytes = record_bytes(session, record);
                if cutter.is_full(bytes) {
                    self.place = Place::Sessions { session: id, record };
                    return out.finish();
                }
                cutter.add(bytes);
                write_record(&mut out, id, session, record);
            }
            cutter.end_entry(&session_name(id));
        }
        self.place = Place::Store { after: None };
        out.finish()
    }

    fn store(&mut self, after: Option<Arc<[u8]>>) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(STORE);
        let mut cutter = Cutter::new(self.sizes);
        let start = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        for (key, value) in self.frozen.entries.range::<_, [u8]>((start, Bound::Unbounded)) {
            let bytes = 4 + key.len() + 4 + value.len();
            if cutter.is_full(bytes) {
                self.place = Place::Store { after: last };
                return out.finish();
            }
            cutter.add(bytes);
            out.bytes(key).bytes(value);
            cutter.end_entry(key);
            last = Some(key.clone());
        }
        self.place = Place::End;
        out.finish()
    }
}

/// Bytes of a session's record: 0 is the session itself, the others are its answers.
fn record_bytes(session: &Session, record: usize) -> usize {
    match record.checked_sub(1).map(|answer| &session.answers[answer]) {
        None => SESSION_BYTES,
        Some(Answer::Replied(reply)) => 1 + 4 + reply.len(),
        Some(Answer::Cancelled) => 1,
        Some(Answer::Running(_)) => unreachable!("a state is frozen between blocks"),
    }
}

fn write_record(out: &mut Writer, id: SessionId, session: &Session, record: usize) {
    match record.checked_sub(1).map(|answer| &session.answers[answer]) {
        None => {
            let last_use = session.last_use.map_or((Height::ZERO, 0), |last_use| (last_use.height, last_use.index));
            out.height(id.height).u32(id.index).raw(&session.nonce).u64(session.acknowledged);
            out.height(last_use.0).u32(last_use.1);
            out.u32(u32::try_from(session.answers.len()).expect("a session has a window of answers"))
        }
        Some(Answer::Replied(reply)) => out.u8(REPLIED).bytes(reply),
        Some(Answer::Cancelled) => out.u8(CANCELLED),
        Some(Answer::Running(_)) => unreachable!("a state is frozen between blocks"),
    };
}

/// The name of a session that its hash is taken of.
fn session_name(id: SessionId) -> Vec<u8> {
    let mut out = Writer::with_capacity(12);
    out.height(id.height).u32(id.index);
    out.finish()
}
