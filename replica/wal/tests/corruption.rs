//! What one damaged place may do to a log: nothing, or an error. Never a panic, never less than was committed.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::{
    BLOCK, Batch, DATA_AT, ID, Image, MemDisk, SEAL_AT, SECTOR, batch, changed, log_of, open, open_err, open_with,
};
use lockstep_wal::{Fault, OpenError, WalId};
use proptest::prelude::*;

/// Two segments in use, four batches in the first and two in the second, and a spare one.
fn small_log() -> (Vec<Batch>, Image) {
    let batches: Vec<Batch> = (1..=6).map(batch).collect();
    let disk = log_of(&batches[..5]);
    let mut opened = open(&disk).unwrap();
    opened.append(&batches[5]).unwrap();
    opened.writer.allocate_ahead().unwrap();
    let image = disk.killed();
    assert_eq!(image.len(), 3);
    (batches, image)
}

/// The log opens to all that was committed, or not at all.
fn assert_all_or_error(disk: &Arc<MemDisk>, batches: &[Batch], what: &dyn Fn() -> String) -> bool {
    match open(disk) {
        Ok(opened) => {
            assert_eq!(opened.assert_prefix(batches), batches.len(), "{}: lost batches", what());
            true
        }
        Err(_) => false,
    }
}

/// Runs of 32 bytes that are not zero, and one before and after each.
fn near_content(file: &[u8]) -> Vec<usize> {
    let mut runs = BTreeSet::new();
    for (index, run) in file.chunks(32).enumerate() {
        if run.iter().any(|byte| *byte != 0) {
            runs.extend([index.saturating_sub(1), index, index + 1]);
        }
    }
    runs.into_iter().flat_map(|run| run * 32..run * 32 + 32).filter(|at| *at < file.len()).collect()
}

#[test]
fn small_log_with_any_bit_flipped_opens_to_all_of_it_or_not_at_all() {
    let (batches, image) = small_log();
    let (mut opened, mut refused) = (0, 0);
    for (name, file) in &image {
        for at in near_content(file) {
            for bit in 0..8 {
                let disk = changed(&image, name, |file| file[at] ^= 1 << bit);
                let fine = assert_all_or_error(&disk, &batches, &|| format!("bit {bit} of byte {at} of {name}"));
                *(if fine { &mut opened } else { &mut refused }) += 1;
            }
        }
    }
    // Both kinds exist, in numbers that say that content was hit.
    assert!(opened > 1000 && refused > 10_000, "{opened} opened, {refused} refused");
}

#[test]
fn small_log_cut_at_any_length_opens_to_all_of_it_or_not_at_all() {
    let (batches, image) = small_log();
    for (name, file) in &image {
        // Of the spare segment only its size counts.
        let step = if name == "wal-000000000003.log" { 509 } else { 1 };
        for len in (0..file.len()).step_by(step) {
            let disk = changed(&image, name, |file| file.truncate(len));
            assert_all_or_error(&disk, &batches, &|| format!("{name} cut to {len} bytes"));
        }
    }
}

#[test]
fn log_of_one_segment_cut_at_any_length_opens_to_nothing_only_without_its_header() {
    let batches: Vec<Batch> = (1..=3).map(batch).collect();
    let image = log_of(&batches).killed();
    for len in 0..image["wal-000000000001.log"].len() {
        let disk = changed(&image, "wal-000000000001.log", |file| file.truncate(len));
        match open(&disk) {
            Ok(opened) => assert!(opened.recovery.created && opened.records.is_empty() && len < SECTOR, "at {len}"),
            Err(error) => assert!(matches!(error, OpenError::Faulty { .. }), "at {len}: {error}"),
        }
    }
}

#[test]
fn any_sector_lost_or_misplaced_opens_to_all_of_it_or_not_at_all() {
    let (batches, image) = small_log();
    for (name, file) in &image {
        for to in (0..file.len()).step_by(SECTOR) {
            for value in [0, 0xff] {
                let disk = changed(&image, name, |file| file[to..to + SECTOR].fill(value));
                assert_all_or_error(&disk, &batches, &|| format!("sector at {to} of {name} set to {value}"));
            }
        }
        for to in (0..file.len()).step_by(BLOCK) {
            for (other, source) in &image {
                for from in (0..source.len()).step_by(BLOCK) {
                    let block = &source[from..from + BLOCK];
                    let disk = changed(&image, name, |file| file[to..to + BLOCK].copy_from_slice(block));
                    let what = || format!("block {from} of {other} written over {to} of {name}");
                    assert_all_or_error(&disk, &batches, &what);
                }
            }
        }
    }
}

#[test]
fn segment_missing_above_the_first_is_faulty() {
    let image = log_of(&(1..=9).map(batch).collect::<Vec<_>>()).killed();
    assert_eq!(image.len(), 3);
    for (number, name) in [(2, "wal-000000000002.log"), (3, "wal-000000000003.log")] {
        let mut image = image.clone();
        image.remove(name);
        let error = open_err(&MemDisk::of(image));
        assert!(
            matches!(error, OpenError::Faulty { segment, fault: Fault::SegmentMissing, .. } if segment == number),
            "{name}: {error}"
        );
    }
}

#[test]
fn first_segment_missing_is_reported_as_where_the_log_begins() {
    let (batches, mut image) = small_log();
    image.remove("wal-000000000001.log");
    let opened = open(&MemDisk::of(image)).unwrap();
    assert_eq!((opened.recovery.first_segment, opened.recovery.segments), (2, 1));
    assert!(!opened.recovery.created);
    assert_eq!(opened.assert_prefix_without(&batches, 4), 6);
}

#[test]
fn segment_below_all_others_without_its_header_is_faulty() {
    let (_, image) = small_log();
    // Nothing in it checks out: only that it is there says that it was in use.
    let disk = changed(&image, "wal-000000000001.log", |file| file.fill(0));
    let error = open_err(&disk);
    assert!(matches!(error, OpenError::Faulty { segment: 1, fault: Fault::SegmentHeader, .. }), "{error}");
}

#[test]
fn last_segment_missing_is_faulty_since_its_first_batch() {
    // Nobody opened this log again: the writer's own seal has to say it, from the disk.
    let disk = log_of(&(1..=5).map(batch).collect::<Vec<_>>());
    let mut image = disk.power_cut(|_| false);
    image.remove("wal-000000000002.log");
    let error = open_err(&MemDisk::of(image));
    assert!(matches!(error, OpenError::Faulty { segment: 2, fault: Fault::SegmentMissing, .. }), "{error}");
    assert!(
        error
            .to_string()
            .starts_with("log batch 5 at byte 0 of wal-000000000002.log is damaged: the segment is missing;")
    );
}

#[test]
fn seal_lost_is_written_anew() {
    let batches: Vec<Batch> = (1..=5).map(batch).collect();
    let image = log_of(&batches).killed();
    let disk = changed(&image, "wal-000000000001.log", |file| file[SEAL_AT..SEAL_AT + BLOCK].fill(0));
    assert_eq!(open(&disk).unwrap().assert_prefix(&batches), 5);
    assert!(disk.power_cut(|_| false) == image);
}

#[test]
fn header_of_the_only_segment_damaged_is_faulty() {
    let image = log_of(&[batch(1), batch(2)]).killed();
    let name = "wal-000000000001.log";
    for at in (0..SECTOR).filter(|at| *at < 104 || *at >= 480) {
        let error = open_err(&changed(&image, name, |file| file[at] ^= 0x10));
        assert!(matches!(error, OpenError::Faulty { fault: Fault::SegmentHeader, .. }), "byte {at}: {error}");
    }
    // Without identifiers, the first batch alone says that there was a log.
    let error = open_err(&changed(&image, name, |file| {
        file[..DATA_AT].fill(0);
        file[SEAL_AT..].fill(0);
    }));
    assert!(matches!(error, OpenError::Faulty { fault: Fault::SegmentHeader, .. }), "{error}");
}

#[test]
fn batch_damaged_along_with_its_identifiers_is_known_by_the_next_segment() {
    let (_, image) = small_log();
    let disk = changed(&image, "wal-000000000001.log", |file| {
        file[SEAL_AT + BLOCK..].fill(0);
        file[DATA_AT + 3 * BLOCK + 150] ^= 1;
    });
    let error = open_err(&disk);
    assert!(
        error.to_string().starts_with(
            "log batch 4 at byte 16384 of wal-000000000001.log is damaged: the log goes on with batch 5 in the next segment;"
        ),
        "{error}"
    );
}

#[test]
fn last_batch_damaged_is_faulty_and_nothing_is_changed() {
    let (_, image) = small_log();
    let disk = changed(&image, "wal-000000000002.log", |file| file[DATA_AT + BLOCK + 200] ^= 1);
    let before = disk.killed();
    let error = open_err(&disk);
    assert_eq!(
        error.to_string(),
        "log batch 6 at byte 8192 of wal-000000000002.log is damaged: the identifier of batch 6 proves that it was \
         written; this replica stops and its data is kept; replace the replica, or its volume (repair from peers is \
         not implemented yet)"
    );
    let OpenError::Faulty { segment: 2, note, fault: Fault::Identified(seq), .. } = error else { panic!("{error}") };
    assert_eq!((seq.get(), note.as_deref()), (6, Some(&b"note 6"[..])), "the newest note is in the identifier");
    assert!(disk.killed() == before);
}

#[test]
fn last_identifier_damaged_is_written_anew() {
    let (batches, image) = small_log();
    let slot = SEAL_AT + BLOCK + 6 % 4 * BLOCK;
    let disk = changed(&image, "wal-000000000002.log", |file| file[slot + 80] ^= 1);
    assert_eq!(open(&disk).unwrap().assert_prefix(&batches), 6);
    assert!(disk.killed() == image, "the identifier is back");
}

#[test]
fn segment_of_newer_format_is_refused() {
    let (_, image) = small_log();
    let disk = changed(&image, "wal-000000000002.log", |file| {
        file[8] = 2;
        let digest = *blake3::hash(&file[..480]).as_bytes();
        file[480..512].copy_from_slice(&digest);
    });
    assert_eq!(
        open_err(&disk).to_string(),
        "log segment wal-000000000002.log has format version 2, and this release reads up to 1; \
         run the release that wrote it, or a later one"
    );
}

#[test]
fn log_of_foreign_service_or_replica_is_refused() {
    let (_, image) = small_log();
    let before = image.clone();
    for id in [WalId { service: [1; 16], ..ID }, WalId { replica: [1; 16], ..ID }] {
        let disk = MemDisk::of(image.clone());
        let error = open_with(&disk, id, common::SMALL).map(|_| ()).unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }));
        assert_eq!(
            error.to_string(),
            format!(
                "log segment wal-000000000001.log belongs to {ID}, and this is {id}; \
                 give this replica its own data directory, or an empty one"
            )
        );
        assert!(disk.killed() == before);
    }
    assert_eq!(ID.to_string(), "service 5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e replica 4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e");
}

#[test]
fn record_damaged_after_open_is_not_read() {
    let disk = MemDisk::empty();
    let mut opened = open(&disk).unwrap();
    let locations = opened.append(&batch(7)).unwrap();
    assert_eq!(opened.wal.reader().read(locations[0]).unwrap(), vec![7; 40]);
    let image = disk.killed();
    for at in DATA_AT..DATA_AT + 300 {
        let disk = changed(&image, "wal-000000000001.log", |file| file[at] ^= 4);
        let Ok(opened) = open(&MemDisk::of(image.clone())) else { panic!("the log is sound") };
        // A reader on the damaged disk: the log was opened before the damage.
        let healthy = opened.wal.reader().read(locations[0]).unwrap();
        let damaged = reader_on(&disk, &image).read(locations[0]);
        match damaged {
            Ok(bytes) => assert_eq!(bytes, healthy),
            Err(error) => assert!(error.to_string().contains("wal-000000000001.log is damaged"), "{error}"),
        }
    }
}

/// A reader that was made while the disk still held `sound`, and now sees what `damaged` holds.
fn reader_on(damaged: &Arc<MemDisk>, sound: &Image) -> lockstep_wal::Reader<MemDisk> {
    use lockstep_wal::Disk;
    let disk = MemDisk::of(sound.clone());
    let reader = open(&disk).unwrap().wal.reader();
    for (name, file) in damaged.killed() {
        disk.write_at(&name, &[(0, &[&file])]).unwrap();
    }
    reader
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn log_damaged_in_many_places_opens_to_a_prefix_or_not_at_all(
        damage in prop::collection::vec((0..3_usize, 0..SEAL_AT + 5 * BLOCK, any::<u8>(), 1..9000_usize), 1..12)
    ) {
        let (batches, image) = small_log();
        let mut image = image;
        for (file, at, value, len) in damage {
            let file = Arc::make_mut(image.values_mut().nth(file).unwrap());
            let end = file.len().min(at + len);
            file[at..end].fill(value);
        }
        if let Ok(opened) = open(&MemDisk::of(image)) {
            opened.assert_prefix(&batches);
        }
    }

    #[test]
    fn files_of_noise_never_panic(
        files in prop::collection::btree_map("wal-00000000000[1-3].log", prop::collection::vec(any::<u8>(), 0..40_000), 0..3)
    ) {
        let image = files.into_iter().map(|(name, bytes)| (name, Arc::new(bytes))).collect();
        if let Ok(opened) = open(&MemDisk::of(image)) {
            prop_assert!(opened.recovery.created && opened.records.is_empty());
        }
    }
}
