//! Who may speak: the members of the service as the own chain knows them, and who is ahead of it.

use std::collections::BTreeMap;

use lockstep_engine::MembershipStatus;
use lockstep_types::{Configuration, Epoch, ReplicaId, ServiceId, Slot};

use crate::peers::HelloError;

/// The members of all configurations that may still count: the newest on the own chain, and the newest known to be committed.
#[derive(Clone, Debug)]
pub(crate) struct Members {
    newest: Configuration,
    slots: BTreeMap<ReplicaId, Slot>,
}

impl Members {
    pub fn of(newest: Configuration) -> Self {
        let slots = newest.members().map(|(slot, replica)| (replica, slot)).collect();
        Members { newest, slots }
    }

    /// As a replica's engine says. Who left is still spoken to until that is settled.
    pub fn now(membership: &MembershipStatus) -> Self {
        let mut members = Members::of(membership.newest.clone());
        let left = membership.committed.members().filter(|(slot, _)| membership.newest.member(*slot).is_none());
        members.slots.extend(left.map(|(slot, replica)| (replica, slot)));
        members
    }

    pub fn newest(&self) -> &Configuration {
        &self.newest
    }

    /// The slots that may be spoken to.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.slots.values().copied()
    }

    /// The slot of a replica that says that it has `slot`, in a configuration of `epoch`.
    ///
    /// # Errors
    /// It was removed, or never was a member as far as this replica knows.
    pub fn slot_of(
        &self,
        service: ServiceId,
        replica: ReplicaId,
        slot: Slot,
        epoch: Epoch,
    ) -> Result<Slot, HelloError> {
        if let Some(slot) = self.slots.get(&replica) {
            return Ok(*slot);
        }
        if let Some((slot, _)) = self.newest.removed().iter().find(|(_, gone)| **gone == replica) {
            return Err(HelloError::Removed { replica, slot: *slot, service });
        }
        // It joined while this replica was away, and knows more (schedule S5): in the crash model nobody lies about that.
        if epoch > self.newest.epoch() && slot >= self.newest.next_slot() {
            return Ok(slot);
        }
        Err(HelloError::NoMember { replica, service })
    }
}
