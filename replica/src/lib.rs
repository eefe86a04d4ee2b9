//! One replica as a process: sockets, threads, the clock, the data directory and signals. It decides nothing; the engine does.
//!
//! ```text
//!  clients ──▶ clients ─┐                             ┌─▶ log_writer (thread "wal") ── Written ─┐
//!  peers   ──▶ peers   ─┼─▶ core (thread "core") ─────┼─▶ peers: one outbox a peer              │
//!  people  ──▶ admin   ─┘   Engine::handle, poll      └─▶ clients: one sink a stream            │
//!                    ▲                                                                          │
//!                    └──────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Three threads of our own, no lock between them: *core* owns the engine and the only queue into it, *wal* writes and syncs,
//! *snapshots* reads and writes what may take long. Everything else is tasks that turn frames into events and answers into
//! frames. If one of the threads ends, so does the process.
//!
//! | module | what it does |
//! |---|---|
//! | [`args`] | options of the command line, each also an environment variable |
//! | `process` | one start of a replica, from the data directory to the signal that ends it |
//! | `servers` | everything that is served, and how that ends |
//! | `signals` | what ends a replica |
//! | `core` | the thread that turns the engine |
//! | `log_writer` | the thread that makes batches durable |
//! | `job_runner` | the thread that reads and writes snapshots |
//! | `peers` | streams to and from the other replicas |
//! | `clients` | requests of clients: streams, unary calls, the key-value service |
//! | `admin` | status, genesis, hand-over, snapshot |
//! | `health`, `metrics` | what Kubernetes and Prometheus ask |
//! | `listen` | sockets with limits |
//!
//! Limits: message size ([`lockstep_wire::limits`]), connections, streams of a connection, requests of a stream, bytes that
//! wait for the core thread. A request that is refused has reached no log.

pub mod args;

mod admin;
mod clients;
mod clock;
mod core;
mod error;
mod health;
mod job_runner;
mod listen;
mod log_writer;
mod metrics;
mod peers;
mod process;
mod servers;
mod signals;

use std::process::ExitCode;

pub use args::{Args, LogFormat};
pub use error::RunError;

/// Runs one replica until SIGTERM or SIGINT: logs, runtime and exit code included.
pub fn main(args: Args) -> ExitCode {
    args.start_logging();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lockstep replica: failed to start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(run(args));
    // Tasks that still hold connections are not waited for.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lockstep replica: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one replica until SIGTERM or SIGINT. Handles those signals from then on. A failed sync, or a bug in one of the two
/// threads, ends the whole process with a code other than 0: nothing that is in memory then can be trusted.
///
/// # Errors
/// Whatever keeps it from starting or from going on, as one line that says what to do.
pub async fn run(args: Args) -> Result<(), RunError> {
    process::run(args).await
}
