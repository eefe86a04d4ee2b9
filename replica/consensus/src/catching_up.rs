//! Catching up: blocks by height and hash from any peer, on the word of the leader of the current view. PROTOCOL §4, VRR §5.2.
//!
//! The asker names an anchor that it holds and the tip that it wants; a peer sends what follows the anchor if its own chain
//! holds the tip, else only what is committed there. Every block must chain from the one before, so a wrong one is
//! noticed. Where the own suffix diverged, the asker steps back along its own chain, twice as far each time and never below
//! what it knows to be committed (after a restart that is nothing), until both hold the anchor. It keeps its own
//! suffix until the fetched chain ranks higher. (A power cut in the middle of the exchange may leave a lower rank; what was
//! dropped can never commit, since the tip rests on a certificate or a commit.)

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use lockstep_types::{Block, BlockRef, Configuration, Digest, Height, LogTime, Slot, SnapshotRef, View};

use crate::chain::Chain;
use crate::effects::{Effects, Moment, Record, Reject, Serve};
use crate::following::Following;
use crate::message::{FetchRefusal, Message};
use crate::replica::{Replica, Role};

/// Blocks of a diverged chain held in memory at most. A suffix that is not committed spans a window and one block per
/// failed view, and the common anchor is found within twice its length, so a longer one is given up and fetched anew.
const STAGED_MAX: usize = 4096;

/// Blocks that wait for the own disk, in windows, beyond which no more are fetched: a disk that hangs must not fill the memory.
const UNDURABLE_WINDOWS: u64 = 16;

/// Blocks that a leader-to-be may lack; with more it asks the one that has them to lead.
const LEAD_LAG_MAX: u64 = 512;

/// Fetching what leads to a tip.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CatchUp {
    /// The block to reach.
    tip: BlockRef,
    /// The own suffix above this block of the own chain is not on the tip's chain: what follows it is staged.
    base: Option<BlockRef>,
    /// Blocks that follow `base`, until they rank above the head.
    staged: Vec<Block>,
    /// The peer to ask.
    peer: Slot,
    /// The height asked for, while an answer is awaited.
    asked: Option<Height>,
    /// When to ask again: the next peer if no answer came.
    again_at: Moment,
    /// For a leader-to-be: when it gives the lead away.
    until: Option<Moment>,
}

impl CatchUp {
    pub fn deadline(&self) -> Moment {
        self.until.map_or(self.again_at, |until| self.again_at.min(until))
    }

    pub fn tip(&self) -> BlockRef {
        self.tip
    }
}

impl Replica {
    /// Makes the chain reach `tip`. The caller vouches for the tip: the word of the current view's leader, the highest rank
    /// of a certificate, or a committed block.
    pub(crate) fn catch_up_to(&mut self, now: Moment, tip: BlockRef, out: &mut Effects) {
        self.catch_up_from(now, self.holder_of(tip), tip, out);
    }

    fn catch_up_from(&mut self, now: Moment, peer: Slot, tip: BlockRef, out: &mut Effects) {
        if self.chain.holds(tip) || tip.height <= self.committed.height {
            return;
        }
        if let Some(catch_up) = &mut self.catch_up {
            if tip.rank() > catch_up.tip.rank() {
                catch_up.tip = tip;
            }
            return;
        }
        let leading = matches!(self.role, Role::Candidate(_)) && self.view.leader == self.me;
        if leading && tip.height.above(self.chain.head().height) > LEAD_LAG_MAX {
            self.give_lead_away(now, peer, out);
            return;
        }
        self.catch_up = Some(CatchUp {
            tip,
            base: None,
            staged: Vec::new(),
            peer,
            asked: None,
            again_at: now,
            until: leading.then(|| now.plus(self.options.election)),
        });
        self.ask_for_blocks(now, out);
    }

    /// Everyone who may have blocks: members, whoever else left its view, and a leader that joined while this one was away.
    fn holders(&self) -> BTreeSet<Slot> {
        let mut holders = self.peers();
        holders.extend(self.timeouts.keys().copied());
        if let Role::Follower(Following { heard: Some(_), .. }) = &self.role {
            holders.insert(self.view.leader);
        }
        holders.remove(&self.me);
        holders
    }

    /// Who is known to have left its view with this block; else a member that neither leads nor asks.
    fn holder_of(&self, tip: BlockRef) -> Slot {
        let left_with = self.timeouts.iter().find(|(_, (_, rank))| *rank == tip).map(|(slot, _)| *slot);
        let others = self.holders();
        left_with
            .or_else(|| others.iter().copied().find(|slot| *slot != self.view.leader))
            .or_else(|| others.first().copied())
            .unwrap_or(self.me)
    }

    fn ask_for_blocks(&mut self, now: Moment, out: &mut Effects) {
        self.forget_lost_base();
        let head = self.chain.head();
        let behind = self.undurable.len() as u64 > UNDURABLE_WINDOWS * self.options.window;
        let Some(catch_up) = &mut self.catch_up else { return };
        // While a snapshot is on its way, peers would only offer it again.
        if behind || self.installing.is_some() {
            catch_up.again_at = now.plus(self.options.heartbeat);
            return;
        }
        if catch_up.base.is_none() && head.height >= catch_up.tip.height {
            // The tip is not on the own chain, so nothing from its height on is: who has the tip may have nothing higher.
            catch_up.base = self.chain.at(catch_up.tip.height.prev().max(self.committed.height));
        }
        let anchor = catch_up.staged.last().map_or(catch_up.base.unwrap_or(head), Block::reference);
        catch_up.asked = Some(anchor.height);
        catch_up.again_at = now.plus(4 * self.options.heartbeat);
        let (peer, tip) = (catch_up.peer, catch_up.tip);
        self.send(out, peer, Message::Fetch { after: anchor.height, anchor: anchor.hash, tip });
    }

    /// Turns to the next one, after a pause: this one has nothing, or does not answer.
    pub(crate) fn ask_next_peer(&mut self, now: Moment) {
        let holders = self.holders();
        let Some(catch_up) = &mut self.catch_up else { return };
        catch_up.asked = None;
        if catch_up.staged.is_empty() {
            catch_up.base = None;
        }
        catch_up.again_at = now.plus(self.options.heartbeat / 4);
        let after = Slot::new(catch_up.peer.get().saturating_add(1));
        if let Some(next) = holders.range(after..).next().or_else(|| holders.first()) {
            catch_up.peer = *next;
        }
    }

    pub(crate) fn tick_catch_up(&mut self, now: Moment, out: &mut Effects) {
        let Some(catch_up) = &self.catch_up else { return };
        if catch_up.until.is_some_and(|until| now >= until) {
            let holder = self.holder_of(catch_up.tip);
            self.give_lead_away(now, holder, out);
        } else if now >= catch_up.again_at {
            if catch_up.asked.is_some() {
                self.ask_next_peer(now);
            }
            self.ask_for_blocks(now, out);
        }
    }

    pub(crate) fn on_fetch(&self, from: Slot, after: Height, anchor: Digest, tip: BlockRef, out: &mut Effects) {
        let committed = self.known_committed();
        let upto = if self.chain.holds(tip) { tip.height } else { committed.height };
        let refusal = match (self.chain.at(after), self.offer) {
            (Some(own), _) if own.hash != anchor => FetchRefusal::Diverged,
            (Some(_), _) if upto > after => {
                out.serve.push(Serve { to: from, after, upto, committed });
                return;
            }
            // An older one than the log's beginning leads nowhere.
            (None, Some(snapshot))
                if after < self.chain.base().height
                    && self.chain.at(snapshot.block.height).is_some()
                    && !self.fenced =>
            {
                FetchRefusal::Forgotten { snapshot }
            }
            (Some(_) | None, _) => FetchRefusal::Nothing,
        };
        let fetched = Message::Fetched { after, blocks: Err(refusal), committed };
        self.send(out, from, fetched);
    }

    pub(crate) fn on_fetched(
        &mut self,
        now: Moment,
        from: Slot,
        after: Height,
        blocks: Result<Vec<Block>, FetchRefusal>,
        committed: BlockRef,
        out: &mut Effects,
    ) -> Result<(), Reject> {
        match &mut self.catch_up {
            Some(catch_up) if catch_up.peer == from && catch_up.asked == Some(after) => catch_up.asked = None,
            Some(_) | None => return Err(Reject::Unexpected),
        }
        match blocks {
            Ok(blocks) if !blocks.is_empty() => self.take_blocks(now, blocks, out)?,
            Err(FetchRefusal::Diverged) => self.step_back(now, after),
            Err(FetchRefusal::Forgotten { snapshot }) => self.on_offer(now, from, after, snapshot, out),
            Ok(_) | Err(FetchRefusal::Nothing) => self.ask_next_peer(now),
        }
        self.commit_to(committed, out);
        self.go_on_catching_up(now, out);
        self.acknowledge(out);
        Ok(())
    }

    /// Ends the catch-up if its tip is reached, else asks for more.
    fn go_on_catching_up(&mut self, now: Moment, out: &mut Effects) {
        let Some(catch_up) = &self.catch_up else { return };
        if self.chain.holds(catch_up.tip) || catch_up.tip.height <= self.committed.height {
            self.catch_up = None;
            self.append_ahead(now, out);
            self.try_to_lead(now, out);
        } else if catch_up.asked.is_none() && catch_up.again_at <= now {
            self.ask_for_blocks(now, out);
        }
    }

    /// The peer's chain holds another block at `refused`: asks from further down, above what is committed.
    fn step_back(&mut self, now: Moment, refused: Height) {
        let head = self.chain.head().height;
        match &mut self.catch_up {
            Some(catch_up) if catch_up.staged.is_empty() && refused > self.committed.height => {
                let from = head.min(catch_up.tip.height.prev());
                let below = from.get().saturating_sub(2 * from.above(refused) + 1);
                let height = Height::new(below).min(refused.prev()).max(self.committed.height);
                catch_up.base = self.chain.at(height);
                catch_up.again_at = now;
            }
            // Even what is committed or staged here is not on that peer's chain: it lags, or what was staged was a late answer
            // about another tip. Begin anew with the next one.
            Some(catch_up) => {
                catch_up.staged.clear();
                self.ask_next_peer(now);
            }
            None => {}
        }
    }

    /// The peer has no log below a snapshot, whose block is committed. If it is on the own chain, it is the anchor to ask
    /// from; else the snapshot is needed. A leader-to-be that would need one asks another to lead (schedule L4).
    fn on_offer(&mut self, now: Moment, from: Slot, after: Height, snapshot: SnapshotRef, out: &mut Effects) {
        self.commit_to(snapshot.block, out);
        if self.chain.holds(snapshot.block) && snapshot.block.height > after {
            if let Some(catch_up) = &mut self.catch_up {
                catch_up.staged.clear();
                catch_up.base = Some(snapshot.block);
                catch_up.again_at = now;
            }
        } else if snapshot.block.height <= self.committed.height {
            self.ask_next_peer(now);
        } else if matches!(self.role, Role::Candidate(_)) && self.view.leader == self.me {
            self.give_lead_away(now, from, out);
        } else if self.installing.is_none() {
            self.installing = Some(snapshot);
            out.install = Some((from, snapshot));
        }
    }

    /// The state is that of a durable snapshot. Blocks above it that chain from it are kept; a suffix goes only if it does not
    /// (PROTOCOL §4, schedule S9d): such a one never committed, though it may be of a later view than the snapshot's block.
    pub(crate) fn on_installed(
        &mut self,
        now: Moment,
        snapshot: SnapshotRef,
        log_time: LogTime,
        configuration: Configuration,
        out: &mut Effects,
    ) {
        self.installing = None;
        // A quorum agreed on it, else nobody had offered it; who knows only this peer may have it from here.
        self.offer = self.offer.max(Some(snapshot));
        let block = snapshot.block;
        if self.chain.holds(block) {
            self.commit_to(block, out);
        } else if block.height > self.committed.height {
            assert!(!matches!(self.role, Role::Leader(_)), "a leader of {} lacks committed block {block}", self.view);
            self.chain = Chain::above(block, log_time, configuration);
            self.undurable.clear();
            self.based = self.persist(Record::Base(block), out);
            self.head_since = now;
            self.committed = block;
            out.committed = Some(block);
            if block.view > self.view {
                self.view = block.view;
                self.become_follower(now, out);
            }
        }
        if let Some(catch_up) = &mut self.catch_up {
            catch_up.asked = None;
            catch_up.again_at = now;
        }
        self.go_on_catching_up(now, out);
        self.acknowledge(out);
    }

    /// Forgets the log below a height that a durable snapshot covers.
    pub(crate) fn forget(&mut self, height: Height) {
        assert!(
            height <= self.applied.0 && height <= self.durable_height(),
            "forgetting below {height}, applied {} and durable {}",
            self.applied.0,
            self.durable_height()
        );
        self.chain.forget_below(height);
    }

    /// The own chain was replaced from below the base on: what was staged above it hangs in the air.
    fn forget_lost_base(&mut self) {
        if let Some(catch_up) = &mut self.catch_up
            && catch_up.base.is_some_and(|base| !self.chain.holds(base))
        {
            catch_up.base = None;
            catch_up.staged.clear();
        }
    }

    fn take_blocks(&mut self, now: Moment, blocks: Vec<Block>, out: &mut Effects) -> Result<(), Reject> {
        self.forget_lost_base();
        let catch_up = self.catch_up.as_ref().expect("checked by the caller");
        let base = catch_up.base;
        let mut last = catch_up.staged.last().map_or(base.unwrap_or(self.chain.head()), Block::reference);
        let mut good = Vec::with_capacity(blocks.len());
        let anchor = base.filter(|_| !catch_up.staged.is_empty()).map_or(last.height, |base| base.height);
        let mut configuration = self.chain.configuration_above(anchor).clone();
        for change in catch_up.staged.iter().filter_map(|block| block.header().change) {
            configuration = configuration.apply(&change).expect("checked when it was staged");
        }
        for block in blocks {
            let chains = block.header().parent == last.hash
                && block.height() == last.height.next()
                && block.view() >= last.view
                // A view that was not entered yet: its leader's word, or a quorum's, comes first.
                && block.view() <= self.view;
            match self.configuration_after(&configuration, &block) {
                Some(next) if chains => configuration = next.unwrap_or(configuration),
                Some(_) | None => break,
            }
            last = block.reference();
            good.push(block);
        }
        if good.is_empty() {
            // The head moved on since the question, or the peer is wrong: ask another from where things stand now.
            if let Some(catch_up) = &mut self.catch_up {
                catch_up.staged.clear();
            }
            self.ask_next_peer(now);
            return Err(Reject::BadBlock { height: last.height.next() });
        }
        let head_rank = self.chain.head().rank();
        let catch_up = self.catch_up.as_mut().expect("checked by the caller");
        catch_up.again_at = now;
        if base.is_none() {
            for block in good {
                self.append(now, block, out);
            }
            return Ok(());
        }
        catch_up.staged.extend(good);
        if last.rank() > head_rank {
            let staged = core::mem::take(&mut catch_up.staged);
            catch_up.base = None;
            for block in staged {
                // The beginning may be common to both chains, and committed by now.
                if !self.chain.holds(block.reference()) {
                    self.append(now, block, out);
                }
            }
        } else if catch_up.staged.len() > STAGED_MAX {
            catch_up.staged.clear();
            self.ask_next_peer(now);
        }
        Ok(())
    }

    /// What a peer tells one who cannot hear the leader: the view that goes on, and what is committed in it. A committed
    /// block is on every later chain, so it may be fetched and applied; nothing is acknowledged.
    pub(crate) fn learn_committed(
        &mut self,
        now: Moment,
        from: Slot,
        ahead: bool,
        current: View,
        committed: BlockRef,
        out: &mut Effects,
    ) {
        if current > self.view && (ahead || self.is_counted(current.leader)) && current.leader != self.me {
            self.view = current;
            self.become_follower(now, out);
        }
        self.commit_to(committed, out);
        if committed.height > self.committed.height && committed.view <= self.view && self.catch_up.is_none() {
            self.catch_up_from(now, from, committed, out);
        }
    }

    /// What the Timeout of a member that is ahead in changes tells one that cannot answer it yet: a chain with those changes.
    /// It ranks higher, so it holds whatever is committed of the own one, and may be taken on; nothing is promised by that.
    pub(crate) fn learn_of_blocks(&mut self, now: Moment, from: Slot, rank: BlockRef, out: &mut Effects) {
        // Who led a view has promised to; nobody can be ahead of it there.
        let impossible = rank.view > self.view && rank.view.leader == self.me;
        if rank.rank() <= self.chain.head().rank() || impossible {
            return;
        }
        if rank.view > self.view {
            self.view = rank.view;
            self.become_follower(now, out);
        }
        self.catch_up_from(now, from, rank, out);
    }
}
