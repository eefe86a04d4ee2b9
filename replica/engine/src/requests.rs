//! A client's request from its arrival to its answer: proposed here, or forwarded to the leader. DESIGN §8: any replica takes
//! any request.
//!
//! A request is held until it is answered or its deadline passes, and sent again when the leader changes: a session makes
//! that exactly once, and a plain command says that it is at least once. What is held is bounded; beyond that it is
//! refused before it reaches a log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use lockstep_consensus::{Input, Moment, ReadId, ReadOutcome, RoleName};
use lockstep_types::limits::{BLOCK_COMMANDS_MAX, REQUEST_BYTES_MAX};
use lockstep_types::{Digest, Height, Outcome, Slot};
use lockstep_wal::Disk;

use crate::engine::Engine;
use crate::message::{ForwardResult, PeerMessage};

/// Requests held at most.
const OPEN_MAX: usize = 1 << 16;
/// Bytes of requests held at most, and the same again for those that peers forwarded.
const OPEN_BYTES_MAX: usize = 64 << 20;
/// Bytes of one command: a request body and what stands around it.
const COMMAND_BYTES_MAX: usize = REQUEST_BYTES_MAX + 64;
/// Bytes of answers to reads in one turn, beyond which the rest waits for the next.
const READ_BYTES: usize = 8 << 20;
/// A forwarded request without an answer is sent again after this many microseconds: messages get lost.
const AGAIN: u64 = 1_000_000;
/// Between two looks at what is overdue.
const SCAN: u64 = 100_000;
/// How long a request waits for a leader before it is refused.
const LEADERLESS: u64 = 3_000_000;

/// Names a request in the host's books. Never used twice by one process; below 2⁴⁰.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Canonical bytes of a command for the log.
    Command(Bytes),
    /// A linearizable read of the state machine.
    Read(Bytes),
}

impl Operation {
    fn size(&self) -> usize {
        match self {
            Operation::Command(bytes) | Operation::Read(bytes) => bytes.len(),
        }
    }
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The command was committed and applied.
    Outcome(Outcome),
    /// The machine's answer to a read.
    Read(Bytes),
    /// Neither.
    Refused(Refusal),
}

/// Why there is no answer. Unless `never_proposed`, the command may still be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Too much is held already; this request reached no log.
    Overloaded,
    /// No leader is known, for seconds.
    NoLeader {
        /// This request reached no log.
        never_proposed: bool,
    },
    /// The state of this replica is in doubt: it answers no reads.
    Fenced,
    /// The deadline passed.
    Deadline {
        /// This request reached no log.
        never_proposed: bool,
    },
}

/// Everything between arrival and answer.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    open: BTreeMap<Token, Open>,
    open_bytes: usize,
    deadlines: BTreeSet<(Moment, Token)>,
    /// Open requests that no one works on: to be dispatched when a leader is known.
    waiting: BTreeSet<Token>,
    /// Commands to propose here, in order.
    queue: VecDeque<(Origin, Bytes)>,
    queue_bytes: usize,
    /// Blocks proposed here and not applied yet.
    proposed: BTreeMap<Height, (Digest, Vec<Origin>)>,
    /// Forwarded commands that are queued or proposed here.
    from_peers: BTreeSet<(Slot, u64)>,
    /// Reads that the rules are deciding.
    reads: BTreeMap<ReadId, ReadOrigin>,
    next_read: u64,
    /// Reads of this follower that wait for the next question to the leader.
    reads_next: Vec<Token>,
    /// The question under way.
    reads_asked: Option<ReadsAsked>,
    /// Reads that wait for a height to be applied.
    reads_at: BTreeSet<(Height, Token)>,
    leader: Option<Slot>,
    scan_at: Moment,
}

#[derive(Debug)]
struct Open {
    operation: Operation,
    deadline: Moment,
    arrived: Moment,
    /// How often it was queued here or forwarded: from the first time on it may have reached a log.
    attempts: u32,
    /// When it was last forwarded.
    forwarded: Option<(Slot, Moment)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Client(Token),
    Peer(Slot, u64),
}

#[derive(Clone, Copy, Debug)]
enum ReadOrigin {
    Client(Token),
    Peer(Slot, u64),
}

#[derive(Debug)]
struct ReadsAsked {
    id: u64,
    to: Slot,
    since: Moment,
    tokens: Vec<Token>,
}

impl Requests {
    /// Requests that are held.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    pub fn deadline(&self) -> Moment {
        if self.open.is_empty() { Moment::from_micros(u64::MAX) } else { self.scan_at }
    }

    fn close(&mut self, token: Token) -> Option<Open> {
        let open = self.open.remove(&token)?;
        self.open_bytes -= open.operation.size();
        self.deadlines.remove(&(open.deadline, token));
        self.waiting.remove(&token);
        Some(open)
    }
}

impl<D: Disk> Engine<D> {
    /// A request arrived.
    pub(crate) fn open_request(&mut self, now: Moment, token: Token, operation: Operation, deadline: Moment) {
        if let Operation::Read(_) = operation
            && self.divergence.is_fenced()
        {
            self.out.replies.push((token, Answer::Refused(Refusal::Fenced)));
            return;
        }
        let size = operation.size();
        if self.requests.open.len() >= OPEN_MAX || self.requests.open_bytes + size > OPEN_BYTES_MAX {
            self.out.replies.push((token, Answer::Refused(Refusal::Overloaded)));
            return;
        }
        if self.requests.open.is_empty() {
            self.requests.scan_at = now.plus(SCAN);
        }
        self.requests.open_bytes += size;
        self.requests.deadlines.insert((deadline, token));
        let open = Open { operation, deadline, arrived: now, attempts: 0, forwarded: None };
        let before = self.requests.open.insert(token, open);
        assert!(before.is_none(), "token {token:?} was used twice");
        self.requests.waiting.insert(token);
        self.dispatch(now, token);
    }

    /// Sets to work on a waiting request, if a leader is known.
    fn dispatch(&mut self, now: Moment, token: Token) {
        let leader = self.leader(now);
        let leads = self.core.role() == RoleName::Leader;
        let id = self.wire_id(token.0);
        let Some(open) = self.requests.open.get_mut(&token) else { return };
        if leader.is_none() {
            return;
        }
        // Before anything is done: the rules may answer at once that they lead no more, and then it waits again.
        self.requests.waiting.remove(&token);
        match (&open.operation, leader) {
            (_, None) => {}
            (Operation::Command(command), Some(_)) if leads => {
                open.attempts += 1;
                self.requests.queue_bytes += command.len();
                self.requests.queue.push_back((Origin::Client(token), command.clone()));
            }
            (Operation::Command(command), Some(to)) => {
                open.attempts += 1;
                open.forwarded = Some((to, now));
                let message = PeerMessage::Forward { id, command: command.clone() };
                self.send(to, message);
            }
            (Operation::Read(_), Some(_)) if leads => self.ask_rules(now, ReadOrigin::Client(token)),
            (Operation::Read(_), Some(_)) => {
                self.requests.reads_next.push(token);
                self.ask_leader(now);
            }
        }
    }

    /// The state is in doubt: others may answer what would be read from it.
    pub(crate) fn refuse_reads(&mut self) {
        let open = self.requests.open.iter().filter(|(_, open)| matches!(open.operation, Operation::Read(_)));
        for token in open.map(|(token, _)| *token).collect::<Vec<_>>() {
            self.requests.close(token);
            self.out.replies.push((token, Answer::Refused(Refusal::Fenced)));
        }
    }

    fn wait_again(&mut self, token: Token) {
        if let Some(open) = self.requests.open.get_mut(&token) {
            open.forwarded = None;
            self.requests.waiting.insert(token);
        }
    }

    /// An id that no earlier start of this replica used.
    fn wire_id(&self, number: u64) -> u64 {
        (self.boot << 40) | number
    }

    /// Looks at what changed since the last poll: the leader, and what is overdue.
    pub(crate) fn drive_requests(&mut self, now: Moment) {
        let leader = self.leader(now);
        if leader != self.requests.leader {
            self.requests.leader = leader;
            self.leader_changed();
        }
        if now >= self.requests.scan_at {
            self.requests.scan_at = now.plus(SCAN);
            self.scan(now);
        }
        if leader.is_some() && !self.requests.waiting.is_empty() {
            for token in std::mem::take(&mut self.requests.waiting) {
                self.requests.waiting.insert(token);
                self.dispatch(now, token);
            }
        }
    }

    /// Whatever was under way with another leader starts again. Blocks that were proposed here are decided by the log.
    fn leader_changed(&mut self) {
        let ours = self.core.me();
        if self.core.role() != RoleName::Leader {
            self.requests.queue_bytes = 0;
            for (origin, _) in std::mem::take(&mut self.requests.queue) {
                self.not_decided(origin);
            }
        }
        let leader = self.requests.leader;
        let stale: Vec<Token> = self
            .requests
            .open
            .iter()
            .filter(|(_, open)| open.forwarded.is_some_and(|(to, _)| Some(to) != leader || to == ours))
            .map(|(token, _)| *token)
            .collect();
        let asked = self.requests.reads_asked.take().map(|asked| asked.tokens).unwrap_or_default();
        let next = std::mem::take(&mut self.requests.reads_next);
        for token in stale.into_iter().chain(asked).chain(next) {
            self.wait_again(token);
        }
    }

    /// This attempt was not proposed, or its block was replaced: the one who sent it tries again.
    fn not_decided(&mut self, origin: Origin) {
        match origin {
            Origin::Client(token) => self.wait_again(token),
            Origin::Peer(to, id) => {
                self.requests.from_peers.remove(&(to, id));
                self.send(to, PeerMessage::ForwardReply { id, result: ForwardResult::NotLeader });
            }
        }
    }

    fn scan(&mut self, now: Moment) {
        while let Some((deadline, token)) = self.requests.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            let open = self.requests.close(token).expect("every deadline belongs to an open request");
            self.out.replies.push((token, Answer::Refused(Refusal::Deadline { never_proposed: open.attempts == 0 })));
        }
        let leaderless: Vec<Token> = self
            .requests
            .waiting
            .iter()
            .filter(|token| self.requests.open.get(token).is_some_and(|open| now.since(open.arrived) >= LEADERLESS))
            .copied()
            .collect();
        if self.requests.leader.is_none() {
            for token in leaderless {
                let open = self.requests.close(token).expect("a waiting request is open");
                self.out
                    .replies
                    .push((token, Answer::Refused(Refusal::NoLeader { never_proposed: open.attempts == 0 })));
            }
        }
        let again: Vec<Token> = self
            .requests
            .open
            .iter()
            .filter(|(_, open)| open.forwarded.is_some_and(|(_, at)| now.since(at) >= AGAIN))
            .map(|(token, _)| *token)
            .collect();
        for token in again {
            self.wait_again(token);
        }
        if self.requests.reads_asked.as_ref().is_some_and(|asked| now.since(asked.since) >= AGAIN) {
            let tokens = self.requests.reads_asked.take().map(|asked| asked.tokens).unwrap_or_default();
            for token in tokens {
                self.wait_again(token);
            }
        }
    }

    /// Proposes what is queued, as far as the rules allow.
    pub(crate) fn propose_queued(&mut self, now: Moment, wall: lockstep_types::LogTime) {
        // What would not be answered waits; else each of its attempts would be in the log.
        while self.core.can_propose() && !self.requests.queue.is_empty() && !self.divergence.is_halted() {
            let mut size = 4;
            let mut commands = Vec::new();
            let mut origins = Vec::new();
            while let Some((_, command)) = self.requests.queue.front() {
                size += 4 + command.len();
                if !commands.is_empty() && (size > self.block_bytes || commands.len() == BLOCK_COMMANDS_MAX) {
                    break;
                }
                let (origin, command) = self.requests.queue.pop_front().expect("just looked at");
                self.requests.queue_bytes -= command.len();
                commands.push(command);
                origins.push(origin);
            }
            let body = lockstep_types::block::encode_body(&commands);
            let effects = self.core.step(now, Input::Propose { body, wall });
            let block = effects.proposed.expect("the rules said that it can propose");
            let replaced = self.requests.proposed.insert(block.height, (block.hash, origins));
            self.absorb(effects);
            // Proposed at this height in an earlier view of this leader, and replaced since.
            for origin in replaced.into_iter().flat_map(|(_, origins)| origins) {
                self.not_decided(origin);
            }
        }
    }

    /// What these blocks answered is not known here, since the state of a snapshot took their place, or is in doubt. Who asked
    /// tries again.
    pub(crate) fn skip_blocks(&mut self, upto: Height) {
        let above = self.requests.proposed.split_off(&upto.next());
        let skipped = std::mem::replace(&mut self.requests.proposed, above);
        for origin in skipped.into_values().flat_map(|(_, origins)| origins) {
            self.not_decided(origin);
        }
    }

    /// A block was applied: answers those who asked for its commands, if it is the block that was proposed here.
    pub(crate) fn answer_block(&mut self, height: Height, hash: Digest, outcomes: Vec<Outcome>) {
        let Some((ours, origins)) = self.requests.proposed.remove(&height) else { return };
        if ours != hash {
            for origin in origins {
                self.not_decided(origin);
            }
            return;
        }
        for (origin, outcome) in origins.into_iter().zip(outcomes) {
            match origin {
                Origin::Client(token) => {
                    if self.requests.close(token).is_some() {
                        self.out.replies.push((token, Answer::Outcome(outcome)));
                    }
                }
                Origin::Peer(to, id) => {
                    self.requests.from_peers.remove(&(to, id));
                    self.send(to, PeerMessage::ForwardReply { id, result: ForwardResult::Outcome(outcome) });
                }
            }
        }
    }

    // Between replicas.

    pub(crate) fn on_forward(&mut self, from: Slot, id: u64, command: Bytes) {
        if self.core.role() != RoleName::Leader {
            self.send(from, PeerMessage::ForwardReply { id, result: ForwardResult::NotLeader });
        } else if self.requests.from_peers.contains(&(from, id)) || command.len() > COMMAND_BYTES_MAX {
            // The answer to the first copy will do for both; and no replica of this release forwards one so large.
        } else if self.requests.queue_bytes + command.len() > OPEN_BYTES_MAX {
            self.send(from, PeerMessage::ForwardReply { id, result: ForwardResult::Overloaded });
        } else {
            self.requests.from_peers.insert((from, id));
            self.requests.queue_bytes += command.len();
            self.requests.queue.push_back((Origin::Peer(from, id), command));
        }
    }

    pub(crate) fn on_forward_reply(&mut self, from: Slot, id: u64, result: ForwardResult) {
        if id >> 40 != self.boot & 0xff_ffff {
            return;
        }
        let token = Token(id & ((1 << 40) - 1));
        let Some(open) = self.requests.open.get(&token) else { return };
        if open.forwarded.is_none_or(|(to, _)| to != from) {
            return;
        }
        let first = open.attempts == 1;
        match result {
            ForwardResult::Outcome(outcome) => {
                self.requests.close(token);
                self.out.replies.push((token, Answer::Outcome(outcome)));
            }
            ForwardResult::Overloaded if first => {
                self.requests.close(token);
                self.out.replies.push((token, Answer::Refused(Refusal::Overloaded)));
            }
            // The next scan or the next leader starts it again. An earlier attempt may have reached a log, so that it cannot be
            // refused as one that did not.
            ForwardResult::NotLeader | ForwardResult::Overloaded => {}
        }
    }

    /// Asks the leader from which height on the gathered reads may be answered, unless a question is under way.
    fn ask_leader(&mut self, now: Moment) {
        if self.requests.reads_asked.is_some() || self.requests.reads_next.is_empty() {
            return;
        }
        let Some(to) = self.leader(now) else { return };
        self.requests.next_read += 1;
        let id = self.wire_id(self.requests.next_read);
        let tokens = std::mem::take(&mut self.requests.reads_next);
        self.requests.reads_asked = Some(ReadsAsked { id, to, since: now, tokens });
        self.send(to, PeerMessage::ReadIndex { id });
    }

    pub(crate) fn on_read_index(&mut self, now: Moment, from: Slot, id: u64) {
        self.ask_rules(now, ReadOrigin::Peer(from, id));
    }

    pub(crate) fn on_read_index_reply(&mut self, now: Moment, from: Slot, id: u64, height: Option<Height>) {
        match &self.requests.reads_asked {
            Some(asked) if asked.id == id && asked.to == from => {}
            Some(_) | None => return,
        }
        let asked = self.requests.reads_asked.take().expect("just looked at");
        match height {
            Some(height) => self.requests.reads_at.extend(asked.tokens.into_iter().map(|token| (height, token))),
            None => asked.tokens.into_iter().for_each(|token| self.wait_again(token)),
        }
        self.ask_leader(now);
    }

    fn ask_rules(&mut self, now: Moment, origin: ReadOrigin) {
        self.requests.next_read += 1;
        let id = ReadId(self.requests.next_read);
        self.requests.reads.insert(id, origin);
        let effects = self.core.step(now, Input::Read(id));
        self.absorb(effects);
    }

    pub(crate) fn on_read_decided(&mut self, id: ReadId, outcome: ReadOutcome) {
        let Some(origin) = self.requests.reads.remove(&id) else { return };
        match (origin, outcome) {
            (ReadOrigin::Client(token), ReadOutcome::At(height)) => {
                self.requests.reads_at.insert((height, token));
            }
            (ReadOrigin::Client(token), ReadOutcome::NotLeader) => self.wait_again(token),
            (ReadOrigin::Peer(to, id), ReadOutcome::At(height)) => {
                self.send(to, PeerMessage::ReadIndexReply { id, height: Some(height) });
            }
            (ReadOrigin::Peer(to, id), ReadOutcome::NotLeader) => {
                self.send(to, PeerMessage::ReadIndexReply { id, height: None });
            }
        }
    }

    /// Answers the reads whose height is applied, up to a bound. Returns whether more could be answered.
    pub(crate) fn answer_reads(&mut self) -> bool {
        if self.divergence.is_halted() {
            return false;
        }
        let mut bytes = 0;
        while let Some((height, token)) = self.requests.reads_at.first().copied() {
            if height > self.executor.applied() {
                return false;
            }
            if bytes > READ_BYTES {
                return true;
            }
            self.requests.reads_at.remove(&(height, token));
            if let Some(open) = self.requests.close(token) {
                let Operation::Read(body) = &open.operation else { unreachable!("only reads wait for a height") };
                let answer = self.executor.query(body);
                bytes += answer.len();
                self.out.replies.push((token, Answer::Read(answer)));
            }
        }
        false
    }
}
