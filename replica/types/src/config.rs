//! Which failures a service survives, and its one-time birth.
//!
//! Not here: who counts later (module `membership`).

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use bytes::Bytes;
use thiserror::Error;

use crate::codec::{DecodeError, Reader, Writer};
use crate::ids::{ReplicaId, ServiceId};
use crate::limits::FORMAT_VERSION;
use crate::membership::Configuration;

/// Which failures a service survives. The Byzantine model joins this enum once it works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultModel {
    /// f of 2f+1 replicas may stop; none lies.
    #[default]
    Crash,
}

impl FaultModel {
    /// The faults that `voters` replicas survive: f.
    pub fn tolerated(self, voters: usize) -> usize {
        match self {
            FaultModel::Crash => voters.saturating_sub(1) / 2,
        }
    }

    /// The votes that are enough among `voters`: any two such sets share a voter that did not fail (PROTOCOL, opening).
    pub fn quorum(self, voters: usize) -> usize {
        match self {
            FaultModel::Crash => voters / 2 + 1,
        }
    }

    pub(crate) fn tag(self) -> u8 {
        match self {
            FaultModel::Crash => 1,
        }
    }

    pub(crate) fn from_tag(tag: u8) -> Result<Self, DecodeError> {
        match tag {
            1 => Ok(FaultModel::Crash),
            tag => Err(DecodeError::UnknownTag { what: "fault model", tag }),
        }
    }
}

impl fmt::Display for FaultModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaultModel::Crash => f.write_str("Crash"),
        }
    }
}

/// A genesis that no service can start from.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GenesisError {
    /// The number of voters does not fit the fault model.
    #[error("fault model {model} takes 1, 3, 5 or 7 voters, not {voters}")]
    Voters {
        /// The fault model.
        model: FaultModel,
        /// How many voters were named.
        voters: usize,
    },
    /// One identity in two slots.
    #[error("replica {replica} is named twice")]
    Twice {
        /// The identity.
        replica: ReplicaId,
    },
    /// No session could ever be kept.
    #[error("a service keeps at least 1 session, not 0")]
    Sessions,
    /// Snapshot points that would come with every block.
    #[error(
        "snapshot_bytes is {bytes}; take at least {}, {} is usual",
        Genesis::SNAPSHOT_BYTES_MIN,
        Genesis::SNAPSHOT_BYTES
    )]
    SnapshotBytes {
        /// The limit given.
        bytes: u64,
    },
    /// A state machine that no release has.
    #[error("unknown state machine {machine:?}; this release has KeyValue")]
    Machine {
        /// The name given.
        machine: String,
    },
}

/// The one-time birth of a service: written down before the first replica sees it, the same for all (PROTOCOL §5, L6).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Genesis {
    /// The service that is born.
    pub service: ServiceId,
    /// Which failures it survives.
    pub fault_model: FaultModel,
    /// The first voters, in the order of their slots 1, 2, 3…
    pub voters: Vec<ReplicaId>,
    /// Name of the built-in state machine.
    pub machine: String,
    /// Sessions kept at most; the least recently used go first. Part of the replicated state (PROTOCOL §7).
    pub sessions_max: u32,
    /// Bytes of cached replies kept at most over all sessions.
    pub reply_bytes_max: u64,
    /// Bytes of blocks, headers and bodies, from one snapshot point to the next: the block that reaches the sum is one.
    /// At least [`Genesis::SNAPSHOT_BYTES_MIN`].
    pub snapshot_bytes: u64,
}

impl Genesis {
    /// Sessions kept unless said otherwise.
    pub const SESSIONS_MAX: u32 = 4096;
    /// Bytes of cached replies kept unless said otherwise.
    pub const REPLY_BYTES_MAX: u64 = 64 << 20;
    /// Bytes of blocks between two snapshot points unless said otherwise.
    pub const SNAPSHOT_BYTES: u64 = 64 << 20;
    /// Bytes of blocks between two snapshot points at least.
    pub const SNAPSHOT_BYTES_MIN: u64 = 4096;
    /// The built-in machines. The second is for exercises and tests.
    pub const MACHINES: [&'static str; 2] = ["KeyValue", "KeyValueWithFaults"];

    /// Checks what every replica relies on.
    ///
    /// # Errors
    /// A number of voters that does not fit the fault model, an identity named twice, no session, snapshot points that come
    /// too often, an unknown state machine.
    pub fn validate(&self) -> Result<(), GenesisError> {
        let voters = self.voters.len();
        match self.fault_model {
            FaultModel::Crash if matches!(voters, 1 | 3 | 5 | 7) => {}
            FaultModel::Crash => return Err(GenesisError::Voters { model: self.fault_model, voters }),
        }
        let mut seen = BTreeSet::new();
        for replica in &self.voters {
            if !seen.insert(*replica) {
                return Err(GenesisError::Twice { replica: *replica });
            }
        }
        if self.sessions_max == 0 {
            return Err(GenesisError::Sessions);
        }
        if self.snapshot_bytes < Self::SNAPSHOT_BYTES_MIN {
            return Err(GenesisError::SnapshotBytes { bytes: self.snapshot_bytes });
        }
        if !Self::MACHINES.contains(&self.machine.as_str()) {
            return Err(GenesisError::Machine { machine: self.machine.clone() });
        }
        Ok(())
    }

    /// The configuration of the first epoch. Slots count from 1.
    pub fn configuration(&self) -> Configuration {
        Configuration::first(self.fault_model, &self.voters)
    }

    /// Canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u16(FORMAT_VERSION).raw(self.service.as_bytes()).u8(self.fault_model.tag());
        out.u32(u32::try_from(self.voters.len()).expect("a handful of voters"));
        for voter in &self.voters {
            out.raw(voter.as_bytes());
        }
        out.bytes(self.machine.as_bytes()).u32(self.sessions_max).u64(self.reply_bytes_max);
        out.u64(self.snapshot_bytes);
        out.finish()
    }

    /// Reads canonical bytes. Does not [`validate`](Self::validate).
    ///
    /// # Errors
    /// Bytes that do not decode, or a later format version.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let found = reader.u16("genesis version")?;
        if found > FORMAT_VERSION {
            return Err(DecodeError::NewerVersion { what: "genesis", found, known: FORMAT_VERSION });
        }
        let service = reader.service("genesis service")?;
        let fault_model = FaultModel::from_tag(reader.u8("fault model")?)?;
        let count = reader.u32("voter count")?;
        let voters = (0..count).map(|_| reader.replica("voter")).collect::<Result<_, _>>()?;
        let machine = reader.bytes("machine")?;
        let machine = core::str::from_utf8(&machine).map_err(|_| DecodeError::OutOfRange { what: "machine name" })?;
        let genesis = Genesis {
            service,
            fault_model,
            voters,
            machine: machine.into(),
            sessions_max: reader.u32("session limit")?,
            reply_bytes_max: reader.u64("reply limit")?,
            snapshot_bytes: reader.u64("snapshot limit")?,
        };
        reader.finish("genesis")?;
        Ok(genesis)
    }
}
