//! The log under a snapshot of a peer: what a start finds at each moment of an installation.

use std::sync::Arc;

use lockstep_consensus::{Record, RecordSeq, Recovered};
use lockstep_engine::log::{Log, LogError};
use lockstep_types::block::encode_body;
use lockstep_types::{
    Block, BlockHeader, BlockRef, Digest, Epoch, FaultModel, Genesis, Height, LogTime, ReplicaId, ServiceId, Slot, View,
};
use lockstep_wal::{FileDisk, Options, Writer};
use tempfile::TempDir;

const REPLICA: ReplicaId = ReplicaId::from_bytes([1; 16]);

fn genesis() -> Genesis {
    Genesis {
        service: ServiceId::from_bytes([9; 16]),
        fault_model: FaultModel::Crash,
        voters: vec![REPLICA],
        machine: "KeyValue".into(),
        sessions_max: 64,
        reply_bytes_max: 1 << 20,
        snapshot_bytes: Genesis::SNAPSHOT_BYTES,
    }
}

fn block(view: u64, below: BlockRef) -> Block {
    let header = BlockHeader {
        service: genesis().service,
        epoch: Epoch::FIRST,
        view: View::new(view, Slot::new(1)),
        height: below.height.next(),
        parent: below.hash,
        body: Digest::ZERO,
        log_time: LogTime::from_millis(1),
        change: None,
    };
    Block::new(header, encode_body(&[]))
}

/// A snapshot's block of another chain.
fn snapshot(view: u64, height: u64) -> BlockRef {
    BlockRef { view: View::new(view, Slot::new(1)), height: Height::new(height), hash: Digest::of(b"elsewhere") }
}

struct Disk {
    folder: TempDir,
    seq: RecordSeq,
}

impl Disk {
    fn open(&self, snapshot: Option<BlockRef>) -> Result<(Log<FileDisk>, Recovered), LogError> {
        let disk = Arc::new(FileDisk::open(self.folder.path()).expect("a folder of our own"));
        let above = |block| Recovered::above(block, LogTime::from_millis(1), genesis().configuration());
        let beginnings = [Recovered::new(genesis().configuration())].into_iter().chain(snapshot.map(above)).collect();
        let options = Options { segment_bytes: 64 << 10 };
        let newest = snapshot.unwrap_or(BlockRef::GENESIS);
        let (log, recovered, _) = Log::open(disk, &genesis(), REPLICA, options, beginnings, newest)?;
        Ok((log, recovered))
    }

    fn push(&mut self, log: &mut Log<FileDisk>, record: Record) {
        self.seq = self.seq.next();
        log.push(self.seq, record);
    }
}

fn commit(log: &mut Log<FileDisk>, writer: &mut Writer<FileDisk>) {
    let batch = log.next_batch(&Default::default()).expect("something waits");
    writer.commit(&batch).expect("a disk of our own");
    log.written(batch.seq());
}

/// Blocks of these views, one above the other, more than one segment of them.
fn grow(disk: &mut Disk, log: &mut Log<FileDisk>, writer: &mut Writer<FileDisk>, views: &[u64]) -> BlockRef {
    let mut head = BlockRef::GENESIS;
    for view in views {
        let block = block(*view, head);
        head = block.reference();
        disk.push(log, Record::Block(block));
        commit(log, writer);
    }
    head
}

#[test]
fn log_is_not_cut_before_the_disk_says_what_it_stands_on() {
    let mut disk = Disk { folder: TempDir::new().expect("a folder"), seq: RecordSeq::ZERO };
    let (mut log, _) = disk.open(None).expect("an empty folder");
    let mut writer = log.writer();
    let head = grow(&mut disk, &mut log, &mut writer, &[1; 40]);
    assert!(disk.folder.path().join("wal-000000000002.log").exists(), "several segments");
    // A batch is under way when the snapshot comes.
    disk.push(&mut log, Record::Block(block(1, head)));
    let under_way = log.next_batch(&Default::default()).expect("a block waits");
    log.start_above(Height::new(100));
    disk.push(&mut log, Record::Base(snapshot(2, 100)));
    assert!(log.next_cut().is_none() && !log.stands());
    writer.commit(&under_way).expect("a disk of our own");
    log.written(under_way.seq());
    assert!(log.next_cut().is_none() && !log.stands(), "the batch under way was made before");
    commit(&mut log, &mut writer);
    assert!(log.stands() && log.next_cut().is_some());
}

#[test]
fn installation_cut_short_over_a_dead_suffix_of_a_later_view_is_told_from_a_gap() {
    let mut disk = Disk { folder: TempDir::new().expect("a folder"), seq: RecordSeq::ZERO };
    let (mut log, _) = disk.open(None).expect("an empty folder");
    let mut writer = log.writer();
    // The suffix of view 4 never committed; view 5 went on from view 3, and the snapshot holds that.
    let head = grow(&mut disk, &mut log, &mut writer, &[1, 1, 4, 4]);
    drop((log, writer));
    let fetched = snapshot(3, 3);
    assert!(matches!(disk.open(Some(fetched)), Err(LogError::Beside { snapshot }) if snapshot == fetched));
    let (_, recovered) = disk.open(None).expect("without it the log stands as before");
    assert_eq!(recovered.chain().head(), head);
    // Once the log stands on it there is no way back.
    let (mut log, _) = disk.open(None).expect("as before");
    let mut writer = log.writer();
    disk.push(&mut log, Record::Base(fetched));
    commit(&mut log, &mut writer);
    drop((log, writer));
    let (_, recovered) = disk.open(Some(fetched)).expect("it stands on the snapshot");
    assert_eq!(recovered.chain().head(), fetched);
    assert!(matches!(disk.open(None), Err(LogError::Record { .. })), "what was acknowledged is missing");
}
