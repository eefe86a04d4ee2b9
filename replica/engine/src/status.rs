//! What a replica says of itself.

use lockstep_consensus::{Moment, RoleName, Standing};
use lockstep_types::{Configuration, Digest, Epoch, Height, ReplicaId, Slot, View};
use lockstep_wal::Disk;

use crate::divergence::{DivergenceCounters, DivergenceStatus};
use crate::engine::Engine;
use crate::snapshots::SnapshotStatus;

/// What a replica is and knows, at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// Its slot.
    pub slot: Slot,
    /// Its role in the current view.
    pub role: RoleName,
    /// The current view.
    pub view: View,
    /// The configuration in force.
    pub epoch: Epoch,
    /// The leader, if it was heard recently.
    pub leader: Option<Slot>,
    /// applied ≤ committed ≤ head.
    pub head: Height,
    /// What is known to be committed.
    pub committed: Height,
    /// What is applied.
    pub applied: Height,
    /// The rolling execution digest at `applied`.
    pub digest: Digest,
    /// The leader's head as last heard; none on the leader.
    pub leader_head: Option<Height>,
    /// Microseconds since the leader was heard; none on the leader.
    pub leader_silent_us: Option<u64>,
    /// All members of the newest configuration.
    pub members: Vec<MemberStatus>,
    /// Who belongs to the service.
    pub membership: MembershipStatus,
    /// What this replica is in it.
    pub standing: Standing,
    /// Why it should get no requests.
    pub not_ready: Option<String>,
    /// Client requests that are held.
    pub requests: usize,
    /// Bytes of blocks that wait for the disk.
    pub queued_bytes: usize,
    /// The state machine and its sessions.
    pub machine: lockstep_machine::Stats,
    /// Snapshots, and where the log begins.
    pub snapshots: SnapshotStatus,
    /// Whether the state is that of the others; none: no difference was found since the start.
    pub divergence: Option<DivergenceStatus>,
    /// Counters of that.
    pub divergences: DivergenceCounters,
}

/// A member as this replica knows it.
#[derive(Clone, Copy, Debug)]
pub struct MemberStatus {
    /// Its slot.
    pub slot: Slot,
    /// Its identity.
    pub replica: ReplicaId,
    /// It votes; else it is a standby.
    pub votes: bool,
    /// On the leader: what it acknowledged.
    pub acknowledged: Option<Height>,
    /// On the leader: it answered recently.
    pub connected: bool,
}

/// Who belongs to the service, as this replica knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipStatus {
    /// The newest configuration known to be committed.
    pub committed: Configuration,
    /// The height of the change that brought it.
    pub height: Height,
    /// Who left with that change is needed no more: pod and volume may go (schedule L5).
    pub settled: bool,
    /// The newest configuration on the own chain.
    pub newest: Configuration,
}

impl<D: Disk> Engine<D> {
    /// What this replica is and knows.
    pub fn status(&self, now: Moment) -> Status {
        let leader_heard = self.core.leader_heard();
        Status {
            slot: self.core.me(),
            role: self.core.role(),
            view: self.core.view(),
            epoch: self.core.config().epoch(),
            leader: self.leader(now),
            head: self.core.head().height,
            committed: self.core.committed().height,
            applied: self.executor.applied(),
            digest: self.executor.digest(),
            leader_head: leader_heard.map(|(_, head)| head.height),
            leader_silent_us: leader_heard.map(|(heard, _)| now.since(heard)),
            members: self.members(now),
            membership: self.membership(),
            standing: self.core.standing(),
            not_ready: self.not_ready(now),
            requests: self.requests.open(),
            queued_bytes: self.log.queued_bytes(),
            machine: self.executor.stats(),
            snapshots: self.snapshots.status(self.core.chain().base().height),
            divergence: self.divergence.status(),
            divergences: self.divergence.counters(),
        }
    }

    /// Whether the state is that of the others; none: no difference was found since the start.
    pub fn divergence(&self) -> Option<DivergenceStatus> {
        self.divergence.status()
    }

    fn members(&self, now: Moment) -> Vec<MemberStatus> {
        let config = self.core.config();
        let status = |(slot, replica)| {
            let progress = self.core.acknowledged(slot, now);
            MemberStatus {
                slot,
                replica,
                votes: config.voter(slot).is_some(),
                acknowledged: progress.map(|(height, _)| height),
                connected: progress.is_some_and(|(_, connected)| connected),
            }
        };
        config.members().map(status).collect()
    }

    /// The newest committed and the newest known configuration, and whether the first is settled: changes whenever
    /// [`Engine::membership`] does.
    pub fn epochs(&self) -> (Epoch, Epoch, bool) {
        let membership = self.core.membership();
        (membership.configuration.epoch(), self.core.config().epoch(), membership.settled)
    }

    /// Who belongs to the service.
    pub fn membership(&self) -> MembershipStatus {
        let membership = self.core.membership();
        MembershipStatus {
            committed: membership.configuration.clone(),
            height: membership.height,
            settled: membership.settled,
            newest: self.core.config().clone(),
        }
    }

    /// Why this replica should get no requests; none if it should: a voter, caught up within a window, that leads or has
    /// heard its leader recently (DESIGN §8).
    fn not_ready(&self, now: Moment) -> Option<String> {
        let applied = self.executor.applied();
        match self.core.standing() {
            Standing::Voter => {}
            Standing::Standby => return Some("is a standby: it gets every request and has no vote".to_owned()),
            Standing::Joining => return Some("catches up before it knows its place".to_owned()),
            Standing::Removed => return Some("was removed from the service and never returns".to_owned()),
        }
        if self.divergence.is_halted() {
            return self.divergence.status().map(|status| status.to_string());
        }
        if self.core.role() == RoleName::Leader {
            let proved = self.core.committed().view == self.core.view();
            return (!proved)
                .then(|| format!("leads view {}, whose first block is not committed yet", self.core.view()));
        }
        if self.leader(now).is_none() {
            return Some("has heard no leader recently".to_owned());
        }
        let head = self.core.leader_heard().map_or(Height::ZERO, |(_, head)| head.height);
        let lag = head.above(applied);
        (lag > 2 * self.window).then(|| format!("lags {lag} blocks behind the leader"))
    }
}
