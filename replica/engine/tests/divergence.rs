//! Divergence among a few voters: who differs from a quorum is fenced at that very block and built anew; two who differ stop until
//! it is known who is right; and a machine that is not deterministic shows itself. PROTOCOL §9, schedule S11.

mod group;

use std::fs;

use bytes::Bytes;
use group::Group;
use lockstep_consensus::RoleName;
use lockstep_engine::snapshots::manifest::{Manifest, is_manifest};
use lockstep_engine::{Answer, DivergenceStatus, EngineOptions, Event, Operation, PeerMessage, Refusal, StateDoubt};
use lockstep_machine::KeyValueWithFaults;
use lockstep_types::kv::{KvReply, KvRequest};
use lockstep_types::{Command, Digest, Epoch, Height, Slot, SnapshotRef};

fn put(key: Bytes) -> Operation {
    let body = KvRequest::Put { key, value: Bytes::from_static(b"value") }.encode();
    Operation::Command(Command::Plain { body }.encode())
}

/// Asks the leader for a put that goes wrong on this replica. Gives the block's height.
fn go_wrong(group: &mut Group, replica: u32, always: bool) -> (Height, Bytes) {
    let key = KeyValueWithFaults::key(&format!("r{replica}"), always);
    let leader = group.leader().expect("someone leads");
    group.ask(leader, put(key.clone()));
    (group.status(leader).applied, key)
}

fn follower(group: &Group) -> u32 {
    (1..=3).find(|number| Some(*number) != group.leader()).unwrap()
}

fn found(group: &Group, replica: u32) -> Option<DivergenceStatus> {
    group.status(replica).divergence
}

fn is(group: &Group, replica: u32, state: StateDoubt) -> bool {
    found(group, replica).is_some_and(|found| found.state == state)
}

fn state(group: &Group, replica: u32) -> Option<StateDoubt> {
    found(group, replica).map(|found| found.state)
}

#[test]
fn replica_with_a_flipped_bit_is_fenced_at_the_block_and_built_anew() {
    let mut group = Group::start(3);
    group.write(3);
    let wrong = follower(&group);
    let (block, key) = go_wrong(&mut group, wrong, false);
    group.until("it is built anew", |group| is(group, wrong, StateDoubt::Over));
    let found = found(&group, wrong).unwrap();
    assert_eq!((found.block, found.exact, found.key), (block, true, Some(key)));
    let counters = group.status(wrong).divergences;
    assert_eq!((counters.fences, counters.rebuilds), (1, 1));
    group.write(5);
    group.quiet();
    for number in (1..=3).filter(|number| *number != wrong) {
        assert_eq!(state(&group, number), None, "r{number} was never in doubt");
    }
    // The identity and the log are the same: it counts at once, and again after a restart.
    group.down(wrong);
    group.up(wrong);
    group.write(1);
    group.quiet();
    assert_eq!(state(&group, wrong), None);
}

#[test]
fn leader_with_a_flipped_bit_hands_over_and_its_clients_are_served() {
    let mut group = Group::start(3);
    group.write(3);
    let wrong = group.leader().unwrap();
    // Several replies may precede the detection; none of them is of the key that went wrong.
    let (_, key) = go_wrong(&mut group, wrong, false);
    group.until("it is built anew", |group| is(group, wrong, StateDoubt::Over));
    group.until("another one leads", |group| group.leader().is_some_and(|leader| leader != wrong));
    group.quiet();
    let KvReply::Found(value) = group.get(wrong, std::str::from_utf8(&key).unwrap()) else {
        panic!("the key is there")
    };
    assert_eq!(value.value, "value");
    assert!(group.status(wrong).divergences.fences == 1);
}

#[test]
fn replica_is_built_anew_from_a_snapshot_below_the_block_where_the_log_is_cut() {
    let mut group = Group::start(3);
    group.write(60);
    group.quiet();
    let wrong = follower(&group);
    let begins = group.status(wrong).snapshots.log_begins_above;
    assert!(begins > Height::ZERO, "the genesis is out of reach");
    let (block, _) = go_wrong(&mut group, wrong, false);
    group.until("it is built anew", |group| is(group, wrong, StateDoubt::Over));
    assert_eq!(found(&group, wrong).unwrap().block, block);
    group.write(60);
    group.quiet();
    assert!(group.status(wrong).snapshots.log_begins_above > begins, "snapshots go on");
}

#[test]
fn replica_that_differs_again_stays_fenced_and_reads_nothing_but_votes() {
    let mut group = Group::start(3);
    group.write(3);
    let wrong = follower(&group);
    let (block, key) = go_wrong(&mut group, wrong, true);
    group.until("it differs again", |group| is(group, wrong, StateDoubt::FencedAgain));
    let found = found(&group, wrong).unwrap();
    assert_eq!((found.block, found.exact), (block, true));
    group.until("the key is known", |group| {
        group.status(wrong).divergence.is_some_and(|found| found.key.as_ref() == Some(&key))
    });
    let why = group.status(wrong).not_ready.expect("it is not ready");
    assert!(why.contains("not deterministic") && why.contains("fault/always"), "{why}");
    let read = Operation::Read(KvRequest::Get { key: key.clone() }.encode());
    assert_eq!(group.ask(wrong, read), Answer::Refused(Refusal::Fenced));
    // Its vote and its disk count: with one of the two others down the service goes on.
    let leader = group.leader().unwrap();
    let other = (1..=3).find(|number| *number != wrong && *number != leader).unwrap();
    group.down(other);
    group.write(3);
    assert_eq!(group.status(wrong).head, group.status(leader).head);
    assert!(group.status(wrong).applied <= block);
    // The one that is left leads, whoever is fenced does not.
    group.up(other);
    group.quiet_but(wrong);
    group.down(leader);
    group.until("the other one leads", |group| group.leader() == Some(other));
    assert_ne!(group.status(wrong).role, RoleName::Leader);
    group.write(1);
    // A restart finds the fence, and tries once more.
    group.up(leader);
    group.down(wrong);
    group.up(wrong);
    assert_eq!(state(&group, wrong), Some(StateDoubt::Fenced));
    group.until("it differs again", |group| is(group, wrong, StateDoubt::FencedAgain));
    assert_eq!(self::found(&group, wrong).unwrap().block, block);
}

#[test]
fn restart_behind_a_fence_ends_it_once_the_state_is_that_of_the_quorum() {
    let mut group = Group::start(3);
    group.write(3);
    let wrong = follower(&group);
    go_wrong(&mut group, wrong, false);
    // Fenced, and down before anything is built anew.
    group.until("it is fenced", |group| group.status(wrong).divergences.fences == 1);
    group.down(wrong);
    group.write(2);
    group.up(wrong);
    group.write(2);
    group.quiet();
    assert!(group.files(wrong, |file| file == "fence").is_empty());
}

#[test]
fn two_who_differ_stop_and_go_on_once_the_flipped_bit_is_gone() {
    for wrong_leads in [false, true] {
        let mut group = Group::start(3);
        group.write(3);
        group.quiet();
        let leader = group.leader().unwrap();
        let away = follower(&group);
        let other = (1..=3).find(|number| *number != leader && *number != away).unwrap();
        group.down(away);
        let wrong = if wrong_leads { leader } else { other };
        let (block, key) = go_wrong(&mut group, wrong, false);
        group.until("both stop", |group| [leader, other].iter().all(|number| is(group, *number, StateDoubt::Open)));
        assert_eq!(found(&group, leader).unwrap().block, block);
        group.until("both go on", |group| [leader, other].iter().all(|number| is(group, *number, StateDoubt::Over)));
        assert_eq!(found(&group, wrong).unwrap().key, Some(key));
        group.write(3);
        group.up(away);
        group.write(1);
        group.quiet();
        assert!((1..=3).all(|number| group.status(number).divergences.fences == 0), "no quorum was against anybody");
    }
}

#[test]
fn two_who_differ_again_stay_as_they_are_until_a_third_decides() {
    let mut group = Group::start(3);
    group.write(3);
    group.quiet();
    let leader = group.leader().unwrap();
    let away = follower(&group);
    let wrong = (1..=3).find(|number| *number != leader && *number != away).unwrap();
    group.down(away);
    let (block, key) = go_wrong(&mut group, wrong, true);
    group.until("both tried again", |group| {
        [leader, wrong].iter().all(|number| is(group, *number, StateDoubt::OpenAgain))
    });
    group.until("the key is known", |group| {
        group.status(leader).divergence.is_some_and(|found| found.key.as_ref() == Some(&key))
    });
    // Nothing is applied, nothing is answered: what is asked now waits.
    let applied = group.status(leader).applied;
    assert_eq!(applied, block);
    let late = group.send(leader, put(Bytes::from_static(b"late")));
    (0..2_000).for_each(|_| group.turn());
    assert!(!group.answers.contains_key(&late));
    assert_eq!(group.status(leader).applied, applied);
    group.up(away);
    group.until("the late one is answered", |group| group.answers.contains_key(&late));
    group.until("the wrong one is fenced", |group| is(group, wrong, StateDoubt::FencedAgain));
    assert_eq!(state(&group, leader), Some(StateDoubt::Over));
    group.write(1);
}

#[test]
fn snapshot_that_a_quorum_has_otherwise_fences_a_state_that_rotted_at_rest() {
    // Its execution is known to be that of the others by then.
    let mut group = Group::start_with(3, EngineOptions { compare: 1_000, ..EngineOptions::default() });
    group.write(60);
    group.quiet();
    let wrong = follower(&group);
    // The peers' next snapshot is another one than this replica's, as if a bit of a value had flipped that nobody writes.
    let before = group.status(wrong).snapshots.newest;
    let leader = group.leader().unwrap();
    let mut number = 0;
    while group.status(wrong).snapshots.newest == before {
        number += 1;
        group.send(leader, put(Bytes::from(format!("key {number}"))));
        group.turn();
    }
    let file = group.files(wrong, is_manifest).pop().expect("it was just written");
    let manifest = Manifest::decode(fs::read(group.folder(wrong).join(file)).unwrap().into()).unwrap();
    let other = SnapshotRef { manifest: Digest::of(b"another"), block: manifest.block };
    for from in (1..=3).filter(|number| *number != wrong).map(Slot::new) {
        let message = PeerMessage::Snapshots { kept: vec![other], asks: false };
        group.take(wrong, Event::Peer { from, epoch: Epoch::FIRST, message });
    }
    assert_eq!(state(&group, wrong), Some(StateDoubt::Fenced));
    group.until("it is built anew", |group| is(group, wrong, StateDoubt::Over));
    let found = found(&group, wrong).unwrap();
    assert_eq!((found.block, found.exact), (manifest.block.height, false));
    group.write(30);
    group.quiet();
}

#[test]
fn digests_are_not_repeated_to_who_has_them() {
    let mut group = Group::start_with(3, EngineOptions { compare: 10_000, ..EngineOptions::default() });
    group.write(3);
    group.quiet();
    (0..200).for_each(|_| group.turn());
    let sent = group.sent_digests;
    (0..2_000).for_each(|_| group.turn());
    assert_eq!(group.sent_digests, sent);
    let down = follower(&group);
    group.down(down);
    group.write(1);
    (0..1_000).for_each(|_| group.turn());
    assert!(group.sent_digests > sent, "who is away is told again and again");
    assert_eq!(group.status(group.leader().unwrap()).slot, Slot::new(group.leader().unwrap()));
}
