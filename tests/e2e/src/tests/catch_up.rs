//! A replica that lags, and cannot hear the leader, gets what it lacks from the log of another follower.

use std::time::Duration;

use crate::client_pod::ClientPod;
use crate::cluster::Node;
use crate::scope::Scope;
use crate::service::{Pod, Service};
use crate::{Result, ensure, wait};

/// Writes that the replica misses.
const MISSED: u64 = 500;
const WITHIN: Duration = Duration::from_secs(30);

pub async fn run(scope: &Scope) -> Result {
    let service = Service::start(scope, "kv", 3).await?;
    let (leader, led) = wait::until("a leader", WITHIN, async || service.leader().await).await?;
    let followers: Vec<Pod> = service.pods().await?.into_iter().filter(|pod| pod.uid != leader.uid).collect();
    ensure!(followers.len() == 2, "expected two followers of {}", leader.name);
    let (lagging, source) = (&followers[0], &followers[1]);
    let nodes: Vec<Node> = scope.cluster.nodes().await?.into_iter().filter(|node| node.name != lagging.node).collect();
    let client = ClientPod::start(&service, "load", &nodes[0]).await?;

    // Stopped first, so that it lags; cut off from the leader before it goes on, so that the leader cannot help.
    let stopped_at = service.status(&lagging.name).await?.applied;
    let name = format!("{}/{}", scope.namespace, lagging.name);
    scope.cluster.switch(&["signal", &name, "STOP"]).await?;
    client.until_more(MISSED, WITHIN).await?;
    scope.cluster.switch(&["block", &lagging.ip, &leader.ip]).await?;
    let cut_at = service.status(&leader.name).await?.head;
    ensure!(cut_at > stopped_at, "nothing was written while {} stood still", lagging.name);
    client.until_more(MISSED, WITHIN).await?;
    let missed = service.status(&leader.name).await?.committed;
    scope.cluster.switch(&["signal", &name, "CONT"]).await?;

    wait::until(&format!("{} at {missed} by way of {}", lagging.name, source.name), WITHIN, async || {
        let status = service.status(&lagging.name).await?;
        ensure!(status.applied >= missed, "it has executed up to {}; cut off at {cut_at}", status.applied);
        Ok(())
    })
    .await?;
    let status = service.status(&leader.name).await?;
    ensure!(
        status.view == led.view,
        "the replica that could not hear the leader has changed the view from {} to {}",
        led.view,
        status.view
    );
    let report = client.stop().await?;
    scope.cluster.switch(&["unblock", &lagging.ip, &leader.ip]).await?;
    let equal = service.until_equal(WITHIN).await?;
    let same = |pod: &Pod| pod.uid == lagging.uid && pod.restarts == lagging.restarts;
    ensure!(equal.iter().any(|(pod, _)| same(pod)), "{} was started again on the way", lagging.name);
    service.until_ready(WITHIN).await?;
    println!(
        "        {} stood still at {stopped_at}, was cut off from {} at {cut_at}, reached {missed} by {}; {} writes",
        lagging.name, leader.name, source.name, report.acknowledged
    );
    Ok(())
}
