//! `lockstep members add`, `promote` and `remove`. What is so already is answered at once, so each may be asked again.

use std::time::Duration;

use lockstep_client::{AdminClient, AdminError, Code, MemberStatus, Membership, ReplicaStatus, Role};
use lockstep_types::{Change, Genesis, Height, Slot};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::{AddArgs, ChangeArgs};
use crate::CliError;
use crate::names::{self, Named};
use crate::options::{Output, ServiceOptions, print};
use crate::survey::{self, PATIENCE};

/// Between two looks at the replicas.
const LOOK: Duration = Duration::from_millis(100);
/// After this long it is said what is waited for.
const SILENT: Duration = Duration::from_secs(2);

/// Makes the replica at an address a member, and waits until it has caught up.
pub(super) async fn add(service: &ServiceOptions, output: Output, args: AddArgs) -> Result<(), CliError> {
    let token = args.token.token()?;
    let until = Instant::now() + args.wait;
    let newcomer =
        AdminClient::connect(&args.address, Some(&token)).map_err(|error| CliError::Usage(error.to_string()))?;
    let newcomer = newcomer.with_timeout(service.timeout);
    let found = newcomer.status().await.map_err(|error| {
        CliError::Failed(format!("{error}; start it with an empty data directory and the service's admin token first"))
    })?;
    let rows = survey::survey_service(service).await?;
    let (_, status) = survey::need_leader(&rows)?;
    let genesis = status.genesis.clone().ok_or_else(|| CliError::failed("the leader names no genesis; ask again"))?;
    may_join(&args.address, &found, &genesis)?;

    let add = Change::AddStandby { replica: found.replica };
    let (mut membership, slot) = change(service, &token, add, until).await?;
    newcomer.join(&genesis, slot).await.map_err(CliError::failed)?;
    loop {
        wait_until_caught_up(service, &args, slot, until).await?;
        if !args.voter {
            break;
        }
        match change(service, &token, Change::Promote { slot }, until).await {
            Ok((now, _)) => {
                membership = now;
                break;
            }
            // Another leader has not heard it yet.
            Err(error) if caught_up(service, slot, Height::ZERO).await?.is_some() || Instant::now() >= until => {
                return Err(error);
            }
            Err(_) => {}
        }
    }
    let named = Named { slot, replica: found.replica, address: Some(args.address) };
    done(output, &named, &membership, "")
}

/// Makes a standby a voter.
pub(super) async fn promote(service: &ServiceOptions, output: Output, args: ChangeArgs) -> Result<(), CliError> {
    let token = args.token.token()?;
    let until = Instant::now() + service.timeout;
    let rows = survey::survey_service(service).await?;
    let (_, status) = survey::need_leader(&rows)?;
    let members = names::members(status, &rows);
    let named = names::find("member", &args.replica, &members)?;
    let (membership, _) = change(service, &token, Change::Promote { slot: named.slot }, until).await?;
    done(output, named, &membership, "")
}

/// Removes a member. One that leads hands over first.
pub(super) async fn remove(service: &ServiceOptions, output: Output, args: ChangeArgs) -> Result<(), CliError> {
    let token = args.token.token()?;
    let until = Instant::now() + service.timeout;
    let rows = survey::survey_service(service).await?;
    let (row, status) = survey::need_leader(&rows)?;
    let mut known = names::members(status, &rows);
    // Who is gone already has a name, too, so that it may be asked again.
    let gone = status.membership.iter().flat_map(|now| now.configuration.removed());
    known.extend(gone.map(|(slot, replica)| names::named(*slot, *replica, &rows)));
    let named = names::find("member", &args.replica, &known)?;
    if named.replica == status.replica && names::voters(status, &rows).len() > 1 {
        let leader = AdminClient::connect(&row.address, Some(&token)).map_err(CliError::failed)?;
        if let Err(error) = leader.with_timeout(service.timeout).hand_over(None).await {
            eprintln!("lockstep: {} leads and did not hand over first: {}", named.slot, survey::words(error));
        }
    }
    let (membership, _) = change(service, &token, Change::Remove { slot: named.slot }, until).await?;
    done(output, named, &membership, "; its pod and its volume may go")
}

/// Whether it has no service yet, or this one.
fn may_join(address: &str, found: &ReplicaStatus, genesis: &Genesis) -> Result<(), CliError> {
    match found.service {
        Some(service) if service != genesis.service => Err(CliError::Failed(format!(
            "replica {} at {address} belongs to service {service}, not {}; give it an empty data directory, so that it can \
             join",
            found.replica, genesis.service
        ))),
        Some(_) | None => Ok(()),
    }
}

/// Asks whoever leads, until the change is made and settled, refused, or the time is up.
async fn change(
    service: &ServiceOptions,
    token: &str,
    change: Change,
    until: Instant,
) -> Result<(Membership, Slot), CliError> {
    loop {
        let rows = survey::survey_service(service).await?;
        let said = match survey::need_leader(&rows) {
            Err(error) => error,
            Ok((row, _)) => {
                let client = AdminClient::connect(&row.address, Some(token)).map_err(CliError::failed)?;
                match client.change_members(change).await {
                    Ok(made) => return Ok(made),
                    Err(error) if is_final(&client, &error).await => return Err(CliError::failed(error)),
                    Err(error) => CliError::failed(error),
                }
            }
        };
        let now = Instant::now();
        if now >= until {
            return Err(said);
        }
        sleep_until(until.min(now + LOOK)).await;
    }
}

/// Whether asking again is of no use: the leader, which still leads, refuses for a reason that does not pass by itself.
async fn is_final(client: &AdminClient, error: &AdminError) -> bool {
    match error {
        AdminError::Unreachable { .. }
        | AdminError::Refused { code: Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled, .. } => false,
        AdminError::Refused { code: Code::FailedPrecondition, .. } => {
            client.status().await.is_ok_and(|status| status.role == Role::Leader)
        }
        AdminError::Refused { .. } | AdminError::Other { .. } => true,
    }
}

/// The leader's word on a member, if it has caught up to `head` at least.
async fn caught_up(service: &ServiceOptions, slot: Slot, head: Height) -> Result<Option<MemberStatus>, CliError> {
    let (_, member) = look(service, slot).await?;
    Ok(member.filter(|member| is_caught_up(member, head)))
}

fn is_caught_up(member: &MemberStatus, head: Height) -> bool {
    member.connected && member.acknowledged > Height::ZERO && member.acknowledged >= head
}

/// The leader's head, and its word on a member; nothing while nobody leads.
async fn look(service: &ServiceOptions, slot: Slot) -> Result<(Height, Option<MemberStatus>), CliError> {
    let rows = survey::survey(&service.endpoints, service.timeout.min(PATIENCE) / 3).await?;
    let Some((_, status)) = survey::leader(&rows) else { return Ok((Height::ZERO, None)) };
    Ok((status.head, status.members.iter().find(|member| member.slot == slot).cloned()))
}

/// Until it has acknowledged what the leader had at the first look.
async fn wait_until_caught_up(
    service: &ServiceOptions,
    args: &AddArgs,
    slot: Slot,
    until: Instant,
) -> Result<(), CliError> {
    let started = Instant::now();
    let (mut head, mut member) = look(service, slot).await?;
    let mut told = false;
    loop {
        if member.as_ref().is_some_and(|member| is_caught_up(member, head)) {
            return Ok(());
        }
        let now = Instant::now();
        let state = || situation(slot, member.as_ref(), head);
        if now >= until {
            return Err(CliError::Failed(format!(
                "{slot} at {} is a standby and did not catch up within {:?}: {}; it goes on by itself, ask again or see \
                 `lockstep members list`",
                args.address,
                args.wait,
                state()
            )));
        }
        if !told && now - started >= SILENT {
            told = true;
            eprintln!("lockstep: {slot} is a standby; waiting until it has caught up: {}", state());
        }
        sleep_until(until.min(now + LOOK)).await;
        let (now_head, now_member) = look(service, slot).await?;
        // While nobody led, nothing was known to wait for.
        head = if head == Height::ZERO { now_head } else { head };
        member = now_member;
    }
}

/// How far a standby is, for people.
fn situation(slot: Slot, member: Option<&MemberStatus>, head: Height) -> String {
    match member {
        None => "no replica leads, or the leader does not know it yet".to_owned(),
        Some(member) if member.connected => format!("it has acknowledged height {} of {head}", member.acknowledged),
        Some(_) => format!(
            "the leader does not hear {slot}; it must name the others with --peers, and itself with --advertise-peer if \
             they do not know its address"
        ),
    }
}

/// Says what the replica is now.
fn done(output: Output, named: &Named, now: &Membership, and: &str) -> Result<(), CliError> {
    let configuration = &now.configuration;
    let part = if configuration.voter(named.slot).is_some() {
        "voter"
    } else if configuration.is_removed(named.slot) {
        "removed"
    } else {
        "standby"
    };
    let article = if part == "removed" { "" } else { "a " };
    let (epoch, voters) = (configuration.epoch().get(), configuration.voters().len());
    let noun = if voters == 1 { "voter" } else { "voters" };
    let text = format!("{} is {article}{part}: epoch {epoch}, {voters} {noun}{and}", named.names());
    let value = json!({
        "slot": named.slot.get(),
        "replica": named.replica.to_string(),
        "address": named.address,
        "member": part,
        "epoch": epoch,
        "settled": now.settled,
        "voters": configuration.voters().keys().map(|slot| slot.get()).collect::<Vec<_>>(),
    });
    print(output, text.as_bytes(), value)
}

#[cfg(test)]
mod tests {
    use lockstep_client::SnapshotsStatus;
    use lockstep_types::{FaultModel, ReplicaId, ServiceId};

    use super::*;
    use crate::survey::tests::row;

    #[test]
    fn replica_of_another_service_is_not_added() {
        let genesis = Genesis {
            service: ServiceId::from_bytes([9; 16]),
            fault_model: FaultModel::Crash,
            voters: vec![ReplicaId::from_bytes([1; 16])],
            machine: "KeyValue".to_owned(),
            sessions_max: Genesis::SESSIONS_MAX,
            reply_bytes_max: Genesis::REPLY_BYTES_MAX,
            snapshot_bytes: Genesis::SNAPSHOT_BYTES,
        };
        let blank = row(4, SnapshotsStatus::default()).answer.expect("it answers");
        let of = |service: u8| ReplicaStatus { service: Some(ServiceId::from_bytes([service; 16])), ..blank.clone() };
        assert!(may_join("host-4:7400", &blank, &genesis).is_ok() && may_join("host-4:7400", &of(9), &genesis).is_ok());
        let refused = may_join("host-4:7400", &of(8), &genesis).expect_err("another service");
        let (id, theirs, ours) = ("04".repeat(16), "08".repeat(16), "09".repeat(16));
        assert_eq!(
            refused.to_string(),
            format!(
                "replica {id} at host-4:7400 belongs to service {theirs}, not {ours}; give it an empty data directory, so \
                 that it can join"
            )
        );
    }

    #[test]
    fn standby_that_is_waited_for_says_how_far_it_is() {
        let slot = Slot::new(4);
        let head = Height::new(20);
        let member = |acknowledged, connected| MemberStatus {
            replica: ReplicaId::from_bytes([4; 16]),
            slot,
            acknowledged: Height::new(acknowledged),
            connected,
            votes: false,
        };
        let at = |acknowledged, connected| situation(slot, Some(&member(acknowledged, connected)), head);
        assert_eq!(at(7, true), "it has acknowledged height 7 of 20");
        assert!(at(7, false).starts_with("the leader does not hear r4; it must name the others with --peers"));
        assert_eq!(situation(slot, None, head), "no replica leads, or the leader does not know it yet");
        assert!(!is_caught_up(&member(19, true), head) && !is_caught_up(&member(20, false), head));
        assert!(is_caught_up(&member(20, true), head) && !is_caught_up(&member(0, true), Height::ZERO));
    }
}
