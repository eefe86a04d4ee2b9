//! What the operator will not do, and what a human can choose. Every text names the choices.

use lockstep_types::{Genesis, ReplicaId, ServiceId};

use crate::validate::Service;

/// A named refusal. Stands until the world or the resource changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An object of a name that we need belongs to somebody else.
    NameTaken {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The Secret has no token.
    TokenMalformed,
    /// Volumes of an earlier service, and nobody said that they shall be adopted.
    VolumesFromAnotherService {
        /// Ordinals and the services on their volumes.
        found: Vec<(usize, ServiceId)>,
    },
    /// `spec.serviceId` names one service, the volumes hold another.
    AdoptsAnother {
        /// The one named.
        wanted: ServiceId,
        /// Ordinals and the services on their volumes.
        found: Vec<(usize, ServiceId)>,
    },
    /// `spec.serviceId` names a service of which the volumes know nothing.
    AdoptsNothing {
        /// The one named.
        wanted: ServiceId,
    },
    /// The kept service is not of the shape that the resource asks for.
    AdoptsDifferent {
        /// Its genesis.
        genesis: Genesis,
    },
    /// Less than a quorum of the kept service is left.
    AdoptsTooFew {
        /// The one named.
        wanted: ServiceId,
        /// Voters found.
        present: usize,
        /// Voters needed.
        quorum: usize,
    },
    /// `spec.serviceId` names another service than the one that this resource is.
    IsAnother {
        /// The one named.
        wanted: ServiceId,
        /// The one recorded.
        recorded: ServiceId,
    },
    /// Claims that are being deleted under pods that run: each lives only as long as its pod does.
    VolumeBeingDeleted {
        /// Claims by ordinal.
        claims: Vec<usize>,
    },
    /// A volume of another service in the place of one of ours.
    ForeignVolume {
        /// Ordinals and the services on their volumes.
        found: Vec<(usize, ServiceId)>,
    },
    /// Two volumes with one identity.
    ClonedVolume {
        /// Their ordinals.
        pods: [usize; 2],
        /// The identity.
        replica: ReplicaId,
    },
    /// Replicas that were members once and never are again.
    RemovedReplica {
        /// Their ordinals and identities.
        found: Vec<(usize, ReplicaId)>,
    },
    /// Replicas that forgot what they had promised.
    RetiredReplica {
        /// Their ordinals and identities.
        found: Vec<(usize, ReplicaId)>,
    },
    /// So many disks are gone that the voters left are no quorum: nobody can decide that others come in their place.
    ReplicaLost {
        /// Ordinals of the new ones.
        pods: Vec<usize>,
    },
}

impl Refusal {
    /// The reason in events and conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::NameTaken { .. } => "NameTaken",
            Refusal::TokenMalformed => "TokenMalformed",
            Refusal::VolumesFromAnotherService { .. } => "VolumesFromAnotherService",
            Refusal::AdoptsAnother { .. } => "AdoptsAnotherService",
            Refusal::AdoptsNothing { .. } => "NothingToAdopt",
            Refusal::AdoptsDifferent { .. } => "AdoptsDifferentService",
            Refusal::AdoptsTooFew { .. } => "NoQuorumToAdopt",
            Refusal::IsAnother { .. } => "ServiceIdDiffers",
            Refusal::VolumeBeingDeleted { .. } => "VolumeBeingDeleted",
            Refusal::ForeignVolume { .. } => "ForeignVolume",
            Refusal::ClonedVolume { .. } => "ClonedVolume",
            Refusal::RemovedReplica { .. } => "RemovedReplica",
            Refusal::RetiredReplica { .. } => "RetiredReplica",
            Refusal::ReplicaLost { .. } => "ReplicaLost",
        }
    }

    /// What is wrong, and what can be done.
    pub fn describe(&self, service: &Service) -> String {
        let name = &service.name;
        let claims = |ordinals: &mut dyn Iterator<Item = usize>| {
            ordinals.map(|ordinal| service.claim_name(ordinal)).collect::<Vec<_>>()
        };
        let holds = |found: &[(usize, ServiceId)]| {
            let volumes: Vec<_> =
                found.iter().map(|(ordinal, id)| format!("{} holds {id}", service.claim_name(*ordinal))).collect();
            volumes.join(", ")
        };
        match self {
            Refusal::NameTaken { kind, name } => format!(
                "{kind} {name} exists and does not belong to this resource; delete it, or create this resource under \
                 another name"
            ),
            Refusal::TokenMalformed => format!(
                "Secret {} has no key \"token\"; delete the Secret and the pods, and the operator makes a fresh one",
                service.token_name()
            ),
            Refusal::VolumesFromAnotherService { found } => {
                let mut ids: Vec<_> = found.iter().map(|(_, id)| *id).collect();
                ids.sort_unstable();
                ids.dedup();
                let more = found.iter().map(|(ordinal, _)| *ordinal).filter(|ordinal| *ordinal >= service.replicas);
                let discard = format!(
                    "to discard its data, delete this resource, then the claims {}, and create it again",
                    claims(&mut (0..service.replicas).chain(more)).join(", ")
                );
                match ids.as_slice() {
                    [id] => format!(
                        "the volumes hold service {id}, kept from an earlier resource: to adopt it, set \
                         spec.serviceId: \"{id}\"; {discard}"
                    ),
                    _ => format!("the volumes hold several services ({}): {discard}", holds(found)),
                }
            }
            Refusal::AdoptsAnother { wanted, found } => format!(
                "spec.serviceId names service {wanted}, but {}; name the service that is there, or put the right \
                 volumes in place",
                holds(found)
            ),
            Refusal::AdoptsNothing { wanted } => format!(
                "spec.serviceId names service {wanted}, but no volume holds it; remove spec.serviceId to start a new \
                 service, or put the volumes of that service in place"
            ),
            Refusal::AdoptsDifferent { genesis } => format!(
                "service {} on the volumes has fault model {}, state machine {}, snapshots.everyBytes {:?}; delete this \
                 resource and create it again with these",
                genesis.service,
                genesis.fault_model,
                genesis.machine,
                genesis.snapshot_bytes.to_string()
            ),
            Refusal::AdoptsTooFew { wanted, present, quorum } => format!(
                "only {present} of the {quorum} volumes that service {wanted} needs at least are there; put the others \
                 in place, or delete this resource and its claims to start a new service"
            ),
            Refusal::IsAnother { wanted, recorded } => format!(
                "spec.serviceId names service {wanted}, but this resource is service {recorded}; set spec.serviceId to \
                 that, or remove it"
            ),
            Refusal::VolumeBeingDeleted { claims: dying } => {
                let pods: Vec<_> = dying.iter().map(|ordinal| service.pod_name(*ordinal)).collect();
                let (claims, pods) = (claims(&mut dying.iter().copied()).join(", "), pods.join(", "));
                if service.recorded.is_none() {
                    format!(
                        "volume claim {claims} is being deleted and goes with pod {pods}, so no service is born on it; \
                         delete pod {pods}, and Kubernetes makes both anew"
                    )
                } else {
                    format!(
                        "volume claim {claims} is being deleted and goes, with the data, as soon as pod {pods} does, so \
                         no pod is replaced; leave pod {pods} running; to keep the data, first set \
                         persistentVolumeReclaimPolicy: Retain on its PersistentVolume; to give this replica up, delete \
                         pod {pods}"
                    )
                }
            }
            Refusal::ForeignVolume { found } => format!(
                "this resource is another service than what its volumes hold: {}; put the right volumes in place, or, if \
                 nobody needs what they hold, delete claim {}, and pod {} if it is there",
                holds(found),
                claims(&mut found.iter().map(|(ordinal, _)| *ordinal)).join(", "),
                found.iter().map(|(ordinal, _)| service.pod_name(*ordinal)).collect::<Vec<_>>().join(", ")
            ),
            Refusal::ClonedVolume { pods: [first, second], replica } => format!(
                "{} and {} both hold replica {replica}: one is a copy, and a copy must never run; delete resource {name} \
                 and the copied claim, and create it again with spec.serviceId",
                service.claim_name(*first),
                service.claim_name(*second)
            ),
            Refusal::RemovedReplica { found } => {
                format!("a replica that was removed from the service never returns: {}", start_anew(service, found))
            }
            Refusal::RetiredReplica { found } => format!(
                "a replica forgot what it had promised, for its volume is an old copy or its disk lost what it had called \
                 durable; the others do not listen to it any more: {}",
                start_anew(service, found)
            ),
            Refusal::ReplicaLost { pods } => format!(
                "{} came up empty: what was there is lost, and the voters left are no quorum, which alone could let a new \
                 replica in; bring a lost volume back, or move to a new service",
                claims(&mut pods.iter().copied()).join(", ")
            ),
        }
    }
}

/// What is on these volumes, and how something fresh comes in its place.
fn start_anew(service: &Service, found: &[(usize, ReplicaId)]) -> String {
    let each = |words: &dyn Fn(usize, ReplicaId) -> String| {
        found.iter().map(|(ordinal, id)| words(*ordinal, *id)).collect::<Vec<_>>().join(", ")
    };
    format!(
        "{}; delete claim {} and pod {}, and a fresh replica comes in its place",
        each(&|ordinal, id| format!("{} holds {id}", service.claim_name(ordinal))),
        each(&|ordinal, _| service.claim_name(ordinal)),
        each(&|ordinal, _| service.pod_name(ordinal)),
    )
}
