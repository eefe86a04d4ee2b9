//! The thread "core": takes what happened from three queues, turns the engine once, and carries out what it says.
//!
//! The queues by rank: what the engine waits for (durable batches, admin calls), peers, clients. The first is not bounded,
//! since its senders are few and wait for answers; the other two are, in frames and in bytes.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lockstep_consensus::{Moment, Reject};
use lockstep_engine::log::ReadError;
use lockstep_engine::{
    Amnesia, Answer, Claim, Engine, Event, Job, JobDone, Operation, Output, PeerMessage, StateDoubt, Status, Token,
};
use lockstep_types::{Change, Epoch, Height, ReplicaId, Slot};
use lockstep_wal::{BatchSeq, Disk};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::job_runner;
use crate::log_writer::{self, Work};
use crate::metrics::{Kind, Metrics};
use crate::peers::Peers;

/// Frames in the queue of peers, and in that of clients.
const FRAMES_QUEUED: usize = 1024;
/// Requests taken in one turn, so that peers are heard in between.
const REQUESTS_A_TURN: usize = 4096;
/// Messages of peers taken in one turn.
const MESSAGES_A_TURN: usize = 4096;
/// Status is published at least this often, which is also how often the loop turns at least.
const PUBLISH: Duration = Duration::from_millis(100);

/// What the engine waits for.
pub(crate) enum Urgent {
    /// This batch is on the disk.
    Written(BatchSeq),
    /// A job on snapshots is done.
    Job(JobDone),
    /// Make another voter lead.
    HandOver(Option<Slot>),
    /// Change the membership.
    Change(Change, oneshot::Sender<Result<Height, Reject>>),
    /// Another replica says who it is.
    Meet(ReplicaId, Claim, oneshot::Sender<Result<(), Amnesia>>),
    /// What does the engine say of itself?
    Status(oneshot::Sender<Status>),
    /// End the thread.
    Stop,
}

/// Messages of one frame of a peer.
pub(crate) struct PeerBatch {
    pub from: Slot,
    pub messages: Vec<(Epoch, PeerMessage)>,
    /// Its share of the bytes that may wait.
    pub share: OwnedSemaphorePermit,
}

/// Requests of one frame of a client.
pub(crate) struct ClientBatch {
    pub requests: Vec<ClientRequest>,
    /// Its share of the bytes that may wait.
    pub share: OwnedSemaphorePermit,
}

/// A request on its way to the engine.
pub(crate) struct ClientRequest {
    pub operation: Operation,
    pub deadline: Moment,
    pub reply: ReplyTo,
}

/// Where an answer goes.
pub(crate) enum ReplyTo {
    /// To a stream, under the client's own id.
    Stream { sink: Arc<Sink>, id: u64 },
    /// To a unary call.
    Call(oneshot::Sender<Answer>),
}

/// Where the answers of one stream go. Those of one turn go together.
pub(crate) struct Sink {
    pub number: u64,
    pub answers: mpsc::UnboundedSender<Vec<(u64, Answer)>>,
}

/// The way to the core thread. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CoreHandle {
    pub urgent: mpsc::UnboundedSender<Urgent>,
    peers: mpsc::Sender<PeerBatch>,
    clients: mpsc::Sender<ClientBatch>,
    peer_bytes: Arc<Semaphore>,
    client_bytes: Arc<Semaphore>,
    /// The engine's word, at most [`PUBLISH`] old while the thread turns.
    pub status: watch::Receiver<Status>,
    /// When the loop last turned, by [`Clock`], in microseconds.
    turned: Arc<AtomicU64>,
}

/// The thread is gone: the process is about to end.
#[derive(Debug)]
pub(crate) struct Gone;

impl CoreHandle {
    /// Waits for room, then queues the messages.
    pub async fn peers(&self, from: Slot, messages: Vec<(Epoch, PeerMessage)>, bytes: usize) -> Result<(), Gone> {
        let share = share(&self.peer_bytes, bytes).await?;
        self.peers.send(PeerBatch { from, messages, share }).await.map_err(|_| Gone)
    }

    /// Waits for room, then queues the requests.
    pub async fn requests(&self, requests: Vec<ClientRequest>, bytes: usize) -> Result<(), Gone> {
        let share = share(&self.client_bytes, bytes).await?;
        self.clients.send(ClientBatch { requests, share }).await.map_err(|_| Gone)
    }

    /// The engine's word of this moment, or the last one that is known if the thread is busy for long.
    pub async fn fresh_status(&self) -> Status {
        let (reply, answer) = oneshot::channel();
        if self.urgent.send(Urgent::Status(reply)).is_ok()
            && let Ok(Ok(status)) = tokio::time::timeout(Duration::from_millis(500), answer).await
        {
            return status;
        }
        self.status.borrow().clone()
    }

    /// Whether another replica may be listened to.
    pub async fn meet(&self, replica: ReplicaId, claim: Claim) -> Result<Result<(), Amnesia>, Gone> {
        let (reply, answer) = oneshot::channel();
        self.urgent.send(Urgent::Meet(replica, claim, reply)).map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// When the loop last turned.
    pub fn turned(&self) -> Moment {
        Moment::from_micros(self.turned.load(Ordering::Relaxed))
    }
}

async fn share(bytes: &Arc<Semaphore>, count: usize) -> Result<OwnedSemaphorePermit, Gone> {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    Arc::clone(bytes).acquire_many_owned(count).await.map_err(|_| Gone)
}

/// In a thread that the process cannot do without: ends the process if the thread panics.
pub(crate) struct EndsProcess;

impl Drop for EndsProcess {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("lockstep replica: a bug ended thread {:?}; the process stops", thread::current().name());
            std::process::exit(101);
        }
    }
}

/// What the thread needs.
pub(crate) struct Parts<D: Disk> {
    pub engine: Engine<D>,
    pub disk: Arc<D>,
    pub clock: Clock,
    pub peers: Arc<Peers>,
    pub metrics: Arc<Metrics>,
    pub max_queued_bytes: usize,
    /// Told if this replica must retire, and why.
    pub retire: mpsc::UnboundedSender<String>,
}

/// The threads of a replica.
pub(crate) struct Threads {
    core: JoinHandle<()>,
    wal: JoinHandle<()>,
    snapshots: JoinHandle<()>,
}

impl Threads {
    /// Waits until all ended.
    pub fn join(self) {
        // A panic ended the process already.
        let _ = self.core.join();
        let _ = self.wal.join();
        let _ = self.snapshots.join();
    }
}

/// Starts the threads.
pub(crate) fn start<D: Disk>(parts: Parts<D>) -> io::Result<(CoreHandle, Threads)> {
    let Parts { mut engine, disk, clock, peers, metrics, max_queued_bytes, retire } = parts;
    let (urgent, urgent_queue) = mpsc::unbounded_channel();
    let (peers_in, peers_queue) = mpsc::channel(FRAMES_QUEUED);
    let (clients_in, clients_queue) = mpsc::channel(FRAMES_QUEUED);
    let (publish, status) = watch::channel(engine.status(clock.now()));
    let turned = Arc::new(AtomicU64::new(clock.now().as_micros()));

    let (batches, wal) = log_writer::start(engine.take_writer(), urgent.clone(), Arc::clone(&metrics))?;
    let (jobs, snapshots) = job_runner::start(disk, urgent.clone())?;
    let core = Core {
        engine,
        clock,
        peers,
        metrics,
        batches,
        jobs,
        publish,
        published: clock.now(),
        turned: Arc::clone(&turned),
        callers: HashMap::new(),
        next_token: 0,
        epochs: (Epoch::default(), Epoch::default(), false),
        retire,
        wake_at: clock.now(),
    };
    let queues = Queues { urgent: urgent_queue, peers: peers_queue, clients: clients_queue };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let core = thread::Builder::new().name("core".to_owned()).spawn(move || {
        let _guard = EndsProcess;
        if let Err(error) = runtime.block_on(core.turn(queues)) {
            tracing::error!("the log cannot be read, the replica stops: {error}");
            eprintln!("lockstep replica: {error}");
            std::process::exit(1);
        }
    })?;
    let bytes = |limit| Arc::new(Semaphore::new(limit));
    let handle = CoreHandle {
        urgent,
        peers: peers_in,
        clients: clients_in,
        peer_bytes: bytes(max_queued_bytes),
        client_bytes: bytes(max_queued_bytes),
        status,
        turned,
    };
    Ok((handle, Threads { core, wal, snapshots }))
}

struct Queues {
    urgent: mpsc::UnboundedReceiver<Urgent>,
    peers: mpsc::Receiver<PeerBatch>,
    clients: mpsc::Receiver<ClientBatch>,
}

/// What is taken from the queues in one turn.
#[derive(Default)]
struct Bunch {
    urgent: Vec<Urgent>,
    peers: Vec<PeerBatch>,
    clients: Vec<ClientBatch>,
}

impl Queues {
    /// Waits until something is there or the moment has come.
    async fn wait(&mut self, until: std::time::Instant, bunch: &mut Bunch) {
        tokio::select! {
            biased;
            Some(urgent) = self.urgent.recv() => bunch.urgent.push(urgent),
            Some(batch) = self.peers.recv() => bunch.peers.push(batch),
            Some(batch) = self.clients.recv() => bunch.clients.push(batch),
            () = tokio::time::sleep_until(until.into()) => {}
        }
    }

    /// Takes what is there, up to the bounds of one turn.
    fn drain(&mut self, bunch: &mut Bunch) {
        while let Ok(urgent) = self.urgent.try_recv() {
            bunch.urgent.push(urgent);
        }
        let mut messages: usize = bunch.peers.iter().map(|batch| batch.messages.len()).sum();
        while messages < MESSAGES_A_TURN
            && let Ok(batch) = self.peers.try_recv()
        {
            messages += batch.messages.len();
            bunch.peers.push(batch);
        }
        let mut requests: usize = bunch.clients.iter().map(|batch| batch.requests.len()).sum();
        while requests < REQUESTS_A_TURN
            && let Ok(batch) = self.clients.try_recv()
        {
            requests += batch.requests.len();
            bunch.clients.push(batch);
        }
    }
}

struct Core<D: Disk> {
    engine: Engine<D>,
    clock: Clock,
    peers: Arc<Peers>,
    metrics: Arc<Metrics>,
    batches: std::sync::mpsc::Sender<Work>,
    jobs: std::sync::mpsc::Sender<Job>,
    publish: watch::Sender<Status>,
    published: Moment,
    turned: Arc<AtomicU64>,
    /// Who waits for an answer.
    callers: HashMap<Token, Caller>,
    next_token: u64,
    /// The memberships that the peers were told of.
    epochs: (Epoch, Epoch, bool),
    retire: mpsc::UnboundedSender<String>,
    wake_at: Moment,
}

struct Caller {
    reply: ReplyTo,
    kind: Kind,
    since: Moment,
}

/// Answers of one turn for one stream.
struct Answers {
    sink: Arc<Sink>,
    list: Vec<(u64, Answer)>,
}

/// Whether the thread goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Turn,
    Stop,
}

impl<D: Disk> Core<D> {
    async fn turn(mut self, mut queues: Queues) -> Result<(), ReadError> {
        let publish = u64::try_from(PUBLISH.as_micros()).expect("a fraction of a second");
        let mut bunch = Bunch::default();
        loop {
            let now = self.clock.now();
            let until = self.wake_at.min(self.published.plus(publish));
            if until > now {
                queues.wait(self.clock.instant(until), &mut bunch).await;
            } else {
                // Timers of this small runtime move only when it is given a chance.
                tokio::task::yield_now().await;
            }
            queues.drain(&mut bunch);
            let now = self.clock.now();
            if self.take(now, &mut bunch) == Next::Stop {
                return Ok(());
            }
            let output = self.engine.poll(now, Clock::wall())?;
            self.carry_out(now, output);
            let leader_changed = self.engine.leader(now) != self.publish.borrow().leader;
            let members_changed = self.engine.epochs() != self.epochs;
            if members_changed {
                self.epochs = self.engine.epochs();
                self.peers.update(&self.engine.membership());
            }
            let doubt_changed = self.engine.divergence() != self.publish.borrow().divergence;
            if leader_changed || members_changed || doubt_changed || now.since(self.published) >= publish {
                self.publish_status(now);
            }
            self.turned.store(now.as_micros(), Ordering::Relaxed);
        }
    }

    fn take(&mut self, now: Moment, bunch: &mut Bunch) -> Next {
        for urgent in bunch.urgent.drain(..) {
            match urgent {
                Urgent::Written(batch) => self.engine.handle(now, Event::Written(batch)),
                Urgent::Job(done) => self.engine.handle(now, Event::Job(done)),
                Urgent::HandOver(target) => self.engine.handle(now, Event::HandOver(target)),
                // An asker that is gone needs no answer.
                Urgent::Change(change, reply) => drop(reply.send(self.engine.change(now, change))),
                Urgent::Meet(replica, claim, reply) => drop(reply.send(self.engine.meet(now, replica, claim))),
                Urgent::Status(reply) => drop(reply.send(self.engine.status(now))),
                Urgent::Stop => return Next::Stop,
            }
        }
        for batch in bunch.peers.drain(..) {
            for (epoch, message) in batch.messages {
                self.engine.handle(now, Event::Peer { from: batch.from, epoch, message });
            }
            drop(batch.share);
        }
        let (mut commands, mut reads) = (0, 0);
        for batch in bunch.clients.drain(..) {
            for request in batch.requests {
                let kind = match request.operation {
                    Operation::Command(_) => Kind::Command,
                    Operation::Read(_) => Kind::Read,
                };
                match kind {
                    Kind::Command => commands += 1,
                    Kind::Read => reads += 1,
                }
                let token = Token(self.next_token);
                self.next_token += 1;
                self.callers.insert(token, Caller { reply: request.reply, kind, since: now });
                let ClientRequest { operation, deadline, .. } = request;
                self.engine.handle(now, Event::Request { token, operation, deadline });
            }
            drop(batch.share);
        }
        self.metrics.observe_arrivals(commands, reads);
        Next::Turn
    }

    fn carry_out(&mut self, now: Moment, output: Output) {
        let Output {
            send,
            write,
            cut,
            write_commands,
            jobs,
            replies,
            installed,
            rebuilt,
            applied: _,
            retired,
            wake_at,
        } = output;
        if let Some(amnesia) = retired {
            // The process is about to end.
            let _ = self.retire.send(amnesia.to_string());
        }
        if let Some(snapshot) = installed {
            tracing::info!("{snapshot} of the other replicas took the place of the state");
        }
        if let Some(height) = rebuilt {
            tracing::info!("the state is built anew, from that of height {height} on");
        }
        for outgoing in send {
            self.peers.send(outgoing);
        }
        if let Some(prepared) = write {
            let work = Work::Commit { prepared, commands: write_commands };
            self.batches.send(work).expect("the thread of the log ends after this one");
        }
        if let Some(cut) = cut {
            self.batches.send(Work::Cut(cut)).expect("the thread of the log ends after this one");
        }
        for job in jobs {
            self.jobs.send(job).expect("the thread of the snapshots ends after this one");
        }
        self.answer(now, replies);
        self.wake_at = wake_at;
    }

    fn answer(&mut self, now: Moment, replies: Vec<(Token, Answer)>) {
        let mut streams: HashMap<u64, Answers> = HashMap::new();
        for (token, answer) in replies {
            let caller = self.callers.remove(&token).expect("the engine answers each request once");
            self.metrics.observe_answer(caller.kind, &answer, Duration::from_micros(now.since(caller.since)));
            match caller.reply {
                // Whoever does not wait any more needs no answer.
                ReplyTo::Call(reply) => drop(reply.send(answer)),
                ReplyTo::Stream { sink, id } => {
                    let answers = streams.entry(sink.number).or_insert_with(|| Answers { sink, list: Vec::new() });
                    answers.list.push((id, answer));
                }
            }
        }
        for Answers { sink, list } in streams.into_values() {
            // A client that left needs no answer.
            let _ = sink.answers.send(list);
        }
    }

    fn publish_status(&mut self, now: Moment) {
        let status = self.engine.status(now);
        let before = self.publish.borrow().view;
        if status.view != before {
            tracing::debug!("view {} after {before}, {:?}", status.view, status.role);
        }
        if status.leader != self.publish.borrow().leader {
            match status.leader {
                Some(leader) => tracing::info!("{leader} leads view {}", status.view),
                None => tracing::info!("no leader heard in view {}", status.view),
            }
        }
        if let Some(found) = &status.divergence
            && self.publish.borrow().divergence.as_ref() != Some(found)
        {
            match found.state {
                StateDoubt::Over => tracing::warn!("this replica: {found}"),
                StateDoubt::Open | StateDoubt::OpenAgain | StateDoubt::Fenced | StateDoubt::FencedAgain => {
                    tracing::error!("this replica {found}");
                }
            }
        }
        if let Some(trouble) = &status.snapshots.trouble
            && self.publish.borrow().snapshots.trouble.as_ref() != Some(trouble)
        {
            tracing::warn!("snapshots: {trouble}");
        }
        self.metrics.observe_status(&status);
        self.published = now;
        self.publish.send_replace(status);
    }
}
