//! What a snapshot consists of: one small file that names everything else by its digest.
//!
//! Its bytes are canonical and a function of the replicated state alone, so equal states give equal manifests, and the
//! digest of the manifest is what replicas agree on. Not here: what is in a chunk (crate `machine`).

use bytes::Bytes;
use lockstep_types::codec::{Reader, Writer};
use lockstep_types::limits::FORMAT_VERSION;
use lockstep_types::{BlockRef, Configuration, DecodeError, Digest, Height, LogTime, ServiceId, SnapshotRef};

/// Chunks of one snapshot at most: a bound on what a peer can make this replica remember, and the manifest fits a message.
pub(super) const CHUNKS_MAX: usize = 1 << 16;

const MANIFEST_PREFIX: &str = "snapshot-";
const CHUNK_PREFIX: &str = "chunk-";

/// A part of the state, named by the digest of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chunk {
    /// Digest of its bytes.
    pub digest: Digest,
    /// How many they are.
    pub bytes: u32,
}

impl Chunk {
    /// The chunk with these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Chunk { digest: Digest::of(bytes), bytes: u32::try_from(bytes.len()).expect("a chunk is about a megabyte") }
    }
}

/// A snapshot of the state after one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The service whose state it is.
    pub service: ServiceId,
    /// The block. It is committed.
    pub block: BlockRef,
    /// The block's log time.
    pub log_time: LogTime,
    /// The configuration in force above the block.
    pub configuration: Configuration,
    /// The rolling execution digest after the block.
    pub digest: Digest,
    /// The parts of the state, in order.
    pub chunks: Vec<Chunk>,
}

impl Manifest {
    /// Canonical bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::with_capacity(128 + 36 * self.chunks.len());
        out.u16(FORMAT_VERSION).raw(self.service.as_bytes());
        out.view(self.block.view).height(self.block.height).raw(self.block.hash.as_bytes());
        out.u64(self.log_time.as_millis()).bytes(&self.configuration.encode()).raw(self.digest.as_bytes());
        out.u32(u32::try_from(self.chunks.len()).expect("a state in memory has few chunks"));
        for chunk in &self.chunks {
            out.raw(chunk.digest.as_bytes()).u32(chunk.bytes);
        }
        Bytes::from(out.finish())
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// Truncated or left-over bytes, too many chunks, a later format.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let found = reader.u16("manifest version")?;
        if found > FORMAT_VERSION {
            return Err(DecodeError::NewerVersion { what: "manifest", found, known: FORMAT_VERSION });
        }
        let service = reader.service("manifest service")?;
        let view = reader.view("manifest block")?;
        let height = reader.height("manifest block")?;
        let block = BlockRef { view, height, hash: reader.digest("manifest block")? };
        let log_time = reader.log_time("manifest log time")?;
        let configuration = Configuration::decode(reader.bytes("manifest configuration")?)?;
        let digest = reader.digest("manifest state")?;
        let count = reader.u32("chunk count")? as usize;
        if count > CHUNKS_MAX || height == Height::ZERO {
            return Err(DecodeError::OutOfRange { what: "manifest" });
        }
        let chunks = (0..count)
            .map(|_| Ok(Chunk { digest: reader.digest("chunk digest")?, bytes: reader.u32("chunk size")? }))
            .collect::<Result<_, DecodeError>>()?;
        reader.finish("manifest")?;
        Ok(Manifest { service, block, log_time, configuration, digest, chunks })
    }

    /// What the snapshot is called.
    pub fn reference(&self) -> SnapshotRef {
        SnapshotRef { block: self.block, manifest: Digest::of(&self.encode()) }
    }

    /// The name of its file.
    pub fn file(&self) -> String {
        format!("{MANIFEST_PREFIX}{:020}", self.block.height.get())
    }
}

/// The name of a chunk's file.
pub fn chunk_file(digest: Digest) -> String {
    let hex: String = digest.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{CHUNK_PREFIX}{hex}")
}

/// The chunk in a file of this name, if it is one.
pub fn chunk_digest(file: &str) -> Option<Digest> {
    let hex = file.strip_prefix(CHUNK_PREFIX)?.as_bytes();
    let mut bytes = [0; 32];
    if hex.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(Digest::from_bytes(bytes))
}

/// Whether a file of this name is a manifest.
pub fn is_manifest(file: &str) -> bool {
    file.starts_with(MANIFEST_PREFIX)
}

/// Whether a file of this name belongs to a snapshot.
pub fn is_snapshot_file(file: &str) -> bool {
    is_manifest(file) || file.starts_with(CHUNK_PREFIX)
}

#[cfg(test)]
pub(crate) mod tests {
    use lockstep_types::{FaultModel, Genesis, ReplicaId, Slot, View};

    use super::*;

    pub(crate) fn configuration() -> Configuration {
        let genesis = Genesis {
            service: ServiceId::from_bytes([7; 16]),
            fault_model: FaultModel::Crash,
            voters: (1..=3).map(|number| ReplicaId::from_bytes([number; 16])).collect(),
            machine: "KeyValue".to_owned(),
            sessions_max: Genesis::SESSIONS_MAX,
            reply_bytes_max: Genesis::REPLY_BYTES_MAX,
            snapshot_bytes: Genesis::SNAPSHOT_BYTES,
        };
        genesis.configuration()
    }

    fn manifest() -> Manifest {
        Manifest {
            service: ServiceId::from_bytes([7; 16]),
            block: BlockRef { view: View::new(3, Slot::new(2)), height: Height::new(12), hash: Digest::of(b"block") },
            log_time: LogTime::from_millis(1_700_000_000_000),
            configuration: configuration(),
            digest: Digest::of(b"state"),
            chunks: vec![Chunk::of(b"one"), Chunk::of(b"two")],
        }
    }

    #[test]
    fn manifest_read_back_is_the_same() {
        let manifest = manifest();
        assert_eq!(Manifest::decode(manifest.encode()), Ok(manifest));
    }

    #[test]
    fn chunk_is_found_again_by_the_name_of_its_file() {
        let digest = Digest::of(b"chunk");
        assert_eq!(chunk_digest(&chunk_file(digest)), Some(digest));
        for file in ["chunk-", "chunk-0g", "snapshot-00000000000000000012", "identity"] {
            assert_eq!(chunk_digest(file), None, "{file}");
        }
    }

    #[test]
    fn manifest_cut_or_longer_is_refused() {
        let bytes = manifest().encode();
        for end in 0..bytes.len() {
            assert!(Manifest::decode(bytes.slice(..end)).is_err(), "cut at {end}");
        }
        let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
        assert!(Manifest::decode(longer.into()).is_err());
    }

    #[test]
    fn manifest_of_too_many_chunks_is_refused() {
        // The count alone must not make room for what is not there.
        let mut bytes = manifest().encode().to_vec();
        let at = bytes.len() - 2 * 36 - 4;
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Manifest::decode(bytes.into()), Err(DecodeError::OutOfRange { what: "manifest" }));
    }
}
