//! `lockstep transfer`: asks the leader to hand over.

use clap::Args;
use lockstep_client::AdminClient;
use serde_json::json;

use crate::CliError;
use crate::names::{self, Named};
use crate::options::{Output, ServiceOptions, TokenOptions, print};
use crate::survey;

/// Arguments of `transfer`.
#[derive(Debug, Args)]
pub struct TransferArgs {
    /// Who is to lead, as `lockstep status` shows it: an address, a slot as r2 or 2, or the first digits of an identity, four
    /// at least. Without it: whoever is caught up best.
    #[arg(value_name = "REPLICA")]
    replica: Option<String>,
    #[command(flatten)]
    service: ServiceOptions,
    #[command(flatten)]
    token: TokenOptions,
    /// How to print the result.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Asks the leader, and waits until another replica leads.
///
/// # Errors
/// No token, nobody leads, no voter of that name, or nobody took over.
pub async fn run(args: TransferArgs) -> Result<(), CliError> {
    let token = args.token.token()?;
    let rows = survey::survey_service(&args.service).await?;
    let (row, status) = survey::need_leader(&rows)?;
    let voters = names::voters(status, &rows);
    let target = args.replica.as_deref().map(|name| names::find("voter", name, &voters)).transpose()?;
    let client = AdminClient::connect(&row.address, Some(&token)).map_err(CliError::failed)?;
    let client = client.with_timeout(args.service.timeout);
    let leader = client.hand_over(target.map(|voter| voter.replica)).await.map_err(CliError::failed)?;

    let voter = voters.iter().find(|voter| voter.replica == leader);
    let name = voter.map_or_else(|| leader.to_string(), Named::names);
    let already = if leader == status.replica { " already" } else { "" };
    let value = json!({
        "leader": leader.to_string(),
        "slot": voter.map(|voter| voter.slot.get()),
        "address": voter.and_then(|voter| voter.address.clone()),
        "leader_before": status.replica.to_string(),
    });
    print(args.output, format!("{name} leads{already}").as_bytes(), value)
}
