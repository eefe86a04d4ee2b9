//! Admin and health calls against a small real server.

mod fake;

use std::time::{Duration, Instant};

use fake::{Replica, Service, TOKEN, genesis, replica_id};
use lockstep_client::{AdminClient, AdminError, Code, Health, Role, health};
use lockstep_types::{Change, Height, Slot};

#[tokio::test]
async fn status_of_a_replica_is_typed() {
    let replica = Replica::start(&Service::new(genesis()), 0);
    let status = AdminClient::connect(&replica.address.to_string(), None).unwrap().status().await.unwrap();
    assert_eq!((status.replica, status.role, status.lag()), (replica_id(0), Role::Leader, 2));
    assert_eq!(status.genesis, Some(genesis()));
    assert_eq!(status.snapshots.newest, Some(Height::new(1)));
    assert!(status.is_ready());
}

#[tokio::test]
async fn genesis_needs_the_token_and_is_idempotent() {
    let replica = Replica::start(&Service::new(genesis()), 0);
    let address = replica.address.to_string();
    let client = AdminClient::connect(&address, Some(TOKEN)).unwrap();
    assert_eq!(client.genesis(&genesis()).await, Ok(false));

    let mut other = genesis();
    other.sessions_max += 1;
    let error = client.genesis(&other).await.unwrap_err();
    assert!(matches!(error, AdminError::Refused { code: Code::FailedPrecondition, .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("replica {address} refused: another genesis is in force"));

    let error = AdminClient::connect(&address, None).unwrap().genesis(&genesis()).await.unwrap_err();
    assert!(matches!(error, AdminError::Refused { code: Code::Unauthenticated, .. }), "{error:?}");
}

#[tokio::test]
async fn hand_over_gives_the_new_leader() {
    let replica = Replica::start(&Service::new(genesis()), 0);
    let client = AdminClient::connect(&replica.address.to_string(), Some(TOKEN)).unwrap();
    assert_eq!(client.hand_over(None).await, Ok(replica_id(1)));
}

#[tokio::test]
async fn take_snapshot_needs_the_token_and_gives_the_height() {
    let replica = Replica::start(&Service::new(genesis()), 0);
    let address = replica.address.to_string();
    let client = AdminClient::connect(&address, Some(TOKEN)).unwrap();
    assert_eq!(client.take_snapshot().await, Ok(Height::new(1)));

    let error = AdminClient::connect(&address, Some("a guess")).unwrap().take_snapshot().await.unwrap_err();
    assert!(matches!(error, AdminError::Refused { code: Code::Unauthenticated, .. }), "{error:?}");
}

#[tokio::test]
async fn join_needs_the_token_and_the_own_slot_and_is_idempotent() {
    let replica = Replica::start(&Service::new(genesis()), 0);
    let address = replica.address.to_string();
    let client = AdminClient::connect(&address, Some(TOKEN)).unwrap();
    assert_eq!(client.join(&genesis(), Slot::new(1)).await, Ok(false));

    let error = client.join(&genesis(), Slot::new(2)).await.unwrap_err();
    assert_eq!(error.to_string(), format!("replica {address} refused: another slot is its own"));
    let error = AdminClient::connect(&address, None).unwrap().join(&genesis(), Slot::new(1)).await.unwrap_err();
    assert!(matches!(error, AdminError::Refused { code: Code::Unauthenticated, .. }), "{error:?}");
}

#[tokio::test]
async fn change_members_gives_the_membership_and_the_slot() {
    let replica = Replica::start(&Service::new(genesis()), 0);
    let address = replica.address.to_string();
    let client = AdminClient::connect(&address, Some(TOKEN)).unwrap();
    let (membership, slot) = client.change_members(Change::AddStandby { replica: replica_id(9) }).await.unwrap();
    assert_eq!((slot, membership.settled), (Slot::new(4), true));
    assert_eq!(membership.configuration.standbys().get(&slot), Some(&replica_id(9)));
    let (membership, slot) = client.change_members(Change::Remove { slot: Slot::new(2) }).await.unwrap();
    assert_eq!((slot, membership.configuration.is_removed(slot)), (Slot::new(2), true));

    let error = client.change_members(Change::Promote { slot: Slot::new(1) }).await.unwrap_err();
    assert!(matches!(error, AdminError::Refused { code: Code::FailedPrecondition, .. }), "{error:?}");
    let client = AdminClient::connect(&address, None).unwrap();
    let error = client.change_members(Change::Remove { slot: Slot::new(2) }).await.unwrap_err();
    assert!(matches!(error, AdminError::Refused { code: Code::Unauthenticated, .. }), "{error:?}");
}

#[tokio::test]
async fn health_of_a_replica_is_serving() {
    let mut replica = Replica::start(&Service::new(genesis()), 0);
    let address = replica.address.to_string();
    assert_eq!(health(&address).await, Ok(Health::Serving));
    replica.kill();
    let error = health(&address).await.unwrap_err();
    assert!(matches!(&error, AdminError::Unreachable { reason, .. } if reason.contains("refused")), "{error}");
}

#[tokio::test]
async fn status_replica_vanished_is_unreachable_in_time() {
    let replica = Replica::start(&Service::new(genesis()), 0);
    let client = AdminClient::connect(&replica.address.to_string(), None).unwrap();
    client.status().await.unwrap();
    replica.vanish();
    let started = Instant::now();
    let error = client.with_timeout(Duration::from_millis(500)).status().await.unwrap_err();
    assert!(matches!(error, AdminError::Unreachable { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn admin_address_malformed_is_told() {
    let error = AdminClient::connect("replica-0", None).unwrap_err();
    assert_eq!(error.to_string(), "replica replica-0: the port is missing; clients use 7400");
}
