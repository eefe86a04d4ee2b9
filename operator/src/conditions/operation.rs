//! The operation under way, as the status tells it. Told, not remembered: no decision reads it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lockstep_api::status::{Operation, OperationKind, OperationStep};

use crate::decide::{Action, Decision, MemberChange, Purpose, Step, Wait};
use crate::validate::Service;

/// What the status calls the operation that `decision` is a part of; `born` once the service has its first leader.
pub fn operation(service: &Service, decision: &Decision, born: bool, now: &Time) -> Option<Operation> {
    let of = |kind, target, waiting_for| {
        Some(Operation { kind, target, newcomer: None, pod: None, step: None, since: None, waiting_for })
    };
    let plain = |kind, waiting_for| of(kind, None, waiting_for);
    let changes = |it: &Operation| {
        matches!(it.kind, OperationKind::ReplaceMember | OperationKind::ScaleUp | OperationKind::ScaleDown)
    };
    let changing = service.status.operation.clone().filter(changes);
    match decision {
        Decision::Act(Action::HandOver { leader: ordinal, told: None, .. } | Action::ReplacePod { ordinal, .. })
            if born =>
        {
            let target = Some(service.pod_name(*ordinal));
            of(OperationKind::Roll, target, None)
        }
        Decision::Act(
            Action::HandOver { told: Some(told), .. } | Action::ChangeMembers { told, .. } | Action::Join { told, .. },
        ) => Some(member_change(service, told, None, now)),
        Decision::Wait(Wait::Members(told, pending)) => {
            Some(member_change(service, told, Some(pending.to_string()), now))
        }
        // What a change needs between its steps is a part of it.
        Decision::Act(Action::Apply(_) | Action::MarkVolumes { .. }) if changing.is_some() => changing,
        Decision::Act(Action::ReplaceVolume { ordinal, .. }) => {
            of(OperationKind::ReplaceMember, Some(service.pod_name(*ordinal)), None)
        }
        Decision::Act(Action::DeleteClaims { .. }) => plain(OperationKind::ScaleDown, None),
        Decision::Act(Action::GrowVolumes { .. }) => plain(OperationKind::GrowVolumes, None),
        Decision::Act(Action::RecordGenesis { .. } | Action::SendGenesis { .. } | Action::MarkVolumes { .. }) => {
            plain(OperationKind::Bootstrap, None)
        }
        Decision::Act(_) if !born => plain(OperationKind::Bootstrap, None),
        Decision::Act(_) => None,
        Decision::Wait(wait) => {
            let kind_of = match wait {
                _ if !born => OperationKind::Bootstrap,
                Wait::Rolling(_) | Wait::NoLeader | Wait::Unsettled | Wait::HeldBack(_) | Wait::Turn => {
                    OperationKind::Roll
                }
                Wait::Members(told, _) => kind(told),
                Wait::Arriving(..) => OperationKind::ScaleUp,
                Wait::Leaving(_) | Wait::LeftOver(_) => OperationKind::ScaleDown,
                Wait::FormerObject { .. } | Wait::Kubernetes | Wait::Starting(_) | Wait::NotReady(_) => {
                    OperationKind::Recover
                }
            };
            plain(kind_of, Some(wait.describe(service)))
        }
        Decision::Refuse(_) | Decision::Converged => None,
    }
}

fn kind(told: &MemberChange) -> OperationKind {
    match told.purpose {
        Purpose::Replace => OperationKind::ReplaceMember,
        Purpose::ScaleUp => OperationKind::ScaleUp,
        Purpose::ScaleDown => OperationKind::ScaleDown,
    }
}

fn member_change(service: &Service, told: &MemberChange, waiting_for: Option<String>, now: &Time) -> Operation {
    let MemberChange { purpose, step, target, newcomer, voters: _ } = told;
    let (kind, target) = (kind(told), target.map(|(slot, id)| format!("{slot} {id}")));
    // A replacement is of one member; scaling goes on from one to the next.
    let same = |it: &&Operation| it.kind == kind && (*purpose != Purpose::Replace || it.target == target);
    let before = service.status.operation.as_ref().filter(same);
    Operation {
        since: before.and_then(|it| it.since.clone()).or_else(|| Some(now.clone())),
        kind,
        target,
        newcomer: newcomer.map(|(id, _)| id.to_string()),
        pod: newcomer.and_then(|(_, ordinal)| ordinal).map(|ordinal| service.pod_name(ordinal)),
        step: Some(match step {
            Step::AddStandby => OperationStep::AddStandby,
            Step::Join => OperationStep::Join,
            Step::CatchUp => OperationStep::CatchUp,
            Step::Promote => OperationStep::Promote,
            Step::HandOver => OperationStep::HandOver,
            Step::Remove => OperationStep::Remove,
        }),
        waiting_for,
    }
}
