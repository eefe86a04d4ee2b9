//! The session table: every request counts once. PROTOCOL §7, schedules S6 and S12.
//!
//! The table is replicated state. It changes only by commands in the log and, at the end of a block, by a rule on counts and
//! bytes; no clock ends a session (Copycat's and Atomix's kept breaking that way).

mod session;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use lockstep_types::limits::SESSION_WINDOW;
use lockstep_types::{Height, Invalid, Outcome, SessionId};

pub(crate) use session::{Answer, Session};

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

/// Live sessions and the limits on them. A clone is O(1); a session is copied when it changes while a clone holds it.
///
/// Invariants: `by_nonce` holds exactly the nonces of `live`; `reply_bytes` is the sum over all cached replies; between
/// blocks no answer is [`Answer::Running`].
#[derive(Clone, Debug)]
pub(crate) struct Sessions {
    sessions_max: u32,
    reply_bytes_max: u64,
    live: OrdMap<SessionId, Arc<Session>>,
    by_nonce: OrdMap<[u8; 16], SessionId>,
    reply_bytes: u64,
}

impl Sessions {
    pub fn new(sessions_max: u32, reply_bytes_max: u64) -> Self {
        Sessions { sessions_max, reply_bytes_max, live: OrdMap::new(), by_nonce: OrdMap::new(), reply_bytes: 0 }
    }

    /// Opens a session, or finds the live one that this nonce opened: a retry makes no orphan (S12e). That is no use of it.
    pub fn open(&mut self, at: Position, nonce: [u8; 16]) -> Outcome {
        let session = *self.by_nonce.entry(nonce).or_insert(at.session());
        self.live
            .entry(session)
            .or_insert_with(|| Arc::new(Session { nonce, acknowledged: 0, answers: VecDeque::new(), last_use: None }));
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
        let Some(live) = self.live.get_mut(&session).map(Arc::make_mut) else {
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
        let Some(live) = self.live.get_mut(&session).map(Arc::make_mut) else {
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
        let Some(live) = self.live.get_mut(&session).map(Arc::make_mut) else { return };
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
        if !self.too_many() && self.reply_bytes <= self.reply_bytes_max {
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
        while self.too_many() {
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

    fn too_many(&self) -> bool {
        self.live.len() as u64 > u64::from(self.sessions_max)
    }

    /// Sessions without a request that are kept in a full table: an eighth, at least one. With none, a table full of
    /// sessions whose clients died would never let anyone in again: each new session would be the next victim before its
    /// client heard of it. With all, a storm of opens would evict every client at work (S12e).
    fn newcomers_max(&self) -> usize {
        (self.sessions_max as usize / 8).max(1)
    }

    /// Removes a session. Says whether it was there.
    fn forget(&mut self, session: SessionId) -> bool {
        let Some(live) = self.live.remove(&session) else { return false };
        self.by_nonce.remove(&live.nonce);
        self.reply_bytes -= live.answers.iter().map(Answer::bytes).sum::<u64>();
        true
    }

    /// Puts back a session that was frozen, with all its answers. False, and of no use any more, if another has its nonce.
    pub fn restore(&mut self, id: SessionId, session: Session) -> bool {
        self.reply_bytes += session.answers.iter().map(Answer::bytes).sum::<u64>();
        let unique = self.by_nonce.insert(session.nonce, id).is_none();
        self.live.insert(id, Arc::new(session));
        unique
    }

    /// Live sessions from `first` on, in the order of their ids.
    pub fn range(&self, first: SessionId) -> impl Iterator<Item = (SessionId, &Session)> {
        self.live.range(first..).map(|(id, session)| (*id, &**session))
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
