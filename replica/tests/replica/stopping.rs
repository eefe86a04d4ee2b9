//! A leader that is told to stop hands over; every replica ends in time and with code 0.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::service::{Service, eventually};
use crate::serving::Stream;

#[tokio::test]
async fn leader_told_to_stop_hands_over_first() {
    let mut service = Service::born(3).await;
    let leader = service.leader().await;
    service.replicas[leader].put("key", "value").await.expect("a majority runs");
    let started = Instant::now();
    service.replicas[leader].signal(Signal::TERM);
    let status = service.replicas[leader].ended().await;
    let took = started.elapsed();
    assert_eq!(status.code(), Some(0));
    let log = service.replicas[leader].log();
    assert!(log.contains("handed over to r"), "no hand-over");
    assert!(took < Duration::from_secs(4), "stopping took {took:?}");
    // The others follow the new leader already: no election time passes.
    let next = service.leader().await;
    assert_ne!(next, leader);
    assert_eq!(service.replicas[next].get("key").await.expect("a majority runs").as_deref(), Some("value"));
}

#[tokio::test]
async fn follower_told_to_stop_ends_without_a_hand_over() {
    let mut service = Service::born(3).await;
    let leader = service.leader().await;
    let view = service.replicas[leader].up().await.view;
    let follower = (leader + 1) % 3;
    service.replicas[follower].signal(Signal::TERM);
    assert_eq!(service.replicas[follower].ended().await.code(), Some(0));
    assert_eq!(service.leader().await, leader);
    assert_eq!(service.replicas[leader].up().await.view, view);
}

#[tokio::test]
async fn replica_told_to_stop_ends_the_streams_of_its_clients() {
    let mut service = Service::born(3).await;
    let leader = service.leader().await;
    let mut stream = Stream::open(&service.replicas[leader]).await;
    stream.open_session(1).await;
    service.replicas[leader].signal(Signal::TERM);
    let ended = loop {
        match stream.answers.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended as if all were said"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), tonic::Code::Unavailable, "{ended}");
    assert_eq!(ended.message(), "this replica is shutting down; ask another one");
    assert_eq!(service.replicas[leader].ended().await.code(), Some(0));
}

#[tokio::test]
async fn replica_without_genesis_told_to_stop_ends_at_once() {
    let mut service = Service::unborn(1).await;
    service.replicas[0].signal(Signal::INT);
    assert_eq!(service.replicas[0].ended().await.code(), Some(0));
}

#[tokio::test]
async fn single_replica_told_to_stop_keeps_its_data() {
    let mut service = Service::born(1).await;
    service.replicas[0].put("key", "value").await.expect("it leads itself");
    service.replicas[0].signal(Signal::TERM);
    assert_eq!(service.replicas[0].ended().await.code(), Some(0));
    service.replicas[0].start();
    service.leader().await;
    assert_eq!(service.replicas[0].get("key").await.expect("it leads itself").as_deref(), Some("value"));
}

#[tokio::test]
async fn replica_whose_parent_is_gone_ends() {
    let mut service = Service::stopped(1);
    // Never a parent of ours.
    service.replicas[0].option("--parent-pid=1");
    service.replicas[0].start();
    assert_eq!(service.replicas[0].ended().await.code(), Some(1));
    eventually("it says why", || async {
        service.replicas[0].log().contains("which started this replica, is gone").then_some(())
    })
    .await;
}
