//! A converged service costs no API write, by the API server's own word.

use std::time::Duration;

use crate::cluster::{OPERATOR_NAMESPACE, items, text};
use crate::scope::Scope;
use crate::service::{READY_WITHIN, Service};
use crate::{Result, audit, ensure, wait};

const MINUTE: Duration = Duration::from_secs(60);
/// Kubernetes' own controllers write down what they saw for a while after the last pod got ready.
const SETTLED: Duration = Duration::from_secs(5);

pub async fn run(scope: &Scope) -> Result {
    let service = Service::start(scope, "kv", 3).await?;
    // The operator has to do with other services that go.
    wait::until("other tests' services gone", READY_WITHIN, async || {
        let all = scope.cluster.get(&["replicatedservices", "--all-namespaces"]).await?;
        let others = items(&all).iter().filter(|other| text(other, "/metadata/namespace") != scope.namespace).count();
        ensure!(others == 0, "there are still {others}");
        Ok(())
    })
    .await?;
    let log = &scope.cluster.audit_log;
    let mut mark = audit::mark(log).await?;
    let mut since = tokio::time::Instant::now();
    wait::until("no more changes after the start", READY_WITHIN, async || {
        let changes = changes(scope, mark).await?;
        if let Some(change) = changes.last() {
            (mark, since) = (audit::mark(log).await?, tokio::time::Instant::now());
            crate::fail!("{change}");
        }
        ensure!(since.elapsed() > SETTLED, "not long enough");
        Ok(())
    })
    .await?;

    let mark = audit::mark(log).await?;
    tokio::time::sleep(MINUTE).await;
    let changes = changes(scope, mark).await?;
    let said: Vec<_> = changes.iter().map(ToString::to_string).collect();
    ensure!(said.is_empty(), "{} changes in the quiet minute: {}", said.len(), said.join("; "));
    // The log works, and the operator was there: it renewed its Lease.
    let operator = format!("system:serviceaccount:{OPERATOR_NAMESPACE}:");
    let all = audit::since(log, mark).await?;
    let renewals =
        all.iter().filter(|change| change.user.starts_with(&operator) && change.resource == "leases").count();
    ensure!(renewals > 0, "no Lease renewal by the operator in the audit log: {} changes by others", all.len());
    service.is_ready().await
}

/// What the operator changed anywhere but in Leases, and what anyone changed in the namespace.
async fn changes(scope: &Scope, mark: audit::Mark) -> Result<Vec<audit::Change>> {
    let operator = format!("system:serviceaccount:{OPERATOR_NAMESPACE}:");
    let all = audit::since(&scope.cluster.audit_log, mark).await?;
    let counts = |change: &audit::Change| {
        let by_operator = change.user.starts_with(&operator) && change.resource != "leases";
        by_operator || change.namespace == scope.namespace
    };
    Ok(all.into_iter().filter(counts).collect())
}
