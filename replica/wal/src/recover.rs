//! Finds out what a log holds, and tells torn from faulty. Changes nothing: that is `repair`'s, once all is judged.
//!
//! Everything read here may be damaged, from another log, or from a recycled segment's past: nothing is used before it
//! checked out, and what contradicts is an error, never a panic.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};

use crate::error::{Fault, IoFailure, OpenError};
use crate::format::{
    self, AROUND, BATCH, BLOCK, BatchHeader, DATA_AT, Digest, Found, Head, Identifier, SEGMENT_HEADER, SLOTS, Seal,
    SegmentHeader, TRAILER, seal_at, segment_name, segment_number, slot_at,
};
use crate::repair::{self, Tail};
use crate::wal::{Cursor, valid_segment_bytes};
use crate::{BatchSeq, Disk, Location, Options, RecoveredRecord, Recovery, WalId};

/// Batches at the end of the log that are rewritten.
const REWRITTEN: usize = 2;

/// A batch at the end of the log that checked out.
pub(crate) struct Kept {
    /// As it should be in its slot.
    pub identifier: Identifier,
    /// The batch without padding, for the last [`REWRITTEN`].
    pub bytes: Bytes,
}

/// The places of a segment that are not batches, as far as they check out.
struct Segment {
    number: u64,
    /// Size of the file.
    len: u64,
    /// `None`: a spare, never begun.
    header: Option<SegmentHeader>,
    /// Those that check out.
    identifiers: Vec<Identifier>,
    seal: Option<Seal>,
}

/// What [`recover`] hands to [`crate::Wal::open`].
pub(crate) struct Recovered {
    /// Where the log ends.
    pub cursor: Cursor,
    /// The segment of the last batch.
    pub last_segment: Option<u64>,
    /// Numbers of the spare segments.
    pub spares: BTreeSet<u64>,
    pub recovery: Recovery,
}

/// See [`crate::Wal::open`].
pub(crate) fn recover<D: Disk>(
    disk: &D,
    id: &WalId,
    options: &Options,
    visit: &mut dyn FnMut(RecoveredRecord),
) -> Result<Recovered, OpenError> {
    let mut segments = survey(disk, id)?;
    let last_in_use = judge(&segments)?;
    let spares = segments.split_off(&(last_in_use + 1)).into_values().map(|spare| (spare.number, spare.len)).collect();
    let Some(first) = segments.values().next().and_then(|segment| segment.header) else {
        return Ok(repair::create(disk, id, options, spares)?);
    };

    let mut scan = Scan { disk, id, segments: &segments, kept: VecDeque::new(), found: Vec::new() };
    // Below a cut there is nothing to compare with: its own header says how the log went on there.
    let mut at = if first.segment == 1 { (BatchSeq(1), Digest::default()) } else { (first.first, first.previous) };
    let mut offset = DATA_AT;
    for segment in segments.values() {
        (at, offset) = scan.segment(segment, at, visit)?;
    }
    let (next, previous) = at;
    if first.segment > 1 && scan.kept.is_empty() {
        // A cut leaves the last batch: this one took it along.
        let sequence = BatchSeq(first.first.0.saturating_sub(1).max(1));
        return Err(scan.faulty(first.segment - 1, 0, sequence, Fault::SegmentMissing));
    }
    let active = segments.last_key_value().and_then(|(_, segment)| segment.header).expect("judged to be in use");
    let cursor = Cursor { segment: active.segment, offset, end: seal_at(active.segment_bytes), next, previous };
    let before = segments.get(&(active.segment - 1)).and_then(|segment| segment.header);
    let tail = Tail { cursor, header: active, before, kept: scan.kept };
    let cut = repair::settle(disk, id, &tail)?;
    let spares = repair::spares(disk, options, spares)?;
    let last = tail.kept.back();
    let recovery = Recovery {
        last: last.map(|kept| kept.identifier.seq),
        note: last.map(|kept| kept.identifier.note.clone()),
        cut,
        created: false,
        first_segment: first.segment,
        segments: segments.len() as u64,
    };
    Ok(Recovered { cursor, last_segment: last.map(|kept| kept.identifier.segment), spares, recovery })
}

/// Reads what stands around the batches of each segment, from the device.
fn survey<D: Disk>(disk: &D, id: &WalId) -> Result<BTreeMap<u64, Segment>, OpenError> {
    let names = disk.list().map_err(IoFailure::of("list", "the data directory"))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
    numbers.sort_unstable();
    let mut segments = BTreeMap::new();
    for number in numbers {
        segments.insert(number, survey_segment(disk, id, number)?);
    }
    Ok(segments)
}

fn survey_segment<D: Disk>(disk: &D, id: &WalId, number: u64) -> Result<Segment, OpenError> {
    let file = segment_name(number);
    disk.drop_cache(&file).map_err(IoFailure::of("drop the cache of", &file))?;
    let len = disk.len(&file).map_err(IoFailure::of("read the size of", &file))?;
    let mut head = [0; SEGMENT_HEADER];
    let there = len.min(SEGMENT_HEADER as u64) as usize;
    disk.read_at(&file, 0, &mut head[..there]).map_err(IoFailure::of("read", &file))?;
    let header = match SegmentHeader::decode(&head) {
        Head::Newer(version) => return Err(OpenError::NewerFormat { file, version, supported: format::VERSION }),
        Head::Ours(header) if header.id != *id => {
            return Err(OpenError::Foreign { file, theirs: header.id, ours: *id });
        }
        // Another number: a recycled segment whose new life has not begun.
        Head::Ours(header) => (header.segment == number).then_some(header),
        Head::None => None,
    };
    let (identifiers, seal) = survey_trailer(disk, id, number, len, header.as_ref())?;
    let segment = Segment { number, len, header, identifiers, seal };

    let faulty = |sequence, fault| {
        let note = segment.identifiers.iter().max_by_key(|identifier| identifier.seq);
        let note = note.map(|identifier| identifier.note.clone());
        Err(OpenError::Faulty { segment: number, offset: 0, sequence, fault, note })
    };
    match &segment.header {
        Some(header) if !valid_segment_bytes(header.segment_bytes) => {
            return faulty(header.first, Fault::Contradiction("the segment's header has an impossible size"));
        }
        Some(header) if len < header.segment_bytes => {
            return faulty(header.first, Fault::SegmentShort { len, expected: header.segment_bytes });
        }
        Some(_) => {}
        // A header is durable before anything else in its segment: what stands here alone was robbed of it.
        None => {
            let first = segment.identifiers.iter().map(|identifier| identifier.seq).min();
            let first = first.or(segment.seal.as_ref().map(|seal| seal.next));
            let first = match first {
                Some(first) => Some(first),
                None => read_batch(disk, id, number, DATA_AT, len, None, &mut Vec::new())?.map(|read| read.header.seq),
            };
            if let Some(first) = first {
                return faulty(first, Fault::SegmentHeader);
            }
        }
    }
    Ok(segment)
}

/// Reads what stands behind the batches. A header says where that is; without one, the size of the file, `len`.
fn survey_trailer<D: Disk>(
    disk: &D,
    id: &WalId,
    number: u64,
    len: u64,
    header: Option<&SegmentHeader>,
) -> Result<(Vec<Identifier>, Option<Seal>), IoFailure> {
    let size = header.map_or(len, |header| header.segment_bytes);
    if !(AROUND..=len).contains(&size) {
        return Ok((Vec::new(), None));
    }
    let file = segment_name(number);
    let mut bytes = vec![0; TRAILER as usize];
    disk.read_at(&file, seal_at(size), &mut bytes).map_err(IoFailure::of("read", &file))?;
    let slot = |slot| Identifier::decode(&bytes[slot_at(0, BatchSeq(slot)) as usize..], id, number, slot);
    Ok(((0..SLOTS).filter_map(slot).collect(), Seal::decode(&bytes, id, number)))
}

/// The last segment in use, or 0: all up to it are in use, from the lowest that is there, without gaps, or the log is faulty.
fn judge(segments: &BTreeMap<u64, Segment>) -> Result<u64, OpenError> {
    let Some((last, _)) = segments.iter().rfind(|(_, segment)| segment.header.is_some()) else { return Ok(0) };
    let newest = segments.values().flat_map(|segment| &segment.identifiers).max_by_key(|identifier| identifier.seq);
    let note = newest.map(|identifier| identifier.note.clone());
    let mut sequence = BatchSeq(1);
    // Spares have higher numbers than what is in use: a file below that has no header was robbed of it.
    let first = segments.first_key_value().map_or(1, |(first, _)| *first);
    for number in first..=*last {
        let fault = match segments.get(&number) {
            Some(Segment { header: Some(header), seal, .. }) => {
                // Of use only if the next segment turns out not to be there.
                sequence = seal.as_ref().map_or(header.first, |seal| seal.next);
                continue;
            }
            Some(_) => Fault::SegmentHeader,
            None => Fault::SegmentMissing,
        };
        return Err(OpenError::Faulty { segment: number, offset: 0, sequence, fault, note });
    }
    if let Some(seal) = &segments[last].seal {
        let segment = last + 1;
        let fault = if segments.contains_key(&segment) { Fault::SegmentHeader } else { Fault::SegmentMissing };
        return Err(OpenError::Faulty { segment, offset: 0, sequence: seal.next, fault, note });
    }
    Ok(*last)
}

/// The walk along the chain.
struct Scan<'a, D> {
    disk: &'a D,
    id: &'a WalId,
    segments: &'a BTreeMap<u64, Segment>,
    /// The last batches so far, at most [`SLOTS`].
    kept: VecDeque<Kept>,
    /// Records of the batch at hand.
    found: Vec<Found>,
}

impl<D: Disk> Scan<'_, D> {
    /// Visits the batches of a segment until the chain breaks, and judges the break.
    ///
    /// `at`: the sequence number that comes next, and the digest before it. Returned for the end, with its offset.
    fn segment(
        &mut self,
        segment: &Segment,
        at: (BatchSeq, Digest),
        visit: &mut dyn FnMut(RecoveredRecord),
    ) -> Result<((BatchSeq, Digest), u64), OpenError> {
        let (number, header) = (segment.number, segment.header.expect("judged to be in use"));
        let (mut next, mut previous) = at;
        if (header.first, header.previous) != at {
            let fault = if header.first > next {
                Fault::Continued(header.first)
            } else {
                Fault::Contradiction("the segment's header does not continue the segment before")
            };
            return Err(self.faulty(number, 0, next, fault));
        }
        let mut offset = DATA_AT;
        while let Some(read) = read_batch(
            self.disk,
            self.id,
            number,
            offset,
            seal_at(header.segment_bytes),
            Some((next, &previous)),
            &mut self.found,
        )? {
            self.visit(&read, visit);
            (next, previous) = (BatchSeq(next.0.saturating_add(1)), read.digest);
            offset += format::padded(read.bytes.len() as u64);
            self.keep(read);
        }
        self.judge_break(segment, next, &previous, offset)?;
        Ok(((next, previous), offset))
    }

    /// The chain ends before `next`: is that the end of what was durable?
    fn judge_break(&self, segment: &Segment, next: BatchSeq, previous: &Digest, at: u64) -> Result<(), OpenError> {
        let number = segment.number;
        if let Some(later) =
            segment.identifiers.iter().map(|identifier| identifier.seq).filter(|seq| *seq >= next).max()
        {
            return Err(self.faulty(number, at, next, Fault::Identified(later)));
        }
        let contradicted = segment.identifiers.iter().any(|identifier| {
            self.kept.iter().any(|kept| kept.identifier.seq == identifier.seq && kept.identifier != *identifier)
        });
        if contradicted {
            return Err(self.faulty(number, at, next, Fault::Contradiction("an identifier is of another batch")));
        }
        // A successor's header is compared when its turn comes; a seal without one was found before.
        match &segment.seal {
            Some(seal) if seal.next > next => Err(self.faulty(number, at, next, Fault::Continued(seal.next))),
            Some(seal) if seal.next < next || seal.last != *previous => {
                Err(self.faulty(number, at, next, Fault::Contradiction("the seal is of another batch")))
            }
            Some(_) | None => match self.segments.get(&(number + 1)).and_then(|segment| segment.header) {
                Some(header) if header.first > next => {
                    Err(self.faulty(number, at, next, Fault::Continued(header.first)))
                }
                Some(_) | None => Ok(()),
            },
        }
    }

    fn visit(&self, read: &ReadBatch, visit: &mut dyn FnMut(RecoveredRecord)) {
        let BatchHeader { seq, segment, offset, .. } = read.header;
        for Found { kind, start, len } in &self.found {
            visit(RecoveredRecord {
                seq,
                kind: *kind,
                location: Location { segment, offset: offset + *start as u64, len: *len },
                payload: read.bytes.slice(*start..*start + *len as usize),
            });
        }
    }

    fn keep(&mut self, read: ReadBatch) {
        let ReadBatch { header, bytes, digest } = read;
        // A copy, or the note would hold on to the whole batch.
        let note = Bytes::copy_from_slice(&bytes[BATCH..BATCH + header.note_len as usize]);
        let BatchHeader { seq, segment, offset, len, .. } = header;
        self.kept.push_back(Kept { identifier: Identifier { seq, segment, offset, len, digest, note }, bytes });
        if self.kept.len() > SLOTS as usize {
            self.kept.pop_front();
        }
        if let Some(old) = self.kept.len().checked_sub(REWRITTEN + 1) {
            self.kept[old].bytes = Bytes::new();
        }
    }

    fn faulty(&self, segment: u64, offset: u64, sequence: BatchSeq, fault: Fault) -> OpenError {
        let surveyed = self.segments.values().flat_map(|segment| &segment.identifiers);
        let newest = surveyed.chain(self.kept.iter().map(|kept| &kept.identifier)).max_by_key(|found| found.seq);
        OpenError::Faulty { segment, offset, sequence, fault, note: newest.map(|found| found.note.clone()) }
    }
}

/// A batch that checks out.
struct ReadBatch {
    header: BatchHeader,
    /// Without padding.
    bytes: Bytes,
    digest: Digest,
}

/// The batch at `offset` of a segment whose batches lie before `end`, if it checks out and is the `expected` one.
fn read_batch<D: Disk>(
    disk: &D,
    id: &WalId,
    segment: u64,
    offset: u64,
    end: u64,
    expected: Option<(BatchSeq, &Digest)>,
    found: &mut Vec<Found>,
) -> Result<Option<ReadBatch>, IoFailure> {
    let room = end.saturating_sub(offset);
    if room < BLOCK {
        return Ok(None);
    }
    let name = segment_name(segment);
    let mut bytes = BytesMut::zeroed(BLOCK as usize);
    disk.read_at(&name, offset, &mut bytes).map_err(IoFailure::of("read", &name))?;
    let Some(header) = BatchHeader::decode(&bytes, id, segment, offset) else { return Ok(None) };
    let next = expected.is_none_or(|expected| expected == (header.seq, &header.previous));
    if !next || format::padded(u64::from(header.len)) > room {
        return Ok(None);
    }
    let len = header.len as usize;
    let there = bytes.len().min(len);
    bytes.resize(len, 0);
    if there < len {
        disk.read_at(&name, offset + there as u64, &mut bytes[there..]).map_err(IoFailure::of("read", &name))?;
    }
    let digest = format::check_batch(&header, &bytes, found);
    Ok(digest.map(|digest| ReadBatch { header, bytes: bytes.freeze(), digest }))
}
