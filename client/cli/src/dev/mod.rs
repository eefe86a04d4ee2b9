//! `lockstep dev`: the service of a custom resource as processes on this machine, without a cluster.
//!
//! The same resource, replica and protocol as in Kubernetes: replicas are processes of this very binary (`lockstep replica`),
//! and this command does what the operator does: one genesis, a restart for whoever ended, an orderly stop.
//!
//! | module | what it does |
//! |---|---|
//! | [`folder`] | what outlives a run: the resource, the genesis, the admin token, each replica's data |
//! | [`fleet`] | the processes: start, watch, start again, stop |
//! | [`demo`] | `--demo`: writes, kills leaders, proves that nothing was lost or done twice |

mod demo;
mod fleet;
mod folder;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use lockstep_api::ReplicatedService;
use lockstep_client::ReplicaStatus;
use lockstep_types::{FaultModel, Genesis, ReplicaId, ServiceId};

use crate::CliError;
use fleet::{Ended, Fleet, Ports};
use folder::Folder;

/// How long replicas may take to start, and to find a leader.
const PATIENCE: Duration = Duration::from_secs(30);

/// Arguments of `dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// File with the ReplicatedService, as for kubectl apply.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where the data is kept. Without it: .lockstep/ and the service's name.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The first replica's port; its peers' port and its metrics follow, and each further replica has them ten higher.
    #[arg(long, default_value_t = 7400, value_name = "PORT")]
    port_base: u16,
    /// Write without pause, kill the leader again and again, check that nothing was lost or done twice, then stop.
    #[arg(long)]
    demo: bool,
    /// How many leaders --demo kills.
    #[arg(long, default_value_t = 5, value_name = "COUNT", requires = "demo")]
    kills: u32,
}

/// Runs the service until it is interrupted, or through the demo.
///
/// # Errors
/// It cannot be started, or the demo found that something is wrong.
pub async fn run(args: DevArgs) -> Result<(), CliError> {
    let service = read(&args)?;
    let name = service.metadata.name.clone().unwrap_or_default();
    let replicas = usize::try_from(service.spec.replicas).unwrap_or_default();
    let ports = Ports::of(args.port_base, replicas).map_err(CliError::Usage)?;
    let dir = args.data_dir.clone().unwrap_or_else(|| PathBuf::from(".lockstep").join(&name));
    let folder = Folder::open(dir, &service).map_err(CliError::Failed)?;
    let found = folder.genesis().map_err(CliError::Failed)?;
    ports.check_free().map_err(CliError::Failed)?;

    let again = if found.is_some() { ", from an earlier run" } else { "" };
    let noun = if replicas == 1 { "replica" } else { "replicas" };
    println!("service {name}: {replicas} {noun}, data in {}{again}", folder.path().display());
    let started = Instant::now();
    let mut fleet = Fleet::start(&folder, &service, ports)?;
    let done = serve(&args, &service, &folder, found, &mut fleet, started).await;
    fleet.stop().await;
    match done {
        Ok(()) => Ok(()),
        Err(Ended::Interrupted) => {
            println!("stopped; the data stays in {}", folder.path().display());
            Ok(())
        }
        Err(Ended::Failed(error)) => Err(error),
    }
}

async fn serve(
    args: &DevArgs,
    service: &ReplicatedService,
    folder: &Folder,
    found: Option<Genesis>,
    fleet: &mut Fleet,
    started: Instant,
) -> Result<(), Ended> {
    let statuses = fleet.first_answers().await?;
    let genesis = match found {
        Some(genesis) => genesis,
        None => {
            let genesis = birth(service, &statuses)?;
            // Written down before the first replica sees it: a run that is killed in between goes on with the same.
            folder.keep_genesis(&genesis).map_err(CliError::Failed)?;
            genesis
        }
    };
    give(fleet, folder, &genesis, &statuses).await?;
    let leader = fleet.leader(PATIENCE).await?;
    print_ready(args, fleet, leader, started.elapsed());
    if args.demo {
        return demo::run(fleet, args.kills).await;
    }
    fleet.watch().await
}

fn read(args: &DevArgs) -> Result<ReplicatedService, CliError> {
    let file = args.file.display();
    let yaml = std::fs::read_to_string(&args.file).map_err(|error| {
        CliError::Usage(format!("failed to read {file}: {error}; examples/kv.yaml is one to start with"))
    })?;
    lockstep_api::parse(&yaml).map_err(|refusals| CliError::Usage(format!("{file}: {}", refusals.join("; "))))
}

fn birth(service: &ReplicatedService, statuses: &[ReplicaStatus]) -> Result<Genesis, CliError> {
    if let Some(known) = statuses.iter().find_map(|status| status.genesis.clone()) {
        return Ok(known);
    }
    let fault_model = match service.spec.fault_model {
        lockstep_api::FaultModel::Crash => FaultModel::Crash,
    };
    Ok(Genesis {
        service: ServiceId::from_bytes(rand::random()),
        fault_model,
        voters: statuses.iter().map(|status| status.replica).collect(),
        machine: service.spec.state_machine.builtin.clone(),
        sessions_max: Genesis::SESSIONS_MAX,
        reply_bytes_max: Genesis::REPLY_BYTES_MAX,
        snapshot_bytes: service.spec.snapshots.every().map_err(CliError::Usage)?,
    })
}

/// Gives every replica the genesis; those that have it already say so.
async fn give(fleet: &Fleet, folder: &Folder, genesis: &Genesis, statuses: &[ReplicaStatus]) -> Result<(), Ended> {
    let strangers: Vec<(usize, ReplicaId)> = (0..)
        .zip(statuses)
        .filter(|(_, status)| !genesis.voters.contains(&status.replica) && status.genesis.is_none())
        .map(|(index, status)| (index, status.replica))
        .collect();
    let lost = |index: usize| format!("r{}", index + 1);
    if strangers.len() > genesis.fault_model.tolerated(genesis.voters.len()) {
        let names: Vec<String> = strangers.iter().map(|(index, _)| lost(*index)).collect();
        return Err(Ended::Failed(CliError::Failed(format!(
            "the data of {} is gone, and too few replicas are left to go on; to start a new service, remove {}",
            names.join(" and "),
            folder.path().display()
        ))));
    }
    for (index, status) in statuses.iter().enumerate() {
        if strangers.contains(&(index, status.replica)) {
            println!(
                "{} has lost its data and is a new replica; the others go on. To take it in: lockstep members add {} --voter, \
                 then remove the old one: lockstep members remove {}",
                lost(index),
                fleet.ports().client(index),
                lost(index)
            );
        } else {
            fleet.admin(index).genesis(genesis).await.map_err(CliError::failed)?;
        }
    }
    Ok(())
}

fn print_ready(args: &DevArgs, fleet: &Fleet, leader: usize, took: Duration) {
    for index in 0..fleet.len() {
        let leads = if index == leader { "  leads" } else { "" };
        println!(
            "  r{}  clients {}  metrics http://{}/metrics  log {}{leads}",
            index + 1,
            fleet.ports().client(index),
            fleet.ports().metrics(index),
            fleet.log(index).display()
        );
    }
    println!("ready after {:.1} s", took.as_secs_f64());
    if args.demo {
        return;
    }
    let endpoints: Vec<String> = (0..fleet.len()).map(|index| fleet.ports().client(index).to_string()).collect();
    println!("\nIn another terminal:");
    println!("  export LOCKSTEP_ENDPOINTS={}", endpoints.join(","));
    println!("  lockstep kv put colour blue");
    println!("  lockstep kv get colour");
    println!("  lockstep status");
    println!("`cargo install --path client/cli` makes the command; `cargo run --release -p lockstep --` does as well.");
    println!("Kill a replica and see it come back. Ctrl-C stops all; the data stays.\n");
}

/// Hexadecimal digits of `bytes`.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of hexadecimal digits.
fn unhex(text: &str) -> Option<Bytes> {
    let digits = text.trim().as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |digit: u8| (digit as char).to_digit(16);
    digits.chunks_exact(2).map(|pair| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_of_bytes_reads_back() {
        let bytes = [0, 1, 0x7f, 0x80, 0xff];
        assert_eq!(hex(&bytes), "00017f80ff");
        assert_eq!(unhex("00017f80ff\n"), Some(Bytes::copy_from_slice(&bytes)));
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("0g"), None);
    }
}
