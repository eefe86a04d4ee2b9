//! What a log gives back when nothing goes wrong.
#![allow(missing_docs)]

mod common;

use bytes::Bytes;
use common::{
    BLOCK, Batch, DATA_AT, ID, MemDisk, SMALL, TRAILER, batch, log_of, open, open_with, records, sized_batch,
};
use lockstep_wal::{MAX_NOTE, OpenError, Options, PrepareError, RECORD_OVERHEAD, Record, Wal};
use proptest::prelude::*;

#[test]
fn empty_directory_becomes_an_empty_log() {
    let disk = MemDisk::empty();
    let opened = open(&disk).unwrap();
    let recovery = &opened.recovery;
    assert!(recovery.created && recovery.last.is_none() && recovery.note.is_none() && recovery.cut.is_none());
    assert_eq!(opened.wal.next_seq().get(), 1);
    drop(opened);
    let opened = open(&disk).unwrap();
    assert!(!opened.recovery.created && opened.records.is_empty());
}

#[test]
fn batches_prepared_ahead_come_back_in_order_over_segments() {
    let batches: Vec<Batch> = (1..=20).map(|number| sized_batch(number, usize::from(number) * 300)).collect();
    let disk = MemDisk::empty();
    let mut opened = open(&disk).unwrap();
    let mut queue = Vec::new();
    for batch in &batches {
        queue.push(opened.wal.prepare(records(batch), Bytes::copy_from_slice(&batch.note)).unwrap());
    }
    let reader = opened.wal.reader();
    for ((prepared, locations), batch) in queue.iter().zip(&batches) {
        assert_eq!(prepared.bytes() % BLOCK as u64, 0);
        opened.writer.commit(prepared).unwrap();
        for (location, (_, payload)) in locations.iter().zip(&batch.records) {
            assert_eq!(reader.read(*location).unwrap(), payload);
        }
    }
    let opened = open(&disk).unwrap();
    assert_eq!(opened.assert_prefix(&batches), 20);
    assert!(opened.recovery.segments > 5, "{} segments", opened.recovery.segments);
    assert_eq!(opened.wal.next_seq().get(), 21);
}

#[test]
fn recovered_locations_can_be_read() {
    let disk = log_of(&[batch(1), sized_batch(2, 4000), batch(3), batch(4), batch(5)]);
    let mut found = Vec::new();
    let (wal, _) = Wal::open(disk, ID, SMALL, &mut |record| found.push(record)).unwrap();
    assert_eq!(found.len(), 10);
    for record in found {
        assert_eq!(wal.reader().read(record.location).unwrap(), record.payload);
    }
}

#[test]
fn largest_batch_fits_and_one_byte_more_does_not() {
    let disk = MemDisk::empty();
    let mut opened = open(&disk).unwrap();
    opened.append(&batch(1)).unwrap();
    let payload = usize::try_from(opened.wal.max_batch_bytes() - RECORD_OVERHEAD).unwrap();
    let record = |len: usize| vec![Record { kind: 1, payload: vec![Bytes::from(vec![7; len])] }];
    let note = Bytes::from(vec![8; MAX_NOTE]);

    let error = opened.wal.prepare(record(payload + 1), note.clone()).map(|_| ()).unwrap_err();
    let max = opened.wal.max_batch_bytes();
    assert_eq!(error, PrepareError::TooLarge { bytes: max + 1, max });
    assert_eq!(
        error.to_string(),
        "batch of 15217 bytes is too large; a batch has at most 15216 bytes, framing included"
    );
    let error = opened.wal.prepare(Vec::new(), vec![8; MAX_NOTE + 1].into()).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "note of 1025 bytes is too large; a note has at most 1024 bytes");

    // Neither left a trace: the next one is batch 2.
    let (prepared, _) = opened.wal.prepare(record(payload), note.clone()).unwrap();
    assert_eq!((prepared.seq().get(), prepared.bytes()), (2, 4 * BLOCK as u64));
    opened.writer.commit(&prepared).unwrap();
    let opened = open(&disk).unwrap();
    assert_eq!(opened.records.last().unwrap().2, vec![7; payload]);
    assert_eq!(opened.recovery.note, Some(note));
}

#[test]
fn batch_without_records_still_carries_its_note() {
    let disk = log_of(&[batch(1), Batch { records: Vec::new(), note: b"only this".to_vec() }]);
    let opened = open(&disk).unwrap();
    assert_eq!((opened.recovery.last.unwrap().get(), opened.recovery.note.as_deref()), (2, Some(&b"only this"[..])));
}

#[test]
fn batch_prepared_but_not_committed_was_never_there() {
    let disk = log_of(&[batch(1)]);
    let mut opened = open(&disk).unwrap();
    for number in 2..8 {
        opened.wal.prepare(records(&batch(number)), Bytes::new()).unwrap();
    }
    let mut opened = open(&disk).unwrap();
    assert_eq!(opened.assert_prefix(&[batch(1)]), 1);
    opened.append(&batch(9)).unwrap();
    assert_eq!(open(&disk).unwrap().assert_prefix(&[batch(1), batch(9)]), 2);
}

#[test]
fn segment_size_may_change_between_starts() {
    let disk = log_of(&[batch(1), batch(2)]);
    open(&disk).unwrap().writer.allocate_ahead().unwrap();
    let larger = Options { segment_bytes: (DATA_AT + 16 * BLOCK + TRAILER) as u64 };
    let mut opened = open_with(&disk, ID, larger).unwrap();
    assert_eq!(disk.files().len(), 1, "the spare of the old size is gone");
    let mut written = vec![batch(1), batch(2)];
    for number in 3..13 {
        written.push(sized_batch(number, 6000));
        opened.append(written.last().unwrap()).unwrap();
    }
    let opened = open(&disk).unwrap();
    assert_eq!(opened.assert_prefix(&written), 12);
    assert_eq!(opened.recovery.segments, 3, "one small, two large");
}

#[test]
fn smallest_segment_for_a_batch_holds_it_and_a_block_less_does_not() {
    for batch in [0, 1, 7024, 7025, 2 << 20, (2 << 20) + 1] {
        let segment_bytes = Options::least_segment_bytes(batch);
        assert!(Options { segment_bytes }.max_batch_bytes() >= batch, "{batch} in {segment_bytes}");
        let less = Options { segment_bytes: segment_bytes - BLOCK as u64 };
        assert!(less.max_batch_bytes() < batch || segment_bytes == 32_768, "{batch} in {segment_bytes}");
        let opened = open_with(&MemDisk::empty(), ID, Options { segment_bytes }).unwrap();
        assert_eq!(opened.wal.max_batch_bytes(), Options { segment_bytes }.max_batch_bytes());
    }
}

#[test]
fn impossible_segment_size_is_refused() {
    for segment_bytes in [0, 4096, 28_672, 40_000, 2 << 30] {
        let error = open_with(&MemDisk::empty(), ID, Options { segment_bytes }).map(|_| ()).unwrap_err();
        assert!(matches!(error, OpenError::SegmentBytes { .. }), "{error}");
    }
}

#[test]
fn other_files_in_the_directory_are_left_alone() {
    use lockstep_wal::Disk;
    let disk = MemDisk::empty();
    for name in ["identity", "wal-1.log", "wal-000000000000.log", "wal-00000000000x.log", "wal-000000000001.log.bak"] {
        disk.replace(name, b"not ours").unwrap();
    }
    open(&disk).unwrap().append(&batch(1)).unwrap();
    assert_eq!(open(&disk).unwrap().assert_prefix(&[batch(1)]), 1);
    assert_eq!(disk.files().len(), 6);
}

#[test]
#[should_panic(expected = "a log has one writer")]
fn second_writer_panics() {
    let opened = open(&MemDisk::empty()).unwrap();
    opened.wal.writer();
}

#[test]
#[should_panic(expected = "batch 2 committed where 1 has to come")]
fn batch_out_of_sequence_panics() {
    let mut opened = open(&MemDisk::empty()).unwrap();
    opened.wal.prepare(Vec::new(), Bytes::new()).unwrap();
    let (second, _) = opened.wal.prepare(Vec::new(), Bytes::new()).unwrap();
    let _ = opened.writer.commit(&second);
}

fn any_batch() -> impl Strategy<Value = Batch> {
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..80),
        (any::<u8>(), 0..6000_usize).prop_map(|(byte, len)| vec![byte; len]),
    ];
    let records = prop::collection::vec((any::<u8>(), payload), 0..3);
    let note = (any::<u8>(), 0..=MAX_NOTE).prop_map(|(byte, len)| vec![byte; len]);
    (records, note).prop_map(|(records, note)| Batch { records, note })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn random_batches_with_reopens_come_back(
        steps in prop::collection::vec((any_batch(), 0..4_u8), 1..25)
    ) {
        let disk = MemDisk::empty();
        let mut opened = open(&disk).unwrap();
        let mut written = Vec::new();
        for (batch, then) in steps {
            let locations = opened.append(&batch).unwrap();
            for (location, (_, payload)) in locations.iter().zip(&batch.records) {
                prop_assert_eq!(&opened.wal.reader().read(*location).unwrap(), payload);
            }
            written.push(batch);
            match then {
                0 => {
                    opened = open(&disk).unwrap();
                    prop_assert_eq!(opened.assert_prefix(&written), written.len());
                    prop_assert!(opened.recovery.cut.is_none());
                }
                1 => opened.writer.allocate_ahead().unwrap(),
                _ => {}
            }
        }
        prop_assert_eq!(open(&disk).unwrap().assert_prefix(&written), written.len());
        let lost_power = MemDisk::of(disk.power_cut(|_| false));
        prop_assert_eq!(open(&lost_power).unwrap().assert_prefix(&written), written.len());
    }
}
