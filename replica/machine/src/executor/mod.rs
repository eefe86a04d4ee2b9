//! What the engine gives committed blocks to: machine, store, sessions and the rolling digest, at one height.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_types::block::HEADER_BYTES_MAX;
use lockstep_types::codec::Writer;
use lockstep_types::limits::REQUEST_BYTES_MAX;
use lockstep_types::{BlockHeader, Command, Digest, Genesis, Height, Invalid, Outcome, SessionId};

use crate::machine::{Context, MachineError, StateMachine, by_name};
use crate::sessions::{Position, Sessions, Verdict};
use crate::snapshot::{Frozen, Head, Origin, RestoreError, Restoring};
use crate::store::Store;

/// Bytes of one reply at most: the largest request and 32 KiB around it. A snapshot holds a cached reply in one piece.
pub const REPLY_BYTES_MAX: usize = REQUEST_BYTES_MAX + (32 << 10);

/// All replicated state above the log, as of one height. A clone goes its own way.
///
/// Invariant: it is a function of the genesis and the blocks applied, whether it applied them or was restored from a
/// snapshot that came of them.
#[derive(Clone, Debug)]
pub struct Executor {
    machine: Arc<dyn StateMachine>,
    origin: Origin,
    store: Store,
    sessions: Sessions,
    applied: Height,
    digest: Digest,
    /// Bytes of blocks applied since the last snapshot point; below the limit.
    since_point: u64,
    counters: Counters,
}

/// What was done since genesis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub executed: u64,
    pub answered_from_table: u64,
    pub evictions: u64,
}

/// What a block did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// One for each command, in order.
    pub outcomes: Vec<Outcome>,
    /// Requests and resolves that were answered as before, without executing anything.
    pub answered_from_table: u32,
    /// Sessions' requests that were executed in this block, in order.
    pub executed: Vec<(SessionId, u64)>,
    /// Sessions that the replicated rule ended after this block.
    pub evicted: Vec<SessionId>,
    /// Whether every replica takes a snapshot of the state after this block: the blocks since the last such point have
    /// reached the genesis' `snapshot_bytes`, or the block holds a [`Command::Snapshot`].
    pub snapshot_point: bool,
}

/// Sizes now, and counters since genesis; both the same on every replica at one height.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Live sessions.
    pub sessions: usize,
    /// Bytes of all cached replies.
    pub reply_bytes: u64,
    /// Keys in the store.
    pub keys: usize,
    /// Counter: requests that the machine executed.
    pub executed: u64,
    /// Counter: requests and resolves that were answered as before.
    pub answered_from_table: u64,
    /// Counter: sessions that the replicated rule ended.
    pub evictions: u64,
}

impl Executor {
    /// The state before the first block.
    ///
    /// # Errors
    /// A machine that this release does not have.
    pub fn new(genesis: &Genesis) -> Result<Self, MachineError> {
        Ok(Executor::with_machine(genesis, by_name(&genesis.machine)?))
    }

    /// The state before the first block, with a machine that need not be built in.
    pub fn with_machine(genesis: &Genesis, machine: Arc<dyn StateMachine>) -> Self {
        Executor {
            machine,
            origin: Origin::from(genesis),
            store: Store::default(),
            sessions: Sessions::new(genesis.sessions_max, genesis.reply_bytes_max),
            applied: Height::ZERO,
            digest: Digest::ZERO,
            since_point: 0,
            counters: Counters::default(),
        }
    }

    /// The state that these chunks, in order, are the snapshot of. See [`Restoring`] to give them one by one.
    ///
    /// # Errors
    /// Chunks that are no snapshot of this service, a machine that this release does not have.
    pub fn restore(genesis: &Genesis, chunks: impl IntoIterator<Item = Bytes>) -> Result<Self, RestoreError> {
        let mut restoring = Restoring::new(genesis).map_err(|error| RestoreError { chunk: 0, fault: error.into() })?;
        for chunk in chunks {
            restoring.chunk(chunk)?;
        }
        restoring.finish()
    }

    pub(crate) fn from_parts(machine: Arc<dyn StateMachine>, head: Head, sessions: Sessions, store: Store) -> Self {
        let Head { origin, applied, digest, since_point, counters, sessions: _, keys: _ } = head;
        Executor { machine, origin, store, sessions, applied, digest, since_point, counters }
    }

    /// The state as it is now, in O(1), to be written down while the executor goes on.
    pub fn freeze(&self) -> Frozen {
        let head = Head {
            origin: self.origin.clone(),
            applied: self.applied,
            digest: self.digest,
            since_point: self.since_point,
            counters: self.counters,
            sessions: self.sessions.len() as u64,
            keys: self.store.len() as u64,
        };
        Frozen::new(head, self.sessions.clone(), self.store.entries())
    }

    /// Executes the next committed block. `hash` is the hash of `header`, `commands` are the parts of its body. Panics if
    /// the block is not the next one; bytes in it never panic.
    pub fn apply(&mut self, header: &BlockHeader, hash: Digest, commands: &[Bytes]) -> Applied {
        assert!(header.height == self.applied.next(), "block {} applied after {}", header.height, self.applied);
        let context = Context {
            height: header.height,
            view: header.view,
            log_time: header.log_time,
            seed: Digest::of_parts(&[b"lockstep seed", hash.as_bytes()]),
        };

        let mut batch = Batch::default();
        let verdicts: Vec<Verdict> = (0..)
            .zip(commands)
            .map(|(index, command)| self.filter(Position { height: header.height, index }, command, &mut batch))
            .collect();

        self.store.begin();
        let replies = self.machine.apply(&context, &batch.requests, &mut self.store);
        assert!(
            replies.len() == batch.requests.len(),
            "machine gave {} replies to {} requests at height {}",
            replies.len(),
            batch.requests.len(),
            header.height
        );
        let largest = replies.iter().map(Bytes::len).max().unwrap_or(0);
        assert!(largest <= REPLY_BYTES_MAX, "machine gave a reply of {largest} bytes at height {}", header.height);
        let replies: Vec<Bytes> = replies.into_iter().map(own).collect();

        let mut executed = Vec::with_capacity(replies.len());
        for (owner, reply) in batch.owners.iter().zip(&replies) {
            if let Some((session, sequence)) = *owner {
                self.sessions.record(session, sequence, reply.clone());
                executed.push((session, sequence));
            }
        }
        let evicted = self.sessions.evict();

        let mut answered_from_table = 0;
        let mut places = replies.iter();
        let outcomes: Vec<Outcome> = verdicts
            .into_iter()
            .map(|verdict| match verdict {
                Verdict::Execute => {
                    Outcome::Replied { reply: places.next().expect("one reply for each request").clone() }
                }
                Verdict::Decided(outcome) => outcome,
                Verdict::Again(outcome) => {
                    answered_from_table += 1;
                    outcome
                }
                Verdict::AgainInBatch(place) => {
                    answered_from_table += 1;
                    Outcome::Replied { reply: replies[place].clone() }
                }
            })
            .collect();

        self.counters.executed += replies.len() as u64;
        self.counters.answered_from_table += u64::from(answered_from_table);
        self.counters.evictions += evicted.len() as u64;
        self.digest = roll(self.digest, hash, self.store.writes(), &outcomes, &evicted);
        self.applied = header.height;
        let snapshot_point = self.count(commands, &outcomes);
        Applied { outcomes, answered_from_table, executed, evicted, snapshot_point }
    }

    /// Counts the bytes of a block towards the next snapshot point. Says whether this is one.
    fn count(&mut self, commands: &[Bytes], outcomes: &[Outcome]) -> bool {
        let body = 4 + commands.iter().map(|command| 4 + command.len()).sum::<usize>();
        let sum = self.since_point.saturating_add((HEADER_BYTES_MAX + body) as u64);
        let asked = outcomes.iter().any(|outcome| matches!(outcome, Outcome::SnapshotPoint { .. }));
        let is_point = asked || sum >= self.origin.snapshot_bytes;
        self.since_point = if is_point { 0 } else { sum };
        is_point
    }

    /// Decides on one command; what is to be executed goes into the batch.
    fn filter(&mut self, at: Position, command: &Bytes, batch: &mut Batch) -> Verdict {
        match Command::decode(command.clone()) {
            Ok(Command::OpenSession { nonce }) => Verdict::Decided(self.sessions.open(at, nonce)),
            Ok(Command::CloseSession { session }) => Verdict::Decided(self.sessions.close(at, session)),
            Ok(Command::Execute { session, sequence, acknowledged, body }) => {
                let verdict = self.sessions.execute(at, session, sequence, acknowledged, batch.requests.len());
                if verdict == Verdict::Execute {
                    batch.push(body, Some((session, sequence)));
                }
                verdict
            }
            Ok(Command::Resolve { session, sequence }) => self.sessions.resolve(at, session, sequence),
            Ok(Command::Plain { body }) => {
                batch.push(body, None);
                Verdict::Execute
            }
            Ok(Command::Snapshot) => Verdict::Decided(Outcome::SnapshotPoint { height: at.height }),
            Err(_) => Verdict::Decided(Outcome::Invalid { reason: Invalid::Malformed }),
        }
    }

    /// Answers a read from the state at [`Executor::applied`]; changes nothing.
    pub fn query(&self, body: &Bytes) -> Bytes {
        self.machine.query(body, &self.store)
    }

    /// Height of the last block applied.
    pub fn applied(&self) -> Height {
        self.applied
    }

    /// The execution digest at [`Executor::applied`]: of all that was executed, written and answered so far. Replicas
    /// compare it (PROTOCOL §9).
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Bytes of blocks, headers and bodies, applied since the last snapshot point: how much a replica would replay. 0 at a
    /// snapshot point.
    pub fn bytes_since_snapshot_point(&self) -> u64 {
        self.since_point
    }

    /// The write set of the last block applied, in canonical bytes, for [`first_difference`](crate::first_difference). Empty
    /// after a restore.
    pub fn writes(&self) -> &[u8] {
        self.store.writes()
    }

    /// The store, to look into.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Sizes and counters.
    pub fn stats(&self) -> Stats {
        Stats {
            sessions: self.sessions.len(),
            reply_bytes: self.sessions.reply_bytes(),
            keys: self.store.len(),
            executed: self.counters.executed,
            answered_from_table: self.counters.answered_from_table,
            evictions: self.counters.evictions,
        }
    }
}

impl fmt::Display for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Executor { applied, digest, sessions, store, .. } = self;
        write!(f, "applied={applied} digest={digest} sessions={} keys={}", sessions.len(), store.len())
    }
}

/// The requests of a block that go to the machine, and whose they are: a session's sequence, or nobody's.
#[derive(Debug, Default)]
struct Batch {
    requests: Vec<Bytes>,
    owners: Vec<Option<(SessionId, u64)>>,
}

impl Batch {
    fn push(&mut self, request: Bytes, owner: Option<(SessionId, u64)>) {
        self.requests.push(request);
        self.owners.push(owner);
    }
}

/// A reply in memory of its own: a machine may answer with a piece of a request, which holds its whole block.
fn own(reply: Bytes) -> Bytes {
    match reply.is_unique() {
        true => reply,
        false => Bytes::copy_from_slice(&reply),
    }
}

/// The next execution digest. The write set comes with its length, the lists with their counts, so that no two different
/// executions hash the same bytes.
fn roll(previous: Digest, block: Digest, writes: &[u8], outcomes: &[Outcome], evicted: &[SessionId]) -> Digest {
    let mut answers = Writer::default();
    answers.u32(count(outcomes));
    for outcome in outcomes {
        answers.bytes(&outcome.encode());
    }
    answers.u32(count(evicted));
    for session in evicted {
        answers.height(session.height).u32(session.index);
    }
    let length = (writes.len() as u64).to_le_bytes();
    Digest::of_parts(&[previous.as_bytes(), block.as_bytes(), &length, writes, &answers.finish()])
}

fn count<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).expect("a block holds few commands, a table few sessions")
}
