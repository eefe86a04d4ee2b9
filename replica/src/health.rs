//! `grpc.health.v1`: what probes of Kubernetes ask.
//!
//! | service | serving while |
//! |---|---|
//! | `lockstep.live` | the core thread turned within the last ten seconds. Never a state of the rules: a lost quorum must not cause restarts |
//! | `lockstep.ready`, and the empty name | this replica is a voter, caught up, with a leader heard from recently, and not stopping |

use std::sync::Arc;
use std::time::Duration;

use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::{HealthReporter, health_reporter};

use crate::process::{Process, Stage};

/// Name of the service that liveness probes ask for.
pub(crate) const LIVE: &str = "lockstep.live";
/// Name of the service that readiness probes ask for.
pub(crate) const READY: &str = "lockstep.ready";
/// The replica as a whole: ready.
const WHOLE: &str = "";

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// A loop that has not turned for this long hangs.
const HANGS: Duration = Duration::from_secs(10);

pub(crate) fn service() -> (HealthServer<impl Health>, HealthReporter) {
    let (reporter, service) = health_reporter();
    (service, reporter)
}

/// Keeps the reports up to date for as long as the process lives.
pub(crate) async fn report(process: Arc<Process>, reporter: HealthReporter) {
    let leaving = process.reached(Stage::Leaving);
    tokio::pin!(leaving);
    let mut left = false;
    loop {
        let ready = serving(is_ready(&process));
        reporter.set_service_status(READY, ready).await;
        reporter.set_service_status(WHOLE, ready).await;
        reporter.set_service_status(LIVE, serving(is_live(&process))).await;
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = &mut leaving, if !left => left = true,
        }
    }
}

fn serving(yes: bool) -> ServingStatus {
    if yes { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn is_ready(process: &Process) -> bool {
    process.stage() == Stage::Up && process.last_status().is_some_and(|status| status.not_ready.is_none())
}

fn is_live(process: &Process) -> bool {
    let hangs = u64::try_from(HANGS.as_micros()).expect("a few seconds");
    // Before genesis there is no loop that could hang.
    process.running().is_none_or(|running| process.clock.now().since(running.core.turned()) < hangs)
}
