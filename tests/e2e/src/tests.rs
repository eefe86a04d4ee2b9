//! The tests, in the order in which they run, and what comes before and after all of them.

mod all_at_once;
mod bad_image;
mod catch_up;
mod claim;
mod divergence;
mod edited;
mod faults;
mod invalid;
mod kept;
mod namespaced;
mod node_lost;
mod operator;
mod quiet;
mod ready;
mod roll;
mod scale;
mod snapshot;
mod standby;
mod unary;

use std::fmt;
use std::time::Duration;

use futures::future::LocalBoxFuture;

use crate::cluster::{Cluster, IMAGE, OPERATOR_NAMESPACE, items, text};
use crate::recovery::{Fault, Recoveries};
use crate::scope::Scope;
use crate::{Result, ensure, wait};

/// From a node's power-on until Kubernetes calls it ready.
const NODE_READY_WITHIN: Duration = Duration::from_secs(30);

/// Until an operator that is replaced is gone: it stops at SIGTERM.
const OPERATOR_WITHIN: Duration = Duration::from_secs(40);
/// The annotation of the operator's pod that changes with the image.
const BUILD: &str = "image-hash";

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
        name: "claim",
        shows: "a claim that is being deleted under its pod stops a roll, and the refusal says what can be done",
        run: |scope, _| Box::pin(claim::run(scope)),
    },
    Test {
        name: "roll",
        shows: "another template reaches all pods while a client writes: by eviction, the leader last, nothing lost",
        run: |scope, _| Box::pin(roll::run(scope)),
    },
    Test {
        name: "bad-image",
        shows: "an image that is not there stops at the first pod, and the service heals when the resource is corrected",
        run: |scope, _| Box::pin(bad_image::run(scope)),
    },
    Test {
        name: "operator",
        shows: "the operator killed again and again at genesis, roll, replacement and deletion: the next one goes on",
        run: |scope, recoveries| Box::pin(operator::run(scope, recoveries)),
    },
    Test {
        name: "edited",
        shows: "the resource edited in the middle of a roll and of a replacement: the last word wins, one pod at a time",
        run: |scope, recoveries| Box::pin(edited::run(scope, recoveries)),
    },
    Test {
        name: "scale",
        shows: "kubectl scale from 3 to 5 and back while a client writes, the operator killed in the middle of both",
        run: |scope, _| Box::pin(scale::run(scope)),
    },
    Test {
        name: "catch-up",
        shows: "a replica that is cut off from the leader catches up from a follower, by the log",
        run: |scope, _| Box::pin(catch_up::run(scope)),
    },
    Test {
        name: "snapshot",
        shows: "a replica for which the log was cut fetches a snapshot, cut off from the leader in the middle of it",
        run: |scope, recoveries| Box::pin(snapshot::run(scope, recoveries)),
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
    Test {
        name: "volume-destroyed",
        shows: "the volume of a replica and then of the leader destroyed: new replicas come in their place, nothing lost",
        run: |scope, recoveries| Box::pin(faults::run(scope, Fault::VolumeDestroyed, recoveries)),
    },
    Test {
        name: "all-at-once",
        shows: "all replicas killed, deleted, deleted by force and without power at the same moment: all there, once",
        run: |scope, recoveries| Box::pin(all_at_once::run(scope, recoveries)),
    },
    Test {
        name: "standby",
        shows: "of two operators the one at work is lost in the middle of a roll: the other one takes over and ends it",
        run: |scope, recoveries| Box::pin(standby::run(scope, recoveries)),
    },
    Test {
        name: "node-lost",
        shows: "a node that never comes back: the condition says what can be done, and a new replica comes up elsewhere",
        run: |scope, _| Box::pin(node_lost::run(scope)),
    },
    Test {
        name: "divergence",
        shows: "a state that differs is fenced at the block, its key named, and built anew; one that differs again stays fenced",
        run: |scope, _| Box::pin(divergence::run(scope)),
    },
    // The last one, for it takes the operator away from all other namespaces.
    Test {
        name: "namespaced",
        shows: "an operator for one namespace, with rights in that one only, brings a service up and rolls it",
        run: |scope, _| Box::pin(namespaced::run(scope)),
    },
];

/// Installs the definition and the operator, as the README says, or for one namespace alone. An operator of an earlier build or
/// for other namespaces is replaced.
pub async fn install(cluster: &Cluster, namespace: Option<&str>) -> Result {
    install_many(cluster, namespace, 1).await
}

/// The same with so many operators, of which one works at a time.
pub async fn install_many(cluster: &Cluster, namespace: Option<&str>, operators: usize) -> Result {
    let chart = |name: &str| cluster.repository.join("charts").join(name).display().to_string();
    let (repository, tag) = IMAGE.rsplit_once(':').expect("the image has a tag");
    let mut values = vec![
        format!("image.repository={repository}"),
        format!("image.tag={tag}"),
        "image.pullPolicy=Never".to_owned(),
        format!("podAnnotations.{BUILD}={}", cluster.image_hash),
    ];
    // A number, not a text.
    let count = format!("replicaCount={operators}");
    values.extend(namespace.map(|namespace| format!("watchNamespace={namespace}")));
    let definition = chart("lockstep-crds");
    cluster.helm(&["upgrade", "--install", "lockstep-crds", &definition, "--wait"]).await?;
    let chart = chart("lockstep");
    let mut arguments = vec!["upgrade", "--install", "lockstep", &chart, "--namespace", OPERATOR_NAMESPACE];
    arguments.extend(["--create-namespace", "--wait", "--timeout", "60s", "--set", &count]);
    arguments.extend(values.iter().flat_map(|value| ["--set-string", value]));
    cluster.helm(&arguments).await?;
    wait::until("the operator of this build alone", OPERATOR_WITHIN, async || {
        let pods = cluster.get(&["pods", "--namespace", OPERATOR_NAMESPACE]).await?;
        let builds: Vec<_> =
            items(&pods).iter().map(|pod| text(pod, &format!("/metadata/annotations/{BUILD}"))).collect();
        let ours = builds.iter().all(|build| *build == cluster.image_hash);
        ensure!(ours && builds.len() == operators, "pods of builds {builds:?}");
        Ok(())
    })
    .await
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
