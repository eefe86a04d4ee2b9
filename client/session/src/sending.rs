//! What is sent, where and when, and what is sent again.

use lockstep_types::Command;

use crate::session::{Attempt, Life, Place, Subject};
use crate::window::Phase;
use crate::{Action, AttemptId, Micros, Operation, RefusalKind, Session, Target};

impl Session {
    pub(crate) fn flush(&mut self, now: Micros, out: &mut Vec<Action>) {
        self.open_if_needed(now);
        if self.due.is_empty() && (self.waiting.is_empty() || !self.window.has_room()) || now < self.router.not_before()
        {
            return;
        }
        let Some(target) = self.router.target(now) else { return };
        while let Some(subject) = self.due.first().copied() {
            if matches!(subject, Subject::Read(_)) {
                break;
            }
            self.due.pop_first();
            if subject != Subject::Open || !self.waiting.is_empty() {
                self.send(now, target, subject, out);
            }
        }
        if matches!(self.life, Life::Open { .. }) {
            while self.window.has_room()
                && let Some((_, request)) = self.waiting.pop_first()
            {
                let ticket = request.ticket;
                let sequence = self.window.assign(request);
                self.places.insert(ticket, Place::Executing { sequence });
                self.send(now, target, Subject::Sequence(sequence), out);
            }
        }
        while self.current.len() < self.options.attempts_max
            && let Some(subject) = self.due.pop_first()
        {
            self.send(now, target, subject, out);
        }
    }

    /// A request waits, so there must be a session; one that was idle for long may be gone, and asking costs nothing then.
    fn open_if_needed(&mut self, now: Micros) {
        if self.waiting.is_empty() {
            return;
        }
        match self.life {
            Life::None => self.life = Life::Opening { nonce: self.random.nonce(), before: None },
            Life::Open { nonce, id } if self.window.writes.is_empty() && self.used_at + self.options.idle <= now => {
                self.life = Life::Opening { nonce, before: Some(id) };
            }
            Life::Opening { .. } if !self.is_asked(Subject::Open) => {}
            Life::Open { .. } | Life::Opening { .. } => return,
        }
        self.due.insert(Subject::Open);
    }

    pub(crate) fn is_asked(&self, subject: Subject) -> bool {
        self.due.contains(&subject) || self.current.iter().any(|id| self.attempts[id].subject == subject)
    }

    fn send(&mut self, now: Micros, target: Target, subject: Subject, out: &mut Vec<Action>) {
        let in_background = 4 * self.options.attempt_timeout;
        let mut executes = false;
        let (operation, timeout) = match subject {
            Subject::Open => {
                let Life::Opening { nonce, .. } = self.life else {
                    unreachable!("only a session that opens is asked for")
                };
                (Operation::Command(Command::OpenSession { nonce }), in_background)
            }
            Subject::Sequence(sequence) => {
                let session = self.id().expect("sequences belong to an open session");
                let acknowledged = self.window.acknowledged();
                let write = self.window.writes.get_mut(&sequence).expect("a due sequence is in the window");
                write.attempts += 1;
                executes = write.phase == Phase::Executing;
                if executes {
                    let body = write.request.body.clone();
                    let command = Command::Execute { session, sequence, acknowledged, body };
                    (Operation::Command(command), write.request.deadline.saturating_sub(now))
                } else {
                    (Operation::Command(Command::Resolve { session, sequence }), in_background)
                }
            }
            Subject::Close => {
                let session = self.id().expect("only an open session is closed");
                (Operation::Command(Command::CloseSession { session }), in_background)
            }
            Subject::Read(ticket) => {
                let read = self.reads.get_mut(&ticket).expect("a due read is not answered");
                read.attempts += 1;
                (Operation::Read { body: read.body.clone() }, read.deadline.saturating_sub(now))
            }
        };
        let id = AttemptId(self.next_attempt);
        self.next_attempt += 1;
        let (incarnation, acknowledged) = (self.incarnation, self.window.acknowledged());
        self.attempts.insert(id, Attempt { subject, target, incarnation, acknowledged, executes, sent_at: now });
        self.current.insert(id);
        out.push(Action::Send { target, id, timeout, operation });
    }

    /// The caller could not send: nothing reached anybody.
    pub(crate) fn unsent(&mut self, ids: Vec<AttemptId>) {
        for id in ids {
            self.end_attempt(id, false);
        }
    }

    pub(crate) fn disconnected(&mut self, now: Micros, target: Target) {
        let lost: Vec<AttemptId> =
            self.attempts.iter().filter(|(_, attempt)| attempt.target == target).map(|(id, _)| *id).collect();
        for id in lost {
            self.end_attempt(id, true);
        }
        if self.router.current() == Some(target) {
            self.router.disconnected(now, target, &self.options, &mut self.random);
            self.send_again();
        }
    }

    /// An attempt gets no answer.
    fn end_attempt(&mut self, id: AttemptId, tainted: bool) {
        let Some(attempt) = self.attempts.remove(&id) else { return };
        self.count_down(&attempt, tainted);
        if self.current.remove(&id) {
            self.due.insert(attempt.subject);
        }
    }

    /// One attempt fewer to wait for.
    pub(crate) fn count_down(&mut self, attempt: &Attempt, tainted: bool) {
        match attempt.subject {
            Subject::Sequence(sequence) if attempt.incarnation == self.incarnation => {
                if let Some(write) = self.window.writes.get_mut(&sequence) {
                    write.attempts -= 1;
                    write.tainted |= tainted;
                }
            }
            Subject::Read(ticket) => {
                if let Some(read) = self.reads.get_mut(&ticket) {
                    read.attempts -= 1;
                }
            }
            Subject::Open | Subject::Close | Subject::Sequence(_) => {}
        }
    }

    /// Whatever is in flight is sent again, in order: another replica is asked now.
    pub(crate) fn send_again(&mut self) {
        for id in std::mem::take(&mut self.current) {
            self.due.insert(self.attempts[&id].subject);
        }
        // A replica that takes attempts and never answers does not fill our memory.
        while self.attempts.len() > 4 * self.options.attempts_max {
            let oldest = *self.attempts.first_key_value().expect("it is longer than a limit").0;
            self.end_attempt(oldest, true);
        }
    }

    /// The attempt under way no longer asks the right thing: another one is due.
    pub(crate) fn ask_anew(&mut self, subject: Subject) {
        let attempts = &self.attempts;
        self.current.retain(|id| attempts[id].subject != subject);
        self.due.insert(subject);
    }

    /// Nothing about this subject is sent or waited for any more.
    pub(crate) fn drop_subject(&mut self, subject: Subject) {
        self.due.remove(&subject);
        let current = &mut self.current;
        self.attempts.retain(|id, attempt| {
            let keep = attempt.subject != subject;
            if !keep {
                current.remove(id);
            }
            keep
        });
    }

    /// What a refusal means for the way; only the attempt that counts has a say.
    pub(crate) fn reroute(&mut self, now: Micros, kind: RefusalKind, leader: Option<Target>) {
        if self.router.refused(now, kind, leader, &self.options, &mut self.random) {
            self.send_again();
        }
    }
}
