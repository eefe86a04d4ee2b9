//! What dying at any moment may do to a log: take the batch whose commit did not return.
#![allow(missing_docs)]

mod common;

use common::{
    BLOCK, Batch, DATA_AT, Image, MemDisk, SEAL_AT, SECTOR, Trouble, batch, log_of, open, open_err, sized_batch,
};
use lockstep_wal::{CommitError, Fault, IoFailure, OpenError};
use proptest::prelude::*;

/// Appends until the disk dies; returns how many commits returned.
fn append_until_death(disk: &std::sync::Arc<MemDisk>, batches: &[Batch]) -> usize {
    let Ok(mut opened) = open(disk) else { return 0 };
    for (count, batch) in batches.iter().enumerate() {
        if opened.append(batch).is_err() {
            return count;
        }
        // What an idle moment would do; errors show at the next batch.
        if count % 3 == 1 {
            let _ = opened.writer.allocate_ahead();
        }
    }
    batches.len()
}

/// Opens what a death left, which must hold what was committed and perhaps one more, and goes on with it.
fn assert_goes_on(image: Image, batches: &[Batch], committed: usize) {
    let disk = MemDisk::of(image);
    let mut opened = open(&disk).unwrap_or_else(|error| panic!("{committed} committed: {error}"));
    let count = opened.assert_prefix(batches);
    assert!(count == committed || count == committed + 1, "{count} batches of {committed} committed");
    let mut written = batches[..count].to_vec();
    for number in 100..106 {
        written.push(batch(number));
        opened.append(&batch(number)).unwrap();
    }
    drop(opened);
    assert_eq!(open(&disk).unwrap().assert_prefix(&written), written.len());
}

/// Small and large batches over several segments.
fn script() -> Vec<Batch> {
    (1..=9).map(|number| sized_batch(number, usize::from(number) % 3 * 3000)).collect()
}

#[test]
fn process_killed_at_any_sector_loses_at_most_the_batch_under_way() {
    let batches = script();
    let mut sectors = 0;
    loop {
        let disk = MemDisk::empty();
        disk.die_after(sectors);
        let committed = append_until_death(&disk, &batches);
        // The cache survives a kill; of the sectors that were not synced, a power cut may take all.
        assert_goes_on(disk.killed(), &batches, committed);
        assert_goes_on(disk.power_cut(|_| false), &batches, committed);
        if committed == batches.len() {
            break;
        }
        sectors += 1;
    }
    assert!(sectors > 200, "{sectors} sectors are not the whole script");
}

#[test]
fn recovery_killed_at_any_sector_can_run_again() {
    let batches = script();
    for first in (60..400).step_by(23) {
        let disk = MemDisk::empty();
        disk.die_after(first);
        let committed = append_until_death(&disk, &batches);
        let image = disk.killed();
        for second in 0.. {
            let disk = MemDisk::of(image.clone());
            disk.die_after(second);
            let recovered = open(&disk).is_ok();
            assert_goes_on(disk.killed(), &batches, committed);
            assert_goes_on(disk.power_cut(|sector| sector % 3 == 0), &batches, committed);
            if recovered {
                break;
            }
        }
    }
}

#[test]
fn last_batch_torn_at_any_sector_is_cut_and_the_log_goes_on() {
    let batches = [batch(1), batch(2), sized_batch(3, 5000)];
    let disk = log_of(&batches[..2]);
    let before = disk.killed();
    let whole = (2 * BLOCK + BLOCK) / SECTOR;
    for sectors in 0..whole {
        let disk = MemDisk::of(before.clone());
        let mut opened = open(&disk).unwrap();
        disk.die_after(sectors);
        assert!(opened.append(&batches[2]).is_err());
        drop(opened);

        let disk = MemDisk::of(disk.killed());
        let mut opened = open(&disk).unwrap();
        let count = opened.assert_prefix(&batches);
        let significant = 5000_usize.div_ceil(SECTOR);
        assert!(count == 2 || sectors >= significant, "{count} batches after {sectors} sectors");
        let torn = count == 2 && sectors > 0;
        assert_eq!(opened.recovery.cut.is_some(), torn, "after {sectors} sectors");
        if let Some(cut) = opened.recovery.cut {
            assert_eq!(
                cut.to_string(),
                format!("batch 3 at byte 12288 of wal-000000000001.log, {} bytes, never synced", cut.bytes)
            );
            let file = &disk.killed()["wal-000000000001.log"];
            assert!(file[DATA_AT + 2 * BLOCK..SEAL_AT].iter().all(|byte| *byte == 0), "what was cut is zero");
        }
        let mut written = batches[..count].to_vec();
        written.push(batch(4));
        opened.append(&batch(4)).unwrap();
        drop(opened);
        assert_eq!(open(&disk).unwrap().assert_prefix(&written), written.len());
    }
}

#[test]
fn power_cut_while_write_back_goes_up_the_file_never_reads_as_faulty() {
    // Each slot is used once over the remains of an earlier identifier, and the last block before the slots is used too.
    let batches: Vec<Batch> = (1..=7).map(|number| sized_batch(number, usize::from(number) % 2 * 3900)).collect();
    for count in 0..batches.len() {
        let durable = log_of(&batches[..count]).killed();
        for written in 0.. {
            let disk = MemDisk::of(durable.clone());
            let mut opened = open(&disk).unwrap();
            disk.die_after(written);
            if opened.append(&batches[count]).is_ok() {
                assert!(written > (BLOCK + BLOCK) / SECTOR, "{written} sectors are not a batch and its identifier");
                break;
            }
            for sectors in 0..=disk.pending() {
                assert_goes_on(disk.power_cut_up_the_file(sectors), &batches, count);
            }
        }
    }
}

#[test]
fn identifier_without_its_batch_is_faulty() {
    let disk = log_of(&[batch(1)]);
    let mut opened = open(&disk).unwrap();
    let durable = disk.killed();
    disk.set_trouble(Trouble::FailedSync);
    let (prepared, _) = opened.wal.prepare(common::records(&batch(2)), "note 2".into()).unwrap();
    opened.writer.commit(&prepared).unwrap_err();
    // The cache has the whole batch. Of its 8 sectors the power cut took the first, of the identifier's none.
    let mut image = disk.killed();
    let file = std::sync::Arc::make_mut(image.get_mut("wal-000000000001.log").unwrap());
    let at = DATA_AT + BLOCK;
    file[at..at + SECTOR].copy_from_slice(&durable["wal-000000000001.log"][at..at + SECTOR]);
    let error = open_err(&MemDisk::of(image));
    assert!(matches!(error, OpenError::Faulty { fault: Fault::Identified(_), .. }), "{error}");
}

#[test]
fn recycled_segment_does_not_bring_its_past_back() {
    let first: Vec<Batch> = (1..=8).map(batch).collect();
    let disk = log_of(&first);
    // Segment 3 is segment 1 over again, header, identifiers, batches and all.
    let mut image = disk.killed();
    image.insert("wal-000000000003.log".to_owned(), image["wal-000000000001.log"].clone());
    let disk = MemDisk::of(image);
    let mut written = first;
    for number in 9..=13 {
        let mut opened = open(&disk).unwrap();
        opened.assert_prefix(&written);
        written.push(batch(number));
        opened.append(&batch(number)).unwrap();
    }
    assert_eq!(open(&disk).unwrap().assert_prefix(&written), 13);
    assert!(disk.files().len() == 4);
}

#[test]
fn batch_cut_earlier_does_not_come_back_behind_a_shorter_one() {
    // Batch 2 of two blocks is torn in its first sector and cut; its other sectors reach the disk late.
    let disk = log_of(&[batch(1)]);
    let mut opened = open(&disk).unwrap();
    let (prepared, _) = opened.wal.prepare(common::records(&sized_batch(2, 5000)), "".into()).unwrap();
    opened.writer.commit(&prepared).unwrap();
    let with_second = disk.killed();
    let disk = log_of(&[batch(1), batch(9)]);
    let mut image = disk.killed();
    let file = std::sync::Arc::make_mut(image.get_mut("wal-000000000001.log").unwrap());
    let late = DATA_AT + 2 * BLOCK..DATA_AT + 3 * BLOCK;
    file[late.clone()].copy_from_slice(&with_second["wal-000000000001.log"][late]);
    let opened = open(&MemDisk::of(image)).unwrap();
    assert_eq!(opened.assert_prefix(&[batch(1), batch(9)]), 2);
    assert_eq!(opened.recovery.cut.map(|cut| cut.bytes), Some(BLOCK as u64));
}

#[test]
fn batch_of_another_history_does_not_continue_this_one() {
    let name = "wal-000000000001.log";
    let other = log_of(&[batch(1), batch(2), batch(3), batch(4)]).killed();
    let written = [batch(1), batch(9)];
    let image = log_of(&written).killed();
    // Batch 3, which followed batch 2 and not batch 9, where batch 3 belongs; then batch 4 there, which belongs nowhere.
    for (from, to) in [(2, 2), (3, 2)] {
        let (from, to) = (DATA_AT + from * BLOCK, DATA_AT + to * BLOCK);
        let disk = common::changed(&image, name, |file| {
            file[to..to + BLOCK].copy_from_slice(&other[name][from..from + BLOCK]);
        });
        let opened = open(&disk).unwrap();
        assert_eq!(opened.assert_prefix(&written), 2);
        assert!(opened.recovery.cut.is_some());
    }
}

#[test]
fn note_torn_is_cut_with_its_batch() {
    let written = [batch(1), Batch { records: Vec::new(), note: vec![7; 1000] }];
    for sectors in 1..3 {
        let disk = log_of(&written[..1]);
        let mut opened = open(&disk).unwrap();
        disk.die_after(sectors);
        assert!(opened.append(&written[1]).is_err());
        assert_eq!(open(&MemDisk::of(disk.killed())).unwrap().assert_prefix(&written), 1);
    }
}

#[test]
fn cache_that_cannot_be_dropped_is_written_out() {
    // Batch 4 is the last of segment 1, batch 5 the first of segment 2. The cache has both; the disk has neither.
    let batches: Vec<Batch> = (1..=5).map(batch).collect();
    let cache = log_of(&batches).killed();
    let mut durable = cache.clone();
    for (name, block) in [("wal-000000000001.log", 3), ("wal-000000000002.log", 0)] {
        let at = DATA_AT + block * BLOCK;
        std::sync::Arc::make_mut(durable.get_mut(name).unwrap())[at..at + BLOCK].fill(0);
    }
    let disk = MemDisk::lying(cache, durable);
    disk.set_trouble(Trouble::StickyCache);
    assert_eq!(open(&disk).unwrap().assert_prefix(&batches), 5);
    assert_eq!(open(&MemDisk::of(disk.power_cut(|_| false))).unwrap().assert_prefix(&batches), 5);
}

#[test]
fn failed_sync_poisons_the_writer_and_the_next_start_reads_around_the_cache() {
    let disk = log_of(&[batch(1)]);
    let mut opened = open(&disk).unwrap();
    disk.set_trouble(Trouble::FailedSync);
    let error = opened.append(&batch(2)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to sync wal-000000000001.log: Input/output error (os error 5); the device is failing and unsynced \
         writes are in doubt; restart the replica, and replace it and its volume if this comes again"
    );
    assert!(matches!(error, CommitError::Io(IoFailure::Device { .. })));

    // The disk is well again, and the writer still refuses.
    let error = opened.writer.allocate_ahead().unwrap_err();
    assert!(error.to_string().starts_with("log writer stopped after an earlier failure (failed to sync"), "{error}");
    let (prepared, _) = opened.wal.prepare(Vec::new(), "".into()).unwrap();
    assert!(matches!(opened.writer.commit(&prepared), Err(CommitError::Poisoned { .. })));
    drop(opened);

    // The cache still shows batch 2, whole and valid. It is not on the disk.
    assert_eq!(open(&MemDisk::of(disk.killed())).unwrap().assert_prefix(&[batch(1), batch(2)]), 2);
    assert_eq!(open(&disk).unwrap().assert_prefix(&[batch(1), batch(2)]), 1);
}

#[test]
fn failed_write_poisons_the_writer() {
    for (number, text) in [
        (
            30,
            "failed to write wal-000000000001.log: the file system is read-only; look for disk errors in the kernel \
             log, mount it writable or replace the volume, then restart the replica",
        ),
        (
            28,
            "no space left for log segment wal-000000000001.log; free space or grow the volume, then restart the \
             replica",
        ),
        (9, "failed to write wal-000000000001.log: Bad file descriptor (os error 9)"),
    ] {
        let disk = log_of(&[batch(1)]);
        let mut opened = open(&disk).unwrap();
        disk.set_trouble(Trouble::Writes(number));
        assert_eq!(opened.append(&batch(2)).unwrap_err().to_string(), text);
        disk.set_trouble(Trouble::None);
        assert!(matches!(opened.writer.allocate_ahead(), Err(CommitError::Poisoned { .. })));
        assert_eq!(open(&disk).unwrap().assert_prefix(&[batch(1)]), 1);
    }
}

#[test]
fn full_disk_refuses_the_next_segment_and_keeps_what_was_committed() {
    let mut written: Vec<Batch> = (1..=3).map(batch).collect();
    let disk = log_of(&written);
    let mut opened = open(&disk).unwrap();
    disk.set_trouble(Trouble::Full);
    let text =
        "no space left for log segment wal-000000000002.log; free space or grow the volume, then restart the replica";
    // Ahead of need it is only said: the fourth block of this segment is there.
    assert_eq!(opened.writer.allocate_ahead().unwrap_err().to_string(), text);
    written.push(batch(4));
    opened.append(&batch(4)).unwrap();

    let error = opened.append(&batch(5)).unwrap_err();
    assert_eq!(error.to_string(), text);
    assert!(matches!(error, CommitError::Io(IoFailure::NoSpace { .. })));
    assert!(matches!(opened.writer.allocate_ahead(), Err(CommitError::Poisoned { .. })));
    drop(opened);

    // Still full: it opens, and reads.
    let mut opened = open(&disk).unwrap();
    assert_eq!(opened.assert_prefix(&written), 4);
    disk.set_trouble(Trouble::None);
    opened.writer.allocate_ahead().unwrap();
    written.push(batch(5));
    opened.append(&batch(5)).unwrap();
    assert_eq!(open(&disk).unwrap().assert_prefix(&written), 5);
}

#[test]
fn full_disk_cannot_begin_a_log() {
    let disk = MemDisk::empty();
    disk.set_trouble(Trouble::Full);
    assert_eq!(
        open_err(&disk).to_string(),
        "no space left for log segment wal-000000000001.log; free space or grow the volume, then restart the replica"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn power_cut_in_any_subset_of_sectors_keeps_what_was_committed(
        sectors in 30..420_usize,
        survives in prop::collection::vec(any::<bool>(), 64),
    ) {
        let batches = script();
        let disk = MemDisk::empty();
        disk.die_after(sectors);
        let committed = append_until_death(&disk, &batches);
        let image = disk.power_cut(|sector| survives[sector % 64]);
        match open(&MemDisk::of(image.clone())) {
            Ok(_) => assert_goes_on(image, &batches, committed),
            // Allowed only if the identifier went through and its batch did not.
            Err(OpenError::Faulty { sequence, fault: Fault::Identified(identified), .. }) => {
                prop_assert_eq!((sequence, identified.get()), (identified, committed as u64 + 1));
            }
            Err(error) => panic!("{committed} committed: {error}"),
        }
    }
}
