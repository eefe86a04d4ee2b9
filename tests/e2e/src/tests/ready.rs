//! The thinnest path: apply, Ready, put, get.

use std::collections::BTreeSet;

use crate::client_pod::ClientPod;
use crate::cluster::{condition, text};
use crate::scope::Scope;
use crate::service::Service;
use crate::{Result, ensure};

pub async fn run(scope: &Scope) -> Result {
    let service = Service::start(scope, "kv", 3).await?;

    let resource = service.resource().await?;
    for (type_, wanted) in [
        ("Ready", "True"),
        ("Available", "True"),
        ("FaultTolerant", "True"),
        ("Progressing", "False"),
        ("Degraded", "False"),
    ] {
        let found = condition(&resource, type_).map(|condition| text(condition, "/status"));
        ensure!(found.as_deref() == Some(wanted), "condition {type_} is {found:?}, not {wanted}");
    }
    let (leader, status) = service.leader().await?;
    let id = status.service.map(|id| id.to_string()).unwrap_or_default();
    ensure!(text(&resource, "/status/serviceId") == id, "status.serviceId is not {id}, which the replicas say");
    let line = scope.kubectl(&["get", "rsvc", "kv", "--no-headers"]).await?;
    let columns: Vec<_> = line.split_whitespace().collect();
    ensure!(columns.get(..3) == Some(&["kv", "True", "3"]), "kubectl get rsvc prints {line:?}");
    ensure!(columns.contains(&leader.name.as_str()), "the leader {} is not in {line:?}", leader.name);

    let nodes: BTreeSet<_> = service.pods().await?.into_iter().map(|pod| pod.node).collect();
    ensure!(nodes.len() == 3, "the replicas are on {nodes:?}, not on three nodes");

    let node = &scope.cluster.nodes().await?[0];
    let client = ClientPod::start(&service, "client", node).await?;
    let endpoint = service.endpoint();
    let version = client.lockstep(&["kv", "put", "colour", "blue", "--endpoints", &endpoint]).await?;
    ensure!(version.trim() == "1", "the first put of a key gives version {version:?}");
    let value = client.lockstep(&["kv", "get", "colour", "--endpoints", &endpoint]).await?;
    ensure!(value.trim() == "blue", "get after put gives {value:?}");
    let rows = client.lockstep_json(&["status", "--endpoints", &service.peers_endpoint()]).await?;
    let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
    ensure!(rows.len() == 3, "lockstep status shows {} replicas", rows.len());
    ensure!(rows.iter().all(|row| row["ready"] == true), "lockstep status shows one that is not ready: {rows:?}");
    client.stop().await.map(drop)
}
