//! Where one chunk ends and the next begins. Freezing and restoring ask the same cutter, so that a state has one sequence of
//! chunks and a snapshot that is cut otherwise is refused.

use lockstep_types::Digest;

/// Bytes of a chunk at most.
pub const CHUNK_BYTES_MAX: usize = 1088 << 10;

/// From this size on a chunk ends at the next name that cuts.
pub(super) const CUT_BYTES: usize = 256 << 10;

/// One name in so many cuts: names whose hash has six low zero bits.
const NAMES_PER_CUT: u8 = 64;

/// Bytes before the first record: the kind of the chunk.
const KIND_BYTES: usize = 1;

/// How large chunks get: tests make small ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub cut: usize,
    pub max: usize,
}

impl Sizes {
    pub const USUAL: Sizes = Sizes { cut: CUT_BYTES, max: CHUNK_BYTES_MAX };
}

/// The chunk under way.
///
/// A chunk of at least [`CUT_BYTES`] ends after the first entry whose *name* (the key, the session's id) hashes to a cut, and
/// before a record that would take it above [`CHUNK_BYTES_MAX`]. The name decides and not the count: after an entry that was
/// added, removed or resized, the cuts fall on the same names again within a few chunks, and all others stay as they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cutter {
    sizes: Sizes,
    bytes: usize,
    sealed: bool,
}

impl Cutter {
    pub fn new(sizes: Sizes) -> Self {
        Cutter { sizes, bytes: KIND_BYTES, sealed: false }
    }

    /// Whether a record of that many bytes has to begin a new chunk. An empty chunk takes any record.
    pub fn is_full(&self, record: usize) -> bool {
        self.sealed || (self.bytes > KIND_BYTES && self.bytes + record > self.sizes.max)
    }

    /// Adds a record; to a new chunk, if this one is full.
    pub fn add(&mut self, record: usize) {
        if self.is_full(record) {
            *self = Cutter::new(self.sizes);
        }
        self.bytes += record;
    }

    /// The last record was the end of the entry of this name.
    pub fn end_entry(&mut self, name: &[u8]) {
        self.sealed = self.bytes >= self.sizes.cut && Digest::of(name).as_bytes()[0].is_multiple_of(NAMES_PER_CUT);
    }
}
