//! The rows on members: a lost one is replaced step by step, and each step is read off the log and the pods.

use lockstep_types::{Change, Slot};

use super::*;

/// The identity of the fresh replica in pod `ordinal`, and what the API calls it.
fn newcomer(ordinal: usize) -> ReplicaId {
    id(100 + ordinal)
}

/// A world of the current template in which these changes were made; all that have a service know them.
fn changed(service: &Service, pods: &[State], changes: &[Change]) -> World {
    let pods: Vec<_> = pods.iter().map(|state| (*state, N)).collect();
    let mut world = world(service, &pods);
    let mut configuration = genesis(u8::try_from(pods.len()).expect("small")).configuration();
    for change in changes {
        configuration = configuration.apply(change).expect("a change that can be");
    }
    for pod in world.pods.values_mut() {
        if let Some(known) = pod.replica.as_mut().and_then(|replica| replica.members.as_mut()) {
            known.configuration = configuration.clone();
        }
    }
    world
}

/// The same replica once it has joined; with `votes`, it is ready as well.
fn joined(world: &mut World, ordinal: usize, caught_up: bool, votes: bool) {
    let members = world.members(&genesis(3));
    let replica = world.pods.get_mut(&ordinal).and_then(|pod| pod.replica.as_mut()).expect("a replica");
    replica.service = Some(FRESH);
    replica.members = Some(members);
    replica.caught_up = caught_up;
    replica.not_ready = (!votes).then(|| "is a standby".into());
}

fn add(ordinal: usize) -> Change {
    Change::AddStandby { replica: newcomer(ordinal) }
}

const PROMOTE: Change = Change::Promote { slot: Slot::new(4) };
const REMOVE: Change = Change::Remove { slot: Slot::new(3) };
const TWO_AND_NEW: [State; 3] = [Leader, Ready, Lost];

#[test]
fn empty_disk_after_genesis_is_replaced_step_by_step() {
    let service = with_genesis(example());
    let mut world = changed(&service, &TWO_AND_NEW, &[]);
    assert_eq!(word(&run(&service, &world)), format!("0: {}", add(2)));
    world = changed(&service, &TWO_AND_NEW, &[add(2)]);
    assert_eq!(word(&run(&service, &world)), format!("join 2 in {}", Slot::new(4)));
    joined(&mut world, 2, false, false);
    assert_eq!(word(&run(&service, &world)), "wait ReplacingMember");
    joined(&mut world, 2, true, false);
    assert_eq!(word(&run(&service, &world)), format!("0: {PROMOTE}"));
    world = changed(&service, &TWO_AND_NEW, &[add(2), PROMOTE]);
    joined(&mut world, 2, true, true);
    assert_eq!(word(&run(&service, &world)), format!("0: {REMOVE}"));
    world = changed(&service, &TWO_AND_NEW, &[add(2), PROMOTE, REMOVE]);
    joined(&mut world, 2, true, true);
    assert_eq!(word(&run(&service, &world)), "converged");
}

#[test]
fn empty_disks_without_a_quorum_are_refused_and_never_get_a_genesis() {
    let service = with_genesis(example());
    table(
        &service,
        &[
            (&[(Lost, N), (Lost, N), (Lost, N)], "refuse ReplicaLost"),
            (&[(NotReady, N), (Lost, N), (Lost, N)], "refuse ReplicaLost"),
            (&[(Fresh, N), (Ready, N), (Lost, N)], "send 0"),
        ],
    );
    table(&with_genesis(of_size(1)), &[(&[(Lost, N)], "refuse ReplicaLost")]);
    let text = Refusal::ReplicaLost { pods: vec![1, 2] }.describe(&service);
    assert!(text.contains("data-kv-1, data-kv-2 came up empty") && text.contains("no quorum"), "{text}");
}

#[test]
fn member_is_not_replaced_without_a_leader_or_a_ready_quorum() {
    let wait = "wait ReplacingMember";
    table(
        &with_genesis(example()),
        &[
            (&[(Ready, N), (Ready, N), (Lost, N)], wait),
            (&[(Leader, N), (NotReady, N), (Lost, N)], wait),
            // The pod that does not answer may run the one that is missing.
            (&[(Leader, N), (Silent, N), (Lost, N)], wait),
            (&[(Leader, O), (Ready, O), (Lost, O)], &format!("0: {}", add(2))),
        ],
    );
}

#[test]
fn member_is_not_changed_before_the_last_change_has_settled() {
    let service = with_genesis(example());
    for changes in [&[add(2)][..], &[add(2), PROMOTE]] {
        let mut world = changed(&service, &TWO_AND_NEW, changes);
        joined(&mut world, 2, true, changes.len() == 2);
        for pod in world.pods.values_mut() {
            pod.replica.as_mut().and_then(|replica| replica.members.as_mut()).expect("members").settled = false;
        }
        assert_eq!(word(&run(&service, &world)), "wait ReplacingMember", "{changes:?}");
    }
}

#[test]
fn lost_member_stays_while_the_new_one_is_not_ready_to_vote_in_its_place() {
    let service = with_genesis(example());
    let mut world = changed(&service, &[Leader, NotReady, Lost], &[add(2)]);
    joined(&mut world, 2, true, false);
    assert_eq!(word(&run(&service, &world)), "wait ReplacingMember");
    // Promoted, and one of the old ones is away: four voters need three.
    let mut world = changed(&service, &[Leader, NotReady, Lost], &[add(2), PROMOTE]);
    joined(&mut world, 2, true, true);
    assert_eq!(word(&run(&service, &world)), "wait ReplacingMember");
}

#[test]
fn change_of_leader_in_the_middle_is_followed_once_the_new_one_knows_the_members() {
    let service = with_genesis(example());
    let mut world = changed(&service, &[Ready, Leader, Lost], &[add(2)]);
    joined(&mut world, 2, true, false);
    assert_eq!(word(&run(&service, &world)), format!("1: {PROMOTE}"));
    let behind = Members { configuration: genesis(3).configuration(), settled: true };
    world.pods.get_mut(&1).and_then(|pod| pod.replica.as_mut()).expect("a replica").members = Some(behind);
    assert_eq!(word(&run(&service, &world)), "wait ReplacingMember");
}

#[test]
fn newcomer_lost_before_it_joined_is_removed_before_the_next_one_is_added() {
    let service = with_genesis(example());
    let gone = Change::AddStandby { replica: id(50) };
    let world = changed(&service, &TWO_AND_NEW, &[gone]);
    let remove = Change::Remove { slot: Slot::new(4) };
    assert_eq!(word(&run(&service, &world)), format!("0: {remove}"));
    let world = changed(&service, &TWO_AND_NEW, &[gone, remove]);
    assert_eq!(word(&run(&service, &world)), format!("0: {}", add(2)));
    // While its pod does not answer, nobody knows.
    let world = changed(&service, &[Leader, Ready, Silent], &[gone]);
    assert_eq!(word(&run(&service, &world)), "wait ReplacingMember");
}

#[test]
fn target_that_comes_back_before_it_was_removed_stays_and_the_standby_goes() {
    let service = with_genesis(example());
    let world = changed(&service, &[Leader, Ready, Ready], &[add(2)]);
    let remove = Change::Remove { slot: Slot::new(4) };
    assert_eq!(word(&run(&service, &world)), format!("0: {remove}"));
    let world = changed(&service, &[Leader, Ready, Ready], &[add(2), remove]);
    assert_eq!(word(&run(&service, &world)), "converged");
}

#[test]
fn two_empty_disks_at_once_are_replaced_one_after_the_other() {
    let service = with_genesis(of_size(5));
    let pods = [Leader, Ready, Ready, Lost, Lost];
    assert_eq!(word(&run(&service, &changed(&service, &pods, &[]))), format!("0: {}", add(3)));
    let world = changed(&service, &pods, &[add(3)]);
    assert_eq!(word(&run(&service, &world)), format!("join 3 in {}", Slot::new(6)));
    let promote = Change::Promote { slot: Slot::new(6) };
    let mut world = changed(&service, &pods, &[add(3), promote]);
    joined(&mut world, 3, true, true);
    // Six voters, of whom two are lost: one of them goes while the second newcomer still waits.
    let remove = Change::Remove { slot: Slot::new(4) };
    assert_eq!(word(&run(&service, &world)), format!("0: {remove}"));
    let mut world = changed(&service, &pods, &[add(3), promote, remove]);
    joined(&mut world, 3, true, true);
    assert_eq!(word(&run(&service, &world)), format!("0: {}", add(4)));
}

#[test]
fn removed_replica_that_wakes_up_is_named_and_never_starts_anew() {
    let service = with_genesis(example());
    let other = Change::AddStandby { replica: id(50) };
    let mut world = changed(&service, &[Leader, Ready, NotReady], &[other, PROMOTE, REMOVE]);
    world.claims.get_mut(&2).expect("a claim").service = None;
    let Decision::Refuse(refusal) = run(&service, &world) else { panic!("a refusal") };
    assert_eq!(refusal.reason(), "RemovedReplica");
    let text = refusal.describe(&service);
    assert!(text.contains("delete claim data-kv-2 and pod kv-2"), "{text}");
}

#[test]
fn replica_that_retired_is_named_and_never_starts_anew() {
    let service = with_genesis(example());
    let mut world = changed(&service, &[Leader, Ready, NotReady], &[]);
    world.pods.get_mut(&2).and_then(|pod| pod.replica.as_mut()).expect("a replica").retired = true;
    let Decision::Refuse(refusal) = run(&service, &world) else { panic!("a refusal") };
    assert_eq!(refusal.reason(), "RetiredReplica");
    let text = refusal.describe(&service);
    assert!(
        text.contains("its volume is an old copy") && text.contains("delete claim data-kv-2 and pod kv-2"),
        "{text}"
    );
}

#[test]
fn member_known_by_its_pod_is_lost_once_that_answers_as_another_one() {
    let mut service = with_genesis(of_size(5));
    let world = changed(&service, &[Leader, Ready, Ready, Silent, Lost], &[]);
    assert_eq!(word(&run(&service, &world)), "wait ReplacingMember");
    service.status.members = vec![lockstep_api::status::Member {
        pod: Some("kv-4".into()),
        slot: 5,
        replica_id: id(4).to_string(),
        standby: false,
    }];
    assert_eq!(word(&run(&service, &world)), format!("0: {}", add(4)));
}

#[test]
fn roll_waits_while_a_member_is_replaced_and_goes_on_after() {
    let service = with_genesis(example());
    let outdated = |world: &mut World| world.pods.values_mut().for_each(|pod| pod.revision = "old".into());
    let mut world = changed(&service, &TWO_AND_NEW, &[add(2)]);
    joined(&mut world, 2, false, false);
    world.pods.get_mut(&0).expect("a pod").revision = "old".into();
    assert_eq!(word(&run(&service, &world)), "wait ReplacingMember");
    let mut world = changed(&service, &TWO_AND_NEW, &[add(2), PROMOTE, REMOVE]);
    joined(&mut world, 2, true, true);
    outdated(&mut world);
    assert_eq!(word(&run(&service, &world)), "evict 2");
}

#[test]
fn empty_disk_on_a_claim_being_deleted_is_not_added() {
    let service = with_genesis(example());
    let mut world = changed(&service, &TWO_AND_NEW, &[]);
    world.claims.get_mut(&2).expect("a claim").terminating = true;
    assert_eq!(word(&run(&service, &world)), "refuse VolumeBeingDeleted");
}
