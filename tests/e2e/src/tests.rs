//! The tests, in the order in which they run, and what comes before and after all of them.

mod catch_up;
mod faults;
mod invalid;
mod kept;
mod quiet;
mod ready;
mod unary;

use std::fmt;
use std::time::Duration;

use futures::future::LocalBoxFuture;

use crate::cluster::{Cluster, IMAGE, OPERATOR_NAMESPACE};
use crate::recovery::{Fault, Recoveries};
use crate::scope::Scope;
use crate::{Result, wait};

/// From a node's power-on until Kubernetes calls it ready.
const NODE_READY_WITHIN: Duration = Duration::from_secs(30);

/// A test.
pub struct Test {
    /// Its name, and that of its namespace after `e2e-`.
    pub name: &'static str,
    /// What it shows.
    pub shows: &'static str,
    /// The test itself.
    pub run: for<'a> fn(&'a Scope, &'a mut Recoveries) -> LocalBoxFuture<'a, Result>,
}

impl fmt::Debug for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// All of them.
pub const TESTS: &[Test] = &[
    Test {
        name: "ready",
        shows: "a resource applied with kubectl becomes Ready, and the command line works in a pod",
        run: |scope, _| Box::pin(ready::run(scope)),
    },
    Test {
        name: "quiet",
        shows: "a converged service is left alone: for a minute, no API write but to Leases",
        run: |scope, _| Box::pin(quiet::run(scope)),
    },
    Test {
        name: "unary",
        shows: "100 plain unary puts through the Service and 100 through a port-forward, without error",
        run: |scope, _| Box::pin(unary::run(scope)),
    },
    Test {
        name: "invalid",
        shows: "resources that make no sense are refused with what to do instead",
        run: |scope, _| Box::pin(invalid::run(scope)),
    },
    Test {
        name: "kept",
        shows: "kept volumes: a new resource says what can be chosen, disturbs no other one, and adopts them by id",
        run: |scope, _| Box::pin(kept::run(scope)),
    },
    Test {
        name: "catch-up",
        shows: "a replica that is cut off from the leader catches up from a follower, by the log",
        run: |scope, _| Box::pin(catch_up::run(scope)),
    },
    Test {
        name: "deleted",
        shows: "each pod and then the leader deleted while a client writes: nothing lost, nothing twice, no error",
        run: |scope, recoveries| Box::pin(faults::run(scope, Fault::Deleted, recoveries)),
    },
    Test {
        name: "killed",
        shows: "the same by SIGKILL of the process",
        run: |scope, recoveries| Box::pin(faults::run(scope, Fault::Killed, recoveries)),
    },
    Test {
        name: "power-cut",
        shows: "the same by a power cut of the pod's node, and its return",
        run: |scope, recoveries| Box::pin(faults::run(scope, Fault::PowerCut, recoveries)),
    },
];

/// Installs the definition and the operator, as the README says.
pub async fn install(cluster: &Cluster) -> Result {
    let chart = |name: &str| cluster.repository.join("charts").join(name).display().to_string();
    let (repository, tag) = IMAGE.rsplit_once(':').expect("the image has a tag");
    let values = [format!("image.repository={repository}"), format!("image.tag={tag}")];
    cluster.helm(&["upgrade", "--install", "lockstep-crds", &chart("lockstep-crds"), "--wait"]).await?;
    cluster
        .helm(&[
            "upgrade",
            "--install",
            "lockstep",
            &chart("lockstep"),
            "--namespace",
            OPERATOR_NAMESPACE,
            "--create-namespace",
            "--set",
            &values[0],
            "--set",
            &values[1],
            "--set",
            "image.pullPolicy=Never",
            "--wait",
            "--timeout",
            "60s",
        ])
        .await
        .map(drop)
}

/// Undoes every switch: all nodes on, all links there.
pub async fn restore(cluster: &Cluster) -> Result {
    cluster.switch(&["unblock-all"]).await?;
    for node in cluster.nodes().await? {
        let number = node.number.to_string();
        if cluster.switch(&["node", "pid", &number]).await.is_err() {
            cluster.switch(&["node", "start", &number]).await?;
        }
        wait::until(&format!("node {} ready", node.name), NODE_READY_WITHIN, async || {
            cluster.node_is_ready(&node, true).await
        })
        .await?;
    }
    Ok(())
}
