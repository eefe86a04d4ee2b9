//! The task that owns the session and the connections. Calls and answers are taken in batches, so that requests made at the
//! same time share a frame.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_session::{
    Action, Answer, AttemptId, Doubt, Input, Micros, Operation, Options, Outcome, Refusal, RefusalKind, Session,
    Target, Ticket,
};
use lockstep_wire::v1::refusal::Reason;
use lockstep_wire::{convert, limits, v1};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::ClientOptions;
use crate::connection::{Event, Located};
use crate::pool::Pool;

/// Calls and events taken at once.
const BATCH: usize = 1024;
/// How often a client in use asks who leads.
const LOCATE_INTERVAL: Duration = Duration::from_secs(2);
/// How long a client without handles waits for its session to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What handles ask of the driver.
#[derive(Debug)]
pub(crate) enum Call {
    Execute { ticket: Ticket, body: Bytes, deadline: Instant, reply: oneshot::Sender<Reply> },
    Read { ticket: Ticket, body: Bytes, deadline: Instant, reply: oneshot::Sender<Reply> },
    Resolve { ticket: Ticket, deadline: Instant, reply: oneshot::Sender<Reply> },
    Close { deadline: Instant, reply: oneshot::Sender<()> },
}

/// An outcome, and if it is not a reply, what was tried.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) outcome: Outcome,
    pub(crate) tried: String,
}

/// The task's state.
pub(crate) struct Driver {
    session: Session,
    started: Instant,
    wake_at: Option<Instant>,
    pool: Pool,
    calls: mpsc::UnboundedReceiver<Call>,
    events: mpsc::UnboundedReceiver<Event>,
    waiting: HashMap<Ticket, oneshot::Sender<Reply>>,
    /// Those who ask again; several may ask for the same ticket.
    resolving: HashMap<Ticket, Vec<oneshot::Sender<Reply>>>,
    closers: Vec<oneshot::Sender<()>>,
    closed: bool,
    /// Answers came since a replica was asked who leads.
    used: bool,
    locate_at: Instant,
}

impl Driver {
    pub(crate) fn new(options: &ClientOptions, calls: mpsc::UnboundedReceiver<Call>) -> Self {
        let now = Instant::now();
        let (sender, events) = mpsc::unbounded_channel();
        Driver {
            session: Session::new(Options::new(rand::random())),
            started: now,
            wake_at: None,
            pool: Pool::new(&options.endpoints, options.service_id, sender, now),
            calls,
            events,
            waiting: HashMap::new(),
            resolving: HashMap::new(),
            closers: Vec::new(),
            closed: false,
            used: false,
            locate_at: now + LOCATE_INTERVAL,
        }
    }

    /// Runs until the session is closed.
    pub(crate) async fn run(mut self) {
        let (mut calls, mut events) = (Vec::new(), Vec::new());
        let mut handles = true;
        while !self.closed {
            let now = Instant::now();
            let pool_at = self.pool.maintain(now);
            if self.used && self.locate_at <= now {
                self.locate(now);
            }
            let locate_at = self.used.then_some(self.locate_at);
            let wake_at = [self.wake_at, pool_at, locate_at].into_iter().flatten().min();
            let sleep = tokio::time::sleep_until(wake_at.unwrap_or(now + Duration::from_secs(60)).into());
            tokio::select! {
                count = self.calls.recv_many(&mut calls, BATCH), if handles => {
                    if count == 0 {
                        handles = false;
                        let deadline = self.micros(Instant::now() + CLOSE_TIMEOUT);
                        self.step(Input::Close { deadline });
                    }
                }
                _ = self.events.recv_many(&mut events, BATCH) => {}
                () = sleep => {}
            }
            for event in events.drain(..) {
                self.on_event(event);
            }
            for call in calls.drain(..) {
                self.on_call(call);
            }
            if self.wake_at.is_some_and(|at| at <= Instant::now()) {
                self.wake_at = None;
                self.step(Input::Tick);
            }
            self.pool.flush();
        }
        self.calls.close();
        while let Ok(call) = self.calls.try_recv() {
            self.on_call(call);
        }
        for closer in self.closers {
            let _ = closer.send(());
        }
    }

    fn micros(&self, at: Instant) -> Micros {
        u64::try_from(at.saturating_duration_since(self.started).as_micros()).unwrap_or(u64::MAX)
    }

    fn on_call(&mut self, call: Call) {
        match call {
            Call::Execute { ticket, body, deadline, reply } => {
                self.waiting.insert(ticket, reply);
                let deadline = self.micros(deadline);
                self.step(Input::Submit { ticket, body, deadline });
            }
            Call::Read { ticket, body, deadline, reply } => {
                self.waiting.insert(ticket, reply);
                let deadline = self.micros(deadline);
                self.step(Input::SubmitRead { ticket, body, deadline });
            }
            Call::Resolve { ticket, deadline, reply } => {
                self.resolving.entry(ticket).or_default().push(reply);
                let deadline = self.micros(deadline);
                self.step(Input::Resolve { ticket, deadline });
            }
            Call::Close { deadline, reply } => {
                self.closers.push(reply);
                let deadline = self.micros(deadline);
                self.step(Input::Close { deadline });
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Resolved { name, addresses } => self.pool.resolved(&name, addresses, now),
            Event::Up { target, link, located } => {
                if self.pool.up(target, link, &located, now) {
                    self.step(Input::Targets(self.pool.targets()));
                    self.on_located(target, &located);
                }
            }
            Event::Located { target, located } => self.on_located(target, &located),
            Event::Down { target, reason } => {
                let unsent = self.pool.down(target, reason, now);
                // The targets first: the next attempt must not go to the one that is gone.
                self.step(Input::Targets(self.pool.targets()));
                self.step(Input::Disconnected { target, unsent });
            }
            Event::Answers { target, responses } => {
                self.used = true;
                for response in responses {
                    let id = AttemptId(response.id);
                    let answer = self.answer(target, response.result, now);
                    self.step(Input::Answered { id, answer });
                }
            }
        }
    }

    /// Goes to the leader if it can be reached; else the replica that answers forwards.
    fn on_located(&mut self, target: Target, located: &Located) {
        // A replica that is just being connected may be behind the one that we talk to.
        let trusted = self.session.target().is_none_or(|current| current == target);
        self.pool.located(located, trusted, Instant::now());
        if let Some(leader) = self.pool.leader().filter(|leader| trusted || *leader == target) {
            self.step(Input::Prefer { target: leader });
        }
    }

    fn locate(&mut self, now: Instant) {
        self.used = false;
        self.locate_at = now + LOCATE_INTERVAL;
        if let Some(target) = self.session.target() {
            self.pool.locate(target);
        }
    }

    fn answer(&mut self, target: Target, result: Option<v1::response::Result>, now: Instant) -> Answer {
        let refusal = match convert::answer(result) {
            Ok(convert::Answer::Outcome(outcome)) => {
                self.pool.answered(target);
                return Answer::Outcome(outcome);
            }
            Ok(convert::Answer::Invalid { reason }) => return Answer::Invalid { reason },
            Ok(convert::Answer::Refused(refusal)) => refusal,
            Err(error) => {
                self.pool.note(target, &format!("its answer makes no sense: {error}"));
                let kind = RefusalKind::Foreign;
                return Answer::Refused(Refusal { kind, never_proposed: false, leader: None });
            }
        };
        debug!(?target, reason = refusal.reason.as_str_name(), refusal.message, "refused");
        self.pool
            .note(target, if refusal.message.is_empty() { refusal.reason.as_str_name() } else { &refusal.message });
        let kind = match refusal.reason {
            Reason::Overloaded => RefusalKind::Overloaded,
            Reason::WrongService => RefusalKind::Foreign,
            Reason::Unspecified
            | Reason::NoLeader
            | Reason::LeaderLost
            | Reason::Deadline
            | Reason::NotStarted
            | Reason::Stopping
            | Reason::Fenced => RefusalKind::Unavailable,
        };
        let hint = refusal.leader.map(|leader| leader.address).filter(|address| !address.is_empty());
        if let Some(address) = &hint {
            self.pool.hinted(address, now);
        }
        let leader = hint.and_then(|address| self.pool.connected_at(&address));
        Answer::Refused(Refusal { kind, never_proposed: refusal.never_proposed, leader })
    }

    fn step(&mut self, input: Input) {
        let now = self.micros(Instant::now());
        let mut unsent = Vec::new();
        for action in self.session.step(now, input) {
            match action {
                Action::Send { target, id, timeout, operation } => {
                    let request = self.request(id, timeout, operation);
                    if !self.pool.push(target, request) {
                        unsent.push((target, id));
                    }
                }
                Action::Complete { ticket, outcome } => self.complete(ticket, outcome),
                Action::WakeAt(at) => self.wake_at = Some(self.started + Duration::from_micros(at)),
                Action::Closed => self.closed = true,
            }
        }
        // Only a target that went down in this very moment.
        for (target, id) in unsent {
            self.step(Input::Disconnected { target, unsent: vec![id] });
        }
    }

    fn request(&self, id: AttemptId, timeout: Micros, operation: Operation) -> v1::Request {
        let operation = match operation {
            Operation::Command(command) => convert::Operation::Command(command),
            Operation::Read { body } => convert::Operation::Read { body },
        };
        v1::Request {
            id: id.0,
            service_id: self.pool.service().map(|id| convert::id_bytes(id.as_bytes())).unwrap_or_default(),
            timeout_ms: u32::try_from(timeout / 1000).unwrap_or(u32::MAX).clamp(1, limits::TIMEOUT_MS_MAX),
            operation: Some(operation.try_into().expect("a session sends what is for clients")),
        }
    }

    fn complete(&mut self, ticket: Ticket, outcome: Outcome) {
        let tried = match outcome {
            Outcome::Committed { .. } => String::new(),
            Outcome::Rejected { .. } | Outcome::Unknown { .. } => self.pool.tried(),
        };
        let resolvable = matches!(outcome, Outcome::Unknown { reason: Doubt::Unconfirmed });
        let mut told = false;
        for waiting in self.resolving.remove(&ticket).into_iter().flatten().chain(self.waiting.remove(&ticket)) {
            told |= waiting.send(Reply { outcome: outcome.clone(), tried: tried.clone() }).is_ok();
        }
        if resolvable && !told {
            // The caller is gone and will not ask again.
            let now = self.micros(Instant::now());
            let actions = self.session.step(now, Input::Forget { ticket });
            debug_assert!(actions.iter().all(|action| matches!(action, Action::WakeAt(_))), "{actions:?}");
        }
    }
}
