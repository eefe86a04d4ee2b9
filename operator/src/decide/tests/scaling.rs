//! The rows on another number of replicas: members first, then pods, then claims, each read off the log and the pods.

use std::time::Duration;

use lockstep_types::{Change, Configuration, Slot};

use super::*;
use crate::world::{Strand, Stranded};

/// A service that asks for `wanted` replicas, born with three.
fn asks(wanted: usize) -> Service {
    let mut service = with_genesis(example());
    service.replicas = wanted;
    service
}

/// Pods of the current template, where these changes were made to the three members of the beginning.
fn scaled(pods: &[State], changes: &[Change]) -> World {
    let pods: Vec<_> = pods.iter().map(|state| (*state, N)).collect();
    let mut world = world(&example(), &pods);
    let next = |members: Configuration, change: &Change| members.apply(change).expect("a change that can be");
    let configuration = changes.iter().fold(genesis(3).configuration(), next);
    for replica in world.pods.values_mut().filter_map(|pod| pod.replica.as_mut()) {
        if replica.service.is_some() {
            replica.genesis = Some(genesis(3));
            replica.members = Some(Members { configuration: configuration.clone(), settled: true });
            let votes = configuration.voters().values().any(|id| *id == replica.id);
            replica.not_ready = replica.not_ready.take().or_else(|| (!votes).then(|| "has no vote".into()));
        }
    }
    let set = world.objects.get_mut(&("StatefulSet", "kv".into())).expect("the set");
    set["spec"]["replicas"] = serde_json::json!(pods.len());
    // What the hash says is beside the point here.
    world.settled.insert(("StatefulSet", "kv".into()));
    world
}

/// The decision once the objects are as built.
fn next(service: &Service, world: &World) -> String {
    word(&crate::decide::pods(service, world, FRESH))
}

fn lost(ordinal: usize) -> ReplicaId {
    id(100 + ordinal)
}

fn add(replica: ReplicaId) -> Change {
    Change::AddStandby { replica }
}

fn promote(slot: u32) -> Change {
    Change::Promote { slot: Slot::new(slot) }
}

fn remove(slot: u32) -> Change {
    Change::Remove { slot: Slot::new(slot) }
}

/// Five voters, in their pods.
const GREW: [fn() -> Change; 4] = [|| add(id(3)), || promote(4), || add(id(4)), || promote(5)];

fn grew() -> Vec<Change> {
    GREW.iter().map(|change| change()).collect()
}

#[test]
fn more_replicas_are_added_one_by_one_each_by_way_of_a_standby() {
    let service = asks(5);
    assert_eq!(size(&service, &scaled(&[Leader, Ready, Ready], &[])), 5);
    let pods = [Leader, Ready, Ready, Lost, Lost];
    assert_eq!(next(&service, &scaled(&pods, &[])), format!("0: {}", add(lost(3))));
    assert_eq!(next(&service, &scaled(&pods, &[add(lost(3))])), format!("join 3 in {}", Slot::new(4)));
    let standby = [Leader, Ready, Ready, Ready, Lost];
    assert_eq!(next(&service, &scaled(&standby, &[add(id(3))])), format!("0: {}", promote(4)));
    let four = [add(id(3)), promote(4)];
    assert_eq!(next(&service, &scaled(&standby, &four)), format!("0: {}", add(lost(4))));
    assert_eq!(next(&service, &scaled(&[Leader, Ready, Ready, Ready, Ready], &grew())), "converged");
}

#[test]
fn replicas_that_are_not_there_yet_are_waited_for_and_keep_no_roll_waiting() {
    let service = asks(5);
    let mut world = scaled(&[Leader, Ready, Ready, Stuck, Absent], &[]);
    let Decision::Wait(wait) = crate::decide::pods(&service, &world, FRESH) else { panic!("a wait") };
    assert_eq!(
        wait.describe(&service),
        "scaling to 5, 3 of 5 replicas vote; waiting for kv-3 (cannot pull the image), kv-4 (no pod yet)"
    );
    world.pods.get_mut(&2).expect("a pod").revision = "old".into();
    assert_eq!(next(&service, &world), "evict 2");
}

#[test]
fn fewer_replicas_go_from_the_highest_and_the_leader_after_a_hand_over() {
    let service = asks(3);
    let five = [Ready, Ready, Ready, Ready, Leader];
    assert_eq!(size(&service, &scaled(&five, &grew())), 5);
    assert_eq!(next(&service, &scaled(&five, &grew())), "hand over 4→0");
    let handed = [Leader, Ready, Ready, Ready, Ready];
    assert_eq!(next(&service, &scaled(&handed, &grew())), format!("0: {}", remove(5)));
    let mut changes = grew();
    changes.push(remove(5));
    assert_eq!(next(&service, &scaled(&handed, &changes)), format!("0: {}", remove(4)));
    assert_eq!(size(&service, &scaled(&handed, &changes)), 4);
    changes.push(remove(4));
    assert_eq!(size(&service, &scaled(&handed, &changes)), 3);
}

#[test]
fn pod_that_may_run_a_member_is_never_cut_off() {
    let service = asks(3);
    let mut changes = grew();
    changes.extend([remove(5), remove(4)]);
    let mut unsettled = scaled(&[Leader, Ready, Ready, Ready, Ready], &changes);
    for replica in unsettled.pods.values_mut().filter_map(|pod| pod.replica.as_mut()) {
        replica.members.as_mut().expect("members").settled = false;
    }
    assert_eq!(size(&service, &unsettled), 5, "who left may still be needed");
    assert_eq!(size(&service, &scaled(&[Ready, Ready, Ready, Ready, Ready], &changes)), 5, "no leader says so");
    assert_eq!(size(&service, &scaled(&[Leader, Ready, Ready, Silent, Silent], &changes)), 3);
    assert_eq!(size(&service, &scaled(&[Leader, Ready, Silent, Silent, Ready], &changes)), 4, "r3 may be in kv-3");
}

#[test]
fn claims_go_once_their_pods_have_and_every_member_is_elsewhere() {
    let service = asks(3);
    let mut changes = grew();
    changes.extend([remove(5), remove(4)]);
    let left = |pods: &[State]| {
        let mut world = scaled(pods, &changes);
        world.size = Some(3);
        world
    };
    assert_eq!(next(&service, &left(&[Leader, Ready, Ready, Terminating, Absent])), "delete claims 4");
    assert_eq!(next(&service, &left(&[Leader, Ready, Ready, Absent, Absent])), "delete claims 3,4");
    let mut world = left(&[Leader, Ready, Ready, Absent, Absent]);
    world.claims.get_mut(&3).expect("a claim").service = None;
    assert_eq!(next(&service, &world), "delete claims 4", "nobody knows what is on data-kv-3");
    world.claims.remove(&4);
    assert_eq!(next(&service, &world), "converged");
    assert_eq!(next(&service, &left(&[Leader, Ready, Silent, Absent, Absent])), "wait ReplicasNotReady");
}

#[test]
fn scaling_waits_while_a_voter_that_stays_is_not_ready() {
    for (wanted, pods, changes) in [
        (3, [Leader, NotReady, Ready, Ready, Ready], grew()),
        (5, [Leader, NotReady, Ready, Lost, Lost], vec![]),
        (5, [Leader, NotReady, Ready, Ready, Lost], vec![add(id(3))]),
    ] {
        let service = asks(wanted);
        let Decision::Wait(wait) = crate::decide::pods(&service, &scaled(&pods, &changes), FRESH) else {
            panic!("a wait")
        };
        assert!(wait.describe(&service).ends_with("waiting until all voters that stay are ready"), "{pods:?}");
    }
    // One that goes anyway need not be.
    let service = asks(3);
    assert_eq!(next(&service, &scaled(&[Leader, Ready, Ready, Ready, NotReady], &grew())), format!("0: {}", remove(5)));
}

#[test]
fn number_changed_again_in_the_middle_is_followed_from_where_it_stands() {
    let standby = [add(id(3))];
    let pods = [Leader, Ready, Ready, Ready, Lost];
    assert_eq!(next(&asks(3), &scaled(&pods, &standby)), format!("0: {}", remove(4)));
    let four = [add(id(3)), promote(4)];
    assert_eq!(next(&asks(3), &scaled(&pods, &four)), format!("0: {}", remove(4)));
    assert_eq!(next(&asks(1), &scaled(&pods, &four)), format!("0: {}", remove(4)));
    let three = [add(id(3)), promote(4), remove(4)];
    assert_eq!(next(&asks(1), &scaled(&pods, &three)), format!("0: {}", remove(3)));
    // Up again before the pod of the one that was removed has gone: it never returns, a fresh one does.
    assert_eq!(next(&asks(5), &scaled(&pods, &three)), "replace volume 3");
}

#[test]
fn disk_lost_in_the_middle_of_scaling_down_is_made_good_before_the_last_one_goes() {
    let service = asks(3);
    let mut known = service.clone();
    known.status.members = vec![lockstep_api::status::Member {
        pod: Some("kv-1".into()),
        slot: 2,
        replica_id: id(1).to_string(),
        standby: false,
    }];
    let pods = [Leader, Lost, Ready, Ready, Ready];
    assert_eq!(next(&known, &scaled(&pods, &grew())), format!("0: {}", remove(2)));
    let mut changes = grew();
    changes.push(remove(2));
    assert_eq!(next(&service, &scaled(&pods, &changes)), format!("0: {}", remove(5)));
    changes.push(remove(5));
    assert_eq!(next(&service, &scaled(&pods, &changes)), format!("0: {}", add(lost(1))));
    let pods = [Leader, Ready, Ready, Ready, Ready];
    changes.extend([add(id(8)), promote(6)]);
    let mut world = scaled(&pods, &changes);
    let replica = world.pods.get_mut(&1).and_then(|pod| pod.replica.as_mut()).expect("a replica");
    (replica.id, replica.not_ready) = (id(8), None);
    assert_eq!(next(&service, &world), format!("0: {}", remove(4)));
}

#[test]
fn claim_of_another_service_in_the_way_of_a_new_pod_is_refused_before_anything_runs_on_it() {
    let service = asks(5);
    let mut world = scaled(&[Leader, Ready, Ready], &[]);
    let claim = Claim { service: Some(OTHER), ..world.claims[&0].clone() };
    world.claims.insert(4, claim);
    let Decision::Refuse(refusal) = run(&service, &world) else { panic!("a refusal") };
    assert_eq!(refusal.reason(), "ForeignVolume");
    let text = refusal.describe(&service);
    assert!(text.contains("data-kv-4 holds") && text.contains("delete claim data-kv-4"), "{text}");
    assert_eq!(word(&run(&asks(3), &world)), "converged");
}

#[test]
fn kept_volumes_of_a_service_that_had_grown_are_all_run_until_it_is_known_who_votes() {
    let mut service = example();
    service.adopt = Some(OTHER);
    let mut world = world_of_pods(&[(Absent, N); 5]);
    (world.set, world.size) = (None, None);
    world.claims.values_mut().for_each(|claim| claim.service = Some(OTHER));
    assert_eq!(size(&service, &world), 5);
    // The StatefulSet of a service with a genesis was deleted.
    world.claims.values_mut().for_each(|claim| claim.service = Some(FRESH));
    assert_eq!(size(&asks(3), &world), 5);
}

/// The pod of this ordinal has not run for so many seconds, because its node is gone.
fn strand(world: &mut World, ordinal: usize, seconds: u64) {
    let strand = Strand::Node { name: "n".into(), gone: true };
    let stranded = Stranded { strand, lasted: Duration::from_secs(seconds) };
    world.pods.get_mut(&ordinal).expect("a pod").stranded = Some(stranded);
}

#[test]
fn replica_whose_node_is_gone_is_given_up_after_the_time_that_was_set_and_with_a_quorum() {
    let mut service = asks(3);
    let mut world = scaled(&[Leader, Ready, Dark], &[]);
    strand(&mut world, 2, 600);
    let Decision::Wait(wait) = run(&service, &world) else { panic!("a wait") };
    let text = wait.describe(&service);
    assert!(text.contains("its node n is gone") && text.contains("set spec.storage.replaceAfter"), "{text}");
    (service.replace_after, service.replace_after_text) = (Some(Duration::from_secs(600)), Some("10m".into()));
    let Decision::Act(Action::ReplaceVolume { ordinal, pod, claim, why }) = run(&service, &world) else {
        panic!("a new volume")
    };
    assert_eq!((ordinal, pod.as_str(), claim.as_deref(), why.force()), (2, "uid-2", Some("claim-2"), true));
    strand(&mut world, 2, 599);
    assert_eq!(next(&service, &world), "wait ReplicasNotReady");
    let mut alone = scaled(&[Leader, NotReady, Dark], &[]);
    strand(&mut alone, 2, 6000);
    assert_eq!(next(&service, &alone), "wait ReplicasNotReady");
    let mut answers = scaled(&[Leader, Ready, NotReady], &[]);
    strand(&mut answers, 2, 6000);
    assert_eq!(next(&service, &answers), "wait ReplicasNotReady");
}
