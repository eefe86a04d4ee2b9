//! The chain of blocks that a replica holds, as references, and the configurations that it puts in force; bodies live with
//! the host.

use alloc::vec::Vec;

use lockstep_types::{BlockHeader, BlockRef, Configuration, Digest, Height, LogTime};

/// References of all blocks from the base to the head. The base is the genesis, or a block that a durable snapshot stands
/// for: what lies below it is gone.
///
/// A change in the block at height h is in force above h. Replacing a suffix takes its changes back.
///
/// Invariants: heights are consecutive from the base; views never decrease; the base is committed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chain {
    base: BlockRef,
    /// In force above the base.
    configuration: Configuration,
    /// The height of the change that brought it, or the base's if that is not known.
    since: Height,
    /// Whether what was forgotten proved that change, see [`Self::proves`].
    was_proved: bool,
    /// Block of height base + 1 + i at index i.
    blocks: Vec<BlockRef>,
    /// Heights of the blocks with a change above the base, and what is in force above each.
    changes: Vec<(Height, Configuration)>,
    /// The height at which each view on the chain begins, lowest first; the first is the base's.
    runs: Vec<Height>,
    /// Log time of the head.
    log_time: LogTime,
}

impl Chain {
    /// The empty chain of a service that was just born.
    pub fn new(genesis: Configuration) -> Self {
        Chain { was_proved: true, ..Chain::above(BlockRef::GENESIS, LogTime::default(), genesis) }
    }

    /// The empty chain above `base`, whose log time is `log_time`; `configuration` is in force above it.
    pub fn above(base: BlockRef, log_time: LogTime, configuration: Configuration) -> Self {
        let runs = Vec::from([base.height]);
        let (blocks, changes) = (Vec::new(), Vec::new());
        Chain { base, configuration, since: base.height, was_proved: false, blocks, changes, runs, log_time }
    }

    /// The lowest block, or [`BlockRef::GENESIS`].
    pub fn base(&self) -> BlockRef {
        self.base
    }

    /// The last block; the base if there is none above it.
    pub fn head(&self) -> BlockRef {
        self.blocks.last().copied().unwrap_or(self.base)
    }

    /// Log time of the head; zero before the first block.
    pub fn log_time(&self) -> LogTime {
        self.log_time
    }

    /// The block at `height`, if the chain reaches it and did not forget it.
    pub fn at(&self, height: Height) -> Option<BlockRef> {
        if height == self.base.height {
            return Some(self.base);
        }
        let above = height.get().checked_sub(self.base.height.get() + 1)?;
        self.blocks.get(usize::try_from(above).ok()?).copied()
    }

    /// Whether this very block is on the chain.
    pub fn holds(&self, block: BlockRef) -> bool {
        self.holds_hash(block.height, block.hash)
    }

    /// Whether the block at `height` has this hash.
    pub fn holds_hash(&self, height: Height, hash: Digest) -> bool {
        self.at(height).is_some_and(|own| own.hash == hash)
    }

    /// The configuration in force just above `height`; below the base, the base's.
    pub fn configuration_above(&self, height: Height) -> &Configuration {
        self.configurations_above(height).next().expect("one is always in force").1
    }

    /// The configuration in force above the head.
    pub fn newest(&self) -> &Configuration {
        self.changes.last().map_or(&self.configuration, |(_, configuration)| configuration)
    }

    /// The height of the newest change, as far as it is known; at most the base's if there is none above it.
    pub fn newest_since(&self) -> Height {
        self.changes.last().map_or(self.since, |(height, _)| *height)
    }

    /// The configurations from the one in force just above `height` to the newest, each with the height of its change as
    /// far as it is known.
    pub fn configurations_above(&self, height: Height) -> impl Iterator<Item = (Height, &Configuration)> {
        let passed = self.changes.partition_point(|(change, _)| *change <= height);
        let base = (passed == 0).then_some((self.since, &self.configuration));
        let changes = &self.changes[passed.saturating_sub(1)..];
        base.into_iter().chain(changes.iter().map(|(height, configuration)| (*height, configuration)))
    }

    /// Whether the blocks up to `upto` prove by themselves that a change at `height` is committed.
    ///
    /// A leader proposes nothing above a change of its own before that is committed, and nothing above its first block, the
    /// no-op, before that one is. So a change is committed if the block right above it is of its own view; or if a view that
    /// begins above it has a second block, since then that view's no-op is committed, and with it everything below.
    /// This is what lets replicas that all come back from the cold, with no commit pointer, do without those who left.
    pub fn proves(&self, height: Height, upto: Height) -> bool {
        let own_view = |low: Height| match (self.at(low), self.at(low.next())) {
            (Some(change), Some(above)) => above.height <= upto && above.view == change.view,
            (Some(_) | None, _) => false,
        };
        let mut end = upto.min(self.head().height);
        let second_block = self.runs.iter().rev().take_while(|start| **start > height).any(|start| {
            let longer = end > *start;
            end = end.min(start.prev());
            longer
        });
        second_block || own_view(height) || (self.was_proved && height <= self.base.height)
    }

    /// The height of the newest change that the blocks up to `upto` prove to be committed; the base's if they prove none.
    pub fn proved(&self, upto: Height) -> Height {
        let proved = self.changes.iter().rev().find(|(height, _)| self.proves(*height, upto));
        proved.map_or(self.base.height, |(height, _)| *height)
    }

    /// Whether a block may stand right above the one at the height below it: epoch and change fit what is in force there.
    pub fn admits(&self, header: &BlockHeader) -> bool {
        admits(self.configuration_above(header.height.prev()), header)
    }

    /// Puts a block at its height and drops what stood there and above. Panics if its parent is not on the chain, its view
    /// is lower than the parent's, or its change is none: callers check what comes from peers.
    pub fn put(&mut self, header: &BlockHeader, hash: Digest) {
        let below = header.height.prev();
        let parent = self.at(below).expect("the parent is on the chain");
        assert!(
            header.height > Height::ZERO && parent.hash == header.parent && parent.view <= header.view,
            "block {}@{} does not extend {parent}",
            header.height,
            header.view
        );
        let kept = usize::try_from(below.above(self.base.height)).expect("a chain fits in memory");
        self.blocks.truncate(kept);
        self.changes.truncate(self.changes.partition_point(|(height, _)| *height <= below));
        self.runs.truncate(self.runs.partition_point(|start| *start <= below));
        if let Some(change) = header.change {
            let next = self.newest().apply(&change);
            let next = next.unwrap_or_else(|error| panic!("{change} at {}: {error}", header.height));
            self.changes.push((header.height, next));
        }
        if parent.view != header.view {
            self.runs.push(header.height);
        }
        self.blocks.push(BlockRef { view: header.view, height: header.height, hash });
        self.log_time = header.log_time;
    }

    /// Forgets what lies below `height`, which becomes the base. Panics if the chain does not reach it; what is forgotten
    /// already stays forgotten.
    pub fn forget_below(&mut self, height: Height) {
        if height <= self.base.height {
            return;
        }
        let base = self.at(height).expect("the new base is on the chain");
        let (since, configuration) = self.configurations_above(height).next().expect("one is always in force");
        (self.since, self.configuration) = (since, configuration.clone());
        self.was_proved = self.proves(since, height);
        self.base = base;
        let gone = self.blocks.iter().take_while(|block| block.height <= height).count();
        self.blocks.drain(..gone);
        self.changes.retain(|(change, _)| *change > height);
        self.runs.retain(|start| *start > height);
        self.runs.insert(0, height);
    }
}

/// Whether a header's epoch is that of the configuration in force at its height, and its change, if any, can follow.
pub(crate) fn admits(configuration: &Configuration, header: &BlockHeader) -> bool {
    header.epoch == configuration.epoch() && header.change.is_none_or(|change| configuration.apply(&change).is_ok())
}
