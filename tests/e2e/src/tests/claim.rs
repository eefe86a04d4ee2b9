//! A claim that is deleted under its pod lives as long as that pod: the operator must not be who ends it.

use std::time::Duration;

use super::roll::TEMPLATE;
use crate::cluster::text;
use crate::scope::Scope;
use crate::service::{Pod, Service};
use crate::{Result, ensure, wait};

const WITHIN: Duration = Duration::from_secs(40);

pub async fn run(scope: &Scope) -> Result {
    let service = Service::start(scope, "kv", 3).await?;
    let before = service.pods().await?;
    scope.kubectl(&["delete", "persistentvolumeclaim", "data-kv-2", "--wait=false"]).await?;
    refused(&service, "VolumeBeingDeleted", "leave pod kv-2 running").await?;

    let revision =
        async || -> Result<String> { Ok(text(&scope.get(&["statefulset", "kv"]).await?, "/status/updateRevision")) };
    let old = revision().await?;
    service.change(TEMPLATE).await?;
    wait::until("the changed template", WITHIN, async || {
        ensure!(revision().await? != old, "it is not there yet");
        Ok(())
    })
    .await?;
    refused(&service, "VolumeBeingDeleted", "no pod is replaced").await?;

    // The choice of a human: without its pod the claim goes, and what comes back is empty and does not vote.
    scope.kubectl(&["delete", "pod", "kv-2", "--wait=false"]).await?;
    refused(&service, "ReplicaLost", "data-kv-2 came up empty").await?;
    let same = |pod: &&Pod| before.iter().any(|old| old.uid == pod.uid);
    let now = service.pods().await?;
    let kept: Vec<_> = now.iter().filter(same).map(|pod| pod.name.as_str()).collect();
    ensure!(kept == ["kv-0", "kv-1"], "only {kept:?} are the pods that they were");
    let (available, _, message) = service.condition("Available").await?;
    ensure!(available == "True", "not available: {message}");
    Ok(())
}

async fn refused(service: &Service, reason: &str, part: &str) -> Result {
    wait::until(&format!("refusal {reason}"), WITHIN, async || {
        let (status, found, message) = service.condition("Degraded").await?;
        ensure!(status == "True" && found == reason, "Degraded is {status} ({found}): {message}");
        ensure!(message.contains(part), "no {part:?} in {message:?}");
        Ok(())
    })
    .await
}
