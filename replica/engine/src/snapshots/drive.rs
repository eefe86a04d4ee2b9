//! What an engine does about snapshots: in answer to an event, and when something is due.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lockstep_consensus::{Input, Moment};
use lockstep_machine::Executor;
use lockstep_types::{BlockHeader, BlockRef, Digest, Slot, SnapshotRef};
use lockstep_wal::Disk;

use super::job::{Job, JobDone, SnapshotError, Writing};
use super::manifest::{Manifest, chunk_file};
use super::transfer::{Step, Transfer};
use super::{KEPT_MAX, SERVING_MAX, Underway};
use crate::engine::Engine;
use crate::message::PeerMessage;

impl<D: Disk> Engine<D> {
    /// The state after this block is to be kept: all replicas do so at the same heights. `asked`: by a command in the block,
    /// which counts more than keeping up.
    pub(crate) fn take_snapshot(&mut self, header: &BlockHeader, block: BlockRef, asked: bool) {
        if !asked && !self.snapshots.stride.takes(block.height) {
            return;
        }
        if let Some(underway) = &mut self.snapshots.writing {
            underway.kept_up = false;
            self.snapshots.stride.lengthen();
            self.snapshots.counters.left_out += 1;
            return;
        }
        let manifest = Manifest {
            service: header.service,
            block,
            log_time: header.log_time,
            configuration: self.core.chain().configuration_above(block.height).clone(),
            digest: self.executor.digest(),
            chunks: Vec::new(),
        };
        let held = self.snapshots.held();
        let writing = Writing::new(manifest, self.executor.freeze().chunks(), held);
        self.snapshots.writing = Some(Underway { kept_up: true, anew: self.snapshots.damaged.clone() });
        self.out.jobs.push(Job::Write(Box::new(writing)));
    }

    /// The rules want a snapshot that `from` offers.
    pub(crate) fn fetch_snapshot(&mut self, from: Slot, snapshot: SnapshotRef) {
        let named = self.snapshots.named.iter().filter(|(_, named)| named.contains(&snapshot));
        let others = named.map(|(slot, _)| *slot).filter(|slot| *slot != from);
        let peers: Vec<Slot> = [from].into_iter().chain(others).collect();
        self.snapshots.transfer = Some(Transfer::new(snapshot, self.snapshots.origin.genesis.service, peers));
    }

    /// A peer says what it has.
    pub(crate) fn on_snapshots_named(&mut self, from: Slot, mut named: Vec<SnapshotRef>, asks: bool) {
        named.truncate(KEPT_MAX);
        let ours = self.snapshots.kept.iter().map(|kept| kept.reference);
        let other = |theirs: &SnapshotRef, ours: SnapshotRef| {
            theirs.block.height == ours.block.height && theirs.manifest != ours.manifest
        };
        if let Some(differs) = ours.clone().find(|ours| named.iter().any(|theirs| other(theirs, *ours))) {
            self.snapshots.trouble = Some(format!("{from} has another state at height {}", differs.block.height));
        }
        if asks {
            self.send(from, PeerMessage::Snapshots { kept: ours.collect(), asks: false });
        }
        self.snapshots.named.insert(from, named);
    }

    /// A peer wants a manifest or chunk.
    pub(crate) fn on_chunk_asked(&mut self, from: Slot, digest: Digest) {
        let waiting = self.snapshots.asked.iter().filter(|(slot, _)| *slot == from).count();
        if waiting < SERVING_MAX {
            self.snapshots.asked.push_back((from, digest));
        }
    }

    /// A peer sent a manifest or chunk, or has none.
    pub(crate) fn on_chunk(&mut self, from: Slot, digest: Digest, bytes: Option<Bytes>) {
        let Some(mut transfer) = self.snapshots.transfer.take() else { return };
        let before = transfer.manifest().is_some();
        let got = transfer.on_answer(from, digest, bytes, |chunk| self.snapshots.holds(chunk));
        // What earlier attempts left and this one has no use for goes now, before more comes.
        self.snapshots.sweep |= transfer.manifest().is_some() != before;
        self.snapshots.transfer = Some(transfer);
        if let Some((digest, bytes)) = got {
            self.out.jobs.push(Job::Store { digest, bytes });
        }
    }

    pub(crate) fn on_job_done(&mut self, now: Moment, done: JobDone) {
        match done {
            JobDone::Wrote(_) | JobDone::Taken(_) | JobDone::NotTaken(_) if self.snapshots.doomed => {
                self.snapshots.doomed = false;
                self.snapshots.writing = None;
                self.snapshots.counters.left_out += 1;
                self.snapshots.sweep = true;
            }
            JobDone::Wrote(writing) => self.out.jobs.push(Job::Write(writing)),
            JobDone::Taken(manifest) => {
                let underway = self.snapshots.writing.take().expect("it was being written");
                if underway.kept_up {
                    self.snapshots.stride.shorten();
                }
                self.snapshots.counters.taken += 1;
                // It wrote each chunk anew that was damaged when it began, or does without; not those found since.
                for chunk in manifest.chunks.iter().filter(|chunk| underway.anew.contains(&chunk.digest)) {
                    self.snapshots.damaged.remove(&chunk.digest);
                }
                self.snapshots.trouble = None;
                self.snapshots.announce_at = now;
                self.snapshots.sweep = true;
                self.snapshots.keep(*manifest, false);
            }
            JobDone::NotTaken(error) => {
                self.snapshots.writing = None;
                self.snapshots.counters.left_out += 1;
                self.snapshots.trouble = Some(error.to_string());
                self.snapshots.sweep = true;
            }
            JobDone::Read { to, digest, bytes: Ok(bytes) } => {
                self.snapshots.counters.served += 1;
                self.send(to, PeerMessage::Chunk { digest, bytes: Some(bytes) });
            }
            JobDone::Read { to, digest, bytes: Err(error) } => {
                // The state in memory is not in doubt: the next snapshot writes the chunk again.
                self.snapshots.damaged.extend(error.damaged());
                self.snapshots.trouble = Some(error.to_string());
                self.send(to, PeerMessage::Chunk { digest, bytes: None });
            }
            JobDone::Stored(digest, Ok(())) => {
                self.snapshots.loose.insert(digest);
                self.snapshots.damaged.remove(&digest);
                if let Some(transfer) = &mut self.snapshots.transfer {
                    transfer.on_stored(digest);
                }
            }
            JobDone::Stored(_, Err(error)) => self.give_up_fetching(now, Some(error)),
            JobDone::NotInstalled(error) => {
                // The next attempt fetches what cannot be loaded; if that has no name, all of it.
                match error.damaged() {
                    Some(chunk) => self.snapshots.damaged.extend([chunk]),
                    None => self.snapshots.damaged.extend(self.snapshots.loose.iter()),
                }
                self.give_up_fetching(now, Some(error));
            }
            JobDone::Installed(manifest, executor) => self.install(now, *manifest, *executor),
            JobDone::Loaded(manifest, loaded) => self.on_loaded(now, &manifest, loaded),
            JobDone::Swept(swept) => {
                // What cannot be removed is no reason to wait for ever.
                self.snapshots.sweeps -= 1;
                self.snapshots.trouble = swept.err().map(|error| error.to_string()).or(self.snapshots.trouble.take());
            }
            JobDone::Fenced(Ok(())) => {}
            JobDone::Fenced(Err(error)) => self.snapshots.trouble = Some(error.to_string()),
        }
    }

    fn give_up_fetching(&mut self, now: Moment, error: Option<SnapshotError>) {
        let Some(transfer) = self.snapshots.transfer.take() else { return };
        self.snapshots.loading = false;
        self.snapshots.counters.not_installed += 1;
        let what = transfer.snapshot();
        self.snapshots.trouble = Some(match error {
            Some(error) => error.to_string(),
            None => format!("no peer sends {what}; it is tried again while this replica lags"),
        });
        let effects = self.core.step(now, Input::InstallFailed);
        self.absorb(effects);
    }

    fn install(&mut self, now: Moment, manifest: Manifest, executor: Executor) {
        let (snapshot, log_time) = (manifest.reference(), manifest.log_time);
        let (block, configuration) = (snapshot.block, manifest.configuration.clone());
        self.snapshots.transfer = None;
        self.snapshots.loading = false;
        self.snapshots.trouble = None;
        self.snapshots.counters.installed += 1;
        self.snapshots.sweep = true;
        // It was offered because a quorum agreed on it.
        self.snapshots.keep(manifest, true);
        // The log may have brought more in the meantime.
        let replaces = block.height > self.executor.applied() || self.waits_for_state();
        if replaces {
            self.executor = executor;
            self.skip_blocks(block.height);
            self.out.installed = Some(snapshot);
        }
        let kept = self.core.chain().holds(block) || self.core.chain().base().height >= block.height;
        let effects = self.core.step(now, Input::Installed { snapshot, log_time, configuration });
        if !kept {
            self.log.start_above(block.height);
        }
        self.absorb(effects);
        let input = Input::Applied { height: self.executor.applied(), digest: self.executor.digest() };
        let effects = self.core.step(now, input);
        self.absorb(effects);
        if replaces {
            self.state_installed(now);
        }
    }

    /// Fetches the newest snapshot that a quorum of the others named, whatever the log holds.
    pub(crate) fn fetch_agreed(&mut self) {
        if self.snapshots.transfer.is_some() {
            return;
        }
        let mut named: BTreeMap<SnapshotRef, BTreeSet<Slot>> = BTreeMap::new();
        for (slot, snapshots) in &self.snapshots.named {
            for snapshot in snapshots {
                named.entry(*snapshot).or_default().insert(*slot);
            }
        }
        let agreed = named.into_iter().rev().find(|(_, slots)| self.core.is_quorum(slots));
        if let Some((snapshot, slots)) = agreed
            && let Some(from) = slots.first()
        {
            self.fetch_snapshot(*from, snapshot);
        }
    }

    /// What is due: announcements, chunks to serve and to ask for, files to sweep, log to cut.
    pub(crate) fn drive_snapshots(&mut self, now: Moment) {
        self.announce(now);
        self.agree(now);
        self.serve_chunks(now);
        self.drive_transfer(now);
        let known = self.snapshots.transfer.as_ref().is_none_or(|transfer| transfer.manifest().is_some());
        let idle = self.snapshots.writing.is_none() && !self.snapshots.loading;
        if self.snapshots.sweep && idle && known && self.log.stands() {
            self.snapshots.sweep = false;
            self.snapshots.sweeps += 1;
            let keep = self.snapshots.files();
            self.snapshots.loose.retain(|chunk| keep.contains(&chunk_file(*chunk)));
            self.out.jobs.push(Job::Sweep { keep });
        }
        self.cut_log(now);
    }

    fn announce(&mut self, now: Moment) {
        if now < self.snapshots.announce_at {
            return;
        }
        self.snapshots.announce_at = now.plus(self.snapshots.options.announce);
        let Some(newest) = self.snapshots.kept.last().map(|kept| kept.reference) else { return };
        let kept: Vec<SnapshotRef> = self.snapshots.kept.iter().map(|kept| kept.reference).collect();
        let others = self.core.config().members().map(|(slot, _)| slot).filter(|slot| *slot != self.core.me());
        let unsure = others.filter(|slot| !self.snapshots.named.get(slot).is_some_and(|named| named.contains(&newest)));
        for to in unsure.collect::<Vec<_>>() {
            self.send(to, PeerMessage::Snapshots { kept: kept.clone(), asks: true });
        }
    }

    /// Offers the newest snapshot that a quorum named.
    fn agree(&mut self, now: Moment) {
        let (config, me) = (self.core.config(), self.core.me());
        let mut offered = None;
        for kept in self.snapshots.kept.iter_mut().filter(|kept| !kept.agreed) {
            let named = self.snapshots.named.iter().filter(|(_, named)| named.contains(&kept.reference));
            if config.is_quorum(named.map(|(slot, _)| *slot).chain([me])) {
                kept.agreed = true;
                offered = Some(kept.reference);
            }
        }
        if let Some(snapshot) = offered {
            self.snapshots.let_go();
            let effects = self.core.step(now, Input::Offer(snapshot));
            self.absorb(effects);
        }
    }

    fn serve_chunks(&mut self, now: Moment) {
        while now >= self.snapshots.serve_at
            && let Some((to, digest)) = self.snapshots.asked.pop_front()
        {
            let file = self.snapshots.file_of(digest).filter(|_| !self.divergence.is_fenced());
            let Some(file) = file else {
                self.send(to, PeerMessage::Chunk { digest, bytes: None });
                continue;
            };
            // A manifest is small.
            let bytes = self.snapshots.chunks.get(&digest).map_or(4096, |bytes| u64::from(*bytes));
            let pause = bytes * 1_000_000 / self.snapshots.options.serve_bytes_per_second.max(1);
            self.snapshots.serve_at = self.snapshots.serve_at.max(now).plus(pause);
            self.out.jobs.push(Job::Read { to, digest, file });
        }
    }

    fn drive_transfer(&mut self, now: Moment) {
        while !self.snapshots.loading
            && let Some(transfer) = &mut self.snapshots.transfer
            && let Some(step) = transfer.next(now)
        {
            match step {
                Step::Ask(peer, digest) => self.send(peer, PeerMessage::FetchChunk { digest }),
                Step::Install(manifest) => {
                    self.snapshots.loading = true;
                    let origin = Box::new(self.snapshots.origin.clone());
                    self.out.jobs.push(Job::Install(manifest, origin));
                }
                Step::Fail => self.give_up_fetching(now, None),
            }
        }
    }

    /// Cuts the log below the second newest snapshot agreed on, and above what a follower that lags but answers still needs,
    /// unless that is too much.
    fn cut_log(&mut self, now: Moment) {
        if self.divergence.is_halted() {
            // A state that is built anew needs what lies above the snapshot that it begins with.
            return;
        }
        let below = self.snapshots.superfluous_below();
        let base = self.core.chain().base().height;
        if below <= base {
            return;
        }
        let slowest = || {
            let members = self.core.config().members();
            let known = members.filter_map(|(slot, _)| self.core.acknowledged(slot, now));
            known.filter(|(_, answers)| *answers).map(|(height, _)| height).min().unwrap_or(below)
        };
        let height = if self.log.bytes() > self.snapshots.options.retain_bytes { below } else { below.min(slowest()) };
        let height = height.min(self.core.durable_height()).min(self.executor.applied());
        if height > base {
            let effects = self.core.step(now, Input::Forget(height));
            self.absorb(effects);
            self.log.forget_below(height);
        }
    }
}
