//! `lockstep load`: writers without pause, and the proof that each of their writes was executed exactly once.
//!
//! Each put raises its key's version by one, so at the end the versions must add up to the writes that were acknowledged and
//! those that resolving found to be executed. Used as a client pod in tests and by `dev --demo`.

mod tally;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use lockstep_client::{Client, ClientError, Resolution, Ticket};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::CliError;
use crate::options::{ServiceOptions, duration};

pub use tally::Tally;

/// Arguments of `load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    #[command(flatten)]
    service: ServiceOptions,
    #[command(flatten)]
    options: LoadOptions,
    /// Print a line on stderr each second.
    #[arg(long, value_enum)]
    progress: Option<Progress>,
}

/// What to write.
#[derive(Clone, Debug, Args)]
pub struct LoadOptions {
    /// Keys to write to.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub keys: u32,
    /// What the keys begin with. Two runs at a time must not share it.
    #[arg(long, default_value = "load/")]
    pub prefix: String,
    /// Writers, each with one write in flight.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub concurrency: u32,
    /// Bytes of a value.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub value_bytes: u32,
    /// Stop after this long. Without --duration and --count: on SIGTERM or SIGINT.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub duration: Option<Duration>,
    /// Stop after so many writes.
    #[arg(long)]
    pub count: Option<u64>,
    /// Writes per second at most, over all writers. 0: as many as are answered.
    #[arg(long, default_value_t = 0)]
    pub rate: u32,
    /// How long to wait at the end for unknown outcomes and for the versions.
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "DURATION")]
    pub settle: Duration,
}

/// How progress is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// For people.
    Text,
    /// For programs: a JSON object a line.
    Json,
}

/// What a run did. Printed as one line of JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes whose outcome was not known when their time was up.
    pub unknown: u64,
    /// Of those, found to be executed.
    pub resolved_executed: u64,
    /// Of those, found to be not executed, for good.
    pub resolved_cancelled: u64,
    /// Of those, not known for good: the session was evicted, or nobody answered within the settle time.
    pub unresolved: u64,
    /// Writes that failed and were certainly not executed.
    pub errors: u64,
    /// The last of those errors.
    pub last_error: Option<String>,
    /// The longest time without an acknowledgement, the end included.
    pub longest_gap_ms: u64,
    /// Half of the acknowledged writes were faster.
    pub p50_ms: f64,
    /// All but one in a hundred were faster.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
    /// How long the run wrote.
    pub elapsed_ms: u64,
    /// What the versions of all keys grew by.
    pub versions: u64,
    /// Each key's version is what the acknowledged and the resolved writes say.
    pub verified: bool,
    /// What is wrong, if it is not.
    pub mismatches: Vec<String>,
}

/// Runs the load until it is told to stop, prints the report.
///
/// # Errors
/// The versions do not add up, or cannot be read.
pub async fn run(args: LoadArgs) -> Result<(), CliError> {
    let client = args.service.client()?;
    let (stop, stopped) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let _ = stop.send(true);
        // A second signal ends at once, as if there were no handler.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(130);
    });
    let tally = Arc::new(Tally::new(args.options.keys));
    let telling = args.progress.map(|progress| tokio::spawn(tell(tally.clone(), progress)));
    let report = write(&client, &args.options, &tally, stopped).await;
    if let Some(telling) = telling {
        telling.abort();
    }
    client.with_timeout(Duration::from_secs(1)).close().await;
    let report = report?;
    let line = serde_json::to_string(&report).map_err(CliError::failed)?;
    writeln!(std::io::stdout(), "{line}")?;
    match report.verified {
        true => Ok(()),
        false => Err(CliError::Failed(format!("not verified: {}", report.mismatches.join("; ")))),
    }
}

/// Writes until `stopped`, the duration or the count; then resolves, reads the versions and compares.
///
/// # Errors
/// The versions cannot be read, at the start or at the end.
pub async fn write(
    client: &Client,
    options: &LoadOptions,
    tally: &Arc<Tally>,
    mut stopped: watch::Receiver<bool>,
) -> Result<Report, CliError> {
    let before = tokio::select! {
        versions = versions(client, options) => versions?,
        _ = stopped.wait_for(|stopped| *stopped) => return Ok(Report { verified: true, ..Report::default() }),
    };
    tally.start();
    let (halt, halted) = watch::channel(false);
    let mut writers = JoinSet::new();
    let left = Arc::new(AtomicU64::new(options.count.unwrap_or(u64::MAX)));
    for writer in 0..options.concurrency {
        let write = Writer {
            client: client.clone(),
            options: options.clone(),
            tally: tally.clone(),
            left: left.clone(),
            halted: halted.clone(),
            resolving: JoinSet::new(),
        };
        writers.spawn(write.run(writer));
    }
    let duration = options.duration;
    let halting = tokio::spawn(async move {
        tokio::select! {
            () = tokio::time::sleep(duration.unwrap_or_default()), if duration.is_some() => {}
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
        let _ = halt.send(true);
    });
    let mut resolvers = Vec::new();
    while let Some(done) = writers.join_next().await {
        resolvers.push(done.map_err(CliError::failed)?);
    }
    halting.abort();
    tally.end();

    let settled = Instant::now() + options.settle;
    for mut resolving in resolvers {
        let rest = settled.saturating_duration_since(Instant::now());
        let all = async { while resolving.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(rest, all).await;
    }
    let rest = settled.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
    let after = versions(&client.with_timeout(rest), options).await?;
    Ok(tally.report(options, &before, &after))
}

async fn versions(client: &Client, options: &LoadOptions) -> Result<Vec<u64>, CliError> {
    let mut reads = JoinSet::new();
    for key in 0..options.keys {
        let (kv, name) = (client.kv(), name(options, key));
        reads.spawn(async move { (key, kv.get(name).await) });
    }
    let mut versions = vec![0; options.keys as usize];
    while let Some(read) = reads.join_next().await {
        let (key, found) = read.map_err(CliError::failed)?;
        let found = found.map_err(|error| CliError::Failed(format!("cannot read the keys' versions: {error}")))?;
        versions[key as usize] = found.map_or(0, |found| found.version);
    }
    Ok(versions)
}

fn name(options: &LoadOptions, key: u32) -> String {
    format!("{}{key}", options.prefix)
}

struct Writer {
    client: Client,
    options: LoadOptions,
    tally: Arc<Tally>,
    left: Arc<AtomicU64>,
    halted: watch::Receiver<bool>,
    resolving: JoinSet<()>,
}

impl Writer {
    /// Writes until halted. Gives what still waits for an unknown outcome.
    async fn run(mut self, writer: u32) -> JoinSet<()> {
        let kv = self.client.kv();
        let mut key = writer % self.options.keys;
        let pause = (self.options.rate > 0)
            .then(|| Duration::from_secs_f64(f64::from(self.options.concurrency) / f64::from(self.options.rate)));
        let value = bytes::Bytes::from("x".repeat(self.options.value_bytes as usize));
        while !*self.halted.borrow() && self.take() {
            let started = Instant::now();
            match kv.put(name(&self.options, key), value.clone()).await {
                Ok(_) => self.tally.acknowledged(key, started.elapsed()),
                Err(ClientError::Unknown { ticket, .. }) => {
                    self.tally.unknown(key);
                    self.resolving.spawn(resolve(self.client.clone(), self.tally.clone(), key, ticket));
                }
                Err(ClientError::Lost { .. }) => self.tally.unknown(key),
                Err(error) => {
                    self.tally.failed(&error);
                    // Mostly the error took its time; one that comes at once must not turn into a busy loop.
                    self.pause(Duration::from_millis(100)).await;
                }
            }
            if let Some(pause) = pause {
                self.pause(pause.saturating_sub(started.elapsed())).await;
            }
            key = (key + self.options.concurrency) % self.options.keys;
        }
        self.resolving
    }

    fn take(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    async fn pause(&mut self, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = self.halted.wait_for(|halted| *halted) => {}
        }
    }
}

async fn resolve(client: Client, tally: Arc<Tally>, key: u32, ticket: Ticket) {
    loop {
        match client.resolve(ticket).await {
            Ok(Resolution::Executed(_)) => return tally.resolved(key, true),
            Ok(Resolution::Cancelled) => return tally.resolved(key, false),
            Err(ClientError::Unknown { .. }) => {}
            Err(_) => return,
        }
    }
}

async fn tell(tally: Arc<Tally>, progress: Progress) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        second.tick().await;
        let line = match progress {
            Progress::Text => tally.line(),
            Progress::Json => tally.json(),
        };
        // A reader that went away does not stop the load.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}
