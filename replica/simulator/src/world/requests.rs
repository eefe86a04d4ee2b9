//! Requests of clients and their answers, on their way between a client and a replica's engine.

use super::*;

impl World {
    pub(super) fn door_delay(&mut self) -> Micros {
        let (low, high) = self.plan.doors.latency;
        self.random.between(low, high)
    }

    pub(super) fn request(&mut self, asker: Asker, target: usize, timeout: Micros) -> Result<(), Violation> {
        if asker.client != MONITOR && self.doors_cut[asker.client][target] > self.now {
            return Ok(());
        }
        let now = self.local(target);
        let host = &mut self.hosts[target];
        let State::Up { .. } = host.state else {
            if asker.client != MONITOR && self.random.percent(80) {
                let Asker { client, generation, attempt, .. } = asker;
                let delay = self.door_delay();
                self.after(delay, Event::Disconnected { client, generation, target, unsent: vec![attempt] });
            }
            return Ok(());
        };
        host.next_token += 1;
        let token = Token(host.next_token);
        let operation = match &asker.operation {
            ClientOperation::Command(command) => {
                self.trace.line(self.now, format_args!("c{}→{} {command}", asker.client, slot(target)));
                Operation::Command(command.encode())
            }
            ClientOperation::Read { body } => {
                match asker.client {
                    MONITOR => self.trace.line(self.now, format_args!("monitor→{} read", slot(target))),
                    client => {
                        self.trace.line(self.now, format_args!("c{client}→{} read {}B", slot(target), body.len()))
                    }
                }
                Operation::Read(body.clone())
            }
        };
        self.hosts[target].tokens.insert(token, asker);
        let deadline = now.plus(timeout);
        self.handle(target, EngineEvent::Request { token, operation, deadline })
    }

    pub(super) fn reply(&mut self, replica: usize, token: Token, answer: Answer) -> Result<(), Violation> {
        let asker = self.hosts[replica].tokens.remove(&token);
        let Some(asker) = asker else {
            return Err(Violation {
                property: "one answer per request",
                detail: format!("{} answers {token:?} twice", slot(replica)),
            });
        };
        if asker.client == MONITOR {
            if let Answer::Read(reply) = answer {
                self.counters.add(Kind::ReadMonitor);
                self.trace.line(self.now, format_args!("{}→monitor read {}B", slot(replica), reply.len()));
                self.checkers.read_answered(&key(asker.attempt.0), &reply, asker.generation)?;
            }
            return Ok(());
        }
        let now = self.local(replica);
        let State::Up { engine, .. } = &self.hosts[replica].state else { unreachable!("it answers") };
        let leader = engine.leader(now).map(|leader| Target(leader.get() - 1));
        let leads = leader == Some(Target(replica as u32));
        let hint = leader.filter(|_| !leads && self.random.percent(self.plan.clients.follow_hints));
        let refused =
            |kind, never_proposed| ClientAnswer::Refused(ClientRefusal { kind, never_proposed, leader: hint });
        let answer = match (answer, &asker.operation) {
            (Answer::Outcome(outcome), ClientOperation::Command(command)) => {
                self.checkers.answers(command, &outcome, &mut self.counters)?;
                self.trace.line(self.now, format_args!("{}→c{} {command}: {outcome}", slot(replica), asker.client));
                ClientAnswer::Outcome(outcome)
            }
            (Answer::Read(reply), ClientOperation::Read { .. }) => {
                self.counters.add(if leads { Kind::ReadLeader } else { Kind::ReadFollower });
                self.trace.line(self.now, format_args!("{}→c{} read {}B", slot(replica), asker.client, reply.len()));
                ClientAnswer::Outcome(LogOutcome::Replied { reply })
            }
            (Answer::Refused(refusal), _) => {
                self.trace.line(self.now, format_args!("{}→c{} {refusal:?}", slot(replica), asker.client));
                match refusal {
                    Refusal::Overloaded => refused(RefusalKind::Overloaded, true),
                    Refusal::NoLeader { never_proposed } => {
                        self.counters.add(Kind::RefusedNoLeader);
                        refused(RefusalKind::Unavailable, never_proposed)
                    }
                    Refusal::Fenced => {
                        self.counters.add(Kind::RefusedFenced);
                        refused(RefusalKind::Unavailable, true)
                    }
                    Refusal::Deadline { never_proposed } => {
                        self.counters.add(Kind::RefusedDeadline);
                        refused(RefusalKind::Unavailable, never_proposed)
                    }
                }
            }
            (answer, operation) => {
                return Err(Violation {
                    property: "one answer per request",
                    detail: format!("{} answers {operation:?} with {answer:?}", slot(replica)),
                });
            }
        };
        let Asker { client, generation, attempt, .. } = asker;
        if let Some(at) = self.through_door(client, replica, false) {
            self.at(at, Event::Answered { client, generation, target: replica, id: attempt, answer, leader: hint });
        }
        Ok(())
    }

    /// When a message between client and replica arrives, if it does.
    pub(super) fn through_door(&mut self, client: usize, replica: usize, asks: bool) -> Option<Micros> {
        let link = self.plan.doors.clone();
        if self.doors_cut[client][replica] > self.now || self.random.per_mille(link.loss) {
            return None;
        }
        let (delay, overtaken) = travel(&link, &mut self.random, &mut self.counters);
        let (asked, answered) = &mut self.doors_busy[client][replica];
        let busy = if asks { asked } else { answered };
        if overtaken {
            return Some(self.now + delay);
        }
        *busy = (self.now + delay).max(*busy);
        Some(*busy)
    }
}
