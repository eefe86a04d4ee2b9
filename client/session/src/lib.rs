//! One client session: sequences, retry, fail-over and honest outcomes. PROTOCOL §7, schedules S6 and S12.
//!
//! A pure state machine: [`Session::step`] takes the time and one [`Input`], and answers with [`Action`]s. The client library
//! drives it with real connections, the simulator with simulated ones. No IO, no clock, no randomness but the seed.
//! Not here: connections, addresses, the service id (crate `client`), what a machine makes of a body.
//!
//! Promises:
//! - A body is executed at most once: it keeps its (session, sequence) over all attempts, and is never sent under another
//!   session once an attempt may have reached a log.
//! - Every ticket completes by its deadline. [`Outcome::Rejected`] is said only of what is certainly not executed and never
//!   will be; what is not known is [`Outcome::Unknown`].
//! - An unknown outcome does not block the session: a logged [`Command::Resolve`] settles the sequence in the background, and
//!   [`Input::Resolve`] asks for the result.
//!
//! | module | what it holds |
//! |---|---|
//! | `session` | the state machine |
//! | `answers` | what an answer means for it |
//! | `sending` | what is sent, where and when |
//! | `router` | which replica is asked next, and when |
//! | `window` | sequences in flight and what is acknowledged |

mod answers;
mod random;
mod router;
mod sending;
mod session;
mod window;

use std::fmt;

use bytes::Bytes;
use lockstep_types::{Command, Outcome as LogOutcome};

pub use session::Session;

/// Microseconds on a clock of the caller's that never goes back.
pub type Micros = u64;

/// A request of the application, numbered by the caller; never used twice in one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

/// A replica that can be asked: an index whose meaning is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target(pub u32);

/// One attempt on the wire. Unique within a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u64);

/// What happens to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The replicas that can be asked from now on. A target in use is kept until it fails.
    Targets(Vec<Target>),
    /// This target leads, and can be reached. It may be outside [`Input::Targets`].
    Prefer {
        /// The leader.
        target: Target,
    },
    /// Execute `body` exactly once.
    Submit {
        /// The request.
        ticket: Ticket,
        /// What the machine is asked.
        body: Bytes,
        /// When it completes at the latest.
        deadline: Micros,
    },
    /// Read, linearizably. Needs no session.
    SubmitRead {
        /// The request.
        ticket: Ticket,
        /// What the machine is asked.
        body: Bytes,
        /// When it completes at the latest.
        deadline: Micros,
    },
    /// Complete a ticket again that was [`Outcome::Unknown`], once more is known.
    Resolve {
        /// The request.
        ticket: Ticket,
        /// When to say [`Outcome::Unknown`] again.
        deadline: Micros,
    },
    /// Nobody will ask for the outcome of this ticket.
    Forget {
        /// The request.
        ticket: Ticket,
    },
    /// A replica answered.
    Answered {
        /// The attempt.
        id: AttemptId,
        /// The answer.
        answer: Answer,
    },
    /// The caller did not begin to send these attempts and never will.
    Unsent {
        /// The attempts.
        ids: Vec<AttemptId>,
    },
    /// The connection to a replica broke, or could not be made: its attempts get no answer.
    Disconnected {
        /// The replica.
        target: Target,
        /// Those of its attempts that the caller did not begin to send.
        unsent: Vec<AttemptId>,
    },
    /// Take no more requests, let those under way end, close the session.
    Close {
        /// When to stop waiting.
        deadline: Micros,
    },
    /// Time passed.
    Tick,
}

/// What the caller must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this operation, in the order of the actions.
    Send {
        /// To this replica.
        target: Target,
        /// Under this id.
        id: AttemptId,
        /// How long an answer is of use.
        timeout: Micros,
        /// What to ask.
        operation: Operation,
    },
    /// Tell the application.
    Complete {
        /// Its request.
        ticket: Ticket,
        /// What became of it.
        outcome: Outcome,
    },
    /// Step again at this time at the latest. Replaces what was said before.
    WakeAt(Micros),
    /// The session is closed. Nothing follows.
    Closed,
}

/// What a replica is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// To be logged.
    Command(Command),
    /// A linearizable read.
    Read {
        /// What the machine is asked.
        body: Bytes,
    },
}

/// What a replica answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The log's answer, or for a read the machine's as [`LogOutcome::Replied`].
    Outcome(LogOutcome),
    /// The request makes no sense and changed nothing.
    Invalid {
        /// Why.
        reason: String,
    },
    /// Not answered by the log.
    Refused(Refusal),
}

/// Why a replica did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What to do about it.
    pub kind: RefusalKind,
    /// The attempt certainly reached no log.
    pub never_proposed: bool,
    /// Who leads, if it is known and can be reached.
    pub leader: Option<Target>,
}

/// What a refusal means for the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalKind {
    /// Its queues are full: try the same replica later.
    Overloaded,
    /// It cannot help now: no leader, a change of leader, stopping, not started. Try another.
    Unavailable,
    /// It serves another service, or speaks another protocol. Try another, and this one last.
    Foreign,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was executed exactly once; a read was answered.
    Committed {
        /// The machine's reply.
        reply: Bytes,
    },
    /// Certainly not executed, and never will be.
    Rejected {
        /// Why not.
        reason: Rejection,
    },
    /// It may or may not have been executed, or may still be.
    Unknown {
        /// Why nobody can tell.
        reason: Doubt,
    },
}

/// Why a request was certainly not executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The deadline passed before an attempt could have reached a log.
    NeverProposed,
    /// A read without an answer until the deadline.
    Unanswered,
    /// Its sequence was consumed by a resolve: recorded in the log.
    Cancelled,
    /// It makes no sense.
    Invalid {
        /// Why.
        reason: String,
    },
    /// The session was closed before it was sent.
    Closed,
}

/// Why an outcome is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// Not confirmed by the deadline. It is being resolved: [`Input::Resolve`] tells.
    Unconfirmed,
    /// The session was evicted with the request in flight: unknown for good.
    Evicted,
    /// The ticket was never submitted, was forgotten, or is too old to be remembered: unknown for good.
    Forgotten,
    /// The session was closed with the request in flight: unknown for good.
    Closed,
}

impl Doubt {
    /// Whether [`Input::Resolve`] may tell more.
    pub fn is_resolvable(self) -> bool {
        match self {
            Doubt::Unconfirmed => true,
            Doubt::Evicted | Doubt::Forgotten | Doubt::Closed => false,
        }
    }
}

/// How a session behaves. Durations are in microseconds.
#[derive(Clone, Debug)]
pub struct Options {
    /// Source of nonces and jitter. Must be random, and differ from that of every other client.
    pub seed: [u8; 16],
    /// First delay before another attempt; doubles with each failure.
    pub backoff_min: Micros,
    /// Longest delay before another attempt.
    pub backoff_max: Micros,
    /// How long a replica may take for an answer before another one is asked; grows up to fourfold.
    pub attempt_timeout: Micros,
    /// How long a replica that did not answer is avoided.
    pub cooling: Micros,
    /// After this long without a request, the session may have been evicted: it is asked for before it is used.
    pub idle: Micros,
    /// Attempts under way at most; reads wait beyond it.
    pub attempts_max: usize,
    /// Outcomes kept for [`Input::Resolve`]; the oldest go first.
    pub remembered_max: usize,
}

impl Options {
    /// The usual values.
    pub fn new(seed: [u8; 16]) -> Self {
        Options {
            seed,
            backoff_min: 10_000,
            backoff_max: 500_000,
            attempt_timeout: 1_000_000,
            cooling: 2_000_000,
            idle: 30_000_000,
            attempts_max: 512,
            remembered_max: 65_536,
        }
    }
}
