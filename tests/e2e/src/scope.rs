//! The namespace of one test: Pod Security *restricted* enforced, gone at the end, described if the test failed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::fs;

use crate::cluster::{Cluster, OPERATOR_NAMESPACE, items, text};
use crate::process::Said;
use crate::{Result, ensure, wait};

/// A replica ends within seconds of its SIGTERM; its volume is removed by a pod of its own.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// A namespace.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The cluster that it is in.
    pub cluster: Cluster,
    /// Its name.
    pub namespace: String,
}

impl Scope {
    /// The namespace of a test. Does not make it.
    pub fn new(cluster: &Cluster, test: &str) -> Self {
        Scope { cluster: cluster.clone(), namespace: format!("e2e-{test}") }
    }

    /// Makes the namespace, after removing one that an earlier run has kept.
    pub async fn create(&self) -> Result {
        self.remove().await?;
        self.until_gone().await?;
        let namespace = &self.namespace;
        let manifest = format!(
            "apiVersion: v1
kind: Namespace
metadata:
  name: {namespace}
  labels: {{pod-security.kubernetes.io/enforce: restricted}}
"
        );
        self.cluster.apply(&manifest).await
    }

    /// Begins to remove the namespace with all that is in it.
    pub async fn remove(&self) -> Result {
        let arguments = ["delete", "namespace", &self.namespace, "--wait=false", "--ignore-not-found"];
        self.cluster.kubectl(&arguments).await.map(drop)
    }

    /// Waits until the namespace is gone.
    pub async fn until_gone(&self) -> Result {
        wait::until(&format!("namespace {} gone", self.namespace), GONE_WITHIN, async || {
            let found = self.cluster.kubectl(&["get", "namespace", &self.namespace, "--ignore-not-found"]).await?;
            ensure!(found.trim().is_empty(), "it is still there: {}", found.trim());
            Ok(())
        })
        .await
    }

    /// What `kubectl get … --output json` answers in this namespace.
    pub async fn get(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        self.cluster.get(&[&["--namespace", &self.namespace], arguments].concat()).await
    }

    /// Runs kubectl in this namespace; it must succeed.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["--namespace", &self.namespace], arguments].concat()).await
    }

    /// Applies a manifest in this namespace; it must be accepted.
    pub async fn apply(&self, manifest: &str) -> Result {
        let said = self.try_apply(manifest).await?;
        ensure!(said.ok, "kubectl apply fails: {}", said.err.trim());
        Ok(())
    }

    /// Applies a manifest in this namespace, which may be refused.
    pub async fn try_apply(&self, manifest: &str) -> Result<Said> {
        self.cluster.try_kubectl(&["apply", "--namespace", &self.namespace, "--filename", "-"], Some(manifest)).await
    }

    /// Writes down all that could explain a failure, and gives the folder and the few lines that say most.
    pub async fn describe(&self) -> Result<(PathBuf, String)> {
        let folder = self.cluster.repository.join("target/e2e-logs").join(&self.namespace);
        let _ = fs::remove_dir_all(&folder).await;
        fs::create_dir_all(&folder).await?;
        let here = ["--namespace", &self.namespace];
        let every = "replicatedservices,statefulsets,pods,services,persistentvolumeclaims,poddisruptionbudgets,leases";
        let wide = self.say(&[&["get", "replicatedservices,pods", "--output", "wide"][..], &here].concat()).await;
        for (file, arguments) in [
            ("objects.yaml", &["get", every, "--output", "yaml"][..]),
            ("describe.txt", &["describe", "replicatedservices,statefulsets,pods,persistentvolumeclaims"]),
            ("events.txt", &["get", "events", "--sort-by", ".lastTimestamp"]),
        ] {
            fs::write(folder.join(file), self.say(&[arguments, &here].concat()).await).await?;
        }
        fs::write(folder.join("nodes.txt"), self.say(&["get", "nodes,persistentvolumes", "--output", "wide"]).await)
            .await?;
        self.logs(&folder, &self.namespace).await?;
        self.logs(&folder, OPERATOR_NAMESPACE).await?;
        Ok((folder.canonicalize()?, wide))
    }

    async fn logs(&self, folder: &Path, namespace: &str) -> Result {
        for pod in items(&self.cluster.get(&["pods", "--namespace", namespace]).await?) {
            let name = text(pod, "/metadata/name");
            let logs = ["logs", &name, "--namespace", namespace, "--timestamps", "--tail", "5000"];
            fs::write(folder.join(format!("{name}.log")), self.say(&logs).await).await?;
            let previous = self.cluster.try_kubectl(&[&logs[..], &["--previous"]].concat(), None).await?;
            if previous.ok {
                fs::write(folder.join(format!("{name}.previous.log")), previous.out).await?;
            }
        }
        Ok(())
    }

    /// Whatever kubectl says, errors too.
    async fn say(&self, arguments: &[&str]) -> String {
        match self.cluster.try_kubectl(arguments, None).await {
            Ok(said) => said.out + &said.err,
            Err(error) => error.to_string(),
        }
    }
}
