//! The operator with rights in one namespace does there all that it does elsewhere.

use super::install;
use super::roll::{ROLLS_WITHIN, TEMPLATE, all_replaced};
use crate::cluster::{OPERATOR_NAMESPACE, items, text};
use crate::scope::Scope;
use crate::service::Service;
use crate::{Result, ensure};

pub async fn run(scope: &Scope) -> Result {
    let outcome = alone(scope).await;
    // Whatever came of it, the namespace goes only if there is an operator that may see to it.
    outcome.and(install(&scope.cluster, None).await)
}

async fn alone(scope: &Scope) -> Result {
    let cluster = &scope.cluster;
    install(cluster, Some(&scope.namespace)).await?;
    let pods = cluster.get(&["pods", "--namespace", OPERATOR_NAMESPACE]).await?;
    let account = items(&pods).first().map(|pod| text(pod, "/spec/serviceAccountName")).unwrap_or_default();
    let user = format!("system:serviceaccount:{OPERATOR_NAMESPACE}:{account}");
    for (namespace, expected) in [(scope.namespace.as_str(), "yes"), ("default", "no")] {
        for (verb, resource, part) in
            [("list", "replicatedservices", ""), ("create", "pods", "eviction"), ("get", "secrets", "")]
        {
            let part = format!("--subresource={part}");
            let asked = ["auth", "can-i", verb, resource, &part, "--namespace", namespace, "--as", &user];
            let said = cluster.try_kubectl(&asked, None).await?.out;
            ensure!(said.starts_with(expected), "may it {verb} {resource} in {namespace}? {said}");
        }
    }

    let service = Service::start(scope, "kv", 3).await?;
    let before = service.pods().await?;
    service.change(TEMPLATE).await?;
    service.until_ready(ROLLS_WITHIN).await?;
    all_replaced(&service, &before).await
}
