//! Why a replica does not run. Each text is one line and says what to do.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use lockstep_engine::log::ReadError;
use lockstep_engine::{IdentityError, StartError};
use thiserror::Error;

/// Why a replica does not start, or cannot go on.
#[derive(Debug, Error)]
pub enum RunError {
    /// An option that makes no sense.
    #[error("{option}: {why}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A port that another process has, or an address that this machine does not have.
    #[error("failed to listen for {who} on {address}: {}; stop what uses it, or choose another address with {option}", reason(.source))]
    Listen {
        /// Who is listened for.
        who: &'static str,
        /// The address.
        address: SocketAddr,
        /// The option that sets it.
        option: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The admin token's file.
    #[error("failed to read the admin token from {}: {source}; write the token there, or leave out --admin-token-file", .path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The data directory.
    #[error(transparent)]
    Disk(#[from] lockstep_wal::DiskError),
    /// Who the data directory is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The log, or the state machine.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A block that was written cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Threads, signals, timers.
    #[error("failed to {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Without the number that the standard library appends.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the address is in use".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this machine does not have the address".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied; ports below 1024 need privileges".to_owned(),
        _ => error.to_string(),
    }
}
