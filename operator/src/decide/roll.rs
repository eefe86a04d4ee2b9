//! Pods that were not made from the current template: which one goes next, and when.

use lockstep_types::Genesis;

use super::{Action, Decision, OUTDATED, Removal, Wait, delete, not_ready, replace};
use crate::validate::Service;
use crate::world::{Pod, World};

/// Outdated pods that cannot run at all go first, and at any time: nothing is lost with them, and this is how a bad image
/// heals once the resource is corrected.
pub fn stuck(world: &World) -> Option<Decision> {
    if world.set.as_ref().is_none_or(|set| !set.up_to_date) {
        return Some(Decision::Wait(Wait::Kubernetes));
    }
    // A second pod is never given to a template whose first has not answered yet: one past crash looks like "cannot run" too,
    // and the old pod may be back in seconds.
    let unproven = |pod: &Pod| !pod.terminating && pod.replica.is_none();
    if world.current().iter().any(|ordinal| unproven(&world.pods[ordinal])) {
        return None;
    }
    let stuck = |pod: &Pod| !pod.terminating && pod.replica.is_none() && pod.stuck.is_some();
    let dying = world.dying();
    let next = |ordinal: &usize| stuck(&world.pods[ordinal]) && !dying.contains(ordinal);
    let ordinal = world.outdated().into_iter().find(next)?;
    Some(delete(world, ordinal, "it cannot run, and is not of the current template"))
}

/// Outdated pods one by one: only while every other replica is ready, followers first, the leader last and after a hand-over.
pub fn roll(service: &Service, genesis: &Genesis, world: &World) -> Option<Decision> {
    // What shall go anyway is not made anew.
    let outdated: Vec<usize> = world.outdated().into_iter().filter(|ordinal| *ordinal < service.replicas).collect();
    if outdated.is_empty() {
        return None;
    }
    let waiting = not_ready(service, world, |ordinal| world.is_ready(ordinal, genesis));
    let leaving = |ordinal: &usize| world.pods[ordinal].terminating;
    if outdated.iter().any(|ordinal| leaving(ordinal) && !world.pods[ordinal].lasting) {
        return Some(Decision::Wait(Wait::Rolling(waiting)));
    }
    let (well, sick): (Vec<usize>, Vec<usize>) =
        outdated.into_iter().filter(|ordinal| !leaving(ordinal)).partition(|ordinal| world.is_ready(*ordinal, genesis));
    if let [ordinal, ..] = sick[..]
        && world.others_are_ready(genesis, ordinal)
    {
        return Some(delete(world, ordinal, "it is not ready, and not of the current template"));
    }
    // Pods whose replicas are no members yet may be long in coming, and nothing depends on them.
    if !world.all_are_ready(genesis) {
        return heal(service, genesis, world, &sick).or(Some(Decision::Wait(Wait::Rolling(waiting))));
    }
    // All are ready: this is planned work, which waits for the last change of members, and can wait for other services.
    if !world.members(genesis).settled {
        return Some(Decision::Wait(Wait::Unsettled));
    }
    if world.crowded {
        return Some(Decision::Wait(Wait::Turn));
    }
    if let ([ordinal], 1) = (&well[..], world.ready(genesis)) {
        return Some(replace(world, *ordinal, Removal::Eviction, OUTDATED));
    }
    if well.is_empty() {
        return Some(Decision::Wait(Wait::Rolling(waiting)));
    }
    let Some(leader) = world.leader(genesis) else { return Some(Decision::Wait(Wait::NoLeader)) };
    // The highest ordinal first, as a StatefulSet would.
    if let Some(follower) = well.iter().rev().find(|ordinal| **ordinal != leader) {
        return Some(replace(world, *follower, Removal::Eviction, OUTDATED));
    }
    // Only the leader is left, so everybody else is of the current template, and ready.
    let ready = |ordinal: usize| ordinal != leader && world.is_ready(ordinal, genesis);
    let (to, replica) = world.replicas().find(|(ordinal, _)| ready(*ordinal))?;
    Some(Decision::Act(Action::HandOver { leader, to, target: replica.id, told: None }))
}

/// An outdated pod that answers and is not ready, while others are not ready either: a corrected template must reach it, or a
/// service without a quorum never heals. A deleted pod comes back to its volume, so what is at stake is never a write, only a
/// voter that works, is merely short of a quorum, and would be given to a template that does not.
///
/// - Nothing may be in motion: what is not ready has been so for long. An election or a restart is waited for.
/// - The template has answered where it was tried. With a quorum ready it must be ready there, too: it could be.
/// - Pods that have never been ready go first. Nothing says that they ever worked.
/// - One that was ready once may be all that a quorum lacks. It goes if the rest has a quorum that is ready; or, to try a
///   template that was not tried yet, if the rest that answers is as many as a quorum.
fn heal(service: &Service, genesis: &Genesis, world: &World, sick: &[usize]) -> Option<Decision> {
    let moving =
        |ordinal: usize| !world.is_ready(ordinal, genesis) && world.pods.get(&ordinal).is_none_or(|pod| !pod.lasting);
    if (0..service.replicas).any(moving) {
        return None;
    }
    let tried: Vec<usize> = world
        .current()
        .into_iter()
        .filter(|ordinal| !world.is_ready(*ordinal, genesis) && !world.pods[ordinal].terminating)
        .collect();
    let quorum = world.members(genesis).configuration.quorum();
    let quorum_ready = world.ready(genesis) >= quorum;
    if tried.iter().any(|ordinal| quorum_ready || world.replica(*ordinal).is_none()) {
        return None;
    }
    let mut answering = sick.iter().copied().filter(|ordinal| world.replica(*ordinal).is_some());
    if let Some(ordinal) = answering.clone().find(|ordinal| !world.pods[ordinal].was_ready) {
        return Some(delete(world, ordinal, "it has never been ready, and is not of the current template"));
    }
    let ordinal = answering.next()?;
    let rest = world.replicas().filter(|(other, _)| *other != ordinal).count();
    let spare = quorum_ready || (tried.is_empty() && rest >= quorum);
    spare.then(|| delete(world, ordinal, "it has not been ready for long, and is not of the current template"))
}
