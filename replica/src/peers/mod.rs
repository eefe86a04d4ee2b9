//! The other replicas: who they are, where their messages wait, and what is known of them.
//!
//! Each pair of replicas has two streams, one opened by each; messages go over the stream that their sender opened. A stream
//! starts with a Hello that says who calls; the callee answers with its own or refuses. Which address belongs to whom is
//! learnt from the Hello alone, so addresses may come in any order and change their replica.

pub(crate) mod convert;
mod dial;
mod members;
mod names;
mod outbox;
mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_engine::engine::Outgoing;
use lockstep_engine::{Amnesia, Claim, MembershipStatus};
use lockstep_types::{Configuration, Epoch, ReplicaId, ServiceId, Slot};
use lockstep_wire::{Leader, convert as wire, limits, v1};
use thiserror::Error;

pub(crate) use dial::{dial_all, dial_back};
pub(crate) use outbox::Outbox;
pub(crate) use serve::PeerService;

use crate::core::CoreHandle;
use crate::metrics::Metrics;
use members::Members;

/// How often a stream is looked at that another one waits for.
const LOOK: Duration = Duration::from_millis(500);

/// All members of the service, as one of them knows them.
pub(crate) struct Peers {
    service: ServiceId,
    me: ReplicaId,
    slot: Slot,
    claim: Claim,
    addresses: Addresses,
    metrics: Arc<Metrics>,
    members: Mutex<Members>,
    outboxes: Mutex<BTreeMap<Slot, Arc<Outbox>>>,
    seen: Mutex<BTreeMap<Slot, Seen>>,
    /// Addresses that are dialled.
    dialled: Mutex<BTreeSet<String>>,
}

/// Where this replica can be reached; empty: nobody is told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    pub client: String,
    pub peer: String,
}

/// What the newest Hello told of a member.
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
    #[error(
        "replica {replica} is no member of service {service}; one with an empty disk joins as a standby: `lockstep members add`"
    )]
    NoMember { replica: ReplicaId, service: ServiceId },
    #[error(
        "replica {replica} was {slot} of service {service} until it was removed, and never returns; \
         give it an empty data directory, so that it joins as a new replica"
    )]
    Removed { replica: ReplicaId, slot: Slot, service: ServiceId },
    #[error(
        "replica {replica} forgot what it had promised: {amnesia}; its volume is an old copy, or its disk lost what it had \
         called durable; give it an empty data directory, never a restored or cloned one"
    )]
    Amnesia { replica: ReplicaId, amnesia: Amnesia },
    #[error("the replica is shutting down")]
    Stopping,
    #[error("the Hello makes no sense: {0}")]
    Nonsense(#[from] lockstep_wire::WireError),
}

impl From<HelloError> for tonic::Status {
    fn from(error: HelloError) -> Self {
        match error {
            HelloError::Nonsense(_) => tonic::Status::invalid_argument(error.to_string()),
            // The one code that makes the other end retire.
            HelloError::Amnesia { .. } => tonic::Status::data_loss(error.to_string()),
            HelloError::Stopping => tonic::Status::unavailable(error.to_string()),
            HelloError::Newer { .. }
            | HelloError::OtherService { .. }
            | HelloError::NoMember { .. }
            | HelloError::Removed { .. } => tonic::Status::failed_precondition(error.to_string()),
        }
    }
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// This very replica.
    Myself,
    /// Another member, in this start of it.
    Member {
        /// Its slot.
        slot: Slot,
        /// Its identity.
        replica: ReplicaId,
        /// What it says of itself.
        claim: Claim,
    },
}

impl Peers {
    /// The peers of `me` in a service whose first configuration is this one.
    pub fn new(
        service: ServiceId,
        (me, slot, claim): (ReplicaId, Slot, Claim),
        first: Configuration,
        addresses: Addresses,
        metrics: Arc<Metrics>,
    ) -> Self {
        let seen = BTreeMap::from([(slot, Seen { boot: claim.boot, client_address: addresses.client.clone() })]);
        Peers {
            service,
            me,
            slot,
            claim,
            addresses,
            metrics,
            members: Mutex::new(Members::of(first)),
            outboxes: Mutex::default(),
            seen: Mutex::new(seen),
            dialled: Mutex::default(),
        }
    }

    /// The membership changed, or more is known of it. What waits for those who left is dropped.
    pub fn update(&self, membership: &MembershipStatus) {
        let members = Members::now(membership);
        let slots: BTreeSet<Slot> = members.slots().collect();
        let next = members.newest().next_slot();
        *lock(&self.members) = members;
        // Who is ahead of this replica has a slot that it does not know yet.
        lock(&self.outboxes).retain(|slot, _| slots.contains(slot) || *slot >= next);
    }

    /// Queues a message. It is dropped if its receiver is not connected or its queue is full: the rules repeat themselves.
    pub fn send(&self, outgoing: Outgoing) {
        let outbox = lock(&self.outboxes).get(&outgoing.to).cloned();
        if let Some(outbox) = outbox {
            outbox.push(outgoing);
        }
    }

    /// The queue of a member that was met.
    pub fn outbox(&self, slot: Slot) -> Arc<Outbox> {
        let mut outboxes = lock(&self.outboxes);
        Arc::clone(outboxes.entry(slot).or_insert_with(|| Arc::new(Outbox::new(&self.metrics))))
    }

    /// Whether a stream to this member is up.
    pub fn is_connected(&self, slot: Slot) -> bool {
        lock(&self.outboxes).get(&slot).is_some_and(|outbox| outbox.is_connected())
    }

    /// Waits until no stream to this member is up.
    pub async fn until_parted(&self, slot: Slot) {
        while self.is_connected(slot) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether the member in this slot is spoken to, or may be once this replica knows more.
    pub fn is_told(&self, slot: Slot) -> bool {
        let members = lock(&self.members);
        slot >= members.newest().next_slot() || members.slots().any(|told| told == slot)
    }

    /// Whether all other members are connected.
    pub fn is_complete(&self) -> bool {
        self.config().members().all(|(slot, _)| slot == self.slot || self.is_connected(slot))
    }

    /// Whether no other member is connected.
    pub fn is_alone(&self) -> bool {
        !lock(&self.outboxes).values().any(|outbox| outbox.is_connected())
    }

    pub fn service(&self) -> ServiceId {
        self.service
    }

    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The newest configuration that this replica knows.
    pub fn config(&self) -> Configuration {
        lock(&self.members).newest().clone()
    }

    /// Whether nobody dials this address yet; the caller does from now on.
    pub fn claim_address(&self, address: &str) -> bool {
        lock(&self.dialled).insert(address.to_owned())
    }

    /// Nobody dials this address any more.
    pub fn release_address(&self, address: &str) {
        lock(&self.dialled).remove(address);
    }

    /// What this replica says first.
    pub fn hello(&self) -> v1::PeerHello {
        v1::PeerHello {
            protocol_version: limits::PROTOCOL_VERSION,
            service_id: wire::id_bytes(self.service.as_bytes()),
            replica_id: wire::id_bytes(self.me.as_bytes()),
            boot: self.claim.boot,
            client_address: self.addresses.client.clone(),
            slot: self.slot.get(),
            epoch: lock(&self.members).newest().epoch().get(),
            peer_address: self.addresses.peer.clone(),
            start: self.claim.start,
            holds: Some(convert::encode_mark(self.claim.holds)),
        }
    }

    /// Who it is, by what the other end said first.
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
        let (theirs, epoch) = (Slot::new(hello.slot), Epoch::new(hello.epoch));
        let slot = lock(&self.members).slot_of(self.service, replica, theirs, epoch)?;
        let holds = convert::decode_mark("holds", hello.holds)?;
        Ok(Who::Member { slot, replica, claim: Claim { boot: hello.boot, start: hello.start, holds } })
    }

    /// Checks what the other end said first, asks the core thread whether it forgot anything, and remembers it.
    pub async fn admit(&self, hello: &v1::PeerHello, core: &CoreHandle) -> Result<Who, HelloError> {
        let who = self.meet(hello)?;
        if let Who::Member { slot, replica, claim } = who {
            let met = core.meet(replica, claim).await.map_err(|_| HelloError::Stopping)?;
            met.map_err(|amnesia| HelloError::Amnesia { replica, amnesia })?;
            let seen = Seen { boot: claim.boot, client_address: hello.client_address.clone() };
            lock(&self.seen).insert(slot, seen);
        }
        Ok(who)
    }

    /// Whether a later start of this member was met than this one: then that one is over, or is the copy of a volume.
    pub fn is_superseded(&self, slot: Slot, boot: u64) -> bool {
        lock(&self.seen).get(&slot).is_some_and(|seen| seen.boot > boot)
    }

    /// The member in this slot and where clients reach it, as far as that is known.
    pub fn locate(&self, slot: Slot) -> Option<Leader> {
        let replica = lock(&self.members).newest().member(slot)?;
        let address = lock(&self.seen).get(&slot).map(|seen| seen.client_address.clone()).unwrap_or_default();
        Some(Leader { replica, address })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use lockstep_types::{Change, FaultModel, Genesis};

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
        let addresses = Addresses { client: "one:7400".to_owned(), peer: "one:7401".to_owned() };
        let me = (replica(1), Slot::new(1), Claim { boot: 1, ..Claim::default() });
        Peers::new(genesis.service, me, genesis.configuration(), addresses, Arc::new(Metrics::new()))
    }

    fn hello_of(number: u8) -> v1::PeerHello {
        v1::PeerHello {
            replica_id: vec![number; 16].into(),
            boot: 4,
            client_address: "two:7400".to_owned(),
            slot: u32::from(number),
            ..peers().hello()
        }
    }

    fn slot_of(met: Result<Who, HelloError>) -> Option<Slot> {
        match met {
            Ok(Who::Member { slot, .. }) => Some(slot),
            Ok(Who::Myself) | Err(_) => None,
        }
    }

    #[test]
    fn hello_of_a_member_tells_its_slot_and_address() {
        let peers = peers();
        let Ok(Who::Member { slot, claim, .. }) = peers.meet(&hello_of(2)) else { panic!("a member") };
        assert_eq!((slot, claim.boot), (Slot::new(2), 4));
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
        assert!(matches!(peers().meet(&hello_of(7)), Err(HelloError::NoMember { .. })));
    }

    #[test]
    fn hello_without_an_identity_is_refused() {
        let hello = v1::PeerHello { replica_id: vec![1, 2].into(), ..hello_of(2) };
        assert!(matches!(peers().meet(&hello), Err(HelloError::Nonsense(_))));
    }

    fn changed(peers: &Peers, changes: &[Change]) -> Configuration {
        let next = |config: Configuration, change: &Change| config.apply(change).expect("a change that can be");
        let newest = changes.iter().fold(peers.config(), next);
        let height = lockstep_types::Height::new(9);
        peers.update(&MembershipStatus { committed: newest.clone(), height, settled: true, newest: newest.clone() });
        newest
    }

    #[test]
    fn hello_of_a_removed_replica_is_refused_and_told_so() {
        let peers = peers();
        changed(&peers, &[Change::Remove { slot: Slot::new(2) }]);
        let refused = peers.meet(&hello_of(2)).expect_err("it left");
        assert!(refused.to_string().contains("never returns; give it an empty data directory"), "{refused}");
        assert!(peers.meet(&hello_of(3)).is_ok());
    }

    #[test]
    fn hello_of_a_newcomer_is_taken_once_its_addition_is_known() {
        let peers = peers();
        assert!(peers.meet(&hello_of(7)).is_err());
        changed(&peers, &[Change::AddStandby { replica: ReplicaId::from_bytes([7; 16]) }]);
        assert_eq!(slot_of(peers.meet(&hello_of(7))), Some(Slot::new(4)));
    }

    #[test]
    fn member_that_left_for_good_is_no_longer_dialled() {
        let peers = peers();
        assert!(peers.is_told(Slot::new(2)) && peers.is_told(Slot::new(4)), "r4 may be known to others already");
        changed(&peers, &[Change::Remove { slot: Slot::new(2) }]);
        assert!(!peers.is_told(Slot::new(2)) && peers.is_told(Slot::new(3)));
    }

    #[test]
    fn peers_are_complete_once_every_other_member_is_connected() {
        let peers = peers();
        let (second, third) = (peers.outbox(Slot::new(2)), peers.outbox(Slot::new(3)));
        let _second = second.connect(1);
        assert!(!peers.is_complete());
        let _third = third.connect(1);
        assert!(peers.is_complete());
    }

    #[test]
    fn hello_of_one_who_knows_a_later_membership_is_taken() {
        // This replica was away while r4 joined; it could never catch up if it spoke to nobody that it does not know.
        let ahead = v1::PeerHello { slot: 4, epoch: 3, ..hello_of(7) };
        assert_eq!(slot_of(peers().meet(&ahead)), Some(Slot::new(4)));
        let lying = v1::PeerHello { slot: 2, epoch: 3, ..hello_of(7) };
        assert!(matches!(peers().meet(&lying), Err(HelloError::NoMember { .. })));
    }
}
