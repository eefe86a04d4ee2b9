//! Makes batches durable, one write and one sync each. Raft-like protocols promise nothing before this returns.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::error::{CommitError, IoFailure};
use crate::format::{self, BLOCK, IDENTIFIER, ZEROS, seal_at, segment_name, slot_at};
use crate::spares::{Allocator, Spares};
use crate::wal::{Cursor, Cut, Opening, Prepared};
use crate::{BatchSeq, Disk, Options};

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
    spares: Arc<Spares<D>>,
}

impl<D: Disk> Writer<D> {
    /// `opened_at`: where the log ended when it was opened. `spares`: segments that were ready then.
    pub(crate) fn new(disk: Arc<D>, options: Options, opened_at: Cursor, first: u64, spares: BTreeSet<u64>) -> Self {
        let Cursor { segment, end: seal_at, next, .. } = opened_at;
        let spares = Spares::new(Arc::clone(&disk), options.segment_bytes, segment, spares);
        Writer { disk, options, first, segment, name: segment_name(segment), seal_at, next, spares }
    }

    /// Writes a batch and its identifier, and syncs them. Once it returns `Ok` the batch is durable.
    ///
    /// The first batch of a segment costs two syncs more, and the zero-filling of the segment, or what is left of it, if
    /// nobody made the segment in time. Panics if the batch is not the next one.
    pub fn commit(&mut self, batch: &Prepared) -> Result<(), CommitError> {
        self.spares.check_poison()?;
        assert!(batch.seq() == self.next, "batch {} committed where {} has to come", batch.seq(), self.next);
        self.try_commit(batch).map_err(|error| self.poison(error))?;
        self.next = BatchSeq(self.next.0 + 1);
        Ok(())
    }

    /// Whether the next segment is neither there nor being made: the moment for [`Allocator::make_next`].
    pub fn lacks_next(&self) -> bool {
        self.spares.lacks_next()
    }

    /// Makes the next segment in this thread, if it is not there: as [`Allocator::make_next`], with its errors.
    pub fn allocate_ahead(&mut self) -> Result<(), CommitError> {
        self.spares.make_next()
    }

    /// What makes the next segment in another thread, so that no commit waits for its zero-filling.
    pub fn allocator(&self) -> Allocator<D> {
        Allocator { spares: Arc::clone(&self.spares) }
    }

    /// Lets segments go: the first few of the right size, up to [`crate::SPARES`], are used again, the others removed. Twice
    /// is as good as once.
    ///
    /// After a failure the writer is poisoned, and the log begins with whichever segment the next start finds. Panics if a
    /// batch that was prepared before the cut is not committed: the cut could take the newest note along.
    pub fn cut(&mut self, cut: &Cut) -> Result<Freed, CommitError> {
        self.spares.check_poison()?;
        assert!(cut.below <= self.segment, "cut below segment {} while writing segment {}", cut.below, self.segment);
        let mut freed = Freed { recycled: 0, removed: 0 };
        while self.first < cut.below {
            self.free(self.first, &mut freed).map_err(|failure| self.poison(failure.into()))?;
            self.first += 1;
        }
        Ok(freed)
    }

    /// One operation, durable when it returns: no start finds a gap.
    fn free(&mut self, segment: u64, freed: &mut Freed) -> Result<(), IoFailure> {
        if self.spares.recycle(segment)? {
            freed.recycled += 1;
        } else {
            let name = segment_name(segment);
            self.disk.remove(&name).map_err(IoFailure::of("remove", &name))?;
            freed.removed += 1;
        }
        Ok(())
    }

    fn try_commit(&mut self, batch: &Prepared) -> Result<(), CommitError> {
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
        self.write(&self.name, &[(identifier.offset, &slices), (slot_at, &slot)])
    }

    /// The order matters: a header proves that all before it was durable, a seal proves that the header was.
    fn begin_segment(&mut self, segment: u64, opening: &Opening) -> Result<(), CommitError> {
        assert!(segment == self.segment + 1, "segment {segment} begun after {}", self.segment);
        self.spares.make_next()?;
        self.spares.take_next();
        let name = segment_name(segment);
        self.write(&name, &[(0, &[&opening.header, &ZEROS[format::SEGMENT_HEADER..]])])?;
        self.write(&self.name, &[(self.seal_at, &[&opening.seal, &ZEROS[format::SEAL..BLOCK as usize]])])?;
        self.segment = segment;
        self.name = name;
        self.seal_at = seal_at(self.options.segment_bytes);
        Ok(())
    }

    /// Writes and syncs.
    fn write(&self, name: &str, parts: &[(u64, &[&[u8]])]) -> Result<(), CommitError> {
        self.disk.write_at(name, parts).map_err(IoFailure::of("write", name))?;
        Ok(self.disk.sync(name).map_err(IoFailure::of("sync", name))?)
    }

    /// What a commit or a cut could not do leaves the log in doubt, a full disk included.
    fn poison(&self, error: CommitError) -> CommitError {
        match error {
            CommitError::Io(failure) => self.spares.poison(failure),
            CommitError::Poisoned { cause } => CommitError::Poisoned { cause },
        }
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
