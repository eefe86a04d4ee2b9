//! The operator may die at any moment: what it was doing is in the resource, and its next process goes on from there.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::faults::replaced;
use super::roll::{ROLLS_WITHIN, TEMPLATE, all_replaced};
use crate::client_pod::ClientPod;
use crate::cluster::{Node, OPERATOR_NAMESPACE, items, text};
use crate::failure::Failure;
use crate::recovery::{Recoveries, Recovery, Whom};
use crate::scope::Scope;
use crate::service::{Pod, READY_WITHIN, Service};
use crate::{Result, ensure, fail, wait};

const WITHIN: Duration = Duration::from_secs(90);
const WRITES: u64 = 100;

pub async fn run(scope: &Scope, recoveries: &mut Recoveries) -> Result {
    let service = genesis(scope).await?;
    let node = &scope.cluster.nodes().await?[0];
    recoveries.add(roll(&service, node).await?);
    recoveries.add(replacement(&service, node).await?);
    deletion(&service, node).await
}

/// Killed as soon as there are pods, and again once the genesis is recorded and perhaps sent to some.
async fn genesis(scope: &Scope) -> Result<Service> {
    let service = Service::apply(scope, "kv", 3, "").await?;
    wait::until("pods", WITHIN, async || {
        ensure!(service.pods().await?.len() == service.replicas, "they are not there yet");
        Ok(())
    })
    .await?;
    kill(scope).await?;
    let recorded = wait::until("a recorded genesis", WITHIN, async || {
        let recorded = text(&service.resource().await?, "/status/serviceId");
        ensure!(!recorded.is_empty(), "there is none");
        Ok(recorded)
    })
    .await?;
    kill(scope).await?;
    service.until_ready(WITHIN).await?;
    for (pod, status) in service.statuses().await? {
        let id = status.service.map(|id| id.to_string()).unwrap_or_default();
        ensure!(id == recorded, "{} is of service {id}, and {recorded} was recorded", pod.name);
    }
    Ok(service)
}

/// Killed each time that one more pod is replaced.
async fn roll(service: &Service, node: &Node) -> Result<Recovery> {
    let client = ClientPod::start(service, "load-roll", node).await?;
    let before = service.pods().await?;
    let since = Instant::now();
    service.change(TEMPLATE).await?;
    let replaced = async || -> Result<Option<String>> {
        let now = service.pods().await?;
        let gone = before.iter().filter(|pod| now.iter().all(|it| it.uid != pod.uid)).count();
        Ok((gone > 0).then(|| format!("{gone} replaced")))
    };
    let done = async || -> Result {
        // In this order: a dead operator's word on the last pod but one may still stand in the resource.
        all_replaced(service, &before).await?;
        service.is_ready().await
    };
    let kills = kill_at_each(service, replaced, done, ROLLS_WITHIN).await?;
    ensure!(kills.len() >= 2, "the operator was killed only after {kills:?}");
    finish(client, "roll", &kills, since.elapsed()).await
}

/// Killed before the first step, while the new replica cannot catch up, and at each later step that is seen.
async fn replacement(service: &Service, node: &Node) -> Result<Recovery> {
    let scope = &service.scope;
    let client = ClientPod::start(service, "load-disk-lost", node).await?;
    let before = service.status("kv-2").await?;
    // A container that has never died is back at once.
    if operator(scope).await?.restarts > 0 {
        kill(scope).await?;
    }
    // It sees nothing until the newcomer is there, and cut off.
    signal(scope, "STOP").await?;
    let since = Instant::now();
    scope.kubectl(&["delete", "persistentvolumeclaim", "data-kv-2", "--wait=false"]).await?;
    scope.kubectl(&["delete", "pod", "kv-2", "--wait=false"]).await?;
    wait::until("a fresh replica", WITHIN, async || {
        let now = service.status("kv-2").await?;
        ensure!(now.replica != before.replica, "it is the old one still");
        Ok(())
    })
    .await?;
    let (newcomer, others): (Vec<_>, Vec<_>) = service.pods().await?.into_iter().partition(|pod| pod.name == "kv-2");
    let links = newcomer.iter().flat_map(|pod| others.iter().map(|other| (&pod.ip, &other.ip)));
    for (newcomer, other) in links.clone() {
        scope.cluster.switch(&["block", newcomer, other]).await?;
    }
    kill(scope).await?;
    let mut kills = vec!["before AddStandby".to_owned()];

    let step = async || -> Result<String> { Ok(text(&service.resource().await?, "/status/operation/step")) };
    wait::until("step CatchUp", WITHIN, async || {
        let step = step().await?;
        ensure!(step == "CatchUp", "it is {step:?}");
        Ok(())
    })
    .await?;
    kill(scope).await?;
    kills.push("CatchUp".to_owned());
    for (newcomer, other) in links {
        scope.cluster.switch(&["unblock", newcomer, other]).await?;
    }
    let later = async || -> Result<Option<String>> {
        let step = step().await?;
        Ok((step == "Promote" || step == "Remove").then_some(step))
    };
    let done = async || -> Result {
        // Quick while there is a step, so that the next one is not overlooked.
        let step = step().await?;
        ensure!(step.is_empty(), "step {step} is under way");
        service.is_ready().await?;
        replaced(service, &before, &service.status("kv-2").await?).await
    };
    kills.extend(kill_at_each(service, later, done, ROLLS_WITHIN).await?);
    finish(client, "disk lost", &kills, since.elapsed()).await
}

/// Killed right after the resource was deleted: all goes but the volumes, and a new resource takes them up again.
async fn deletion(service: &Service, node: &Node) -> Result {
    let scope = &service.scope;
    let client = ClientPod::start(service, "reader", node).await?;
    let endpoints = service.peers_endpoint();
    let scan = ["kv", "scan", "--prefix", "load-", "--endpoints", &endpoints];
    let (kept, id) = (client.lockstep(&scan).await?, text(&service.resource().await?, "/status/serviceId"));
    ensure!(!kept.is_empty(), "there is nothing to keep");
    client.stop().await?;

    scope.kubectl(&["delete", "replicatedservice", &service.name, "--wait=false"]).await?;
    kill(scope).await?;
    wait::until("all but the volumes gone", WITHIN, async || {
        let selector = service.selector();
        for (kind, expected) in [("pods", 0), ("persistentvolumeclaims", service.replicas)] {
            let left = items(&scope.get(&[kind, "--selector", &selector]).await?).len();
            ensure!(left == expected, "there are {left} {kind}, not {expected}");
        }
        let owned = "replicatedservices,statefulsets,services,poddisruptionbudgets";
        let left = scope.kubectl(&["get", owned, "--output", "name"]).await?;
        ensure!(left.trim().is_empty(), "there is still {left}");
        Ok(())
    })
    .await?;

    service.change(&format!("  serviceId: \"{id}\"")).await?;
    service.until_ready(READY_WITHIN).await?;
    let client = ClientPod::start(service, "reader-again", node).await?;
    let found = client.lockstep(&scan).await?;
    ensure!(found == kept, "the adopted volumes hold other values than were kept: {found} instead of {kept}");
    client.stop().await.map(drop)
}

async fn finish(client: ClientPod, place: &str, kills: &[String], recovered: Duration) -> Result<Recovery> {
    client.until_more(WRITES, WITHIN).await?;
    let report = client.stop().await?;
    let (fault, place) = ("killed", place.to_owned());
    let recovery = Recovery { fault, whom: Whom::Operator, place, delayed: false, recovered, report };
    println!("        {recovery}\n        the operator died {} times: {}", kills.len(), kills.join(", "));
    Ok(recovery)
}

/// Kills the operator each time that `mark` says something new, until it is `done`. Gives what was said.
async fn kill_at_each(
    service: &Service,
    mark: impl AsyncFn() -> Result<Option<String>>,
    done: impl AsyncFn() -> Result,
    within: Duration,
) -> Result<Vec<String>> {
    let start = Instant::now();
    let mut kills = Vec::new();
    loop {
        if let Some(mark) = mark().await?
            && !kills.contains(&mark)
        {
            kill(&service.scope).await?;
            kills.push(mark);
        }
        match done().await {
            Ok(()) => return Ok(kills),
            Err(missing) if start.elapsed() > within => {
                fail!("not done within {within:?}: {missing}; killed at {kills:?}")
            }
            Err(_) => {}
        }
    }
}

/// Ends the operator's process, and waits until there is another one. By SIGKILL; or, where that would make Kubernetes wait
/// before it starts the container again, by deleting the pod.
pub async fn kill(scope: &Scope) -> Result {
    let before = operator(scope).await?;
    if before.restarts == 0 {
        signal(scope, "KILL").await?;
    } else {
        let delete = ["delete", "pod", &before.name, "--namespace", OPERATOR_NAMESPACE, "--wait=false"];
        scope.cluster.kubectl(&delete).await?;
    }
    wait::until("another process of the operator", WITHIN, async || {
        let now = operator(scope).await?;
        ensure!(now.is_another_than(&before), "{} was not started again", now.name);
        Ok(())
    })
    .await
}

async fn signal(scope: &Scope, signal: &str) -> Result {
    let name = format!("{OPERATOR_NAMESPACE}/{}", operator(scope).await?.name);
    scope.cluster.switch(&["signal", &name, signal]).await.map(drop)
}

/// The operator's pod that is not on its way out, and runs.
async fn operator(scope: &Scope) -> Result<Pod> {
    let pods = scope.cluster.get(&["pods", "--namespace", OPERATOR_NAMESPACE]).await?;
    let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
    let pod = items(&pods).iter().find(stays).ok_or_else(|| Failure("there is no operator".to_owned()))?;
    let state = &pod["status"]["containerStatuses"][0]["state"];
    ensure!(state["running"].is_object(), "the operator does not run: {state}");
    Ok(Pod::read(pod))
}
