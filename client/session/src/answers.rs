//! What an answer means. Any answer of the log counts, also to an attempt that was given up; a refusal counts only if the
//! attempt was the latest.

use lockstep_types::{Outcome as LogOutcome, SessionId};

use crate::session::{Attempt, Closing, Life, Place, Subject, complete};
use crate::window::{Phase, Window};
use crate::{Action, Answer, AttemptId, Doubt, Micros, Outcome, Refusal, Rejection, Session, Ticket};

impl Session {
    /// Takes the answer to an attempt; an unknown attempt is one that no longer matters.
    pub(crate) fn answered(&mut self, now: Micros, id: AttemptId, answer: Answer, out: &mut Vec<Action>) {
        let Some(attempt) = self.attempts.remove(&id) else { return };
        let latest = self.current.remove(&id);
        let refusal = match answer {
            Answer::Refused(refusal) => refusal,
            Answer::Outcome(outcome) => {
                self.router.answered();
                return self.log_answered(now, &attempt, latest, outcome, out);
            }
            Answer::Invalid { reason } => {
                self.router.answered();
                return self.invalid(now, &attempt, latest, reason, out);
            }
        };
        let Refusal { kind, never_proposed, leader } = refusal;
        self.count_down(&attempt, !never_proposed);
        if latest {
            self.due.insert(attempt.subject);
            self.reroute(now, kind, leader);
        }
    }

    fn log_answered(
        &mut self,
        now: Micros,
        attempt: &Attempt,
        latest: bool,
        outcome: LogOutcome,
        out: &mut Vec<Action>,
    ) {
        match attempt.subject {
            Subject::Open => match outcome {
                LogOutcome::SessionOpened { session } => self.opened(now, session),
                LogOutcome::SessionClosed
                | LogOutcome::Replied { .. }
                | LogOutcome::Cancelled
                | LogOutcome::Gap { .. }
                | LogOutcome::OverWindow { .. }
                | LogOutcome::AlreadyAcknowledged
                | LogOutcome::Evicted
                | LogOutcome::Invalid { .. }
                | LogOutcome::SnapshotPoint { .. } => self.try_later(now, attempt, latest),
            },
            Subject::Close => self.closed(out),
            Subject::Read(ticket) => match outcome {
                LogOutcome::Replied { reply } => self.read_done(ticket, Outcome::Committed { reply }, out),
                LogOutcome::SessionOpened { .. }
                | LogOutcome::SessionClosed
                | LogOutcome::Cancelled
                | LogOutcome::Gap { .. }
                | LogOutcome::OverWindow { .. }
                | LogOutcome::AlreadyAcknowledged
                | LogOutcome::Evicted
                | LogOutcome::Invalid { .. }
                | LogOutcome::SnapshotPoint { .. } => self.try_later(now, attempt, latest),
            },
            Subject::Sequence(sequence) => {
                if attempt.incarnation == self.incarnation {
                    self.used_at = now;
                    self.sequence_answered(now, attempt, sequence, latest, outcome, out);
                }
            }
        }
    }

    fn sequence_answered(
        &mut self,
        now: Micros,
        attempt: &Attempt,
        sequence: u64,
        latest: bool,
        outcome: LogOutcome,
        out: &mut Vec<Action>,
    ) {
        match outcome {
            LogOutcome::Replied { reply } => self.settle(sequence, Outcome::Committed { reply }, out),
            LogOutcome::Cancelled => {
                self.settle(sequence, Outcome::Rejected { reason: Rejection::Cancelled }, out);
            }
            LogOutcome::Gap { expected } => {
                // What was acknowledged before it was sent cannot be missing: the session's table is not ours any more.
                if expected <= attempt.acknowledged {
                    self.lose(out);
                } else {
                    self.try_later(now, attempt, latest);
                }
            }
            LogOutcome::OverWindow { limit } => {
                self.window.narrow(limit);
                self.try_later(now, attempt, latest);
            }
            LogOutcome::AlreadyAcknowledged => {
                self.settle(sequence, Outcome::Unknown { reason: Doubt::Forgotten }, out);
            }
            LogOutcome::Evicted => {
                self.count_down(attempt, true);
                self.lose(out);
            }
            LogOutcome::Invalid { reason } => self.invalid(now, attempt, latest, reason.to_string(), out),
            LogOutcome::SessionOpened { .. } | LogOutcome::SessionClosed | LogOutcome::SnapshotPoint { .. } => {
                self.try_later(now, attempt, latest);
            }
        }
    }

    /// The log has not recorded anything: the same again, a little later.
    fn try_later(&mut self, now: Micros, attempt: &Attempt, latest: bool) {
        self.count_down(attempt, true);
        if latest {
            self.due.insert(attempt.subject);
            self.reroute(now, crate::RefusalKind::Overloaded, None);
        }
    }

    fn invalid(&mut self, now: Micros, attempt: &Attempt, latest: bool, reason: String, out: &mut Vec<Action>) {
        match attempt.subject {
            Subject::Open => self.try_later(now, attempt, latest),
            Subject::Close => self.closed(out),
            Subject::Read(ticket) => {
                let outcome = Outcome::Rejected { reason: Rejection::Invalid { reason } };
                self.read_done(ticket, outcome, out);
            }
            Subject::Sequence(_) if attempt.incarnation != self.incarnation => {}
            Subject::Sequence(_) if !attempt.executes => self.lose(out),
            Subject::Sequence(sequence) => {
                self.count_down(attempt, false);
                let Some(write) = self.window.writes.get_mut(&sequence) else { return };
                if write.phase != Phase::Executing {
                    return;
                }
                let ticket = write.request.ticket;
                self.deadlines.remove(&(write.request.deadline, ticket));
                if write.is_untouched() {
                    write.phase = Phase::Discarding;
                    self.places.remove(&ticket);
                    complete(out, ticket, Outcome::Rejected { reason: Rejection::Invalid { reason } });
                } else {
                    // An earlier attempt may have been taken.
                    write.phase = Phase::Resolving;
                    self.places.insert(ticket, Place::Resolving { sequence, watched: None });
                    complete(out, ticket, Outcome::Unknown { reason: Doubt::Unconfirmed });
                }
                self.ask_anew(Subject::Sequence(sequence));
            }
        }
    }

    fn opened(&mut self, now: Micros, session: SessionId) {
        let Life::Opening { nonce, before } = self.life else { return };
        self.drop_subject(Subject::Open);
        if before.is_some_and(|before| before != session) {
            self.window = Window::new();
            self.incarnation += 1;
        }
        self.life = Life::Open { nonce, id: session };
        self.used_at = now;
    }

    fn closed(&mut self, out: &mut Vec<Action>) {
        self.abandon(out);
        self.closing = Closing::Ended;
        out.push(Action::Closed);
    }

    fn read_done(&mut self, ticket: Ticket, outcome: Outcome, out: &mut Vec<Action>) {
        let Some(read) = self.reads.remove(&ticket) else { return };
        self.deadlines.remove(&(read.deadline, ticket));
        self.places.remove(&ticket);
        // The answered attempt is out already.
        if read.attempts > 1 || self.due.contains(&Subject::Read(ticket)) {
            self.drop_subject(Subject::Read(ticket));
        }
        complete(out, ticket, outcome);
    }

    /// A sequence has its final answer.
    fn settle(&mut self, sequence: u64, outcome: Outcome, out: &mut Vec<Action>) {
        let Some(write) = self.window.settle(sequence) else { return };
        if write.attempts > 1 || self.due.contains(&Subject::Sequence(sequence)) {
            self.drop_subject(Subject::Sequence(sequence));
        }
        let ticket = write.request.ticket;
        match write.phase {
            Phase::Executing => {
                self.deadlines.remove(&(write.request.deadline, ticket));
                self.places.remove(&ticket);
                complete(out, ticket, outcome);
            }
            Phase::Resolving => self.resolved(ticket, outcome, out),
            Phase::Discarding => {}
        }
    }

    /// More is known of a ticket whose outcome was unknown.
    fn resolved(&mut self, ticket: Ticket, outcome: Outcome, out: &mut Vec<Action>) {
        if let Some(Place::Resolving { watched: Some(deadline), .. }) = self.places.get(&ticket) {
            self.deadlines.remove(&(*deadline, ticket));
            complete(out, ticket, outcome.clone());
        }
        self.remember(ticket, outcome);
    }

    /// The session is gone. What may have reached a log stays unknown for good; the rest waits for the next session.
    fn lose(&mut self, out: &mut Vec<Action>) {
        let window = std::mem::replace(&mut self.window, Window::new());
        self.incarnation += 1;
        self.life = Life::None;
        self.due.retain(|subject| !matches!(subject, Subject::Sequence(_) | Subject::Close));
        self.attempts.retain(|_, attempt| !matches!(attempt.subject, Subject::Sequence(_) | Subject::Close));
        let attempts = &self.attempts;
        self.current.retain(|id| attempts.contains_key(id));
        for write in window.writes.into_values() {
            let untouched = write.is_untouched();
            let (ticket, phase) = (write.request.ticket, write.phase);
            let unknown = Outcome::Unknown { reason: Doubt::Evicted };
            match phase {
                Phase::Executing if untouched => {
                    self.places.insert(ticket, Place::Waiting { order: write.request.order });
                    self.waiting.insert(write.request.order, write.request);
                }
                Phase::Executing => {
                    self.deadlines.remove(&(write.request.deadline, ticket));
                    complete(out, ticket, unknown.clone());
                    self.remember(ticket, unknown);
                }
                Phase::Resolving => self.resolved(ticket, unknown, out),
                Phase::Discarding => {}
            }
        }
    }
}
