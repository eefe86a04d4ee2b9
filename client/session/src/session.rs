//! The state machine: what waits, what is in flight, what is known. Answers are taken in module `answers`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use lockstep_types::SessionId;

use crate::random::Random;
use crate::router::Router;
use crate::window::{Phase, Request, Window};
use crate::{Action, AttemptId, Doubt, Input, Micros, Options, Outcome, Rejection, Target, Ticket};

/// One client session. Opened when the first request needs it; a new one when it was evicted.
///
/// Invariants:
/// - A subject that is not answered is in `due`, or has exactly one attempt in `current`.
/// - Attempts outside `current` are older: their answers count, their failures do not.
/// - `deadlines` holds an entry for each place that has a deadline.
#[derive(Clone, Debug)]
pub struct Session {
    pub(crate) options: Options,
    pub(crate) random: Random,
    pub(crate) router: Router,
    pub(crate) life: Life,
    /// Counts the sessions; attempts of an earlier one are void.
    pub(crate) incarnation: u64,
    pub(crate) window: Window,
    /// Requests without a sequence, by order.
    pub(crate) waiting: BTreeMap<u64, Request>,
    pub(crate) reads: BTreeMap<Ticket, Read>,
    pub(crate) places: BTreeMap<Ticket, Place>,
    remembered: VecDeque<Ticket>,
    pub(crate) deadlines: BTreeSet<(Micros, Ticket)>,
    pub(crate) due: BTreeSet<Subject>,
    pub(crate) attempts: BTreeMap<AttemptId, Attempt>,
    pub(crate) current: BTreeSet<AttemptId>,
    pub(crate) next_attempt: u64,
    next_order: u64,
    /// When the last request was answered.
    pub(crate) used_at: Micros,
    wake_at: Option<Micros>,
    pub(crate) closing: Closing,
}

/// Whether there is a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// None, and none is needed yet.
    None,
    /// The log is asked for the session of this nonce.
    Opening {
        nonce: [u8; 16],
        /// The session that this nonce opened before, if it did.
        before: Option<SessionId>,
    },
    /// It can be used.
    Open { nonce: [u8; 16], id: SessionId },
}

/// Whether the session is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    /// It is not.
    No,
    /// It takes no more requests and ends at this time at the latest.
    Until(Micros),
    /// It has ended.
    Ended,
}

/// A read that is not answered.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) body: Bytes,
    pub(crate) deadline: Micros,
    pub(crate) attempts: u32,
}

/// Where a ticket is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// Among the requests without a sequence.
    Waiting { order: u64 },
    /// In the window; the application waits.
    Executing { sequence: u64 },
    /// A read; the application waits.
    Reading,
    /// In the window; the application was told that the outcome is unknown. It asks again until `watched`.
    Resolving { sequence: u64, watched: Option<Micros> },
    /// The outcome, for when the application asks.
    Known(Outcome),
}

/// What an attempt is about. The order is that of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// The session itself.
    Open,
    /// A sequence of the session: to execute or to resolve.
    Sequence(u64),
    /// The end of the session.
    Close,
    /// A read.
    Read(Ticket),
}

/// One attempt without an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) subject: Subject,
    pub(crate) target: Target,
    pub(crate) incarnation: u64,
    /// What was acknowledged when it was sent.
    pub(crate) acknowledged: u64,
    /// It asks to execute, not to resolve.
    pub(crate) executes: bool,
    pub(crate) sent_at: Micros,
}

impl Session {
    /// A session that is not open yet and knows no target.
    pub fn new(options: Options) -> Self {
        Session {
            random: Random::new(options.seed),
            options,
            router: Router::new(),
            life: Life::None,
            incarnation: 0,
            window: Window::new(),
            waiting: BTreeMap::new(),
            reads: BTreeMap::new(),
            places: BTreeMap::new(),
            remembered: VecDeque::new(),
            deadlines: BTreeSet::new(),
            due: BTreeSet::new(),
            attempts: BTreeMap::new(),
            current: BTreeSet::new(),
            next_attempt: 1,
            next_order: 0,
            used_at: 0,
            wake_at: None,
            closing: Closing::No,
        }
    }

    /// Takes one input at `now`, which never goes back, and says what to do, in order.
    pub fn step(&mut self, now: Micros, input: Input) -> Vec<Action> {
        let mut out = Vec::new();
        if self.closing == Closing::Ended {
            if let Input::Submit { ticket, .. } | Input::SubmitRead { ticket, .. } = input {
                complete(&mut out, ticket, Outcome::Rejected { reason: Rejection::Closed });
            } else if let Input::Resolve { ticket, .. } = input {
                complete(&mut out, ticket, Outcome::Unknown { reason: Doubt::Closed });
            }
            return out;
        }
        match input {
            Input::Targets(targets) => self.router.set_targets(targets, &mut self.random),
            Input::Prefer { target } => {
                if self.router.prefer(now, target) {
                    self.send_again();
                }
            }
            Input::Submit { ticket, body, deadline } => self.submit(ticket, body, deadline, &mut out),
            Input::SubmitRead { ticket, body, deadline } => self.submit_read(ticket, body, deadline, &mut out),
            Input::Resolve { ticket, deadline } => self.resolve(ticket, deadline, &mut out),
            Input::Forget { ticket } => self.forget(ticket),
            Input::Answered { id, answer } => self.answered(now, id, answer, &mut out),
            Input::Unsent { ids } => self.unsent(ids),
            Input::Disconnected { target, unsent } => {
                self.unsent(unsent);
                self.disconnected(now, target);
            }
            Input::Close { deadline } => {
                if self.closing == Closing::No {
                    self.closing = Closing::Until(deadline);
                }
            }
            Input::Tick => {}
        }
        self.expire(now, &mut out);
        self.flush(now, &mut out);
        self.end(now, &mut out);
        self.wake(now, &mut out);
        out
    }

    /// The session, once it is open.
    pub fn id(&self) -> Option<SessionId> {
        match self.life {
            Life::Open { id, .. } => Some(id),
            Life::None | Life::Opening { .. } => None,
        }
    }

    /// The target that is asked now.
    pub fn target(&self) -> Option<Target> {
        self.router.current()
    }

    /// Requests and reads that the application waits for.
    pub fn under_way(&self) -> usize {
        let executing = self.window.writes.values().filter(|write| write.phase == Phase::Executing).count();
        self.waiting.len() + executing + self.reads.len()
    }

    /// Sequences that the log is asked about in the background.
    pub fn resolving(&self) -> usize {
        self.window.writes.values().filter(|write| write.phase != Phase::Executing).count()
    }

    fn submit(&mut self, ticket: Ticket, body: Bytes, deadline: Micros, out: &mut Vec<Action>) {
        if self.closing != Closing::No {
            return complete(out, ticket, Outcome::Rejected { reason: Rejection::Closed });
        }
        let order = self.next_order;
        self.next_order += 1;
        let before = self.places.insert(ticket, Place::Waiting { order });
        assert!(before.is_none(), "ticket {ticket} was used before");
        self.deadlines.insert((deadline, ticket));
        self.waiting.insert(order, Request { ticket, order, body, deadline });
    }

    fn submit_read(&mut self, ticket: Ticket, body: Bytes, deadline: Micros, out: &mut Vec<Action>) {
        if self.closing != Closing::No {
            return complete(out, ticket, Outcome::Rejected { reason: Rejection::Closed });
        }
        let before = self.places.insert(ticket, Place::Reading);
        assert!(before.is_none(), "ticket {ticket} was used before");
        self.deadlines.insert((deadline, ticket));
        self.reads.insert(ticket, Read { body, deadline, attempts: 0 });
        self.due.insert(Subject::Read(ticket));
    }

    fn resolve(&mut self, ticket: Ticket, deadline: Micros, out: &mut Vec<Action>) {
        match self.places.get_mut(&ticket) {
            Some(Place::Known(outcome)) => {
                let outcome = outcome.clone();
                complete(out, ticket, outcome);
            }
            Some(Place::Resolving { watched, .. }) => {
                if let Some(before) = watched.replace(deadline) {
                    self.deadlines.remove(&(before, ticket));
                }
                self.deadlines.insert((deadline, ticket));
            }
            // The application waits for it already, and will be told.
            Some(Place::Waiting { .. } | Place::Executing { .. } | Place::Reading) => {}
            None => complete(out, ticket, Outcome::Unknown { reason: Doubt::Forgotten }),
        }
    }

    fn forget(&mut self, ticket: Ticket) {
        match self.places.get(&ticket) {
            Some(Place::Known(_)) => {
                self.places.remove(&ticket);
                // `remembered` keeps the ticket until it is its turn.
            }
            Some(Place::Resolving { sequence, watched }) => {
                if let Some(deadline) = watched {
                    self.deadlines.remove(&(*deadline, ticket));
                }
                if let Some(write) = self.window.writes.get_mut(sequence) {
                    write.phase = Phase::Discarding;
                }
                self.places.remove(&ticket);
            }
            // Under way: it completes by its deadline.
            Some(Place::Waiting { .. } | Place::Executing { .. } | Place::Reading) | None => {}
        }
    }

    /// Keeps an outcome for [`Input::Resolve`].
    pub(crate) fn remember(&mut self, ticket: Ticket, outcome: Outcome) {
        self.places.insert(ticket, Place::Known(outcome));
        self.remembered.push_back(ticket);
        while self.remembered.len() > self.options.remembered_max {
            let oldest = self.remembered.pop_front().expect("it is longer than a limit");
            if let Some(Place::Known(_)) = self.places.get(&oldest) {
                self.places.remove(&oldest);
            }
        }
    }

    fn expire(&mut self, now: Micros, out: &mut Vec<Action>) {
        while let Some((deadline, ticket)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.deadlines.pop_first();
            self.expire_ticket(ticket, out);
        }
        if let Some(oldest) = self.current.first()
            && self.attempts[oldest].sent_at + self.router.attempt_timeout(&self.options) <= now
        {
            let target = self.attempts[oldest].target;
            self.router.timed_out(now, target, &self.options);
            self.send_again();
        }
    }

    fn expire_ticket(&mut self, ticket: Ticket, out: &mut Vec<Action>) {
        let place = self.places.get_mut(&ticket).expect("a deadline belongs to a place");
        match place {
            Place::Waiting { order } => {
                self.waiting.remove(order);
                self.places.remove(&ticket);
                complete(out, ticket, Outcome::Rejected { reason: Rejection::NeverProposed });
            }
            Place::Executing { sequence } => {
                let sequence = *sequence;
                let write = self.window.writes.get_mut(&sequence).expect("its place is the window");
                if write.is_untouched() {
                    write.phase = Phase::Discarding;
                    self.places.remove(&ticket);
                    complete(out, ticket, Outcome::Rejected { reason: Rejection::NeverProposed });
                } else {
                    write.phase = Phase::Resolving;
                    *place = Place::Resolving { sequence, watched: None };
                    complete(out, ticket, Outcome::Unknown { reason: Doubt::Unconfirmed });
                }
                write.request.body = Bytes::new();
                self.ask_anew(Subject::Sequence(sequence));
            }
            Place::Reading => {
                self.places.remove(&ticket);
                self.drop_subject(Subject::Read(ticket));
                self.reads.remove(&ticket);
                complete(out, ticket, Outcome::Rejected { reason: Rejection::Unanswered });
            }
            Place::Resolving { watched, .. } => {
                *watched = None;
                complete(out, ticket, Outcome::Unknown { reason: Doubt::Unconfirmed });
            }
            Place::Known(_) => unreachable!("an outcome has no deadline"),
        }
    }

    /// Goes on with closing.
    fn end(&mut self, now: Micros, out: &mut Vec<Action>) {
        let Closing::Until(deadline) = self.closing else { return };
        let late = deadline <= now;
        if !late && self.under_way() > 0 {
            return;
        }
        if late {
            self.abandon(out);
        } else if let Life::Open { .. } = self.life {
            if !self.is_asked(Subject::Close) {
                self.due.insert(Subject::Close);
                self.flush(now, out);
            }
            return;
        }
        self.closing = Closing::Ended;
        out.push(Action::Closed);
    }

    /// Completes all that is under way, honestly.
    pub(crate) fn abandon(&mut self, out: &mut Vec<Action>) {
        for (_, request) in std::mem::take(&mut self.waiting) {
            complete(out, request.ticket, Outcome::Rejected { reason: Rejection::Closed });
        }
        for (ticket, _) in std::mem::take(&mut self.reads) {
            complete(out, ticket, Outcome::Rejected { reason: Rejection::Unanswered });
        }
        for write in self.window.writes.values().filter(|write| write.phase == Phase::Executing) {
            let outcome = match write.is_untouched() {
                true => Outcome::Rejected { reason: Rejection::Closed },
                false => Outcome::Unknown { reason: Doubt::Closed },
            };
            complete(out, write.request.ticket, outcome);
        }
        for (ticket, place) in &self.places {
            if let Place::Resolving { watched: Some(_), .. } = place {
                complete(out, *ticket, Outcome::Unknown { reason: Doubt::Closed });
            }
        }
    }

    fn wake(&mut self, now: Micros, out: &mut Vec<Action>) {
        if self.closing == Closing::Ended {
            return;
        }
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        let attempt =
            self.current.first().map(|id| self.attempts[id].sent_at + self.router.attempt_timeout(&self.options));
        let wants_to_send = !self.due.is_empty() || (!self.waiting.is_empty() && self.window.has_room());
        let resume = wants_to_send.then(|| self.router.not_before()).filter(|at| *at > now);
        let closing = match self.closing {
            Closing::Until(deadline) => Some(deadline),
            Closing::No | Closing::Ended => None,
        };
        let wake_at = [deadline, attempt, resume, closing].into_iter().flatten().min();
        if let Some(at) = wake_at
            && wake_at != self.wake_at
        {
            out.push(Action::WakeAt(at));
        }
        self.wake_at = wake_at;
    }
}

pub(crate) fn complete(out: &mut Vec<Action>, ticket: Ticket, outcome: Outcome) {
    out.push(Action::Complete { ticket, outcome });
}
