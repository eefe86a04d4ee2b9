//! Cutting a log from below: what goes, what stays, and what dying on the way leaves.
#![allow(missing_docs)]

mod common;

use std::sync::Arc;

use common::{
    BLOCK, Batch, DATA_AT, ID, Image, MemDisk, Opened, SECTOR, SMALL, TRAILER, Trouble, batch, changed, log_of, open,
    open_err, open_with, sized_batch,
};
use lockstep_wal::{CommitError, Fault, FileDisk, Freed, OpenError, Options, SPARES};
use proptest::prelude::*;

/// Batches of one block each, four to a segment.
fn ones(count: u8) -> Vec<Batch> {
    (1..=count).map(batch).collect()
}

/// An open log of `count` batches of [`ones`], as its first process has it.
fn opened_log(count: u8) -> (Arc<MemDisk>, Opened<MemDisk>) {
    let disk = MemDisk::empty();
    let mut opened = open(&disk).unwrap();
    for batch in ones(count) {
        opened.append(&batch).unwrap();
    }
    (disk, opened)
}

/// Files of these segments.
fn names(segments: &[u64]) -> Vec<String> {
    segments.iter().map(|segment| lockstep_wal::segment_file(*segment)).collect()
}

/// How many batches of [`ones`] are missing in a log that begins with this segment.
fn before(segment: u64) -> usize {
    (segment as usize - 1) * 4
}

#[test]
fn log_cut_below_a_location_keeps_its_segment_and_all_above() {
    let disk = MemDisk::empty();
    let mut opened = open(&disk).unwrap();
    let mut written = ones(18);
    let locations: Vec<_> = written.iter().map(|batch| opened.append(batch).unwrap()[0]).collect();
    // Batch 11 is in the middle of the third segment, which stays whole.
    assert_eq!(locations[10].segment(), 3);
    let cut = opened.wal.cut_below(locations[10].segment()).unwrap();
    assert_eq!((cut.first_kept(), opened.wal.first_segment()), (3, 3));
    assert_eq!(opened.writer.cut(&cut).unwrap(), Freed { recycled: 2, removed: 0 });
    assert_eq!(disk.files(), names(&[3, 4, 5, 6, 7]));
    for (index, location) in locations.iter().enumerate() {
        let read = opened.wal.reader().read(*location);
        assert_eq!(read.is_ok(), index >= 8, "batch {}", index + 1);
    }

    let mut opened = open(&disk).unwrap();
    assert_eq!(opened.assert_prefix_without(&written, 8), 18);
    let recovery = &opened.recovery;
    assert_eq!((recovery.first_segment, recovery.segments, opened.wal.first_segment()), (3, 3, 3));
    assert!(!recovery.created);
    // It goes on over both recycled segments, and over new ones.
    for number in 19..=40 {
        written.push(batch(number));
        opened.append(&batch(number)).unwrap();
    }
    assert_eq!(open(&disk).unwrap().assert_prefix_without(&written, 8), 40);
    assert_eq!(disk.files(), names(&[3, 4, 5, 6, 7, 8, 9, 10]));
}

#[test]
fn log_cut_twice_is_cut_once() {
    let (disk, mut opened) = opened_log(10);
    let cut = opened.wal.cut_below(2).unwrap();
    assert_eq!(opened.wal.cut_below(2), None);
    assert_eq!(opened.wal.cut_below(1), None);
    assert_eq!(opened.writer.cut(&cut).unwrap(), Freed { recycled: 1, removed: 0 });
    let image = disk.killed();
    assert_eq!(opened.writer.cut(&cut).unwrap(), Freed { recycled: 0, removed: 0 });
    assert!(disk.killed() == image);

    // The next process asks again for what was done.
    let mut opened = open(&disk).unwrap();
    assert_eq!(opened.wal.cut_below(2), None);
    let cut = opened.wal.cut_below(3).unwrap();
    assert_eq!(opened.writer.cut(&cut).unwrap(), Freed { recycled: 1, removed: 0 });
    assert_eq!(open(&disk).unwrap().assert_prefix_without(&ones(10), before(3)), 10);
}

#[test]
fn cut_of_everything_leaves_the_segment_of_the_last_batch_and_its_note() {
    for count in 1..=13 {
        let (disk, mut opened) = opened_log(count);
        let last = u64::from(count).div_ceil(4);
        let cut = opened.wal.cut_below(u64::MAX);
        assert_eq!(cut.as_ref().map(|cut| cut.first_kept()), (last > 1).then_some(last));
        if let Some(cut) = cut {
            opened.writer.cut(&cut).unwrap();
        }
        let opened = open(&disk).unwrap();
        assert_eq!(opened.assert_prefix_without(&ones(count), before(last)), usize::from(count));
        assert_eq!(opened.recovery.note.as_deref(), Some(format!("note {count}").as_bytes()));
    }
}

#[test]
fn cut_of_an_empty_log_is_nothing() {
    let mut opened = open(&MemDisk::empty()).unwrap();
    assert_eq!(opened.wal.cut_below(1), None);
    assert_eq!(opened.wal.cut_below(7), None);
}

#[test]
fn cut_of_a_log_whose_last_segment_is_empty_leaves_the_one_before() {
    // The fifth batch dies with its segment begun and nothing in it.
    let durable = log_of(&ones(4)).killed();
    for sectors in 0.. {
        let disk = MemDisk::of(durable.clone());
        let mut opened = open(&disk).unwrap();
        opened.writer.allocate_ahead().unwrap();
        disk.die_after(sectors);
        if opened.append(&batch(5)).is_ok() {
            break;
        }
        let disk = MemDisk::of(disk.power_cut(|_| false));
        let mut opened = open(&disk).unwrap();
        assert_eq!(opened.assert_prefix(&ones(4)), 4);
        assert_eq!(opened.wal.cut_below(u64::MAX), None, "after {sectors} sectors");
        opened.append(&batch(5)).unwrap();
        let cut = opened.wal.cut_below(u64::MAX).unwrap();
        opened.writer.cut(&cut).unwrap();
        assert_eq!(open(&disk).unwrap().assert_prefix_without(&ones(5), 4), 5);
    }
}

#[test]
fn cut_prepared_behind_batches_is_done_after_them() {
    let (disk, mut opened) = opened_log(3);
    let prepare = |opened: &mut Opened<MemDisk>, number| {
        opened.wal.prepare(common::records(&batch(number)), note(number)).unwrap().0
    };
    let ahead: Vec<_> = (4..=9).map(|number| prepare(&mut opened, number)).collect();
    // The writer is in segment 1, the last batch that was prepared in segment 3.
    let cut = opened.wal.cut_below(u64::MAX).unwrap();
    assert_eq!(cut.first_kept(), 3);
    for batch in &ahead {
        opened.writer.commit(batch).unwrap();
    }
    opened.writer.cut(&cut).unwrap();
    assert_eq!(open(&disk).unwrap().assert_prefix_without(&ones(9), before(3)), 9);
}

fn note(number: u8) -> bytes::Bytes {
    batch(number).note.into()
}

#[test]
#[should_panic(expected = "cut below segment 2 while writing segment 1")]
fn cut_before_its_batches_panics() {
    let (_, mut opened) = opened_log(4);
    opened.wal.prepare(Vec::new(), note(5)).unwrap();
    let cut = opened.wal.cut_below(2).unwrap();
    let _ = opened.writer.cut(&cut);
}

#[test]
fn cut_of_many_segments_keeps_a_few_and_removes_the_rest() {
    let (disk, mut opened) = opened_log(30);
    let cut = opened.wal.cut_below(8).unwrap();
    assert_eq!(opened.writer.cut(&cut).unwrap(), Freed { recycled: SPARES as u64, removed: 7 - SPARES as u64 });
    assert_eq!(disk.files(), names(&[8, 9, 10]));
    assert_eq!(open(&disk).unwrap().assert_prefix_without(&ones(30), before(8)), 30);
}

#[test]
fn segment_of_another_size_is_removed_and_not_recycled() {
    let disk = log_of(&ones(5));
    let larger = Options { segment_bytes: (DATA_AT + 16 * BLOCK + TRAILER) as u64 };
    let mut opened = open_with(&disk, ID, larger).unwrap();
    let cut = opened.wal.cut_below(2).unwrap();
    assert_eq!(opened.writer.cut(&cut).unwrap(), Freed { recycled: 0, removed: 1 });
    assert_eq!(disk.files(), names(&[2]));
    assert_eq!(open_with(&disk, ID, larger).unwrap().assert_prefix_without(&ones(5), 4), 5);
}

#[test]
fn process_killed_at_any_operation_of_a_cut_leaves_a_log_without_gaps() {
    let written = ones(26);
    let durable = log_of(&written).killed();
    let mut seen = Vec::new();
    for operations in 0.. {
        let disk = MemDisk::of(durable.clone());
        let mut opened = open(&disk).unwrap();
        disk.die_after(operations);
        let cut = opened.wal.cut_below(6).unwrap();
        let done = opened.writer.cut(&cut).is_ok();
        for image in [disk.killed(), disk.power_cut(|_| false)] {
            let disk = MemDisk::of(image);
            let mut opened = open(&disk).unwrap_or_else(|error| panic!("after {operations} operations: {error}"));
            let first = opened.recovery.first_segment;
            assert_eq!(opened.assert_prefix_without(&written, before(first)), 26);
            seen.push(first);
            // The cut is asked for again, and the log goes on over what was recycled.
            if let Some(cut) = opened.wal.cut_below(6) {
                opened.writer.cut(&cut).unwrap();
            }
            let mut all = written.clone();
            for number in 27..=40 {
                all.push(batch(number));
                opened.append(&batch(number)).unwrap();
            }
            assert_eq!(open(&disk).unwrap().assert_prefix_without(&all, before(6)), 40);
        }
        if done {
            break;
        }
    }
    assert_eq!(seen, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]);
}

/// A log of 18 batches whose active segment is the fifth, and which goes on in recycled ones.
fn recycled_log() -> (Vec<Batch>, Image) {
    let (disk, mut opened) = opened_log(14);
    let cut = opened.wal.cut_below(3).unwrap();
    opened.writer.cut(&cut).unwrap();
    for number in 15..=18 {
        opened.append(&batch(number)).unwrap();
    }
    assert_eq!(disk.files(), names(&[3, 4, 5, 6]));
    (ones(18), disk.killed())
}

#[test]
fn process_or_power_that_dies_in_a_recycled_segment_does_not_bring_its_past_back() {
    let (written, image) = recycled_log();
    for sectors in 0.. {
        let disk = MemDisk::of(image.clone());
        let mut opened = open(&disk).unwrap();
        disk.die_after(sectors);
        let mut all = written.clone();
        let mut committed = written.len();
        for number in 19..=24 {
            all.push(sized_batch(number, usize::from(number) % 2 * 5000));
            if opened.append(&all[committed]).is_err() {
                break;
            }
            committed += 1;
        }
        for image in
            [disk.killed(), disk.power_cut(|_| false), disk.power_cut_up_the_file(3), disk.power_cut_up_the_file(9)]
        {
            let opened = open(&MemDisk::of(image)).unwrap_or_else(|error| panic!("after {sectors} sectors: {error}"));
            let count = opened.assert_prefix_without(&all, before(3));
            assert!(count == committed || count == committed + 1, "{count} batches of {committed} committed");
        }
        if committed == written.len() + 6 {
            break;
        }
    }
}

#[test]
fn recycled_log_with_any_sector_lost_or_misplaced_opens_to_all_of_it_or_not_at_all() {
    let (written, image) = recycled_log();
    let check = |disk: &Arc<MemDisk>, what: &dyn Fn() -> String| {
        if let Ok(opened) = open(disk) {
            assert_eq!(opened.assert_prefix_without(&written, before(3)), 18, "{}: lost batches", what());
        }
    };
    for (name, file) in &image {
        for to in (0..file.len()).step_by(SECTOR) {
            for value in [0, 0xff] {
                let disk = changed(&image, name, |file| file[to..to + SECTOR].fill(value));
                check(&disk, &|| format!("sector at {to} of {name} set to {value}"));
            }
        }
        for to in (0..file.len()).step_by(BLOCK) {
            for (other, source) in &image {
                for from in (0..source.len()).step_by(BLOCK) {
                    let block = &source[from..from + BLOCK];
                    let disk = changed(&image, name, |file| file[to..to + BLOCK].copy_from_slice(block));
                    check(&disk, &|| format!("block {from} of {other} written over {to} of {name}"));
                }
            }
        }
    }
}

#[test]
fn segments_missing_in_the_middle_of_a_cut_log_are_faulty() {
    let (_, mut image) = recycled_log();
    image.remove("wal-000000000004.log");
    let error = open_err(&MemDisk::of(image));
    assert!(matches!(error, OpenError::Faulty { segment: 4, fault: Fault::SegmentMissing, .. }), "{error}");
}

#[test]
fn log_that_lost_the_segment_of_its_last_batch_is_faulty() {
    // Segment 2 is begun and empty: a cut never leaves that alone.
    let disk = log_of(&ones(5));
    let image = changed(&disk.killed(), "wal-000000000002.log", |file| file[DATA_AT..].fill(0)).killed();
    assert_eq!(open(&MemDisk::of(image.clone())).unwrap().assert_prefix(&ones(4)), 4);
    let mut image = image;
    image.remove("wal-000000000001.log");
    let error = open_err(&MemDisk::of(image));
    assert_eq!(
        error.to_string(),
        "log batch 4 at byte 0 of wal-000000000001.log is damaged: the segment is missing; this replica stops and its \
         data is kept; replace the replica, or its volume (repair from peers is not implemented yet)"
    );
}

#[test]
fn failed_rename_poisons_the_writer() {
    let (disk, mut opened) = opened_log(9);
    disk.set_trouble(Trouble::Renames(5));
    let cut = opened.wal.cut_below(3).unwrap();
    assert_eq!(
        opened.writer.cut(&cut).unwrap_err().to_string(),
        "failed to rename wal-000000000001.log: Input/output error (os error 5); the device is failing and unsynced \
         writes are in doubt; restart the replica, and replace it and its volume if this comes again"
    );
    disk.set_trouble(Trouble::None);
    assert!(matches!(opened.append(&batch(10)), Err(CommitError::Poisoned { .. })));
    assert!(matches!(opened.writer.cut(&cut), Err(CommitError::Poisoned { .. })));
    assert_eq!(open(&disk).unwrap().assert_prefix(&ones(9)), 9);
}

#[test]
fn log_in_a_directory_is_cut_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut written = Vec::new();
    let mut begins = 1;
    for number in 1..=30 {
        let disk = Arc::new(FileDisk::open(dir.path()).unwrap());
        let mut opened = open_with(&disk, ID, SMALL).unwrap();
        assert_eq!(opened.recovery.first_segment, begins);
        opened.assert_prefix_without(&written, before(begins));
        written.push(batch(number));
        let location = opened.append(&batch(number)).unwrap()[0];
        assert_eq!(opened.wal.reader().read(location).unwrap(), vec![number; 40]);
        if number % 6 == 0
            && let Some(cut) = opened.wal.cut_below(location.segment() - 1)
        {
            opened.writer.cut(&cut).unwrap();
            begins = cut.first_kept();
        }
    }
    assert_eq!(begins, 7);
    let files = std::fs::read_dir(dir.path()).unwrap().count();
    // Segments 7 and 8, the spare ones, and the lock.
    assert!(files <= 2 + SPARES + 1, "{files} files");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Append(usize),
    Cut(u64),
    Ahead,
    Reopen,
    Kill,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..9000_usize).prop_map(Step::Append),
        2 => (0..4_u64).prop_map(Step::Cut),
        1 => Just(Step::Ahead),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_batches_cuts_and_deaths_keep_what_was_committed_above_the_cut(
        steps in prop::collection::vec((any_step(), 0..60_usize), 1..40)
    ) {
        let mut disk = MemDisk::empty();
        let mut opened = open(&disk).unwrap();
        // Per batch the segment that it is in.
        let (mut written, mut segments): (Vec<Batch>, Vec<u64>) = (Vec::new(), Vec::new());
        for (step, sectors) in steps {
            match step {
                Step::Append(bytes) => {
                    written.push(sized_batch(written.len() as u8, bytes));
                    segments.push(opened.append(written.last().unwrap()).unwrap()[0].segment());
                }
                Step::Cut(back) => {
                    if let Some(cut) = opened.wal.cut_below(segments.last().map_or(1, |last| last.saturating_sub(back))) {
                        opened.writer.cut(&cut).unwrap();
                    }
                }
                Step::Ahead => opened.writer.allocate_ahead().unwrap(),
                Step::Reopen => opened = open(&disk).unwrap(),
                // Dies in a batch or in a cut; of what was not synced, a part reached the disk.
                Step::Kill => {
                    disk.die_after(sectors);
                    let begins = opened.wal.first_segment();
                    let batch = sized_batch(written.len() as u8, sectors * 50);
                    let appended = opened.append(&batch);
                    if let Ok(locations) = &appended {
                        segments.push(locations[0].segment());
                        written.push(batch.clone());
                        if let Some(cut) = opened.wal.cut_below(u64::MAX) {
                            let _ = opened.writer.cut(&cut);
                        }
                    }
                    disk = MemDisk::of(disk.power_cut_up_the_file(sectors / 2));
                    opened = open(&disk).unwrap();
                    if opened.recovery.last.map_or(0, |last| last.get() as usize) > written.len() {
                        written.push(batch);
                        let reread = open(&disk).unwrap();
                        segments.push(reread.recovery.first_segment + reread.recovery.segments - 1);
                    }
                    prop_assert!(opened.recovery.first_segment >= begins);
                }
            }
            let begins = opened.wal.first_segment();
            let cut = segments.iter().filter(|segment| **segment < begins).count();
            let reread = open(&MemDisk::of(disk.power_cut(|_| false))).unwrap();
            prop_assert_eq!(reread.assert_prefix_without(&written, cut), written.len());
        }
    }
}
