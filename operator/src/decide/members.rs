//! Members that come and go, one at a time (PROTOCOL §5, S3): a fresh replica takes the place of one whose disk is lost, and
//! there are as many voters as the resource asks for. Who comes is a standby first, and a voter once it has caught up; who is
//! lost goes only when another one votes in its place, and who is scaled away goes first of all and its pod after.
//!
//! The step is read off the membership that the log knows and off the pods, never remembered: whichever operator looks next goes
//! on where the last one stopped, with the number that is wanted then. One change at a time, each only after the one before has
//! settled and while a quorum is ready.

use std::fmt;

use lockstep_types::{Change, Genesis, ReplicaId};

use super::census::{self, Census, Member, is_gone, pending, place};
use super::{Action, Decision, Refusal, Wait};
use crate::validate::Service;
use crate::world::World;

/// A change of the members under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberChange {
    /// What it is for.
    pub purpose: Purpose,
    /// The next step.
    pub step: Step,
    /// Who goes: one that is lost, or one that is scaled away.
    pub target: Option<Member>,
    /// The replica that comes, and its pod while that answers.
    pub newcomer: Option<(ReplicaId, Option<usize>)>,
    /// How many vote now.
    pub voters: usize,
}

/// What members change for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// One whose disk is lost is replaced.
    Replace,
    /// There shall be more.
    ScaleUp,
    /// There shall be fewer.
    ScaleDown,
}

/// The steps, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The newcomer gets a slot.
    AddStandby,
    /// It is told which service it belongs to.
    Join,
    /// It takes in what the others have.
    CatchUp,
    /// It votes.
    Promote,
    /// Who goes leads, and lets another one.
    HandOver,
    /// Who goes is no member any more.
    Remove,
}

/// What a step waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// A pod that does not answer may run the member that seems lost.
    Answers,
    /// No leader is known, or not every voter that answers agrees with it on the members yet.
    Leader,
    /// Too few voters are ready.
    Quorum,
    /// The number of voters is changed only while all that stay are ready.
    Voters,
    /// The last change has not settled.
    Settled,
    /// The newcomer has not caught up, or does not answer.
    Newcomer,
}

/// The next step of a change of members; none if nobody has to come or go, or who shall come is not there yet.
pub fn next(service: &Service, genesis: &Genesis, world: &World) -> Option<Decision> {
    let census = Census::take(service, genesis, world);
    let standby = census.configuration.standbys().iter().next().map(|(slot, id)| (*slot, *id));
    // Only those who do not answer may know who belongs to it now.
    let known = world.members_are_known(genesis) || census::all_answer(service, world);
    if known && census.living() < census.configuration.quorum() {
        let voters = census.configuration.voters();
        let empty = world.replicas().filter(|(_, replica)| !voters.values().any(|id| *id == replica.id));
        return Some(Decision::Refuse(Refusal::ReplicaLost { pods: empty.map(|(ordinal, _)| ordinal).collect() }));
    }
    let changing = Changing { service, genesis, world, census: &census };
    if let Some(standby) = standby
        && let Some(decision) = changing.unwanted(standby)
    {
        return Some(decision);
    }
    if let Some(decision) = changing.removal() {
        return Some(decision);
    }
    match standby {
        Some(standby) => Some(changing.standby(standby)),
        None => changing.addition(),
    }
}

/// What the steps are chosen by.
struct Changing<'a> {
    service: &'a Service,
    genesis: &'a Genesis,
    world: &'a World,
    census: &'a Census,
}

impl Changing<'_> {
    /// Whether one more voter shall come.
    fn is_short(&self) -> bool {
        self.census.stay < self.service.replicas && self.census.voters() <= self.service.replicas
    }

    /// What a newcomer comes for.
    fn purpose(&self) -> Purpose {
        if !self.census.lost.is_empty()
            || (self.census.voters() == self.service.replicas && self.census.surplus.is_empty())
        {
            Purpose::Replace
        } else if self.census.voters() < self.service.replicas {
            Purpose::ScaleUp
        } else {
            Purpose::ScaleDown
        }
    }

    /// A standby that is of no use: its disk is lost as well, or its pod shall go.
    fn unwanted(&self, (slot, id): Member) -> Option<Decision> {
        let beyond = place(self.service, self.world, id).is_some_and(|ordinal| ordinal >= self.service.replicas);
        let purpose = if beyond { Purpose::ScaleDown } else { self.purpose() };
        (beyond || is_gone(self.service, self.world, id))
            .then(|| self.change(Change::Remove { slot }, self.told(purpose, Step::Remove, Some((slot, id)), None)))
    }

    /// A voter that goes: a lost one as soon as another one votes in its place, or there are too many anyway; then the one in
    /// the highest pod of those that shall go.
    fn removal(&self) -> Option<Decision> {
        let Census { lost, surplus, .. } = self.census;
        let (voters, crowded) = (self.census.voters(), self.census.voters() > self.service.replicas);
        // An even number survives no more failures than the odd one below: the last one that came took the lost one's place.
        if let Some(target) = lost.first()
            && (crowded || voters.is_multiple_of(2))
        {
            let newcomer = self.census.configuration.voters().last_key_value();
            let newcomer = newcomer.map(|(_, id)| (*id, self.world.pod_of(*id)));
            let told = self.told(Purpose::Replace, Step::Remove, Some(*target), newcomer);
            return Some(self.change(Change::Remove { slot: target.0 }, told));
        }
        if !crowded {
            return None;
        }
        let Some(((slot, id), ordinal)) = surplus.first().copied() else {
            let told = self.told(Purpose::ScaleDown, Step::Remove, None, None);
            return Some(Decision::Wait(Wait::Members(told, Pending::Answers)));
        };
        let told = |step| self.told(Purpose::ScaleDown, step, Some((slot, id)), None);
        if self.world.leader(self.genesis) != Some(ordinal) {
            return Some(self.change(Change::Remove { slot }, told(Step::Remove)));
        }
        let told = told(Step::HandOver);
        if let Some(pending) = self.pending(&Change::Remove { slot }, Purpose::ScaleDown) {
            return Some(Decision::Wait(Wait::Members(told, pending)));
        }
        let stays = |(other, _): &(usize, &crate::world::Replica)| {
            *other < self.service.replicas && self.world.is_ready(*other, self.genesis)
        };
        Some(match self.world.replicas().find(stays) {
            Some((to, replica)) => {
                let target = replica.id;
                Decision::Act(Action::HandOver { leader: ordinal, to, target, told: Some(told) })
            }
            None => Decision::Wait(Wait::Members(told, Pending::Quorum)),
        })
    }

    /// The standby's way to a vote.
    fn standby(&self, (slot, id): Member) -> Decision {
        let purpose = self.purpose();
        let pod = self.world.pod_of(id);
        let target = self.census.lost.first().copied();
        let told = |step| self.told(purpose, step, target, Some((id, pod)));
        let wait = |step, pending| Decision::Wait(Wait::Members(told(step), pending));
        let Some((ordinal, replica)) = pod.and_then(|ordinal| Some((ordinal, self.world.replica(ordinal)?))) else {
            return wait(Step::CatchUp, Pending::Newcomer);
        };
        if replica.service.is_none() {
            if let Some(pending) = pending(self.genesis, self.world) {
                return wait(Step::Join, pending);
            }
            return Decision::Act(Action::Join {
                ordinal,
                slot,
                genesis: self.genesis.clone(),
                told: told(Step::Join),
            });
        }
        if !replica.caught_up {
            return wait(Step::CatchUp, Pending::Newcomer);
        }
        if !self.is_short() {
            return wait(Step::Promote, Pending::Answers);
        }
        self.change(Change::Promote { slot }, told(Step::Promote))
    }

    /// A newcomer that becomes a standby.
    fn addition(&self) -> Option<Decision> {
        let (ordinal, replica) = self.census.newcomers.first().copied()?;
        let target = self.census.lost.first().copied();
        let told = self.told(self.purpose(), Step::AddStandby, target, Some((replica, Some(ordinal))));
        Some(if self.is_short() {
            self.change(Change::AddStandby { replica }, told)
        } else {
            Decision::Wait(Wait::Members(told, Pending::Answers))
        })
    }

    fn told(
        &self,
        purpose: Purpose,
        step: Step,
        target: Option<Member>,
        newcomer: Option<(ReplicaId, Option<usize>)>,
    ) -> MemberChange {
        MemberChange { purpose, step, target, newcomer, voters: self.census.voters() }
    }

    /// A change, if it may be made now.
    fn change(&self, change: Change, told: MemberChange) -> Decision {
        match (self.pending(&change, told.purpose), self.world.leader(self.genesis)) {
            (None, Some(leader)) => Decision::Act(Action::ChangeMembers { leader, change, told }),
            (Some(pending), _) => Decision::Wait(Wait::Members(told, pending)),
            (None, None) => Decision::Wait(Wait::Members(told, Pending::Leader)),
        }
    }

    /// Why a change may not be made now: what is to be counted after it must be a quorum, and scaling is planned work, which
    /// does not add to a failure.
    fn pending(&self, change: &Change, purpose: Purpose) -> Option<Pending> {
        let configuration = &self.census.configuration;
        let (voters, ready) = (self.census.voters(), self.world.ready(self.genesis));
        let enough = |voters: usize, ready: usize| ready >= configuration.fault_model().quorum(voters);
        let (after, calm) = match change {
            Change::AddStandby { .. } => (true, ready == voters),
            // It has caught up, so it counts from then on.
            Change::Promote { .. } => (enough(voters + 1, ready + 1), ready == voters),
            Change::Remove { slot } => match configuration.voter(*slot) {
                None => (true, true),
                Some(id) => {
                    let leaves = self.world.pod_of(id).is_some_and(|pod| self.world.is_ready(pod, self.genesis));
                    let stay = ready - usize::from(leaves);
                    (enough(voters - 1, stay), stay + 1 == voters)
                }
            },
        };
        pending(self.genesis, self.world)
            .or((!after).then_some(Pending::Quorum))
            .or((!calm && purpose != Purpose::Replace).then_some(Pending::Voters))
    }
}

impl MemberChange {
    /// The reason in conditions.
    pub fn reason(&self) -> &'static str {
        match self.purpose {
            Purpose::Replace => "ReplacingMember",
            Purpose::ScaleUp => "ScalingUp",
            Purpose::ScaleDown => "ScalingDown",
        }
    }

    /// What is being done, for conditions.
    pub fn describe(&self, service: &Service) -> String {
        let MemberChange { purpose, step, target, newcomer, voters } = self;
        let member = |(slot, id): &Member| format!("replica {id} ({slot})");
        let place = newcomer.map(|(id, pod)| match pod {
            Some(ordinal) => format!("{id} in {}", service.pod_name(ordinal)),
            None => id.to_string(),
        });
        match purpose {
            Purpose::Replace => {
                let lost =
                    target.as_ref().map_or_else(|| "a lost replica".to_owned(), |it| format!("lost {}", member(it)));
                let place = place.map(|place| format!(" by {place}")).unwrap_or_default();
                format!("replacing {lost}{place}: {step}")
            }
            Purpose::ScaleUp | Purpose::ScaleDown => {
                let who = place.map(|place| format!("; replica {place}"));
                let who =
                    who.or_else(|| target.as_ref().map(|target| format!("; {}", member(target)))).unwrap_or_default();
                format!("{}{who}: {step}", progress(*voters, service.replicas))
            }
        }
    }
}

/// How far scaling is.
pub fn progress(voters: usize, wanted: usize) -> String {
    if voters > wanted {
        format!("scaling down to {wanted}, {voters} replicas vote")
    } else {
        format!("scaling to {wanted}, {voters} of {wanted} replicas vote")
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::AddStandby => "add the new one as a standby",
            Step::Join => "let the new one join",
            Step::CatchUp => "let the new one catch up",
            Step::Promote => "promote the new one",
            Step::HandOver => "have the one that goes hand over",
            Step::Remove => "remove the one that goes",
        })
    }
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pending::Answers => "waiting until every pod answers, since one of them may run the member that seems lost",
            Pending::Leader => "waiting until a leader is known and ready",
            Pending::Quorum => "waiting until a quorum of the voters is ready",
            Pending::Voters => "waiting until all voters that stay are ready",
            Pending::Settled => "waiting until the last change of members has settled",
            Pending::Newcomer => "waiting until it answers and has caught up",
        })
    }
}
