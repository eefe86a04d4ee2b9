//! Between generated messages and `lockstep-types`: requests and answers of clients, identities, places in the log.
//!
//! What comes off the wire is checked here once; an error names the field and what it should have been.

use bytes::Bytes;
use lockstep_types::limits::REQUEST_BYTES_MAX;
use lockstep_types::{BlockRef, Command, Digest, Height, Outcome, ReplicaId, ServiceId, SessionId, Slot, View};
use thiserror::Error;

use crate::v1;

/// A message that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// A byte field of a fixed length has another one.
    #[error("{field} has {actual} bytes, not {expected}")]
    Length {
        /// The field.
        field: &'static str,
        /// Bytes that it should have.
        expected: usize,
        /// Bytes that it has.
        actual: usize,
    },
    /// A field that is needed is not there.
    #[error("{field} is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A body above the limit.
    #[error("{field} has {actual} bytes; at most {limit} are taken")]
    TooLarge {
        /// The field.
        field: &'static str,
        /// The limit in bytes.
        limit: usize,
        /// Bytes that it has.
        actual: usize,
    },
    /// More messages in one frame than the limit.
    #[error("a frame holds {actual} {field}; at most {limit} are taken")]
    TooMany {
        /// What there are too many of.
        field: &'static str,
        /// The limit.
        limit: usize,
        /// How many there are.
        actual: usize,
    },
    /// A number that stands for nothing.
    #[error("{field} has the unknown value {value}; the sender may run a newer release")]
    Unknown {
        /// The field.
        field: &'static str,
        /// The number.
        value: i32,
    },
    /// A command that only admin calls put into the log.
    #[error("a {command} command is not for clients; an admin call puts it into the log")]
    NotForClients {
        /// The command.
        command: &'static str,
    },
    /// Canonical bytes in a field that do not decode.
    #[error("{field} does not decode: {error}")]
    Decode {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        error: lockstep_types::DecodeError,
    },
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        tonic::Status::invalid_argument(error.to_string())
    }
}

/// What a [`v1::Request`] asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// To be logged and applied.
    Command(Command),
    /// A linearizable read; changes nothing and is not logged.
    Read {
        /// The request to the state machine.
        body: Bytes,
    },
}

/// What a [`v1::Response`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The log, or for a read the machine, answered. Never [`Outcome::Invalid`] when it comes from the wire: that is
    /// [`Answer::Invalid`] with its text.
    Outcome(Outcome),
    /// The request makes no sense, now or ever. It changed nothing.
    Invalid {
        /// Why.
        reason: String,
    },
    /// Not answered by the log.
    Refused(Refusal),
}

/// Why a request was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind.
    pub reason: v1::refusal::Reason,
    /// For people.
    pub message: String,
    /// This attempt certainly reached no log. If false, it may still be executed.
    pub never_proposed: bool,
    /// Who leads, if that is known.
    pub leader: Option<Leader>,
}

/// A replica and where clients reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The replica.
    pub replica: ReplicaId,
    /// `host:port` of its client API, empty if not known.
    pub address: String,
}

fn array<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], WireError> {
    bytes.try_into().map_err(|_| WireError::Length { field, expected: N, actual: bytes.len() })
}

pub(crate) fn present<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or(WireError::Missing { field })
}

/// Bytes of an identity for the wire.
pub fn id_bytes(id: &[u8; 16]) -> Bytes {
    Bytes::copy_from_slice(id)
}

/// A service's identity, if the field is not empty.
///
/// # Errors
/// Neither empty nor 16 bytes.
pub fn service_id(field: &'static str, bytes: &[u8]) -> Result<Option<ServiceId>, WireError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    array(field, bytes).map(|bytes| Some(ServiceId::from_bytes(bytes)))
}

/// A replica's identity, if the field is not empty.
///
/// # Errors
/// Neither empty nor 16 bytes.
pub fn optional_replica_id(field: &'static str, bytes: &[u8]) -> Result<Option<ReplicaId>, WireError> {
    if bytes.is_empty() { Ok(None) } else { replica_id(field, bytes).map(Some) }
}

/// A replica's identity.
///
/// # Errors
/// Not 16 bytes.
pub fn replica_id(field: &'static str, bytes: &[u8]) -> Result<ReplicaId, WireError> {
    array(field, bytes).map(ReplicaId::from_bytes)
}

/// A digest.
///
/// # Errors
/// Not 32 bytes.
pub fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, WireError> {
    array(field, bytes).map(Digest::from_bytes)
}

/// A digest for the wire.
pub fn digest_bytes(digest: &Digest) -> Bytes {
    Bytes::copy_from_slice(digest.as_bytes())
}

impl From<View> for v1::View {
    fn from(view: View) -> Self {
        v1::View { round: view.round, leader_slot: view.leader.get() }
    }
}

impl From<v1::View> for View {
    fn from(view: v1::View) -> Self {
        View::new(view.round, Slot::new(view.leader_slot))
    }
}

/// A view that must be there.
///
/// # Errors
/// It is not.
pub fn view(field: &'static str, view: Option<v1::View>) -> Result<View, WireError> {
    present(field, view).map(View::from)
}

impl From<BlockRef> for v1::BlockRef {
    fn from(block: BlockRef) -> Self {
        v1::BlockRef { view: Some(block.view.into()), height: block.height.get(), hash: digest_bytes(&block.hash) }
    }
}

/// A block reference that must be there.
///
/// # Errors
/// It is not, it has no view, or its hash is not 32 bytes.
pub fn block_ref(field: &'static str, block: Option<v1::BlockRef>) -> Result<BlockRef, WireError> {
    let block = present(field, block)?;
    Ok(BlockRef {
        view: view(field, block.view)?,
        height: Height::new(block.height),
        hash: digest(field, &block.hash)?,
    })
}

impl From<SessionId> for v1::SessionId {
    fn from(session: SessionId) -> Self {
        v1::SessionId { height: session.height.get(), index: session.index }
    }
}

impl From<v1::SessionId> for SessionId {
    fn from(session: v1::SessionId) -> Self {
        SessionId { height: Height::new(session.height), index: session.index }
    }
}

impl TryFrom<Operation> for v1::request::Operation {
    type Error = WireError;

    /// Refuses [`Command::Snapshot`]: clients have no request for it, `Admin.TakeSnapshot` is the only way.
    fn try_from(operation: Operation) -> Result<Self, WireError> {
        Ok(match operation {
            Operation::Command(Command::OpenSession { nonce }) => {
                v1::request::Operation::OpenSession(v1::OpenSession { nonce: id_bytes(&nonce) })
            }
            Operation::Command(Command::CloseSession { session }) => {
                v1::request::Operation::CloseSession(v1::CloseSession { session: Some(session.into()) })
            }
            Operation::Command(Command::Execute { session, sequence, acknowledged, body }) => {
                v1::request::Operation::Execute(v1::Execute {
                    session: Some(session.into()),
                    sequence,
                    acknowledged,
                    body,
                })
            }
            Operation::Command(Command::Resolve { session, sequence }) => {
                v1::request::Operation::Resolve(v1::Resolve { session: Some(session.into()), sequence })
            }
            Operation::Command(Command::Plain { body }) => v1::request::Operation::Plain(v1::Plain { body }),
            Operation::Command(Command::Snapshot) => return Err(WireError::NotForClients { command: "snapshot" }),
            Operation::Read { body } => v1::request::Operation::Read(v1::Read { body }),
        })
    }
}

/// What a request asks, checked. Its body is within [`REQUEST_BYTES_MAX`].
///
/// # Errors
/// No operation, a nonce of another length than 16, no session where one is needed, a body that is too large.
pub fn operation(operation: Option<v1::request::Operation>) -> Result<Operation, WireError> {
    Ok(match present("operation", operation)? {
        v1::request::Operation::OpenSession(open) => {
            Operation::Command(Command::OpenSession { nonce: array("nonce", &open.nonce)? })
        }
        v1::request::Operation::CloseSession(close) => {
            Operation::Command(Command::CloseSession { session: present("session", close.session)?.into() })
        }
        v1::request::Operation::Execute(execute) => Operation::Command(Command::Execute {
            session: present("session", execute.session)?.into(),
            sequence: execute.sequence,
            acknowledged: execute.acknowledged,
            body: bounded(execute.body)?,
        }),
        v1::request::Operation::Resolve(resolve) => Operation::Command(Command::Resolve {
            session: present("session", resolve.session)?.into(),
            sequence: resolve.sequence,
        }),
        v1::request::Operation::Plain(plain) => Operation::Command(Command::Plain { body: bounded(plain.body)? }),
        v1::request::Operation::Read(read) => Operation::Read { body: bounded(read.body)? },
    })
}

fn bounded(body: Bytes) -> Result<Bytes, WireError> {
    match body.len() {
        0..=REQUEST_BYTES_MAX => Ok(body),
        actual => Err(WireError::TooLarge { field: "request body", limit: REQUEST_BYTES_MAX, actual }),
    }
}

impl From<Outcome> for v1::response::Result {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::SessionOpened { session } => v1::response::Result::SessionOpened(session.into()),
            Outcome::SessionClosed => v1::response::Result::SessionClosed(v1::Empty {}),
            Outcome::Replied { reply } => v1::response::Result::Reply(reply),
            Outcome::Cancelled => v1::response::Result::Cancelled(v1::Empty {}),
            Outcome::Gap { expected } => v1::response::Result::GapExpected(expected),
            Outcome::OverWindow { limit } => v1::response::Result::OverWindowLimit(limit),
            Outcome::AlreadyAcknowledged => v1::response::Result::AlreadyAcknowledged(v1::Empty {}),
            Outcome::Evicted => v1::response::Result::Evicted(v1::Empty {}),
            Outcome::Invalid { reason } => v1::response::Result::Invalid(reason.to_string()),
            // No request of a client has this outcome.
            outcome @ Outcome::SnapshotPoint { .. } => {
                v1::response::Result::Invalid(format!("unexpected outcome: {outcome}"))
            }
        }
    }
}

impl From<Answer> for v1::response::Result {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Outcome(outcome) => outcome.into(),
            Answer::Invalid { reason } => v1::response::Result::Invalid(reason),
            Answer::Refused(refusal) => v1::response::Result::Refusal(refusal.into()),
        }
    }
}

/// The response to the request with this id.
pub fn response(id: u64, answer: impl Into<v1::response::Result>) -> v1::Response {
    v1::Response { id, result: Some(answer.into()) }
}

/// What a response says.
///
/// # Errors
/// No result, or one that a later release sends; a leader's identity of another length than 16.
pub fn answer(result: Option<v1::response::Result>) -> Result<Answer, WireError> {
    Ok(Answer::Outcome(match present("result", result)? {
        v1::response::Result::SessionOpened(session) => Outcome::SessionOpened { session: session.into() },
        v1::response::Result::SessionClosed(v1::Empty {}) => Outcome::SessionClosed,
        v1::response::Result::Reply(reply) => Outcome::Replied { reply },
        v1::response::Result::Cancelled(v1::Empty {}) => Outcome::Cancelled,
        v1::response::Result::GapExpected(expected) => Outcome::Gap { expected },
        v1::response::Result::OverWindowLimit(limit) => Outcome::OverWindow { limit },
        v1::response::Result::AlreadyAcknowledged(v1::Empty {}) => Outcome::AlreadyAcknowledged,
        v1::response::Result::Evicted(v1::Empty {}) => Outcome::Evicted,
        v1::response::Result::Invalid(reason) => return Ok(Answer::Invalid { reason }),
        v1::response::Result::Refusal(refusal) => return Ok(Answer::Refused(refusal.try_into()?)),
    }))
}

impl From<Refusal> for v1::Refusal {
    fn from(refusal: Refusal) -> Self {
        v1::Refusal {
            reason: refusal.reason.into(),
            message: refusal.message,
            never_proposed: refusal.never_proposed,
            leader: refusal.leader.map(v1::LeaderHint::from),
        }
    }
}

impl TryFrom<v1::Refusal> for Refusal {
    type Error = WireError;

    /// A reason that this release does not know counts as none given.
    fn try_from(refusal: v1::Refusal) -> Result<Self, WireError> {
        Ok(Refusal {
            reason: refusal.reason(),
            never_proposed: refusal.never_proposed,
            leader: leader(refusal.leader)?,
            message: refusal.message,
        })
    }
}

impl From<Leader> for v1::LeaderHint {
    fn from(leader: Leader) -> Self {
        v1::LeaderHint { replica_id: id_bytes(leader.replica.as_bytes()), address: leader.address }
    }
}

/// A leader hint, if there is one that names a replica.
///
/// # Errors
/// An identity that is neither empty nor 16 bytes.
pub fn leader(hint: Option<v1::LeaderHint>) -> Result<Option<Leader>, WireError> {
    let Some(hint) = hint else { return Ok(None) };
    let replica = optional_replica_id("leader.replica_id", &hint.replica_id)?;
    Ok(replica.map(|replica| Leader { replica, address: hint.address }))
}
