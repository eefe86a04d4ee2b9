//! `lockstep status`: what each replica says about itself, and which ones say nothing.

use std::io::Write;

use clap::Args;
use lockstep_client::{Divergence, Membership, SnapshotsStatus, StateDoubt};
use lockstep_types::ReplicaId;
use serde_json::{Value, json};

use crate::CliError;
use crate::options::{Output, ServiceOptions};
use crate::survey::{self, PATIENCE, Row, answered, survey};

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    service: ServiceOptions,
    /// How to print the result.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Asks every replica, also those that only other replicas know of.
///
/// # Errors
/// No replica answers, or one that is not of the service that is meant.
pub async fn run(args: StatusArgs) -> Result<(), CliError> {
    let mut rows = survey(&args.service.endpoints, args.service.timeout.min(PATIENCE)).await?;
    rows.extend(unheard(&rows));
    let text = match args.output {
        Output::Text => table(&rows),
        Output::Json => {
            format!("{}\n", Value::Array(rows.iter().map(|row| value(row, survey::membership(&rows))).collect()))
        }
    };
    std::io::stdout().write_all(text.as_bytes())?;
    answered(&rows, &args.service.endpoints)?;
    survey::is_meant(&rows, args.service.service_id)
}

/// Members of which no address is known, or none that answers: a table without them would hide that they are missing.
fn unheard(rows: &[Row]) -> Vec<Row> {
    let newest = survey::membership(rows);
    let members = newest.into_iter().flat_map(|newest| newest.configuration.members());
    let missing = members.filter(|(_, replica)| rows.iter().all(|row| row.replica != Some(*replica)));
    let row = |(_, replica)| Row {
        address: "-".to_owned(),
        replica: Some(replica),
        answer: Err("no address of it is known".to_owned()),
    };
    missing.map(row).collect()
}

const COLUMNS: usize = 10;
const HEADER: [&str; COLUMNS] =
    ["ADDRESS", "REPLICA", "ROLE", "VIEW", "HEAD", "COMMITTED", "APPLIED", "LAG", "SNAPSHOT", "READY"];

fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let newest = survey::membership(rows);
    if let Some(status) = rows.iter().find_map(|row| row.answer.as_ref().ok().filter(|status| status.service.is_some()))
    {
        let service = status.service.map(|service| service.to_string()).unwrap_or_default();
        text += &format!("service {service}  {}", status.state_machine);
        if let Some(newest) = newest {
            let settled = if newest.settled { "" } else { ", not settled" };
            text += &format!("  epoch {}{settled}", newest.configuration.epoch().get());
        }
        text += "\n\n";
    }
    let lines: Vec<[String; COLUMNS]> =
        [HEADER.map(str::to_owned)].into_iter().chain(rows.iter().map(|row| cells(row, newest))).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADER.len()).map(width).collect();
    for line in &lines {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += padded.join("  ").trim_end();
        text.push('\n');
    }
    let troubles = rows.iter().filter_map(|row| Some((row, row.status()?.snapshots.trouble.as_ref()?)));
    for (index, (row, trouble)) in troubles.enumerate() {
        let apart = if index == 0 { "\n" } else { "" };
        text += &format!("{apart}{} has trouble with snapshots: {trouble}\n", row.name());
    }
    let found = rows.iter().filter_map(|row| Some((row, row.status()?.divergence.as_ref()?)));
    for (index, (row, divergence)) in found.enumerate() {
        let apart = if index == 0 { "\n" } else { "" };
        let says = if divergence.text.starts_with("its ") { ":" } else { "" };
        text += &format!("{apart}{}{says} {}\n", row.name(), divergence.text);
    }
    text
}

/// Height of the newest one, or what is there of one that is being fetched.
fn snapshot(snapshots: &SnapshotsStatus) -> String {
    match (snapshots.fetching, snapshots.newest) {
        (Some(fetch), _) => format!("→{} {}/{}", fetch.height, fetch.chunks, fetch.of),
        (None, Some(newest)) => newest.to_string(),
        (None, None) => "-".to_owned(),
    }
}

fn cells(row: &Row, newest: Option<&Membership>) -> [String; COLUMNS] {
    let status = match &row.answer {
        Ok(status) => status,
        Err(reason) => {
            let dash = || "-".to_owned();
            let why = format!("does not answer: {reason}");
            let name = row.replica.map_or_else(dash, |replica| name(replica, newest));
            return [row.address.clone(), name, dash(), dash(), dash(), dash(), dash(), dash(), dash(), why];
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
        survey::part(status, newest),
        status.view.to_string(),
        status.head.to_string(),
        status.committed.to_string(),
        status.applied.to_string(),
        status.lag().to_string(),
        snapshot(&status.snapshots),
        ready,
    ]
}

/// Slot, if it is a member, and the first digits of the identity.
fn name(replica: ReplicaId, newest: Option<&Membership>) -> String {
    let slot = newest.and_then(|newest| newest.configuration.slot_of(replica));
    let slot = slot.map(|slot| format!("{slot} ")).unwrap_or_default();
    format!("{slot}{}", &replica.to_string()[..8])
}

fn value(row: &Row, newest: Option<&Membership>) -> Value {
    let status = match &row.answer {
        Ok(status) => status,
        Err(error) => {
            let replica = row.replica.map(|replica| replica.to_string());
            return json!({"address": row.address, "replica": replica, "error": error});
        }
    };
    json!({
        "address": row.address,
        "replica": status.replica.to_string(),
        "service": status.service.map(|service| service.to_string()),
        "version": status.version,
        "boot": status.boot,
        "role": survey::part(status, newest),
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
        "snapshots": snapshots_value(&status.snapshots),
        "divergence": status.divergence.as_ref().map(divergence_value),
        "uptime_ms": u64::try_from(status.uptime.as_millis()).unwrap_or(u64::MAX),
    })
}

fn divergence_value(found: &Divergence) -> Value {
    let state = match found.doubt {
        StateDoubt::Over => "over",
        StateDoubt::Open => "open",
        StateDoubt::OpenAgain => "open again",
        StateDoubt::Fenced => "fenced",
        StateDoubt::FencedAgain => "fenced again",
    };
    json!({
        "state": state,
        "block": found.block.get(),
        "exact": found.exact,
        "key": found.key.as_ref().map(|key| String::from_utf8_lossy(key)),
        "witness_slot": found.witness.get(),
        "text": found.text,
    })
}

fn snapshots_value(snapshots: &SnapshotsStatus) -> Value {
    let fetching =
        snapshots.fetching.map(|fetch| json!({"height": fetch.height.get(), "chunks": fetch.chunks, "of": fetch.of}));
    json!({
        "height": snapshots.newest.map(|height| height.get()),
        "agreed_height": snapshots.agreed.map(|height| height.get()),
        "log_begins_above": snapshots.log_begins_above.get(),
        "fetching": fetching,
        "trouble": snapshots.trouble,
        "taken": snapshots.taken,
        "left_out": snapshots.left_out,
        "installed": snapshots.installed,
        "install_failures": snapshots.install_failures,
        "chunks_served": snapshots.chunks_served,
    })
}

#[cfg(test)]
mod tests {
    use lockstep_client::SnapshotFetch;
    use lockstep_types::{Change, Configuration, FaultModel, Genesis, Height, ServiceId, Slot};

    use super::*;
    use crate::survey::tests::row;

    fn rows() -> Vec<Row> {
        let newest = Some(Height::new(7));
        let fetching = Some(SnapshotFetch { height: Height::new(25), chunks: 3, of: 12 });
        let trouble = Some("failed to write snapshot-25: no space left".to_owned());
        vec![
            row(1, SnapshotsStatus { newest, trouble, ..SnapshotsStatus::default() }),
            row(2, SnapshotsStatus { newest, fetching, ..SnapshotsStatus::default() }),
            row(3, SnapshotsStatus::default()),
            Row { address: "host-4:7400".to_owned(), replica: None, answer: Err("timed out".to_owned()) },
        ]
    }

    #[test]
    fn table_shows_the_snapshot_or_what_is_fetched_and_trouble_below() {
        let expected = "\
ADDRESS      REPLICA      ROLE      VIEW  HEAD  COMMITTED  APPLIED  LAG  SNAPSHOT  READY
host-1:7400  r1 01010101  follower  2.1   30    20         10       0    7         yes
host-2:7400  r2 02020202  follower  2.1   30    20         10       0    →25 3/12  yes
host-3:7400  r3 03030303  follower  2.1   30    20         10       0    -         yes
host-4:7400  -            -         -     -     -          -        -    -         does not answer: timed out

r1 has trouble with snapshots: failed to write snapshot-25: no space left
";
        assert_eq!(table(&rows()), expected);
    }

    #[test]
    fn state_that_differs_is_named_below_the_table() {
        let mut rows: Vec<Row> = [1, 2].map(|slot| row(slot, SnapshotsStatus::default())).into();
        let text =
            "is fenced: its state differs from that of a quorum at block 57, key \"a\"; the state is being built anew";
        if let Ok(status) = &mut rows[1].answer {
            status.divergence = Some(Divergence {
                doubt: StateDoubt::Fenced,
                block: Height::new(57),
                exact: true,
                key: Some("a".into()),
                witness: Slot::new(1),
                text: text.to_owned(),
            });
        }
        let table = table(&rows);
        assert_eq!(table.lines().last(), Some(&*format!("r2 {text}")), "{table}");
        let json = value(&rows[1], None);
        assert_eq!((&json["divergence"]["state"], &json["divergence"]["key"]), (&json!("fenced"), &json!("a")));
        assert_eq!(value(&rows[0], None)["divergence"], Value::Null);
    }

    #[test]
    fn member_that_nobody_hears_is_shown_as_missing() {
        let mut rows: Vec<Row> = [1, 2].map(|slot| row(slot, SnapshotsStatus::default())).into();
        let configuration = genesis().configuration();
        if let Ok(status) = &mut rows[0].answer {
            status.membership = Some(Membership { configuration, height: Height::new(0), settled: true });
        }
        rows.extend(unheard(&rows));
        let table = table(&rows);
        let last = table.lines().last().expect("a row for each");
        assert!(last.starts_with("-            r3 03030303  -"), "{table}");
        assert!(last.ends_with("does not answer: no address of it is known"), "{table}");
        assert_eq!(value(&rows[2], None)["replica"], "03".repeat(16));
    }

    #[test]
    fn role_of_a_standby_and_of_a_removed_replica_is_what_they_are() {
        let first = genesis().configuration();
        let next = |now: Configuration, change: &Change| now.apply(change).expect("a change that can be");
        let changes =
            [Change::AddStandby { replica: ReplicaId::from_bytes([4; 16]) }, Change::Remove { slot: Slot::new(2) }];
        let configuration = changes.iter().fold(first, next);
        let newest = Membership { configuration, height: Height::new(9), settled: true };
        let part =
            |slot| survey::part(row(slot, SnapshotsStatus::default()).status().expect("it answers"), Some(&newest));
        assert_eq!([1, 2, 3, 4].map(part), ["follower", "removed", "follower", "standby"]);
    }

    fn genesis() -> Genesis {
        Genesis {
            service: ServiceId::from_bytes([9; 16]),
            fault_model: FaultModel::Crash,
            voters: (1..=3).map(|number| ReplicaId::from_bytes([number; 16])).collect(),
            machine: "KeyValue".to_owned(),
            sessions_max: Genesis::SESSIONS_MAX,
            reply_bytes_max: Genesis::REPLY_BYTES_MAX,
            snapshot_bytes: Genesis::SNAPSHOT_BYTES,
        }
    }

    #[test]
    fn json_holds_all_that_is_known_of_snapshots() {
        let rows = rows();
        let snapshots = &value(&rows[1], None)["snapshots"];
        assert_eq!(snapshots["height"], 7);
        assert_eq!(snapshots["fetching"], json!({"height": 25, "chunks": 3, "of": 12}));
        assert_eq!(value(&rows[0], None)["snapshots"]["trouble"], "failed to write snapshot-25: no space left");
        assert_eq!(value(&rows[2], None)["snapshots"]["agreed_height"], Value::Null);
    }
}
