//! Unary calls: one request, one answer, errors as gRPC status.

use std::time::Duration;

use lockstep_engine::{Answer, Operation};
use lockstep_wire::v1::refusal::Reason;
use lockstep_wire::{Refusal, convert, v1};
use tokio::sync::oneshot;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::clients::{self, explain};
use crate::core::{ClientRequest, ReplyTo};
use crate::process::Process;

/// Metadata of an error: `host:port` of the leader's client API.
const LEADER: &str = "lockstep-leader";
/// Metadata of an error: `true` if the request certainly was not executed.
const NEVER_PROPOSED: &str = "lockstep-never-proposed";

/// Asks the engine and waits for its answer.
pub(super) async fn ask(process: &Process, operation: Operation, timeout: Duration) -> Result<Answer, Status> {
    let stopping = || Status::unavailable("this replica is shutting down; ask another one");
    let running = process.running().ok_or_else(stopping)?;
    let (reply, answer) = oneshot::channel();
    let bytes = clients::bytes_of(&operation);
    let deadline = clients::deadline(process, timeout);
    let request = ClientRequest { operation, deadline, reply: ReplyTo::Call(reply) };
    running.core.requests(vec![request], bytes).await.map_err(|_| stopping())?;
    answer.await.map_err(|_| stopping())
}

/// The response to `Call`.
pub(super) fn response(process: &Process, id: u64, answer: Answer) -> Result<v1::Response, Status> {
    match clients::answer(process, answer) {
        lockstep_wire::Answer::Refused(refusal) => Err(status(refusal)),
        answer => Ok(convert::response(id, answer)),
    }
}

/// Why there is no answer, as the status of a call.
pub(super) fn status(refusal: Refusal) -> Status {
    let code = match refusal.reason {
        Reason::Overloaded => Code::ResourceExhausted,
        Reason::Deadline => Code::DeadlineExceeded,
        Reason::WrongService => Code::FailedPrecondition,
        Reason::Unspecified
        | Reason::NoLeader
        | Reason::LeaderLost
        | Reason::NotStarted
        | Reason::Stopping
        | Reason::Fenced => Code::Unavailable,
    };
    let mut metadata = MetadataMap::new();
    if let Some(leader) = refusal.leader
        && let Ok(address) = MetadataValue::try_from(leader.address)
    {
        metadata.insert(LEADER, address);
    }
    if refusal.never_proposed {
        metadata.insert(NEVER_PROPOSED, MetadataValue::from_static("true"));
    }
    Status::with_metadata(code, refusal.message, metadata)
}

/// An engine's refusal as the status of a call.
pub(super) fn refused(process: &Process, refusal: lockstep_engine::Refusal) -> Status {
    status(explain(process, refusal))
}

/// What the caller gives in `grpc-timeout`, if that can be read.
pub(super) fn grpc_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // At most eight digits, says the specification of gRPC.
    let number: u64 = number.parse().ok().filter(|_| number.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout(text: &'static str) -> Option<Duration> {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", MetadataValue::from_static(text));
        grpc_timeout(&metadata)
    }

    #[test]
    fn grpc_timeout_of_each_unit_is_read() {
        assert_eq!(timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(timeout("3M"), Some(Duration::from_secs(180)));
        assert_eq!(timeout("4S"), Some(Duration::from_secs(4)));
        assert_eq!(timeout("5m"), Some(Duration::from_millis(5)));
        assert_eq!(timeout("6u"), Some(Duration::from_micros(6)));
        assert_eq!(timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
    }

    #[test]
    fn grpc_timeout_that_makes_no_sense_is_ignored() {
        for text in ["", "5", "m", "-1S", "5x", "123456789S"] {
            assert_eq!(timeout(text), None, "{text:?}");
        }
    }

    #[test]
    fn refusal_as_status_says_who_leads() {
        let replica = lockstep_types::ReplicaId::from_bytes([1; 16]);
        let status = status(Refusal {
            reason: Reason::NoLeader,
            message: "no leader".to_owned(),
            never_proposed: true,
            leader: Some(lockstep_wire::Leader { replica, address: "one:7400".to_owned() }),
        });
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.metadata().get(LEADER).expect("it is known"), "one:7400");
        assert_eq!(status.metadata().get(NEVER_PROPOSED).expect("certain"), "true");
    }
}
