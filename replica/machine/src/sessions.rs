//! The session table: every request counts once. PROTOCOL §7, schedules S6 and S12.
//!
//! The table is replicated state. It changes only by commands in the log and, at the end of a block, by a rule on counts and
//! bytes; no clock ends a session (Copycat's and Atomix's kept breaking that way).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use bytes::Bytes;
use lockstep_types::limits::SESSION_WINDOW;
use lockstep_types::{Genesis, Height, Invalid, Outcome, SessionId};

/// Where a command stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub height: Height,
    pub index: u32,
}

impl Position {
    /// The session that an open at this position opens (S6).
    fn session(self) -> SessionId {
        SessionId { height: self.height, index: self.index }
    }
}

/// What the table says about a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Execute it, in the place of the batch that was offered.
    Execute,
    /// Decided here: a refusal, a session opened or closed, a sequence cancelled.
    Decided(Outcome),
    /// Executed or cancelled before, and answered as then.
    Again(Outcome),
    /// Executed earlier in this block, in that place of the batch: the same reply, once it is there.
    AgainInBatch(usize),
}

/// Live sessions and the limits on them.
///
/// Invariants: `by_nonce` holds exactly the nonces of `live`; `reply_bytes` is the sum over all cached replies; between
/// blocks no answer is [`Answer::Running`].
#[derive(Clone, Debug)]
pub(crate) struct Sessions {
    sessions_max: usize,
    reply_bytes_max: u64,
    live: BTreeMap<SessionId, Session>,
    by_nonce: BTreeMap<[u8; 16], SessionId>,
    reply_bytes: u64,
}

/// Invariant: the last sequence is `acknowledged + answers.len()`, at most [`SESSION_WINDOW`] above `acknowledged`.
#[derive(Clone, Debug)]
struct Session {
    nonce: [u8; 16],
    /// Every sequence up to here was answered and forgotten.
    acknowledged: u64,
    /// Answers to the sequences from `acknowledged + 1` on.
    answers: VecDeque<Answer>,
    /// The last command that was executed, cancelled or answered again. None: no request yet.
    last_use: Option<Position>,
}

#[derive(Clone, Debug)]
enum Answer {
    /// In this place of the batch of the block under way.
    Running(usize),
    Replied(Bytes),
    Cancelled,
}

impl Sessions {
    pub fn new(genesis: &Genesis) -> Self {
        Sessions {
            sessions_max: usize::try_from(genesis.sessions_max).unwrap_or(usize::MAX),
            reply_bytes_max: genesis.reply_bytes_max,
            live: BTreeMap::new(),
            by_nonce: BTreeMap::new(),
            reply_bytes: 0,
        }
    }

    /// Opens a session, or finds the live one that this nonce opened: a retry makes no orphan (S12e). That is no use of it.
    pub fn open(&mut self, at: Position, nonce: [u8; 16]) -> Outcome {
        let session = *self.by_nonce.entry(nonce).or_insert(at.session());
        self.live.entry(session).or_insert_with(|| Session {
            nonce,
            acknowledged: 0,
            answers: VecDeque::new(),
            last_use: None,
        });
        Outcome::SessionOpened { session }
    }

    /// Ends a session. One that ended before, by whatever cause, is as closed as it can be.
    pub fn close(&mut self, at: Position, session: SessionId) -> Outcome {
        match self.forget(session) {
            true => Outcome::SessionClosed,
            false if session <= at.session() => Outcome::SessionClosed,
            false => Outcome::Invalid { reason: Invalid::UnknownSession },
        }
    }

    /// Decides on a request. `place` is where it would stand in the batch.
    pub fn execute(
        &mut self,
        at: Position,
        session: SessionId,
        sequence: u64,
        acknowledged: u64,
        place: usize,
    ) -> Verdict {
        if acknowledged >= sequence {
            return Verdict::Decided(Outcome::Invalid { reason: Invalid::Sequence });
        }
        let Some(live) = self.live.get_mut(&session) else {
            return Verdict::Decided(gone(at, session));
        };
        if let Err(refusal) = live.check(sequence, acknowledged) {
            return Verdict::Decided(refusal);
        }
        live.last_use = Some(at);
        let verdict = match live.answer(sequence) {
            Some(answer) => answer.again(),
            None => {
                live.answers.push_back(Answer::Running(place));
                Verdict::Execute
            }
        };
        self.reply_bytes -= live.acknowledge(acknowledged);
        verdict
    }

    /// Answers a sequence as it was answered before, else consumes it as cancelled (S12b).
    pub fn resolve(&mut self, at: Position, session: SessionId, sequence: u64) -> Verdict {
        if sequence == 0 {
            return Verdict::Decided(Outcome::Invalid { reason: Invalid::Sequence });
        }
        let Some(live) = self.live.get_mut(&session) else {
            return Verdict::Decided(gone(at, session));
        };
        if let Err(refusal) = live.check_order(sequence) {
            return Verdict::Decided(refusal);
        }
        live.last_use = Some(at);
        match live.answer(sequence) {
            Some(answer) => answer.again(),
            None => {
                live.answers.push_back(Answer::Cancelled);
                // A client gives out a sequence only within the window, so what lies a window below is acknowledged, even
                // if the request that would have said so is the one that got lost. Refusing instead would wedge the session.
                self.reply_bytes -= live.acknowledge(sequence.saturating_sub(SESSION_WINDOW));
                Verdict::Decided(Outcome::Cancelled)
            }
        }
    }

    /// Keeps the reply to a request that [`Sessions::execute`] let through in this block, unless the block went on to
    /// acknowledge it or to close the session. The table holds on to `reply`, which must own its memory.
    pub fn record(&mut self, session: SessionId, sequence: u64, reply: Bytes) {
        let Some(live) = self.live.get_mut(&session) else { return };
        let Some(answer) = live.answer_mut(sequence) else { return };
        assert!(matches!(answer, Answer::Running(_)), "{session}/{sequence} is answered twice");
        self.reply_bytes += reply.len() as u64;
        *answer = Answer::Replied(reply);
    }

    /// Ends sessions until the limits hold; the block is over, so this is in force from the next one on (S12d). Returns
    /// the victims in their order:
    ///
    /// - Too many sessions: first those without a request, oldest first, as long as they hold more than
    ///   [`Sessions::newcomers_max`]; then the least recently used.
    /// - Too many bytes of replies: the least recently used. Sessions without a request hold none.
    pub fn evict(&mut self) -> Vec<SessionId> {
        let mut victims = Vec::new();
        if self.live.len() <= self.sessions_max && self.reply_bytes <= self.reply_bytes_max {
            return victims;
        }
        // Only now are the sessions looked at one by one: an order kept up to date would cost every request a search.
        let mut newcomers = VecDeque::new();
        let mut used = BinaryHeap::with_capacity(self.live.len());
        for (session, live) in &self.live {
            match live.last_use {
                None => newcomers.push_back(*session),
                Some(last_use) => used.push(Reverse((last_use, *session))),
            }
        }
        while self.live.len() > self.sessions_max {
            let victim = match newcomers.len() > self.newcomers_max() || used.is_empty() {
                true => newcomers.pop_front(),
                false => used.pop().map(|Reverse((_, session))| session),
            };
            let victim = victim.expect("every live session is a newcomer or used");
            self.forget(victim);
            victims.push(victim);
        }
        while self.reply_bytes > self.reply_bytes_max {
            let Reverse((_, victim)) = used.pop().expect("a cached reply belongs to a used session");
            self.forget(victim);
            victims.push(victim);
        }
        victims
    }

    /// Sessions without a request that are kept in a full table: an eighth, at least one. With none, a table full of
    /// sessions whose clients died would never let anyone in again: each new session would be the next victim before its
    /// client heard of it. With all, a storm of opens would evict every client at work (S12e).
    fn newcomers_max(&self) -> usize {
        (self.sessions_max / 8).max(1)
    }

    /// Removes a session. Says whether it was there.
    fn forget(&mut self, session: SessionId) -> bool {
        let Some(live) = self.live.remove(&session) else { return false };
        self.by_nonce.remove(&live.nonce);
        self.reply_bytes -= live.answers.iter().map(Answer::bytes).sum::<u64>();
        true
    }

    /// Live sessions.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Bytes of all cached replies.
    pub fn reply_bytes(&self) -> u64 {
        self.reply_bytes
    }
}

/// What a session that is not live answers. Its id says whether it can have been (S6).
fn gone(at: Position, session: SessionId) -> Outcome {
    match session <= at.session() {
        true => Outcome::Evicted,
        false => Outcome::Invalid { reason: Invalid::UnknownSession },
    }
}

impl Session {
    /// Refuses a sequence beyond the window, or as [`Session::check_order`]. A refused request changes nothing; its word on
    /// what is acknowledged counts for itself only.
    fn check(&self, sequence: u64, acknowledged: u64) -> Result<(), Outcome> {
        let acknowledged = acknowledged.clamp(self.acknowledged, self.last());
        if sequence > acknowledged.saturating_add(SESSION_WINDOW) {
            return Err(Outcome::OverWindow { limit: SESSION_WINDOW });
        }
        self.check_order(sequence)
    }

    /// Refuses a sequence that is forgotten or beyond the next one.
    fn check_order(&self, sequence: u64) -> Result<(), Outcome> {
        let next = self.last() + 1;
        if sequence <= self.acknowledged {
            return Err(Outcome::AlreadyAcknowledged);
        }
        if sequence > next {
            return Err(Outcome::Gap { expected: next });
        }
        Ok(())
    }

    /// Forgets the answers up to `acknowledged`; returns the bytes that this frees.
    fn acknowledge(&mut self, acknowledged: u64) -> u64 {
        let mut freed = 0;
        while self.acknowledged < acknowledged {
            let answer = self.answers.pop_front().expect("what is acknowledged lies below a sequence in the table");
            freed += answer.bytes();
            self.acknowledged += 1;
        }
        freed
    }

    fn answer_mut(&mut self, sequence: u64) -> Option<&mut Answer> {
        let offset = usize::try_from(sequence.checked_sub(self.acknowledged + 1)?).ok()?;
        self.answers.get_mut(offset)
    }

    fn answer(&self, sequence: u64) -> Option<&Answer> {
        let offset = usize::try_from(sequence.checked_sub(self.acknowledged + 1)?).ok()?;
        self.answers.get(offset)
    }

    /// The last sequence executed or cancelled; 0 before the first.
    fn last(&self) -> u64 {
        self.acknowledged + self.answers.len() as u64
    }
}

impl Answer {
    fn again(&self) -> Verdict {
        match self {
            Answer::Running(place) => Verdict::AgainInBatch(*place),
            Answer::Replied(reply) => Verdict::Again(Outcome::Replied { reply: reply.clone() }),
            Answer::Cancelled => Verdict::Again(Outcome::Cancelled),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Answer::Running(_) | Answer::Cancelled => 0,
            Answer::Replied(reply) => reply.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Log, close, execute, open, replied, resolve};

    const WINDOW: u64 = SESSION_WINDOW;

    fn session(height: u64, index: u32) -> SessionId {
        SessionId { height: Height::new(height), index }
    }

    fn invalid(reason: Invalid) -> Outcome {
        Outcome::Invalid { reason }
    }

    #[test]
    fn open_two_in_one_block_gives_two_ids() {
        // A session is named by height and index of its open: two in one block never share replies (S6).
        let mut log = Log::new();
        let applied =
            log.block(&[open(1), open(2), execute(session(1, 1), 1, 0, "a"), execute(session(1, 0), 1, 0, "b")]);
        let opened = |index| Outcome::SessionOpened { session: session(1, index) };
        assert_eq!(applied.outcomes, [opened(0), opened(1), replied(0, "a"), replied(1, "b")]);
    }

    #[test]
    fn open_same_nonce_while_live_gives_same_session() {
        // The same nonce opens the same session for as long as it lives, in its own block and later; then a new one.
        let mut log = Log::new();
        let applied = log.block(&[open(1), open(1)]);
        let first = Outcome::SessionOpened { session: session(1, 0) };
        assert_eq!(applied.outcomes, [first.clone(), first.clone()]);
        assert_eq!(log.one(open(1)), first);
        let applied = log.block(&[close(session(1, 0)), open(1)]);
        assert_eq!(applied.outcomes[1], Outcome::SessionOpened { session: session(3, 1) });
        assert_eq!(log.executor.stats().sessions, 1);
    }

    #[test]
    fn execute_again_in_later_block_answers_from_table() {
        // What was executed is answered as then and not executed again, whatever the retry's body says.
        let mut log = Log::new();
        let id = log.open(1);
        let first = log.block(&[execute(id, 1, 0, "a")]);
        assert_eq!((first.executed, first.answered_from_table), (vec![(id, 1)], 0));
        let again = log.block(&[execute(id, 1, 0, "b")]);
        assert_eq!(again.outcomes, [replied(0, "a")]);
        assert_eq!((again.executed, again.answered_from_table), (vec![], 1));
    }

    #[test]
    fn execute_again_in_same_block_executes_once() {
        // The filter sees its own earlier hits (S12d).
        let mut log = Log::new();
        let id = log.open(1);
        let applied =
            log.block(&[execute(id, 1, 0, "a"), execute(id, 1, 0, "a"), resolve(id, 1), execute(id, 2, 0, "b")]);
        assert_eq!(applied.outcomes, [replied(0, "a"), replied(0, "a"), replied(0, "a"), replied(1, "b")]);
        assert_eq!((applied.executed, applied.answered_from_table), (vec![(id, 1), (id, 2)], 2));
    }

    #[test]
    fn execute_acknowledged_in_same_block_is_answered_and_forgotten() {
        // An acknowledgement takes effect at once, even on a reply that the machine has yet to give.
        let mut log = Log::new();
        let id = log.open(1);
        let applied = log.block(&[execute(id, 1, 0, "a"), execute(id, 2, 1, "b"), execute(id, 1, 0, "a")]);
        assert_eq!(applied.outcomes, [replied(0, "a"), replied(1, "b"), Outcome::AlreadyAcknowledged]);
        assert_eq!(log.executor.stats().reply_bytes, 9);
    }

    #[test]
    fn execute_then_close_in_same_block_is_answered() {
        // A request that was executed is answered, although its session ended in the same block.
        let mut log = Log::new();
        let id = log.open(1);
        let applied = log.block(&[execute(id, 1, 0, "a"), close(id), execute(id, 1, 0, "a")]);
        assert_eq!(applied.outcomes, [replied(0, "a"), Outcome::SessionClosed, Outcome::Evicted]);
        let stats = log.executor.stats();
        assert_eq!((stats.sessions, stats.reply_bytes, stats.executed), (0, 0, 1));
    }

    #[test]
    fn execute_above_next_is_a_gap_and_changes_nothing() {
        // Sequences execute in order; what is ahead is neither executed nor remembered, nor is its acknowledgement.
        let mut log = Log::new();
        let id = log.open(1);
        assert_eq!(log.one(execute(id, 1, 0, "a")), replied(0, "a"));
        assert_eq!(log.one(execute(id, 3, 1, "c")), Outcome::Gap { expected: 2 });
        assert_eq!(log.one(execute(id, 1, 0, "a")), replied(0, "a"));
        assert_eq!(log.one(execute(id, 2, 0, "b")), replied(1, "b"));
        assert_eq!(log.one(execute(id, 3, 1, "c")), replied(2, "c"));
    }

    #[test]
    fn execute_beyond_window_is_refused_until_acknowledged() {
        // A window of sequences may be in flight above what is acknowledged, not one more.
        let mut log = Log::new();
        let id = log.open(1);
        for sequence in 1..=WINDOW {
            assert_eq!(log.one(execute(id, sequence, 0, "a")), replied(sequence - 1, "a"));
        }
        assert_eq!(log.one(execute(id, WINDOW + 1, 0, "b")), Outcome::OverWindow { limit: WINDOW });
        assert_eq!(log.one(execute(id, u64::MAX, 0, "b")), Outcome::OverWindow { limit: WINDOW });
        assert_eq!(log.one(execute(id, 1, 0, "a")), replied(0, "a"));
        assert_eq!(log.one(execute(id, WINDOW + 1, 1, "b")), replied(WINDOW, "b"));
    }

    #[test]
    fn execute_with_absurd_numbers_is_refused() {
        // No number overflows, and nobody acknowledges what was never executed.
        let mut log = Log::new();
        let id = log.open(1);
        assert_eq!(log.one(execute(id, u64::MAX, u64::MAX - 1, "a")), Outcome::OverWindow { limit: WINDOW });
        assert_eq!(log.one(execute(id, 20, 19, "a")), Outcome::Gap { expected: 1 });
        assert_eq!(log.one(resolve(id, u64::MAX)), Outcome::Gap { expected: 1 });
        assert_eq!(log.one(execute(id, 1, 0, "a")), replied(0, "a"));
    }

    #[test]
    fn execute_acknowledged_sequence_is_the_clients_fault() {
        // What the client acknowledged is forgotten; the reply is gone, and it is not executed again.
        let mut log = Log::new();
        let id = log.open(1);
        log.block(&[execute(id, 1, 0, "a"), execute(id, 2, 0, "b"), execute(id, 3, 2, "c")]);
        assert_eq!(log.one(execute(id, 1, 0, "a")), Outcome::AlreadyAcknowledged);
        assert_eq!(log.one(resolve(id, 2)), Outcome::AlreadyAcknowledged);
        assert_eq!(log.one(execute(id, 3, 0, "c")), replied(2, "c"));
        assert_eq!(log.executor.stats().reply_bytes, 9);
    }

    #[test]
    fn execute_retry_with_acknowledgement_prunes() {
        // A retry, too, says what its client has got meanwhile.
        let mut log = Log::new();
        let id = log.open(1);
        log.block(&[execute(id, 1, 0, "a"), execute(id, 2, 0, "b")]);
        assert_eq!(log.executor.stats().reply_bytes, 18);
        assert_eq!(log.one(execute(id, 2, 1, "b")), replied(1, "b"));
        assert_eq!(log.executor.stats().reply_bytes, 9);
    }

    #[test]
    fn sequence_that_makes_no_sense_is_invalid() {
        // Sequences count from 1 and lie above what they acknowledge; anything else changes nothing.
        let mut log = Log::new();
        let id = log.open(1);
        for command in [execute(id, 0, 0, "a"), execute(id, 1, 1, "a"), execute(id, 1, 7, "a"), resolve(id, 0)] {
            assert_eq!(log.one(command), invalid(Invalid::Sequence));
        }
        assert_eq!(log.one(execute(id, 1, 0, "a")), replied(0, "a"));
    }

    #[test]
    fn resolve_executed_gives_its_reply() {
        // Resolve is how to ask again: executed gives the reply.
        let mut log = Log::new();
        let id = log.open(1);
        log.one(execute(id, 1, 0, "a"));
        let applied = log.block(&[resolve(id, 1)]);
        assert_eq!((applied.outcomes, applied.answered_from_table), (vec![replied(0, "a")], 1));
    }

    #[test]
    fn resolve_next_cancels_it_for_good() {
        // A sequence resolved before it came is consumed: a late request never executes, and the next one does (S12b).
        let mut log = Log::new();
        let id = log.open(1);
        let applied = log.block(&[resolve(id, 1), execute(id, 1, 0, "a")]);
        assert_eq!((applied.outcomes, applied.answered_from_table), (vec![Outcome::Cancelled, Outcome::Cancelled], 1));
        assert_eq!(log.one(execute(id, 1, 0, "a")), Outcome::Cancelled);
        assert_eq!(log.one(resolve(id, 1)), Outcome::Cancelled);
        assert_eq!(log.one(execute(id, 2, 0, "b")), replied(0, "b"));
    }

    #[test]
    fn resolve_above_next_is_a_gap() {
        // A sequence whose predecessors are open cannot be consumed: they would never execute.
        let mut log = Log::new();
        let id = log.open(1);
        assert_eq!(log.one(resolve(id, 2)), Outcome::Gap { expected: 1 });
        assert_eq!(log.one(execute(id, 1, 0, "a")), replied(0, "a"));
    }

    #[test]
    fn resolve_beyond_recorded_window_frees_it() {
        // The acknowledgement of a full window may be in the very request that got lost. Its sequence alone says that what
        // lies a window below is acknowledged; refusing the resolve would wedge the session.
        let mut log = Log::new();
        let id = log.open(1);
        for sequence in 1..=WINDOW {
            log.one(execute(id, sequence, 0, "a"));
        }
        assert_eq!(log.one(resolve(id, WINDOW + 1)), Outcome::Cancelled);
        assert_eq!(log.one(execute(id, 1, 0, "a")), Outcome::AlreadyAcknowledged);
        assert_eq!(log.one(execute(id, 2, 0, "a")), replied(1, "a"));
        assert_eq!(log.executor.stats().reply_bytes, 9 * (WINDOW - 1));
    }

    #[test]
    fn close_twice_is_closed() {
        // Closing is idempotent; what was never opened cannot be closed.
        let mut log = Log::new();
        let id = log.open(1);
        assert_eq!(log.one(close(id)), Outcome::SessionClosed);
        assert_eq!(log.one(close(id)), Outcome::SessionClosed);
        assert_eq!(log.one(close(session(9, 0))), invalid(Invalid::UnknownSession));
    }

    #[test]
    fn session_gone_or_never_there_shows_in_its_id() {
        // An id at or below the command's own place is gone for good; one above was never given out (S6).
        let mut log = Log::new();
        let id = log.open(1);
        log.one(close(id));
        assert_eq!(log.one(execute(id, 1, 0, "a")), Outcome::Evicted);
        assert_eq!(log.one(resolve(id, 1)), Outcome::Evicted);
        assert_eq!(log.one(execute(session(5, 0), 1, 0, "a")), Outcome::Evicted);
        assert_eq!(log.one(execute(session(6, 1), 1, 0, "a")), invalid(Invalid::UnknownSession));
        assert_eq!(log.one(resolve(session(8, 0), 1)), invalid(Invalid::UnknownSession));
    }

    #[test]
    fn eviction_over_sessions_takes_least_recently_used() {
        // The session whose last use lies furthest back goes; a retry is a use, a refusal is none.
        let mut log = Log::with_limits(3, 1000);
        let ids = [log.open(1), log.open(2), log.open(3)];
        log.block(&[execute(ids[1], 1, 0, "a"), execute(ids[0], 1, 0, "a"), execute(ids[2], 1, 0, "a")]);
        log.block(&[execute(ids[1], 1, 0, "a"), execute(ids[0], 3, 0, "a")]);
        let applied = log.block(&[open(4)]);
        assert_eq!(applied.evicted, [ids[0]]);
        assert_eq!(log.one(execute(ids[0], 1, 0, "a")), Outcome::Evicted);
        assert_eq!(log.one(execute(ids[2], 1, 0, "a")), replied(2, "a"));
        assert_eq!(log.executor.stats().evictions, 1);
    }

    #[test]
    fn eviction_waits_for_the_end_of_the_block() {
        // A block that goes over the limit still executes for every session that lived when it began (S12d).
        let mut log = Log::with_limits(1, 1000);
        let id = log.open(1);
        let applied = log.block(&[open(2), execute(id, 1, 0, "a"), open(3), execute(session(2, 0), 1, 0, "b")]);
        assert_eq!(applied.outcomes[1], replied(0, "a"));
        assert_eq!(applied.outcomes[3], replied(1, "b"));
        assert_eq!(applied.evicted, [id, session(2, 0)]);
        assert_eq!(log.one(execute(session(2, 2), 1, 0, "c")), replied(2, "c"));
    }

    #[test]
    fn eviction_in_a_storm_of_opens_takes_newcomers_first() {
        // Clients that only ever open push each other out, oldest first, not the clients at work (S12e).
        let mut log = Log::with_limits(8, 1000);
        let ids: Vec<SessionId> = (1..=7).map(|nonce| log.open(nonce)).collect();
        ids.iter().for_each(|id| assert!(matches!(log.one(execute(*id, 1, 0, "a")), Outcome::Replied { .. })));
        let applied = log.block(&(20..60).map(open).collect::<Vec<_>>());
        let height = log.executor.applied().get();
        assert_eq!(applied.evicted, (0..39).map(|index| session(height, index)).collect::<Vec<_>>());
        ids.iter().for_each(|id| assert!(matches!(log.one(execute(*id, 2, 1, "a")), Outcome::Replied { .. })));
    }

    #[test]
    fn eviction_from_a_table_of_the_dead_lets_a_newcomer_in() {
        // A table full of sessions whose clients are gone gives a place to a new client, and time to use it.
        let mut log = Log::with_limits(4, 1000);
        let ids: Vec<SessionId> = (1..=4).map(|nonce| log.open(nonce)).collect();
        ids.iter().for_each(|id| assert!(matches!(log.one(execute(*id, 1, 0, "a")), Outcome::Replied { .. })));
        let applied = log.block(&[open(9)]);
        assert_eq!(applied.evicted, [ids[0]]);
        log.block(&[]);
        assert_eq!(log.one(execute(session(9, 0), 1, 0, "b")), replied(4, "b"));
    }

    #[test]
    fn eviction_over_reply_bytes_takes_least_recently_used() {
        // Cached replies are bounded over all sessions; those without a request hold none and stay.
        let mut log = Log::with_limits(8, 30);
        let ids = [log.open(1), log.open(2), log.open(3)];
        log.block(&[execute(ids[1], 1, 0, "aa"), execute(ids[0], 1, 0, "bb"), execute(ids[0], 2, 0, "cc")]);
        assert_eq!(log.executor.stats().reply_bytes, 30);
        let applied = log.block(&[execute(ids[0], 3, 0, "")]);
        assert_eq!(applied.evicted, []);
        let applied = log.block(&[execute(ids[0], 4, 0, "d")]);
        assert_eq!(applied.evicted, [ids[1]]);
        let stats = log.executor.stats();
        assert_eq!((stats.sessions, stats.reply_bytes), (2, 29));
    }

    #[test]
    fn eviction_of_all_that_is_allowed_is_no_fault() {
        // A service without room for sessions or replies still answers within the block.
        let mut log = Log::with_limits(0, 0);
        let applied = log.block(&[open(1), execute(session(1, 0), 1, 0, "a")]);
        assert_eq!(applied.outcomes[1], replied(0, "a"));
        assert_eq!(applied.evicted, [session(1, 0)]);
        let stats = log.executor.stats();
        assert_eq!((stats.sessions, stats.reply_bytes), (0, 0));
    }
}
