//! A replica that was away for so long that the log no longer reaches down to it fetches a snapshot. The link to the leader, who
//! serves it, is cut in the middle; the rest comes from the other follower, and then the suffix.

use std::time::{Duration, Instant};

use lockstep_client::AdminClient;

use crate::client_pod::ClientPod;
use crate::forward::Forward;
use crate::recovery::{Recoveries, Recovery, Whom};
use crate::scope::Scope;
use crate::service::{CLIENT_PORT, Pod, Service};
use crate::{Result, ensure, wait};

/// Small, so that a few seconds of writes are several snapshots.
const SNAPSHOTS: &str = "  snapshots: {everyBytes: 16Mi, retainLogBytes: '0'}\n";
/// A state of some 58 MB, of which one replica serves 64 MiB in a second at most: time enough to cut a link.
const FILL: [&str; 8] = ["--concurrency", "4", "--rate", "24", "--keys", "64", "--value-bytes", "900000"];
/// Every key at least once, and then some.
const FILLED: u64 = 72;
const WITHIN: Duration = Duration::from_secs(60);
const WRITES: u64 = 100;

pub async fn run(scope: &Scope, recoveries: &mut Recoveries) -> Result {
    let switch = |verb: &'static str, a: &Pod, b: &Pod| {
        let (a, b) = (a.ip.clone(), b.ip.clone());
        async move { scope.cluster.switch(&[verb, &a, &b]).await }
    };
    let service = Service::start_with(scope, "kv", 3, SNAPSHOTS).await?;
    let (leader, led) = wait::until("a leader", WITHIN, async || service.leader().await).await?;
    let followers: Vec<Pod> = service.pods().await?.into_iter().filter(|pod| pod.uid != leader.uid).collect();
    ensure!(followers.len() == 2, "expected two followers of {}", leader.name);
    let (lagging, source) = (&followers[0], &followers[1]);
    let nodes = scope.cluster.nodes().await?;
    let client = ClientPod::start(&service, "load", &nodes[0]).await?;
    client.until_more(WRITES, WITHIN).await?;

    switch("block", lagging, &leader).await?;
    switch("block", lagging, source).await?;
    let away_at = service.status(&lagging.name).await?.head;
    let filling = ClientPod::start_with(&service, "fill", &nodes[0], &FILL).await?;
    for pod in [&leader, source] {
        wait::until(&format!("the log of {} cut above {away_at}", pod.name), WITHIN, async || {
            let snapshots = service.status(&pod.name).await?.snapshots;
            ensure!(snapshots.log_begins_above > away_at, "{snapshots:?}");
            Ok(())
        })
        .await?;
    }
    filling.until_more(FILLED, WITHIN).await?;
    filling.stop().await?;

    // One connection, for opening one takes as long as half of the transfer.
    let forward =
        Forward::open(&scope.cluster, &scope.namespace, &format!("pod/{}", lagging.name), CLIENT_PORT).await?;
    let admin = AdminClient::connect(&forward.address, None)?;
    switch("unblock", lagging, &leader).await?;
    wait::until("a snapshot on its way", WITHIN, async || {
        let snapshots = admin.status().await?.snapshots;
        ensure!(snapshots.fetching.is_some(), "none is: {snapshots:?}");
        Ok(())
    })
    .await?;
    let since = Instant::now();
    switch("block", lagging, &leader).await?;
    let cut = admin.status().await?;
    let Some(fetching) = cut.snapshots.fetching.filter(|_| cut.snapshots.installed == 0) else {
        crate::fail!("the link was cut when the snapshot was there already: {:?}", cut.snapshots)
    };
    let missed = service.status(&leader.name).await?.committed;
    switch("unblock", lagging, source).await?;
    let status = wait::until(&format!("{} at {missed} by way of {}", lagging.name, source.name), WITHIN, async || {
        let status = admin.status().await?;
        ensure!(status.applied >= missed, "it has executed up to {}: {:?}", status.applied, status.snapshots);
        Ok(status)
    })
    .await?;
    let caught_up = since.elapsed().as_secs_f64();
    ensure!(status.snapshots.installed > 0, "it has installed no snapshot: {:?}", status.snapshots);
    let now = service.status(&leader.name).await?;
    ensure!(now.view == led.view, "the view has changed from {} to {}", led.view, now.view);

    switch("unblock", lagging, &leader).await?;
    service.until_ready(WITHIN).await?;
    let recovered = since.elapsed();
    client.until_more(WRITES, WITHIN).await?;
    let report = client.stop().await?;
    let equal = service.until_equal(WITHIN).await?;
    let same = |pod: &Pod| pod.uid == lagging.uid && pod.restarts == lagging.restarts;
    ensure!(equal.iter().any(|(pod, _)| same(pod)), "{} was started again on the way", lagging.name);
    let place = lagging.name.clone();
    let recovery = Recovery { fault: "link cut", whom: Whom::Follower, place, delayed: false, recovered, report };
    println!(
        "        {recovery}\n        cut from {} while fetching {fetching:?}; at {missed} by {} after {caught_up:.1} s",
        leader.name, source.name
    );
    recoveries.add(recovery);
    Ok(())
}
