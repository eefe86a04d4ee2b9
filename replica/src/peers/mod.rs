//! The other replicas: who they are, where their messages wait, and what is known of them.
//!
//! Each pair of replicas has two streams, one opened by each; messages go over the stream that their sender opened. A stream
//! starts with a Hello that says who calls; the callee answers with its own or refuses. Which address belongs to whom is
//! learnt from the Hello alone, so addresses may come in any order and change their replica.

pub(crate) mod convert;
mod dial;
mod outbox;
mod serve;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use lockstep_engine::engine::Outgoing;
use lockstep_types::{Configuration, Genesis, ReplicaId, ServiceId, Slot};
use lockstep_wire::{Leader, convert as wire, limits, v1};
use thiserror::Error;

pub(crate) use dial::dial_all;
pub(crate) use outbox::Outbox;
pub(crate) use serve::PeerService;

use crate::metrics::Metrics;

/// All voters of the service, as one of them knows them.
pub(crate) struct Peers {
    service: ServiceId,
    me: ReplicaId,
    slot: Slot,
    boot: u64,
    client_address: String,
    config: Configuration,
    outboxes: BTreeMap<Slot, Outbox>,
    seen: Mutex<BTreeMap<Slot, Seen>>,
}

/// What Hellos told of a voter.
#[derive(Clone, Debug, Default)]
struct Seen {
    boot: u64,
    client_address: String,
}

/// Why a stream between replicas is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum HelloError {
    #[error(
        "replica {replica} speaks peer protocol {theirs}, newer than {ours}, the latest that this replica understands; \
         run the newer release on this replica too, or the older one on that"
    )]
    Newer { replica: ReplicaId, theirs: u32, ours: u32 },
    #[error(
        "replica {replica} belongs to service {theirs}, this one to {ours}; \
         name only members of one service in --peers"
    )]
    OtherService { replica: ReplicaId, theirs: String, ours: ServiceId },
    #[error("replica {replica} is no voter of service {service}; it may have joined with an empty disk")]
    NoVoter { replica: ReplicaId, service: ServiceId },
    #[error(
        "replica {replica} says that it started {theirs} times, but it had started {seen} times before: its volume is an \
         old copy; give it an empty data directory, never a restored or cloned one"
    )]
    WentBack { replica: ReplicaId, theirs: u64, seen: u64 },
    #[error("the Hello makes no sense: {0}")]
    Nonsense(#[from] lockstep_wire::WireError),
}

impl From<HelloError> for tonic::Status {
    fn from(error: HelloError) -> Self {
        match error {
            HelloError::Nonsense(_) => tonic::Status::invalid_argument(error.to_string()),
            HelloError::Newer { .. }
            | HelloError::OtherService { .. }
            | HelloError::NoVoter { .. }
            | HelloError::WentBack { .. } => tonic::Status::failed_precondition(error.to_string()),
        }
    }
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// This very replica.
    Myself,
    /// Another voter.
    Voter(Slot),
}

impl Peers {
    /// None if `me` is no voter of the genesis.
    pub fn new(genesis: &Genesis, me: ReplicaId, boot: u64, client_address: String, metrics: &Metrics) -> Option<Self> {
        let config = genesis.configuration();
        let slot = config.slot_of(me)?;
        let others = config.voters().keys().filter(|other| **other != slot);
        let outboxes = others.map(|other| (*other, Outbox::new(metrics))).collect();
        let seen = BTreeMap::from([(slot, Seen { boot, client_address: client_address.clone() })]);
        Some(Peers {
            service: genesis.service,
            me,
            slot,
            boot,
            client_address,
            config,
            outboxes,
            seen: Mutex::new(seen),
        })
    }

    /// Queues a message. It is dropped if its receiver is not connected or its queue is full: the rules repeat themselves.
    pub fn send(&self, outgoing: Outgoing) {
        if let Some(outbox) = self.outboxes.get(&outgoing.to) {
            outbox.push(outgoing);
        }
    }

    pub fn outbox(&self, slot: Slot) -> Option<&Outbox> {
        self.outboxes.get(&slot)
    }

    /// Whether no other voter is connected.
    pub fn is_alone(&self) -> bool {
        !self.outboxes.values().any(Outbox::is_connected)
    }

    pub fn service(&self) -> ServiceId {
        self.service
    }

    pub fn slot(&self) -> Slot {
        self.slot
    }

    pub fn config(&self) -> &Configuration {
        &self.config
    }

    /// What this replica says first.
    pub fn hello(&self) -> v1::PeerHello {
        v1::PeerHello {
            protocol_version: limits::PROTOCOL_VERSION,
            service_id: wire::id_bytes(self.service.as_bytes()),
            replica_id: wire::id_bytes(self.me.as_bytes()),
            boot: self.boot,
            client_address: self.client_address.clone(),
        }
    }

    /// Checks what the other end said first, and remembers it.
    pub fn meet(&self, hello: &v1::PeerHello) -> Result<Who, HelloError> {
        let replica = wire::replica_id("replica_id", &hello.replica_id)?;
        let ours = limits::PROTOCOL_VERSION;
        if hello.protocol_version > ours {
            return Err(HelloError::Newer { replica, theirs: hello.protocol_version, ours });
        }
        let service = wire::service_id("service_id", &hello.service_id)?;
        if service != Some(self.service) {
            let theirs = service.map_or_else(|| "none".to_owned(), |service| service.to_string());
            return Err(HelloError::OtherService { replica, theirs, ours: self.service });
        }
        if replica == self.me {
            return Ok(Who::Myself);
        }
        let no_voter = HelloError::NoVoter { replica, service: self.service };
        let slot = self.config.slot_of(replica).ok_or(no_voter)?;
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = all.entry(slot).or_default();
        if hello.boot < seen.boot {
            return Err(HelloError::WentBack { replica, theirs: hello.boot, seen: seen.boot });
        }
        *seen = Seen { boot: hello.boot, client_address: hello.client_address.clone() };
        Ok(Who::Voter(slot))
    }

    /// The voter in this slot and where clients reach it, as far as that is known.
    pub fn locate(&self, slot: Slot) -> Option<Leader> {
        let replica = self.config.voter(slot)?;
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let address = seen.get(&slot).map(|seen| seen.client_address.clone()).unwrap_or_default();
        Some(Leader { replica, address })
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::FaultModel;

    use super::*;

    fn peers() -> Peers {
        let replica = |number| ReplicaId::from_bytes([number; 16]);
        let genesis = Genesis {
            service: ServiceId::from_bytes([9; 16]),
            fault_model: FaultModel::Crash,
            voters: vec![replica(1), replica(2), replica(3)],
            machine: "KeyValue".to_owned(),
            sessions_max: Genesis::SESSIONS_MAX,
            reply_bytes_max: Genesis::REPLY_BYTES_MAX,
            snapshot_bytes: Genesis::SNAPSHOT_BYTES,
        };
        Peers::new(&genesis, replica(1), 1, "one:7400".to_owned(), &Metrics::new()).expect("it votes")
    }

    fn hello_of(number: u8) -> v1::PeerHello {
        v1::PeerHello {
            replica_id: vec![number; 16].into(),
            boot: 4,
            client_address: "two:7400".to_owned(),
            ..peers().hello()
        }
    }

    #[test]
    fn hello_of_a_voter_tells_its_slot_and_address() {
        let peers = peers();
        assert_eq!(peers.meet(&hello_of(2)), Ok(Who::Voter(Slot::new(2))));
        assert_eq!(peers.locate(Slot::new(2)).expect("a voter").address, "two:7400");
        assert_eq!(peers.meet(&hello_of(1)), Ok(Who::Myself));
    }

    #[test]
    fn hello_of_a_later_protocol_is_refused() {
        let hello = v1::PeerHello { protocol_version: limits::PROTOCOL_VERSION + 1, ..hello_of(2) };
        assert!(matches!(peers().meet(&hello), Err(HelloError::Newer { theirs: 2, ours: 1, .. })));
    }

    #[test]
    fn hello_of_another_service_is_refused() {
        let hello = v1::PeerHello { service_id: vec![8; 16].into(), ..hello_of(2) };
        assert!(matches!(peers().meet(&hello), Err(HelloError::OtherService { .. })));
    }

    #[test]
    fn hello_of_a_stranger_is_refused() {
        assert!(matches!(peers().meet(&hello_of(7)), Err(HelloError::NoVoter { .. })));
    }

    #[test]
    fn hello_with_a_boot_counter_that_went_back_is_refused() {
        let peers = peers();
        peers.meet(&hello_of(2)).expect("the fourth start");
        peers.meet(&hello_of(2)).expect("the fourth start again");
        let hello = v1::PeerHello { boot: 3, ..hello_of(2) };
        assert!(matches!(peers.meet(&hello), Err(HelloError::WentBack { theirs: 3, seen: 4, .. })));
    }

    #[test]
    fn hello_without_an_identity_is_refused() {
        let hello = v1::PeerHello { replica_id: vec![1, 2].into(), ..hello_of(2) };
        assert!(matches!(peers().meet(&hello), Err(HelloError::Nonsense(_))));
    }
}
