//! Canonical bytes: little-endian numbers, byte strings with a `u32` length, lists with a `u32` count.
//!
//! What is hashed or written to disk is encoded here and nowhere else, so that a digest means the same on every replica.
//! A [`Reader`] never panics and never allocates more than it was given.

use alloc::vec::Vec;

use bytes::Bytes;
use thiserror::Error;

use crate::ids::{Digest, Epoch, Height, LogTime, ReplicaId, ServiceId, Slot, View};

/// Bytes that do not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The bytes end inside `what`.
    #[error("bytes end inside {what}")]
    Truncated {
        /// The field that was being read.
        what: &'static str,
    },
    /// Bytes are left over after a whole value.
    #[error("{count} bytes left over after {what}")]
    LeftOver {
        /// The value that was read.
        what: &'static str,
        /// How many bytes follow it.
        count: usize,
    },
    /// A tag that this version does not know.
    #[error("unknown {what} {tag}")]
    UnknownTag {
        /// The kind of tag.
        what: &'static str,
        /// The tag found.
        tag: u8,
    },
    /// A format written by a later version.
    #[error("{what} has format version {found}, this binary reads up to {known}; run a newer release")]
    NewerVersion {
        /// The value that was being read.
        what: &'static str,
        /// The version found.
        found: u16,
        /// The newest version known.
        known: u16,
    },
    /// A value outside its range.
    #[error("{what} is out of range")]
    OutOfRange {
        /// The field that was being read.
        what: &'static str,
    },
}

/// Appends canonical bytes.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// A writer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Writer(Vec::with_capacity(capacity))
    }

    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Bytes as they are, without a length.
    pub fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.0.extend_from_slice(value);
        self
    }

    /// A length, then the bytes. Panics past 4 GiB, far beyond every limit.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.u32(u32::try_from(value.len()).expect("byte strings are bounded far below 4 GiB"));
        self.raw(value)
    }

    /// A height.
    pub fn height(&mut self, value: Height) -> &mut Self {
        self.u64(value.get())
    }

    /// A view: round, then leader.
    pub fn view(&mut self, value: View) -> &mut Self {
        self.u64(value.round).u32(value.leader.get())
    }
}

/// Takes canonical bytes apart. Byte strings share the buffer that is read.
#[derive(Debug)]
pub struct Reader(Bytes);

impl Reader {
    /// Reads `bytes` from their start.
    pub fn new(bytes: Bytes) -> Self {
        Reader(bytes)
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.0.len()
    }

    /// `count` bytes as they are.
    pub fn raw(&mut self, count: usize, what: &'static str) -> Result<Bytes, DecodeError> {
        if count > self.0.len() {
            return Err(DecodeError::Truncated { what });
        }
        Ok(self.0.split_to(count))
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let bytes = self.raw(N, what)?;
        let mut array = [0; N];
        array.copy_from_slice(&bytes);
        Ok(array)
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    /// Two bytes.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        self.array(what).map(u16::from_le_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length, then that many bytes.
    pub fn bytes(&mut self, what: &'static str) -> Result<Bytes, DecodeError> {
        let count = self.u32(what)?;
        self.raw(count as usize, what)
    }

    /// A height.
    pub fn height(&mut self, what: &'static str) -> Result<Height, DecodeError> {
        self.u64(what).map(Height::new)
    }

    /// A view.
    pub fn view(&mut self, what: &'static str) -> Result<View, DecodeError> {
        Ok(View::new(self.u64(what)?, Slot::new(self.u32(what)?)))
    }

    /// An epoch.
    pub fn epoch(&mut self, what: &'static str) -> Result<Epoch, DecodeError> {
        self.u64(what).map(Epoch::new)
    }

    /// A digest.
    pub fn digest(&mut self, what: &'static str) -> Result<Digest, DecodeError> {
        self.array(what).map(Digest::from_bytes)
    }

    /// A service's identity.
    pub fn service(&mut self, what: &'static str) -> Result<ServiceId, DecodeError> {
        self.array(what).map(ServiceId::from_bytes)
    }

    /// A replica's identity.
    pub fn replica(&mut self, what: &'static str) -> Result<ReplicaId, DecodeError> {
        self.array(what).map(ReplicaId::from_bytes)
    }

    /// A log time.
    pub fn log_time(&mut self, what: &'static str) -> Result<LogTime, DecodeError> {
        self.u64(what).map(LogTime::from_millis)
    }

    /// Asserts that nothing is left.
    pub fn finish(self, what: &'static str) -> Result<(), DecodeError> {
        match self.0.len() {
            0 => Ok(()),
            count => Err(DecodeError::LeftOver { what, count }),
        }
    }
}
