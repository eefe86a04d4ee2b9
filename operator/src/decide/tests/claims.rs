//! The rows on claims: those that are being deleted live only as long as their pods, and kept ones say whose they are.

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

/// Claims and nothing else, as a deleted resource leaves them, with the service that is noted on them.
fn left(noted: Option<ServiceId>) -> World {
    let mut world = world_of_pods(&[(Absent, N); 3]);
    (world.set, world.size) = (None, None);
    world.claims.values_mut().for_each(|claim| claim.service = noted);
    world
}

#[test]
fn kept_volumes_with_their_service_noted_are_refused_before_anything_runs_on_them() {
    let mut service = example();
    let Decision::Refuse(refusal) = run(&service, &left(Some(OTHER))) else { panic!("a refusal") };
    assert_eq!(refusal.reason(), "VolumesFromAnotherService");
    let text = refusal.describe(&service);
    assert!(text.contains(&format!("set spec.serviceId: \"{OTHER}\"")), "{text}");
    service.adopt = Some(FRESH);
    assert_eq!(word(&run(&service, &left(Some(OTHER)))), "refuse AdoptsAnotherService");
    // Named, unknown, or going: what runs there says what it is.
    service.adopt = Some(OTHER);
    let built = "apply ServiceAccount/kv,Service/kv-peers,Service/kv,PodDisruptionBudget/kv,StatefulSet/kv";
    assert_eq!(word(&run(&service, &left(Some(OTHER)))), built);
    service.adopt = None;
    assert_eq!(word(&run(&service, &left(None))), built);
    let mut going = left(Some(OTHER));
    going.claims.values_mut().for_each(|claim| claim.terminating = true);
    assert_eq!(word(&run(&service, &going)), built);
    // A StatefulSet that was deleted under a service with a genesis is made again.
    assert_eq!(word(&run(&with_genesis(example()), &left(Some(FRESH)))), built);
}

#[test]
fn service_is_noted_on_the_claims_of_replicas_that_say_so() {
    let service = with_genesis(example());
    let unmarked = |pods: &[(State, bool)]| {
        let mut world = world(&service, pods);
        world.claims.values_mut().for_each(|claim| claim.service = None);
        word(&run(&service, &world))
    };
    assert_eq!(unmarked(&[(Leader, N), (Ready, N), (Ready, N)]), "mark 0,1,2");
    assert_eq!(unmarked(&[(Leader, O), (NotReady, N), (Silent, N)]), "mark 0,1");
    assert_eq!(unmarked(&[(Fresh, N), (Fresh, N), (Fresh, N)]), "send 0,1,2");
    assert_eq!(unmarked(&[(Leader, N), (Ready, N), (Foreign, N)]), "refuse ForeignVolume");
    assert_eq!(unmarked(&[(Leader, N), (Ready, N), (Lost, N)]), "mark 0,1");
}
