//! Each pod in turn, and then the leader, is lost and comes back, or another replica in its place, while a client writes without pause.

use std::time::{Duration, Instant};

use lockstep_client::ReplicaStatus;

use crate::client_pod::ClientPod;
use crate::cluster::Node;
use crate::failure::Failure;
use crate::recovery::{Fault, Recoveries, Recovery, Whom};
use crate::scope::Scope;
use crate::service::{Pod, Service};
use crate::{Result, ensure, fail, wait};

/// Until all is Ready again.
const RECOVERS_WITHIN: Duration = Duration::from_secs(90);
/// Until Kubernetes notices that a node is off, and until writes go on without it.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);
/// Writes that show that the service works, before, between and after.
const WRITES: u64 = 100;

pub async fn run(scope: &Scope, fault: Fault, recoveries: &mut Recoveries) -> Result {
    let service = Service::start(scope, "kv", 3).await?;
    let targets = match fault {
        Fault::Deleted | Fault::Killed | Fault::PowerCut => &[Some("kv-0"), Some("kv-1"), Some("kv-2"), None][..],
        Fault::VolumeDestroyed => &[Some("kv-2"), None],
    };
    for target in targets {
        recoveries.add(one(&service, fault, *target).await?);
    }
    service.until_equal(NOTICED_WITHIN).await.map(drop)
}

/// `target` is a pod, or whoever leads.
async fn one(service: &Service, fault: Fault, target: Option<&str>) -> Result<Recovery> {
    let (leader, _) = wait::until("a leader", NOTICED_WITHIN, async || service.leader().await).await?;
    let name = target.unwrap_or(&leader.name);
    let pod = service.pods().await?.into_iter().find(|pod| pod.name == name);
    let pod = pod.ok_or_else(|| Failure(format!("there is no pod {name}")))?;
    let before = service.status(name).await?;
    let (its_node, other_node) = nodes(service, &pod).await?;
    let client_name = format!("load-{}", target.unwrap_or("leader"));
    // Elsewhere, or a power cut would hit it as well.
    let client = ClientPod::start(service, &client_name, &other_node).await?;
    client.until_more(WRITES, NOTICED_WITHIN).await?;

    let since = strike(service, fault, &pod, &its_node, &client).await?;
    let recovered = wait::until(&format!("{name} back"), RECOVERS_WITHIN, async || {
        let now = service.pods().await?.into_iter().find(|now| now.name == pod.name);
        ensure!(now.is_some_and(|now| now.is_another_than(&pod)), "it is the same process still");
        service.is_ready().await?;
        Ok(since.elapsed())
    })
    .await
    .map_err(|error| Failure(format!("{name} {fault}: {error}")))?;
    let status = service.status(name).await?;
    ensure!(status.is_ready(), "{name} is not ready: {status:?}");
    match fault {
        Fault::Deleted | Fault::Killed | Fault::PowerCut => {
            let same = status.replica == before.replica && status.boot > before.boot;
            ensure!(same, "{name} is not what it was, started again: {status:?}");
        }
        Fault::VolumeDestroyed => replaced(service, &before, &status).await?,
    }

    client.until_more(WRITES, NOTICED_WITHIN).await?;
    let report = client.stop().await.map_err(|error| Failure(format!("{name} {fault}: {error}")))?;
    let delayed = fault == Fault::Killed && pod.restarts > 0;
    let whom = if leader.uid == pod.uid { Whom::Leader } else { Whom::Follower };
    let recovery = Recovery { fault: fault.name(), whom, place: pod.name, delayed, recovered, report };
    println!("        {recovery}");
    Ok(recovery)
}

/// Fails unless a new identity votes in the place of the one that is lost, which never returns.
pub async fn replaced(service: &Service, before: &ReplicaStatus, now: &ReplicaStatus) -> Result {
    ensure!(now.replica != before.replica, "{} is back from a volume that was destroyed", now.replica);
    let Some(known) = &now.membership else { fail!("{} knows no members", now.replica) };
    let members = &known.configuration;
    ensure!(members.voters().values().any(|id| *id == now.replica), "{} does not vote: {members}", now.replica);
    ensure!(members.removed().values().any(|id| *id == before.replica), "{} is not removed", before.replica);
    ensure!(members.voters().len() == service.replicas && members.standbys().is_empty(), "members are {members}");
    let resource = service.resource().await?;
    ensure!(resource["status"]["operation"].is_null(), "an operation is left: {}", resource["status"]["operation"]);
    Ok(())
}

/// Does it, and gives the moment from which the recovery counts.
async fn strike(service: &Service, fault: Fault, pod: &Pod, node: &Node, client: &ClientPod) -> Result<Instant> {
    let (scope, number) = (&service.scope, node.number.to_string());
    let mut since = Instant::now();
    match fault {
        Fault::Deleted => drop(scope.kubectl(&["delete", "pod", &pod.name, "--wait=false"]).await?),
        Fault::VolumeDestroyed => {
            let claim = format!("data-{}", pod.name);
            scope.kubectl(&["delete", "persistentvolumeclaim", &claim, "--wait=false"]).await?;
            scope.kubectl(&["delete", "pod", &pod.name, "--wait=false"]).await?;
        }
        Fault::Killed => {
            let name = format!("{}/{}", scope.namespace, pod.name);
            scope.cluster.switch(&["signal", &name, "KILL"]).await?;
        }
        Fault::PowerCut => {
            scope.cluster.switch(&["node", "kill", &number]).await?;
            let noticed = async || scope.cluster.node_is_ready(node, false).await;
            wait::until(&format!("{} noticed to be off", node.name), NOTICED_WITHIN, noticed).await?;
            client.until_more(WRITES, NOTICED_WITHIN).await?;
            since = Instant::now();
            scope.cluster.switch(&["node", "start", &number]).await?;
        }
    }
    Ok(since)
}

/// The node of a pod, and another one.
async fn nodes(service: &Service, pod: &Pod) -> Result<(Node, Node)> {
    let (its, others): (Vec<_>, Vec<_>) =
        service.scope.cluster.nodes().await?.into_iter().partition(|node| node.name == pod.node);
    match (its.into_iter().next(), others.into_iter().next()) {
        (Some(its), Some(other)) => Ok((its, other)),
        _ => Err(Failure(format!("pod {} is on an unknown node {:?}", pod.name, pod.node))),
    }
}
