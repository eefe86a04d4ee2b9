//! What the operator waits for, and how it is told.

use super::members::{MemberChange, Pending, progress};
use super::names;
use crate::validate::Service;

/// Why nothing is done right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// An object of a former resource or StatefulSet of this name is still on its way out.
    FormerObject {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Kubernetes has not made or taken note of everything yet.
    Kubernetes,
    /// Before genesis: replicas that do not answer yet, with the reason if one is known.
    Starting(Vec<(usize, Option<String>)>),
    /// A roll is under way, and these replicas must be ready before the next pod goes.
    Rolling(Vec<(usize, Option<String>)>),
    /// A roll is under way, and the leader is not known.
    NoLeader,
    /// A roll is under way, and who left last is still needed.
    Unsettled,
    /// A roll is under way, and a disruption budget holds the next pod back. It is tried again and again.
    HeldBack(usize),
    /// Pods are outdated, and as many other services as may are being rolled.
    Turn,
    /// Members come or go, and the next step has to wait.
    Members(MemberChange, Pending),
    /// So many vote, and more shall, but these pods are not there yet.
    Arriving(usize, Vec<(usize, Option<String>)>),
    /// Pods that nobody needs any more, until Kubernetes has taken them away.
    Leaving(Vec<usize>),
    /// Claims that nobody needs any more, until every member says that it is elsewhere.
    LeftOver(Vec<usize>),
    /// Replicas that are not ready, and nothing that the operator could do about it.
    NotReady(Vec<(usize, Option<String>)>),
}

impl Wait {
    /// The reason in conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Wait::FormerObject { .. } => "WaitingForDeletion",
            Wait::Kubernetes => "WaitingForPods",
            Wait::Starting(_) => "ReplicasStarting",
            Wait::Rolling(_) | Wait::NoLeader | Wait::Unsettled => "Rolling",
            Wait::HeldBack(_) => "EvictionHeldBack",
            Wait::Turn => "WaitingForTurn",
            Wait::Members(told, _) => told.reason(),
            Wait::Arriving(..) => "ScalingUp",
            Wait::Leaving(_) | Wait::LeftOver(_) => "ScalingDown",
            Wait::NotReady(_) => "ReplicasNotReady",
        }
    }

    /// What the condition says.
    pub fn describe(&self, service: &Service) -> String {
        let list = |pods: &[(usize, Option<String>)]| {
            names(pods.iter().map(|(ordinal, why)| match why {
                Some(why) => format!("{} ({why})", service.pod_name(*ordinal)),
                None => service.pod_name(*ordinal),
            }))
        };
        match self {
            Wait::FormerObject { kind, name } => {
                format!("waiting until {kind} {name} of a former resource or StatefulSet of this name is gone")
            }
            Wait::Kubernetes => "waiting until Kubernetes has made the pods".to_owned(),
            Wait::Starting(pods) => format!("waiting for the first answer of {}", list(pods)),
            Wait::Rolling(pods) => format!("replacing pods one by one; waiting until {} is ready", list(pods)),
            Wait::NoLeader => "replacing pods one by one; waiting until a leader is known".to_owned(),
            Wait::Unsettled => {
                "replacing pods one by one; waiting until the last change of members has settled".to_owned()
            }
            Wait::HeldBack(pod) => format!(
                "replacing pods one by one; a disruption budget does not let {} go yet, see kubectl get \
                 poddisruptionbudgets",
                service.pod_name(*pod)
            ),
            Wait::Turn => {
                "pods are not of the current template; waiting until other services have been rolled, since the \
                           operator rolls only some at a time (--concurrent-rolls)"
                    .to_owned()
            }
            Wait::Members(told, pending) => format!("{}; {pending}", told.describe(service)),
            Wait::Arriving(voters, pods) => {
                format!("{}; waiting for {}", progress(*voters, service.replicas), list(pods))
            }
            Wait::Leaving(pods) => format!(
                "scaled to {}; waiting until {} is gone",
                service.replicas,
                names(pods.iter().map(|ordinal| service.pod_name(*ordinal)))
            ),
            Wait::LeftOver(claims) => format!(
                "scaled to {}; volume claim {} is deleted once every member answers from elsewhere",
                service.replicas,
                names(claims.iter().map(|ordinal| service.claim_name(*ordinal)))
            ),
            Wait::NotReady(pods) => format!("waiting until {} is ready", list(pods)),
        }
    }
}
