//! The resource is edited while the operator is in the middle of something: what was written last is what comes out.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::faults::replaced;
use super::roll::ROLLS_WITHIN;
use crate::client_pod::ClientPod;
use crate::cluster::{Node, items, text};
use crate::recovery::{Recoveries, Recovery, Whom};
use crate::scope::Scope;
use crate::service::{Pod, Service};
use crate::{Result, ensure, wait};

const WITHIN: Duration = Duration::from_secs(60);
const WRITES: u64 = 100;

pub async fn run(scope: &Scope, recoveries: &mut Recoveries) -> Result {
    let service = Service::start(scope, "kv", 3).await?;
    let node = &scope.cluster.nodes().await?[0];
    recoveries.add(roll(&service, node).await?);
    recoveries.add(replacement(&service, node).await?);
    Ok(())
}

/// A second and a third template while pods are on their way to the first one.
async fn roll(service: &Service, node: &Node) -> Result<Recovery> {
    let client = ClientPod::start(service, "load-roll", node).await?;
    let before = service.pods().await?;
    let mut watch = Watch::default();
    let since = Instant::now();
    for (level, others) in [("warn", 1), ("debug", 2)] {
        edit(service, level).await?;
        wait::until(&format!("{others} pods replaced"), WITHIN, async || {
            let now = watch.look(service).await?;
            let replaced = now.iter().filter(|pod| before.iter().all(|old| old.uid != pod.uid)).count();
            ensure!(replaced >= others, "only {replaced}");
            Ok(())
        })
        .await?;
    }
    edit(service, "error").await?;
    wait::until("the last template everywhere", ROLLS_WITHIN, async || {
        watch.look(service).await?;
        all_log(service, "error").await?;
        service.is_ready().await
    })
    .await?;
    let recovered = since.elapsed();
    ensure!(watch.down.len() <= 1, "several pods were down at a time: {:?}", watch.down);
    finish(client, "roll", recovered).await
}

/// Another template while a lost replica is being replaced.
async fn replacement(service: &Service, node: &Node) -> Result<Recovery> {
    let client = ClientPod::start(service, "load-disk-lost", node).await?;
    let before = service.status("kv-2").await?;
    let since = Instant::now();
    service.scope.kubectl(&["delete", "persistentvolumeclaim", "data-kv-2", "--wait=false"]).await?;
    service.scope.kubectl(&["delete", "pod", "kv-2", "--wait=false"]).await?;
    let step = wait::until("a replacement under way", WITHIN, async || {
        let step = text(&service.resource().await?, "/status/operation/step");
        ensure!(!step.is_empty(), "there is none");
        Ok(step)
    })
    .await?;
    edit(service, "info").await?;
    let mut watch = Watch::default();
    wait::until("the new replica a voter, and the template everywhere", ROLLS_WITHIN, async || {
        watch.look(service).await?;
        all_log(service, "info").await?;
        service.is_ready().await?;
        replaced(service, &before, &service.status("kv-2").await?).await
    })
    .await?;
    let recovered = since.elapsed();
    ensure!(watch.down.len() <= 1, "several pods were down at a time: {:?}", watch.down);
    println!("        edited at step {step} of the replacement");
    finish(client, "disk lost", recovered).await
}

async fn edit(service: &Service, level: &str) -> Result {
    service.change(&format!("  logLevel: {level}\n")).await
}

async fn finish(client: ClientPod, place: &str, recovered: Duration) -> Result<Recovery> {
    client.until_more(WRITES, WITHIN).await?;
    let report = client.stop().await?;
    let (fault, place) = ("edited", place.to_owned());
    let recovery = Recovery { fault, whom: Whom::Resource, place, delayed: false, recovered, report };
    println!("        {recovery}");
    Ok(recovery)
}

/// Fails unless every pod is of the template with this log level.
async fn all_log(service: &Service, level: &str) -> Result {
    let argument = format!("--log-level={level}");
    let pods = service.scope.get(&["pods", "--selector", &service.selector()]).await?;
    for pod in items(&pods) {
        let arguments = pod["spec"]["containers"][0]["args"].as_array().cloned().unwrap_or_default();
        ensure!(arguments.contains(&argument.as_str().into()), "{} is not of it", text(pod, "/metadata/name"));
    }
    Ok(())
}

/// The most pods that were seen to be down at a time.
#[derive(Debug, Default)]
struct Watch {
    down: BTreeSet<String>,
}

impl Watch {
    /// Looks, and gives the pods that there are.
    async fn look(&mut self, service: &Service) -> Result<Vec<Pod>> {
        let pods = service.pods().await?;
        let ready = |name: &String| pods.iter().any(|pod| pod.name == *name && pod.ready);
        let all = (0..service.replicas).map(|ordinal| format!("{}-{ordinal}", service.name));
        let down: BTreeSet<_> = all.filter(|name| !ready(name)).collect();
        if down.len() > self.down.len() {
            self.down = down;
        }
        Ok(pods)
    }
}
