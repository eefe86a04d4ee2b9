//! Leaving a view and entering the next: the pre-check, the Timeout, the certificate. PROTOCOL §1 and §3, VRR §4.2.
//!
//! A view number contains its leader, so whoever chooses the number chooses the leader: here the best head among those
//! who would leave. Two choices at once are ordered by their numbers, and the lower one joins the higher (schedule S5).

use alloc::collections::{BTreeMap, BTreeSet};

use lockstep_types::{BlockRef, Slot, View};

use crate::effects::{Effects, Moment, Promise, Record, Reject};
use crate::following::Following;
use crate::message::Message;
use crate::replica::{Replica, Role};

/// A replica that has left its view and waits for the next one, whose number its newest Timeout names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Waiting {
    /// From when the silence of that view counts: once its own Timeout is durable, and then as long again as that took, so
    /// that a slow disk is waited for and not run away from.
    pub since: Moment,
    /// When its Timeout is sent again.
    pub again_at: Moment,
    /// The question to the others, once it has waited too long.
    pub pre_check: Option<PreChecking>,
}

/// A question under way: who else would leave?
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PreChecking {
    /// The view that was asked about.
    pub view: View,
    /// Who said yes, with its head.
    pub yes: BTreeMap<Slot, BlockRef>,
    /// When to ask again.
    pub again_at: Moment,
}

impl Waiting {
    /// Waits from now on; the Timeout goes out again at the next tick.
    pub fn since(now: Moment) -> Self {
        Waiting { since: now, again_at: now, pre_check: None }
    }
}

impl Replica {
    /// The round above every one that this replica has seen. What it sees is bounded, see [`Self::receive`].
    pub(crate) fn next_round(&self) -> u64 {
        let heard = self.timeouts.values().map(|(view, _)| view.round).max().unwrap_or(0);
        self.view.round.max(heard).saturating_add(1)
    }

    /// Leaves every view below `view`: promises it, tells all, acknowledges nothing below from this step on.
    ///
    /// The rank is the head of the chain in memory: every block of it is queued for the disk before this promise, so it
    /// covers each acknowledgement that was emitted, durable yet or not (schedule S2).
    pub(crate) fn leave(&mut self, now: Moment, view: View, out: &mut Effects) {
        assert!(view > self.view, "leaving view {} for {view}", self.view);
        self.fail_reads(out);
        self.catch_up = None;
        self.view = view;
        let seq = self.persist(Record::Promise(Promise::Timeout(view)), out);
        self.left_for = Some((view, seq));
        self.role =
            Role::Candidate(Waiting { since: now, again_at: now.plus(2 * self.options.heartbeat), pre_check: None });
        self.send_timeout(out);
        self.try_to_lead(now, out);
    }

    /// Tells all that it left, once that is durable.
    fn send_timeout(&self, out: &mut Effects) {
        let (view, promised) = self.left_for.expect("who left has promised it");
        // Blocks fetched since the promise may stand above the rank first sent; they too must be durable.
        let seq = promised.max(self.head_record());
        for to in self.others() {
            let rank = self.chain.head();
            self.send_after(out, seq, to, Message::Timeout { view, rank, faults: alloc::vec::Vec::new() });
        }
    }

    /// Whether its newest Timeout, if it sent one, is on the disk.
    fn has_left_for_good(&self) -> bool {
        self.left_for.is_none_or(|(_, seq)| seq <= self.durable)
    }

    /// The silence after which a replica would join others that leave: half of what makes it ask itself.
    fn would_leave(&self, now: Moment) -> bool {
        match &self.role {
            Role::Follower(following) => now.since(following.last_sign()) >= self.options.election / 2,
            Role::Candidate(_) => true,
            Role::Leader(_) => false,
        }
    }

    /// Whether a question gets a yes. One whose last promise is still on its way to the disk is not ready for the next: else a
    /// round could end before any disk has kept up with it, for ever.
    fn says_yes(&self, now: Moment) -> bool {
        self.would_leave(now) && (matches!(self.role, Role::Follower(_)) || self.has_left_for_good())
    }

    pub(crate) fn on_pre_check(
        &mut self,
        now: Moment,
        from: Slot,
        ahead: bool,
        view: View,
        out: &mut Effects,
    ) -> Result<(), Reject> {
        // A yes promises nothing, so one that lags says it too: the asker may be of a configuration in which it votes.
        let would_leave = view > self.view && self.says_yes(now) && (ahead || self.votes());
        let durable = self.chain.at(self.durable_height()).expect("what is durable is on the chain");
        let reply = Message::PreCheckReply {
            view,
            would_leave,
            current: self.view,
            // What is on the disk: a replica that cannot write must not look like the best one to lead. Nor must one that is fenced.
            head: if self.fenced { BlockRef::GENESIS } else { durable },
            committed: self.known_committed(),
        };
        self.send(out, from, reply);
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(crate) fn on_pre_check_reply(
        &mut self,
        now: Moment,
        from: Slot,
        ahead: bool,
        view: View,
        would_leave: bool,
        current: View,
        head: BlockRef,
        committed: BlockRef,
        out: &mut Effects,
    ) -> Result<(), Reject> {
        let question = match &mut self.role {
            Role::Follower(Following { pre_check: Some(question), .. })
            | Role::Candidate(Waiting { pre_check: Some(question), .. }) => question,
            Role::Follower(_) | Role::Candidate(_) | Role::Leader(_) => return Err(Reject::Unexpected),
        };
        if question.view != view {
            return Err(Reject::Unexpected);
        }
        if would_leave {
            question.yes.insert(from, head);
            self.commit_to(committed, out);
            self.try_to_leave(now, out);
        } else {
            // The view goes on without us: its leader cannot be heard, but what is committed can be had from the replier.
            self.learn_committed(now, from, ahead, current, committed, out);
        }
        Ok(())
    }

    /// Leaves if a quorum would: for the view of this round that the best head among them leads; of equals, one that the
    /// newest configuration keeps.
    fn try_to_leave(&mut self, now: Moment, out: &mut Effects) {
        let (Role::Follower(Following { pre_check: Some(question), .. })
        | Role::Candidate(Waiting { pre_check: Some(question), .. })) = &self.role
        else {
            return;
        };
        let yes: BTreeSet<Slot> = question.yes.keys().copied().collect();
        if !self.is_quorum(&yes) {
            return;
        }
        let best = question
            .yes
            .iter()
            .filter(|(slot, _)| self.is_counted(**slot))
            .max_by_key(|(slot, head)| (head.rank(), self.config().voter(**slot).is_some(), **slot == self.me))
            .map(|(slot, _)| *slot)
            .expect("a quorum is not empty");
        let view = View::new(question.view.round, best);
        if view > self.view {
            self.leave(now, view, out);
        }
    }

    pub(crate) fn on_hand_over(
        &mut self,
        now: Moment,
        from: Slot,
        view: View,
        next: View,
        out: &mut Effects,
    ) -> Result<(), Reject> {
        if view != self.view {
            return Err(Reject::StaleView { theirs: view, ours: self.view });
        }
        if view.leader != from {
            return Err(Reject::NotItsLeader { view, from });
        }
        if !self.votes() {
            return Err(Reject::NoVoter);
        }
        if !self.is_counted(next.leader) {
            return Err(Reject::UnknownSlot { slot: next.leader });
        }
        if next <= view {
            return Err(Reject::StaleView { theirs: next, ours: self.view });
        }
        self.leave(now, next, out);
        Ok(())
    }

    pub(crate) fn on_timeout(
        &mut self,
        now: Moment,
        from: Slot,
        ahead: bool,
        view: View,
        rank: BlockRef,
        out: &mut Effects,
    ) -> Result<(), Reject> {
        let unknown = !self.is_counted(view.leader);
        if unknown || !self.votes() {
            // A Timeout names only a slot that its sender knows: who lags in changes catches up first (PROTOCOL §1). The
            // sender says it again.
            if ahead {
                self.learn_of_blocks(now, from, rank, out);
            }
            return Err(if unknown { Reject::UnknownSlot { slot: view.leader } } else { Reject::NoVoter });
        }
        let known = self.timeouts.entry(from).or_insert((view, rank));
        if view >= known.0 {
            *known = (view, rank);
        }
        if view < self.view {
            return Err(Reject::StaleView { theirs: view, ours: self.view });
        }
        if view == self.view {
            self.try_to_lead(now, out);
            return Ok(());
        }
        let left = |slot: &&Slot| self.timeouts.get(slot).is_some_and(|(theirs, _)| *theirs > self.view);
        // More than the failures that some configuration in play tolerates: without them it has no quorum.
        let pulled = self
            .in_play()
            .any(|(_, configuration)| configuration.voters().keys().filter(left).count() > configuration.tolerated());
        let join = match &self.role {
            // Its leader has left it: step-down, hand-over, or a restart (PROTOCOL §3, schedule S1).
            Role::Follower(_) if from == self.view.leader => true,
            Role::Follower(_) | Role::Candidate(_) => self.would_leave(now) || pulled,
            // A healthy leader waits, and then starts a view of its own (schedule L2).
            Role::Leader(_) => pulled,
        };
        if join {
            self.leave(now, view, out);
        }
        Ok(())
    }

    /// Takes the lead once a quorum, this replica included, has left for this view and its highest chain is held. What is
    /// missing of that chain is fetched first.
    pub(crate) fn try_to_lead(&mut self, now: Moment, out: &mut Effects) {
        let (Role::Candidate(_), Some((left_for, seq))) = (&self.role, self.left_for) else { return };
        if self.view.leader != self.me || left_for != self.view || seq > self.durable || !self.votes() {
            return;
        }
        let certificate: BTreeMap<Slot, BlockRef> = self
            .timeouts
            .iter()
            .filter(|(_, (view, _))| *view == self.view)
            .map(|(slot, (_, rank))| (*slot, *rank))
            .chain([(self.me, self.chain.head())])
            .collect();
        // Counted on the own chain as it is; once it was made to reach the highest one, this is asked again (schedule S4).
        let left: BTreeSet<Slot> = certificate.keys().copied().collect();
        if !self.is_quorum(&left) {
            return;
        }
        if self.fenced && self.others().contains(&self.config().successor(self.me)) {
            // Whoever asked it to lead did not know: somebody else must.
            self.give_lead_away(now, self.config().successor(self.me), out);
            return;
        }
        let highest = *certificate.values().max_by_key(|rank| rank.rank()).expect("a quorum is not empty");
        if self.chain.head().rank() >= highest.rank() {
            // Equal rank is the same block: one leader a view, one chain a leader (schedule S1).
            assert!(
                self.chain.head().rank() > highest.rank() || self.chain.head().hash == highest.hash,
                "two blocks at {highest}"
            );
            self.become_leader(now, out);
        } else {
            self.catch_up_to(now, highest, out);
        }
    }

    /// Who lags too far to lead soon asks the best of the others to do it instead (PROTOCOL §3, schedule L4).
    pub(crate) fn give_lead_away(&mut self, now: Moment, holder: Slot, out: &mut Effects) {
        let next = View::new(self.next_round(), holder);
        self.leave(now, next, out);
    }

    // Timers.

    /// A follower's silence, staggered so that two seldom ask at the same moment: the leader's successor goes first.
    fn suspect_at(&self, following: &Following) -> Moment {
        let voters = self.config().voters();
        let behind = voters.keys().filter(|slot| **slot < self.me).count();
        let leader = voters.keys().filter(|slot| **slot < self.view.leader).count();
        let place = (behind + 2 * voters.len() - leader - 1) % voters.len();
        following.last_sign().plus(self.options.election + place as u64 * self.options.heartbeat)
    }

    pub(crate) fn following_deadline(&self, following: &Following) -> Moment {
        if self.leads_unproved() {
            return Moment::from_micros(0);
        }
        if !self.stands() {
            return Moment::from_micros(u64::MAX);
        }
        following.pre_check.as_ref().map_or_else(|| self.suspect_at(following), |question| question.again_at)
    }

    pub(crate) fn waiting_deadline(&self, waiting: &Waiting) -> Moment {
        if !self.votes() {
            return Moment::from_micros(u64::MAX);
        }
        if !self.has_left_for_good() || !self.stands() {
            return waiting.again_at;
        }
        let patience = waiting.since.plus(self.options.election);
        waiting.again_at.min(waiting.pre_check.as_ref().map_or(patience, |question| question.again_at))
    }

    /// Came back from a restart as the leader of its own current view, which nobody leads any more (schedule S1).
    fn leads_unproved(&self) -> bool {
        self.view > View::ZERO && self.view.leader == self.me && matches!(self.role, Role::Follower(_)) && self.votes()
    }

    pub(crate) fn tick_following(&mut self, now: Moment, out: &mut Effects) {
        let Role::Follower(following) = &self.role else { return };
        if self.leads_unproved() {
            // The smallest view above its own: a higher one could be above a view that the others have entered meanwhile.
            let successor = self.config().successor(self.me);
            let round = if successor > self.me { self.view.round } else { self.view.round.saturating_add(1) };
            self.leave(now, View::new(round, successor), out);
        } else if now >= self.following_deadline(following) {
            self.ask(now, out);
        }
    }

    pub(crate) fn tick_waiting(&mut self, now: Moment, out: &mut Effects) {
        let votes = self.votes();
        let Role::Candidate(waiting) = &mut self.role else { return };
        if now >= waiting.again_at && votes {
            waiting.again_at = now.plus(2 * self.options.heartbeat);
            self.send_timeout(out);
        }
        let Role::Candidate(waiting) = &self.role else { return };
        let patience = waiting.since.plus(self.options.election);
        if self.has_left_for_good() && now >= waiting.pre_check.as_ref().map_or(patience, |question| question.again_at)
        {
            self.ask(now, out);
        }
    }

    /// Asks the others whether they too would leave, if this replica may ask.
    fn ask(&mut self, now: Moment, out: &mut Effects) {
        if !self.stands() {
            return;
        }
        let view = View::new(self.next_round(), self.me);
        let question = PreChecking {
            view,
            yes: BTreeMap::from([(self.me, self.chain.head())]),
            again_at: now.plus(2 * self.options.heartbeat),
        };
        match &mut self.role {
            Role::Follower(following) => following.pre_check = Some(question),
            Role::Candidate(waiting) => waiting.pre_check = Some(question),
            Role::Leader(_) => return,
        }
        for to in self.others() {
            self.send(out, to, Message::PreCheck { view });
        }
        self.try_to_leave(now, out);
    }
}
