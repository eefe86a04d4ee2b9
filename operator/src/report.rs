//! Telling: the status and the events. Nothing is written that already stands there.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, ObjectMeta};
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};
use lockstep_api::{ReplicatedService, ReplicatedServiceStatus};
use serde_json::json;

use crate::build::MANAGER;
use crate::conditions::{AVAILABLE, DEGRADED, READY, STATE_REBUILT};
use crate::context::{Context, Error};
use crate::decide::Action;
use crate::validate::Service;

/// The time for transitions, to the second, as the API keeps it.
pub fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// Writes `status`, unless it stands there already. The write carries the resource version that was looked at: whoever looked
/// at an older one writes nothing (PROTOCOL §5, L6).
pub async fn status(
    context: &Context,
    resource: &ReplicatedService,
    status: ReplicatedServiceStatus,
) -> Result<bool, Error> {
    let previous = resource.status.clone().unwrap_or_default();
    if previous == status {
        return Ok(false);
    }
    let mut changed = resource.clone();
    changed.metadata.managed_fields = None;
    changed.status = Some(status.clone());
    let api: Api<ReplicatedService> =
        Api::namespaced(context.client.clone(), &resource.namespace().unwrap_or_default());
    let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
    context.metrics.write("ReplicatedService");
    api.replace_status(&resource.name_any(), &parameters, &changed)
        .await
        .map_err(Error::kube("failed to write the status"))?;
    transitions(context, &resource.object_ref(&()), &previous, &status).await;
    Ok(true)
}

/// An event for an act.
pub async fn acted(context: &Context, resource: &ReplicatedService, service: &Service, action: &Action) {
    let note = action.describe(service);
    tracing::info!(service = %service.name, namespace = %service.namespace, "{note}");
    // Acts on different pods are different events; without this the recorder would count them as one.
    let pod = action.pod().map(|ordinal| ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(service.pod_name(ordinal)),
        namespace: Some(service.namespace.clone()),
        ..Default::default()
    });
    publish(context, &resource.object_ref(&()), pod, EventType::Normal, action.reason(), &note).await;
}

/// A resource that cannot even be read: said in its status and an event, once.
pub async fn unreadable(context: &Context, meta: &ObjectMeta, error: &str) -> Result<(), Error> {
    let kind = ApiResource::erase::<ReplicatedService>(&());
    let (name, namespace) = (meta.name.clone().unwrap_or_default(), meta.namespace.clone().unwrap_or_default());
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &namespace, &kind);
    let message = format!("the resource cannot be read: {error}; correct it, or install the CRD of this release");
    let Some(found) = api.get_opt(&name).await.map_err(Error::kube("failed to read the resource"))? else {
        return Ok(());
    };
    let previous: Vec<_> = found.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
    if previous.iter().any(|condition| condition["type"] == DEGRADED && condition["message"] == message.as_str()) {
        return Ok(());
    }
    let condition = |type_: &str, status: &str| {
        json!({"type": type_, "status": status, "reason": "Unreadable", "message": message,
               "observedGeneration": meta.generation, "lastTransitionTime": now()})
    };
    let others = previous.iter().filter(|condition| condition["type"] != READY && condition["type"] != DEGRADED);
    let mut conditions: Vec<_> = others.cloned().collect();
    conditions.extend([condition(READY, "False"), condition(DEGRADED, "True")]);
    let patch = json!({"status": {"observedGeneration": meta.generation, "conditions": conditions}});
    context.metrics.write("ReplicatedService");
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map_err(Error::kube("failed to write the status"))?;
    let reference = ObjectReference {
        api_version: Some(kind.api_version.clone()),
        kind: Some(kind.kind.clone()),
        name: Some(name),
        namespace: Some(namespace),
        uid: meta.uid.clone(),
        ..Default::default()
    };
    publish(context, &reference, None, EventType::Warning, "Unreadable", &message).await;
    Ok(())
}

/// Events for what changed for better or worse. They follow the status, so they are not repeated while it stands, not even
/// by another operator process.
async fn transitions(
    context: &Context,
    reference: &ObjectReference,
    before: &ReplicatedServiceStatus,
    after: &ReplicatedServiceStatus,
) {
    for (type_, reason, note) in changes(before, after) {
        publish(context, reference, None, type_, &reason, &note).await;
    }
}

fn changes(before: &ReplicatedServiceStatus, after: &ReplicatedServiceStatus) -> Vec<(EventType, String, String)> {
    let holds = |status: &ReplicatedServiceStatus, type_: &str| {
        status.condition(type_).is_some_and(|condition| condition.status == "True")
    };
    let mut changes = vec![];
    if let Some(degraded) = after.condition(DEGRADED).filter(|condition| condition.status == "True") {
        let known = before.condition(DEGRADED);
        if known.is_none_or(|known| (&known.status, &known.reason) != (&degraded.status, &degraded.reason)) {
            changes.push((EventType::Warning, degraded.reason.clone(), degraded.message.clone()));
        }
    }
    let rebuilt = |status: &ReplicatedServiceStatus| {
        status.condition(DEGRADED).filter(|degraded| degraded.reason == STATE_REBUILT).map(|it| it.message.clone())
    };
    if let Some(message) = rebuilt(after).filter(|message| rebuilt(before).as_ref() != Some(message)) {
        changes.push((EventType::Warning, STATE_REBUILT.into(), message));
    }
    if let Some(available) = after.condition(AVAILABLE) {
        match (holds(before, AVAILABLE), holds(after, AVAILABLE)) {
            (true, false) => changes.push((EventType::Warning, "Unavailable".into(), available.message.clone())),
            (false, true) => changes.push((EventType::Normal, "Available".into(), available.message.clone())),
            _ => {}
        }
    }
    if !holds(before, READY)
        && let Some(ready) = after.condition(READY).filter(|condition| condition.status == "True")
    {
        changes.push((EventType::Normal, "Ready".into(), ready.message.clone()));
    }
    changes
}

async fn publish(
    context: &Context,
    reference: &ObjectReference,
    secondary: Option<ObjectReference>,
    type_: EventType,
    reason: &str,
    note: &str,
) {
    if matches!(type_, EventType::Warning) {
        let name = |name: &Option<String>| name.clone().unwrap_or_default();
        tracing::warn!(service = name(&reference.name), namespace = name(&reference.namespace), reason, "{note}");
    }
    let event = Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note.chars().take(1000).collect()),
        action: reason.to_owned(),
        secondary,
    };
    if let Err(error) = context.recorder.publish(&event, reference).await {
        tracing::warn!(%error, reason, "failed to publish an event");
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

    use super::*;

    fn status(conditions: &[(&str, bool, &str)]) -> ReplicatedServiceStatus {
        let condition = |(type_, holds, reason): &(&str, bool, &str)| Condition {
            type_: (*type_).into(),
            status: if *holds { "True" } else { "False" }.into(),
            reason: (*reason).into(),
            message: format!("{reason}, in words"),
            last_transition_time: now(),
            observed_generation: None,
        };
        ReplicatedServiceStatus { conditions: conditions.iter().map(condition).collect(), ..Default::default() }
    }

    fn reasons(before: &[(&str, bool, &str)], after: &[(&str, bool, &str)]) -> Vec<String> {
        changes(&status(before), &status(after)).into_iter().map(|(_, reason, _)| reason).collect()
    }

    #[test]
    fn refusal_that_stands_is_told_once() {
        let refused = [("Degraded", true, "ReplicaLost")];
        assert_eq!(reasons(&[], &refused), ["ReplicaLost"]);
        assert!(reasons(&refused, &refused).is_empty());
        assert_eq!(reasons(&refused, &[("Degraded", true, "ForeignVolume")]), ["ForeignVolume"]);
        assert!(reasons(&refused, &[("Degraded", false, "AsExpected")]).is_empty());
    }

    #[test]
    fn state_that_was_built_anew_is_told_once_even_if_nobody_saw_the_fence() {
        let rebuilt = [("Degraded", false, "StateRebuilt")];
        assert_eq!(reasons(&[("Degraded", false, "AsExpected")], &rebuilt), ["StateRebuilt"]);
        assert!(reasons(&rebuilt, &rebuilt).is_empty());
    }

    #[test]
    fn service_that_comes_and_goes_is_told_each_time() {
        let up = [("Ready", true, "AllReplicasReady"), ("Available", true, "QuorumReady")];
        let down = [("Ready", false, "ReplicasNotReady"), ("Available", false, "NoQuorum")];
        assert_eq!(reasons(&[], &up), ["Available", "Ready"]);
        assert_eq!(reasons(&up, &down), ["Unavailable"]);
        assert!(reasons(&up, &up).is_empty());
    }
}
