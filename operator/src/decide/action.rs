//! What the operator can do to a service, one step at a time, and how it is told.

use lockstep_types::{Change, Genesis, ReplicaId, ServiceId, Slot};

use super::members::{MemberChange, Purpose};
use super::names;
use crate::validate::Service;
use crate::world::Strand;

/// One step that changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Create the Secret with the admin token, once.
    CreateToken,
    /// Apply the objects that are not as built: kind, name, and the path that differs.
    Apply(Vec<(&'static str, String, String)>),
    /// Write the genesis down. Nothing is sent before that.
    RecordGenesis {
        /// What to record.
        genesis: Genesis,
        /// Whether kept volumes had it already.
        adopted: bool,
    },
    /// Send the recorded genesis to those who have none yet.
    SendGenesis {
        /// The recorded one.
        genesis: Genesis,
        /// Pods by ordinal.
        targets: Vec<usize>,
    },
    /// Have the leader hand over, so that it can go.
    HandOver {
        /// Who leads.
        leader: usize,
        /// Who shall.
        to: usize,
        /// Its identity.
        target: ReplicaId,
        /// The change of members that it is a step of; none if its pod is replaced.
        told: Option<MemberChange>,
    },
    /// Have the leader change the members.
    ChangeMembers {
        /// Who leads.
        leader: usize,
        /// The change.
        change: Change,
        /// What it is a step of.
        told: MemberChange,
    },
    /// Tell a newcomer which service it belongs to, and its slot.
    Join {
        /// Its pod.
        ordinal: usize,
        /// Its slot.
        slot: Slot,
        /// The recorded genesis.
        genesis: Genesis,
        /// What it is a step of.
        told: MemberChange,
    },
    /// Take a pod away, so that the StatefulSet makes it anew.
    ReplacePod {
        /// Its ordinal.
        ordinal: usize,
        /// The very pod that was judged.
        uid: String,
        /// How.
        by: Removal,
        /// Why now.
        why: &'static str,
    },
    /// Delete a claim and the pod on it, so that the StatefulSet makes both anew.
    ReplaceVolume {
        /// Their ordinal.
        ordinal: usize,
        /// The very pod that was judged.
        pod: String,
        /// The very claim, if there is one.
        claim: Option<String>,
        /// Why.
        why: Useless,
    },
    /// Delete claims of replicas that were removed.
    DeleteClaims {
        /// Their ordinals and the very claims that were judged.
        claims: Vec<(usize, String)>,
    },
    /// Note on claims which service is on their volumes.
    MarkVolumes {
        /// The service.
        service: ServiceId,
        /// Claims by ordinal.
        claims: Vec<usize>,
    },
    /// Ask for larger volumes.
    GrowVolumes {
        /// Claims by ordinal.
        claims: Vec<usize>,
    },
}

/// How a pod is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// By an eviction, which disruption budgets can hold back: for pods that are well.
    Eviction,
    /// By a deletion: for pods that add nothing to the service as they are.
    Deletion,
}

/// Why a volume is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Useless {
    /// Its replica was removed from the service, and never returns.
    Removed,
    /// It is where nothing runs any more.
    Stranded(Strand),
}

impl Action {
    /// The reason in events and conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Action::CreateToken => "TokenCreated",
            Action::Apply(_) => "Applied",
            Action::RecordGenesis { adopted: false, .. } => "GenesisRecorded",
            Action::RecordGenesis { adopted: true, .. } => "VolumesAdopted",
            Action::SendGenesis { .. } => "GenesisSent",
            Action::HandOver { .. } => "LeaderHandedOver",
            Action::ChangeMembers { change: Change::AddStandby { .. }, .. } => "StandbyAdded",
            Action::ChangeMembers { change: Change::Promote { .. }, .. } => "StandbyPromoted",
            Action::ChangeMembers { change: Change::Remove { .. }, .. } => "MemberRemoved",
            Action::Join { .. } => "StandbyJoined",
            Action::ReplacePod { .. } => "PodReplaced",
            Action::ReplaceVolume { .. } => "VolumeReplaced",
            Action::DeleteClaims { .. } => "VolumesDeleted",
            Action::MarkVolumes { .. } => "VolumesMarked",
            Action::GrowVolumes { .. } => "VolumesGrown",
        }
    }

    /// What the conditions call it while it is under way, and which operation it is a part of.
    pub fn progress(&self, service: &Service) -> (&'static str, String) {
        match self {
            Action::CreateToken | Action::Apply(_) => ("Building", "creating and updating the objects".to_owned()),
            Action::RecordGenesis { .. } | Action::SendGenesis { .. } => {
                ("Bootstrapping", "bringing the genesis to all replicas".to_owned())
            }
            Action::HandOver { leader: ordinal, told: None, .. } | Action::ReplacePod { ordinal, .. } => {
                ("Rolling", format!("replacing pods one by one; {} is next", service.pod_name(*ordinal)))
            }
            Action::HandOver { told: Some(told), .. }
            | Action::ChangeMembers { told, .. }
            | Action::Join { told, .. } => (told.reason(), told.describe(service)),
            Action::ReplaceVolume { ordinal, why, .. } => (
                "ReplacingMember",
                format!("replacing the volume of {}: {}", service.pod_name(*ordinal), why.describe()),
            ),
            Action::DeleteClaims { .. } => ("ScalingDown", "deleting the volume claims of removed replicas".to_owned()),
            Action::MarkVolumes { .. } => ("Bootstrapping", "noting the service on its volume claims".to_owned()),
            Action::GrowVolumes { .. } => ("GrowingVolumes", format!("growing the volumes to {}", service.size)),
        }
    }

    /// Whether it is a step of planned work on pods that are well, of which the operator does only some at a time.
    pub fn takes_turn(&self) -> bool {
        match self {
            Action::HandOver { told: None, .. } | Action::ReplacePod { by: Removal::Eviction, .. } => true,
            Action::HandOver { told: Some(_), .. }
            | Action::ReplacePod { by: Removal::Deletion, .. }
            | Action::ReplaceVolume { .. }
            | Action::DeleteClaims { .. }
            | Action::CreateToken
            | Action::Apply(_)
            | Action::RecordGenesis { .. }
            | Action::SendGenesis { .. }
            | Action::ChangeMembers { .. }
            | Action::Join { .. }
            | Action::MarkVolumes { .. }
            | Action::GrowVolumes { .. } => false,
        }
    }

    /// The one pod that it acts on.
    pub fn pod(&self) -> Option<usize> {
        match self {
            Action::HandOver { leader: ordinal, .. }
            | Action::ReplacePod { ordinal, .. }
            | Action::ReplaceVolume { ordinal, .. }
            | Action::Join { ordinal, .. } => Some(*ordinal),
            Action::ChangeMembers { told, .. } => told.newcomer.and_then(|(_, ordinal)| ordinal),
            Action::DeleteClaims { .. }
            | Action::CreateToken
            | Action::Apply(_)
            | Action::RecordGenesis { .. }
            | Action::SendGenesis { .. }
            | Action::MarkVolumes { .. }
            | Action::GrowVolumes { .. } => None,
        }
    }

    /// What the event says.
    pub fn describe(&self, service: &Service) -> String {
        match self {
            Action::CreateToken => format!("created Secret {} with a fresh admin token", service.token_name()),
            Action::Apply(objects) => {
                let list: Vec<_> = objects.iter().map(|(kind, name, _)| format!("{kind} {name}")).collect();
                format!("applied {}", list.join(", "))
            }
            Action::RecordGenesis { genesis, adopted: false } => {
                format!("recorded the genesis of service {} with {} voters", genesis.service, genesis.voters.len())
            }
            Action::RecordGenesis { genesis, adopted: true } => {
                format!("adopted the kept volumes of service {}", genesis.service)
            }
            Action::SendGenesis { targets, .. } => {
                format!("sent the genesis to {}", names(targets.iter().map(|ordinal| service.pod_name(*ordinal))))
            }
            Action::HandOver { leader, to, told, .. } => {
                let aim = if told.is_some() { "which is scaled away" } else { "to replace its pod" };
                format!("had {} hand over to {}, {aim}", service.pod_name(*leader), service.pod_name(*to))
            }
            Action::ChangeMembers { change: Change::AddStandby { replica }, told, .. } => {
                let pod = told.newcomer.and_then(|(_, ordinal)| ordinal).map(|ordinal| service.pod_name(ordinal));
                format!("added replica {replica} in {} as a standby", pod.unwrap_or_default())
            }
            Action::ChangeMembers { change: Change::Promote { slot }, .. } => {
                format!("promoted the standby in {slot}: it votes")
            }
            Action::ChangeMembers { change: Change::Remove { slot }, told, .. } => match told.purpose {
                Purpose::Replace => format!("removed the lost member in {slot}"),
                Purpose::ScaleUp | Purpose::ScaleDown => format!("removed {slot}, which is scaled away"),
            },
            Action::Join { ordinal, slot, .. } => {
                format!("let the replica in {} join in {slot}", service.pod_name(*ordinal))
            }
            Action::ReplacePod { ordinal, by, why, .. } => {
                let did = match by {
                    Removal::Eviction => "evicted",
                    Removal::Deletion => "deleted",
                };
                format!("{did} pod {}: {why}", service.pod_name(*ordinal))
            }
            Action::ReplaceVolume { ordinal, claim, why, .. } => {
                let claim = claim.as_ref().map(|_| format!("volume claim {} and ", service.claim_name(*ordinal)));
                format!("deleted {}pod {}: {}", claim.unwrap_or_default(), service.pod_name(*ordinal), why.describe())
            }
            Action::DeleteClaims { claims } => format!(
                "deleted {}, whose replicas were removed",
                names(claims.iter().map(|(ordinal, _)| service.claim_name(*ordinal)))
            ),
            Action::MarkVolumes { service: id, claims } => {
                format!("noted service {id} on {}", names(claims.iter().map(|ordinal| service.claim_name(*ordinal))))
            }
            Action::GrowVolumes { claims } => format!(
                "asked for {} in {}",
                service.size,
                names(claims.iter().map(|ordinal| service.claim_name(*ordinal)))
            ),
        }
    }
}

impl Useless {
    /// Whether the pod is deleted without waiting for its node, which would never say that it has stopped.
    pub fn force(&self) -> bool {
        match self {
            Useless::Removed => false,
            Useless::Stranded(strand) => strand.is_bound(),
        }
    }

    /// Why, in words.
    fn describe(&self) -> String {
        match self {
            Useless::Removed => "its replica was removed from the service, and never returns".to_owned(),
            Useless::Stranded(strand) => strand.to_string(),
        }
    }
}
