//! Asks every replica of a service what it says of itself, also those that only other replicas know of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use lockstep_client::{AdminClient, AdminError, Membership, ReplicaStatus, Role};
use lockstep_types::{ReplicaId, ServiceId};
use tokio::task::JoinSet;

use crate::CliError;
use crate::options::ServiceOptions;

/// A replica answers this at once, or not at all.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// What was asked, and what came back.
pub struct Row {
    /// Where it was asked.
    pub address: String,
    /// Who is there, by its own word or that of the others.
    pub replica: Option<ReplicaId>,
    /// What it says, or why it says nothing.
    pub answer: Result<ReplicaStatus, String>,
}

impl Row {
    /// What it says, if it does.
    pub fn status(&self) -> Option<&ReplicaStatus> {
        self.answer.as_ref().ok()
    }

    /// Its slot if that is known, else its address.
    pub fn name(&self) -> String {
        let slot = self.status().and_then(|status| status.slot);
        slot.map_or_else(|| self.address.clone(), |slot| slot.to_string())
    }
}

/// One row a replica, in the order of slots; those that do not answer last. Each has `timeout` to answer.
///
/// # Errors
/// An endpoint that is not `host:port`.
pub async fn survey(endpoints: &[String], timeout: Duration) -> Result<Vec<Row>, CliError> {
    let (mut addresses, mut rows) = resolve(endpoints).await?;
    let mut told: BTreeMap<ReplicaId, String> = BTreeMap::new();
    while !addresses.is_empty() {
        let mut asking: JoinSet<_> =
            std::mem::take(&mut addresses).into_iter().map(|address| ask(address, timeout)).collect();
        while let Some(asked) = asking.join_next().await {
            let (row, members) = asked.map_err(CliError::failed)?;
            rows.push(row);
            told.extend(members);
        }
        // Members that nobody of those asked so far is, by their identity: one replica has many addresses.
        let known: BTreeSet<ReplicaId> = rows.iter().filter_map(|row| row.replica).collect();
        let asked: BTreeSet<&String> = rows.iter().map(|row| &row.address).collect();
        let is_new =
            |(replica, address): &(&ReplicaId, &String)| !known.contains(*replica) && !asked.contains(*address);
        addresses = told.iter().filter(is_new).map(|(_, address)| address.clone()).collect();
    }
    for row in rows.iter_mut().filter(|row| row.replica.is_none()) {
        row.replica = told.iter().find(|(_, address)| **address == row.address).map(|(replica, _)| *replica);
    }
    dedup(&mut rows);
    Ok(rows)
}

/// The same, where something is to be done with the service: one replica at least answers, and they are of the service that
/// is meant.
///
/// # Errors
/// Nobody answers, or who does is of another service.
pub async fn survey_service(service: &ServiceOptions) -> Result<Vec<Row>, CliError> {
    // One that hangs must leave time for what is to be done.
    let rows = survey(&service.endpoints, service.timeout.min(PATIENCE) / 3).await?;
    answered(&rows, &service.endpoints)?;
    is_meant(&rows, service.service_id)?;
    Ok(rows)
}

/// Whether all that answer are of the service that is meant, if one is.
///
/// # Errors
/// One is of another service, or of none yet.
pub fn is_meant(rows: &[Row], meant: Option<ServiceId>) -> Result<(), CliError> {
    let Some(meant) = meant else { return Ok(()) };
    match rows.iter().find(|row| row.status().is_some_and(|status| status.service != Some(meant))) {
        None => Ok(()),
        Some(row) => Err(CliError::Usage(format!(
            "replica {} is not of service {meant}; check --endpoints and --service-id, `lockstep status` shows the service",
            row.address
        ))),
    }
}

/// Whether anybody answers.
///
/// # Errors
/// Nobody does.
pub fn answered(rows: &[Row], endpoints: &[String]) -> Result<(), CliError> {
    if rows.iter().any(|row| row.answer.is_ok()) {
        return Ok(());
    }
    let endpoints = endpoints.join(",");
    Err(CliError::Failed(format!(
        "no replica of {endpoints} answers; is --endpoints (LOCKSTEP_ENDPOINTS) right, is a pod running?"
    )))
}

/// The one that leads the highest view.
pub fn leader(rows: &[Row]) -> Option<(&Row, &ReplicaStatus)> {
    let answered = rows.iter().filter_map(|row| Some((row, row.status()?)));
    answered.filter(|(_, status)| status.role == Role::Leader).max_by_key(|(_, status)| status.view)
}

/// The same where nothing can be done without one.
///
/// # Errors
/// No replica leads.
pub fn need_leader(rows: &[Row]) -> Result<(&Row, &ReplicaStatus), CliError> {
    leader(rows).ok_or_else(|| {
        let words =
            "no replica leads: a majority of the replicas must be up and reach each other, see `lockstep status`";
        CliError::Failed(words.to_owned())
    })
}

/// The newest membership that is known to be committed, by anybody's word.
pub fn membership(rows: &[Row]) -> Option<&Membership> {
    let known = rows.iter().filter_map(|row| row.status()?.membership.as_ref());
    known.max_by_key(|membership| (membership.configuration.epoch(), membership.settled))
}

/// What a replica is: its role in its view if it votes, else what it is instead.
pub fn part(status: &ReplicaStatus, newest: Option<&Membership>) -> String {
    let Some((slot, now)) = status.slot.zip(newest.map(|newest| &newest.configuration)) else {
        return status.role.to_string();
    };
    if now.is_removed(slot) {
        "removed".to_owned()
    } else if now.standbys().contains_key(&slot) {
        "standby".to_owned()
    } else {
        status.role.to_string()
    }
}

/// All addresses behind the endpoints. A single one keeps its name.
async fn resolve(endpoints: &[String]) -> Result<(Vec<String>, Vec<Row>), CliError> {
    let (mut addresses, mut rows) = (Vec::new(), Vec::new());
    for endpoint in endpoints {
        AdminClient::connect(endpoint, None).map_err(|error| CliError::Usage(error.to_string()))?;
        match tokio::net::lookup_host(endpoint).await {
            Ok(found) => {
                let found: BTreeSet<SocketAddr> = found.collect();
                match found.len() {
                    1 => addresses.push(endpoint.clone()),
                    _ => addresses.extend(found.iter().map(ToString::to_string)),
                }
            }
            Err(error) => {
                let answer = Err(format!("the name does not resolve: {error}"));
                rows.push(Row { address: endpoint.clone(), replica: None, answer });
            }
        }
    }
    Ok((addresses, rows))
}

async fn ask(address: String, timeout: Duration) -> (Row, Vec<(ReplicaId, String)>) {
    let (answer, located) = match AdminClient::connect(&address, None) {
        Ok(client) => {
            let client = client.with_timeout(timeout);
            tokio::join!(client.status(), client.locate())
        }
        Err(error) => (Err(error.clone()), Err(error)),
    };
    let members = located.map(|located| [located.voters, located.standbys].concat()).unwrap_or_default();
    let members = members.into_iter().filter(|member| !member.address.is_empty());
    let answer = answer.map_err(words);
    let replica = answer.as_ref().ok().map(|status| status.replica);
    (Row { address, replica, answer }, members.map(|member| (member.replica, member.address)).collect())
}

/// What a replica said, or why it did not, where its address stands already.
pub fn words(error: AdminError) -> String {
    match error {
        AdminError::Unreachable { reason, .. } | AdminError::Other { reason, .. } => reason,
        AdminError::Refused { message, .. } => message,
    }
}

/// One row a replica, in the order of slots; those that do not answer last.
fn dedup(rows: &mut Vec<Row>) {
    rows.sort_by_key(|row| match &row.answer {
        Ok(status) => (status.slot.is_none(), status.slot, Some(status.replica), row.address.clone()),
        Err(_) => (true, None, None, row.address.clone()),
    });
    rows.sort_by_key(|row| row.answer.is_err());
    rows.dedup_by(|a, b| matches!((&a.answer, &b.answer), (Ok(a), Ok(b)) if a.replica == b.replica));
}

#[cfg(test)]
pub mod tests {
    use lockstep_client::SnapshotsStatus;
    use lockstep_types::{Height, Slot, View};

    use super::*;

    /// A follower that answers.
    pub fn row(slot: u32, snapshots: SnapshotsStatus) -> Row {
        let status = ReplicaStatus {
            retired: None,
            replica: ReplicaId::from_bytes([slot as u8; 16]),
            service: None,
            version: "1.2.3".to_owned(),
            boot: 1,
            role: Role::Follower,
            view: View::new(2, Slot::new(1)),
            slot: Some(Slot::new(slot)),
            epoch: None,
            leader: None,
            head: Height::new(30),
            committed: Height::new(20),
            applied: Height::new(10),
            leader_head: None,
            leader_heard: None,
            not_ready: None,
            genesis: None,
            members: Vec::new(),
            membership: None,
            digest: None,
            state_machine: String::new(),
            uptime: Duration::ZERO,
            snapshots,
            divergence: None,
        };
        Row { address: format!("host-{slot}:7400"), replica: Some(status.replica), answer: Ok(status) }
    }
}
