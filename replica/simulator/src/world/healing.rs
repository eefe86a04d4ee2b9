//! After the faults: everything is served again, and all replicas become equal.

use super::*;

/// What a life is made of.
const LIFE_BLOCKS: u64 = 2_000;
const LIFE_SNAPSHOTS: u64 = 30;

impl World {
    pub(super) fn heal(&mut self) -> Result<(), Violation> {
        if self.plan.scenario == Scenario::Life && !self.has_lived() {
            self.after(5 * SECOND, Event::Heal);
            return Ok(());
        }
        self.trace.line(self.now, format_args!("all faults end"));
        self.mend();
        self.doors_cut.iter_mut().for_each(|row| row.fill(0));
        let quiet = |latency| Link { latency, loss: 0, duplicate: 0, reorder: 0, late: 0 };
        self.plan.peers = quiet(self.plan.peers.latency);
        self.plan.doors = quiet(self.plan.doors.latency);
        self.plan.clients.deadline = (5 * SECOND, 5 * SECOND);
        for host in &mut self.hosts {
            host.hangs_until = 0;
        }
        let until = self.now + 30 * SECOND + 30 * self.plan.rules.election;
        self.phase = Phase::Probing { client: 0, until };
        for replica in 0..self.hosts.len() {
            self.after(1_000, Event::Restart { replica });
        }
        self.probe(0)
    }

    /// Whether a life was long enough. Who is left of those that began is replaced next.
    fn has_lived(&mut self) -> bool {
        let founders: Vec<usize> = (0..self.plan.replicas).filter(|replica| self.is_voter(*replica)).collect();
        if let Some(founder) = founders.first().filter(|_| self.now > self.plan.chaos) {
            self.replace(*founder);
        }
        let busy = self.checkers.height() >= Height::new(LIFE_BLOCKS);
        founders.is_empty() && busy && self.counters.get(Kind::SnapshotTaken) >= LIFE_SNAPSHOTS
    }

    /// A write, then a read of each key, all of which must be committed.
    pub(super) fn probe(&mut self, client: usize) -> Result<(), Violation> {
        if self.clients[client].closing {
            self.clients[client].open.clear();
            self.clients[client].closing = false;
            self.new_client(client)?;
        }
        self.submit(client, What::Write { body: Bytes::new() }, true)
    }

    pub(super) fn probe_answered(&mut self, client: usize) -> Result<(), Violation> {
        let Phase::Probing { client: current, until } = self.phase else { return Ok(()) };
        if client != current || self.clients[client].open.values().any(|request| request.probe) {
            return Ok(());
        }
        // The first time round the write was answered; now the reads.
        if self.probe_reads(client)? {
            return Ok(());
        }
        let next = client + 1;
        if next < self.clients.len() {
            self.phase = Phase::Probing { client: next, until };
            return self.probe(next);
        }
        self.phase = Phase::Converging { until };
        self.compare()
    }

    /// Submits the reads of a probe, once. Returns whether it did.
    pub(super) fn probe_reads(&mut self, client: usize) -> Result<bool, Violation> {
        if self.clients[client].probed {
            return Ok(false);
        }
        self.clients[client].probed = true;
        for number in 0..self.plan.clients.keys {
            self.submit(client, What::Read { key: key(number) }, true)?;
        }
        Ok(true)
    }

    /// Whether all replicas are equal and no client waits.
    pub(super) fn compare(&mut self) -> Result<(), Violation> {
        let height = self.checkers.height();
        let members: Vec<usize> = (0..self.hosts.len()).filter(|replica| self.is_member(*replica)).collect();
        let equal = members.into_iter().all(|replica| {
            let State::Up { engine, .. } = &self.hosts[replica].state else { return false };
            let status = engine.status(self.local(replica));
            status.applied == height
                && status.committed == height
                && status.head == height
                && self.checkers.agrees(replica, height, status.digest)
                && (status.not_ready.is_none() || !self.is_voter(replica))
        });
        let waiting = self.clients.iter().any(|client| !client.open.is_empty() || client.session.resolving() > 0);
        if !equal || waiting || self.operation.is_some() {
            self.after(SECOND / 10, Event::Compare);
            return Ok(());
        }
        self.phase = Phase::Done;
        self.trace.line(self.now, format_args!("all replicas hold {height} blocks"));
        self.check_committed()?;
        require!(height > Height::ZERO, "progress", "nothing was committed");
        Ok(())
    }

    /// One line for each replica and client.
    pub fn describe(&self) -> String {
        let mut lines = vec![format!("{:?} at {}", self.phase, self.now)];
        for replica in 0..self.hosts.len() {
            lines.push(match &self.hosts[replica].state {
                State::Down => format!("{} down", slot(replica)),
                State::Starting(_) => format!("{} starting", slot(replica)),
                State::Up { engine, .. } => {
                    let status = engine.status(self.local(replica));
                    format!(
                        "{} {:?} view={} leader={:?} head={} committed={} applied={} requests={} {}",
                        slot(replica),
                        status.role,
                        status.view,
                        status.leader.map(Slot::get),
                        status.head,
                        status.committed,
                        status.applied,
                        status.requests,
                        status.not_ready.unwrap_or_default()
                    )
                }
            });
        }
        for (number, client) in self.clients.iter().enumerate() {
            lines.push(format!(
                "c{number} open={} waiting={} resolving={} session={}",
                client.open.len(),
                client.waiting(),
                client.session.resolving(),
                client.session.id().map_or("none".to_owned(), |id| id.to_string())
            ));
        }
        lines.join("\n  ")
    }
}
