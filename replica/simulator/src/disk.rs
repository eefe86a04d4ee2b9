//! A disk in memory with three layers: what is synced, what is written and not synced, and the cache that reads see.
//!
//! A call returns at once, while the host lets time pass before it believes it: every change goes to the cache and to a
//! journal, and [`SimDisk::complete`] is the moment at which the calls made so far return. A crash before that keeps a
//! prefix of the journal: a killed process ([`SimDisk::kill`]) leaves whole writes in the cache, a power cut
//! ([`SimDisk::cut_power`]) loses unsynced ones and tears one at a sector of 512 bytes. A prefix, never a later write
//! without an earlier one: out-of-order completion, bit rot and errors come with a later issue.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Mutex, MutexGuard};

use lockstep_wal::Disk;

use crate::random::Random;

/// What a power cut keeps whole or not at all.
const SECTOR: u64 = 512;

/// One replica's disk.
#[derive(Debug, Default)]
pub struct SimDisk(Mutex<Layers>);

#[derive(Clone, Debug, Default)]
struct Layers {
    synced: BTreeMap<String, Vec<u8>>,
    cache: BTreeMap<String, Vec<u8>>,
    /// Changes since the last sync of each file, and those under way, in order.
    journal: Vec<Op>,
    /// How many of them have returned.
    returned: usize,
    allocated: u64,
}

#[derive(Clone, Debug)]
enum Op {
    Write { name: String, offset: u64, data: Vec<u8> },
    Sync { name: String },
    Create { name: String, len: u64 },
    Replace { name: String, contents: Vec<u8> },
    Rename { from: String, to: String },
    Remove { name: String },
}

/// What a power cut took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Bytes written and not synced that are gone.
    pub bytes: u64,
    /// A write was torn in its middle.
    pub torn: bool,
}

impl Op {
    /// The files that it changes.
    fn names(&self) -> impl Iterator<Item = &String> {
        let (name, other) = match self {
            Op::Write { name, .. }
            | Op::Sync { name }
            | Op::Create { name, .. }
            | Op::Replace { name, .. }
            | Op::Remove { name } => (name, None),
            Op::Rename { from, to } => (from, Some(to)),
        };
        std::iter::once(name).chain(other)
    }

    fn apply(&self, files: &mut BTreeMap<String, Vec<u8>>) {
        match self {
            Op::Write { name, offset, data } => {
                let file = files.get_mut(name).expect("a write goes to a file that exists");
                let offset = *offset as usize;
                file[offset..offset + data.len()].copy_from_slice(data);
            }
            Op::Sync { .. } => {}
            Op::Create { name, len } => {
                files.insert(name.clone(), vec![0; *len as usize]);
            }
            Op::Replace { name, contents } => {
                files.insert(name.clone(), contents.clone());
            }
            Op::Rename { from, to } => {
                let file = files.remove(from).expect("a file that exists is renamed");
                files.insert(to.clone(), file);
            }
            Op::Remove { name } => {
                files.remove(name);
            }
        }
    }
}

impl Layers {
    fn run(&mut self, op: Op) {
        op.apply(&mut self.cache);
        self.journal.push(op);
    }

    /// Carries out `ops`; writes without a sync after them stay in the journal.
    fn settle(&mut self, ops: Vec<Op>) {
        let mut unsynced: Vec<Op> = Vec::new();
        for op in ops {
            match &op {
                Op::Write { .. } => unsynced.push(op),
                Op::Sync { name } => {
                    for write in unsynced.extract_if(.., |write| write.names().any(|of| of == name)) {
                        write.apply(&mut self.synced);
                    }
                }
                Op::Create { name, .. } | Op::Replace { name, .. } | Op::Remove { name } => {
                    unsynced.retain(|write| write.names().all(|of| of != name));
                    op.apply(&mut self.synced);
                }
                Op::Rename { from, to } => {
                    unsynced.retain(|write| write.names().all(|of| of != to));
                    for write in &mut unsynced {
                        if let Op::Write { name, .. } = write
                            && name == from
                        {
                            name.clone_from(to);
                        }
                    }
                    op.apply(&mut self.synced);
                }
            }
        }
        self.journal = unsynced;
        self.returned = self.journal.len();
    }

    /// The cache of these files as it is after what the journal holds.
    fn rebuild_cache(&mut self, names: &BTreeSet<String>) {
        for name in names {
            match self.synced.get(name) {
                Some(file) => self.cache.insert(name.clone(), file.clone()),
                None => self.cache.remove(name),
            };
        }
        for op in self.journal.iter().filter(|op| op.names().any(|name| names.contains(name))) {
            op.apply(&mut self.cache);
        }
    }
}

impl SimDisk {
    fn layers(&self) -> MutexGuard<'_, Layers> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Everything called so far has returned.
    pub fn complete(&self) {
        let mut layers = self.layers();
        let ops = std::mem::take(&mut layers.journal);
        layers.settle(ops);
    }

    /// The process is killed: what it wrote stays in the cache; of the call under way, some.
    pub fn kill(&self, random: &mut Random) {
        let mut layers = self.layers();
        let keep = random.between(layers.returned as u64, layers.journal.len() as u64) as usize;
        let mut ops = std::mem::take(&mut layers.journal);
        let names: BTreeSet<String> =
            ops.drain(keep..).flat_map(|op| op.names().cloned().collect::<Vec<_>>()).collect();
        layers.settle(ops);
        layers.rebuild_cache(&names);
    }

    /// The power fails: the cache is gone, and so is what was not synced, but for a prefix.
    pub fn cut_power(&self, random: &mut Random) -> Lost {
        let mut layers = self.layers();
        let mut ops = std::mem::take(&mut layers.journal);
        let names: BTreeSet<String> = ops.iter().flat_map(Op::names).cloned().collect();
        let keep = if random.percent(25) { 0 } else { random.below(ops.len() as u64 + 1) as usize };
        let mut lost = Lost::default();
        let mut dropped = ops.split_off(keep);
        if let Some(Op::Write { name, offset, data }) = dropped.first_mut() {
            let sectors = (data.len() as u64).div_ceil(SECTOR);
            let kept = (random.below(sectors) * SECTOR).min(data.len() as u64) as usize;
            if kept > 0 {
                lost.torn = true;
                ops.push(Op::Write { name: name.clone(), offset: *offset, data: data[..kept].to_vec() });
                data.drain(..kept);
            }
        }
        for op in &dropped {
            if let Op::Write { data, .. } = op {
                lost.bytes += data.len() as u64;
            }
        }
        layers.settle(ops);
        // What survived unsynced did reach the device.
        for write in std::mem::take(&mut layers.journal) {
            write.apply(&mut layers.synced);
        }
        layers.returned = 0;
        layers.rebuild_cache(&names);
        lost
    }

    /// A disk that holds what this one would after a power cut that loses all it may.
    pub fn synced_copy(&self) -> SimDisk {
        let synced = self.layers().synced.clone();
        SimDisk(Mutex::new(Layers { cache: synced.clone(), synced, ..Layers::default() }))
    }

    /// A disk that holds what the next process sees.
    pub fn cached_copy(&self) -> SimDisk {
        let cache = self.layers().cache.clone();
        SimDisk(Mutex::new(Layers { synced: cache.clone(), cache, ..Layers::default() }))
    }

    /// Files that were made so far.
    pub fn allocated(&self) -> u64 {
        self.layers().allocated
    }
}

fn missing(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {name}"))
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.layers().cache.keys().cloned().collect())
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.layers().cache.get(name).map(|file| file.len() as u64).ok_or_else(|| missing(name))
    }

    fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let layers = self.layers();
        let file = layers.cache.get(name).ok_or_else(|| missing(name))?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.checked_add(buf.len()).filter(|end| *end <= file.len());
        let end = end.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        buf.copy_from_slice(&file[start..end]);
        Ok(())
    }

    fn allocate(&self, name: &str, len: u64) -> io::Result<()> {
        let mut layers = self.layers();
        if layers.cache.contains_key(name) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        layers.allocated += 1;
        layers.run(Op::Create { name: name.to_owned(), len });
        Ok(())
    }

    fn write_at(&self, name: &str, parts: &[(u64, &[&[u8]])]) -> io::Result<()> {
        let mut layers = self.layers();
        let size = layers.cache.get(name).ok_or_else(|| missing(name))?.len() as u64;
        for (offset, slices) in parts {
            let data = slices.concat();
            assert!(offset + data.len() as u64 <= size, "write beyond the end of {name}");
            layers.run(Op::Write { name: name.to_owned(), offset: *offset, data });
        }
        Ok(())
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        let mut layers = self.layers();
        if !layers.cache.contains_key(name) {
            return Err(missing(name));
        }
        layers.run(Op::Sync { name: name.to_owned() });
        Ok(())
    }

    fn replace(&self, name: &str, contents: &[u8]) -> io::Result<()> {
        self.layers().run(Op::Replace { name: name.to_owned(), contents: contents.to_vec() });
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut layers = self.layers();
        if !layers.cache.contains_key(from) {
            return Err(missing(from));
        }
        layers.run(Op::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut layers = self.layers();
        if !layers.cache.contains_key(name) {
            return Err(missing(name));
        }
        layers.run(Op::Remove { name: name.to_owned() });
        Ok(())
    }

    fn drop_cache(&self, name: &str) -> io::Result<()> {
        self.sync(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> SimDisk {
        let disk = SimDisk::default();
        disk.allocate("a", 4096).unwrap();
        disk.write_at("a", &[(0, &[&[1; 1024]])]).unwrap();
        disk.sync("a").unwrap();
        disk.complete();
        disk
    }

    fn read(disk: &SimDisk) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        disk.read_at("a", 0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn disk_killed_process_keeps_what_returned() {
        let disk = disk();
        disk.write_at("a", &[(0, &[&[2; 1024]])]).unwrap();
        disk.complete();
        disk.kill(&mut Random::new(1));
        assert_eq!(read(&disk)[..1024], [2; 1024]);
        assert_eq!(read(&disk.synced_copy())[..1024], [1; 1024]);
    }

    #[test]
    fn disk_power_cut_leaves_a_renamed_file_with_one_name() {
        let (mut old, mut new) = (0, 0);
        for seed in 0..50 {
            let disk = disk();
            disk.write_at("a", &[(0, &[&[2; 512]])]).unwrap();
            disk.complete();
            disk.rename("a", "b").unwrap();
            assert_eq!(disk.list().unwrap(), ["b"]);
            disk.cut_power(&mut Random::new(seed));
            let names = disk.list().unwrap();
            assert_eq!(names, disk.synced_copy().list().unwrap());
            *(if names == ["a"] { &mut old } else { &mut new }) += 1;
            let mut bytes = [0; 1024];
            disk.read_at(&names[0], 0, &mut bytes).unwrap();
            assert_eq!(bytes[512..], [1; 512]);
        }
        assert!(old > 0 && new > 0, "{old} {new}");
    }

    #[test]
    fn disk_power_cut_keeps_a_prefix_of_what_was_not_synced() {
        let (mut whole, mut none, mut torn) = (0, 0, 0);
        for seed in 0..100 {
            let disk = disk();
            disk.write_at("a", &[(0, &[&[2; 1024]]), (2048, &[&[3; 1024]])]).unwrap();
            disk.sync("a").unwrap();
            let lost = disk.cut_power(&mut Random::new(seed));
            let bytes = read(&disk);
            assert_eq!(bytes, read(&disk.synced_copy()));
            let kept = bytes.iter().filter(|byte| **byte >= 2).count() as u64;
            assert_eq!(kept + lost.bytes, 2048);
            if bytes[2048] == 3 {
                assert_eq!(bytes[..1024], [2; 1024], "the second write without the first");
            }
            match kept {
                2048 => whole += 1,
                0 => none += 1,
                _ => torn += u32::from(lost.torn),
            }
        }
        assert!(whole > 0 && none > 0 && torn > 0, "{whole} {none} {torn}");
    }
}
