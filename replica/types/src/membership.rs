//! Who counts, and how one membership follows from another. Votes and certificates are counted by a [`Configuration`] value
//! and nothing else; it changes by one [`Change`] at a time (PROTOCOL §5).
//!
//! Not here: when a change may be proposed, and when it is in force (crate `consensus`).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::fmt;

use bytes::Bytes;
use thiserror::Error;

use crate::codec::{DecodeError, Reader, Writer};
use crate::config::FaultModel;
use crate::ids::{Epoch, ReplicaId, Slot};
use crate::limits::{FORMAT_VERSION, STANDBYS_MAX, VOTERS_MAX};

/// One step from a configuration to the next. At most one voter comes or goes, so that quorums of both meet; a swap is
/// three: add, promote, remove (schedule S3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// An identity gets the next slot. It is told everything and counted nowhere.
    AddStandby {
        /// The newcomer.
        replica: ReplicaId,
    },
    /// A standby becomes a voter and keeps its slot.
    Promote {
        /// The standby.
        slot: Slot,
    },
    /// A voter or a standby goes, and never returns.
    Remove {
        /// The one that goes.
        slot: Slot,
    },
}

impl Change {
    /// Bytes of the longest change.
    pub(crate) const BYTES_MAX: usize = 1 + 16;

    /// Canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(Self::BYTES_MAX);
        Self::write(Some(self), &mut out);
        out.finish()
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// Truncated or left-over bytes, an unknown tag, or no change at all.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let change = Self::read(&mut reader)?.ok_or(DecodeError::UnknownTag { what: "change", tag: 0 })?;
        reader.finish("change")?;
        Ok(change)
    }

    /// Appends a change, or that there is none.
    pub(crate) fn write(change: Option<&Change>, out: &mut Writer) {
        match change {
            None => out.u8(0),
            Some(Change::AddStandby { replica }) => out.u8(1).raw(replica.as_bytes()),
            Some(Change::Promote { slot }) => out.u8(2).u32(slot.get()),
            Some(Change::Remove { slot }) => out.u8(3).u32(slot.get()),
        };
    }

    /// Reads what [`write`](Self::write) wrote.
    pub(crate) fn read(reader: &mut Reader) -> Result<Option<Change>, DecodeError> {
        Ok(match reader.u8("change")? {
            0 => None,
            1 => Some(Change::AddStandby { replica: reader.replica("new standby")? }),
            2 => Some(Change::Promote { slot: Slot::new(reader.u32("slot to promote")?) }),
            3 => Some(Change::Remove { slot: Slot::new(reader.u32("slot to remove")?) }),
            tag => return Err(DecodeError::UnknownTag { what: "change", tag }),
        })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::AddStandby { replica } => write!(f, "add {replica}"),
            Change::Promote { slot } => write!(f, "promote {slot}"),
            Change::Remove { slot } => write!(f, "remove {slot}"),
        }
    }
}

/// Why a [`Change`] does not lead from this configuration to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Error)]
pub enum ChangeError {
    /// The identity to add has a slot. Nothing is left to do.
    #[error("replica {replica} is a member already, as {slot}")]
    AlreadyMember {
        /// The identity.
        replica: ReplicaId,
        /// Its slot.
        slot: Slot,
    },
    /// The standby to promote votes. Nothing is left to do.
    #[error("{slot} is a voter already")]
    AlreadyVoter {
        /// The voter.
        slot: Slot,
    },
    /// The slot was removed: for a removal, nothing is left to do; for a promotion, it never returns.
    #[error("{slot} was removed")]
    RemovedSlot {
        /// The slot.
        slot: Slot,
    },
    /// The identity to add was removed and never returns (schedule L5): a kept volume gets a new identity first.
    #[error("replica {replica} was removed, as {slot}, and never returns")]
    RemovedIdentity {
        /// The identity.
        replica: ReplicaId,
        /// The slot it had.
        slot: Slot,
    },
    /// The slot was never given.
    #[error("{slot} was never given to a replica")]
    UnknownSlot {
        /// The slot.
        slot: Slot,
    },
    /// Nobody would be left to decide anything.
    #[error("{slot} is the last voter")]
    LastVoter {
        /// The voter.
        slot: Slot,
    },
    /// More voters than a service may have, even for the moment of a swap.
    #[error("{} voters are the most", VOTERS_MAX)]
    TooManyVoters,
    /// More standbys than a service may have.
    #[error("{} standbys are the most", STANDBYS_MAX)]
    TooManyStandbys,
}

/// The members of one epoch: who votes, who stands by, and who is gone.
///
/// Invariants: at least one voter; every slot from 1 up to the next to give is in exactly one of the three maps; no identity
/// twice. So neither a slot nor an identity ever returns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Configuration {
    epoch: Epoch,
    fault_model: FaultModel,
    voters: BTreeMap<Slot, ReplicaId>,
    standbys: BTreeMap<Slot, ReplicaId>,
    removed: BTreeMap<Slot, ReplicaId>,
}

impl Configuration {
    /// The configuration of the first epoch. Slots count from 1. Its callers see to at least one voter, and none twice.
    pub(crate) fn first(fault_model: FaultModel, voters: &[ReplicaId]) -> Self {
        let voters = (1..).map(Slot::new).zip(voters.iter().copied()).collect();
        let (standbys, removed) = (BTreeMap::new(), BTreeMap::new());
        Configuration { epoch: Epoch::FIRST, fault_model, voters, standbys, removed }
    }

    /// The epoch that this configuration decides: one more with every change.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The fault model.
    pub fn fault_model(&self) -> FaultModel {
        self.fault_model
    }

    /// Voters by slot.
    pub fn voters(&self) -> &BTreeMap<Slot, ReplicaId> {
        &self.voters
    }

    /// Standbys by slot: told everything, counted nowhere.
    pub fn standbys(&self) -> &BTreeMap<Slot, ReplicaId> {
        &self.standbys
    }

    /// Who had a slot once and never returns.
    pub fn removed(&self) -> &BTreeMap<Slot, ReplicaId> {
        &self.removed
    }

    /// The slot that the next standby gets.
    pub fn next_slot(&self) -> Slot {
        let given = self.voters.len() + self.standbys.len() + self.removed.len();
        Slot::new(u32::try_from(given + 1).expect("slots are given one by one"))
    }

    /// Voters and standbys: everyone who is told.
    pub fn members(&self) -> impl Iterator<Item = (Slot, ReplicaId)> + '_ {
        self.voters.iter().chain(&self.standbys).map(|(slot, replica)| (*slot, *replica))
    }

    /// The voter in `slot`.
    pub fn voter(&self, slot: Slot) -> Option<ReplicaId> {
        self.voters.get(&slot).copied()
    }

    /// The voter or standby in `slot`.
    pub fn member(&self, slot: Slot) -> Option<ReplicaId> {
        self.voter(slot).or_else(|| self.standbys.get(&slot).copied())
    }

    /// The slot of `replica`, if it is a voter or a standby.
    pub fn slot_of(&self, replica: ReplicaId) -> Option<Slot> {
        self.members().find(|(_, id)| *id == replica).map(|(slot, _)| slot)
    }

    /// Whether this slot was given and taken away.
    pub fn is_removed(&self, slot: Slot) -> bool {
        self.removed.contains_key(&slot)
    }

    /// How many votes are enough.
    pub fn quorum(&self) -> usize {
        self.fault_model.quorum(self.voters.len())
    }

    /// How many voters may fail: f.
    pub fn tolerated(&self) -> usize {
        self.fault_model.tolerated(self.voters.len())
    }

    /// Whether these slots, counted once each and only if they vote, are enough.
    pub fn is_quorum(&self, slots: impl IntoIterator<Item = Slot>) -> bool {
        let voting: BTreeSet<Slot> = slots.into_iter().filter(|slot| self.voters.contains_key(slot)).collect();
        voting.len() >= self.quorum()
    }

    /// The greatest value that a quorum has reached, where `reached` holds each voter's value and a missing one counts as
    /// the least. Etcd's quorum package does the same by sorting.
    pub fn reached_by_quorum<T: Ord + Default + Copy>(&self, reached: impl Fn(Slot) -> Option<T>) -> T {
        let mut values: Vec<T> = self.voters.keys().map(|slot| reached(*slot).unwrap_or_default()).collect();
        values.sort_unstable_by(|a, b| b.cmp(a));
        values[self.quorum() - 1]
    }

    /// The voter after `slot` in round robin.
    pub fn successor(&self, slot: Slot) -> Slot {
        let after = self.voters.range(Slot::new(slot.get().saturating_add(1))..).next();
        *after.or_else(|| self.voters.first_key_value()).expect("a configuration has a voter").0
    }

    /// Whether it is so already: what the change asks for, this configuration has. So a request may be asked again.
    pub fn holds(&self, change: &Change) -> bool {
        match change {
            Change::AddStandby { replica } => self.slot_of(*replica).is_some(),
            Change::Promote { slot } => self.voters.contains_key(slot),
            Change::Remove { slot } => self.removed.contains_key(slot),
        }
    }

    /// The configuration after a change.
    ///
    /// # Errors
    /// A change that [`holds`](Self::holds) already, or that cannot be.
    pub fn apply(&self, change: &Change) -> Result<Configuration, ChangeError> {
        let mut next = self.clone();
        next.epoch = Epoch::new(self.epoch.get().saturating_add(1));
        match *change {
            Change::AddStandby { replica } => {
                if let Some(slot) = self.slot_of(replica) {
                    return Err(ChangeError::AlreadyMember { replica, slot });
                }
                if let Some((slot, _)) = self.removed.iter().find(|(_, id)| **id == replica) {
                    return Err(ChangeError::RemovedIdentity { replica, slot: *slot });
                }
                if self.standbys.len() >= STANDBYS_MAX {
                    return Err(ChangeError::TooManyStandbys);
                }
                next.standbys.insert(self.next_slot(), replica);
            }
            Change::Promote { slot } => {
                let replica = next.standbys.remove(&slot).ok_or_else(|| self.why_no_standby(slot))?;
                if self.voters.len() >= VOTERS_MAX {
                    return Err(ChangeError::TooManyVoters);
                }
                next.voters.insert(slot, replica);
            }
            Change::Remove { slot } => {
                if self.voters.len() == 1 && self.voters.contains_key(&slot) {
                    return Err(ChangeError::LastVoter { slot });
                }
                let replica = next.voters.remove(&slot).or_else(|| next.standbys.remove(&slot));
                next.removed.insert(slot, replica.ok_or_else(|| self.why_no_standby(slot))?);
            }
        }
        Ok(next)
    }

    /// Why a slot is none of a standby.
    fn why_no_standby(&self, slot: Slot) -> ChangeError {
        if self.voters.contains_key(&slot) {
            ChangeError::AlreadyVoter { slot }
        } else if self.removed.contains_key(&slot) {
            ChangeError::RemovedSlot { slot }
        } else {
            ChangeError::UnknownSlot { slot }
        }
    }

    /// Canonical bytes: of every slot ever given, in order, what became of it and whose it was.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u16(FORMAT_VERSION).u64(self.epoch.get()).u8(self.fault_model.tag()).u32(self.next_slot().get() - 1);
        for number in 1..self.next_slot().get() {
            let slot = Slot::new(number);
            let (state, replica) = match (self.voters.get(&slot), self.standbys.get(&slot), self.removed.get(&slot)) {
                (Some(replica), _, _) => (VOTER, replica),
                (None, Some(replica), _) => (STANDBY, replica),
                (None, None, Some(replica)) => (REMOVED, replica),
                (None, None, None) => unreachable!("{slot} was given to nobody"),
            };
            out.u8(state).raw(replica.as_bytes());
        }
        out.finish()
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// Bytes that do not decode, a later format version, or a membership that cannot be.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let found = reader.u16("configuration version")?;
        if found > FORMAT_VERSION {
            return Err(DecodeError::NewerVersion { what: "configuration", found, known: FORMAT_VERSION });
        }
        let epoch = reader.epoch("configuration epoch")?;
        let fault_model = FaultModel::from_tag(reader.u8("fault model")?)?;
        let count = reader.u32("slot count")?;
        let (mut voters, mut standbys, mut removed) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut seen = BTreeSet::new();
        for slot in (1..=count).map(Slot::new) {
            let state = reader.u8("slot state")?;
            let replica = reader.replica("slot identity")?;
            if !seen.insert(replica) {
                return Err(DecodeError::OutOfRange { what: "identity in two slots" });
            }
            match state {
                VOTER => voters.insert(slot, replica),
                STANDBY => standbys.insert(slot, replica),
                REMOVED => removed.insert(slot, replica),
                tag => return Err(DecodeError::UnknownTag { what: "slot state", tag }),
            };
        }
        reader.finish("configuration")?;
        if !(1..=VOTERS_MAX).contains(&voters.len()) {
            return Err(DecodeError::OutOfRange { what: "number of voters" });
        }
        if standbys.len() > STANDBYS_MAX {
            return Err(DecodeError::OutOfRange { what: "number of standbys" });
        }
        if epoch < Epoch::FIRST {
            return Err(DecodeError::OutOfRange { what: "configuration epoch" });
        }
        Ok(Configuration { epoch, fault_model, voters, standbys, removed })
    }
}

const VOTER: u8 = 1;
const STANDBY: u8 = 2;
const REMOVED: u8 = 3;

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} voters", self.epoch)?;
        self.voters.keys().try_for_each(|slot| write!(f, " {slot}"))?;
        if !self.standbys.is_empty() {
            f.write_str(" standbys")?;
            self.standbys.keys().try_for_each(|slot| write!(f, " {slot}"))?;
        }
        Ok(())
    }
}
