//! What goes over the wire comes back the same, and what makes no sense is refused in words.

use std::time::Duration;

use bytes::Bytes;
use lockstep_types::limits::REQUEST_BYTES_MAX;
use lockstep_types::{
    BlockRef, Command, DecodeError, Digest, Epoch, FaultModel, Genesis, Height, Invalid, Outcome, ReplicaId, ServiceId,
    SessionId, Slot, View,
};
use lockstep_wire::v1::refusal::Reason;
use lockstep_wire::{
    Answer, Divergence, FILE_DESCRIPTOR_SET, Leader, MemberStatus, Membership, Operation, Refusal, ReplicaStatus, Role,
    SnapshotFetch, SnapshotsStatus, StateDoubt, WireError, convert, v1,
};
use prost::Message;

const SESSION: SessionId = SessionId { height: Height::new(9), index: 2 };

fn body(bytes: usize) -> Bytes {
    Bytes::from(vec![7; bytes])
}

fn over_the_wire<M: Message + Default>(message: &M) -> M {
    M::decode(Bytes::from(message.encode_to_vec())).unwrap()
}

#[test]
fn operation_each_kind_comes_back() {
    let operations = [
        Operation::Command(Command::OpenSession { nonce: [3; 16] }),
        Operation::Command(Command::CloseSession { session: SESSION }),
        Operation::Command(Command::Execute { session: SESSION, sequence: 5, acknowledged: 4, body: body(3) }),
        Operation::Command(Command::Resolve { session: SESSION, sequence: 5 }),
        Operation::Command(Command::Plain { body: body(REQUEST_BYTES_MAX) }),
        Operation::Read { body: body(0) },
    ];
    for operation in operations {
        let wire = operation.clone().try_into().unwrap();
        let request = v1::Request { operation: Some(wire), ..v1::Request::default() };
        assert_eq!(convert::operation(over_the_wire(&request).operation), Ok(operation));
    }
}

#[test]
fn answer_each_kind_comes_back() {
    let leader = Leader { replica: ReplicaId::from_bytes([1; 16]), address: "a:7400".to_owned() };
    let refusal = |leader| Refusal {
        reason: Reason::LeaderLost,
        message: "the leader changed".to_owned(),
        never_proposed: true,
        leader,
    };
    let answers = [
        Answer::Outcome(Outcome::SessionOpened { session: SESSION }),
        Answer::Outcome(Outcome::SessionClosed),
        Answer::Outcome(Outcome::Replied { reply: body(4) }),
        Answer::Outcome(Outcome::Cancelled),
        Answer::Outcome(Outcome::Gap { expected: 3 }),
        Answer::Outcome(Outcome::OverWindow { limit: 64 }),
        Answer::Outcome(Outcome::AlreadyAcknowledged),
        Answer::Outcome(Outcome::Evicted),
        Answer::Invalid { reason: "why".to_owned() },
        Answer::Refused(refusal(None)),
        Answer::Refused(refusal(Some(leader))),
    ];
    for answer in answers {
        let response = over_the_wire(&convert::response(8, answer.clone()));
        assert_eq!(response.id, 8);
        assert_eq!(convert::answer(response.result), Ok(answer));
    }
}

#[test]
fn outcome_invalid_becomes_its_words() {
    let response = convert::response(1, Outcome::Invalid { reason: Invalid::UnknownSession });
    let reason = "no such session was ever opened".to_owned();
    assert_eq!(convert::answer(response.result), Ok(Answer::Invalid { reason }));
}

#[test]
fn operation_malformed_is_refused_in_words() {
    let refused = |operation| convert::operation(operation).unwrap_err().to_string();
    assert_eq!(refused(None), "operation is missing");
    let open = v1::OpenSession { nonce: body(3) };
    assert_eq!(refused(Some(v1::request::Operation::OpenSession(open))), "nonce has 3 bytes, not 16");
    let execute = v1::Execute { session: None, sequence: 1, acknowledged: 0, body: body(0) };
    assert_eq!(refused(Some(v1::request::Operation::Execute(execute))), "session is missing");
    let plain = v1::Plain { body: body(REQUEST_BYTES_MAX + 1) };
    assert_eq!(
        refused(Some(v1::request::Operation::Plain(plain))),
        "request body has 1048577 bytes; at most 1048576 are taken"
    );
}

#[test]
fn snapshot_of_a_client_is_refused_in_words() {
    let refused = v1::request::Operation::try_from(Operation::Command(Command::Snapshot)).unwrap_err();
    assert_eq!(refused.to_string(), "a snapshot command is not for clients; an admin call puts it into the log");
    // Whatever number a client gives to its operation.
    for field in 1..16 {
        let Ok(request) = v1::Request::decode(Bytes::from(vec![field << 3 | 2, 0])) else { continue };
        let operation = convert::operation(request.operation);
        assert!(!matches!(operation, Ok(Operation::Command(Command::Snapshot))), "field {field}: {operation:?}");
    }
}

#[test]
fn outcome_of_a_snapshot_is_no_answer_for_a_client() {
    let response = convert::response(1, Outcome::SnapshotPoint { height: Height::new(7) });
    let reason = "unexpected outcome: snapshot point 7".to_owned();
    assert_eq!(convert::answer(response.result), Ok(Answer::Invalid { reason }));
}

#[test]
fn identity_of_another_length_is_refused_in_words() {
    let service = ServiceId::from_bytes([4; 16]);
    assert_eq!(convert::service_id("service_id", &[]), Ok(None));
    assert_eq!(convert::service_id("service_id", service.as_bytes()), Ok(Some(service)));
    let error = convert::service_id("service_id", &[1, 2, 3]).unwrap_err();
    assert_eq!(error.to_string(), "service_id has 3 bytes, not 16");
    assert_eq!(tonic::Status::from(error).code(), tonic::Code::InvalidArgument);
    let error = convert::replica_id("replica_id", &[]).unwrap_err();
    assert_eq!(error, WireError::Length { field: "replica_id", expected: 16, actual: 0 });
}

#[test]
fn answer_of_a_later_release_is_refused_in_words() {
    assert_eq!(convert::answer(None).unwrap_err().to_string(), "result is missing");
}

#[test]
fn block_reference_comes_back() {
    let block = BlockRef { view: View::new(3, Slot::new(2)), height: Height::new(11), hash: Digest::of(b"x") };
    let wire = over_the_wire(&v1::BlockRef::from(block));
    assert_eq!(convert::block_ref("head", Some(wire.clone())), Ok(block));
    let error = convert::block_ref("head", Some(v1::BlockRef { view: None, ..wire.clone() })).unwrap_err();
    assert_eq!(error.to_string(), "head is missing");
    let error = convert::block_ref("head", Some(v1::BlockRef { hash: body(31), ..wire })).unwrap_err();
    assert_eq!(error.to_string(), "head has 31 bytes, not 32");
}

fn status() -> ReplicaStatus {
    let genesis = Genesis {
        service: ServiceId::from_bytes([5; 16]),
        fault_model: FaultModel::Crash,
        voters: vec![ReplicaId::from_bytes([6; 16])],
        machine: "KeyValue".to_owned(),
        sessions_max: 1,
        reply_bytes_max: 2,
        snapshot_bytes: Genesis::SNAPSHOT_BYTES,
    };
    ReplicaStatus {
        retired: Some("it started twice".to_owned()),
        replica: ReplicaId::from_bytes([6; 16]),
        service: Some(genesis.service),
        version: "1.2.3".to_owned(),
        boot: 4,
        role: Role::Follower,
        view: View::new(7, Slot::new(1)),
        slot: Some(Slot::new(1)),
        epoch: Some(Epoch::FIRST),
        leader: Some(ReplicaId::from_bytes([6; 16])),
        head: Height::new(12),
        committed: Height::new(11),
        applied: Height::new(10),
        leader_head: Some(Height::new(15)),
        leader_heard: Some(Duration::from_millis(20)),
        not_ready: Some("5 blocks behind".to_owned()),
        membership: Some(Membership { configuration: genesis.configuration(), height: Height::new(8), settled: true }),
        genesis: Some(genesis),
        members: vec![
            MemberStatus {
                replica: ReplicaId::from_bytes([6; 16]),
                slot: Slot::new(1),
                acknowledged: Height::new(12),
                connected: true,
                votes: true,
            },
            MemberStatus {
                replica: ReplicaId::from_bytes([7; 16]),
                slot: Slot::new(2),
                acknowledged: Height::new(3),
                connected: false,
                votes: false,
            },
        ],
        digest: Some(Digest::of(b"state")),
        state_machine: "KeyValue".to_owned(),
        uptime: Duration::from_secs(60),
        snapshots: SnapshotsStatus {
            newest: Some(Height::new(9)),
            agreed: Some(Height::new(6)),
            log_begins_above: Height::new(3),
            fetching: Some(SnapshotFetch { height: Height::new(12), chunks: 1, of: 4 }),
            trouble: Some("no peer sends snapshot 9".to_owned()),
            taken: 1,
            left_out: 2,
            installed: 3,
            install_failures: 4,
            chunks_served: 5,
        },
        divergence: Some(Divergence {
            doubt: StateDoubt::FencedAgain,
            block: Height::new(57),
            exact: true,
            key: Some(Bytes::from_static(b"key")),
            witness: Slot::new(2),
            text: "is fenced".to_owned(),
        }),
    }
}

#[test]
fn status_comes_back() {
    let wire = over_the_wire(&v1::StatusResponse::from(status()));
    assert_eq!(ReplicaStatus::try_from(wire), Ok(status()));
    assert_eq!(status().lag(), 5);
}

#[test]
fn status_before_genesis_comes_back() {
    let fresh = ReplicaStatus {
        service: None,
        role: Role::None,
        view: View::ZERO,
        slot: None,
        epoch: None,
        leader: None,
        head: Height::ZERO,
        committed: Height::ZERO,
        applied: Height::ZERO,
        leader_head: None,
        leader_heard: None,
        not_ready: Some("waiting for genesis".to_owned()),
        genesis: None,
        members: vec![],
        membership: None,
        digest: None,
        state_machine: String::new(),
        snapshots: SnapshotsStatus::default(),
        divergence: None,
        ..status()
    };
    let wire = over_the_wire(&v1::StatusResponse::from(fresh.clone()));
    assert_eq!(ReplicaStatus::try_from(wire), Ok(fresh));
}

#[test]
fn status_of_a_release_without_snapshots_has_none() {
    let older = v1::StatusResponse { snapshots: None, ..status().into() };
    let expected = ReplicaStatus { snapshots: SnapshotsStatus::default(), ..status() };
    assert_eq!(ReplicaStatus::try_from(over_the_wire(&older)), Ok(expected));
}

#[test]
fn status_malformed_is_refused_in_words() {
    let wire = || v1::StatusResponse::from(status());
    let refused = |wire: v1::StatusResponse| ReplicaStatus::try_from(wire).unwrap_err().to_string();
    let later_role = v1::StatusResponse { role: 9, ..wire() };
    assert_eq!(refused(later_role), "role has the unknown value 9; the sender may run a newer release");
    let torn = v1::StatusResponse { genesis: body(1), ..wire() };
    let error = DecodeError::Truncated { what: "genesis version" };
    assert_eq!(refused(torn), format!("genesis does not decode: {error}"));
}

#[test]
fn descriptors_for_reflection_name_all_services() {
    let files = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let services: Vec<&str> =
        files.file.iter().flat_map(|file| &file.service).filter_map(|service| service.name.as_deref()).collect();
    assert_eq!(services, ["Admin", "Client", "KeyValue", "Peer"]);
}
