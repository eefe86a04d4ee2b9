//! A node that never comes back takes its volumes with it: without `replaceAfter` the resource says what can be done, with it a
//! new replica comes up elsewhere.

use std::time::{Duration, Instant};

use crate::client_pod::ClientPod;
use crate::cluster::{OPERATOR_NAMESPACE, items, text};
use crate::failure::Failure;
use crate::scope::Scope;
use crate::service::Service;
use crate::{Result, ensure, wait};

/// How long a replica may be away with its node.
const AFTER: &str = "20s";
const REPLACED_WITHIN: Duration = Duration::from_secs(150);
const WITHIN: Duration = Duration::from_secs(60);
const WRITES: u64 = 100;

pub async fn run(scope: &Scope) -> Result {
    let service = Service::start(scope, "kv", 3).await?;
    let operators = scope.cluster.get(&["pods", "--namespace", OPERATOR_NAMESPACE]).await?;
    let with_operator: Vec<_> = items(&operators).iter().map(|pod| text(pod, "/spec/nodeName")).collect();
    let pod = service.pods().await?.into_iter().find(|pod| !with_operator.contains(&pod.node));
    let pod = pod.ok_or_else(|| Failure("every replica is on the operator's node".to_owned()))?;
    let (lost, others): (Vec<_>, Vec<_>) =
        scope.cluster.nodes().await?.into_iter().partition(|node| node.name == pod.node);
    let before = service.status(&pod.name).await?;
    let client = ClientPod::start(&service, "load", &others[0]).await?;
    client.until_more(WRITES, WITHIN).await?;

    let start = Instant::now();
    scope.cluster.switch(&["node", "kill", &lost[0].number.to_string()]).await?;
    wait::until("the way out in the condition", WITHIN, async || {
        let (status, reason, message) = service.condition("Degraded").await?;
        let told = message.contains("is not ready; if that is for good, set spec.storage.replaceAfter");
        ensure!(status == "True" && told, "Degraded is {status} ({reason}): {message}");
        Ok(())
    })
    .await?;
    let set = format!(r#"{{"spec":{{"storage":{{"replaceAfter":"{AFTER}"}}}}}}"#);
    scope.kubectl(&["patch", "replicatedservice", "kv", "--type", "merge", "--patch", &set]).await?;
    wait::until(&format!("{} elsewhere", pod.name), REPLACED_WITHIN, async || {
        let now = service.pods().await?.into_iter().find(|now| now.name == pod.name);
        ensure!(now.is_some_and(|now| now.uid != pod.uid && now.node != pod.node), "it is not there");
        service.is_ready().await
    })
    .await?;
    println!("        {} replaced {:.1} s after its node was lost", pod.name, start.elapsed().as_secs_f64());

    let now = service.status(&pod.name).await?;
    let members = now.membership.as_ref().map(|known| known.configuration.clone());
    let voters =
        members.as_ref().map(|members| members.voters().values().copied().collect::<Vec<_>>()).unwrap_or_default();
    ensure!(now.replica != before.replica && voters.contains(&now.replica), "{} does not vote", now.replica);
    ensure!(voters.len() == 3 && !voters.contains(&before.replica), "voters are {voters:?}");
    client.until_more(WRITES, WITHIN).await?;
    let report = client.stop().await?;
    let (gap, writes) = (report.longest_gap_ms, report.acknowledged);
    println!("        longest gap {gap} ms, {writes} acknowledged, {} unknown", report.unknown);
    Ok(())
}
