//! Clients: the release's own sessions, what they ask for, and what their outcomes must be.

use super::*;

impl World {
    pub(super) fn client_step(&mut self, client: usize, input: Input) -> Result<(), Violation> {
        // An answer may lead to another input: that one waits until all that the first asks for is done.
        self.inputs.push_back((client, self.clients[client].generation, input));
        if self.inputs.len() > 1 {
            return Ok(());
        }
        while let Some((client, generation, input)) = self.inputs.front().cloned() {
            if self.clients[client].generation == generation {
                self.client_takes(client, input)?;
            }
            self.inputs.pop_front();
        }
        Ok(())
    }

    pub(super) fn client_takes(&mut self, client: usize, input: Input) -> Result<(), Violation> {
        let generation = self.clients[client].generation;
        let actions = self.clients[client].session.step(self.now, input);
        for action in actions {
            match action {
                Action::Send { target, id, timeout, operation } => {
                    if let ClientOperation::Command(command) = &operation {
                        self.checkers.submits(command)?;
                    }
                    let target = target.0 as usize;
                    if let Some(at) = self.through_door(client, target, true) {
                        let asker = Asker { client, generation, attempt: id, operation };
                        self.at(at, Event::Request { asker, target, timeout });
                    }
                }
                Action::Complete { ticket, outcome } => self.complete(client, ticket, outcome)?,
                Action::WakeAt(at) => {
                    self.clients[client].wake_at = at;
                    self.at(at, Event::ClientWake { client, generation, at });
                }
                Action::Closed => {
                    self.trace.line(self.now, format_args!("c{client} has closed its session"));
                    self.new_client(client)?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The next generation of a client: another session.
    pub(super) fn new_client(&mut self, client: usize) -> Result<(), Violation> {
        let waiting = self.clients[client].waiting();
        require!(
            waiting == 0 || !self.clients[client].closing,
            "every request completes",
            "c{client} has closed its session with {waiting} requests open"
        );
        let generation = self.clients[client].generation + 1;
        self.clients[client] = Client::new(generation, self.random.bytes(), &self.plan.clients);
        let targets = self.targets();
        self.client_step(client, Input::Targets(targets))
    }

    pub(super) fn complete(&mut self, client: usize, ticket: Ticket, outcome: Outcome) -> Result<(), Violation> {
        let this = &mut self.clients[client];
        let Some(mut request) = this.open.remove(&ticket) else {
            return Err(Violation {
                property: "every request completes",
                detail: format!("{ticket} of c{client} completes twice, now as {outcome:?}"),
            });
        };
        require!(
            self.now <= request.deadline + 1,
            "every request completes",
            "{ticket} of c{client} completes at {}, its deadline was {}",
            self.now,
            request.deadline
        );
        let name = match &outcome {
            Outcome::Committed { .. } => "committed".to_owned(),
            Outcome::Rejected { reason } => format!("rejected: {reason:?}"),
            Outcome::Unknown { reason } => format!("unknown: {reason:?}"),
        };
        self.trace.line(self.now, format_args!("c{client} {ticket} {name}"));
        match (&outcome, &request.what) {
            (Outcome::Committed { reply }, What::Write { body }) => {
                self.counters.add(Kind::Committed);
                self.checkers.write_committed(body, reply, request.floor)?;
            }
            (Outcome::Committed { reply }, What::Read { key }) => {
                self.counters.add(Kind::Committed);
                self.checkers.read_answered(key, reply, request.floor)?;
            }
            (Outcome::Rejected { .. }, What::Write { body }) => {
                self.counters.add(Kind::Rejected);
                self.checkers.write_rejected(body)?;
            }
            (Outcome::Rejected { .. }, What::Read { .. }) => self.counters.add(Kind::Rejected),
            (Outcome::Unknown { reason }, _) => {
                self.counters.add(Kind::Unknown);
                if reason.is_resolvable() && (request.probe || self.random.percent(50)) {
                    let deadline = self.now + self.random.between(SECOND / 2, 5 * SECOND);
                    request.deadline = deadline;
                    request.asked_again = true;
                    self.clients[client].open.insert(ticket, request);
                    return self.client_step(client, Input::Resolve { ticket, deadline });
                }
                if reason.is_resolvable() {
                    self.client_step(client, Input::Forget { ticket })?;
                }
            }
        }
        if request.probe {
            match outcome {
                Outcome::Committed { .. } => return self.probe_answered(client),
                Outcome::Rejected { .. } | Outcome::Unknown { .. } => self.submit(client, request.what, true)?,
            }
        }
        Ok(())
    }

    pub(super) fn client_works(&mut self, client: usize) -> Result<(), Violation> {
        if self.phase != Phase::Chaos {
            return Ok(());
        }
        let next = self.random.around(self.plan.clients.think);
        self.after(next, Event::ClientWorks { client });
        if self.clients[client].closing {
            return Ok(());
        }
        let burst = self.random.between(1, self.plan.clients.burst);
        for _ in 0..burst {
            if self.clients[client].waiting() >= self.plan.clients.in_flight {
                break;
            }
            let key = key(self.random.below(self.plan.clients.keys));
            let what = if self.random.percent(self.plan.clients.reads) {
                What::Read { key }
            } else {
                What::Write { body: self.write(client, key) }
            };
            self.submit(client, what, false)?;
        }
        if self.random.percent(self.plan.clients.close) {
            self.clients[client].closing = true;
            let deadline = self.now + self.random.between(SECOND / 10, 5 * SECOND);
            for request in self.clients[client].open.values_mut() {
                request.deadline = request.deadline.max(deadline);
            }
            self.client_step(client, Input::Close { deadline })?;
        }
        Ok(())
    }

    /// A read that any process may have to answer, also one that is cut off or has slept: it must not be stale.
    pub(super) fn monitor(&mut self) {
        if self.phase != Phase::Chaos {
            return;
        }
        let next = self.random.around(self.plan.rules.heartbeat);
        self.after(next, Event::Monitor);
        let leaders: Vec<usize> =
            (0..self.hosts.len()).filter(|replica| self.hosts[*replica].role == RoleName::Leader).collect();
        let target = match leaders.len() {
            count if count > 0 && self.random.percent(70) => self.random.pick(&leaders),
            _ => self.random.below(self.hosts.len() as u64) as usize,
        };
        let number = self.random.below(self.plan.clients.keys);
        let operation = ClientOperation::Read { body: KvRequest::Get { key: key(number) }.encode() };
        let generation = self.checkers.floor();
        let asker = Asker { client: MONITOR, generation, attempt: AttemptId(number), operation };
        self.after(0, Event::Request { asker, target, timeout: 10 * SECOND });
    }

    pub(super) fn write(&mut self, client: usize, key: Bytes) -> Bytes {
        let Client { generation, next_ticket, .. } = &self.clients[client];
        let padding = self.random.pick(&[0, 0, 10, 60]);
        let value = Bytes::from(format!("{client}.{generation}.{next_ticket}{:padding$}", ""));
        let request = match self.random.below(100) {
            0..3 => KvRequest::Delete { key },
            3..6 => KvRequest::Get { key },
            6..20 => {
                let version = self.checkers.version(&key);
                let expected = Expected::Version(if self.random.percent(70) { version } else { version / 2 });
                KvRequest::CompareAndSet { key, expected, value }
            }
            _ => KvRequest::Put { key, value },
        };
        request.encode()
    }

    pub(super) fn submit(&mut self, client: usize, what: What, probe: bool) -> Result<(), Violation> {
        let (least, most) = self.plan.clients.deadline;
        let deadline = self.now + self.random.between(least, most);
        let ticket = self.clients[client].ticket();
        let floor = self.checkers.floor();
        // A probe that is submitted again is another request.
        let what = match what {
            What::Write { .. } if probe => What::Write { body: probe_body(client, ticket) },
            what => what,
        };
        let input = match &what {
            What::Write { body } => Input::Submit { ticket, body: body.clone(), deadline },
            What::Read { key } => {
                Input::SubmitRead { ticket, body: KvRequest::Get { key: key.clone() }.encode(), deadline }
            }
        };
        let request = Request { what, floor, deadline, asked_again: false, probe };
        self.clients[client].open.insert(ticket, request);
        self.client_step(client, input)
    }
}
