//! `lockstep dev`: a whole service on this machine.

use clap::Args;

use crate::CliError;

/// Arguments of `dev`.
#[derive(Debug, Args)]
pub struct DevArgs {}

/// Runs the service until it is interrupted.
///
/// # Errors
/// It cannot be started.
pub async fn run(_args: DevArgs) -> Result<(), CliError> {
    Err(CliError::failed("this build cannot run a service locally yet"))
}
