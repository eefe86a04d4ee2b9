//! The binary of a replica: `lockstep-replica --help` lists its options.

use std::process::ExitCode;

use clap::Parser;

/// One replica of a replicated service.
#[derive(Parser)]
#[command(name = "lockstep-replica", version)]
struct Cli {
    #[command(flatten)]
    args: lockstep_replica::Args,
}

fn main() -> ExitCode {
    lockstep_replica::main(Cli::parse().args)
}
