//! What the operator saw of one service in one pass: the argument of [`decide`](crate::decide), without a trace of a client.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use lockstep_types::{Configuration, Genesis, ReplicaId, ServiceId, View};
use serde_json::Value;

use lockstep_api::quantity::Amount;

pub use crate::strand::{Node, Strand, Stranded};

/// How long a pod may be not ready, or on its way out, before that is no passing state any more. An election takes a second, a
/// restart some more.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Everything seen in one pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// The Secret with the admin token.
    pub token: Token,
    /// The objects that exist under the names of those that shall be, whoever owns them, by kind and name.
    pub objects: BTreeMap<(&'static str, String), Value>,
    /// Those of them that stand as our last apply left them: what differs was changed on the way in, by an admission webhook
    /// for instance, and would only be changed again.
    pub settled: BTreeSet<(&'static str, String)>,
    /// The StatefulSet's own word on its pods; none before it exists.
    pub set: Option<Set>,
    /// How many pods the StatefulSet is told to run; none before it exists.
    pub size: Option<usize>,
    /// Pods of that set by ordinal.
    pub pods: BTreeMap<usize, Pod>,
    /// Pods under their names that are not of that set, by ordinal. What runs in them is not taken for ours.
    pub others: BTreeMap<usize, Owner>,
    /// Claims by ordinal.
    pub claims: BTreeMap<usize, Claim>,
    /// The uid of the pod whose eviction a disruption budget held back at the last try.
    pub held_back: Option<String>,
    /// Whether as many other services as may are being rolled.
    pub crowded: bool,
}

/// The Secret with the admin token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Token {
    /// Not there.
    #[default]
    Missing,
    /// There, but without a token in it.
    Malformed,
    /// There.
    Present(String),
}

/// What the StatefulSet says of its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// The revision that a new pod gets.
    pub update_revision: String,
    /// Whether its controller has seen the latest template.
    pub up_to_date: bool,
}

/// Whose a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The StatefulSet's that there is now.
    Set,
    /// A former StatefulSet's of the same name: Kubernetes removes it.
    FormerSet,
    /// Nobody's: the StatefulSet will take it in, or its name is in the way.
    Nobody,
    /// Somebody else's.
    Another,
}

/// A pod and the replica in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its identity: a pod of the same name may be another one.
    pub uid: String,
    /// The revision that it was made from.
    pub revision: String,
    /// On its way out.
    pub terminating: bool,
    /// That it is not ready, or on its way out, has lasted for longer than [`PATIENCE`].
    pub lasting: bool,
    /// Whether it may have been ready at some time; no if it certainly never was.
    pub was_ready: bool,
    /// Why it cannot run at all, in words that do not change from one retry to the next.
    pub stuck: Option<String>,
    /// That it cannot run because its node, or that of its volume, is gone.
    pub stranded: Option<Stranded>,
    /// What the replica said just now; none if nothing answered.
    pub replica: Option<Replica>,
}

/// What a replica says of itself, as far as decisions depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its identity.
    pub id: ReplicaId,
    /// Its service; none before genesis.
    pub service: Option<ServiceId>,
    /// Its genesis.
    pub genesis: Option<Genesis>,
    /// Whether it leads, and its view.
    pub leads: bool,
    /// Its view.
    pub view: View,
    /// Why it is not ready; none if it is.
    pub not_ready: Option<String>,
    /// It forgot what it had promised, and is never listened to again.
    pub retired: bool,
    /// What it executed differently than others, since the start of its process.
    pub diverged: Option<Diverged>,
    /// Who belongs to its service, as it knows; none before genesis.
    pub members: Option<Members>,
    /// Whether it knows itself to be a member, hears a leader and has executed nearly all that the leader has.
    pub caught_up: bool,
}

/// What a replica says of a state that was not that of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diverged {
    /// It is that of a quorum again.
    pub over: bool,
    /// Block and key, in words.
    pub text: String,
}

/// Who belongs to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// The newest configuration known to be committed.
    pub configuration: Configuration,
    /// Whether the change that brought it is over: who left with it is needed no more.
    pub settled: bool,
}

/// A claim of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its identity: a claim of the same name may be another one.
    pub uid: String,
    /// The size asked for.
    pub request: Option<Amount>,
    /// On its way out.
    pub terminating: bool,
    /// The service that was noted on it, after its replica said so.
    pub service: Option<ServiceId>,
}

impl Set {
    /// Reads a StatefulSet; none before its controller has seen it.
    pub fn read(set: &Value) -> Option<Self> {
        let update_revision = set["status"]["updateRevision"].as_str().filter(|revision| !revision.is_empty())?;
        let observed = set["status"]["observedGeneration"].as_i64();
        let up_to_date = observed.is_some() && observed >= set["metadata"]["generation"].as_i64();
        Some(Set { update_revision: update_revision.to_owned(), up_to_date })
    }
}

/// How many pods a StatefulSet is told to run.
pub fn size(set: &Value) -> Option<usize> {
    usize::try_from(set["spec"]["replicas"].as_u64()?).ok()
}

/// The uid of the StatefulSet, if the resource with uid `resource` controls it.
pub fn set_uid<'a>(set: &'a Value, resource: &str) -> Option<&'a str> {
    (controller(set)?["uid"] == resource).then(|| set["metadata"]["uid"].as_str())?
}

/// The reference to the controller of an object.
pub fn controller(object: &Value) -> Option<&Value> {
    object["metadata"]["ownerReferences"].as_array()?.iter().find(|owner| owner["controller"] == true)
}

impl Owner {
    /// Whose the pod with this metadata is. `set` is the name of the StatefulSet, and its uid if there is one of ours.
    pub fn read(pod: &ObjectMeta, set: (&str, Option<&str>)) -> Self {
        let controller = pod.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        match controller {
            None => Owner::Nobody,
            // Names come back, uids never do.
            Some(owner) if Some(owner.uid.as_str()) == set.1 => Owner::Set,
            Some(owner) if owner.kind == "StatefulSet" && owner.name == set.0 => Owner::FormerSet,
            Some(_) => Owner::Another,
        }
    }
}

impl Pod {
    /// Reads a pod at this time; the replica's answer comes later.
    pub fn read(pod: &core::Pod, now: Timestamp) -> Self {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        Pod {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            revision: labels.get("controller-revision-hash").cloned().unwrap_or_default(),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            lasting: lasting(pod, now),
            was_ready: was_ready(pod),
            stuck: pod.status.as_ref().and_then(stuck),
            stranded: None,
            replica: None,
        }
    }
}

fn readiness(pod: &core::Pod) -> Option<&core::PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == "Ready")
}

fn lasting(pod: &core::Pod, now: Timestamp) -> bool {
    let since = match (&pod.metadata.deletion_timestamp, readiness(pod)) {
        // When it shall be gone at the latest: the time that it may take to stop is in it.
        (Some(due), _) => Some(due),
        (None, Some(ready)) if ready.status == "True" => None,
        (None, Some(ready)) => ready.last_transition_time.as_ref(),
        // No kubelet has seen it yet.
        (None, None) => pod.metadata.creation_timestamp.as_ref(),
    };
    since.is_some_and(|since| now.duration_since(since.0).unsigned_abs() > PATIENCE && now > since.0)
}

/// The kubelet notes a pod's start and its first "not ready" at the same moment; a later "not ready" follows a "ready".
fn was_ready(pod: &core::Pod) -> bool {
    let Some(ready) = readiness(pod) else { return false };
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    match (started, &ready.last_transition_time) {
        (Some(started), Some(since)) if ready.status != "True" => since.0.duration_since(started.0).as_secs() > 1,
        _ => true,
    }
}

/// Why a pod cannot run. Kubernetes goes back and forth between some reasons; the words here stay.
fn stuck(status: &core::PodStatus) -> Option<String> {
    let conditions = status.conditions.iter().flatten();
    let unscheduled = conditions.into_iter().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if unscheduled.is_some_and(|condition| condition.reason.as_deref() == Some("Unschedulable")) {
        return Some("no node takes it".to_owned());
    }
    status.container_statuses.iter().flatten().find_map(|container| {
        let state = container.state.as_ref();
        let waiting = state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.as_deref());
        match waiting {
            Some("ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName") => {
                Some(format!("cannot pull image {}", container.image))
            }
            Some("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError") => {
                Some("cannot create its container".to_owned())
            }
            _ => {
                let ended = |state: Option<&core::ContainerState>| state.and_then(|state| state.terminated.clone());
                let last = ended(state).or_else(|| ended(container.last_state.as_ref()))?;
                let crashes = !container.ready && container.restart_count > 0 && last.exit_code != 0;
                crashes.then(|| format!("keeps ending with exit code {}", last.exit_code))
            }
        }
    })
}

impl World {
    /// Claims on their way out that only a running pod still keeps. What lives on them goes with that pod.
    pub fn dying(&self) -> Vec<usize> {
        let stays = |ordinal: &usize| self.pods.get(ordinal).is_some_and(|pod| !pod.terminating);
        let dying = self.claims.iter().filter(|(ordinal, claim)| claim.terminating && stays(ordinal));
        dying.map(|(ordinal, _)| *ordinal).collect()
    }

    /// The pod's replica, if it answers and the pod stays.
    pub fn replica(&self, ordinal: usize) -> Option<&Replica> {
        self.pods.get(&ordinal).filter(|pod| !pod.terminating).and_then(|pod| pod.replica.as_ref())
    }

    /// Replicas that answer, by ordinal.
    pub fn replicas(&self) -> impl Iterator<Item = (usize, &Replica)> {
        self.pods.keys().filter_map(|ordinal| Some((*ordinal, self.replica(*ordinal)?)))
    }

    /// The pod that runs this identity, if it answers.
    pub fn pod_of(&self, id: ReplicaId) -> Option<usize> {
        self.replicas().find(|(_, replica)| replica.id == id).map(|(ordinal, _)| ordinal)
    }

    /// The members of the service of `genesis`: of the highest epoch that one of its replicas knows to be committed, or as they
    /// were born.
    pub fn members(&self, genesis: &Genesis) -> Members {
        self.replicas()
            .filter(|(_, replica)| replica.service == Some(genesis.service))
            .filter_map(|(_, replica)| replica.members.as_ref())
            .max_by_key(|members| (members.configuration.epoch(), members.settled))
            .cloned()
            .unwrap_or_else(|| Members { configuration: genesis.configuration(), settled: false })
    }

    /// Whether a replica of the service of `genesis` says who its members are.
    pub fn members_are_known(&self, genesis: &Genesis) -> bool {
        self.replicas().any(|(_, replica)| replica.service == Some(genesis.service) && replica.members.is_some())
    }

    /// Whether the replica of this ordinal is a ready voter of the service of `genesis`.
    pub fn is_ready(&self, ordinal: usize, genesis: &Genesis) -> bool {
        self.replica(ordinal).is_some_and(|replica| {
            replica.service == Some(genesis.service)
                && replica.not_ready.is_none()
                && self.members(genesis).configuration.voters().values().any(|id| *id == replica.id)
        })
    }

    /// How many replicas are ready voters of the service of `genesis`.
    pub fn ready(&self, genesis: &Genesis) -> usize {
        self.pods.keys().filter(|ordinal| self.is_ready(**ordinal, genesis)).count()
    }

    /// Whether every voter but the one in this pod is ready.
    pub fn others_are_ready(&self, genesis: &Genesis, ordinal: usize) -> bool {
        let ready = self.pods.keys().filter(|other| **other != ordinal && self.is_ready(**other, genesis)).count();
        ready + 1 >= self.members(genesis).configuration.voters().len()
    }

    /// Whether every voter is ready.
    pub fn all_are_ready(&self, genesis: &Genesis) -> bool {
        self.ready(genesis) == self.members(genesis).configuration.voters().len()
    }

    /// The ordinal of the replica that leads in the highest view.
    pub fn leader(&self, genesis: &Genesis) -> Option<usize> {
        self.replicas()
            .filter(|(_, replica)| replica.leads && replica.service == Some(genesis.service))
            .max_by_key(|(_, replica)| replica.view)
            .map(|(ordinal, _)| ordinal)
    }

    /// Pods that were not made from the latest template; none while that is not known.
    pub fn outdated(&self) -> Vec<usize> {
        self.made(|pod, latest| pod.revision != latest)
    }

    /// Pods that were made from the latest template; none while that is not known.
    pub fn current(&self) -> Vec<usize> {
        self.made(|pod, latest| pod.revision == latest)
    }

    fn made(&self, so: impl Fn(&Pod, &str) -> bool) -> Vec<usize> {
        let Some(set) = self.set.as_ref().filter(|set| set.up_to_date) else { return vec![] };
        self.pods.iter().filter(|(_, pod)| so(pod, &set.update_revision)).map(|(ordinal, _)| *ordinal).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a time")
    }

    fn pod(status: Value) -> Pod {
        let pod = json!({"metadata": {"uid": "u", "labels": {"controller-revision-hash": "r"}}, "status": status});
        Pod::read(&serde_json::from_value(pod).expect("a pod"), at(0))
    }

    fn container(state: Value, last: Value, restarts: i32) -> Value {
        json!({"containerStatuses": [{
            "name": "replica", "image": "example/image:1", "imageID": "", "ready": false,
            "restartCount": restarts, "state": state, "lastState": last,
        }]})
    }

    #[test]
    fn pod_that_cannot_run_says_why_in_words_that_stay() {
        let waiting = |reason: &str| container(json!({"waiting": {"reason": reason}}), json!({}), 0);
        let cannot_pull = Some("cannot pull image example/image:1".to_owned());
        assert_eq!(pod(waiting("ErrImagePull")).stuck, cannot_pull);
        assert_eq!(pod(waiting("ImagePullBackOff")).stuck, cannot_pull);
        assert_eq!(pod(waiting("ContainerCreating")).stuck, None);
        let ended = json!({"terminated": {"exitCode": 3}});
        let crashes = Some("keeps ending with exit code 3".to_owned());
        assert_eq!(pod(container(json!({"waiting": {"reason": "CrashLoopBackOff"}}), ended.clone(), 2)).stuck, crashes);
        assert_eq!(pod(container(json!({"running": {}}), ended.clone(), 2)).stuck, crashes);
        assert_eq!(pod(container(ended, json!({}), 2)).stuck, crashes);
        let unscheduled =
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]});
        assert_eq!(pod(unscheduled).stuck.as_deref(), Some("no node takes it"));
    }

    #[test]
    fn pod_not_ready_for_long_is_told_from_one_in_transition() {
        let read = |ready: &str, since: i64, deleted: Option<i64>, now: i64| {
            let pod = json!({
                "metadata": {"creationTimestamp": at(0), "deletionTimestamp": deleted.map(at)},
                "status": {
                    "startTime": at(1),
                    "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": at(since)}],
                },
            });
            let pod = Pod::read(&serde_json::from_value(pod).expect("a pod"), at(now));
            (pod.lasting, pod.was_ready)
        };
        assert_eq!(read("False", 1, None, 50), (false, false));
        assert_eq!(read("False", 1, None, 70), (true, false));
        assert_eq!(read("False", 90, None, 100), (false, true));
        assert_eq!(read("False", 90, None, 200), (true, true));
        assert_eq!(read("True", 3, None, 200), (false, true));
        // Gone at the latest at 130: until then and a while after, it is on its way.
        assert_eq!(read("True", 3, Some(130), 100), (false, true));
        assert_eq!(read("True", 3, Some(130), 200), (true, true));
        let pending = json!({"metadata": {"creationTimestamp": at(0)}, "status": {"phase": "Pending"}});
        let pending = Pod::read(&serde_json::from_value(pending).expect("a pod"), at(70));
        assert_eq!((pending.lasting, pending.was_ready), (true, false));
    }

    #[test]
    fn pod_of_a_former_set_of_the_same_name_is_told_by_its_uid() {
        let owned = |owners: Value| -> ObjectMeta {
            serde_json::from_value(json!({"name": "kv-0", "ownerReferences": owners})).expect("metadata")
        };
        let by = |kind: &str, name: &str, uid: &str, controller: bool| {
            owned(json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": uid, "controller": controller}]))
        };
        let now = ("kv", Some("new"));
        assert_eq!(Owner::read(&by("StatefulSet", "kv", "new", true), now), Owner::Set);
        assert_eq!(Owner::read(&by("StatefulSet", "kv", "old", true), now), Owner::FormerSet);
        assert_eq!(Owner::read(&by("StatefulSet", "kv", "old", true), ("kv", None)), Owner::FormerSet);
        assert_eq!(Owner::read(&by("StatefulSet", "kv", "new", false), now), Owner::Nobody);
        assert_eq!(Owner::read(&owned(json!([])), now), Owner::Nobody);
        assert_eq!(Owner::read(&by("ReplicaSet", "web", "x", true), now), Owner::Another);
    }

    #[test]
    fn set_of_another_resource_has_no_pods_of_ours() {
        let set = |owner: &str, controller: bool| json!({"metadata": {"uid": "set", "ownerReferences": [{"uid": owner, "controller": controller}]}});
        assert_eq!(set_uid(&set("resource", true), "resource"), Some("set"));
        assert_eq!(set_uid(&set("former", true), "resource"), None);
        assert_eq!(set_uid(&set("resource", false), "resource"), None);
        assert_eq!(set_uid(&json!({"metadata": {"uid": "set"}}), "resource"), None);
    }

    #[test]
    fn set_behind_its_template_is_not_up_to_date() {
        let set = |observed: i64| {
            Set::read(&json!({
                "metadata": {"generation": 2}, "status": {"updateRevision": "r", "observedGeneration": observed}
            }))
        };
        assert_eq!(set(1).map(|set| set.up_to_date), Some(false));
        assert_eq!(set(2).map(|set| set.up_to_date), Some(true));
        assert_eq!(Set::read(&json!({"metadata": {"generation": 1}})), None);
    }
}
