//! A [`Disk`] over a directory, which one process has to itself. Linux first; elsewhere the cache is not dropped.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Disk;
use crate::error::DiskError;

/// The lock file's name.
const LOCK: &str = "LOCK";
/// Ends the name of a file that is not finished. Removed at the next start.
const TEMPORARY: &str = ".tmp";
/// Slices that one pwritev takes on Linux.
const IOV_MAX: usize = 1024;
/// Bytes of zeros written at once.
const ZEROS: usize = 1 << 20;

/// Files in a directory, locked for this process until dropped. File handles stay open.
#[derive(Debug)]
pub struct FileDisk {
    dir: PathBuf,
    files: Mutex<HashMap<String, Arc<File>>>,
    /// Holds the flock.
    _lock: File,
}

impl FileDisk {
    /// Takes `dir`, making it if it does not exist. Removes what an interrupted start left unfinished.
    pub fn open(dir: impl AsRef<Path>) -> Result<FileDisk, DiskError> {
        let dir = dir.as_ref().to_owned();
        create_dir(&dir).map_err(|error| DiskError::Create { path: dir.clone(), error })?;
        let not_writable = |error| DiskError::NotWritable { path: dir.clone(), error };
        let path = dir.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let lock = lock.map_err(not_writable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskError::Locked { path }),
            Err(TryLockError::Error(error)) => return Err(not_writable(error)),
        }
        // Empty, so that a replica with a full disk still starts and serves what it has.
        File::create(dir.join(format!("probe{TEMPORARY}"))).map_err(not_writable)?;
        remove_temporaries(&dir).map_err(not_writable)?;
        Ok(FileDisk { dir, files: Mutex::default(), _lock: lock })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, name: &str) -> PathBuf {
        assert!(!name.is_empty() && !name.contains('/') && !name.starts_with('.'), "{name:?} is not a plain file name");
        self.dir.join(name)
    }

    fn file(&self, name: &str) -> io::Result<Arc<File>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(name) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(OpenOptions::new().read(true).write(true).open(self.path(name))?);
        files.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn forget(&self, name: &str) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    /// Makes a file under a temporary name, and gives it its own once it is whole and synced.
    fn make(&self, name: &str, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
        let path = self.path(name);
        let temporary = self.path(&format!("{name}{TEMPORARY}"));
        let made = File::create(&temporary).and_then(|mut file| {
            fill(&mut file)?;
            file.sync_all()
        });
        if let Err(error) = made.and_then(|()| fs::rename(&temporary, &path)) {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        self.forget(name);
        self.sync_dir()
    }
}

impl Disk for FileDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.sync_dir()?;
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            // What is not UTF-8 is not ours.
            if let Ok(name) = entry?.file_name().into_string()
                && name != LOCK
                && !name.ends_with(TEMPORARY)
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        Ok(self.file(name)?.metadata()?.len())
    }

    fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file(name)?.read_exact_at(buf, offset)
    }

    // Small files are many: none stays open.
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path(name))
    }

    fn allocate(&self, name: &str, len: u64) -> io::Result<()> {
        self.make(name, |file| {
            // Zeros, not only blocks: the first write into a block that is merely reserved makes its sync twice as slow.
            let zeros = vec![0; ZEROS];
            let mut left = len;
            while left > 0 {
                let now = left.min(ZEROS as u64);
                file.write_all(&zeros[..now as usize])?;
                left -= now;
            }
            Ok(())
        })
    }

    fn write_at(&self, name: &str, parts: &[(u64, &[&[u8]])]) -> io::Result<()> {
        let file = self.file(name)?;
        parts.iter().try_for_each(|(offset, slices)| write_all_at(&file, *offset, slices))
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_data()
    }

    fn replace(&self, name: &str, contents: &[u8]) -> io::Result<()> {
        self.make(name, |file| file.write_all(contents))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))?;
        self.forget(from);
        self.forget(to);
        self.sync_dir()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))?;
        self.forget(name);
        self.sync_dir()
    }

    // A sync of the directory takes milliseconds, and a large snapshot has thousands of files.
    fn remove_all(&self, names: &[String]) -> io::Result<()> {
        for name in names {
            self.forget(name);
            fs::remove_file(self.path(name))?;
        }
        self.sync_dir()
    }

    fn drop_cache(&self, name: &str) -> io::Result<()> {
        let file = self.file(name)?;
        // Only clean pages can be dropped. Those that a failed fsync left behind are clean, and go.
        file.sync_data()?;
        #[cfg(target_os = "linux")]
        rustix::fs::fadvise(&*file, 0, None, rustix::fs::Advice::DontNeed)?;
        Ok(())
    }
}

/// Makes the directory, and those above it that do not exist, each with a durable entry.
fn create_dir(dir: &Path) -> io::Result<()> {
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && parent != dir => {
            create_dir(parent)?;
            fs::create_dir(dir)?;
        }
        // It is there: as a rule, or because a replica that starts beside this one was faster. The lock decides then.
        Err(_) if dir.is_dir() => return Ok(()),
        made => made?,
    }
    File::open(parent)?.sync_all()
}

fn remove_temporaries(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(TEMPORARY) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// pwritev until all is written: it may write less than asked, and takes [`IOV_MAX`] slices at most.
fn write_all_at(file: &File, mut offset: u64, slices: &[&[u8]]) -> io::Result<()> {
    let mut all: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
    let mut left = &mut all[..];
    // Leading empty slices would make a write of 0 bytes look like a full disk.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match rustix::io::pwritev(file, &left[..left.len().min(IOV_MAX)], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut left, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
