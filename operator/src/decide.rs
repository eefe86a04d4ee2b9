//! What to do next: at most one action, or a named wait, or a named refusal. Pure: no client, no clock, no randomness; a fresh
//! service id is an argument.
//!
//! Invariants, which the tests check for every combination of pods that a small service can be in:
//! - A converged service gets no action.
//! - No pod of a service with a genesis is deleted while another one is not ready, unless it cannot run at all, or has long not
//!   been ready and nothing else is in motion. A ready pod goes only while all others are.
//! - The genesis is recorded at most once, before any replica sees it, and only that one is ever sent (PROTOCOL §5, L6).
//! - The leader goes last, after a hand-over.
//! - Members change one at a time, only on the word of a leader with a ready quorum that the change leaves ready, and no lost one
//!   is removed before another one votes in its place.
//! - The number of voters changes only while all that stay are ready, and no pod or volume goes before its replica has.
//! - No pod is deleted that keeps a claim alive which is being deleted, and no genesis is recorded over such a claim.

mod action;
mod bootstrap;
mod census;
mod members;
mod refusal;
mod roll;
mod volumes;
mod wait;

use std::collections::BTreeMap;
use std::fmt;

use lockstep_types::{Genesis, ServiceId};

use crate::build::Desired;
use crate::drift;
use crate::validate::{REPLICAS_MAX, Service};
use crate::world::{self, Owner, Token, World};

pub use action::{Action, Removal, Useless};
pub use census::size;
pub use members::{MemberChange, Purpose, Step};
pub use refusal::Refusal;
pub use wait::Wait;

/// Why a pod is replaced about which there is nothing else to say.
const OUTDATED: &str = "it is not of the current template";

/// What [`decide`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Do this, then look again.
    Act(Action),
    /// Nothing to do until the world moves.
    Wait(Wait),
    /// Nothing may be done until a human chooses.
    Refuse(Refusal),
    /// All is as it shall be.
    Converged,
}

/// The next step for `service`, whose objects shall be `desired`, in the world as seen. `fresh` becomes the id of the service
/// if it is to be born now.
pub fn decide(service: &Service, desired: &[Desired], world: &World, fresh: ServiceId) -> Decision {
    objects(service, desired, world).unwrap_or_else(|| pods(service, world, fresh))
}

/// What the status says of a decision. An eviction that was held back is tried at every look, and told as what it is: a wait.
pub fn told(decision: Decision, world: &World) -> Decision {
    match decision {
        Decision::Act(Action::ReplacePod { ordinal, uid, by: Removal::Eviction, .. })
            if Some(&uid) == world.held_back.as_ref() =>
        {
            Decision::Wait(Wait::HeldBack(ordinal))
        }
        Decision::Act(_) | Decision::Wait(_) | Decision::Refuse(_) | Decision::Converged => decision,
    }
}

/// What is next once the objects are as built.
fn pods(service: &Service, world: &World, fresh: ServiceId) -> Decision {
    others(service, world)
        .or_else(|| roll::stuck(world))
        .or_else(|| match &service.recorded {
            None => Some(bootstrap::bootstrap(service, world, fresh)),
            Some(genesis) => settle(service, genesis, world),
        })
        .unwrap_or(Decision::Converged)
}

/// Pods in the place of ours: nothing is decided on what runs in them.
fn others(service: &Service, world: &World) -> Option<Decision> {
    world.others.iter().find_map(|(ordinal, owner)| {
        let (kind, name) = ("Pod", service.pod_name(*ordinal));
        match owner {
            Owner::Set => None,
            Owner::FormerSet => Some(Decision::Wait(Wait::FormerObject { kind, name })),
            // The StatefulSet takes in what has its labels.
            Owner::Nobody => Some(Decision::Wait(Wait::Kubernetes)),
            Owner::Another => Some(Decision::Refuse(Refusal::NameTaken { kind, name })),
        }
    })
}

/// The Secret and the objects, before anything else: pods cannot start without them.
fn objects(service: &Service, desired: &[Desired], world: &World) -> Option<Decision> {
    for ((kind, name), object) in &world.objects {
        let owner = world::controller(object);
        let ours = owner.is_some_and(|owner| owner["uid"] == service.owner.uid.as_str());
        let former =
            owner.is_some_and(|owner| owner["kind"] == lockstep_api::KIND && owner["name"] == service.name.as_str());
        if object["metadata"]["deletionTimestamp"].is_string() || (former && !ours) {
            return Some(Decision::Wait(Wait::FormerObject { kind, name: name.clone() }));
        }
        if !ours {
            return Some(Decision::Refuse(Refusal::NameTaken { kind, name: name.clone() }));
        }
    }
    match world.token {
        Token::Missing => return Some(Decision::Act(Action::CreateToken)),
        Token::Malformed => return Some(Decision::Refuse(Refusal::TokenMalformed)),
        Token::Present(_) => {}
    }
    if let Some(refusal) = volumes::kept(service, world) {
        return Some(Decision::Refuse(refusal));
    }
    let stale: Vec<_> = desired
        .iter()
        .filter_map(|wanted| {
            let path = match world.objects.get(&(wanted.kind, wanted.name.clone())) {
                None => "missing".to_owned(),
                Some(found) => {
                    let settled = world.settled.contains(&(wanted.kind, wanted.name.clone()));
                    drift::difference(&wanted.object, found, settled)?
                }
            };
            Some((wanted.kind, wanted.name.clone(), path))
        })
        .collect();
    (!stale.is_empty()).then_some(Decision::Act(Action::Apply(stale)))
}

/// From a recorded genesis to a converged service.
fn settle(service: &Service, genesis: &Genesis, world: &World) -> Option<Decision> {
    if let Some(wanted) = service.adopt.filter(|wanted| *wanted != genesis.service) {
        return Some(Decision::Refuse(Refusal::IsAnother { wanted, recorded: genesis.service }));
    }
    let members = world.members(genesis);
    let targets: Vec<usize> = world
        .replicas()
        .filter(|(_, replica)| replica.service.is_none() && genesis.voters.contains(&replica.id))
        .filter(|(_, replica)| members.configuration.slot_of(replica.id).is_some())
        .map(|(ordinal, _)| ordinal)
        .collect();
    if !targets.is_empty() {
        return Some(Decision::Act(Action::SendGenesis { genesis: genesis.clone(), targets }));
    }
    if let Some(refusal) = duplicates(world).or_else(|| strangers(service, genesis, world)) {
        return Some(Decision::Refuse(refusal));
    }
    let marked = |ordinal: &usize| {
        world.claims.get(ordinal).is_none_or(|claim| claim.terminating || claim.service == Some(genesis.service))
    };
    let unmarked: Vec<usize> = world
        .replicas()
        .filter(|(ordinal, replica)| replica.service == Some(genesis.service) && !marked(ordinal))
        .filter(|(_, replica)| members.configuration.slot_of(replica.id).is_some())
        .map(|(ordinal, _)| ordinal)
        .collect();
    if !unmarked.is_empty() {
        return Some(Decision::Act(Action::MarkVolumes { service: genesis.service, claims: unmarked }));
    }
    if let Some(replace) = volumes::useless(service, genesis, world) {
        return Some(replace);
    }
    let changing = members::next(service, genesis, world);
    if let Some(Decision::Act(_) | Decision::Refuse(_)) = changing {
        return changing;
    }
    if let Some(delete) = volumes::left_over(service, genesis, world) {
        return Some(delete);
    }
    let rolling = volumes::dying(world).map(Decision::Refuse).or_else(|| roll::roll(service, genesis, world));
    match &rolling {
        // While members change no pod goes that is well.
        Some(Decision::Act(Action::ReplacePod { by: Removal::Deletion, .. })) => return rolling,
        Some(Decision::Act(_)) if changing.is_none() => return rolling,
        // A full volume can be why a replica is not ready, so growing does not wait for a roll that waits or is refused.
        _ => {
            if let Some(grow) = volumes::grow(service, world) {
                return Some(grow);
            }
        }
    }
    changing.or(rolling).or_else(|| unfinished(service, genesis, world))
}

/// What is waited for although nothing is left to be done.
fn unfinished(service: &Service, genesis: &Genesis, world: &World) -> Option<Decision> {
    let waiting = not_ready(service, world, |ordinal| world.is_ready(ordinal, genesis));
    let voters = world.members(genesis).configuration.voters().len();
    let told = |ordinal: &usize| world.size.is_some_and(|size| *ordinal < size) || world.pods.contains_key(ordinal);
    let leaving: Vec<usize> = (service.replicas..REPLICAS_MAX).filter(told).collect();
    let wait = match (waiting.is_empty(), leaving.is_empty()) {
        (true, true) => {
            let unused: Vec<usize> = volumes::unused(service, genesis, world).collect();
            (!unused.is_empty()).then_some(Wait::LeftOver(unused))?
        }
        (true, false) => Wait::Leaving(leaving),
        (false, _) if voters < service.replicas && world.all_are_ready(genesis) => Wait::Arriving(voters, waiting),
        (false, _) => Wait::NotReady(waiting),
    };
    Some(Decision::Wait(wait))
}

/// One identity in two pods: a cloned volume.
fn duplicates(world: &World) -> Option<Refusal> {
    let mut seen = BTreeMap::new();
    world.replicas().find_map(|(ordinal, replica)| {
        let first = *seen.entry(replica.id).or_insert(ordinal);
        (first != ordinal).then_some(Refusal::ClonedVolume { pods: [first, ordinal], replica: replica.id })
    })
}

/// Replicas that are not of this service.
fn strangers(service: &Service, genesis: &Genesis, world: &World) -> Option<Refusal> {
    let others: Vec<_> = world
        .replicas()
        .filter_map(|(ordinal, replica)| Some((ordinal, replica.service?)))
        .filter(|(_, found)| *found != genesis.service)
        .collect();
    if !others.is_empty() {
        return Some(Refusal::ForeignVolume { found: others });
    }
    let retired: Vec<_> = world.replicas().filter(|(_, replica)| replica.retired).collect();
    if !retired.is_empty() {
        let found = retired.into_iter().map(|(ordinal, replica)| (ordinal, replica.id)).collect();
        return Some(Refusal::RetiredReplica { found });
    }
    let found: Vec<_> = volumes::removed(service, genesis, world)
        .filter(|(ordinal, _)| !volumes::is_known(genesis, world, *ordinal))
        .collect();
    (!found.is_empty()).then_some(Refusal::RemovedReplica { found })
}

/// Replicas that shall be there and are not ready, with the reason if one is known.
fn not_ready(service: &Service, world: &World, is_ready: impl Fn(usize) -> bool) -> Vec<(usize, Option<String>)> {
    (0..service.replicas)
        .filter(|ordinal| !is_ready(*ordinal))
        .map(|ordinal| (ordinal, why_not_ready(service, world, ordinal)))
        .collect()
}

fn why_not_ready(service: &Service, world: &World, ordinal: usize) -> Option<String> {
    let Some(pod) = world.pods.get(&ordinal) else { return Some("no pod yet".to_owned()) };
    match (&pod.replica, &pod.stranded) {
        (None, Some(stranded)) => Some(stranded.describe(service, ordinal)),
        (Some(_), Some(_)) | (None | Some(_), None) if pod.terminating => Some("terminating".to_owned()),
        (None, None) => pod.stuck.clone().or_else(|| Some("does not answer".to_owned())),
        // Words with figures in them would change with every look.
        (Some(replica), _) => replica.not_ready.clone().filter(|why| !why.contains(|c: char| c.is_ascii_digit())),
    }
}

fn delete(world: &World, ordinal: usize, why: &'static str) -> Decision {
    replace(world, ordinal, Removal::Deletion, why)
}

fn replace(world: &World, ordinal: usize, by: Removal, why: &'static str) -> Decision {
    Decision::Act(Action::ReplacePod { ordinal, uid: world.pods[&ordinal].uid.clone(), by, why })
}

fn names(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Decision {
    /// One line for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Decision::Act(action) => write!(f, "act: {}", action.reason()),
            Decision::Wait(wait) => write!(f, "wait: {}", wait.reason()),
            Decision::Refuse(refusal) => write!(f, "refuse: {}", refusal.reason()),
            Decision::Converged => f.write_str("converged"),
        }
    }
}

#[cfg(test)]
mod tests;
