//! A few voters on real disks, without threads: everything happens in the turns of one test.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use lockstep_consensus::{Moment, RoleName};
use lockstep_engine::{
    Answer, Engine, EngineOptions, Event, Identity, Job, JobDone, Operation, PeerMessage, SnapshotError, Status, Token,
};
use lockstep_machine::KeyValueWithFaults;
use lockstep_types::kv::{KvReply, KvRequest};
use lockstep_types::{Command, Epoch, FaultModel, Genesis, LogTime, Outcome, ReplicaId, ServiceId, Slot};
use lockstep_wal::{FileDisk, Writer};
use tempfile::TempDir;

/// A block of one put is about 400 bytes: some ten of them between two snapshots.
const SNAPSHOT_BYTES: u64 = 4096;

pub struct Host {
    pub folder: PathBuf,
    /// Survives restarts: what goes wrong once goes wrong once.
    pub machine: Arc<KeyValueWithFaults>,
    /// None: it is down.
    pub up: Option<Up>,
    /// Jobs are refused as on a full disk.
    pub full: bool,
    /// Jobs wait.
    pub busy: bool,
}

pub struct Up {
    pub disk: Arc<FileDisk>,
    pub engine: Engine<FileDisk>,
    pub writer: Writer<FileDisk>,
    pub jobs: VecDeque<Job>,
}

pub struct Group {
    _root: TempDir,
    pub genesis: Genesis,
    pub options: EngineOptions,
    pub hosts: BTreeMap<Slot, Host>,
    pub now: Moment,
    pub tokens: u64,
    pub answers: BTreeMap<Token, Answer>,
    /// Messages with execution digests so far.
    pub sent_digests: usize,
}

pub fn slot(number: u32) -> Slot {
    Slot::new(number)
}

impl Group {
    pub fn start(count: u32) -> Group {
        Group::start_with(count, EngineOptions::default())
    }

    pub fn start_with(count: u32, options: EngineOptions) -> Group {
        let root = tempfile::tempdir().unwrap();
        let genesis = Genesis {
            service: ServiceId::from_bytes([5; 16]),
            fault_model: FaultModel::Crash,
            voters: (1..=count).map(|number| ReplicaId::from_bytes([number as u8; 16])).collect(),
            machine: KeyValueWithFaults::NAME.into(),
            sessions_max: 64,
            reply_bytes_max: 1 << 20,
            snapshot_bytes: SNAPSHOT_BYTES,
        };
        let hosts = (1..=count)
            .map(|number| {
                (slot(number), {
                    let machine = Arc::new(KeyValueWithFaults::named(format!("r{number}")));
                    Host { folder: root.path().join(number.to_string()), machine, up: None, full: false, busy: false }
                })
            })
            .collect();
        let now = Moment::from_micros(1_000_000);
        let mut group =
            Group { _root: root, genesis, options, hosts, now, tokens: 0, answers: BTreeMap::new(), sent_digests: 0 };
        (1..=count).for_each(|number| group.up(number));
        group.until("someone leads", |group| group.leader().is_some());
        group
    }

    pub fn up(&mut self, number: u32) {
        let host = self.hosts.get_mut(&slot(number)).unwrap();
        let disk = Arc::new(FileDisk::open(&host.folder).unwrap());
        let mut identity = Identity::start(&*disk, [number as u8; 16]).unwrap();
        identity.adopt(self.genesis.clone(), &*disk).unwrap();
        let options = EngineOptions { machine: Some(Arc::clone(&host.machine) as _), ..self.options.clone() };
        let mut engine = Engine::start(Arc::clone(&disk), &identity, options, self.now).unwrap();
        let writer = engine.take_writer();
        host.up = Some(Up { disk, engine, writer, jobs: VecDeque::new() });
    }

    pub fn down(&mut self, number: u32) {
        self.hosts.get_mut(&slot(number)).unwrap().up = None;
    }

    pub fn folder(&self, number: u32) -> &Path {
        &self.hosts[&slot(number)].folder
    }

    pub fn status(&self, number: u32) -> Status {
        self.hosts[&slot(number)].up.as_ref().expect("it is up").engine.status(self.now)
    }

    pub fn leader(&self) -> Option<u32> {
        let up = self.hosts.iter().filter(|(_, host)| host.up.is_some()).map(|(slot, _)| slot.get());
        up.filter(|number| self.status(*number).role == RoleName::Leader)
            .find(|number| self.status(*number).not_ready.is_none())
    }

    /// One millisecond: every engine is polled, every batch and job done, every message delivered.
    pub fn turn(&mut self) {
        self.now = self.now.plus(1_000);
        let wall = LogTime::from_millis(1_700_000_000_000 + self.now.as_micros() / 1_000);
        let mut sent: Vec<(Slot, Slot, Epoch, PeerMessage)> = Vec::new();
        for (from, host) in &mut self.hosts {
            let Some(up) = &mut host.up else { continue };
            let output = up.engine.poll(self.now, wall).unwrap();
            sent.extend(output.send.into_iter().map(|outgoing| (*from, outgoing.to, outgoing.epoch, outgoing.message)));
            self.answers.extend(output.replies);
            if let Some(batch) = output.write {
                up.writer.commit(&batch).unwrap();
                up.engine.handle(self.now, Event::Written(batch.seq()));
            }
            if let Some(cut) = output.cut {
                up.writer.cut(&cut).unwrap();
            }
            up.jobs.extend(output.jobs);
            if !host.busy
                && let Some(job) = up.jobs.pop_front()
            {
                let done = match job {
                    Job::Write(_) if host.full => JobDone::NotTaken(SnapshotError::Disk {
                        action: "write",
                        file: "a chunk".to_owned(),
                        source: io::ErrorKind::StorageFull.into(),
                    }),
                    job => job.run(&*up.disk),
                };
                up.engine.handle(self.now, Event::Job(done));
            }
        }
        for (from, to, epoch, message) in sent {
            self.sent_digests += usize::from(matches!(message, PeerMessage::Digests { .. }));
            if let Some(up) = self.hosts.get_mut(&to).and_then(|host| host.up.as_mut()) {
                up.engine.handle(self.now, Event::Peer { from, epoch, message });
            }
        }
    }

    pub fn until(&mut self, what: &str, holds: impl Fn(&Group) -> bool) {
        for _ in 0..30_000 {
            if holds(self) {
                return;
            }
            self.turn();
        }
        let up: Vec<_> = self.hosts.iter().filter(|(_, host)| host.up.is_some()).map(|(slot, _)| slot.get()).collect();
        panic!("{what} never holds: {:#?}", up.into_iter().map(|number| self.status(number)).collect::<Vec<_>>());
    }

    /// Something happens to one of them.
    pub fn take(&mut self, number: u32, event: Event) {
        let now = self.now;
        self.hosts.get_mut(&slot(number)).unwrap().up.as_mut().expect("it is up").engine.handle(now, event);
    }

    /// Hands a request in; the answer comes in some later turn.
    pub fn send(&mut self, number: u32, operation: Operation) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        let event = Event::Request { token, operation, deadline: self.now.plus(20_000_000) };
        self.take(number, event);
        token
    }

    pub fn ask(&mut self, number: u32, operation: Operation) -> Answer {
        let token = self.send(number, operation);
        self.until("the request is answered", |group| group.answers.contains_key(&token));
        self.answers.remove(&token).unwrap()
    }

    /// Writes so many values of a quarter of a kilobyte.
    pub fn write(&mut self, count: u32) {
        self.write_values(count, 256);
    }

    pub fn write_values(&mut self, count: u32, bytes: usize) {
        let at = self.leader().expect("someone leads");
        for number in 0..count {
            self.put(at, format!("key {}", (self.tokens + u64::from(number)) % 50), bytes);
        }
    }

    pub fn put(&mut self, at: u32, key: String, bytes: usize) {
        let body = KvRequest::Put { key: key.into(), value: vec![b'x'; bytes].into() }.encode();
        let answer = self.ask(at, Operation::Command(Command::Plain { body }.encode()));
        assert!(matches!(answer, Answer::Outcome(Outcome::Replied { .. })), "{answer:?}");
    }

    pub fn get(&mut self, number: u32, key: &str) -> KvReply {
        match self.ask(number, Operation::Read(KvRequest::Get { key: key.to_owned().into() }.encode())) {
            Answer::Read(reply) => KvReply::decode(reply).unwrap(),
            other => panic!("unexpected answer {other:?}"),
        }
    }

    pub fn quiet(&mut self) {
        self.quiet_but(0);
    }

    /// As [`Self::quiet`], whatever this one is.
    pub fn quiet_but(&mut self, but: u32) {
        self.until("all that are up are equal, and have equal snapshots", |group| {
            let up = group.hosts.iter().filter(|(slot, host)| host.up.is_some() && slot.get() != but);
            let up = up.map(|(slot, _)| group.status(slot.get()));
            let snapshots = |status: &Status| (status.snapshots.newest, status.snapshots.agreed);
            let all: Vec<_> = up.map(|status| (status.applied, status.digest, snapshots(&status))).collect();
            let agreed = all.iter().all(|(_, _, (newest, agreed))| newest == agreed);
            agreed && all.windows(2).all(|two| two[0] == two[1]) && group.leader().is_some()
        });
    }

    pub fn files(&self, number: u32, which: impl Fn(&str) -> bool) -> Vec<String> {
        let entries = fs::read_dir(self.folder(number)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| which(name));
        names.sort();
        names
    }
}
