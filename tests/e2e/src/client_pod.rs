//! The client: a pod of the same image that runs `lockstep load`, writes without pause until it is told to stop, and then
//! counts: the version of each key must be the writes that were acknowledged and those that resolving found to be executed.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::cluster::{IMAGE, Node, text};
use crate::failure::Failure;
use crate::scope::Scope;
use crate::service::Service;
use crate::{Result, ensure, fail, wait};

/// From the pod's creation to its first acknowledged write.
const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// Unknown outcomes are resolved and versions read within 30 s, else the load gives up.
const REPORTS_WITHIN: Duration = Duration::from_secs(45);
/// An acknowledgement younger than this means that writes go on.
const ALIVE: Duration = Duration::from_millis(500);

/// A pod that writes.
#[derive(Debug)]
pub struct ClientPod {
    scope: Scope,
    name: String,
}

/// What the load says at the end.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes whose outcome was not known when their time was up.
    pub unknown: u64,
    /// Of those, the ones that stayed unknown.
    pub unresolved: u64,
    /// Writes that failed.
    pub errors: u64,
    /// The last error.
    pub last_error: Option<String>,
    /// The longest time without an acknowledgement.
    pub longest_gap_ms: u64,
    /// Whether the versions add up.
    pub verified: bool,
    /// What does not.
    pub mismatches: Vec<String>,
}

impl Report {
    /// Of a client outside of the cluster that kept its own account, and found it right.
    pub fn of_ledger(acknowledged: u64, unknown: u64, longest_gap_ms: u64) -> Self {
        Report {
            acknowledged,
            unknown,
            unresolved: 0,
            errors: 0,
            last_error: None,
            longest_gap_ms,
            verified: true,
            mismatches: Vec::new(),
        }
    }
}

/// What the load says each second.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Progress {
    /// Writes that were acknowledged so far.
    pub acknowledged: u64,
    /// How long ago the last of them was.
    current_gap_ms: u64,
}

impl Progress {
    fn is_alive(&self) -> bool {
        self.current_gap_ms < ALIVE.as_millis() as u64
    }
}

impl ClientPod {
    /// Starts one on `node`, and waits for its first acknowledged writes. Its name must be new in the namespace.
    pub async fn start(service: &Service, name: &str, node: &Node) -> Result<Self> {
        // Not all that the service can take: the tests look at what happens, on few processors, not at how fast.
        Self::start_with(service, name, node, &["--concurrency", "4", "--rate", "400"]).await
    }

    /// The same with these options of `lockstep load`.
    pub async fn start_with(service: &Service, name: &str, node: &Node, load: &[&str]) -> Result<Self> {
        let client = ClientPod { scope: service.scope.clone(), name: name.to_owned() };
        let endpoints = format!("{},{}", service.peers_endpoint(), service.endpoint());
        let command = ["load", "--endpoints", &endpoints, "--prefix", &format!("{name}/"), "--progress", "json"];
        let arguments = [&command[..], load].concat();
        let node = format!("  nodeSelector: {{kubernetes.io/hostname: {}}}\n", node.name);
        let manifest = pod(name, IMAGE, &arguments, &node);
        client.scope.apply(&manifest).await?;
        wait::until(&format!("{name} writes"), STARTS_WITHIN, async || client.writes_beyond(0).await).await?;
        Ok(client)
    }

    /// What the load said last.
    pub async fn progress(&self) -> Result<Progress> {
        let said = self.scope.kubectl(&["logs", &self.name, "--tail", "1"]).await?;
        serde_json::from_str(&said).map_err(|_| Failure(format!("no progress but {said:?}")))
    }

    /// Fails unless more than `count` writes are acknowledged and the last of them just now.
    pub async fn writes_beyond(&self, count: u64) -> Result<Progress> {
        let progress = self.progress().await?;
        ensure!(progress.acknowledged > count && progress.is_alive(), "only {progress:?}");
        Ok(progress)
    }

    /// Waits until at least `count` more writes are acknowledged than now.
    pub async fn until_more(&self, count: u64, within: Duration) -> Result<Progress> {
        let before = wait::until("the load's progress", within, async || self.progress().await).await?.acknowledged;
        wait::until(&format!("{count} more writes"), within, async || self.writes_beyond(before + count).await).await
    }

    /// Stops it by SIGTERM, and gives its report, which must say that each write was executed exactly once.
    pub async fn stop(self) -> Result<Report> {
        let name = format!("{}/{}", self.scope.namespace, self.name);
        self.scope.cluster.switch(&["signal", &name, "TERM"]).await?;
        wait::until(&format!("the end of {}", self.name), REPORTS_WITHIN, async || {
            let pod = self.scope.get(&["pod", &self.name]).await?;
            let phase = text(&pod, "/status/phase");
            ensure!(phase == "Succeeded" || phase == "Failed", "it is {phase}");
            Ok(())
        })
        .await?;
        let said = self.scope.kubectl(&["logs", &self.name]).await?;
        // The last line that is a report; progress and errors stand around it.
        let Some(report) = said.lines().rev().find_map(|line| serde_json::from_str::<Report>(line).ok()) else {
            fail!("{} ends without a report: {}", self.name, said.lines().last().unwrap_or_default())
        };
        let Report { verified, mismatches, errors, last_error, unresolved, .. } = &report;
        ensure!(*verified, "a write was lost or executed twice: {mismatches:?} in {report:?}");
        ensure!(*errors == 0, "the client saw {errors} errors, the last one: {last_error:?}");
        ensure!(*unresolved == 0, "{unresolved} writes stay unknown");
        Ok(report)
    }

    /// Runs the command line in the pod.
    pub async fn lockstep(&self, arguments: &[&str]) -> Result<String> {
        self.scope.kubectl(&[&["exec", &self.name, "--", "/bin/lockstep"], arguments].concat()).await
    }

    /// Runs it and gives the JSON that it prints.
    pub async fn lockstep_json(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.lockstep(&[arguments, &["--output", "json"]].concat()).await?)?)
    }
}

/// A pod that runs a program once, and passes Pod Security *restricted*.
pub fn pod(name: &str, image: &str, arguments: &[&str], more: &str) -> String {
    let arguments = Value::from(arguments);
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  restartPolicy: Never
  enableServiceLinks: false
  automountServiceAccountToken: false
  securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
  - name: client
    image: {image}
    imagePullPolicy: Never
    args: {arguments}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {{drop: [ALL]}}
{more}"
    )
}
