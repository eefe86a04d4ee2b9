//! Snapshots as seen from outside: asked for, served to a replica that was away for too long, started from.

use lockstep_wire::{ReplicaStatus, v1};
use tonic::Code;

use crate::admin::metrics;
use crate::service::{Service, TOKEN, eventually, with_token};

/// Bytes of blocks between two snapshot points: a few of the values below.
const SNAPSHOT_BYTES: u64 = 64 << 10;

fn newest(status: &ReplicaStatus) -> u64 {
    status.snapshots.newest.map_or(0, |height| height.get())
}

async fn take_snapshot(service: &Service, index: usize) -> u64 {
    let request = with_token(v1::TakeSnapshotRequest {}, TOKEN);
    service.replicas[index].admin().take_snapshot(request).await.expect("a majority runs").into_inner().height
}

/// Writes until the log of this replica begins above a height.
async fn write_until_log_begins_above(service: &Service, index: usize, height: u64) {
    let value = "v".repeat(20_000);
    let mut number = 0;
    loop {
        service.replicas[index].put(&format!("key-{number}"), &value).await.expect("a majority runs");
        number += 1;
        let snapshots = service.replicas[index].up().await.snapshots;
        if snapshots.log_begins_above.get() > height {
            return;
        }
        assert!(number < 2_000, "the log is never cut: {snapshots:?}");
    }
}

#[tokio::test]
async fn replica_away_while_the_log_was_cut_installs_a_snapshot_and_serves() {
    let mut service = Service::born_with(3, |genesis| genesis.snapshot_bytes = SNAPSHOT_BYTES).await;
    let leader = service.leader().await;
    let late = (leader + 1) % 3;
    service.replicas[leader].put("first", "kept").await.expect("a majority runs");
    let missed = service.replicas[late].up().await.head;
    service.replicas[late].kill();
    write_until_log_begins_above(&service, leader, missed.get()).await;
    let head = service.replicas[leader].up().await.head;

    service.replicas[late].start();
    let status = eventually("the replica has installed a snapshot and caught up", || async {
        let status = service.replicas[late].status().await?;
        (status.is_ready() && status.applied >= head && status.snapshots.installed > 0).then_some(status)
    })
    .await;
    assert!(status.snapshots.log_begins_above > missed, "{status:?}");
    assert_eq!(service.replicas[late].get("first").await.expect("a majority runs").as_deref(), Some("kept"));
    let served = eventually("the ones that served it count its chunks", || async {
        let mut served = 0;
        for index in [leader, (leader + 2) % 3] {
            served += service.replicas[index].status().await?.snapshots.chunks_served;
        }
        (served > 0).then_some(served)
    })
    .await;
    assert!(served > 1, "a manifest and a chunk at least, not {served}");
    assert_eq!(service.leader().await, leader, "installing disturbs nobody");

    // It starts from the snapshot, since the log below is gone, and finds the state.
    service.replicas[late].kill();
    service.replicas[late].start();
    let status = eventually("the replica is back", || async {
        let status = service.replicas[late].status().await?;
        (status.is_ready() && status.applied >= head).then_some(status)
    })
    .await;
    assert!(status.snapshots.log_begins_above > missed && status.snapshots.installed == 0, "{status:?}");
    assert_eq!(service.replicas[late].get("first").await.expect("a majority runs").as_deref(), Some("kept"));
}

#[tokio::test]
async fn snapshot_asked_of_any_replica_is_taken_by_all() {
    let mut service = Service::born(3).await;
    let leader = service.leader().await;
    service.replicas[leader].put("key", "value").await.expect("a majority runs");
    let mut before = 0;
    for index in 0..3 {
        assert_eq!(newest(&service.replicas[index].up().await), before);
        let height = take_snapshot(&service, index).await;
        assert!(height > before, "{height} after {before}");
        eventually("all replicas have it and agree", || async {
            for replica in &service.replicas {
                let status = replica.status().await?;
                let agreed = status.snapshots.agreed.is_some_and(|agreed| agreed.get() == height);
                (newest(&status) == height && agreed).then_some(())?;
            }
            Some(())
        })
        .await;
        before = height;
    }
    let lines = [
        format!("lockstep_snapshot_height {before}\n"),
        format!("lockstep_snapshot_agreed_height {before}\n"),
        "lockstep_snapshots_taken_total 3\n".to_owned(),
        "lockstep_snapshots_left_out_total 0\n".to_owned(),
        "lockstep_snapshots_installed_total 0\n".to_owned(),
        "lockstep_snapshots_install_failures_total 0\n".to_owned(),
        "lockstep_snapshot_fetching 0\n".to_owned(),
        "# HELP lockstep_log_begins_above_height ".to_owned(),
        "# HELP lockstep_snapshot_chunks_served ".to_owned(),
    ];
    eventually("metrics say the same", || async {
        let page = metrics(&service.replicas[0]).await;
        lines.iter().all(|line| page.contains(line)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn snapshot_asked_without_the_token_is_refused() {
    let service = Service::born(1).await;
    let replica = &service.replicas[0];
    let none = replica.admin().take_snapshot(v1::TakeSnapshotRequest {}).await.expect_err("no token");
    assert_eq!(none.code(), Code::Unauthenticated);
    assert!(none.message().starts_with("this call needs the service's admin token"), "{none}");
    let guess = with_token(v1::TakeSnapshotRequest {}, "a guess");
    let wrong = replica.admin().take_snapshot(guess).await.expect_err("not the token");
    assert_eq!((wrong.code(), wrong.message()), (Code::Unauthenticated, "this is not the service's admin token"));
    assert_eq!(newest(&replica.up().await), 0);
}

#[tokio::test]
async fn snapshot_asked_without_a_genesis_or_a_majority_is_refused() {
    let unborn = Service::unborn(1).await;
    let request = || with_token(v1::TakeSnapshotRequest {}, TOKEN);
    let refused = unborn.replicas[0].admin().take_snapshot(request()).await.expect_err("nothing is there");
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().starts_with("this replica has no genesis yet"), "{refused}");

    let mut service = Service::born(3).await;
    service.replicas[1].kill();
    service.replicas[2].kill();
    eventually("the last replica notices", || async { service.replicas[0].status().await?.not_ready }).await;
    let refused = service.replicas[0].admin().take_snapshot(request()).await.expect_err("no majority");
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().starts_with("no leader is known: a majority of the replicas must be up"), "{refused}");
}
