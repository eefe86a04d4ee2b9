//! The state of a replica, the one entrance to it, and what all roles share.

use alloc::collections::{BTreeMap, VecDeque};

use lockstep_types::{
    Block, BlockHeader, BlockRef, Configuration, Digest, Epoch, Height, LogTime, ServiceId, Slot, SnapshotRef, View,
    limits,
};

use crate::catching_up::CatchUp;
use crate::chain::Chain;
use crate::effects::{Effects, Input, Moment, Promise, Record, RecordSeq, Reject};
use crate::following::Following;
use crate::leading::Leading;
use crate::leaving::Waiting;
use crate::message::{Envelope, Message};

/// Rounds that a message may be ahead. No service counts that far between two messages; a peer that says so is wrong, and a
/// promise to enter such a view could never be taken back.
const ROUNDS_AHEAD: u64 = 1 << 32;

/// Times, in microseconds, and bounds. All replicas of a service use the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// Between two heartbeats of a leader.
    pub heartbeat: u64,
    /// Without a leader's word for this long, a replica suspects; a leader without a quorum's steps down.
    /// At least four heartbeats.
    pub election: u64,
    /// Blocks of its own view that a leader may have above max(committed, where the view began) (schedule L1). At least 1.
    pub window: u64,
    /// A leader whose oldest own write takes longer hands over (schedule L4): its disk hangs.
    pub slow_disk: u64,
    /// Milliseconds that log time may run ahead of the leader's own monotonic progress, per block (schedule M4).
    pub slew_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            heartbeat: 50_000,
            election: 500_000,
            window: limits::WINDOW_BLOCKS,
            slow_disk: 4_000_000,
            slew_ms: 1_000,
        }
    }
}

/// What the disk held at the start of the process: a snapshot, or none, and the write-ahead log.
#[derive(Clone, Debug)]
pub struct Recovered {
    chain: Chain,
    /// The last block of the log, on the chain or not.
    last: Option<BlockRef>,
    committed: BlockRef,
    timeout: Option<View>,
    lead: Option<View>,
}

impl Recovered {
    /// Starts with the configuration of the genesis: a new service, or one without a snapshot.
    pub fn new(genesis: Configuration) -> Self {
        Recovered { chain: Chain::new(genesis), last: None, committed: BlockRef::GENESIS, timeout: None, lead: None }
    }

    /// Starts above the block of a durable snapshot, whose log time is `log_time`; `configuration` is in force above it.
    pub fn above(base: BlockRef, log_time: LogTime, configuration: Configuration) -> Self {
        Recovered {
            chain: Chain::above(base, log_time, configuration),
            last: None,
            committed: base,
            timeout: None,
            lead: None,
        }
    }

    /// Takes in a block, in the order of the log. Returns whether it is on the chain now. Above a snapshot others are no
    /// wonder: what the snapshot stands for, and blocks that never committed and whose replaced parents are gone.
    pub fn block(&mut self, header: &BlockHeader, hash: Digest) -> bool {
        self.last = Some(BlockRef { view: header.view, height: header.height, hash });
        let fits = header.height > self.chain.base().height
            && self
                .chain
                .at(header.height.prev())
                .is_some_and(|below| below.hash == header.parent && below.view <= header.view)
            && self.chain.admits(header);
        if fits {
            self.chain.put(header, hash);
        }
        fits
    }

    /// The last block of the log, if the chain should end with it and does not: then blocks in between are missing. One that
    /// is no higher than the snapshot never committed, or the snapshot stands for it; so is one that ranks below it.
    pub fn missing(&self) -> Option<BlockRef> {
        self.last.filter(|last| !self.accounts_for(*last))
    }

    /// Whether a block that was written is on the chain, or does not count beside the snapshot that it stands on.
    pub fn accounts_for(&self, written: BlockRef) -> bool {
        let base = self.chain.base();
        self.chain.holds(written) || written.height <= base.height || written.rank() <= base.rank()
    }

    /// Takes in that a snapshot of this block took the place of the log, in the order of the log.
    pub fn base(&mut self, block: BlockRef) {
        self.last = Some(block);
    }

    /// Takes in that this block is committed: a snapshot of it is durable. Returns false if it is not on the chain.
    #[must_use]
    pub fn committed(&mut self, block: BlockRef) -> bool {
        let holds = self.chain.holds(block);
        if holds && block.height > self.committed.height {
            self.committed = block;
        }
        holds
    }

    /// Takes in a promise, in the order of the log or from its second copy. The highest of each kind counts.
    pub fn promise(&mut self, promise: Promise) {
        match promise {
            Promise::Timeout(view) => self.timeout = self.timeout.max(Some(view)),
            Promise::Lead(view) => self.lead = self.lead.max(Some(view)),
        }
    }

    /// The chain so far.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }
}

/// What a replica is in its current view, for status and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoleName {
    /// Appends what the leader says, or waits to hear one.
    Follower,
    /// Left its view, waits for the next one.
    Candidate,
    /// Leads.
    Leader,
}

/// One member of a service: a voter, a standby, or one that is about to join.
///
/// Invariants: committed ≤ head; the current view is never below the head's header view, the newest Timeout or the newest
/// Lead; it never decreases, also over restarts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    pub(crate) service: ServiceId,
    pub(crate) me: Slot,
    pub(crate) options: Options,
    pub(crate) chain: Chain,
    /// Always on the chain.
    pub(crate) committed: BlockRef,
    /// Max(newest Timeout, header view of the head, newest Lead, highest leader heard).
    pub(crate) view: View,
    /// The newest `Timeout` queued for the disk, and its record.
    pub(crate) left_for: Option<(View, RecordSeq)>,
    /// The number of the last record queued.
    pub(crate) queued: RecordSeq,
    /// The number of the last record known to be durable.
    pub(crate) durable: RecordSeq,
    /// Blocks queued and not known to be durable, lowest first: record, block, when queued.
    pub(crate) undurable: VecDeque<(RecordSeq, BlockRef, Moment)>,
    /// The highest Timeout heard from each other voter, with its rank.
    pub(crate) timeouts: BTreeMap<Slot, (View, BlockRef)>,
    pub(crate) applied: (Height, Digest),
    /// When the head's log time was taken on, for the slew rule.
    pub(crate) head_since: Moment,
    pub(crate) catch_up: Option<CatchUp>,
    /// The newest snapshot that this replica may serve.
    pub(crate) offer: Option<SnapshotRef>,
    /// The record that says which snapshot took the place of the log; what is said of the head waits for it.
    pub(crate) based: RecordSeq,
    /// The snapshot that the host was asked for.
    pub(crate) installing: Option<SnapshotRef>,
    /// The host's state is in doubt: see [`Input::Fence`].
    pub(crate) fenced: bool,
    /// The epochs, settled and newest, between which members are told.
    pub(crate) told: (Epoch, Epoch),
    pub(crate) role: Role,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Follower(Following),
    Candidate(Waiting),
    Leader(Leading),
}

impl Replica {
    /// Starts a member from what its disk held: [`Recovered::new`] for an empty one. Nothing above its snapshots is committed as
    /// far as it knows: it learns that again from its peers.
    ///
    /// `me` is the slot of the genesis, or the one that a committed [`lockstep_types::Change::AddStandby`] gave. It need not
    /// be on the own chain yet: what this replica is there, see [`Self::standing`], it learns as it catches up.
    pub fn start(service: ServiceId, me: Slot, options: Options, recovered: Recovered, now: Moment) -> Self {
        let head = recovered.chain.head();
        let view = head.view.max(recovered.timeout.unwrap_or(View::ZERO)).max(recovered.lead.unwrap_or(View::ZERO));
        let left_for = recovered.timeout.map(|view| (view, RecordSeq::ZERO));
        // Who led, or was about to lead, its own current view never does so again (schedule S1): it starts as a follower of
        // itself and leaves with the first step.
        let waits = recovered.timeout == Some(view) && head.view < view;
        let role = if waits && view.leader != me {
            // It promised to leave and found nothing since: its Timeout is sent again (schedule L3).
            Role::Candidate(Waiting::since(now))
        } else {
            Role::Follower(Following::unheard(now))
        };
        let base = recovered.chain.base();
        let epoch = recovered.chain.configuration_above(base.height).epoch();
        let mut replica = Replica {
            service,
            me,
            options,
            chain: recovered.chain,
            committed: recovered.committed,
            view,
            left_for,
            queued: RecordSeq::ZERO,
            durable: RecordSeq::ZERO,
            undurable: VecDeque::new(),
            timeouts: BTreeMap::new(),
            applied: (Height::ZERO, Digest::ZERO),
            head_since: now,
            catch_up: None,
            offer: None,
            based: RecordSeq::ZERO,
            installing: None,
            fenced: false,
            told: (epoch, epoch),
            role,
        };
        replica.mind_members();
        replica
    }

    /// Takes one input. Inputs must come in the order in which they happened, with a time that never runs back.
    pub fn step(&mut self, now: Moment, input: Input) -> Effects {
        let mut out = Effects::default();
        let done = match input {
            Input::Tick => Ok(()),
            Input::Receive { from, epoch, message } => self.receive(now, from, epoch, message, &mut out),
            Input::Propose { body, wall } => self.propose(now, body, wall, &mut out),
            Input::Change(change) => self.change(now, change, &mut out),
            Input::Durable(seq) => {
                self.on_durable(now, seq, &mut out);
                Ok(())
            }
            Input::Applied { height, digest } => {
                assert!(height <= self.committed.height, "applied {height} beyond committed {}", self.committed.height);
                self.applied = (height, digest);
                Ok(())
            }
            Input::Offer(snapshot) => {
                self.offer = self.offer.max(Some(snapshot));
                Ok(())
            }
            Input::Installed { snapshot, log_time, configuration } => {
                self.on_installed(now, snapshot, log_time, configuration, &mut out);
                Ok(())
            }
            Input::InstallFailed => {
                self.installing = None;
                self.ask_next_peer(now);
                Ok(())
            }
            Input::Fence(fenced) => {
                self.fenced = fenced;
                Ok(())
            }
            Input::Forget(height) => {
                self.forget(height);
                Ok(())
            }
            Input::Read(id) => {
                self.read(now, id, &mut out);
                Ok(())
            }
            Input::HandOver { target } => self.start_hand_over(now, target),
        };
        out.rejected = done.err();
        self.tick(now, &mut out);
        self.mind_members();
        assert!(
            self.committed.height <= self.chain.head().height && self.chain.holds(self.committed),
            "committed {} is not on the chain up to {}",
            self.committed,
            self.chain.head()
        );
        assert!(self.view >= self.chain.head().view, "view {} below the head's {}", self.view, self.chain.head().view);
        out
    }

    fn receive(
        &mut self,
        now: Moment,
        from: Slot,
        epoch: Epoch,
        message: Message,
        out: &mut Effects,
    ) -> Result<(), Reject> {
        let ahead = self.admit(from, epoch)?;
        if message.names_round().is_some_and(|round| round > self.view.round.saturating_add(ROUNDS_AHEAD)) {
            return Err(Reject::FarView { ours: self.view });
        }
        match message {
            Message::Propose { view, block, committed } => self.on_propose(now, from, view, block, committed, out),
            Message::Heartbeat { view, round, head, committed, acknowledged } => {
                self.on_heartbeat(now, from, view, head, out)?;
                self.send(out, from, Message::HeartbeatReply { view, round });
                self.acknowledge_again(acknowledged, out);
                self.commit_to(committed, out);
                Ok(())
            }
            Message::HeartbeatReply { view, round } => self.on_heartbeat_reply(now, from, view, round, out),
            Message::Ack { view, height, hash, applied: _, digest: _ } => {
                self.on_ack(now, from, view, height, hash, out)
            }
            Message::PreCheck { view } => self.on_pre_check(now, from, ahead, view, out),
            Message::PreCheckReply { view, would_leave, current, head, committed } => {
                self.on_pre_check_reply(now, from, ahead, view, would_leave, current, head, committed, out)
            }
            Message::HandOver { view, next } => self.on_hand_over(now, from, view, next, out),
            Message::Timeout { view, rank, faults: _ } => self.on_timeout(now, from, ahead, view, rank, out),
            Message::Fetch { after, anchor, tip } => {
                self.on_fetch(from, after, anchor, tip, out);
                Ok(())
            }
            Message::Fetched { after, blocks, committed } => self.on_fetched(now, from, after, blocks, committed, out),
        }
    }

    fn tick(&mut self, now: Moment, out: &mut Effects) {
        self.tick_catch_up(now, out);
        match &self.role {
            Role::Follower(_) => self.tick_following(now, out),
            Role::Candidate(_) => self.tick_waiting(now, out),
            Role::Leader(_) => self.tick_leading(now, out),
        }
    }

    /// The host must step at this moment at the latest, with [`Input::Tick`] if nothing else happens.
    pub fn deadline(&self) -> Moment {
        let role = match &self.role {
            Role::Follower(following) => self.following_deadline(following),
            Role::Candidate(waiting) => self.waiting_deadline(waiting),
            Role::Leader(leading) => self.leading_deadline(leading),
        };
        self.catch_up.as_ref().map_or(role, |catch_up| role.min(catch_up.deadline()))
    }

    // What all roles share: the queue of records, the chain, the commit pointer.

    pub(crate) fn persist(&mut self, record: Record, out: &mut Effects) -> RecordSeq {
        self.queued = self.queued.next();
        out.persist.push((self.queued, record));
        self.queued
    }

    /// Appends a block to the chain and queues it; drops what it replaces. Checked by the caller.
    pub(crate) fn append(&mut self, now: Moment, block: Block, out: &mut Effects) {
        let height = block.height();
        if let Some(own) = self.chain.at(height)
            && own.view == block.view()
        {
            // One leader a view, one chain a leader: else the rule that all rest on is broken (schedule S1). Halt.
            assert!(own.hash == block.hash(), "two blocks at {height} in view {}", own.view);
        }
        assert!(height > self.committed.height, "block {block} would replace committed {}", self.committed);
        self.chain.put(block.header(), block.hash());
        // What was queued for the same height or above is still written, and then replaced: records are in one queue.
        self.undurable.retain(|(_, queued, _)| queued.height < height);
        let reference = block.reference();
        let seq = self.persist(Record::Block(block), out);
        self.undurable.push_back((seq, reference, now));
        self.head_since = now;
        self.view = self.view.max(reference.view);
    }

    /// The record after which the head is durable.
    pub(crate) fn head_record(&self) -> RecordSeq {
        self.undurable.back().map_or(self.based, |(seq, _, _)| *seq)
    }

    /// The highest height of the chain that is durable here.
    pub fn durable_height(&self) -> Height {
        self.undurable.front().map_or(self.chain.head().height, |(_, block, _)| block.height.prev())
    }

    fn on_durable(&mut self, now: Moment, seq: RecordSeq, out: &mut Effects) {
        assert!(seq <= self.queued, "durable {seq} beyond queued {}", self.queued);
        if let Role::Candidate(waiting) = &mut self.role
            && self.left_for.is_some_and(|(_, left)| left > self.durable && left <= seq)
        {
            waiting.since = now.plus(2 * now.since(waiting.since));
        }
        self.durable = self.durable.max(seq);
        while self.undurable.front().is_some_and(|(queued, _, _)| *queued <= seq) {
            self.undurable.pop_front();
        }
        self.count_acknowledgements(out);
        self.try_to_lead(now, out);
    }

    /// Takes a commit pointer on if this very block is on the own chain; the hash makes sure that a divergent block is
    /// never applied (PROTOCOL §2, schedule S10).
    pub(crate) fn commit_to(&mut self, block: BlockRef, out: &mut Effects) {
        if block.height > self.committed.height && self.chain.holds(block) {
            self.committed = self.chain.at(block.height).expect("the chain holds it");
            out.committed = Some(self.committed);
        }
    }

    pub(crate) fn send(&self, out: &mut Effects, to: Slot, message: Message) {
        out.send.push(Envelope { to, epoch: self.config().epoch(), message });
    }

    pub(crate) fn send_after(&self, out: &mut Effects, seq: RecordSeq, to: Slot, message: Message) {
        out.send_after.push((seq, Envelope { to, epoch: self.config().epoch(), message }));
    }

    // What others may know.

    /// The slot of this replica.
    pub fn me(&self) -> Slot {
        self.me
    }

    /// The current view.
    pub fn view(&self) -> View {
        self.view
    }

    /// The last block of the chain.
    pub fn head(&self) -> BlockRef {
        self.chain.head()
    }

    /// The last block known to be committed.
    pub fn committed(&self) -> BlockRef {
        self.committed
    }

    /// The chain.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The role in the current view.
    pub fn role(&self) -> RoleName {
        match &self.role {
            Role::Follower(_) => RoleName::Follower,
            Role::Candidate(_) => RoleName::Candidate,
            Role::Leader(_) => RoleName::Leader,
        }
    }

    /// Who leads the current view: this replica, or one that it has heard and not given up.
    pub fn leader(&self) -> Option<Slot> {
        match &self.role {
            Role::Leader(_) => Some(self.me),
            Role::Follower(following) => following.heard.map(|_| self.view.leader),
            Role::Candidate(_) => None,
        }
    }

    /// When the leader was last heard, and its head then. The leader itself: no answer.
    pub fn leader_heard(&self) -> Option<(Moment, BlockRef)> {
        match &self.role {
            Role::Follower(following) => following.heard.zip(following.leader_head),
            Role::Candidate(_) | Role::Leader(_) => None,
        }
    }

    /// The newest Timeout heard from this member since the start: the view, and the last block that it had acknowledged.
    pub fn heard_timeout(&self, member: Slot) -> Option<(View, BlockRef)> {
        self.timeouts.get(&member).copied()
    }

    /// On the leader: what this member acknowledged, and whether it answered within the election time.
    pub fn acknowledged(&self, member: Slot, now: Moment) -> Option<(Height, bool)> {
        match &self.role {
            Role::Leader(_) if member == self.me => Some((self.durable_height(), true)),
            Role::Leader(leading) => leading.acknowledged(member, now, self.options.election),
            Role::Follower(_) | Role::Candidate(_) => None,
        }
    }
}
