//! What a user writes.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{
    Affinity, LocalObjectReference, ResourceRequirements, Toleration, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::quantity::Amount;
use crate::rules;
use crate::status::ReplicatedServiceStatus;

/// What the replicated service shall be.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "lockstep.dev",
    version = "v1alpha1",
    kind = "ReplicatedService",
    plural = "replicatedservices",
    shortname = "rsvc",
    namespaced,
    status = "ReplicatedServiceStatus",
    derive = "PartialEq",
    doc = "A deterministic state machine that runs on several replicas, every one of which executes the same requests in the same order, so that the service survives the loss of replicas.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether every replica is up to date and ready"
    ),
    printcolumn(
        name = "Replicas",
        type_ = "integer",
        json_path = ".spec.replicas",
        description = "How many replicas shall vote"
    ),
    printcolumn(
        name = "Voters",
        type_ = "integer",
        json_path = ".status.voters",
        description = "How many replicas vote now"
    ),
    printcolumn(
        name = "Leader",
        type_ = "string",
        json_path = ".status.leader",
        description = "The replica that orders requests now"
    ),
    printcolumn(
        name = "Fault model",
        type_ = "string",
        json_path = ".spec.faultModel",
        description = "Which failures the service survives"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Why",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        description = "Why it is not ready",
        priority = 1
    ),
    validation = rules::NAME_LENGTH,
    validation = rules::NAME_DNS,
    validation = rules::GENESIS_ONCE
)]
#[serde(rename_all = "camelCase")]
pub struct ReplicatedServiceSpec {
    /// How many replicas vote: 1, 3, 5 or 7. Of n = 2f+1 replicas f may fail. May change, also by kubectl scale: replicas come
    /// and go one by one. One that is scaled away goes with its volume claim, since it could never return.
    #[x_kube(validation = rules::REPLICAS_ODD)]
    pub replicas: i32,

    /// Which failures the service survives. Crash: f of 2f+1 replicas may stop; none lies. Cannot change.
    #[serde(default)]
    #[x_kube(validation = rules::FAULT_MODEL_FIXED)]
    pub fault_model: FaultModel,

    /// The state machine that the replicas run. Cannot change.
    #[x_kube(validation = rules::MACHINE_FIXED)]
    pub state_machine: StateMachine,

    /// Where each replica keeps its log and its snapshots.
    pub storage: Storage,

    /// When the replicas take snapshots of their state, and how much log they keep beside them.
    #[serde(default)]
    pub snapshots: Snapshots,

    /// Adopts the kept volumes of an earlier service with this id: 32 hexadecimal digits. Leave it out for a new service.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = rules::SERVICE_ID)]
    pub service_id: Option<String>,

    /// The image of the replicas. The operator's default if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// When to pull the image. Kubernetes' default for the image's tag if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,

    /// How much the replicas log: a level, or directives as of Rust's tracing, such as info,lockstep_replica=debug.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub log_level: Option<String>,

    /// What may be chosen about the pods of the replicas; everything else about them is the operator's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodOptions>,
}

/// Which failures a service survives. The Byzantine model joins this enum once it works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FaultModel {
    /// f of 2f+1 replicas may stop; none lies.
    #[default]
    Crash,
}

impl fmt::Display for FaultModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaultModel::Crash => f.write_str("Crash"),
        }
    }
}

/// The state machine that the replicas run.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StateMachine {
    /// A built-in machine, by name. KeyValue: put, get, delete, compare-and-set, range scans and transactions.
    /// KeyValueWithFaults: the same, but replicas go wrong on request; for exercises and tests only.
    #[schemars(length(max = 63))]
    #[x_kube(validation = rules::MACHINE_KNOWN)]
    pub builtin: String,
}

/// Where each replica keeps its log and its snapshots.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::STORAGE_CLASS_FIXED)]
pub struct Storage {
    /// The size of each replica's volume, such as 1Gi. May grow if the storage class allows it, never shrink.
    #[schemars(length(max = 32))]
    #[x_kube(validation = rules::SIZE_QUANTITY, validation = rules::SIZE_GROWS)]
    pub size: String,

    /// The storage class of the volumes; the cluster's default if left out. Cannot change.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,

    /// After which time, such as 10m, a replica whose node is gone or not ready is given up, with its volume: its volume claim and
    /// its pod are deleted, the pod by force, and a new replica comes in its place, while the others are a quorum. Set it if
    /// volumes are local to their nodes. Never if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    #[x_kube(validation = rules::REPLACE_AFTER)]
    pub replace_after: Option<String>,

    /// What becomes of the volumes when this resource is deleted. Keep: they stay, and a new resource of the same name may
    /// adopt them by their service id. Delete: they go with it, for good.
    #[serde(default)]
    pub on_delete: OnDelete,
}

/// When the replicas take snapshots of their state, and how much log they keep beside them.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshots {
    /// A snapshot is taken after so many bytes of blocks, from 4Ki to 1Ti: small ones cost more writes, large ones more log
    /// on each volume. Cannot change.
    #[serde(default = "Snapshots::every_bytes_default")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = rules::EVERY_BYTES_QUANTITY, validation = rules::EVERY_BYTES_FIXED)]
    pub every_bytes: String,

    /// Bytes of log below the snapshots that the leader keeps for a replica that lags but answers, from 0 to 1Pi; beyond,
    /// that one needs a snapshot. A change replaces the pods one by one.
    #[serde(default = "Snapshots::retain_log_bytes_default")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = rules::RETAIN_LOG_BYTES_QUANTITY)]
    pub retain_log_bytes: String,
}

impl Snapshots {
    /// Bytes of blocks from one snapshot to the next.
    ///
    /// # Errors
    /// What is wrong with the text, if it got past the rules.
    pub fn every(&self) -> Result<u64, String> {
        let bytes = Amount::parse(&self.every_bytes).and_then(Amount::bytes);
        bytes.ok_or_else(|| format!("spec.snapshots.everyBytes: {}", rules::EVERY_BYTES_QUANTITY.1))
    }

    /// Bytes of log kept for a replica that lags.
    ///
    /// # Errors
    /// As of [`Self::every`].
    pub fn retain_log(&self) -> Result<u64, String> {
        let bytes = Amount::parse(&self.retain_log_bytes).and_then(Amount::bytes);
        bytes.ok_or_else(|| format!("spec.snapshots.retainLogBytes: {}", rules::RETAIN_LOG_BYTES_QUANTITY.1))
    }

    fn every_bytes_default() -> String {
        "64Mi".to_owned()
    }

    fn retain_log_bytes_default() -> String {
        "256Mi".to_owned()
    }
}

impl Default for Snapshots {
    fn default() -> Self {
        Snapshots { every_bytes: Self::every_bytes_default(), retain_log_bytes: Self::retain_log_bytes_default() }
    }
}

/// What becomes of the volumes when the resource is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnDelete {
    /// They stay.
    #[default]
    Keep,
    /// They go, for good.
    Delete,
}

/// When a node pulls the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePullPolicy {
    /// At every start of a pod.
    Always,
    /// Only if the node has no such image yet.
    IfNotPresent,
    /// Never: the image is on the node already.
    Never,
}

impl fmt::Display for ImagePullPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What may be chosen about the pods of the replicas.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::POD_LABELS, validation = rules::POD_ANNOTATIONS)]
pub struct PodOptions {
    /// CPU and memory, requests and limits, of each replica. A small request of both if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// Labels that a node must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,

    /// Taints of nodes that the replicas tolerate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerations: Option<Vec<Toleration>>,

    /// Affinity and anti-affinity to nodes and pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,

    /// How the replicas spread over zones and nodes. Replaces the default, which spreads them over nodes where it can. A
    /// constraint without a label selector gets the one of this service's replicas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,

    /// The priority class of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,

    /// Secrets of this namespace for pulling the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_secrets: Option<Vec<LocalObjectReference>>,

    /// Additional labels of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    pub labels: Option<BTreeMap<String, String>>,

    /// Additional annotations of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// CPU and memory of each replica.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler sets aside for each replica, by resource name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<BTreeMap<String, Quantity>>,

    /// What each replica may use at most, by resource name. A replica over its memory limit is killed, and comes back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<BTreeMap<String, Quantity>>,
}

impl From<Resources> for ResourceRequirements {
    fn from(Resources { requests, limits }: Resources) -> Self {
        ResourceRequirements { requests, limits, claims: None }
    }
}
