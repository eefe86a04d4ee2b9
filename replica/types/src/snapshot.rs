//! The name of a snapshot.

use core::fmt;

use crate::block::BlockRef;
use crate::ids::Digest;

/// A snapshot of the state after a block, named by the digest of its manifest. Equal states have equal digests on all
/// replicas, so a quorum can agree on one, and any peer can serve it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotRef {
    /// The last block whose effects the snapshot holds. It is committed.
    pub block: BlockRef,
    /// Digest of the manifest, which names every chunk by its digest.
    pub manifest: Digest,
}

impl fmt::Display for SnapshotRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snapshot {}", self.block)
    }
}
