//! A disk in memory that can die, and a few batches to put on it.
#![allow(dead_code, missing_docs, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use lockstep_wal::{Disk, Location, OpenError, Options, Record, Recovery, Wal, WalId, Writer};

pub const BLOCK: usize = 4096;
pub const SECTOR: usize = 512;
/// Where batches begin in a segment.
pub const DATA_AT: usize = BLOCK;
/// What stands behind them: the seal and four identifier slots.
pub const TRAILER: usize = 5 * BLOCK;
pub const ID: WalId = WalId { service: [0x5e; 16], replica: [0x4e; 16] };

/// Segments with room for four blocks.
pub const SMALL: Options = Options { segment_bytes: (DATA_AT + 4 * BLOCK + TRAILER) as u64 };

/// Where the seal is in a segment of the size [`SMALL`]; the slots follow.
pub const SEAL_AT: usize = DATA_AT + 4 * BLOCK;

pub type Image = BTreeMap<String, Arc<Vec<u8>>>;

/// What the disk does next instead of what it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    None,
    /// No file can be made; half of it is left lying about.
    Full,
    /// The cache cannot be dropped.
    StickyCache,
    /// Syncs fail once; what was pending is gone, while the cache still has it.
    FailedSync,
    /// Writes fail with this error number.
    Writes(i32),
    /// Renames fail with this error number.
    Renames(i32),
    /// Files cannot be made, with this error number, and nothing is left of them.
    Allocations(i32),
}

/// Files as reads see them, as a power cut would leave them, and the sectors in between.
#[derive(Clone)]
struct State {
    cache: Image,
    durable: Image,
    /// (file, offset, up to a sector)
    pending: Vec<(String, usize, Vec<u8>)>,
    trouble: Trouble,
    /// Sectors until the process is killed.
    budget: Option<usize>,
}

pub struct MemDisk(Mutex<State>);

impl MemDisk {
    pub fn empty() -> Arc<MemDisk> {
        MemDisk::of(Image::new())
    }

    pub fn of(image: Image) -> Arc<MemDisk> {
        MemDisk::lying(image.clone(), image)
    }

    /// A disk whose cache shows what is not there, and calls it clean.
    pub fn lying(cache: Image, durable: Image) -> Arc<MemDisk> {
        let state = State { cache, durable, pending: Vec::new(), trouble: Trouble::None, budget: None };
        Arc::new(MemDisk(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// What a killed process leaves behind.
    pub fn killed(&self) -> Image {
        self.state().cache.clone()
    }

    /// What a power cut leaves behind, if of the pending sectors those survive that `survives` says.
    pub fn power_cut(&self, mut survives: impl FnMut(usize) -> bool) -> Image {
        let state = self.state();
        let mut image = state.durable.clone();
        for (index, (name, offset, bytes)) in state.pending.iter().enumerate() {
            if survives(index)
                && let Some(file) = image.get_mut(name)
            {
                Arc::make_mut(file)[*offset..*offset + bytes.len()].copy_from_slice(bytes);
            }
        }
        image
    }

    /// What a power cut leaves behind if write-back goes up each file, and `sectors` of what is pending were written.
    pub fn power_cut_up_the_file(&self, sectors: usize) -> Image {
        let state = self.state();
        let mut order: Vec<usize> = (0..state.pending.len()).collect();
        order.sort_by_key(|index| (&state.pending[*index].0, state.pending[*index].1));
        order.truncate(sectors);
        drop(state);
        self.power_cut(|index| order.contains(&index))
    }

    pub fn pending(&self) -> usize {
        self.state().pending.len()
    }

    pub fn set_trouble(&self, trouble: Trouble) {
        self.state().trouble = trouble;
    }

    pub fn die_after(&self, sectors: usize) {
        self.state().budget = Some(sectors);
    }

    pub fn files(&self) -> Vec<String> {
        self.state().cache.keys().cloned().collect()
    }
}

fn dead() -> io::Error {
    io::Error::other("killed")
}

impl State {
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.budget {
            None => Ok(()),
            Some(0) => Err(dead()),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn file(&mut self, name: &str) -> io::Result<&mut Arc<Vec<u8>>> {
        self.cache.get_mut(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let (of_file, rest) = std::mem::take(&mut self.pending).into_iter().partition(|(file, _, _)| file == name);
        self.pending = rest;
        let of_file: Vec<_> = of_file;
        if self.trouble == Trouble::FailedSync {
            self.trouble = Trouble::None;
            return Err(io::Error::from_raw_os_error(5));
        }
        let file = self.durable.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        for (_, offset, bytes) in of_file {
            Arc::make_mut(file)[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }
}

impl Disk for MemDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files())
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        Ok(self.state().file(name)?.len() as u64)
    }

    fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        let file = state.file(name)?;
        let offset = usize::try_from(offset).unwrap();
        let end = offset.checked_add(buf.len()).filter(|end| *end <= file.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(&file[offset..end]);
        Ok(())
    }

    fn allocate(&self, name: &str, len: u64) -> io::Result<()> {
        let mut state = self.state();
        assert!(!state.cache.contains_key(name), "{name} allocated twice");
        if let Trouble::Allocations(error) = state.trouble {
            return Err(io::Error::from_raw_os_error(error));
        }
        if state.trouble == Trouble::Full {
            let half = Arc::new(vec![0; len as usize / 2]);
            state.cache.insert(name.to_owned(), Arc::clone(&half));
            state.durable.insert(name.to_owned(), half);
            return Err(io::Error::from_raw_os_error(28));
        }
        // Killed before: no file. Killed between: a part of it.
        for len in [len / 2, len] {
            state.spend()?;
            let zeros = Arc::new(vec![0; len as usize]);
            state.cache.insert(name.to_owned(), Arc::clone(&zeros));
            state.durable.insert(name.to_owned(), zeros);
        }
        Ok(())
    }

    fn write_at(&self, name: &str, parts: &[(u64, &[&[u8]])]) -> io::Result<()> {
        let mut state = self.state();
        if let Trouble::Writes(error) = state.trouble {
            return Err(io::Error::from_raw_os_error(error));
        }
        for (offset, slices) in parts {
            let bytes = slices.concat();
            let offset = *offset as usize;
            assert!(offset + bytes.len() <= state.file(name)?.len(), "write past the end of {name}");
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                state.spend()?;
                let at = offset + index * SECTOR;
                Arc::make_mut(state.file(name)?)[at..at + sector.len()].copy_from_slice(sector);
                state.pending.push((name.to_owned(), at, sector.to_vec()));
            }
        }
        Ok(())
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.spend()?;
        state.sync(name)
    }

    fn replace(&self, name: &str, contents: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let contents = Arc::new(contents.to_vec());
        state.cache.insert(name.to_owned(), Arc::clone(&contents));
        state.durable.insert(name.to_owned(), contents);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        if let Trouble::Renames(error) = state.trouble {
            return Err(io::Error::from_raw_os_error(error));
        }
        state.spend()?;
        let State { cache, durable, pending, .. } = &mut *state;
        for files in [cache, durable] {
            let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
            files.insert(to.to_owned(), file);
        }
        pending.retain(|(file, _, _)| file != to);
        pending.iter_mut().filter(|(file, _, _)| file == from).for_each(|(file, _, _)| *file = to.to_owned());
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.spend()?;
        state.pending.retain(|(file, _, _)| file != name);
        state.durable.remove(name);
        state.cache.remove(name).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn drop_cache(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.trouble == Trouble::StickyCache {
            return Ok(());
        }
        state.sync(name)?;
        let durable = Arc::clone(&state.durable[name]);
        state.cache.insert(name.to_owned(), durable);
        Ok(())
    }
}

/// What goes into a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub records: Vec<(u8, Vec<u8>)>,
    pub note: Vec<u8>,
}

/// A batch of two records whose bytes tell which it is.
pub fn batch(number: u8) -> Batch {
    sized_batch(number, 40)
}

pub fn sized_batch(number: u8, bytes: usize) -> Batch {
    let note = format!("note {number}").into_bytes();
    Batch { records: vec![(number, vec![number; bytes]), (200, vec![number, 1, 2, 3])], note }
}

/// The batch as records whose payload is in two parts.
pub fn records(batch: &Batch) -> Vec<Record> {
    let split = |payload: &Vec<u8>| {
        let payload = Bytes::copy_from_slice(payload);
        let half = payload.len() / 2;
        vec![payload.slice(..half), payload.slice(half..)]
    };
    batch.records.iter().map(|(kind, payload)| Record { kind: *kind, payload: split(payload) }).collect()
}

pub struct Opened<D> {
    pub wal: Wal<D>,
    pub writer: Writer<D>,
    pub recovery: Recovery,
    /// (batch, kind, payload)
    pub records: Vec<(u64, u8, Vec<u8>)>,
}

pub fn open_with<D: Disk>(disk: &Arc<D>, id: WalId, options: Options) -> Result<Opened<D>, OpenError> {
    let mut records = Vec::new();
    let (wal, recovery) = Wal::open(Arc::clone(disk), id, options, &mut |record| {
        records.push((record.seq.get(), record.kind, record.payload.to_vec()));
    })?;
    let writer = wal.writer();
    Ok(Opened { wal, writer, recovery, records })
}

pub fn open(disk: &Arc<MemDisk>) -> Result<Opened<MemDisk>, OpenError> {
    open_with(disk, ID, SMALL)
}

/// The error of an open that has to fail.
pub fn open_err(disk: &Arc<MemDisk>) -> OpenError {
    open(disk).map(|_| ()).expect_err("this log must not open")
}

impl<D: Disk> Opened<D> {
    pub fn append(&mut self, batch: &Batch) -> Result<Vec<Location>, lockstep_wal::CommitError> {
        let note = Bytes::copy_from_slice(&batch.note);
        let (prepared, locations) = self.wal.prepare(records(batch), note).unwrap();
        self.writer.commit(&prepared)?;
        Ok(locations)
    }

    /// Asserts that the log holds exactly the first batches of `written`; returns how many.
    pub fn assert_prefix(&self, written: &[Batch]) -> usize {
        assert_eq!(self.recovery.first_segment, 1);
        self.assert_prefix_without(written, 0)
    }

    /// Asserts that the log holds exactly the first batches of `written` but for `cut` ones; returns how many, with those.
    pub fn assert_prefix_without(&self, written: &[Batch], cut: usize) -> usize {
        let count = self.recovery.last.map_or(0, |seq| seq.get() as usize);
        assert!(count <= written.len(), "{count} batches, of {} written", written.len());
        let mut expected = Vec::new();
        assert!(cut == 0 || count > cut, "{count} batches, {cut} of them cut: a cut leaves the last one");
        for (index, batch) in written[..count].iter().enumerate().skip(cut) {
            expected.extend(batch.records.iter().map(|(kind, bytes)| (index as u64 + 1, *kind, bytes.clone())));
        }
        assert!(self.records == expected, "records differ from what was written");
        let note = count.checked_sub(1).map(|last| written[last].note.clone());
        assert_eq!(self.recovery.note.as_deref(), note.as_deref());
        count
    }
}

/// A log with these batches, each committed.
pub fn log_of(batches: &[Batch]) -> Arc<MemDisk> {
    let disk = MemDisk::empty();
    let mut opened = open(&disk).unwrap();
    for batch in batches {
        opened.append(batch).unwrap();
    }
    disk
}

/// The image with one file changed.
pub fn changed(image: &Image, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Arc<MemDisk> {
    let mut image = image.clone();
    change(Arc::make_mut(image.get_mut(name).unwrap()));
    MemDisk::of(image)
}
