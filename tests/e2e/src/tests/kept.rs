//! Volumes outlive their resource. A new one of the same name takes them only if it names their service.

use std::time::Duration;

use crate::cluster::{condition, items, text};
use crate::forward::Forward;
use crate::scope::Scope;
use crate::service::{CLIENT_PORT, READY_WITHIN, Service};
use crate::unary::Unary;
use crate::{Result, ensure, wait};

const REFUSED_WITHIN: Duration = Duration::from_secs(40);

pub async fn run(scope: &Scope) -> Result {
    let service = Service::start(scope, "kv", 3).await?;
    let id = text(&service.resource().await?, "/status/serviceId");
    let version = connect(&service).await?.put("colour", "blue").await?;
    ensure!(version == 1, "the first put gives version {version}");

    service.delete().await?;
    let claims = scope.get(&["persistentvolumeclaims", "--selector", &service.selector()]).await?;
    ensure!(items(&claims).len() == 3, "{} claims of three are kept", items(&claims).len());

    // Admitted, and refused by the operator: that must not keep another one from its birth.
    service.change("").await?;
    let other = Service::apply(scope, "other", 1, "").await?;
    wait::until("the refusal over kept volumes", REFUSED_WITHIN, async || {
        let resource = service.resource().await?;
        let ready = condition(&resource, "Ready").cloned().unwrap_or_default();
        let degraded = condition(&resource, "Degraded").cloned().unwrap_or_default();
        ensure!(degraded["status"] == "True" && degraded["reason"] == "VolumesFromAnotherService", "{ready}");
        let message = text(&ready, "/message");
        for part in [&format!("spec.serviceId: \"{id}\""), "to adopt it", "to discard its data", "data-kv-0"] {
            ensure!(message.contains(part), "the message has no {part:?}: {message}");
        }
        Ok(())
    })
    .await?;
    other.until_ready(READY_WITHIN).await?;
    // Nothing runs on them meanwhile: their replicas would elect a leader and serve clients.
    let pods: Vec<_> = service.pods().await?.into_iter().map(|pod| pod.name).collect();
    ensure!(pods.is_empty(), "over kept volumes there are {pods:?}");
    let refused = service.resource().await?;
    ensure!(refused["status"]["genesis"].is_null(), "a genesis over kept volumes: {}", refused["status"]);

    service.change(&format!("  serviceId: \"{id}\"")).await?;
    service.until_ready(READY_WITHIN).await?;
    let adopted = text(&service.resource().await?, "/status/serviceId");
    ensure!(adopted == id, "service {adopted} instead of {id}");
    let value = connect(&service).await?.get("colour").await?;
    ensure!(value == "blue", "the kept data says {value:?}");
    Ok(())
}

/// A connection of its own each time: the pods change.
async fn connect(service: &Service) -> Result<Connected> {
    let target = format!("service/{}", service.name);
    let forward = Forward::open(&service.scope.cluster, &service.scope.namespace, &target, CLIENT_PORT).await?;
    let unary = Unary::connect(&forward.address).await?;
    Ok(Connected { unary, _forward: forward })
}

struct Connected {
    unary: Unary,
    _forward: Forward,
}

impl std::ops::Deref for Connected {
    type Target = Unary;
    fn deref(&self) -> &Unary {
        &self.unary
    }
}

impl std::ops::DerefMut for Connected {
    fn deref_mut(&mut self) -> &mut Unary {
        &mut self.unary
    }
}
