//! Who is counted, who is told, and how that changes. PROTOCOL §5, schedules S3, S4, L5; Raft thesis §4, with the difference
//! that a change counts only above its own height and that old and new are counted together until it is known committed.
//!
//! **Counted** are the configurations *in play*: from the last one known to be committed to the newest on the own chain.
//! Everything that needs a quorum needs one of each: certificates, the pre-check, contact, read rounds; and a commit needs
//! one of each up to the one in force at its height. Known to be committed is what the commit pointer covers, and what the
//! chain itself proves ([`Chain::proves`](crate::Chain::proves)).
//!
//! **Told** are the members, standbys included, from the last *settled* configuration on. A change is settled once blocks
//! that prove it are committed themselves. Then every quorum of the new configuration holds the proof on its disks, and who
//! left is needed no more (schedule L5).
//!
//! # Why no committed block is lost
//!
//! Claim: the leader of a view w extends every block committed in lower views. Take the lowest w that fails, with the
//! chain H that its certificate chose, and the lowest committed block B that is not on H; b is the configuration in force at
//! B's height. Every change below B is committed and lower than B, hence on H, so b is a configuration of H.
//!
//! - *The certificate counted b.* Else w's leader knew a change of H above b to be committed: it stands at B's height or above,
//!   on a chain without B. Two committed blocks of different chains, both of views below w: impossible, w is the lowest.
//! - *The commit of B counted b.* Look at the moment when B was first committed, by counting some D at or above B in a view v
//!   below w. Nothing from B on was known to be committed to that leader then, so its oldest configuration in play was b or
//!   older; and the newest that it counted, in force at D, was b or newer.
//! - So some voter of b acknowledged D in v and is in the certificate, in this order, for after its Timeout it acknowledges
//!   nothing in v. Its rank, and so H's, is at least D's; H's last block is of a view below w, and not below v. If it is of v, H
//!   contains D, for a view has one chain; if above, H contains B because w is the lowest that fails. Contradiction.
//!
//! That voters change one at a time is not used here: it keeps every majority of the old meeting every one of the new even
//! if one of the rules above should fail, and it keeps the number of replicas that must answer small.

use alloc::collections::BTreeSet;

use lockstep_types::{Block, BlockRef, Change, Configuration, Epoch, Height, Slot, block::encode_body};

use crate::chain::admits;
use crate::effects::{ChangeRefusal, Effects, Moment, Reject};
use crate::leading::Progress;
use crate::replica::{Replica, Role};

/// What a replica is, as its own chain says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// Votes in a configuration in play.
    Voter,
    /// Is told everything and counted nowhere.
    Standby,
    /// Not on its own chain yet: it has to catch up first.
    Joining,
    /// Left, and the change is known to be committed. It never returns.
    Removed,
}

/// The newest configuration known to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership<'a> {
    /// The configuration.
    pub configuration: &'a Configuration,
    /// The height of the block that brought it. Above a snapshot that is as old: the snapshot's.
    pub height: Height,
    /// Whether it can do without who left: before that, no pod and no volume of theirs may go (schedule L5).
    pub settled: bool,
}

impl Replica {
    /// The configuration in force above the own head: the newest that is known.
    pub fn config(&self) -> &Configuration {
        self.chain.newest()
    }

    /// The newest configuration known to be committed, since when, and whether who left may go.
    pub fn membership(&self) -> Membership<'_> {
        let (height, configuration) = self.in_play().next().expect("one is always in force");
        let settled = self.chain.proves(height, self.committed.height);
        Membership { configuration, height, settled }
    }

    /// What this replica is, as its own chain says.
    pub fn standing(&self) -> Standing {
        let newest = self.config();
        if self.votes() {
            Standing::Voter
        } else if newest.standbys().contains_key(&self.me) {
            Standing::Standby
        } else if newest.is_removed(self.me) {
            Standing::Removed
        } else {
            Standing::Joining
        }
    }

    /// Everyone to talk to: members from the last settled configuration to the newest, without this replica.
    pub fn peers(&self) -> BTreeSet<Slot> {
        let settled = self.chain.proved(self.committed.height);
        let told = self.chain.configurations_above(settled).flat_map(|(_, configuration)| configuration.members());
        told.map(|(slot, _)| slot).filter(|slot| *slot != self.me).collect()
    }

    // Counting.

    /// The highest block known to be committed: by the commit pointer, or because the own chain proves it. Others are told
    /// this one: a chain may prove to one who left that it left, and to nobody else.
    pub(crate) fn known_committed(&self) -> BlockRef {
        let proved = self.chain.proved(self.chain.head().height);
        let proved = self.chain.at(proved).filter(|block| block.height > self.committed.height);
        proved.unwrap_or(self.committed)
    }

    /// The configurations in play, oldest first, each with the height of its change.
    pub(crate) fn in_play(&self) -> impl Iterator<Item = (Height, &Configuration)> {
        self.chain.configurations_above(self.known_committed().height)
    }

    /// The voters of all configurations in play, without this replica: who is asked, and whose promises count.
    pub(crate) fn others(&self) -> BTreeSet<Slot> {
        let voters = self.in_play().flat_map(|(_, configuration)| configuration.voters().keys().copied());
        voters.filter(|slot| *slot != self.me).collect()
    }

    /// Whether `slot` votes in a configuration in play.
    pub fn is_counted(&self, slot: Slot) -> bool {
        self.in_play().any(|(_, configuration)| configuration.voter(slot).is_some())
    }

    /// Whether the own vote counts.
    pub(crate) fn votes(&self) -> bool {
        self.is_counted(self.me)
    }

    /// Whether this replica may call for a view of its own accord. One that its newest configuration leaves out never does: it
    /// answers those who stay, and they are enough to begin, since one of them is in every quorum of the new configuration.
    /// Nor does one that is fenced: of a quorum, whoever else is in it may.
    pub(crate) fn stands(&self) -> bool {
        self.config().voter(self.me).is_some() && !self.fenced
    }

    /// Whether these slots are a quorum of each configuration in play (schedule S4).
    pub fn is_quorum(&self, slots: &BTreeSet<Slot>) -> bool {
        self.in_play().all(|(_, configuration)| configuration.is_quorum(slots.iter().copied()))
    }

    /// The greatest value that a quorum of each configuration in play has reached.
    pub(crate) fn reached<T: Ord + Default + Copy>(&self, reached: impl Fn(Slot) -> Option<T>) -> T {
        let each = self.in_play().map(|(_, configuration)| configuration.reached_by_quorum(&reached));
        each.min().expect("one is always in force")
    }

    /// The greatest height that a quorum of each configuration has acknowledged, from the last known to be committed to the
    /// one in force at that height: what stands at or below a change needs no vote of what the change brings (schedule S4).
    pub(crate) fn acknowledged_by_quorums(&self, acknowledged: impl Fn(Slot) -> Option<Height>) -> Height {
        let mut in_play = self.in_play();
        let (_, oldest) = in_play.next().expect("one is always in force");
        let mut reached = oldest.reached_by_quorum(&acknowledged);
        for (change, configuration) in in_play {
            reached = reached.min(configuration.reached_by_quorum(&acknowledged).max(change));
        }
        reached
    }

    // Whom to believe.

    /// Whether a message of this sender would be heard, for messages that the host adds to those of the rules.
    pub fn hears(&self, from: Slot, epoch: Epoch) -> bool {
        self.admit(from, epoch).is_ok()
    }

    /// Believes the sender of a message to be a member, or says why not; and whether it is ahead in changes. Epochs may differ. Who is unknown here and ahead in
    /// changes joined while this replica was away (schedule S5): in the crash model nobody lies about that.
    pub(crate) fn admit(&self, from: Slot, epoch: Epoch) -> Result<bool, Reject> {
        let newest = self.config();
        let ahead = epoch > newest.epoch();
        let settled = self.chain.proved(self.committed.height);
        let mut told = self.chain.configurations_above(settled);
        if from == self.me {
            Err(Reject::UnknownSlot { slot: from })
        } else if told.any(|(_, configuration)| configuration.member(from).is_some()) {
            Ok(ahead)
        } else if newest.is_removed(from) {
            Err(Reject::Removed { slot: from })
        } else if ahead && from >= newest.next_slot() {
            Ok(ahead)
        } else {
            Err(Reject::UnknownSlot { slot: from })
        }
    }

    /// The configuration in force above a block, given the one in force at it; none if the block does not belong there.
    /// A block with a change has no commands.
    pub(crate) fn configuration_after(
        &self,
        configuration: &Configuration,
        block: &Block,
    ) -> Option<Option<Configuration>> {
        let header = block.header();
        let empty = header.change.is_none() || *block.body() == encode_body(&[]);
        let belongs = header.service == self.service && empty && admits(configuration, header);
        belongs.then(|| header.change.and_then(|change| configuration.apply(&change).ok()))
    }

    // Changing.

    /// The change above what is committed, if there is one: nothing is proposed above it.
    pub(crate) fn change_in_flight(&self) -> Option<Height> {
        let newest = self.chain.newest_since();
        (newest > self.committed.height).then_some(newest)
    }

    /// Proposes a change of membership, on a leader whose no-op is committed (PROTOCOL §5, the single-server bug of 2015).
    pub(crate) fn change(&mut self, now: Moment, change: Change, out: &mut Effects) -> Result<(), Reject> {
        if let (Role::Leader(_), Some(height)) = (&self.role, self.change_in_flight()) {
            return Err(Reject::Change(ChangeRefusal::InFlight { height }));
        }
        if !self.can_propose() {
            return Err(Reject::NotNow);
        }
        self.refusal(now, &change).map_err(Reject::Change)?;
        out.proposed = Some(self.extend(now, encode_body(&[]), self.chain.log_time(), Some(change), out));
        Ok(())
    }

    /// Whether the change may be proposed now, or why not.
    fn refusal(&self, now: Moment, change: &Change) -> Result<(), ChangeRefusal> {
        let next = self.config().apply(change).map_err(ChangeRefusal::Impossible)?;
        match *change {
            Change::AddStandby { replica: _ } => {}
            Change::Promote { slot } => {
                if !self.is_caught_up(slot, now) {
                    return Err(ChangeRefusal::Lagging { slot });
                }
            }
            Change::Remove { slot } => {
                let left = next.voters().keys().filter(|voter| self.is_caught_up(**voter, now)).count();
                let needed = next.quorum();
                if self.config().voter(slot).is_some() && left < needed {
                    return Err(ChangeRefusal::NoQuorumLeft { slot, left, needed });
                }
            }
        }
        Ok(())
    }

    /// On the leader: whether a member was heard within the election time and acknowledged, in this view, a block within a
    /// window of the head.
    fn is_caught_up(&self, slot: Slot, now: Moment) -> bool {
        let near = |acknowledged: Height| {
            acknowledged > Height::ZERO && self.chain.head().height.above(acknowledged) <= self.options.window
        };
        self.acknowledged(slot, now).is_some_and(|(acknowledged, recent)| recent && near(acknowledged))
    }

    /// A leader makes a committed change stick: it adds empty blocks until its chain proves the change by itself; or, if it
    /// is itself the one that left, gives the lead to one that stays.
    pub(crate) fn settle(&mut self, now: Moment, out: &mut Effects) {
        if !self.leads_for_good() || self.change_in_flight().is_some() {
            return;
        }
        if !self.stands() {
            // The commit pointer first: who has it needs this replica no more.
            self.heartbeat(out);
            self.hand_over_now(now, self.best_target(now), out);
            return;
        }
        let proved = self.chain.proves(self.chain.newest_since(), self.chain.head().height);
        if !proved && self.can_propose() {
            let _ = self.extend(now, encode_body(&[]), self.chain.log_time(), None, out);
        }
    }

    /// After each step: whoever came is told from now on, whoever left and is settled no more.
    pub(crate) fn mind_members(&mut self) {
        let settled = self.chain.configuration_above(self.chain.proved(self.committed.height)).epoch();
        let told = (settled, self.config().epoch());
        if self.told == told {
            return;
        }
        self.told = told;
        let peers = self.peers();
        if let Role::Leader(leading) = &mut self.role {
            leading.progress.retain(|slot, _| peers.contains(slot));
            for slot in &peers {
                leading.progress.entry(*slot).or_insert_with(Progress::default);
            }
        }
        let next = self.config().next_slot();
        self.timeouts.retain(|slot, _| peers.contains(slot) || *slot >= next);
    }
}
