//! An image that is not there costs one replica, not the service, and is healed by a correction of the resource.

use std::time::Duration;

use crate::client_pod::ClientPod;
use crate::scope::Scope;
use crate::service::{READY_WITHIN, Service};
use crate::{Result, ensure, wait};

const BAD: &str = "  image: localhost/lockstep:absent\n  imagePullPolicy: Never\n";
const WITHIN: Duration = Duration::from_secs(40);
const WRITES: u64 = 100;

pub async fn run(scope: &Scope) -> Result {
    let service = Service::start(scope, "kv", 3).await?;
    let node = &scope.cluster.nodes().await?[0];
    let client = ClientPod::start(&service, "load", node).await?;
    let before = service.pods().await?;

    service.change(BAD).await?;
    let stuck = wait::until("the bad image told", WITHIN, async || {
        let (status, reason, message) = service.condition("Degraded").await?;
        ensure!(status == "True" && reason == "PodsStuck", "Degraded is {status} ({reason}): {message}");
        ensure!(message.contains("cannot pull image localhost/lockstep:absent"), "it says {message:?}");
        Ok(before.iter().find(|pod| message.contains(&pod.name)).map(|pod| pod.name.clone()).unwrap_or_default())
    })
    .await?;
    let (available, _, message) = service.condition("Available").await?;
    ensure!(available == "True", "not available: {message}");
    client.until_more(WRITES, WITHIN).await?;
    let others = async || -> Result {
        for pod in service.pods().await?.iter().filter(|pod| pod.name != stuck) {
            let same = before.iter().any(|old| old.uid == pod.uid);
            ensure!(same && pod.ready, "{} was touched as well", pod.name);
        }
        Ok(())
    };
    others().await?;

    service.change("").await?;
    service.until_ready(READY_WITHIN).await?;
    // They are of the corrected template: it is what it was.
    others().await?;
    client.until_more(WRITES, WITHIN).await?;
    client.stop().await.map(drop)
}
