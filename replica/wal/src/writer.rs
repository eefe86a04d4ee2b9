//! Makes batches durable, one write and one sync each. Raft-like protocols promise nothing before this returns.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::error::{CommitError, IoFailure};
use crate::format::{self, BLOCK, IDENTIFIER, ZEROS, seal_at, segment_name, slot_at};
use crate::wal::{Cursor, Cut, Opening, Prepared};
use crate::{BatchSeq, Disk, Options, SPARES};

/// The end of a log that the WAL thread holds.
///
/// - Commits batches in sequence, each exactly once.
/// - After a failed write or sync it is poisoned: every later call fails, and the process has to stop.
pub struct Writer<D> {
    disk: Arc<D>,
    options: Options,
    /// The lowest segment.
    first: u64,
    /// The segment that the last batch went to.
    segment: u64,
    /// The file of that segment.
    name: String,
    /// Where its seal is.
    seal_at: u64,
    /// The batch that has to come next.
    next: BatchSeq,
    /// Segments above `segment` that exist with their full size.
    spares: BTreeSet<u64>,
    /// The first failure's text, once there was one.
    poison: Option<String>,
}

impl<D: Disk> Writer<D> {
    /// `opened_at`: where the log ended when it was opened.
    pub(crate) fn new(disk: Arc<D>, options: Options, opened_at: Cursor, first: u64, spares: BTreeSet<u64>) -> Self {
        let Cursor { segment, end: seal_at, next, .. } = opened_at;
        Writer { disk, options, first, segment, name: segment_name(segment), seal_at, next, spares, poison: None }
    }

    /// Writes a batch and its identifier, and syncs them. Once it returns `Ok` the batch is durable.
    ///
    /// The first batch of a segment costs two syncs more, and the zero-filling of the segment if
    /// [`Writer::allocate_ahead`] was not called in time. Panics if the batch is not the next one.
    pub fn commit(&mut self, batch: &Prepared) -> Result<(), CommitError> {
        self.check_poison()?;
        assert!(batch.seq() == self.next, "batch {} committed where {} has to come", batch.seq(), self.next);
        match self.try_commit(batch) {
            Ok(()) => {
                self.next = BatchSeq(self.next.0 + 1);
                Ok(())
            }
            Err(failure) => Err(self.poison(failure)),
        }
    }

    /// Makes sure that the next segment exists, so that [`Writer::commit`] rarely has to wait for it. Cheap if it does.
    ///
    /// A full disk does not poison the writer here: nothing was promised, this segment has room left, and the next call
    /// tries again.
    pub fn allocate_ahead(&mut self) -> Result<(), CommitError> {
        self.check_poison()?;
        match self.allocate(self.segment + 1) {
            Ok(()) => Ok(()),
            Err(failure) if failure.is_no_space() => Err(failure.into()),
            Err(failure) => Err(self.poison(failure)),
        }
    }

    /// Lets segments go: the first [`SPARES`] of the right size are used again, the others removed. Twice is as good as once.
    ///
    /// After a failure the writer is poisoned, and the log begins with whichever segment the next start finds. Panics if a
    /// batch that was prepared before the cut is not committed: the cut could take the newest note along.
    pub fn cut(&mut self, cut: &Cut) -> Result<Freed, CommitError> {
        self.check_poison()?;
        assert!(cut.below <= self.segment, "cut below segment {} while writing segment {}", cut.below, self.segment);
        let mut freed = Freed { recycled: 0, removed: 0 };
        while self.first < cut.below {
            if let Err(failure) = self.free(self.first, &mut freed) {
                return Err(self.poison(failure));
            }
            self.first += 1;
        }
        Ok(freed)
    }

    /// One operation, durable when it returns: no start finds a gap.
    fn free(&mut self, segment: u64, freed: &mut Freed) -> Result<(), IoFailure> {
        let name = segment_name(segment);
        let fits = self.spares.len() < SPARES
            && self.disk.len(&name).map_err(IoFailure::of("read the size of", &name))? == self.options.segment_bytes;
        if fits {
            let number = self.spares.last().copied().unwrap_or(self.segment) + 1;
            self.disk.rename(&name, &segment_name(number)).map_err(IoFailure::of("rename", &name))?;
            self.spares.insert(number);
            freed.recycled += 1;
        } else {
            self.disk.remove(&name).map_err(IoFailure::of("remove", &name))?;
            freed.removed += 1;
        }
        Ok(())
    }

    fn try_commit(&mut self, batch: &Prepared) -> Result<(), IoFailure> {
        let identifier = &batch.identifier;
        if let Some(opening) = &batch.opening {
            self.begin_segment(identifier.segment, opening)?;
        }
        assert!(
            identifier.segment == self.segment,
            "batch {} is placed in segment {}",
            identifier.seq,
            identifier.segment
        );
        let mut slices: Vec<&[u8]> = Vec::with_capacity(batch.pieces.len() + 2);
        slices.push(&batch.header);
        slices.extend(batch.pieces.iter().map(|piece| &piece[..]).filter(|piece| !piece.is_empty()));
        let padding = batch.bytes() - u64::from(identifier.len);
        if padding > 0 {
            slices.push(&ZEROS[..padding as usize]);
        }
        let slot_padding = &ZEROS[IDENTIFIER + identifier.note.len()..];
        let slot: [&[u8]; 3] = [&batch.identifier_head, &identifier.note, slot_padding];
        // Data before identifier: if the process is killed between the two, or the kernel starts to write back in between,
        // the batch is torn and not faulty.
        let slot_at = slot_at(self.seal_at, identifier.seq);
        let parts: [(u64, &[&[u8]]); 2] = [(identifier.offset, &slices), (slot_at, &slot)];
        self.disk.write_at(&self.name, &parts).map_err(IoFailure::of("write", &self.name))?;
        self.disk.sync(&self.name).map_err(IoFailure::of("sync", &self.name))
    }

    /// The order matters: a header proves that all before it was durable, a seal proves that the header was.
    fn begin_segment(&mut self, segment: u64, opening: &Opening) -> Result<(), IoFailure> {
        assert!(segment == self.segment + 1, "segment {segment} begun after {}", self.segment);
        self.allocate(segment)?;
        let name = segment_name(segment);
        let header: [&[u8]; 2] = [&opening.header, &ZEROS[format::SEGMENT_HEADER..]];
        self.disk.write_at(&name, &[(0, &header)]).map_err(IoFailure::of("write", &name))?;
        self.disk.sync(&name).map_err(IoFailure::of("sync", &name))?;
        let seal: [&[u8]; 2] = [&opening.seal, &ZEROS[format::SEAL..BLOCK as usize]];
        self.disk.write_at(&self.name, &[(self.seal_at, &seal)]).map_err(IoFailure::of("write", &self.name))?;
        self.disk.sync(&self.name).map_err(IoFailure::of("sync", &self.name))?;
        self.spares.remove(&segment);
        self.segment = segment;
        self.name = name;
        self.seal_at = seal_at(self.options.segment_bytes);
        Ok(())
    }

    fn allocate(&mut self, segment: u64) -> Result<(), IoFailure> {
        if self.spares.contains(&segment) {
            return Ok(());
        }
        let name = segment_name(segment);
        if let Err(error) = self.disk.allocate(&name, self.options.segment_bytes) {
            // What is there of it, if anything, would be in the way of the next attempt and takes the space that is short.
            let _ = self.disk.remove(&name);
            return Err(IoFailure::of("allocate", &name)(error));
        }
        self.spares.insert(segment);
        Ok(())
    }

    fn check_poison(&self) -> Result<(), CommitError> {
        match &self.poison {
            None => Ok(()),
            Some(cause) => Err(CommitError::Poisoned { cause: cause.clone() }),
        }
    }

    fn poison(&mut self, failure: IoFailure) -> CommitError {
        self.poison = Some(failure.to_string());
        failure.into()
    }
}

/// What became of the segments that a cut let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freed {
    /// Segments that will be used again.
    pub recycled: u64,
    /// Segments whose files are gone.
    pub removed: u64,
}
