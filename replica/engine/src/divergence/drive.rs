//! What an engine does about divergence: in answer to a message, and when something is due.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lockstep_consensus::{Input, Moment, Replica};
use lockstep_machine::{Executor, first_difference};
use lockstep_types::{BlockRef, Digest, Height, Slot};
use lockstep_wal::Disk;

use super::digests::Digests;
use super::fence::Fence;
use super::verdict::{Parting, Verdict, Voters, is_upheld, verdict};
use super::{DIGESTS_MAX, Divergence, DivergenceStatus, Halt, Peer, Stage, StateDoubt};
use crate::engine::Engine;
use crate::message::PeerMessage;
use crate::snapshots::job::{Job, SnapshotError};
use crate::snapshots::manifest::Manifest;

/// Blocks after which digests are sent before their time.
const BLOCKS: u64 = 256;
/// Microseconds after which a peer is asked again.
const AGAIN: u64 = 1_000_000;
/// How often a peer is asked what a block wrote.
const ASKED_MAX: u32 = 8;

impl Voters for Replica {
    fn votes(&self, slot: Slot) -> bool {
        self.is_counted(slot)
    }

    fn is_quorum(&self, slots: &BTreeSet<Slot>) -> bool {
        Replica::is_quorum(self, slots)
    }
}

impl Divergence {
    fn verdict(&self, rules: &Replica) -> Verdict {
        verdict(rules.me(), &self.own, &self.named(), rules)
    }

    /// Whether a quorum agrees with the own execution of this block.
    fn is_upheld(&self, rules: &Replica, block: Height) -> bool {
        is_upheld(rules.me(), &self.own, &self.named(), rules, block)
    }

    fn named(&self) -> BTreeMap<Slot, &Digests> {
        self.peers.iter().map(|(slot, peer)| (*slot, &peer.digests)).collect()
    }

    fn take(&mut self, from: Slot, round: u64, first: Height, digests: &[Digest], have: (u64, Height)) {
        let peer = self.peers.entry(from).or_default();
        if round < peer.round || first.get().checked_add(digests.len() as u64 + 1).is_none() {
            return;
        }
        if round > peer.round {
            *peer = Peer { round, ..Peer::default() };
        }
        peer.digests.extend(first, digests);
        peer.has = have;
        peer.owed |= !digests.is_empty();
        self.judge = true;
    }

    /// What this peer is to be told, if anything.
    fn message_to(&mut self, to: Slot) -> Option<PeerMessage> {
        let (round, speaks) = (self.round, self.speaks());
        let (own_first, own_last) = (self.own.first(), self.own.last());
        let known = self.peers.contains_key(&to);
        let peer = self.peers.entry(to).or_default();
        let (of, has) = peer.has;
        let lacks = of != round || has < own_last;
        if known && !peer.owed && !(speaks && lacks) {
            return None;
        }
        peer.owed = false;
        let has = if of == round { has.min(own_last) } else { own_first.prev() };
        let (first, digests) = if speaks { self.own.above(has, DIGESTS_MAX) } else { (Height::ZERO, Vec::new()) };
        let have = (peer.round, if peer.digests.is_empty() { own_first.prev() } else { peer.digests.last() });
        Some(PeerMessage::Digests { round, first, digests, have })
    }
}

impl<D: Disk> Engine<D> {
    /// A peer named digests, and says which of the own ones it has.
    pub(crate) fn on_digests(
        &mut self,
        from: Slot,
        round: u64,
        first: Height,
        mut digests: Vec<Digest>,
        have: (u64, Height),
    ) {
        digests.truncate(DIGESTS_MAX);
        self.divergence.take(from, round, first, &digests, have);
    }

    /// A peer wants to know what a block wrote here.
    pub(crate) fn on_writes_asked(&mut self, from: Slot, height: Height) {
        let writes = self.divergence.writes.of(height).filter(|_| !self.divergence.is_fenced());
        self.send(from, PeerMessage::Writes { height, writes });
    }

    /// A peer says what a block wrote there.
    pub(crate) fn on_writes(&mut self, height: Height, writes: Option<Bytes>) {
        let Some(halt) = self.divergence.halt.as_mut().filter(|halt| halt.parting.block == height) else { return };
        if let (Some(theirs), Some(ours), None) = (writes, &halt.wrote, &halt.key) {
            halt.key = first_difference(ours, &theirs);
        }
    }

    /// Starts behind a fence that an earlier process left.
    pub(crate) fn start_fenced(&mut self, now: Moment, fence: Fence) {
        let Fence { block, exact, digest } = fence;
        let parting = Parting { block, exact, witness: self.core.me(), digest };
        self.divergence.halt = Some(Halt::new(parting, true, Stage::Loading, None, now));
        let effects = self.core.step(now, Input::Fence(true));
        self.absorb(effects);
        self.rebuild();
    }

    /// Blocks were applied or digests came: what do they say? Nothing is answered before that is known.
    pub(crate) fn judge_state(&mut self, now: Moment) {
        if std::mem::take(&mut self.divergence.judge) {
            self.judge(now);
        }
        let executing = self.divergence.halt.as_ref().filter(|halt| halt.stage == Stage::Executing);
        if executing.is_some_and(|halt| self.executor.applied() >= halt.parting.block) {
            self.executed_again(now);
        }
    }

    /// What is due: verdicts, stages of a halt, messages. Before anything is applied.
    pub(crate) fn drive_divergence(&mut self, now: Moment) {
        self.judge_state(now);
        self.drive_stage(now);
        self.ask_for_writes(now);
        self.announce_digests(now);
    }

    fn judge(&mut self, now: Moment) {
        let divergence = &self.divergence;
        match &divergence.halt {
            // The own digests are gone, or count no more.
            Some(Halt { fenced: true, .. })
            | Some(Halt {
                stage: Stage::Clearing | Stage::Loading | Stage::Fetching { .. } | Stage::Executing, ..
            }) => {}
            Some(Halt { parting, .. }) if divergence.is_upheld(&self.core, parting.block) => self.lift(now),
            Some(Halt { stage, .. }) => {
                let stage = *stage;
                if let Verdict::Against(parting) = divergence.verdict(&self.core) {
                    self.fence(now, parting, stage == Stage::Again);
                }
            }
            None => match divergence.verdict(&self.core) {
                Verdict::Unopposed | Verdict::Upheld => {}
                Verdict::Against(parting) => self.fence(now, parting, false),
                Verdict::Open(parting) => {
                    let until = now.plus(2 * self.election);
                    let wrote = divergence.writes.of(parting.block);
                    self.divergence.counters.halts += 1;
                    self.divergence.halt = Some(Halt::new(parting, false, Stage::Waiting { until }, wrote, now));
                    // So that the others see it, and say what they have.
                    self.divergence.announce_at = now;
                }
            },
        }
    }

    /// A state that nobody writes to can rot, too: all blocks were executed alike, and a quorum has another snapshot of it.
    pub(crate) fn judge_snapshots(&mut self, now: Moment) {
        let Some((block, digest, witness)) = self.snapshots.outvoted(|slots| self.core.is_quorum(slots)) else {
            return;
        };
        if self.divergence.halt.is_none() && self.divergence.is_upheld(&self.core, block) {
            self.fence(now, Parting { block, exact: false, witness, digest }, false);
        }
    }

    /// A quorum is against the state. `again`: against one that was built anew for the same block.
    fn fence(&mut self, now: Moment, parting: Parting, again: bool) {
        self.divergence.counters.fences += 1;
        let before = self.divergence.halt.take();
        let wrote = before.as_ref().and_then(|halt| halt.wrote.clone());
        let wrote = wrote.or_else(|| self.divergence.writes.of(parting.block));
        let mut halt = Halt::new(parting, true, Stage::Again, wrote, now);
        halt.key = before.and_then(|halt| halt.key);
        self.out.jobs.push(Job::Fence(Some(halt.fence())));
        self.divergence.halt = Some(halt);
        let effects = self.core.step(now, Input::Fence(true));
        self.absorb(effects);
        self.refuse_reads();
        if !again {
            self.rebuild();
        }
    }

    /// The state is that of a quorum.
    fn lift(&mut self, now: Moment) {
        let Some(halt) = self.divergence.halt.take() else { return };
        let was = DivergenceStatus { state: StateDoubt::Over, ..halt.status() };
        self.divergence.last = Some(was);
        self.divergence.announce_at = now;
        if halt.fenced {
            self.out.jobs.push(Job::Fence(None));
            let effects = self.core.step(now, Input::Fence(false));
            self.absorb(effects);
        }
    }

    /// The state is believed no more, nor are its snapshots: builds it anew once these are gone.
    fn rebuild(&mut self) {
        let Some(halt) = &mut self.divergence.halt else { return };
        halt.stage = Stage::Clearing;
        self.snapshots.distrust_from(halt.parting.block);
        self.divergence.round += 1;
        self.divergence.own = Digests::default();
    }

    /// Begins with the newest snapshot below the block in question that a quorum agreed on, or with the genesis.
    fn begin_again(&mut self, now: Moment) {
        let Some(halt) = &mut self.divergence.halt else { return };
        if let Some(manifest) = self.snapshots.trusted_below(halt.parting.block) {
            halt.stage = Stage::Loading;
            self.out.jobs.push(Job::Load(Box::new(manifest), Box::new(self.snapshots.origin().clone())));
        } else if self.core.chain().base() == BlockRef::GENESIS {
            let executor = self.snapshots.origin().executor();
            self.execute_again(now, executor);
        } else {
            halt.stage = Stage::Fetching { again_at: now };
        }
    }

    /// A snapshot for a state to be built anew was read, or cannot be.
    pub(crate) fn on_loaded(&mut self, now: Moment, manifest: &Manifest, loaded: Result<Box<Executor>, SnapshotError>) {
        let wanted = self.divergence.halt.as_ref().is_some_and(|halt| halt.stage == Stage::Loading);
        match loaded {
            Ok(executor) if wanted => self.execute_again(now, *executor),
            Err(error) if wanted => {
                self.snapshots.forget_damaged(manifest, &error);
                self.begin_again(now);
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// Goes on from this state, up to the block in question.
    fn execute_again(&mut self, now: Moment, executor: Executor) {
        let height = executor.applied();
        self.executor = executor;
        self.divergence.own = Digests::from(height, self.executor.digest());
        self.divergence.counters.rebuilds += 1;
        self.out.rebuilt = Some(height);
        self.out.installed = None;
        if let Some(halt) = &mut self.divergence.halt {
            halt.stage = Stage::Executing;
        }
        let effects = self.core.step(now, Input::Applied { height, digest: self.executor.digest() });
        self.absorb(effects);
    }

    /// The snapshot of a peer, which a quorum agreed on, took the place of the state.
    pub(crate) fn state_installed(&mut self, now: Moment) {
        let height = self.executor.applied();
        self.divergence.round += 1;
        self.divergence.own = Digests::from(height, self.executor.digest());
        self.out.rebuilt = None;
        match &mut self.divergence.halt {
            Some(halt) if height < halt.parting.block => halt.stage = Stage::Executing,
            Some(_) => self.lift(now),
            None => {}
        }
    }

    /// Whether the state waits for the snapshot of a peer.
    pub(crate) fn waits_for_state(&self) -> bool {
        self.divergence.halt.as_ref().is_some_and(|halt| matches!(halt.stage, Stage::Fetching { .. }))
    }

    fn drive_stage(&mut self, now: Moment) {
        let Some(halt) = &mut self.divergence.halt else { return };
        match halt.stage {
            Stage::Waiting { until } if now >= until => self.rebuild(),
            Stage::Fetching { again_at } if now >= again_at => {
                halt.stage = Stage::Fetching { again_at: now.plus(AGAIN) };
                self.fetch_agreed();
            }
            Stage::Clearing if self.snapshots.is_clear() => self.begin_again(now),
            Stage::Waiting { .. }
            | Stage::Clearing
            | Stage::Fetching { .. }
            | Stage::Loading
            | Stage::Executing
            | Stage::Again => {}
        }
    }

    /// The block in question was executed again.
    fn executed_again(&mut self, now: Moment) {
        let block = self.executor.applied();
        let wrote = self.divergence.writes.of(block);
        let Some(halt) = &mut self.divergence.halt else { return };
        if let (Some(first), Some(second), None) = (&halt.wrote, &wrote, &halt.key) {
            halt.key = first_difference(first, second);
        }
        halt.stage = Stage::Again;
        if halt.fenced && self.divergence.own.get(block) == Some(halt.parting.digest) {
            self.lift(now);
        } else {
            // Others may have said long ago what the second execution gives.
            self.divergence.announce_at = now;
            self.judge(now);
        }
    }

    /// Asks one who differs what the block wrote there, for the first key that differs.
    fn ask_for_writes(&mut self, now: Moment) {
        let me = self.core.me();
        let Some(halt) = &mut self.divergence.halt else { return };
        let Parting { block, witness, .. } = halt.parting;
        let wants = halt.key.is_none() && halt.wrote.is_some() && witness != me;
        if wants && halt.asked < ASKED_MAX && now >= halt.ask_at {
            halt.asked += 1;
            halt.ask_at = now.plus(AGAIN);
            self.send(witness, PeerMessage::FetchWrites { height: block });
        }
    }

    fn announce_digests(&mut self, now: Moment) {
        let many = self.divergence.own.last().above(self.divergence.announced) >= BLOCKS;
        if now < self.divergence.announce_at && !many {
            return;
        }
        self.divergence.announce_at = now.plus(self.divergence.pace);
        self.divergence.announced = self.divergence.own.last();
        let members: BTreeSet<Slot> = self.core.peers();
        self.divergence.peers.retain(|slot, _| members.contains(slot));
        for to in members {
            if let Some(message) = self.divergence.message_to(to) {
                self.send(to, message);
            }
        }
    }
}
