//! A changed template reaches all pods, one by one, while a client writes without pause.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::client_pod::ClientPod;
use crate::cluster::OPERATOR_NAMESPACE;
use crate::scope::Scope;
use crate::service::{Pod, Service};
use crate::{Result, audit, ensure, wait};

/// Until all pods are replaced and ready.
pub const ROLLS_WITHIN: Duration = Duration::from_secs(120);
/// A change of the template that leaves the image alone.
pub const TEMPLATE: &str = "  logLevel: warn\n";
const WITHIN: Duration = Duration::from_secs(30);
/// Writes that show that the service works, before and after.
const WRITES: u64 = 100;

pub async fn run(scope: &Scope) -> Result {
    let service = Service::start(scope, "kv", 3).await?;
    let node = &scope.cluster.nodes().await?[0];
    let client = ClientPod::start(&service, "load", node).await?;
    client.until_more(WRITES, WITHIN).await?;
    let (before, (leader, _)) = (service.pods().await?, service.leader().await?);
    let mark = audit::mark(&scope.cluster.audit_log).await?;

    let start = Instant::now();
    service.change(TEMPLATE).await?;
    service.until_ready(ROLLS_WITHIN).await?;
    let took = start.elapsed().as_secs_f64();
    all_replaced(&service, &before).await?;
    client.until_more(WRITES, WITHIN).await?;
    let report = client.stop().await?;
    service.until_equal(WITHIN).await?;
    let (gap, writes) = (report.longest_gap_ms, report.acknowledged);
    println!("        rolled in {took:.1} s, longest gap {gap} ms, {writes} acknowledged, {} unknown", report.unknown);

    let replaced = wait::until("an event for each pod", WITHIN, async || {
        let replaced = service.events("PodReplaced").await?;
        ensure!(replaced.len() == 3, "only of {replaced:?}");
        Ok(replaced)
    })
    .await?;
    ensure!(replaced.last() == Some(&leader.name), "{replaced:?} were replaced, but {} led", leader.name);
    let handed = service.events("LeaderHandedOver").await?;
    ensure!(handed.contains(&leader.name), "{} did not hand over, but {handed:?}", leader.name);

    let operator = format!("system:serviceaccount:{OPERATOR_NAMESPACE}:");
    let changes = audit::since(&scope.cluster.audit_log, mark).await?;
    let by_operator = changes.iter().filter(|it| it.user.starts_with(&operator) && it.namespace == scope.namespace);
    let pods: Vec<_> = by_operator.filter(|it| it.resource.starts_with("pods")).collect();
    ensure!(pods.len() >= 3, "the audit log has only {pods:?}");
    let evicts = |change: &&&audit::Change| change.verb == "create" && change.resource == "pods/eviction";
    ensure!(pods.iter().all(|change| evicts(&change)), "not by evictions alone: {pods:?}");
    Ok(())
}

/// Fails unless every pod is another one than before.
pub async fn all_replaced(service: &Service, before: &[Pod]) -> Result {
    let old: BTreeSet<_> = before.iter().map(|pod| pod.uid.as_str()).collect();
    let now = service.pods().await?;
    let kept: Vec<_> = now.iter().filter(|pod| old.contains(pod.uid.as_str())).map(|pod| &pod.name).collect();
    ensure!(kept.is_empty(), "still the same pods: {kept:?}");
    Ok(())
}
