//! Requests of clients, over streams and as unary calls. Each is checked, given a deadline, and handed to the core thread; its
//! answer, or why there is none, goes back under the client's own id.

mod key_value;
mod stream;
mod unary;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_consensus::Moment;
use lockstep_engine::{Answer, Operation};
use lockstep_types::{Command, Height, Outcome, ServiceId, Slot};
use lockstep_wire::convert::{self, service_id};
use lockstep_wire::v1::refusal::Reason;
use lockstep_wire::{Refusal, limits, v1};
use tonic::{Request, Response, Status, Streaming};

pub(crate) use key_value::KeyValueService;

use crate::process::{Process, Stage};

/// Bytes that a request counts besides its body.
const REQUEST_OVERHEAD: usize = 128;

/// The general client API.
pub(crate) struct ClientService {
    process: Arc<Process>,
    streams: AtomicU64,
}

impl ClientService {
    pub fn new(process: Arc<Process>) -> Self {
        ClientService { process, streams: AtomicU64::new(0) }
    }
}

#[tonic::async_trait]
impl v1::client_server::Client for ClientService {
    type ExchangeStream = stream::Frames;

    async fn exchange(
        &self,
        request: Request<Streaming<v1::ClientFrame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let number = self.streams.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(stream::serve(Arc::clone(&self.process), number, request.into_inner())))
    }

    async fn call(&self, request: Request<v1::Request>) -> Result<Response<v1::Response>, Status> {
        let limit = unary::grpc_timeout(request.metadata());
        let request = request.into_inner();
        let id = request.id;
        let answer = match prepare(&self.process, request) {
            Prepared::Ask { operation, timeout } => {
                let timeout = limit.map_or(timeout, |limit| limit.min(timeout));
                unary::ask(&self.process, operation, timeout).await?
            }
            Prepared::Refused(refusal) => return Err(unary::status(refusal)),
            Prepared::Invalid(reason) => return Err(Status::invalid_argument(reason)),
        };
        unary::response(&self.process, id, answer).map(Response::new)
    }

    async fn locate(&self, _request: Request<v1::LocateRequest>) -> Result<Response<v1::LocateResponse>, Status> {
        let Some(running) = self.process.running() else { return Ok(Response::new(v1::LocateResponse::default())) };
        let config = running.peers.config();
        let located = |slot: &Slot| running.peers.locate(*slot).map(v1::LeaderHint::from);
        Ok(Response::new(v1::LocateResponse {
            service_id: convert::id_bytes(running.peers.service().as_bytes()),
            leader: self.process.leader().map(v1::LeaderHint::from),
            voters: config.voters().keys().filter_map(located).collect(),
            standbys: config.standbys().keys().filter_map(located).collect(),
        }))
    }
}

/// What a request comes to before the engine sees it.
enum Prepared {
    Ask {
        operation: Operation,
        timeout: Duration,
    },
    /// Another service was meant, or this replica takes no requests now.
    Refused(Refusal),
    /// It makes no sense.
    Invalid(String),
}

fn prepare(process: &Process, request: v1::Request) -> Prepared {
    let meant = match service_id("service_id", &request.service_id) {
        Ok(meant) => meant,
        Err(error) => return Prepared::Invalid(error.to_string()),
    };
    if let Err(refusal) = takes_requests(process, meant) {
        return Prepared::Refused(refusal);
    }
    match convert::operation(request.operation) {
        Ok(operation) => Prepared::Ask { operation: canonical(operation), timeout: timeout_of(request.timeout_ms) },
        Err(error) => Prepared::Invalid(error.to_string()),
    }
}

/// Whether requests for the service that is meant may come now.
fn takes_requests(process: &Process, meant: Option<ServiceId>) -> Result<(), Refusal> {
    let Some(running) = process.running() else {
        let message = "this replica has no genesis yet, or is reading its log; try again, or another replica";
        return Err(process.refuse(Reason::NotStarted, message.to_owned()));
    };
    let ours = running.peers.service();
    if let Some(meant) = meant.filter(|meant| *meant != ours) {
        let message = format!("this replica serves service {ours}, not {meant}; check the address");
        return Err(process.refuse(Reason::WrongService, message));
    }
    if process.stage() >= Stage::Draining {
        return Err(process.refuse(Reason::Stopping, "this replica is shutting down; ask another one".to_owned()));
    }
    Ok(())
}

/// Puts a snapshot point into the log on behalf of an admin call, which was authorized; no request of a client comes to this
/// command. It takes the way of a plain request: proposed here or forwarded, and again if the leader changes, which may make
/// two points of one.
pub(crate) async fn snapshot_point(process: &Process, timeout: Duration) -> Result<Height, Status> {
    takes_requests(process, None).map_err(unary::status)?;
    match unary::ask(process, Operation::Command(Command::Snapshot.encode()), timeout).await? {
        Answer::Outcome(Outcome::SnapshotPoint { height }) => Ok(height),
        Answer::Outcome(outcome) => Err(Status::internal(format!("unexpected outcome: {outcome}"))),
        Answer::Read(_) => Err(Status::internal("unexpected answer: a command was asked, and a read is answered")),
        Answer::Refused(refusal) => Err(unary::refused(process, refusal)),
    }
}

fn canonical(operation: lockstep_wire::Operation) -> Operation {
    match operation {
        lockstep_wire::Operation::Command(command) => Operation::Command(command.encode()),
        lockstep_wire::Operation::Read { body } => Operation::Read(body),
    }
}

fn timeout_of(millis: u32) -> Duration {
    let millis = if millis == 0 { limits::TIMEOUT_MS_DEFAULT } else { millis.min(limits::TIMEOUT_MS_MAX) };
    Duration::from_millis(u64::from(millis))
}

fn deadline(process: &Process, timeout: Duration) -> Moment {
    process.clock.after(timeout)
}

fn bytes_of(operation: &Operation) -> usize {
    match operation {
        Operation::Command(bytes) | Operation::Read(bytes) => REQUEST_OVERHEAD + bytes.len(),
    }
}

/// The engine's answer in the words of the wire.
fn answer(process: &Process, answer: Answer) -> lockstep_wire::Answer {
    match answer {
        Answer::Outcome(outcome) => lockstep_wire::Answer::Outcome(outcome),
        Answer::Read(reply) => lockstep_wire::Answer::Outcome(Outcome::Replied { reply }),
        Answer::Refused(refusal) => lockstep_wire::Answer::Refused(explain(process, refusal)),
    }
}

fn explain(process: &Process, refusal: lockstep_engine::Refusal) -> Refusal {
    let executed = |never_proposed| {
        if never_proposed { "the request was not executed" } else { "the request may still be executed" }
    };
    let (reason, never_proposed, message) = match refusal {
        lockstep_engine::Refusal::Overloaded => (
            Reason::Overloaded,
            true,
            "too many requests wait already; back off, then try again; the request was not executed".to_owned(),
        ),
        lockstep_engine::Refusal::NoLeader { never_proposed } => (
            Reason::NoLeader,
            never_proposed,
            format!(
                "no leader is known: a majority of the replicas must be up and reach each other, see `lockstep status`; {}",
                executed(never_proposed)
            ),
        ),
        lockstep_engine::Refusal::Fenced => (
            Reason::Fenced,
            true,
            "the state of this replica is in doubt, it answers no reads until it is built anew; ask another one"
                .to_owned(),
        ),
        lockstep_engine::Refusal::Deadline { never_proposed } => (
            Reason::Deadline,
            never_proposed,
            format!("no answer within the time that the client gave; {}", executed(never_proposed)),
        ),
    };
    Refusal { reason, message, never_proposed, leader: process.leader() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeout_left_out_or_too_long_is_bounded() {
        assert_eq!(timeout_of(0), Duration::from_secs(10));
        assert_eq!(timeout_of(250), Duration::from_millis(250));
        assert_eq!(timeout_of(u32::MAX), Duration::from_secs(60));
    }
}
