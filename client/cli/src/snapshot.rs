//! `lockstep snapshot`: makes a height a snapshot point, and waits until a quorum has the snapshot.

use std::time::Duration;

use clap::Args;
use lockstep_client::{AdminClient, AdminError, Code};
use lockstep_types::Height;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::CliError;
use crate::options::{Output, ServiceOptions, TokenOptions, print};
use crate::survey::{self, Row};

/// Between two looks at what the replicas have.
const LOOK: Duration = Duration::from_millis(50);
/// How long one that does not answer may hold up a look.
const ANSWER: Duration = Duration::from_millis(500);
/// After this long without a quorum it is said what is waited for.
const SILENT: Duration = Duration::from_secs(2);

/// Arguments of `snapshot`.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    #[command(flatten)]
    service: ServiceOptions,
    #[command(flatten)]
    token: TokenOptions,
    /// How to print the result.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Asks any replica for a snapshot point, then waits for the snapshots.
///
/// # Errors
/// No token, nobody takes the call, or no quorum has the snapshot in time.
pub async fn run(args: SnapshotArgs) -> Result<(), CliError> {
    let token = args.token.token()?;
    let started = Instant::now();
    let until = started + args.service.timeout;
    let rows = survey::survey_service(&args.service).await?;
    let height = ask(&rows, &token, until).await?;

    let mut told = false;
    loop {
        let rows = survey::survey(&args.service.endpoints, ANSWER).await?;
        if rows.iter().any(|row| is_agreed(row, height)) {
            let having: Vec<String> = rows.iter().filter(|row| has(row, height)).map(Row::name).collect();
            let text = format!("snapshot at height {height}: a quorum has it ({})", having.join(", "));
            return print(args.output, text.as_bytes(), describe(&rows, height));
        }
        let waits = || rows.iter().map(|row| situation(row, height)).collect::<Vec<_>>().join(", ");
        let now = Instant::now();
        if now >= until {
            return Err(CliError::Failed(format!(
                "height {height} is a snapshot point, but no quorum has that snapshot within {:?}: {}; \
                 the replicas go on by themselves, see `lockstep status`",
                args.service.timeout,
                waits()
            )));
        }
        if !told && now - started >= SILENT {
            told = true;
            eprintln!("lockstep: height {height} is a snapshot point; waiting for a quorum: {}", waits());
        }
        sleep_until(until.min(now + LOOK)).await;
    }
}

/// The first replica that can says the height; the leader is asked first, since the others would ask it.
async fn ask(rows: &[Row], token: &str, until: Instant) -> Result<Height, CliError> {
    let leader = survey::leader(rows).map(|(row, _)| &row.address);
    let others = rows.iter().filter(|row| row.answer.is_ok()).map(|row| &row.address);
    let mut tried = Vec::new();
    for address in leader.into_iter().chain(others.filter(|address| Some(*address) != leader)) {
        let client = AdminClient::connect(address, Some(token)).map_err(CliError::failed)?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            tried.push(format!("{address} (no time is left to ask it)"));
            continue;
        }
        match client.with_timeout(left).take_snapshot().await {
            Ok(height) => return Ok(height),
            Err(error @ AdminError::Refused { code: Code::Unauthenticated, .. }) => {
                return Err(CliError::failed(error));
            }
            Err(error) => tried.push(format!("{address} ({})", survey::words(error))),
        }
    }
    Err(CliError::Failed(format!("no replica took the call; tried {}", tried.join(", "))))
}

fn has(row: &Row, height: Height) -> bool {
    row.status().and_then(|status| status.snapshots.newest).is_some_and(|newest| newest >= height)
}

fn is_agreed(row: &Row, height: Height) -> bool {
    row.status().and_then(|status| status.snapshots.agreed).is_some_and(|agreed| agreed >= height)
}

/// How far one replica is, for people.
fn situation(row: &Row, height: Height) -> String {
    let name = row.name();
    let status = match &row.answer {
        Ok(status) => status,
        Err(reason) => return format!("{name} does not answer ({reason})"),
    };
    let trouble = status.snapshots.trouble.as_ref().map(|trouble| format!(" ({trouble})")).unwrap_or_default();
    match status.snapshots.newest {
        Some(newest) if newest >= height => format!("{name} has it"),
        Some(newest) => format!("{name} has the one at {newest}{trouble}"),
        None => format!("{name} has none{trouble}"),
    }
}

fn describe(rows: &[Row], height: Height) -> Value {
    let replica = |row: &Row| {
        json!({
            "address": row.address,
            "replica": row.replica.map(|replica| replica.to_string()),
            "slot": row.status().and_then(|status| status.slot).map(|slot| slot.get()),
            "has": has(row, height),
        })
    };
    json!({"height": height.get(), "replicas": rows.iter().map(replica).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use lockstep_client::SnapshotsStatus;

    use super::*;
    use crate::survey::tests::row;

    #[test]
    fn snapshot_that_is_waited_for_says_how_far_each_replica_is() {
        let height = Height::new(20);
        let at = |newest: u64| SnapshotsStatus { newest: Some(Height::new(newest)), ..SnapshotsStatus::default() };
        let trouble = Some("failed to write a chunk".to_owned());
        let silent = Row { address: "host-5:7400".to_owned(), replica: None, answer: Err("timed out".to_owned()) };
        for (row, expected) in [
            (row(1, at(20)), "r1 has it"),
            (row(2, at(21)), "r2 has it"),
            (row(3, at(19)), "r3 has the one at 19"),
            (
                row(4, SnapshotsStatus { trouble, ..SnapshotsStatus::default() }),
                "r4 has none (failed to write a chunk)",
            ),
            (silent, "host-5:7400 does not answer (timed out)"),
        ] {
            assert_eq!(situation(&row, height), expected);
            assert_eq!(has(&row, height), expected.ends_with("has it"));
            assert!(!is_agreed(&row, height));
        }
        assert!(is_agreed(&row(1, SnapshotsStatus { agreed: Some(height), ..at(20) }), height));
    }
}
