//! The bytes of segment headers, identifiers, seals, batches and record frames; the tables are in the crate's documentation.
//!
//! Pure. Decoders return `None` for whatever does not check out; they never panic on what was read.

use blake3::Hasher;
use bytes::Bytes;

use crate::{BatchSeq, MAX_NOTE, WalId};

/// Unit of alignment in a segment.
pub(crate) const BLOCK: u64 = 4096;
/// Format version that is written and read.
pub(crate) const VERSION: u32 = 1;
/// Identifier slots of a segment, at its end: behind the batches, because write-back goes up the file. Two would do, as one batch at a time is unsynced; four survive a neighbour's loss.
pub(crate) const SLOTS: u64 = 4;
/// Where batches begin.
pub(crate) const DATA_AT: u64 = BLOCK;
/// Bytes behind the batches: the seal, then the slots. The seal keeps a block between a last batch and the slots.
pub(crate) const TRAILER: u64 = (1 + SLOTS) * BLOCK;
/// Bytes of a segment in which there are no batches.
pub(crate) const AROUND: u64 = DATA_AT + TRAILER;
/// Bytes of a segment header: one sector, so that a power cut rarely tears it.
pub(crate) const SEGMENT_HEADER: usize = 512;
/// Bytes of an identifier before its note.
pub(crate) const IDENTIFIER: usize = 136;
/// Bytes of a seal.
pub(crate) const SEAL: usize = 120;
/// Bytes of a batch before its note.
pub(crate) const BATCH: usize = 144;
/// Bytes of a record before its payload.
pub(crate) const FRAME: usize = 48;

/// Zeros to write and to compare with.
pub(crate) static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

const SEGMENT_MAGIC: &[u8; 8] = b"LSTEPWAL";
const IDENTIFIER_MAGIC: &[u8; 8] = b"LSTEPIDN";
const SEAL_MAGIC: &[u8; 8] = b"LSTEPSEA";
const BATCH_MAGIC: &[u8; 8] = b"LSTEPBAT";

/// A BLAKE3 digest. Of the batch before the first: zeros.
pub(crate) type Digest = [u8; 32];

/// Name of a segment's file.
pub(crate) fn segment_name(segment: u64) -> String {
    format!("wal-{segment:012}.log")
}

/// The segment with this file name, if it is one.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    let number = name.strip_prefix("wal-")?.strip_suffix(".log")?.parse().ok()?;
    // The round trip leaves one spelling per number.
    (number >= 1 && segment_name(number) == name).then_some(number)
}

/// Where a segment of this size has its seal, and its batches end.
pub(crate) fn seal_at(segment_bytes: u64) -> u64 {
    segment_bytes - TRAILER
}

/// Where the identifier of a batch is, in a segment with the seal at `seal_at`.
pub(crate) fn slot_at(seal_at: u64, seq: BatchSeq) -> u64 {
    seal_at + BLOCK + seq.0 % SLOTS * BLOCK
}

/// `len` rounded up to whole blocks.
pub(crate) fn padded(len: u64) -> u64 {
    len.next_multiple_of(BLOCK)
}

/// The head of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub id: WalId,
    pub segment: u64,
    /// Sequence number of its first batch.
    pub first: BatchSeq,
    /// Size of the file.
    pub segment_bytes: u64,
    /// Digest of the batch before its first.
    pub previous: Digest,
}

/// What the first bytes of a segment file say.
pub(crate) enum Head {
    /// Nothing that checks out.
    None,
    /// A format of this later version.
    Newer(u32),
    /// A header, of whichever service and segment.
    Ours(SegmentHeader),
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut out = [0; SEGMENT_HEADER];
        put(&mut out, 0, SEGMENT_MAGIC);
        put(&mut out, 8, &VERSION.to_le_bytes());
        put(&mut out, 16, &self.id.service);
        put(&mut out, 32, &self.id.replica);
        put(&mut out, 48, &self.segment.to_le_bytes());
        put(&mut out, 56, &self.first.0.to_le_bytes());
        put(&mut out, 64, &self.segment_bytes.to_le_bytes());
        put(&mut out, 72, &self.previous);
        let digest = *blake3::hash(&out[..480]).as_bytes();
        put(&mut out, 480, &digest);
        out
    }

    pub fn decode(bytes: &[u8; SEGMENT_HEADER]) -> Head {
        if &bytes[..8] != SEGMENT_MAGIC || bytes[480..] != blake3::hash(&bytes[..480]).as_bytes()[..] {
            return Head::None;
        }
        match u32_at(bytes, 8) {
            0 => Head::None,
            VERSION => Head::Ours(SegmentHeader {
                id: WalId { service: array_at(bytes, 16), replica: array_at(bytes, 32) },
                segment: u64_at(bytes, 48),
                first: BatchSeq(u64_at(bytes, 56)),
                segment_bytes: u64_at(bytes, 64),
                previous: array_at(bytes, 72),
            }),
            newer => Head::Newer(newer),
        }
    }
}

/// Proof that a batch was written, away from the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identifier {
    pub seq: BatchSeq,
    pub segment: u64,
    pub offset: u64,
    /// Bytes of the batch without padding.
    pub len: u32,
    /// Digest of the batch.
    pub digest: Digest,
    pub note: Bytes,
}

impl Identifier {
    /// The bytes before the note.
    pub fn encode(&self, id: &WalId) -> [u8; IDENTIFIER] {
        let mut out = [0; IDENTIFIER];
        put(&mut out, 0, IDENTIFIER_MAGIC);
        put(&mut out, 8, &self.seq.0.to_le_bytes());
        put(&mut out, 16, &self.segment.to_le_bytes());
        put(&mut out, 24, &self.offset.to_le_bytes());
        put(&mut out, 32, &self.len.to_le_bytes());
        put(&mut out, 36, &(self.note.len() as u32).to_le_bytes());
        put(&mut out, 40, &id.service);
        put(&mut out, 56, &id.replica);
        put(&mut out, 72, &self.digest);
        let digest = *Hasher::new().update(&out[..104]).update(&self.note).finalize().as_bytes();
        put(&mut out, 104, &digest);
        out
    }

    /// The identifier in a slot of this log's `segment`, if there is one.
    pub fn decode(bytes: &[u8], id: &WalId, segment: u64, slot: u64) -> Option<Identifier> {
        let head: &[u8; IDENTIFIER] = bytes.first_chunk()?;
        let note_len = u32_at(head, 36) as usize;
        if &head[..8] != IDENTIFIER_MAGIC || note_len > MAX_NOTE {
            return None;
        }
        let note = bytes.get(IDENTIFIER..IDENTIFIER + note_len)?;
        let digest = Hasher::new().update(&head[..104]).update(note).finalize();
        let identifier = Identifier {
            seq: BatchSeq(u64_at(head, 8)),
            segment: u64_at(head, 16),
            offset: u64_at(head, 24),
            len: u32_at(head, 32),
            digest: array_at(head, 72),
            note: Bytes::copy_from_slice(note),
        };
        let bound = array_at(head, 40) == id.service && array_at(head, 56) == id.replica;
        let placed = identifier.segment == segment && identifier.seq.0 % SLOTS == slot;
        (bound && placed && head[104..] == digest.as_bytes()[..]).then_some(identifier)
    }
}

/// Proof that the next segment was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    /// The segment that it closes.
    pub segment: u64,
    /// Sequence number of the next segment's first batch.
    pub next: BatchSeq,
    /// Digest of the last batch of this one.
    pub last: Digest,
}

impl Seal {
    pub fn encode(&self, id: &WalId) -> [u8; SEAL] {
        let mut out = [0; SEAL];
        put(&mut out, 0, SEAL_MAGIC);
        put(&mut out, 8, &self.segment.to_le_bytes());
        put(&mut out, 16, &self.next.0.to_le_bytes());
        put(&mut out, 24, &id.service);
        put(&mut out, 40, &id.replica);
        put(&mut out, 56, &self.last);
        let digest = *blake3::hash(&out[..88]).as_bytes();
        put(&mut out, 88, &digest);
        out
    }

    /// The seal of this log's `segment`, if there is one.
    pub fn decode(bytes: &[u8], id: &WalId, segment: u64) -> Option<Seal> {
        let head: &[u8; SEAL] = bytes.first_chunk()?;
        let seal = Seal { segment: u64_at(head, 8), next: BatchSeq(u64_at(head, 16)), last: array_at(head, 56) };
        let bound = array_at(head, 24) == id.service && array_at(head, 40) == id.replica && seal.segment == segment;
        let checks = &head[..8] == SEAL_MAGIC && head[88..] == blake3::hash(&head[..88]).as_bytes()[..];
        (bound && checks).then_some(seal)
    }
}

/// The head of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub id: WalId,
    pub seq: BatchSeq,
    pub segment: u64,
    pub offset: u64,
    /// Bytes from the head to the end of the last record.
    pub len: u32,
    /// Number of records.
    pub records: u32,
    pub note_len: u32,
    /// Digest of the batch before.
    pub previous: Digest,
}

impl BatchHeader {
    /// The bytes, still without the digest of the batch.
    pub fn encode(&self) -> [u8; BATCH] {
        let mut out = [0; BATCH];
        put(&mut out, 0, BATCH_MAGIC);
        put(&mut out, 8, &self.seq.0.to_le_bytes());
        put(&mut out, 16, &self.segment.to_le_bytes());
        put(&mut out, 24, &self.offset.to_le_bytes());
        put(&mut out, 32, &self.len.to_le_bytes());
        put(&mut out, 36, &self.records.to_le_bytes());
        put(&mut out, 40, &self.note_len.to_le_bytes());
        put(&mut out, 48, &self.id.service);
        put(&mut out, 64, &self.id.replica);
        put(&mut out, 80, &self.previous);
        out
    }

    /// The head of a batch at this place of this log, if it looks like one. Its digest is not checked yet.
    pub fn decode(bytes: &[u8], id: &WalId, segment: u64, offset: u64) -> Option<BatchHeader> {
        let head: &[u8; BATCH] = bytes.first_chunk()?;
        let header = BatchHeader {
            id: WalId { service: array_at(head, 48), replica: array_at(head, 64) },
            seq: BatchSeq(u64_at(head, 8)),
            segment: u64_at(head, 16),
            offset: u64_at(head, 24),
            len: u32_at(head, 32),
            records: u32_at(head, 36),
            note_len: u32_at(head, 40),
            previous: array_at(head, 80),
        };
        let placed = header.id == *id && header.segment == segment && header.offset == offset;
        let sized = header.note_len as usize <= MAX_NOTE && header.len as usize >= BATCH + header.note_len as usize;
        (&head[..8] == BATCH_MAGIC && placed && sized).then_some(header)
    }
}

/// Sets the digest field of an encoded batch header.
pub(crate) fn set_batch_digest(header: &mut [u8; BATCH], digest: &Digest) {
    put(header, 112, digest);
}

/// A hasher for the digest of a batch: the note and all frames are to follow.
pub(crate) fn batch_hasher(header: &[u8; BATCH]) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.update(&header[..112]);
    hasher
}

/// A hasher for the digest of a record whose frame is at `at`: the payload is to follow.
pub(crate) fn record_hasher(id: &WalId, segment: u64, at: u64, seq: BatchSeq, len: u32, kind: u8) -> Hasher {
    let mut context = [0; 64];
    put(&mut context, 0, &id.service);
    put(&mut context, 16, &id.replica);
    put(&mut context, 32, &segment.to_le_bytes());
    put(&mut context, 40, &at.to_le_bytes());
    put(&mut context, 48, &seq.0.to_le_bytes());
    put(&mut context, 56, &len.to_le_bytes());
    put(&mut context, 60, &[kind]);
    put(&mut context, 61, b"rec");
    let mut hasher = Hasher::new();
    hasher.update(&context);
    hasher
}

/// What stands before a record's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub digest: Digest,
    pub seq: BatchSeq,
    pub len: u32,
    pub kind: u8,
}

impl Frame {
    pub fn encode(&self) -> [u8; FRAME] {
        let mut out = [0; FRAME];
        put(&mut out, 0, &self.digest);
        put(&mut out, 32, &self.seq.0.to_le_bytes());
        put(&mut out, 40, &self.len.to_le_bytes());
        put(&mut out, 44, &[self.kind]);
        out
    }

    pub fn decode(bytes: &[u8; FRAME]) -> Frame {
        Frame { digest: array_at(bytes, 0), seq: BatchSeq(u64_at(bytes, 32)), len: u32_at(bytes, 40), kind: bytes[44] }
    }

    /// Whether this frame, found at `at`, belongs there and to this payload.
    pub fn covers(&self, id: &WalId, segment: u64, at: u64, payload: &[u8]) -> bool {
        self.len as usize == payload.len()
            && *record_hasher(id, segment, at, self.seq, self.len, self.kind).update(payload).finalize().as_bytes()
                == self.digest
    }
}

/// One record within the bytes of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub kind: u8,
    /// Of the payload's first byte, from the head of the batch.
    pub start: usize,
    pub len: u32,
}

/// Checks all of a batch, `bytes` being exactly `header.len` of them. Leaves its records in `found`; returns its digest.
pub(crate) fn check_batch(header: &BatchHeader, bytes: &[u8], found: &mut Vec<Found>) -> Option<Digest> {
    found.clear();
    let head: &[u8; BATCH] = bytes.first_chunk()?;
    let mut at = BATCH + header.note_len as usize;
    let mut hasher = batch_hasher(head);
    hasher.update(bytes.get(BATCH..at)?);
    for _ in 0..header.records {
        let raw: &[u8; FRAME] = bytes.get(at..)?.first_chunk()?;
        let frame = Frame::decode(raw);
        let start = at + FRAME;
        let payload = bytes.get(start..start.checked_add(frame.len as usize)?)?;
        if frame.seq != header.seq || !frame.covers(&header.id, header.segment, header.offset + at as u64, payload) {
            return None;
        }
        hasher.update(raw);
        found.push(Found { kind: frame.kind, start, len: frame.len });
        at = start + payload.len();
    }
    let digest = *hasher.finalize().as_bytes();
    (at == bytes.len() && head[112..] == digest).then_some(digest)
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

// The three below are used on arrays of fixed size only, with offsets from the tables.

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("a field within its fixed-size head")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}
