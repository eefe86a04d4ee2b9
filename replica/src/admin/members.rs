//! A change of membership, asked of the leader: proposed once, then waited for until it is settled.
//!
//! Idempotent: what is so already is answered at once, so a caller that heard nothing asks again. Whether a change may be
//! made at all, the rules decide.

use std::time::Duration;

use lockstep_consensus::{ChangeRefusal, Reject};
use lockstep_engine::MembershipStatus;
use lockstep_types::{Change, ChangeError, Slot};
use lockstep_wire::{Membership, convert, v1};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::core::Urgent;
use crate::process::Running;

/// How long a change may take.
const CHANGE: Duration = Duration::from_secs(5);

/// Makes the change and waits until it is settled.
///
/// # Errors
/// This replica does not lead, the change cannot be made, or it does not settle in time.
pub(super) async fn change(
    running: &Running,
    request: v1::ChangeMembersRequest,
) -> Result<v1::ChangeMembersResponse, Status> {
    let change = decode(request)?;
    let until = Instant::now() + CHANGE;
    let mut status = running.core.status.clone();
    let stopping = || Status::unavailable("the replica is shutting down");
    if let Some(done) = done(&running.core.fresh_status().await.membership, &change) {
        return Ok(done);
    }
    let (reply, answer) = oneshot::channel();
    running.core.urgent.send(Urgent::Change(change, reply)).map_err(|_| stopping())?;
    match answer.await.map_err(|_| stopping())? {
        Ok(height) => tracing::info!("proposed at height {height}: {change}"),
        // One that was asked before is on its way: it is waited for, and not refused as what is so already.
        Err(_) if running.core.fresh_status().await.membership.newest.holds(&change) => {}
        Err(reject) => return Err(refused(running, reject)),
    }
    let settled = async {
        loop {
            if let Some(done) = done(&status.borrow_and_update().membership, &change) {
                return Ok(done);
            }
            status.changed().await.map_err(|_| stopping())?;
        }
    };
    timeout_at(until, settled).await.unwrap_or_else(|_| {
        Err(Status::deadline_exceeded(format!(
            "{change}: proposed, and not settled within {CHANGE:?}; it may still come true. Ask again"
        )))
    })
}

/// The answer, if the change is committed and settled.
fn done(now: &MembershipStatus, change: &Change) -> Option<v1::ChangeMembersResponse> {
    if !now.settled || !now.committed.holds(change) {
        return None;
    }
    let slot = match *change {
        Change::AddStandby { replica } => now.committed.slot_of(replica)?,
        Change::Promote { slot } | Change::Remove { slot } => slot,
    };
    let membership = Membership { configuration: now.committed.clone(), height: now.height, settled: now.settled };
    Some(v1::ChangeMembersResponse { membership: Some(membership.into()), slot: slot.get() })
}

fn decode(request: v1::ChangeMembersRequest) -> Result<Change, Status> {
    use v1::change_members_request::Change as Asked;
    match request.change {
        None => Err(Status::invalid_argument("a change names a replica to add, or a slot to promote or remove")),
        Some(Asked::Add(replica)) => Ok(Change::AddStandby { replica: convert::replica_id("add", &replica)? }),
        Some(Asked::Promote(slot)) => Ok(Change::Promote { slot: Slot::new(slot) }),
        Some(Asked::Remove(slot)) => Ok(Change::Remove { slot: Slot::new(slot) }),
    }
}

fn refused(running: &Running, reject: Reject) -> Status {
    let status = running.core.status.borrow();
    match (reject, status.leader) {
        (Reject::Change(why), _) => why_not(why),
        (_, Some(leader)) if leader != status.slot => {
            let hint = running.peers.locate(leader).map(|leader| leader.address).unwrap_or_default();
            Status::failed_precondition(format!("{} does not lead; ask {leader} at {hint}", status.slot))
        }
        (_, Some(_)) => Status::unavailable("the leader is not ready for a change yet; ask again"),
        (_, None) => Status::unavailable("no leader is known; ask again"),
    }
}

/// In words, with the way out. Only what passes by itself is `Unavailable`.
fn why_not(why: ChangeRefusal) -> Status {
    match why {
        ChangeRefusal::Impossible(ChangeError::LastVoter { .. }) => {
            Status::failed_precondition(format!("{why}; add and promote another replica first"))
        }
        ChangeRefusal::Impossible(ChangeError::RemovedIdentity { .. }) => Status::failed_precondition(format!(
            "{why}; give it an empty data directory, so that it joins as a new replica"
        )),
        ChangeRefusal::Impossible(ChangeError::TooManyVoters | ChangeError::TooManyStandbys) => {
            Status::failed_precondition(format!("{why}; remove one that is not needed first"))
        }
        ChangeRefusal::Impossible(
            ChangeError::AlreadyMember { .. }
            | ChangeError::AlreadyVoter { .. }
            | ChangeError::RemovedSlot { .. }
            | ChangeError::UnknownSlot { .. },
        ) => Status::failed_precondition(why.to_string()),
        ChangeRefusal::InFlight { .. } => {
            Status::unavailable(format!("{why}, and they are made one by one; ask again in a moment"))
        }
        ChangeRefusal::Lagging { slot } => Status::failed_precondition(format!(
            "{why}: {slot} must run and acknowledge what the leader sends before it votes; \
             see `lockstep members list`, then ask again"
        )),
        ChangeRefusal::NoQuorumLeft { .. } => Status::failed_precondition(format!(
            "{why}; bring the others back, or add and promote a new replica first, see `lockstep members list`"
        )),
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::{Height, ReplicaId};
    use tonic::Code;

    use super::*;

    #[test]
    fn only_what_passes_by_itself_is_unavailable() {
        let (slot, replica) = (Slot::new(4), ReplicaId::from_bytes([4; 16]));
        let unavailable = why_not(ChangeRefusal::InFlight { height: Height::new(20) });
        assert_eq!(
            (unavailable.code(), unavailable.message()),
            (
                Code::Unavailable,
                "the change at 20 is not committed yet, and they are made one by one; ask again in a moment"
            )
        );
        for (why, words) in [
            (ChangeRefusal::Lagging { slot }, "see `lockstep members list`, then ask again"),
            (ChangeRefusal::NoQuorumLeft { slot, left: 1, needed: 2 }, "add and promote a new replica first"),
            (ChangeRefusal::Impossible(ChangeError::AlreadyMember { replica, slot }), "r4"),
            (ChangeRefusal::Impossible(ChangeError::AlreadyVoter { slot }), "r4"),
            (ChangeRefusal::Impossible(ChangeError::RemovedSlot { slot }), "r4 was removed"),
            (ChangeRefusal::Impossible(ChangeError::RemovedIdentity { replica, slot }), "an empty data directory"),
            (ChangeRefusal::Impossible(ChangeError::UnknownSlot { slot }), "r4 was never given to a replica"),
            (ChangeRefusal::Impossible(ChangeError::LastVoter { slot }), "add and promote another replica first"),
            (ChangeRefusal::Impossible(ChangeError::TooManyVoters), "remove one that is not needed first"),
            (ChangeRefusal::Impossible(ChangeError::TooManyStandbys), "remove one that is not needed first"),
        ] {
            let refused = why_not(why);
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
            assert!(refused.message().contains(words), "{refused}");
        }
    }
}
