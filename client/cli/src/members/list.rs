//! `lockstep members list`: the members as the leader knows them; without a leader, as the one who knows most does.

use lockstep_client::{MemberStatus, ReplicaStatus, Role};
use serde_json::{Value, json};

use crate::CliError;
use crate::names::named;
use crate::options::{Output, ServiceOptions, print};
use crate::survey::{self, Row};

/// Asks all replicas and prints what the leader says.
///
/// # Errors
/// No replica answers, or none was born.
pub async fn run(service: &ServiceOptions, output: Output) -> Result<(), CliError> {
    let rows = survey::survey_service(service).await?;
    let born = rows.iter().filter_map(Row::status).filter(|status| status.membership.is_some());
    let knows = survey::leader(&rows).map(|(_, status)| status).or_else(|| born.max_by_key(|status| status.epoch));
    let Some(status) = knows else {
        return Err(CliError::Failed("the replicas have no genesis yet, or read their logs; ask again".to_owned()));
    };
    print(output, table(status, &rows).as_bytes(), value(status, &rows))
}

const COLUMNS: usize = 7;
const HEADER: [&str; COLUMNS] = ["SLOT", "REPLICA", "ADDRESS", "MEMBER", "ACKNOWLEDGED", "LAG", "CONNECTED"];

/// Blocks that the leader has and this member has not acknowledged; none if the one that was asked does not lead.
fn lag(status: &ReplicaStatus, member: &MemberStatus) -> Option<u64> {
    (status.role == Role::Leader).then(|| status.head.above(member.acknowledged))
}

fn table(status: &ReplicaStatus, rows: &[Row]) -> String {
    let service = status.service.map(|service| service.to_string()).unwrap_or_default();
    let mut text = format!("service {service}");
    if let Some(now) = survey::membership(rows) {
        let settled = if now.settled { "settled" } else { "not settled: who left must not go yet" };
        text += &format!("  epoch {}, {settled}", now.configuration.epoch().get());
    }
    text += "\n\n";
    let lines: Vec<[String; COLUMNS]> = [HEADER.map(str::to_owned)]
        .into_iter()
        .chain(status.members.iter().map(|member| cells(status, member, rows)))
        .collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    for line in &lines {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += padded.join("  ").trim_end();
        text.push('\n');
    }
    if status.role != Role::Leader {
        text += "\nno replica leads, so nobody knows who is connected; see `lockstep status`\n";
    }
    text.trim_end().to_owned()
}

fn cells(status: &ReplicaStatus, member: &MemberStatus, rows: &[Row]) -> [String; COLUMNS] {
    let dash = || "-".to_owned();
    let leads = status.role == Role::Leader;
    let connected = match (leads, member.replica == status.replica, member.connected) {
        (false, _, _) => dash(),
        (true, true, _) => "leads".to_owned(),
        (true, false, true) => "yes".to_owned(),
        (true, false, false) => "no".to_owned(),
    };
    let lag = lag(status, member);
    [
        member.slot.to_string(),
        member.replica.to_string()[..8].to_owned(),
        named(member.slot, member.replica, rows).address.unwrap_or_else(dash),
        if member.votes { "voter" } else { "standby" }.to_owned(),
        if leads { member.acknowledged.to_string() } else { dash() },
        lag.map_or_else(dash, |lag| lag.to_string()),
        connected,
    ]
}

fn value(status: &ReplicaStatus, rows: &[Row]) -> Value {
    let leads = status.role == Role::Leader;
    let now = survey::membership(rows);
    let member = |member: &MemberStatus| {
        json!({
            "slot": member.slot.get(),
            "replica": member.replica.to_string(),
            "address": named(member.slot, member.replica, rows).address,
            "votes": member.votes,
            "leads": leads && member.replica == status.replica,
            "acknowledged": leads.then(|| member.acknowledged.get()),
            "lag": lag(status, member),
            "connected": leads.then_some(member.connected),
        })
    };
    let removed = now.into_iter().flat_map(|now| now.configuration.removed());
    let removed = removed.map(|(slot, replica)| json!({"slot": slot.get(), "replica": replica.to_string()}));
    json!({
        "service": status.service.map(|service| service.to_string()),
        "epoch": now.map(|now| now.configuration.epoch().get()),
        "settled": now.map(|now| now.settled),
        "members": status.members.iter().map(member).collect::<Vec<_>>(),
        "removed": removed.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use lockstep_client::SnapshotsStatus;
    use lockstep_types::{Height, ReplicaId, Slot};

    use super::*;
    use crate::survey::tests::row;

    fn leader() -> ReplicaStatus {
        let member = |slot: u8, acknowledged, connected, votes| MemberStatus {
            replica: ReplicaId::from_bytes([slot; 16]),
            slot: Slot::new(u32::from(slot)),
            acknowledged: Height::new(acknowledged),
            connected,
            votes,
        };
        let members = vec![member(1, 30, true, true), member(2, 28, false, true), member(4, 9, true, false)];
        let status = row(1, SnapshotsStatus::default()).answer.expect("it answers");
        ReplicaStatus { role: Role::Leader, members, ..status }
    }

    #[test]
    fn members_are_listed_with_what_the_leader_knows_of_each() {
        let rows = [row(1, SnapshotsStatus::default()), row(4, SnapshotsStatus::default())];
        let expected = "\
service 

SLOT  REPLICA   ADDRESS      MEMBER   ACKNOWLEDGED  LAG  CONNECTED
r1    01010101  host-1:7400  voter    30            0    leads
r2    02020202  -            voter    28            2    no
r4    04040404  host-4:7400  standby  9             21   yes";
        assert_eq!(table(&leader(), &rows), expected);
        let value = value(&leader(), &rows);
        assert_eq!(value["members"][2]["lag"], 21);
        assert_eq!(value["members"][1]["connected"], false);
    }

    #[test]
    fn members_without_a_leader_are_listed_without_what_only_it_knows() {
        let status = ReplicaStatus { role: Role::Follower, ..leader() };
        let text = table(&status, &[]);
        assert!(text.contains("r2    02020202  -        voter    -             -    -"), "{text}");
        assert!(text.ends_with("no replica leads, so nobody knows who is connected; see `lockstep status`"), "{text}");
    }
}
