//! Doing what was decided, and nothing else. Every act can be repeated, by this process or by another one.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta, Status};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::build::{self, Desired, HASH, MANAGER, SERVICE_ID};
use crate::context::{Context, Error};
use crate::decide::{Action, Removal};
use crate::observe::Seen;
use crate::replicas;
use crate::validate::Service;
use crate::world::Token;

/// An object as it stood right after our apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    hash: Option<String>,
    version: String,
}

impl Settled {
    /// The generation tells a change of the spec from one of the status, for kinds that have one.
    pub fn of(object: &Value) -> Self {
        let meta = &object["metadata"];
        let version = match meta["generation"].as_i64() {
            Some(generation) => format!("generation {generation}"),
            None => meta["resourceVersion"].as_str().unwrap_or_default().to_owned(),
        };
        Settled { hash: meta["annotations"][HASH].as_str().map(str::to_owned), version }
    }
}

/// How an act ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// A disruption budget held it back.
    HeldBack,
}

/// Carries `action` out. Recording the genesis is not here: it is a write of the status, see [`report`](crate::report).
pub async fn apply(
    context: &Context,
    service: &Service,
    desired: &[Desired],
    seen: &Seen,
    action: &Action,
) -> Result<Outcome, Error> {
    match action {
        Action::CreateToken => create_token(context, service).await?,
        Action::Apply(stale) => {
            let stale =
                |wanted: &&Desired| stale.iter().any(|(kind, name, _)| (*kind, name) == (wanted.kind, &wanted.name));
            for wanted in desired.iter().filter(stale) {
                apply_object(context, service, wanted).await?;
            }
        }
        Action::RecordGenesis { .. } => {}
        Action::SendGenesis { genesis, targets } => {
            let addresses: Vec<_> = targets.iter().filter_map(|target| seen.addresses.get(target).cloned()).collect();
            replicas::send_genesis(&addresses, token(seen), genesis).await.map_err(Error::Replica)?;
        }
        Action::HandOver { leader, target, .. } => {
            if let Some(address) = seen.addresses.get(leader) {
                replicas::hand_over(address, token(seen), *target).await.map_err(Error::Replica)?;
            }
        }
        Action::ChangeMembers { leader, change, .. } => {
            if let Some(address) = seen.addresses.get(leader) {
                replicas::change_members(address, token(seen), *change).await.map_err(Error::Replica)?;
            }
        }
        Action::Join { ordinal, slot, genesis, .. } => {
            if let Some(address) = seen.addresses.get(ordinal) {
                replicas::join(address, token(seen), genesis, *slot).await.map_err(Error::Replica)?;
            }
        }
        Action::ReplacePod { ordinal, uid, by, .. } => match by {
            Removal::Eviction => return evict_pod(context, service, *ordinal, uid).await,
            Removal::Deletion => delete_pod(context, service, *ordinal, uid, false).await?,
        },
        Action::ReplaceVolume { ordinal, pod, claim, why } => {
            // The claim first: a pod that comes back in between finds it on its way out, and what was decided is decided again.
            if let Some(claim) = claim {
                delete_claim(context, service, *ordinal, claim).await?;
            }
            delete_pod(context, service, *ordinal, pod, why.force()).await?;
        }
        Action::DeleteClaims { claims } => {
            for (ordinal, uid) in claims {
                delete_claim(context, service, *ordinal, uid).await?;
            }
        }
        Action::MarkVolumes { service: id, claims } => {
            let patch = json!({ "metadata": { "annotations": { SERVICE_ID: id.to_string() } } });
            for ordinal in claims {
                patch_claim(context, service, *ordinal, &patch, "").await?;
            }
        }
        Action::GrowVolumes { claims } => {
            let patch = json!({ "spec": { "resources": { "requests": { "storage": service.size } } } });
            for ordinal in claims {
                let hint = ", whose storage class must allow volume expansion";
                patch_claim(context, service, *ordinal, &patch, hint).await?;
            }
        }
    }
    Ok(Outcome::Done)
}

fn token(seen: &Seen) -> &str {
    match &seen.world.token {
        Token::Present(token) => token.trim(),
        Token::Missing | Token::Malformed => "",
    }
}

async fn create_token(context: &Context, service: &Service) -> Result<(), Error> {
    let token: String = rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect();
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &service.namespace);
    let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
    context.metrics.write("Secret");
    match api.create(&parameters, &build::token_secret(service, &token)).await {
        Ok(_) => Ok(()),
        // Another operator was faster; the next look takes its token.
        Err(kube::Error::Api(error)) if error.code == 409 => Ok(()),
        Err(error) => Err(Error::kube("failed to create the Secret")(error)),
    }
}

async fn apply_object(context: &Context, service: &Service, wanted: &Desired) -> Result<(), Error> {
    let Desired { kind, name, resource, object } = wanted;
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &service.namespace, resource);
    context.metrics.write(kind);
    let applied = api
        .patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object))
        .await
        .map_err(Error::kube(&format!("failed to apply {kind} {name}")))?;
    let applied = serde_json::to_value(applied).unwrap_or_default();
    let key = (service.owner.uid.clone(), *kind, name.clone());
    context.settled.lock().expect("never poisoned").insert(key, Settled::of(&applied));
    Ok(())
}

/// With `force`, Kubernetes forgets the pod at once, without a word of its node. What may still run there keeps its identity and
/// its volume, and shares neither with the pod that comes.
async fn delete_pod(context: &Context, service: &Service, ordinal: usize, uid: &str, force: bool) -> Result<(), Error> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &service.namespace);
    let parameters = DeleteParams { grace_period_seconds: force.then_some(0), ..the_very(uid) };
    context.metrics.write("Pod");
    delete(&api, "pod", &service.pod_name(ordinal), &parameters).await
}

async fn delete_claim(context: &Context, service: &Service, ordinal: usize, uid: &str) -> Result<(), Error> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &service.namespace);
    context.metrics.write("PersistentVolumeClaim");
    delete(&api, "volume claim", &service.claim_name(ordinal), &the_very(uid)).await
}

/// The very object that was judged, or none.
fn the_very(uid: &str) -> DeleteParams {
    let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
    DeleteParams { preconditions, ..Default::default() }
}

async fn delete<K>(api: &Api<K>, kind: &str, name: &str, parameters: &DeleteParams) -> Result<(), Error>
where
    K: Clone + DeserializeOwned + Debug,
{
    match api.delete(name, parameters).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(error)) if matches!(error.code, 404 | 409) => Ok(()),
        Err(error) => Err(Error::kube(&format!("failed to delete {kind} {name}"))(error)),
    }
}

/// Evictions go through a client that does not try again by itself: a budget says no with the same status as an API server
/// that has too much to do, and may say it for hours.
async fn evict_pod(context: &Context, service: &Service, ordinal: usize, uid: &str) -> Result<Outcome, Error> {
    let name = service.pod_name(ordinal);
    let api: Api<Pod> = Api::namespaced(context.evictions.clone(), &service.namespace);
    context.metrics.write("Pod");
    match api.create_subresource("eviction", &name, &PostParams::default(), &eviction(&name, uid)).await {
        Ok(Status { .. }) => Ok(Outcome::Done),
        Err(kube::Error::Api(error)) if error.code == 429 => {
            tracing::debug!(pod = %name, reason = %error.message, "eviction held back");
            Ok(Outcome::HeldBack)
        }
        Err(kube::Error::Api(error)) if matches!(error.code, 404 | 409) => Ok(Outcome::Done),
        Err(error) => Err(Error::kube(&format!("failed to evict pod {name}"))(error)),
    }
}

/// By hand: what kube 5 sends spells the options `delete_options`, which the API server does not read.
fn eviction(name: &str, uid: &str) -> Eviction {
    Eviction {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
        delete_options: Some(DeleteOptions {
            // The very pod that was judged, or none.
            preconditions: Some(meta::Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..Default::default()
        }),
    }
}

async fn patch_claim(
    context: &Context,
    service: &Service,
    ordinal: usize,
    patch: &Value,
    hint: &str,
) -> Result<(), Error> {
    let name = service.claim_name(ordinal);
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &service.namespace);
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
    context.metrics.write("PersistentVolumeClaim");
    let patched = api.patch(&name, &parameters, &Patch::Merge(patch)).await;
    patched.map(drop).map_err(Error::kube(&format!("failed to change volume claim {name}{hint}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eviction_names_the_very_pod_where_the_api_server_reads_it() {
        let body = serde_json::to_value(eviction("kv-2", "uid-2")).expect("JSON");
        assert_eq!((&body["apiVersion"], &body["kind"]), (&json!("policy/v1"), &json!("Eviction")));
        assert_eq!(body["metadata"]["name"], "kv-2");
        assert_eq!(body["deleteOptions"]["preconditions"], json!({"uid": "uid-2"}));
    }

    #[test]
    fn object_settled_by_its_generation_ignores_its_status() {
        let object = |version: &str, generation: i64| json!({"metadata": {"generation": generation, "resourceVersion": version}});
        assert_eq!(Settled::of(&object("1", 1)), Settled::of(&object("2", 1)));
        assert_ne!(Settled::of(&object("1", 1)), Settled::of(&object("2", 2)));
    }
}
