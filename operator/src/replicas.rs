//! Speaking to replicas. The only module that knows the client library.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use futures::future::join_all;
use lockstep_client::{AdminClient, AdminError, ReplicaStatus, Role, StateDoubt};
use lockstep_types::{Change, Genesis, ReplicaId, Slot};

use crate::build::CLIENT_PORT;
use crate::world::{Diverged, Members, Replica};

/// How long a replica may take to say what it is. It never waits for others, so this is a loaded machine's worth.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// How far behind the leader a standby may be to be promoted, in blocks: well within what a voter may lag.
const NEARLY: u64 = 64;
/// How long ago it may have heard the leader.
const HEARD: Duration = Duration::from_secs(1);

/// The address of the replica in the pod with this address.
pub fn address(pod: &str) -> String {
    match pod.parse() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{CLIENT_PORT}"),
        _ => format!("{pod}:{CLIENT_PORT}"),
    }
}

/// Asks all replicas at once; those that do not answer are left out.
pub async fn ask(addresses: &BTreeMap<usize, String>) -> BTreeMap<usize, Replica> {
    let answers = join_all(addresses.iter().map(async |(ordinal, address)| {
        let client = AdminClient::connect(address, None).map(|client| client.with_timeout(STATUS_TIMEOUT));
        let status = match client {
            Ok(client) => client.status().await,
            Err(error) => Err(error),
        };
        status.inspect_err(|error| tracing::debug!(%error, "no status")).ok().map(|status| (*ordinal, read(status)))
    }));
    answers.await.into_iter().flatten().collect()
}

/// Sends the genesis to all `addresses` at once, idempotently.
pub async fn send_genesis(addresses: &[String], token: &str, genesis: &Genesis) -> Result<(), AdminError> {
    let answers =
        join_all(addresses.iter().map(async |address| {
            AdminClient::connect(address, Some(token))?.genesis(genesis).await.map(|_created| ())
        }));
    answers.await.into_iter().collect()
}

/// Asks the leader at `address` to hand over to `target`; returns once another replica leads.
pub async fn hand_over(address: &str, token: &str, target: ReplicaId) -> Result<(), AdminError> {
    AdminClient::connect(address, Some(token))?.hand_over(Some(target)).await.map(|_leader| ())
}

/// Has the leader at `address` change the members; returns once that has settled. What is so already is well.
pub async fn change_members(address: &str, token: &str, change: Change) -> Result<(), AdminError> {
    AdminClient::connect(address, Some(token))?.change_members(change).await.map(|_members| ())
}

/// Makes the replica at `address` a member in this slot, idempotently.
pub async fn join(address: &str, token: &str, genesis: &Genesis, slot: Slot) -> Result<(), AdminError> {
    AdminClient::connect(address, Some(token))?.join(genesis, slot).await.map(|_created| ())
}

fn read(status: ReplicaStatus) -> Replica {
    let lag = status.lag();
    let known = status.membership.as_ref().is_some_and(|known| known.configuration.slot_of(status.replica).is_some());
    let caught_up = known && lag <= NEARLY && status.leader_heard.is_some_and(|heard| heard <= HEARD);
    let members = status.membership.map(|known| Members { configuration: known.configuration, settled: known.settled });
    let diverged = status.divergence.map(|found| Diverged { over: found.doubt == StateDoubt::Over, text: found.text });
    Replica {
        members,
        caught_up,
        id: status.replica,
        service: status.service,
        genesis: status.genesis,
        leads: status.role == Role::Leader,
        view: status.view,
        not_ready: status.not_ready,
        diverged,
        retired: status.retired.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_of_either_family_has_the_client_port() {
        assert_eq!(address("10.1.2.3"), "10.1.2.3:7400");
        assert_eq!(address("fd00::1"), "[fd00::1]:7400");
    }
}
