//! Looking, at the API server and at the replicas. Uncached: what is decided on is as fresh as this pass.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node as KubernetesNode, PersistentVolumeClaim, Pod as KubernetesPod, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::DeserializeGuard;
use lockstep_api::ReplicatedService;
use lockstep_api::quantity::Amount;
use lockstep_types::ServiceId;
use serde_json::Value;

use crate::apply::Settled;
use crate::build::{self, Desired};
use crate::context::{Context, Error};
use crate::replicas;
use crate::strand::node_of;
use crate::validate::{REPLICAS_MAX, Service};
use crate::world::{self, Claim, Node, Owner, Pod, Set, Stranded, Token, World};

/// The annotation of a claim that names the node that its volume was made for, by the scheduler.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// The world, and how to reach the replicas in it.
pub struct Seen {
    /// What decisions depend on.
    pub world: World,
    /// Where replicas answer, by ordinal.
    pub addresses: BTreeMap<usize, String>,
}

/// The resource as it stands right now; none if it is gone.
pub async fn resource(
    context: &Context,
    namespace: &str,
    name: &str,
) -> Result<Option<DeserializeGuard<ReplicatedService>>, Error> {
    let api: Api<DeserializeGuard<ReplicatedService>> = Api::namespaced(context.client.clone(), namespace);
    api.get_opt(name).await.map_err(Error::kube("failed to read the resource"))
}

/// Everything that belongs to `service`, whose objects are called as in `desired`.
pub async fn observe(context: &Context, service: &Service, desired: &[Desired]) -> Result<Seen, Error> {
    let (token, found, pods, claims) = tokio::try_join!(
        secret(context, service),
        objects(context, service, desired),
        pods(context, service),
        claims(context, service),
    )?;
    let volume_nodes: BTreeMap<usize, String> =
        claims.iter().filter_map(|(ordinal, claim)| Some((*ordinal, selected_node(claim)?))).collect();
    let claims = claims.into_iter().map(|(ordinal, claim)| (ordinal, read_claim(claim))).collect();
    let mut world = World { claims, ..Default::default() };
    if let Some(secret) = token {
        world.token = read_token(&secret);
        let secret = serde_json::to_value(&secret.metadata).unwrap_or_default();
        world.objects.insert(("Secret", service.token_name()), serde_json::json!({ "metadata": secret }));
    }
    world.settled = settled(context, service, &found);
    world.objects.extend(found);
    world.set = world.objects.get(&("StatefulSet", service.name.clone())).and_then(Set::read);
    let mut addresses = BTreeMap::new();
    let set = world.objects.get(&("StatefulSet", service.name.clone()));
    world.size = set.and_then(world::size);
    let set_uid = set.and_then(|set| world::set_uid(set, &service.owner.uid)).map(str::to_owned);
    let mut ours = BTreeMap::new();
    for (ordinal, pod) in pods {
        match Owner::read(&pod.metadata, (&service.name, set_uid.as_deref())) {
            Owner::Set => {}
            other @ (Owner::FormerSet | Owner::Nobody | Owner::Another) => {
                world.others.insert(ordinal, other);
                continue;
            }
        }
        let ip = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
        let view = Pod::read(&pod, Timestamp::now());
        if let Some(ip) = ip.filter(|_| !view.terminating) {
            addresses.insert(ordinal, replicas::address(&ip));
        }
        world.pods.insert(ordinal, view);
        ours.insert(ordinal, pod);
    }
    for (ordinal, replica) in replicas::ask(&addresses).await {
        if let Some(pod) = world.pods.get_mut(&ordinal) {
            pod.replica = Some(replica);
        }
    }
    for (ordinal, pod) in &ours {
        let view = world.pods.get_mut(ordinal).expect("it was put there");
        if view.replica.is_none() {
            view.stranded = stranded(context, pod, volume_nodes.get(ordinal).map(String::as_str)).await?;
        }
    }
    Ok(Seen { world, addresses })
}

/// Whether a pod that does not answer is kept from running by its node or its volume's. Nodes are read for nobody else.
async fn stranded(context: &Context, pod: &KubernetesPod, volume: Option<&str>) -> Result<Option<Stranded>, Error> {
    let name = node_of(pod, volume);
    let node = match &name {
        None => Node::Unreadable,
        Some(name) => {
            let api: Api<KubernetesNode> = Api::all(context.client.clone());
            match api.get_opt(name).await {
                Ok(node) => Node::read(node.as_ref()),
                // With rights in one namespace only.
                Err(kube::Error::Api(status)) if status.code == 403 => Node::Unreadable,
                Err(error) => return Err(Error::kube("failed to read a node")(error)),
            }
        }
    };
    Ok(Stranded::read(pod, name.as_deref().map(|name| (name, &node)), Timestamp::now()))
}

async fn secret(context: &Context, service: &Service) -> Result<Option<Secret>, Error> {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &service.namespace);
    api.get_opt(&service.token_name()).await.map_err(Error::kube("failed to read the Secret"))
}

fn read_token(secret: &Secret) -> Token {
    let bytes = secret.data.as_ref().and_then(|data| data.get(build::TOKEN_KEY));
    match bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok()).filter(|token| !token.trim().is_empty()) {
        Some(token) => Token::Present(token),
        None => Token::Malformed,
    }
}

async fn objects(
    context: &Context,
    service: &Service,
    desired: &[Desired],
) -> Result<BTreeMap<(&'static str, String), Value>, Error> {
    let reads = desired.iter().map(async |wanted| {
        let api: Api<DynamicObject> =
            Api::namespaced_with(context.client.clone(), &service.namespace, &wanted.resource);
        let found = api.get_opt(&wanted.name).await.map_err(Error::kube("failed to read an object"))?;
        Ok(found.map(|object| ((wanted.kind, wanted.name.clone()), serde_json::to_value(object).unwrap_or_default())))
    });
    let found: Result<Vec<_>, Error> = futures::future::join_all(reads).await.into_iter().collect();
    Ok(found?.into_iter().flatten().collect())
}

fn settled(
    context: &Context,
    service: &Service,
    found: &BTreeMap<(&'static str, String), Value>,
) -> BTreeSet<(&'static str, String)> {
    let known = context.settled.lock().expect("never poisoned");
    let is_settled = |(key, object): &(&(&'static str, String), &Value)| {
        known.get(&(service.owner.uid.clone(), key.0, key.1.clone())) == Some(&Settled::of(object))
    };
    found.iter().filter(is_settled).map(|(key, _)| key.clone()).collect()
}

async fn pods(context: &Context, service: &Service) -> Result<BTreeMap<usize, KubernetesPod>, Error> {
    let api: Api<KubernetesPod> = Api::namespaced(context.client.clone(), &service.namespace);
    let list = ListParams::default().labels(&build::selector_text(&service.name));
    let pods = api.list(&list).await.map_err(Error::kube("failed to list pods"))?;
    let names = (0..REPLICAS_MAX).map(|ordinal| (service.pod_name(ordinal), ordinal)).collect();
    Ok(by_ordinal(pods.items, &names))
}

/// Claims of all ordinals that a service can have: those of replicas that were removed stay behind their pods.
async fn claims(context: &Context, service: &Service) -> Result<BTreeMap<usize, PersistentVolumeClaim>, Error> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &service.namespace);
    let list = ListParams::default().labels(&build::selector_text(&service.name));
    let claims = api.list(&list).await.map_err(Error::kube("failed to list volume claims"))?;
    let names = (0..REPLICAS_MAX).map(|ordinal| (service.claim_name(ordinal), ordinal)).collect();
    let mut claims = by_ordinal(claims.items, &names);
    // A claim that was made by hand, to bind a volume again, may have no labels; the pod uses it all the same.
    for (name, ordinal) in names.iter().filter(|(_, ordinal)| **ordinal < service.replicas) {
        if !claims.contains_key(ordinal)
            && let Some(claim) = api.get_opt(name).await.map_err(Error::kube("failed to read a volume claim"))?
        {
            claims.insert(*ordinal, claim);
        }
    }
    Ok(claims)
}

fn selected_node(claim: &PersistentVolumeClaim) -> Option<String> {
    claim.metadata.annotations.as_ref()?.get(SELECTED_NODE).cloned()
}

fn read_claim(claim: PersistentVolumeClaim) -> Claim {
    let service = claim.metadata.annotations.as_ref().and_then(|all| ServiceId::parse(all.get(build::SERVICE_ID)?));
    let requests = claim.spec.and_then(|spec| spec.resources).and_then(|resources| resources.requests);
    Claim {
        uid: claim.metadata.uid.unwrap_or_default(),
        request: requests.and_then(|requests| Amount::parse(&requests.get("storage")?.0)),
        terminating: claim.metadata.deletion_timestamp.is_some(),
        service,
    }
}

fn by_ordinal<K: kube::Resource>(objects: Vec<K>, names: &BTreeMap<String, usize>) -> BTreeMap<usize, K> {
    let ordinal = |object: &K| names.get(object.meta().name.as_deref()?).copied();
    objects.into_iter().filter_map(|object| Some((ordinal(&object)?, object))).collect()
}
