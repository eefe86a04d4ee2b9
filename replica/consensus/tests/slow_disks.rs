//! Three healthy voters whose disks take long to sync: a leader is elected all the same. Rounds must not end before any disk
//! has kept up with them.

use std::collections::BTreeMap;

use lockstep_consensus::{Effects, Envelope, Input, Moment, Options, RecordSeq, Recovered, Replica};
use lockstep_types::{FaultModel, Genesis, Height, ReplicaId, ServiceId, Slot};

/// Microseconds between two voters.
const DELAY: u64 = 1_000;

#[allow(clippy::large_enum_variant, reason = "most events are messages")]
enum Event {
    Arrives { from: Slot, envelope: Envelope },
    Synced { at: Slot, upto: RecordSeq },
    Tick { at: Slot },
}

struct Host {
    core: Replica,
    queued: Option<RecordSeq>,
    syncing: bool,
    durable: RecordSeq,
    promised: Vec<(RecordSeq, Envelope)>,
}

struct World {
    hosts: BTreeMap<Slot, Host>,
    events: BTreeMap<(u64, u64), Event>,
    sync: u64,
    count: u64,
}

impl World {
    fn new(sync: u64) -> World {
        let genesis = Genesis {
            service: ServiceId::from_bytes([7; 16]),
            fault_model: FaultModel::Crash,
            voters: (1..=3).map(|number| ReplicaId::from_bytes([number; 16])).collect(),
            machine: "KeyValue".into(),
            sessions_max: 1,
            reply_bytes_max: 1,
            snapshot_bytes: Genesis::SNAPSHOT_BYTES,
        };
        let host = |slot| Host {
            core: Replica::start(
                genesis.service,
                slot,
                Options::default(),
                Recovered::new(genesis.configuration()),
                Moment::default(),
            ),
            queued: None,
            syncing: false,
            durable: RecordSeq::ZERO,
            promised: Vec::new(),
        };
        let hosts = (1..=3).map(Slot::new).map(|slot| (slot, host(slot))).collect();
        let mut world = World { hosts, events: BTreeMap::new(), sync, count: 0 };
        for slot in 1..=3 {
            world.schedule(0, Event::Tick { at: Slot::new(slot) });
        }
        world
    }

    fn schedule(&mut self, time: u64, event: Event) {
        self.count += 1;
        self.events.insert((time, self.count), event);
    }

    fn step(&mut self, now: u64, at: Slot, input: Input) {
        let host = self.hosts.get_mut(&at).expect("a voter");
        if let Input::Durable(upto) = input {
            host.durable = upto;
            host.syncing = false;
        }
        let Effects { send, persist, send_after, .. } = host.core.step(Moment::from_micros(now), input);
        host.queued = persist.last().map(|(seq, _)| *seq).or(host.queued);
        host.promised.extend(send_after);
        let durable = host.durable;
        let released = host.promised.extract_if(.., |(seq, _)| *seq <= durable).map(|(_, envelope)| envelope);
        let messages: Vec<Envelope> = send.into_iter().chain(released).collect();
        let next = if host.syncing { None } else { host.queued.take() };
        host.syncing |= next.is_some();
        if let Some(upto) = next {
            self.schedule(now + self.sync, Event::Synced { at, upto });
        }
        for envelope in messages {
            self.schedule(now + DELAY, Event::Arrives { from: at, envelope });
        }
    }

    /// Microseconds until the first commit.
    fn first_commit(mut self, until: u64) -> Option<u64> {
        while let Some(((now, _), event)) = self.events.pop_first() {
            if now > until {
                return None;
            }
            match event {
                Event::Arrives { from, envelope: Envelope { to, epoch, message } } => {
                    self.step(now, to, Input::Receive { from, epoch, message });
                }
                Event::Synced { at, upto } => self.step(now, at, Input::Durable(upto)),
                Event::Tick { at } => {
                    self.schedule(now + 5_000, Event::Tick { at });
                    if self.hosts[&at].core.deadline() <= Moment::from_micros(now) {
                        self.step(now, at, Input::Tick);
                    }
                }
            }
            if self.hosts.values().any(|host| host.core.committed().height > Height::ZERO) {
                return Some(now);
            }
        }
        None
    }
}

#[test]
fn disks_slower_than_the_election_time_still_elect() {
    for sync_ms in [1, 50, 200, 300, 450, 500, 600, 900, 2_000, 3_000] {
        let commit = World::new(sync_ms * 1_000).first_commit(60_000_000);
        let commit = commit.unwrap_or_else(|| panic!("no leader within a minute with syncs of {sync_ms} ms"));
        println!("syncs of {sync_ms} ms: first commit after {} ms", commit / 1_000);
    }
}
