//! Segments that another thread makes while the writer commits.
#![allow(missing_docs)]

mod common;

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{Batch, ID, MemDisk, Opened, SMALL, Trouble, batch, log_of, open, open_with};
use lockstep_wal::{Allocator, CommitError, Disk, Freed};

fn ones(count: u8) -> Vec<Batch> {
    (1..=count).map(batch).collect()
}

/// A disk whose `allocate` says that it was called, and goes on when it is told how it ends.
struct Gated {
    disk: Arc<MemDisk>,
    gate: Mutex<Option<Gate>>,
}

/// The disk's side of a gate.
struct Gate {
    called: Sender<()>,
    ends: Receiver<io::Result<()>>,
}

impl Gated {
    /// The test's side: hears of the call, and lets it end.
    fn close(&self) -> (Receiver<()>, Sender<io::Result<()>>) {
        let (called, calls) = channel();
        let (end, ends) = channel();
        *self.gate.lock().unwrap() = Some(Gate { called, ends });
        (calls, end)
    }
}

impl Disk for Gated {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.disk.len(name)
    }

    fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(name, offset, buf)
    }

    fn allocate(&self, name: &str, len: u64) -> io::Result<()> {
        if let Some(gate) = self.gate.lock().unwrap().take() {
            gate.called.send(()).unwrap();
            gate.ends.recv().unwrap()?;
        }
        self.disk.allocate(name, len)
    }

    fn write_at(&self, name: &str, parts: &[(u64, &[&[u8]])]) -> io::Result<()> {
        self.disk.write_at(name, parts)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.disk.sync(name)
    }

    fn replace(&self, name: &str, contents: &[u8]) -> io::Result<()> {
        self.disk.replace(name, contents)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn drop_cache(&self, name: &str) -> io::Result<()> {
        self.disk.drop_cache(name)
    }
}

/// A log of these batches on a gated disk.
fn gated(batches: &[Batch]) -> (Arc<Gated>, Opened<Gated>) {
    let disk = Arc::new(Gated { disk: log_of(batches), gate: Mutex::default() });
    let opened = open_with(&disk, ID, SMALL).unwrap();
    (disk, opened)
}

fn in_a_thread(allocator: Allocator<Gated>) -> thread::JoinHandle<Result<(), CommitError>> {
    thread::spawn(move || allocator.make_next())
}

#[test]
fn writer_commits_while_the_next_segment_is_made() {
    let (disk, mut opened) = gated(&ones(1));
    assert!(opened.writer.lacks_next());
    let (calls, end) = disk.close();
    let thread = in_a_thread(opened.writer.allocator());
    calls.recv().unwrap();
    assert!(!opened.writer.lacks_next(), "somebody is at it");
    for number in 2..=4 {
        opened.append(&batch(number)).unwrap();
    }
    end.send(Ok(())).unwrap();
    thread.join().unwrap().unwrap();
    assert!(!opened.writer.lacks_next());
    opened.append(&batch(5)).unwrap();
    assert!(opened.writer.lacks_next());
    assert_eq!(open(&disk.disk).unwrap().assert_prefix(&ones(5)), 5);
}

#[test]
fn writer_that_needs_the_segment_waits_for_it_and_makes_none_itself() {
    let (disk, mut opened) = gated(&ones(4));
    let (calls, end) = disk.close();
    let thread = in_a_thread(opened.writer.allocator());
    calls.recv().unwrap();
    let writer = thread::spawn(move || opened.append(&batch(5)).map(|_| ()));
    thread::sleep(Duration::from_millis(50));
    assert!(!writer.is_finished(), "there is no segment yet");
    end.send(Ok(())).unwrap();
    thread.join().unwrap().unwrap();
    // The disk refuses to make a file twice.
    writer.join().unwrap().unwrap();
    assert_eq!(open(&disk.disk).unwrap().assert_prefix(&ones(5)), 5);
}

#[test]
fn segment_made_and_not_taken_is_taken_after_the_next_start() {
    let disk = log_of(&ones(3));
    open(&disk).unwrap().writer.allocator().make_next().unwrap();
    let mut opened = open(&disk).unwrap();
    assert!(!opened.writer.lacks_next());
    disk.set_trouble(Trouble::Full);
    for number in 4..=8 {
        opened.append(&batch(number)).unwrap();
    }
    assert_eq!(open(&disk).unwrap().assert_prefix(&ones(8)), 8);
}

#[test]
fn full_disk_while_a_segment_is_made_is_no_harm_until_the_writer_needs_it() {
    let text =
        "no space left for log segment wal-000000000002.log; free space or grow the volume, then restart the replica";
    for freed in [true, false] {
        let (disk, mut opened) = gated(&ones(3));
        let (calls, end) = disk.close();
        let thread = in_a_thread(opened.writer.allocator());
        calls.recv().unwrap();
        end.send(Err(io::Error::from_raw_os_error(28))).unwrap();
        assert_eq!(thread.join().unwrap().unwrap_err().to_string(), text);
        opened.append(&batch(4)).unwrap();
        // The writer tries for itself, and what it finds counts.
        if !freed {
            disk.disk.set_trouble(Trouble::Full);
            assert_eq!(opened.append(&batch(5)).unwrap_err().to_string(), text);
            assert!(matches!(opened.writer.allocator().make_next(), Err(CommitError::Poisoned { .. })));
        } else {
            opened.append(&batch(5)).unwrap();
        }
    }
}

#[test]
fn failure_to_make_a_segment_poisons_the_writer() {
    let disk = log_of(&ones(2));
    let mut opened = open(&disk).unwrap();
    disk.set_trouble(Trouble::Allocations(5));
    let error = opened.writer.allocator().make_next().unwrap_err().to_string();
    assert!(error.starts_with("failed to allocate wal-000000000002.log: Input/output error (os error 5);"), "{error}");
    disk.set_trouble(Trouble::None);
    let error = opened.append(&batch(3)).unwrap_err().to_string();
    assert!(error.starts_with("log writer stopped after an earlier failure (failed to allocate wal-"), "{error}");
}

#[test]
fn segment_recycled_while_another_could_not_be_made_takes_its_place() {
    let (disk, mut opened) = gated(&ones(7));
    let (calls, end) = disk.close();
    let thread = in_a_thread(opened.writer.allocator());
    calls.recv().unwrap();
    // Segment 3 is being made, so that the first becomes the fourth.
    let cut = opened.wal.cut_below(2).unwrap();
    assert_eq!(opened.writer.cut(&cut).unwrap(), Freed { recycled: 1, removed: 0 });
    assert_eq!(disk.disk.files(), ["wal-000000000002.log", "wal-000000000004.log"]);
    end.send(Err(io::Error::from_raw_os_error(28))).unwrap();
    thread.join().unwrap().unwrap_err();

    // So it is left if the process dies now, and it is used now as after the next start.
    let image = disk.disk.killed();
    disk.disk.set_trouble(Trouble::Full);
    for number in 8..=9 {
        opened.append(&batch(number)).unwrap();
    }
    assert_eq!(disk.disk.files(), ["wal-000000000002.log", "wal-000000000003.log"]);
    assert_eq!(open(&disk.disk).unwrap().assert_prefix_without(&ones(9), 4), 9);

    let disk = MemDisk::of(image);
    disk.set_trouble(Trouble::Full);
    let mut opened = open(&disk).unwrap();
    assert_eq!(opened.assert_prefix_without(&ones(7), 4), 7);
    opened.writer.allocate_ahead().unwrap();
    for number in 8..=9 {
        opened.append(&batch(number)).unwrap();
    }
    assert_eq!(open(&disk).unwrap().assert_prefix_without(&ones(9), 4), 9);
}

#[test]
fn segment_being_made_counts_among_those_that_are_kept() {
    let (disk, mut opened) = gated(&ones(13));
    let (calls, end) = disk.close();
    let thread = in_a_thread(opened.writer.allocator());
    calls.recv().unwrap();
    let cut = opened.wal.cut_below(4).unwrap();
    assert_eq!(opened.writer.cut(&cut).unwrap(), Freed { recycled: 1, removed: 2 });
    end.send(Ok(())).unwrap();
    thread.join().unwrap().unwrap();
    assert_eq!(disk.disk.files().len(), 3);
    for number in 14..=30 {
        opened.append(&batch(number)).unwrap();
    }
    assert_eq!(open(&disk.disk).unwrap().assert_prefix_without(&ones(30), 12), 30);
}
