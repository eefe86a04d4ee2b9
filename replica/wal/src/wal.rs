//! Places batches, frames and chains them. Pure once the log is open: the disk is the [`Writer`]'s.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{BufMut, Bytes, BytesMut};

use crate::error::{OpenError, PrepareError};
use crate::format::{
    self, AROUND, BATCH, BLOCK, BatchHeader, DATA_AT, Digest, FRAME, Frame, Identifier, Seal, SegmentHeader,
};
use crate::recover::Recovered;
use crate::{BatchSeq, Disk, Location, MAX_NOTE, Options, Reader, Record, RecoveredRecord, Recovery, WalId, Writer};

/// Parts of a payload up to this size are copied next to their frame: cheaper than a slice of their own in the write.
const COPY_UP_TO: usize = 512;

/// Smallest segment: two blocks of batches.
pub(crate) const MIN_SEGMENT: u64 = AROUND + 2 * BLOCK;
/// Largest segment: lengths within it fit into u32 with room to spare.
const MAX_SEGMENT: u64 = 1 << 30;

/// What a batch takes in its segment besides its records.
pub(crate) const BATCH_OVERHEAD: u64 = (BATCH + MAX_NOTE) as u64;

/// Where the next batch goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    pub segment: u64,
    /// A block boundary in `DATA_AT ..= end`.
    pub offset: u64,
    /// Where the room for batches ends: at the seal.
    pub end: u64,
    pub next: BatchSeq,
    /// Digest of the batch before.
    pub previous: Digest,
}

/// An open log: the end that the engine thread holds.
///
/// - Batches are prepared in the order in which they are to be committed, and may run ahead of the writer.
/// - A batch that is prepared but not committed when the process stops was never there.
pub struct Wal<D> {
    disk: Arc<D>,
    id: WalId,
    options: Options,
    cursor: Cursor,
    /// Where the log ended when it was opened: the writer begins there, however much was prepared since.
    opened_at: Cursor,
    /// The lowest segment that no cut was asked for.
    first_segment: u64,
    /// The segment of the last batch, prepared or recovered: never cut.
    last_segment: Option<u64>,
    /// The lowest segment, and the spare ones, when the log was opened.
    opened_with: (u64, BTreeSet<u64>),
    writer_taken: AtomicBool,
}

impl<D: Disk> Wal<D> {
    /// Recovers the log on `disk`, or makes an empty one if there is none. Calls `visit` for each record, in order.
    ///
    /// When it returns, everything visited is durable and not just cached, and a torn tail is gone. When it fails, what was
    /// visited is to be forgotten. Memory: the largest batch, three times.
    pub fn open(
        disk: Arc<D>,
        id: WalId,
        options: Options,
        visit: &mut dyn FnMut(RecoveredRecord),
    ) -> Result<(Wal<D>, Recovery), OpenError> {
        if !valid_segment_bytes(options.segment_bytes) {
            return Err(OpenError::SegmentBytes { segment_bytes: options.segment_bytes });
        }
        let Recovered { cursor, last_segment, spares, recovery } =
            crate::recover::recover(&*disk, &id, &options, visit)?;
        let wal = Wal {
            disk,
            id,
            options,
            cursor,
            opened_at: cursor,
            first_segment: recovery.first_segment,
            last_segment,
            opened_with: (recovery.first_segment, spares),
            writer_taken: AtomicBool::new(false),
        };
        Ok((wal, recovery))
    }

    /// Gives the next sequence number and a place to a batch, and computes its bytes. No IO; nothing is durable yet.
    ///
    /// The locations are those of `records`, in order. After an error the log is as before.
    pub fn prepare(&mut self, records: Vec<Record>, note: Bytes) -> Result<(Prepared, Vec<Location>), PrepareError> {
        if note.len() > MAX_NOTE {
            return Err(PrepareError::NoteTooLarge { bytes: note.len(), max: MAX_NOTE });
        }
        let (mut framed, mut copied) = (0_u64, note.len());
        for record in &records {
            framed += FRAME as u64;
            copied += FRAME;
            for part in &record.payload {
                framed += part.len() as u64;
                copied += if part.len() <= COPY_UP_TO { part.len() } else { 0 };
            }
        }
        let max = self.max_batch_bytes();
        if framed > max {
            return Err(PrepareError::TooLarge { bytes: framed, max });
        }
        let len = BATCH as u64 + note.len() as u64 + framed;
        let opening = self.make_room(format::padded(len));
        let Cursor { segment, offset, next: seq, previous, .. } = self.cursor;

        let batch = BatchHeader {
            id: self.id,
            seq,
            segment,
            offset,
            len: u32::try_from(len).expect("a batch fits into a segment of 1 GiB at most"),
            records: u32::try_from(records.len()).expect("each record takes FRAME bytes of a u32 length"),
            note_len: note.len() as u32,
            previous,
        };
        let mut header = batch.encode();
        let mut hasher = format::batch_hasher(&header);
        hasher.update(&note);

        // One allocation for everything that is copied; `split` hands out pieces of it.
        let mut copies = BytesMut::with_capacity(copied);
        copies.put_slice(&note);
        let mut pieces = Vec::with_capacity(8);
        let mut locations = Vec::with_capacity(records.len());
        let mut at = offset + (BATCH + note.len()) as u64;
        for record in records {
            let len = record.payload.iter().map(Bytes::len).sum::<usize>() as u32;
            let mut payload = format::record_hasher(&self.id, segment, at, seq, len, record.kind);
            record.payload.iter().for_each(|part| {
                payload.update(part);
            });
            let frame = Frame { digest: *payload.finalize().as_bytes(), seq, len, kind: record.kind }.encode();
            hasher.update(&frame);
            copies.put_slice(&frame);
            for part in record.payload {
                if part.len() <= COPY_UP_TO {
                    copies.put_slice(&part);
                } else {
                    pieces.push(copies.split().freeze());
                    pieces.push(part);
                }
            }
            locations.push(Location { segment, offset: at + FRAME as u64, len });
            at += FRAME as u64 + u64::from(len);
        }
        pieces.push(copies.freeze());
        assert!(at == offset + len, "batch {seq} ends at {at}, not at {offset} + {len}");

        let digest = *hasher.finalize().as_bytes();
        format::set_batch_digest(&mut header, &digest);
        let identifier = Identifier { seq, segment, offset, len: batch.len, digest, note };
        self.last_segment = Some(segment);
        let head = identifier.encode(&self.id);
        self.cursor =
            Cursor { offset: offset + format::padded(len), next: BatchSeq(seq.0 + 1), previous: digest, ..self.cursor };
        Ok((Prepared { header, pieces, identifier, identifier_head: head, opening }, locations))
    }

    /// Moves to the next segment if `bytes` do not fit into this one.
    fn make_room(&mut self, bytes: u64) -> Option<Box<Opening>> {
        if self.cursor.end - self.cursor.offset >= bytes {
            return None;
        }
        let Cursor { segment, next, previous, .. } = self.cursor;
        let segment_bytes = self.options.segment_bytes;
        let header = SegmentHeader { id: self.id, segment: segment + 1, first: next, segment_bytes, previous };
        let seal = Seal { segment, next, last: previous };
        let end = format::seal_at(segment_bytes);
        self.cursor = Cursor { segment: segment + 1, offset: DATA_AT, end, next, previous };
        assert!(DATA_AT + bytes <= end, "a batch of {bytes} bytes passed the check against {segment_bytes}");
        Some(Box::new(Opening { header: header.encode(), seal: seal.encode(&self.id) }))
    }

    /// Says that records before `segment` (of [`Location::segment`]) are needed no more. `None` if there is nothing to cut.
    ///
    /// The cut goes to [`Writer::cut`] after the batches that were prepared before it, in the same queue. No record before
    /// `segment` may be read any more from now on. Whatever is asked for, the segment of the last batch prepared stays, with
    /// all behind it: so does the newest note. No IO; until the writer is done, a start finds what was cut, or a part of it.
    pub fn cut_below(&mut self, segment: u64) -> Option<Cut> {
        let below = segment.min(self.last_segment?);
        if below <= self.first_segment {
            return None;
        }
        self.first_segment = below;
        Some(Cut { below })
    }

    /// Number of the lowest segment that holds records: what was cut is not counted, even if the writer is not done yet.
    pub fn first_segment(&self) -> u64 {
        self.first_segment
    }

    /// [`Options::max_batch_bytes`] of this log.
    pub fn max_batch_bytes(&self) -> u64 {
        self.options.max_batch_bytes()
    }

    /// The sequence number that the next batch gets.
    pub fn next_seq(&self) -> BatchSeq {
        self.cursor.next
    }

    /// The end that writes, for the WAL thread. Panics if asked for twice: two writers would overwrite each other.
    pub fn writer(&self) -> Writer<D> {
        assert!(!self.writer_taken.swap(true, Ordering::Relaxed), "a log has one writer");
        let (first_segment, spares) = self.opened_with.clone();
        Writer::new(Arc::clone(&self.disk), self.options, self.opened_at, first_segment, spares)
    }

    /// An end that reads.
    pub fn reader(&self) -> Reader<D> {
        Reader::new(Arc::clone(&self.disk), self.id)
    }
}

/// Whether segments may have this size.
pub(crate) fn valid_segment_bytes(bytes: u64) -> bool {
    (MIN_SEGMENT..=MAX_SEGMENT).contains(&bytes) && bytes.is_multiple_of(BLOCK)
}

/// Segments to let go, ready for [`Writer::cut`].
#[derive(Debug, PartialEq, Eq)]
pub struct Cut {
    /// The lowest segment that stays.
    pub(crate) below: u64,
}

impl Cut {
    /// Number of the lowest segment that stays.
    pub fn first_kept(&self) -> u64 {
        self.below
    }
}

/// A batch with its place and its bytes, ready for [`Writer::commit`].
pub struct Prepared {
    /// The head of the batch, with its digest.
    pub(crate) header: [u8; BATCH],
    /// What follows it: note, frames, payloads.
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) identifier: Identifier,
    /// The identifier's bytes before its note.
    pub(crate) identifier_head: [u8; format::IDENTIFIER],
    /// Set if this batch is the first of its segment.
    pub(crate) opening: Option<Box<Opening>>,
}

/// What has to be written before the first batch of a segment.
pub(crate) struct Opening {
    /// Of the segment that is begun.
    pub header: [u8; format::SEGMENT_HEADER],
    /// Of the segment before.
    pub seal: [u8; format::SEAL],
}

impl Prepared {
    /// The batch's sequence number.
    pub fn seq(&self) -> BatchSeq {
        self.identifier.seq
    }

    /// Bytes that it takes in the log: a multiple of 4 KiB.
    pub fn bytes(&self) -> u64 {
        format::padded(u64::from(self.identifier.len))
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identifier { seq, segment, offset, .. } = self.identifier;
        write!(f, "batch {seq} at byte {offset} of segment {segment}, {} bytes", self.bytes())
    }
}
