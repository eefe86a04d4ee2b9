//! What the operator answers. Nothing here churns: no heights, no times but those of a condition's last transition.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the replicated service is, as the operator last saw it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicatedServiceStatus {
    /// The generation of the spec that this status answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// How many pods there are.
    #[serde(default)]
    pub replicas: i32,

    /// How many replicas are ready: voters that are caught up and hear a leader.
    #[serde(default)]
    pub ready_replicas: i32,

    /// How many replicas vote; on the way to another number of replicas not as many as asked for.
    #[serde(default)]
    pub voters: i32,

    /// Selects the pods, for the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,

    /// The id of the service, minted with its genesis: 32 hexadecimal digits. Keep it if you want to adopt kept volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_id: Option<String>,

    /// The genesis in its canonical bytes, as hexadecimal digits. Recorded here before the first replica sees it, once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub genesis: Option<String>,

    /// The pod of the replica that orders requests now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,

    /// The voters, and the standbys on their way to become voters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["replicaId".into()]))]
    pub members: Vec<Member>,

    /// What the operator is in the middle of, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,

    /// Ready: every replica is up to date and ready. Available: requests commit. FaultTolerant: one more replica may fail.
    /// Progressing: the operator is changing something. Degraded: something is wrong, and what to do about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

impl ReplicatedServiceStatus {
    /// The condition of this type.
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == type_)
    }
}

/// One voter or standby.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// The pod that runs it; absent while none is known to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Its number within the service, from 1; given once, never reused.
    pub slot: i64,
    /// Its identity, minted with its data directory: 32 hexadecimal digits.
    pub replica_id: String,
    /// It has no vote yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub standby: bool,
}

/// What the operator is in the middle of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Which operation.
    pub kind: OperationKind,
    /// What it acts on, such as a pod, or a member by its slot and identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The identity of the replica that comes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newcomer: Option<String>,
    /// The pod that it comes in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The step that is next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<OperationStep>,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// What it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
}

/// The steps of changing the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OperationStep {
    /// The new replica gets a slot, without a vote.
    AddStandby,
    /// It is told which service it belongs to.
    Join,
    /// It takes in what the others have.
    CatchUp,
    /// It gets a vote.
    Promote,
    /// The member that goes leads, and lets another one.
    HandOver,
    /// It is no member any more.
    Remove,
}

/// The operations there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OperationKind {
    /// From nothing to a service with a genesis that all replicas hold.
    Bootstrap,
    /// Replacing pods by pods of the current template, one by one.
    Roll,
    /// Replacing a member whose volume is lost by a fresh replica.
    ReplaceMember,
    /// More replicas come to vote, one by one.
    ScaleUp,
    /// Replicas go, one by one, and their pods and volumes after them.
    ScaleDown,
    /// Growing the volumes.
    GrowVolumes,
    /// Waiting for replicas to come back, without any act of the operator.
    Recover,
}
