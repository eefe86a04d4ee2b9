//! Blocks and promises as records of the write-ahead log, in one queue; bodies from memory or from the disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_consensus::{Promise, Record, RecordSeq, Recovered};
use lockstep_types::codec::{Reader as Bits, Writer as Bytewise};
use lockstep_types::{Block, BlockRef, DecodeError, Digest, Genesis, Height, ReplicaId, View};
use lockstep_wal::{BatchSeq, Disk, Location, Options, Prepared, Reader, RecoveredRecord, Wal, WalId};
use thiserror::Error;

/// Kinds of records.
const BLOCK: u8 = 1;
const TIMEOUT: u8 = 2;
const LEAD: u8 = 3;

/// Bytes of records gathered into one batch at most; one record may exceed it.
const BATCH_BYTES: usize = 8 << 20;

/// Why a log cannot be started from.
#[derive(Debug, Error)]
pub enum LogError {
    /// The write-ahead log refuses.
    #[error(transparent)]
    Wal(#[from] lockstep_wal::OpenError),
    /// The log does not begin with its first segment, and nothing else holds what was before.
    #[error(
        "log begins with {file}, and the segments before it are missing; the replica stops and keeps its data: \
         put them back, or give this replica an empty directory so that it joins as a new one"
    )]
    Beginning {
        /// The lowest segment's file.
        file: String,
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
    reader: Reader<D>,
    /// Where the block of height h lies: at index h − 1. Blocks still queued have none yet.
    locations: Vec<Option<Location>>,
    /// Blocks that are queued, being synced, or not applied yet, with their records.
    bodies: BTreeMap<Height, (RecordSeq, Block)>,
    /// Records that wait for the batch under way.
    queue: Vec<(RecordSeq, Record)>,
    queued_bytes: usize,
    /// The batch under way, its last record.
    syncing: Option<(BatchSeq, RecordSeq)>,
    /// Client commands in that batch.
    syncing_commands: usize,
    durable: RecordSeq,
    /// The newest promises queued, and the head: what the second copy in each batch repeats (PROTOCOL §8).
    note: Note,
}

/// What each batch repeats in a second place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Note {
    head: Option<BlockRef>,
    timeout: Option<View>,
    lead: Option<View>,
}

impl<D: Disk> Log<D> {
    /// Opens the log and reads it from the start.
    ///
    /// # Errors
    /// A log that is faulty, belongs to another replica or service, or was written by a later release.
    pub fn open(
        disk: Arc<D>,
        genesis: &Genesis,
        replica: ReplicaId,
        options: Options,
    ) -> Result<(Self, Recovered), LogError> {
        let id = WalId { service: *genesis.service.as_bytes(), replica: *replica.as_bytes() };
        let mut recovered = Recovered::default();
        let mut locations = Vec::new();
        let mut count = 0;
        let mut wrong = None;
        let (wal, recovery) = Wal::open(disk, id, options, &mut |record: RecoveredRecord| {
            count += 1;
            if wrong.is_none()
                && let Err(why) = take_record(&record, genesis, &mut recovered, &mut locations)
            {
                wrong = Some(LogError::Record { record: count, why });
            }
        })?;
        if recovery.first_segment > 1 {
            return Err(LogError::Beginning { file: lockstep_wal::segment_file(recovery.first_segment) });
        }
        if let Some(error) = wrong {
            return Err(error);
        }
        let note = match recovery.note {
            None => Note::default(),
            Some(bytes) => {
                Note::decode(bytes).map_err(|error| LogError::Record { record: count, why: error.to_string() })?
            }
        };
        for promise in note.timeout.map(Promise::Timeout).into_iter().chain(note.lead.map(Promise::Lead)) {
            recovered.promise(promise);
        }
        if let Some(head) = note.head
            && !recovered.chain().holds(head)
        {
            let why = format!("the second copy names block {head} as written, and the log does not hold it");
            return Err(LogError::Record { record: count, why });
        }
        let log = Log {
            reader: wal.reader(),
            wal,
            locations,
            bodies: BTreeMap::new(),
            queue: Vec::new(),
            queued_bytes: 0,
            syncing: None,
            syncing_commands: 0,
            durable: RecordSeq::ZERO,
            note,
        };
        Ok((log, recovered))
    }

    /// The writer that the host commits batches with. Taken once.
    pub fn writer(&self) -> lockstep_wal::Writer<D> {
        self.wal.writer()
    }

    /// Queues a record.
    pub fn push(&mut self, seq: RecordSeq, record: Record) {
        match &record {
            Record::Block(block) => {
                let index = usize::try_from(block.height().get() - 1).expect("a log fits in memory");
                assert!(index <= self.locations.len(), "block {block} leaves a gap above {}", self.locations.len());
                self.locations.truncate(index);
                self.locations.push(None);
                self.bodies.split_off(&block.height());
                self.bodies.insert(block.height(), (seq, block.clone()));
                self.queued_bytes += block.body().len();
            }
            Record::Promise(_) => {}
        }
        self.queue.push((seq, record));
    }

    /// The next batch to commit, if records wait and none is being synced.
    pub fn next_batch(&mut self) -> Option<Prepared> {
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
                Record::Promise(_) => None,
            });
            if let Record::Block(block) = &record {
                self.syncing_commands += commands(block);
                self.queued_bytes -= block.body().len();
            }
            records.push(encode(record));
        }
        let (prepared, locations) = self
            .wal
            .prepare(records, self.note.encode())
            .expect("the largest block fits, by the check at the start, and the rest is bounded above");
        for (block, location) in blocks.into_iter().zip(locations) {
            // A block replaced while it waited is written all the same; its place belongs to another by now.
            let Some(block) = block else { continue };
            if self.bodies.get(&block.height).is_some_and(|(_, body)| body.hash() == block.hash) {
                self.locations[block.height.get() as usize - 1] = Some(location);
            }
        }
        self.syncing = Some((prepared.seq(), last));
        Some(prepared)
    }

    /// The batch under way is on the disk. Returns the last record that is.
    pub fn written(&mut self, batch: BatchSeq) -> RecordSeq {
        let (seq, last) = self.syncing.take().expect("a batch is being synced");
        assert!(seq == batch, "batch {batch} was written, {seq} is being synced");
        self.durable = last;
        last
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
        let location = self.locations.get(height.get() as usize - 1).copied().flatten();
        let location = location.expect("a block without a body in memory has a place on the disk");
        let bytes = self.reader.read(location)?;
        Block::decode(bytes).map_err(|source| ReadError::Block { height, source })
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
        Record::Promise(_) => 0,
    }
}

fn encode(record: Record) -> lockstep_wal::Record {
    match record {
        Record::Block(block) => lockstep_wal::Record { kind: BLOCK, payload: block.encode_parts().to_vec() },
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

fn take_record(
    record: &RecoveredRecord,
    genesis: &Genesis,
    recovered: &mut Recovered,
    locations: &mut Vec<Option<Location>>,
) -> Result<(), String> {
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
            if !recovered.block(block.header(), block.hash()) {
                return Err(format!("block {block} does not chain from the one below"));
            }
            locations.truncate(block.height().get() as usize - 1);
            locations.push(Some(record.location));
        }
        TIMEOUT => recovered.promise(Promise::Timeout(view()?)),
        LEAD => recovered.promise(Promise::Lead(view()?)),
        kind => return Err(format!("unknown kind {kind}")),
    }
    Ok(())
}

impl Note {
    fn take(&mut self, record: &Record) {
        match record {
            Record::Block(block) => self.head = Some(block.reference()),
            Record::Promise(Promise::Timeout(view)) => self.timeout = self.timeout.max(Some(*view)),
            Record::Promise(Promise::Lead(view)) => self.lead = self.lead.max(Some(*view)),
        }
    }

    fn encode(&self) -> Bytes {
        let mut out = Bytewise::default();
        let head = self.head.unwrap_or(BlockRef::GENESIS);
        out.u8(1).view(head.view).height(head.height).raw(head.hash.as_bytes());
        out.view(self.timeout.unwrap_or(View::ZERO)).view(self.lead.unwrap_or(View::ZERO));
        Bytes::from(out.finish())
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut bits = Bits::new(bytes);
        let found = u16::from(bits.u8("note version")?);
        if found > 1 {
            return Err(DecodeError::NewerVersion { what: "note", found, known: 1 });
        }
        let view = bits.view("note head")?;
        let height = bits.height("note head")?;
        let hash: Digest = bits.digest("note head")?;
        let known = |view: View| (view > View::ZERO).then_some(view);
        let note = Note {
            head: (height > Height::ZERO).then_some(BlockRef { view, height, hash }),
            timeout: known(bits.view("note timeout")?),
            lead: known(bits.view("note lead")?),
        };
        bits.finish("note")?;
        Ok(note)
    }
}
