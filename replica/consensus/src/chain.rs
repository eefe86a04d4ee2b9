//! The chain of blocks that a replica holds, as references; bodies live with the host.

use alloc::vec::Vec;

use lockstep_types::{BlockHeader, BlockRef, Digest, Height, LogTime};

/// References of all blocks from height 1 to the head.
///
/// Invariants: heights are consecutive from 1; views never decrease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Chain {
    /// Block of height h at index h − 1.
    blocks: Vec<BlockRef>,
    /// Log time of the head.
    log_time: LogTime,
}

impl Chain {
    /// An empty chain.
    pub fn new() -> Self {
        Chain::default()
    }

    /// The last block, or [`BlockRef::GENESIS`].
    pub fn head(&self) -> BlockRef {
        self.blocks.last().copied().unwrap_or(BlockRef::GENESIS)
    }

    /// Log time of the head; zero before the first block.
    pub fn log_time(&self) -> LogTime {
        self.log_time
    }

    /// The block at `height`, if the chain reaches it; [`BlockRef::GENESIS`] at zero.
    pub fn at(&self, height: Height) -> Option<BlockRef> {
        match height {
            Height::ZERO => Some(BlockRef::GENESIS),
            height => self.blocks.get(usize::try_from(height.get() - 1).ok()?).copied(),
        }
    }

    /// Whether this very block is on the chain.
    pub fn holds(&self, block: BlockRef) -> bool {
        self.holds_hash(block.height, block.hash)
    }

    /// Whether the block at `height` has this hash.
    pub fn holds_hash(&self, height: Height, hash: Digest) -> bool {
        self.at(height).is_some_and(|own| own.hash == hash)
    }

    /// Puts a block at its height and drops what stood there and above. Panics if its parent is not on the chain or its view
    /// is lower than the parent's: callers check what comes from peers.
    pub fn put(&mut self, header: &BlockHeader, hash: Digest) {
        let below = header.height.prev();
        let parent = self.at(below).expect("the parent is on the chain");
        assert!(
            header.height > Height::ZERO && parent.hash == header.parent && parent.view <= header.view,
            "block {}@{} does not extend {parent}",
            header.height,
            header.view
        );
        self.blocks.truncate(usize::try_from(below.get()).expect("a chain fits in memory"));
        self.blocks.push(BlockRef { view: header.view, height: header.height, hash });
        self.log_time = header.log_time;
    }
}
