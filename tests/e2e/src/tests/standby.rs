//! Two operators, of which one works: when its pod is gone without a word, the other one goes on.

use std::time::{Duration, Instant};

use super::roll::{ROLLS_WITHIN, TEMPLATE, all_replaced};
use super::{install, install_many};
use crate::client_pod::ClientPod;
use crate::cluster::{OPERATOR_NAMESPACE, items, text};
use crate::recovery::{Recoveries, Recovery, Whom};
use crate::scope::Scope;
use crate::service::Service;
use crate::{Result, ensure, wait};

/// The name of the Lease, as the chart gives it.
const LEASE: &str = "lockstep-operator";
/// Until the lease of a silent holder has expired and another one has it.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(40);
const WITHIN: Duration = Duration::from_secs(60);
const WRITES: u64 = 100;

pub async fn run(scope: &Scope, recoveries: &mut Recoveries) -> Result {
    let outcome = two(scope, recoveries).await;
    // Whatever came of it, the other tests know of one.
    outcome.and(install(&scope.cluster, None).await)
}

async fn two(scope: &Scope, recoveries: &mut Recoveries) -> Result {
    let cluster = &scope.cluster;
    install_many(cluster, None, 2).await?;
    let service = Service::start(scope, "kv", 3).await?;
    let client = ClientPod::start(&service, "load", &cluster.nodes().await?[0]).await?;
    let before = service.pods().await?;
    let pods = cluster.get(&["pods", "--namespace", OPERATOR_NAMESPACE]).await?;
    let names: Vec<_> = items(&pods).iter().map(|pod| text(pod, "/metadata/name")).collect();
    let first = holder(scope).await?;
    let Some(second) = names.iter().find(|name| **name != first).filter(|_| names.contains(&first)) else {
        crate::fail!("the lease is held by {first:?}, and there are {names:?}")
    };

    service.change(TEMPLATE).await?;
    wait::until("the first pod replaced", WITHIN, async || {
        let now = service.pods().await?;
        let same = before.iter().filter(|pod| now.iter().any(|it| it.uid == pod.uid)).count();
        ensure!(same < before.len(), "all pods are the same");
        Ok(())
    })
    .await?;
    // Stopped first, or it would free the lease on its way out.
    let since = Instant::now();
    cluster.switch(&["signal", &format!("{OPERATOR_NAMESPACE}/{first}"), "STOP"]).await?;
    let delete = ["delete", "pod", &first, "--namespace", OPERATOR_NAMESPACE, "--grace-period=0", "--force"];
    cluster.kubectl(&delete).await?;
    let taken = wait::until(&format!("{second} at work"), TAKEN_OVER_WITHIN, async || {
        let now = holder(scope).await?;
        ensure!(now != first, "{now} holds the lease");
        Ok(now)
    })
    .await?;
    let took_over = since.elapsed().as_secs_f64();
    service.until_ready(ROLLS_WITHIN).await?;
    let recovered = since.elapsed();
    all_replaced(&service, &before).await?;
    client.until_more(WRITES, WITHIN).await?;
    let report = client.stop().await?;
    let (whom, place) = (Whom::Operator, "roll".to_owned());
    let recovery = Recovery { fault: "forced", whom, place, delayed: false, recovered, report };
    println!("        {recovery}\n        {taken} took over from {first} after {took_over:.1} s");
    recoveries.add(recovery);
    Ok(())
}

/// Who holds the lease: the name of a pod.
async fn holder(scope: &Scope) -> Result<String> {
    let lease = scope.cluster.get(&["lease", LEASE, "--namespace", OPERATOR_NAMESPACE]).await?;
    Ok(text(&lease, "/spec/holderIdentity"))
}
