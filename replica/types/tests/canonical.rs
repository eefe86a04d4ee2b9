//! What is written as canonical bytes reads back the same, and every other sequence of bytes is refused in words.

use bytes::Bytes;
use lockstep_types::{Command, DecodeError, FaultModel, Genesis, Height, Outcome, ReplicaId, ServiceId, SessionId};

fn genesis() -> Genesis {
    Genesis {
        service: ServiceId::from_bytes([7; 16]),
        fault_model: FaultModel::Crash,
        voters: vec![ReplicaId::from_bytes([1; 16])],
        machine: "KeyValue".into(),
        sessions_max: 5,
        reply_bytes_max: 6,
        snapshot_bytes: 4096,
    }
}

#[test]
fn genesis_comes_back_and_any_cut_is_refused() {
    let bytes = Bytes::from(genesis().encode());
    assert_eq!(Genesis::decode(bytes.clone()), Ok(genesis()));
    assert_eq!(genesis().validate(), Ok(()));
    for length in 0..bytes.len() {
        assert!(matches!(Genesis::decode(bytes.slice(..length)), Err(DecodeError::Truncated { .. })), "{length}");
    }
}

#[test]
fn genesis_with_snapshot_points_too_often_is_refused() {
    // A point with every block would make a replica write its state all the time.
    let error = Genesis { snapshot_bytes: 4095, ..genesis() }.validate().expect_err("too often");
    assert_eq!(error.to_string(), "snapshot_bytes is 4095; take at least 4096, 67108864 is usual");
}

#[test]
fn command_and_outcome_each_kind_comes_back() {
    let session = SessionId { height: Height::new(3), index: 1 };
    let body = Bytes::from_static(b"body");
    for command in [
        Command::OpenSession { nonce: [9; 16] },
        Command::CloseSession { session },
        Command::Execute { session, sequence: 2, acknowledged: 1, body: body.clone() },
        Command::Resolve { session, sequence: 2 },
        Command::Plain { body: body.clone() },
        Command::Snapshot,
    ] {
        let bytes = command.encode();
        assert_eq!(Command::decode(bytes.clone()), Ok(command));
        for length in 0..bytes.len() {
            assert!(matches!(Command::decode(bytes.slice(..length)), Err(DecodeError::Truncated { .. })));
        }
        let longer = Bytes::from([&bytes[..], &[0]].concat());
        assert_eq!(Command::decode(longer), Err(DecodeError::LeftOver { what: "command", count: 1 }));
    }
    for outcome in [
        Outcome::SessionOpened { session },
        Outcome::Replied { reply: body },
        Outcome::Gap { expected: 4 },
        Outcome::SnapshotPoint { height: Height::new(8) },
    ] {
        assert_eq!(Outcome::decode(Bytes::from(outcome.encode())), Ok(outcome));
    }
}
