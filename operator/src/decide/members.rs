//! A member whose disk is lost, replaced by the fresh replica that came up in its pod (PROTOCOL §5, S3): a standby first, a
//! voter once it has caught up, and only then the lost one is removed.
//!
//! The step is read off the membership that the log knows and off the pods, never remembered: whichever operator looks next goes
//! on where the last one stopped. One change at a time, each only after the one before has settled and while a quorum is ready.

use std::fmt;

use lockstep_types::{Change, Genesis, ReplicaId, Slot};

use super::{Action, Decision, Refusal, Wait};
use crate::validate::Service;
use crate::world::World;

/// A replacement under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// The next step.
    pub step: Step,
    /// The member that is lost, while it is one.
    pub target: Option<(Slot, ReplicaId)>,
    /// The replica that comes in its place, and its pod while that answers.
    pub newcomer: Option<(ReplicaId, Option<usize>)>,
}

/// The steps of a replacement, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The newcomer gets a slot.
    AddStandby,
    /// It is told which service it belongs to.
    Join,
    /// It takes in what the others have.
    CatchUp,
    /// It votes.
    Promote,
    /// The lost member goes.
    Remove,
}

/// What a step waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// A pod that does not answer may run the member that seems lost.
    Answers,
    /// No leader is known, or not every voter that answers agrees with it on the members yet.
    Leader,
    /// Too few voters are ready.
    Quorum,
    /// The last change has not settled.
    Settled,
    /// The newcomer has not caught up, or does not answer.
    Newcomer,
}

/// The next step of a replacement; none if no member is to be replaced.
pub fn replace(service: &Service, genesis: &Genesis, world: &World) -> Option<Decision> {
    let configuration = world.members(genesis).configuration;
    let lost = |(slot, id): (&Slot, &ReplicaId)| gone(service, world, *id).then_some((*slot, *id));
    let lost: Vec<(Slot, ReplicaId)> = configuration.voters().iter().filter_map(lost).collect();
    let target = lost.first().copied();
    let living = configuration.voters().len() - lost.len();
    let standby = configuration.standbys().iter().next().map(|(slot, id)| (*slot, *id));
    let newcomers = newcomers(genesis, world);
    if (standby.is_some() || !newcomers.is_empty()) && living < configuration.quorum() {
        let pods = world.replicas().filter(|(_, replica)| !configuration.voters().values().any(|id| *id == replica.id));
        return Some(Decision::Refuse(Refusal::ReplicaLost { pods: pods.map(|(ordinal, _)| ordinal).collect() }));
    }
    // More voters than asked for are a replacement that has not ended: it does before the next one begins.
    let wanted = living < service.replicas && configuration.voters().len() <= service.replicas;
    let Some((slot, id)) = standby else {
        let newcomer = newcomers.first().copied();
        return match (target, newcomer) {
            (Some((slot, _)), _) if !wanted => {
                let newcomer = configuration.voters().last_key_value().map(|(_, id)| (*id, world.pod_of(*id)));
                let replacement = Replacement { step: Step::Remove, target, newcomer };
                Some(change(genesis, world, Change::Remove { slot }, replacement))
            }
            (_, Some((ordinal, replica))) => {
                let newcomer = Some((replica, Some(ordinal)));
                let replacement = Replacement { step: Step::AddStandby, target, newcomer };
                Some(if wanted {
                    change(genesis, world, Change::AddStandby { replica }, replacement)
                } else {
                    Decision::Wait(Wait::Replacing(replacement, Pending::Answers))
                })
            }
            (Some(_) | None, None) => None,
        };
    };
    let pod = world.pod_of(id);
    let replacement = |step| Replacement { step, target, newcomer: Some((id, pod)) };
    let wait = |step, pending| Some(Decision::Wait(Wait::Replacing(replacement(step), pending)));
    let Some((ordinal, replica)) = pod.and_then(|ordinal| Some((ordinal, world.replica(ordinal)?))) else {
        if !gone(service, world, id) {
            return wait(Step::CatchUp, Pending::Newcomer);
        }
        // Its disk is lost as well: what is in its pod now comes in its place.
        let replacement = Replacement { step: Step::Remove, target: Some((slot, id)), newcomer: None };
        return Some(change(genesis, world, Change::Remove { slot }, replacement));
    };
    if replica.service.is_none() {
        if let Some(pending) = pending(genesis, world) {
            return wait(Step::Join, pending);
        }
        let (genesis, replacement) = (genesis.clone(), replacement(Step::Join));
        return Some(Decision::Act(Action::Join { ordinal, slot, genesis, replacement }));
    }
    if !replica.caught_up {
        return wait(Step::CatchUp, Pending::Newcomer);
    }
    if !wanted {
        return wait(Step::Promote, Pending::Answers);
    }
    Some(change(genesis, world, Change::Promote { slot }, replacement(Step::Promote)))
}

/// A change, if it may be made now.
fn change(genesis: &Genesis, world: &World, change: Change, replacement: Replacement) -> Decision {
    let configuration = world.members(genesis).configuration;
    let ready = world.ready(genesis);
    let enough = |voters: usize, ready: usize| ready >= configuration.fault_model().quorum(voters);
    let voters = configuration.voters().len();
    let after = match change {
        Change::AddStandby { .. } => true,
        // It has caught up, so it counts from then on.
        Change::Promote { .. } => enough(voters + 1, ready + 1),
        Change::Remove { slot } => configuration.voter(slot).is_none() || enough(voters - 1, ready),
    };
    let pending = pending(genesis, world).or((!after).then_some(Pending::Quorum));
    match (pending, world.leader(genesis)) {
        (None, Some(leader)) => Decision::Act(Action::ChangeMembers { leader, change, replacement }),
        (Some(pending), _) => Decision::Wait(Wait::Replacing(replacement, pending)),
        (None, None) => Decision::Wait(Wait::Replacing(replacement, Pending::Leader)),
    }
}

/// Why no step may be taken at all.
fn pending(genesis: &Genesis, world: &World) -> Option<Pending> {
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

/// Replicas with an empty disk that were never members, by ordinal. What is on a claim that is being deleted does not stay.
fn newcomers(genesis: &Genesis, world: &World) -> Vec<(usize, ReplicaId)> {
    let configuration = world.members(genesis).configuration;
    let dying = world.dying();
    world
        .replicas()
        .filter(|(ordinal, replica)| replica.service.is_none() && !dying.contains(ordinal))
        .map(|(ordinal, replica)| (ordinal, replica.id))
        .filter(|(_, id)| configuration.slot_of(*id).is_none() && !genesis.voters.contains(id))
        .collect()
}

/// Whether no pod runs this member any more: its pod answers as another one, or all pods answer and none is it.
fn gone(service: &Service, world: &World, id: ReplicaId) -> bool {
    if world.pod_of(id).is_some() {
        return false;
    }
    let answers = |ordinal: usize| world.replica(ordinal).is_some();
    let text = id.to_string();
    let member = service.status.members.iter().find(|member| member.replica_id == text);
    let pod = member.and_then(|member| member.pod.as_ref());
    (0..service.replicas).any(|ordinal| pod == Some(&service.pod_name(ordinal)) && answers(ordinal))
        || (0..service.replicas).all(answers)
}

impl Replacement {
    /// What is being done, for conditions.
    pub fn describe(&self, service: &Service) -> String {
        let Replacement { step, target, newcomer } = self;
        let lost =
            target.map_or_else(|| "a lost replica".to_owned(), |(slot, id)| format!("lost replica {id} ({slot})"));
        let place = match newcomer {
            Some((id, Some(ordinal))) => format!(" by {id} in {}", service.pod_name(*ordinal)),
            Some((id, None)) => format!(" by {id}"),
            None => String::new(),
        };
        format!("replacing {lost}{place}: {step}")
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::AddStandby => "add the new one as a standby",
            Step::Join => "let the new one join",
            Step::CatchUp => "let the new one catch up",
            Step::Promote => "promote the new one",
            Step::Remove => "remove the lost one",
        })
    }
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pending::Answers => "waiting until every pod answers, since one of them may run the member that seems lost",
            Pending::Leader => "waiting until a leader is known and ready",
            Pending::Quorum => "waiting until a quorum of the voters is ready",
            Pending::Settled => "waiting until the last change of members has settled",
            Pending::Newcomer => "waiting until it answers and has caught up",
        })
    }
}
