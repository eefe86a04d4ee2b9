//! From chunks to an executor. The bytes may come from anyone: they are refused, or they are a state.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_types::codec::Reader;
use lockstep_types::limits::SESSION_WINDOW;
use lockstep_types::{Genesis, Height, SessionId};

use super::cutter::{CHUNK_BYTES_MAX, Cutter, Sizes};
use super::error::{Fault, RestoreError};
use super::{CANCELLED, COUNT_MAX, HEAD, Head, Origin, REPLIED, SESSIONS, STORE, session_name};
use crate::executor::{Executor, REPLY_BYTES_MAX};
use crate::machine::{MachineError, StateMachine, by_name};
use crate::sessions::{Answer, Position, Session, Sessions};
use crate::store::{Entries, Store};

/// An executor under way. Takes the chunks of one snapshot in order, one by one; holds the state and nothing else. Once it
/// refused a chunk it refuses everything, in the same words.
#[derive(Debug)]
pub struct Restoring {
    machine: Arc<dyn StateMachine>,
    origin: Origin,
    sizes: Sizes,
    chunks: usize,
    refused: Option<RestoreError>,
    head: Option<Head>,
    /// The kind of the last chunk; 0 before the first.
    kind: u8,
    cutter: Cutter,
    sessions: Sessions,
    last_session: SessionId,
    /// A session whose answers have not all come.
    partial: Option<Partial>,
    entries: Entries,
    last_key: Option<Arc<[u8]>>,
}

#[derive(Debug)]
struct Partial {
    id: SessionId,
    session: Session,
    missing: u32,
}

impl Restoring {
    /// Begins, for the service of this genesis.
    ///
    /// # Errors
    /// A machine that this release does not have.
    pub fn new(genesis: &Genesis) -> Result<Self, MachineError> {
        Ok(Restoring::with_machine(genesis, by_name(&genesis.machine)?))
    }

    /// Begins, with a machine that need not be built in.
    pub fn with_machine(genesis: &Genesis, machine: Arc<dyn StateMachine>) -> Self {
        Restoring::with_sizes(genesis, machine, Sizes::USUAL)
    }

    pub(super) fn with_sizes(genesis: &Genesis, machine: Arc<dyn StateMachine>, sizes: Sizes) -> Self {
        Restoring {
            machine,
            origin: Origin::from(genesis),
            sizes,
            chunks: 0,
            refused: None,
            head: None,
            kind: 0,
            cutter: Cutter::new(sizes),
            sessions: Sessions::new(genesis.sessions_max, genesis.reply_bytes_max),
            last_session: SessionId::default(),
            partial: None,
            entries: Entries::new(),
            last_key: None,
        }
    }

    /// Takes the next chunk. Copies what it keeps.
    ///
    /// # Errors
    /// A chunk that is not the next one of a snapshot of this service; what was refused stays refused.
    pub fn chunk(&mut self, chunk: Bytes) -> Result<(), RestoreError> {
        if let Some(refused) = &self.refused {
            return Err(refused.clone());
        }
        self.take(chunk).map_err(|fault| {
            let error = RestoreError { chunk: self.chunks, fault };
            self.refused = Some(error.clone());
            error
        })?;
        self.chunks += 1;
        Ok(())
    }

    /// The executor, after the last chunk.
    ///
    /// # Errors
    /// Chunks are missing, or one was refused.
    pub fn finish(self) -> Result<Executor, RestoreError> {
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        let missing = |what, found, expected| RestoreError {
            chunk: self.chunks,
            fault: Fault::Missing { what, found, expected },
        };
        let head = self.head.ok_or_else(|| missing("heads", 0, 1))?;
        let [sessions, keys] = [self.sessions.len() as u64, self.entries.len() as u64];
        if sessions != head.sessions {
            return Err(missing("sessions", sessions, head.sessions));
        }
        if keys != head.keys {
            return Err(missing("keys", keys, head.keys));
        }
        Ok(Executor::from_parts(self.machine, head, self.sessions, Store::from(self.entries)))
    }

    fn take(&mut self, chunk: Bytes) -> Result<(), Fault> {
        if chunk.len() > CHUNK_BYTES_MAX {
            return Err(Fault::TooLarge { bytes: chunk.len() });
        }
        let mut reader = Reader::new(chunk);
        let kind = reader.u8("chunk kind")?;
        let head = match (kind, &self.head) {
            (HEAD, None) => {
                self.head = Some(Head::decode(reader, &self.origin)?);
                self.kind = HEAD;
                return Ok(());
            }
            (SESSIONS | STORE, Some(head)) if kind >= self.kind => head,
            (kind, _) => return Err(Fault::Kind { kind }),
        };
        let (applied, sessions, keys) = (head.applied, head.sessions, head.keys);
        if reader.remaining() == 0 {
            return Err(Fault::Empty);
        }
        // The first chunk of a kind begins with the first record; any other where the one before was full.
        let mut follows = kind == self.kind;
        if !follows {
            self.cutter = Cutter::new(self.sizes);
        }
        self.kind = kind;
        if kind == STORE && (self.sessions.len() as u64) < sessions {
            return Err(Fault::Missing { what: "sessions", found: self.sessions.len() as u64, expected: sessions });
        }
        while reader.remaining() > 0 {
            let before = reader.remaining();
            let name = match kind {
                SESSIONS => self.session_record(&mut reader, applied, sessions)?,
                _ => Some(self.entry(&mut reader, keys)?),
            };
            let bytes = before - reader.remaining();
            if self.cutter.is_full(bytes) != follows {
                return Err(Fault::Cut);
            }
            follows = false;
            self.cutter.add(bytes);
            if let Some(name) = name {
                self.cutter.end_entry(&name);
            }
        }
        Ok(())
    }

    /// Reads a session or an answer. Gives the session's name if it is complete now.
    fn session_record(
        &mut self,
        reader: &mut Reader,
        applied: Height,
        expected: u64,
    ) -> Result<Option<Vec<u8>>, Fault> {
        let partial = match self.partial.take() {
            Some(mut partial) => {
                partial.session.answers.push_back(answer(reader)?);
                partial.missing -= 1;
                partial
            }
            None if self.sessions.len() as u64 == expected => return Err(Fault::More { what: "sessions", expected }),
            None => {
                let partial = session(reader, applied)?;
                if partial.id <= self.last_session {
                    return Err(Fault::Order { what: "session" });
                }
                self.last_session = partial.id;
                partial
            }
        };
        if partial.missing > 0 {
            self.partial = Some(partial);
            return Ok(None);
        }
        if !self.sessions.restore(partial.id, partial.session) {
            return Err(Fault::Nonce);
        }
        if self.sessions.reply_bytes() > self.origin.reply_bytes_max {
            return Err(Fault::OutOfRange { what: "sum of all cached replies" });
        }
        Ok(Some(session_name(partial.id)))
    }

    /// Reads a key with its value. Gives the key.
    fn entry(&mut self, reader: &mut Reader, expected: u64) -> Result<Vec<u8>, Fault> {
        if self.entries.len() as u64 == expected {
            return Err(Fault::More { what: "keys", expected });
        }
        let [key, value] = [reader.bytes("key")?, reader.bytes("value")?];
        if key.len() > Store::KEY_BYTES_MAX {
            return Err(Fault::OutOfRange { what: "key length" });
        }
        if value.len() > Store::VALUE_BYTES_MAX {
            return Err(Fault::OutOfRange { what: "value length" });
        }
        if self.last_key.as_deref().is_some_and(|last| *key <= *last) {
            return Err(Fault::Order { what: "key" });
        }
        self.machine.check(&key, &value).map_err(|reason| Fault::Entry { reason })?;
        let owned: Arc<[u8]> = (*key).into();
        self.last_key = Some(owned.clone());
        self.entries.insert(owned, Bytes::copy_from_slice(&value));
        Ok(key.to_vec())
    }
}

/// Reads a session, whose answers are yet to come.
fn session(reader: &mut Reader, applied: Height) -> Result<Partial, Fault> {
    let id = SessionId { height: reader.height("session height")?, index: reader.u32("session index")? };
    let mut nonce = [0; 16];
    nonce.copy_from_slice(&reader.raw(16, "nonce")?);
    let acknowledged = reader.u64("acknowledged sequence")?;
    let last_use = Position { height: reader.height("last use")?, index: reader.u32("last use")? };
    let missing = reader.u32("answer count")?;

    if id.height == Height::ZERO || id.height > applied {
        return Err(Fault::OutOfRange { what: "session height" });
    }
    if u64::from(missing) > SESSION_WINDOW {
        return Err(Fault::OutOfRange { what: "answer count" });
    }
    // A session without a request has no last use; every use leaves an answer that is not acknowledged yet.
    let unused = Position { height: Height::ZERO, index: 0 };
    let opened = Position { height: id.height, index: id.index };
    let last_use = match missing {
        0 if last_use == unused => None,
        1.. if last_use > opened && last_use.height <= applied => Some(last_use),
        _ => return Err(Fault::OutOfRange { what: "last use" }),
    };
    if acknowledged > COUNT_MAX || (missing == 0 && acknowledged > 0) {
        return Err(Fault::OutOfRange { what: "acknowledged sequence" });
    }
    let session = Session { nonce, acknowledged, answers: VecDeque::new(), last_use };
    Ok(Partial { id, session, missing })
}

fn answer(reader: &mut Reader) -> Result<Answer, Fault> {
    match reader.u8("answer")? {
        REPLIED => {
            let reply = reader.bytes("reply")?;
            match reply.len() {
                0..=REPLY_BYTES_MAX => Ok(Answer::Replied(Bytes::copy_from_slice(&reply))),
                _ => Err(Fault::OutOfRange { what: "reply length" }),
            }
        }
        CANCELLED => Ok(Answer::Cancelled),
        tag => Err(lockstep_types::DecodeError::UnknownTag { what: "answer", tag }.into()),
    }
}
