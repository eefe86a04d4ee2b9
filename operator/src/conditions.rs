//! From what was seen and decided to the status. Pure, and quiet: the same world gives the same status, to the byte.

mod divergence;
mod operation;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use lockstep_api::ReplicatedServiceStatus;
use lockstep_api::status::{Member, OperationKind};
use lockstep_types::Genesis;

use crate::build;
use crate::decide::{Action, Decision, Purpose, Wait};
use crate::validate::{Invalid, Service, write_genesis};
use crate::world::World;
use divergence::diverged;
pub use divergence::{STATE_DIVERGED, STATE_REBUILT};

/// All replicas are up to date and ready.
pub const READY: &str = "Ready";
/// Requests commit.
pub const AVAILABLE: &str = "Available";
/// One more replica may fail.
pub const FAULT_TOLERANT: &str = "FaultTolerant";
/// The operator is changing something.
pub const PROGRESSING: &str = "Progressing";
/// Something is wrong, and a human may have to choose.
pub const DEGRADED: &str = "Degraded";

/// The reason of a failed act.
pub const FAILED: &str = "ActionFailed";

/// How long replicas may take from their genesis to their first leader before that counts as trouble, in seconds.
const BIRTH_SECONDS: i64 = 60;

/// The status of `service` after `decision`. `failure` is what the last act ended with, if it failed.
pub fn status(
    service: &Service,
    world: &World,
    decision: &Decision,
    failure: Option<&str>,
    now: &Time,
) -> ReplicatedServiceStatus {
    let previous = &service.status;
    let genesis = match decision {
        Decision::Act(Action::RecordGenesis { genesis, .. }) => Some(genesis),
        _ => service.recorded.as_ref(),
    };
    let ready = genesis.map_or(0, |genesis| world.ready(genesis));
    let mut list = List { previous: &previous.conditions, generation: service.generation, now, conditions: vec![] };
    let newborn = is_newborn(service, decision, now);
    conditions(&mut list, service, world, decision, failure, ready, newborn);
    ReplicatedServiceStatus {
        observed_generation: service.generation,
        replicas: count(world.pods.len()),
        ready_replicas: count(ready),
        voters: count(genesis.map_or(0, |genesis| world.members(genesis).configuration.voters().len())),
        selector: Some(build::selector_text(&service.name)),
        service_id: genesis.map(|genesis| genesis.service.to_string()),
        genesis: genesis.map(write_genesis),
        leader: genesis.and_then(|genesis| world.leader(genesis)).map(|ordinal| service.pod_name(ordinal)),
        members: genesis.map(|genesis| members(service, world, genesis)).unwrap_or_default(),
        operation: operation::operation(service, decision, genesis.is_some() && !newborn, now),
        conditions: list.conditions,
    }
}

/// The status of a resource that makes no sense: what is known stays, and the conditions say what is wrong.
pub fn invalid(
    previous: &ReplicatedServiceStatus,
    generation: Option<i64>,
    invalid: &Invalid,
    now: &Time,
) -> ReplicatedServiceStatus {
    let mut list = List { previous: &previous.conditions, generation, now, conditions: vec![] };
    let text = invalid.to_string();
    list.push(READY, false, invalid.reason(), &text);
    for type_ in [AVAILABLE, FAULT_TOLERANT] {
        // The replicas go on without the operator; nobody looked at them.
        list.conditions.extend(previous.condition(type_).cloned());
    }
    list.push(PROGRESSING, false, invalid.reason(), "waiting for a change of the resource");
    list.push(DEGRADED, true, invalid.reason(), &text);
    ReplicatedServiceStatus { observed_generation: generation, conditions: list.conditions, ..previous.clone() }
}

fn conditions(
    list: &mut List<'_>,
    service: &Service,
    world: &World,
    decision: &Decision,
    failure: Option<&str>,
    ready: usize,
    newborn: bool,
) {
    let members = service.recorded.as_ref().map(|genesis| world.members(genesis).configuration);
    let (n, quorum) = members
        .as_ref()
        .map_or((service.replicas, service.quorum()), |members| (members.voters().len(), members.quorum()));
    let complete = n == service.replicas && members.is_none_or(|members| members.standbys().is_empty());
    let (reason, message) = match decision {
        Decision::Act(action) => action.progress(service),
        Decision::Wait(wait) => (wait.reason(), wait.describe(service)),
        Decision::Refuse(refusal) => (refusal.reason(), refusal.describe(service)),
        Decision::Converged => ("Converged", "nothing to do".to_owned()),
    };
    let (reason, message) = match (failure, decision) {
        (Some(failure), Decision::Act(_)) => (FAILED, failure.to_owned()),
        _ => (reason, message),
    };

    let refused = matches!(decision, Decision::Refuse(_));
    if complete && ready == n && is_current(world, decision) && !refused {
        let message = if n == 1 { "the replica is ready".to_owned() } else { format!("all {n} replicas are ready") };
        list.push(READY, true, "AllReplicasReady", &message);
    } else {
        list.push(READY, false, reason, &message);
    }

    let of = format!("{ready} of {n} replicas are ready");
    let born = service.recorded.is_some() && (!newborn || ready >= quorum);
    match born {
        false => {
            list.push(AVAILABLE, false, "NoGenesis", "the service is not born yet");
            list.push(FAULT_TOLERANT, false, "NoGenesis", "the service is not born yet");
        }
        true => {
            if ready >= quorum {
                list.push(AVAILABLE, true, "QuorumReady", &format!("{of}; {quorum} are enough"));
            } else {
                list.push(AVAILABLE, false, "NoQuorum", &format!("{of}; {quorum} are needed"));
            }
            if n == 1 {
                list.push(FAULT_TOLERANT, false, "SingleReplica", "a single replica survives no failure");
            } else if ready > quorum {
                let spare = ready - quorum;
                list.push(FAULT_TOLERANT, true, "SpareReplicas", &format!("{of}; {spare} more may fail"));
            } else {
                list.push(FAULT_TOLERANT, false, "NoSpareReplica", &format!("{of}; none may fail"));
            }
        }
    }

    let failed = reason == FAILED;
    match decision {
        Decision::Act(_) => list.push(PROGRESSING, true, reason, &message),
        Decision::Wait(Wait::NotReady(_)) if !newborn => {
            list.push(PROGRESSING, false, reason, "nothing for the operator to do")
        }
        Decision::Wait(_) => list.push(PROGRESSING, true, reason, &message),
        Decision::Refuse(_) => list.push(PROGRESSING, false, reason, "waiting for a choice"),
        Decision::Converged => list.push(PROGRESSING, false, reason, &message),
    }
    // A roll that waits for a replica in transition is as expected; one that waits for a sick one is not.
    let long = world.pods.values().any(|pod| pod.lasting);
    let stuck = world.pods.values().any(|pod| pod.stuck.is_some() && pod.replica.is_none());
    let wrong = diverged(service, world, false);
    match decision {
        Decision::Refuse(_) => list.push(DEGRADED, true, reason, &message),
        _ if wrong.is_some() => list.push(DEGRADED, true, STATE_DIVERGED, &wrong.unwrap_or_default()),
        Decision::Wait(Wait::NotReady(_)) if !newborn => list.push(DEGRADED, true, reason, &message),
        Decision::Act(_) if failed => list.push(DEGRADED, true, reason, &message),
        Decision::Wait(_) if stuck => list.push(DEGRADED, true, "PodsStuck", &message),
        Decision::Wait(Wait::Rolling(_)) if long => list.push(DEGRADED, true, "ReplicasNotReady", &message),
        // Pods that come or go with scaling are not ready for as long as it takes.
        Decision::Wait(Wait::Members(told, _)) if long && (told.purpose == Purpose::Replace || ready < n) => {
            list.push(DEGRADED, true, "ReplicasNotReady", &message)
        }
        Decision::Act(_) | Decision::Wait(_) | Decision::Converged => match diverged(service, world, true) {
            Some(rebuilt) => list.push(DEGRADED, false, STATE_REBUILT, &rebuilt),
            None => list.push(DEGRADED, false, "AsExpected", "nothing is wrong"),
        },
    }
}

/// Whether the pods are what the resource asks for: nothing is about to change under them, and none is outdated. Kubernetes
/// takes a moment to note a change of the StatefulSet, and does not know before that which pods are outdated.
fn is_current(world: &World, decision: &Decision) -> bool {
    let changing = matches!(decision, Decision::Act(Action::Apply(_) | Action::CreateToken));
    !changing && world.set.as_ref().is_some_and(|set| set.up_to_date) && world.outdated().is_empty()
}

/// Whether the replicas are still on their way from the genesis to their first leader.
fn is_newborn(service: &Service, decision: &Decision, now: &Time) -> bool {
    let bootstraps = service.status.operation.as_ref().is_some_and(|it| it.kind == OperationKind::Bootstrap);
    let since = service.status.condition(PROGRESSING).map(|condition| &condition.last_transition_time);
    let recent = since.is_none_or(|since| now.0.as_second() - since.0.as_second() <= BIRTH_SECONDS);
    bootstraps && recent && matches!(decision, Decision::Act(_) | Decision::Wait(_))
}

fn members(service: &Service, world: &World, genesis: &Genesis) -> Vec<Member> {
    let known = world.members_are_known(genesis);
    if !known && !service.status.members.is_empty() {
        return service.status.members.clone();
    }
    let configuration = world.members(genesis).configuration;
    configuration
        .members()
        .map(|(slot, id)| {
            let replica_id = id.to_string();
            let seen = world.pod_of(id).map(|ordinal| service.pod_name(ordinal));
            // A replica that does not answer right now is still where it was.
            let before = service.status.members.iter().find(|member| member.replica_id == replica_id);
            let pod = seen.or_else(|| before.and_then(|member| member.pod.clone()));
            let standby = configuration.voter(slot).is_none();
            Member { pod, slot: i64::from(slot.get()), replica_id, standby }
        })
        .collect()
}

/// Conditions in the making. A transition time changes only with the status itself.
struct List<'a> {
    previous: &'a [Condition],
    generation: Option<i64>,
    now: &'a Time,
    conditions: Vec<Condition>,
}

impl List<'_> {
    fn push(&mut self, type_: &str, holds: bool, reason: &str, message: &str) {
        let status = if holds { "True" } else { "False" }.to_owned();
        let before = self.previous.iter().find(|condition| condition.type_ == type_ && condition.status == status);
        self.conditions.push(Condition {
            type_: type_.to_owned(),
            last_transition_time: before.map_or_else(|| self.now.clone(), |c| c.last_transition_time.clone()),
            message: message.to_owned(),
            observed_generation: self.generation,
            reason: reason.to_owned(),
            status,
        });
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::jiff::Timestamp;
    use lockstep_api::status::OperationStep;
    use lockstep_types::{Change, ReplicaId, Slot, View};

    use super::*;
    use crate::decide::{MemberChange, Refusal, Step};
    use crate::validate::tests::{example, genesis};
    use crate::world::{Diverged, Members, Pod, Replica, Set};

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).expect("a time"))
    }

    /// Three pods, the first of which leads; `ready` of them are.
    fn world(ready: usize) -> World {
        let pod = |ordinal: usize| Pod {
            uid: format!("uid-{ordinal}"),
            revision: "new".into(),
            terminating: false,
            lasting: false,
            was_ready: true,
            stuck: None,
            stranded: None,
            replica: Some(Replica {
                id: ReplicaId::from_bytes([u8::try_from(ordinal).expect("small") + 1; 16]),
                service: Some(genesis(3).service),
                genesis: None,
                leads: ordinal == 0,
                view: View::new(1, Slot::new(1)),
                retired: false,
                diverged: None,
                not_ready: (ordinal >= ready).then(|| "no leader heard".into()),
                members: Some(Members { configuration: genesis(3).configuration(), settled: true }),
                caught_up: ordinal < ready,
            }),
        };
        World {
            set: Some(Set { update_revision: "new".into(), up_to_date: true }),
            pods: (0..3).map(|ordinal| (ordinal, pod(ordinal))).collect::<BTreeMap<_, _>>(),
            ..Default::default()
        }
    }

    fn born() -> Service {
        Service { recorded: Some(genesis(3)), ..example() }
    }

    fn summary(status: &ReplicatedServiceStatus) -> String {
        let one = |c: &Condition| format!("{}={}", c.type_, &c.status[..1]);
        status.conditions.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn converged_service_is_ready_and_names_leader_and_members() {
        let status = status(&born(), &world(3), &Decision::Converged, None, &at(1));
        assert_eq!(summary(&status), "Ready=T Available=T FaultTolerant=T Progressing=F Degraded=F");
        assert_eq!(status.leader.as_deref(), Some("kv-0"));
        assert_eq!(status.service_id, Some("09".repeat(16)));
        let members: Vec<_> = status.members.iter().map(|m| (m.pod.clone().expect("a pod"), m.slot)).collect();
        assert_eq!(members, [("kv-0".into(), 1), ("kv-1".into(), 2), ("kv-2".into(), 3)]);
        assert_eq!(status.selector.as_deref(), Some(build::selector_text("kv").as_str()));
        assert_eq!(status.operation, None);
    }

    #[test]
    fn same_world_seen_later_gives_the_same_status() {
        let mut service = born();
        let first = status(&service, &world(3), &Decision::Converged, None, &at(1));
        service.status = first.clone();
        assert_eq!(status(&service, &world(3), &Decision::Converged, None, &at(99)), first);
    }

    #[test]
    fn state_that_differs_degrades_the_service_and_one_built_anew_is_named() {
        let with = |over| {
            let mut world = world(3);
            let replica = world.pods.get_mut(&1).and_then(|pod| pod.replica.as_mut()).expect("it answers");
            replica.diverged = Some(Diverged { over, text: "block 57, key \"a\"".into() });
            let status = status(&born(), &world, &Decision::Converged, None, &at(1));
            let degraded = status.condition(DEGRADED).expect("always there");
            (degraded.status.clone(), degraded.reason.clone(), degraded.message.clone())
        };
        let message = "kv-1: block 57, key \"a\"".to_owned();
        assert_eq!(with(false), ("True".into(), STATE_DIVERGED.into(), message.clone()));
        assert_eq!(with(true), ("False".into(), STATE_REBUILT.into(), message));
    }

    #[test]
    fn transition_time_changes_only_with_the_status_of_its_condition() {
        let mut service = born();
        service.status = status(&service, &world(3), &Decision::Converged, None, &at(1));
        let wait = Decision::Wait(Wait::NotReady(vec![(2, None)]));
        let later = status(&service, &world(2), &wait, None, &at(99));
        assert_eq!(summary(&later), "Ready=F Available=T FaultTolerant=F Progressing=F Degraded=T");
        let time = |type_: &str| later.condition(type_).map(|c| c.last_transition_time.clone());
        assert_eq!(time(READY), Some(at(99)));
        assert_eq!(time(AVAILABLE), Some(at(1)));
    }

    #[test]
    fn replica_that_does_not_answer_stays_a_member_where_it_was() {
        let mut service = born();
        service.status = status(&service, &world(3), &Decision::Converged, None, &at(1));
        let mut silent = world(3);
        silent.pods.get_mut(&1).expect("a pod").replica = None;
        let wait = Decision::Wait(Wait::NotReady(vec![(1, None)]));
        assert_eq!(status(&service, &silent, &wait, None, &at(2)).members, service.status.members);
    }

    #[test]
    fn lost_quorum_is_not_available() {
        let wait = Decision::Wait(Wait::NotReady(vec![(1, None), (2, None)]));
        let status = status(&born(), &world(1), &wait, None, &at(1));
        assert_eq!(summary(&status), "Ready=F Available=F FaultTolerant=F Progressing=F Degraded=T");
        assert_eq!(status.operation.map(|operation| operation.kind), Some(OperationKind::Recover));
    }

    #[test]
    fn newborn_service_is_not_degraded_until_it_takes_too_long() {
        let decision = Decision::Act(Action::RecordGenesis { genesis: genesis(3), adopted: false });
        let mut service = born();
        service.status = status(&example(), &world(0), &decision, None, &at(0));
        let wait = Decision::Wait(Wait::NotReady(vec![(0, None), (1, None), (2, None)]));
        let soon = status(&service, &world(0), &wait, None, &at(5));
        assert_eq!(summary(&soon), "Ready=F Available=F FaultTolerant=F Progressing=T Degraded=F");
        assert_eq!(soon.operation.as_ref().map(|operation| operation.kind), Some(OperationKind::Bootstrap));
        let late = status(&service, &world(0), &wait, None, &at(BIRTH_SECONDS + 1));
        assert_eq!(summary(&late), "Ready=F Available=F FaultTolerant=F Progressing=F Degraded=T");
        service.status = soon;
        service.status = status(&service, &world(3), &Decision::Converged, None, &at(6));
        let later = status(&service, &world(2), &wait, None, &at(7));
        assert_eq!(summary(&later), "Ready=F Available=T FaultTolerant=F Progressing=F Degraded=T");
    }

    #[test]
    fn service_whose_template_has_just_changed_is_not_ready_of_the_new_one() {
        let apply = Decision::Act(Action::Apply(vec![("StatefulSet", "kv".into(), "spec.template".into())]));
        assert_eq!(summary(&status(&born(), &world(3), &apply, None, &at(1)))[..7], *"Ready=F");
        let mut unnoted = world(3);
        unnoted.set = Some(Set { update_revision: "new".into(), up_to_date: false });
        let wait = Decision::Wait(Wait::Kubernetes);
        assert_eq!(summary(&status(&born(), &unnoted, &wait, None, &at(1)))[..7], *"Ready=F");
    }

    #[test]
    fn roll_is_degraded_once_what_it_waits_for_lasts() {
        let wait = Decision::Wait(Wait::Rolling(vec![(2, None)]));
        let mut world = world(2);
        let now = status(&born(), &world, &wait, None, &at(1));
        assert_eq!(summary(&now), "Ready=F Available=T FaultTolerant=F Progressing=T Degraded=F");
        world.pods.get_mut(&2).expect("a pod").lasting = true;
        let later = status(&born(), &world, &wait, None, &at(99));
        assert_eq!(summary(&later), "Ready=F Available=T FaultTolerant=F Progressing=T Degraded=T");
    }

    #[test]
    fn genesis_about_to_be_recorded_stands_in_the_status() {
        let decision = Decision::Act(Action::RecordGenesis { genesis: genesis(3), adopted: false });
        let status = status(&example(), &world(0), &decision, None, &at(1));
        assert_eq!(status.genesis, Some(write_genesis(&genesis(3))));
        assert_eq!(summary(&status), "Ready=F Available=F FaultTolerant=F Progressing=T Degraded=F");
    }

    #[test]
    fn genesis_once_recorded_stays_whatever_is_decided() {
        let decisions = [
            Decision::Converged,
            Decision::Wait(Wait::Kubernetes),
            Decision::Refuse(Refusal::TokenMalformed),
            Decision::Act(Action::CreateToken),
        ];
        for decision in decisions {
            let status = status(&born(), &World::default(), &decision, None, &at(1));
            assert_eq!(status.genesis, Some(write_genesis(&genesis(3))), "{decision}");
        }
    }

    #[test]
    fn replacement_of_a_member_stands_in_the_status_from_its_first_step_to_its_last() {
        let (lost, new) = (ReplicaId::from_bytes([3; 16]), ReplicaId::from_bytes([9; 16]));
        let step = |step, target| MemberChange {
            purpose: Purpose::Replace,
            step,
            target,
            newcomer: Some((new, Some(2))),
            voters: 3,
        };
        let target = Some((Slot::new(3), lost));
        let change = |change, told| Decision::Act(Action::ChangeMembers { leader: 0, change, told });
        let mut service = born();
        let add = change(Change::AddStandby { replica: new }, step(Step::AddStandby, target));
        service.status = status(&service, &world(2), &add, None, &at(1));
        let first = service.status.operation.clone().expect("an operation");
        assert_eq!((first.kind, first.step), (OperationKind::ReplaceMember, Some(OperationStep::AddStandby)));
        assert_eq!((first.pod.as_deref(), first.since.clone()), (Some("kv-2"), Some(at(1))));
        assert_eq!(summary(&service.status), "Ready=F Available=T FaultTolerant=F Progressing=T Degraded=F");
        let apply = Decision::Act(Action::Apply(vec![("PodDisruptionBudget", "kv".into(), "spec".into())]));
        service.status = status(&service, &world(2), &apply, None, &at(2));
        assert_eq!(service.status.operation, Some(first));
        let last = change(Change::Remove { slot: Slot::new(3) }, step(Step::Remove, target));
        service.status = status(&service, &world(3), &last, None, &at(3));
        let last = service.status.operation.clone().expect("an operation");
        assert_eq!((last.step, last.since), (Some(OperationStep::Remove), Some(at(1))));
        assert_eq!(status(&service, &world(3), &Decision::Converged, None, &at(4)).operation, None);
    }

    #[test]
    fn service_with_members_on_their_way_is_not_ready() {
        let mut world = world(3);
        let new = ReplicaId::from_bytes([9; 16]);
        let add = Change::AddStandby { replica: new };
        let with_standby = genesis(3).configuration().apply(&add).expect("a change");
        for pod in world.pods.values_mut() {
            let known = Members { configuration: with_standby.clone(), settled: true };
            pod.replica.as_mut().expect("a replica").members = Some(known);
        }
        let status = status(&born(), &world, &Decision::Wait(Wait::Kubernetes), None, &at(1));
        assert_eq!(summary(&status)[..24], *"Ready=F Available=T Faul");
        let members: Vec<_> = status.members.iter().map(|member| member.standby).collect();
        assert_eq!(members, [false, false, false, true]);
    }

    #[test]
    fn refusal_is_degraded_with_the_choices() {
        let decision = Decision::Refuse(Refusal::ReplicaLost { pods: vec![2] });
        let status = status(&born(), &world(2), &decision, None, &at(1));
        assert_eq!(summary(&status), "Ready=F Available=T FaultTolerant=F Progressing=F Degraded=T");
        let degraded = status.condition(DEGRADED).expect("a condition");
        assert_eq!(degraded.reason, "ReplicaLost");
        assert!(degraded.message.contains("data-kv-2"), "{}", degraded.message);
    }

    #[test]
    fn failed_act_is_degraded_with_the_reason_until_it_succeeds() {
        let decision = Decision::Act(Action::GrowVolumes { claims: vec![0] });
        let status = status(&born(), &world(3), &decision, Some("forbidden"), &at(1));
        assert_eq!(summary(&status), "Ready=T Available=T FaultTolerant=T Progressing=T Degraded=T");
        assert_eq!(status.condition(DEGRADED).map(|c| c.message.as_str()), Some("forbidden"));
    }

    #[test]
    fn resource_gone_wrong_keeps_its_genesis() {
        let service = born();
        let previous = status(&service, &world(3), &Decision::Converged, None, &at(1));
        let wrong = Invalid::Spec(vec!["no".into()]);
        let status = invalid(&previous, Some(2), &wrong, &at(2));
        assert_eq!((&status.genesis, &status.members), (&previous.genesis, &previous.members));
        assert_eq!(summary(&status), "Ready=F Available=T FaultTolerant=T Progressing=F Degraded=T");
        assert_eq!(status.observed_generation, Some(2));
    }
}
