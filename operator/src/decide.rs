//! What to do next: at most one action, or a named wait, or a named refusal. Pure: no client, no clock, no randomness; a fresh
//! service id is an argument.
//!
//! Invariants, which the tests check for every combination of pods that a small service can be in:
//! - A converged service gets no action.
//! - No pod of a service with a genesis is deleted while another one is not ready, unless it cannot run at all.
//! - The genesis is recorded at most once, before any replica sees it, and only that one is ever sent (PROTOCOL §5, L6).
//! - The leader goes last, after a hand-over.

mod refusal;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use lockstep_types::{Genesis, ReplicaId, ServiceId};

use crate::build::Desired;
use crate::drift;
use crate::validate::Service;
use crate::world::{Pod, Replica, Token, World};

pub use refusal::Refusal;

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
    /// Have the leader hand over, so that its pod can go.
    HandOver {
        /// Who leads.
        leader: usize,
        /// Who shall.
        to: usize,
        /// Its identity.
        target: ReplicaId,
    },
    /// Delete a pod, so that the StatefulSet makes it anew.
    DeletePod {
        /// Its ordinal.
        ordinal: usize,
        /// The very pod that was judged.
        uid: String,
        /// Why now.
        why: &'static str,
    },
    /// Ask for larger volumes.
    GrowVolumes {
        /// Claims by ordinal.
        claims: Vec<usize>,
    },
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
            Action::DeletePod { .. } => "PodReplaced",
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
            Action::HandOver { leader: ordinal, .. } | Action::DeletePod { ordinal, .. } => {
                ("Rolling", format!("replacing pods one by one; {} is next", service.pod_name(*ordinal)))
            }
            Action::GrowVolumes { .. } => ("GrowingVolumes", format!("growing the volumes to {}", service.size)),
        }
    }

    /// The one pod that it acts on.
    pub fn pod(&self) -> Option<usize> {
        match self {
            Action::HandOver { leader: ordinal, .. } | Action::DeletePod { ordinal, .. } => Some(*ordinal),
            Action::CreateToken
            | Action::Apply(_)
            | Action::RecordGenesis { .. }
            | Action::SendGenesis { .. }
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
            Action::HandOver { leader, to, .. } => {
                format!("had {} hand over to {}, to replace its pod", service.pod_name(*leader), service.pod_name(*to))
            }
            Action::DeletePod { ordinal, why, .. } => format!("deleted pod {}: {why}", service.pod_name(*ordinal)),
            Action::GrowVolumes { claims } => format!(
                "asked for {} in {}",
                service.size,
                names(claims.iter().map(|ordinal| service.claim_name(*ordinal)))
            ),
        }
    }
}

/// Why nothing is done right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// An object of a former resource of this name is still on its way out.
    FormerObject {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Kubernetes has not made or taken note of everything yet.
    Kubernetes,
    /// Before genesis: replicas that do not answer yet, with the reason if one is known.
    Starting(Vec<(usize, Option<String>)>),
    /// A roll is under way, and these replicas must be ready before the next pod goes.
    Rolling(Vec<(usize, Option<String>)>),
    /// A roll is under way, and the leader is not known.
    NoLeader,
    /// Replicas that are not ready, and nothing that the operator could do about it.
    NotReady(Vec<(usize, Option<String>)>),
}

impl Wait {
    /// The reason in conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Wait::FormerObject { .. } => "WaitingForDeletion",
            Wait::Kubernetes => "WaitingForPods",
            Wait::Starting(_) => "ReplicasStarting",
            Wait::Rolling(_) | Wait::NoLeader => "Rolling",
            Wait::NotReady(_) => "ReplicasNotReady",
        }
    }

    /// What the condition says.
    pub fn describe(&self, service: &Service) -> String {
        let list = |pods: &[(usize, Option<String>)]| {
            names(pods.iter().map(|(ordinal, why)| match why {
                Some(why) => format!("{} ({why})", service.pod_name(*ordinal)),
                None => service.pod_name(*ordinal),
            }))
        };
        match self {
            Wait::FormerObject { kind, name } => {
                format!("waiting until {kind} {name} of the former resource of this name is gone")
            }
            Wait::Kubernetes => "waiting until Kubernetes has made the pods".to_owned(),
            Wait::Starting(pods) => format!("waiting for the first answer of {}", list(pods)),
            Wait::Rolling(pods) => format!("replacing pods one by one; waiting until {} is ready", list(pods)),
            Wait::NoLeader => "replacing pods one by one; waiting until a leader is known".to_owned(),
            Wait::NotReady(pods) => format!("waiting until {} is ready", list(pods)),
        }
    }
}

/// The next step for `service`, whose objects shall be `desired`, in the world as seen. `fresh` becomes the id of the service
/// if it is to be born now.
pub fn decide(service: &Service, desired: &[Desired], world: &World, fresh: ServiceId) -> Decision {
    objects(service, desired, world).unwrap_or_else(|| pods(service, world, fresh))
}

/// The same once the objects are as built.
fn pods(service: &Service, world: &World, fresh: ServiceId) -> Decision {
    stuck(world)
        .or_else(|| match &service.recorded {
            None => Some(bootstrap(service, world, fresh)),
            Some(genesis) => settle(service, genesis, world),
        })
        .unwrap_or(Decision::Converged)
}

/// The Secret and the objects, before anything else: pods cannot start without them.
fn objects(service: &Service, desired: &[Desired], world: &World) -> Option<Decision> {
    for ((kind, name), object) in &world.objects {
        let owners = object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        let ours = owners.iter().any(|owner| owner["uid"] == service.owner.uid.as_str());
        let former =
            owners.iter().any(|owner| owner["kind"] == lockstep_api::KIND && owner["name"] == service.name.as_str());
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

/// Outdated pods that cannot run at all go first, and at any time: nothing is lost with them, and this is how a bad image
/// heals once the resource is corrected.
fn stuck(world: &World) -> Option<Decision> {
    if world.set.as_ref().is_none_or(|set| !set.up_to_date) {
        return Some(Decision::Wait(Wait::Kubernetes));
    }
    // A second pod is never given to a template whose first has not answered yet: one past crash looks like "cannot run" too,
    // and the old pod may be back in seconds.
    let revision = world.set.as_ref().map(|set| &set.update_revision);
    let unproven = |pod: &Pod| Some(&pod.revision) == revision && !pod.terminating && pod.replica.is_none();
    if world.pods.values().any(unproven) {
        return None;
    }
    let stuck = |pod: &Pod| !pod.terminating && pod.replica.is_none() && pod.stuck.is_some();
    let ordinal = world.outdated().into_iter().find(|ordinal| stuck(&world.pods[ordinal]))?;
    Some(delete(world, ordinal, "it cannot run, and is not of the current template"))
}

/// From fresh replicas to a recorded genesis, or from kept volumes to an adopted one.
fn bootstrap(service: &Service, world: &World, fresh: ServiceId) -> Decision {
    // Before genesis there is nothing to lose in a pod that has no service.
    let idle = |ordinal: &usize| {
        let pod = &world.pods[ordinal];
        !pod.terminating && pod.replica.as_ref().is_none_or(|replica| replica.service.is_none())
    };
    if let Some(ordinal) = world.outdated().into_iter().find(idle) {
        return delete(world, ordinal, "it is not of the current template");
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
    let silent: Vec<_> = (0..service.replicas)
        .filter(|ordinal| world.replica(*ordinal).is_none())
        .map(|ordinal| (ordinal, why_not_ready(world, ordinal)))
        .collect();
    if !silent.is_empty() {
        return Decision::Wait(Wait::Starting(silent));
    }
    match service.adopt {
        Some(wanted) => adopt(service, &kept, wanted),
        None => {
            let voters = world.replicas().take(service.replicas).map(|(_, replica)| replica.id).collect();
            Decision::Act(Action::RecordGenesis {
                genesis: Genesis {
                    service: fresh,
                    fault_model: service.fault_model,
                    voters,
                    machine: service.machine.clone(),
                    sessions_max: Genesis::SESSIONS_MAX,
                    reply_bytes_max: Genesis::REPLY_BYTES_MAX,
                    snapshot_bytes: Genesis::SNAPSHOT_BYTES,
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
    let present = kept.values().filter(|replica| genesis.voters.contains(&replica.id)).count();
    if genesis.voters.len() != service.replicas
        || genesis.fault_model != service.fault_model
        || genesis.machine != service.machine
    {
        return Decision::Refuse(Refusal::AdoptsDifferent { genesis });
    }
    if present < service.quorum() {
        return Decision::Refuse(Refusal::AdoptsTooFew { wanted, present, quorum: service.quorum() });
    }
    Decision::Act(Action::RecordGenesis { genesis, adopted: true })
}

/// From a recorded genesis to a converged service.
fn settle(service: &Service, genesis: &Genesis, world: &World) -> Option<Decision> {
    if let Some(wanted) = service.adopt.filter(|wanted| *wanted != genesis.service) {
        return Some(Decision::Refuse(Refusal::IsAnother { wanted, recorded: genesis.service }));
    }
    let targets: Vec<usize> = world
        .replicas()
        .filter(|(_, replica)| replica.service.is_none() && genesis.voters.contains(&replica.id))
        .map(|(ordinal, _)| ordinal)
        .collect();
    if !targets.is_empty() {
        return Some(Decision::Act(Action::SendGenesis { genesis: genesis.clone(), targets }));
    }
    if let Some(refusal) = duplicates(world).or_else(|| strangers(genesis, world)) {
        return Some(Decision::Refuse(refusal));
    }
    let rolling = roll(service, genesis, world);
    match rolling {
        Some(Decision::Act(_)) => return rolling,
        // A full volume can be why a replica is not ready, so growing does not wait for a roll that waits.
        _ => {
            if let Some(grow) = grow(service, world) {
                return Some(grow);
            }
        }
    }
    rolling.or_else(|| {
        let waiting = not_ready(service, genesis, world, None);
        (!waiting.is_empty()).then_some(Decision::Wait(Wait::NotReady(waiting)))
    })
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
fn strangers(genesis: &Genesis, world: &World) -> Option<Refusal> {
    let others: Vec<_> = world
        .replicas()
        .filter_map(|(ordinal, replica)| Some((ordinal, replica.service?)))
        .filter(|(_, found)| *found != genesis.service)
        .collect();
    if !others.is_empty() {
        return Some(Refusal::ForeignVolume { found: others });
    }
    let lost: Vec<usize> = world
        .replicas()
        .filter(|(_, replica)| !genesis.voters.contains(&replica.id))
        .map(|(ordinal, _)| ordinal)
        .collect();
    (!lost.is_empty()).then_some(Refusal::ReplicaLost { pods: lost })
}

/// Outdated pods one by one: only while every other replica is ready, followers first, the leader last and after a hand-over.
fn roll(service: &Service, genesis: &Genesis, world: &World) -> Option<Decision> {
    let outdated = world.outdated();
    let ready = |ordinal: &usize| world.is_ready(*ordinal, genesis);
    let (well, sick): (Vec<usize>, Vec<usize>) = outdated.iter().partition(|ordinal| ready(ordinal));
    let next = sick.first().or(well.first())?;
    if outdated.iter().any(|ordinal| world.pods[ordinal].terminating) {
        return Some(Decision::Wait(Wait::Rolling(not_ready(service, genesis, world, None))));
    }
    if let Some(ordinal) = sick.first() {
        let waiting = not_ready(service, genesis, world, Some(*ordinal));
        if waiting.is_empty() {
            return Some(delete(world, *ordinal, "it is not ready, and not of the current template"));
        }
        return Some(Decision::Wait(Wait::Rolling(not_ready(service, genesis, world, None))));
    }
    let waiting = not_ready(service, genesis, world, None);
    if !waiting.is_empty() {
        return Some(Decision::Wait(Wait::Rolling(waiting)));
    }
    if service.replicas == 1 {
        return Some(delete(world, *next, "it is not of the current template"));
    }
    let Some(leader) = world.leader(genesis) else { return Some(Decision::Wait(Wait::NoLeader)) };
    // The highest ordinal first, as a StatefulSet would.
    if let Some(follower) = outdated.iter().rev().find(|ordinal| **ordinal != leader) {
        return Some(delete(world, *follower, "it is not of the current template"));
    }
    // Only the leader is left, so everybody else is of the current template, and ready.
    let (to, replica) = world.replicas().find(|(ordinal, _)| *ordinal != leader)?;
    Some(Decision::Act(Action::HandOver { leader, to, target: replica.id }))
}

/// Claims that ask for less than the resource does.
fn grow(service: &Service, world: &World) -> Option<Decision> {
    let small = |claim: &crate::world::Claim| {
        !claim.terminating && claim.request.is_some_and(|request| request < service.size_bytes)
    };
    let claims: Vec<usize> =
        world.claims.iter().filter(|(_, claim)| small(claim)).map(|(ordinal, _)| *ordinal).collect();
    (!claims.is_empty()).then_some(Decision::Act(Action::GrowVolumes { claims }))
}

/// Replicas that are not ready, with the reason if one is known, leaving one out.
fn not_ready(service: &Service, genesis: &Genesis, world: &World, but: Option<usize>) -> Vec<(usize, Option<String>)> {
    (0..service.replicas)
        .filter(|ordinal| Some(*ordinal) != but && !world.is_ready(*ordinal, genesis))
        .map(|ordinal| (ordinal, why_not_ready(world, ordinal)))
        .collect()
}

fn why_not_ready(world: &World, ordinal: usize) -> Option<String> {
    let Some(pod) = world.pods.get(&ordinal) else { return Some("no pod yet".to_owned()) };
    if pod.terminating {
        return Some("terminating".to_owned());
    }
    match &pod.replica {
        None => pod.stuck.clone().or_else(|| Some("does not answer".to_owned())),
        // Words with figures in them would change with every look.
        Some(replica) => replica.not_ready.clone().filter(|why| !why.contains(|c: char| c.is_ascii_digit())),
    }
}

fn delete(world: &World, ordinal: usize, why: &'static str) -> Decision {
    Decision::Act(Action::DeletePod { ordinal, uid: world.pods[&ordinal].uid.clone(), why })
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
