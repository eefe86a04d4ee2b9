//! Who may join the conversation between replicas.

use std::path::Path;

use bytes::Bytes;
use lockstep_types::{Genesis, ReplicaId};
use lockstep_wire::convert::id_bytes;
use lockstep_wire::v1::peer_client::PeerClient;
use lockstep_wire::{limits, v1};
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::service::{Replica, Service, TOKEN, eventually, genesis, offer};

/// A stream to the replica's peer port, from someone who says `hello`.
async fn call(
    replica: &Replica,
    hello: v1::PeerHello,
) -> Result<(mpsc::Sender<v1::PeerFrame>, Streaming<v1::PeerHello>), Status> {
    let mut client = PeerClient::connect(format!("http://{}", replica.peer_address())).await.expect("it listens");
    let (frames, receiver) = mpsc::channel(16);
    let frame = v1::PeerFrame { hello: Some(hello), messages: Vec::new() };
    frames.send(frame).await.expect("a new channel");
    let answers = client.exchange(ReceiverStream::new(receiver)).await?.into_inner();
    Ok((frames, answers))
}

/// The Hello of the voter with this index.
fn hello(genesis: &Genesis, voter: usize) -> v1::PeerHello {
    v1::PeerHello {
        protocol_version: limits::PROTOCOL_VERSION,
        service_id: id_bytes(genesis.service.as_bytes()),
        replica_id: id_bytes(genesis.voters[voter].as_bytes()),
        boot: 1000,
        client_address: String::new(),
        slot: u32::try_from(voter).expect("a few voters") + 1,
        epoch: 1,
        peer_address: String::new(),
        start: 0,
        holds: Some(v1::Mark { view: Some(v1::View::default()), height: 0, promised: Some(v1::View::default()) }),
    }
}

/// What the voter with this index says of itself: it answers whoever calls under its own name.
async fn own_hello(service: &Service, voter: usize) -> v1::PeerHello {
    let caller = hello(service.genesis.as_ref().expect("it is born"), voter);
    let (_frames, mut answers) = call(&service.replicas[voter], caller).await.expect("its own name");
    answers.message().await.expect("no error").expect("a Hello")
}

/// A service that keeps working whatever the test does to it.
async fn works(service: &Service) {
    for replica in &service.replicas {
        replica.put("works", "yes").await.expect("a majority runs");
        assert_eq!(replica.get("works").await.expect("a majority runs").as_deref(), Some("yes"));
    }
}

#[tokio::test]
async fn peer_of_the_service_is_told_who_answers() {
    let service = Service::born(1).await;
    let mut hello = hello(service.genesis.as_ref().expect("it is born"), 0);
    hello.boot = 1;
    let (_frames, mut answers) = call(&service.replicas[0], hello.clone()).await.expect("a voter");
    let answer = answers.message().await.expect("no error").expect("a Hello");
    assert_eq!(answer.replica_id, hello.replica_id);
    assert_eq!(answer.client_address, service.replicas[0].client_address());
}

#[tokio::test]
async fn peer_of_another_service_is_refused() {
    let service = Service::born(3).await;
    let mut hello = hello(service.genesis.as_ref().expect("it is born"), 1);
    hello.service_id = vec![9; 16].into();
    let refused = call(&service.replicas[0], hello).await.expect_err("another service");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().ends_with("name only members of one service in --peers"), "{refused}");
    works(&service).await;
}

#[tokio::test]
async fn peer_of_a_later_protocol_is_refused() {
    let service = Service::born(3).await;
    let mut hello = hello(service.genesis.as_ref().expect("it is born"), 1);
    hello.protocol_version += 1;
    let refused = call(&service.replicas[0], hello).await.expect_err("a later protocol");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("speaks peer protocol 2, newer than 1"), "{refused}");
    assert!(refused.message().ends_with("run the newer release on this replica too, or the older one on that"));
    works(&service).await;
}

#[tokio::test]
async fn peer_that_does_not_vote_is_refused() {
    let service = Service::born(3).await;
    let mut hello = hello(service.genesis.as_ref().expect("it is born"), 1);
    hello.replica_id = vec![5; 16].into();
    let refused = call(&service.replicas[0], hello).await.expect_err("a stranger");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("is no member of service"), "{refused}");
}

#[tokio::test]
async fn peer_whose_boot_counter_went_back_is_refused() {
    let service = Service::born(3).await;
    let hello = v1::PeerHello { boot: 0, ..own_hello(&service, 1).await };
    eventually("the replica met its peer", || async {
        service.replicas[0].log().contains("opened a stream").then_some(())
    })
    .await;
    let refused = call(&service.replicas[0], hello).await.expect_err("an old copy of a volume");
    assert_eq!(refused.code(), Code::DataLoss);
    assert!(refused.message().contains("its volume is an old copy"), "{refused}");
    works(&service).await;
}

#[tokio::test]
async fn peer_that_says_to_be_the_same_start_as_another_is_refused() {
    let service = Service::born(3).await;
    let real = own_hello(&service, 1).await;
    let twin = v1::PeerHello { start: real.start ^ 1, ..real };
    eventually("the replica met its peer", || async {
        service.replicas[0].log().contains("opened a stream").then_some(())
    })
    .await;
    let refused = call(&service.replicas[0], twin).await.expect_err("a cloned volume");
    assert_eq!(refused.code(), Code::DataLoss);
    assert!(refused.message().contains("another process runs with the same identity"), "{refused}");
    works(&service).await;
}

#[tokio::test]
async fn replica_on_an_old_copy_of_its_volume_is_refused_and_retires() {
    let mut service = Service::born(3).await;
    let leader = service.leader().await;
    let victim = (leader + 1) % 3;
    let replica = service.replicas[victim].up().await.replica;
    service.replicas[leader].put("key", "in the copy").await.expect("all run");
    let data = service.replicas[victim].data.clone();
    let copy = data.with_extension("copy");
    service.replicas[victim].signal(Signal::STOP);
    copy_folder(&data, &copy);
    service.replicas[victim].signal(Signal::CONT);
    let acknowledged = service.replicas[leader].put("key", "acknowledged since").await.expect("all run");
    eventually("it acknowledged what was written since", || async {
        let status = service.replicas[leader].status().await?;
        let member = status.members.into_iter().find(|member| member.replica == replica)?;
        (member.acknowledged == status.head).then_some(())
    })
    .await;
    service.replicas[victim].kill();
    std::fs::rename(&data, data.with_extension("newer")).expect("our own folder");
    std::fs::rename(&copy, &data).expect("our own folder");
    service.replicas[victim].start();
    assert!(!service.replicas[victim].ended().await.success());
    let log = service.replicas[victim].log();
    assert!(log.contains("forgot what it had promised"), "{log}");

    service.replicas[victim].start();
    let status = service.replicas[victim].up().await;
    assert_eq!(status.not_ready.as_deref(), Some("forgot what it had promised, and has retired"));
    assert!(status.retired.is_some_and(|why| why.contains("and it had gone up to")), "it says how far");
    let genesis = service.genesis.clone().expect("it is born");
    let refused = offer(&service.replicas[victim], &genesis, TOKEN).await.expect_err("it has retired");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("give it an empty directory"), "{refused}");

    let other = &service.replicas[(leader + 2) % 3];
    assert_eq!(other.get("key").await.expect("two of three").as_deref(), Some("acknowledged since"));
    assert!(other.put("key", "without it").await.expect("two of three") > acknowledged);
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a new folder");
    for file in std::fs::read_dir(from).expect("a folder") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), to.join(file.file_name())).expect("a file of our own");
    }
}

#[tokio::test]
async fn peer_before_genesis_is_asked_to_wait() {
    let service = Service::unborn(1).await;
    let hello = hello(&genesis(1, vec![ReplicaId::from_bytes([1; 16])]), 0);
    let refused = call(&service.replicas[0], hello).await.expect_err("no genesis");
    assert_eq!(refused.code(), Code::Unavailable);
}

#[tokio::test]
async fn peer_that_says_no_hello_is_refused() {
    let service = Service::born(1).await;
    let mut client = PeerClient::connect(format!("http://{}", service.replicas[0].peer_address())).await.expect("up");
    let frame = v1::PeerFrame { hello: None, messages: Vec::new() };
    let refused = client.exchange(futures::stream::iter([frame])).await.expect_err("no Hello");
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn peer_message_that_makes_no_sense_ends_its_stream_only() {
    let service = Service::born(3).await;
    let view = Some(v1::View { round: 1 << 40, leader_slot: 2 });
    let nowhere = v1::BlockRef { view, height: 1, hash: vec![1; 32].into() };
    let bad_block = v1::peer_message::Message::Propose(v1::Propose {
        view,
        block: Bytes::from_static(b"no block"),
        committed: Some(nowhere.clone()),
    });
    let no_view = v1::peer_message::Message::PreCheck(v1::PreCheck::default());
    let short_hash =
        v1::peer_message::Message::Ack(v1::Ack { view, height: 1, hash: vec![1; 3].into(), ..v1::Ack::default() });
    for message in [Some(bad_block), Some(no_view), Some(short_hash), None] {
        let (frames, mut answers) = call(&service.replicas[0], own_hello(&service, 1).await).await.expect("a voter");
        answers.message().await.expect("no error").expect("a Hello");
        let frame = v1::PeerFrame { hello: None, messages: vec![v1::PeerMessage { epoch: 1, message }] };
        frames.send(frame).await.expect("the stream is open");
        let ended = answers.message().await.expect_err("the stream ends");
        assert_eq!(ended.code(), Code::InvalidArgument, "{ended}");
    }
    works(&service).await;
}

#[tokio::test]
async fn peer_message_that_lies_harms_nothing() {
    let service = Service::born(3).await;
    let (frames, mut answers) = call(&service.replicas[0], own_hello(&service, 1).await).await.expect("a voter");
    answers.message().await.expect("no error").expect("a Hello");
    let view = Some(v1::View { round: 1, leader_slot: 77 });
    let nowhere = || Some(v1::BlockRef { view, height: 1 << 60, hash: vec![1; 32].into() });
    let lies = [
        v1::peer_message::Message::Heartbeat(v1::Heartbeat {
            view,
            round: 9,
            head: nowhere(),
            committed: nowhere(),
            acknowledged: 1 << 60,
        }),
        v1::peer_message::Message::Fetch(v1::Fetch { after: u64::MAX, anchor: vec![2; 32].into(), tip: nowhere() }),
        v1::peer_message::Message::Fetched(v1::Fetched { after: u64::MAX, committed: nowhere(), ..Default::default() }),
        v1::peer_message::Message::Forward(v1::Forward { id: 1, command: Bytes::from_static(b"no command") }),
        v1::peer_message::Message::ForwardReply(v1::ForwardReply {
            id: 1,
            result: Some(v1::forward_reply::Result::Refusal(v1::ForwardRefusal::default())),
        }),
        v1::peer_message::Message::ReadIndexReply(v1::ReadIndexReply { id: 1, height: Some(u64::MAX) }),
    ];
    for epoch in [0, 1, 99] {
        let messages = lies.iter().map(|lie| v1::PeerMessage { epoch, message: Some(lie.clone()) }).collect();
        frames.send(v1::PeerFrame { hello: None, messages }).await.expect("the stream is open");
    }
    works(&service).await;
}

#[tokio::test]
async fn replicas_of_two_services_at_each_others_addresses_stay_apart() {
    // One replica is told of the others' addresses, but was born into a service of its own.
    let service = Service::unborn(3).await;
    let mut voters = Vec::new();
    for replica in &service.replicas[..1] {
        voters.push(replica.up().await.replica);
    }
    assert!(offer(&service.replicas[0], &genesis(1, voters.clone()), TOKEN).await.expect("a genesis that fits"));
    let other = service.replicas[1].up().await.replica;
    assert!(offer(&service.replicas[1], &genesis(2, vec![other]), TOKEN).await.expect("a genesis that fits"));
    for replica in &service.replicas[..2] {
        eventually("each says why it has no stream to the other", || async {
            replica.log().contains("name only members of one service in --peers").then_some(())
        })
        .await;
        eventually("each leads itself", || async { replica.status().await.filter(|s| s.is_ready()) }).await;
    }
    service.replicas[0].put("key", "of the first").await.expect("it leads itself");
    assert_eq!(service.replicas[1].get("key").await.expect("it leads itself"), None);
}
