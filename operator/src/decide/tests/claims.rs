//! The rows on claims that are being deleted: their volumes live only as long as their pods.

use super::*;

/// The same world with these claims on their way out.
fn dying(service: &Service, pods: &[(State, bool)], claims: &[usize]) -> World {
    let mut world = world(service, pods);
    for ordinal in claims {
        world.claims.get_mut(ordinal).expect("a claim").terminating = true;
    }
    world
}

#[test]
fn roll_over_a_claim_being_deleted_is_refused() {
    let service = with_genesis(example());
    let rolling = [(Ready, O), (Leader, O), (Ready, O)];
    for claims in [&[0][..], &[1], &[2], &[0, 1, 2]] {
        assert_eq!(word(&run(&service, &dying(&service, &rolling, claims))), "refuse VolumeBeingDeleted");
    }
    let Decision::Refuse(refusal) = run(&service, &dying(&service, &rolling, &[2])) else { panic!("a refusal") };
    let text = refusal.describe(&service);
    for part in ["data-kv-2 is being deleted", "leave pod kv-2 running", "Retain", "delete pod kv-2"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn converged_service_with_a_claim_being_deleted_says_so() {
    let service = with_genesis(example());
    let world = dying(&service, &[(Leader, N), (Ready, N), (Ready, N)], &[1]);
    assert_eq!(word(&run(&service, &world)), "refuse VolumeBeingDeleted");
}

#[test]
fn genesis_over_a_claim_being_deleted_is_refused() {
    let mut service = example();
    let fresh = dying(&service, &[(Fresh, N); 3], &[0]);
    let Decision::Refuse(refusal) = run(&service, &fresh) else { panic!("a refusal") };
    assert_eq!(refusal.reason(), "VolumeBeingDeleted");
    assert!(refusal.describe(&service).contains("delete pod kv-0"), "{}", refusal.describe(&service));
    let outdated = dying(&service, &[(Fresh, O), (Fresh, N), (Fresh, N)], &[0]);
    assert_eq!(word(&run(&service, &outdated)), "refuse VolumeBeingDeleted");
    service.adopt = Some(OTHER);
    assert_eq!(word(&run(&service, &dying(&service, &[(Foreign, N); 3], &[1]))), "refuse VolumeBeingDeleted");
}

#[test]
fn stuck_pod_on_a_claim_being_deleted_stays_and_another_one_goes() {
    let service = with_genesis(example());
    let pods = [(Leader, O), (Stuck, O), (Stuck, O)];
    assert_eq!(word(&run(&service, &dying(&service, &pods, &[1]))), "delete 2");
    assert_eq!(word(&run(&service, &dying(&service, &pods, &[1, 2]))), "refuse VolumeBeingDeleted");
}

#[test]
fn claim_that_goes_with_its_pod_is_waited_for() {
    let service = with_genesis(example());
    let pods = [(Leader, N), (Ready, N), (Terminating, N)];
    assert_eq!(word(&run(&service, &dying(&service, &pods, &[2]))), "wait ReplicasNotReady");
    let pods = [(Leader, N), (Ready, N), (Absent, N)];
    assert_eq!(word(&run(&service, &dying(&service, &pods, &[2]))), "wait ReplicasNotReady");
}

#[test]
fn genesis_already_recorded_still_reaches_a_replica_on_a_claim_being_deleted() {
    let service = with_genesis(example());
    assert_eq!(word(&run(&service, &dying(&service, &[(Fresh, N), (NotReady, N), (NotReady, N)], &[0]))), "send 0");
}
