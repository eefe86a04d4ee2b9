//! Lockstep on a real Kubernetes, as its user sees it: installed with helm, used with kubectl, and broken by force.
//!
//! `tests/e2e/run` makes the image and the cluster and starts this program, which runs the tests one by one, each in a
//! namespace of its own. Names as arguments run those tests alone. Ends with the table of recoveries.

mod audit;
mod client_pod;
mod cluster;
mod failure;
mod forward;
mod process;
mod recovery;
mod scope;
mod service;
mod tests;
mod unary;
mod wait;

use std::env;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cluster::Cluster;
use failure::Result;
use recovery::Recoveries;
use scope::Scope;
use tests::{TESTS, Test};
use tokio::time::timeout;

/// The environment variable that keeps the tests' namespaces.
const KEEP: &str = "KEEP";
/// A test that has not ended by then hangs.
const TEST_LIMIT: Duration = Duration::from_secs(420);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [flag, address, puts] = arguments.as_slice()
        && flag == unary::FLAG
    {
        return unary::puts(address, puts).await;
    }
    if arguments.iter().any(|argument| argument == "--list") {
        TESTS.iter().for_each(|test| println!("{:<12} {}", test.name, test.shows));
        return ExitCode::SUCCESS;
    }
    let unknown: Vec<_> = arguments.iter().filter(|name| TESTS.iter().all(|test| test.name != *name)).collect();
    if !unknown.is_empty() {
        eprintln!("e2e: no test {unknown:?}: --list shows those that there are");
        return ExitCode::from(2);
    }
    let chosen: Vec<_> =
        TESTS.iter().filter(|test| arguments.is_empty() || arguments.iter().any(|name| test.name == *name)).collect();
    match run(&chosen).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("FAILED  {error}");
            println!("e2e: 0 passed, {} failed", chosen.len());
            ExitCode::FAILURE
        }
    }
}

/// Runs tests, and gives the number of those that failed.
async fn run(chosen: &[&Test]) -> Result<usize> {
    let started = Instant::now();
    let cluster = Cluster::from_environment()?;
    tests::install(&cluster, None).await?;
    println!("installed in {:.1} s", started.elapsed().as_secs_f64());
    let mut recoveries = Recoveries::default();
    let mut failed = vec![];
    let mut scopes = vec![];
    for test in chosen {
        let start = Instant::now();
        let scope = Scope::new(&cluster, test.name);
        let outcome = run_one(&scope, test, &mut recoveries).await;
        scopes.push(scope);
        let took = start.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => println!("ok      {:<12} {took:>6.1} s  {}", test.name, test.shows),
            Err(error) => {
                println!("FAILED  {:<12} {took:>6.1} s  {}\n        {error}", test.name, test.shows);
                failed.push(test.name);
            }
        }
    }
    let mut kept = vec![];
    if env::var_os(KEEP).is_none() {
        for scope in &scopes {
            kept.extend(scope.until_gone().await.err());
        }
    }
    recoveries.print();
    println!("e2e: took {:.0} s", started.elapsed().as_secs_f64());
    kept.iter().for_each(|error| println!("FAILED  {error}"));
    println!("e2e: {} passed, {} failed", chosen.len() - failed.len(), failed.len() + kept.len());
    Ok(failed.len() + kept.len())
}

async fn run_one(scope: &Scope, test: &Test, recoveries: &mut Recoveries) -> Result {
    let work = async {
        scope.create().await?;
        (test.run)(scope, recoveries).await
    };
    let outcome = match timeout(TEST_LIMIT, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(failure::Failure(format!("did not end within {TEST_LIMIT:?}"))),
    };
    if outcome.is_err() {
        match scope.describe().await {
            Ok((folder, summary)) => println!("{summary}logs and descriptions: {}", folder.display()),
            Err(error) => println!("cannot describe {}: {error}", scope.namespace),
        }
    }
    // A switch that a failed test left must not fail the next one.
    let restored = tests::restore(&scope.cluster).await;
    // It goes while the next test starts; at the end all must be gone.
    let removed = if env::var_os(KEEP).is_none() { scope.remove().await } else { Ok(()) };
    outcome.and(restored).and(removed)
}
