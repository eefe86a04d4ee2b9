//! The fence on the disk: a small file that says that a quorum was against the state of this replica, and from which block on.
//! As long as it is there, no state at or above that block is believed, also after a restart.

use std::io;

use bytes::Bytes;
use lockstep_types::codec::{Reader, Writer};
use lockstep_types::limits::FORMAT_VERSION;
use lockstep_types::{DecodeError, Digest, Height};
use lockstep_wal::Disk;
use thiserror::Error;

/// Name of the file.
pub const FILE: &str = "fence";

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The first block that is known to have been executed differently than by a quorum.
    pub block: Height,
    /// It was equal right below: this very block was.
    pub exact: bool,
    /// The quorum's digest there.
    pub digest: Digest,
}

/// Why a fence cannot be read. The replica must not start: without it, it would believe a state that a quorum is against.
#[derive(Debug, Error)]
pub enum FenceError {
    /// The disk failed.
    #[error("failed to read file {FILE} in the data directory: {source}; check the volume, then restart the replica")]
    Disk {
        /// The disk's error.
        source: io::Error,
    },
    /// The file does not hold what was written.
    #[error(
        "file {FILE} in the data directory is damaged: {why}; it said which part of this replica's state is wrong: \
         give the replica an empty directory so that it joins as a new replica"
    )]
    Damaged {
        /// What is wrong with it.
        why: String,
    },
}

impl Fence {
    /// The fence in this directory, if there is one.
    ///
    /// # Errors
    /// A disk that fails, a file that is damaged or of a later format.
    pub fn load(disk: &impl Disk) -> Result<Option<Self>, FenceError> {
        if !is_there(disk).map_err(|source| FenceError::Disk { source })? {
            return Ok(None);
        }
        let mut bytes = disk.read(FILE).map_err(|source| FenceError::Disk { source })?;
        let damaged = |why: &str| FenceError::Damaged { why: why.to_owned() };
        let Some(split) = bytes.len().checked_sub(32) else { return Err(damaged("it is too short")) };
        let digest = bytes.split_off(split);
        if Digest::of(&bytes).as_bytes()[..] != digest[..] {
            return Err(damaged("its checksum does not match"));
        }
        Self::decode(Bytes::from(bytes)).map(Some).map_err(|error| damaged(&error.to_string()))
    }

    /// Writes it down: durable when this returns.
    pub(crate) fn store(&self, disk: &impl Disk) -> io::Result<()> {
        let mut out = Writer::default();
        out.u16(FORMAT_VERSION).height(self.block).u8(self.exact.into()).raw(self.digest.as_bytes());
        let mut bytes = out.finish();
        bytes.extend_from_slice(Digest::of(&bytes).as_bytes());
        disk.replace(FILE, &bytes)
    }

    /// Takes the fence away, if there is one.
    pub(crate) fn remove(disk: &impl Disk) -> io::Result<()> {
        if is_there(disk)? { disk.remove(FILE) } else { Ok(()) }
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let found = reader.u16("fence version")?;
        if found > FORMAT_VERSION {
            return Err(DecodeError::NewerVersion { what: "fence", found, known: FORMAT_VERSION });
        }
        let block = reader.height("fence block")?;
        let exact = reader.u8("fence exactness")? != 0;
        let digest = reader.digest("fence digest")?;
        reader.finish("fence")?;
        Ok(Fence { block, exact, digest })
    }
}

fn is_there(disk: &impl Disk) -> io::Result<bool> {
    Ok(disk.list()?.iter().any(|file| file == FILE))
}

#[cfg(test)]
mod tests {
    use lockstep_wal::FileDisk;

    use super::*;

    #[test]
    fn fence_on_the_disk_is_found_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(folder.path()).unwrap();
        assert_eq!(Fence::load(&disk).unwrap(), None);
        Fence::remove(&disk).expect("none to remove");
        let fence = Fence { block: Height::new(57), exact: true, digest: Digest::of(b"state") };
        fence.store(&disk).unwrap();
        assert_eq!(Fence::load(&disk).unwrap(), Some(fence));
        Fence::remove(&disk).unwrap();
        assert_eq!(Fence::load(&disk).unwrap(), None);
    }

    #[test]
    fn fence_that_is_damaged_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(folder.path()).unwrap();
        Fence { block: Height::new(57), exact: true, digest: Digest::of(b"state") }.store(&disk).unwrap();
        let good = std::fs::read(folder.path().join(FILE)).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            std::fs::write(folder.path().join(FILE), bytes).unwrap();
            assert!(matches!(Fence::load(&disk), Err(FenceError::Damaged { .. })), "byte {at}");
        }
    }
}
