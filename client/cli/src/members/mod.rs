//! `lockstep members`: who belongs to the service, and how that changes.
//!
//! | module | what it does |
//! |---|---|
//! | [`list`] | who is in, and how far each one is |
//! | [`change`] | adds, promotes and removes |

mod change;
mod list;

use std::time::Duration;

use clap::{Args, Subcommand};

use crate::CliError;
use crate::options::{Output, ServiceOptions, TokenOptions, duration};

/// Arguments of `members`.
#[derive(Debug, Args)]
pub struct MembersArgs {
    #[command(flatten)]
    service: ServiceOptions,
    /// How to print the result.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Output,
    #[command(subcommand)]
    command: MembersCommand,
}

#[derive(Debug, Subcommand)]
enum MembersCommand {
    /// Show who belongs to the service, and how far each one is.
    #[command(after_help = "Example: lockstep members list --endpoints 127.0.0.1:7400")]
    List,
    /// Make the replica at an address a member, and wait until it has caught up.
    ///
    /// It runs with an empty data directory and the service's admin token, names the others with --peers, and itself with
    /// --advertise-peer if they do not know its address. It becomes a standby: told everything, counted nowhere. Asking again
    /// goes on where it stopped.
    #[command(after_help = "Example: lockstep members add 127.0.0.1:7410 --voter --admin-token-file \
                            .lockstep/kv/admin-token")]
    Add(AddArgs),
    /// Make a standby that has caught up a voter.
    #[command(after_help = "Example: lockstep members promote r4 --admin-token-file .lockstep/kv/admin-token")]
    Promote(ChangeArgs),
    /// Remove a voter or a standby. Its identity never returns.
    ///
    /// If it leads, it hands over first. Its pod and its volume may go once this command is done.
    #[command(after_help = "Example: lockstep members remove r2 --admin-token-file .lockstep/kv/admin-token")]
    Remove(ChangeArgs),
}

#[derive(Debug, Args)]
struct AddArgs {
    /// Where clients reach the new replica, as host:port.
    #[arg(value_name = "ADDRESS")]
    address: String,
    /// Make it a voter once it has caught up.
    #[arg(long)]
    voter: bool,
    /// How long it may take to catch up, as 30s, 10m or 1h.
    #[arg(long, default_value = "5m", value_parser = duration, value_name = "DURATION")]
    wait: Duration,
    #[command(flatten)]
    token: TokenOptions,
}

#[derive(Debug, Args)]
struct ChangeArgs {
    /// Who is meant, as `lockstep members list` shows it: an address, a slot as r2 or 2, or the first digits of an identity,
    /// four at least.
    #[arg(value_name = "REPLICA")]
    replica: String,
    #[command(flatten)]
    token: TokenOptions,
}

/// Shows the members or changes them.
///
/// # Errors
/// No token, nobody leads, no member of that name, or the replicas refuse the change.
pub async fn run(args: MembersArgs) -> Result<(), CliError> {
    let MembersArgs { service, output, command } = args;
    match command {
        MembersCommand::List => list::run(&service, output).await,
        MembersCommand::Add(args) => change::add(&service, output, args).await,
        MembersCommand::Promote(args) => change::promote(&service, output, args).await,
        MembersCommand::Remove(args) => change::remove(&service, output, args).await,
    }
}
