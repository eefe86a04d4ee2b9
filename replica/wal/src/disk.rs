//! What the log needs of a disk: plain files in one flat directory, positioned writes, and honest syncs.

use std::io;

/// A flat directory of files.
///
/// - Names are plain file names, chosen by the log (`wal-000000000001.log`) and the engine; never a path.
/// - What was written is durable only after [`Disk::sync`] returned; until then it may survive in any subset of sectors.
/// - An error from a writing method leaves the file's contents unknown. The log then writes no more.
///
/// Implemented by [`crate::FileDisk`] and by the simulator.
pub trait Disk: Send + Sync + 'static {
    /// Names of all files. The directory is synced first: a file that is listed survives a power cut.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Size of a file in bytes.
    fn len(&self, name: &str) -> io::Result<u64>;

    /// Fills `buf` from `offset`; [`io::ErrorKind::UnexpectedEof`] if the file ends before.
    fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// The whole of a small file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.len(name)?).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        self.read_at(name, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Makes a file of `len` zero bytes, with its blocks allocated; file and directory are synced. The name is free.
    fn allocate(&self, name: &str, len: u64) -> io::Result<()>;

    /// One or more positioned vectored writes within the file's size, in order: (offset, slices one after the other).
    fn write_at(&self, name: &str, parts: &[(u64, &[&[u8]])]) -> io::Result<()>;

    /// Makes durable what was written to the file (fdatasync).
    fn sync(&self, name: &str) -> io::Result<()>;

    /// Writes a small file so that after a crash there is the old content or the new: temporary file, sync, rename, sync of
    /// the directory.
    fn replace(&self, name: &str, contents: &[u8]) -> io::Result<()>;

    /// Gives a file another name, in place of what has that name, and syncs the directory: after a crash it has one of the two.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file and syncs the directory.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Removes many files, in no order, and syncs the directory once. After a crash in between some are left.
    fn remove_all(&self, names: &[String]) -> io::Result<()> {
        names.iter().try_for_each(|name| self.remove(name))
    }

    /// Makes later reads of the file come from the device: what a cache holds is written out first, then dropped.
    fn drop_cache(&self, name: &str) -> io::Result<()>;
}
