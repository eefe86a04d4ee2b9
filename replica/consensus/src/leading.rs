//! A leader proposes on top of its own head, counts acknowledgements of its own chain, and commits only blocks of its own
//! view by counting. PROTOCOL §2, Raft §5.4.2.
//!
//! Not here: how it came to lead (`leaving`), reads (`reading`).

use alloc::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use lockstep_types::{Block, BlockHeader, BlockRef, Change, Digest, Height, LogTime, Slot, View, block::encode_body};

use crate::effects::{Effects, Moment, Promise, ReadId, Record, Reject};
use crate::message::Message;
use crate::replica::{Replica, Role};

/// Windows that a follower may lag before new blocks are no longer pushed to it: it fetches them.
const PUSH_WINDOWS: u64 = 2;

/// Election times between two views that a leader starts only to let a muted voter back in (schedule L2).
const UNMUTE_ELECTIONS: u64 = 2;

/// Leads the current view.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Leading {
    /// When the lead was taken.
    pub since: Moment,
    /// The head that the certificate chose: where the window of this view begins.
    pub start: Height,
    /// What each other member has said in this view. Standbys are never counted.
    pub progress: BTreeMap<Slot, Progress>,
    /// When heartbeats go out next.
    pub heartbeat_at: Moment,
    /// The number of the last heartbeat round.
    pub round: u64,
    /// Reads that wait for the no-op, or for a round to begin: with the height they must see.
    pub reads_waiting: VecDeque<ReadId>,
    /// Reads that wait for this round to be confirmed, with the height that was committed when it began.
    pub reads_asked: VecDeque<(u64, ReadId, Height)>,
    /// A hand-over under way: proposals stop.
    pub hand_over: Option<HandOver>,
}

/// What one member has said in this view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Progress {
    /// The highest block of this leader's chain that it acknowledged in this view. Never decreases within it.
    pub acknowledged: Height,
    /// The highest round that it answered.
    pub round: u64,
    /// When it last answered in this view; contact, not durable progress (schedule L4).
    pub contact: Option<Moment>,
}

/// A hand-over waits until its target holds all that this leader proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HandOver {
    pub target: Slot,
    /// Then it is given up, and proposals go on.
    pub until: Moment,
}

impl Leading {
    /// What `member` acknowledged, and whether it answered within `recent` microseconds.
    pub fn acknowledged(&self, member: Slot, now: Moment, recent: u64) -> Option<(Height, bool)> {
        let progress = self.progress.get(&member)?;
        Some((progress.acknowledged, progress.contact.is_some_and(|contact| now.since(contact) < recent)))
    }
}

impl Replica {
    /// Takes the lead of the current view. The certificate is complete and its highest chain is held.
    pub(crate) fn become_leader(&mut self, now: Moment, out: &mut Effects) {
        assert!(self.view.leader == self.me, "{} would lead view {}", self.me, self.view);
        self.catch_up = None;
        let start = self.chain.head();
        let lead = self.persist(Record::Promise(Promise::Lead(self.view)), out);
        self.role = Role::Leader(Leading {
            since: now,
            start: start.height,
            progress: self
                .peers()
                .into_iter()
                // The certificate is the first contact: who sent it a moment ago is alive.
                .map(|slot| (slot, Progress { contact: Some(now), ..Progress::default() }))
                .collect(),
            heartbeat_at: now.plus(self.options.heartbeat),
            round: 0,
            reads_waiting: VecDeque::new(),
            reads_asked: VecDeque::new(),
            hand_over: None,
        });
        let no_op = self.next_block(now, encode_body(&[]), self.chain.log_time(), None);
        self.append(now, no_op.clone(), out);
        for to in self.peers() {
            // The first proposal of a view leaves only once `Lead` is durable (schedule S1).
            let message = Message::Propose { view: self.view, block: no_op.clone(), committed: self.committed };
            self.send_after(out, lead, to, message);
        }
    }

    /// Whether the no-op of this view is committed: from then on it may propose, and reads may be confirmed.
    pub(crate) fn leads_for_good(&self) -> bool {
        match &self.role {
            Role::Leader(leading) => self.committed.height > leading.start,
            Role::Follower(_) | Role::Candidate(_) => false,
        }
    }

    /// Whether [`crate::Input::Propose`] would make a block: this replica leads, its no-op is committed, the window has
    /// room, and neither a hand-over nor a change of membership is under way.
    pub fn can_propose(&self) -> bool {
        match &self.role {
            Role::Leader(leading) => {
                let window_floor = self.committed.height.max(leading.start);
                self.leads_for_good()
                    && leading.hand_over.is_none()
                    && self.change_in_flight().is_none()
                    && self.chain.head().height.above(window_floor) < self.options.window
            }
            Role::Follower(_) | Role::Candidate(_) => false,
        }
    }

    pub(crate) fn propose(&mut self, now: Moment, body: Bytes, wall: LogTime, out: &mut Effects) -> Result<(), Reject> {
        if !self.can_propose() {
            return Err(Reject::NotNow);
        }
        out.proposed = Some(self.extend(now, body, wall, None, out));
        Ok(())
    }

    /// Puts a block on top of the own chain and sends it to all who can take it.
    pub(crate) fn extend(
        &mut self,
        now: Moment,
        body: Bytes,
        wall: LogTime,
        change: Option<Change>,
        out: &mut Effects,
    ) -> BlockRef {
        let block = self.next_block(now, body, wall, change);
        self.append(now, block.clone(), out);
        let head = block.height();
        let Role::Leader(leading) = &self.role else { unreachable!("only a leader extends its chain") };
        for (to, progress) in &leading.progress {
            // Who lags far, or is dead, fetches later: pushing would only fill its queue.
            if head.above(progress.acknowledged.max(leading.start)) <= PUSH_WINDOWS * self.options.window {
                let message = Message::Propose { view: self.view, block: block.clone(), committed: self.committed };
                self.send(out, *to, message);
            }
        }
        block.reference()
    }

    /// The block on top of the head. Log time is wall time, never less than the parent's, at most the own progress since the
    /// parent plus a slew (schedule M4).
    fn next_block(&self, now: Moment, body: Bytes, wall: LogTime, change: Option<Change>) -> Block {
        let head = self.chain.head();
        let parent_ms = self.chain.log_time().as_millis();
        let wall_ms = wall.as_millis();
        let log_time_ms = if parent_ms == 0 {
            wall_ms
        } else {
            let progress_ms = now.since(self.head_since) / 1_000;
            wall_ms.clamp(parent_ms, parent_ms.saturating_add(progress_ms).saturating_add(self.options.slew_ms))
        };
        let header = BlockHeader {
            service: self.service,
            epoch: self.config().epoch(),
            view: self.view,
            height: head.height.next(),
            parent: head.hash,
            body: Digest::ZERO,
            log_time: LogTime::from_millis(log_time_ms),
            change,
        };
        Block::new(header, body)
    }

    pub(crate) fn on_ack(
        &mut self,
        now: Moment,
        from: Slot,
        view: View,
        height: Height,
        hash: Digest,
        out: &mut Effects,
    ) -> Result<(), Reject> {
        let ours = self.view;
        let Role::Leader(leading) = &mut self.role else {
            return Err(Reject::NotItsLeader { view, from: self.me });
        };
        if view != ours {
            return Err(Reject::StaleView { theirs: view, ours });
        }
        // Who joined while this leader lagged is not told anything yet.
        let Some(progress) = leading.progress.get_mut(&from) else { return Err(Reject::UnknownSlot { slot: from }) };
        progress.contact = Some(now);
        if !self.chain.holds_hash(height, hash) {
            return Err(Reject::OtherChain { height });
        }
        progress.acknowledged = progress.acknowledged.max(height);
        self.count_acknowledgements(out);
        self.drive_hand_over(now, out);
        Ok(())
    }

    /// Commits what a quorum acknowledged, if it is a block of this view: nothing of an older view is committed by counting
    /// alone (Raft §5.4.2, Figure 8). The own acknowledgement counts only when durable.
    pub(crate) fn count_acknowledgements(&mut self, out: &mut Effects) {
        let Role::Leader(leading) = &self.role else { return };
        let own = self.durable_height();
        let reached = self.acknowledged_by_quorums(|slot| {
            if slot == self.me { Some(own) } else { leading.progress.get(&slot).map(|progress| progress.acknowledged) }
        });
        if reached <= self.committed.height {
            return;
        }
        let block = self.chain.at(reached).expect("acknowledged blocks are on the chain");
        if block.view == self.view {
            let first = self.committed.height <= leading.start;
            self.committed = block;
            out.committed = Some(block);
            if first {
                self.start_read_round(out);
            }
        }
    }

    pub(crate) fn on_heartbeat_reply(
        &mut self,
        now: Moment,
        from: Slot,
        view: View,
        round: u64,
        out: &mut Effects,
    ) -> Result<(), Reject> {
        let ours = self.view;
        let Role::Leader(leading) = &mut self.role else { return Err(Reject::Unexpected) };
        if view != ours {
            return Err(Reject::StaleView { theirs: view, ours });
        }
        // Who joined while this leader lagged is not told anything yet.
        let Some(progress) = leading.progress.get_mut(&from) else { return Err(Reject::UnknownSlot { slot: from }) };
        progress.contact = Some(now);
        // A round that was never asked for confirms nothing.
        if round > leading.round {
            return Err(Reject::Unexpected);
        }
        progress.round = progress.round.max(round);
        self.confirm_reads(out);
        Ok(())
    }

    /// Sends a heartbeat to all and begins a new round.
    pub(crate) fn heartbeat(&mut self, out: &mut Effects) {
        let (head, committed, view) = (self.chain.head(), self.committed, self.view);
        let Role::Leader(leading) = &mut self.role else { return };
        leading.round += 1;
        let round = leading.round;
        let messages: alloc::vec::Vec<_> = leading
            .progress
            .iter()
            .map(|(to, progress)| {
                let acknowledged = progress.acknowledged;
                (*to, Message::Heartbeat { view, round, head, committed, acknowledged })
            })
            .collect();
        for (to, message) in messages {
            self.send(out, to, message);
        }
    }

    pub(crate) fn tick_leading(&mut self, now: Moment, out: &mut Effects) {
        self.settle(now, out);
        let Role::Leader(leading) = &mut self.role else { return };
        if now >= leading.heartbeat_at {
            leading.heartbeat_at = now.plus(self.options.heartbeat);
            self.heartbeat(out);
            self.recount(out);
        }
        self.drive_hand_over(now, out);
        let Role::Leader(leading) = &mut self.role else { return };
        if leading.hand_over.is_some_and(|hand_over| now >= hand_over.until) {
            leading.hand_over = None;
        }
        if now >= self.contact_until() {
            // Step-down: a leader that a quorum does not answer leaves (PROTOCOL §3).
            let next = View::new(self.next_round(), self.config().successor(self.me));
            self.leave(now, next, out);
        } else if now >= self.slow_disk_until() {
            self.hand_over_now(now, self.best_target(now), out);
        } else if now >= self.unmute_at() {
            let next = View::new(self.next_round(), self.me);
            self.leave(now, next, out);
        }
    }

    /// What was not enough before a voter left may be enough now, and nobody may be left whose answer would show it.
    fn recount(&mut self, out: &mut Effects) {
        self.count_acknowledgements(out);
        self.confirm_reads(out);
    }

    pub(crate) fn leading_deadline(&self, leading: &Leading) -> Moment {
        let hand_over = leading.hand_over.map_or(leading.heartbeat_at, |hand_over| hand_over.until);
        leading.heartbeat_at.min(hand_over).min(self.contact_until()).min(self.slow_disk_until()).min(self.unmute_at())
    }

    /// When the contact with a quorum, this replica included, is too old.
    fn contact_until(&self) -> Moment {
        let Role::Leader(leading) = &self.role else { return Moment::from_micros(u64::MAX) };
        let far = Moment::from_micros(u64::MAX);
        let contact = self.reached(|slot| {
            if slot == self.me { Some(far) } else { leading.progress.get(&slot).and_then(|progress| progress.contact) }
        });
        contact.plus(self.options.election)
    }

    /// When the oldest own write is overdue; never with nobody to hand over to.
    fn slow_disk_until(&self) -> Moment {
        let oldest = self.undurable.front().map(|(_, _, since)| since.plus(self.options.slow_disk));
        match oldest {
            Some(until) if self.config().voters().keys().any(|slot| *slot != self.me) => until,
            Some(_) | None => Moment::from_micros(u64::MAX),
        }
    }

    /// When to start a view of its own for a voter that left this healthy one and can never acknowledge in it (L2).
    fn unmute_at(&self) -> Moment {
        let Role::Leader(leading) = &self.role else { return Moment::from_micros(u64::MAX) };
        let muted = self.timeouts.iter().any(|(slot, (view, _))| *view > self.view && self.is_counted(*slot));
        if muted && self.leads_for_good() {
            leading.since.plus(UNMUTE_ELECTIONS * self.options.election)
        } else {
            Moment::from_micros(u64::MAX)
        }
    }

    // Hand-over.

    pub(crate) fn start_hand_over(&mut self, now: Moment, target: Option<Slot>) -> Result<(), Reject> {
        if let Some(slot) = target
            && self.config().voter(slot).is_none()
        {
            return Err(Reject::UnknownSlot { slot });
        }
        let target = target.unwrap_or_else(|| self.best_target(now));
        if target == self.me || !self.leads_for_good() {
            return Err(Reject::NotNow);
        }
        let until = now.plus(self.options.election);
        let Role::Leader(leading) = &mut self.role else { return Err(Reject::NotNow) };
        leading.hand_over = Some(HandOver { target, until });
        Ok(())
    }

    /// The other voter of the newest configuration that acknowledged most, among those heard recently if there are any; itself if it is alone.
    pub(crate) fn best_target(&self, now: Moment) -> Slot {
        let Role::Leader(leading) = &self.role else { return self.me };
        let recent =
            |progress: &Progress| progress.contact.is_some_and(|contact| now.since(contact) < self.options.election);
        leading
            .progress
            .iter()
            .filter(|(slot, _)| self.config().voter(**slot).is_some())
            .max_by_key(|(_, progress)| (recent(progress), progress.acknowledged))
            .map_or(self.me, |(slot, _)| *slot)
    }

    /// Hands over as soon as the target holds everything.
    fn drive_hand_over(&mut self, now: Moment, out: &mut Effects) {
        let Role::Leader(Leading { hand_over: Some(HandOver { target, .. }), progress, .. }) = &self.role else {
            return;
        };
        let head = self.chain.head().height;
        let target = *target;
        if progress.get(&target).is_some_and(|progress| progress.acknowledged == head) {
            self.hand_over_now(now, target, out);
        }
    }

    pub(crate) fn hand_over_now(&mut self, now: Moment, target: Slot, out: &mut Effects) {
        let next = View::new(self.next_round(), target);
        for to in self.others() {
            self.send(out, to, Message::HandOver { view: self.view, next });
        }
        self.leave(now, next, out);
    }
}
