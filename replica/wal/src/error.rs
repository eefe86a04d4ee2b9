//! What can go wrong, each with the names in it and a way out.

use std::fmt;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;

use crate::format::segment_name;
use crate::{BatchSeq, WalId};

/// A disk operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum IoFailure {
    /// ENOSPC or a quota.
    #[error("no space left for log segment {file}; free space or grow the volume, then restart the replica")]
    NoSpace {
        /// The segment's file.
        file: String,
        /// What the system said.
        error: io::Error,
    },
    /// EROFS: commonly the kernel's answer to a failing device.
    #[error(
        "failed to {action} {file}: the file system is read-only; \
         look for disk errors in the kernel log, mount it writable or replace the volume, then restart the replica"
    )]
    ReadOnly {
        /// What was tried.
        action: &'static str,
        /// The file.
        file: String,
        /// What the system said.
        error: io::Error,
    },
    /// EIO: what was written since the last sync is in doubt.
    #[error(
        "failed to {action} {file}: {error}; the device is failing and unsynced writes are in doubt; \
         restart the replica, and replace it and its volume if this comes again"
    )]
    Device {
        /// What was tried.
        action: &'static str,
        /// The file.
        file: String,
        /// What the system said.
        error: io::Error,
    },
    /// Anything else.
    #[error("failed to {action} {file}: {error}")]
    Other {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        file: String,
        /// What the system said.
        error: io::Error,
    },
}

impl IoFailure {
    /// For use in `map_err`: sorts the error by what its reader can do.
    pub(crate) fn of(action: &'static str, file: &str) -> impl FnOnce(io::Error) -> IoFailure {
        move |error| {
            let file = file.to_owned();
            match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => IoFailure::NoSpace { file, error },
                io::ErrorKind::ReadOnlyFilesystem => IoFailure::ReadOnly { action, file, error },
                _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                    IoFailure::Device { action, file, error }
                }
                _ => IoFailure::Other { action, file, error },
            }
        }
    }

    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, IoFailure::NoSpace { .. })
    }
}

/// Why a log did not open. Nothing on disk was cut, except after [`OpenError::Io`] what was torn anyway.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// [`crate::Options`] out of range.
    #[error(
        "log segments of {segment_bytes} bytes are not possible; choose a multiple of 4096 in 32768 ..= 1073741824"
    )]
    SegmentBytes {
        /// What was asked for.
        segment_bytes: u64,
    },
    /// Written by a later release.
    #[error(
        "log segment {file} has format version {version}, and this release reads up to {supported}; \
         run the release that wrote it, or a later one"
    )]
    NewerFormat {
        /// The segment's file.
        file: String,
        /// Its version.
        version: u32,
        /// The latest version that is understood.
        supported: u32,
    },
    /// The log of another service or replica.
    #[error(
        "log segment {file} belongs to {theirs}, and this is {ours}; \
         give this replica its own data directory, or an empty one"
    )]
    Foreign {
        /// The segment's file.
        file: String,
        /// Whose log it is.
        theirs: WalId,
        /// Whose log was asked for.
        ours: WalId,
    },
    /// A batch that was durable is damaged or missing. Nothing was changed.
    #[error(
        "log batch {sequence} at byte {offset} of {} is damaged: {fault}; this replica stops and its data is kept; \
         replace the replica, or its volume (repair from peers is not implemented yet)",
        segment_name(*.segment)
    )]
    Faulty {
        /// Number of the segment.
        segment: u64,
        /// Where in its file; 0 if it is the segment itself.
        offset: u64,
        /// The first batch that cannot be trusted.
        sequence: BatchSeq,
        /// How one knows.
        fault: Fault,
        /// The newest note that checks out, from an identifier or a batch.
        note: Option<Bytes>,
    },
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] IoFailure),
}

/// How one knows that a log is faulty and not torn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The identifier of this batch is there, so that it and all before it were written.
    Identified(BatchSeq),
    /// The next segment was begun, with this batch; so all before it were durable.
    Continued(BatchSeq),
    /// The segment's file is absent although its successor or its predecessor's seal says that it was in use.
    SegmentMissing,
    /// The segment's header does not check out, but others show that it was in use.
    SegmentHeader,
    /// The segment's file is shorter than its header says.
    SegmentShort {
        /// Bytes that are there.
        len: u64,
        /// Bytes that there should be.
        expected: u64,
    },
    /// Two places that check out by themselves contradict each other.
    Contradiction(&'static str),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Identified(seq) => write!(f, "the identifier of batch {seq} proves that it was written"),
            Fault::Continued(seq) => write!(f, "the log goes on with batch {seq} in the next segment"),
            Fault::SegmentMissing => f.write_str("the segment is missing"),
            Fault::SegmentHeader => f.write_str("the segment's header is damaged"),
            Fault::SegmentShort { len, expected } => write!(f, "the segment has {len} bytes of {expected}"),
            Fault::Contradiction(what) => f.write_str(what),
        }
    }
}

/// Why a batch could not be prepared. The log is as it was before.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// More than fits into a segment.
    #[error("batch of {bytes} bytes is too large; a batch has at most {max} bytes, framing included")]
    TooLarge {
        /// What its records take, framing included.
        bytes: u64,
        /// [`crate::Wal::max_batch_bytes`].
        max: u64,
    },
    /// A note of more than [`crate::MAX_NOTE`] bytes.
    #[error("note of {bytes} bytes is too large; a note has at most {max} bytes")]
    NoteTooLarge {
        /// Its size.
        bytes: usize,
        /// [`crate::MAX_NOTE`].
        max: usize,
    },
}

/// Why a batch is not durable. The replica has to stop; only the next start can tell what is on disk.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// The disk failed before.
    #[error("log writer stopped after an earlier failure ({cause}); restart the replica")]
    Poisoned {
        /// The first failure's text.
        cause: String,
    },
}

/// Why a record could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// What is there is not the record that was written.
    #[error(
        "log record at byte {offset} of {} is damaged; this replica stops and its data is kept; \
         replace the replica, or its volume (repair from peers is not implemented yet)",
        segment_name(*.segment)
    )]
    Damaged {
        /// Number of the segment.
        segment: u64,
        /// Of the payload, in its file.
        offset: u64,
    },
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It does not exist and could not be made.
    #[error("failed to create data directory {path}: {error}; choose a directory that this user can create")]
    Create {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Another process has it.
    #[error("data directory lock {path} is held by another process; stop that one, or choose another data directory")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// Files cannot be made in it.
    #[error("data directory {path} is not writable: {error}; make it writable for this user, or choose another one")]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}
