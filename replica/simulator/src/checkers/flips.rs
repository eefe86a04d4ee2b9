//! States with a flipped bit: what their replicas show counts for nothing until they say that the state is sound again.

use lockstep_engine::DivergenceStatus;
use lockstep_machine::KeyValueWithFaults;

use super::*;

impl Checkers {
    /// A bit of this replica's state is about to flip. False if one did before: it flips once in the life of a disk.
    pub fn suspects(&mut self, replica: usize) -> bool {
        let memory = &mut self.replicas[replica];
        memory.suspect = !memory.suspected;
        memory.suspected = true;
        memory.suspect
    }

    /// Whether this replica's state may differ.
    pub fn is_suspect(&self, replica: usize) -> bool {
        self.replicas[replica].suspect
    }

    /// Whether a digest is the one of those whose state is sound, as far as that is known.
    pub fn agrees(&self, replica: usize, height: Height, digest: Digest) -> bool {
        let entry = index(height).and_then(|index| self.log.get(index));
        let known = entry.and_then(|entry| entry.digest);
        known.is_none_or(|known| known == digest) || self.replicas[replica].lost
    }

    /// A block that another replica applied first was applied here, with this digest.
    pub(super) fn executed_with(
        &mut self,
        replica: usize,
        block: BlockRef,
        digest: Digest,
        counters: &mut Counters,
    ) -> Result<(), Violation> {
        let suspect = self.replicas[replica].suspect;
        let entry = &mut self.log[block.height.get() as usize - 1];
        let known = match entry.digest {
            Some(known) => known,
            None if suspect => {
                let before = entry.claims.iter().position(|(other, _)| *other == replica);
                let before = before.map(|claim| entry.claims.swap_remove(claim).1);
                entry.claims.push((replica, digest));
                // Executed again it is another: then the first one was wrong.
                return before.map_or(Ok(()), |before| self.differs(replica, block, before, digest, counters));
            }
            None => {
                entry.digest = Some(digest);
                for (other, claimed) in std::mem::take(&mut entry.claims) {
                    self.differs(other, block, claimed, digest, counters)?;
                }
                return Ok(());
            }
        };
        self.differs(replica, block, digest, known, counters)
    }

    fn differs(
        &mut self,
        replica: usize,
        block: BlockRef,
        digest: Digest,
        known: Digest,
        counters: &mut Counters,
    ) -> Result<(), Violation> {
        let memory = &mut self.replicas[replica];
        require!(
            digest == known || memory.suspect,
            "equal digest at equal height",
            "{} has {digest} at {block}, and it is {known}",
            slot(replica)
        );
        if digest != known {
            if memory.flipped.is_none() {
                counters.add(Kind::BitFlip);
            }
            memory.flipped = Some(memory.flipped.map_or(block.height, |first| first.min(block.height)));
        }
        Ok(())
    }

    /// A replica says that its state differed from another's and is that of a quorum now. It names the block and the key.
    pub fn judges(&mut self, replica: usize, found: &DivergenceStatus) -> Result<(), Violation> {
        let me = slot(replica);
        // It was wrong, or the one who differed from it.
        let key = |wrong: usize| KeyValueWithFaults::key(&slot(wrong).to_string(), false);
        let fits = |wrong: &usize| {
            let Some(memory) = self.replicas.get(*wrong) else { return false };
            let block = memory.flipped.is_none_or(|flipped| flipped == found.block || !found.exact);
            memory.suspected && block && found.key.as_ref().is_none_or(|named| *named == key(*wrong))
        };
        let wrong = [replica, index_of(found.witness)].into_iter().find(fits);
        require!(
            wrong.is_some(),
            "the block and key that differ are named",
            "{me} says {found}, and no bit of the two flipped there"
        );
        if wrong == Some(replica) {
            self.replicas[replica].suspect = false;
            for entry in &mut self.log {
                entry.claims.retain(|(other, _)| *other != replica);
            }
        }
        Ok(())
    }
}

fn index_of(slot: Slot) -> usize {
    slot.get() as usize - 1
}
