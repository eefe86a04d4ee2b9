//! Replicas, clients, network, disks and clocks of one run, and the one queue of events that drives them.
//!
//! | module | what it holds |
//! |---|---|
//! | `requests`, `clients` | what clients ask, and what they are told |
//! | `faults` | what goes wrong |
//! | `amnesia` | volumes restored from an old copy |
//! | `divergence` | states with a flipped bit, and what must become of them |
//! | `members` | an operator that replaces, adds and removes members |
//! | `healing` | what must hold once the faults are over |

mod amnesia;
mod clients;
mod divergence;
mod faults;
mod healing;
mod members;
mod requests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use lockstep_consensus::{Message, Moment, RoleName};
use lockstep_engine::witness::Mark;
use lockstep_engine::{
    Amnesia, Answer, Claim, DivergenceCounters, Engine, EngineOptions, Event as EngineEvent, Identity, Job, JobDone,
    MembershipStatus, Operation, Output, PeerMessage, Refusal, SnapshotCounters, StateDoubt, Status, Token,
};
use lockstep_machine::KeyValueWithFaults;
use lockstep_session::{
    Action, Answer as ClientAnswer, AttemptId, Input, Operation as ClientOperation, Outcome, Refusal as ClientRefusal,
    RefusalKind, Target, Ticket,
};
use lockstep_types::kv::{Expected, KvRequest};
use lockstep_types::{
    Change, Configuration, Epoch, FaultModel, Genesis, Height, LogTime, Outcome as LogOutcome, ReplicaId, ServiceId,
    Slot, View,
};
use lockstep_wal::{BatchSeq, WalId, Writer};

use crate::checkers::{Checkers, Promised, Violation, require, slot};
use crate::client::{Client, Request, What};
use crate::counters::{Counters, Kind};
use crate::disk::SimDisk;
use crate::plan::{Link, Plan, Scenario};
use crate::random::Random;
use crate::trace::Trace;
use crate::{Micros, SECOND};
use members::{Life, Operation as Members};

/// Bytes of one block: far more than the clients' requests fill, and less than the smallest segment holds.
const BLOCK_BYTES: usize = 256 << 10;

/// Events at one moment after which time is taken to stand still.
const EVENTS_AT_ONCE_MAX: u64 = 200_000;

/// One of how many acknowledgements is looked up on the sender's disk.
const CHECK_ONE_IN: u64 = 200;

/// In place of a client's number: a read from outside all sessions, sent to a replica of the run's choice, above all to one
/// that believes to lead.
const MONITOR: usize = usize::MAX;

/// Where the events of a process come from: clients, peers, itself.
const SOURCES: usize = 3;

/// A run.
pub(crate) struct World {
    pub now: Micros,
    pub plan: Plan,
    pub counters: Counters,
    pub trace: Trace,
    random: Random,
    queue: BTreeMap<(Micros, u64), Event>,
    order: u64,
    hosts: Vec<Host>,
    clients: Vec<Client>,
    checkers: Checkers,
    /// From, to: nothing passes.
    cut: Vec<Vec<bool>>,
    /// Client, replica: nothing passes before then.
    doors_cut: Vec<Vec<Micros>>,
    /// When the last message on a link arrives: later ones do not overtake it.
    peers_busy: Vec<Vec<Micros>>,
    doors_busy: Vec<Vec<(Micros, Micros)>>,
    phase: Phase,
    /// What clients still have to take: client, generation, input. The first is being taken.
    inputs: VecDeque<(usize, u64, Input)>,
    /// Rounds asked about in pre-checks, by replica.
    asked: Vec<u64>,
    genesis: Genesis,
    /// Committed configurations as they became known, each with the height of its change.
    configs: Vec<(Height, Configuration)>,
    /// The newest epoch that is settled.
    settled: Epoch,
    /// The change of membership under way.
    operation: Option<Members>,
    /// Identities that retired and are still to be replaced.
    retired: VecDeque<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Chaos,
    /// All faults are gone; this client shows that it is served.
    Probing {
        client: usize,
        until: Micros,
    },
    /// All clients were served; the replicas become equal.
    Converging {
        until: Micros,
    },
    Done,
}

struct Host {
    id: ReplicaId,
    life: Life,
    disk: Arc<SimDisk>,
    /// Its monotonic clock is ahead of the run's by this.
    offset: Micros,
    /// Its wall clock is ahead by this many milliseconds.
    wall_ms: u64,
    /// Number of starts; events of an earlier process are void.
    process: u64,
    state: State,
    next_token: u64,
    tokens: BTreeMap<Token, Asker>,
    wake_at: Micros,
    poll_scheduled: bool,
    /// Work on snapshots, one after the other.
    jobs: VecDeque<Job>,
    job_runs: bool,
    /// What was counted of this process's snapshots.
    snapshots: SnapshotCounters,
    /// The machine, whose faults happen once in the life of a disk.
    machine: Arc<KeyValueWithFaults>,
    /// What was counted of this process's divergences.
    divergences: DivergenceCounters,
    /// How its state stood after the last step.
    doubt: Option<StateDoubt>,
    hangs_until: Micros,
    /// Stands still until then, by source of events: after that they come in no particular order of sources.
    paused_until: [Micros; SOURCES],
    role: RoleName,
    view: View,
    /// What this start of it says of itself.
    claim: Claim,
    /// The starts of others that this start of it has met.
    met: BTreeMap<usize, u64>,
    /// An old copy of its volume.
    copy: Option<amnesia::Copy>,
    /// It was given an old copy; these remember more than that.
    forgot: Option<Vec<usize>>,
}

impl Host {
    fn new(replica: usize, disk: Arc<SimDisk>, id: ReplicaId, life: Life, random: &mut Random) -> Self {
        Host {
            id,
            life,
            disk,
            offset: random.below(1 << 40),
            wall_ms: 1_800_000_000_000 + random.below(10_000),
            process: 0,
            state: State::Down,
            next_token: 0,
            tokens: BTreeMap::new(),
            wake_at: Micros::MAX,
            poll_scheduled: false,
            jobs: VecDeque::new(),
            job_runs: false,
            snapshots: SnapshotCounters::default(),
            machine: Arc::new(KeyValueWithFaults::named(slot(replica).to_string())),
            divergences: DivergenceCounters::default(),
            doubt: None,
            hangs_until: 0,
            paused_until: [0; SOURCES],
            role: RoleName::Follower,
            view: View::ZERO,
            claim: Claim::default(),
            met: BTreeMap::new(),
            copy: None,
            forgot: None,
        }
    }
}

enum State {
    Down,
    Starting(Box<Engine<SimDisk>>),
    Up { engine: Box<Engine<SimDisk>>, writer: Writer<SimDisk> },
}

/// Who waits for an answer. For the monitor the generation is what had been answered when it asked, the attempt the key.
#[derive(Clone, Debug)]
struct Asker {
    client: usize,
    generation: u64,
    attempt: AttemptId,
    operation: ClientOperation,
}

enum Event {
    Deliver {
        from: usize,
        to: usize,
        epoch: Epoch,
        message: PeerMessage,
    },
    Wake {
        replica: usize,
        process: u64,
    },
    Poll {
        replica: usize,
        process: u64,
    },
    Written {
        replica: usize,
        process: u64,
        batch: BatchSeq,
    },
    JobDone {
        replica: usize,
        process: u64,
        done: Box<JobDone>,
    },
    Started {
        replica: usize,
        process: u64,
    },
    Restart {
        replica: usize,
    },
    Request {
        asker: Asker,
        target: usize,
        timeout: Micros,
    },
    Answered {
        client: usize,
        generation: u64,
        target: usize,
        id: AttemptId,
        answer: ClientAnswer,
        leader: Option<Target>,
    },
    Disconnected {
        client: usize,
        generation: u64,
        target: usize,
        unsent: Vec<AttemptId>,
    },
    ClientWake {
        client: usize,
        generation: u64,
        at: Micros,
    },
    ClientWorks {
        client: usize,
    },
    Monitor,
    Fault(Fault),
    MendLinks,
    Crash {
        replica: usize,
        process: u64,
        power: bool,
    },
    Operate,
    Heal,
    Compare,
}

impl Event {
    /// The replica whose process takes it, and from which of its sources.
    fn wakes(&self) -> Option<(usize, usize)> {
        match self {
            Event::Request { target: replica, .. } => Some((*replica, 0)),
            Event::Deliver { to: replica, .. } => Some((*replica, 1)),
            Event::Wake { replica, .. }
            | Event::Poll { replica, .. }
            | Event::Written { replica, .. }
            | Event::JobDone { replica, .. }
            | Event::Started { replica, .. } => Some((*replica, 2)),
            Event::Restart { .. }
            | Event::Answered { .. }
            | Event::Disconnected { .. }
            | Event::ClientWake { .. }
            | Event::ClientWorks { .. }
            | Event::Monitor
            | Event::Fault(_)
            | Event::MendLinks
            | Event::Crash { .. }
            | Event::Operate
            | Event::Heal
            | Event::Compare => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Partition,
    Crash,
    Blackout,
    HandOver,
    Hang,
    Pause,
    WallJump,
    ClientCrash,
    ClientCut,
    DiskLoss,
    Restore,
    Reshape,
    BitFlip,
}

impl World {
    pub fn new(seed: u64, scenario: Scenario, print: bool) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(scenario, &mut random);
        let count = plan.replicas;
        let service = ServiceId::from_bytes(random.bytes());
        let ids: Vec<ReplicaId> = (0..count).map(|_| ReplicaId::from_bytes(random.bytes())).collect();
        let genesis = Genesis {
            service,
            fault_model: FaultModel::Crash,
            voters: ids.clone(),
            machine: KeyValueWithFaults::NAME.to_owned(),
            sessions_max: plan.sessions_max,
            reply_bytes_max: plan.reply_bytes_max,
            snapshot_bytes: plan.snapshot_bytes,
        };
        let wal = lockstep_wal::Options { segment_bytes: plan.segment_bytes };
        let log_ids = ids.iter().map(|id| WalId { service: *service.as_bytes(), replica: *id.as_bytes() }).collect();
        let hosts = ids
            .iter()
            .enumerate()
            .map(|(replica, id)| {
                let disk = Arc::new(SimDisk::default());
                let mut identity = Identity::start(&*disk, *id.as_bytes()).expect("an empty disk takes an identity");
                identity.adopt(genesis.clone(), &*disk).expect("an identity without a genesis takes one");
                disk.complete();
                Host::new(replica, disk, *id, Life::Member, &mut random)
            })
            .collect();
        let clients: Vec<Client> =
            (0..plan.clients.count).map(|_| Client::new(0, random.bytes(), &plan.clients)).collect();
        World {
            now: SECOND,
            counters: Counters::default(),
            trace: Trace::new(print),
            queue: BTreeMap::new(),
            order: 0,
            hosts,
            checkers: Checkers::new(log_ids, wal),
            cut: vec![vec![false; count]; count],
            doors_cut: vec![vec![0; count]; clients.len()],
            peers_busy: vec![vec![0; count]; count],
            doors_busy: vec![vec![(0, 0); count]; clients.len()],
            phase: Phase::Chaos,
            inputs: VecDeque::new(),
            asked: vec![0; count],
            configs: vec![(Height::ZERO, genesis.configuration())],
            genesis,
            settled: Epoch::FIRST,
            operation: None,
            retired: VecDeque::new(),
            clients,
            plan,
            random,
        }
    }

    /// Runs to the end, or to the first violation.
    pub fn run(&mut self) -> Result<(), Violation> {
        self.trace.line(self.now, format_args!("{}", self.plan));
        for replica in 0..self.hosts.len() {
            self.after(self.plan.downtime.min(SECOND) / 2, Event::Restart { replica });
        }
        for client in 0..self.clients.len() {
            self.after(1, Event::ClientWorks { client });
            let targets = self.targets();
            self.client_step(client, Input::Targets(targets))?;
        }
        let faults = [
            (Fault::Partition, self.plan.faults.partition),
            (Fault::Crash, self.plan.faults.crash),
            (Fault::Blackout, self.plan.faults.blackout),
            (Fault::HandOver, self.plan.faults.hand_over),
            (Fault::Hang, self.plan.faults.hang),
            (Fault::Pause, self.plan.faults.pause),
            (Fault::WallJump, self.plan.faults.wall_jump),
            (Fault::ClientCrash, self.plan.faults.client_crash),
            (Fault::ClientCut, self.plan.faults.client_cut),
            (Fault::DiskLoss, self.plan.faults.disk_loss),
            (Fault::Restore, self.plan.faults.restore),
            (Fault::Reshape, self.plan.faults.reshape),
            (Fault::BitFlip, self.plan.faults.bit_flip),
        ];
        for (fault, mean) in faults {
            if let Some(mean) = mean {
                let at = self.random.around(mean);
                self.after(at, Event::Fault(fault));
            }
        }
        self.after(1, Event::Monitor);
        self.after(self.plan.chaos, Event::Heal);
        let (mut moment, mut at_once) = (0, 0);
        while self.phase != Phase::Done {
            let ((at, _), event) = self.queue.pop_first().expect("there is always something to come");
            assert!(at >= self.now, "time runs back");
            self.now = at;
            at_once = if moment == at { at_once + 1 } else { 0 };
            moment = at;
            require!(at_once < EVENTS_AT_ONCE_MAX, "progress", "{EVENTS_AT_ONCE_MAX} events at one moment");
            self.take(event)?;
            if let Phase::Probing { until, .. } | Phase::Converging { until } = self.phase {
                require!(self.now <= until, "progress", "{}", self.describe());
            }
        }
        self.counters.add_many(Kind::Segment, self.hosts.iter().map(|host| host.disk.allocated()).sum());
        Ok(())
    }

    fn after(&mut self, delay: Micros, event: Event) {
        self.at(self.now + delay, event);
    }

    fn at(&mut self, at: Micros, event: Event) {
        self.order += 1;
        self.queue.insert((at.max(self.now), self.order), event);
    }

    fn take(&mut self, event: Event) -> Result<(), Violation> {
        if let Some((replica, source)) = event.wakes()
            && self.hosts[replica].paused_until[source] > self.now
        {
            let host = &mut self.hosts[replica];
            let until = host.paused_until[source];
            if let Event::Wake { process, .. } = event
                && process == host.process
            {
                host.wake_at = until;
            }
            self.at(until, event);
            return Ok(());
        }
        match event {
            Event::Deliver { from, to, epoch, message } => {
                if self.cut[from][to] {
                    self.counters.add(Kind::CutOff);
                    return Ok(());
                }
                if self.listens(to, from)? {
                    self.trace.line(self.now, format_args!("{}→{} {message}", slot(from), slot(to)));
                    self.handle(to, EngineEvent::Peer { from: slot(from), epoch, message })?;
                }
                Ok(())
            }
            Event::Wake { replica, process } => {
                let host = &mut self.hosts[replica];
                if host.process == process && host.wake_at == self.now {
                    host.wake_at = Micros::MAX;
                    return self.poll(replica);
                }
                Ok(())
            }
            Event::Poll { replica, process } => {
                if self.hosts[replica].process == process {
                    self.hosts[replica].poll_scheduled = false;
                    return self.poll(replica);
                }
                Ok(())
            }
            Event::Written { replica, process, batch } => {
                if self.hosts[replica].process != process {
                    return Ok(());
                }
                self.trace.line(self.now, format_args!("{} batch {batch} is durable", slot(replica)));
                self.hosts[replica].disk.complete();
                self.handle(replica, EngineEvent::Written(batch))
            }
            Event::JobDone { replica, process, done } => {
                if self.hosts[replica].process != process {
                    return Ok(());
                }
                self.hosts[replica].disk.complete();
                self.hosts[replica].job_runs = false;
                self.handle(replica, EngineEvent::Job(*done))?;
                self.next_job(replica);
                Ok(())
            }
            Event::Started { replica, process } => {
                if self.hosts[replica].process == process {
                    self.started(replica)
                } else {
                    Ok(())
                }
            }
            Event::Restart { replica } => self.restart(replica),
            Event::Request { asker, target, timeout } => self.request(asker, target, timeout),
            Event::Answered { client, generation, target, id, answer, leader } => {
                if self.clients[client].generation != generation || self.doors_cut[client][target] > self.now {
                    return Ok(());
                }
                self.client_step(client, Input::Answered { id, answer })?;
                if let Some(leader) = leader {
                    self.client_step(client, Input::Prefer { target: leader })?;
                }
                Ok(())
            }
            Event::Disconnected { client, generation, target, unsent } => {
                if self.clients[client].generation != generation || self.doors_cut[client][target] > self.now {
                    return Ok(());
                }
                self.counters.add(Kind::Disconnected);
                self.client_step(client, Input::Disconnected { target: Target(target as u32), unsent })
            }
            Event::ClientWake { client, generation, at } => {
                let this = &mut self.clients[client];
                if this.generation == generation && this.wake_at == at {
                    this.wake_at = Micros::MAX;
                    return self.client_step(client, Input::Tick);
                }
                Ok(())
            }
            Event::ClientWorks { client } => self.client_works(client),
            Event::Monitor => {
                self.monitor();
                Ok(())
            }
            Event::Fault(fault) => self.fault(fault),
            Event::MendLinks => {
                self.trace.line(self.now, format_args!("links are mended"));
                self.mend();
                Ok(())
            }
            Event::Crash { replica, process, power } => {
                if self.hosts[replica].process == process && self.phase == Phase::Chaos {
                    return self.crash(replica, power);
                }
                Ok(())
            }
            Event::Operate => self.operate(),
            Event::Heal => self.heal(),
            Event::Compare => self.compare(),
        }
    }

    // Replicas.

    fn local(&self, replica: usize) -> Moment {
        Moment::from_micros(self.now + self.hosts[replica].offset)
    }

    fn handle(&mut self, replica: usize, event: EngineEvent) -> Result<(), Violation> {
        let now = self.local(replica);
        let State::Up { engine, .. } = &mut self.hosts[replica].state else { return Ok(()) };
        engine.handle(now, event);
        if self.plan.poll_delay == 0 {
            return self.poll(replica);
        }
        if !self.hosts[replica].poll_scheduled {
            self.hosts[replica].poll_scheduled = true;
            let process = self.hosts[replica].process;
            let delay = self.random.below(self.plan.poll_delay);
            self.after(delay, Event::Poll { replica, process });
        }
        Ok(())
    }

    fn poll(&mut self, replica: usize) -> Result<(), Violation> {
        let now = self.local(replica);
        let wall = LogTime::from_millis(self.hosts[replica].wall_ms + self.now / 1_000);
        let State::Up { engine, .. } = &mut self.hosts[replica].state else { return Ok(()) };
        let output = engine.poll(now, wall).map_err(|error| Violation {
            property: "what was written can be read",
            detail: format!("{}: {error}", slot(replica)),
        })?;
        let status = engine.status(now);
        if let Some(snapshot) = output.installed {
            self.trace.line(self.now, format_args!("{} installs {snapshot}", slot(replica)));
            self.checkers.starts_at(replica, snapshot.block.height);
        }
        if let Some(height) = output.rebuilt {
            self.trace.line(self.now, format_args!("{} is built anew from {height}", slot(replica)));
            self.checkers.starts_at(replica, height);
        }
        for block in &output.applied {
            self.trace.line(self.now, format_args!("{} applies {} {}", slot(replica), block.block, block.digest));
            self.checkers.applies(replica, block, &mut self.counters)?;
        }
        self.checkers.status(replica, &status)?;
        let host = &mut self.hosts[replica];
        let (before, view_before) = (host.role, host.view);
        (host.role, host.view) = (status.role, status.view);
        if before != status.role || view_before != status.view {
            self.trace.line(self.now, format_args!("{} is {:?} in view {}", slot(replica), status.role, status.view));
        }
        self.count_snapshots(replica, &status.snapshots.counters);
        self.note_membership(&status.membership);
        self.check_doubt(replica, before, &status, &output.replies)?;
        let Output { send, write, cut, jobs, replies, retired, wake_at, .. } = output;
        if let Some(amnesia) = retired {
            return self.retire(replica, amnesia);
        }
        let host = &mut self.hosts[replica];

        let hands_over =
            send.iter().any(|sent| matches!(sent.message, PeerMessage::Consensus(Message::HandOver { .. })));
        if before == RoleName::Leader && status.view > view_before {
            if hands_over {
                let hung = host.hangs_until > self.now;
                self.counters.add(if hung { Kind::HandOverSlowDisk } else { Kind::HandOver });
            } else if status.role != RoleName::Follower {
                let unmutes = status.view.leader == slot(replica);
                self.counters.add(if unmutes { Kind::Unmute } else { Kind::StepDown });
            }
        }

        let dies =
            !send.is_empty() && self.phase == Phase::Chaos && self.random.per_mille(self.plan.crash_while_sending);
        let last = if dies { self.random.below(send.len() as u64) as usize } else { send.len() };
        for outgoing in send.into_iter().take(last) {
            self.send(replica, index(outgoing.to), outgoing.epoch, outgoing.message)?;
        }
        if dies {
            self.counters.add(Kind::DiedSending);
            let power = self.random.percent(self.plan.power);
            return self.crash(replica, power);
        }
        if let Some(batch) = write {
            let State::Up { writer, .. } = &mut self.hosts[replica].state else { unreachable!("it was just polled") };
            writer.commit(&batch).expect("the simulated disk takes every write");
            if self.plan.allocate_ahead {
                writer.allocate_ahead().expect("the simulated disk takes every file");
            }
            let (low, high) = self.plan.disk;
            let host = &self.hosts[replica];
            let latency = self.random.between(low, high).max(host.hangs_until.saturating_sub(self.now));
            let process = host.process;
            self.after(latency, Event::Written { replica, process, batch: batch.seq() });
        }
        if let Some(cut) = cut {
            self.counters.add(Kind::LogCut);
            let State::Up { writer, .. } = &mut self.hosts[replica].state else { unreachable!("it was just polled") };
            writer.cut(&cut).expect("the simulated disk removes every file");
        }
        self.hosts[replica].jobs.extend(jobs);
        self.next_job(replica);
        for (token, answer) in replies {
            self.reply(replica, token, answer)?;
        }
        let offset = self.hosts[replica].offset;
        let wake_at = wake_at.as_micros().saturating_sub(offset).max(self.now);
        if wake_at < self.now + 1_000 * SECOND && wake_at != self.hosts[replica].wake_at {
            self.hosts[replica].wake_at = wake_at;
            let process = self.hosts[replica].process;
            self.at(wake_at, Event::Wake { replica, process });
        }
        if before != RoleName::Leader
            && status.role == RoleName::Leader
            && self.phase == Phase::Chaos
            && self.random.percent(self.plan.crash_new_leader)
        {
            self.counters.add(Kind::NewLeaderCrash);
            let (power, process) = (self.random.percent(self.plan.power), self.hosts[replica].process);
            let delay = self.random.below(2 * self.plan.peers.latency.1 + 2 * self.plan.disk.1);
            self.after(delay, Event::Crash { replica, process, power });
        }
        Ok(())
    }

    /// Starts the next job on snapshots, if none runs. What it does to the disk is believed when it is done.
    fn next_job(&mut self, replica: usize) {
        let host = &mut self.hosts[replica];
        if host.job_runs {
            return;
        }
        let Some(job) = host.jobs.pop_front() else { return };
        host.job_runs = true;
        let done = Box::new(job.run(&*host.disk));
        let (low, high) = self.plan.disk;
        let latency = self.random.between(low, high).max(host.hangs_until.saturating_sub(self.now));
        let process = host.process;
        self.after(latency, Event::JobDone { replica, process, done });
    }

    fn count_snapshots(&mut self, replica: usize, counters: &SnapshotCounters) {
        let before = std::mem::replace(&mut self.hosts[replica].snapshots, *counters);
        let SnapshotCounters { taken, left_out, installed, not_installed, served } = *counters;
        self.counters.add_many(Kind::SnapshotTaken, taken - before.taken);
        self.counters.add_many(Kind::SnapshotLeftOut, left_out - before.left_out);
        self.counters.add_many(Kind::SnapshotInstalled, installed - before.installed);
        self.counters.add_many(Kind::SnapshotNotInstalled, not_installed - before.not_installed);
        self.counters.add_many(Kind::ChunkServed, served - before.served);
    }

    /// A message leaves a replica.
    fn send(&mut self, from: usize, to: usize, epoch: Epoch, message: PeerMessage) -> Result<(), Violation> {
        let process = self.hosts[from].process;
        let promised = self.checkers.sends(from, process, &message, &mut self.counters)?;
        match promised {
            Some(Promised::Block(..)) if self.random.below(CHECK_ONE_IN) > 0 => {}
            None => {}
            Some(promised) => {
                let copy = self.hosts[from].disk.synced_copy();
                let durable = self.checkers.replay(from, copy, &mut self.counters)?;
                self.checkers.check_promise(from, promised, &durable)?;
            }
        }
        match &message {
            PeerMessage::Forward { .. } => self.counters.add(Kind::Forwarded),
            PeerMessage::Consensus(Message::PreCheck { view }) => self.asked[from] = view.round,
            PeerMessage::Consensus(Message::Timeout { view, .. }) if self.asked[from] == view.round => {
                self.asked[from] = 0;
                self.counters.add(Kind::PreCheck);
            }
            _ => {}
        }
        if self.phase == Phase::Chaos && self.random.per_mille(self.plan.very_old) {
            self.counters.add(Kind::VeryOld);
            let delay = self.random.between(SECOND, 10 * SECOND);
            self.after(delay, Event::Deliver { from, to, epoch, message: message.clone() });
        }
        if self.cut[from][to] {
            self.counters.add(Kind::CutOff);
            return Ok(());
        }
        let link = self.plan.peers.clone();
        if self.random.per_mille(link.duplicate) {
            self.counters.add(Kind::Duplicated);
            let at = self.now + travel(&link, &mut self.random, &mut self.counters).0;
            self.at(at, Event::Deliver { from, to, epoch, message: message.clone() });
        }
        if self.random.per_mille(link.loss) {
            self.counters.add(Kind::Lost);
            return Ok(());
        }
        let (delay, overtaken) = travel(&link, &mut self.random, &mut self.counters);
        let busy = &mut self.peers_busy[from][to];
        let at = if overtaken { self.now + delay } else { (self.now + delay).max(*busy) };
        if !overtaken {
            *busy = at;
        }
        self.at(at, Event::Deliver { from, to, epoch, message });
        Ok(())
    }

    fn restart(&mut self, replica: usize) -> Result<(), Violation> {
        let State::Down = self.hosts[replica].state else { return Ok(()) };
        if let Life::Waiting | Life::Lost = self.hosts[replica].life {
            return Ok(());
        }
        let copy = self.hosts[replica].disk.cached_copy();
        let durable = self.checkers.replay(replica, copy, &mut self.counters)?;
        self.checkers.check_restart(replica, &durable)?;
        if durable.torn {
            self.counters.add(Kind::TornTail);
        }
        let now = self.local(replica);
        let host = &mut self.hosts[replica];
        host.process += 1;
        if host.process > 1 {
            self.counters.add(Kind::Restart);
        }
        self.trace.line(self.now, format_args!("{} starts, number {}", slot(replica), host.process));
        let disk = Arc::clone(&host.disk);
        let engine = self.start_engine(replica, disk)?;
        let applied = engine.status(now).applied;
        let host = &mut self.hosts[replica];
        host.claim = engine.claim();
        host.met.clear();
        if applied > Height::ZERO {
            self.counters.add(Kind::SnapshotRestart);
        }
        self.checkers.starts_at(replica, applied);
        host.state = State::Starting(Box::new(engine));
        let process = host.process;
        let delay = self.random.between(1_000, 100_000);
        self.after(delay, Event::Started { replica, process });
        Ok(())
    }

    /// An engine from what a disk holds.
    fn start_engine(&mut self, replica: usize, disk: Arc<SimDisk>) -> Result<Engine<SimDisk>, Violation> {
        let refused = |why: String| Violation {
            property: "a replica starts after a crash",
            detail: format!("{}: {why}", slot(replica)),
        };
        let random = self.random.bytes();
        let identity = Identity::start(&*disk, random).map_err(|error| refused(error.to_string()))?;
        let options = EngineOptions {
            rules: self.plan.rules.clone(),
            wal: lockstep_wal::Options { segment_bytes: self.plan.segment_bytes },
            snapshots: self.plan.snapshots.clone(),
            block_bytes: BLOCK_BYTES,
            compare: self.plan.compare,
            machine: Some(Arc::clone(&self.hosts[replica].machine) as _),
        };
        Engine::start(disk, &identity, options, self.local(replica)).map_err(|error| refused(error.to_string()))
    }

    /// The last committed block is on the disks of a quorum, or was on those that are lost.
    fn check_committed(&mut self) -> Result<(), Violation> {
        let config = self.config_at(self.checkers.height()).clone();
        let disks: Vec<Arc<SimDisk>> = self.hosts.iter().map(|host| Arc::clone(&host.disk)).collect();
        self.checkers.check_committed(&config, disks.iter().map(|disk| &**disk), &mut self.counters)
    }

    fn started(&mut self, replica: usize) -> Result<(), Violation> {
        let host = &mut self.hosts[replica];
        let State::Starting(mut engine) = std::mem::replace(&mut host.state, State::Down) else {
            unreachable!("a process starts once")
        };
        host.disk.complete();
        let writer = engine.take_writer();
        host.role = RoleName::Follower;
        host.view = View::ZERO;
        host.state = State::Up { engine, writer };
        self.trace.line(self.now, format_args!("{} is up", slot(replica)));
        self.poll(replica)
    }

    fn crash(&mut self, replica: usize, power: bool) -> Result<(), Violation> {
        let host = &mut self.hosts[replica];
        if let State::Down = host.state {
            return Ok(());
        }
        host.state = State::Down;
        host.process += 1;
        host.wake_at = Micros::MAX;
        host.poll_scheduled = false;
        host.jobs.clear();
        host.job_runs = false;
        host.snapshots = SnapshotCounters::default();
        host.divergences = DivergenceCounters::default();
        host.doubt = None;
        host.paused_until = [0; SOURCES];
        host.role = RoleName::Follower;
        let tokens = std::mem::take(&mut host.tokens);
        self.checkers.stopped(replica);
        if power {
            let lost = host.disk.cut_power(&mut self.random);
            self.trace.line(
                self.now,
                format_args!(
                    "{} loses power, and {} bytes{}",
                    slot(replica),
                    lost.bytes,
                    if lost.torn { ", torn" } else { "" }
                ),
            );
            self.counters.add(Kind::PowerCut);
            if lost.bytes > 0 {
                self.counters.add(Kind::PowerCutLost);
            }
        } else {
            host.disk.kill(&mut self.random);
            self.trace.line(self.now, format_args!("{} is killed", slot(replica)));
            self.counters.add(Kind::Kill);
        }
        self.check_committed()?;
        let mut told = Vec::new();
        for asker in tokens.into_values().filter(|asker| asker.client != MONITOR) {
            if !told.contains(&(asker.client, asker.generation)) && self.random.percent(80) {
                told.push((asker.client, asker.generation));
            }
        }
        for (client, generation) in told {
            let delay = self.door_delay();
            self.after(delay, Event::Disconnected { client, generation, target: replica, unsent: Vec::new() });
        }
        if self.phase == Phase::Chaos {
            let downtime = self.random.around(self.plan.downtime);
            self.after(downtime, Event::Restart { replica });
        }
        Ok(())
    }
}

fn index(slot: Slot) -> usize {
    slot.get() as usize - 1
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("k{number}"))
}

fn probe_body(client: usize, ticket: Ticket) -> Bytes {
    let value = Bytes::from(format!("probe {client}.{}", ticket.0));
    KvRequest::Put { key: Bytes::from_static(b"probe"), value }.encode()
}

/// How long a message travels, and whether later ones may overtake it.
fn travel(link: &Link, random: &mut Random, counters: &mut Counters) -> (Micros, bool) {
    let (low, high) = link.latency;
    let delay = random.between(low, high);
    if random.per_mille(link.late) {
        counters.add(Kind::Late);
        return (delay + random.below(SECOND), true);
    }
    if random.per_mille(link.reorder) {
        counters.add(Kind::Reordered);
        return (delay + random.below(4 * high), true);
    }
    (delay, false)
}
