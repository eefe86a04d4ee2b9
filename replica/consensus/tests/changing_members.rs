//! A seeded search for what the scripts miss: a few replicas, messages lost, doubled and out of order, power cuts, snapshots,
//! and members that come and go all the time. Who was removed is thrown away, disk and all, as soon as a replica says that
//! the change is settled.
//!
//! Checked at every step: one block per height is committed; a read sees all that was committed before it. At the end, with
//! everyone back and no losses: what was committed is still there, what a chain proved to be committed was, and the service
//! goes on, without those who were thrown away.
//!
//! `LOCKSTEP_SEEDS=FROM..TO` runs other seeds. A failure names its seed.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_consensus::{
    Effects, Envelope, Input, Message, Moment, Options, ReadId, ReadOutcome, Record, RecordSeq, Recovered, Replica,
    RoleName,
};
use lockstep_types::block::encode_body;
use lockstep_types::{
    Block, BlockRef, Change, Configuration, Digest, FaultModel, Genesis, Height, LogTime, ReplicaId, ServiceId, Slot,
    SnapshotRef,
};

const SERVICE: ServiceId = ServiceId::from_bytes([7; 16]);
const STEPS: u32 = 4_000;

/// Splitmix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        if of.is_empty() { None } else { Some(of[self.below(of.len() as u64) as usize]) }
    }
}

#[derive(Default)]
struct Host {
    core: Option<Replica>,
    synced: Vec<Record>,
    queued: Vec<(RecordSeq, Record)>,
    promised: Vec<(RecordSeq, Envelope)>,
    durable: RecordSeq,
    blocks: BTreeMap<Height, Block>,
    snapshot: Option<SnapshotRef>,
    /// Up to here its commits were compared with everyone's.
    checked: Height,
}

#[derive(Default)]
struct Tally {
    commits: u64,
    changes: u64,
    thrown_away: u64,
    installs: u64,
    leads: u64,
    reads: u64,
}

struct World {
    dice: Dice,
    now: Moment,
    options: Options,
    genesis: Configuration,
    hosts: BTreeMap<Slot, Host>,
    network: Vec<(Slot, Envelope)>,
    /// Two sides that do not hear each other, a bit for each slot; 0: all hear all.
    sides: u64,
    committed: BTreeMap<Height, Digest>,
    /// What some chain proved to be committed.
    proved: BTreeMap<Height, Digest>,
    snapshots: BTreeMap<SnapshotRef, (LogTime, Configuration)>,
    gone: BTreeSet<Slot>,
    /// The newest configuration that anyone knew to be committed.
    newest: Configuration,
    reads: BTreeMap<u64, Height>,
    identities: u8,
    tally: Tally,
}

impl World {
    fn new(seed: u64) -> World {
        let mut dice = Dice(seed);
        let voters = 1 + dice.below(4) as u8;
        let genesis = Genesis {
            service: SERVICE,
            fault_model: FaultModel::Crash,
            voters: (1..=voters).map(|number| ReplicaId::from_bytes([number; 16])).collect(),
            machine: "KeyValue".into(),
            sessions_max: 1,
            reply_bytes_max: 1,
            snapshot_bytes: Genesis::SNAPSHOT_BYTES,
        }
        .configuration();
        let mut world = World {
            dice,
            now: Moment::from_micros(1_000_000),
            options: Options { window: 4, ..Options::default() },
            newest: genesis.clone(),
            genesis,
            hosts: BTreeMap::new(),
            network: Vec::new(),
            sides: 0,
            committed: BTreeMap::new(),
            proved: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            gone: BTreeSet::new(),
            reads: BTreeMap::new(),
            identities: voters,
            tally: Tally::default(),
        };
        world.admit_members();
        world
    }

    /// Starts whoever has a slot and no disk yet, as an operator would once the change is committed.
    fn admit_members(&mut self) {
        let members: Vec<Slot> = self.newest.members().map(|(slot, _)| slot).collect();
        for slot in members {
            if !self.hosts.contains_key(&slot) && !self.gone.contains(&slot) {
                self.hosts.insert(slot, Host::default());
                self.restart(slot);
            }
        }
    }

    fn restart(&mut self, slot: Slot) {
        let host = self.hosts.get_mut(&slot).expect("a host");
        let mut recovered = match host.snapshot {
            Some(snapshot) => {
                let (log_time, configuration) = self.snapshots[&snapshot].clone();
                Recovered::above(snapshot.block, log_time, configuration)
            }
            None => Recovered::new(self.genesis.clone()),
        };
        host.blocks.clear();
        host.checked = Height::ZERO;
        for record in &host.synced {
            match record {
                Record::Block(block) => {
                    if recovered.block(block.header(), block.hash()) {
                        host.blocks.split_off(&block.height());
                        host.blocks.insert(block.height(), block.clone());
                    }
                }
                Record::Base(block) => recovered.base(*block),
                Record::Promise(promise) => recovered.promise(*promise),
            }
        }
        assert_eq!(recovered.missing(), None, "the log of {slot} holds a chain");
        host.core = Some(Replica::start(SERVICE, slot, self.options.clone(), recovered, self.now));
        self.step(slot, Input::Tick);
        if let Some(snapshot) = self.hosts.get(&slot).and_then(|host| host.snapshot) {
            self.step(slot, Input::Offer(snapshot));
        }
    }

    fn power_cut(&mut self, slot: Slot) {
        let Some(host) = self.hosts.get_mut(&slot) else { return };
        let (synced, snapshot) = (std::mem::take(&mut host.synced), host.snapshot);
        *host = Host { synced, snapshot, ..Host::default() };
    }

    fn step(&mut self, slot: Slot, input: Input) {
        let Some(core) = self.hosts.get_mut(&slot).and_then(|host| host.core.as_mut()) else { return };
        let led = core.role() == RoleName::Leader;
        let effects = core.step(self.now, input);
        self.tally.leads += u64::from(!led && core.role() == RoleName::Leader);
        self.absorb(slot, effects);
        self.check(slot);
    }

    fn absorb(&mut self, slot: Slot, effects: Effects) {
        let Effects { send, persist, send_after, serve, install, proposed: _, committed: _, reads, rejected: _ } =
            effects;
        let host = self.hosts.get_mut(&slot).expect("a host");
        self.network.extend(send.into_iter().map(|envelope| (slot, envelope)));
        for (seq, record) in persist {
            if let Record::Block(block) = &record {
                host.blocks.split_off(&block.height());
                host.blocks.insert(block.height(), block.clone());
            }
            host.queued.push((seq, record));
        }
        for (seq, envelope) in send_after {
            if seq <= host.durable {
                self.network.push((slot, envelope));
            } else {
                host.promised.push((seq, envelope));
            }
        }
        for serve in serve {
            let blocks = host.blocks.range(serve.after.next()..=serve.upto).map(|(_, block)| block.clone()).collect();
            let epoch = host.core.as_ref().expect("it stepped").config().epoch();
            let message = Message::Fetched { after: serve.after, blocks: Ok(blocks), committed: serve.committed };
            self.network.push((slot, Envelope { to: serve.to, epoch, message }));
        }
        for (id, outcome) in reads {
            let asked = self.reads.remove(&id.0).expect("a read is answered once");
            if let ReadOutcome::At(height) = outcome {
                assert!(height >= asked, "{slot} answers a read at {height}, when {asked} was committed before it");
                self.tally.reads += 1;
            }
        }
        if let Some((_, snapshot)) = install {
            if self.dice.chance(20) {
                self.step(slot, Input::InstallFailed);
            } else {
                self.hosts.get_mut(&slot).expect("it stepped").snapshot = Some(snapshot);
                let (log_time, configuration) = self.snapshots[&snapshot].clone();
                self.tally.installs += 1;
                self.step(slot, Input::Installed { snapshot, log_time, configuration });
                self.step(slot, Input::Applied { height: snapshot.block.height, digest: Digest::ZERO });
            }
        }
    }

    fn check(&mut self, slot: Slot) {
        let Some(host) = self.hosts.get_mut(&slot) else { return };
        let Some(core) = &host.core else { return };
        let (chain, committed) = (core.chain(), core.committed());
        for height in (host.checked.get()..=committed.height.get()).map(Height::new) {
            let Some(block) = chain.at(height) else { continue };
            let known = *self.committed.entry(height).or_insert_with(|| {
                self.tally.commits += 1;
                block.hash
            });
            assert_eq!(known, block.hash, "{slot} commits another block at {height}: {core}");
        }
        host.checked = committed.height;
        let proved = chain.proved(chain.head().height);
        if let Some(block) = chain.at(proved) {
            let known = *self.proved.entry(proved).or_insert(block.hash);
            assert_eq!(known, block.hash, "{slot} proves another block at {proved}: {core}");
        }
        let membership = core.membership();
        if membership.configuration.epoch() > self.newest.epoch() {
            self.newest = membership.configuration.clone();
            self.tally.changes += 1;
        }
        let settled = membership.settled;
        let removed: Vec<Slot> = membership.configuration.removed().keys().copied().collect();
        // Two of three are thrown away at once; the third stays and must not disturb.
        for slot in removed.into_iter().filter(|slot| settled && slot.get() % 3 != 0) {
            if self.gone.insert(slot) {
                self.hosts.remove(&slot);
                self.tally.thrown_away += 1;
            }
        }
    }

    fn running(&self) -> Vec<Slot> {
        self.hosts.iter().filter(|(_, host)| host.core.is_some()).map(|(slot, _)| *slot).collect()
    }

    fn leaders(&self) -> Vec<Slot> {
        let leads = |host: &Host| host.core.as_ref().is_some_and(|core| core.role() == RoleName::Leader);
        self.hosts.iter().filter(|(_, host)| leads(host)).map(|(slot, _)| *slot).collect()
    }

    fn sync(&mut self, slot: Slot) {
        let Some(host) = self.hosts.get_mut(&slot) else { return };
        let Some((last, _)) = host.queued.last() else { return };
        let last = *last;
        host.durable = last;
        host.synced.extend(host.queued.drain(..).map(|(_, record)| record));
        let promised = std::mem::take(&mut host.promised);
        self.network.extend(promised.into_iter().map(|(_, envelope)| (slot, envelope)));
        self.step(slot, Input::Durable(last));
    }

    fn deliver(&mut self, index: usize, keep: bool) {
        let (from, envelope) = if keep { self.network[index].clone() } else { self.network.remove(index) };
        let Envelope { to, epoch, message } = envelope;
        let side = |slot: Slot| self.sides >> (slot.get() % 64) & 1;
        if side(from) != side(to) || self.gone.contains(&from) {
            return;
        }
        self.step(to, Input::Receive { from, epoch, message });
    }

    fn propose(&mut self, at: Slot) {
        let body = encode_body(&[self.now.as_micros().to_le_bytes().to_vec().into()]);
        self.step(at, Input::Propose { body, wall: LogTime::from_millis(self.now.as_micros() / 1_000) });
    }

    fn random_change(&mut self) -> Change {
        let standbys: Vec<Slot> = self.newest.standbys().keys().copied().collect();
        let members: Vec<Slot> = self.newest.members().map(|(slot, _)| slot).collect();
        // Three or four voters most of the time, and now and then one.
        let few = self.newest.voters().len() < 3;
        if !standbys.is_empty() && self.dice.chance(50) {
            Change::Promote { slot: self.dice.pick(&standbys).expect("not empty") }
        } else if members.len() < 6 && self.identities < 250 && self.dice.chance(if few { 85 } else { 30 }) {
            self.identities += 1;
            Change::AddStandby { replica: ReplicaId::from_bytes([self.identities; 16]) }
        } else {
            Change::Remove { slot: self.dice.pick(&members).expect("a voter") }
        }
    }

    fn snapshot(&mut self, slot: Slot) {
        let Some(host) = self.hosts.get_mut(&slot) else { return };
        let Some(core) = &host.core else { return };
        let block: BlockRef = core.committed();
        if block.height == Height::ZERO || !host.blocks.contains_key(&block.height) {
            return;
        }
        let snapshot = SnapshotRef { block, manifest: block.hash };
        let log_time = host.blocks[&block.height].header().log_time;
        let configuration = core.chain().configuration_above(block.height).clone();
        let (_, known) = self.snapshots.entry(snapshot).or_insert_with(|| (log_time, configuration.clone()));
        assert_eq!(*known, configuration, "two configurations above {block}");
        host.snapshot = Some(snapshot);
        self.step(slot, Input::Applied { height: block.height, digest: Digest::ZERO });
        self.step(slot, Input::Offer(snapshot));
        // The log below goes only once it is on the disk.
        self.sync(slot);
        let Some(host) = self.hosts.get_mut(&slot) else { return };
        host.synced.retain(|record| match record {
            Record::Block(other) => other.height() > block.height,
            Record::Base(_) | Record::Promise(_) => true,
        });
        self.step(slot, Input::Forget(block.height));
    }

    fn random_step(&mut self) {
        self.now = self.now.plus(self.dice.below(4_000));
        for slot in self.running() {
            if self.hosts[&slot].core.as_ref().is_some_and(|core| core.deadline() <= self.now) && self.dice.chance(80) {
                self.step(slot, Input::Tick);
            }
        }
        let running = self.running();
        let Some(slot) = self.dice.pick(&running) else { return };
        match self.dice.below(1_000) {
            0..=3 => self.power_cut(slot),
            4..=6 => self.sides = if self.dice.chance(40) { 0 } else { self.dice.below(u64::MAX) },
            7 => running.iter().for_each(|slot| self.power_cut(*slot)),
            8..=11 => self.snapshot(slot),
            12..=15 => {
                let target = self.dice.pick(&running);
                self.step(slot, Input::HandOver { target });
            }
            16..=60 => {
                let change = self.random_change();
                for leader in self.leaders() {
                    self.step(leader, Input::Change(change));
                }
            }
            61..=120 => self.leaders().into_iter().for_each(|leader| self.propose(leader)),
            121..=140 => {
                let id = self.tally.reads + 1_000 * u64::from(STEPS) + self.now.as_micros();
                if !self.reads.contains_key(&id) {
                    let committed = self.committed.last_key_value().map_or(Height::ZERO, |(height, _)| *height);
                    self.reads.insert(id, committed);
                    self.step(slot, Input::Read(ReadId(id)));
                }
            }
            141..=340 => self.sync(slot),
            341..=999 => {
                // Mostly oldest first, now and then any; few are lost, fewer doubled.
                for _ in 0..4 {
                    let count = self.network.len() as u64;
                    if count > 0 {
                        let index = if self.dice.chance(70) { 0 } else { self.dice.below(count) };
                        match self.dice.below(100) {
                            0..=4 => drop(self.network.remove(index as usize)),
                            5..=7 => self.deliver(index as usize, true),
                            8..=99 => self.deliver(index as usize, false),
                            roll => unreachable!("{roll} of 100"),
                        }
                    }
                }
            }
            roll => unreachable!("{roll} of 1000"),
        }
        let down: Vec<Slot> = self
            .hosts
            .iter()
            .filter(|(slot, host)| host.core.is_none() && !self.gone.contains(slot))
            .map(|(slot, _)| *slot)
            .collect();
        if self.dice.chance(5)
            && let Some(slot) = self.dice.pick(&down)
        {
            // What waited for answers before the power cut is asked anew.
            self.restart(slot);
        }
        self.admit_members();
    }

    /// Everyone back, no losses: the service goes on, and holds all that was committed.
    fn heal(&mut self) {
        self.sides = 0;
        self.network.clear();
        for slot in self.hosts.keys().copied().collect::<Vec<_>>() {
            if !self.gone.contains(&slot) {
                self.power_cut(slot);
                self.restart(slot);
            }
        }
        let before = self.committed.last_key_value().map_or(Height::ZERO, |(height, _)| *height);
        for _ in 0..6_000 {
            self.now = self.now.plus(5_000);
            for slot in self.running() {
                self.step(slot, Input::Tick);
                self.sync(slot);
            }
            for _ in 0..self.network.len() {
                self.deliver(0, false);
            }
            self.admit_members();
            for leader in self.leaders() {
                let head = self.hosts[&leader].core.as_ref().expect("it leads").head().height;
                if head < before.plus(5) {
                    self.propose(leader);
                }
            }
            if self.at_rest(before) {
                return self.compare();
            }
        }
        let lines: Vec<String> =
            self.hosts.values().filter_map(|host| host.core.as_ref()).map(ToString::to_string).collect();
        panic!("the service does not go on above {before}; {} of all:\n{}", self.newest, lines.join("\n"));
    }

    /// Whether all members of the newest configuration hold, and know to be committed, blocks above `before`.
    fn at_rest(&self, before: Height) -> bool {
        self.newest.members().all(|(slot, _)| {
            self.hosts.get(&slot).and_then(|host| host.core.as_ref()).is_some_and(|core| {
                core.committed().height > before.plus(2) && core.membership().settled && core.config() == &self.newest
            })
        })
    }

    fn compare(&self) {
        let (slot, _) = self.newest.voters().first_key_value().expect("a voter");
        let core = self.hosts[slot].core.as_ref().expect("all are back");
        for (height, hash) in self.committed.iter().chain(&self.proved) {
            if let Some(block) = core.chain().at(*height) {
                assert_eq!(block.hash, *hash, "{height} was committed or proved, and lost");
            }
            assert!(
                self.committed.get(height).is_none_or(|committed| committed == hash),
                "{height} was not the proved one"
            );
        }
    }
}

fn run(seed: u64) -> Tally {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.random_step();
    }
    world.heal();
    world.tally
}

#[test]
fn members_that_come_and_go_lose_nothing() {
    let seeds = std::env::var("LOCKSTEP_SEEDS").unwrap_or_else(|_| "0..60".to_owned());
    let (from, to) = seeds.split_once("..").expect("FROM..TO");
    let mut sum = Tally::default();
    for seed in from.parse().expect("a number")..to.parse().expect("a number") {
        let tally =
            std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|_| panic!("LOCKSTEP_SEEDS={seed}..{}", seed + 1));
        sum.commits += tally.commits;
        sum.changes += tally.changes;
        sum.thrown_away += tally.thrown_away;
        sum.installs += tally.installs;
        sum.leads += tally.leads;
        sum.reads += tally.reads;
    }
    println!(
        "{} commits, {} changes, {} thrown away, {} snapshots installed, {} leads, {} reads",
        sum.commits, sum.changes, sum.thrown_away, sum.installs, sum.leads, sum.reads
    );
    assert!(sum.changes > 0 && sum.thrown_away > 0 && sum.installs > 0 && sum.reads > 0, "the search reached nothing");
}
