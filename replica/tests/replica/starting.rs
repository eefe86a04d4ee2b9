//! Why a replica does not start: one line that says what to do, exit code 1, and nothing in the directory is changed.

use std::fs;
use std::net::TcpListener;

use lockstep_wire::limits;

use crate::service::{Replica, Service, TOKEN, genesis, offer};

/// Starts it, expects that it ends with 1, and gives the last line that it wrote.
async fn refusal(replica: &mut Replica) -> String {
    let before = replica.log().len();
    replica.start();
    let status = replica.ended().await;
    assert_eq!(status.code(), Some(1), "{}", replica.log());
    let log = replica.log()[before..].to_owned();
    assert!(!log.contains("panicked"), "{log}");
    log.lines().last().expect("it said something").to_owned()
}

#[tokio::test]
async fn port_that_is_taken_is_named() {
    let mut service = Service::stopped(1);
    let replica = &mut service.replicas[0];
    let ip = replica.ip;
    for (who, port, option) in [
        ("clients", limits::CLIENT_PORT, "--client-listen"),
        ("peers", limits::PEER_PORT, "--peer-listen"),
        ("metrics", limits::METRICS_PORT, "--metrics-listen"),
    ] {
        let _taken = TcpListener::bind((ip, port)).expect("an address of our own");
        assert_eq!(
            refusal(replica).await,
            format!(
                "lockstep replica: failed to listen for {who} on {ip}:{port}: the address is in use; \
                 stop what uses it, or choose another address with {option}"
            )
        );
    }
    assert!(!replica.data.exists(), "no identity is minted by a start that failed");
}

#[tokio::test]
async fn data_directory_that_cannot_be_made_is_named() {
    let mut service = Service::stopped(1);
    let replica = &mut service.replicas[0];
    fs::write(&replica.data, "in the way").expect("a file in a new directory");
    let line = refusal(replica).await;
    let path = replica.data.display();
    assert!(line.starts_with(&format!("lockstep replica: failed to create data directory {path}: ")), "{line}");
    assert!(line.ends_with("choose a directory that this user can create"), "{line}");
}

#[tokio::test]
async fn data_directory_of_a_running_replica_is_refused() {
    let mut service = Service::unborn(1).await;
    let mut other = Service::stopped(1);
    other.replicas[0].option(&format!("--data-dir={}", service.replicas[0].data.display()));
    let line = refusal(&mut other.replicas[0]).await;
    assert!(line.contains("is held by another process; stop that one, or choose another data directory"), "{line}");
    assert!(service.replicas[0].runs());
}

#[tokio::test]
async fn identity_that_is_damaged_is_refused() {
    let mut service = Service::unborn(1).await;
    let replica = &mut service.replicas[0];
    replica.kill();
    let file = replica.data.join("identity");
    let mut bytes = fs::read(&file).expect("it was written");
    bytes[5] ^= 1;
    fs::write(&file, &bytes).expect("our own file");
    let line = refusal(replica).await;
    assert!(line.starts_with("lockstep replica: file identity in the data directory is damaged"), "{line}");
    assert_eq!(fs::read(&file).expect("still there"), bytes);
}

#[tokio::test]
async fn identity_that_is_gone_is_refused() {
    let mut service = Service::born(1).await;
    let replica = &mut service.replicas[0];
    replica.kill();
    fs::remove_file(replica.data.join("identity")).expect("it was written");
    let line = refusal(replica).await;
    assert!(line.contains("but no file identity"), "{line}");
    assert!(line.ends_with("give this replica an empty directory so that it joins as a new replica"), "{line}");
}

#[tokio::test]
async fn log_that_is_damaged_is_refused() {
    let mut service = Service::born(1).await;
    let replica = &mut service.replicas[0];
    for index in 0..20 {
        replica.put(&format!("key-{index}"), "value").await.expect("it leads itself");
    }
    replica.kill();
    let file = replica.data.join("wal-000000000001.log");
    let mut bytes = fs::read(&file).expect("it was written");
    // Within the first batches, far from the end of the log.
    bytes[4096 + 4096 + 300] ^= 1;
    fs::write(&file, &bytes).expect("our own file");
    let line = refusal(replica).await;
    assert!(line.starts_with("lockstep replica: log batch "), "{line}");
    assert!(line.contains("is damaged"), "{line}");
}

#[tokio::test]
async fn log_that_is_gone_is_refused() {
    let mut service = Service::born(1).await;
    let replica = &mut service.replicas[0];
    replica.put("key", "value").await.expect("it leads itself");
    replica.kill();
    for entry in fs::read_dir(&replica.data).expect("it was written") {
        let path = entry.expect("our own directory").path();
        if path.extension().is_some_and(|extension| extension == "log") {
            fs::remove_file(path).expect("our own file");
        }
    }
    let line = refusal(replica).await;
    assert!(line.contains("is gone from the data directory"), "{line}");
}

#[tokio::test]
async fn log_of_another_replica_is_refused() {
    let mut service = Service::unborn(2).await;
    for (index, replica) in service.replicas.iter().enumerate() {
        let me = replica.up().await.replica;
        let genesis = genesis(index as u8 + 1, vec![me]);
        assert!(offer(replica, &genesis, TOKEN).await.expect("a genesis that fits"));
    }
    service.replicas.iter_mut().for_each(Replica::kill);
    let log = "wal-000000000001.log";
    fs::copy(service.replicas[1].data.join(log), service.replicas[0].data.join(log)).expect("our own files");
    let line = refusal(&mut service.replicas[0]).await;
    assert!(line.starts_with(&format!("lockstep replica: log segment {log} belongs to service ")), "{line}");
    assert!(line.ends_with("give this replica its own data directory, or an empty one"), "{line}");
}

#[tokio::test]
async fn disk_that_is_full_stops_the_replica_and_is_named() {
    let mut service = Service::stopped(1);
    if !service.replicas[0].small_disk(30 << 20) {
        eprintln!("skipped: no right to make namespaces, so no small disk");
        return;
    }
    service.replicas[0].start();
    service.give_birth().await;
    service.leader().await;
    let replica = &mut service.replicas[0];
    let value = "v".repeat(1 << 19);
    let mut written = 0;
    while replica.put("key", &value).await.is_ok() {
        written += 1;
        assert!(written < 100, "a disk of 30 MiB takes {written} values of half a MiB");
    }
    assert!(written > 20, "a disk of 30 MiB takes {written} values of half a MiB");
    assert_eq!(replica.ended().await.code(), Some(1));
    let log = replica.log();
    assert_eq!(
        log.lines().last(),
        Some(
            "lockstep replica: no space left for log segment wal-000000000004.log; \
             free space or grow the volume, then restart the replica"
        )
    );
}

#[tokio::test]
async fn token_file_that_is_missing_is_named() {
    let mut service = Service::stopped(1);
    let replica = &mut service.replicas[0];
    replica.option("--admin-token-file=/nowhere/token");
    let line = refusal(replica).await;
    assert!(line.starts_with("lockstep replica: failed to read the admin token from /nowhere/token: "), "{line}");
}

#[tokio::test]
async fn election_shorter_than_four_heartbeats_is_refused() {
    let mut service = Service::stopped(1);
    let replica = &mut service.replicas[0];
    replica.option("--election-ms=100");
    assert_eq!(
        refusal(replica).await,
        "lockstep replica: --election-ms: 100 ms is less than four heartbeats of 50 ms; \
         a slow heartbeat would look like a dead leader"
    );
}
