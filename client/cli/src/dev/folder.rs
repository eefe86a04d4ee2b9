//! What outlives a run: `service.json`, `genesis`, `admin-token`, and for each replica `rN/` and `rN.log`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use lockstep_api::ReplicatedService;
use lockstep_types::Genesis;

use super::{hex, unhex};

const LOCK: &str = "LOCK";
const SERVICE: &str = "service.json";
const GENESIS: &str = "genesis";
const TOKEN: &str = "admin-token";

/// The folder of one service, locked for this run.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Takes the folder, making it if need be, and checks that it holds what `service` says, or nothing.
    pub fn open(path: PathBuf, service: &ReplicatedService) -> Result<Self, String> {
        let shown = path.display().to_string();
        let failed = |what: &'static str| {
            let shown = shown.clone();
            move |error: io::Error| format!("failed to {what} {shown}: {error}; choose another folder with --data-dir")
        };
        fs::create_dir_all(&path).map_err(failed("create"))?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK));
        let lock = lock.map_err(failed("write to"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(format!(
                    "another `lockstep dev` runs from {shown}; stop that one, or choose another folder with --data-dir"
                ));
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock")(error)),
        }
        let folder = Folder { path, _lock: lock };
        folder.check(service)?;
        folder.keep_token().map_err(failed("write to"))?;
        let text = serde_json::to_string_pretty(service).expect("a resource that was read can be written");
        folder.replace(SERVICE, &text).map_err(failed("write to"))?;
        Ok(folder)
    }

    /// The rules of the API server for a change: what a genesis fixed stays.
    fn check(&self, service: &ReplicatedService) -> Result<(), String> {
        let file = self.path.join(SERVICE);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(format!("failed to read {}: {error}", file.display())),
        };
        let remove = format!("to start a new service, remove {}", self.path.display());
        let old: ReplicatedService =
            serde_json::from_str(&text).map_err(|error| format!("{} is damaged: {error}; {remove}", file.display()))?;
        if service.spec.replicas != old.spec.replicas {
            return Err(format!(
                "{} holds {} replicas, and this resource asks for {}: `lockstep dev` does not change their number; set \
                 spec.replicas back to {}, choose another folder with --data-dir, or {remove}",
                self.path.display(),
                old.spec.replicas,
                service.spec.replicas,
                old.spec.replicas
            ));
        }
        lockstep_api::validate_update(service, &old).map_err(|refusals| {
            format!("{} holds another service: {}; {remove}", self.path.display(), refusals.join("; "))
        })
    }

    fn keep_token(&self) -> io::Result<()> {
        let file = self.path.join(TOKEN);
        let made = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&file);
        let mut made = match made {
            Ok(made) => made,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => return Err(error),
        };
        writeln!(made, "{}", hex(&rand::random::<[u8; 32]>()))
    }

    /// The genesis of an earlier run.
    pub fn genesis(&self) -> Result<Option<Genesis>, String> {
        let file = self.path.join(GENESIS);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("failed to read {}: {error}", file.display())),
        };
        let damaged =
            || format!("{} is damaged; to start a new service, remove {}", file.display(), self.path.display());
        let bytes = unhex(&text).ok_or_else(damaged)?;
        Genesis::decode(bytes).map(Some).map_err(|_| damaged())
    }

    /// Writes the genesis down, before any replica sees it.
    pub fn keep_genesis(&self, genesis: &Genesis) -> Result<(), String> {
        self.replace(GENESIS, &hex(&genesis.encode()))
            .map_err(|error| format!("failed to write the genesis to {}: {error}", self.path.display()))
    }

    fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        let temporary = self.path.join(format!("{name}.tmp"));
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, self.path.join(name))?;
        File::open(&self.path)?.sync_all()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn token_file(&self) -> PathBuf {
        self.path.join(TOKEN)
    }

    pub fn token(&self) -> io::Result<String> {
        fs::read_to_string(self.token_file())
    }

    /// The data of the replica with this index.
    pub fn data(&self, index: usize) -> PathBuf {
        self.path.join(format!("r{}", index + 1))
    }

    /// The log of the replica with this index.
    pub fn log(&self, index: usize) -> PathBuf {
        self.path.join(format!("r{}.log", index + 1))
    }
}
