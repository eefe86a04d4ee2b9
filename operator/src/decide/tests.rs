//! `decide` as a table.

mod claims;
mod every;
mod members;
mod roll;
mod scaling;
mod walk;

use lockstep_types::{ReplicaId, Slot, View};

use super::*;
use crate::build;
use crate::validate::tests::{example, genesis, service};
use crate::world::{Claim, Members, Owner, Pod, Replica, Set};
use lockstep_api::quantity::Amount;

const FRESH: ServiceId = ServiceId::from_bytes([9; 16]);
const OTHER: ServiceId = ServiceId::from_bytes([7; 16]);

/// A pod in one of the states that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Terminating,
    Silent,
    Stuck,
    /// Answers, has no service.
    Fresh,
    NotReady,
    /// Answers, and has not been ready for long; never, as far as Kubernetes knows.
    Sick,
    /// The same, but it was ready once.
    Ailing,
    /// Has not answered for long.
    Dark,
    /// Should have been gone for long.
    Overdue,
    Ready,
    Leader,
    /// Answers with an identity that is no voter.
    Lost,
    /// Of another service.
    Foreign,
}

use State::{
    Absent, Ailing, Dark, Foreign, Fresh, Leader, Lost, NotReady, Overdue, Ready, Sick, Silent, Stuck, Terminating,
};

fn id(number: usize) -> ReplicaId {
    ReplicaId::from_bytes([u8::try_from(number).expect("small") + 1; 16])
}

fn with_genesis(mut service: Service) -> Service {
    service.recorded = Some(genesis(u8::try_from(service.replicas).expect("small")));
    service
}

fn of_size(replicas: usize) -> Service {
    service(&include_str!("../../../examples/kv.yaml").replace("replicas: 3", &format!("replicas: {replicas}")))
}

/// A world of pods, `true` for those of the current template.
fn world(service: &Service, pods: &[(State, bool)]) -> World {
    let desired = build::build(service, None).desired();
    let objects = desired.into_iter().map(|d| ((d.kind, d.name), d.object)).collect();
    World { objects, ..world_of_pods(pods) }
}

/// The same without the objects.
fn world_of_pods(pods: &[(State, bool)]) -> World {
    let mut world = World {
        token: Token::Present("token".into()),
        set: Some(Set { update_revision: "new".into(), up_to_date: true }),
        size: Some(pods.len()),
        ..Default::default()
    };
    let size = Amount::parse("1Gi");
    for (ordinal, (state, current)) in pods.iter().enumerate() {
        let uid = format!("claim-{ordinal}");
        world.claims.insert(ordinal, Claim { uid, request: size, terminating: false, service: Some(FRESH) });
        if *state == Absent {
            continue;
        }
        let member = Replica {
            id: id(ordinal),
            service: Some(FRESH),
            genesis: Some(genesis(u8::try_from(pods.len()).expect("small"))),
            leads: false,
            view: View::new(1, Slot::new(1)),
            not_ready: None,
            retired: false,
            diverged: None,
            members: Some(Members {
                configuration: genesis(u8::try_from(pods.len()).expect("small")).configuration(),
                settled: true,
            }),
            caught_up: true,
        };
        let replica = match state {
            Absent | Silent | Dark | Stuck => None,
            Terminating | Overdue | Ready => Some(member),
            Fresh => Some(Replica {
                service: None,
                genesis: None,
                not_ready: Some("no genesis".into()),
                retired: false,
                diverged: None,
                members: None,
                caught_up: false,
                ..member
            }),
            NotReady | Sick | Ailing => Some(Replica { not_ready: Some("no leader heard".into()), ..member }),
            Leader => Some(Replica { leads: true, ..member }),
            Lost => Some(Replica {
                id: id(100 + ordinal),
                service: None,
                genesis: None,
                not_ready: Some("no genesis".into()),
                retired: false,
                diverged: None,
                members: None,
                caught_up: false,
                ..member
            }),
            Foreign => {
                let genesis = Genesis { service: OTHER, ..genesis(u8::try_from(pods.len()).expect("small")) };
                Some(Replica { service: Some(OTHER), genesis: Some(genesis), ..member })
            }
        };
        world.pods.insert(
            ordinal,
            Pod {
                uid: format!("uid-{ordinal}"),
                revision: if *current { "new" } else { "old" }.into(),
                terminating: matches!(state, Terminating | Overdue),
                lasting: matches!(state, Sick | Ailing | Dark | Overdue),
                was_ready: !matches!(state, Fresh | Stuck | Sick),
                stuck: (*state == Stuck).then(|| "cannot pull the image".into()),
                stranded: None,
                replica,
            },
        );
    }
    world
}

fn run(service: &Service, world: &World) -> Decision {
    let set = world.objects.get(&("StatefulSet", service.name.clone()));
    let desired = build::build(service, set).running(size(service, world)).desired();
    decide(service, &desired, world, FRESH)
}

/// What `decide` says in a word, with the ordinals that it acts on.
fn word(decision: &Decision) -> String {
    let list = |ordinals: &[usize]| ordinals.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    match decision {
        Decision::Act(Action::CreateToken) => "token".into(),
        Decision::Act(Action::Apply(objects)) => {
            format!("apply {}", objects.iter().map(|o| format!("{}/{}", o.0, o.1)).collect::<Vec<_>>().join(","))
        }
        Decision::Act(Action::RecordGenesis { adopted, genesis }) => {
            format!("record {}{}", genesis.voters.len(), if *adopted { " adopted" } else { "" })
        }
        Decision::Act(Action::SendGenesis { targets, .. }) => format!("send {}", list(targets)),
        Decision::Act(Action::HandOver { leader, to, .. }) => format!("hand over {leader}→{to}"),
        Decision::Act(Action::ChangeMembers { leader, change, .. }) => format!("{leader}: {change}"),
        Decision::Act(Action::Join { ordinal, slot, .. }) => format!("join {ordinal} in {slot}"),
        Decision::Act(Action::ReplacePod { ordinal, by: Removal::Eviction, .. }) => format!("evict {ordinal}"),
        Decision::Act(Action::ReplacePod { ordinal, by: Removal::Deletion, .. }) => format!("delete {ordinal}"),
        Decision::Act(Action::ReplaceVolume { ordinal, .. }) => format!("replace volume {ordinal}"),
        Decision::Act(Action::DeleteClaims { claims }) => {
            format!("delete claims {}", list(&claims.iter().map(|(ordinal, _)| *ordinal).collect::<Vec<_>>()))
        }
        Decision::Act(Action::MarkVolumes { claims, .. }) => format!("mark {}", list(claims)),
        Decision::Act(Action::GrowVolumes { claims }) => format!("grow {}", list(claims)),
        Decision::Wait(wait) => format!("wait {}", wait.reason()),
        Decision::Refuse(refusal) => format!("refuse {}", refusal.reason()),
        Decision::Converged => "converged".into(),
    }
}

#[track_caller]
fn table(service: &Service, rows: &[(&[(State, bool)], &str)]) {
    for (pods, expected) in rows {
        assert_eq!(word(&run(service, &world(service, pods))), *expected, "{pods:?}");
    }
}

const N: bool = true; // of the current (new) template
const O: bool = false; // of an old one

#[test]
fn new_service_from_nothing_is_built_then_born() {
    let service = example();
    let mut empty = World::default();
    assert_eq!(word(&run(&service, &empty)), "token");
    empty.token = Token::Present("token".into());
    assert_eq!(
        word(&run(&service, &empty)),
        "apply ServiceAccount/kv,Service/kv-peers,Service/kv,PodDisruptionBudget/kv,StatefulSet/kv"
    );
    table(
        &service,
        &[
            (&[(Absent, N), (Absent, N), (Absent, N)], "wait ReplicasStarting"),
            (&[(Fresh, N), (Fresh, N), (Silent, N)], "wait ReplicasStarting"),
            (&[(Fresh, N), (Fresh, N), (Stuck, N)], "wait ReplicasStarting"),
            (&[(Fresh, N), (Fresh, N), (Terminating, N)], "wait ReplicasStarting"),
            (&[(Fresh, N), (Fresh, N), (Fresh, N)], "record 3"),
        ],
    );
}

#[test]
fn genesis_of_fresh_replicas_names_them_by_ordinal() {
    let service = example();
    let decision = run(&service, &world(&service, &[(Fresh, N); 3]));
    let Decision::Act(Action::RecordGenesis { genesis: recorded, adopted: false }) = decision else {
        panic!("{decision:?}")
    };
    assert_eq!(recorded, genesis(3));
    assert_eq!(recorded.validate(), Ok(()));
}

#[test]
fn recorded_genesis_is_sent_to_those_without_until_all_have_it() {
    table(
        &with_genesis(example()),
        &[
            (&[(Fresh, N), (Fresh, N), (Fresh, N)], "send 0,1,2"),
            (&[(Fresh, N), (NotReady, N), (Silent, N)], "send 0"),
            (&[(NotReady, N), (NotReady, N), (Silent, N)], "wait ReplicasNotReady"),
            (&[(Leader, N), (Ready, N), (Ready, N)], "converged"),
        ],
    );
}

#[test]
fn kept_volumes_at_first_sight_are_refused_with_the_choices() {
    let service = example();
    table(
        &service,
        &[
            (&[(Foreign, N), (Absent, N), (Silent, N)], "refuse VolumesFromAnotherService"),
            (&[(Foreign, N), (Fresh, N), (Fresh, N)], "refuse VolumesFromAnotherService"),
            (&[(Foreign, N), (Foreign, N), (Foreign, N)], "refuse VolumesFromAnotherService"),
        ],
    );
    let decision = run(&service, &world(&service, &[(Foreign, N), (Foreign, N), (Foreign, N)]));
    let Decision::Refuse(refusal) = decision else { panic!("{decision:?}") };
    let text = refusal.describe(&service);
    assert!(text.contains(&format!("set spec.serviceId: \"{OTHER}\"")), "{text}");
    assert!(text.contains("data-kv-0, data-kv-1, data-kv-2"), "{text}");
}

#[test]
fn kept_volumes_named_by_their_service_are_adopted() {
    let mut service = example();
    service.adopt = Some(OTHER);
    table(
        &service,
        &[
            (&[(Foreign, N), (Foreign, N), (Silent, N)], "wait ReplicasStarting"),
            (&[(Foreign, N), (Foreign, N), (Foreign, N)], "record 3 adopted"),
            (&[(Foreign, N), (Foreign, N), (Fresh, N)], "record 3 adopted"),
            (&[(Foreign, N), (Fresh, N), (Fresh, N)], "refuse NoQuorumToAdopt"),
            (&[(Fresh, N), (Fresh, N), (Fresh, N)], "refuse NothingToAdopt"),
            (&[(Foreign, N), (Foreign, N), (Ready, N)], "refuse AdoptsAnotherService"),
        ],
    );
    let mut kept = world(&service, &[(Foreign, N); 3]);
    for pod in kept.pods.values_mut() {
        let replica = pod.replica.as_mut().expect("a replica");
        replica.genesis = Some(Genesis { service: OTHER, machine: "Other".into(), ..genesis(3) });
    }
    assert_eq!(word(&run(&service, &kept)), "refuse AdoptsDifferentService");
    service.snapshot_bytes = 1 << 20;
    let decision = run(&service, &world(&service, &[(Foreign, N); 3]));
    let Decision::Refuse(refusal @ Refusal::AdoptsDifferent { .. }) = decision else { panic!("{decision:?}") };
    let text = refusal.describe(&service);
    assert!(text.contains("snapshots.everyBytes \"67108864\"; delete this resource"), "{text}");
}

#[test]
fn service_named_otherwise_than_recorded_is_refused() {
    let mut service = with_genesis(example());
    service.adopt = Some(OTHER);
    table(&service, &[(&[(Leader, N), (Ready, N), (Ready, N)], "refuse ServiceIdDiffers")]);
}

#[test]
fn volume_of_another_service_after_genesis_is_refused() {
    table(&with_genesis(example()), &[(&[(Leader, N), (Ready, N), (Foreign, N)], "refuse ForeignVolume")]);
}

#[test]
fn cloned_volume_is_refused_before_and_after_genesis() {
    for service in [example(), with_genesis(example())] {
        let state = if service.recorded.is_some() { Ready } else { Fresh };
        let mut cloned = world(&service, &[(state, N); 3]);
        cloned.pods.get_mut(&2).and_then(|pod| pod.replica.as_mut()).expect("a replica").id = id(0);
        assert_eq!(word(&run(&service, &cloned)), "refuse ClonedVolume");
    }
}

#[test]
fn set_that_has_not_seen_its_template_is_waited_for() {
    let service = with_genesis(example());
    let mut world = world(&service, &[(Leader, O), (Ready, O), (Ready, O)]);
    world.set = Some(Set { update_revision: "new".into(), up_to_date: false });
    assert_eq!(word(&run(&service, &world)), "wait WaitingForPods");
}

#[test]
fn volumes_too_small_are_grown_but_not_before_pods_that_can_go() {
    let mut service = with_genesis(example());
    service.size_bytes = Amount::parse("2Gi").expect("a size");
    table(
        &service,
        &[
            (&[(Leader, N), (Ready, N), (Ready, N)], "grow 0,1,2"),
            (&[(Leader, N), (Ready, N), (NotReady, N)], "grow 0,1,2"),
            (&[(Leader, O), (Ready, O), (Ready, O)], "evict 2"),
            (&[(Leader, O), (Ready, O), (NotReady, N)], "grow 0,1,2"),
        ],
    );
}

#[test]
fn object_changed_by_hand_is_applied_again_alone() {
    let service = with_genesis(example());
    let mut world = world(&service, &[(Leader, N), (Ready, N), (Ready, N)]);
    let peers = world.objects.get_mut(&("Service", "kv-peers".into())).expect("the peer service");
    peers["spec"]["publishNotReadyAddresses"] = serde_json::json!(false);
    assert_eq!(word(&run(&service, &world)), "apply Service/kv-peers");
}

#[test]
fn object_that_a_webhook_rewrites_is_not_fought_over() {
    let service = with_genesis(example());
    let mut world = world(&service, &[(Leader, N), (Ready, N), (Ready, N)]);
    let set = world.objects.get_mut(&("StatefulSet", "kv".into())).expect("the set");
    set["spec"]["template"]["spec"]["containers"][0]["image"] = serde_json::json!("mirror/lockstep");
    assert_eq!(word(&run(&service, &world)), "apply StatefulSet/kv");
    world.settled.insert(("StatefulSet", "kv".into()));
    assert_eq!(word(&run(&service, &world)), "converged");
    // What was settled then is not what is wanted now.
    let corrected = Service { image: "localhost/lockstep:corrected".into(), ..service };
    assert_eq!(word(&run(&corrected, &world)), "apply StatefulSet/kv");
}

#[test]
fn object_of_somebody_else_is_refused_and_one_of_a_former_resource_waited_for() {
    let service = example();
    let mut world = world(&service, &[]);
    let set = world.objects.get_mut(&("StatefulSet", "kv".into())).expect("the set");
    set["metadata"]["ownerReferences"][0]["uid"] = serde_json::json!("former");
    assert_eq!(word(&run(&service, &world)), "wait WaitingForDeletion");
    let set = world.objects.get_mut(&("StatefulSet", "kv".into())).expect("the set");
    set["metadata"].as_object_mut().expect("metadata").remove("ownerReferences");
    assert_eq!(word(&run(&service, &world)), "refuse NameTaken");
    let set = world.objects.get_mut(&("StatefulSet", "kv".into())).expect("the set");
    set["metadata"]["deletionTimestamp"] = serde_json::json!("2026-01-01T00:00:00Z");
    assert_eq!(word(&run(&service, &world)), "wait WaitingForDeletion");
}

#[test]
fn object_controlled_by_somebody_else_is_refused_even_if_we_are_named_beside() {
    let service = example();
    let mut world = world(&service, &[]);
    let set = world.objects.get_mut(&("StatefulSet", "kv".into())).expect("the set");
    let owners = set["metadata"]["ownerReferences"].as_array_mut().expect("owners");
    owners[0]["controller"] = serde_json::json!(false);
    owners.push(serde_json::json!({"kind": "Database", "name": "kv", "uid": "other", "controller": true}));
    assert_eq!(word(&run(&service, &world)), "refuse NameTaken");
}

#[test]
fn pod_that_is_not_of_the_present_set_is_never_taken_for_ours() {
    for service in [example(), with_genesis(example())] {
        for (owner, expected) in [
            (Owner::FormerSet, "wait WaitingForDeletion"),
            (Owner::Nobody, "wait WaitingForPods"),
            (Owner::Another, "refuse NameTaken"),
        ] {
            for pods in [&[(Fresh, N), (Fresh, N)][..], &[(Leader, O), (Ready, O)], &[(Stuck, O), (Stuck, O)]] {
                let mut world = world(&service, pods);
                world.others.insert(2, owner.clone());
                assert_eq!(word(&run(&service, &world)), expected, "{owner:?} {pods:?}");
            }
        }
    }
}

#[test]
fn secret_without_a_token_is_refused() {
    let service = example();
    let mut world = world(&service, &[]);
    world.token = Token::Malformed;
    assert_eq!(word(&run(&service, &world)), "refuse TokenMalformed");
}

#[test]
fn reason_with_figures_is_left_out_of_what_stands_in_the_status() {
    let service = with_genesis(example());
    let mut world = world(&service, &[(Leader, N), (Ready, N), (NotReady, N)]);
    let replica = world.pods.get_mut(&2).and_then(|pod| pod.replica.as_mut()).expect("a replica");
    replica.not_ready = Some("1234 blocks behind".into());
    let Decision::Wait(wait) = run(&service, &world) else { panic!("a wait") };
    assert_eq!(wait.describe(&service), "waiting until kv-2 is ready");
}
