//! Blocks and promises as records of the write-ahead log, in one queue; bodies from memory or from the disk.

mod note;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use lockstep_consensus::{Promise, Record, RecordSeq, Recovered};
use lockstep_types::codec::{Reader as Bits, Writer as Bytewise};
use lockstep_types::{Block, BlockRef, DecodeError, Genesis, Height, ReplicaId, View};
use lockstep_wal::{BatchSeq, Cut, Disk, Location, Options, Prepared, Reader, RecoveredRecord, Wal, WalId};
use thiserror::Error;

use crate::witness::{Mark, Witness};
use note::Note;

/// Kinds of records.
const BLOCK: u8 = 1;
const TIMEOUT: u8 = 2;
const LEAD: u8 = 3;
const BASE: u8 = 4;

/// Bytes of records gathered into one batch at most; one record may exceed it.
const BATCH_BYTES: usize = 8 << 20;

/// Why a log cannot be started from.
#[derive(Debug, Error)]
pub enum LogError {
    /// The write-ahead log refuses.
    #[error(transparent)]
    Wal(#[from] lockstep_wal::OpenError),
    /// The log does not begin with its first segment, and no snapshot holds what was before.
    #[error(
        "log begins with {file}, the segments before it are missing, and no snapshot stands for them; the replica stops and keeps its data: \
         put them back, or give this replica an empty directory so that it joins as a new one"
    )]
    Beginning {
        /// The lowest segment's file.
        file: String,
    },
    /// The log leads to its end, but not over the newest snapshot: the replica ended while it was about to stand on that.
    #[error("the log does not lead over the newest snapshot, {snapshot}")]
    Beside {
        /// Its block.
        snapshot: BlockRef,
    },
    /// A record that the log vouches for makes no sense.
    #[error(
        "log record {record} is not what this release writes: {why}; the replica stops and keeps its data: \
         run the release that wrote it, or give this replica an empty directory so that it joins as a new one"
    )]
    Record {
        /// Counted from the start of the log.
        record: u64,
        /// What is wrong with it.
        why: String,
    },
}

/// The log of one replica.
pub struct Log<D: Disk> {
    wal: Wal<D>,
    segment_bytes: u64,
    reader: Reader<D>,
    /// Blocks up to this height are gone, or about to go: a snapshot holds their state.
    base: Height,
    /// Where the block of height base + 1 + i lies: at index i. Blocks still queued have none yet.
    locations: VecDeque<Option<Location>>,
    /// Blocks that are queued, being synced, or not applied yet, with their records.
    bodies: BTreeMap<Height, (RecordSeq, Block)>,
    /// Records that wait for the batch under way.
    queue: Vec<(RecordSeq, Record)>,
    queued_bytes: usize,
    /// The batch under way, its last record, and how far the log comes with it.
    syncing: Option<(BatchSeq, RecordSeq, Mark)>,
    durable_mark: Mark,
    /// Client commands in that batch.
    syncing_commands: usize,
    durable: RecordSeq,
    /// Segments to let go.
    cut: Option<Cut>,
    /// The record that says on which snapshot the log stands: until it is on the disk, a start needs what was before.
    based: RecordSeq,
    /// The newest promises queued, and the head: what the second copy in each batch repeats (PROTOCOL §8).
    note: Note,
}

impl<D: Disk> Log<D> {
    /// Opens the log and reads it from the start. `beginnings` are what it may go on from, lowest first: the genesis, and
    /// each snapshot; the lowest from which the log leads to its end without a gap, and over `committed`, the block of the
    /// newest snapshot, is taken: what can be read can be served. Also gives what was remembered of the other replicas.
    ///
    /// # Errors
    /// A log that is faulty, belongs to another replica or service, was written by a later release, or leaves a gap.
    pub fn open(
        disk: Arc<D>,
        genesis: &Genesis,
        replica: ReplicaId,
        options: Options,
        beginnings: Vec<Recovered>,
        committed: BlockRef,
    ) -> Result<(Self, Recovered, Witness), LogError> {
        let id = WalId { service: *genesis.service.as_bytes(), replica: *replica.as_bytes() };
        let mut candidates: Vec<Candidate> = beginnings.into_iter().map(Candidate::new).collect();
        let mut count = 0;
        let mut wrong = None;
        let (wal, recovery) = Wal::open(disk, id, options, &mut |record: RecoveredRecord| {
            count += 1;
            if wrong.is_none()
                && let Err(why) = take_record(&record, genesis, &mut candidates)
            {
                wrong = Some(LogError::Record { record: count, why });
            }
        })?;
        if let Some(error) = wrong {
            return Err(error);
        }
        let (note, witness) = match recovery.note {
            None => (Note::default(), Witness::default()),
            Some(bytes) => {
                Note::decode(bytes).map_err(|error| LogError::Record { record: count, why: error.to_string() })?
            }
        };
        let begins_late = recovery.first_segment > 1;
        let (mut gap, mut beside) = (None, false);
        let fitting = candidates.into_iter().find_map(|mut candidate| {
            let base = candidate.recovered.chain().base();
            if base == BlockRef::GENESIS && begins_late {
                return None;
            }
            match candidate.leads_to(note.head) {
                Some(head) => gap = Some((base, head)),
                None if candidate.recovered.committed(committed) => return Some(candidate),
                None => beside = true,
            }
            None
        });
        let Some(Candidate { mut recovered, locations }) = fitting else {
            return Err(match gap {
                _ if beside => LogError::Beside { snapshot: committed },
                Some((base, head)) => {
                    let why = format!("block {head} was written, and does not chain from {base}: blocks are missing");
                    LogError::Record { record: count, why }
                }
                None => LogError::Beginning { file: lockstep_wal::segment_file(recovery.first_segment) },
            });
        };
        for promise in note.timeout.map(Promise::Timeout).into_iter().chain(note.lead.map(Promise::Lead)) {
            recovered.promise(promise);
        }
        let log = Log {
            reader: wal.reader(),
            wal,
            segment_bytes: options.segment_bytes,
            base: recovered.chain().base().height,
            locations,
            bodies: BTreeMap::new(),
            queue: Vec::new(),
            queued_bytes: 0,
            syncing: None,
            durable_mark: note.mark(),
            syncing_commands: 0,
            durable: RecordSeq::ZERO,
            cut: None,
            based: RecordSeq::ZERO,
            note,
        };
        Ok((log, recovered, witness))
    }

    /// The writer that the host commits batches with. Taken once.
    pub fn writer(&self) -> lockstep_wal::Writer<D> {
        self.wal.writer()
    }

    /// Queues a record.
    pub fn push(&mut self, seq: RecordSeq, record: Record) {
        match &record {
            Record::Block(block) => {
                let index = self.index(block.height());
                assert!(index <= self.locations.len(), "block {block} leaves a gap above {}", self.locations.len());
                self.locations.truncate(index);
                self.locations.push_back(None);
                self.bodies.split_off(&block.height());
                self.bodies.insert(block.height(), (seq, block.clone()));
                self.queued_bytes += block.body().len();
            }
            Record::Base(_) => self.based = seq,
            Record::Promise(_) => {}
        }
        self.queue.push((seq, record));
    }

    /// The next batch to commit, if records wait and none is being synced. What is remembered of the others goes along.
    pub fn next_batch(&mut self, witness: &Witness) -> Option<Prepared> {
        if self.syncing.is_some() || self.queue.is_empty() {
            return None;
        }
        let mut size = 0;
        let count = self
            .queue
            .iter()
            .take_while(|(_, record)| {
                let first = size == 0;
                size += 256 + record_size(record);
                first || size <= BATCH_BYTES.min(self.wal.max_batch_bytes() as usize)
            })
            .count();
        let rest = self.queue.split_off(count);
        let batch = std::mem::replace(&mut self.queue, rest);
        let last = batch.last().expect("the queue is not empty").0;
        let mut blocks = Vec::with_capacity(batch.len());
        let mut records = Vec::with_capacity(batch.len());
        self.syncing_commands = 0;
        for (_, record) in batch {
            self.note.take(&record);
            blocks.push(match &record {
                Record::Block(block) => Some(block.reference()),
                Record::Base(_) | Record::Promise(_) => None,
            });
            if let Record::Block(block) = &record {
                self.syncing_commands += commands(block);
                self.queued_bytes -= block.body().len();
            }
            records.push(encode(record));
        }
        let (prepared, locations) = self
            .wal
            .prepare(records, self.note.encode(witness))
            .expect("the largest block fits, by the check at the start, and the rest is bounded above");
        for (block, location) in blocks.into_iter().zip(locations) {
            // A block replaced while it waited is written all the same; its place belongs to another by now.
            let Some(block) = block else { continue };
            if self.bodies.get(&block.height).is_some_and(|(_, body)| body.hash() == block.hash) {
                let index = self.index(block.height);
                self.locations[index] = Some(location);
            }
        }
        self.syncing = Some((prepared.seq(), last, self.note.mark()));
        Some(prepared)
    }

    /// The batch under way is on the disk. Returns the last record that is.
    pub fn written(&mut self, batch: BatchSeq) -> RecordSeq {
        let (seq, last, mark) = self.syncing.take().expect("a batch is being synced");
        assert!(seq == batch, "batch {batch} was written, {seq} is being synced");
        self.durable = last;
        self.durable_mark = mark;
        last
    }

    /// How far this log ever went, the batch under way included.
    pub fn mark(&self) -> Mark {
        self.note.mark()
    }

    /// How far it went on the disk.
    pub fn durable_mark(&self) -> Mark {
        self.durable_mark
    }

    /// Client commands in the batch under way.
    pub fn syncing_commands(&self) -> usize {
        self.syncing_commands
    }

    /// The last record that is on the disk.
    pub fn durable(&self) -> RecordSeq {
        self.durable
    }

    /// Bytes of blocks that wait for their batch.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// The block at `height` of the chain as it stands.
    ///
    /// # Errors
    /// A disk that fails, or a record that no longer matches its checksum: the replica must stop.
    pub fn block(&self, height: Height) -> Result<Block, ReadError> {
        if let Some((_, block)) = self.bodies.get(&height) {
            return Ok(block.clone());
        }
        let location = self.locations.get(self.index(height)).copied().flatten();
        let location = location.expect("a block without a body in memory has a place on the disk");
        let bytes = self.reader.read(location)?;
        Block::decode(bytes).map_err(|source| ReadError::Block { height, source })
    }

    /// Where the place of a height above the base stands.
    fn index(&self, height: Height) -> usize {
        assert!(height > self.base, "block {height} is below the log, which begins above {}", self.base);
        usize::try_from(height.above(self.base) - 1).expect("a log fits in memory")
    }

    /// Lets go of all blocks up to `height`, which is applied and durable, and whose state a durable snapshot holds.
    pub fn forget_below(&mut self, height: Height) {
        let gone = usize::try_from(height.above(self.base)).expect("a log fits in memory").min(self.locations.len());
        self.locations.drain(..gone);
        self.base = self.base.max(height);
        self.bodies = self.bodies.split_off(&height.next());
        self.cut_below_first();
    }

    /// A snapshot of `height` took the place of the whole log; the next block is the one above.
    pub fn start_above(&mut self, height: Height) {
        self.locations.clear();
        self.bodies.clear();
        self.base = height;
        self.cut_below_first();
    }

    /// The segments below the first block that counts are needed no more: promises are repeated in each batch.
    fn cut_below_first(&mut self) {
        let first = match self.locations.front() {
            Some(Some(location)) => location.segment(),
            // It is still to be written.
            Some(None) | None => u64::MAX,
        };
        self.cut = self.wal.cut_below(first).or(self.cut.take());
    }

    /// The segments to let go, once no batch is being synced that was prepared before.
    pub fn next_cut(&mut self) -> Option<Cut> {
        if self.stands() { self.cut.take() } else { None }
    }

    /// Whether the disk says on which snapshot the log stands, if on any.
    pub fn stands(&self) -> bool {
        self.based <= self.durable
    }

    /// Bytes of the segments from the first block that counts to the last.
    pub fn bytes(&self) -> u64 {
        let first = self.locations.front().copied().flatten();
        let last = self.locations.iter().rev().find_map(|location| *location);
        match (first, last) {
            (Some(first), Some(last)) => (last.segment() - first.segment() + 1) * self.segment_bytes,
            (Some(_) | None, _) => 0,
        }
    }

    /// Forgets bodies of blocks that are both applied and on the disk.
    pub fn forget_bodies(&mut self, upto: Height) {
        while let Some(entry) = self.bodies.first_entry() {
            if *entry.key() > upto || entry.get().0 > self.durable {
                return;
            }
            entry.remove();
        }
    }
}

/// Why a block that was written cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The write-ahead log refuses.
    #[error(transparent)]
    Wal(#[from] lockstep_wal::ReadError),
    /// The record is no block.
    #[error("failed to read block {height} back from the log: {source}; the replica stops, its data is kept")]
    Block {
        /// Its height.
        height: Height,
        /// What is wrong with it.
        source: DecodeError,
    },
}

/// How many commands a block holds: what its body starts with.
fn commands(block: &Block) -> usize {
    Bits::new(block.body().clone()).u32("command count").map_or(0, |count| count as usize)
}

fn record_size(record: &Record) -> usize {
    match record {
        Record::Block(block) => block.body().len(),
        Record::Base(_) | Record::Promise(_) => 0,
    }
}

fn encode(record: Record) -> lockstep_wal::Record {
    match record {
        Record::Block(block) => lockstep_wal::Record { kind: BLOCK, payload: block.encode_parts().to_vec() },
        Record::Base(block) => {
            let mut out = Bytewise::default();
            out.view(block.view).height(block.height).raw(block.hash.as_bytes());
            lockstep_wal::Record { kind: BASE, payload: vec![Bytes::from(out.finish())] }
        }
        Record::Promise(promise) => {
            let (kind, view) = match promise {
                Promise::Timeout(view) => (TIMEOUT, view),
                Promise::Lead(view) => (LEAD, view),
            };
            let mut out = Bytewise::default();
            out.view(view);
            lockstep_wal::Record { kind, payload: vec![Bytes::from(out.finish())] }
        }
    }
}

/// What the log comes to if it goes on from one beginning.
struct Candidate {
    recovered: Recovered,
    locations: VecDeque<Option<Location>>,
}

impl Candidate {
    fn new(beginning: Recovered) -> Self {
        Candidate { recovered: beginning, locations: VecDeque::new() }
    }

    fn take_block(&mut self, block: &Block, location: Location) {
        if self.recovered.block(block.header(), block.hash()) {
            let below = block.height().above(self.recovered.chain().base().height) - 1;
            self.locations.truncate(usize::try_from(below).expect("a log fits in memory"));
            self.locations.push_back(Some(location));
        }
    }

    /// The block that it does not lead to, of the last one in the log and the one that the second copy names.
    fn leads_to(&self, head: Option<BlockRef>) -> Option<BlockRef> {
        self.recovered.missing().or(head.filter(|head| !self.recovered.accounts_for(*head)))
    }
}

fn take_record(record: &RecoveredRecord, genesis: &Genesis, candidates: &mut [Candidate]) -> Result<(), String> {
    let view = || {
        let mut bits = Bits::new(record.payload.clone());
        let view = bits.view("promise").map_err(|error| error.to_string())?;
        bits.finish("promise").map_err(|error| error.to_string())?;
        Ok::<View, String>(view)
    };
    match record.kind {
        BLOCK => {
            let block = Block::decode(record.payload.clone()).map_err(|error| error.to_string())?;
            if block.header().service != genesis.service {
                return Err(format!("block {block} belongs to service {}", block.header().service));
            }
            candidates.iter_mut().for_each(|candidate| candidate.take_block(&block, record.location));
        }
        kind @ (TIMEOUT | LEAD) => {
            let view = view()?;
            let promise = if kind == TIMEOUT { Promise::Timeout(view) } else { Promise::Lead(view) };
            candidates.iter_mut().for_each(|candidate| candidate.recovered.promise(promise));
        }
        BASE => {
            let block = read_base(record.payload.clone()).map_err(|error| error.to_string())?;
            candidates.iter_mut().for_each(|candidate| candidate.recovered.base(block));
        }
        kind => return Err(format!("unknown kind {kind}")),
    }
    Ok(())
}

fn read_base(payload: Bytes) -> Result<BlockRef, DecodeError> {
    let mut bits = Bits::new(payload);
    let (view, height) = (bits.view("base")?, bits.height("base")?);
    let block = BlockRef { view, height, hash: bits.digest("base")? };
    bits.finish("base")?;
    Ok(block)
}
