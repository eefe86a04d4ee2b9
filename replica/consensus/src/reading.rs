//! Linearizable reads without a write: one heartbeat round confirms many. PROTOCOL §6, Raft thesis §6.4, schedule M1.
//!
//! Three things make it safe: the no-op of the view is committed, so the commit pointer is not stale; the round began after
//! the read arrived and carries (view, round); a voter answers only while it is in that view.

use crate::effects::{Effects, Moment, ReadId, ReadOutcome};
use crate::replica::{Replica, Role};

impl Replica {
    pub(crate) fn read(&mut self, _now: Moment, id: ReadId, out: &mut Effects) {
        match &mut self.role {
            Role::Leader(leading) if !self.fenced => {
                leading.reads_waiting.push_back(id);
                self.start_read_round(out);
            }
            Role::Leader(_) | Role::Follower(_) | Role::Candidate(_) => out.reads.push((id, ReadOutcome::NotLeader)),
        }
    }

    /// Begins a round for the reads that wait, unless one is under way: then they share the next.
    pub(crate) fn start_read_round(&mut self, out: &mut Effects) {
        let proved = self.leads_for_good();
        let height = self.committed.height;
        let Role::Leader(leading) = &mut self.role else { return };
        if !proved || leading.reads_waiting.is_empty() || !leading.reads_asked.is_empty() {
            return;
        }
        let round = leading.round + 1;
        let waiting = core::mem::take(&mut leading.reads_waiting);
        leading.reads_asked.extend(waiting.into_iter().map(|id| (round, id, height)));
        self.heartbeat(out);
        self.confirm_reads(out);
    }

    /// Answers the reads whose round a quorum of each configuration in play has confirmed.
    pub(crate) fn confirm_reads(&mut self, out: &mut Effects) {
        let Role::Leader(leading) = &self.role else { return };
        let confirmed = self.reached(|slot| {
            if slot == self.me {
                Some(leading.round)
            } else {
                leading.progress.get(&slot).map(|progress| progress.round)
            }
        });
        let Role::Leader(leading) = &mut self.role else { return };
        while leading.reads_asked.front().is_some_and(|(round, _, _)| *round <= confirmed) {
            let (_, id, height) = leading.reads_asked.pop_front().expect("just looked at");
            out.reads.push((id, ReadOutcome::At(height)));
        }
        self.start_read_round(out);
    }

    /// The lead is gone: every read must be asked elsewhere.
    pub(crate) fn fail_reads(&mut self, out: &mut Effects) {
        let Role::Leader(leading) = &mut self.role else { return };
        let asked = leading.reads_asked.drain(..).map(|(_, id, _)| id);
        out.reads.extend(asked.chain(leading.reads_waiting.drain(..)).map(|id| (id, ReadOutcome::NotLeader)));
    }
}
