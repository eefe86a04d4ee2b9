//! What makes no sense is refused by the API server itself, and the text says what to do.

use lockstep_api::rules;

use crate::scope::Scope;
use crate::service::{Service, manifest};
use crate::{Result, ensure};

pub async fn run(scope: &Scope) -> Result {
    let kv = || manifest("kv", 3, "");
    let with = |from: &str, to: &str| {
        let manifest = kv();
        assert!(manifest.contains(from), "the manifest has no {from:?}");
        manifest.replace(from, to)
    };
    let long = "n".repeat(rules::NAME_MAX + 1);
    for (what, manifest, rule) in [
        ("an even number of replicas", with("replicas: 3", "replicas: 4"), rules::REPLICAS_ODD.1),
        ("an unknown machine", with("KeyValue", "Blockchain"), rules::MACHINE_KNOWN.1),
        ("a name that is too long", manifest(&long, 3, ""), rules::NAME_LENGTH.1),
        ("a name that is no DNS label", manifest("a.b", 3, ""), rules::NAME_DNS.1),
        ("a size that is none", with("100Mi", "lots"), rules::SIZE_QUANTITY.1),
        ("a service id that is none", manifest("kv", 3, "  serviceId: abc"), rules::SERVICE_ID.1),
        (
            "a label of the operator's",
            manifest("kv", 3, "  pod: {labels: {lockstep.dev/team: blue}}"),
            rules::POD_LABELS.1,
        ),
        (
            "snapshots that come too often",
            manifest("kv", 3, "  snapshots: {everyBytes: 1Ki}"),
            rules::EVERY_BYTES_QUANTITY.1,
        ),
        (
            "a log kept that is no quantity",
            manifest("kv", 3, "  snapshots: {retainLogBytes: all}"),
            rules::RETAIN_LOG_BYTES_QUANTITY.1,
        ),
        ("an unknown fault model", with("Crash", "Lazy"), "supported values: \"Crash\""),
        ("an unknown field", manifest("kv", 3, "  replica: 3"), "unknown field \"spec.replica\""),
    ] {
        refused(scope, what, &manifest, rule).await?;
    }

    // What may not change needs something that it could have changed from.
    Service::apply(scope, "kv", 3, "").await?;
    for (what, manifest, rule) in [
        ("an even number of replicas", with("replicas: 3", "replicas: 4"), rules::REPLICAS_ODD.1),
        ("smaller storage", with("100Mi", "50Mi"), rules::SIZE_GROWS.1),
        ("another storage class", with("100Mi", "100Mi, storageClassName: other"), rules::STORAGE_CLASS_FIXED.1),
        ("an even number later", with("replicas: 3", "replicas: 2"), rules::REPLICAS_ODD.1),
        ("another fault model", with("Crash", "Byzantine"), "supported values: \"Crash\""),
        ("other snapshots", manifest("kv", 3, "  snapshots: {everyBytes: 1Mi}"), rules::EVERY_BYTES_FIXED.1),
        ("another machine", with("KeyValue", "Other"), rules::MACHINE_FIXED.1),
    ] {
        refused(scope, what, &manifest, rule).await?;
    }
    let scaled = ["--namespace", &scope.namespace, "scale", "replicatedservice/kv", "--replicas", "4"];
    let said = scope.cluster.try_kubectl(&scaled, None).await?;
    ensure!(!said.ok && said.err.contains(rules::REPLICAS_ODD.1), "kubectl scale to 4 says {:?}", said.out + &said.err);
    Ok(())
}

async fn refused(scope: &Scope, what: &str, manifest: &str, text: &str) -> Result {
    let said = scope.try_apply(manifest).await?;
    ensure!(!said.ok, "{what} is accepted: {}", said.out.trim());
    ensure!(said.err.contains(text), "{what} is refused without {text:?}: {}", said.err.trim());
    Ok(())
}
