//! A follower appends what chains from its head, and acknowledges at most one chain per view. PROTOCOL §2, VRR §4.1.
//!
//! Not here: how it fetches what it lacks (`catching_up`), when it gives its leader up (`leaving`).

use alloc::collections::BTreeMap;

use lockstep_types::{Block, BlockRef, Height, Slot, View};

use crate::effects::{Effects, Moment, Reject};
use crate::leaving::PreChecking;
use crate::message::Message;
use crate::replica::{Replica, Role};

/// Proposals kept while what lies below them is fetched, in windows of the leader.
const AHEAD_WINDOWS: u64 = 4;

/// In a view that another leads, or in none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Following {
    /// When the view was entered: from when the leader's silence counts.
    pub since: Moment,
    /// When the leader of the current view was last heard.
    pub heard: Option<Moment>,
    /// The leader's head as last heard.
    pub leader_head: Option<BlockRef>,
    /// Proposals of the current view above a gap.
    pub ahead: BTreeMap<Height, Block>,
    /// The question to the others, while the leader is silent.
    pub pre_check: Option<PreChecking>,
}

impl Following {
    /// In a view whose leader has not been heard.
    pub fn unheard(now: Moment) -> Self {
        Following { since: now, heard: None, leader_head: None, ahead: BTreeMap::new(), pre_check: None }
    }

    /// The last sign of the leader, or else when the view was entered.
    pub fn last_sign(&self) -> Moment {
        self.heard.unwrap_or(self.since)
    }
}

impl Replica {
    /// A leader speaks for its view: believes it, or says why not. After this the role is Follower in that view.
    pub(crate) fn follow(&mut self, now: Moment, from: Slot, view: View, out: &mut Effects) -> Result<(), Reject> {
        if view < self.view {
            return Err(Reject::StaleView { theirs: view, ours: self.view });
        }
        if view.leader != from {
            return Err(Reject::NotItsLeader { view, from });
        }
        match &mut self.role {
            Role::Follower(following) if self.view == view => {
                following.heard = Some(now);
                following.pre_check = None;
            }
            Role::Follower(_) | Role::Candidate(_) | Role::Leader(_) => {
                assert!(
                    !(view == self.view && matches!(self.role, Role::Leader(_))),
                    "{from} leads view {view} that is ours"
                );
                self.view = view;
                self.become_follower(now, out);
                if let Role::Follower(following) = &mut self.role {
                    following.heard = Some(now);
                }
            }
        }
        Ok(())
    }

    /// Enters the current view as a follower that has heard no leader yet.
    pub(crate) fn become_follower(&mut self, now: Moment, out: &mut Effects) {
        self.fail_reads(out);
        self.catch_up = None;
        self.role = Role::Follower(Following::unheard(now));
    }

    pub(crate) fn on_propose(
        &mut self,
        now: Moment,
        from: Slot,
        view: View,
        block: Block,
        committed: BlockRef,
        out: &mut Effects,
    ) -> Result<(), Reject> {
        self.follow(now, from, view, out)?;
        let height = block.height();
        let anchored = self.chain.holds_hash(height.prev(), block.header().parent);
        // Above a gap nobody knows yet which configuration is in force.
        let fits = block.view() == view && height > Height::ZERO && (!anchored || self.belongs(&block));
        if !fits {
            return Err(Reject::BadBlock { height });
        }
        if let Some(own) = self.chain.at(height)
            && own.view == view
        {
            // Two blocks of one view at one height: the leader, or our disk, broke the one rule that all rest on (S1).
            assert!(own.hash == block.hash(), "two blocks at {height} in view {view}");
            self.commit_to(committed, out);
            return Ok(());
        }
        if height <= self.committed.height {
            return Err(Reject::BelowCommitted { height, committed: self.committed.height });
        }
        self.note_leader_head(block.reference());
        if anchored {
            self.append(now, block, out);
            self.append_ahead(now, out);
            self.acknowledge(out);
        } else {
            let tip = block.reference();
            if let Role::Follower(following) = &mut self.role
                && (following.ahead.len() as u64) < AHEAD_WINDOWS * self.options.window
            {
                following.ahead.insert(height, block);
            }
            self.catch_up_to(now, tip, out);
        }
        self.commit_to(committed, out);
        Ok(())
    }

    pub(crate) fn on_heartbeat(
        &mut self,
        now: Moment,
        from: Slot,
        view: View,
        head: BlockRef,
        out: &mut Effects,
    ) -> Result<(), Reject> {
        self.follow(now, from, view, out)?;
        self.note_leader_head(head);
        if !self.chain.holds(head) {
            self.catch_up_to(now, head, out);
        }
        Ok(())
    }

    fn note_leader_head(&mut self, head: BlockRef) {
        if let Role::Follower(following) = &mut self.role {
            following.leader_head = following.leader_head.max(Some(head));
        }
    }

    /// Appends the proposals that waited for a gap to close, as far as they chain from the head.
    pub(crate) fn append_ahead(&mut self, now: Moment, out: &mut Effects) {
        loop {
            let head = self.chain.head();
            let Role::Follower(following) = &mut self.role else { return };
            following.ahead = following.ahead.split_off(&head.height.next());
            match following.ahead.remove(&head.height.next()) {
                Some(block) if block.header().parent == head.hash && self.belongs(&block) => {
                    self.append(now, block, out)
                }
                Some(_) | None => return,
            }
        }
    }

    /// Promises the whole chain to the leader of the current view, once it is durable. A follower that has left the view
    /// does not come here: it is a candidate (PROTOCOL §3).
    pub(crate) fn acknowledge(&self, out: &mut Effects) {
        let Role::Follower(Following { heard: Some(_), .. }) = &self.role else { return };
        let head = self.chain.head();
        let (applied, digest) = self.applied;
        let ack = Message::Ack { view: self.view, height: head.height, hash: head.hash, applied, digest };
        self.send_after(out, self.head_record(), self.view.leader, ack);
    }

    /// Repeats the acknowledgement if the leader does not know it: messages get lost.
    pub(crate) fn acknowledge_again(&self, known: Height, out: &mut Effects) {
        if known < self.durable_height() {
            self.acknowledge(out);
        }
    }

    /// Whether a block belongs to this service, and to the configuration in force at its height on the own chain.
    fn belongs(&self, block: &Block) -> bool {
        let configuration = self.chain.configuration_above(block.height().prev());
        self.configuration_after(configuration, block).is_some()
    }
}
