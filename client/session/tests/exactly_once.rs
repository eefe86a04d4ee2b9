//! The session against the real session table over a network that loses, duplicates and reorders, with failing replicas and evicted
//! sessions: executed at most once, honest outcomes, everything completes.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use lockstep_machine::Executor;
use lockstep_session::{
    Action, Answer, AttemptId, Doubt, Input, Micros, Operation, Options, Outcome, Refusal, RefusalKind, Rejection,
    Session, Target, Ticket,
};
use lockstep_types::block::encode_body;
use lockstep_types::kv::{KvReply, KvRequest};
use lockstep_types::{
    Block, BlockHeader, Command, Digest, Epoch, FaultModel, Genesis, LogTime, Outcome as LogOutcome, ReplicaId,
    ServiceId, SessionId, Slot, View,
};
use proptest::prelude::*;

const SECOND: Micros = 1_000_000;
const TARGETS: u32 = 3;

/// A service that is one log and the real executor; the replicas are doors to it.
struct Service {
    executor: Executor,
    sessions: VecDeque<SessionId>,
}

impl Service {
    fn new() -> Self {
        let genesis = Genesis {
            service: ServiceId::from_bytes([1; 16]),
            fault_model: FaultModel::Crash,
            voters: vec![ReplicaId::from_bytes([1; 16])],
            machine: "KeyValue".to_owned(),
            sessions_max: 100,
            reply_bytes_max: 1 << 20,
            snapshot_bytes: Genesis::SNAPSHOT_BYTES,
        };
        Service { executor: Executor::new(&genesis).unwrap(), sessions: VecDeque::new() }
    }

    fn apply(&mut self, command: &Command) -> LogOutcome {
        let header = BlockHeader {
            service: ServiceId::from_bytes([1; 16]),
            epoch: Epoch::FIRST,
            view: View::new(1, Slot::new(1)),
            height: self.executor.applied().next(),
            parent: Digest::ZERO,
            body: Digest::ZERO,
            log_time: LogTime::from_millis(1),
            change: None,
        };
        let commands = [command.encode()];
        let block = Block::new(header, encode_body(&commands));
        let outcome = self.executor.apply(block.header(), block.hash(), &commands).outcomes.remove(0);
        if let LogOutcome::SessionOpened { session } = outcome {
            self.sessions.retain(|live| *live != session);
            self.sessions.push_back(session);
        }
        outcome
    }

    /// The oldest session is gone, as if the replicated rule had ended it.
    fn evict(&mut self) {
        if let Some(session) = self.sessions.pop_front() {
            self.apply(&Command::CloseSession { session });
        }
    }

    /// How often this ticket's request was executed.
    fn executions(&self, ticket: Ticket) -> u64 {
        match KvReply::decode(self.executor.query(&KvRequest::Get { key: key(ticket) }.encode())).unwrap() {
            KvReply::Found(found) => found.version,
            reply => {
                assert_eq!(reply, KvReply::Missing);
                0
            }
        }
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

#[derive(Clone, Copy, Debug)]
struct Faults {
    lose: u64,
    duplicate: u64,
    refuse: u64,
    disconnect: u64,
    evict: u64,
    /// From the second second on, for so many seconds, nearly everything is refused.
    outage: u64,
}

enum Event {
    Arrive { id: AttemptId, target: Target, operation: Operation, copies: u64 },
    Deliver(Input),
    Submit(Ticket),
    Wake,
}

/// One run in virtual time.
struct World {
    now: Micros,
    random: Random,
    faults: Faults,
    service: Service,
    session: Session,
    events: BTreeMap<(Micros, u64), Event>,
    order: u64,
    deadlines: BTreeMap<Ticket, Micros>,
    outcomes: BTreeMap<Ticket, Outcome>,
    closed: bool,
}

/// Each ticket writes its own key, so that the key's version counts its executions.
fn key(ticket: Ticket) -> Bytes {
    Bytes::from(ticket.to_string())
}

fn body(ticket: Ticket) -> Bytes {
    KvRequest::Put { key: key(ticket), value: key(ticket) }.encode()
}

fn is_read(ticket: Ticket) -> bool {
    ticket.0 % 7 == 3
}

impl World {
    fn new(seed: u64, faults: Faults) -> Self {
        let mut options = Options::new([seed as u8; 16]);
        options.idle = 3 * SECOND;
        let mut world = World {
            now: 0,
            random: Random(seed),
            faults,
            service: Service::new(),
            session: Session::new(options),
            events: BTreeMap::new(),
            order: 0,
            deadlines: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            closed: false,
        };
        world.step(Input::Targets((0..TARGETS).map(Target).collect()));
        world
    }

    fn schedule(&mut self, at: Micros, event: Event) {
        self.order += 1;
        self.events.insert((at, self.order), event);
    }

    fn step(&mut self, input: Input) {
        for action in self.session.step(self.now, input) {
            match action {
                Action::Send { target, id, operation, timeout: _ } => {
                    let copies = match () {
                        () if self.random.percent(self.faults.lose) => 0,
                        () if self.random.percent(self.faults.duplicate) => 2,
                        () => 1,
                    };
                    for _ in 0..copies {
                        let at = self.now + self.delay();
                        self.schedule(at, Event::Arrive { id, target, operation: operation.clone(), copies });
                    }
                    if self.random.percent(self.faults.disconnect) {
                        let at = self.now + self.delay();
                        let unsent = if copies == 0 { vec![id] } else { vec![] };
                        self.schedule(at, Event::Deliver(Input::Disconnected { target, unsent }));
                    }
                }
                Action::Complete { ticket, outcome } => {
                    assert!(self.now <= self.deadlines[&ticket] + 1, "{ticket} completes after its deadline");
                    let before = self.outcomes.insert(ticket, outcome);
                    assert!(
                        matches!(before, None | Some(Outcome::Unknown { .. })),
                        "{ticket} completes twice, before as {before:?}"
                    );
                }
                Action::WakeAt(at) => self.schedule(at.max(self.now), Event::Wake),
                Action::Closed => self.closed = true,
            }
        }
    }

    fn delay(&mut self) -> Micros {
        // Mostly quick, sometimes very late.
        let most = if self.random.percent(5) { 4 * SECOND } else { 2_000 };
        self.random.next() % most
    }

    fn arrive(&mut self, id: AttemptId, target: Target, operation: Operation, copies: u64) {
        if self.random.percent(self.faults.evict) {
            self.service.evict();
        }
        let outage = 2 * SECOND..(2 + self.faults.outage) * SECOND;
        let refuse = if outage.contains(&self.now) { 98 } else { self.faults.refuse };
        let refused = self.random.percent(refuse);
        let proposed = !refused || self.random.percent(50);
        let outcome = proposed.then(|| match operation {
            Operation::Command(command) => self.service.apply(&command),
            Operation::Read { body } => LogOutcome::Replied { reply: body },
        });
        let answer = match outcome {
            Some(outcome) if !refused => Answer::Outcome(outcome),
            _ => {
                let kind = match self.random.next() % 3 {
                    0 => RefusalKind::Overloaded,
                    1 => RefusalKind::Unavailable,
                    _ => RefusalKind::Foreign,
                };
                // The promise is about the attempt, so only a replica that saw all of it may make it.
                let never_proposed = !proposed && copies == 1 && self.random.percent(80);
                let leader = self.random.percent(50).then(|| Target((target.0 + 1) % TARGETS));
                Answer::Refused(Refusal { kind, never_proposed, leader })
            }
        };
        if self.random.percent(self.faults.lose) {
            return;
        }
        let at = self.now + self.delay();
        self.schedule(at, Event::Deliver(Input::Answered { id, answer }));
    }

    fn run_until(&mut self, until: Micros) {
        while let Some(((at, _), _)) = self.events.first_key_value()
            && *at <= until
        {
            let ((at, _), event) = self.events.pop_first().expect("it was there");
            self.now = at;
            match event {
                Event::Arrive { id, target, operation, copies } => self.arrive(id, target, operation, copies),
                Event::Deliver(input) => self.step(input),
                Event::Submit(ticket) => {
                    let deadline = self.now + SECOND / 2 + self.random.next() % (4 * SECOND);
                    self.deadlines.insert(ticket, deadline);
                    let body = body(ticket);
                    self.step(if is_read(ticket) {
                        Input::SubmitRead { ticket, body, deadline }
                    } else {
                        Input::Submit { ticket, body, deadline }
                    });
                }
                Event::Wake => self.step(Input::Tick),
            }
        }
        self.now = until;
        self.step(Input::Tick);
    }
}

fn run(seed: u64, faults: Faults, requests: u64) {
    let mut world = World::new(seed, faults);
    for ticket in (0..requests).map(Ticket) {
        let at = if world.random.percent(3) { 12 * SECOND } else { world.random.next() % (8 * SECOND) };
        world.schedule(at, Event::Submit(ticket));
    }
    world.run_until(40 * SECOND);
    assert_eq!(world.outcomes.len() as u64, requests, "everything completes by its deadline");
    assert_eq!(world.session.under_way(), 0);

    // The network heals; what is unknown is asked for again.
    world.faults = Faults { lose: 0, duplicate: 0, refuse: 0, disconnect: 0, evict: 0, outage: 0 };
    world.run_until(60 * SECOND);
    assert_eq!(world.session.resolving(), 0, "a healthy service resolves everything in the background");
    let doubtful: Vec<Ticket> = world
        .outcomes
        .iter()
        .filter(|(_, outcome)| **outcome == Outcome::Unknown { reason: Doubt::Unconfirmed })
        .map(|(ticket, _)| *ticket)
        .collect();
    for ticket in doubtful {
        let deadline = world.now + SECOND;
        world.deadlines.insert(ticket, deadline);
        world.step(Input::Resolve { ticket, deadline });
    }

    for (ticket, outcome) in &world.outcomes {
        let executions = world.service.executions(*ticket);
        assert!(executions <= 1, "{ticket} was executed {executions} times");
        match outcome {
            Outcome::Committed { reply } if is_read(*ticket) => assert_eq!(*reply, body(*ticket)),
            Outcome::Committed { reply } => {
                assert_eq!(executions, 1, "{ticket} is committed");
                assert_eq!(KvReply::decode(reply.clone()), Ok(KvReply::Written { version: 1 }));
            }
            Outcome::Rejected { reason } => {
                assert_eq!(executions, 0, "{ticket} is rejected: {reason:?}");
                assert_eq!(*reason == Rejection::Unanswered, is_read(*ticket));
            }
            Outcome::Unknown { reason } => assert!(!reason.is_resolvable(), "{ticket} is resolved: {reason:?}"),
        }
        assert!(
            faults.evict > 0 || !matches!(outcome, Outcome::Unknown { .. }),
            "{ticket} stays unknown without an eviction: {outcome:?}"
        );
    }

    let deadline = world.now + SECOND;
    world.step(Input::Close { deadline });
    world.run_until(deadline + SECOND);
    assert!(world.closed);
}

#[test]
fn session_healthy_service_commits_all() {
    run(1, Faults { lose: 0, duplicate: 0, refuse: 0, disconnect: 0, evict: 0, outage: 0 }, 300);
}

proptest! {
    #[test]
    fn session_any_faults_executes_once_and_tells_the_truth(
        seed: u64,
        lose in 0u64..30,
        duplicate in 0u64..30,
        refuse in 0u64..40,
        disconnect in 0u64..5,
        evict in prop_oneof![Just(0u64), 0u64..4],
        outage in 0u64..6,
        requests in 1u64..400,
    ) {
        run(seed, Faults { lose, duplicate, refuse, disconnect, evict, outage }, requests);
    }
}
