//! One `ReplicatedService`, as its user sees it and as its replicas see themselves.

use std::time::Duration;

use futures::future::join_all;
use lockstep_client::{AdminClient, ReplicaStatus, Role};
use serde_json::Value;

use crate::cluster::{condition, items, number, text};
use crate::failure::Failure;
use crate::forward::Forward;
use crate::scope::Scope;
use crate::{Result, ensure, wait};

/// From the resource to all replicas ready, volumes made on the way.
pub const READY_WITHIN: Duration = Duration::from_secs(60);
/// Where clients and admin calls go.
pub const CLIENT_PORT: u16 = 7400;

/// A service of a test.
#[derive(Clone, Debug)]
pub struct Service {
    /// Where it is.
    pub scope: Scope,
    /// Its name.
    pub name: String,
    /// How many replicas it has.
    pub replicas: usize,
}

/// A replica's pod, as Kubernetes sees it.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uid: String,
    /// The name of its node; empty before it has one.
    pub node: String,
    /// Its address; empty before it has one.
    pub ip: String,
    /// How often its container was started again.
    pub restarts: u64,
    /// Whether it is ready and not on its way out.
    pub ready: bool,
}

impl Pod {
    /// As `kubectl get` gives it.
    pub fn read(pod: &Value) -> Self {
        let ready = condition(pod, "Ready").is_some_and(|ready| ready["status"] == "True");
        Pod {
            name: text(pod, "/metadata/name"),
            uid: text(pod, "/metadata/uid"),
            node: text(pod, "/spec/nodeName"),
            ip: text(pod, "/status/podIP"),
            restarts: number(pod, "/status/containerStatuses/0/restartCount"),
            ready: ready && pod["metadata"]["deletionTimestamp"].is_null(),
        }
    }

    /// Whether this is not the process that `before` was.
    pub fn is_another_than(&self, before: &Pod) -> bool {
        self.uid != before.uid || self.restarts > before.restarts
    }
}

/// The resource, as a user would write it. `more` goes into the spec.
pub fn manifest(name: &str, replicas: usize, more: &str) -> String {
    format!(
        "apiVersion: lockstep.dev/v1alpha1
kind: ReplicatedService
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  faultModel: Crash
  stateMachine: {{builtin: KeyValue}}
  storage: {{size: 100Mi}}
{more}"
    )
}

impl Service {
    /// Applies a resource, and does not wait.
    pub async fn apply(scope: &Scope, name: &str, replicas: usize, more: &str) -> Result<Self> {
        let service = Service { scope: scope.clone(), name: name.to_owned(), replicas };
        service.change(more).await?;
        Ok(service)
    }

    /// Applies a resource, and waits until it is ready.
    pub async fn start(scope: &Scope, name: &str, replicas: usize) -> Result<Self> {
        Self::start_with(scope, name, replicas, "").await
    }

    /// The same with `more` in its spec.
    pub async fn start_with(scope: &Scope, name: &str, replicas: usize, more: &str) -> Result<Self> {
        let service = Self::apply(scope, name, replicas, more).await?;
        service.until_ready(READY_WITHIN).await?;
        Ok(service)
    }

    /// Applies the resource again, with `more` in its spec.
    pub async fn change(&self, more: &str) -> Result {
        let manifest = manifest(&self.name, self.replicas, more);
        self.scope.apply(&manifest).await
    }

    /// Deletes the resource, and waits until its pods are gone.
    pub async fn delete(&self) -> Result {
        self.scope.kubectl(&["delete", "replicatedservice", &self.name]).await?;
        wait::until(&format!("the pods of {} gone", self.name), READY_WITHIN, async || {
            let left: Vec<_> = self.pods().await?.into_iter().map(|pod| pod.name).collect();
            ensure!(left.is_empty(), "there are still {left:?}");
            Ok(())
        })
        .await
    }

    /// The resource as it stands.
    pub async fn resource(&self) -> Result<Value> {
        self.scope.get(&["replicatedservice", &self.name]).await
    }

    /// The pods, in the order of their ordinals.
    pub async fn pods(&self) -> Result<Vec<Pod>> {
        let list = self.scope.get(&["pods", "--selector", &self.selector()]).await?;
        Ok(items(&list).iter().map(Pod::read).collect())
    }

    /// Waits until the resource says that it is ready, of the spec as it stands, and the pods say the same.
    pub async fn until_ready(&self, within: Duration) -> Result {
        wait::until(&format!("{} ready", self.name), within, async || self.is_ready().await).await
    }

    /// Fails while the service is not ready, with what is said to be missing.
    pub async fn is_ready(&self) -> Result {
        let pods = self.pods().await?;
        let waiting: Vec<_> = pods.iter().filter(|pod| !pod.ready).map(|pod| pod.name.as_str()).collect();
        ensure!(pods.len() == self.replicas, "{} of {} pods are there", pods.len(), self.replicas);
        ensure!(waiting.is_empty(), "not ready: {waiting:?}");
        let resource = self.resource().await?;
        let ready = condition(&resource, "Ready").cloned().unwrap_or_default();
        ensure!(ready["status"] == "True", "Ready is {} ({}): {}", ready["status"], ready["reason"], ready["message"]);
        let (observed, generation) =
            (number(&resource, "/status/observedGeneration"), number(&resource, "/metadata/generation"));
        ensure!(observed == generation, "the status is of generation {observed}, not {generation}");
        let count = number(&resource, "/status/readyReplicas");
        ensure!(count as usize == self.replicas, "status.readyReplicas is {count}");
        Ok(())
    }

    /// What the replica in a pod says of itself.
    pub async fn status(&self, pod: &str) -> Result<ReplicaStatus> {
        let forward =
            Forward::open(&self.scope.cluster, &self.scope.namespace, &format!("pod/{pod}"), CLIENT_PORT).await?;
        Ok(AdminClient::connect(&forward.address, None)?.status().await?)
    }

    /// What all replicas that answer say, with their pods.
    pub async fn statuses(&self) -> Result<Vec<(Pod, ReplicaStatus)>> {
        let pods = self.pods().await?;
        let answers = join_all(pods.iter().map(|pod| self.status(&pod.name))).await;
        Ok(pods.into_iter().zip(answers).filter_map(|(pod, answer)| Some((pod, answer.ok()?))).collect())
    }

    /// The pod whose replica leads, and what it says.
    pub async fn leader(&self) -> Result<(Pod, ReplicaStatus)> {
        let leads = |found: &(Pod, ReplicaStatus)| found.1.role == Role::Leader;
        let statuses = self.statuses().await?;
        let leader = statuses.into_iter().filter(leads).max_by_key(|(_, status)| status.view);
        leader.ok_or_else(|| Failure(format!("no replica of {} says that it leads", self.name)))
    }

    /// Waits until all replicas have executed the same log.
    pub async fn until_equal(&self, within: Duration) -> Result<Vec<(Pod, ReplicaStatus)>> {
        wait::until(&format!("all replicas of {} equal", self.name), within, async || {
            let statuses = self.statuses().await?;
            ensure!(statuses.len() == self.replicas, "only {} replicas answer", statuses.len());
            let pointers: Vec<_> = statuses.iter().map(|(_, s)| (s.head.get(), s.applied.get(), s.digest)).collect();
            ensure!(pointers.iter().all(|pointer| *pointer == pointers[0]), "(head, applied, digest): {pointers:?}");
            Ok(statuses)
        })
        .await
    }

    /// The status, reason and message of a condition of the resource.
    pub async fn condition(&self, type_: &str) -> Result<(String, String, String)> {
        let found = condition(&self.resource().await?, type_).cloned().unwrap_or_default();
        Ok((text(&found, "/status"), text(&found, "/reason"), text(&found, "/message")))
    }

    /// The pods that events of this reason are about, in the order in which things happened.
    pub async fn events(&self, reason: &str) -> Result<Vec<String>> {
        let list = self.scope.get(&["events.events.k8s.io"]).await?;
        let about = |event: &&Value| text(event, "/regarding/name") == self.name && text(event, "/reason") == reason;
        let mut events: Vec<_> = items(&list)
            .iter()
            .filter(about)
            .map(|event| (text(event, "/eventTime"), text(event, "/related/name")))
            .collect();
        events.sort();
        Ok(events.into_iter().map(|(_, pod)| pod).collect())
    }

    /// Selects the pods.
    pub fn selector(&self) -> String {
        format!("app.kubernetes.io/instance={},app.kubernetes.io/component=replica", self.name)
    }

    /// Where a client in the cluster finds the service.
    pub fn endpoint(&self) -> String {
        format!("{}.{}.svc:{CLIENT_PORT}", self.name, self.scope.namespace)
    }

    /// Where a client in the cluster finds every replica.
    pub fn peers_endpoint(&self) -> String {
        format!("{}-peers.{}.svc:{CLIENT_PORT}", self.name, self.scope.namespace)
    }
}
