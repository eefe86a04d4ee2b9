//! The rows on pods that are not of the current template.

use super::*;

#[test]
fn roll_takes_followers_first_and_the_leader_after_a_hand_over() {
    table(
        &with_genesis(example()),
        &[
            (&[(Ready, O), (Leader, O), (Ready, O)], "evict 2"),
            (&[(Ready, O), (Leader, O), (Absent, N)], "wait Rolling"),
            (&[(Ready, O), (Leader, O), (Silent, N)], "wait Rolling"),
            (&[(Ready, O), (Leader, O), (NotReady, N)], "wait Rolling"),
            (&[(Ready, O), (Leader, O), (Ready, N)], "evict 0"),
            (&[(Terminating, O), (Leader, O), (Ready, N)], "wait Rolling"),
            (&[(Ready, N), (Leader, O), (Ready, N)], "hand over 1→0"),
            (&[(Leader, N), (Ready, O), (Ready, N)], "evict 1"),
            (&[(Leader, N), (Ready, N), (Ready, N)], "converged"),
        ],
    );
}

#[test]
fn roll_with_a_sick_replica_takes_it_first_and_only_it() {
    table(
        &with_genesis(example()),
        &[
            (&[(Leader, O), (NotReady, O), (Ready, O)], "delete 1"),
            (&[(Leader, O), (NotReady, O), (NotReady, O)], "wait Rolling"),
            (&[(Leader, O), (NotReady, O), (Silent, N)], "wait Rolling"),
            (&[(Ready, O), (Ready, O), (Ready, O)], "wait Rolling"), // nobody leads
        ],
    );
}

#[test]
fn roll_of_a_bad_template_stops_at_the_first_pod_and_heals_when_corrected() {
    let service = with_genesis(example());
    table(
        &service,
        &[
            (&[(Ready, O), (Leader, O), (Stuck, N)], "wait Rolling"),
            // The template was corrected: the stuck pod is now an old one as well.
            (&[(Ready, O), (Leader, O), (Stuck, O)], "delete 2"),
            (&[(Stuck, O), (Stuck, O), (Stuck, O)], "delete 0"),
            // A template that has not answered yet gets no second pod, whatever the old ones look like.
            (&[(Ready, O), (Stuck, O), (Stuck, N)], "wait Rolling"),
            (&[(Silent, N), (Stuck, O), (Stuck, O)], "wait Rolling"),
            (&[(NotReady, N), (Stuck, O), (Stuck, O)], "delete 1"),
        ],
    );
    let bad = world(&service, &[(Ready, O), (Leader, O), (Stuck, N)]);
    let Decision::Wait(wait) = run(&service, &bad) else { panic!("a wait") };
    assert!(wait.describe(&service).contains("kv-2 (cannot pull the image)"), "{}", wait.describe(&service));
}

#[test]
fn corrected_template_reaches_replicas_that_answer_and_are_never_ready() {
    table(
        &with_genesis(example()),
        &[
            // Two were given a bad template, and the third has no quorum: it was ready once, and stays.
            (&[(Ailing, O), (Sick, O), (Sick, O)], "delete 1"),
            (&[(Ailing, N), (Sick, O), (Sick, O)], "delete 1"), // corrected to what the third one is of
            (&[(Leader, O), (Sick, O), (Sick, O)], "delete 1"),
            (&[(Ailing, O), (Absent, N), (Sick, O)], "wait Rolling"),
            (&[(Ailing, O), (Silent, N), (Sick, O)], "wait Rolling"),
            (&[(Ailing, O), (NotReady, N), (Sick, O)], "wait Rolling"),
            (&[(Ready, O), (Leader, N), (Sick, O)], "delete 2"),
            // All three: the first one alone cannot be ready.
            (&[(Sick, O), (Sick, O), (Sick, O)], "delete 0"),
            (&[(NotReady, N), (Sick, O), (Sick, O)], "wait Rolling"),
            (&[(Sick, N), (Sick, O), (Sick, O)], "delete 1"),
            // A pod that does not go, on a node that is off, is not waited for.
            (&[(Ailing, O), (Overdue, O), (Sick, O)], "delete 2"),
            (&[(Overdue, O), (Leader, O), (Ready, O)], "wait Rolling"),
        ],
    );
}

#[test]
fn voter_that_may_only_lack_a_quorum_is_not_given_to_a_template_that_fails() {
    table(
        &with_genesis(example()),
        &[
            (&[(Ailing, O), (Dark, O), (Sick, N)], "wait Rolling"),
            (&[(Ailing, O), (Overdue, O), (Sick, N)], "wait Rolling"),
            (&[(Ailing, O), (Ailing, O), (Sick, N)], "wait Rolling"),
            (&[(Sick, O), (Ailing, O), (Dark, N)], "wait Rolling"), // nothing answers from this template
            (&[(Ailing, O), (Dark, O), (Dark, O)], "wait Rolling"), // the two may come back and need it
            (&[(Ailing, O), (Ailing, O), (Ailing, O)], "delete 0"), // two are left, whatever becomes of it
            (&[(Ailing, O), (Ailing, O), (NotReady, O)], "wait Rolling"),
        ],
    );
    table(
        &with_genesis(of_size(5)),
        &[
            (&[(Leader, O), (Ready, O), (Ready, O), (Sick, O), (Sick, O)], "delete 3"),
            (&[(Leader, O), (Ready, O), (Ready, O), (Ailing, O), (Dark, O)], "delete 3"),
            (&[(Leader, O), (Ready, O), (Ready, O), (Sick, O), (NotReady, O)], "wait Rolling"),
            // It could be ready by now, if this template worked.
            (&[(Leader, O), (Ready, O), (Ready, O), (Sick, O), (Sick, N)], "wait Rolling"),
        ],
    );
}

#[test]
fn roll_before_genesis_needs_no_gate() {
    table(
        &example(),
        &[
            (&[(Stuck, O), (Stuck, O), (Stuck, O)], "delete 0"),
            (&[(Fresh, O), (Fresh, N), (Absent, N)], "delete 0"),
            (&[(Silent, O), (Fresh, N), (Fresh, N)], "delete 0"),
            (&[(Terminating, O), (Fresh, N), (Fresh, N)], "wait ReplicasStarting"),
            (&[(Foreign, O), (Foreign, O), (Foreign, O)], "refuse VolumesFromAnotherService"),
        ],
    );
}

#[test]
fn roll_of_a_single_replica_replaces_it() {
    table(
        &with_genesis(of_size(1)),
        &[(&[(Leader, O)], "evict 0"), (&[(NotReady, O)], "delete 0"), (&[(Leader, N)], "converged")],
    );
}

#[test]
fn eviction_held_back_by_a_budget_is_tried_again_and_told_as_a_wait() {
    let service = with_genesis(example());
    let mut world = world(&service, &[(Ready, O), (Leader, O), (Ready, O)]);
    world.held_back = Some("uid-2".into());
    let decision = run(&service, &world);
    assert_eq!(word(&decision), "evict 2");
    let Decision::Wait(wait) = told(decision, &world) else { panic!("a wait") };
    assert_eq!(wait.reason(), "EvictionHeldBack");
    assert!(wait.describe(&service).contains("does not let kv-2 go yet"), "{}", wait.describe(&service));
    // Another pod, or another act, is what it is.
    world.held_back = Some("uid-1".into());
    assert_eq!(word(&told(run(&service, &world), &world)), "evict 2");
    world.held_back = Some("uid-2".into());
    world.pods.get_mut(&2).expect("a pod").replica = None;
    assert_eq!(word(&told(run(&service, &world), &world)), "delete 2");
}

#[test]
fn roll_waits_for_its_turn_but_sick_pods_do_not() {
    let service = with_genesis(example());
    for (pods, expected) in [
        ([(Ready, O), (Leader, O), (Ready, O)], "wait WaitingForTurn"),
        ([(Ready, N), (Leader, O), (Ready, N)], "wait WaitingForTurn"),
        ([(Ready, O), (Leader, O), (NotReady, O)], "delete 2"),
        ([(Ready, O), (Leader, O), (Stuck, O)], "delete 2"),
        ([(Ready, N), (Leader, N), (Ready, N)], "converged"),
    ] {
        let world = World { crowded: true, ..world(&service, &pods) };
        assert_eq!(word(&run(&service, &world)), expected, "{pods:?}");
    }
}
