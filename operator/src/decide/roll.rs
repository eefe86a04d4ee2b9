//! Pods that were not made from the current template: which one goes next, and when.

use lockstep_types::Genesis;

use super::{Action, Decision, Wait, delete, not_ready};
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
    let revision = world.set.as_ref().map(|set| &set.update_revision);
    let unproven = |pod: &Pod| Some(&pod.revision) == revision && !pod.terminating && pod.replica.is_none();
    if world.pods.values().any(unproven) {
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
