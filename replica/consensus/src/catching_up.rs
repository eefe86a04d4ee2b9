//! Catching up: blocks by height and hash from any peer, on the word of the leader of the current view. PROTOCOL §4, VRR §5.2.
//!
//! The asker names an anchor that it holds and the tip that it wants; a peer sends what follows the anchor if its own chain
//! holds the tip, else only what is committed there. Every block must chain from the one before, so a wrong one is
//! noticed. Where the own suffix diverged, the asker steps back along its own chain, twice as far each time and never below
//! what it knows to be committed (after a restart that is nothing), until both hold the anchor. It keeps its own
//! suffix until the fetched chain ranks higher. (A power cut in the middle of the exchange may leave a lower rank; what was
//! dropped can never commit, since the tip rests on a certificate or a commit.)

use alloc::vec::Vec;

use lockstep_types::{Block, BlockRef, Digest, Height, Slot, View};

use crate::effects::{Effects, Moment, Reject, Serve};
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

    /// Who is known to have left its view with this block; else a voter that neither leads nor asks.
    fn holder_of(&self, tip: BlockRef) -> Slot {
        let left_with = self.timeouts.iter().find(|(_, (_, rank))| *rank == tip).map(|(slot, _)| *slot);
        let others = self.others();
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
        if behind {
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

    /// Turns to the next voter, after a pause: this one has nothing, or does not answer.
    fn ask_next_peer(&mut self, now: Moment) {
        let Some(catch_up) = &mut self.catch_up else { return };
        catch_up.asked = None;
        if catch_up.staged.is_empty() {
            catch_up.base = None;
        }
        catch_up.again_at = now.plus(self.options.heartbeat / 4);
        catch_up.peer = self.config.successor(catch_up.peer);
        if catch_up.peer == self.me {
            catch_up.peer = self.config.successor(self.me);
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
        let upto = if self.chain.holds(tip) { tip.height } else { self.committed.height };
        let refusal = match self.chain.at(after) {
            Some(own) if own.hash != anchor => FetchRefusal::Diverged,
            Some(_) if upto > after => {
                out.serve.push(Serve { to: from, after, upto, committed: self.committed });
                return;
            }
            Some(_) | None => FetchRefusal::Nothing,
        };
        let fetched = Message::Fetched { after, blocks: Err(refusal), committed: self.committed };
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
            Ok(_) | Err(FetchRefusal::Nothing) => self.ask_next_peer(now),
        }
        self.commit_to(committed, out);
        let Some(catch_up) = &self.catch_up else { return Ok(()) };
        if self.chain.holds(catch_up.tip) || catch_up.tip.height <= self.committed.height {
            self.catch_up = None;
            self.append_ahead(now, out);
            self.try_to_lead(now, out);
        } else if catch_up.asked.is_none() && catch_up.again_at <= now {
            self.ask_for_blocks(now, out);
        }
        self.acknowledge(out);
        Ok(())
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
        for block in blocks {
            let chains = block.header().parent == last.hash
                && block.height() == last.height.next()
                && block.view() >= last.view
                // A view that was not entered yet: its leader's word, or a quorum's, comes first.
                && block.view() <= self.view
                && self.belongs(&block);
            if !chains {
                break;
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
        current: View,
        committed: BlockRef,
        out: &mut Effects,
    ) {
        if current > self.view && self.config.voter(current.leader).is_some() && current.leader != self.me {
            self.view = current;
            self.become_follower(now, out);
        }
        self.commit_to(committed, out);
        if committed.height > self.committed.height && committed.view <= self.view && self.catch_up.is_none() {
            self.catch_up_from(now, from, committed, out);
        }
    }
}
