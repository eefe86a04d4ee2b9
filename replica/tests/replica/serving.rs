//! Requests through any replica, also while replicas die and come back.

use lockstep_types::kv::{KvReply, KvRequest};
use lockstep_types::{Command, Height, Outcome, SessionId};
use lockstep_wire::v1::refusal::Reason;
use lockstep_wire::{Answer, Operation, convert, v1};
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::service::{Replica, Service, eventually};

/// A client's stream.
pub struct Stream {
    pub frames: mpsc::Sender<v1::ClientFrame>,
    pub answers: Streaming<v1::ServerFrame>,
}

impl Stream {
    pub async fn open(replica: &Replica) -> Self {
        let (frames, receiver) = mpsc::channel(16);
        let mut client = replica.client();
        let answers = client.exchange(ReceiverStream::new(receiver)).await.expect("the replica is up").into_inner();
        Stream { frames, answers }
    }

    pub async fn send(&self, requests: Vec<v1::Request>) {
        self.frames.send(v1::ClientFrame { requests }).await.expect("the stream is open");
    }

    /// Answers of `count` requests, by id.
    pub async fn take(&mut self, count: usize) -> Vec<(u64, Answer)> {
        let mut answers = Vec::new();
        while answers.len() < count {
            let frame = self.answers.message().await.expect("the stream is up").expect("more answers are due");
            answers.extend(
                frame.responses.into_iter().map(|response| {
                    (response.id, convert::answer(response.result).expect("an answer that makes sense"))
                }),
            );
        }
        answers.sort_by_key(|(id, _)| *id);
        answers
    }

    pub async fn ask(&mut self, request: v1::Request) -> Answer {
        self.send(vec![request]).await;
        self.take(1).await.remove(0).1
    }

    pub async fn open_session(&mut self, nonce: u8) -> SessionId {
        match self.ask(command(1, Command::OpenSession { nonce: [nonce; 16] })).await {
            Answer::Outcome(Outcome::SessionOpened { session }) => session,
            answer => panic!("no session: {answer:?}"),
        }
    }
}

pub fn request(id: u64, operation: Operation) -> v1::Request {
    let operation = operation.try_into().expect("an operation for clients");
    v1::Request { id, operation: Some(operation), ..v1::Request::default() }
}

pub fn command(id: u64, command: Command) -> v1::Request {
    request(id, Operation::Command(command))
}

fn put(session: SessionId, sequence: u64, key: &str) -> Command {
    let body = KvRequest::Put { key: key.to_owned().into(), value: "value".into() }.encode();
    Command::Execute { session, sequence, acknowledged: 0, body }
}

fn version(answer: &Answer) -> u64 {
    match answer {
        Answer::Outcome(Outcome::Replied { reply }) => match KvReply::decode(reply.clone()) {
            Ok(KvReply::Written { version }) => version,
            reply => panic!("not written: {reply:?}"),
        },
        answer => panic!("no reply: {answer:?}"),
    }
}

#[tokio::test]
async fn request_through_each_replica_is_answered() {
    let service = Service::born(3).await;
    for (index, replica) in service.replicas.iter().enumerate() {
        let key = format!("key-{index}");
        assert_eq!(replica.put(&key, "first").await.expect("a majority runs"), 1);
        for other in &service.replicas {
            assert_eq!(other.get(&key).await.expect("a majority runs").as_deref(), Some("first"));
        }
    }
}

#[tokio::test]
async fn single_replica_is_a_service() {
    let service = Service::born(1).await;
    let replica = &service.replicas[0];
    assert_eq!(replica.put("key", "value").await.expect("it leads itself"), 1);
    assert_eq!(replica.get("key").await.expect("it leads itself").as_deref(), Some("value"));
}

#[tokio::test]
async fn unary_compare_and_set_and_delete_say_what_they_found() {
    let service = Service::born(3).await;
    let mut kv = service.replicas[1].kv();
    let set = |expected, value: &'static str| v1::CompareAndSetRequest {
        key: "key".into(),
        expected: Some(expected),
        value: value.into(),
    };
    let version = v1::compare_and_set_request::Expected::ExpectedVersion;
    let value = |value: &'static str| v1::compare_and_set_request::Expected::ExpectedValue(value.into());

    let created = kv.compare_and_set(set(version(0), "one")).await.expect("a majority runs").into_inner();
    assert!(created.written && created.version == 1);
    let again = kv.compare_and_set(set(version(0), "two")).await.expect("a majority runs").into_inner();
    assert!(!again.written && again.version == 1 && again.value == "one");
    let changed = kv.compare_and_set(set(value("one"), "two")).await.expect("a majority runs").into_inner();
    assert!(changed.written && changed.version == 2);
    let deleted = kv.delete(v1::DeleteRequest { key: "key".into() }).await.expect("a majority runs").into_inner();
    assert!(deleted.deleted);
    let gone = kv.delete(v1::DeleteRequest { key: "key".into() }).await.expect("a majority runs").into_inner();
    assert!(!gone.deleted);
    let nothing = kv.compare_and_set(set(value("two"), "three")).await.expect("a majority runs").into_inner();
    assert!(!nothing.written && nothing.version == 0);
}

#[tokio::test]
async fn unary_scan_and_transaction_say_what_they_found() {
    let service = Service::born(3).await;
    let mut kv = service.replicas[2].kv();
    let put = |key: &'static str| {
        let put = v1::PutRequest { key: key.into(), value: "value".into() };
        v1::TransactionOperation { operation: Some(v1::transaction_operation::Operation::Put(put)) }
    };
    let compares = vec![v1::Compare { key: "a".into(), expected: Some(v1::compare::Expected::Exists(false)) }];
    let write = v1::TransactionRequest { compares, then: vec![put("a"), put("b"), put("c")], otherwise: vec![] };
    let done = kv.transaction(write.clone()).await.expect("a majority runs").into_inner();
    assert_eq!((done.held, done.responses.len()), (true, 3));
    let again = kv.transaction(write).await.expect("a majority runs").into_inner();
    assert_eq!((again.held, again.responses.len()), (false, 0));

    // Any replica answers it, with what was written through another one.
    let mut kv = service.replicas[0].kv();
    let scan = v1::ScanRequest { limit: 2, ..v1::ScanRequest::default() };
    let page = kv.scan(scan.clone()).await.expect("a majority runs").into_inner();
    assert_eq!(page.entries.iter().map(|entry| &entry.key[..]).collect::<Vec<_>>(), [b"a", b"b"]);
    let rest = kv.scan(v1::ScanRequest { start: page.next, ..scan }).await.expect("a majority runs").into_inner();
    assert_eq!((rest.entries.len(), &rest.entries[0].key[..], &rest.next[..]), (1, &b"c"[..], &b""[..]));

    let get = v1::transaction_operation::Operation::Get(v1::GetRequest { key: "c".into() });
    let then = vec![v1::TransactionOperation { operation: Some(get) }];
    let read = v1::TransactionRequest { then, ..v1::TransactionRequest::default() };
    let read = kv.transaction(read).await.expect("a majority runs").into_inner();
    let found = v1::GetResponse { found: true, value: "value".into(), version: 1 };
    assert_eq!(read.responses[0].response, Some(v1::operation_response::Response::Get(found)));
}

#[tokio::test]
async fn leader_killed_under_writes_loses_nothing() {
    let mut service = Service::born(3).await;
    let leader = service.leader().await;
    let other = (leader + 1) % 3;
    for index in 0..20 {
        service.replicas[leader].put(&format!("before-{index}"), "kept").await.expect("a majority runs");
    }
    service.replicas[leader].kill();
    // A put that waits out the election is answered; one that found its connection broken is sent again.
    for index in 0..20 {
        service.replicas[other].put(&format!("after-{index}"), "kept").await.expect("a majority runs");
    }
    let third = &service.replicas[(leader + 2) % 3];
    for index in 0..20 {
        assert_eq!(third.get(&format!("before-{index}")).await.expect("a majority runs").as_deref(), Some("kept"));
        assert_eq!(third.get(&format!("after-{index}")).await.expect("a majority runs").as_deref(), Some("kept"));
    }
    service.replicas[leader].start();
    service.leader().await;
    assert_eq!(service.replicas[leader].get("after-19").await.expect("it is back").as_deref(), Some("kept"));
}

#[tokio::test]
async fn leader_paused_is_replaced_and_comes_back() {
    let mut service = Service::born(3).await;
    let leader = service.leader().await;
    let other = (leader + 1) % 3;
    service.replicas[leader].put("key", "before").await.expect("a majority runs");
    let led = service.replicas[leader].up().await.view;
    service.replicas[leader].signal(Signal::STOP);
    service.replicas[other].put("key", "after").await.expect("the others elect a leader");
    service.replicas[leader].signal(Signal::CONT);
    // It must not answer from what it knew when it led.
    assert_eq!(service.replicas[leader].get("key").await.expect("it runs again").as_deref(), Some("after"));
    // It may lead again since, but not on: a view has one leader.
    service.leader().await;
    assert!(service.replicas[leader].up().await.view > led);
}

#[tokio::test]
async fn replica_that_missed_much_catches_up() {
    let mut service = Service::born(3).await;
    let leader = service.leader().await;
    let late = (leader + 1) % 3;
    service.replicas[late].kill();
    let value = "v".repeat(100_000);
    for index in 0..200 {
        service.replicas[leader].put(&format!("key-{index}"), &value).await.expect("a majority runs");
    }
    let head = service.replicas[leader].up().await.head;
    service.replicas[late].start();
    eventually("the replica has caught up", || async {
        let status = service.replicas[late].status().await?;
        (status.is_ready() && status.applied >= head).then_some(())
    })
    .await;
    assert_eq!(service.leader().await, leader, "catching up disturbs nobody");
}

#[tokio::test]
async fn all_replicas_killed_and_restarted_keep_their_data() {
    let mut service = Service::born(3).await;
    for index in 0..50 {
        service.replicas[index % 3].put(&format!("key-{index}"), "kept").await.expect("a majority runs");
    }
    let before = service.replicas[0].up().await;
    service.replicas.iter_mut().for_each(Replica::kill);
    service.replicas.iter_mut().for_each(Replica::start);
    service.leader().await;
    for index in 0..50 {
        let found = service.replicas[(index + 1) % 3].get(&format!("key-{index}")).await.expect("a majority runs");
        assert_eq!(found.as_deref(), Some("kept"), "key-{index}");
    }
    let after = service.replicas[0].up().await;
    assert_eq!(after.replica, before.replica);
    assert_eq!(after.boot, before.boot + 1);
    assert_eq!(after.genesis, service.genesis);
    assert!(after.view > before.view && after.applied > before.applied);
}

#[tokio::test]
async fn majority_lost_is_said_and_healed() {
    let mut service = Service::born(3).await;
    service.replicas[0].put("key", "value").await.expect("a majority runs");
    service.replicas[1].kill();
    service.replicas[2].kill();
    eventually("the last replica notices", || async {
        let status = service.replicas[0].status().await?;
        status.not_ready
    })
    .await;
    let refused = service.replicas[0].put("key", "other").await.expect_err("no majority");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().starts_with("no leader is known: a majority of the replicas must be up"), "{refused}");
    assert_eq!(refused.metadata().get("lockstep-never-proposed").map(|value| value.as_bytes()), Some(&b"true"[..]));
    let status = service.replicas[0].up().await;
    assert!(!status.is_ready() && status.leader.is_none(), "{status:?}");

    service.replicas[1].start();
    service.leader().await;
    assert_eq!(service.replicas[1].get("key").await.expect("a majority runs").as_deref(), Some("value"));
}

#[tokio::test]
async fn stream_request_sent_again_is_executed_once() {
    let service = Service::born(3).await;
    let mut stream = Stream::open(&service.replicas[0]).await;
    let session = stream.open_session(7).await;
    let first = stream.ask(command(2, put(session, 1, "key"))).await;
    assert_eq!(version(&first), 1);

    let mut other = Stream::open(&service.replicas[2]).await;
    assert_eq!(other.open_session(7).await, session, "the same nonce is the same session");
    assert_eq!(other.ask(command(3, put(session, 1, "key"))).await, first, "answered from the table");
    assert_eq!(version(&other.ask(command(4, put(session, 2, "key"))).await), 2);
}

#[tokio::test]
async fn stream_with_many_requests_a_frame_answers_each() {
    let service = Service::born(3).await;
    let mut stream = Stream::open(&service.replicas[0]).await;
    let puts = |from: u64| {
        (from..from + 500).map(|id| {
            let body = KvRequest::Put { key: format!("key-{id}").into(), value: "value".into() }.encode();
            command(id, Command::Plain { body })
        })
    };
    for from in [0, 500, 1000, 1500] {
        stream.send(puts(from).collect()).await;
    }
    let answers = stream.take(2000).await;
    for (expected, (id, answer)) in (0..).zip(&answers) {
        assert_eq!((*id, version(answer)), (expected, 1));
    }
}

#[tokio::test]
async fn stream_that_the_client_ends_is_answered_to_the_last_request() {
    let service = Service::born(3).await;
    let Stream { frames, mut answers } = Stream::open(&service.replicas[1]).await;
    let read = Operation::Read { body: KvRequest::Get { key: "key".into() }.encode() };
    frames.send(v1::ClientFrame { requests: vec![request(1, read)] }).await.expect("the stream is open");
    drop(frames);
    assert_eq!(answers.message().await.expect("no error").expect("one answer").responses.len(), 1);
    assert!(answers.message().await.expect("no error").is_none());
}

#[tokio::test]
async fn request_for_another_service_is_refused() {
    let service = Service::born(3).await;
    let read = Operation::Read { body: KvRequest::Get { key: "key".into() }.encode() };
    let meant = v1::Request { service_id: vec![9; 16].into(), ..request(1, read) };
    let mut stream = Stream::open(&service.replicas[0]).await;
    let Answer::Refused(refusal) = stream.ask(meant.clone()).await else { panic!("not refused") };
    assert_eq!(refusal.reason, Reason::WrongService);
    assert!(refusal.never_proposed && refusal.leader.is_some());

    let refused = service.replicas[0].client().call(meant).await.expect_err("another service was meant");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(
        refused.message(),
        format!("this replica serves service {}, not {}; check the address", "01".repeat(16), "09".repeat(16))
    );
}

#[tokio::test]
async fn call_that_makes_no_sense_is_refused() {
    let service = Service::born(1).await;
    let mut client = service.replicas[0].client();
    let refused = client.call(v1::Request::default()).await.expect_err("no operation");
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "operation is missing"));

    let unknown = SessionId { height: Height::new(1 << 40), index: 0 };
    let answer = client.call(command(5, put(unknown, 1, "key"))).await.expect("the log answers").into_inner();
    assert_eq!(answer.id, 5);
    let answer = convert::answer(answer.result).expect("an answer");
    assert!(matches!(answer, Answer::Invalid { .. }), "{answer:?}");
}

#[tokio::test]
async fn locate_names_the_leader_and_where_clients_reach_it() {
    let mut service = Service::born(3).await;
    let leader = service.leader().await;
    let expected = service.replicas[leader].client_address();
    for replica in &service.replicas {
        let located = replica.client().locate(v1::LocateRequest {}).await.expect("it is up").into_inner();
        assert_eq!(located.leader.expect("one leads").address, expected);
        assert_eq!(located.voters.len(), 3);
        assert_eq!(located.service_id, vec![1; 16]);
    }
}
