//! The walk: from a service at rest, every way in which disks and nodes are lost, pods fall silent and come back, the lead moves,
//! the number of replicas and the template are changed and the operator acts, in any order. An operator that is killed is nothing
//! of its own here: the next one sees the same world.

mod model;

use std::collections::{BTreeMap, VecDeque};

use lockstep_types::{Change, Configuration};

use super::*;
use model::{Budget, Model};

/// What the operator does next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// It tells the StatefulSet to run so many pods: objects come first.
    Resize(usize),
    /// What it decides on the pods.
    Decided(Decision),
}

/// What the operator does, and that it harms nothing.
fn check(example: &Service, model: &Model) -> Next {
    let (service, world, before) = (model.service(example), model.world(), model.configuration());
    let pods = size(&service, &world);
    if pods != model.size {
        assert!(pods >= model.wanted, "{model:?}: {pods} pods are too few");
        for ordinal in pods..model.size {
            assert!(
                model.settled && !model.has_member(&before, ordinal),
                "{model:?}: pod {ordinal} goes with a member"
            );
        }
        return Next::Resize(pods);
    }
    let decision = crate::decide::pods(&service, &world, FRESH);
    let enough = model.counting(&before) >= before.quorum();
    match &decision {
        Decision::Act(action @ Action::ChangeMembers { change, .. }) => {
            check_change(model, &model.act(action), *change)
        }
        Decision::Act(Action::Join { ordinal, slot, .. }) => {
            assert_eq!(before.standbys().get(slot), Some(&model.id(*ordinal)), "{model:?}");
        }
        Decision::Act(Action::HandOver { leader, to, .. }) => {
            assert!(model.leader == Some(*leader) && model.counts(&before, *to), "{model:?}: hand over to {to}");
        }
        Decision::Act(Action::ReplacePod { ordinal, by, .. }) => {
            let others =
                (0..model.places.len()).filter(|other| other != ordinal && model.counts(&before, *other)).count();
            // What nobody who answers tells cannot be known.
            let known = world.replicas().any(|(_, replica)| replica.members.is_some());
            assert!(
                !known || others + 1 >= before.voters().len(),
                "{model:?}: pod {ordinal} goes while another one is away"
            );
            assert!(
                model.settled && before.standbys().is_empty() || *by == Removal::Deletion,
                "{model:?}: {ordinal} in a change"
            );
        }
        Decision::Act(Action::ReplaceVolume { ordinal, .. }) => {
            let place = &model.places[*ordinal];
            let removed = before.removed().values().any(|gone| *gone == model.id(*ordinal));
            assert!(removed || place.stranded, "{model:?}: volume {ordinal} is of use");
            assert!(
                model.settled && enough && !model.counts(&before, *ordinal),
                "{model:?}: volume {ordinal} is needed"
            );
        }
        Decision::Act(Action::DeleteClaims { claims }) => {
            for (ordinal, _) in claims {
                assert!(
                    !model.places[*ordinal].runs && !model.has_member(&before, *ordinal),
                    "{model:?}: claim {ordinal}"
                );
            }
            assert!(model.settled && enough, "{model:?}: claims deleted on no quorum's word");
        }
        Decision::Refuse(refusal) => {
            assert_eq!(refusal.reason(), "ReplicaLost", "{model:?}");
            assert!(living(model, &before) < before.quorum(), "{model:?}: refused with a quorum of disks");
        }
        Decision::Act(_) | Decision::Wait(_) => {}
        Decision::Converged => {
            assert_eq!(model.counting(&before), model.wanted, "{model:?}: converged");
            assert_eq!(before.members().count(), model.wanted, "{model:?}: converged");
            assert_eq!(model.size, model.wanted, "{model:?}: converged");
            let used = |(ordinal, place): (usize, &model::Place)| {
                let left_over = place.disk.is_some_and(|disk| disk.joined) && ordinal >= model.wanted;
                !left_over && place.runs == (ordinal < model.wanted) && !place.old
            };
            assert!(model.places.iter().enumerate().all(used), "{model:?}: converged");
        }
    }
    Next::Decided(decision)
}

/// Voters whose disks are there.
fn living(model: &Model, members: &Configuration) -> usize {
    let votes = |ordinal: &usize| members.voters().values().any(|id| *id == model.id(*ordinal));
    (0..model.places.len()).filter(|ordinal| model.places[*ordinal].disk.is_some() && votes(ordinal)).count()
}

fn check_change(model: &Model, after: &Model, change: Change) {
    let (before, members) = (model.configuration(), after.configuration());
    let (voted, vote) = (before.voters().len(), members.voters().len());
    assert!(model.settled, "{model:?}: {change} before the last change has settled");
    assert!(model.counting(&before) >= before.quorum(), "{model:?}: {change} without a quorum");
    assert!(after.counting(&members) >= members.quorum(), "{model:?}: {change} takes the quorum away");
    assert!(members.standbys().len() <= 1, "{model:?}: {change} begins a second operation");
    assert!(vote <= voted.max(model.wanted + 1), "{model:?}: {change} leaves too many voters");
    let Change::Remove { slot } = change else { return };
    let gone = before.member(slot).expect("a member");
    let place = (0..model.places.len()).find(|o| model.places[*o].disk.is_some() && model.id(*o) == gone);
    let spare = voted > model.wanted;
    match place {
        // Nothing is lost with what is lost already: no fewer failures are survived than before.
        None => {
            assert!(spare || members.tolerated() >= before.tolerated(), "{model:?}: {change} leaves too few voters")
        }
        Some(ordinal) => {
            assert!(ordinal >= model.wanted, "{model:?}: {change} of a replica that shall stay");
            if before.voter(slot).is_some() {
                assert!(spare, "{model:?}: {change} leaves too few voters");
                assert!(after.counting(&members) == vote, "{model:?}: {change} while another one is away");
                assert!(model.leader != Some(ordinal), "{model:?}: {change} of the leader");
            }
        }
    }
}

/// Whether nothing more is to be expected here: all is well, or it is said what is wrong.
fn is_end(model: &Model, next: &Next) -> bool {
    let stranded = model.places.iter().any(|place| place.stranded);
    match next {
        Next::Decided(Decision::Converged | Decision::Refuse(_)) => true,
        // Nodes that are gone for good with a quorum: the wait names them.
        Next::Decided(Decision::Wait(_)) => {
            stranded && model.counting(&model.configuration()) < model.configuration().quorum()
        }
        Next::Decided(Decision::Act(_)) | Next::Resize(_) => false,
    }
}

/// Walks from a service of `n` at rest with room for `most`.
fn walk(n: u8, most: u8, left: Budget) {
    let example = example();
    let start = Model::born(n, most, left);
    let mut seen = BTreeMap::from([(start.clone(), 0)]);
    let mut open = VecDeque::from([(start, 0)]);
    // From where each state is reached without a fault.
    let mut before: Vec<Vec<usize>> = vec![vec![]];
    let mut ends = vec![];
    while let Some((model, number)) = open.pop_front() {
        let mut good = model.better();
        let next = check(&example, &model);
        match &next {
            Next::Decided(Decision::Act(action)) => good.push(model.act(action)),
            Next::Resize(size) => good.push(Model { size: *size, ..model.clone() }),
            Next::Decided(Decision::Wait(_) | Decision::Refuse(_) | Decision::Converged) => {}
        }
        if is_end(&model, &next) {
            ends.push(number);
        }
        let faultless = good.len();
        for (index, next) in good.into_iter().chain(model.worse()).enumerate() {
            let known = seen.get(&next).copied();
            let to = known.unwrap_or(before.len());
            if known.is_none() {
                before.push(vec![]);
                seen.insert(next.clone(), to);
                open.push_back((next, to));
            }
            if index < faultless {
                before[to].push(number);
            }
        }
    }
    // Backwards from the ends: from everywhere one of them is reached without another fault.
    let mut reached = vec![false; before.len()];
    while let Some(number) = ends.pop() {
        if !std::mem::replace(&mut reached[number], true) {
            ends.extend(&before[number]);
        }
    }
    println!("{n} replicas, room for {most}, {left:?}: {} states", seen.len());
    assert_eq!(seen.iter().find(|(_, number)| !reached[**number]), None, "nothing leads on from here");
}

const SILENCE: Budget = Budget { silent: 1, losses: 0, nodes: 0, edits: 0, templates: 0 };

#[test]
fn every_way_to_lose_disks_and_nodes_ends_well_or_in_a_named_refusal() {
    for n in [1, 3] {
        walk(n, n, Budget { losses: 2, ..SILENCE });
        walk(n, n, Budget { losses: 1, nodes: 1, ..SILENCE });
    }
    walk(5, 5, Budget { losses: 1, nodes: 1, ..SILENCE });
}

#[test]
fn every_way_to_scale_ends_with_as_many_voters_as_asked_for() {
    walk(1, 3, Budget { edits: 3, ..SILENCE });
    walk(3, 5, Budget { edits: 1, ..SILENCE });
    walk(3, 5, Budget { edits: 2, silent: 0, ..SILENCE });
    walk(5, 5, Budget { edits: 2, silent: 0, ..SILENCE });
}

#[test]
fn every_fault_and_template_in_the_middle_of_scaling_ends_well_or_in_a_named_refusal() {
    walk(3, 3, Budget { losses: 1, nodes: 1, edits: 1, ..SILENCE });
    walk(3, 3, Budget { templates: 1, edits: 2, ..SILENCE });
    walk(1, 3, Budget { losses: 1, templates: 1, edits: 1, ..SILENCE });
}
