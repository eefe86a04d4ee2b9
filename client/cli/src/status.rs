//! `lockstep status`: what each replica says about itself, and which ones say nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use lockstep_client::{AdminClient, AdminError, ReplicaStatus};
use lockstep_types::ReplicaId;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::CliError;
use crate::options::{Output, ServiceOptions};

/// A replica answers this at once, or not at all.
const PATIENCE: Duration = Duration::from_secs(3);

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    service: ServiceOptions,
    /// How to print the result.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// What was asked, and what came back.
struct Row {
    address: String,
    answer: Result<ReplicaStatus, String>,
}

/// Asks every replica, also those that only other replicas know of.
///
/// # Errors
/// No replica answers.
pub async fn run(args: StatusArgs) -> Result<(), CliError> {
    let timeout = args.service.timeout.min(PATIENCE);
    let (mut addresses, mut rows) = resolve(&args.service.endpoints).await?;
    let mut told = BTreeMap::new();
    while !addresses.is_empty() {
        let mut asking: JoinSet<_> =
            std::mem::take(&mut addresses).into_iter().map(|address| ask(address, timeout)).collect();
        while let Some(asked) = asking.join_next().await {
            let (row, voters) = asked.map_err(CliError::failed)?;
            rows.push(row);
            told.extend(voters);
        }
        // Voters that nobody of those asked so far is, by their identity: one replica has many addresses.
        let known: BTreeSet<ReplicaId> =
            rows.iter().filter_map(|row| row.answer.as_ref().ok()).map(|s| s.replica).collect();
        let asked: BTreeSet<&String> = rows.iter().map(|row| &row.address).collect();
        let is_new =
            |(replica, address): &(&ReplicaId, &String)| !known.contains(*replica) && !asked.contains(*address);
        addresses = told.iter().filter(is_new).map(|(_, address)| address.clone()).collect();
    }
    dedup(&mut rows);

    let text = match args.output {
        Output::Text => table(&rows),
        Output::Json => format!("{}\n", Value::Array(rows.iter().map(value).collect())),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    if rows.iter().all(|row| row.answer.is_err()) {
        let endpoints = args.service.endpoints.join(",");
        let words =
            format!("no replica of {endpoints} answers; is --endpoints (LOCKSTEP_ENDPOINTS) right, is a pod running?");
        return Err(CliError::Failed(words));
    }
    Ok(())
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
                rows.push(Row { address: endpoint.clone(), answer });
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
    let voters = located.map(|located| located.voters).unwrap_or_default();
    let voters = voters.into_iter().filter(|voter| !voter.address.is_empty());
    let answer = answer.map_err(|error| match error {
        AdminError::Unreachable { reason, .. } | AdminError::Other { reason, .. } => reason,
        AdminError::Refused { message, .. } => message,
    });
    (Row { address, answer }, voters.map(|voter| (voter.replica, voter.address)).collect())
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

const HEADER: [&str; 9] = ["ADDRESS", "REPLICA", "ROLE", "VIEW", "HEAD", "COMMITTED", "APPLIED", "LAG", "READY"];

fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    if let Some(status) = rows.iter().find_map(|row| row.answer.as_ref().ok().filter(|status| status.service.is_some()))
    {
        let service = status.service.map(|service| service.to_string()).unwrap_or_default();
        let epoch = status.epoch.map(|epoch| epoch.to_string()).unwrap_or_default();
        text += &format!("service {service}  {}  epoch {epoch}\n\n", status.state_machine);
    }
    let lines: Vec<[String; 9]> = [HEADER.map(str::to_owned)].into_iter().chain(rows.iter().map(cells)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADER.len()).map(width).collect();
    for line in &lines {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += padded.join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn cells(row: &Row) -> [String; 9] {
    let status = match &row.answer {
        Ok(status) => status,
        Err(reason) => {
            let dash = || "-".to_owned();
            let why = format!("does not answer: {reason}");
            return [row.address.clone(), dash(), dash(), dash(), dash(), dash(), dash(), dash(), why];
        }
    };
    let slot = status.slot.map(|slot| format!("{slot} ")).unwrap_or_default();
    let replica = status.replica.to_string();
    let ready = match &status.not_ready {
        None => "yes".to_owned(),
        Some(reason) => format!("no: {reason}"),
    };
    [
        row.address.clone(),
        format!("{slot}{}", &replica[..8]),
        status.role.to_string(),
        status.view.to_string(),
        status.head.to_string(),
        status.committed.to_string(),
        status.applied.to_string(),
        status.lag().to_string(),
        ready,
    ]
}

fn value(row: &Row) -> Value {
    let status = match &row.answer {
        Ok(status) => status,
        Err(error) => return json!({"address": row.address, "error": error}),
    };
    json!({
        "address": row.address,
        "replica": status.replica.to_string(),
        "service": status.service.map(|service| service.to_string()),
        "version": status.version,
        "boot": status.boot,
        "role": status.role.to_string(),
        "view": {"round": status.view.round, "leader_slot": status.view.leader.get()},
        "slot": status.slot.map(|slot| slot.get()),
        "epoch": status.epoch.map(|epoch| epoch.get()),
        "leader": status.leader.map(|leader| leader.to_string()),
        "head": status.head.get(),
        "committed": status.committed.get(),
        "applied": status.applied.get(),
        "lag": status.lag(),
        "ready": status.is_ready(),
        "not_ready": status.not_ready,
        "state_machine": status.state_machine,
        "uptime_ms": u64::try_from(status.uptime.as_millis()).unwrap_or(u64::MAX),
    })
}
