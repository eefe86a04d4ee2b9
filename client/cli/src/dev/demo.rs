//! `--demo`: writes without pause, kills the leader again and again, then proves by the keys' versions that each write which
//! was acknowledged was executed exactly once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_client::{Client, ClientOptions, ReplicaStatus, Role};
use tokio::sync::watch;
use tokio::time::{interval, sleep};

use super::fleet::{Ended, Fleet};
use crate::CliError;
use crate::load::{LoadOptions, Report, Tally, write};

/// How long to wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// Writes between two kills at least.
const WRITES: u64 = 2000;
/// Writers, each with one write in flight.
const WRITERS: u32 = 16;

/// Writes and kills `kills` leaders.
///
/// # Errors
/// A write was lost or done twice, or the service did not come back.
pub async fn run(fleet: &mut Fleet, kills: u32) -> Result<(), Ended> {
    let endpoints: Vec<String> = (0..fleet.len()).map(|index| fleet.ports().client(index).to_string()).collect();
    let client = Client::connect(ClientOptions::new(endpoints)).map_err(CliError::from)?;
    let options = LoadOptions {
        keys: 64,
        prefix: "demo/".to_owned(),
        concurrency: WRITERS,
        value_bytes: 64,
        duration: None,
        count: None,
        rate: 0,
        settle: Duration::from_secs(30),
    };
    println!("writing with {WRITERS} writers while {kills} leaders are killed (SIGKILL), one after the other");
    let tally = Arc::new(Tally::new(options.keys));
    let (stop, stopped) = watch::channel(false);
    let writing = {
        let (client, tally) = (client.clone(), Arc::clone(&tally));
        tokio::spawn(async move { write(&client, &options, &tally, stopped).await })
    };
    let telling = tokio::spawn(tell(Arc::clone(&tally)));

    let killed = kill_leaders(fleet, &tally, kills).await;
    let _ = stop.send(true);
    telling.abort();
    if let Err(Ended::Interrupted) = killed {
        return Err(Ended::Interrupted);
    }
    let report = fleet.during(writing).await?.map_err(CliError::failed)??;
    fleet.during(client.with_timeout(Duration::from_secs(1)).close()).await?;
    killed?;
    conclude(&report, kills).map_err(Ended::from)
}

async fn kill_leaders(fleet: &mut Fleet, tally: &Tally, kills: u32) -> Result<(), Ended> {
    for kill in 1..=kills {
        written(fleet, tally, WRITES).await?;
        // A majority must be left without the one that is killed.
        let statuses = fleet.all_ready(PATIENCE).await?;
        let Some(leader) = statuses.iter().position(|status| status.role == Role::Leader) else {
            // It changed between two answers.
            continue;
        };
        let before: &ReplicaStatus = &statuses[leader];
        let started = Instant::now();
        fleet.kill(leader)?;
        if fleet.len() == 1 {
            fleet.let_up(leader)?;
        }
        let next = fleet.next_leader(before, PATIENCE).await?;
        let leads = started.elapsed();
        written(fleet, tally, 1).await?;
        // Only now: the others had to do without it.
        fleet.let_up(leader)?;
        let Progress { acknowledged, longest_gap_ms } = Progress::of(tally);
        println!(
            "{kill}/{kills}: killed r{} (leader), r{} leads after {} ms; {acknowledged} writes acknowledged, longest gap {longest_gap_ms} ms",
            leader + 1,
            next + 1,
            leads.as_millis(),
        );
    }
    written(fleet, tally, WRITES).await
}

/// Waits until so many more writes are acknowledged.
async fn written(fleet: &mut Fleet, tally: &Tally, count: u64) -> Result<(), Ended> {
    let goal = Progress::of(tally).acknowledged + count;
    let started = Instant::now();
    let reached = async {
        while Progress::of(tally).acknowledged < goal && started.elapsed() < PATIENCE {
            sleep(Duration::from_millis(5)).await;
        }
    };
    fleet.during(reached).await?;
    match Progress::of(tally).acknowledged {
        acknowledged if acknowledged >= goal => Ok(()),
        acknowledged => {
            let missing = goal - acknowledged;
            Err(CliError::Failed(format!(
                "waited {PATIENCE:?} for {missing} more writes; the replicas' logs may tell why"
            ))
            .into())
        }
    }
}

/// What the writers have done so far.
struct Progress {
    acknowledged: u64,
    longest_gap_ms: u64,
}

impl Progress {
    fn of(tally: &Tally) -> Self {
        let told: serde_json::Value = serde_json::from_str(&tally.json()).unwrap_or_default();
        let number = |name: &str| told[name].as_u64().unwrap_or_default();
        Progress { acknowledged: number("acknowledged"), longest_gap_ms: number("longest_gap_ms") }
    }
}

/// A line a second.
async fn tell(tally: Arc<Tally>) {
    let mut second = interval(Duration::from_secs(1));
    second.tick().await;
    let mut before = Progress::of(&tally).acknowledged;
    for seconds in 1.. {
        second.tick().await;
        let Progress { acknowledged, longest_gap_ms } = Progress::of(&tally);
        let rate = acknowledged - before;
        println!("{seconds:>4} s  {acknowledged} writes acknowledged, {rate}/s, longest gap {longest_gap_ms} ms");
        before = acknowledged;
    }
}

fn conclude(report: &Report, kills: u32) -> Result<(), CliError> {
    let Report { acknowledged, unknown, resolved_executed, resolved_cancelled, unresolved, errors, .. } = report;
    if *unknown > 0 {
        println!(
            "of {unknown} writes without an answer in time, {resolved_executed} had been executed, \
             {resolved_cancelled} had not, {unresolved} stay unknown"
        );
    }
    if *errors > 0 {
        let last = report.last_error.as_deref().unwrap_or_default();
        println!("{errors} writes were not executed and said so: {last}");
    }
    println!("half of the writes took less than {} ms, 99 of 100 less than {} ms", report.p50_ms, report.p99_ms);
    if report.verified {
        println!(
            "PASS: {acknowledged} writes acknowledged, {kills} leaders killed, 0 lost, 0 done twice, longest gap {} ms",
            report.longest_gap_ms
        );
        Ok(())
    } else {
        println!("FAIL: {acknowledged} writes acknowledged, {kills} leaders killed: {}", report.mismatches.join("; "));
        Err(CliError::failed("a write was lost or done twice"))
    }
}
