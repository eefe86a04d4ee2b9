//! Genesis, tokens, hand-over, health, metrics, reflection.

use std::fs;

use lockstep_types::ReplicaId;
use lockstep_wire::convert::id_bytes;
use lockstep_wire::{Role, v1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::service::{Replica, Service, TOKEN, eventually, genesis, offer, with_token};

async fn health(replica: &Replica, service: &str) -> ServingStatus {
    let mut client = HealthClient::new(replica.channel());
    let request = HealthCheckRequest { service: service.to_owned() };
    client.check(request).await.expect("it is up").into_inner().status()
}

pub async fn metrics(replica: &Replica) -> String {
    let mut stream = TcpStream::connect(replica.metrics_address()).await.expect("it is up");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: replica\r\nConnection: close\r\n\r\n").await.expect("it listens");
    let mut page = String::new();
    stream.read_to_string(&mut page).await.expect("a page of text");
    page
}

#[tokio::test]
async fn replica_before_genesis_is_live_and_not_ready() {
    let service = Service::unborn(1).await;
    let replica = &service.replicas[0];
    let status = replica.up().await;
    assert_eq!((status.role, status.boot, status.service), (Role::None, 1, None));
    assert_eq!(status.not_ready.as_deref(), Some("has no genesis yet"));
    assert_eq!(health(replica, "lockstep.live").await, ServingStatus::Serving);
    assert_eq!(health(replica, "lockstep.ready").await, ServingStatus::NotServing);
    assert_eq!(health(replica, "").await, ServingStatus::NotServing);

    let refused = replica.put("key", "value").await.expect_err("nothing is there to write to");
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(
        refused.message(),
        "this replica has no genesis yet, or is reading its log; try again, or another replica"
    );
    let located = replica.client().locate(v1::LocateRequest {}).await.expect("it is up").into_inner();
    assert_eq!(located, v1::LocateResponse::default());
    assert!(metrics(replica).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn genesis_whose_giver_dies_in_between_is_taken_to_the_end() {
    let mut service = Service::stopped(1);
    let replica = &mut service.replicas[0];
    // Filling the first file ahead takes a while: long enough for the giver to be gone before the engine has started.
    replica.option(&format!("--segment-bytes={}", 256 << 20));
    replica.start();
    let genesis = genesis(1, vec![replica.up().await.replica]);
    let replica = &service.replicas[0];
    let begun =
        eventually("the log has begun", || async { replica.data.join("wal-000000000001.log").exists().then_some(()) });
    tokio::select! {
        answer = offer(replica, &genesis, TOKEN) => panic!("the engine starts too fast for this test: {answer:?}"),
        () = begun => {}
    }
    eventually("it leads itself", || async { replica.status().await.filter(|status| status.is_ready()) }).await;
}

#[tokio::test]
async fn genesis_given_twice_is_taken_once() {
    let service = Service::born(3).await;
    let genesis = service.genesis.clone().expect("it is born");
    for replica in &service.replicas {
        assert!(!offer(replica, &genesis, TOKEN).await.expect("the same again"));
    }
}

#[tokio::test]
async fn genesis_of_another_service_is_refused() {
    let mut service = Service::born(1).await;
    let voters = service.genesis.clone().expect("it is born").voters;
    let refused = offer(&service.replicas[0], &genesis(2, voters.clone()), TOKEN).await.expect_err("it has one");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let (ours, theirs) = ("01".repeat(16), "02".repeat(16));
    assert_eq!(
        refused.message(),
        format!("this replica belongs to service {ours}; it refuses the genesis of {theirs}")
    );

    service.replicas[0].kill();
    service.replicas[0].start();
    service.replicas[0].up().await;
    let refused = offer(&service.replicas[0], &genesis(2, voters), TOKEN).await.expect_err("it still has one");
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn genesis_that_does_not_name_the_replica_is_refused() {
    let service = Service::unborn(1).await;
    let stranger = ReplicaId::from_bytes([7; 16]);
    let refused = offer(&service.replicas[0], &genesis(1, vec![stranger]), TOKEN).await.expect_err("another's genesis");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("does not name replica"), "{refused}");
    assert_eq!(service.replicas[0].up().await.service, None);
}

#[tokio::test]
async fn genesis_that_makes_no_sense_is_refused() {
    let service = Service::unborn(1).await;
    let replica = &service.replicas[0];
    let garbage = with_token(v1::GenesisRequest { genesis: vec![0xff; 40].into() }, TOKEN);
    let refused = replica.admin().genesis(garbage).await.expect_err("no genesis");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let me = replica.up().await.replica;
    let refused = offer(replica, &genesis(1, vec![me, me]), TOKEN).await.expect_err("two voters");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}

#[tokio::test]
async fn admin_call_without_the_token_is_refused() {
    let service = Service::unborn(1).await;
    let replica = &service.replicas[0];
    let genesis = genesis(1, vec![replica.up().await.replica]);
    let wrong = offer(replica, &genesis, "a guess").await.expect_err("not the token");
    assert_eq!((wrong.code(), wrong.message()), (Code::Unauthenticated, "this is not the service's admin token"));
    let none = replica.admin().hand_over(v1::HandOverRequest::default()).await.expect_err("no token");
    assert_eq!(none.code(), Code::Unauthenticated);
    assert_eq!(replica.up().await.service, None);
}

#[tokio::test]
async fn admin_token_file_replaced_counts_at_once() {
    let mut service = Service::stopped(1);
    let replica = &mut service.replicas[0];
    let file = replica.data.with_extension("token");
    fs::write(&file, "the first\n").expect("a file in a new directory");
    replica.option(&format!("--admin-token-file={}", file.display()));
    replica.start();
    let genesis = genesis(1, vec![replica.up().await.replica]);
    fs::write(&file, "the second\n").expect("a file in a new directory");
    let refused = offer(replica, &genesis, "the first").await.expect_err("it was replaced");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(offer(replica, &genesis, "the second").await.expect("the file holds it"));
}

#[tokio::test]
async fn hand_over_to_a_voter_makes_it_lead() {
    let mut service = Service::born(3).await;
    let leader = service.leader().await;
    let target = (leader + 1) % 3;
    let id = service.replicas[target].up().await.replica;
    let request = || with_token(v1::HandOverRequest { target: id_bytes(id.as_bytes()) }, TOKEN);
    let answer = service.replicas[leader].admin().hand_over(request()).await.expect("all are up").into_inner();
    assert_eq!(answer.leader_id, id.as_bytes()[..]);
    assert_eq!(service.leader().await, target);
    // It leads: asking again, there or elsewhere, changes nothing.
    for index in [target, leader] {
        let answer = service.replicas[index].admin().hand_over(request()).await.expect("it leads").into_inner();
        assert_eq!(answer.leader_id, id.as_bytes()[..]);
    }
    service.replicas[leader].put("key", "value").await.expect("a majority runs");
}

#[tokio::test]
async fn hand_over_asked_of_a_follower_names_the_leader() {
    let mut service = Service::born(3).await;
    let leader = service.leader().await;
    let follower = &service.replicas[(leader + 1) % 3];
    let request = with_token(v1::HandOverRequest::default(), TOKEN);
    let refused = follower.admin().hand_over(request).await.expect_err("it does not lead");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().ends_with(&service.replicas[leader].client_address()), "{refused}");
}

#[tokio::test]
async fn hand_over_of_a_single_voter_is_refused() {
    let service = Service::born(1).await;
    let request = with_token(v1::HandOverRequest::default(), TOKEN);
    let refused = service.replicas[0].admin().hand_over(request).await.expect_err("there is nobody else");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.message(), "this service has one voter; there is nobody to hand over to");
}

#[tokio::test]
async fn health_follows_the_majority_and_live_does_not() {
    let mut service = Service::born(3).await;
    eventually("the replica reports that it is ready", || async {
        (health(&service.replicas[0], "lockstep.ready").await == ServingStatus::Serving).then_some(())
    })
    .await;
    service.replicas[1].kill();
    service.replicas[2].kill();
    eventually("the replica reports that it is not ready", || async {
        (health(&service.replicas[0], "").await == ServingStatus::NotServing).then_some(())
    })
    .await;
    assert_eq!(health(&service.replicas[0], "lockstep.live").await, ServingStatus::Serving);
}

#[tokio::test]
async fn metrics_of_a_leader_count_its_requests() {
    let mut service = Service::born(3).await;
    let leader = service.leader().await;
    for index in 0..10 {
        service.replicas[leader].put(&format!("key-{index}"), "value").await.expect("a majority runs");
    }
    service.replicas[leader].get("key-0").await.expect("a majority runs");
    let page = eventually("ten keys are counted", || async {
        let page = metrics(&service.replicas[leader]).await;
        page.contains("lockstep_keys 10\n").then_some(page)
    })
    .await;
    for line in [
        "lockstep_is_leader 1",
        "lockstep_role{role=\"leader\"} 1",
        "lockstep_role{role=\"follower\"} 0",
        "lockstep_ready 1",
        "lockstep_requests_total{kind=\"command\"} 10",
        "lockstep_requests_total{kind=\"read\"} 1",
        "lockstep_commit_seconds_count 10",
        "lockstep_read_seconds_count 1",
        "lockstep_requests_per_sync_sum 10.0",
        "lockstep_peers_connected 2",
        "lockstep_peer_messages_dropped_total 0",
        "# TYPE lockstep_wal_sync_seconds histogram",
        "# EOF",
    ] {
        assert!(page.contains(line), "{line:?} is missing in\n{page}");
    }
}

#[tokio::test]
async fn reflection_lists_what_is_served() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let service = Service::unborn(1).await;
    let mut client = ServerReflectionClient::new(service.replicas[0].channel());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers =
        client.server_reflection_info(futures::stream::iter([request])).await.expect("it is up").into_inner();
    let answer = answers.message().await.expect("an answer").expect("one answer").message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("no list: {answer:?}") };
    let mut names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "lockstep.v1.Admin",
            "lockstep.v1.Client",
            "lockstep.v1.KeyValue"
        ]
    );
}
