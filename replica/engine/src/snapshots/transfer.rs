//! Fetching a snapshot: its manifest, then the chunks that the disk lacks, a few at a time, from every peer that has it.
//!
//! Bounded: at most [`IN_FLIGHT`] chunks are asked for or on their way to the disk. Resumable: a chunk that is on the disk, of
//! this attempt or of one before, is not fetched again. Pure: the engine sends what it says and starts the jobs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use lockstep_consensus::Moment;
use lockstep_types::{Digest, ServiceId, Slot, SnapshotRef};

use super::manifest::Manifest;

/// Chunks asked for or being written at most.
const IN_FLIGHT: usize = 4;
/// Microseconds after which a question is put to another peer: messages get lost, and peers pace what they serve.
const AGAIN: u64 = 1_000_000;
/// Questions without any answer, one after the other, after which the attempt ends.
const SILENT_MAX: u32 = 8;

/// A snapshot on its way here.
#[derive(Debug)]
pub(crate) struct Transfer {
    snapshot: SnapshotRef,
    service: ServiceId,
    /// Peers that have it, as far as is known; the next one asked is at the front.
    peers: VecDeque<Slot>,
    stage: Stage,
    /// Questions that were not answered in time since the last answer.
    silent: u32,
}

#[derive(Debug)]
enum Stage {
    /// The manifest is asked for, or about to be.
    Manifest { asked: Option<Moment> },
    /// Chunks are fetched.
    Chunks {
        manifest: Box<Manifest>,
        /// Not asked for yet.
        missing: VecDeque<Digest>,
        /// Asked of whom and when.
        asked: BTreeMap<Digest, (Slot, Moment)>,
        /// On their way to the disk.
        storing: BTreeSet<Digest>,
    },
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask this peer for the manifest or chunk of this digest.
    Ask(Slot, Digest),
    /// All chunks are on the disk: load them.
    Install(Box<Manifest>),
    /// It cannot be had.
    Fail,
}

impl Transfer {
    /// Fetches `snapshot` from `peers`, at least one.
    pub fn new(snapshot: SnapshotRef, service: ServiceId, peers: impl IntoIterator<Item = Slot>) -> Self {
        let peers = peers.into_iter().collect();
        Transfer { snapshot, service, peers, stage: Stage::Manifest { asked: None }, silent: 0 }
    }

    /// What is being fetched.
    pub fn snapshot(&self) -> SnapshotRef {
        self.snapshot
    }

    /// The manifest, once it is here.
    pub fn manifest(&self) -> Option<&Manifest> {
        match &self.stage {
            Stage::Manifest { .. } => None,
            Stage::Chunks { manifest, .. } => Some(manifest),
        }
    }

    /// Chunks that are on the disk, of how many.
    pub fn progress(&self) -> (usize, usize) {
        match &self.stage {
            Stage::Manifest { .. } => (0, 0),
            Stage::Chunks { manifest, missing, asked, storing } => {
                let distinct: BTreeSet<Digest> = manifest.chunks.iter().map(|chunk| chunk.digest).collect();
                (distinct.len() - missing.len() - asked.len() - storing.len(), distinct.len())
            }
        }
    }

    /// When to look again at the latest.
    pub fn deadline(&self) -> Moment {
        let asked = match &self.stage {
            Stage::Manifest { asked } => *asked,
            Stage::Chunks { asked, .. } => asked.values().map(|(_, at)| *at).min(),
        };
        asked.map_or(Moment::from_micros(u64::MAX), |at| at.plus(AGAIN))
    }

    /// A peer answered; `bytes` are none if it does not have what was asked. `held` says which chunks are on the disk.
    /// Returns a chunk to write.
    pub fn on_answer(
        &mut self,
        from: Slot,
        digest: Digest,
        bytes: Option<Bytes>,
        held: impl Fn(Digest) -> bool,
    ) -> Option<(Digest, Bytes)> {
        let expected = match &self.stage {
            Stage::Manifest { asked } => asked.is_some() && digest == self.snapshot.manifest,
            Stage::Chunks { asked, .. } => asked.get(&digest).is_some_and(|(peer, _)| *peer == from),
        };
        if !expected {
            return None;
        }
        // What the digest does not cover is a peer's bug or lie, and as good as nothing.
        let good = bytes.filter(|bytes| Digest::of(bytes) == digest);
        if good.is_none() {
            self.peers.retain(|peer| *peer != from);
        }
        match (&mut self.stage, good) {
            (Stage::Manifest { asked }, None) => *asked = None,
            (Stage::Manifest { asked }, Some(bytes)) => match Manifest::decode(bytes) {
                Ok(manifest) if manifest.service == self.service && manifest.block == self.snapshot.block => {
                    self.silent = 0;
                    let wanted: BTreeSet<Digest> = manifest.chunks.iter().map(|chunk| chunk.digest).collect();
                    self.stage = Stage::Chunks {
                        manifest: Box::new(manifest),
                        missing: wanted.into_iter().filter(|chunk| !held(*chunk)).collect(),
                        asked: BTreeMap::new(),
                        storing: BTreeSet::new(),
                    };
                }
                // Its digest is the one that was offered, so every peer would send the same.
                Ok(_) | Err(_) => {
                    *asked = None;
                    self.peers.clear();
                }
            },
            (Stage::Chunks { asked, missing, .. }, None) => {
                asked.remove(&digest);
                missing.push_front(digest);
            }
            (Stage::Chunks { asked, storing, .. }, Some(bytes)) => {
                asked.remove(&digest);
                storing.insert(digest);
                self.silent = 0;
                return Some((digest, bytes));
            }
        }
        None
    }

    /// A chunk is on the disk.
    pub fn on_stored(&mut self, digest: Digest) {
        match &mut self.stage {
            Stage::Manifest { .. } => {}
            Stage::Chunks { storing, .. } => {
                storing.remove(&digest);
            }
        }
    }

    /// What to do now; none: wait.
    pub fn next(&mut self, now: Moment) -> Option<Step> {
        self.give_up_on_silent(now);
        if self.peers.is_empty() || self.silent > SILENT_MAX {
            return Some(Step::Fail);
        }
        match &mut self.stage {
            Stage::Manifest { asked: Some(_) } => None,
            Stage::Manifest { asked } => {
                *asked = Some(now);
                Some(Step::Ask(self.peers[0], self.snapshot.manifest))
            }
            Stage::Chunks { manifest, missing, asked, storing } => {
                if missing.is_empty() && asked.is_empty() && storing.is_empty() {
                    return Some(Step::Install(manifest.clone()));
                }
                if asked.len() + storing.len() >= IN_FLIGHT {
                    return None;
                }
                let digest = missing.pop_front()?;
                let peer = self.peers[0];
                self.peers.rotate_left(1);
                asked.insert(digest, (peer, now));
                Some(Step::Ask(peer, digest))
            }
        }
    }

    fn give_up_on_silent(&mut self, now: Moment) {
        let late = |at: Moment| now >= at.plus(AGAIN);
        match &mut self.stage {
            Stage::Manifest { asked } => {
                if asked.is_some_and(late) {
                    *asked = None;
                    self.silent += 1;
                    self.peers.rotate_left(1);
                }
            }
            Stage::Chunks { asked, missing, .. } => {
                let overdue: Vec<Digest> =
                    asked.iter().filter(|(_, (_, at))| late(*at)).map(|(digest, _)| *digest).collect();
                // What went out together comes late together: one silence.
                self.silent += u32::from(!overdue.is_empty());
                for digest in overdue {
                    asked.remove(&digest);
                    missing.push_front(digest);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::{BlockRef, Height, LogTime, View};

    use super::super::manifest::Chunk;
    use super::super::manifest::tests::configuration;
    use super::*;

    const SERVICE: ServiceId = ServiceId::from_bytes([7; 16]);

    fn at(ms: u64) -> Moment {
        Moment::from_micros(ms * 1_000)
    }

    fn slot(number: u32) -> Slot {
        Slot::new(number)
    }

    fn part(index: usize) -> Bytes {
        Bytes::from(format!("part {index}"))
    }

    fn manifest(parts: usize) -> Manifest {
        let block = BlockRef { view: View::new(1, slot(1)), height: Height::new(9), hash: Digest::of(b"block") };
        let chunks = (0..parts).map(|index| Chunk::of(&part(index))).collect();
        let digest = Digest::of(b"state");
        Manifest {
            service: SERVICE,
            block,
            log_time: LogTime::from_millis(1),
            configuration: configuration(),
            digest,
            chunks,
        }
    }

    fn asks(transfer: &mut Transfer, now: Moment) -> Vec<(Slot, Digest)> {
        let mut asked = Vec::new();
        while let Some(step) = transfer.next(now) {
            let Step::Ask(peer, digest) = step else { panic!("{step:?}") };
            asked.push((peer, digest));
        }
        asked
    }

    #[test]
    fn transfer_of_many_chunks_asks_all_peers_and_never_too_much() {
        let manifest = manifest(9);
        let mut transfer = Transfer::new(manifest.reference(), SERVICE, [slot(1), slot(3)]);
        assert_eq!(asks(&mut transfer, at(0)), [(slot(1), manifest.reference().manifest)]);
        transfer.on_answer(slot(1), manifest.reference().manifest, Some(manifest.encode()), |_| false);
        let (mut arrived, mut askers) = (0, BTreeSet::new());
        while arrived < 9 {
            let asked = asks(&mut transfer, at(1));
            assert!(asked.len() <= IN_FLIGHT && !asked.is_empty());
            for (peer, digest) in asked {
                askers.insert(peer);
                let bytes = (0..9).map(part).find(|bytes| Digest::of(bytes) == digest).expect("a chunk of it");
                assert_eq!(transfer.on_answer(peer, digest, Some(bytes.clone()), |_| false), Some((digest, bytes)));
                transfer.on_stored(digest);
                arrived += 1;
            }
        }
        assert_eq!(askers, BTreeSet::from([slot(1), slot(3)]));
        assert_eq!(transfer.progress(), (9, 9));
        assert_eq!(transfer.next(at(2)), Some(Step::Install(Box::new(manifest))));
    }

    #[test]
    fn transfer_resumed_asks_only_for_what_the_disk_lacks() {
        let manifest = manifest(5);
        let mut transfer = Transfer::new(manifest.reference(), SERVICE, [slot(1)]);
        asks(&mut transfer, at(0));
        let lacking = Chunk::of(&part(3)).digest;
        transfer.on_answer(slot(1), manifest.reference().manifest, Some(manifest.encode()), |held| held != lacking);
        assert_eq!(asks(&mut transfer, at(1)), [(slot(1), lacking)]);
    }

    #[test]
    fn transfer_of_a_broken_chunk_asks_another_peer() {
        let manifest = manifest(1);
        let mut transfer = Transfer::new(manifest.reference(), SERVICE, [slot(1), slot(3)]);
        asks(&mut transfer, at(0));
        transfer.on_answer(slot(1), manifest.reference().manifest, Some(manifest.encode()), |_| false);
        let chunk = manifest.chunks[0].digest;
        assert_eq!(asks(&mut transfer, at(1)), [(slot(1), chunk)]);
        assert_eq!(transfer.on_answer(slot(1), chunk, Some(Bytes::from_static(b"rot")), |_| false), None);
        assert_eq!(asks(&mut transfer, at(2)), [(slot(3), chunk)]);
        // An answer that nobody waits for any more changes nothing.
        assert_eq!(transfer.on_answer(slot(1), chunk, Some(part(0)), |_| false), None);
        assert_eq!(transfer.on_answer(slot(3), chunk, None, |_| false), None);
        assert_eq!(transfer.next(at(3)), Some(Step::Fail));
    }

    #[test]
    fn transfer_from_silent_peers_goes_round_and_ends() {
        let manifest = manifest(1);
        let mut transfer = Transfer::new(manifest.reference(), SERVICE, [slot(1), slot(3)]);
        let mut now = at(0);
        let mut askers = Vec::new();
        loop {
            match transfer.next(now) {
                Some(Step::Ask(peer, _)) => askers.push(peer),
                Some(Step::Fail) => break,
                Some(step @ Step::Install(_)) => panic!("{step:?}"),
                None => now = transfer.deadline(),
            }
        }
        assert_eq!(askers.len() as u32, SILENT_MAX + 1);
        assert_eq!(&askers[..3], [slot(1), slot(3), slot(1)]);
    }

    #[test]
    fn transfer_of_another_services_manifest_ends() {
        let other = Manifest { service: ServiceId::from_bytes([8; 16]), ..manifest(1) };
        let mut transfer = Transfer::new(other.reference(), SERVICE, [slot(1), slot(3)]);
        asks(&mut transfer, at(0));
        transfer.on_answer(slot(1), other.reference().manifest, Some(other.encode()), |_| false);
        assert_eq!(transfer.next(at(1)), Some(Step::Fail));
    }
}
