//! Who a data directory is. Minted with the directory, never the pod's ordinal: an empty disk is a new replica (DESIGN §2.5).
//!
//! One small file, replaced whole: format version, replica id, number of starts, genesis or none, whether a log was begun,
//! why it retired, digest of all that. A directory that holds a log but no identity is refused, and so is one whose log is gone: a fresh
//! start would forget a promise.

use bytes::Bytes;
use lockstep_types::codec::{Reader, Writer};
use lockstep_types::config::GenesisError;
use lockstep_types::limits::FORMAT_VERSION;
use lockstep_types::{DecodeError, Digest, Genesis, ReplicaId, ServiceId, Slot};
use lockstep_wal::Disk;
use thiserror::Error;

use crate::snapshots::manifest::is_snapshot_file;

/// Name of the file.
pub const FILE: &str = "identity";

/// Who this replica is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Random, minted with the directory.
    pub replica: ReplicaId,
    /// Starts so far, this one included; from 1. Peers refuse an identity whose count goes back (module `witness`).
    pub boot: u64,
    /// The service that this replica was born into, once it is known. Never another.
    pub genesis: Option<Genesis>,
    /// Its slot in that service: by the genesis, or given to it when it joined. Known together with the genesis.
    pub slot: Option<Slot>,
    /// A log was begun in this directory, and must be there.
    pub logged: bool,
    /// Why it makes no promise any more: it was found to have forgotten one.
    pub retired: Option<String>,
    /// Random, of this start alone; not kept.
    pub start: u64,
}

/// Why a data directory cannot be used.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The disk failed.
    #[error(
        "failed to {action} file {FILE} in the data directory: {source}; check the volume, then restart the replica"
    )]
    Disk {
        /// What was tried.
        action: &'static str,
        /// The disk's error.
        source: std::io::Error,
    },
    /// The file does not hold what was written.
    #[error(
        "file {FILE} in the data directory is damaged: {why}; this replica must not start from it: \
         restore nothing, give it an empty directory so that it joins as a new replica"
    )]
    Damaged {
        /// What is wrong with it.
        why: String,
    },
    /// The file was written by a later release.
    #[error(
        "file {FILE} in the data directory has format version {found}, this release reads up to {FORMAT_VERSION}; run a newer release"
    )]
    Newer {
        /// Its version.
        found: u16,
    },
    /// A log without the identity that wrote it.
    #[error(
        "the data directory holds a log ({file}) but no file {FILE}: it was lost or the directory is not Lockstep's; \
         restore nothing, give this replica an empty directory so that it joins as a new replica"
    )]
    Lost {
        /// One of the files found.
        file: String,
    },
    /// The log that this identity wrote is gone.
    #[error(
        "the log of replica {replica} is gone from the data directory; without it the replica would break promises that it \
         made: restore nothing, give it an empty directory so that it joins as a new replica"
    )]
    LogLost {
        /// The replica.
        replica: ReplicaId,
    },
    /// Another genesis than the one this replica was born with.
    #[error("this replica belongs to service {ours}; it refuses the genesis of {theirs}")]
    OtherGenesis {
        /// The service it belongs to.
        ours: ServiceId,
        /// The service that was offered.
        theirs: ServiceId,
    },
    /// A genesis of the same service id that differs.
    #[error("this replica has another genesis for service {service}; only the one recorded first is ever valid")]
    Differs {
        /// The service.
        service: ServiceId,
    },
    /// A genesis that does not name this replica.
    #[error(
        "the genesis of service {service} does not name replica {replica}; a replica that comes later joins as a standby"
    )]
    NotNamed {
        /// The service.
        service: ServiceId,
        /// This replica.
        replica: ReplicaId,
    },
    /// Another slot than the one that it was given first.
    #[error("replica {replica} is {ours} of its service; it refuses to become {theirs}")]
    OtherSlot {
        /// The replica.
        replica: ReplicaId,
        /// Its slot.
        ours: Slot,
        /// The slot offered.
        theirs: Slot,
    },
    /// An identity that forgot what it had promised.
    #[error(
        "replica {replica} has retired: {why}; its volume is an old copy, or its disk lost what it had called durable: \
         restore nothing, give it an empty directory so that it joins as a new replica"
    )]
    Retired {
        /// The replica.
        replica: ReplicaId,
        /// What it forgot.
        why: String,
    },
    /// A genesis that no service can start from.
    #[error(transparent)]
    Invalid(#[from] GenesisError),
}

impl Identity {
    /// Reads the identity of this directory, or mints one with `random` if the directory is empty, and counts the start.
    ///
    /// # Errors
    /// A disk that fails, a damaged or lost identity, a later format. Nothing is changed then.
    pub fn start(disk: &impl Disk, random: [u8; 16]) -> Result<Self, IdentityError> {
        let files = disk.list().map_err(|source| IdentityError::Disk { action: "look for", source })?;
        let mut identity = if files.iter().any(|file| file == FILE) {
            Self::load(disk)?
        } else if let Some(file) = files.iter().find(|file| lockstep_wal::is_segment(file) || is_snapshot_file(file)) {
            return Err(IdentityError::Lost { file: file.clone() });
        } else {
            Identity {
                replica: ReplicaId::from_bytes(random),
                boot: 0,
                genesis: None,
                slot: None,
                logged: false,
                retired: None,
                start: 0,
            }
        };
        if identity.logged && !files.iter().any(|file| lockstep_wal::is_segment(file)) {
            return Err(IdentityError::LogLost { replica: identity.replica });
        }
        identity.boot += 1;
        let mut start = Reader::new(Bytes::copy_from_slice(Digest::of(&random).as_bytes()));
        identity.start = start.u64("start").expect("a digest is longer");
        identity.store(disk)?;
        Ok(identity)
    }

    /// Takes the genesis on as one of its voters, once and for all. Returns whether it is new; the same one again changes
    /// nothing.
    ///
    /// # Errors
    /// Another genesis than the one it has, one that does not name this replica, one that is not valid, a disk that fails.
    pub fn adopt(&mut self, genesis: Genesis, disk: &impl Disk) -> Result<bool, IdentityError> {
        match genesis.configuration().slot_of(self.replica) {
            Some(slot) => self.become_member(genesis, slot, disk),
            None if self.genesis.is_some() => self.check_genesis(&genesis).map(|()| false),
            None => Err(IdentityError::NotNamed { service: genesis.service, replica: self.replica }),
        }
    }

    /// Joins a service that was born without it, in the slot that a committed `Change::AddStandby` gave to it. Returns whether
    /// that is new; the same again changes nothing.
    ///
    /// # Errors
    /// Another genesis or slot than it has, a genesis that is not valid, a disk that fails.
    pub fn join(&mut self, genesis: Genesis, slot: Slot, disk: &impl Disk) -> Result<bool, IdentityError> {
        self.become_member(genesis, slot, disk)
    }

    fn become_member(&mut self, genesis: Genesis, slot: Slot, disk: &impl Disk) -> Result<bool, IdentityError> {
        self.check_fit()?;
        self.check_genesis(&genesis)?;
        match self.slot {
            Some(ours) if ours == slot => return Ok(false),
            Some(ours) => return Err(IdentityError::OtherSlot { replica: self.replica, ours, theirs: slot }),
            None => {}
        }
        genesis.validate()?;
        let born = Identity { genesis: Some(genesis), slot: Some(slot), ..self.clone() };
        born.store(disk)?;
        *self = born;
        Ok(true)
    }

    /// Retires, for good: it makes no promise any more.
    ///
    /// # Errors
    /// A disk that fails.
    pub fn retire(&mut self, why: String, disk: &impl Disk) -> Result<(), IdentityError> {
        let retired = Identity { retired: Some(why), ..self.clone() };
        retired.store(disk)?;
        *self = retired;
        Ok(())
    }

    /// Whether it may run.
    ///
    /// # Errors
    /// It has retired.
    pub fn check_fit(&self) -> Result<(), IdentityError> {
        match &self.retired {
            None => Ok(()),
            Some(why) => Err(IdentityError::Retired { replica: self.replica, why: why.clone() }),
        }
    }

    /// Whether a genesis is the one that this replica has, if it has one.
    fn check_genesis(&self, genesis: &Genesis) -> Result<(), IdentityError> {
        match &self.genesis {
            Some(ours) if ours == genesis => Ok(()),
            Some(ours) if ours.service == genesis.service => Err(IdentityError::Differs { service: genesis.service }),
            Some(ours) => Err(IdentityError::OtherGenesis { ours: ours.service, theirs: genesis.service }),
            None => Ok(()),
        }
    }

    /// Notes that the log was begun.
    ///
    /// # Errors
    /// A disk that fails.
    pub(crate) fn note_log(&self, disk: &impl Disk) -> Result<(), IdentityError> {
        if self.logged { Ok(()) } else { Identity { logged: true, ..self.clone() }.store(disk) }
    }

    fn store(&self, disk: &impl Disk) -> Result<(), IdentityError> {
        let mut out = Writer::default();
        out.u16(FORMAT_VERSION).raw(self.replica.as_bytes()).u64(self.boot);
        match &self.genesis {
            None => out.u8(0),
            Some(genesis) => out.u8(1).bytes(&genesis.encode()).u32(self.slot.map_or(0, Slot::get)),
        };
        out.u8(self.logged.into());
        out.bytes(self.retired.as_deref().unwrap_or_default().as_bytes());
        let mut bytes = out.finish();
        bytes.extend_from_slice(Digest::of(&bytes).as_bytes());
        disk.replace(FILE, &bytes).map_err(|source| IdentityError::Disk { action: "write", source })
    }

    fn load(disk: &impl Disk) -> Result<Self, IdentityError> {
        let read = || {
            let len = usize::try_from(disk.len(FILE)?).map_err(std::io::Error::other)?;
            let mut bytes = vec![0; len];
            disk.read_at(FILE, 0, &mut bytes)?;
            Ok(bytes)
        };
        let mut bytes = read().map_err(|source| IdentityError::Disk { action: "read", source })?;
        let damaged = |why: &str| IdentityError::Damaged { why: why.to_owned() };
        let Some(split) = bytes.len().checked_sub(32) else { return Err(damaged("it is too short")) };
        let digest = bytes.split_off(split);
        if Digest::of(&bytes).as_bytes()[..] != digest[..] {
            return Err(damaged("its checksum does not match"));
        }
        Self::decode(Bytes::from(bytes)).map_err(|error| match error {
            DecodeError::NewerVersion { found, .. } => IdentityError::Newer { found },
            error => IdentityError::Damaged { why: error.to_string() },
        })
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let found = reader.u16("identity version")?;
        if found > FORMAT_VERSION {
            return Err(DecodeError::NewerVersion { what: "identity", found, known: FORMAT_VERSION });
        }
        let replica = reader.replica("replica id")?;
        let boot = reader.u64("boot counter")?;
        let (genesis, slot) = match reader.u8("genesis flag")? {
            0 => (None, None),
            1 => (Some(Genesis::decode(reader.bytes("genesis")?)?), Some(Slot::new(reader.u32("slot")?))),
            tag => return Err(DecodeError::UnknownTag { what: "genesis flag", tag }),
        };
        let logged = reader.u8("log flag")? != 0;
        let retired = reader.bytes("retirement")?;
        let retired = (!retired.is_empty()).then(|| String::from_utf8_lossy(&retired).into_owned());
        reader.finish("identity")?;
        Ok(Identity { replica, boot, genesis, slot, logged, retired, start: 0 })
    }
}
