//! All replicas are lost at the same moment, while a client writes: nobody leads, and nobody is left who could be asked.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use lockstep_client::{Client, ClientOptions, Kv, ReplicaStatus};

use super::NODE_READY_WITHIN;
use crate::client_pod::{ClientPod, Report};
use crate::forward::Forward;
use crate::recovery::{Recoveries, Recovery, Whom};
use crate::scope::Scope;
use crate::service::{CLIENT_PORT, Pod, Service};
use crate::{Result, ensure, fail, wait};

/// Until all is Ready again. Kubernetes starts a container that has died before only after 10 s.
const RECOVERS_WITHIN: Duration = Duration::from_secs(90);
const WITHIN: Duration = Duration::from_secs(30);
/// A call to a pod whose node is off is never answered; it is unknown after this time.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Writes that show that the service works, before and after.
const WRITES: u64 = 100;
/// The client waits for a service that is away rather than tell an error.
const PATIENT: [&str; 6] = ["--concurrency", "4", "--rate", "400", "--timeout", "60s"];

/// What is done to all of them.
#[derive(Clone, Copy, Debug)]
enum Strike {
    /// SIGKILL to every process.
    Killed,
    /// Their pods deleted.
    Deleted,
    /// The same without waiting for anything to end.
    Forced,
}

impl Strike {
    fn name(self) -> &'static str {
        match self {
            Strike::Killed => "killed",
            Strike::Deleted => "deleted",
            Strike::Forced => "forced",
        }
    }
}

pub async fn run(scope: &Scope, recoveries: &mut Recoveries) -> Result {
    let service = Service::start(scope, "kv", 3).await?;
    // Killed first: Kubernetes starts a container again at once only if it has not died before.
    for strike in [Strike::Killed, Strike::Deleted, Strike::Forced] {
        recoveries.add(one(&service, strike).await?);
    }
    recoveries.add(power_cut(&service).await?);
    service.until_equal(WITHIN).await.map(drop)
}

async fn one(service: &Service, strike: Strike) -> Result<Recovery> {
    let node = &service.scope.cluster.nodes().await?[0];
    let client = ClientPod::start_with(service, &format!("load-{}", strike.name()), node, &PATIENT).await?;
    client.until_more(WRITES, WITHIN).await?;
    let before = all(service).await?;
    let since = Instant::now();
    strike_all(service, strike, &before).await?;
    let recovered = until_back(service, &before, since).await?;
    client.until_more(WRITES, WITHIN).await?;
    let report = client.stop().await?;
    let delayed = matches!(strike, Strike::Killed) && before.iter().any(|(pod, _)| pod.restarts > 0);
    let place = "all pods".to_owned();
    let recovery = Recovery { fault: strike.name(), whom: Whom::All, place, delayed, recovered, report };
    println!("        {recovery}");
    Ok(recovery)
}

async fn strike_all(service: &Service, strike: Strike, before: &[(Pod, ReplicaStatus)]) -> Result {
    let scope = &service.scope;
    let selector = service.selector();
    let delete = ["delete", "pod", "--selector", &selector, "--wait=false"];
    match strike {
        Strike::Killed => {
            let names: Vec<_> = before.iter().map(|(pod, _)| format!("{}/{}", scope.namespace, pod.name)).collect();
            // Side by side, so that none is back before the last one dies.
            let kills = names.iter().map(async |name| scope.cluster.switch(&["signal", name, "KILL"]).await);
            try_join_all(kills).await.map(drop)
        }
        Strike::Deleted => scope.kubectl(&delete).await.map(drop),
        Strike::Forced => scope.kubectl(&[&delete[..], &["--grace-period=0", "--force"]].concat()).await.map(drop),
    }
}

/// The power of all nodes goes at once, and with it every process of the cluster but the control plane's; the client stands
/// outside, and keeps its own account.
async fn power_cut(service: &Service) -> Result<Recovery> {
    let scope = &service.scope;
    let (before, nodes) = (all(service).await?, scope.cluster.nodes().await?);
    let target = format!("service/{}", service.name);
    // By sessions: a plain unary write may be executed twice when a leader is lost.
    let connect = async || -> Result<(Forward, Kv)> {
        let forward = Forward::open(&scope.cluster, &scope.namespace, &target, CLIENT_PORT).await?;
        let options = ClientOptions::new([forward.address.as_str()]).with_timeout(ANSWERS_WITHIN);
        Ok((forward, Client::connect(options)?.kv()))
    };
    let (_forward, ledger) = connect().await?;
    let mut acknowledged = 0;
    while acknowledged < WRITES {
        acknowledged = ledger.put("ledger", "before").await?;
    }
    let write = async {
        let mut last = (acknowledged, Instant::now());
        while let Ok(version) = ledger.put("ledger", "before").await {
            last = (version, Instant::now());
        }
        last
    };
    let cut = async {
        for node in &nodes {
            scope.cluster.switch(&["node", "kill", &node.number.to_string()]).await?;
        }
        Result::<()>::Ok(())
    };
    let ((acknowledged, last), cut) = futures::join!(write, cut);
    cut?;

    let since = Instant::now();
    for node in &nodes {
        scope.cluster.switch(&["node", "start", &node.number.to_string()]).await?;
    }
    // Writes that may have been executed or not: the one under way when the power went, and those that failed since.
    let (mut unsure, mut gap) = (1, Duration::ZERO);
    let again = wait::until("a write after the return of the power", RECOVERS_WITHIN, async || {
        let (_forward, ledger) = connect().await?;
        unsure += 1;
        let version = ledger.put("ledger", "after").await?;
        unsure -= 1;
        gap = last.elapsed();
        Ok(version)
    })
    .await?;
    // None of those before is lost, none is done twice.
    let unknown = match again.checked_sub(acknowledged + 1) {
        Some(unknown) if unknown <= unsure => unknown,
        _ => fail!("{acknowledged} writes were acknowledged, {unsure} are unsure, and the next one is number {again}"),
    };
    let recovered = until_back(service, &before, since).await?;
    for node in &nodes {
        let ready = async || scope.cluster.node_is_ready(node, true).await;
        wait::until(&format!("node {} ready", node.name), NODE_READY_WITHIN, ready).await?;
    }
    let longest_gap_ms = u64::try_from(gap.as_millis()).unwrap_or(u64::MAX);
    let report = Report::of_ledger(again - unknown, unknown, longest_gap_ms);
    let delayed = before.iter().any(|(pod, _)| pod.restarts > 0);
    let place = "all nodes".to_owned();
    let recovery = Recovery { fault: "power cut", whom: Whom::All, place, delayed, recovered, report };
    println!("        {recovery}");
    Ok(recovery)
}

/// All pods and what their replicas say.
async fn all(service: &Service) -> Result<Vec<(Pod, ReplicaStatus)>> {
    wait::until("an answer of every replica", WITHIN, async || {
        let statuses = service.statuses().await?;
        ensure!(statuses.len() == service.replicas, "only {} replicas answer", statuses.len());
        Ok(statuses)
    })
    .await
}

/// Waits until all are ready, and started anew from the disks that they had: nobody remembers who led.
async fn until_back(service: &Service, before: &[(Pod, ReplicaStatus)], since: Instant) -> Result<Duration> {
    let recovered = wait::until("all replicas back", RECOVERS_WITHIN, async || {
        for pod in service.pods().await? {
            let old = before.iter().find(|(old, _)| old.name == pod.name);
            ensure!(old.is_some_and(|(old, _)| pod.is_another_than(old)), "{} is the same process still", pod.name);
        }
        service.is_ready().await?;
        Ok(since.elapsed())
    })
    .await?;
    for (pod, now) in all(service).await? {
        let old = before.iter().find(|(old, _)| old.name == pod.name).map(|(_, status)| status);
        let again = old.is_some_and(|old| old.replica == now.replica && old.boot < now.boot && old.view < now.view);
        ensure!(again, "{} is not what it was, started again in a later view: {now:?} after {old:?}", pod.name);
    }
    Ok(recovered)
}
