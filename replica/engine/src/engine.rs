//! The loop of one replica: an event changes the state, a poll says what to do about it.

use std::collections::VecDeque;
use std::sync::Arc;

use lockstep_consensus::{Effects, Envelope, Input, Message, Moment, Options, RecordSeq, Reject, Replica, Serve};
use lockstep_machine::{Executor, MachineError, StateMachine, by_name};
use lockstep_types::block::HEADER_BYTES_MAX;
use lockstep_types::limits::BLOCK_BYTES_MAX;
use lockstep_types::{BlockRef, Change, Digest, Epoch, Height, LogTime, Outcome, ReplicaId, Slot, SnapshotRef, block};
use lockstep_wal::{BatchSeq, Cut, Disk, Prepared, RECORD_OVERHEAD, Writer};
use thiserror::Error;

use crate::divergence::Divergence;
use crate::divergence::fence::{Fence, FenceError};
use crate::identity::Identity;
use crate::log::{Log, LogError, ReadError};
use crate::message::PeerMessage;
use crate::requests::{Answer, Operation, Requests, Token};
use crate::snapshots::job::{Job, JobDone, Origin, SnapshotError};
use crate::snapshots::{SnapshotOptions, Snapshots};
use crate::witness::{Amnesia, Claim, Witnessing};

/// Bytes of blocks in one answer to a peer that lags; one block may exceed it.
const SERVE_BYTES: usize = 1 << 20;
/// Blocks in one such answer.
const SERVE_BLOCKS: usize = 1024;
/// Blocks and bytes applied in one poll, so that the loop keeps turning while a long log is replayed.
const APPLY_BLOCKS: usize = 256;
const APPLY_BYTES: usize = 8 << 20;

/// How an engine runs.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Times and bounds of the rules.
    pub rules: Options,
    /// Sizes of the log's files. A batch must hold the largest block.
    pub wal: lockstep_wal::Options,
    /// How snapshots are served and announced.
    pub snapshots: SnapshotOptions,
    /// Bytes that the commands of one block take at most, with their lengths: [`BLOCK_BYTES_MAX`]. Less, the same in all
    /// replicas, only where no command comes near it: in simulations, whose segments are small.
    pub block_bytes: usize,
    /// Microseconds between two messages to a peer that lacks digests of what was executed here.
    pub compare: u64,
    /// The code of the state machine; none: the built-in one that the genesis names.
    pub machine: Option<Arc<dyn StateMachine>>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            rules: Options::default(),
            wal: lockstep_wal::Options::default(),
            block_bytes: BLOCK_BYTES_MAX,
            snapshots: SnapshotOptions::default(),
            compare: 200_000,
            machine: None,
        }
    }
}

impl EngineOptions {
    /// Whether any block can be written.
    fn check(&self) -> Result<(), StartError> {
        let block = (HEADER_BYTES_MAX + self.block_bytes) as u64 + RECORD_OVERHEAD;
        let batch = self.wal.max_batch_bytes();
        if block > batch {
            let least = lockstep_wal::Options::least_segment_bytes(block);
            return Err(StartError::SegmentBytes { segment: self.wal.segment_bytes, batch, block, least });
        }
        Ok(())
    }
}

/// Why a replica cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// It belongs to no service yet.
    #[error("replica {replica} is no member of a service yet")]
    NoMember {
        /// The replica.
        replica: ReplicaId,
    },
    /// The largest block would not fit into a segment of its log.
    #[error(
        "log segments of {segment} bytes hold batches of {batch} bytes, and the largest block takes {block}; \
         choose segments of {least} bytes or more"
    )]
    SegmentBytes {
        /// Bytes of a segment, as asked for.
        segment: u64,
        /// Bytes of records that a batch then has at most.
        batch: u64,
        /// Bytes of the largest block as a record.
        block: u64,
        /// Bytes of the smallest segment that will do.
        least: u64,
    },
    /// Its log refuses.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Its identity cannot be kept, or has retired.
    #[error(transparent)]
    Identity(#[from] crate::identity::IdentityError),
    /// Its state machine refuses.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Its fence cannot be read.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// Its snapshots cannot be looked for.
    #[error(transparent)]
    Snapshots(#[from] SnapshotError),
}

/// What happened.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "most events are messages")]
pub enum Event {
    /// Time passed.
    Tick,
    /// A peer's message. Nothing about it is believed.
    Peer {
        /// The voter that sent it, as the transport knows it.
        from: Slot,
        /// The configuration that the sender named.
        epoch: Epoch,
        /// What it says.
        message: PeerMessage,
    },
    /// A client's request. It is answered once, in an [`Output`].
    Request {
        /// Names it.
        token: Token,
        /// What it wants.
        operation: Operation,
        /// Until when the client waits.
        deadline: Moment,
    },
    /// This batch is on the disk.
    Written(BatchSeq),
    /// A job of an [`Output`] is done.
    Job(JobDone),
    /// Make another voter lead; none: whoever is caught up best.
    HandOver(Option<Slot>),
}

/// What to do, in the order of the fields.
#[derive(Debug, Default)]
pub struct Output {
    /// Messages for peers. The order per receiver matters for speed, not for safety.
    pub send: Vec<Outgoing>,
    /// A batch for the log's writer. There is never more than one under way.
    pub write: Option<Prepared>,
    /// Segments of the log to let go, once all batches so far are committed.
    pub cut: Option<Cut>,
    /// Client commands in that batch, for metrics.
    pub write_commands: usize,
    /// Work for another thread, one after the other.
    pub jobs: Vec<Job>,
    /// Answers for clients.
    pub replies: Vec<(Token, Answer)>,
    /// The snapshot of a peer that took the place of the state, for those who check. Before what was applied.
    pub installed: Option<SnapshotRef>,
    /// The state was built anew and is that of this height, for those who check. Before what was applied.
    pub rebuilt: Option<Height>,
    /// What was executed, for those who check: block and commands that ran, in order.
    pub applied: Vec<AppliedBlock>,
    /// This replica forgot what it had promised: its identity must be retired, and this engine dropped. It does nothing more.
    pub retired: Option<Amnesia>,
    /// When to come back at the latest.
    pub wake_at: Moment,
}

/// A message on its way.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The receiver.
    pub to: Slot,
    /// The configuration of this replica.
    pub epoch: Epoch,
    /// What it says.
    pub message: PeerMessage,
}

/// A block that was applied.
#[derive(Clone, Debug)]
pub struct AppliedBlock {
    /// The block.
    pub block: BlockRef,
    /// The rolling digest after it.
    pub digest: Digest,
    /// Session requests that were executed, not answered from the table.
    pub executed: Vec<(lockstep_types::SessionId, u64)>,
    /// Requests that the session table answered.
    pub answered_from_table: u32,
}

/// One replica of one service, from its genesis on.
pub struct Engine<D: Disk> {
    pub(crate) core: Replica,
    pub(crate) executor: Executor,
    pub(crate) snapshots: Snapshots,
    pub(crate) divergence: Divergence,
    pub(crate) log: Log<D>,
    writer: Option<Writer<D>>,
    /// Promises that wait for their record.
    promised: VecDeque<(RecordSeq, Envelope)>,
    /// Blocks to read and send.
    serve: VecDeque<Serve>,
    /// Reads that were decided while another effect was being carried out.
    pub(crate) requests: Requests,
    pub(crate) me: ReplicaId,
    /// What the others are told of this start.
    pub(crate) claim: Claim,
    pub(crate) witnessing: Witnessing,
    pub(crate) boot: u64,
    pub(crate) out: Output,
    pub(crate) election: u64,
    pub(crate) window: u64,
    pub(crate) block_bytes: usize,
}

impl<D: Disk> Engine<D> {
    /// Starts from what the disk holds.
    ///
    /// # Errors
    /// Segments too small for the largest block, a genesis that is missing or does not name this replica, a log or a machine
    /// that refuses.
    pub fn start(disk: Arc<D>, identity: &Identity, options: EngineOptions, now: Moment) -> Result<Self, StartError> {
        options.check()?;
        let no_member = StartError::NoMember { replica: identity.replica };
        let Some(genesis) = &identity.genesis else { return Err(no_member) };
        let Some(me) = identity.slot else { return Err(no_member) };
        identity.check_fit()?;
        let machine = options.machine.map_or_else(|| by_name(&genesis.machine), Ok)?;
        let origin = Origin { genesis: genesis.clone(), machine };
        let fence = Fence::load(&*disk)?;
        let (mut snapshots, mut restored) = Snapshots::open(&*disk, &origin, options.snapshots, fence)?;
        let open = |snapshots: &Snapshots| {
            let (beginnings, newest) = (snapshots.beginnings(), snapshots.newest());
            Log::open(Arc::clone(&disk), genesis, identity.replica, options.wal, beginnings, newest)
        };
        let mut opened = open(&snapshots);
        if let Err(LogError::Beside { .. }) = opened {
            restored = snapshots.leave_newest_out(&*disk);
            opened = open(&snapshots);
        }
        let (log, recovered, witness) = opened?;
        let executor = restored.unwrap_or_else(|| origin.executor());
        let divergence = Divergence::new(identity.boot, options.compare, executor.applied(), executor.digest());
        let offer = snapshots.log_begins_above(recovered.chain().base());
        identity.note_log(&*disk)?;
        let (election, window, block_bytes) = (options.rules.election, options.rules.window, options.block_bytes);
        let mut core = Replica::start(genesis.service, me, options.rules, recovered, now);
        let applied = Input::Applied { height: executor.applied(), digest: executor.digest() };
        let mut effects = vec![core.step(now, applied)];
        effects.extend(offer.map(|snapshot| core.step(now, Input::Offer(snapshot))));
        let claim = Claim { boot: identity.boot, start: identity.start, holds: log.mark() };
        let mut engine = Engine {
            core,
            executor,
            snapshots,
            divergence,
            writer: Some(log.writer()),
            log,
            promised: VecDeque::new(),
            serve: VecDeque::new(),
            requests: Requests::default(),
            me: identity.replica,
            claim,
            witnessing: Witnessing::new(witness),
            boot: identity.boot,
            out: Output::default(),
            election,
            window,
            block_bytes,
        };
        effects.into_iter().for_each(|effects| engine.absorb(effects));
        fence.into_iter().for_each(|fence| engine.start_fenced(now, fence));
        Ok(engine)
    }

    /// The log's writer, for the thread that commits batches. Taken once.
    pub fn take_writer(&mut self) -> Writer<D> {
        self.writer.take().expect("the writer is taken once")
    }

    /// Takes one event. Events must come in the order in which they happened.
    pub fn handle(&mut self, now: Moment, event: Event) {
        if self.witnessing.retired.is_some() {
            return;
        }
        match event {
            Event::Tick => {
                let effects = self.core.step(now, Input::Tick);
                self.absorb(effects);
            }
            Event::Peer { from, epoch, message } => self.on_peer(now, from, epoch, message),
            Event::Request { token, operation, deadline } => self.open_request(now, token, operation, deadline),
            Event::Written(batch) => {
                let seq = self.log.written(batch);
                let effects = self.core.step(now, Input::Durable(seq));
                self.absorb(effects);
                self.release(seq);
            }
            Event::Job(done) => self.on_job_done(now, done),
            Event::HandOver(target) => {
                let effects = self.core.step(now, Input::HandOver { target });
                self.absorb(effects);
            }
        }
    }

    /// Says what to do about all events since the last poll.
    ///
    /// # Errors
    /// A block that was written cannot be read: the process must stop.
    pub fn poll(&mut self, now: Moment, wall: LogTime) -> Result<Output, ReadError> {
        if let Some(amnesia) = self.witnessing.retired {
            self.out = Output { retired: Some(amnesia), wake_at: Moment::from_micros(u64::MAX), ..Output::default() };
            return Ok(std::mem::take(&mut self.out));
        }
        if now >= self.core.deadline() {
            self.handle(now, Event::Tick);
        }
        self.drive_requests(now);
        self.propose_queued(now, wall);
        self.drive_divergence(now);
        self.apply_committed(now)?;
        self.judge_state(now);
        let to_apply = self.appliable() > self.executor.applied();
        let to_read = self.answer_reads();
        self.serve_blocks()?;
        self.drive_snapshots(now);
        self.drive_witness(now);
        self.out.write = self.log.next_batch(&self.witnessing.witness);
        self.out.cut = self.log.next_cut();
        self.out.write_commands = self.log.syncing_commands();
        let due = self.core.deadline().min(self.requests.deadline()).min(self.snapshots.deadline());
        let due = due.min(self.divergence.deadline()).min(self.tell_at());
        self.out.wake_at = if to_apply || to_read { now } else { due };
        Ok(std::mem::take(&mut self.out))
    }

    fn on_peer(&mut self, now: Moment, from: Slot, epoch: Epoch, message: PeerMessage) {
        match message {
            _ if self.is_deaf_to(from) => {}
            PeerMessage::Consensus(message) => {
                let effects = self.core.step(now, Input::Receive { from, epoch, message });
                self.absorb(effects);
            }
            // The rules check the sender of their messages; these must come from a member too.
            _ if !self.core.hears(from, epoch) => {}
            PeerMessage::Forward { id, command } => self.on_forward(from, id, command),
            PeerMessage::ForwardReply { id, result } => self.on_forward_reply(from, id, result),
            PeerMessage::ReadIndex { id } => self.on_read_index(now, from, id),
            PeerMessage::ReadIndexReply { id, height } => self.on_read_index_reply(now, from, id, height),
            PeerMessage::Remembered(all) => self.on_remembered(all),
            PeerMessage::Snapshots { kept, asks } => {
                self.on_snapshots_named(from, kept, asks);
                self.judge_snapshots(now);
            }
            PeerMessage::FetchChunk { digest } => self.on_chunk_asked(from, digest),
            PeerMessage::Chunk { digest, bytes } => self.on_chunk(from, digest, bytes),
            PeerMessage::Digests { round, first, digests, have } => self.on_digests(from, round, first, digests, have),
            PeerMessage::FetchWrites { height } => self.on_writes_asked(from, height),
            PeerMessage::Writes { height, writes } => self.on_writes(height, writes),
        }
    }

    /// Proposes a change of membership. Gives the height of its block; it is done once [`Status::membership`] says that it is
    /// committed and settled.
    ///
    /// # Errors
    /// This replica does not lead, or the change cannot be made, or not now.
    pub fn change(&mut self, now: Moment, change: Change) -> Result<Height, Reject> {
        let effects = self.core.step(now, Input::Change(change));
        let answer = match (&effects.rejected, &effects.proposed) {
            (Some(reject), _) => Err(*reject),
            (None, Some(block)) => Ok(block.height),
            (None, None) => unreachable!("a change is proposed or refused"),
        };
        self.absorb(effects);
        answer
    }

    /// Carries effects out, in the order of their fields.
    pub(crate) fn absorb(&mut self, effects: Effects) {
        for envelope in effects.send {
            self.send_envelope(envelope);
        }
        for (seq, record) in effects.persist {
            self.log.push(seq, record);
        }
        for (seq, envelope) in effects.send_after {
            if seq <= self.log.durable() || cfg!(planted = "ack-before-sync") {
                self.send_envelope(envelope);
            } else {
                self.promised.push_back((seq, envelope));
            }
        }
        self.serve.extend(effects.serve);
        if let Some((from, snapshot)) = effects.install {
            self.fetch_snapshot(from, snapshot);
        }
        for (id, outcome) in effects.reads {
            self.on_read_decided(id, outcome);
        }
    }

    /// Sends the promises whose records are durable. Acknowledgements are cumulative: of several to one leader the last says
    /// it all.
    fn release(&mut self, durable: RecordSeq) {
        let count = self.promised.iter().take_while(|(seq, _)| *seq <= durable).count();
        let released: Vec<Envelope> = self.promised.drain(..count).map(|(_, envelope)| envelope).collect();
        for (index, envelope) in released.iter().enumerate() {
            let superseded = released[index + 1..].iter().any(|later| supersedes(later, envelope));
            if !superseded {
                self.send_envelope(envelope.clone());
            }
        }
    }

    fn send_envelope(&mut self, envelope: Envelope) {
        let Envelope { to, epoch, message } = envelope;
        self.out.send.push(Outgoing { to, epoch, message: PeerMessage::Consensus(message) });
    }

    pub(crate) fn send(&mut self, to: Slot, message: PeerMessage) {
        self.out.send.push(Outgoing { to, epoch: self.core.config().epoch(), message });
    }

    /// The highest block that may be applied.
    fn appliable(&self) -> Height {
        let committed = self.core.committed().height;
        self.divergence.limit().map_or(committed, |limit| committed.min(limit))
    }

    /// Applies what is committed and may be, up to a bound.
    fn apply_committed(&mut self, now: Moment) -> Result<(), ReadError> {
        let appliable = self.appliable();
        let mut bytes = 0;
        for _ in 0..APPLY_BLOCKS {
            let height = self.executor.applied().next();
            if height > appliable || bytes >= APPLY_BYTES {
                break;
            }
            let block = self.log.block(height)?;
            bytes += block.body().len();
            let own = self.core.chain().at(height).expect("a committed block is on the chain");
            assert!(block.hash() == own.hash, "the log holds another block at {height} than the chain");
            let commands = block::decode_body(block.body()).expect("the body was checked when the block was decoded");
            let applied = self.executor.apply(block.header(), block.hash(), &commands);
            self.out.applied.push(AppliedBlock {
                block: own,
                digest: self.executor.digest(),
                executed: applied.executed,
                answered_from_table: applied.answered_from_table,
            });
            self.divergence.applied(height, self.executor.digest(), self.executor.writes());
            let asked = applied.outcomes.iter().any(|outcome| matches!(outcome, Outcome::SnapshotPoint { .. }));
            if self.divergence.is_halted() {
                self.skip_blocks(height);
            } else {
                self.answer_block(height, own.hash, applied.outcomes);
            }
            if applied.snapshot_point && !self.divergence.is_halted() {
                self.take_snapshot(block.header(), own, asked);
            }
        }
        let height = self.executor.applied();
        self.log.forget_bodies(height);
        let effects = self.core.step(now, Input::Applied { height, digest: self.executor.digest() });
        self.absorb(effects);
        Ok(())
    }

    /// Reads and sends what peers that lag asked for.
    fn serve_blocks(&mut self) -> Result<(), ReadError> {
        while let Some(Serve { to, after, upto, committed }) = self.serve.pop_front() {
            let mut blocks = Vec::new();
            let mut size = 0;
            let mut height = after.next();
            if after < self.core.chain().base().height {
                // Forgotten since the rules answered.
                continue;
            }
            // The chain may have been replaced, too; the asker checks each hash.
            while height <= upto.min(self.core.head().height) && size < SERVE_BYTES && blocks.len() < SERVE_BLOCKS {
                let block = self.log.block(height)?;
                size += block::HEADER_BYTES_MAX + block.body().len();
                blocks.push(block);
                height = height.next();
            }
            self.send(to, PeerMessage::Consensus(Message::Fetched { after, blocks: Ok(blocks), committed }));
        }
        Ok(())
    }

    /// The leader, if it has been heard within the election time.
    pub fn leader(&self, now: Moment) -> Option<Slot> {
        match self.core.leader_heard() {
            Some((heard, _)) if now.since(heard) > self.election => None,
            Some(_) | None => self.core.leader(),
        }
    }
}

/// Whether `later` says all that `earlier` says.
fn supersedes(later: &Envelope, earlier: &Envelope) -> bool {
    match (&later.message, &earlier.message) {
        (Message::Ack { view: new, .. }, Message::Ack { view: old, .. }) => later.to == earlier.to && new == old,
        _ => false,
    }
}
