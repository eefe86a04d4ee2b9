//! `kubectl scale`: replicas come and go one by one while a client writes without pause, and the operator dies on the way.

use std::time::{Duration, Instant};

use super::operator::kill;
use crate::client_pod::ClientPod;
use crate::cluster::number;
use crate::scope::Scope;
use crate::service::Service;
use crate::{Result, ensure, wait};

/// Until all replicas that were asked for are ready, or gone: Kubernetes lets the operator wait between its deaths.
const SCALES_WITHIN: Duration = Duration::from_secs(150);
const WITHIN: Duration = Duration::from_secs(30);
/// Writes that show that the service works, before, between and after.
const WRITES: u64 = 100;

pub async fn run(scope: &Scope) -> Result {
    let mut service = Service::start(scope, "kv", 3).await?;
    let node = &scope.cluster.nodes().await?[0];
    let client = ClientPod::start(&service, "load", node).await?;
    client.until_more(WRITES, WITHIN).await?;
    let born = service.pods().await?;

    for wanted in [5, 3] {
        let (start, before) = (Instant::now(), u64::try_from(service.replicas).expect("a few"));
        let replicas = format!("--replicas={wanted}");
        scope.kubectl(&["scale", "replicatedservice", "kv", &replicas]).await?;
        // Fewer than a second lies between one step and the next.
        wait::until("the first change of voters", SCALES_WITHIN, async || {
            let voters = number(&service.resource().await?, "/status/voters");
            ensure!(voters != before, "there are still {voters}");
            Ok(())
        })
        .await?;
        kill(scope).await?;
        service.replicas = wanted;
        service.until_ready(SCALES_WITHIN).await?;
        println!("        scaled to {wanted} in {:.1} s", start.elapsed().as_secs_f64());
        client.until_more(WRITES, WITHIN).await?;
        members_are(&service).await?;
    }

    let report = client.stop().await?;
    service.until_equal(WITHIN).await?;
    let (gap, writes) = (report.longest_gap_ms, report.acknowledged);
    println!("        longest gap {gap} ms, {writes} acknowledged, {} unknown", report.unknown);
    let kept = service.pods().await?;
    let same = born.iter().filter(|pod| kept.iter().any(|now| now.uid == pod.uid)).count();
    ensure!(same == 3, "only {same} of the first three pods are the same: {kept:?}");
    wait::until("the claims of those that went gone", WITHIN, async || {
        let claims = scope.kubectl(&["get", "persistentvolumeclaims", "--output", "name"]).await?;
        ensure!(!claims.contains("data-kv-3") && !claims.contains("data-kv-4"), "there are {claims}");
        Ok(())
    })
    .await
}

/// Fails unless as many vote as were asked for, and nobody stands by.
async fn members_are(service: &Service) -> Result {
    let (pod, status) = service.leader().await?;
    let members = status.membership.map(|known| known.configuration);
    let (voters, standbys) =
        members.as_ref().map_or((0, 0), |members| (members.voters().len(), members.standbys().len()));
    ensure!((voters, standbys) == (service.replicas, 0), "{} knows {voters} voters, {standbys} standbys", pod.name);
    let scaled = number(&service.scope.get(&["replicatedservice", &service.name]).await?, "/status/replicas");
    ensure!(scaled as usize == service.replicas, "status.replicas is {scaled}");
    Ok(())
}
