//! `simulate`: runs seeds, prints what they caused, and on a failure the one command that replays it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use lockstep_simulator::{Counters, Report, Scenario, run};

const USAGE: &str = "usage: simulate [--seed N [--trace]] [--seeds A..B] [--life] [--check-determinism K] [--jobs J]

  --seed N               run one seed; on a failure print the end of its trace
  --trace                print every event
  --seeds A..B           run the seeds from A up to, not including, B (default 0..200)
  --life                 a long life each: thousands of commits, every replica replaced
  --check-determinism K  run every Kth seed twice and compare the digests of their events
  --jobs J               seeds at once (default: one for each core)";

/// From this many seeds on, every kind of event must have happened.
const CAMPAIGN: u64 = 200;

struct Arguments {
    seeds: Range<u64>,
    one: bool,
    trace: bool,
    scenario: Scenario,
    twice_every: u64,
    jobs: usize,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let began = Instant::now();
    let (counters, failed, stats) = campaign(&arguments);
    let count = arguments.seeds.end - arguments.seeds.start;
    println!("{counters}");
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{} seeds, {} events, {:.0} s of simulated time in {seconds:.1} s",
        stats.seeds,
        stats.lines,
        stats.simulated as f64 / 1e6
    );
    if arguments.one {
        for (seed, digest) in &stats.digests {
            println!("seed {seed} digest {digest}");
        }
    }
    if failed {
        return ExitCode::FAILURE;
    }
    let missing = counters.missing();
    if count >= CAMPAIGN && !missing.is_empty() {
        for kind in missing {
            eprintln!("never happened: {kind}");
        }
        eprintln!("a campaign that never causes a kind of event proves nothing about it");
        return ExitCode::FAILURE;
    }
    println!("no violation");
    ExitCode::SUCCESS
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut parsed = Arguments {
        seeds: 0..200,
        one: false,
        trace: false,
        scenario: Scenario::Chaos,
        twice_every: 0,
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
    };
    while let Some(argument) = arguments.next() {
        let mut number =
            || -> Result<String, String> { arguments.next().ok_or_else(|| format!("{argument} needs a value")) };
        let parse = |text: &str| text.parse::<u64>().map_err(|_| format!("{text:?} is no number"));
        match argument.as_str() {
            "--seed" => {
                let seed = parse(&number()?)?;
                parsed.seeds = seed..seed.saturating_add(1);
                parsed.one = true;
            }
            "--seeds" => {
                let text = number()?;
                let (from, to) = text.split_once("..").ok_or_else(|| format!("{text:?} is no range A..B"))?;
                parsed.seeds = parse(from)?..parse(to)?;
            }
            "--trace" => parsed.trace = true,
            "--life" => parsed.scenario = Scenario::Life,
            "--check-determinism" => parsed.twice_every = parse(&number()?)?.max(1),
            "--jobs" => parsed.jobs = parse(&number()?)?.max(1) as usize,
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    Ok(parsed)
}

#[derive(Default)]
struct Stats {
    seeds: u64,
    lines: u64,
    simulated: u64,
    digests: BTreeMap<u64, String>,
}

fn campaign(arguments: &Arguments) -> (Counters, bool, Stats) {
    let next = AtomicU64::new(arguments.seeds.start);
    let failed = AtomicBool::new(false);
    let total = Mutex::new((Counters::default(), Stats::default()));
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= arguments.seeds.end {
                        break;
                    }
                    let report = run(seed, arguments.scenario, arguments.trace);
                    let again = arguments.twice_every > 0 && seed.is_multiple_of(arguments.twice_every);
                    let again = again.then(|| run(seed, arguments.scenario, false));
                    let mut total = total.lock().expect("nobody panics here");
                    total.0.merge(&report.counters);
                    total.1.seeds += 1;
                    total.1.lines += report.lines;
                    total.1.simulated += report.simulated;
                    if let Some(again) = again
                        && again.digest != report.digest
                    {
                        failed.store(true, Ordering::Relaxed);
                        eprintln!("seed {seed} gave two runs: digests {} and {}", report.digest, again.digest);
                    }
                    if report.failure.is_some() {
                        failed.store(true, Ordering::Relaxed);
                        print_failure(&report, arguments.scenario);
                    }
                    total.1.digests.insert(seed, report.digest);
                }
            });
        }
    });
    let (counters, stats) = total.into_inner().expect("nobody panics here");
    (counters, failed.into_inner(), stats)
}

fn print_failure(report: &Report, scenario: Scenario) {
    let Some(failure) = &report.failure else { return };
    eprintln!("{}", failure.plan);
    eprintln!("…");
    for line in &failure.tail {
        eprintln!("{line}");
    }
    eprintln!();
    eprintln!("  {}", failure.state);
    eprintln!();
    eprintln!("seed {} violates: {}", report.seed, failure.violation);
    let life = if scenario == Scenario::Life { " LIFE=1" } else { "" };
    eprintln!("replay: make simulate SEED={}{life}", report.seed);
}
