//! What clients ask of the log, and what they are told. PROTOCOL §7.

use alloc::vec::Vec;
use core::fmt;

use bytes::Bytes;

use crate::codec::{DecodeError, Reader, Writer};
use crate::ids::Height;
use crate::limits::REQUEST_BYTES_MAX;

/// Where the session was opened: height and index of its [`Command::OpenSession`] in the block. So an unknown session at or
/// below the applied height is provably gone (schedule S6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    /// Height of the block that opened it.
    pub height: Height,
    /// Index of the command in that block.
    pub index: u32,
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}.{}", self.height, self.index)
    }
}

/// One entry of a block: a request in the order that all replicas execute.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Opens a session. The same nonce while the session lives gives the same session (S12e).
    OpenSession {
        /// Random, chosen by the client.
        nonce: [u8; 16],
    },
    /// Ends a session; its replies are forgotten.
    CloseSession {
        /// The session.
        session: SessionId,
    },
    /// Executes `body` exactly once under (`session`, `sequence`).
    Execute {
        /// The session.
        session: SessionId,
        /// From 1, without gaps, executed in order.
        sequence: u64,
        /// Every sequence up to here was answered and may be forgotten. Less than `sequence`.
        acknowledged: u64,
        /// The request to the state machine.
        body: Bytes,
    },
    /// Asks again after an unknown outcome: executed gives the reply, else the sequence is consumed as cancelled (S12b).
    Resolve {
        /// The session.
        session: SessionId,
        /// The sequence whose outcome is unknown.
        sequence: u64,
    },
    /// Executes `body` without a session: at least once, if the caller retries.
    Plain {
        /// The request to the state machine.
        body: Bytes,
    },
    /// Makes the height of its block a snapshot point: every replica takes a snapshot of the state after that block.
    Snapshot,
}

impl Command {
    /// Canonical bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        match self {
            Command::OpenSession { nonce } => out.u8(1).raw(nonce),
            Command::CloseSession { session } => session_fields(out.u8(2), *session),
            Command::Execute { session, sequence, acknowledged, body } => {
                out = Writer::with_capacity(37 + body.len());
                session_fields(out.u8(3), *session).u64(*sequence).u64(*acknowledged).bytes(body)
            }
            Command::Resolve { session, sequence } => session_fields(out.u8(4), *session).u64(*sequence),
            Command::Plain { body } => out.u8(5).bytes(body),
            Command::Snapshot => out.u8(6),
        };
        Bytes::from(out.finish())
    }

    /// Reads canonical bytes; the body shares their buffer.
    ///
    /// # Errors
    /// An unknown tag, truncated or left-over bytes, a body above [`REQUEST_BYTES_MAX`].
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let command = match reader.u8("command")? {
            1 => {
                let mut nonce = [0; 16];
                nonce.copy_from_slice(&reader.raw(16, "nonce")?);
                Command::OpenSession { nonce }
            }
            2 => Command::CloseSession { session: read_session(&mut reader)? },
            3 => Command::Execute {
                session: read_session(&mut reader)?,
                sequence: reader.u64("sequence")?,
                acknowledged: reader.u64("acknowledged")?,
                body: read_body(&mut reader)?,
            },
            4 => Command::Resolve { session: read_session(&mut reader)?, sequence: reader.u64("sequence")? },
            5 => Command::Plain { body: read_body(&mut reader)? },
            6 => Command::Snapshot,
            tag => return Err(DecodeError::UnknownTag { what: "command", tag }),
        };
        reader.finish("command")?;
        Ok(command)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::OpenSession { nonce } => write!(f, "open {:02x}{:02x}", nonce[0], nonce[1]),
            Command::CloseSession { session } => write!(f, "close {session}"),
            Command::Execute { session, sequence, acknowledged, body } => {
                write!(f, "execute {session}/{sequence} acked={acknowledged} {}B", body.len())
            }
            Command::Resolve { session, sequence } => write!(f, "resolve {session}/{sequence}"),
            Command::Plain { body } => write!(f, "plain {}B", body.len()),
            Command::Snapshot => f.write_str("snapshot"),
        }
    }
}

fn session_fields(out: &mut Writer, session: SessionId) -> &mut Writer {
    out.height(session.height).u32(session.index)
}

fn read_session(reader: &mut Reader) -> Result<SessionId, DecodeError> {
    Ok(SessionId { height: reader.height("session height")?, index: reader.u32("session index")? })
}

fn read_body(reader: &mut Reader) -> Result<Bytes, DecodeError> {
    let body = reader.bytes("request body")?;
    match body.len() {
        0..=REQUEST_BYTES_MAX => Ok(body),
        _ => Err(DecodeError::OutOfRange { what: "request body" }),
    }
}

/// What the apply of a committed [`Command`] answers. Every replica computes the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The session, new or the one this nonce opened before.
    SessionOpened {
        /// Its id.
        session: SessionId,
    },
    /// The session ended, now or before.
    SessionClosed,
    /// The request was executed, now or before: the machine's reply.
    Replied {
        /// What the machine answered.
        reply: Bytes,
    },
    /// The sequence was consumed by [`Command::Resolve`] without being executed, and never will be.
    Cancelled,
    /// Not executed, not recorded: sequences below are missing. Send from `expected` on.
    Gap {
        /// The sequence that comes next.
        expected: u64,
    },
    /// Not executed, not recorded: more than the window above what is acknowledged.
    OverWindow {
        /// Sequences that may be in flight.
        limit: u64,
    },
    /// Answered before, acknowledged by the client and forgotten: the client is at fault.
    AlreadyAcknowledged,
    /// The session is gone: closed, or evicted by the replicated rule. Requests in flight stay unknown for good.
    Evicted,
    /// A command that makes no sense. It changed nothing.
    Invalid {
        /// What is wrong.
        reason: Invalid,
    },
    /// The command's height is a snapshot point.
    SnapshotPoint {
        /// That height.
        height: Height,
    },
}

/// What is wrong with a command that got into the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invalid {
    /// The session id lies above this command: it was never opened.
    UnknownSession,
    /// Sequence 0, or acknowledged at or above the sequence.
    Sequence,
    /// The bytes are no command.
    Malformed,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Invalid::UnknownSession => "no such session was ever opened",
            Invalid::Sequence => "a sequence counts from 1 and lies above what is acknowledged",
            Invalid::Malformed => "the bytes are no command of this version",
        })
    }
}

impl Outcome {
    /// Canonical bytes, part of the execution digest.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Outcome::SessionOpened { session } => session_fields(out.u8(1), *session),
            Outcome::SessionClosed => out.u8(2),
            Outcome::Replied { reply } => out.u8(3).bytes(reply),
            Outcome::Cancelled => out.u8(4),
            Outcome::Gap { expected } => out.u8(5).u64(*expected),
            Outcome::OverWindow { limit } => out.u8(6).u64(*limit),
            Outcome::AlreadyAcknowledged => out.u8(7),
            Outcome::Evicted => out.u8(8),
            Outcome::Invalid { reason } => out.u8(9).u8(match reason {
                Invalid::UnknownSession => 1,
                Invalid::Sequence => 2,
                Invalid::Malformed => 3,
            }),
            Outcome::SnapshotPoint { height } => out.u8(10).height(*height),
        };
        out.finish()
    }

    /// Reads canonical bytes; the reply shares their buffer.
    ///
    /// # Errors
    /// An unknown tag, truncated or left-over bytes.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let outcome = match reader.u8("outcome")? {
            1 => Outcome::SessionOpened { session: read_session(&mut reader)? },
            2 => Outcome::SessionClosed,
            3 => Outcome::Replied { reply: reader.bytes("reply")? },
            4 => Outcome::Cancelled,
            5 => Outcome::Gap { expected: reader.u64("expected sequence")? },
            6 => Outcome::OverWindow { limit: reader.u64("window")? },
            7 => Outcome::AlreadyAcknowledged,
            8 => Outcome::Evicted,
            9 => Outcome::Invalid {
                reason: match reader.u8("reason")? {
                    1 => Invalid::UnknownSession,
                    2 => Invalid::Sequence,
                    3 => Invalid::Malformed,
                    tag => return Err(DecodeError::UnknownTag { what: "reason", tag }),
                },
            },
            10 => Outcome::SnapshotPoint { height: reader.height("snapshot point")? },
            tag => return Err(DecodeError::UnknownTag { what: "outcome", tag }),
        };
        reader.finish("outcome")?;
        Ok(outcome)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::SessionOpened { session } => write!(f, "opened {session}"),
            Outcome::SessionClosed => f.write_str("closed"),
            Outcome::Replied { reply } => write!(f, "replied {}B", reply.len()),
            Outcome::Cancelled => f.write_str("cancelled"),
            Outcome::Gap { expected } => write!(f, "gap expected={expected}"),
            Outcome::OverWindow { limit } => write!(f, "over window limit={limit}"),
            Outcome::AlreadyAcknowledged => f.write_str("already acknowledged"),
            Outcome::Evicted => f.write_str("evicted"),
            Outcome::Invalid { reason } => write!(f, "invalid: {reason}"),
            Outcome::SnapshotPoint { height } => write!(f, "snapshot point {height}"),
        }
    }
}
