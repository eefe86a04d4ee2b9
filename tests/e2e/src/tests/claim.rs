//! A claim that is deleted under its pod lives as long as that pod: the operator must not be who ends it.

use std::time::Duration;

use super::roll::{ROLLS_WITHIN, TEMPLATE};
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

    let same = |pod: &&Pod| before.iter().any(|old| old.uid == pod.uid);
    let now = service.pods().await?;
    let kept = now.iter().filter(same).count();
    ensure!(kept == 3, "only {kept} are the pods that they were");

    // The choice of a human: without its pod the claim goes. What comes back is empty, joins as another replica, and the roll
    // that waited goes on.
    let lost = service.status("kv-2").await?.replica;
    scope.kubectl(&["delete", "pod", "kv-2", "--wait=false"]).await?;
    wait::until("another replica in the place of the lost one", WITHIN, async || {
        let now = service.status("kv-2").await?;
        ensure!(now.replica != lost && now.is_ready(), "not yet: {:?}", now.not_ready);
        Ok(())
    })
    .await?;
    service.until_ready(ROLLS_WITHIN).await?;
    let left = service.pods().await?.iter().filter(same).count();
    ensure!(left == 0, "{left} pods are of the old template");
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
