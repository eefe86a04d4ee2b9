//! From fresh replicas to a recorded genesis, or from kept volumes to an adopted one.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_types::{Genesis, ReplicaId, ServiceId};

use super::volumes::dying;
use super::{Action, Decision, OUTDATED, Refusal, Wait, delete, duplicates, not_ready};
use crate::validate::Service;
use crate::world::{Replica, World};

/// From fresh replicas to a recorded genesis, or from kept volumes to an adopted one.
pub fn bootstrap(service: &Service, world: &World, fresh: ServiceId) -> Decision {
    if let Some(refusal) = dying(world) {
        return Decision::Refuse(refusal);
    }
    // Before genesis there is nothing to lose in a pod that has no service.
    let idle = |ordinal: &usize| {
        let pod = &world.pods[ordinal];
        !pod.terminating && pod.replica.as_ref().is_none_or(|replica| replica.service.is_none())
    };
    if let Some(ordinal) = world.outdated().into_iter().find(idle) {
        return delete(world, ordinal, OUTDATED);
    }
    if let Some(refusal) = duplicates(world) {
        return Decision::Refuse(refusal);
    }
    let kept: BTreeMap<usize, &Replica> = world.replicas().filter(|(_, replica)| replica.service.is_some()).collect();
    if service.adopt.is_none() && !kept.is_empty() {
        return Decision::Refuse(Refusal::VolumesFromAnotherService {
            found: kept.iter().filter_map(|(ordinal, replica)| Some((*ordinal, replica.service?))).collect(),
        });
    }
    let silent = not_ready(service, world, |ordinal| world.replica(ordinal).is_some());
    if !silent.is_empty() {
        return Decision::Wait(Wait::Starting(silent));
    }
    match service.adopt {
        Some(wanted) => adopt(service, &kept, wanted),
        None => {
            let first = world.replicas().filter(|(ordinal, _)| *ordinal < service.replicas);
            let voters = first.map(|(_, replica)| replica.id).collect();
            Decision::Act(Action::RecordGenesis {
                genesis: Genesis {
                    service: fresh,
                    fault_model: service.fault_model,
                    voters,
                    machine: service.machine.clone(),
                    sessions_max: Genesis::SESSIONS_MAX,
                    reply_bytes_max: Genesis::REPLY_BYTES_MAX,
                    snapshot_bytes: service.snapshot_bytes,
                },
                adopted: false,
            })
        }
    }
}

/// Kept volumes become this resource's if a quorum of one service is there, and it is the one that was named.
fn adopt(service: &Service, kept: &BTreeMap<usize, &Replica>, wanted: ServiceId) -> Decision {
    let others: Vec<_> = kept
        .iter()
        .filter_map(|(ordinal, replica)| Some((*ordinal, replica.service?)))
        .filter(|(_, found)| *found != wanted)
        .collect();
    if !others.is_empty() {
        return Decision::Refuse(Refusal::AdoptsAnother { wanted, found: others });
    }
    let genesis: BTreeSet<Vec<u8>> =
        kept.values().filter_map(|replica| Some(replica.genesis.as_ref()?.encode())).collect();
    let first = kept.values().find_map(|replica| replica.genesis.clone());
    let Some(genesis) = first.filter(|found| genesis.len() == 1 && found.service == wanted) else {
        return Decision::Refuse(Refusal::AdoptsNothing { wanted });
    };
    let known = kept.values().filter_map(|replica| replica.members.as_ref());
    let known = known.max_by_key(|members| members.configuration.epoch());
    let members = known.map_or_else(|| genesis.configuration(), |members| members.configuration.clone());
    let votes = |id: ReplicaId| members.voters().values().any(|voter| *voter == id);
    let present = kept.values().filter(|replica| votes(replica.id)).count();
    if genesis.fault_model != service.fault_model
        || genesis.machine != service.machine
        || genesis.snapshot_bytes != service.snapshot_bytes
    {
        return Decision::Refuse(Refusal::AdoptsDifferent { genesis });
    }
    if present < members.quorum() {
        return Decision::Refuse(Refusal::AdoptsTooFew { wanted, present, quorum: members.quorum() });
    }
    Decision::Act(Action::RecordGenesis { genesis, adopted: true })
}
