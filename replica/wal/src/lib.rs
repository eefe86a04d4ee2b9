//! The write-ahead log: framed, checksummed records on a [`Disk`] that is given to it.
//!
//! It knows bytes, never views or blocks. Its one promise: after [`Writer::commit`] returned, [`Wal::open`] either brings
//! that batch back or refuses to open; it never opens to less, and never to something that was not written
//! (PROTOCOL §8). Not here: what the records mean (crate `engine`), snapshots, and so from where on the log is needed.
//!
//! | type | who holds it | what it does |
//! |---|---|---|
//! | [`Wal`] | engine thread | [`Wal::open`] recovers; [`Wal::prepare`] places, frames and chains a batch; no IO after `open` |
//! | [`Writer`] | WAL thread | [`Writer::commit`]: one vectored write and one fdatasync per batch; [`Writer::cut`] |
//! | [`Allocator`] | a thread of its own | [`Allocator::make_next`]: zero-fills the next segment before it is needed |
//! | [`Reader`] | anyone | [`Reader::read`]: one committed record, checked again |
//! | [`Disk`], [`FileDisk`] | host | where the bytes go: a directory, or the simulator's disk |
//!
//! # A batch and its identifier
//!
//! A *batch* is what one sync makes durable: several records and a note. The note is at most [`MAX_NOTE`] bytes, opaque
//! here; the engine keeps its last acked block and its newest promise in it. In the same write and the same sync, elsewhere
//! in the file, goes the batch's *identifier*: its sequence number, its digest, and the note again. At the first batch that
//! does not check out, the identifiers decide:
//!
//! - no identifier of it or of a later batch: it is *torn*, its sync never returned. The whole batch is cut;
//! - any such identifier: it is *faulty*. [`Wal::open`] fails with [`OpenError::Faulty`] and changes nothing on disk.
//!
//! A batch that checks out needs no identifier: the note in it is the newest one, and recovery writes the identifier anew.
//! So one damaged place never takes the newest note: of the last batch, either the batch is intact (note there), or it is
//! not and the log is faulty (note in the identifier, handed out in [`OpenError::Faulty`]).
//!
//! The price: nothing orders the two within one sync. A *power cut* (not a killed process, whose writes are kept in order)
//! may let an identifier through and lose its batch; that reads as faulty although nobody was promised anything. Erring
//! this way costs a replica, erring the other way costs an acknowledged write. It is made rare, not impossible: the batch
//! is written first, and stands before the identifiers in the file, and write-back of the page cache goes up the file. That
//! is a heuristic. A device may still complete its queue in any order, and a disk with a volatile cache often does.
//!
//! # On disk
//!
//! Segment files of a fixed size, zero-filled ahead, named `wal-000000000001.log` and so on, without gaps. All integers
//! are little-endian, all digests BLAKE3 of 32 bytes, all blocks 4 KiB.
//!
//! | segment, from byte | what |
//! |---|---|
//! | 0 | segment header, 512 bytes |
//! | 4,096 | batches, each from a block boundary, padded with zeros to the next |
//! | size − 20,480 | seal: written when the next segment is begun |
//! | size − 16,384 | four identifier slots of 4 KiB; batch `n` uses slot `n % 4` |
//!
//! The seal is the gap between the last batch of a full segment and its identifier. A size is in the segment's header; where
//! that is damaged, the file's own size serves to find what proves that the segment was in use.
//!
//! | segment header | identifier | seal | batch | record frame |
//! |---|---|---|---|---|
//! | 0 magic `LSTEPWAL` | 0 magic `LSTEPIDN` | 0 magic `LSTEPSEA` | 0 magic `LSTEPBAT` | 0 digest of the record |
//! | 8 format version, u32 | 8 sequence, u64 | 8 segment, u64 | 8 sequence, u64 | 32 sequence, u64 |
//! | 12 zero | 16 segment, u64 | 16 first sequence after, u64 | 16 segment, u64 | 40 payload length, u32 |
//! | 16 service id | 24 offset of batch, u64 | 24 service id | 24 own offset, u64 | 44 kind, u8 |
//! | 32 replica id | 32 length of batch, u32 | 40 replica id | 32 length, u32 | 45 zero |
//! | 48 segment, u64 | 36 length of note, u32 | 56 digest of last batch | 36 number of records, u32 | 48 payload |
//! | 56 first sequence, u64 | 40 service id | 88 digest of 0..88 | 40 length of note, u32 | |
//! | 64 segment bytes, u64 | 56 replica id | | 44 zero | |
//! | 72 digest of batch before | 72 digest of batch | | 48 service id | |
//! | 104 zero | 104 digest of 0..104 + note | | 64 replica id | |
//! | 480 digest of 0..480 | 136 note | | 80 digest of batch before | |
//! | | | | 112 digest of batch | |
//! | | | | 144 note, then framed records | |
//!
//! The digest of a record is over service, replica, segment, offset of its frame, sequence, payload length, kind, `rec` and
//! the payload. The digest of a batch is over its first 112 bytes, its note and its frames without their payloads (whose
//! digests they hold), so that each byte is hashed once. Because everything names its place and its predecessor, nothing
//! from a recycled segment's past can be taken for the present (M2).
//!
//! Magic, version, and a digest of 0..480 at 480 stay where they are in every later format: a newer one is told from damage.
//!
//! # Beginning the next segment
//!
//! Three syncs in order: the new segment's header; the old one's seal; the batch. So a header proves that everything before
//! it was durable, and a seal proves that the next segment must be there: a truncated or deleted last segment is faulty, not
//! forgotten.
//!
//! # Cutting the log from below
//!
//! [`Wal::cut_below`] decides which segments go, [`Writer::cut`] lets them go in its place among the commits: the lowest
//! first, each in one operation that is durable before the next, so that what is left has no gap whenever the process stops.
//! Never the segment of the last batch: the newest note is there. A segment of today's size gets a number that comes next and
//! is used again ([`SPARES`] are kept), without being zero-filled: what is in it names its old number and counts for nothing.
//!
//! Nothing in a log proves which segments were before its lowest. [`Recovery::first_segment`] says where it begins: unless
//! that is 1, records are missing, and the caller has to know that a snapshot covers them. If [`Recovery::created`] is true
//! and the replica has run before, its log is lost.
//!
//! # Starting again
//!
//! A page cache is not a disk (S8). [`Wal::open`] drops the cache of every segment before it reads it, rewrites the last two
//! batches and the identifiers that it keeps, zeroes what it cuts, and syncs, before it returns. After a failed write or
//! sync the [`Writer`] refuses everything: the kernel may have marked the lost pages clean, so trying again proves nothing.

mod disk;
mod error;
mod file;
mod format;
mod reader;
mod recover;
mod repair;
mod spares;
mod wal;
mod writer;

use std::fmt;

use bytes::Bytes;

pub use disk::Disk;
pub use error::{CommitError, DiskError, Fault, IoFailure, OpenError, PrepareError, ReadError};
pub use file::FileDisk;
pub use reader::Reader;
pub use spares::Allocator;
pub use wal::{Cut, Prepared, Wal};
pub use writer::{Freed, Writer};

/// Bytes that a note may have at most.
pub const MAX_NOTE: usize = 1024;

/// Bytes of framing that each record costs within [`Wal::max_batch_bytes`].
pub const RECORD_OVERHEAD: u64 = format::FRAME as u64;

/// Segments that are kept ready behind the active one by [`Writer::cut`], at most. What is freed beyond them is removed.
pub const SPARES: usize = 2;

/// Whose log this is. Written into every segment header, batch, record digest, identifier and seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalId {
    /// Id of the service.
    pub service: [u8; 16],
    /// Identity of the replica within it.
    pub replica: [u8; 16],
}

impl fmt::Display for WalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |f: &mut fmt::Formatter<'_>, id: &[u8]| id.iter().try_for_each(|byte| write!(f, "{byte:02x}"));
        f.write_str("service ")?;
        hex(f, &self.service)?;
        f.write_str(" replica ")?;
        hex(f, &self.replica)
    }
}

/// How a log is laid out. May differ from one start to the next: existing segments keep their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Size of a new segment file, in bytes. A multiple of 4 KiB in 32 KiB ..= 1 GiB; 64 MiB by default.
    pub segment_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { segment_bytes: 64 << 20 }
    }
}

impl Options {
    /// What the records of one batch may take: payloads, and [`RECORD_OVERHEAD`] for each. Does not count the note.
    pub fn max_batch_bytes(&self) -> u64 {
        self.segment_bytes.saturating_sub(format::AROUND + wal::BATCH_OVERHEAD)
    }

    /// Bytes of the smallest segment with such a [`Options::max_batch_bytes`]; it may be more than a segment can have.
    pub fn least_segment_bytes(max_batch_bytes: u64) -> u64 {
        wal::MIN_SEGMENT.max(format::padded(max_batch_bytes + format::AROUND + wal::BATCH_OVERHEAD))
    }
}

/// One record to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// What it is, to the caller.
    pub kind: u8,
    /// The payload's parts, one after the other on disk. Large ones are written from where they are, without a copy.
    pub payload: Vec<Bytes>,
}

/// Number of a batch. The first is 1; they have no gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchSeq(u64);

impl BatchSeq {
    /// The sequence number with this value.
    pub const fn new(number: u64) -> Self {
        BatchSeq(number)
    }

    /// The value: 1 for the first batch.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for BatchSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where one record's payload is. Valid for [`Reader::read`] once its batch is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// Number of the segment; the first is 1.
    pub(crate) segment: u64,
    /// Of the payload's first byte in the segment file. Its frame lies right before.
    pub(crate) offset: u64,
    /// Bytes of the payload.
    pub(crate) len: u32,
}

impl Location {
    /// Number of the segment that the record is in: what [`Wal::cut_below`] takes. The first is 1.
    pub fn segment(&self) -> u64 {
        self.segment
    }

    /// Bytes of the record's payload.
    pub fn bytes(&self) -> u32 {
        self.len
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}:{}", self.segment, self.offset, self.len)
    }
}

/// One record as [`Wal::open`] found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredRecord {
    /// The batch that it was part of.
    pub seq: BatchSeq,
    /// What it is, as its writer said.
    pub kind: u8,
    /// Where it is.
    pub location: Location,
    /// What was written. A view of its whole batch: copy what is kept for long.
    pub payload: Bytes,
}

/// What [`Wal::open`] found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The last batch in the log; `None` if it has none.
    pub last: Option<BatchSeq>,
    /// The note of that batch: the newest one.
    pub note: Option<Bytes>,
    /// What was cut behind the last batch: one whose sync never returned, or a recycled segment's past.
    pub cut: Option<TornTail>,
    /// There was no log, and an empty one was made. A replica that has run before has then lost its log.
    pub created: bool,
    /// Number of the segment that the log begins with. Above 1 the log was cut, or lost its beginning: only the caller, who
    /// asked for cuts, can tell which. There are no gaps above it.
    pub first_segment: u64,
    /// Segments in use, 1 or more.
    pub segments: u64,
}

/// The remains of a batch that was never synced, or of a recycled segment's past. Now zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// Number of the segment.
    pub segment: u64,
    /// Where the batch began, in the segment file.
    pub offset: u64,
    /// The sequence number it would have had; the next batch gets it.
    pub sequence: BatchSeq,
    /// From `offset` to the end of the last block that was not zero.
    pub bytes: u64,
}

impl fmt::Display for TornTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = format::segment_name(self.segment);
        write!(f, "batch {} at byte {} of {file}, {} bytes, never synced", self.sequence, self.offset, self.bytes)
    }
}

/// Name of the file that holds a segment.
pub fn segment_file(segment: u64) -> String {
    format::segment_name(segment)
}

/// Whether a file of this name belongs to a log: for hosts that must not mistake a directory that lost something for a new one.
pub fn is_segment(name: &str) -> bool {
    format::segment_number(name).is_some()
}
