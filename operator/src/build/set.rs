//! The StatefulSet: it makes pods and claims, and decides nothing. `OnDelete`, because the operator alone knows when a pod may
//! go; `Parallel`, because a replica that starts must never wait for one that cannot.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::{int, label_selector, meta, pod};
use crate::validate::{CLAIM, Service};

/// The set. `template_size` is the size in its claim template, which no update may change: volumes grow by their claims.
pub fn stateful_set(service: &Service, template_size: &str) -> StatefulSet {
    StatefulSet {
        metadata: meta(service, service.name.clone()),
        spec: Some(StatefulSetSpec {
            service_name: Some(service.peers_name()),
            replicas: Some(int(service.replicas)),
            selector: label_selector(service),
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                rolling_update: None,
            }),
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some(if service.keep_volumes { "Retain" } else { "Delete" }.to_owned()),
                when_scaled: Some("Retain".to_owned()),
            }),
            template: pod::template(service),
            volume_claim_templates: Some(vec![claim(service, template_size)]),
            ..Default::default()
        }),
        status: None,
    }
}

/// The size in the claim template of a set that exists.
pub fn template_size(set: &Value) -> Option<String> {
    let size = &set["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"];
    size.as_str().map(str::to_owned)
}

fn claim(service: &Service, size: &str) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta { name: Some(CLAIM.to_owned()), ..Default::default() },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: service.storage_class.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), Quantity(size.to_owned()))])),
                limits: None,
            }),
            ..Default::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::{example, service};

    #[test]
    fn set_leaves_every_decision_on_pods_to_the_operator() {
        let spec = stateful_set(&example(), "1Gi").spec.expect("a spec");
        assert_eq!(spec.update_strategy.and_then(|strategy| strategy.type_).as_deref(), Some("OnDelete"));
        assert_eq!(spec.pod_management_policy.as_deref(), Some("Parallel"));
        assert_eq!(spec.service_name.as_deref(), Some("kv-peers"));
        assert_eq!(spec.replicas, Some(3));
    }

    #[test]
    fn volumes_stay_unless_deletion_is_asked_for() {
        let policy = |service: &Service| {
            let spec = stateful_set(service, "1Gi").spec.expect("a spec");
            let policy = spec.persistent_volume_claim_retention_policy.expect("a policy");
            (policy.when_deleted.expect("deleted"), policy.when_scaled.expect("scaled"))
        };
        assert_eq!(policy(&example()), ("Retain".to_owned(), "Retain".to_owned()));
        let delete = include_str!("../../../examples/kv.yaml").replace("size: 1Gi", "size: 1Gi\n    onDelete: Delete");
        assert_eq!(policy(&service(&delete)), ("Delete".to_owned(), "Retain".to_owned()));
    }

    #[test]
    fn claim_template_of_a_grown_service_keeps_its_size() {
        let built = super::super::build(&example(), None).desired().pop().expect("the set").object;
        assert_eq!(template_size(&built).as_deref(), Some("1Gi"));
        let grown = service(&include_str!("../../../examples/kv.yaml").replace("1Gi", "2Gi"));
        let again = super::super::build(&grown, Some(&built)).desired().pop().expect("the set").object;
        assert_eq!(template_size(&again).as_deref(), Some("1Gi"));
    }
}
