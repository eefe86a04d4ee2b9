//! The command line of Lockstep: read and write a service, look at its replicas, write without pause, run one locally.
//!
//! Exit codes: 0 it worked; 1 it failed; 2 the command makes no sense; 3 the service answered that a key is missing or not as
//! expected.
//! Not here: retry and fail-over (crate `client`).

mod dev;
mod error;
mod kv;
mod load;
mod members;
mod names;
mod options;
mod snapshot;
mod status;
mod survey;
mod transfer;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use crate::error::CliError;

/// Read and write a Lockstep service, look at its replicas, run one locally.
#[derive(Debug, Parser)]
#[command(name = "lockstep", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read and write keys of a key-value service.
    Kv(kv::KvArgs),
    /// Show what each replica says about itself.
    #[command(after_help = "\
VIEW is round.slot: attempts to find a leader so far, and whose turn it is.\n\
HEAD is the highest block of the log, COMMITTED and APPLIED how far it is decided and executed.\n\
LAG is how many blocks of the leader the replica has not executed.\n\
SNAPSHOT is the height of the newest one, or → height chunks/of while it is fetched.\n\n\
Example: lockstep status --endpoints 127.0.0.1:7400")]
    Status(status::StatusArgs),
    /// Make every replica take a snapshot now, and wait until a quorum has it.
    ///
    /// Snapshots come by themselves with the bytes that are written; this one comes now: before an upgrade, or to let go of
    /// log. Writes go on meanwhile.
    #[command(after_help = "Example, beside `lockstep dev examples/kv.yaml`:\n  \
                            lockstep snapshot --admin-token-file .lockstep/kv/admin-token")]
    Snapshot(snapshot::SnapshotArgs),
    /// Make another replica lead, and wait until it does.
    #[command(after_help = "Examples, beside `lockstep dev examples/kv.yaml`:\n  \
                            lockstep transfer --admin-token-file .lockstep/kv/admin-token\n  \
                            lockstep transfer r2 --admin-token-file .lockstep/kv/admin-token")]
    Transfer(transfer::TransferArgs),
    /// Show, add, promote and remove the replicas that belong to the service.
    ///
    /// One that lost its disk comes back as a new replica: add it, and remove the old one.
    Members(members::MembersArgs),
    /// Write without pause, then verify that each write was executed exactly once.
    Load(load::LoadArgs),
    /// Run a whole service on this machine.
    Dev(dev::DevArgs),
    /// One replica, as `dev` starts it.
    #[command(hide = true)]
    Replica(lockstep_replica::Args),
}

fn main() -> ExitCode {
    let command = match Cli::parse().command {
        // It has logs and a runtime of its own.
        Command::Replica(args) => return lockstep_replica::main(args),
        command => command,
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lockstep: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        match command {
            Command::Kv(args) => kv::run(args).await,
            Command::Status(args) => status::run(args).await,
            Command::Snapshot(args) => snapshot::run(args).await,
            Command::Transfer(args) => transfer::run(args).await,
            Command::Members(args) => members::run(args).await,
            Command::Load(args) => load::run(args).await,
            Command::Dev(args) => dev::run(args).await,
            Command::Replica(_) => unreachable!("a replica is run by main"),
        }
    });
    // A name that is still being looked up must not hold us up.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lockstep: {error}");
            ExitCode::from(error.code())
        }
    }
}
