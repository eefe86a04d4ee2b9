//! Volumes: which may be run on, which are no longer of any use, and which are too small.

use lockstep_types::{Genesis, ReplicaId};

use super::census::{may_run_a_member, pending, size};
use super::{Action, Decision, Refusal, Useless};
use crate::validate::Service;
use crate::world::{Claim, World};

/// Volumes of another service, before a StatefulSet runs anything on them: the replicas there would elect a leader and serve
/// clients. Volumes that nobody has noted anything on say what they are when their replicas start.
pub fn kept(service: &Service, world: &World) -> Option<Refusal> {
    let (genesis, running) = match (&service.recorded, world.size) {
        (None, None) => (None, 0),
        (Some(genesis), Some(running)) => (Some(genesis), running),
        // It was seen before the set was made, or will be seen when its replicas start.
        (None, Some(_)) | (Some(_), None) => return None,
    };
    let ours = genesis.map(|genesis| genesis.service).or(service.adopt);
    let claims = world.claims.iter().filter(|(ordinal, claim)| **ordinal >= running && !claim.terminating);
    let found: Vec<_> = claims
        .filter_map(|(ordinal, claim)| Some((*ordinal, claim.service?)))
        .filter(|(_, found)| Some(*found) != ours)
        .collect();
    match (genesis, service.adopt) {
        _ if found.is_empty() => None,
        (Some(_), _) => {
            let next: Vec<_> = found.into_iter().filter(|(ordinal, _)| *ordinal < size(service, world)).collect();
            (!next.is_empty()).then_some(Refusal::ForeignVolume { found: next })
        }
        (None, None) => Some(Refusal::VolumesFromAnotherService { found }),
        (None, Some(wanted)) => Some(Refusal::AdoptsAnother { wanted, found }),
    }
}

/// Replicas that were removed, in pods that shall stay.
pub fn removed(service: &Service, genesis: &Genesis, world: &World) -> impl Iterator<Item = (usize, ReplicaId)> {
    let gone = world.members(genesis).configuration.removed().clone();
    let stays = world.replicas().filter(|(ordinal, _)| *ordinal < service.replicas);
    stays.map(|(ordinal, replica)| (ordinal, replica.id)).filter(move |(_, id)| gone.values().any(|gone| gone == id))
}

/// Whether it is known what is on this volume: a member that was noted on its claim, or nothing yet. Else somebody brought it.
pub fn is_known(genesis: &Genesis, world: &World, ordinal: usize) -> bool {
    let noted = world.claims.get(&ordinal).is_some_and(|claim| claim.service == Some(genesis.service));
    noted || world.replica(ordinal).is_some_and(|replica| replica.service.is_none())
}

/// A volume that nobody can use any more under a pod that shall stay: a fresh one comes in its place. Only once a quorum is ready
/// that needs nothing of it.
pub fn useless(service: &Service, genesis: &Genesis, world: &World) -> Option<Decision> {
    if pending(genesis, world).is_some() {
        return None;
    }
    let removed = removed(service, genesis, world).find(|(ordinal, _)| is_known(genesis, world, *ordinal));
    let lost = || {
        let after = service.replace_after?;
        world.pods.iter().find_map(|(ordinal, pod)| {
            let stranded =
                pod.stranded.as_ref().filter(|stranded| pod.replica.is_none() && stranded.lasted >= after)?;
            Some((*ordinal, Useless::Stranded(stranded.strand.clone())))
        })
    };
    let (ordinal, why) = removed.map(|(ordinal, _)| (ordinal, Useless::Removed)).or_else(lost)?;
    let pod = world.pods[&ordinal].uid.clone();
    let claim = world.claims.get(&ordinal).map(|claim| claim.uid.clone());
    Some(Decision::Act(Action::ReplaceVolume { ordinal, pod, claim, why }))
}

/// Claims that no pod uses and none will, of replicas that were removed: a removed identity never returns, and its disk would
/// be refused when the service grows again.
pub fn left_over(service: &Service, genesis: &Genesis, world: &World) -> Option<Decision> {
    let claims = unused(service, genesis, world);
    let of_removed = |ordinal: &usize| !may_run_a_member(genesis, world, *ordinal);
    let claims: Vec<_> =
        claims.filter(of_removed).map(|ordinal| (ordinal, world.claims[&ordinal].uid.clone())).collect();
    (!claims.is_empty()).then_some(Decision::Act(Action::DeleteClaims { claims }))
}

/// Claims that no pod uses and none will, on which a member was.
pub fn unused(service: &Service, genesis: &Genesis, world: &World) -> impl Iterator<Item = usize> {
    let beyond = world.size.map_or(usize::MAX, |size| size.max(service.replicas));
    let free = |ordinal: &usize| !world.pods.contains_key(ordinal) && !world.others.contains_key(ordinal);
    let noted = |claim: &Claim| !claim.terminating && claim.service == Some(genesis.service);
    let claims = world.claims.range(beyond..).filter(move |(ordinal, claim)| noted(claim) && free(ordinal));
    claims.map(|(ordinal, _)| *ordinal)
}

/// Volumes that no pod may be taken from, and that nothing may be entrusted to.
pub fn dying(world: &World) -> Option<Refusal> {
    let claims = world.dying();
    (!claims.is_empty()).then_some(Refusal::VolumeBeingDeleted { claims })
}

/// Claims that ask for less than the resource does.
pub fn grow(service: &Service, world: &World) -> Option<Decision> {
    let small = |claim: &Claim| !claim.terminating && claim.request.is_some_and(|request| request < service.size_bytes);
    let claims: Vec<usize> =
        world.claims.iter().filter(|(_, claim)| small(claim)).map(|(ordinal, _)| *ordinal).collect();
    (!claims.is_empty()).then_some(Decision::Act(Action::GrowVolumes { claims }))
}
