//! From a [`Service`] to the objects that it needs. Pure: no client, no clock, the same objects for the same service.
//!
//! All are named after the resource, labelled alike, and go with it by owner references. The claims are the StatefulSet's, so
//! they stay unless its retention policy says otherwise.

mod network;
mod pod;
mod set;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Secret, Service as KubernetesService, ServiceAccount};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::{ByteString, Metadata, Resource};
use kube::core::ApiResource;
use lockstep_types::Configuration;
use serde::Serialize;
use serde_json::Value;

use crate::drift;
use crate::validate::Service;

pub use pod::{CLIENT_PORT, TOKEN_KEY};
pub use set::template_size;

/// Who applies, creates and deletes. Also the value of the label `app.kubernetes.io/managed-by`.
pub const MANAGER: &str = "lockstep-operator";
/// The annotation that holds the hash of the object as built. Tells a field that is no longer wanted from one of others.
pub const HASH: &str = "lockstep.dev/built-hash";

/// The annotation of a claim that names the service on its volume: it is known before anything runs on that volume again.
pub const SERVICE_ID: &str = "lockstep.dev/service-id";

/// All objects of one service but the Secret, which is created once and never applied.
#[derive(Clone, Debug)]
pub struct Objects {
    account: ServiceAccount,
    peers: KubernetesService,
    clients: KubernetesService,
    budget: PodDisruptionBudget,
    set: k8s_openapi::api::apps::v1::StatefulSet,
}

/// One object as it shall be, ready to be compared or applied.
#[derive(Clone, Debug)]
pub struct Desired {
    /// Its kind.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// How to reach its kind.
    pub resource: ApiResource,
    /// The object, with its hash.
    pub object: Value,
}

impl Objects {
    /// With a budget that leaves a quorum of all `members`: of the standbys too, which may vote before the next look.
    #[must_use]
    pub fn guarding(mut self, service: &Service, members: Option<&Configuration>) -> Self {
        if let Some(members) = members {
            self.budget = budget(service, members.members().count());
        }
        self
    }

    /// With so many pods.
    #[must_use]
    pub fn running(mut self, pods: usize) -> Self {
        let spec = self.set.spec.as_mut().expect("it was built with one");
        spec.replicas = Some(int(pods));
        self
    }

    /// In the order in which they are applied: the pods name what comes first.
    pub fn desired(&self) -> Vec<Desired> {
        let Objects { account, peers, clients, budget, set } = self;
        // The set comes last: its pods need the account and their DNS names when they start.
        vec![erase(account), erase(peers), erase(clients), erase(budget), erase(set)]
    }
}

/// Builds all objects. `existing` is the StatefulSet as it stands: the size in its claim template cannot change.
pub fn build(service: &Service, existing: Option<&Value>) -> Objects {
    let template = existing.and_then(template_size).unwrap_or_else(|| service.size.clone());
    Objects {
        account: account(service),
        peers: network::peers(service),
        clients: network::clients(service),
        budget: budget(service, service.replicas),
        set: set::stateful_set(service, &template),
    }
}

/// The Secret with a fresh admin token.
pub fn token_secret(service: &Service, token: &str) -> Secret {
    Secret {
        metadata: meta(service, service.token_name()),
        data: Some(BTreeMap::from([(TOKEN_KEY.to_owned(), ByteString(token.as_bytes().to_vec()))])),
        type_: Some("Opaque".to_owned()),
        ..Default::default()
    }
}

/// The labels of every object of the service.
pub fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = selector(&service.name);
    labels.insert("app.kubernetes.io/managed-by".to_owned(), MANAGER.to_owned());
    labels
}

/// The labels that select the pods and claims of the service. Never changes: a StatefulSet's selector cannot.
pub fn selector(name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "lockstep".to_owned()),
        ("app.kubernetes.io/instance".to_owned(), name.to_owned()),
        ("app.kubernetes.io/component".to_owned(), "replica".to_owned()),
    ])
}

/// The same in the form that the API takes.
pub fn selector_text(name: &str) -> String {
    selector(name).iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn label_selector(service: &Service) -> LabelSelector {
    LabelSelector { match_labels: Some(selector(&service.name)), match_expressions: None }
}

fn meta(service: &Service, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(service.namespace.clone()),
        labels: Some(labels(service)),
        owner_references: Some(vec![service.owner.clone()]),
        ..Default::default()
    }
}

/// The pods' account has no rights at all, and no token is mounted: it only keeps them off the namespace's default account.
fn account(service: &Service) -> ServiceAccount {
    ServiceAccount {
        metadata: meta(service, service.name.clone()),
        automount_service_account_token: Some(false),
        ..Default::default()
    }
}

/// Evictions leave a quorum of so many members. A single one tolerates no loss anyway, and must not block a drain for good.
fn budget(service: &Service, members: usize) -> PodDisruptionBudget {
    let quorum = if members > 1 { service.fault_model.quorum(members) } else { 0 };
    PodDisruptionBudget {
        metadata: meta(service, service.name.clone()),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(int(quorum))),
            // A pod that is not ready adds nothing to the quorum, and must not block a drain for good.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            selector: Some(label_selector(service)),
            ..Default::default()
        }),
        status: None,
    }
}

fn int(number: usize) -> i32 {
    i32::try_from(number).expect("a handful of replicas")
}

fn erase<K>(object: &K) -> Desired
where
    K: Resource + Metadata<Ty = ObjectMeta> + Serialize + kube::Resource<DynamicType = ()>,
{
    let mut value = serde_json::to_value(object).expect("a Kubernetes object serializes");
    let hash = drift::hash(&value);
    value["metadata"]["annotations"][HASH] = Value::String(hash);
    Desired {
        kind: <K as Resource>::KIND,
        name: Metadata::metadata(object).name.clone().unwrap_or_default(),
        resource: ApiResource::erase::<K>(&()),
        object: value,
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::{Change, ReplicaId};

    use super::*;
    use crate::validate::tests::{example, service};

    fn single() -> Service {
        service(&include_str!("../../examples/kv.yaml").replace("replicas: 3", "replicas: 1"))
    }

    #[test]
    fn objects_built_twice_are_equal() {
        let (first, second) = (build(&example(), None).desired(), build(&example(), None).desired());
        let objects = |desired: Vec<Desired>| desired.into_iter().map(|d| d.object).collect::<Vec<_>>();
        assert_eq!(objects(first), objects(second));
    }

    #[test]
    fn objects_all_go_with_the_resource_and_carry_its_labels() {
        for Desired { kind, object, .. } in build(&example(), None).desired() {
            assert_eq!(object["metadata"]["namespace"], "apps", "{kind}");
            let owner = &object["metadata"]["ownerReferences"][0];
            assert_eq!(owner["kind"], "ReplicatedService", "{kind}");
            assert_eq!(owner["controller"], true, "{kind}");
            assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/instance"], "kv", "{kind}");
            assert!(object["metadata"]["annotations"][HASH].is_string(), "{kind}");
        }
    }

    #[test]
    fn objects_listed_have_the_set_last() {
        let kinds: Vec<_> = build(&example(), None).desired().iter().map(|d| (d.kind, d.name.clone())).collect();
        let expected = [
            ("ServiceAccount", "kv"),
            ("Service", "kv-peers"),
            ("Service", "kv"),
            ("PodDisruptionBudget", "kv"),
            ("StatefulSet", "kv"),
        ];
        assert_eq!(kinds, expected.map(|(kind, name)| (kind, name.to_owned())));
    }

    #[test]
    fn budget_of_three_keeps_two() {
        let budget = budget(&example(), 3).spec.expect("a budget");
        assert_eq!(budget.min_available, Some(IntOrString::Int(2)));
        assert_eq!(budget.unhealthy_pod_eviction_policy.as_deref(), Some("AlwaysAllow"));
        assert_eq!(budget.selector.and_then(|s| s.match_labels), Some(selector("kv")));
    }

    #[test]
    fn budget_while_a_member_is_replaced_keeps_a_quorum_of_all() {
        let genesis = crate::validate::tests::genesis(3);
        let newcomer = Change::AddStandby { replica: ReplicaId::from_bytes([9; 16]) };
        let members = genesis.configuration().apply(&newcomer).expect("a change");
        let least = |members: &Configuration| {
            let objects = build(&example(), None).guarding(&example(), Some(members));
            objects.budget.spec.and_then(|spec| spec.min_available)
        };
        assert_eq!(least(&genesis.configuration()), Some(IntOrString::Int(2)));
        assert_eq!(least(&members), Some(IntOrString::Int(3)));
    }

    #[test]
    fn budget_of_one_lets_it_go() {
        let least = budget(&single(), 1).spec.expect("a budget").min_available;
        assert_eq!(least, Some(IntOrString::Int(0)));
    }

    #[test]
    fn pods_of_another_number_of_replicas_have_the_same_template() {
        let template = |objects: Objects| objects.set.spec.expect("a spec").template;
        let five = service(&include_str!("../../examples/kv.yaml").replace("replicas: 3", "replicas: 5"));
        assert_eq!(template(build(&five, None)), template(build(&example(), None)));
        let pods = build(&example(), None).running(4).set.spec.and_then(|spec| spec.replicas);
        assert_eq!(pods, Some(4));
    }

    #[test]
    fn account_of_the_pods_mounts_no_token() {
        assert_eq!(account(&example()).automount_service_account_token, Some(false));
    }

    #[test]
    fn chart_grants_the_resource_of_the_api_crate() {
        let rules = include_str!("../../charts/lockstep/templates/_helpers.tpl");
        let granted = format!("- apiGroups: [{}]\n  resources: [replicatedservices]", lockstep_api::GROUP);
        assert!(rules.contains(&granted), "charts/lockstep/templates/_helpers.tpl does not grant {granted:?}");
        let notes = include_str!("../../charts/lockstep/templates/NOTES.txt");
        let asked = format!("{}/{}/{}", lockstep_api::GROUP, lockstep_api::VERSION, lockstep_api::KIND);
        assert!(notes.contains(&asked), "NOTES.txt does not ask for {asked:?}");
    }

    #[test]
    fn chart_values_are_all_in_its_schema() {
        let values: Value = serde_saphyr::from_str(include_str!("../../charts/lockstep/values.yaml")).expect("YAML");
        let schema = include_str!("../../charts/lockstep/values.schema.json");
        let schema: Value = serde_json::from_str(schema).expect("JSON");
        for key in values.as_object().expect("values").keys() {
            assert!(schema["properties"][key].is_object(), "charts/lockstep/values.schema.json lacks {key}");
        }
    }
}
