//! The operation under way, as the status tells it. Told, not remembered: no decision reads it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lockstep_api::status::{Operation, OperationKind, OperationStep};

use crate::decide::{Action, Decision, Replacement, Step, Wait};
use crate::validate::Service;

/// What the status calls the operation that `decision` is a part of; `born` once the service has its first leader.
pub fn operation(service: &Service, decision: &Decision, born: bool, now: &Time) -> Option<Operation> {
    let of = |kind, target, waiting_for| {
        Some(Operation { kind, target, newcomer: None, pod: None, step: None, since: None, waiting_for })
    };
    let plain = |kind, waiting_for| of(kind, None, waiting_for);
    let replacing = service.status.operation.clone().filter(|it| it.kind == OperationKind::ReplaceMember);
    match decision {
        Decision::Act(Action::HandOver { leader: ordinal, .. } | Action::ReplacePod { ordinal, .. }) if born => {
            let target = Some(service.pod_name(*ordinal));
            of(OperationKind::Roll, target, None)
        }
        Decision::Act(Action::ChangeMembers { replacement, .. } | Action::Join { replacement, .. }) => {
            Some(replaces(service, replacement, None, now))
        }
        Decision::Wait(Wait::Replacing(replacement, pending)) => {
            Some(replaces(service, replacement, Some(pending.to_string()), now))
        }
        // What a replacement needs between its steps is a part of it.
        Decision::Act(Action::Apply(_) | Action::MarkVolumes { .. }) if replacing.is_some() => replacing,
        Decision::Act(Action::GrowVolumes { .. }) => plain(OperationKind::GrowVolumes, None),
        Decision::Act(Action::RecordGenesis { .. } | Action::SendGenesis { .. } | Action::MarkVolumes { .. }) => {
            plain(OperationKind::Bootstrap, None)
        }
        Decision::Act(_) if !born => plain(OperationKind::Bootstrap, None),
        Decision::Act(_) => None,
        Decision::Wait(wait) => {
            let kind = match wait {
                _ if !born => OperationKind::Bootstrap,
                Wait::Rolling(_) | Wait::NoLeader | Wait::HeldBack(_) | Wait::Turn => OperationKind::Roll,
                Wait::Replacing(..) => OperationKind::ReplaceMember,
                Wait::FormerObject { .. } | Wait::Kubernetes | Wait::Starting(_) | Wait::NotReady(_) => {
                    OperationKind::Recover
                }
            };
            plain(kind, Some(wait.describe(service)))
        }
        Decision::Refuse(_) | Decision::Converged => None,
    }
}

fn replaces(service: &Service, replacement: &Replacement, waiting_for: Option<String>, now: &Time) -> Operation {
    let Replacement { step, target, newcomer } = replacement;
    let target = target.map(|(slot, id)| format!("{slot} {id}"));
    let before = service.status.operation.as_ref();
    let before = before.filter(|it| it.kind == OperationKind::ReplaceMember && it.target == target);
    Operation {
        kind: OperationKind::ReplaceMember,
        target,
        newcomer: newcomer.map(|(id, _)| id.to_string()),
        pod: newcomer.and_then(|(_, ordinal)| ordinal).map(|ordinal| service.pod_name(ordinal)),
        step: Some(match step {
            Step::AddStandby => OperationStep::AddStandby,
            Step::Join => OperationStep::Join,
            Step::CatchUp => OperationStep::CatchUp,
            Step::Promote => OperationStep::Promote,
            Step::Remove => OperationStep::Remove,
        }),
        since: before.and_then(|it| it.since.clone()).or_else(|| Some(now.clone())),
        waiting_for,
    }
}
