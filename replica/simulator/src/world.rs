//! Replicas, clients, network, disks and clocks of one run, and the one queue of events that drives them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use lockstep_consensus::{Message, Moment, RoleName};
use lockstep_engine::{
    Answer, Engine, EngineOptions, Event as EngineEvent, Identity, Operation, Output, PeerMessage, Refusal, Token,
};
use lockstep_session::{
    Action, Answer as ClientAnswer, AttemptId, Input, Operation as ClientOperation, Outcome, Refusal as ClientRefusal,
    RefusalKind, Target, Ticket,
};
use lockstep_types::kv::{Expected, KvRequest};
use lockstep_types::{
    Epoch, FaultModel, Genesis, Height, LogTime, Outcome as LogOutcome, ReplicaId, ServiceId, Slot, View,
};
use lockstep_wal::{BatchSeq, WalId, Writer};

use crate::checkers::{Checkers, Promised, Violation, require, slot};
use crate::client::{Client, Request, What};
use crate::counters::{Counters, Kind};
use crate::disk::SimDisk;
use crate::plan::{Link, Plan};
use crate::random::Random;
use crate::trace::Trace;
use crate::{Micros, SECOND};

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
    hangs_until: Micros,
    /// Stands still until then, by source of events: after that they come in no particular order of sources.
    paused_until: [Micros; SOURCES],
    role: RoleName,
    view: View,
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
}

impl World {
    pub fn new(seed: u64, print: bool) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random);
        let count = plan.replicas;
        let service = ServiceId::from_bytes(random.bytes());
        let ids: Vec<ReplicaId> = (0..count).map(|_| ReplicaId::from_bytes(random.bytes())).collect();
        let genesis = Genesis {
            service,
            fault_model: FaultModel::Crash,
            voters: ids.clone(),
            machine: "KeyValue".to_owned(),
            sessions_max: plan.sessions_max,
            reply_bytes_max: plan.reply_bytes_max,
            snapshot_bytes: Genesis::SNAPSHOT_BYTES,
        };
        let wal = lockstep_wal::Options { segment_bytes: plan.segment_bytes };
        let log_ids = ids.iter().map(|id| WalId { service: *service.as_bytes(), replica: *id.as_bytes() }).collect();
        let hosts = ids
            .iter()
            .map(|id| {
                let disk = Arc::new(SimDisk::default());
                let mut identity = Identity::start(&*disk, *id.as_bytes()).expect("an empty disk takes an identity");
                identity.adopt(genesis.clone(), &*disk).expect("an identity without a genesis takes one");
                disk.complete();
                Host {
                    disk,
                    offset: random.below(1 << 40),
                    wall_ms: 1_800_000_000_000 + random.below(10_000),
                    process: 0,
                    state: State::Down,
                    next_token: 0,
                    tokens: BTreeMap::new(),
                    wake_at: Micros::MAX,
                    poll_scheduled: false,
                    hangs_until: 0,
                    paused_until: [0; SOURCES],
                    role: RoleName::Follower,
                    view: View::ZERO,
                }
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
            let targets = (0..self.hosts.len() as u32).map(Target).collect();
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
                if let State::Up { .. } = self.hosts[to].state {
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
        let Output { send, write, replies, wake_at, .. } = output;

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
        let refused = |why: String| Violation {
            property: "a replica starts after a crash",
            detail: format!("{}: {why}", slot(replica)),
        };
        let identity = Identity::start(&*host.disk, [0; 16]).map_err(|error| refused(error.to_string()))?;
        let options = EngineOptions {
            rules: self.plan.rules.clone(),
            wal: lockstep_wal::Options { segment_bytes: self.plan.segment_bytes },
            block_bytes: BLOCK_BYTES,
        };
        let engine = Engine::start(Arc::clone(&host.disk), &identity, options, now)
            .map_err(|error| refused(error.to_string()))?;
        host.state = State::Starting(Box::new(engine));
        let process = host.process;
        let delay = self.random.between(1_000, 100_000);
        self.after(delay, Event::Started { replica, process });
        Ok(())
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
        self.checkers.check_committed(self.hosts.iter().map(|host| &*host.disk), &mut self.counters)?;
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

    // Requests.

    fn door_delay(&mut self) -> Micros {
        let (low, high) = self.plan.doors.latency;
        self.random.between(low, high)
    }

    fn request(&mut self, asker: Asker, target: usize, timeout: Micros) -> Result<(), Violation> {
        if asker.client != MONITOR && self.doors_cut[asker.client][target] > self.now {
            return Ok(());
        }
        let now = self.local(target);
        let host = &mut self.hosts[target];
        let State::Up { .. } = host.state else {
            if asker.client != MONITOR && self.random.percent(80) {
                let Asker { client, generation, attempt, .. } = asker;
                let delay = self.door_delay();
                self.after(delay, Event::Disconnected { client, generation, target, unsent: vec![attempt] });
            }
            return Ok(());
        };
        host.next_token += 1;
        let token = Token(host.next_token);
        let operation = match &asker.operation {
            ClientOperation::Command(command) => {
                self.trace.line(self.now, format_args!("c{}→{} {command}", asker.client, slot(target)));
                Operation::Command(command.encode())
            }
            ClientOperation::Read { body } => {
                match asker.client {
                    MONITOR => self.trace.line(self.now, format_args!("monitor→{} read", slot(target))),
                    client => {
                        self.trace.line(self.now, format_args!("c{client}→{} read {}B", slot(target), body.len()))
                    }
                }
                Operation::Read(body.clone())
            }
        };
        self.hosts[target].tokens.insert(token, asker);
        let deadline = now.plus(timeout);
        self.handle(target, EngineEvent::Request { token, operation, deadline })
    }

    fn reply(&mut self, replica: usize, token: Token, answer: Answer) -> Result<(), Violation> {
        let asker = self.hosts[replica].tokens.remove(&token);
        let Some(asker) = asker else {
            return Err(Violation {
                property: "one answer per request",
                detail: format!("{} answers {token:?} twice", slot(replica)),
            });
        };
        if asker.client == MONITOR {
            if let Answer::Read(reply) = answer {
                self.counters.add(Kind::ReadMonitor);
                self.trace.line(self.now, format_args!("{}→monitor read {}B", slot(replica), reply.len()));
                self.checkers.read_answered(&key(asker.attempt.0), &reply, asker.generation)?;
            }
            return Ok(());
        }
        let now = self.local(replica);
        let State::Up { engine, .. } = &self.hosts[replica].state else { unreachable!("it answers") };
        let leader = engine.leader(now).map(|leader| Target(leader.get() - 1));
        let leads = leader == Some(Target(replica as u32));
        let hint = leader.filter(|_| !leads && self.random.percent(self.plan.clients.follow_hints));
        let refused =
            |kind, never_proposed| ClientAnswer::Refused(ClientRefusal { kind, never_proposed, leader: hint });
        let answer = match (answer, &asker.operation) {
            (Answer::Outcome(outcome), ClientOperation::Command(command)) => {
                self.checkers.answers(command, &outcome, &mut self.counters)?;
                self.trace.line(self.now, format_args!("{}→c{} {command}: {outcome}", slot(replica), asker.client));
                ClientAnswer::Outcome(outcome)
            }
            (Answer::Read(reply), ClientOperation::Read { .. }) => {
                self.counters.add(if leads { Kind::ReadLeader } else { Kind::ReadFollower });
                self.trace.line(self.now, format_args!("{}→c{} read {}B", slot(replica), asker.client, reply.len()));
                ClientAnswer::Outcome(LogOutcome::Replied { reply })
            }
            (Answer::Refused(refusal), _) => {
                self.trace.line(self.now, format_args!("{}→c{} {refusal:?}", slot(replica), asker.client));
                match refusal {
                    Refusal::Overloaded => refused(RefusalKind::Overloaded, true),
                    Refusal::NoLeader { never_proposed } => {
                        self.counters.add(Kind::RefusedNoLeader);
                        refused(RefusalKind::Unavailable, never_proposed)
                    }
                    Refusal::Deadline { never_proposed } => {
                        self.counters.add(Kind::RefusedDeadline);
                        refused(RefusalKind::Unavailable, never_proposed)
                    }
                }
            }
            (answer, operation) => {
                return Err(Violation {
                    property: "one answer per request",
                    detail: format!("{} answers {operation:?} with {answer:?}", slot(replica)),
                });
            }
        };
        let Asker { client, generation, attempt, .. } = asker;
        if let Some(at) = self.through_door(client, replica, false) {
            self.at(at, Event::Answered { client, generation, target: replica, id: attempt, answer, leader: hint });
        }
        Ok(())
    }

    /// When a message between client and replica arrives, if it does.
    fn through_door(&mut self, client: usize, replica: usize, asks: bool) -> Option<Micros> {
        let link = self.plan.doors.clone();
        if self.doors_cut[client][replica] > self.now || self.random.per_mille(link.loss) {
            return None;
        }
        let (delay, overtaken) = travel(&link, &mut self.random, &mut self.counters);
        let (asked, answered) = &mut self.doors_busy[client][replica];
        let busy = if asks { asked } else { answered };
        if overtaken {
            return Some(self.now + delay);
        }
        *busy = (self.now + delay).max(*busy);
        Some(*busy)
    }

    // Clients.

    fn client_step(&mut self, client: usize, input: Input) -> Result<(), Violation> {
        // An answer may lead to another input: that one waits until all that the first asks for is done.
        self.inputs.push_back((client, self.clients[client].generation, input));
        if self.inputs.len() > 1 {
            return Ok(());
        }
        while let Some((client, generation, input)) = self.inputs.front().cloned() {
            if self.clients[client].generation == generation {
                self.client_takes(client, input)?;
            }
            self.inputs.pop_front();
        }
        Ok(())
    }

    fn client_takes(&mut self, client: usize, input: Input) -> Result<(), Violation> {
        let generation = self.clients[client].generation;
        let actions = self.clients[client].session.step(self.now, input);
        for action in actions {
            match action {
                Action::Send { target, id, timeout, operation } => {
                    if let ClientOperation::Command(command) = &operation {
                        self.checkers.submits(command)?;
                    }
                    let target = target.0 as usize;
                    if let Some(at) = self.through_door(client, target, true) {
                        let asker = Asker { client, generation, attempt: id, operation };
                        self.at(at, Event::Request { asker, target, timeout });
                    }
                }
                Action::Complete { ticket, outcome } => self.complete(client, ticket, outcome)?,
                Action::WakeAt(at) => {
                    self.clients[client].wake_at = at;
                    self.at(at, Event::ClientWake { client, generation, at });
                }
                Action::Closed => {
                    self.trace.line(self.now, format_args!("c{client} has closed its session"));
                    self.new_client(client)?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The next generation of a client: another session.
    fn new_client(&mut self, client: usize) -> Result<(), Violation> {
        let waiting = self.clients[client].waiting();
        require!(
            waiting == 0 || !self.clients[client].closing,
            "every request completes",
            "c{client} has closed its session with {waiting} requests open"
        );
        let generation = self.clients[client].generation + 1;
        self.clients[client] = Client::new(generation, self.random.bytes(), &self.plan.clients);
        let targets = (0..self.hosts.len() as u32).map(Target).collect();
        self.client_step(client, Input::Targets(targets))
    }

    fn complete(&mut self, client: usize, ticket: Ticket, outcome: Outcome) -> Result<(), Violation> {
        let this = &mut self.clients[client];
        let Some(mut request) = this.open.remove(&ticket) else {
            return Err(Violation {
                property: "every request completes",
                detail: format!("{ticket} of c{client} completes twice, now as {outcome:?}"),
            });
        };
        require!(
            self.now <= request.deadline + 1,
            "every request completes",
            "{ticket} of c{client} completes at {}, its deadline was {}",
            self.now,
            request.deadline
        );
        let name = match &outcome {
            Outcome::Committed { .. } => "committed".to_owned(),
            Outcome::Rejected { reason } => format!("rejected: {reason:?}"),
            Outcome::Unknown { reason } => format!("unknown: {reason:?}"),
        };
        self.trace.line(self.now, format_args!("c{client} {ticket} {name}"));
        match (&outcome, &request.what) {
            (Outcome::Committed { reply }, What::Write { body }) => {
                self.counters.add(Kind::Committed);
                self.checkers.write_committed(body, reply, request.floor)?;
            }
            (Outcome::Committed { reply }, What::Read { key }) => {
                self.counters.add(Kind::Committed);
                self.checkers.read_answered(key, reply, request.floor)?;
            }
            (Outcome::Rejected { .. }, What::Write { body }) => {
                self.counters.add(Kind::Rejected);
                self.checkers.write_rejected(body)?;
            }
            (Outcome::Rejected { .. }, What::Read { .. }) => self.counters.add(Kind::Rejected),
            (Outcome::Unknown { reason }, _) => {
                self.counters.add(Kind::Unknown);
                if reason.is_resolvable() && (request.probe || self.random.percent(50)) {
                    let deadline = self.now + self.random.between(SECOND / 2, 5 * SECOND);
                    request.deadline = deadline;
                    request.asked_again = true;
                    self.clients[client].open.insert(ticket, request);
                    return self.client_step(client, Input::Resolve { ticket, deadline });
                }
                if reason.is_resolvable() {
                    self.client_step(client, Input::Forget { ticket })?;
                }
            }
        }
        if request.probe {
            match outcome {
                Outcome::Committed { .. } => return self.probe_answered(client),
                Outcome::Rejected { .. } | Outcome::Unknown { .. } => self.submit(client, request.what, true)?,
            }
        }
        Ok(())
    }

    fn client_works(&mut self, client: usize) -> Result<(), Violation> {
        if self.phase != Phase::Chaos {
            return Ok(());
        }
        let next = self.random.around(self.plan.clients.think);
        self.after(next, Event::ClientWorks { client });
        if self.clients[client].closing {
            return Ok(());
        }
        let burst = self.random.between(1, self.plan.clients.burst);
        for _ in 0..burst {
            if self.clients[client].waiting() >= self.plan.clients.in_flight {
                break;
            }
            let key = key(self.random.below(self.plan.clients.keys));
            let what = if self.random.percent(self.plan.clients.reads) {
                What::Read { key }
            } else {
                What::Write { body: self.write(client, key) }
            };
            self.submit(client, what, false)?;
        }
        if self.random.percent(self.plan.clients.close) {
            self.clients[client].closing = true;
            let deadline = self.now + self.random.between(SECOND / 10, 5 * SECOND);
            for request in self.clients[client].open.values_mut() {
                request.deadline = request.deadline.max(deadline);
            }
            self.client_step(client, Input::Close { deadline })?;
        }
        Ok(())
    }

    /// A read that any process may have to answer, also one that is cut off or has slept: it must not be stale.
    fn monitor(&mut self) {
        if self.phase != Phase::Chaos {
            return;
        }
        let next = self.random.around(self.plan.rules.heartbeat);
        self.after(next, Event::Monitor);
        let leaders: Vec<usize> =
            (0..self.hosts.len()).filter(|replica| self.hosts[*replica].role == RoleName::Leader).collect();
        let target = match leaders.len() {
            count if count > 0 && self.random.percent(70) => self.random.pick(&leaders),
            _ => self.random.below(self.hosts.len() as u64) as usize,
        };
        let number = self.random.below(self.plan.clients.keys);
        let operation = ClientOperation::Read { body: KvRequest::Get { key: key(number) }.encode() };
        let generation = self.checkers.floor();
        let asker = Asker { client: MONITOR, generation, attempt: AttemptId(number), operation };
        self.after(0, Event::Request { asker, target, timeout: 10 * SECOND });
    }

    fn write(&mut self, client: usize, key: Bytes) -> Bytes {
        let Client { generation, next_ticket, .. } = &self.clients[client];
        let padding = self.random.pick(&[0, 0, 10, 60]);
        let value = Bytes::from(format!("{client}.{generation}.{next_ticket}{:padding$}", ""));
        let request = match self.random.below(100) {
            0..3 => KvRequest::Delete { key },
            3..6 => KvRequest::Get { key },
            6..20 => {
                let version = self.checkers.version(&key);
                let expected = Expected::Version(if self.random.percent(70) { version } else { version / 2 });
                KvRequest::CompareAndSet { key, expected, value }
            }
            _ => KvRequest::Put { key, value },
        };
        request.encode()
    }

    fn submit(&mut self, client: usize, what: What, probe: bool) -> Result<(), Violation> {
        let (least, most) = self.plan.clients.deadline;
        let deadline = self.now + self.random.between(least, most);
        let ticket = self.clients[client].ticket();
        let floor = self.checkers.floor();
        // A probe that is submitted again is another request.
        let what = match what {
            What::Write { .. } if probe => What::Write { body: probe_body(client, ticket) },
            what => what,
        };
        let input = match &what {
            What::Write { body } => Input::Submit { ticket, body: body.clone(), deadline },
            What::Read { key } => {
                Input::SubmitRead { ticket, body: KvRequest::Get { key: key.clone() }.encode(), deadline }
            }
        };
        let request = Request { what, floor, deadline, asked_again: false, probe };
        self.clients[client].open.insert(ticket, request);
        self.client_step(client, input)
    }

    // Faults.

    fn fault(&mut self, fault: Fault) -> Result<(), Violation> {
        if self.phase != Phase::Chaos {
            return Ok(());
        }
        let faults = &self.plan.faults;
        let mean = match fault {
            Fault::Partition => faults.partition,
            Fault::Crash => faults.crash,
            Fault::Blackout => faults.blackout,
            Fault::HandOver => faults.hand_over,
            Fault::Hang => faults.hang,
            Fault::Pause => faults.pause,
            Fault::WallJump => faults.wall_jump,
            Fault::ClientCrash => faults.client_crash,
            Fault::ClientCut => faults.client_cut,
        };
        let next = self.random.around(mean.expect("only planned faults happen"));
        self.after(next, Event::Fault(fault));
        let victim = self.victim();
        match fault {
            Fault::Partition => self.partition(victim),
            Fault::Crash => {
                let power = self.random.percent(self.plan.power);
                self.crash(victim, power)?;
            }
            Fault::Blackout => {
                self.counters.add(Kind::Blackout);
                for replica in 0..self.hosts.len() {
                    self.crash(replica, true)?;
                }
            }
            Fault::HandOver if self.hosts[victim].paused_until[0] > self.now => {}
            Fault::HandOver => {
                let target = self.random.percent(70).then(|| slot(self.random.below(self.hosts.len() as u64) as usize));
                self.trace.line(self.now, format_args!("{} is asked to hand over", slot(victim)));
                self.handle(victim, EngineEvent::HandOver(target))?;
            }
            Fault::Hang => {
                self.counters.add(Kind::DiskHang);
                self.trace.line(self.now, format_args!("disk of {} hangs", slot(victim)));
                self.hosts[victim].hangs_until = self.now + self.random.between(SECOND, 6 * SECOND);
            }
            Fault::Pause => {
                self.counters.add(Kind::Pause);
                let until = self.now + self.random.between(SECOND / 10, 4 * SECOND);
                self.trace.line(self.now, format_args!("{} stands still until {until}", slot(victim)));
                self.hosts[victim].paused_until = std::array::from_fn(|_| until + self.random.below(1_000));
            }
            Fault::WallJump => {
                self.counters.add(Kind::WallJump);
                self.hosts[victim].wall_ms = 1_800_000_000_000 + self.random.below(1_000_000);
            }
            Fault::ClientCrash => {
                let client = self.random.below(self.clients.len() as u64) as usize;
                self.counters.add(Kind::ClientCrash);
                self.trace.line(self.now, format_args!("c{client} dies"));
                self.clients[client].open.clear();
                self.new_client(client)?;
            }
            Fault::ClientCut => {
                let client = self.random.below(self.clients.len() as u64) as usize;
                self.counters.add(Kind::ClientCut);
                self.trace.line(self.now, format_args!("c{client} is cut from {}", slot(victim)));
                self.doors_cut[client][victim] = self.now + self.random.around(self.plan.cut_time);
            }
        }
        Ok(())
    }

    /// A replica to hurt: the leader, or any.
    fn victim(&mut self) -> usize {
        let leader = (0..self.hosts.len())
            .filter(|replica| self.hosts[*replica].role == RoleName::Leader)
            .max_by_key(|replica| self.hosts[*replica].view);
        match leader {
            Some(leader) if self.random.percent(self.plan.aim) => leader,
            _ => self.random.below(self.hosts.len() as u64) as usize,
        }
    }

    fn partition(&mut self, victim: usize) {
        let count = self.hosts.len();
        self.mend();
        let others: Vec<usize> = (0..count).filter(|replica| *replica != victim).collect();
        let friend = self.random.pick(&others);
        let kind = self.random.below(8);
        let mut cut = |from: usize, to: usize| self.cut[from][to] = from != to;
        match kind {
            0 => others.iter().for_each(|other| {
                cut(victim, *other);
                cut(*other, victim);
            }),
            1 => others.iter().for_each(|other| cut(victim, *other)),
            2 => others.iter().for_each(|other| cut(*other, victim)),
            3 => cut(victim, friend),
            4 => cut(friend, victim),
            5 => {
                // All links but those of one replica: nobody else sees anybody.
                for from in &others {
                    others.iter().for_each(|to| cut(*from, *to));
                }
            }
            6 => {
                // It keeps one friend.
                for other in others.iter().filter(|other| **other != friend) {
                    cut(victim, *other);
                    cut(*other, victim);
                }
            }
            _ => {
                // Two and the rest.
                for other in others.iter().filter(|other| **other != friend) {
                    for inside in [victim, friend] {
                        cut(inside, *other);
                        cut(*other, inside);
                    }
                }
            }
        }
        self.counters.add(if matches!(kind, 1..=4) { Kind::OneWayCut } else { Kind::Partition });
        self.trace.line(self.now, format_args!("partition {kind} around {}", slot(victim)));
        let lasts = self.random.around(self.plan.cut_time);
        self.after(lasts, Event::MendLinks);
    }

    fn mend(&mut self) {
        self.cut.iter_mut().for_each(|row| row.fill(false));
    }

    // After the faults.

    fn heal(&mut self) -> Result<(), Violation> {
        self.trace.line(self.now, format_args!("all faults end"));
        self.mend();
        self.doors_cut.iter_mut().for_each(|row| row.fill(0));
        let quiet = |latency| Link { latency, loss: 0, duplicate: 0, reorder: 0, late: 0 };
        self.plan.peers = quiet(self.plan.peers.latency);
        self.plan.doors = quiet(self.plan.doors.latency);
        self.plan.clients.deadline = (5 * SECOND, 5 * SECOND);
        for host in &mut self.hosts {
            host.hangs_until = 0;
        }
        let until = self.now + 30 * SECOND + 30 * self.plan.rules.election;
        self.phase = Phase::Probing { client: 0, until };
        for replica in 0..self.hosts.len() {
            self.after(1_000, Event::Restart { replica });
        }
        self.probe(0)
    }

    /// A write, then a read of each key, all of which must be committed.
    fn probe(&mut self, client: usize) -> Result<(), Violation> {
        if self.clients[client].closing {
            self.clients[client].open.clear();
            self.clients[client].closing = false;
            self.new_client(client)?;
        }
        self.submit(client, What::Write { body: Bytes::new() }, true)
    }

    fn probe_answered(&mut self, client: usize) -> Result<(), Violation> {
        let Phase::Probing { client: current, until } = self.phase else { return Ok(()) };
        if client != current || self.clients[client].open.values().any(|request| request.probe) {
            return Ok(());
        }
        // The first time round the write was answered; now the reads.
        if self.probe_reads(client)? {
            return Ok(());
        }
        let next = client + 1;
        if next < self.clients.len() {
            self.phase = Phase::Probing { client: next, until };
            return self.probe(next);
        }
        self.phase = Phase::Converging { until };
        self.compare()
    }

    /// Submits the reads of a probe, once. Returns whether it did.
    fn probe_reads(&mut self, client: usize) -> Result<bool, Violation> {
        if self.clients[client].probed {
            return Ok(false);
        }
        self.clients[client].probed = true;
        for number in 0..self.plan.clients.keys {
            self.submit(client, What::Read { key: key(number) }, true)?;
        }
        Ok(true)
    }

    /// Whether all replicas are equal and no client waits.
    fn compare(&mut self) -> Result<(), Violation> {
        let height = self.checkers.height();
        let equal = (0..self.hosts.len()).all(|replica| {
            let State::Up { engine, .. } = &self.hosts[replica].state else { return false };
            let status = engine.status(self.local(replica));
            status.applied == height
                && status.committed == height
                && status.head == height
                && status.not_ready.is_none()
        });
        let waiting = self.clients.iter().any(|client| !client.open.is_empty() || client.session.resolving() > 0);
        if !equal || waiting {
            self.after(SECOND / 10, Event::Compare);
            return Ok(());
        }
        self.phase = Phase::Done;
        self.trace.line(self.now, format_args!("all replicas hold {height} blocks"));
        let disks: Vec<Arc<SimDisk>> = self.hosts.iter().map(|host| Arc::clone(&host.disk)).collect();
        self.checkers.check_committed(disks.iter().map(|disk| &**disk), &mut self.counters)?;
        require!(height > Height::ZERO, "progress", "nothing was committed");
        Ok(())
    }

    /// One line for each replica and client.
    pub fn describe(&self) -> String {
        let mut lines = vec![format!("{:?} at {}", self.phase, self.now)];
        for replica in 0..self.hosts.len() {
            lines.push(match &self.hosts[replica].state {
                State::Down => format!("{} down", slot(replica)),
                State::Starting(_) => format!("{} starting", slot(replica)),
                State::Up { engine, .. } => {
                    let status = engine.status(self.local(replica));
                    format!(
                        "{} {:?} view={} leader={:?} head={} committed={} applied={} requests={} {}",
                        slot(replica),
                        status.role,
                        status.view,
                        status.leader.map(Slot::get),
                        status.head,
                        status.committed,
                        status.applied,
                        status.requests,
                        status.not_ready.unwrap_or_default()
                    )
                }
            });
        }
        for (number, client) in self.clients.iter().enumerate() {
            lines.push(format!(
                "c{number} open={} waiting={} resolving={} session={}",
                client.open.len(),
                client.waiting(),
                client.session.resolving(),
                client.session.id().map_or("none".to_owned(), |id| id.to_string())
            ));
        }
        lines.join("\n  ")
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
