//! The driver: when to look, and the steps of one look in order. Decides nothing about a service.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Service as KubernetesService, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, ListParams};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action as Next, Config, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt};
use lockstep_api::ReplicatedService;
use lockstep_types::ServiceId;

use crate::apply::Outcome;
use crate::build::{self, MANAGER};
use crate::conditions;
use crate::context::{Context, Error};
use crate::decide::{self, Action, Decision, Wait, decide};
use crate::observe::observe;
use crate::validate::validate;
use crate::{apply, observe, report};

type Guarded = DeserializeGuard<ReplicatedService>;

/// Between the steps of something under way.
const SOON: Duration = Duration::from_secs(1);
/// After an act: its effect shows at once, or with the next event.
const AT_ONCE: Duration = Duration::from_millis(100);

/// What is said when there is nothing to watch.
pub const NO_CRD: &str =
    "the ReplicatedService CRD is not installed; apply crds/ or install charts/lockstep-crds (trying again every 5 s)";

/// Waits until the CRD is installed, saying so now and then.
pub async fn wait_for_crd(client: &Client, namespace: Option<&str>) {
    let api: Api<Guarded> = scoped(client, namespace);
    let mut attempts = 0_u32;
    loop {
        match api.list(&ListParams::default().limit(1)).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 404 => {
                if attempts.is_multiple_of(12) {
                    tracing::error!("{NO_CRD}");
                }
            }
            Err(error) => tracing::error!(%error, "failed to list ReplicatedServices; trying again"),
        }
        attempts = attempts.wrapping_add(1);
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// Watches and reconciles until `stop`.
pub async fn run(
    context: Arc<Context>,
    namespace: Option<&str>,
    concurrency: u16,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let client = context.client.clone();
    let ours = watcher::Config::default().labels(&format!("app.kubernetes.io/managed-by={MANAGER}"));
    Controller::new(scoped::<Guarded>(&client, namespace), watcher::Config::default())
        .owns(scoped::<StatefulSet>(&client, namespace), ours.clone())
        .owns(scoped::<KubernetesService>(&client, namespace), ours.clone())
        .owns(scoped::<ServiceAccount>(&client, namespace), ours.clone())
        .owns(scoped::<PodDisruptionBudget>(&client, namespace), ours.clone())
        .watches(scoped::<Pod>(&client, namespace), ours, |pod| service_of(&pod))
        .with_config(Config::default().concurrency(concurrency))
        .graceful_shutdown_on(stop)
        .run(reconcile, on_error, context)
        .for_each(async |result| {
            if let Err(error) = result {
                // A reconcile error was told where it happened; what is left are watches and objects that went away.
                tracing::debug!(%error, "controller");
            }
        })
        .await;
}

fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// A pod belongs to the StatefulSet; its labels name the service.
fn service_of(pod: &Pod) -> Option<ObjectRef<Guarded>> {
    let name = pod.labels().get("app.kubernetes.io/instance")?;
    Some(ObjectRef::new(name).within(&pod.namespace()?))
}

async fn reconcile(seen: Arc<Guarded>, context: Arc<Context>) -> Result<Next, Error> {
    let uid = seen.meta().uid.clone().unwrap_or_default();
    match pass(&seen, &context).await {
        Ok(next) => {
            context.went_well(&uid);
            Ok(next)
        }
        Err(error) if error.is_conflict() => {
            context.metrics.pass("conflict");
            Ok(Next::requeue(AT_ONCE))
        }
        Err(error) => Err(error),
    }
}

/// One look at one resource, and at most one act.
async fn pass(seen: &Guarded, context: &Context) -> Result<Next, Error> {
    let (name, namespace) = (seen.name_any(), seen.namespace().unwrap_or_default());
    let uid = seen.meta().uid.clone().unwrap_or_default();
    // The watch may lag behind what this very process wrote a moment ago, so the resource is read again.
    let Some(DeserializeGuard(resource)) = observe::resource(context, &namespace, &name).await? else {
        context.forget(&uid);
        return Ok(Next::await_change());
    };
    let resource = match resource {
        Ok(resource) => resource,
        Err(unreadable) => {
            report::unreadable(context, &unreadable.metadata, &unreadable.error).await?;
            context.metrics.pass("unreadable");
            return Ok(Next::await_change());
        }
    };
    if resource.metadata.deletion_timestamp.is_some() {
        // Everything goes by owner references; the volumes as the StatefulSet's retention policy says.
        context.forget(&uid);
        return Ok(Next::await_change());
    }
    let service = match validate(&resource, &context.defaults) {
        Ok(service) => service,
        Err(invalid) => {
            let previous = resource.status.clone().unwrap_or_default();
            let status = conditions::invalid(&previous, resource.metadata.generation, &invalid, &report::now());
            report::status(context, &resource, status).await?;
            context.metrics.pass("invalid");
            return Ok(Next::await_change());
        }
    };

    let names = build::build(&service, None).desired();
    let mut seen = observe(context, &service, &names).await?;
    seen.world.held_back = context.held_back(&uid);
    seen.world.crowded = context.turns.lock().expect("never poisoned").crowded(&uid, Instant::now());
    let existing = seen.world.objects.get(&("StatefulSet", service.name.clone()));
    let members = service.recorded.as_ref().map(|genesis| seen.world.members(genesis).configuration);
    let objects = build::build(&service, existing).guarding(&service, members.as_ref());
    let desired = objects.running(decide::size(&service, &seen.world)).desired();
    let decision = decide(&service, &desired, &seen.world, ServiceId::from_bytes(rand::random()));
    tracing::debug!(service = %service.name, namespace = %service.namespace, %decision, "decided");

    let rolls = matches!(&decision, Decision::Act(action) if action.takes_turn());
    if rolls && !context.turns.lock().expect("never poisoned").take(&uid, Instant::now()) {
        // Another service was faster, after our look.
        return Ok(Next::requeue(AT_ONCE));
    }
    if decision == Decision::Converged {
        context.turns.lock().expect("never poisoned").end(&uid);
    }

    // What is about to happen is written down before it happens; for the genesis this is the act itself.
    let failure = context.failure(&uid);
    let mut told = decide::told(decision.clone(), &seen.world);
    let status = conditions::status(&service, &seen.world, &told, failure.as_deref(), &report::now());
    report::status(context, &resource, status).await?;
    if let Decision::Act(action) = &decision {
        match apply::apply(context, &service, &desired, &seen, action).await {
            Ok(Outcome::Done) => {
                context.hold_back(&uid, None);
                if rolls {
                    context.turns.lock().expect("never poisoned").stepped(&uid, Instant::now());
                }
                report::acted(context, &resource, &service, action).await;
                told = decision;
            }
            Ok(Outcome::HeldBack) => {
                if let Action::ReplacePod { ordinal, uid: pod, .. } = action {
                    context.hold_back(&uid, Some(pod));
                    told = Decision::Wait(Wait::HeldBack(*ordinal));
                }
            }
            Err(error) => {
                context.act_failed(&uid, error.to_string());
                return Err(error);
            }
        }
    }
    context.metrics.pass(word(&told));
    let wait = match &told {
        Decision::Wait(wait) => Some(wait.reason()),
        Decision::Act(_) | Decision::Refuse(_) | Decision::Converged => None,
    };
    let waited = context.waits.lock().expect("never poisoned").waited(&uid, wait, Instant::now());
    Ok(Next::requeue(pause(&told, waited, context.poll, rand::random())))
}

fn word(decision: &Decision) -> &'static str {
    match decision {
        Decision::Act(_) => "acted",
        Decision::Wait(_) => "waiting",
        Decision::Refuse(_) => "refused",
        Decision::Converged => "converged",
    }
}

/// How long until the next look, if nothing happens: an event of a watch is looked at as it comes. Looks cost the API server
/// reads, never a write. What has been waited for is looked at ever more seldom, in the end like a service at rest.
fn pause(decision: &Decision, waited: Duration, poll: Duration, chance: u8) -> Duration {
    match decision {
        Decision::Act(
            Action::ReplacePod { .. }
            | Action::ReplaceVolume { .. }
            | Action::DeleteClaims { .. }
            | Action::GrowVolumes { .. },
        ) => SOON,
        Decision::Act(
            Action::CreateToken
            | Action::Apply(_)
            | Action::RecordGenesis { .. }
            | Action::SendGenesis { .. }
            | Action::MarkVolumes { .. }
            | Action::HandOver { .. }
            | Action::ChangeMembers { .. }
            | Action::Join { .. },
        ) => AT_ONCE,
        Decision::Wait(_) => spread((waited / 4).min(poll).max(SOON), chance),
        Decision::Refuse(_) | Decision::Converged => poll,
    }
}

fn on_error(object: Arc<Guarded>, error: &Error, context: Arc<Context>) -> Next {
    let attempts = context.pass_failed(&object.meta().uid.clone().unwrap_or_default());
    let pause = backoff(attempts, rand::random());
    tracing::warn!(
        service = %object.name_any(), namespace = %object.namespace().unwrap_or_default(), %error, attempts,
        "pass failed; next try in {pause:?}"
    );
    context.metrics.pass("failed");
    Next::requeue(pause)
}

/// Half a second, doubled with each failure up to a minute, and up to a quarter more by chance.
fn backoff(attempts: u32, chance: u8) -> Duration {
    let base = Duration::from_millis(500) * 2_u32.saturating_pow(attempts.saturating_sub(1).min(7));
    spread(base.min(Duration::from_secs(60)), chance)
}

/// Up to a quarter more by chance, so that what began together does not stay together.
fn spread(pause: Duration, chance: u8) -> Duration {
    pause + pause / 4 * u32::from(chance) / 255
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_a_minute_and_never_overflows() {
        assert_eq!(backoff(1, 0), Duration::from_millis(500));
        assert_eq!(backoff(2, 0), Duration::from_secs(1));
        assert_eq!(backoff(8, 0), Duration::from_secs(60));
        assert_eq!(backoff(u32::MAX, 255), Duration::from_secs(75));
    }

    #[test]
    fn wait_is_looked_at_ever_more_seldom_and_no_more_seldom_than_a_service_at_rest() {
        let poll = Duration::from_secs(10);
        let after = |seconds: u64, chance: u8| {
            pause(&Decision::Wait(Wait::NoLeader), Duration::from_secs(seconds), poll, chance)
        };
        assert_eq!(after(0, 0), SOON);
        assert_eq!(after(4, 0), SOON);
        assert_eq!(after(20, 0), Duration::from_secs(5));
        assert_eq!(after(3600, 0), poll);
        assert_eq!(after(3600, 255), poll + poll / 4);
        assert_eq!(pause(&Decision::Converged, Duration::ZERO, poll, 255), poll);
    }

    #[test]
    fn pod_names_its_service_by_its_labels() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "kv-0", "namespace": "apps", "labels": {"app.kubernetes.io/instance": "kv"}}
        }))
        .expect("a pod");
        assert_eq!(service_of(&pod), Some(ObjectRef::new("kv").within("apps")));
    }
}
