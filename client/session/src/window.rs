//! Sequences of one session: those in flight, and up to where all are answered.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lockstep_types::limits::SESSION_WINDOW;

use crate::{Micros, Ticket};

/// A request that has a sequence and no answer yet.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) request: Request,
    pub(crate) phase: Phase,
    /// An attempt ended without an answer: it may have reached a log.
    pub(crate) tainted: bool,
    /// Attempts without an answer yet.
    pub(crate) attempts: u32,
}

/// A request of the application.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) ticket: Ticket,
    /// Counts up with every submission: the order in which they are sent.
    pub(crate) order: u64,
    pub(crate) body: Bytes,
    pub(crate) deadline: Micros,
}

/// What a sequence waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// To be executed.
    Executing,
    /// The application was told that the outcome is unknown; the log is asked.
    Resolving,
    /// The application knows enough; the sequence must still be consumed.
    Discarding,
}

impl Write {
    /// Whether no attempt can have reached a log.
    pub(crate) fn is_untouched(&self) -> bool {
        !self.tainted && self.attempts == 0
    }
}

/// The sequences of one session. `acknowledged < every unanswered sequence < next`.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    acknowledged: u64,
    /// Answered, above `acknowledged + 1`.
    answered: BTreeSet<u64>,
    next: u64,
    limit: u64,
    pub(crate) writes: BTreeMap<u64, Write>,
}

impl Window {
    pub(crate) fn new() -> Self {
        Window { acknowledged: 0, answered: BTreeSet::new(), next: 1, limit: SESSION_WINDOW, writes: BTreeMap::new() }
    }

    /// Every sequence up to here is answered.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Whether another request may get a sequence.
    pub(crate) fn has_room(&self) -> bool {
        self.next < self.acknowledged + self.limit
    }

    /// Gives the next sequence to a request.
    pub(crate) fn assign(&mut self, request: Request) -> u64 {
        let sequence = self.next;
        self.next += 1;
        self.writes.insert(sequence, Write { request, phase: Phase::Executing, tainted: false, attempts: 0 });
        sequence
    }

    /// A sequence is answered for good.
    pub(crate) fn settle(&mut self, sequence: u64) -> Option<Write> {
        let write = self.writes.remove(&sequence)?;
        self.answered.insert(sequence);
        while self.answered.remove(&(self.acknowledged + 1)) {
            self.acknowledged += 1;
        }
        Some(write)
    }

    /// The service takes no more than this many in flight.
    pub(crate) fn narrow(&mut self, limit: u64) {
        self.limit = self.limit.min(limit.max(2));
    }
}
