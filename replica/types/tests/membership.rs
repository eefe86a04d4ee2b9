//! Configurations and their changes: what is allowed, what meets what, and the canonical bytes.

use bytes::Bytes;
use lockstep_types::block::encode_body;
use lockstep_types::limits::{STANDBYS_MAX, VOTERS_MAX};
use lockstep_types::{
    Block, BlockHeader, Change, ChangeError, Configuration, DecodeError, Digest, Epoch, FaultModel, Genesis, Height,
    LogTime, ReplicaId, ServiceId, Slot, View,
};

fn replica(number: u8) -> ReplicaId {
    ReplicaId::from_bytes([number; 16])
}

fn slot(number: u32) -> Slot {
    Slot::new(number)
}

fn voters(count: u8) -> Configuration {
    Genesis {
        service: ServiceId::from_bytes([7; 16]),
        fault_model: FaultModel::Crash,
        voters: (1..=count).map(replica).collect(),
        machine: "KeyValue".into(),
        sessions_max: 1,
        reply_bytes_max: 1,
        snapshot_bytes: Genesis::SNAPSHOT_BYTES,
    }
    .configuration()
}

fn add(number: u8) -> Change {
    Change::AddStandby { replica: replica(number) }
}

fn after(from: &Configuration, changes: &[Change]) -> Configuration {
    changes.iter().fold(from.clone(), |configuration, change| configuration.apply(change).unwrap())
}

/// All quorums of a configuration, as bits.
fn quorums(configuration: &Configuration) -> Vec<u32> {
    let slots: Vec<u32> = configuration.voters().keys().map(|slot| slot.get()).collect();
    (0_u32..1 << slots.len())
        .map(|subset| (0..slots.len()).filter(|bit| subset >> bit & 1 == 1).map(|bit| 1 << slots[bit]).sum())
        .filter(|set: &u32| configuration.is_quorum((1..32).filter(|number| *set >> number & 1 == 1).map(Slot::new)))
        .collect()
}

#[test]
fn quorums_of_neighbours_always_meet() {
    println!("voters  change      old quorums  new quorums  pairs");
    let mut total = 0;
    for count in 1..=7 {
        let old = after(&voters(count), &[add(100), add(101)]);
        let standby = u32::from(count) + 1;
        let promotions = [Change::Promote { slot: slot(standby) }, Change::Promote { slot: slot(standby + 1) }];
        let removals = (1..=standby + 1).map(|number| Change::Remove { slot: slot(number) });
        for change in promotions.into_iter().chain(removals).chain([add(102)]) {
            let new = match old.apply(&change) {
                Ok(new) => new,
                Err(ChangeError::LastVoter { .. }) if count == 1 => continue,
                Err(error) => panic!("{change}: {error}"),
            };
            let (olds, news) = (quorums(&old), quorums(&new));
            for one in &olds {
                assert!(
                    news.iter().all(|other| one & other != 0),
                    "{old} and {new}: {one:b} meets not all of {news:?}"
                );
            }
            println!(
                "{count:>6}  {:<10}  {:>11}  {:>11}  {:>5}",
                change.to_string().split(' ').next().unwrap(),
                olds.len(),
                news.len(),
                olds.len() * news.len()
            );
            total += olds.len() * news.len();
        }
    }
    println!("{total} pairs of quorums, all meet");
    assert!(total > 10_000);
}

#[test]
fn swap_at_once_would_not_meet() {
    let old = voters(3);
    let new = after(&old, &[add(4), Change::Promote { slot: slot(4) }, Change::Remove { slot: slot(1) }]);
    let disjoint = quorums(&old).iter().any(|one| quorums(&new).iter().any(|other| one & other == 0));
    assert!(disjoint, "the table above would prove nothing");
}

#[test]
fn changes_lead_from_epoch_to_epoch() {
    let first = voters(3);
    assert_eq!((first.epoch(), first.next_slot()), (Epoch::FIRST, slot(4)));
    let added = after(&first, &[add(9)]);
    assert_eq!((added.epoch(), added.next_slot(), added.quorum()), (Epoch::new(2), slot(5), 2));
    assert_eq!(
        (added.member(slot(4)), added.voter(slot(4)), added.slot_of(replica(9))),
        (Some(replica(9)), None, Some(slot(4)))
    );
    let promoted = after(&added, &[Change::Promote { slot: slot(4) }]);
    assert_eq!((promoted.voter(slot(4)), promoted.quorum(), promoted.tolerated()), (Some(replica(9)), 3, 1));
    let removed = after(&promoted, &[Change::Remove { slot: slot(1) }]);
    assert_eq!((removed.member(slot(1)), removed.is_removed(slot(1)), removed.next_slot()), (None, true, slot(5)));
    assert_eq!(removed.slot_of(replica(1)), None);
    assert_eq!(removed.to_string(), "e4 voters r2 r3 r4");
    // A standby may go as well, and its slot is not given again.
    let gone = after(&removed, &[add(10), Change::Remove { slot: slot(5) }, add(11)]);
    assert_eq!((gone.slot_of(replica(11)), gone.is_removed(slot(5))), (Some(slot(6)), true));
    assert_eq!(gone.to_string(), "e7 voters r2 r3 r4 standbys r6");
}

#[test]
fn change_that_cannot_be_is_named() {
    let config = after(&voters(3), &[add(4), Change::Remove { slot: slot(3) }]);
    let cases = [
        (add(1), ChangeError::AlreadyMember { replica: replica(1), slot: slot(1) }, true),
        (add(4), ChangeError::AlreadyMember { replica: replica(4), slot: slot(4) }, true),
        (add(3), ChangeError::RemovedIdentity { replica: replica(3), slot: slot(3) }, false),
        (Change::Promote { slot: slot(1) }, ChangeError::AlreadyVoter { slot: slot(1) }, true),
        (Change::Promote { slot: slot(3) }, ChangeError::RemovedSlot { slot: slot(3) }, false),
        (Change::Promote { slot: slot(5) }, ChangeError::UnknownSlot { slot: slot(5) }, false),
        (Change::Remove { slot: slot(3) }, ChangeError::RemovedSlot { slot: slot(3) }, true),
        (Change::Remove { slot: slot(0) }, ChangeError::UnknownSlot { slot: slot(0) }, false),
    ];
    for (change, error, already) in cases {
        assert_eq!(config.apply(&change), Err(error), "{change}");
        assert_eq!(config.holds(&change), already, "{change}");
    }
    let last = Change::Remove { slot: slot(1) };
    assert_eq!(voters(1).apply(&last), Err(ChangeError::LastVoter { slot: slot(1) }));
    // A standby does not make the last voter removable.
    assert_eq!(after(&voters(1), &[add(2)]).apply(&last), Err(ChangeError::LastVoter { slot: slot(1) }));
}

#[test]
fn members_are_bounded() {
    let mut config = voters(1);
    for number in 2..=VOTERS_MAX as u32 {
        config = after(&config, &[add(number as u8), Change::Promote { slot: slot(number) }]);
    }
    config = after(&config, &[add(100)]);
    let promote = Change::Promote { slot: config.slot_of(replica(100)).unwrap() };
    assert_eq!(config.apply(&promote), Err(ChangeError::TooManyVoters));
    for number in 1..STANDBYS_MAX as u8 {
        config = after(&config, &[add(100 + number)]);
    }
    assert_eq!(config.apply(&add(200)), Err(ChangeError::TooManyStandbys));
}

#[test]
fn configuration_survives_its_canonical_bytes() {
    let config =
        after(&voters(3), &[add(9), Change::Promote { slot: slot(4) }, add(10), Change::Remove { slot: slot(2) }]);
    let bytes = config.encode();
    assert_eq!(Configuration::decode(bytes.clone().into()), Ok(config));
    for length in 0..bytes.len() {
        let cut = Configuration::decode(Bytes::copy_from_slice(&bytes[..length]));
        assert!(matches!(cut, Err(DecodeError::Truncated { .. })), "{length} bytes: {cut:?}");
    }
}

#[test]
fn hostile_configuration_is_refused() {
    let bytes = after(&voters(3), &[add(4)]).encode();
    let with = |index: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[index] = byte;
        Configuration::decode(bytes.into())
    };
    // Version, epoch, fault model, count; then per slot a state and an identity.
    assert!(matches!(with(0, 2), Err(DecodeError::NewerVersion { .. })));
    assert_eq!(with(2, 0), Err(DecodeError::OutOfRange { what: "configuration epoch" }));
    assert!(matches!(with(10, 9), Err(DecodeError::UnknownTag { .. })));
    assert!(matches!(with(14, 0xff), Err(DecodeError::Truncated { .. })), "four billion slots");
    assert!(matches!(with(11, 3), Err(DecodeError::LeftOver { .. })));
    assert!(matches!(with(15, 4), Err(DecodeError::UnknownTag { .. })));
    let mut twice = bytes.clone();
    twice.copy_within(16..32, 33);
    assert_eq!(Configuration::decode(twice.into()), Err(DecodeError::OutOfRange { what: "identity in two slots" }));
    let mut nobody = bytes.clone();
    (0..3).for_each(|index| nobody[15 + 17 * index] = 3);
    assert_eq!(Configuration::decode(nobody.into()), Err(DecodeError::OutOfRange { what: "number of voters" }));
    let mut left_over = bytes.clone();
    left_over.push(0);
    assert!(matches!(Configuration::decode(left_over.into()), Err(DecodeError::LeftOver { .. })));
}

#[test]
fn change_survives_its_canonical_bytes() {
    for change in [add(7), Change::Promote { slot: slot(4) }, Change::Remove { slot: slot(u32::MAX) }] {
        let bytes = change.encode();
        assert_eq!(Change::decode(bytes.clone().into()), Ok(change));
        for length in 0..bytes.len() {
            assert!(Change::decode(Bytes::copy_from_slice(&bytes[..length])).is_err(), "{change}: {length} bytes");
        }
    }
    assert!(Change::decode(Bytes::from_static(&[0])).is_err(), "no change");
    assert!(Change::decode(Bytes::from_static(&[4, 0, 0, 0, 0])).is_err(), "no such change");
    assert!(Change::decode(Bytes::from_static(&[3, 0, 0, 0, 0, 0])).is_err(), "left over");
}

fn block(change: Option<Change>, body: Bytes) -> Block {
    let header = BlockHeader {
        service: ServiceId::from_bytes([7; 16]),
        epoch: Epoch::FIRST,
        view: View::new(1, slot(2)),
        height: Height::new(3),
        parent: Digest::of(b"parent"),
        body: Digest::ZERO,
        log_time: LogTime::from_millis(5),
        change,
    };
    Block::new(header, body)
}

#[test]
fn block_with_a_change_survives_and_has_another_hash() {
    let empty = encode_body(&[]);
    let plain = block(None, empty.clone());
    for change in [add(7), Change::Promote { slot: slot(4) }, Change::Remove { slot: slot(4) }] {
        let changing = block(Some(change), empty.clone());
        assert_ne!(changing.hash(), plain.hash());
        let bytes: Bytes = changing.encode_parts().concat().into();
        assert!(bytes.len() <= lockstep_types::block::HEADER_BYTES_MAX + empty.len());
        assert_eq!(Block::decode(bytes), Ok(changing));
    }
}

#[test]
fn block_with_a_change_and_commands_is_refused() {
    let body = encode_body(&[Bytes::from_static(b"command")]);
    let bytes: Bytes = block(Some(add(7)), body.clone()).encode_parts().concat().into();
    let expected = DecodeError::OutOfRange { what: "body of a block with a change" };
    assert_eq!(Block::decode(bytes), Err(expected));
    assert!(Block::decode(block(None, body).encode_parts().concat().into()).is_ok());
}
