//! The CRD's own rules, run without an API server.

use std::sync::OnceLock;

use kube::CustomResourceExt;
use kube::core::cel::Validator;
use serde::Deserialize;
use serde_json::Value;

use crate::ReplicatedService;

/// Checks `service` by the rules for a new resource.
///
/// # Errors
/// What the API server would say, one text for each rule that is broken, in the order of the schema.
pub fn validate(service: &ReplicatedService) -> Result<(), Vec<String>> {
    check(service, None)
}

/// Checks `service` by the rules for a change from `old`.
///
/// # Errors
/// As of [`validate`].
pub fn validate_update(service: &ReplicatedService, old: &ReplicatedService) -> Result<(), Vec<String>> {
    check(service, Some(old))
}

/// Reads a `ReplicatedService` from the YAML that a user would apply, and [`validate`]s it.
///
/// # Errors
/// Texts that say what to do, as of [`validate`].
pub fn parse(yaml: &str) -> Result<ReplicatedService, Vec<String>> {
    let refusal = |error: serde_saphyr::Error| vec![format!("not a ReplicatedService: {error}")];
    let types: Types = serde_saphyr::from_str(yaml).map_err(refusal)?;
    let api_version = format!("{}/{}", crate::GROUP, crate::VERSION);
    if types.api_version != api_version || types.kind != crate::KIND {
        return Err(vec![format!("not a ReplicatedService: use apiVersion {api_version} and kind {}", crate::KIND)]);
    }
    let document: Value = serde_saphyr::from_str(yaml).map_err(refusal)?;
    let unknown = unknown_fields(&document, schema(), "");
    if !unknown.is_empty() {
        return Err(unknown);
    }
    let service: ReplicatedService = serde_saphyr::from_str(yaml).map_err(refusal)?;
    if service.metadata.name.as_deref().unwrap_or_default().is_empty() {
        return Err(vec!["metadata.name: give the service a name, such as kv".to_owned()]);
    }
    validate(&service)?;
    Ok(service)
}

/// Fields that the schema does not know: kubectl refuses them too. A typing error would be left out in silence otherwise.
fn unknown_fields(value: &Value, schema: &Value, path: &str) -> Vec<String> {
    match value {
        Value::Object(fields) => {
            // A map with keys of the user's choice, or metadata, which every resource has.
            let Some(known) = schema["properties"].as_object() else { return Vec::new() };
            let top = path.is_empty();
            let below = |(name, value): (&String, &Value)| {
                let inner = format!("{path}{}{name}", if top { "" } else { "." });
                match known.get(name) {
                    Some(schema) => unknown_fields(value, schema, &inner),
                    None if top && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") => Vec::new(),
                    None => {
                        let names: Vec<&str> = known.keys().map(String::as_str).collect();
                        vec![format!("{inner} is no field; there are {}", names.join(", "))]
                    }
                }
            };
            fields.iter().flat_map(below).collect()
        }
        Value::Array(items) => {
            let inner = |(index, item)| unknown_fields(item, &schema["items"], &format!("{path}[{index}]"));
            items.iter().enumerate().flat_map(inner).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

fn check(service: &ReplicatedService, old: Option<&ReplicatedService>) -> Result<(), Vec<String>> {
    let object = serde_json::to_value(service).map_err(|error| vec![error.to_string()])?;
    let old = old.map(serde_json::to_value).transpose().map_err(|error| vec![error.to_string()])?;
    Validator::new().validate(schema(), &object, old.as_ref()).map_err(|errors| {
        errors
            .into_vec()
            .into_iter()
            .map(|error| match error.field_path.as_str() {
                "" => error.message,
                path => format!("{path}: {}", error.message),
            })
            .collect()
    })
}

fn schema() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let crd = serde_json::to_value(ReplicatedService::crd()).expect("the CRD serializes");
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
    })
}

/// What tells whether a document is meant for us at all.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Types {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules;

    /// What a user would write, with some lines changed.
    fn yaml(changes: &[(&str, &str)]) -> String {
        let mut text = include_str!("../../../examples/kv.yaml").to_owned();
        for (from, to) in changes {
            assert!(text.contains(from), "the example has no {from:?}");
            text = text.replace(from, to);
        }
        text
    }

    fn refusals(changes: &[(&str, &str)]) -> Vec<String> {
        parse(&yaml(changes)).expect_err("a refusal")
    }

    #[test]
    fn example_as_shipped_is_accepted() {
        let service = parse(&yaml(&[])).expect("the example");
        assert_eq!(service.spec.replicas, 3);
        assert_eq!(service.metadata.name.as_deref(), Some("kv"));
    }

    #[test]
    fn service_with_unknown_machine_is_refused() {
        assert_eq!(
            refusals(&[("KeyValue", "Blockchain")]),
            [format!("spec.stateMachine.builtin: {}", rules::MACHINE_KNOWN.1)]
        );
    }

    #[test]
    fn machine_rule_names_every_machine() {
        let quoted: Vec<String> = crate::MACHINES.iter().map(|name| format!("'{name}'")).collect();
        assert_eq!(rules::MACHINE_KNOWN.0, format!("self in [{}]", quoted.join(", ")));
    }

    #[test]
    fn service_with_even_replicas_is_refused() {
        for number in ["0", "2", "4", "6", "9", "-1"] {
            assert_eq!(
                refusals(&[("replicas: 3", &format!("replicas: {number}"))]),
                [format!("spec.replicas: {}", rules::REPLICAS_ODD.1)]
            );
        }
        for number in ["1", "5", "7"] {
            parse(&yaml(&[("replicas: 3", &format!("replicas: {number}"))])).expect("an odd number");
        }
    }

    #[test]
    fn service_with_name_too_long_for_dns_is_refused() {
        let name = "n".repeat(rules::NAME_MAX + 1);
        assert_eq!(refusals(&[("name: kv", &format!("name: {name}"))]), [rules::NAME_LENGTH.1]);
        let name = "n".repeat(rules::NAME_MAX);
        parse(&yaml(&[("name: kv", &format!("name: {name}"))])).expect("a name that just fits");
        assert_eq!(rules::NAME_LENGTH.0, format!("self.metadata.name.size() <= {}", rules::NAME_MAX));
    }

    #[test]
    fn service_with_name_that_is_no_dns_label_is_refused() {
        for name in ["a.b", "7up", "a-", "Config"] {
            assert_eq!(refusals(&[("name: kv", &format!("name: {name}"))]), [rules::NAME_DNS.1], "{name}");
        }
    }

    #[test]
    fn service_with_unknown_fault_model_is_refused() {
        let refusals = refusals(&[("Crash", "Byzantine")]);
        assert!(refusals[0].contains("Byzantine") && refusals[0].contains("Crash"), "{refusals:?}");
    }

    #[test]
    fn service_with_bad_size_is_refused() {
        for size in ["lots", "0", "-1Gi", "''"] {
            assert_eq!(
                refusals(&[("1Gi", size)]),
                [format!("spec.storage.size: {}", rules::SIZE_QUANTITY.1)],
                "{size}"
            );
        }
    }

    #[test]
    fn service_with_bad_snapshots_is_refused() {
        let with =
            |field: &str, bytes: &str| refusals(&[("spec:", &format!("spec:\n  snapshots: {{{field}: {bytes}}}"))]);
        for bytes in ["often", "0", "4095", "2Ti", "-1Gi"] {
            let refusal = format!("spec.snapshots.everyBytes: {}", rules::EVERY_BYTES_QUANTITY.1);
            assert_eq!(with("everyBytes", &format!("'{bytes}'")), [refusal], "{bytes}");
        }
        for bytes in ["much", "-1", "2Pi"] {
            let refusal = format!("spec.snapshots.retainLogBytes: {}", rules::RETAIN_LOG_BYTES_QUANTITY.1);
            assert_eq!(with("retainLogBytes", &format!("'{bytes}'")), [refusal], "{bytes}");
        }
        parse(&yaml(&[("spec:", "spec:\n  snapshots: {everyBytes: 4Ki, retainLogBytes: '0'}")])).expect("the least");
    }

    #[test]
    fn service_without_snapshots_has_the_defaults() {
        let service = parse(&yaml(&[])).expect("the example");
        assert_eq!(service.spec.snapshots, crate::spec::Snapshots::default());
        let one = parse(&yaml(&[("spec:", "spec:\n  snapshots: {retainLogBytes: 1Gi}")])).expect("half of it");
        assert_eq!(
            (one.spec.snapshots.every_bytes.as_str(), one.spec.snapshots.retain_log_bytes.as_str()),
            ("64Mi", "1Gi")
        );
    }

    #[test]
    fn service_with_bad_time_to_replace_is_refused() {
        let after = |text: &str| yaml(&[("size: 1Gi", &format!("size: 1Gi\n    replaceAfter: '{text}'"))]);
        for text in ["", "10", "0s", "-1m", "1.5h", "10 m", "1d"] {
            let refused = parse(&after(text)).expect_err("a refusal");
            assert_eq!(refused, [format!("spec.storage.replaceAfter: {}", rules::REPLACE_AFTER.1)], "{text}");
        }
        for text in ["90s", "10m", "2h"] {
            parse(&after(text)).expect("a time");
        }
    }

    #[test]
    fn service_with_bad_service_id_is_refused() {
        let changed = [("spec:", "spec:\n  serviceId: abc")];
        assert_eq!(refusals(&changed), [format!("spec.serviceId: {}", rules::SERVICE_ID.1)]);
    }

    #[test]
    fn service_with_reserved_pod_metadata_is_refused() {
        let changed =
            [("spec:", "spec:\n  pod: {labels: {app.kubernetes.io/name: x}, annotations: {lockstep.dev/x: y}}")];
        assert_eq!(
            refusals(&changed),
            [format!("spec.pod: {}", rules::POD_LABELS.1), format!("spec.pod: {}", rules::POD_ANNOTATIONS.1)]
        );
    }

    #[test]
    fn field_that_nobody_knows_is_refused() {
        assert_eq!(
            refusals(&[("size: 1Gi", "size: 1Gi\n    onDelte: Delete")]),
            ["spec.storage.onDelte is no field; there are onDelete, replaceAfter, size, storageClassName"]
        );
        let toleration = "spec:\n  pod: {nodeSelector: {any/name: x}, tolerations: [{key: a}, {keys: b}]}";
        let refusals = refusals(&[("spec:", toleration)]);
        assert!(
            refusals[0].starts_with("spec.pod.tolerations[1].keys is no field; there are effect, key,"),
            "{refusals:?}"
        );
    }

    #[test]
    fn service_without_a_name_is_refused() {
        assert_eq!(refusals(&[("name: kv", "labels: {}")]), ["metadata.name: give the service a name, such as kv"]);
    }

    #[test]
    fn another_kind_parsed_is_refused() {
        let refusals = refusals(&[("ReplicatedService", "ReplicaSet")]);
        assert_eq!(
            refusals,
            ["not a ReplicatedService: use apiVersion lockstep.dev/v1alpha1 and kind ReplicatedService"]
        );
    }

    #[test]
    fn update_of_what_the_genesis_fixed_is_refused() {
        let old = parse(&yaml(&[])).expect("the example");
        let update = |changes: &[(&str, &str)]| {
            let new: ReplicatedService = serde_saphyr::from_str(&yaml(changes)).expect("YAML");
            validate_update(&new, &old).expect_err("a refusal")
        };
        assert_eq!(update(&[("replicas: 3", "replicas: 4")]), [format!("spec.replicas: {}", rules::REPLICAS_ODD.1)]);
        assert_eq!(update(&[("1Gi", "512Mi")]), [format!("spec.storage.size: {}", rules::SIZE_GROWS.1)]);
        assert_eq!(
            update(&[("size: 1Gi", "size: 1Gi\n    storageClassName: fast")]),
            [format!("spec.storage: {}", rules::STORAGE_CLASS_FIXED.1)]
        );
        assert_eq!(
            update(&[("spec:", "spec:\n  snapshots: {everyBytes: 65Mi}")]),
            [format!("spec.snapshots.everyBytes: {}", rules::EVERY_BYTES_FIXED.1)]
        );
        assert!(update(&[("KeyValue", "Other")]).contains(&format!("spec.stateMachine: {}", rules::MACHINE_FIXED.1)));
    }

    #[test]
    fn update_of_what_may_change_is_accepted() {
        let old = parse(&yaml(&[])).expect("the example");
        let new = parse(&yaml(&[("1Gi", "2Gi"), ("spec:", "spec:\n  logLevel: debug")])).expect("valid");
        validate_update(&new, &old).expect("a change that may be");
        let snapshots = "spec:\n  snapshots: {everyBytes: 65536Ki, retainLogBytes: 1Gi}";
        let new = parse(&yaml(&[("spec:", snapshots)])).expect("valid");
        validate_update(&new, &old).expect("a change that may be");
        for number in ["1", "5", "7"] {
            let new = parse(&yaml(&[("replicas: 3", &format!("replicas: {number}"))])).expect("valid");
            validate_update(&new, &old).expect("a change that may be");
        }
    }

    #[test]
    fn genesis_once_recorded_never_changes() {
        let with_genesis = |genesis: Option<&str>| {
            let mut service = parse(&yaml(&[])).expect("the example");
            service.status = genesis.map(|genesis| crate::ReplicatedServiceStatus {
                genesis: Some(genesis.to_owned()),
                ..Default::default()
            });
            service
        };
        let (none, one, two) = (with_genesis(None), with_genesis(Some("01")), with_genesis(Some("02")));
        validate_update(&one, &none).expect("recorded");
        validate_update(&one, &one).expect("unchanged");
        assert_eq!(validate_update(&two, &one), Err(vec![rules::GENESIS_ONCE.1.to_owned()]));
        assert_eq!(validate_update(&none, &one), Err(vec![rules::GENESIS_ONCE.1.to_owned()]));
    }
}
