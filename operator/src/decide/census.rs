//! Who belongs to the service and where each of them runs, as far as the pods and the log tell: what decisions on members are
//! read off.

use lockstep_types::{Configuration, Genesis, ReplicaId, Slot};

use super::members::Pending;
use crate::validate::Service;
use crate::world::World;

/// A member and its slot.
pub type Member = (Slot, ReplicaId);

/// The members, sorted by what becomes of them.
#[derive(Clone, Debug)]
pub struct Census {
    /// Who votes and who stands by.
    pub configuration: Configuration,
    /// Voters that no pod runs any more.
    pub lost: Vec<Member>,
    /// Voters in pods that shall go, with their pods, the highest ordinal first.
    pub surplus: Vec<(Member, usize)>,
    /// How many voters stay: all others.
    pub stay: usize,
    /// Replicas with an empty disk that were never members, in pods that shall stay, by ordinal.
    pub newcomers: Vec<(usize, ReplicaId)>,
}

impl Census {
    /// Counts the members of `service`.
    pub fn take(service: &Service, genesis: &Genesis, world: &World) -> Self {
        let configuration = world.members(genesis).configuration;
        let voters = || configuration.voters().iter().map(|(slot, id)| (*slot, *id));
        let lost: Vec<Member> = voters().filter(|(_, id)| is_gone(service, world, *id)).collect();
        let beyond = |(slot, id): Member| {
            let ordinal = place(service, world, id).filter(|ordinal| *ordinal >= service.replicas)?;
            Some(((slot, id), ordinal))
        };
        let mut surplus: Vec<_> = voters().filter(|voter| !lost.contains(voter)).filter_map(beyond).collect();
        surplus.sort_by_key(|(_, ordinal)| std::cmp::Reverse(*ordinal));
        let stay = configuration.voters().len() - lost.len() - surplus.len();
        let newcomers = newcomers(service, genesis, world, &configuration);
        Census { configuration, lost, surplus, stay, newcomers }
    }

    /// How many vote.
    pub fn voters(&self) -> usize {
        self.configuration.voters().len()
    }

    /// How many voters still run, as far as is known.
    pub fn living(&self) -> usize {
        self.voters() - self.lost.len()
    }
}

/// The pod that runs this identity, or did when it was last heard.
pub fn place(service: &Service, world: &World, id: ReplicaId) -> Option<usize> {
    world.pod_of(id).or_else(|| {
        let text = id.to_string();
        let member = service.status.members.iter().find(|member| member.replica_id == text)?;
        service.ordinal(member.pod.as_ref()?)
    })
}

/// Whether no pod runs this member any more: its pod answers as another one, or all pods answer and none is it.
pub fn is_gone(service: &Service, world: &World, id: ReplicaId) -> bool {
    if world.pod_of(id).is_some() {
        return false;
    }
    place(service, world, id).is_some_and(|ordinal| world.replica(ordinal).is_some()) || all_answer(service, world)
}

/// Whether every pod that there shall be answers.
pub fn all_answer(service: &Service, world: &World) -> bool {
    (0..world.size.unwrap_or(service.replicas)).all(|ordinal| world.replica(ordinal).is_some())
}

/// What is on a claim that is being deleted does not stay.
fn newcomers(
    service: &Service,
    genesis: &Genesis,
    world: &World,
    configuration: &Configuration,
) -> Vec<(usize, ReplicaId)> {
    let dying = world.dying();
    let never = |id: &ReplicaId| {
        let removed = configuration.removed().values().any(|gone| gone == id);
        configuration.slot_of(*id).is_none() && !removed && !genesis.voters.contains(id)
    };
    world
        .replicas()
        .filter(|(ordinal, replica)| {
            replica.service.is_none() && *ordinal < service.replicas && !dying.contains(ordinal)
        })
        .map(|(ordinal, replica)| (ordinal, replica.id))
        .filter(|(_, id)| never(id))
        .collect()
}

/// Why the membership is not known well enough to act on it, or too few are ready.
pub fn pending(genesis: &Genesis, world: &World) -> Option<Pending> {
    let members = world.members(genesis);
    let Some(leader) = world.leader(genesis).filter(|leader| world.is_ready(*leader, genesis)) else {
        return Some(Pending::Leader);
    };
    let known = world.replica(leader).and_then(|replica| replica.members.as_ref());
    let Some(known) = known.filter(|known| known.configuration.epoch() == members.configuration.epoch()) else {
        return Some(Pending::Leader);
    };
    if world.ready(genesis) < members.configuration.quorum() {
        return Some(Pending::Quorum);
    }
    (!known.settled).then_some(Pending::Settled)
}

/// Whether the pod of this ordinal, there or not, may run a member, so that neither it nor its volume may go.
pub fn may_run_a_member(genesis: &Genesis, world: &World, ordinal: usize) -> bool {
    if pending(genesis, world).is_some() {
        return true;
    }
    let configuration = world.members(genesis).configuration;
    match world.replica(ordinal) {
        Some(replica) => configuration.slot_of(replica.id).is_some(),
        // It says nothing: then every member must answer from elsewhere.
        None => configuration.members().any(|(_, id)| world.pod_of(id).is_none()),
    }
}

/// How many pods the StatefulSet shall run: those that are asked for, and all below the highest that may run a member.
pub fn size(service: &Service, world: &World) -> usize {
    let wanted = service.replicas;
    let noted = |id| {
        let ours = world.claims.iter().filter(|(_, claim)| claim.service == Some(id) && !claim.terminating);
        ours.map(|(ordinal, _)| ordinal + 1).max().unwrap_or(0)
    };
    match (&service.recorded, service.adopt, world.size) {
        (None, None, _) => wanted,
        // Who is on kept volumes is known only once they run.
        (None, Some(adopted), _) => wanted.max(noted(adopted)),
        (Some(genesis), _, None) => wanted.max(noted(genesis.service)),
        (Some(genesis), _, Some(size)) => {
            let stays = (wanted..size).rev().find(|ordinal| may_run_a_member(genesis, world, *ordinal));
            stays.map_or(wanted, |ordinal| ordinal + 1)
        }
    }
}
