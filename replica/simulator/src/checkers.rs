//! What must hold, checked from outside: by what leaves the replicas, what their disks hold and what clients are told.
//!
//! Nothing here asks the code under test whether it is right: the log is replayed from the synced layer, requests are
//! executed again by a model of the key-value machine, and reads are compared with the model's history.

mod flips;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_consensus::{Message, RoleName};
use lockstep_engine::engine::AppliedBlock;
use lockstep_engine::snapshots::manifest::{Manifest, chunk_file, is_manifest};
use lockstep_engine::{PeerMessage, Status};
use lockstep_types::kv::{Expected, KvReply, KvRequest, Versioned};
use lockstep_types::{
    Block, BlockRef, Command, Configuration, Digest, Height, LogTime, Outcome, SessionId, Slot, View, codec,
};
use lockstep_wal::{Disk as _, Wal, WalId};

use crate::counters::{Counters, Kind};
use crate::disk::SimDisk;

/// A property that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its name.
    pub property: &'static str,
    /// What was seen.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.detail)
    }
}

/// Fails with this property unless a condition holds.
macro_rules! require {
    ($condition:expr, $property:expr, $($detail:tt)+) => {
        if !$condition {
            return Err($crate::checkers::Violation { property: $property, detail: format!($($detail)+) });
        }
    };
}
pub(crate) use require;

/// What a client's request became in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sequence {
    session: SessionId,
    number: u64,
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.session, self.number)
    }
}

/// All that the checkers remember of a run.
pub struct Checkers {
    ids: Vec<WalId>,
    wal: lockstep_wal::Options,
    /// Blocks in the order in which they were first applied anywhere: height h at index h − 1.
    log: Vec<Entry>,
    /// Commit pointers heard beyond that.
    claimed: BTreeMap<Height, BlockRef>,
    blocks: BTreeMap<Digest, (BlockRef, Digest, LogTime)>,
    proposed: BTreeMap<(View, Height), Digest>,
    leaders: BTreeMap<View, (usize, u64)>,
    replicas: Vec<Memory>,

    sent: BTreeMap<Sequence, Bytes>,
    by_body: BTreeMap<Bytes, Sequence>,
    rejected: BTreeSet<Bytes>,
    executed: BTreeMap<Sequence, Execution>,
    cancelled: BTreeSet<Sequence>,
    opened: BTreeMap<SessionId, [u8; 16]>,
    keys: BTreeMap<Bytes, Vec<State>>,
    /// Requests executed so far: the position of the last one.
    position: u64,
    /// The highest position that a client has seen.
    floor: u64,
}

struct Entry {
    block: BlockRef,
    /// The digest of those whose state no bit flips in; none as long as only others applied it.
    digest: Option<Digest>,
    /// What others had before.
    claims: Vec<(usize, Digest)>,
    executed: Vec<(SessionId, u64)>,
}

struct Execution {
    position: u64,
    reply: Bytes,
}

/// A key from one position on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    from: u64,
    value: Option<Versioned>,
}

/// What one replica showed.
#[derive(Clone, Debug, Default)]
struct Memory {
    /// Its disk is gone.
    lost: bool,
    /// A bit of its state flips, or is about to.
    suspect: bool,
    /// One did.
    suspected: bool,
    /// In this block.
    flipped: Option<Height>,
    /// Of this process.
    applied: Height,
    committed: Height,
    view: View,
    /// The highest view in a promise that left, over all processes.
    promised: View,
    /// The highest Timeout that left.
    left: View,
    /// The highest block of each view that it acknowledged.
    acknowledged: BTreeMap<View, (Height, Digest)>,
    /// The last hash acknowledged at each height.
    at_height: BTreeMap<Height, Digest>,
}

/// What a log holds, as the checker reads it.
#[derive(Clone, Debug, Default)]
pub struct Durable {
    /// Block of height h at index h − 1.
    pub blocks: Vec<BlockRef>,
    /// The highest Timeout.
    pub timeout: View,
    /// The highest Lead.
    pub lead: View,
    /// A torn tail was cut.
    pub torn: bool,
}

impl Durable {
    fn holds(&self, height: Height, hash: Digest) -> bool {
        height == Height::ZERO || self.blocks.get(height.get() as usize - 1).is_some_and(|block| block.hash == hash)
    }

    fn head(&self) -> BlockRef {
        self.blocks.last().copied().unwrap_or(BlockRef::GENESIS)
    }
}

/// What is to be looked up on the sender's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promised {
    /// This block.
    Block(Height, Digest),
    /// A Timeout of this view, and this block as its rank.
    Timeout(View, BlockRef),
    /// A Lead of this view.
    Lead(View),
}

impl Checkers {
    /// For replicas with these logs.
    pub fn new(ids: Vec<WalId>, wal: lockstep_wal::Options) -> Self {
        let count = ids.len();
        Checkers {
            ids,
            wal,
            log: Vec::new(),
            claimed: BTreeMap::new(),
            blocks: BTreeMap::new(),
            proposed: BTreeMap::new(),
            leaders: BTreeMap::new(),
            replicas: vec![Memory::default(); count],
            sent: BTreeMap::new(),
            by_body: BTreeMap::new(),
            rejected: BTreeSet::new(),
            executed: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            opened: BTreeMap::new(),
            keys: BTreeMap::new(),
            position: 0,
            floor: 0,
        }
    }

    // Replicas.

    /// Another replica, with an empty disk.
    pub fn joins(&mut self, id: WalId) {
        self.ids.push(id);
        self.replicas.push(Memory::default());
    }

    /// A replica's disk is gone for good, or was put back to what it held long ago. What it had held counts as if it still did:
    /// its identity is never heard again.
    pub fn lost(&mut self, replica: usize) {
        self.replicas[replica].lost = true;
    }

    /// A message leaves a replica. Returns what its disk must hold by now.
    pub fn sends(
        &mut self,
        replica: usize,
        boot: u64,
        message: &PeerMessage,
        counters: &mut Counters,
    ) -> Result<Option<Promised>, Violation> {
        let PeerMessage::Consensus(message) = message else { return Ok(None) };
        // Nobody hears it, which is checked where it would arrive.
        if self.replicas[replica].lost {
            return Ok(None);
        }
        let me = slot(replica);
        match message {
            Message::Propose { view, block, committed } => {
                require!(view.leader == me, "one leader per view", "{me} proposes {block} in view {view}");
                let fresh = !self.leaders.contains_key(view);
                let leader = *self.leaders.entry(*view).or_insert((replica, boot));
                require!(
                    leader == (replica, boot),
                    "one leader per view",
                    "{me} proposes {block} in view {view}, after a restart: its start {} led it",
                    leader.1
                );
                self.sees_block(block)?;
                let hash = *self.proposed.entry((*view, block.height())).or_insert(block.hash());
                require!(hash == block.hash(), "one chain per view", "two blocks at {block}");
                self.claims(replica, *committed)?;
                self.promises(replica, *view);
                if fresh {
                    counters.add(Kind::ViewChange);
                }
                Ok(fresh.then_some(Promised::Lead(*view)))
            }
            Message::Heartbeat { committed, .. } | Message::PreCheckReply { committed, .. } => {
                self.claims(replica, *committed)?;
                Ok(None)
            }
            Message::Fetched { blocks, committed, .. } => {
                match blocks {
                    Ok(blocks) => {
                        counters.add(Kind::Fetched);
                        blocks.iter().try_for_each(|block| self.sees_block(block))?;
                    }
                    Err(lockstep_consensus::FetchRefusal::Diverged) => counters.add(Kind::Diverged),
                    Err(lockstep_consensus::FetchRefusal::Forgotten { snapshot }) => {
                        counters.add(Kind::Forgotten);
                        self.claims(replica, snapshot.block)?;
                    }
                    Err(lockstep_consensus::FetchRefusal::Nothing) => {}
                }
                self.claims(replica, *committed)?;
                Ok(None)
            }
            Message::Ack { view, height, hash, applied, digest } => {
                // One whose bit flipped may have queued it before its state was built anew.
                require!(
                    self.replicas[replica].suspected || self.agrees(replica, *applied, *digest),
                    "equal digest at equal height",
                    "{me} acknowledges digest {digest} at {applied}"
                );
                let memory = &mut self.replicas[replica];
                require!(
                    *view >= memory.left,
                    "no acknowledgement after leaving",
                    "{me} acknowledges {height} in view {view} after its Timeout for {}",
                    memory.left
                );
                if memory.at_height.insert(*height, *hash).is_some_and(|before| before != *hash) {
                    counters.add(Kind::Replaced);
                }
                // Only blocks of its own view count for a leader: what is promised is the block's view, not the one that the
                // acknowledgement is said in, which nothing on the disk may show yet.
                if let Some((block, _, _)) = self.blocks.get(hash) {
                    let highest = memory.acknowledged.entry(block.view).or_insert((*height, *hash));
                    if *height > highest.0 {
                        *highest = (*height, *hash);
                    }
                    memory.promised = memory.promised.max(block.view);
                }
                Ok(Some(Promised::Block(*height, *hash)))
            }
            Message::Timeout { view, rank, .. } => {
                for (block_view, (height, _)) in &self.replicas[replica].acknowledged {
                    require!(
                        rank.rank() >= (*block_view, *height) || block_view >= view,
                        "a Timeout covers every acknowledgement",
                        "{me} leaves for {view} with rank {rank}, after acknowledging {height}@{block_view}"
                    );
                }
                let memory = &mut self.replicas[replica];
                let fresh = *view > memory.left;
                memory.left = memory.left.max(*view);
                self.promises(replica, *view);
                Ok(fresh.then_some(Promised::Timeout(*view, *rank)))
            }
            Message::HeartbeatReply { .. }
            | Message::PreCheck { .. }
            | Message::HandOver { .. }
            | Message::Fetch { .. } => Ok(None),
        }
    }

    fn promises(&mut self, replica: usize, view: View) {
        let promised = &mut self.replicas[replica].promised;
        *promised = view.max(*promised);
    }

    fn sees_block(&mut self, block: &Block) -> Result<(), Violation> {
        let header = block.header();
        if let Some((parent, _, log_time)) = self.blocks.get(&header.parent) {
            require!(
                parent.height.next() == header.height && parent.view <= header.view && *log_time <= header.log_time,
                "blocks chain",
                "{block} at {} on top of {parent} at {log_time}",
                header.log_time
            );
        }
        self.blocks.insert(block.hash(), (block.reference(), header.parent, header.log_time));
        Ok(())
    }

    fn claims(&mut self, replica: usize, committed: BlockRef) -> Result<(), Violation> {
        let Some(index) = index(committed.height) else { return Ok(()) };
        let known = match self.log.get(index) {
            Some(entry) => entry.block,
            None => *self.claimed.entry(committed.height).or_insert(committed),
        };
        require!(
            known == committed,
            "one block per height",
            "{} says that {committed} ({}) is committed, and {known} ({}) was",
            slot(replica),
            committed.hash,
            known.hash
        );
        Ok(())
    }

    /// A replica applied a block.
    pub fn applies(&mut self, replica: usize, block: &AppliedBlock, counters: &mut Counters) -> Result<(), Violation> {
        let me = slot(replica);
        let AppliedBlock { block, digest, executed, answered_from_table } = block;
        let memory = &mut self.replicas[replica];
        require!(
            block.height == memory.applied.next(),
            "applied in order",
            "{me} applies {block} after {}",
            memory.applied
        );
        memory.applied = block.height;
        let suspect = memory.suspect;
        self.claims(replica, *block)?;
        if let Some(entry) = self.log.get(block.height.get() as usize - 1) {
            require!(
                entry.executed == *executed,
                "executed at most once",
                "{me} executes other requests in {block} than the first replica that did"
            );
            return self.executed_with(replica, *block, *digest, counters);
        }
        require!(
            block.height.get() as usize == self.log.len() + 1,
            "applied in order",
            "{me} is the first to apply {block}, and only {} blocks were",
            self.log.len()
        );
        self.claimed.remove(&block.height);
        let (digest, claims) = if suspect { (None, vec![(replica, *digest)]) } else { (Some(*digest), Vec::new()) };
        self.log.push(Entry { block: *block, digest, claims, executed: executed.clone() });
        counters.add(Kind::Commit);
        counters.add_many(Kind::Executed, executed.len() as u64);
        counters.add_many(Kind::AnsweredFromTable, u64::from(*answered_from_table));
        if self.log.len() == 1 || self.log[self.log.len() - 2].block.view < block.view {
            counters.add(Kind::NoOp);
        }
        for (session, number) in executed {
            self.executes(Sequence { session: *session, number: *number }, *block)?;
        }
        Ok(())
    }

    fn executes(&mut self, sequence: Sequence, block: BlockRef) -> Result<(), Violation> {
        let Some(body) = self.sent.get(&sequence).cloned() else {
            return Err(Violation {
                property: "executed at most once",
                detail: format!("{sequence} in {block} was sent by no client"),
            });
        };
        require!(!self.executed.contains_key(&sequence), "executed at most once", "{sequence} again in {block}");
        require!(
            !self.cancelled.contains(&sequence),
            "honest outcomes",
            "{sequence} in {block} is executed after it was answered as cancelled"
        );
        require!(
            !self.rejected.contains(&body),
            "honest outcomes",
            "{sequence} in {block} is executed after its rejection"
        );
        if is_unique(&body) {
            let first = *self.by_body.entry(body.clone()).or_insert(sequence);
            require!(first == sequence, "executed at most once", "one request is executed as {first} and {sequence}");
        }
        self.position += 1;
        let reply = self.model(&body);
        self.executed.insert(sequence, Execution { position: self.position, reply });
        Ok(())
    }

    /// Executes a request on the model.
    fn model(&mut self, body: &Bytes) -> Bytes {
        let Ok(request) = KvRequest::decode(body.clone()) else { return KvReply::Invalid.encode() };
        // Scans and transactions have a model of their own, in the tests of the machine: nobody sends them here.
        let Some(key) = request.key() else { return KvReply::Invalid.encode() };
        let states = self.keys.entry(key.clone()).or_insert_with(|| vec![State { from: 0, value: None }]);
        let current = states.last().expect("it starts with one").value.clone();
        let version = current.as_ref().map_or(0, |current| current.version);
        let (next, reply) = match request {
            KvRequest::Put { value, .. } => {
                let version = version + 1;
                (Some(Some(Versioned { value, version })), KvReply::Written { version })
            }
            KvRequest::Get { .. } => (None, current.map_or(KvReply::Missing, KvReply::Found)),
            KvRequest::Delete { .. } if current.is_some() => (Some(None), KvReply::Deleted),
            KvRequest::Delete { .. } => (None, KvReply::Missing),
            KvRequest::CompareAndSet { expected, value, .. } => {
                let holds = match expected {
                    Expected::Version(expected) => expected == version,
                    Expected::Value(expected) => current.as_ref().is_some_and(|current| current.value == expected),
                    Expected::Exists => current.is_some(),
                };
                if holds {
                    let version = version + 1;
                    (Some(Some(Versioned { value, version })), KvReply::Written { version })
                } else {
                    (None, KvReply::Mismatch { current })
                }
            }
            KvRequest::Scan(_) | KvRequest::Transaction(_) => (None, KvReply::Invalid),
        };
        if let Some(value) = next {
            states.push(State { from: self.position, value });
        }
        reply.encode()
    }

    /// What a replica says of itself after a step.
    pub fn status(&mut self, replica: usize, status: &Status) -> Result<(), Violation> {
        if self.replicas[replica].lost {
            return Ok(());
        }
        let me = slot(replica);
        let Status { role, view, head, committed, applied, digest, .. } = status;
        require!(
            applied <= committed && committed <= head,
            "applied ≤ committed ≤ head",
            "{me}: {applied} {committed} {head}"
        );
        require!(*role != RoleName::Leader || view.leader == me, "one leader per view", "{me} leads view {view}");
        let memory = &mut self.replicas[replica];
        require!(*applied == memory.applied, "applied in order", "{me} is at {applied}, not {}", memory.applied);
        require!(
            *committed >= memory.committed,
            "committed never shrinks",
            "{me} has {committed} after {}",
            memory.committed
        );
        require!(
            *view >= memory.view && *view >= memory.promised,
            "views never decrease",
            "{me} is in view {view} after {}, its promises name {}",
            memory.view,
            memory.promised
        );
        memory.committed = *committed;
        memory.view = *view;
        require!(
            self.replicas[replica].suspect || self.agrees(replica, *applied, *digest),
            "equal digest at equal height",
            "{me} has {digest} at {applied}"
        );
        Ok(())
    }

    /// A replica's state is that of a snapshot: blocks are applied from there on.
    pub fn starts_at(&mut self, replica: usize, height: Height) {
        self.replicas[replica].applied = height;
    }

    /// The process of a replica ended.
    pub fn stopped(&mut self, replica: usize) {
        let memory = &mut self.replicas[replica];
        memory.applied = Height::ZERO;
        memory.committed = Height::ZERO;
        memory.view = View::ZERO;
    }

    // Disks.

    /// Reads a log from a copy of a disk.
    pub fn replay(&self, replica: usize, copy: SimDisk, counters: &mut Counters) -> Result<Durable, Violation> {
        counters.add(Kind::LogChecked);
        let mut durable = Durable { blocks: self.snapshot(replica, &copy)?, ..Durable::default() };
        let base = durable.head();
        let mut wrong = None;
        let opened = Wal::open(Arc::new(copy), self.ids[replica], self.wal, &mut |record| {
            if let Err(why) = take_record(&mut durable, base, record.kind, record.payload) {
                wrong.get_or_insert(why);
            }
        });
        match opened {
            Ok((_, recovery)) => {
                durable.torn = recovery.cut.is_some();
                if let Some(note) = recovery.note
                    && let Err(why) = take_note(&mut durable, note)
                {
                    wrong.get_or_insert(why);
                }
            }
            Err(error) => wrong = Some(error.to_string()),
        }
        match wrong {
            None => Ok(durable),
            Some(why) => Err(Violation {
                property: "a crash leaves a log that opens",
                detail: format!("log of {}: {why}", slot(replica)),
            }),
        }
    }

    /// The blocks that the newest snapshot on the disk stands for. It is whole, and of committed blocks.
    fn snapshot(&self, replica: usize, disk: &SimDisk) -> Result<Vec<BlockRef>, Violation> {
        let me = slot(replica);
        let files = disk.list().expect("the simulated disk lists its files");
        let Some(file) = files.iter().filter(|file| is_manifest(file)).max() else { return Ok(Vec::new()) };
        let manifest = disk.read(file).ok().and_then(|bytes| Manifest::decode(bytes.into()).ok());
        let Some(manifest) = manifest else {
            return Err(Violation { property: "a snapshot is whole", detail: format!("{me}: {file} does not decode") });
        };
        for chunk in &manifest.chunks {
            let bytes = disk.read(&chunk_file(chunk.digest)).unwrap_or_default();
            require!(
                Digest::of(&bytes) == chunk.digest,
                "a snapshot is whole",
                "{me}: {file} names chunk {}, which is not there",
                chunk.digest
            );
        }
        let height = manifest.block.height.get() as usize;
        let known = self.log.get(height - 1).map(|entry| (entry.block, entry.digest));
        let suspect = self.replicas[replica].suspect;
        require!(
            known.is_some_and(|(block, digest)| {
                block == manifest.block && (suspect || digest.is_none_or(|digest| digest == manifest.digest))
            }),
            "a snapshot is of a committed block",
            "{me} has one of {} with digest {}, and {known:?} is known",
            manifest.block,
            manifest.digest
        );
        Ok(self.log[..height].iter().map(|entry| entry.block).collect())
    }

    /// Whether the log holds what was just promised.
    pub fn check_promise(&self, replica: usize, promised: Promised, durable: &Durable) -> Result<(), Violation> {
        let me = slot(replica);
        let head = durable.head();
        match promised {
            Promised::Block(height, hash) => require!(
                durable.holds(height, hash),
                "acknowledged is durable",
                "{me} acknowledges {height} ({hash}), and its synced log ends with {head}"
            ),
            // By the time that it leaves, a higher chain may have replaced the rank.
            Promised::Timeout(view, rank) => require!(
                durable.timeout >= view && (durable.holds(rank.height, rank.hash) || head.rank() > rank.rank()),
                "promised is durable",
                "{me} leaves for {view} with rank {rank}, and its synced log has Timeout {} and ends with {head}",
                durable.timeout
            ),
            // Its own Timeout for a view that it leads serves as well: after a restart it never leads that one (schedule S1).
            // A follower that heard a heartbeat may fetch the first block before Lead is durable.
            Promised::Lead(view) => require!(
                durable.lead >= view || durable.timeout >= view,
                "promised is durable",
                "{me} proposes in view {view}, and its synced log has Lead {} and Timeout {}",
                durable.lead,
                durable.timeout
            ),
        }
        Ok(())
    }

    /// What a replica finds after a crash holds all that it ever promised, unless a higher view replaced it.
    pub fn check_restart(&self, replica: usize, durable: &Durable) -> Result<(), Violation> {
        let me = slot(replica);
        let memory = &self.replicas[replica];
        if memory.lost {
            return Ok(());
        }
        let head = durable.head();
        for (view, (height, hash)) in &memory.acknowledged {
            require!(
                durable.holds(*height, *hash) || head.view > *view,
                "acknowledged is durable",
                "{me} acknowledged {height}@{view} ({hash}), and after the crash its log ends with {head}"
            );
        }
        require!(
            durable.timeout >= memory.left,
            "promised is durable",
            "{me} left for {}, and after the crash its log has Timeout {}",
            memory.left,
            durable.timeout
        );
        Ok(())
    }

    /// The last committed block is on the disks of a quorum of the configuration that decided it.
    pub fn check_committed<'a>(
        &self,
        config: &Configuration,
        disks: impl Iterator<Item = &'a SimDisk>,
        counters: &mut Counters,
    ) -> Result<(), Violation> {
        let Some(last) = self.log.last() else { return Ok(()) };
        let mut holders = Vec::new();
        for (replica, disk) in disks.enumerate() {
            let holds = self.replicas[replica].lost || {
                let durable = self.replay(replica, disk.synced_copy(), counters)?;
                durable.holds(last.block.height, last.block.hash)
            };
            holders.extend(holds.then(|| slot(replica)));
        }
        require!(
            config.is_quorum(holders.iter().copied()),
            "committed is durable at a quorum",
            "{} is committed, and the synced logs of {holders:?} hold it, of {config}",
            last.block
        );
        Ok(())
    }

    // Clients.

    /// A client sends a command.
    pub fn submits(&mut self, command: &Command) -> Result<(), Violation> {
        let Command::Execute { session, sequence, body, .. } = command else { return Ok(()) };
        let sequence = Sequence { session: *session, number: *sequence };
        let known = self.sent.entry(sequence).or_insert_with(|| body.clone());
        require!(known == body, "one request per sequence", "a client sends two requests as {sequence}");
        if is_unique(body) {
            let first = *self.by_body.entry(body.clone()).or_insert(sequence);
            require!(
                first == sequence || !self.executed.contains_key(&first),
                "executed at most once",
                "a client sends a request as {sequence} that was executed as {first}"
            );
            self.by_body.insert(body.clone(), sequence);
        }
        Ok(())
    }

    /// The log's answer to a command leaves a replica.
    pub fn answers(&mut self, command: &Command, outcome: &Outcome, counters: &mut Counters) -> Result<(), Violation> {
        let (session, number, resolves) = match command {
            Command::Execute { session, sequence, .. } => (*session, *sequence, false),
            Command::Resolve { session, sequence } => (*session, *sequence, true),
            Command::OpenSession { nonce } => {
                if let Outcome::SessionOpened { session } = outcome {
                    counters.add(Kind::SessionOpened);
                    let owner = self.opened.entry(*session).or_insert(*nonce);
                    require!(owner == nonce, "one session per nonce", "two nonces have session {session}");
                }
                return Ok(());
            }
            Command::CloseSession { .. } => {
                counters.add(Kind::SessionClosed);
                return Ok(());
            }
            Command::Plain { .. } | Command::Snapshot => return Ok(()),
        };
        let sequence = Sequence { session, number };
        match outcome {
            Outcome::Replied { reply } => {
                let Some(execution) = self.executed.get(&sequence) else {
                    return Err(Violation {
                        property: "stable reply",
                        detail: format!("{sequence} has a reply and was not executed"),
                    });
                };
                require!(
                    execution.reply == *reply,
                    "stable reply",
                    "{sequence} is answered {:?}, and its execution gave {:?}",
                    KvReply::decode(reply.clone()),
                    KvReply::decode(execution.reply.clone())
                );
                if resolves {
                    counters.add(Kind::ResolveExecuted);
                }
            }
            Outcome::Cancelled => {
                require!(
                    !self.executed.contains_key(&sequence),
                    "honest outcomes",
                    "{sequence} is answered as cancelled, and was executed"
                );
                self.cancelled.insert(sequence);
                if resolves {
                    counters.add(Kind::ResolveCancelled);
                }
            }
            Outcome::Gap { .. } => counters.add(Kind::Gap),
            Outcome::Evicted => counters.add(Kind::Evicted),
            Outcome::SessionOpened { .. }
            | Outcome::SessionClosed
            | Outcome::OverWindow { .. }
            | Outcome::AlreadyAcknowledged
            | Outcome::Invalid { .. }
            | Outcome::SnapshotPoint { .. } => {}
        }
        Ok(())
    }

    /// What a request that begins now must see.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// A client is told that its write is committed.
    pub fn write_committed(&mut self, body: &Bytes, reply: &Bytes, floor: u64) -> Result<(), Violation> {
        if !is_unique(body) {
            return Ok(());
        }
        let execution = self.by_body.get(body).and_then(|sequence| self.executed.get(sequence));
        let Some(execution) = execution else {
            return Err(Violation {
                property: "honest outcomes",
                detail: "a client is told that a request is committed, and it was not executed".to_owned(),
            });
        };
        require!(execution.reply == *reply, "stable reply", "a client is told another reply than the execution gave");
        require!(
            execution.position > floor,
            "linearizable",
            "a write is executed at {}, before the one at {floor} that had been answered when it began",
            execution.position
        );
        self.floor = self.floor.max(execution.position);
        Ok(())
    }

    /// A client is told that its request was not executed and never will be.
    pub fn write_rejected(&mut self, body: &Bytes) -> Result<(), Violation> {
        if !is_unique(body) {
            return Ok(());
        }
        let executed = self.by_body.get(body).is_some_and(|sequence| self.executed.contains_key(sequence));
        require!(!executed, "honest outcomes", "a client is told that a request is rejected, and it was executed");
        self.rejected.insert(body.clone());
        Ok(())
    }

    /// A client is told the answer to a read.
    pub fn read_answered(&mut self, key: &Bytes, reply: &Bytes, floor: u64) -> Result<(), Violation> {
        let value = match KvReply::decode(reply.clone()) {
            Ok(KvReply::Found(found)) => Some(found),
            Ok(KvReply::Missing) => None,
            other => {
                return Err(Violation { property: "linearizable", detail: format!("a read is answered {other:?}") });
            }
        };
        let initial = [State { from: 0, value: None }];
        let states = self.keys.get(key).map_or(&initial[..], Vec::as_slice);
        let seen = states
            .iter()
            .enumerate()
            .find(|(index, state)| state.value == value && states.get(index + 1).is_none_or(|next| next.from > floor));
        let Some((_, seen)) = seen else {
            let version = |state: &State| state.value.as_ref().map_or(0, |value| value.version);
            return Err(Violation {
                property: "linearizable",
                detail: format!(
                    "a read of {key:?} that began when {floor} had been answered finds version {}, last are {:?}",
                    value.map_or(0, |value| value.version),
                    states.iter().rev().take(4).map(|state| (state.from, version(state))).collect::<Vec<_>>()
                ),
            });
        };
        self.floor = self.floor.max(seen.from);
        Ok(())
    }

    /// The version of a key in the model.
    pub fn version(&self, key: &Bytes) -> u64 {
        self.keys.get(key).and_then(|states| states.last()?.value.as_ref()).map_or(0, |value| value.version)
    }

    /// Blocks committed.
    pub fn height(&self) -> Height {
        Height::new(self.log.len() as u64)
    }
}

/// The slot of a replica by its index.
pub fn slot(replica: usize) -> Slot {
    Slot::new(replica as u32 + 1)
}

fn index(height: Height) -> Option<usize> {
    height.get().checked_sub(1).map(|index| index as usize)
}

/// Clients write values that no other request has; only those tell which request a body is.
fn is_unique(body: &Bytes) -> bool {
    matches!(KvRequest::decode(body.clone()), Ok(KvRequest::Put { .. } | KvRequest::CompareAndSet { .. }))
}

/// The engine's records, read by code of our own: 1 block, 2 Timeout, 3 Lead, 4 base.
fn take_record(durable: &mut Durable, base: BlockRef, kind: u8, payload: Bytes) -> Result<(), String> {
    let view = |payload| codec::Reader::new(payload).view("promise").map_err(|error| error.to_string());
    match kind {
        1 => {
            let block = Block::decode(payload).map_err(|error| error.to_string())?;
            let below = index(block.height()).ok_or("a block at height 0")?;
            let parent = match below.checked_sub(1) {
                None => Some(Digest::ZERO),
                Some(index) => durable.blocks.get(index).map(|block| block.hash),
            };
            if block.height() <= base.height {
                return Ok(());
            }
            if parent != Some(block.header().parent) {
                // Above a snapshot, what hangs in the air was replaced, or never committed.
                if base != BlockRef::GENESIS {
                    return Ok(());
                }
                return Err(format!("block {block} does not chain from what is below"));
            }
            durable.blocks.truncate(below);
            durable.blocks.push(block.reference());
        }
        2 => durable.timeout = durable.timeout.max(view(payload)?),
        3 => durable.lead = durable.lead.max(view(payload)?),
        // A snapshot took the place of the log: it is on this disk, or a later one.
        4 => {
            let mut reader = codec::Reader::new(payload);
            let place = reader.view("base").and_then(|view| Ok((view, reader.height("base")?)));
            let (view, height) = place.map_err(|error| error.to_string())?;
            if height > base.height {
                return Err(format!("the log goes on from {height}@{view}, and no snapshot stands for it"));
            }
        }
        kind => return Err(format!("unknown kind {kind}")),
    }
    Ok(())
}

/// The second copy of promises, which stands in each batch: version, head, Timeout, Lead. A log that was cut has the first
/// copies no more.
fn take_note(durable: &mut Durable, note: Bytes) -> Result<(), String> {
    let mut reader = codec::Reader::new(note);
    let mut promises = || {
        reader.u8("version")?;
        reader.view("head")?;
        reader.height("head")?;
        reader.digest("head")?;
        Ok::<_, lockstep_types::DecodeError>((reader.view("Timeout")?, reader.view("Lead")?))
    };
    let (timeout, lead) = promises().map_err(|error| format!("the note does not decode: {error}"))?;
    durable.timeout = durable.timeout.max(timeout);
    durable.lead = durable.lead.max(lead);
    Ok(())
}
