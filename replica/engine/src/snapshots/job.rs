//! Work on snapshots that takes long: reading, writing and loading chunks. The engine hands it out in
//! [`Output::jobs`](crate::Output), its host runs it beside the core thread, one job after the other, and brings back
//! [`Event::Job`](crate::Event).
//!
//! A job writes at most one chunk, so that writing a big snapshot never keeps a peer that needs a chunk waiting. Order on
//! disk: chunks, each synced, then the manifest that names them. So a manifest that is there is whole.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_machine::{Chunks, Executor, Restoring, StateMachine};
use lockstep_types::{Digest, Genesis, Slot, SnapshotRef};
use lockstep_wal::Disk;
use thiserror::Error;

use crate::divergence::fence::{self, Fence};

use super::manifest::{CHUNKS_MAX, Chunk, Manifest, chunk_digest, chunk_file, is_manifest, is_snapshot_file};

/// Why a snapshot cannot be written, read or loaded. The replica goes on without it.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// The disk refuses.
    #[error("failed to {action} {file}: {source}; {}", way_out(.source))]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On which file.
        file: String,
        /// What the disk said.
        source: io::Error,
    },
    /// The state is too large.
    #[error(
        "{file} would name more than {max} chunks: the state is too large for snapshots, and the log is not cut; remove keys"
    )]
    TooLarge {
        /// The manifest's file.
        file: String,
        /// Chunks that a manifest may name.
        max: usize,
    },
    /// A file is not what its name says.
    #[error("{file} is damaged: its bytes have another digest; the replica goes on without that snapshot")]
    Damaged {
        /// The file.
        file: String,
    },
    /// The manifest does not decode, or belongs elsewhere.
    #[error("{file} is no manifest of this service: {why}")]
    Manifest {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The chunks do not make a state.
    #[error("{snapshot} makes no state: {source}")]
    State {
        /// The snapshot.
        snapshot: SnapshotRef,
        /// What is wrong with it.
        source: Box<lockstep_machine::RestoreError>,
    },
    /// The state machine is unknown.
    #[error(transparent)]
    Machine(#[from] lockstep_machine::MachineError),
    /// The state is not the one that the manifest promises.
    #[error("{snapshot} holds another state than its manifest says")]
    OtherState {
        /// The snapshot.
        snapshot: SnapshotRef,
    },
}

/// What to do about a disk that refuses.
fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free space or grow the volume, the next snapshot is tried anyway"
        }
        _ => "look for disk errors in the kernel log, the next snapshot is tried anyway",
    }
}

impl SnapshotError {
    /// The chunk whose file is not what its name says, or is not there.
    pub(crate) fn damaged(&self) -> Option<Digest> {
        match self {
            SnapshotError::Damaged { file } => chunk_digest(file),
            SnapshotError::Disk { file, source, .. } if source.kind() == io::ErrorKind::NotFound => chunk_digest(file),
            SnapshotError::Disk { .. }
            | SnapshotError::TooLarge { .. }
            | SnapshotError::Manifest { .. }
            | SnapshotError::State { .. }
            | SnapshotError::Machine(_)
            | SnapshotError::OtherState { .. } => None,
        }
    }
}

/// What every state of a service begins with.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Its genesis.
    pub genesis: Genesis,
    /// The code of its state machine.
    pub machine: Arc<dyn StateMachine>,
}

impl Origin {
    /// The state before the first block.
    pub fn executor(&self) -> Executor {
        Executor::with_machine(&self.genesis, Arc::clone(&self.machine))
    }
}

/// Something to do on the disk.
#[derive(Debug)]
pub enum Job {
    /// Write the next chunk of a snapshot, or its manifest.
    Write(Box<Writing>),
    /// Read a manifest or chunk for a peer.
    Read {
        /// Who asked.
        to: Slot,
        /// Digest of what it asked for.
        digest: Digest,
        /// The file that holds it.
        file: String,
    },
    /// Write a chunk that a peer sent.
    Store {
        /// Digest of the bytes, as checked.
        digest: Digest,
        /// The chunk.
        bytes: Bytes,
    },
    /// Load a snapshot whose chunks are all there, and write its manifest if it holds.
    /// A fence goes: the state that it stood before is replaced.
    Install(Box<Manifest>, Box<Origin>),
    /// Load a snapshot that is kept, for a state that is built anew.
    Load(Box<Manifest>, Box<Origin>),
    /// Put a fence up, or take it away.
    Fence(Option<Fence>),
    /// Remove what belongs to no snapshot that is kept.
    Sweep {
        /// Files that stay.
        keep: BTreeSet<String>,
    },
}

/// A snapshot that is being written.
#[derive(Debug)]
pub struct Writing {
    /// What is written so far.
    manifest: Manifest,
    chunks: Chunks,
    /// Chunks that older snapshots hold on the disk.
    held: BTreeSet<Digest>,
}

impl Writing {
    /// The snapshot of `chunks`, to be written after what `held` names.
    pub fn new(manifest: Manifest, chunks: Chunks, held: BTreeSet<Digest>) -> Self {
        Writing { manifest, chunks, held }
    }

    /// The files of what was written so far.
    pub fn files(&self) -> impl Iterator<Item = String> {
        self.manifest.chunks.iter().map(|chunk| chunk_file(chunk.digest))
    }
}

/// What became of a [`Job`].
#[derive(Debug)]
pub enum JobDone {
    /// A chunk is on the disk; there is more to write.
    Wrote(Box<Writing>),
    /// The whole snapshot is on the disk.
    Taken(Box<Manifest>),
    /// It could not be written; what was written of it is swept away.
    NotTaken(SnapshotError),
    /// What a peer asked for; none if it could not be read.
    Read {
        /// Who asked.
        to: Slot,
        /// Digest of what it asked for.
        digest: Digest,
        /// The bytes.
        bytes: Result<Bytes, SnapshotError>,
    },
    /// A peer's chunk is on the disk, or is not.
    Stored(Digest, Result<(), SnapshotError>),
    /// A snapshot of a peer is durable: its state.
    Installed(Box<Manifest>, Box<Executor>),
    /// It is not.
    NotInstalled(SnapshotError),
    /// A snapshot that is kept was loaded, or cannot be.
    Loaded(Box<Manifest>, Result<Box<Executor>, SnapshotError>),
    /// The fence is up, or away, or neither.
    Fenced(Result<(), SnapshotError>),
    /// Swept.
    Swept(Result<(), SnapshotError>),
}

impl Job {
    /// Does it.
    pub fn run(self, disk: &impl Disk) -> JobDone {
        match self {
            Job::Write(writing) => write_next(writing, disk),
            Job::Read { to, digest, file } => JobDone::Read { to, digest, bytes: read_checked(disk, &file, digest) },
            Job::Store { digest, bytes } => JobDone::Stored(digest, store(disk, chunk_file(digest), &bytes)),
            Job::Install(manifest, origin) => match install(&manifest, &origin, disk) {
                Ok(executor) => JobDone::Installed(manifest, Box::new(executor)),
                Err(error) => JobDone::NotInstalled(error),
            },
            Job::Load(manifest, origin) => {
                let loaded = load(&manifest, &origin, disk).map(Box::new);
                JobDone::Loaded(manifest, loaded)
            }
            Job::Fence(Some(fence)) => JobDone::Fenced(on_fence("write", fence.store(disk))),
            Job::Fence(None) => JobDone::Fenced(on_fence("remove", Fence::remove(disk))),
            Job::Sweep { keep } => JobDone::Swept(sweep(disk, &keep)),
        }
    }
}

fn write_next(mut writing: Box<Writing>, disk: &impl Disk) -> JobDone {
    let written = match writing.chunks.next() {
        Some(_) if writing.manifest.chunks.len() == CHUNKS_MAX => {
            Err(SnapshotError::TooLarge { file: writing.manifest.file(), max: CHUNKS_MAX })
        }
        Some(bytes) => {
            let chunk = Chunk::of(&bytes);
            writing.manifest.chunks.push(chunk);
            if writing.held.insert(chunk.digest) { store(disk, chunk_file(chunk.digest), &bytes) } else { Ok(()) }
        }
        None => {
            let manifest = Box::new(writing.manifest);
            return match store(disk, manifest.file(), &manifest.encode()) {
                Ok(()) => JobDone::Taken(manifest),
                Err(error) => JobDone::NotTaken(error),
            };
        }
    };
    match written {
        Ok(()) => JobDone::Wrote(writing),
        Err(error) => JobDone::NotTaken(error),
    }
}

fn on_fence(action: &'static str, done: io::Result<()>) -> Result<(), SnapshotError> {
    done.map_err(|source| SnapshotError::Disk { action, file: fence::FILE.to_owned(), source })
}

fn install(manifest: &Manifest, origin: &Origin, disk: &impl Disk) -> Result<Executor, SnapshotError> {
    let executor = load(manifest, origin, disk)?;
    // Before the log may rest on this snapshot: behind the fence it would not be believed.
    on_fence("remove", Fence::remove(disk))?;
    store(disk, manifest.file(), &manifest.encode())?;
    Ok(executor)
}

/// Builds the state from chunks on the disk, and checks all of it.
pub(crate) fn load(manifest: &Manifest, origin: &Origin, disk: &impl Disk) -> Result<Executor, SnapshotError> {
    let snapshot = manifest.reference();
    let no_state = |source| SnapshotError::State { snapshot, source: Box::new(source) };
    let mut restoring = Restoring::with_machine(&origin.genesis, Arc::clone(&origin.machine));
    for chunk in &manifest.chunks {
        let file = chunk_file(chunk.digest);
        restoring.chunk(read_checked(disk, &file, chunk.digest)?).map_err(no_state)?;
    }
    let executor = restoring.finish().map_err(no_state)?;
    if executor.applied() != manifest.block.height || executor.digest() != manifest.digest {
        return Err(SnapshotError::OtherState { snapshot });
    }
    Ok(executor)
}

fn store(disk: &impl Disk, file: String, bytes: &[u8]) -> Result<(), SnapshotError> {
    disk.replace(&file, bytes).map_err(|source| SnapshotError::Disk { action: "write", file, source })
}

fn read_checked(disk: &impl Disk, file: &str, digest: Digest) -> Result<Bytes, SnapshotError> {
    let bytes = read(disk, file)?;
    if Digest::of(&bytes) != digest {
        return Err(SnapshotError::Damaged { file: file.to_owned() });
    }
    Ok(bytes)
}

pub(crate) fn read(disk: &impl Disk, file: &str) -> Result<Bytes, SnapshotError> {
    let bytes = disk.read(file);
    bytes.map(Bytes::from).map_err(|source| SnapshotError::Disk { action: "read", file: file.to_owned(), source })
}

fn sweep(disk: &impl Disk, keep: &BTreeSet<String>) -> Result<(), SnapshotError> {
    let files = disk.list().map_err(|source| SnapshotError::Disk {
        action: "list",
        file: "the data directory".to_owned(),
        source,
    })?;
    let (manifests, chunks): (Vec<String>, Vec<String>) = files
        .into_iter()
        .filter(|file| is_snapshot_file(file) && !keep.contains(file))
        .partition(|file| is_manifest(file));
    // The manifests first, each for good: one that is there must not name what is not.
    for file in manifests {
        disk.remove(&file).map_err(|source| SnapshotError::Disk { action: "remove", file, source })?;
    }
    let failed = |source| SnapshotError::Disk { action: "remove", file: "chunks of old snapshots".to_owned(), source };
    disk.remove_all(&chunks).map_err(failed)?;
    Ok(())
}
