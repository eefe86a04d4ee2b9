//! Snapshots: taken at heights that the replicated state fixes, agreed on, served, fetched, and the log cut below them.
//! PROTOCOL §4, DESIGN §6 and §7.
//!
//! | module | what it does |
//! |---|---|
//! | [`manifest`] | what a snapshot consists of, and the names of its files |
//! | `drive` | what an engine does about snapshots, and when |
//! | [`job`] | reading and writing chunks, beside the core thread |
//! | `stride` | which points to take when not all can be |
//! | `transfer` | fetching a snapshot from peers |
//!
//! *Taking.* Applying a block says whether its height is a snapshot point; all replicas have the same. The state is frozen in
//! no time and written by jobs. If the one before is still being written, or the disk is full, this point is left out; and
//! who cannot keep up takes fewer points, which those who can take as well ([`stride`]).
//!
//! *Agreeing.* Replicas tell each other what they have. Once a quorum, itself included, named the same digest, a snapshot is
//! offered to peers that lag, and only then does it make the log below the second newest such one superfluous. Two
//! of those are kept.
//!
//! *Serving* is paced, and *fetching* bounded, so that neither slows the service down.

mod drive;
pub mod job;
pub mod manifest;
pub(crate) mod stride;
pub(crate) mod transfer;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lockstep_consensus::{Moment, Recovered};
use lockstep_machine::Executor;
use lockstep_types::{BlockRef, Digest, Height, ServiceId, Slot, SnapshotRef};
use lockstep_wal::Disk;

use crate::divergence::fence::Fence;

use job::{Origin, SnapshotError};
use manifest::{Manifest, chunk_file};
use stride::Stride;
use transfer::Transfer;

/// Snapshots that a quorum agreed on and that are kept.
const KEPT: usize = 2;
/// Snapshots kept at most, agreed on or not: when peers are away for long, most of the newer ones go.
const KEPT_MAX: usize = 4;
/// Questions of one peer that wait to be served at most; it asks for fewer at a time.
const SERVING_MAX: usize = 16;

/// How snapshots are served and announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// Bytes a second served to all peers together.
    pub serve_bytes_per_second: u64,
    /// Microseconds between two questions to a voter that is not known to have the newest snapshot.
    pub announce: u64,
    /// Bytes of log that a leader keeps for a follower that lags but answers; beyond, it has to fetch a snapshot.
    pub retain_bytes: u64,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        SnapshotOptions { serve_bytes_per_second: 64 << 20, announce: 1_000_000, retain_bytes: 256 << 20 }
    }
}

/// All that a replica knows of snapshots.
#[derive(Debug)]
pub(crate) struct Snapshots {
    options: SnapshotOptions,
    origin: Origin,
    /// On the disk, oldest first.
    kept: Vec<Kept>,
    /// Their chunks, with their sizes.
    chunks: BTreeMap<Digest, u32>,
    /// Chunks on the disk of an attempt to fetch or to write one that came to nothing, or whose end this process did not see:
    /// the next attempt need not fetch them. They are checked when they are loaded.
    loose: BTreeSet<Digest>,
    /// Chunks that were found damaged: what names them is no reason to believe in them. They are written or fetched anew.
    damaged: BTreeSet<Digest>,
    /// What each peer said that it has, oldest first.
    named: BTreeMap<Slot, Vec<SnapshotRef>>,
    /// One that is being written.
    writing: Option<Underway>,
    /// What is being written is of a state that is believed no more.
    doomed: bool,
    stride: Stride,
    transfer: Option<Transfer>,
    /// Loading what was transferred.
    loading: bool,
    /// Files may be left that belong to no snapshot.
    sweep: bool,
    /// Sweeps under way.
    sweeps: u32,
    /// Who asked for what, in order.
    asked: VecDeque<(Slot, Digest)>,
    /// When the next may be served.
    serve_at: Moment,
    /// When the newest is announced next.
    announce_at: Moment,
    /// Why the last one was not taken or fetched.
    trouble: Option<String>,
    counters: SnapshotCounters,
}

/// A snapshot that is being written.
#[derive(Debug)]
struct Underway {
    /// No point that would have been taken came since it began.
    kept_up: bool,
    /// Chunks that were damaged when it began, and so are written anew.
    anew: BTreeSet<Digest>,
}

#[derive(Debug)]
struct Kept {
    manifest: Manifest,
    reference: SnapshotRef,
    /// A quorum named it: since this start, or else nobody had offered it, and no log had been cut below it.
    agreed: bool,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotCounters {
    /// Snapshots written.
    pub taken: u64,
    /// Snapshot points left out: the disk refused, or the one before was still being written.
    pub left_out: u64,
    /// Snapshots of peers installed.
    pub installed: u64,
    /// Attempts to fetch one that came to nothing.
    pub not_installed: u64,
    /// Chunks served to peers.
    pub served: u64,
}

/// Snapshots as this replica knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// The newest on the disk.
    pub newest: Option<Height>,
    /// The newest that a quorum agrees on.
    pub agreed: Option<Height>,
    /// The height below which the log is gone.
    pub log_begins_above: Height,
    /// One being fetched: its height, chunks on the disk, of how many.
    pub fetching: Option<(Height, usize, usize)>,
    /// Why the last one was not taken or fetched; none once one was.
    pub trouble: Option<String>,
    /// Counters since the start.
    pub counters: SnapshotCounters,
}

impl Snapshots {
    /// Finds the snapshots on the disk, and the newest that loads: with it the state to start from. Snapshots that do not
    /// hold are forgotten, with a word in the status; those behind a fence, without.
    ///
    /// # Errors
    /// A disk that cannot list its files.
    pub fn open(
        disk: &impl Disk,
        origin: &Origin,
        options: SnapshotOptions,
        fence: Option<Fence>,
    ) -> Result<(Self, Option<Executor>), SnapshotError> {
        let mut snapshots = Snapshots {
            options,
            origin: origin.clone(),
            kept: Vec::new(),
            chunks: BTreeMap::new(),
            loose: BTreeSet::new(),
            damaged: BTreeSet::new(),
            named: BTreeMap::new(),
            writing: None,
            doomed: false,
            stride: Stride::default(),
            transfer: None,
            loading: false,
            sweep: false,
            sweeps: 0,
            asked: VecDeque::new(),
            serve_at: Moment::default(),
            announce_at: Moment::default(),
            trouble: None,
            counters: SnapshotCounters::default(),
        };
        let listed = disk.list().map_err(|source| SnapshotError::Disk {
            action: "list",
            file: "the data directory".to_owned(),
            source,
        })?;
        snapshots.loose = listed.iter().filter_map(|file| manifest::chunk_digest(file)).collect();
        let mut files: Vec<String> = listed.into_iter().filter(|file| manifest::is_manifest(file)).collect();
        files.sort();
        let mut newest = None;
        for file in files.into_iter().rev() {
            let found = read_manifest(disk, &origin.genesis.service, &file);
            if let (Ok(manifest), Some(fence)) = (&found, fence)
                && manifest.block.height >= fence.block
            {
                snapshots.sweep = true;
                continue;
            }
            let loaded = match (found, &newest) {
                (Err(error), _) => Err(error),
                // The state comes from the newest; older ones are looked at when they are needed.
                (Ok(manifest), Some(_)) => Ok((manifest, None)),
                (Ok(manifest), None) => job::load(&manifest, origin, disk).map(|executor| (manifest, Some(executor))),
            };
            match loaded {
                Ok((manifest, executor)) => {
                    newest = newest.or(executor);
                    let reference = manifest.reference();
                    snapshots.kept.insert(0, Kept { manifest, reference, agreed: false });
                }
                Err(error) => {
                    snapshots.damaged.extend(error.damaged());
                    snapshots.trouble = Some(error.to_string());
                }
            }
        }
        snapshots.index_chunks();
        Ok((snapshots, newest))
    }

    /// The log does not lead over the newest snapshot: the process ended after that was fetched, and before the log stood on
    /// it. It is left out, and may be fetched again; what is on the disk of it need not be. Gives the state of the one before.
    pub fn leave_newest_out(&mut self, disk: &impl Disk) -> Option<Executor> {
        let Kept { manifest, .. } = self.kept.pop().expect("there is one that the log does not lead over");
        self.loose.extend(manifest.chunks.iter().map(|chunk| chunk.digest));
        self.sweep = true;
        let mut state = None;
        while let Some(newest) = self.kept.last()
            && state.is_none()
        {
            match job::load(&newest.manifest, &self.origin, disk) {
                Ok(executor) => state = Some(executor),
                Err(error) => {
                    self.damaged.extend(error.damaged());
                    self.trouble = Some(error.to_string());
                    self.kept.pop();
                }
            }
        }
        self.index_chunks();
        state
    }

    /// What the log may go on from, lowest first: the genesis, and each snapshot.
    pub fn beginnings(&self) -> Vec<Recovered> {
        let above = |kept: &Kept| {
            let Manifest { block, log_time, configuration, .. } = &kept.manifest;
            Recovered::above(*block, *log_time, configuration.clone())
        };
        [Recovered::new(self.origin.genesis.configuration())].into_iter().chain(self.kept.iter().map(above)).collect()
    }

    /// The block of the newest snapshot.
    pub fn newest(&self) -> BlockRef {
        self.kept.last().map_or(BlockRef::GENESIS, |kept| kept.manifest.block)
    }

    /// The log begins above this block. If a snapshot stands there, a quorum agreed on it before what was below was let go.
    /// After all have restarted, or who else agreed is lost, that is what those who lag can still be offered.
    pub fn log_begins_above(&mut self, base: BlockRef) -> Option<SnapshotRef> {
        let rests_on = self.kept.iter_mut().find(|kept| kept.manifest.block == base)?;
        rests_on.agreed = true;
        Some(rests_on.reference)
    }

    /// The lowest height that the log must still reach down to: that of the second newest snapshot agreed on; zero if fewer
    /// are.
    fn superfluous_below(&self) -> Height {
        let agreed = self.kept.iter().rev().filter(|kept| kept.agreed).map(|kept| kept.manifest.block.height);
        agreed.take(KEPT).nth(KEPT - 1).unwrap_or(Height::ZERO)
    }

    /// After each change of what is kept.
    fn index_chunks(&mut self) {
        let chunks = self.kept.iter().flat_map(|kept| &kept.manifest.chunks);
        self.chunks = chunks.map(|chunk| (chunk.digest, chunk.bytes)).collect();
    }

    /// The file with these bytes, if it belongs to a snapshot that is kept.
    fn file_of(&self, digest: Digest) -> Option<String> {
        let manifest = self.kept.iter().find(|kept| kept.reference.manifest == digest);
        manifest.map(|kept| kept.manifest.file()).or_else(|| self.chunks.get(&digest).map(|_| chunk_file(digest)))
    }

    /// Takes a new snapshot in, and lets go of what two that are agreed on make superfluous.
    fn keep(&mut self, manifest: Manifest, agreed: bool) {
        let reference = manifest.reference();
        self.kept.retain(|kept| kept.reference.block.height != reference.block.height);
        self.kept.push(Kept { manifest, reference, agreed });
        self.kept.sort_by_key(|kept| kept.reference.block.height);
        self.let_go();
    }

    fn let_go(&mut self) {
        let floor = self.superfluous_below();
        let before = self.kept.len();
        self.kept.retain(|kept| kept.manifest.block.height >= floor);
        // Those that are agreed on are offered, and the log rests on them. Of the others the newest may be agreed on next.
        while self.kept.len() > KEPT_MAX {
            let spare = self.kept[..self.kept.len() - 1].iter().rposition(|kept| !kept.agreed);
            self.kept.remove(spare.unwrap_or(0));
        }
        self.sweep |= self.kept.len() != before;
        self.index_chunks();
    }

    /// What every state begins with.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The newest snapshot below `block` that a quorum agreed on.
    pub(crate) fn trusted_below(&self, block: Height) -> Option<Manifest> {
        let kept = self.kept.iter().rev().find(|kept| kept.agreed && kept.manifest.block.height < block);
        kept.map(|kept| kept.manifest.clone())
    }

    /// The state was wrong from this block on: its snapshots go, but for those that a quorum agreed on.
    pub(crate) fn distrust_from(&mut self, block: Height) {
        self.kept.retain(|kept| kept.agreed || kept.manifest.block.height < block);
        self.doomed = self.writing.is_some();
        self.sweep = true;
        self.index_chunks();
    }

    /// A snapshot here of whose height a quorum of others named another one: its block, its digest, and who named it.
    pub(crate) fn outvoted(&self, is_quorum: impl Fn(&BTreeSet<Slot>) -> bool) -> Option<(Height, Digest, Slot)> {
        self.kept.iter().filter(|kept| !kept.agreed).find_map(|kept| {
            let mut others: BTreeMap<Digest, BTreeSet<Slot>> = BTreeMap::new();
            for (slot, named) in &self.named {
                let same = named.iter().filter(|theirs| theirs.block == kept.reference.block);
                for theirs in same.filter(|theirs| theirs.manifest != kept.reference.manifest) {
                    others.entry(theirs.manifest).or_default().insert(*slot);
                }
            }
            let quorum = others.into_values().find(|slots| is_quorum(slots))?;
            Some((kept.reference.block.height, kept.manifest.digest, *quorum.first()?))
        })
    }

    /// Whether nothing is left on the disk of the snapshots that are believed no more.
    pub(crate) fn is_clear(&self) -> bool {
        !self.sweep && !self.doomed && self.sweeps == 0
    }

    /// A snapshot that is kept cannot be loaded.
    pub(crate) fn forget_damaged(&mut self, manifest: &Manifest, error: &SnapshotError) {
        self.damaged.extend(error.damaged());
        self.trouble = Some(error.to_string());
        self.kept.retain(|kept| kept.manifest.block != manifest.block);
        self.index_chunks();
    }

    /// Whether a chunk is on the disk.
    fn holds(&self, chunk: Digest) -> bool {
        let named = self.chunks.contains_key(&chunk) || self.loose.contains(&chunk);
        named && !self.damaged.contains(&chunk)
    }

    /// Chunks on the disk that a new snapshot need not write again.
    fn held(&self) -> BTreeSet<Digest> {
        self.chunks.keys().filter(|chunk| !self.damaged.contains(chunk)).copied().collect()
    }

    /// What a sweep must leave.
    fn files(&self) -> BTreeSet<String> {
        let fetched = self.transfer.as_ref().and_then(Transfer::manifest);
        let kept = self.kept.iter().map(|kept| &kept.manifest);
        let chunks = kept.clone().chain(fetched).flat_map(|manifest| &manifest.chunks);
        chunks.map(|chunk| chunk_file(chunk.digest)).chain(kept.map(Manifest::file)).collect()
    }

    /// When something is due.
    pub fn deadline(&self) -> Moment {
        let serve = if self.asked.is_empty() { Moment::from_micros(u64::MAX) } else { self.serve_at };
        let transfer = self.transfer.as_ref().map_or(Moment::from_micros(u64::MAX), Transfer::deadline);
        serve.min(transfer).min(self.announce_at)
    }

    pub fn status(&self, log_begins_above: Height) -> SnapshotStatus {
        let height = |kept: &Kept| kept.manifest.block.height;
        SnapshotStatus {
            newest: self.kept.last().map(height),
            agreed: self.kept.iter().rev().find(|kept| kept.agreed).map(height),
            log_begins_above,
            fetching: self.transfer.as_ref().map(|transfer| {
                let (have, all) = transfer.progress();
                (transfer.snapshot().block.height, have, all)
            }),
            trouble: self.trouble.clone(),
            counters: self.counters,
        }
    }
}

fn read_manifest(disk: &impl Disk, service: &ServiceId, file: &str) -> Result<Manifest, SnapshotError> {
    let wrong = |why: String| SnapshotError::Manifest { file: file.to_owned(), why };
    let manifest = Manifest::decode(job::read(disk, file)?).map_err(|error| wrong(error.to_string()))?;
    if manifest.service != *service {
        return Err(wrong(format!("it belongs to service {}", manifest.service)));
    }
    if manifest.file() != file {
        return Err(wrong(format!("it holds the state at height {}", manifest.block.height)));
    }
    Ok(manifest)
}
