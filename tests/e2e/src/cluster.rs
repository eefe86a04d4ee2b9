//! The cluster under test, by the tools of a user (kubectl, helm) and by the switches of `tests/cluster` for its faults.

use std::env;
use std::path::PathBuf;

use serde_json::Value;

use crate::failure::Failure;
use crate::process::{self, Said};
use crate::{Result, ensure};

/// The namespace of the operator.
pub const OPERATOR_NAMESPACE: &str = "lockstep-system";
/// The image that `tests/cluster/build-image` makes.
pub const IMAGE: &str = "localhost/lockstep:dev";

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Cluster {
    kubectl: String,
    helm: String,
    switches: String,
    /// What the API server writes down about changes.
    pub audit_log: PathBuf,
    /// Tells one build of the image from another.
    pub image_hash: String,
    /// The top of the repository.
    pub repository: PathBuf,
}

/// A worker node by the number that `tests/cluster` knows it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// From 1.
    pub number: usize,
    /// Its name in Kubernetes.
    pub name: String,
}

impl Cluster {
    /// As `cluster env` says.
    pub fn from_environment() -> Result<Self> {
        let variable = |name: &str| {
            env::var(name).map_err(|_| Failure(format!("{name} is not set: start the tests with tests/e2e/run")))
        };
        variable("KUBECONFIG")?;
        Ok(Cluster {
            kubectl: variable("KUBECTL")?,
            helm: variable("HELM")?,
            switches: variable("LOCKSTEP_CLUSTER")?,
            audit_log: variable("LOCKSTEP_AUDIT_LOG")?.into(),
            image_hash: variable("LOCKSTEP_IMAGE_HASH")?,
            repository: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")),
        })
    }

    /// Where kubectl is.
    pub fn kubectl_path(&self) -> &str {
        &self.kubectl
    }

    /// Runs kubectl, which must succeed.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        process::succeed(&self.kubectl, arguments, None).await
    }

    /// Runs kubectl, which may fail.
    pub async fn try_kubectl(&self, arguments: &[&str], input: Option<&str>) -> Result<Said> {
        process::run(&self.kubectl, arguments, input).await
    }

    /// What `kubectl get … --output json` answers.
    pub async fn get(&self, arguments: &[&str]) -> Result<Value> {
        let arguments = [&["get", "--output", "json"], arguments].concat();
        Ok(serde_json::from_str(&self.kubectl(&arguments).await?)?)
    }

    /// Applies a manifest, which must be accepted.
    pub async fn apply(&self, manifest: &str) -> Result {
        process::succeed(&self.kubectl, &["apply", "--filename", "-"], Some(manifest)).await.map(drop)
    }

    /// Runs helm, which must succeed.
    pub async fn helm(&self, arguments: &[&str]) -> Result<String> {
        process::succeed(&self.helm, arguments, None).await
    }

    /// Throws a switch of `tests/cluster`.
    pub async fn switch(&self, arguments: &[&str]) -> Result<String> {
        process::succeed(&self.switches, arguments, None).await
    }

    /// The worker nodes, in the order of their numbers.
    pub async fn nodes(&self) -> Result<Vec<Node>> {
        let list = self.get(&["nodes", "--selector", "!node-role.kubernetes.io/control-plane"]).await?;
        let mut names: Vec<String> = items(&list).iter().map(|node| text(node, "/metadata/name")).collect();
        names.sort();
        ensure!(names.len() == 3, "expected three worker nodes, found {names:?}");
        Ok(names.into_iter().zip(1..).map(|(name, number)| Node { number, name }).collect())
    }

    /// Fails while a node is not as wanted.
    pub async fn node_is_ready(&self, node: &Node, wanted: bool) -> Result {
        let found = self.get(&["node", &node.name]).await?;
        let ready = condition(&found, "Ready").is_some_and(|ready| ready["status"] == "True");
        ensure!(ready == wanted, "node {} has Ready {ready}", node.name);
        Ok(())
    }
}

/// The items of a list.
pub fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

/// The text at a JSON pointer; empty if there is none.
pub fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The number at a JSON pointer; 0 if there is none.
pub fn number(object: &Value, pointer: &str) -> u64 {
    object.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

/// A condition in the status of an object.
pub fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_)
}
