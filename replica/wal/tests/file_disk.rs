//! The directory on a real file system.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use common::{Batch, ID, SMALL, open_with, sized_batch};
use lockstep_wal::{Disk, DiskError, FileDisk, Record};

#[test]
fn log_in_a_directory_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/data");
    let batches: Vec<Batch> = (1..=12).map(|number| sized_batch(number, usize::from(number) * 500)).collect();
    for (count, batch) in batches.iter().enumerate() {
        let disk = Arc::new(FileDisk::open(&path).unwrap());
        let mut opened = open_with(&disk, ID, SMALL).unwrap();
        assert_eq!(opened.assert_prefix(&batches), count);
        opened.append(batch).unwrap();
        if count % 4 == 0 {
            opened.writer.allocate_ahead().unwrap();
        }
    }
    let disk = Arc::new(FileDisk::open(&path).unwrap());
    assert_eq!(open_with(&disk, ID, SMALL).unwrap().assert_prefix(&batches), 12);
}

#[test]
fn batch_of_more_parts_than_one_write_takes_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FileDisk::open(dir.path()).unwrap());
    let options = lockstep_wal::Options { segment_bytes: 4 << 20 };
    let mut opened = open_with(&disk, ID, options).unwrap();
    // 1,500 records, each a slice of its own and its frame another.
    let records = (0..1500_usize).map(|number| Record { kind: 1, payload: vec![vec![number as u8; 600].into()] });
    let (prepared, locations) = opened.wal.prepare(records.collect(), Bytes::new()).unwrap();
    opened.writer.commit(&prepared).unwrap();
    assert_eq!(opened.wal.reader().read(locations[1400]).unwrap(), vec![1400_usize as u8; 600]);
    let opened = open_with(&disk, ID, options).unwrap();
    assert!(opened.records.iter().enumerate().all(|(number, (_, _, bytes))| *bytes == vec![number as u8; 600]));
    assert_eq!(opened.records.len(), 1500);
}

#[test]
fn directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = FileDisk::open(dir.path()).unwrap();
    let error = FileDisk::open(dir.path()).unwrap_err();
    let lock = dir.path().join("LOCK");
    assert_eq!(
        error.to_string(),
        format!(
            "data directory lock {} is held by another process; stop that one, or choose another data directory",
            lock.display()
        )
    );
    drop(first);
    FileDisk::open(dir.path()).unwrap();
}

#[test]
fn directory_under_a_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let path = file.join("data");
    assert_eq!(
        FileDisk::open(&path).unwrap_err().to_string(),
        format!(
            "failed to create data directory {}: Not a directory (os error 20); choose a directory that this user can create",
            path.display()
        )
    );
}

#[test]
fn directory_that_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    // Permissions do not bind root, who runs the tests in containers; a directory in the lock file's place binds everyone.
    fs::create_dir(dir.path().join("LOCK")).unwrap();
    let error = FileDisk::open(dir.path()).unwrap_err();
    assert!(matches!(error, DiskError::NotWritable { .. }));
    assert_eq!(
        error.to_string(),
        format!(
            "data directory {} is not writable: Is a directory (os error 21); \
             make it writable for this user, or choose another one",
            dir.path().display()
        )
    );
}

#[test]
fn files_are_read_back_around_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FileDisk::open(dir.path()).unwrap();
    disk.allocate("wal-000000000001.log", 3 << 20).unwrap();
    assert_eq!(disk.len("wal-000000000001.log").unwrap(), 3 << 20);
    disk.write_at("wal-000000000001.log", &[(8192, &[b"ab", b"", b"cd"]), (1 << 20, &[b"ef"])]).unwrap();
    disk.sync("wal-000000000001.log").unwrap();
    disk.write_at("wal-000000000001.log", &[(8196, &[b"not synced"])]).unwrap();
    disk.drop_cache("wal-000000000001.log").unwrap();
    let mut read = [0; 16];
    disk.read_at("wal-000000000001.log", 8190, &mut read).unwrap();
    assert_eq!(&read, b"\0\0abcdnot synced");
    let past = disk.read_at("wal-000000000001.log", (3 << 20) - 8, &mut read).unwrap_err();
    assert_eq!(past.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn small_files_are_replaced_and_leftovers_removed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FileDisk::open(dir.path()).unwrap();
    disk.replace("identity", b"one").unwrap();
    assert_eq!(disk.len("identity").unwrap(), 3);
    disk.replace("identity", b"three").unwrap();
    let mut read = [0; 5];
    disk.read_at("identity", 0, &mut read).unwrap();
    assert_eq!(&read, b"three");
    drop(disk);
    fs::write(dir.path().join("wal-000000000009.log.tmp"), "half").unwrap();
    let disk = FileDisk::open(dir.path()).unwrap();
    assert_eq!(disk.list().unwrap(), ["identity"]);
    assert!(!dir.path().join("wal-000000000009.log.tmp").exists());
    disk.remove("identity").unwrap();
    assert!(disk.list().unwrap().is_empty());
    assert!(disk.len("identity").is_err());
}

#[test]
fn many_files_removed_at_once_are_gone_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FileDisk::open(dir.path()).unwrap();
    let names: Vec<String> = (0..20).map(|number| format!("chunk-{number:02}")).collect();
    names.iter().for_each(|name| disk.replace(name, name.as_bytes()).unwrap());
    assert_eq!(disk.read(&names[3]).unwrap(), b"chunk-03");
    disk.remove_all(&names[1..]).unwrap();
    assert_eq!(disk.list().unwrap(), ["chunk-00"]);
    assert!(disk.read(&names[3]).is_err(), "what was read before must not stay");
    disk.remove_all(&[]).unwrap();
    assert!(disk.remove_all(&names[1..2]).is_err(), "what is not there cannot be removed");
}
