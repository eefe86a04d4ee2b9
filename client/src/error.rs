//! What a call can end with, other than its reply. An error says whether the request was executed: no, or unknown.

use std::time::Duration;

use lockstep_session::Ticket;
use thiserror::Error;

/// Why a call has no reply.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClientError {
    /// Certainly not executed, and never will be: no attempt reached a log. Safe to call again.
    #[error(
        "no replica took the request within {waited:?}; it was not executed; tried {tried}; \
         is the service Ready? `lockstep status` shows what each replica says"
    )]
    NeverSent {
        /// How long the call waited.
        waited: Duration,
        /// Every endpoint and what it said last.
        tried: String,
    },
    /// A read that nobody answered in time. It changed nothing. Safe to call again.
    #[error(
        "no replica answered the read within {waited:?}; tried {tried}; \
         is the service Ready? `lockstep status` shows what each replica says"
    )]
    Unanswered {
        /// How long the call waited.
        waited: Duration,
        /// Every endpoint and what it said last.
        tried: String,
    },
    /// The request may or may not have been executed. [`Client::resolve`](crate::Client::resolve) asks again.
    #[error(
        "no replica confirmed the request within {waited:?}; it may or may not have been executed; tried {tried}; \
         resolve {ticket} tells, once a majority of replicas answers"
    )]
    Unknown {
        /// The request.
        ticket: Ticket,
        /// How long the call waited.
        waited: Duration,
        /// Every endpoint and what it said last.
        tried: String,
    },
    /// The request may or may not have been executed, and the service no longer knows. It is not sent again.
    #[error(
        "the outcome of {ticket} stays unknown: {reason}; read the state that it would have changed, then decide \
         whether to send it again"
    )]
    Lost {
        /// The request.
        ticket: Ticket,
        /// Why nobody knows.
        reason: String,
    },
    /// Not executed, and never will be: it makes no sense, or its sequence was cancelled.
    #[error("the request was rejected and not executed: {reason}")]
    Rejected {
        /// What is wrong with it.
        reason: String,
    },
    /// The request was executed, but its reply is not one that this release understands.
    #[error("the request was executed, but its reply is not understood: {reason}; is the service a key-value service?")]
    Reply {
        /// What is wrong with the reply.
        reason: String,
    },
    /// An endpoint that is no address.
    #[error("endpoint {endpoint:?} is not host:port: {reason}")]
    Endpoint {
        /// The endpoint as given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No endpoint was given.
    #[error("no endpoint given; name at least one replica or the service as host:port")]
    NoEndpoint,
    /// The client was closed before the request was sent.
    #[error("the client is closed; the request was not sent")]
    Closed,
}

impl ClientError {
    /// Whether the request was certainly not executed and never will be, so that calling again executes it at most once.
    pub fn is_certain(&self) -> bool {
        match self {
            ClientError::NeverSent { .. }
            | ClientError::Unanswered { .. }
            | ClientError::Rejected { .. }
            | ClientError::Endpoint { .. }
            | ClientError::NoEndpoint
            | ClientError::Closed => true,
            ClientError::Unknown { .. } | ClientError::Lost { .. } | ClientError::Reply { .. } => false,
        }
    }
}

/// Why an admin or health call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AdminError {
    /// Nothing answered: no connection, or no answer in time. Whether the call had an effect is unknown; calling again does
    /// no harm.
    #[error("replica {address} does not answer: {reason}")]
    Unreachable {
        /// The address as given.
        address: String,
        /// What went wrong.
        reason: String,
    },
    /// The replica answered with an error.
    #[error("replica {address} refused: {message}")]
    Refused {
        /// The address as given.
        address: String,
        /// The kind: `FailedPrecondition` for another genesis, `Unauthenticated` for a missing or wrong token.
        code: tonic::Code,
        /// Its words.
        message: String,
    },
    /// The replica's answer makes no sense, or the call was wrong from the start.
    #[error("replica {address}: {reason}")]
    Other {
        /// The address as given.
        address: String,
        /// What is wrong.
        reason: String,
    },
}
