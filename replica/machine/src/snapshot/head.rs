//! The first chunk: whose state it is, at which height, and how much follows.

use std::sync::Arc;

use lockstep_types::codec::{Reader, Writer};
use lockstep_types::{DecodeError, Digest, Genesis, Height, ServiceId};

use super::error::Fault;
use super::{COUNT_MAX, FORMAT};
use crate::executor::Counters;

/// All of a state but its two maps, and the sizes of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub origin: Origin,
    pub applied: Height,
    pub digest: Digest,
    pub since_point: u64,
    pub counters: Counters,
    pub sessions: u64,
    pub keys: u64,
}

/// What the genesis says: the same for every state of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub service: ServiceId,
    pub machine: Arc<str>,
    pub sessions_max: u32,
    pub reply_bytes_max: u64,
    pub snapshot_bytes: u64,
}

impl From<&Genesis> for Origin {
    fn from(genesis: &Genesis) -> Self {
        Origin {
            service: genesis.service,
            machine: genesis.machine.as_str().into(),
            sessions_max: genesis.sessions_max,
            reply_bytes_max: genesis.reply_bytes_max,
            snapshot_bytes: genesis.snapshot_bytes,
        }
    }
}

impl Head {
    pub fn encode(&self, out: &mut Writer) {
        let Head { origin, applied, digest, since_point, counters, sessions, keys } = self;
        out.u16(FORMAT).raw(origin.service.as_bytes()).bytes(origin.machine.as_bytes());
        out.u32(origin.sessions_max).u64(origin.reply_bytes_max).u64(origin.snapshot_bytes);
        out.height(*applied).raw(digest.as_bytes()).u64(*since_point);
        out.u64(counters.executed).u64(counters.answered_from_table).u64(counters.evictions);
        out.u64(*sessions).u64(*keys);
    }

    /// Reads a head that fits `ours`.
    pub fn decode(mut reader: Reader, ours: &Origin) -> Result<Self, Fault> {
        match reader.u16("snapshot version")? {
            FORMAT => {}
            0 => return Err(Fault::OutOfRange { what: "snapshot version" }),
            found => return Err(DecodeError::NewerVersion { what: "snapshot", found, known: FORMAT }.into()),
        }
        let service = reader.service("service")?;
        if service != ours.service {
            return Err(Fault::Service { theirs: service, ours: ours.service });
        }
        let machine = reader.bytes("machine")?;
        if *machine != *ours.machine.as_bytes() {
            let theirs = String::from_utf8_lossy(&machine).into_owned();
            return Err(Fault::Machine { theirs, ours: ours.machine.to_string() });
        }
        let limit = |what, theirs, ours| match theirs == ours {
            true => Ok(()),
            false => Err(Fault::Limit { what, theirs, ours }),
        };
        limit("sessions_max", reader.u32("sessions_max")?.into(), ours.sessions_max.into())?;
        limit("reply_bytes_max", reader.u64("reply_bytes_max")?, ours.reply_bytes_max)?;
        limit("snapshot_bytes", reader.u64("snapshot_bytes")?, ours.snapshot_bytes)?;
        let head = Head {
            origin: ours.clone(),
            applied: Height::new(count(&mut reader, "applied height")?),
            digest: reader.digest("execution digest")?,
            since_point: count(&mut reader, "bytes since the last snapshot point")?,
            counters: Counters {
                executed: count(&mut reader, "executed requests")?,
                answered_from_table: count(&mut reader, "requests answered again")?,
                evictions: count(&mut reader, "evictions")?,
            },
            sessions: count(&mut reader, "session count")?,
            keys: count(&mut reader, "key count")?,
        };
        if head.since_point > 0 && head.since_point >= ours.snapshot_bytes {
            return Err(Fault::OutOfRange { what: "bytes since the last snapshot point" });
        }
        if head.sessions > u64::from(ours.sessions_max) {
            return Err(Fault::OutOfRange { what: "session count" });
        }
        reader.finish("head")?;
        Ok(head)
    }
}

fn count(reader: &mut Reader, what: &'static str) -> Result<u64, Fault> {
    match reader.u64(what)? {
        count @ 0..=COUNT_MAX => Ok(count),
        _ => Err(Fault::OutOfRange { what }),
    }
}
