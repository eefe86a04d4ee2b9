//! Pods that cannot run because their node, or that of their volume, is gone. Told by the API's own timestamps, so that another
//! operator process counts the same time.

use std::fmt;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::jiff::Timestamp;

use crate::validate::Service;

/// What the scheduler says of a node that does not reach a pod's volume, in the words of all supported releases.
const OUT_OF_REACH: [&str; 2] = ["didn't match PersistentVolume's node affinity", "volume node affinity conflict"];
/// What it says of nodes that could run the pod at another time.
const BUSY: [&str; 2] = ["Insufficient", "were unschedulable"];

/// A node, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// This operator has no right to read nodes.
    Unreadable,
    /// Kubernetes knows no such node.
    Gone,
    /// Not ready, or unheard of, since then.
    NotReady(Timestamp),
    /// Ready.
    Ready,
}

/// That a pod cannot run where it must, and for how long it has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranded {
    /// Why.
    pub strand: Strand,
    /// For how long.
    pub lasted: Duration,
}

/// What keeps a pod from running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strand {
    /// It is bound to a node that is gone or not ready.
    Node {
        /// The node.
        name: String,
        /// Whether Kubernetes knows it no more.
        gone: bool,
    },
    /// No node takes it but the one with its volume, which is gone or not ready.
    Volume {
        /// The node, if nodes can be read.
        node: Option<(String, bool)>,
    },
    /// It was evicted from a node that does not answer; nodes cannot be read.
    Evicted,
}

impl Node {
    /// Reads a node; none: there is no such node.
    pub fn read(node: Option<&core::Node>) -> Self {
        let Some(node) = node else { return Node::Gone };
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        match conditions.into_iter().find(|condition| condition.type_ == "Ready") {
            Some(ready) if ready.status != "True" => {
                let since = ready.last_transition_time.as_ref().or(node.metadata.creation_timestamp.as_ref());
                since.map_or(Node::Ready, |since| Node::NotReady(since.0))
            }
            // A node that has never said anything is a new one.
            Some(_) | None => Node::Ready,
        }
    }
}

/// The node that matters to a pod that is not ready: its own, or before it has one that of its volume.
pub fn node_of(pod: &core::Pod, volume: Option<&str>) -> Option<String> {
    let own = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    own.or_else(|| out_of_reach(pod).and(volume).map(str::to_owned))
}

impl Stranded {
    /// Whether a pod that does not answer is stranded at this time, given the node that matters to it.
    pub fn read(pod: &core::Pod, node: Option<(&str, &Node)>, now: Timestamp) -> Option<Self> {
        let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let since = if bound { not_ready_since(pod)? } else { out_of_reach(pod)? };
        let (gone, since) = match node {
            Some((_, Node::Ready)) => return None,
            Some((_, Node::Gone)) => (true, since),
            Some((_, Node::NotReady(node))) => (false, since.max(*node)),
            Some((_, Node::Unreadable)) | None => {
                let (strand, since) = if bound { (Strand::Evicted, evicted_since(pod)?) } else { unread(pod, since)? };
                return Some(Stranded { strand, lasted: lasted(since, now) });
            }
        };
        let name = node.map(|(name, _)| name.to_owned()).unwrap_or_default();
        let strand = if bound { Strand::Node { name, gone } } else { Strand::Volume { node: Some((name, gone)) } };
        Some(Stranded { strand, lasted: lasted(since, now) })
    }

    /// What is wrong, and what can be done or will be.
    pub fn describe(&self, service: &Service, ordinal: usize) -> String {
        let what = match &service.replace_after_text {
            Some(after) => format!("a new replica comes in its place after {after}, while the others are a quorum"),
            None => format!(
                "if that is for good, set spec.storage.replaceAfter, or delete volume claim {} and pod {}{}",
                service.claim_name(ordinal),
                service.pod_name(ordinal),
                if self.strand.is_bound() { " by force" } else { "" }
            ),
        };
        format!("{}; {what}", self.strand)
    }
}

impl Strand {
    /// Whether the pod is on a node, which would have to say that it has stopped.
    pub fn is_bound(&self) -> bool {
        match self {
            Strand::Node { .. } | Strand::Evicted => true,
            Strand::Volume { .. } => false,
        }
    }
}

impl fmt::Display for Strand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = |gone: &bool| if *gone { "is gone" } else { "is not ready" };
        match self {
            Strand::Node { name, gone } => write!(f, "its node {name} {}", state(gone)),
            Strand::Volume { node: Some((name, gone)) } => write!(f, "the node of its volume, {name}, {}", state(gone)),
            Strand::Volume { node: None } => f.write_str("no node reaches its volume"),
            Strand::Evicted => f.write_str("its node does not answer"),
        }
    }
}

fn condition<'a>(pod: &'a core::Pod, type_: &str) -> Option<&'a core::PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

fn since(pod: &core::Pod, condition: &core::PodCondition) -> Option<Timestamp> {
    let since = condition.last_transition_time.as_ref().or(pod.metadata.creation_timestamp.as_ref());
    since.map(|since| since.0)
}

/// Since when a pod on a node is not ready.
fn not_ready_since(pod: &core::Pod) -> Option<Timestamp> {
    match condition(pod, "Ready") {
        Some(ready) if ready.status == "True" => None,
        Some(ready) => since(pod, ready),
        None => pod.metadata.creation_timestamp.as_ref().map(|since| since.0),
    }
}

/// Since when no node takes a pod because of its volume.
fn out_of_reach(pod: &core::Pod) -> Option<Timestamp> {
    let scheduled = condition(pod, "PodScheduled").filter(|condition| condition.status == "False")?;
    let said = scheduled.message.as_deref().unwrap_or_default();
    OUT_OF_REACH.iter().any(|words| said.contains(words)).then(|| since(pod, scheduled))?
}

/// Without a look at the node, only what cannot be mistaken for a node that is full or closed for a while.
fn unread(pod: &core::Pod, since: Timestamp) -> Option<(Strand, Timestamp)> {
    let said = condition(pod, "PodScheduled").and_then(|scheduled| scheduled.message.as_deref()).unwrap_or_default();
    (!BUSY.iter().any(|words| said.contains(words))).then_some((Strand::Volume { node: None }, since))
}

/// Since when a pod should have left a node that does not answer.
fn evicted_since(pod: &core::Pod) -> Option<Timestamp> {
    let disruption = condition(pod, "DisruptionTarget").filter(|condition| condition.status == "True")?;
    let due = pod.metadata.deletion_timestamp.as_ref()?;
    (disruption.reason.as_deref() == Some("DeletionByTaintManager")).then_some(due.0)
}

fn lasted(since: Timestamp, now: Timestamp) -> Duration {
    if now > since { now.duration_since(since).unsigned_abs() } else { Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::validate::tests::{example, service};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a time")
    }

    fn pod(node: Option<&str>, conditions: Value) -> core::Pod {
        let pod = json!({
            "metadata": {"creationTimestamp": at(0)},
            "spec": {"containers": [], "nodeName": node},
            "status": {"conditions": conditions},
        });
        serde_json::from_value(pod).expect("a pod")
    }

    fn on_node(since: i64) -> core::Pod {
        pod(Some("n3"), json!([{"type": "Ready", "status": "False", "lastTransitionTime": at(since)}]))
    }

    fn pending(message: &str) -> core::Pod {
        pod(
            None,
            json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                    "lastTransitionTime": at(10)}]),
        )
    }

    const CONFLICT: &str = "0/4 nodes are available: 1 node(s) had untolerated taint(s), 3 node(s) didn't match \
                            PersistentVolume's node affinity.";

    fn seen(pod: &core::Pod, node: &Node) -> Option<(String, u64)> {
        let stranded = Stranded::read(pod, Some(("n3", node)), at(100))?;
        Some((stranded.strand.to_string(), stranded.lasted.as_secs()))
    }

    #[test]
    fn pod_on_a_node_that_is_gone_or_not_ready_is_stranded_since_both_are() {
        let text = |text: &str| text.to_owned();
        assert_eq!(seen(&on_node(40), &Node::Gone), Some((text("its node n3 is gone"), 60)));
        assert_eq!(seen(&on_node(40), &Node::NotReady(at(30))), Some((text("its node n3 is not ready"), 60)));
        assert_eq!(seen(&on_node(40), &Node::NotReady(at(70))), Some((text("its node n3 is not ready"), 30)));
        assert_eq!(seen(&on_node(40), &Node::Ready), None);
        let ready = pod(Some("n3"), json!([{"type": "Ready", "status": "True", "lastTransitionTime": at(1)}]));
        assert_eq!(seen(&ready, &Node::Gone), None);
    }

    #[test]
    fn pod_that_no_node_takes_is_stranded_only_by_its_volume() {
        let words = "the node of its volume, n3, is gone".to_owned();
        assert_eq!(seen(&pending(CONFLICT), &Node::Gone), Some((words, 90)));
        assert_eq!(seen(&pending(CONFLICT), &Node::Ready), None, "the node is full, or closed for a while");
        assert_eq!(seen(&pending("0/3 nodes are available: 3 Insufficient cpu."), &Node::Gone), None);
        assert_eq!(node_of(&pending(CONFLICT), Some("n3")).as_deref(), Some("n3"));
        assert_eq!(node_of(&pending("3 Insufficient cpu"), Some("n3")), None);
        assert_eq!(node_of(&on_node(1), Some("n1")).as_deref(), Some("n3"));
    }

    #[test]
    fn pod_is_stranded_by_its_own_conditions_where_nodes_cannot_be_read() {
        let words = |seen: Option<(String, u64)>| seen.map(|(words, _)| words);
        assert_eq!(words(seen(&pending(CONFLICT), &Node::Unreadable)).as_deref(), Some("no node reaches its volume"));
        let full = format!("{CONFLICT} 1 Insufficient cpu");
        assert_eq!(seen(&pending(&full), &Node::Unreadable), None);
        assert_eq!(seen(&on_node(1), &Node::Unreadable), None);
        let mut evicted = pod(
            Some("n3"),
            json!([{"type": "Ready", "status": "False", "lastTransitionTime": at(1)},
                   {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}]),
        );
        assert_eq!(seen(&evicted, &Node::Unreadable), None);
        evicted.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(30)));
        assert_eq!(seen(&evicted, &Node::Unreadable), Some(("its node does not answer".to_owned(), 70)));
    }

    #[test]
    fn node_is_read_by_its_ready_condition() {
        let node = |status: &str| -> core::Node {
            let ready = json!([{"type": "Ready", "status": status, "lastTransitionTime": at(5)}]);
            serde_json::from_value(json!({"metadata": {}, "status": {"conditions": ready}})).expect("a node")
        };
        assert_eq!(Node::read(None), Node::Gone);
        assert_eq!(Node::read(Some(&node("True"))), Node::Ready);
        assert_eq!(Node::read(Some(&node("Unknown"))), Node::NotReady(at(5)));
        assert_eq!(Node::read(Some(&node("False"))), Node::NotReady(at(5)));
    }

    #[test]
    fn stranded_pod_says_what_to_set_or_what_will_be_done() {
        let strand = Strand::Node { name: "n3".into(), gone: true };
        let stranded = Stranded { strand, lasted: Duration::from_secs(9) };
        assert_eq!(
            stranded.describe(&example(), 2),
            "its node n3 is gone; if that is for good, set spec.storage.replaceAfter, or delete volume claim data-kv-2 and \
             pod kv-2 by force"
        );
        let set = include_str!("../../examples/kv.yaml").replace("size: 1Gi", "size: 1Gi\n    replaceAfter: 10m");
        assert_eq!(
            stranded.describe(&service(&set), 2),
            "its node n3 is gone; a new replica comes in its place after 10m, while the others are a quorum"
        );
    }
}
