//! One session: the window of sequences that the table remembers, and their answers. Not here: which sessions there are.

use std::collections::VecDeque;

use bytes::Bytes;
use lockstep_types::Outcome;
use lockstep_types::limits::SESSION_WINDOW;

use super::{Position, Verdict};

/// Invariant: the last sequence is `acknowledged + answers.len()`, at most [`SESSION_WINDOW`] above `acknowledged`.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub nonce: [u8; 16],
    /// Every sequence up to here was answered and forgotten.
    pub acknowledged: u64,
    /// Answers to the sequences from `acknowledged + 1` on.
    pub answers: VecDeque<Answer>,
    /// The last command that was executed, cancelled or answered again. None: no request yet.
    pub last_use: Option<Position>,
}

#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// In this place of the batch of the block under way.
    Running(usize),
    Replied(Bytes),
    Cancelled,
}

impl Session {
    /// Refuses a sequence beyond the window, or as [`Session::check_order`]. A refused request changes nothing; its word on
    /// what is acknowledged counts for itself only.
    pub fn check(&self, sequence: u64, acknowledged: u64) -> Result<(), Outcome> {
        let acknowledged = acknowledged.clamp(self.acknowledged, self.last());
        if sequence > acknowledged.saturating_add(SESSION_WINDOW) {
            return Err(Outcome::OverWindow { limit: SESSION_WINDOW });
        }
        self.check_order(sequence)
    }

    /// Refuses a sequence that is forgotten or beyond the next one.
    pub fn check_order(&self, sequence: u64) -> Result<(), Outcome> {
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
    pub fn acknowledge(&mut self, acknowledged: u64) -> u64 {
        let mut freed = 0;
        while self.acknowledged < acknowledged {
            let answer = self.answers.pop_front().expect("what is acknowledged lies below a sequence in the table");
            freed += answer.bytes();
            self.acknowledged += 1;
        }
        freed
    }

    pub fn answer_mut(&mut self, sequence: u64) -> Option<&mut Answer> {
        let offset = usize::try_from(sequence.checked_sub(self.acknowledged + 1)?).ok()?;
        self.answers.get_mut(offset)
    }

    pub fn answer(&self, sequence: u64) -> Option<&Answer> {
        let offset = usize::try_from(sequence.checked_sub(self.acknowledged + 1)?).ok()?;
        self.answers.get(offset)
    }

    /// The last sequence executed or cancelled; 0 before the first.
    pub fn last(&self) -> u64 {
        self.acknowledged + self.answers.len() as u64
    }
}

impl Answer {
    pub fn again(&self) -> Verdict {
        match self {
            Answer::Running(place) => Verdict::AgainInBatch(*place),
            Answer::Replied(reply) => Verdict::Again(Outcome::Replied { reply: reply.clone() }),
            Answer::Cancelled => Verdict::Again(Outcome::Cancelled),
        }
    }

    pub fn bytes(&self) -> u64 {
        match self {
            Answer::Running(_) | Answer::Cancelled => 0,
            Answer::Replied(reply) => reply.len() as u64,
        }
    }
}
