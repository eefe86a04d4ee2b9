//! The operator may die at any moment: what it was doing is in the resource, and its next process goes on from there.

use std::time::Duration;

use super::roll::{ROLLS_WITHIN, TEMPLATE, all_replaced};
use crate::client_pod::ClientPod;
use crate::cluster::{OPERATOR_NAMESPACE, items, number, text};
use crate::failure::Failure;
use crate::scope::Scope;
use crate::service::Service;
use crate::{Result, ensure, wait};

/// Until the next process is there and done: Kubernetes starts one that died before only after 10 s.
const WITHIN: Duration = Duration::from_secs(90);
const WRITES: u64 = 100;

pub async fn run(scope: &Scope) -> Result {
    let service = Service::apply(scope, "kv", 3, "").await?;
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

    let node = &scope.cluster.nodes().await?[0];
    let client = ClientPod::start(&service, "load", node).await?;
    let before = service.pods().await?;
    service.change(TEMPLATE).await?;
    wait::until("the first pod replaced", WITHIN, async || {
        let now = service.pods().await?;
        let same = before.iter().filter(|pod| now.iter().any(|it| it.uid == pod.uid)).count();
        ensure!(same < before.len(), "all pods are the same");
        Ok(())
    })
    .await?;
    kill(scope).await?;
    service.until_ready(ROLLS_WITHIN).await?;
    all_replaced(&service, &before).await?;
    client.until_more(WRITES, WITHIN).await?;
    client.stop().await.map(drop)
}

/// SIGKILL, and not before the process is up: waits until Kubernetes has noticed.
async fn kill(scope: &Scope) -> Result {
    let operator = async || -> Result<_> {
        let pods = scope.cluster.get(&["pods", "--namespace", OPERATOR_NAMESPACE]).await?;
        let pod = items(&pods).first().cloned().ok_or_else(|| Failure("there is no operator".to_owned()))?;
        Ok((text(&pod, "/metadata/name"), number(&pod, "/status/containerStatuses/0/restartCount")))
    };
    let (name, restarts) = operator().await?;
    scope.cluster.switch(&["signal", &format!("{OPERATOR_NAMESPACE}/{name}"), "KILL"]).await?;
    wait::until("another process of the operator", WITHIN, async || {
        let (_, now) = operator().await?;
        ensure!(now > restarts, "{name} was not started again");
        Ok(())
    })
    .await
}
